"""What a training is made of, before anything is trained: its rows, its tuner, its `config.json`."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

from promptforge.backbone.base import Backbone
from promptforge.data import Example, Row
from promptforge.errors import UserError, did_you_mean
from promptforge.exits.train import ExitTraining, Joint, check_end, check_exits, exit_training
from promptforge.plugins import build
from promptforge.progress import Reporter
from promptforge.selection import DemonstrationSelector
from promptforge.task import Task
from promptforge.tuning.method import TuningMethod, check_dropout
from promptforge.tuning.settings import Settings
from promptforge.tuning.strategy import Strategy
from promptforge.tuning.tracking import Tracking
from promptforge.tuning.tuner import Tuner
from promptforge.verbalizer import Verbalizer

#: Arguments of a training that say where, how fast and what is told, and not what it makes.
HOW = {"jobs", "backend", "tracker", "compare_untrained", "report"}
#: A seed is below: torch's end at twice that, and those of members lie above the run's.
SEEDS = 2**63


@dataclass(frozen=True)
class Plan:
    """A training that has not begun.

    Attributes:
        tuner: what the strategy works with; its demonstrations are not fitted yet.
        strategy: how it is trained.
        exits: how exits are, or None.
        config: what `config.json` says of it.
    """

    tuner: Tuner
    strategy: Strategy
    exits: ExitTraining | None
    config: dict[str, Any]


def drawn(
    task: Task, train: Sequence[Example], dev: Sequence[Example], shots: int | None, seed: int
) -> tuple[list[Example], list[Example]]:
    """The rows to train on and to choose by: `shots` of each label where it is given, 0: none."""
    train, dev = list(train), list(dev)
    for name, rows in (("train", train), ("dev", dev)):
        strange = next((e for e in rows if not isinstance(e, Example)), None)
        if strange is not None:
            raise UserError(
                f"{name}: a row is a {type(strange).__name__}. Rows are `Example(row, label, number)`, as "
                "`task.examples(TABLE)` reads them."
            )
    if shots == 0:
        return [], dev
    if shots:
        train, held = task.sample_shots(train, shots, seed, dev=not dev)
        dev = dev or held
    return train, dev


def check_seed(seed: int) -> int:
    """A seed as Python's own integer, which a numpy one is not.

    Raises:
        UserError: random numbers cannot begin from it.
    """
    if not hasattr(seed, "__index__") or not 0 <= seed < SEEDS:
        raise UserError(f"seed is {seed}: give a whole number from 0 to {SEEDS - 1}.")
    return index(seed)


def digests(splits: Mapping[str, Sequence[Example | Row]]) -> dict[str, str]:
    """Split -> a digest of its rows and their labels, in order; splits without rows are left out."""
    out = {}
    for name, rows in splits.items():
        digest = hashlib.sha256()
        for row in rows:
            told: Any = row
            if isinstance(row, Example):
                told = [row.row, row.label, row.value, row.labels]
            text = json.dumps(told, sort_keys=True, ensure_ascii=False, default=str)
            digest.update(f"{text}\n".encode("utf-8", "surrogatepass"))
        if rows:
            out[name] = digest.hexdigest()[:32]
    return out


def planned(
    task: Task,
    train: Sequence[Example],
    dev: Sequence[Example],
    *,
    backbone: Backbone,
    strategy: str | Strategy = "prompt",
    method: str | TuningMethod = "all",
    verbalizer: str | Verbalizer = "manual",
    demonstrations: str | DemonstrationSelector | None = None,
    samples: int = 1,
    unlabeled: Sequence[Row] = (),
    settings: Settings | None = None,
    shots: int | None = None,
    seed: int = 13,
    class_weight: str | Mapping[str, float] | None = None,
    row_weights: Sequence[float] = (),
    init_from: str | Path | None = None,
    exits: str | ExitTraining | None = None,
    folder: Path | None = None,
    tracking: Tracking | None = None,
    report: Reporter | None = None,
) -> Plan:
    """The plan of `promptforge.train` with these arguments, on rows that `drawn` gave.

    Raises:
        UserError: rows or options that do not fit.
    """
    seed = check_seed(seed)
    if not isinstance(backbone, Backbone):
        raise UserError(
            f"backbone is a {type(backbone).__name__}, {backbone!r}: give a loaded model, load_model(NAME)."
        )
    counts = {"train": len(train), "dev": len(dev), "unlabeled": len(unlabeled)}
    whole, task, multi = task, task.binary, task.multi_label
    if len(row_weights) and shots is not None:
        raise UserError("row_weights are of all rows, and shots draws some: leave one out.")
    if len(row_weights) not in (0, len(train)):
        raise UserError(
            f"row_weights has {len(row_weights)} weights, and there are {len(train)} training rows: give "
            "one for each."
        )
    train, row_weights = _counted(train, row_weights)
    if multi:  # what is tuned answers a question about each label
        row_weights = [w for w in row_weights for _ in multi.labels]
        train, dev, unlabeled = multi.questions(train), multi.questions(dev), multi.asked(unlabeled)
    method = build("method", method) if isinstance(method, str) else method
    check_dropout(method, settings)
    if samples < 1:
        raise UserError(
            f"samples is {samples}: give the draws of demonstrations to average, from 1."
        )
    made: Strategy = build("strategy", strategy) if isinstance(strategy, str) else strategy
    if made.needs_classes:
        task.need_classes(f"strategy {made.name!r}")
    made.check_rows(train, unlabeled)
    at_exits = exit_training(exits)() if isinstance(exits, str) else exits
    check_exits(at_exits, made, train)
    selector = demonstrations
    if isinstance(selector, str):
        selector = build("demonstrations", selector)
    if (
        selector is not None
        and {"seed"} & type(selector).model_fields.keys() - selector.model_fields_set
    ):
        # A draw that no seed is named for is part of what the run's seed decides.
        selector = selector.model_copy(update={"seed": seed})
    if selector is not None and not train:
        raise UserError(
            "Demonstrations are labelled rows, and there are none: give some, or leave out "
            "--demonstrations."
        )
    tuner = Tuner(
        backbone=backbone,
        task=task,
        train=list(train),
        dev=list(dev),
        unlabeled=list(unlabeled),
        settings=settings or Settings(),
        method=method,
        verbalizer=build("verbalizer", verbalizer) if isinstance(verbalizer, str) else verbalizer,
        demonstrations=selector,
        samples=samples,
        seed=seed,
        folder=folder,
        report=report or Reporter(),
        class_weight=_class_weights(task, train, class_weight),
        row_weights=row_weights,
        tracking=tracking or Tracking(),
        init_from=str(init_from or ""),
        exits=at_exits if isinstance(at_exits, Joint) else None,
    )
    made.check_tuner(tuner)
    check_end(at_exits, made, tuner)
    return Plan(tuner, made, at_exits, _config(tuner, whole, counts, made, shots, at_exits))


def wanted(
    task: Task,
    train: Sequence[Example],
    *,
    dev: Sequence[Example] = (),
    test: Sequence[Example] = (),
    unlabeled: Sequence[Row] = (),
    shots: int | None = None,
    seed: int = 13,
    config: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[Mapping[str, Any], dict[str, str]]:
    """The `config.json` and the digests of rows that `promptforge.train` would leave; nothing is trained.

    Raises:
        UserError: as `promptforge.train`, before it trains.
    """
    options = {name: value for name, value in options.items() if name not in HOW}
    seed = check_seed(seed)
    train, dev = drawn(task, train, dev, shots, seed)
    told = digests({"train": train, "dev": dev, "test": test, "unlabeled": unlabeled})
    if config is None:
        config = planned(
            task, train, dev, unlabeled=unlabeled, shots=shots, seed=seed, **options
        ).config
    return config, told


def _config(
    tuner: Tuner,
    task: Task,
    rows: Mapping[str, int],
    strategy: Strategy,
    shots: int | None,
    exits: ExitTraining | None = None,
) -> dict[str, Any]:
    def named(component: Any) -> dict[str, Any] | None:
        return component and {"name": component.name, **component.model_dump(mode="json")}

    return {
        "task": task.to_json(),
        "model": tuner.backbone.source,
        "strategy": named(strategy),
        "method": named(tuner.method),
        "verbalizer": named(tuner.verbalizer),
        "demonstrations": named(tuner.demonstrations),
        "samples": tuner.samples,
        "settings": tuner.settings.model_dump(),
        "rows": dict(rows),
        "shots": shots,
        "seed": tuner.seed,
        "class_weight": dict(tuner.class_weight),
        "init_from": tuner.init_from or None,
        **({"exits": named(exits)} if exits is not None else {}),
    }


def _counted(
    train: Sequence[Example], weights: Sequence[float]
) -> tuple[Sequence[Example], Sequence[float]]:
    """The rows that count, and their weights.

    A row of weight 0 is learned from nowhere: no prompt shows it, no search reads it. Those of a
    label that has no others stay.
    """
    if all(weights):
        return train, weights
    pairs = list(zip(train, weights, strict=True))
    have = {e.label for e, weight in pairs if weight}
    kept = [(e, weight) for e, weight in pairs if weight or e.label not in have]
    return [e for e, _ in kept], [weight for _, weight in kept]


def _class_weights(
    task: Task, train: Sequence[Example], given: str | Mapping[str, float] | None
) -> dict[str, float]:
    if given is None:
        return {}
    if isinstance(given, str):
        if given != "balanced":
            raise UserError(
                f"class weight {given!r}: write balanced, or label=weight for each label."
            )
        counts = Counter(e.label for e in train)
        return {label: len(train) / (len(counts) * n) for label, n in counts.items()}
    for label, weight in given.items():
        if label not in task.labels:
            raise UserError(
                f"class weight for {label!r}: there is no such label.{did_you_mean(label, list(task.labels))}"
            )
        if not 0 <= weight < float("inf"):
            raise UserError(
                f"class weight of {label!r} is {weight}; it must be 0 or more, and finite."
            )
    return dict(given)
