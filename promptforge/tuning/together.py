"""`train_together`: many tasks over one frozen model, each with parameters of its own."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from promptforge import artifact
from promptforge.backbone.base import Backbone
from promptforge.backbone.turns import one_training
from promptforge.bank import read_together
from promptforge.classifier import ENSEMBLE, Classifier
from promptforge.errors import UserError
from promptforge.evaluation import AnyEvaluation
from promptforge.model import PromptModel
from promptforge.multilabel import MultiLabelModel
from promptforge.plugins import build
from promptforge.progress import Mute, Reporter
from promptforge.remote import publishing
from promptforge.tuning import processes
from promptforge.tuning.method import TuningMethod, check_dropout
from promptforge.tuning.mixed import (
    TaskExamples,
    TogetherObjective,
    TogetherTrained,
    TogetherTraining,
)
from promptforge.tuning.objectives import warn_parts
from promptforge.tuning.plan import check_seed
from promptforge.tuning.run import ARTIFACT_FILE, RESULTS, RunFolder
from promptforge.tuning.scores import score_of
from promptforge.tuning.settings import Settings
from promptforge.tuning.train import check_rows
from promptforge.tuning.tuner import Member, Tuner
from promptforge.verbalizer import Verbalizer


@dataclass
class TogetherRun:
    """What a training of several tasks gave.

    Attributes:
        classifiers: task -> its classifier.
        results: task -> split ("dev", "test") -> who ("zero-shot", "tuned") -> pattern -> figures.
        trained: how the training went.
        seconds: wall time of it.
        folder: where all of it was written, or None; a task's artifact is in `members/TASK`.
    """

    classifiers: dict[str, Classifier]
    results: dict[str, dict[str, dict[str, dict[str, AnyEvaluation]]]] = field(default_factory=dict)
    trained: TogetherTrained = field(default_factory=TogetherTrained)
    seconds: float = 0.0
    folder: Path | None = None

    def figures(self, task: str, split: str = "test", who: str = "tuned") -> AnyEvaluation:
        """The figures of a task on a split."""
        parts = self.results[task][split][who]
        return parts.get(ENSEMBLE) or next(iter(parts.values()))

    def to_json(self) -> dict[str, Any]:
        """As `results.json` has it; "before" and "after" are of the test rows, else of the dev rows, else empty."""
        tasks = {}
        for name, splits in self.results.items():
            found = {
                split: {
                    who: {part: e.to_json() for part, e in parts.items()}
                    for who, parts in by.items()
                }
                for split, by in splits.items()
            }
            last = found.get("test") or found.get("dev") or {}
            tasks[name] = {
                "held_out": False, "results": found,
                "before": last.get("zero-shot", {}), "after": last.get("tuned", {}),
            }  # fmt: skip
        trained = {"together": vars(self.trained)}
        return {"seconds": self.seconds, "results": {}, "tasks": tasks, "trained": trained}


@publishing("run")
def train_together(
    data: Sequence[TaskExamples],
    *,
    backbone: Backbone,
    method: str | TuningMethod = "prefix",
    verbalizer: str | Verbalizer = "manual",
    settings: Settings | None = None,
    shots: int | None = None,
    seed: int = 13,
    run: str | Path | None = None,
    resume: bool = False,
    config: Mapping[str, Any] | None = None,
    compare_untrained: bool = True,
    report: Reporter | None = None,
) -> TogetherRun:
    """Train each task's own parameters in mixed batches over one frozen model.

    An update sees `batch_size` rows of every task, in one pass; the tasks' mean losses are summed.
    Every task learns what it would learn alone with the same seed (but for dropout's draws), and
    keeps its best weights by its own dev rows.

    Args:
        data: tasks, of different names, with their rows. Of several patterns the first is trained.
        backbone: the loaded language model.
        method: adds to the model and changes none of its own weights.
        verbalizer: a component or its name; each task has one of its own.
        settings: one learning rate and batch size; by default the method's rate.
        shots: draw this many rows of each label of each task, and as many for dev where it has none.
        seed: of the draws and of the training.
        run: folder to keep everything in; None: in memory only.
        resume: go on with the run in that folder.
        config: what `config.json` should say; made from the arguments by default.
        compare_untrained: measure the prompts before tuning too.

    Raises:
        UserError: two tasks of one name, a method that trains the model's own weights, several
            learning rates, rows that do not fit.
        PromptForgeError: a loss that is not finite, a damaged checkpoint, no space.
    """
    report = (report or Reporter()) if processes.is_first() else Mute()
    method = build("method", method) if isinstance(method, str) else method
    check_dropout(method, settings)
    reader: Verbalizer = (
        build("verbalizer", verbalizer) if isinstance(verbalizer, str) else verbalizer
    )
    grid = (settings or Settings()).grid(method.learning_rate)
    if len(grid) > 1:
        raise UserError("Tasks are trained together with one learning rate and one batch size.")
    seed = check_seed(seed)
    drawn = [_drawn(one, shots, seed, report) for one in data]
    grid[0].warn_looks(report, *(one.dev for one in drawn))
    names = _folders([one.name for one in drawn])
    tuners = [_tuner(one, backbone, method, reader, grid[0], seed, report) for one in drawn]
    folder = Path(run) if run else None
    keeper = RunFolder(folder) if folder and processes.is_first() else None
    resolved = config or _config(tuners, drawn, shots)
    opened = keeper.opened(resolved, resume=resume) if keeper else nullcontext()
    with one_training(backbone), opened:
        processes.wait(backbone.device)
        began = time.perf_counter()
        classifiers, trained = _trained(tuners, drawn, names, folder)
        made = TogetherRun(classifiers, {}, trained, time.perf_counter() - began, folder)
        for one, tuner in zip(drawn, tuners, strict=True):
            made.results[one.name] = _results(
                one, classifiers[one.name], tuner if compare_untrained else None
            )
        if keeper:
            keeper.write(RESULTS, made.to_json())
    return made


def _drawn(one: TaskExamples, shots: int | None, seed: int, report: Reporter) -> TaskExamples:
    """The task with one pattern and the rows that it is trained on."""
    task = one.task.choose([next(iter(one.task.patterns))])
    train, dev = list(one.train), list(one.dev)
    if shots:
        train, held = task.sample_shots(train, shots, seed, dev=not dev)
        dev = dev or held
    if not train:
        raise UserError(f"The task {task.name!r} has no rows to train on.")
    check_rows(task, train, dev, one.test, (), report, of=f" of the task {task.name!r}")
    return TaskExamples(task, train, dev, one.test)


def _folders(names: Sequence[str]) -> list[str]:
    """A name for a folder for each task."""
    made = [re.sub(r"[^\w.-]+", "-", name).strip(".") or "task" for name in names]
    for names_, what in ((names, "Two tasks are called"), (made, "Two tasks would be kept as")):
        twice = [n for n in names_ if list(names_).count(n) > 1]
        if twice:
            raise UserError(f"{what} {twice[0]!r}: give one another name (name in task.toml).")
    return made


def _tuner(
    one: TaskExamples, backbone: Backbone, method: TuningMethod, verbalizer: Verbalizer,
    settings: Settings, seed: int, report: Reporter,
) -> Tuner:  # fmt: skip
    multi, task = one.task.multi_label, one.task.binary
    rows, dev = (multi.questions(p) if multi else list(p) for p in (one.train, one.dev))
    return Tuner(
        backbone, task, rows, dev, settings=settings, method=method, verbalizer=verbalizer,
        seed=seed, report=report,
    )  # fmt: skip


def _member(tuner: Tuner) -> Member:
    return Member(tuner.task.name, tuner.targets(), next(iter(tuner.task.patterns)), tuner.seed)


def _trained(
    tuners: Sequence[Tuner], data: Sequence[TaskExamples], names: Sequence[str], folder: Path | None
) -> tuple[dict[str, Classifier], TogetherTrained]:
    """Each task's classifier, trained or, where the run did that before, read."""
    first = tuners[0]
    told = [tuner.identity(_member(tuner)) for tuner in tuners]
    identity = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    homes = [folder / "members" / name for name in names] if folder else []
    if homes and all((home / ARTIFACT_FILE).is_file() for home in homes):
        about = [artifact.about(home) for home in homes]
        if any(one["identity"] != identity for one in about):
            raise UserError(
                f"{folder} was trained on other data or with other settings. Use another --run folder, or "
                "delete this one."
            )
        loaded = [
            artifact.load(home, backbone=first.backbone, report=first.report) for home in homes
        ]
        done = TogetherTrained(**about[0]["trained"])
        return {one.name: c for one, c in zip(data, loaded, strict=True)}, done
    if first.verbalizer.contrasts:
        warn_parts(first.report, f"verbalizer {first.verbalizer.name!r}", first.settings)
    live = [tuner.untrained(remember=False) for tuner in tuners]
    targets = [
        [replace(t, key=number) for t in tuner.targets()] for number, tuner in enumerate(tuners)
    ]
    for model in live:
        model.warn_cuts = False
    objective = TogetherObjective(live, first.method, targets, first.seed)

    def scores() -> list[float | None]:
        rows = [[e.row for e in tuner.dev] for tuner in tuners]
        found = read_together(first.backbone, live, rows)
        return [
            score_of(model, model.combined(parts), tuner.dev) if parts else None
            for model, parts, tuner in zip(live, found, tuners, strict=True)
        ]

    parts = folder / "training" if folder else None
    if parts and processes.is_first():
        parts.mkdir(parents=True, exist_ok=True)
    training = None
    try:
        training = TogetherTraining(
            objective, targets, first.settings, seed=first.seed, folder=parts,
            scores=scores if any(tuner.dev for tuner in tuners) else None, report=first.report,
            identity=identity,
        )  # fmt: skip
        training.run(f"Tuning {len(tuners)} tasks")
        made = [_finished(tuner, objective, number) for number, tuner in enumerate(tuners)]
    except KeyboardInterrupt:
        if training:
            training.interrupted()
        raise
    finally:
        objective.close()
    classifiers: dict[str, Classifier] = {}
    for one, model in zip(data, made, strict=True):
        classifiers[one.name] = model
        if one.task.multi_label:
            whole = MultiLabelModel(model, one.task.multi_label)
            whole.choose_threshold(one.dev)
            classifiers[one.name] = whole
    if folder and parts and processes.is_first():
        for one, home in zip(data, homes, strict=True):
            about_it = {
                "task": one.task.to_json(), "method": first.method.name,
                "identity": identity, "trained": vars(training.state),
            }  # fmt: skip
            artifact.save(classifiers[one.name], home, about_it)
        shutil.rmtree(parts, ignore_errors=True)
    processes.wait(first.backbone.device)
    return classifiers, training.state


def _finished(tuner: Tuner, objective: TogetherObjective, number: int) -> PromptModel:
    made = tuner.untrained()
    weights, own = objective.tuned(number)
    made.weights, made.tuned = weights, {**own}
    return made


def _results(
    one: TaskExamples, classifier: Classifier, tuner: Tuner | None
) -> dict[str, dict[str, dict[str, AnyEvaluation]]]:
    before: Classifier | None = tuner.untrained() if tuner else None
    if before is not None and one.task.multi_label:
        asked = MultiLabelModel(before, one.task.multi_label)
        asked.choose_threshold(one.dev)
        before = asked
    for counter in before.cut_counters if before else ():
        counter.warn_cuts = False  # what the tuned model says of the same rows is enough
    out = {}
    for split, examples in (("dev", one.dev), ("test", one.test)):
        if examples:
            by = {"zero-shot": before.evaluate(examples)} if before is not None else {}
            what = f"Measuring {one.name} on {split}"
            out[split] = {**by, "tuned": classifier.evaluate(examples, what)}
    return out


def _config(
    tuners: Sequence[Tuner], data: Sequence[TaskExamples], shots: int | None
) -> dict[str, Any]:
    first = tuners[0]

    def named(component: Any) -> dict[str, Any]:
        return {"name": component.name, **component.model_dump(mode="json")}

    return {
        "task": {"name": " + ".join(one.name for one in data)},
        "tasks": {one.name: one.task.to_json() for one in data},
        "rows": {one.name: [len(one.train), len(one.dev)] for one in data},
        "model": first.backbone.source,
        "strategy": {"name": "together"},
        "method": named(first.method),
        "verbalizer": named(first.verbalizer),
        "settings": first.settings.model_dump(),
        "shots": shots,
        "seed": first.seed,
    }
