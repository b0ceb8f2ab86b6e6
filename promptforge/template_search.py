"""Template searches: labelled rows, their label words and a model -> templates.

A search sees `TemplateEvidence` and proposes templates with scores of its own. What follows is
the same for all of them and done here: templates that do not fit are dropped, the others are
ranked by zero-shot accuracy, and the best may be ranked by what the caller makes of them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from pydantic import Field

from promptforge.backbone.base import Backbone
from promptforge.components import Component
from promptforge.data import Example, Row
from promptforge.errors import UserError
from promptforge.model import PromptModel
from promptforge.plugins import build
from promptforge.progress import Reporter
from promptforge.task import Pattern, Task
from promptforge.template import Template
from promptforge.verbalizer import Verbalizer, Words


@dataclass(frozen=True)
class TemplateEvidence:
    """What a template search may look at.

    Attributes:
        generator: the model that writes the templates.
        rows: training rows of all labels, N of them.
        words: the label word of each row, N of them.
        columns: the columns that a template uses, in order.
        family: the family of the model that will read the templates ("causal": the mask comes
            last).
    """

    generator: Backbone
    rows: Sequence[Row]
    words: Sequence[str]
    columns: tuple[str, ...]
    family: str


@dataclass(frozen=True)
class FoundTemplate:
    """A template that a search found.

    Attributes:
        source: the template itself.
        score: what the search thinks of it (LM-BFF: the beam score).
        train, dev: zero-shot accuracy on these rows, where it was measured.
        tuned: what the caller's `rank` says of it.
    """

    source: str
    score: float
    train: float | None = None
    dev: float | None = None
    tuned: float | None = None

    @property
    def template(self) -> Template:
        """The source as a template."""
        return Template(self.source, name="found")


class TemplateSearch(Component):
    """Proposes templates. Options every search has; plugins add their own."""

    role: ClassVar[str] = "template-search"

    candidates: int = Field(
        100, ge=1, description="Templates to propose; each is measured on all training rows."
    )

    @abstractmethod
    def search(self, evidence: TemplateEvidence, report: Reporter) -> list[FoundTemplate]:
        """At most `candidates` different templates with their scores, in any order.

        Raises:
            UserError: the evidence or its generator does not allow an answer.
        """


class _Hushed(Reporter):
    """Says nothing at all: what reading warns of would be said again for each template."""

    def warn(self, text: str) -> None:
        pass


def search_template(
    backbone: Backbone,
    task: Task,
    train: Sequence[Example],
    *,
    search: str | TemplateSearch = "lm-bff",
    generator: Backbone | None = None,
    dev: Sequence[Example] = (),
    keep: int = 10,
    verbalizer: str | Verbalizer = "manual",
    rank: Callable[[Template], float] | None = None,
    report: Reporter | None = None,
    **options: Any,
) -> list[FoundTemplate]:
    """Find templates for `task`, best first.

    Templates are ranked by zero-shot accuracy on `train`, then by the search's score. The words
    of the task's first pattern stand for the labels; its templates are not looked at.

    Args:
        backbone: the model that will read the templates.
        task: labels with words, and columns.
        train: labelled examples.
        search: a template search or its name; `options` are its options.
        generator: the model that writes the templates; `backbone` by default.
        dev: examples to measure the templates that are kept on, for information.
        keep: how many templates to return.
        verbalizer: how words become classes; a component or its name.
        rank: ranks the kept templates instead: the larger, the better. LM-BFF ranks by dev
            accuracy after tuning.

    Raises:
        UserError: options that do not fit, a label without rows or words, a generator that
            cannot fill spans, or no template that fits the model.
    """
    report = report or Reporter()
    task.need_classes("A search for templates")
    if keep < 1:
        raise UserError(f"keep is {keep}; it must be at least 1.")
    finder: TemplateSearch = (
        build("template-search", search, **options) if isinstance(search, str) else search
    )
    words = task.words_for(next(iter(task.patterns))) if task.patterns else task.labels
    _check(task, words, train)
    rows = [e.row for e in train]
    evidence = TemplateEvidence(
        generator or backbone, rows, [words[e.label][0] for e in train], task.inputs, backbone.family
    )  # fmt: skip
    with torch.inference_mode():
        proposed = finder.search(evidence, report)
    found = _measured(_fitting(proposed, backbone, task, words, rows), backbone, task, words, train,
                      verbalizer, report)  # fmt: skip
    found = sorted(found, key=lambda f: (-(f[1]), -f[0].score, f[0].source))[:keep]
    kept = [replace(template, train=accuracy) for template, accuracy in found]
    if dev:
        both = _measured(kept, backbone, task, words, dev, verbalizer, report)
        kept = [replace(template, dev=accuracy) for template, accuracy in both]
    if rank is not None:
        with report.meter("Ranking", len(kept), "templates") as meter:
            for i, template in enumerate(kept):
                kept[i] = replace(template, tuned=rank(template.template))
                meter.advance()
        kept.sort(key=lambda t: -(t.tuned or 0.0))  # stable: ties stay as they were
    return kept


def _check(task: Task, words: Words, train: Sequence[Example]) -> None:
    for label in task.labels:
        if not words.get(label):
            raise UserError(
                f"The label {label!r} has no words, and a template is written around them. Give it one "
                "in task.toml, [labels], or find some: 'promptforge search-verbalizer'."
            )
        if not any(e.label == label for e in train):
            raise UserError(f"The label {label!r} has no rows to learn templates from.")


def _fitting(
    proposed: Sequence[FoundTemplate], backbone: Backbone, task: Task, words: Words,
    rows: Sequence[Row],
) -> list[FoundTemplate]:  # fmt: skip
    """Those that render and encode every row for the model that will read them."""
    fitting: list[FoundTemplate] = []
    reason = "the search proposed none"
    scope: dict[str, Any] = {"labels": list(task.labels), "words": words}
    for found in proposed:
        template = found.template
        try:
            template.check(task.inputs, example=rows[0], family=backbone.family, **scope)
            backbone.encode([template.render(row, **scope) for row in rows])
        except UserError as error:
            reason = str(error)
        else:
            fitting.append(found)
    if not fitting:
        raise UserError(f"No template was found that fits {backbone.name}: {reason}")
    return fitting


def _measured(
    found: Sequence[FoundTemplate], backbone: Backbone, task: Task, words: Words,
    examples: Sequence[Example], verbalizer: str | Verbalizer, report: Reporter,
) -> list[tuple[FoundTemplate, float]]:  # fmt: skip
    """Each template with its zero-shot accuracy on the examples."""
    rows = [e.row for e in examples]
    out = []
    cut = 0
    with report.meter("Measuring", len(found), "templates") as meter:
        for template in found:
            pattern = Pattern("found", template.template, words)
            model = PromptModel(
                backbone, replace(task, patterns={"found": pattern}),
                verbalizer=verbalizer, remember=False, report=_Hushed(),
            )  # fmt: skip
            said = model.predict(rows)
            hits = sum(e.label == label for e, label in zip(examples, said, strict=True))
            out.append((template, hits / len(examples)))
            cut = max(cut, *model.cut_rows.values(), 0)
            meter.advance()
    if cut:
        report.warn(
            f"Up to {cut} of {len(rows)} rows were cut to fit {backbone.encoder.max_length} tokens."
        )
    return out
