"""Template searches: labelled rows, their label words and a model -> templates.

A search sees `TemplateEvidence` and proposes templates with scores of its own. What follows is
the same for all of them and done here: templates that do not fit are dropped, the others are
ranked by zero-shot accuracy, and the best may be ranked by what the caller makes of them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field

from promptforge.backbone.base import Backbone
from promptforge.components import Component
from promptforge.data import Example, Row
from promptforge.errors import UserError
from promptforge.model import PromptModel
from promptforge.plugins import build
from promptforge.progress import Mute, Reporter
from promptforge.task import TASK_FILE, Pattern, Task
from promptforge.template import Template
from promptforge.tuning import jobs as job_queue
from promptforge.tuning.backends import Backend, started
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
    rank: Callable[[Sequence[Template]], Sequence[float]] | None = None,
    jobs: int | None = None,
    backend: str | Backend | None = None,
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
        rank: gives the kept templates the scores that they are ranked by instead: the larger, the
            better. LM-BFF ranks by dev accuracy after tuning (`promptforge.tuning.rerank`).
        jobs, backend: templates measured at the same time, and where; as for `train`.

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
    fitting = _fitting(proposed, backbone, task, words, rows)
    with started(backend, jobs) as many:
        measure = partial(_measured, backbone, task, words, verbalizer, many, report)
        accuracies = measure(fitting, train)
        order = sorted(
            range(len(fitting)),
            key=lambda i: (-accuracies[i], -fitting[i].score, fitting[i].source),
        )[:keep]
        kept = [replace(fitting[i], train=accuracies[i]) for i in order]
        if dev:
            kept = [replace(t, dev=a) for t, a in zip(kept, measure(kept, dev), strict=True)]
        if rank is not None:
            scores = rank([t.template for t in kept])
            kept = [replace(t, tuned=score) for t, score in zip(kept, scores, strict=True)]
            kept.sort(key=lambda t: -(t.tuned or 0.0))  # stable: ties stay as they were
    return kept


def _check(task: Task, words: Words, train: Sequence[Example]) -> None:
    for label in task.labels:
        if not words.get(label):
            file = task.folder / TASK_FILE if task.folder else TASK_FILE
            raise UserError(
                f"The label {label!r} has no words, and a template is written around them. Give it one "
                f"in {file}, [labels], or find some: 'promptforge search-verbalizer'."
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
    backbone: Backbone, task: Task, words: Words, verbalizer: str | Verbalizer, jobs: int,
    report: Reporter, found: Sequence[FoundTemplate], examples: Sequence[Example],
) -> list[float]:  # fmt: skip
    """The zero-shot accuracy of each template on the examples."""
    work = partial(_measure, task, words, verbalizer, examples)
    items = {f"template {t.source!r}": t for t in found}
    if jobs > 1 and len(items) > 1 and job_queue.can_send(backbone, report):
        done = job_queue.run(
            work, items, backbone=backbone, jobs=jobs, report=report, what="Measuring", unit="templates"
        )  # fmt: skip
    else:
        done = {}
        with report.meter("Measuring", len(items), "templates") as meter:
            for name, template in items.items():
                done[name] = work(backbone, None, name, template, report)
                meter.advance()
    if cut := max((c for _, c in done.values()), default=0):
        report.warn(
            f"Up to {cut} of {len(examples)} rows were cut to fit {backbone.encoder.max_length} tokens."
        )
    return [done[name][0] for name in items]


def _measure(
    task: Task, words: Words, verbalizer: str | Verbalizer, examples: Sequence[Example],
    backbone: Backbone, _: Path | None, name: str, template: FoundTemplate, __: Reporter,
) -> tuple[float, int]:  # fmt: skip
    """A job: a template's zero-shot accuracy, and how many rows were cut."""
    pattern = Pattern("found", template.template, words)
    model = PromptModel(
        backbone, replace(task, patterns={"found": pattern}),
        verbalizer=verbalizer, remember=False, report=Mute(),  # it would be said for each template
    )  # fmt: skip
    said = model.predict([e.row for e in examples])
    hits = sum(e.label == label for e, label in zip(examples, said, strict=True))
    return hits / len(examples), max(model.cut_rows.values(), default=0)
