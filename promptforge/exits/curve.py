"""Accuracy against layers and against measured time, for every policy and threshold.

All layers read the rows once, and every policy is played through on what they said: that gives
accuracy and layers used for each threshold. A few thresholds of each policy are then really
read, beside the plain model, in turns and in one process: that gives time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from promptforge.classifier import Classifier, Probabilities
from promptforge.data import Example
from promptforge.encode import Encoded
from promptforge.errors import PromptForgeError, UserError, listed
from promptforge.exits.model import ExitModel, exit_model
from promptforge.exits.policy import ExitPolicy
from promptforge.model import PromptModel
from promptforge.multilabel import MultiLabelModel
from promptforge.plugins import component, manager
from promptforge.progress import Reporter
from promptforge.readout import Readout

#: Thresholds of each policy that are timed, besides the one that keeps the score.
_SPREAD = 3


@dataclass
class Point:
    """A policy with a threshold.

    Attributes:
        policy, options: as `--exit-policy` and `-o` take them.
        score: accuracy, Pearson's correlation with a scale, micro-F1 of label sets; by counting.
        drop: points (hundredths) below the plain model.
        mean_layers, share: layers used for a row, and which part of all that is.
        seconds: batch size -> seconds for the timed rows; empty where it was not timed.
        speedup: batch size -> the plain model's seconds through these.
        overhead: batch size -> seconds through (the plain model's seconds x the share of layers that
            the timed rows used): 1 where only layers took time.
    """

    policy: str
    options: dict[str, Any]
    score: float
    drop: float
    mean_layers: float
    share: float
    seconds: dict[int, float] = field(default_factory=dict)
    speedup: dict[int, float] = field(default_factory=dict)
    overhead: dict[int, float] = field(default_factory=dict)

    def build(self) -> ExitPolicy:
        """The policy."""
        made: ExitPolicy = _kind(self.policy).build(**self.options)
        return made

    @property
    def threshold(self) -> Any:
        """The value that was tried."""
        return self.options[_kind(self.policy).threshold_name]

    @property
    def line(self) -> str:
        """What chooses it on the command line."""
        pairs = (f"-o exit-policy.{k}={v}" for k, v in self.options.items() if v is not None)
        return " ".join([f"--exit-policy {self.policy}", *pairs])


@dataclass
class ExitCurve:
    """What `exit_curve` found.

    Attributes:
        layers: of the model.
        rows, timed_rows: how many gave the scores, and the times.
        score: of the plain model.
        by_layer: score of each layer's exit for itself, [layers].
        seconds: batch size -> the plain model's seconds for the timed rows.
        points: every policy and threshold.
        max_drop: points that may be lost.
        best: policy -> the fastest of its points that loses no more; none where there is none.
    """

    layers: int
    rows: int
    timed_rows: int
    score: float
    by_layer: list[float]
    seconds: dict[int, float]
    points: list[Point]
    max_drop: float
    best: dict[str, Point]

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        made = asdict(self)
        for point, told in zip(self.points, made["points"], strict=True):
            told["line"] = point.line
        made["best"] = {n: {**asdict(p), "line": p.line} for n, p in self.best.items()}
        return made


def exit_curve(
    classifier: Classifier,
    examples: Sequence[Example],
    *,
    policies: Sequence[str] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    max_drop: float = 1.0,
    batch_sizes: Sequence[int] = (1, 32),
    timed_rows: int = 128,
    repeats: int = 3,
    report: Reporter | None = None,
) -> ExitCurve:
    """Draw the curve of a model with exits, and choose a threshold for each policy.

    Args:
        classifier: trained with exits.
        examples: labelled rows that it was not trained on.
        policies: by name; by default all that suit the task.
        options: policy -> options besides its threshold (patience with a scale: `difference`, a
            twentieth of the scale by default).
        max_drop: points (hundredths of the score) that may be lost against the plain model.
        batch_sizes: prompts read together when time is measured.
        timed_rows: rows that are timed, evenly from `examples`.
        repeats: how often each batch is timed; the median counts.

    Raises:
        UserError: a model without exits, no rows, an unknown policy, a threshold among the options, a
            number out of range.
    """
    check_options(options or {})
    if not examples:
        raise UserError("There are no rows to draw the curve with.")
    if max_drop < 0 or min([*batch_sizes, timed_rows, repeats]) < 1:
        raise UserError(
            "max_drop must be 0 or more; batch sizes, timed_rows and repeats 1 or more."
        )
    report = report or Reporter()
    model = exit_model(classifier)
    play = _Play(classifier, model, examples)
    points = [p for name in _names(policies) for p in play.points(name, options or {})]
    if not points:
        raise UserError(f"None of {listed(list(policies))} works with what this task predicts.")
    if lost := [name for name in policies if all(p.policy != name for p in points)]:
        report.warn(f"No curve of {listed(lost)}: no threshold works with what this task predicts.")
    chosen = {name: _worth_timing(points, name, max_drop) for name in {p.policy for p in points}}
    timed = [p for some in chosen.values() for p in some]
    places = np.linspace(0, len(play.encoded) - 1, min(timed_rows, len(play.encoded))).astype(int)
    prompts = [play.encoded[i] for i in sorted(set(places.tolist()))]
    with model.backbone.busy:  # no other thread's weights, nor its reading in the times
        seconds = _time(model, prompts, timed, batch_sizes, repeats, report)
    size = min(batch_sizes)
    best = {}
    for name in dict.fromkeys(p.policy for p in points):
        if kept := [p for p in chosen[name] if p.drop <= max_drop + 1e-9]:
            best[name] = min(kept, key=lambda p: p.seconds[size])
    return ExitCurve(
        model.layers, len(examples), len(prompts), play.plain, play.by_layer, seconds, points,
        max_drop, best,
    )  # fmt: skip


def check_options(options: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise a `UserError` where the options of a policy, by its name, say the threshold that is tried."""
    for name, given in options.items():
        threshold = _kind(name).threshold_name
        if threshold in given:
            raise UserError(
                f"{name}.{threshold} is what the curve tries many values of: leave it out of the options."
            )


def _kind(name: str) -> type[ExitPolicy]:
    return cast("type[ExitPolicy]", component("exit-policy", name))


def _names(policies: Sequence[str]) -> list[str]:
    for name in policies:
        component("exit-policy", name)
    known = manager().registry("exit-policy").names()
    return list(policies) or known


class _Play:
    """Policies played through on what every layer says of the rows."""

    def __init__(
        self, classifier: Classifier, model: ExitModel, examples: Sequence[Example]
    ) -> None:
        self.classifier, self.model, self.examples = classifier, model, examples
        rows: Any = [e.row for e in examples]
        if isinstance(classifier, MultiLabelModel):
            rows = classifier.multi_label.asked(rows)
        draws = model.encoded(rows)
        self.encoded = draws[0]
        self.said = [model.every_layer(encoded, "Reading all layers") for encoded in draws]
        self.by_layer = [
            self._score(np.mean([said[i] for said in self.said], axis=0))
            for i in range(model.layers)
        ]
        self.plain = self.by_layer[-1]

    def _score(self, probabilities: Probabilities) -> float:
        classifier = self.classifier
        if isinstance(classifier, MultiLabelModel):
            probabilities = classifier.of_answers({"": probabilities})[""]
        return float(classifier._evaluation(self.examples, probabilities).headline)

    def points(self, name: str, options: Mapping[str, Mapping[str, Any]]) -> list[Point]:
        model = self.model
        kind = _kind(name)
        fixed = dict(options.get(name, {}))
        if model.scale and "difference" in kind.model_fields:
            fixed.setdefault("difference", (model.scale.high - model.scale.low) / 20)
        made = []
        for value in kind.thresholds(model.layers, model.answers):
            told = {**fixed, kind.threshold_name: value}
            policy = kind.build(**told)
            policy.check(model.layers, model.answers)
            found = [played(model, policy, said) for said in self.said]
            score = self._score(np.mean([p for p, _ in found], axis=0))
            layers = float(np.mean([used for _, used in found]))
            drop = 100 * (self.plain - score)
            made.append(Point(name, told, score, drop, layers, layers / model.layers))
        return made


def played(
    model: ExitModel, policy: ExitPolicy, said: Probabilities
) -> tuple[Probabilities, NDArray[np.int64]]:
    """What a policy makes of the class probabilities of every layer, [layers, rows, labels].

    Returns:
        Class probabilities that the rows leave with, [rows, labels], and the layers they use, [rows].
    """
    every = torch.from_numpy(said)
    found, used = every[-1].clone(), torch.full((every.shape[1],), len(every))
    left, memory = torch.arange(every.shape[1]), dict[str, torch.Tensor]()
    for layer, here in enumerate(every[:-1]):
        if not policy.asks(layer) or not len(left):
            continue
        leaves = policy.leaves(layer, model.outputs(here[left]), memory)
        found[left[leaves]], used[left[leaves]] = here[left[leaves]], layer + 1
        left, memory = left[~leaves], {name: value[~leaves] for name, value in memory.items()}
    return cast(Probabilities, found.numpy()), cast("NDArray[np.int64]", used.numpy())


def _worth_timing(points: Sequence[Point], name: str, max_drop: float) -> list[Point]:
    """The point of a policy that keeps the score with the fewest layers, and some on either side."""
    own = sorted((p for p in points if p.policy == name), key=lambda p: p.mean_layers)
    kept = [p for p in own if p.drop <= max_drop + 1e-9]
    spread = np.linspace(0, len(own) - 1, _SPREAD).round().astype(int)
    chosen = {id(p): p for p in [*kept[:2], *(own[i] for i in spread)]}
    return sorted(chosen.values(), key=lambda p: p.mean_layers)


def _time(
    model: ExitModel, prompts: list[Encoded], points: Sequence[Point], sizes: Sequence[int],
    repeats: int, report: Reporter,
) -> dict[int, float]:  # fmt: skip
    """Time the plain model and each point in turns, batch by batch; the plain model's seconds."""
    backbone, policy, plain_report = model.backbone, model.policy, model.plain.report
    before = backbone.batch_tokens
    prompts = sorted(prompts, key=lambda e: len(e.ids) + len(e.decoder_ids))
    longest = len(prompts[-1].ids) + len(prompts[-1].decoder_ids)
    model.plain.report = Reporter()
    plain = _plain(model)
    plains: dict[int, float] = {}
    used: dict[int, list[float]] = {id(p): [] for p in points}
    try:
        groups = {
            size: [prompts[i : i + size] for i in range(0, len(prompts), size)] for size in sizes
        }
        with report.meter("Measuring time", sum(map(len, groups.values())), "batches") as meter:
            for size in sizes:
                backbone.batch_tokens = max(before, size * longest)
                plain(groups[size][-1])  # the first pass of a size is slower
                spent = dict.fromkeys((id(plain), *used), 0.0)
                for number, group in enumerate(groups[size]):
                    runs: dict[int, list[float]] = {key: [] for key in spent}
                    for turn in range(repeats):
                        turns: list[Any] = [plain, *points]
                        shift = (number + turn) % len(turns)
                        for who in turns[shift:] + turns[:shift]:
                            read: Callable[[list[Encoded]], Any] = plain
                            if who is not plain:
                                model.policy, read = who.build(), model.read
                            began = time.perf_counter()
                            made = read(group)
                            runs[id(who)].append(time.perf_counter() - began)
                            if who is not plain and size == sizes[0] and turn == 0:
                                used[id(who)] += made[1].tolist()
                    for key, some in runs.items():
                        spent[key] += statistics.median(some)
                    meter.advance()
                plains[size] = spent[id(plain)]
                for p in points:
                    p.seconds[size] = spent[id(p)]
                    p.speedup[size] = plains[size] / p.seconds[size]
                    share = float(np.mean(used[id(p)])) / model.layers
                    p.overhead[size] = p.seconds[size] / (plains[size] * share)
    finally:
        backbone.batch_tokens, model.plain.report = before, plain_report
        model.policy = policy
    return plains


def _plain(model: ExitModel) -> Callable[[list[Encoded]], Any]:
    """The plain model's own way from prompts to class probabilities."""
    plain = model.plain
    model.backbone.apply(plain.weights)
    if not isinstance(plain, PromptModel):
        return plain.read

    def read(encoded: list[Encoded]) -> Any:
        readout = Readout(plain.backbone, encoded, plain.backbone.states(encoded))
        return plain.class_scores(model.part, readout).double().softmax(-1).cpu().numpy()

    return read


def plot(curve: ExitCurve, path: str | Path) -> None:
    """Draw a curve: score against layers, and against time; the file's ending says the format.

    Raises:
        UserError: matplotlib is not installed, or it knows no such format.
        PromptForgeError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install matplotlib, or use --json.") from None
    size = min(curve.seconds)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for name in dict.fromkeys(p.policy for p in curve.points):
        own = sorted((p for p in curve.points if p.policy == name), key=lambda p: p.mean_layers)
        (line,) = left.plot([p.mean_layers for p in own], [p.score for p in own], ".-", label=name)
        timed = sorted((p for p in own if size in p.seconds), key=lambda p: p.seconds[size])
        right.plot(
            [p.seconds[size] / curve.seconds[size] for p in timed], [p.score for p in timed], "o-",
            color=line.get_color(), label=name,
        )  # fmt: skip
    left.plot([curve.layers], [curve.score], "k*", markersize=11, label="plain model")
    right.plot([1], [curve.score], "k*", markersize=11)
    for axes in (left, right):
        axes.axhline(curve.score - curve.max_drop / 100, color="gray", linestyle=":", linewidth=1)
        axes.grid(alpha=0.3)
    left.set(xlabel="mean layers used", ylabel="score")
    right.set(xlabel=f"time, as part of the plain model's (batch {size}, measured)")
    left.legend()
    try:
        figure.savefig(path)
    except ValueError as error:
        raise UserError(f"--plot {path}: {error}") from None
    except OSError as error:
        raise PromptForgeError(f"{path} could not be written: {error.strerror or error}.") from None
