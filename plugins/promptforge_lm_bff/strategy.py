"""LM-BFF (Gao, Fisch & Chen 2021): prompts found automatically, and tuning with demonstrations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from promptforge import Classifier, Strategy, UserError
from promptforge.components import changed
from promptforge.plugins import build
from promptforge.search import search_verbalizer
from promptforge.selection import fit_selector
from promptforge.task import Pattern, Task
from promptforge.template import Template
from promptforge.template_search import search_template
from promptforge.tuning.rerank import check_takes
from promptforge.tuning.scores import dev_score
from promptforge.tuning.strategy import Made
from promptforge.tuning.tuner import Member, Tuner


class LmBff(Strategy):
    """Prompt-based fine-tuning with one sampled demonstration per label in every prompt.

    (Section 6.) At inference the probabilities of several samples are averaged: `samples` of the
    run, 16 in the paper. Templates and label words are those of the task, or are found on the
    training rows and ranked by accuracy on the development rows after tuning (section 5).
    """

    name: ClassVar[str] = "lm-bff"

    demonstrate: bool = Field(True, description="Show demonstrations in the prompts.")
    filter: bool = Field(
        True,
        description="Sample demonstrations from the most similar half of each label's rows only.",
    )
    templates: int = Field(
        0, ge=0, description="Templates to find and to rank by tuning; 0: the task's own."
    )
    assignments: int = Field(
        0, ge=0, description="Sets of label words to find and to rank by tuning; 0: the task's own."
    )
    beam: int = Field(20, ge=1, description="Beam of the template search (the paper: 100).")
    top: int = Field(100, ge=1, description="Words per label that the word search combines.")

    @property
    def makes(self) -> Made:
        """The best prompt; its words may be found yet."""
        return "" if self.assignments or self.templates else "prompt"

    @property
    def demonstrates(self) -> bool:
        """Whether `demonstrate` is on."""
        return self.demonstrate

    def train(self, tuner: Tuner) -> Classifier:
        """The best candidate on the development rows, tuned.

        Raises:
            UserError: candidates to rank, and no development rows, `templates` or `assignments` with
                a verbalizer that cannot read them.
        """
        self.check_tuner(tuner)
        task = tuner.task
        if self.templates:
            task = self._with_templates(tuner)
        candidates = {name: task.choose([name]) for name in task.patterns}
        if self.assignments:
            candidates = self._with_words(tuner, task)
        if self.demonstrate:
            tuner = self._demonstrating(tuner)
        targets = tuner.targets()
        made = tuner.members(
            [
                Member(name, targets, next(iter(one.patterns)), tuner.seed, task=one)
                for name, one in candidates.items()
            ]
        )
        if len(made) == 1:
            return next(iter(made.values()))
        scores = {name: dev_score(model, tuner.dev) for name, model in made.items()}
        return made[max(scores, key=lambda name: scores[name])]

    def check_tuner(self, tuner: Tuner) -> None:
        """Raise a `UserError` where there are candidates to rank and no development rows, the verbalizer
        cannot read what a search would find, both no demonstrations are asked for and some, or
        `filter` has none to sample."""
        super().check_tuner(tuner)
        candidates = (self.templates or len(tuner.task.patterns)) * (self.assignments or 1)
        if candidates > 1 and not tuner.dev:
            raise UserError(
                f"strategy 'lm-bff' has {candidates} candidates to rank and no development rows: "
                "give --dev, or --shots, or one pattern with --pattern."
            )
        if tuner.demonstrations is not None and not self.demonstrate:
            raise UserError(
                "strategy 'lm-bff' with demonstrate=false shows no demonstrations: leave out "
                "--demonstrations or that option."
            )
        if changed(self, "filter") and (tuner.demonstrations is not None or not self.demonstrate):
            raise UserError(
                f"strategy 'lm-bff': filter={str(self.filter).lower()} is of the demonstrations that it samples itself, "
                "and it samples none: leave filter out"
                + (", or --demonstrations." if self.demonstrate else " with demonstrate=false.")
            )
        if self.templates:
            words = tuner.task.words_for(next(iter(tuner.task.patterns)))
            like = Pattern("found", Template("It was {{ mask }}", name="found"), words)
            tuner = tuner.with_(task=replace(tuner.task, patterns={"found": like}))
            check_takes(tuner, f"strategy.templates={self.templates}")
        if self.assignments:
            check_takes(tuner, f"strategy.assignments={self.assignments}", 1)

    def _demonstrating(self, tuner: Tuner) -> Tuner:
        if tuner.demonstrations is not None:
            return tuner
        selector = build("demonstrations", "lm-bff", filter=self.filter, seed=tuner.seed)
        fit_selector(
            selector,
            tuner.train,
            list(tuner.labels),
            columns=tuner.task.inputs,
            report=tuner.report,
        )
        return tuner.with_(demonstrations=selector)

    def _with_templates(self, tuner: Tuner) -> Task:
        """The task with templates that the model itself wrote."""
        with tuner.precision.computing():
            found = search_template(
                tuner.backbone, tuner.task, tuner.train, keep=self.templates, beam=self.beam,
                verbalizer=tuner.verbalizer.model_copy(deep=True), report=tuner.report,
            )  # fmt: skip
        words = tuner.task.words_for(next(iter(tuner.task.patterns)))
        patterns = {
            f"found-{i + 1}": Pattern(
                f"found-{i + 1}", Template(f.source, name=f"found-{i + 1}"), words
            )
            for i, f in enumerate(found)
        }
        return replace(tuner.task, patterns=patterns)

    def _with_words(self, tuner: Tuner, task: Task) -> dict[str, Task]:
        """One task per pattern and set of words."""
        model = tuner.with_(task=task, demonstrations=None).untrained()
        options: dict[str, Any] = {"assignments": self.assignments, "top": self.top}
        with tuner.precision.computing():
            found = search_verbalizer(model, tuner.train, search="lm-bff", **options)
        return {
            f"{pattern}-words-{i + 1}": task.choose([pattern]).with_words({pattern: words})
            for pattern, sets in found.alternatives.items()
            for i, words in enumerate(sets)
        }
