"""Training a generator: the loss of the texts, and `train_generator` from rows to honest figures."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptforge import artifact
from promptforge.backbone.base import Backbone
from promptforge.backbone.turns import one_training
from promptforge.data import Row
from promptforge.encode import Encoded
from promptforge.errors import UserError
from promptforge.generation.decoding import Decoding
from promptforge.generation.generator import Generator
from promptforge.generation.metrics import TextEvaluation, need_metrics
from promptforge.plugins import build
from promptforge.progress import Mute, Reporter
from promptforge.remote import publishing
from promptforge.task import Task
from promptforge.tuning import processes
from promptforge.tuning.loop import Target, Trained, Training
from promptforge.tuning.method import TuningMethod, check_dropout
from promptforge.tuning.objectives import TunedObjective, warn_untrained
from promptforge.tuning.plan import check_seed
from promptforge.tuning.run import ARTIFACT_FILE, RESULTS, RunFolder
from promptforge.tuning.settings import Settings
from promptforge.tuning.starting import Start
from promptforge.tuning.tracking import Tracking, check, figures

#: Where a training under way keeps its checkpoint, below a run's folder.
PARTS = "training"


class TextObjective(TunedObjective):
    """Cross-entropy of the texts' tokens and their ends, each given those before it.

    Every token counts the same, whichever rows share its batch: a row's loss is the sum over its
    tokens, divided by the mean number of tokens of all rows.

    Args:
        generator: renders, encodes and reads; its backbone is tuned.
        rows: with their texts.
        start: tuned values to start from.
    """

    def __init__(
        self,
        generator: Generator,
        method: TuningMethod,
        rows: Sequence[Row],
        start: Start | None = None,
    ) -> None:
        backbone, self.writer = generator.backbone, generator.writer
        backbone.apply(None)
        sources = generator.sources(rows)
        addition = method.add(backbone, sources, {})
        if addition is not None and addition.opening:
            generator.opening = addition.opening
            sources = generator.sources(rows)
        warn_untrained(generator.report, sources, addition, method)
        self._tokens = generator.tokens(sources, rows)
        pairs = zip(sources, self._tokens, strict=True)
        self._told: list[Encoded] = [self.writer.told(*pair) for pair in pairs]
        self._mean = sum(map(len, self._tokens)) / len(rows)
        self.targets = [Target(row, (), key=i) for i, row in enumerate(rows)]
        super().__init__(backbone, method, None, addition, start)

    def length(self, target: Target) -> int:
        told = self._told[target.key]
        return len(told.ids) + len(told.decoder_ids)

    def forward(self, targets: Sequence[Target], draw: int) -> Tensor:
        chosen = [t.key for t in targets]
        batch = self.backbone.collate([self._told[i] for i in chosen], list(range(len(chosen))))
        found = self.writer.surprise(batch, [self._tokens[i] for i in chosen])
        return found.new_zeros(len(chosen)).index_add(0, batch.rows, found) / self._mean


@dataclass
class GeneratorRun:
    """What a training gave.

    Attributes:
        generator: ready to write.
        results: split -> who ("zero-shot", "tuned") -> figures.
        trained: how the training went.
        seconds: its wall time.
        folder: where all of it was written, or None.
    """

    generator: Generator
    trained: Trained
    results: dict[str, dict[str, TextEvaluation]] = field(default_factory=dict)
    seconds: float = 0.0
    folder: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """As `results.json` has it."""
        (pattern,) = self.generator.task.patterns
        return {
            "seconds": self.seconds,
            "results": {
                split: {who: {pattern: e.to_json()} for who, e in by.items()}
                for split, by in self.results.items()
            },
            "trained": {pattern: vars(self.trained)},
        }


@publishing("run")
def train_generator(
    task: Task,
    train: Sequence[Row],
    *,
    backbone: Backbone,
    method: str | TuningMethod = "all",
    dev: Sequence[Row] = (),
    test: Sequence[Row] = (),
    settings: Settings | None = None,
    decoding: Decoding | None = None,
    seed: int = 13,
    tracker: Sequence[str] = (),
    init_from: str | Path | None = None,
    run: str | Path | None = None,
    resume: bool = False,
    config: Mapping[str, Any] | None = None,
    compare_untrained: bool = True,
    report: Reporter | None = None,
) -> GeneratorRun:
    """Tune a model to write the texts of a task, such as a sentence for a row of a table.

    With prefixes this is the setting of Li & Liang 2021 ("Prefix-tuning", sections 4 and 5).

    Args:
        task: one that generates text, with one pattern.
        train: rows with their texts in the task's column.
        backbone: a causal language model or an encoder-decoder.
        method: a component, or its name.
        dev: rows to choose by: of the looks at them the one with the smallest loss is kept.
        test: rows to measure on.
        settings: of the training; one learning rate and batch size.
        decoding: how texts are chosen. Their room is, where it does not say, half as much again as
            the longest training text has, at most half of what the model takes.
        seed: of the training.
        tracker: "tensorboard", "mlflow": log there too, below `run`.
        init_from: a run, an artifact or a peft adapter: start from what was tuned there, by the same
            method.
        run: folder to keep everything in; None: in memory only.
        resume: go on with the run in that folder.
        config: further values for `config.json`.
        compare_untrained: measure the same prompts before tuning too.

    Raises:
        UserError: data or options that do not fit.
        PromptForgeError: a loss that is not finite, a damaged checkpoint, no space.
    """
    report = (report or Reporter()) if processes.is_first() else Mute()
    settings, decoding = settings or Settings(), decoding or Decoding()
    seed = check_seed(seed)
    made_method: TuningMethod = build("method", method) if isinstance(method, str) else method
    check_dropout(made_method, settings)
    check(tracker)
    if dev or test:
        need_metrics()
    if tracker and not run:
        raise UserError(f"tracker={list(tracker)} logs below the run's folder: give run=FOLDER.")
    if not train:
        raise UserError("There are no rows to train on.")
    if len(grid := settings.grid(made_method.learning_rate)) > 1:
        raise UserError("Training for generation takes one learning rate and one batch size.")
    settings = grid[0]
    settings.warn_looks(report, dev)
    untrained = Generator(backbone, task, decoding=decoding, report=report)
    if decoding.max_new_tokens is None:
        untrained.room = _room(untrained, train)
    _warn_shared(task, train, {"dev": dev, "test": test}, report)
    first = processes.is_first()
    folder = RunFolder(Path(run)) if run and first else None
    resolved = {
        "task": task.to_json(),
        "model": backbone.source,
        "strategy": {"name": "generate"},
        "method": {"name": made_method.name, **made_method.model_dump(mode="json")},
        "decoding": decoding.model_dump(),
        "init_from": str(init_from) if init_from else None,
        "settings": settings.model_dump(),
        "rows": {"train": len(train), "dev": len(dev)},
        "seed": seed,
        **(config or {}),
    }
    opened = folder.opened(resolved, resume=resume) if folder else nullcontext()
    tracking = Tracking(tuple(tracker) if first else (), Path(run) if run else None)
    with one_training(backbone), opened, ExitStack() as stack:
        processes.wait(backbone.device)
        start = Start.open(init_from, "", backbone, made_method) if init_from else None
        log = stack.enter_context(tracking.part("run", resolved))
        began = time.perf_counter()
        generator, trained = _train(
            untrained,
            made_method,
            train,
            dev,
            settings,
            seed,
            Path(run) if run else None,
            tracking,
            start,
        )
        seconds = time.perf_counter() - began
        made = GeneratorRun(generator, trained, {}, seconds, Path(run) if run else None)
        for split, rows in (("dev", dev), ("test", test)):
            if not rows:
                continue
            by: dict[str, TextEvaluation] = {}
            if compare_untrained:
                by["zero-shot"] = untrained.evaluate(rows, label=f"Zero-shot on {split}")
            by["tuned"] = generator.evaluate(rows, label=f"Measuring on {split}")
            made.results[split] = by
        if folder:
            folder.write(RESULTS, made.to_json())
        log(figures(made.to_json()["results"]), 0)
    return made


def _train(
    untrained: Generator,
    method: TuningMethod,
    train: Sequence[Row],
    dev: Sequence[Row],
    settings: Settings,
    seed: int,
    run: Path | None,
    tracking: Tracking,
    start: Start | None,
) -> tuple[Generator, Trained]:
    """The tuned generator, kept in the run's folder; one that is done is only read."""
    backbone, task, report = untrained.backbone, untrained.task, untrained.report

    def same(**more: Any) -> Generator:
        return Generator(
            backbone, task, decoding=untrained.decoding, room=untrained.room, report=report, **more
        )

    identity = _identity(untrained, method, train, dev, settings, seed, start)
    home = RunFolder(run).artifact if run else None
    if home is not None and (home / ARTIFACT_FILE).is_file():
        told = artifact.about(home)
        if told.get("identity") != identity:
            raise UserError(
                f"{run} was trained on other data or with other settings. Use another --run folder, or "
                "delete this one."
            )
        return Generator.load(home, backbone=backbone, report=report), Trained(**told["trained"])
    parts = run / PARTS if run else None
    if parts and processes.is_first():
        parts.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    live = same()
    objective = TextObjective(live, method, train, start)
    live.warn_cuts = False

    def score() -> float:
        quiet, live.report = live.report, Reporter()
        try:
            return -live.loss(dev)
        finally:
            live.report = quiet

    training = None
    try:
        with tracking.part("training", settings.model_dump()) as log:
            training = Training(
                objective, objective.targets, settings, seed=seed, folder=parts,
                score=score if dev else None, report=report, identity=identity, log=log,
            )  # fmt: skip
            trained = training.run("Tuning")
        generator = same(weights=objective.weights())
    except KeyboardInterrupt:
        if training:
            training.interrupted()
        raise
    finally:
        objective.close()
    if home is not None and parts is not None:
        if processes.is_first():
            generator.save(home, {"identity": identity, "trained": vars(trained)})
            shutil.rmtree(parts)
        processes.wait(backbone.device)
    return generator, trained


def _room(generator: Generator, rows: Sequence[Row]) -> int:
    """Tokens that a text may have: half as many again as the rows' longest text.

    Where a prompt stands before its text in the same window, no more than their longest prompt leaves,
    or a half.
    """
    most = generator.writer.most
    generator.room, generator.warn_cuts = most, False  # no text is cut while they are counted
    sources = generator.sources(rows, room=1)
    longest = max(map(len, generator.tokens(sources, rows)))
    left = min(most, *map(generator.writer.space, sources))
    generator.warn_cuts = True
    generator.forget_cuts()
    room = min(longest * 3 // 2, max(1, most // 2, left))
    if longest > room:
        generator.report.warn(
            f"The longest text to learn has {longest} tokens. At most {room} will be written, to leave a half to "
            "prompts: max_new_tokens allows more, and cuts the prompts for it."
        )
    return room


def _warn_shared(
    task: Task, train: Sequence[Row], splits: Mapping[str, Sequence[Row]], report: Reporter
) -> None:
    """Warn where a source is written for that was trained on."""

    def key(row: Row) -> tuple[str, ...]:
        return tuple(str(row.get(column)) for column in task.inputs)

    trained = {key(row) for row in train}
    for split, rows in splits.items():
        if shared := sum(key(row) in trained for row in rows):
            report.warn(
                f"{shared} of {len(rows)} {split} rows have the inputs of training rows: figures on {split} "
                "are too good to be true. Take them out of one of the two."
            )


def _identity(
    generator: Generator,
    method: TuningMethod,
    train: Sequence[Row],
    dev: Sequence[Row],
    settings: Settings,
    seed: int,
    start: Start | None,
) -> str:
    """A hash of all that decides what the generator becomes."""
    told = {
        "train": [sorted(map(str, row.items())) for row in train],
        "dev": [sorted(map(str, row.items())) for row in dev],
        "task": [pattern.decides() for pattern in generator.task.patterns.values()],
        "room": generator.room,
        "seed": seed,
        "settings": settings.model_dump(exclude={"save_every"}),
        "method": [method.name, method.model_dump(mode="json")],
        "backbone": generator.backbone.checksum,
        "start": start and start.digest,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
