"""`train`: from a task, rows and a strategy to a classifier with honest figures."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from promptforge import artifact
from promptforge.backbone.base import Backbone
from promptforge.backbone.turns import one_training
from promptforge.classifier import ENSEMBLE, Classifier, Probabilities, check_labels
from promptforge.data import Example, Row
from promptforge.errors import UserError, listed
from promptforge.evaluation import AnyEvaluation
from promptforge.exits.model import ExitModel
from promptforge.exits.train import ExitTraining, TwoStage, train_exits
from promptforge.multilabel import label_sets
from promptforge.progress import Mute, Reporter
from promptforge.remote import publishing
from promptforge.selection import DemonstrationSelector, fit_selector, warn_samples
from promptforge.task import Task
from promptforge.tuning import processes, zero_shot
from promptforge.tuning.backends import Backend, started
from promptforge.tuning.loop import Trained
from promptforge.tuning.members import Ensemble, HeadModel
from promptforge.tuning.memory import PeakMemory
from promptforge.tuning.method import TuningMethod
from promptforge.tuning.plan import check_seed, digests, drawn, planned
from promptforge.tuning.predictions import Prediction, label_counts, predictions, write_predictions
from promptforge.tuning.run import RESULTS, RunFolder
from promptforge.tuning.settings import Settings
from promptforge.tuning.strategy import Strategy
from promptforge.tuning.tracking import Tracking, check, figures
from promptforge.tuning.tuner import Tuner
from promptforge.verbalizer import Verbalizer


@dataclass
class Run:
    """What a training gave.

    Attributes:
        classifier: ready to predict.
        results: split -> who ("zero-shot", "tuned") -> part -> figures.
        trained: member -> how its training went.
        seconds: wall time of the strategy.
        memory: most bytes held meanwhile, see `PeakMemory`.
        folder: where all of it was written, or None.
        task: what it was tuned for.
        size: bytes of the artifact; 0 where nothing was written.
        counts: split -> label -> rows that have it; empty where numbers are predicted.
        digests: split -> a digest of its rows: figures of other rows are no figures of these.
        predictions: what was said of each dev and test row.
    """

    classifier: Classifier
    results: dict[str, dict[str, dict[str, AnyEvaluation]]] = field(default_factory=dict)
    trained: dict[str, Trained] = field(default_factory=dict)
    seconds: float = 0.0
    folder: Path | None = None
    task: Task | None = None
    size: int = 0
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    predictions: list[Prediction] = field(default_factory=list)
    memory: int = 0

    @property
    def parameters(self) -> int:
        """Trained parameters of a training, the most of any."""
        return max((t.parameters for t in self.trained.values()), default=0)

    def figures(self, split: str, who: str = "tuned") -> AnyEvaluation:
        """The figures of the whole classifier on a split."""
        parts = self.results[split][who]
        return parts.get(ENSEMBLE) or next(iter(parts.values()))

    def to_json(self) -> dict[str, Any]:
        """As `results.json` has it."""
        return {
            "seconds": self.seconds,
            "memory": self.memory,
            "parameters": self.parameters,
            "size": self.size,
            "counts": self.counts,
            "digests": self.digests,
            "results": {
                split: {
                    who: {p: e.to_json() for p, e in parts.items()} for who, parts in by.items()
                }
                for split, by in self.results.items()
            },
            "trained": {name: vars(trained) for name, trained in self.trained.items()},
        }


@publishing("run")
def train(
    task: Task,
    train: Sequence[Example] = (),
    *,
    backbone: Backbone,
    strategy: str | Strategy = "prompt",
    method: str | TuningMethod = "all",
    verbalizer: str | Verbalizer = "manual",
    demonstrations: str | DemonstrationSelector | None = None,
    samples: int = 1,
    dev: Sequence[Example] = (),
    test: Sequence[Example] = (),
    unlabeled: Sequence[Row] = (),
    settings: Settings | None = None,
    shots: int | None = None,
    seed: int = 13,
    class_weight: str | Mapping[str, float] | None = None,
    row_weights: Sequence[float] = (),
    jobs: int | None = None,
    backend: str | Backend | None = None,
    tracker: Sequence[str] = (),
    init_from: str | Path | None = None,
    exits: str | ExitTraining | None = None,
    run: str | Path | None = None,
    resume: bool = False,
    config: Mapping[str, Any] | None = None,
    compare_untrained: bool = True,
    report: Reporter | None = None,
) -> Run:
    """Tune a classifier for `task`.

    Args:
        task: labels and patterns.
        train: labelled rows; none for strategies that can do without (ipet, pet, zero-shot).
        backbone: the loaded language model.
        strategy, method, verbalizer, demonstrations: components, or their names.
        samples: draws of demonstrations averaged when predicting.
        dev: rows to choose by; none: nothing is chosen.
        test: rows to measure on.
        unlabeled: rows without labels, for strategies that use them.
        settings: of every training.
        shots: draw this many rows of each label, and as many for dev where there is none; 0: use
            no labelled row to train on.
        seed: of the draw and of the trainings.
        class_weight: label -> weight, or "balanced"; of a multi-label task, the weights of its
            answers `yes` and `no`.
        row_weights: a weight for each training row; not with `shots`, which draws some.
        jobs: members trained at the same time, in processes of their own; -1: as many as there are
            CPUs; None: what `joblib.parallel_config` says, else 1.
        backend: "loky", "ray" or "dask", or one with options (`promptforge.tuning.backends`): where
            these processes are; None: what `joblib.parallel_config` says, else this machine.
        tracker: "tensorboard", "mlflow": log there too, below `run`.
        init_from: a run, an artifact or a peft adapter: start from what was tuned there, by the same
            method on the same model (its classification head and verbalizer start anew).
        exits: "joint" trains a classifier at every layer along with the model, "two-stage" afterwards
            on its frozen layers; the classifier is then an `ExitModel`.
        run: folder or URL (`s3://BUCKET/FOLDER`) to keep everything in; None: in memory only.
        resume: go on with the run in that folder.
        config: what `config.json` should say; made from the arguments by default.
        compare_untrained: measure the prompts before tuning too, where their labels have words.

    Raises:
        UserError: data or options that do not fit, a backend that is not there.
        PromptForgeError: a loss that is not finite, a damaged checkpoint, no space.
    """
    report = (report or Reporter()) if processes.is_first() else Mute()
    if processes.count() > 1 and (backend is not None or jobs not in (None, 1)):
        raise UserError(
            f"jobs={jobs} trains members in processes of their own, and a launcher made "
            f"{processes.count()} processes for each training: choose one of the two."
        )
    tracking = _tracking(tracker, run)
    seed = check_seed(seed)
    train, dev = drawn(task, train, dev, shots, seed)
    check_rows(task, train, dev, test, unlabeled, report)
    by_label = label_counts(task, {"train": train, "dev": dev, "test": test})
    told = digests({"train": train, "dev": dev, "test": test, "unlabeled": unlabeled})
    plan = planned(
        task, train, dev, backbone=backbone, strategy=strategy, method=method, verbalizer=verbalizer,
        demonstrations=demonstrations, samples=samples, unlabeled=unlabeled, settings=settings,
        shots=shots, seed=seed, class_weight=class_weight, row_weights=row_weights,
        init_from=init_from, exits=exits, folder=Path(run) if run else None, tracking=tracking,
        report=report,
    )  # fmt: skip
    tuner, made_strategy, at_exits = plan.tuner, plan.strategy, plan.exits
    _check_weights(tuner, row_weights)
    tuner.settings.warn_looks(tuner.report, dev)
    if not made_strategy.demonstrates:
        warn_samples(samples, tuner.demonstrations, tuner.report)
    whole, task, multi, chosen_by = task, task.binary, task.multi_label, dev
    if tuner.demonstrations is not None:
        # Of its own: the selector that was given may be another classifier's too.
        tuner.demonstrations = tuner.demonstrations.model_copy(deep=True)
        fit_selector(
            tuner.demonstrations, tuner.train, list(task.labels), columns=task.inputs, report=report
        )
    folder = RunFolder(Path(run)) if run and processes.is_first() else None
    resolved = config or plan.config
    opened = folder.opened(resolved, resume=resume, rows=told) if folder else nullcontext()
    with one_training(backbone), started(backend, jobs) as tuner.jobs, opened, ExitStack() as stack:
        processes.wait(backbone.device)
        log = stack.enter_context(tracking.part("run", resolved))
        began = time.perf_counter()
        with PeakMemory(backbone.device, children=tuner.jobs > 1) as held:
            classifier = made_strategy.train(tuner)
            if isinstance(at_exits, TwoStage):
                classifier = train_exits(tuner, classifier, at_exits)
        # What an interrupted run had trained took its time too.
        before = sum(t.seconds for t in tuner.trained.values()) / tuner.jobs
        seconds = max(time.perf_counter() - began, before)
        untrained: Classifier | None = None
        if compare_untrained and task.patterns and _comparable(task, classifier, backbone, report):
            # Zero-shot is without demonstrations, whatever the strategy shows.
            untrained = tuner.with_(demonstrations=None).untrained()
            untrained = None if _same(untrained, classifier) else untrained
            for counter in untrained.cut_counters if untrained else ():
                counter.warn_cuts = False  # what the tuned model says of the same rows is enough
        if multi:
            classifier = label_sets(classifier, multi, chosen_by)
            untrained = untrained and label_sets(untrained, multi, chosen_by)
        made = Run(classifier, {}, tuner.trained, seconds, tuner.folder, whole, counts=by_label)
        made.digests, made.memory = told, held.bytes
        for split, examples in (("dev", chosen_by), ("test", test)):
            if not examples:
                continue
            by: dict[str, dict[str, AnyEvaluation]] = {}
            said: dict[str, dict[str, Probabilities]] = {"zero-shot": {}, "tuned": {}}
            if untrained is not None:
                what, asked = f"Zero-shot on {split}", zero_shot.key(tuner, told, split)
                by["zero-shot"] = untrained.evaluate(
                    examples, what, keep=said["zero-shot"], known=zero_shot.recall(backbone, asked)
                )
                zero_shot.keep(backbone, asked, said["zero-shot"])
            what = f"Measuring on {split}"
            by["tuned"] = classifier.evaluate(examples, what, keep=said["tuned"])
            made.results[split] = by
            made.predictions += predictions(whole, split, examples, said)
        if folder:
            about = {
                "task": whole.to_json(),
                "strategy": made_strategy.name,
                "method": tuner.method.name,
                "trained_parameters": made.parameters,
            }
            artifact.save(classifier, folder.artifact, about)
            made.size = artifact.size(folder.artifact)
            write_predictions(folder.path, made.predictions)
            folder.write(RESULTS, made.to_json())
        log(figures(made.to_json()["results"]), 0)
    return made


def _check_weights(tuner: Tuner, row_weights: Sequence[float]) -> None:
    """Refuse weights of rows that are none, and weights that leave nothing to learn."""
    for number, weight in enumerate(row_weights, start=1):
        if not 0 <= weight < math.inf:
            raise UserError(
                f"row_weights: the weight of row {number} is {weight}; it must be 0 or more, and finite."
            )
    # There are none where only unlabelled rows are learned from.
    counted = [t.weight for t in tuner.targets()]
    if not any(counted or [tuner.class_weight.get(label, 1.0) for label in tuner.labels]):
        raise UserError(
            "The weights of rows and classes are 0 for all that is learned from, so there is "
            "nothing to learn: give one of the rows or labels a weight above 0."
        )


def _tracking(names: Sequence[str], run: str | Path | None) -> Tracking:
    """The trackers; they write below the run's folder, and only the first process does."""
    check(names)
    if names and not run:
        raise UserError(f"tracker={list(names)} logs below the run's folder: give run=FOLDER.")
    home = Path(run).absolute() if run else None  # a job's process may stand elsewhere
    return Tracking(tuple(names) if processes.is_first() else (), home)


def _comparable(task: Task, classifier: Classifier, backbone: Backbone, report: Reporter) -> bool:
    """Whether prompts can be read without tuning: labels have words, and the model can read any."""
    lacking = {
        label for pattern in task.patterns for label in task.labels
        if not task.words_for(pattern).get(label)
    }  # fmt: skip
    if backbone.headless:
        report.note(
            f"No zero-shot figures beside the tuned ones: {backbone.name} has no language-model head."
        )
        return False
    if not lacking or _reads_words(classifier):
        return True
    report.note(
        f"No zero-shot figures beside the tuned ones: {listed(sorted(lacking))} has no label words to "
        "read in a prompt."
    )
    return False


def _reads_words(classifier: Classifier) -> bool:
    if isinstance(classifier, Ensemble):
        return any(map(_reads_words, classifier.members.values()))
    if isinstance(classifier, ExitModel):
        return _reads_words(classifier.plain)
    return not isinstance(classifier, HeadModel)


def _same(untrained: Classifier, classifier: Classifier) -> bool:
    """Whether a strategy gave back the model as it was, and showed it no demonstrations."""
    return (
        type(untrained) is type(classifier)
        and getattr(classifier, "weights", 0) is None
        and getattr(classifier, "demonstrations", None) is None
    )


def check_rows(
    task: Task,
    train: Sequence[Example],
    dev: Sequence[Example],
    test: Sequence[Example],
    unlabeled: Sequence[Row],
    report: Reporter,
    of: str = "",
) -> None:
    """Refuse rows that nothing can be learned from; warn where rows that should be apart are the same.

    Args:
        of: says whose rows they are, where there are several tasks.
    """
    if train and task.multi_label:
        task.multi_label.check(train, f"The training table{of}")
    check_truth(task, {"training": train, "dev": dev, "test": test}, of)
    if train and not task.multi_label and task.scale is None:
        have = {e.label for e in train}
        if lacking := [label for label in task.labels if label not in have]:
            raise UserError(
                f"No training row{of} has the label {listed(lacking)}; the {len(train)} rows have "
                f"{listed(sorted(have))}. Add rows, or take the label out of the task."
            )

    def key(row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(str(row.get(column)) for column in task.inputs)

    trained = {key(e.row) for e in train}
    for split, examples in (("dev", dev), ("test", test)):
        shared = sum(key(e.row) in trained for e in examples)
        if shared:
            report.warn(
                f"{shared} of {len(examples)} {split} rows{of} are training rows too: figures on {split} are too "
                "good to be true. Take them out of one of the two."
            )
    tested = {key(e.row) for e in test}
    inside = sum(key(row) in tested for row in unlabeled)
    if inside:
        report.warn(
            f"{inside} of {len(unlabeled)} unlabelled rows are test rows too. Their labels are not used, "
            "but the figures are for texts the model has seen."
        )


def check_truth(task: Task, splits: Mapping[str, Sequence[Example]], of: str = "") -> None:
    """Refuse labels that the task does not have, and rows without the number that it predicts."""
    for name, examples in splits.items():
        if task.scale is None:
            check_labels(examples, task.classes, f"The {name} rows{of}")
        elif lost := next((e for e in examples if e.value is None), None):
            raise UserError(
                f"The {name} rows{of}: row {lost.number} has no number: the task {task.name!r} predicts "
                "numbers, so give each row its own as Example.value."
            )
