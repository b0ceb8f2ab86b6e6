"""A multitask training from tasks to figures: zero-shot before and after, kept in a run's folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from promptforge import PromptModel, Settings
from promptforge.classifier import ENSEMBLE
from promptforge.evaluation import AnyEvaluation
from promptforge.remote import publishing
from promptforge.tuning import processes
from promptforge.tuning.plan import digests
from promptforge.tuning.run import RESULTS, RunFolder
from promptforge_multitask.mixture import TaskExamples
from promptforge_multitask.model import MultiTaskPromptModel


@dataclass
class MultiTaskRun:
    """What a multitask training gave.

    Attributes:
        model: the trained model.
        results: task -> "before" and "after" training -> pattern -> figures on its test rows.
        folder: where all of it was written, or None.
    """

    model: MultiTaskPromptModel
    results: dict[str, dict[str, dict[str, AnyEvaluation]]] = field(default_factory=dict)
    seconds: float = 0.0
    folder: Path | None = None

    def figures(self, task: str, when: str) -> AnyEvaluation:
        """The figures of all patterns of a task together."""
        parts = self.results[task][when]
        return parts.get(ENSEMBLE) or next(iter(parts.values()))

    def to_json(self) -> dict[str, Any]:
        """As `results.json` has it."""
        model = self.model
        tasks = {
            name: {
                "kind": {**model.tasks, **model.held_out}[name].kind,
                "held_out": name in model.held_out,
                **{
                    when: {part: e.to_json() for part, e in parts.items()}
                    for when, parts in by.items()
                },
            }
            for name, by in self.results.items()
        }
        return {
            "seconds": self.seconds,
            "results": {},  # one split's figures of one task would stand here
            "tasks": tasks,
            "removed": model.removed,
            "drawn": model.counts,
            "trained": {"model": vars(model.trained)} if model.trained else {},
        }


@publishing("run")
def train_multitask(
    model: MultiTaskPromptModel,
    data: Sequence[TaskExamples],
    *,
    hold_out: Sequence[str] = (),
    settings: Settings | None = None,
    seed: int = 13,
    run: str | Path | None = None,
    resume: bool = False,
    config: Mapping[str, Any] | None = None,
    **options: Any,
) -> MultiTaskRun:
    """Fit `model`, and measure it on the test rows of every task before and after.

    Args:
        run: folder to keep everything in; None: in memory only.
        resume: go on with the run in that folder.
        config: further values for `config.json`.
        options: cap, shots, dev_rows, as `MultiTaskPromptModel.fit` has them.

    Raises:
        UserError, PromptForgeError: as `fit`; a folder with another run.
    """
    settings = settings or Settings()
    first = processes.is_first()
    folder = RunFolder(Path(run)) if run and first else None
    resolved = {
        "task": {"name": ", ".join(one.name for one in data)},
        "tasks": {one.name: one.task.to_json() for one in data},
        "rows": {one.name: [len(one.train), len(one.dev), len(one.test)] for one in data},
        "model": model.backbone.source,
        "strategy": {"name": "multitask", "hold_out": list(hold_out), **options},
        "method": {"name": model.method.name, **model.method.model_dump(mode="json")},
        "verbalizer": {"name": model.verbalizer.name, **model.verbalizer.model_dump(mode="json")},
        "settings": settings.model_dump(),
        "seed": seed,
        **(config or {}),
    }
    rows = {
        f"{name} of {one.name}": digest
        for one in data
        for name, digest in digests({"train": one.train, "dev": one.dev}).items()
    }
    with folder.opened(resolved, resume=resume, rows=rows) if folder else nullcontext():
        processes.wait(model.backbone.device)
        began = time.perf_counter()
        model.fit(
            data, hold_out=hold_out, settings=settings, seed=seed,
            folder=Path(run) if run else None, **options,
        )  # fmt: skip
        made = MultiTaskRun(model, {}, time.perf_counter() - began, Path(run) if run else None)
        # First the one and then the other for all tasks: each switch copies the weights.
        untrained = MultiTaskPromptModel(
            model.backbone, verbalizer=model.verbalizer, report=model.report
        )
        for when, source in (("before", untrained), ("after", model)):
            for one in data:
                if one.test:
                    classifier: PromptModel = source.classifier(one.task)
                    found = classifier.evaluate(one.test, f"{one.name} {when} training")
                    made.results.setdefault(one.name, {})[when] = found
        if folder:
            folder.write(RESULTS, made.to_json())
    return made
