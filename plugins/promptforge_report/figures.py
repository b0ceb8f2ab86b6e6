"""What follows from figures and predictions: headlines, calibration, the hardest rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptforge.task import Task
from promptforge.tuning.predictions import Prediction
from promptforge_report.records import Parts, Record

#: The figure that counts, by the key that an evaluation has it under, and how it is called.
HEADLINES = {
    "micro_f1": "micro-F1",
    "accuracy": "accuracy",
    "pearson": "Pearson's r",
    "bleu": "BLEU",
}
BINS = 10


@dataclass(frozen=True)
class Figure:
    """A headline with its 95 % confidence interval.

    Attributes:
        name: whose it is.
        kind: key of `HEADLINES`.
        value: a share from 0 to 1, a correlation, or BLEU from 0 to 100; None: not defined.
        low, high: the interval, where there is one.
        rows: how many it was measured on; 0: not known.
        figures: all that the evaluation says.
        final: whether it is the whole tuned classifier's.
    """

    name: str
    kind: str
    value: float | None
    low: float | None
    high: float | None
    rows: int
    figures: dict[str, Any]
    final: bool = False

    @classmethod
    def of(cls, name: str, figures: dict[str, Any], final: bool = False) -> Figure | None:
        """The headline of an evaluation; None where it has no figure that is known."""
        kind = next((kind for kind in HEADLINES if kind in figures), None)
        if kind is None:
            return None
        low, high = figures.get("interval") or (None, None)
        rows = figures.get("rows", 0)
        return cls(name, kind, figures[kind], low, high, rows, figures, final)

    @property
    def label(self) -> str:
        """What is measured."""
        return HEADLINES[self.kind]

    def shown(self, value: float | None) -> str:
        """A value of this figure as text."""
        if value is None:
            return "undefined"
        if self.kind == "bleu":
            return f"{value:.1f}"
        return f"{value:.3f}" if self.kind == "pearson" else f"{100 * value:.1f} %"

    @property
    def text(self) -> str:
        """The value as text."""
        return self.shown(self.value)

    @property
    def interval(self) -> str:
        """The interval as text; empty where there is none."""
        if self.low is None or self.high is None:
            return ""
        if self.kind == "pearson":
            return f"{self.low:.3f} to {self.high:.3f}"
        return f"{100 * self.low:.1f} to {100 * self.high:.1f} %"


def headline(parts: Parts, name: str = "", final: bool = False) -> Figure | None:
    """The figure of the whole classifier: the last part's."""
    return Figure.of(name, list(parts.values())[-1], final) if parts else None


def figures_of(record: Record, split: str) -> list[Figure]:
    """The guess without looking, zero-shot and tuned, each with its parts; best known last."""
    by = record.results.results[split] if record.results else {}
    out: list[Figure | None] = []
    for who in sorted(by, key=lambda who: who == "tuned"):
        parts = by[who]
        for part, figures in parts.items():
            last = part == list(parts)[-1]
            name = who if len(parts) == 1 else f"{who}, {part}"
            out.append(Figure.of(name, figures, final=who == "tuned" and last))
    known = [figure for figure in out if figure]
    guess = _guess(known[-1]) if known else None
    return [guess, *known] if guess else known


def _guess(figure: Figure) -> Figure | None:
    """What always saying the same gives on these rows."""
    told = figure.figures
    if "majority" in told:
        own = {"accuracy": told["majority"], "rows": figure.rows}
        return Figure.of("majority class", own)
    if "constant" in told:
        return Figure.of("always the same labels", {**told["constant"], "rows": figure.rows})
    return None


# --- predictions -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """A prediction beside the truth.

    Attributes:
        truth, said, before: as text; `before` is what zero-shot said, empty where nobody asked.
        certainty: probability of what was said, 0 to 1; with a scale the error.
        wrong: whether it differs from the truth.
        badness: how bad it is, higher is worse.
        label: the label that is most wrong, of a task with several labels a row.
    """

    prediction: Prediction
    truth: str
    said: str
    before: str
    certainty: float
    wrong: bool
    badness: float
    label: str = ""


def threshold(record: Record, who: str = "tuned") -> float:
    """The probability from which a row was given a label; a half where rows have just one."""
    told = list(record.parts(who).values())
    return float(told[-1].get("threshold", 0.5)) if told else 0.5


def judged(record: Record) -> list[Judged]:
    """Each prediction on the split that counts beside the truth, in the same order.

    Where a row may have several labels, it has those from a probability on: zero-shot's is its own.
    """
    task = record.task
    assert task is not None
    least, least_before = threshold(record), threshold(record, "zero-shot")
    out = []
    for p in record.said:
        tuned = np.array(p.said["tuned"])
        before = np.array(p.said["zero-shot"]) if "zero-shot" in p.said else None
        said = _decided(task, tuned, least)
        was = "" if before is None else _decided(task, before, least_before)
        if task.scale:
            truth = float(p.truth)  # type: ignore[arg-type]
            error = abs(float(task.scale.numbers(tuned[None])[0]) - truth)
            out.append(Judged(p, f"{truth:g}", said, was, error, error > 0, error))
        elif task.multi_label:
            has = _indicator(task, p)
            off = abs(tuned - has)
            worst = int(off.argmax())
            wrong = bool(((tuned >= least) != has.astype(bool)).any())
            sure = max(float(tuned[worst]), 1 - float(tuned[worst]))
            truth_text = ", ".join(p.truth) if isinstance(p.truth, list) else str(p.truth)
            out.append(
                Judged(p, truth_text or "none", said, was, sure, wrong, float(off[worst]), task.classes[worst])
            )  # fmt: skip
        else:
            sure = float(tuned.max())
            wrong = said != p.truth
            out.append(Judged(p, str(p.truth), said, was, sure, wrong, sure if wrong else -sure))
    return out


def hardest(rows: Sequence[Judged], most: int) -> list[Judged]:
    """The wrong ones, the most confident first; at most `most`."""
    return sorted((r for r in rows if r.wrong), key=lambda r: -r.badness)[:most]


def _decided(task: Task, probabilities: NDArray[np.float64], threshold: float) -> str:
    if task.scale:
        return f"{float(task.scale.numbers(probabilities[None])[0]):.3g}"
    if task.multi_label:
        pairs = zip(task.classes, probabilities, strict=True)
        return ", ".join(label for label, p in pairs if p >= threshold) or "none"
    return task.classes[int(probabilities.argmax())]


def _indicator(task: Task, prediction: Prediction) -> NDArray[np.float64]:
    return np.array([float(label in (prediction.truth or ())) for label in task.classes])  # type: ignore[operator]


@dataclass(frozen=True)
class Bin:
    """Predictions of about the same confidence; all from 0 to 1, but `rows`."""

    low: float
    high: float
    rows: int
    confidence: float
    right: float


def reliability(task: Task, predictions: Sequence[Prediction], who: str = "tuned") -> list[Bin]:
    """The bins of a reliability diagram that hold rows (Guo et al. 2017).

    Where a row may have several labels, each pair of a row and a label counts, with the
    probability that the row has it.
    """
    sure, right = [], []
    for p in predictions:
        if who not in p.said:
            continue
        said = np.array(p.said[who])
        if task.multi_label:
            sure += said.tolist()
            right += _indicator(task, p).tolist()
        else:
            sure.append(float(said.max()))
            right.append(float(task.classes[int(said.argmax())] == p.truth))
    confidence, correct = np.array(sure), np.array(right)
    which = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        Bin(b / BINS, (b + 1) / BINS, int(here.sum()), float(confidence[here].mean()), float(correct[here].mean()))
        for b in range(BINS)
        if (here := which == b).any()
    ]  # fmt: skip
