"""How good predictions are: accuracy, macro-F1, per label, confusion, calibration error; of
numbers, correlations and errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Evaluation:
    """Figures of one set of predictions.

    Attributes:
        labels: the labels, in order.
        rows: number of rows.
        accuracy, macro_f1: from 0 to 1.
        per_label: label -> precision, recall, f1, support.
        confusion: counts, [true label, predicted label].
        calibration_error: expected calibration error over ten bins (Guo et al. 2017), 0 to 1.
        chance: accuracy of a guess without looking, one over the number of labels.
        majority: accuracy of always saying the most frequent label.
    """

    labels: tuple[str, ...]
    rows: int
    accuracy: float
    macro_f1: float
    per_label: dict[str, dict[str, float]]
    confusion: list[list[int]]
    calibration_error: float
    chance: float
    majority: float

    @classmethod
    def of(
        cls, truth: Sequence[str], probabilities: NDArray[np.floating[Any]], labels: Sequence[str]
    ) -> Evaluation:
        """Evaluate class probabilities, [rows, labels], against the true labels."""
        from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

        index = {label: i for i, label in enumerate(labels)}
        y = np.array([index[t] for t in truth])
        predicted = probabilities.argmax(1)
        every = list(range(len(labels)))
        precision, recall, f1, support = precision_recall_fscore_support(
            y, predicted, labels=every, zero_division=0.0
        )
        present = support > 0
        return cls(
            labels=tuple(labels),
            rows=len(y),
            accuracy=float((predicted == y).mean()),
            macro_f1=float(f1[present].mean()),
            per_label={
                label: {
                    "precision": float(precision[i]),
                    "recall": float(recall[i]),
                    "f1": float(f1[i]),
                    "support": int(support[i]),
                }
                for label, i in index.items()
            },
            confusion=confusion_matrix(y, predicted, labels=every).tolist(),
            calibration_error=_calibration_error(probabilities.max(1), predicted == y),
            chance=1 / len(labels),
            majority=float(support.max() / len(y)),
        )

    @property
    def headline(self) -> float:
        """The one figure that counts: the accuracy."""
        return self.accuracy

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % confidence interval of the accuracy."""
        return wilson(self.accuracy, self.rows)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**vars(self), "labels": list(self.labels), "interval": list(self.interval)}


@dataclass(frozen=True)
class RegressionEvaluation:
    """Figures of one set of predicted numbers.

    Attributes:
        rows: number of rows.
        pearson, spearman: correlations with the true numbers, -1 to 1; None where one side is
            constant and they are not defined.
        mae, rmse: mean absolute error and root of the mean squared error, in the task's unit.
        mean_rmse: the RMSE of always saying the mean of these rows: the best guess without looking.
    """

    rows: int
    pearson: float | None
    spearman: float | None
    mae: float
    rmse: float
    mean_rmse: float

    @classmethod
    def of(
        cls, truth: Sequence[float], predicted: NDArray[np.floating[Any]]
    ) -> RegressionEvaluation:
        """Evaluate predicted numbers, [rows], against the true ones."""
        from scipy.stats import spearmanr

        y = np.asarray(truth, dtype=float)
        error = predicted - y
        varied = np.ptp(y) > 0 and np.ptp(predicted) > 0
        return cls(
            rows=len(y),
            pearson=float(np.corrcoef(y, predicted)[0, 1]) if varied else None,
            spearman=float(spearmanr(y, predicted).statistic) if varied else None,
            mae=float(abs(error).mean()),
            rmse=float((error**2).mean() ** 0.5),
            mean_rmse=float(y.std()),
        )

    @property
    def headline(self) -> float:
        """The one figure that counts: Pearson's correlation, 0 where it is not defined."""
        return self.pearson or 0.0

    @property
    def interval(self) -> tuple[float, float] | None:
        """Fisher's 95 % confidence interval of Pearson's correlation, where there is one."""
        if self.pearson is None or self.rows < 4:
            return None
        middle = np.arctanh(np.clip(self.pearson, -1 + 1e-12, 1 - 1e-12))
        half = 1.959964 / (self.rows - 3) ** 0.5
        return float(np.tanh(middle - half)), float(np.tanh(middle + half))

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**vars(self), "interval": self.interval and list(self.interval)}


@dataclass(frozen=True)
class MultiLabelEvaluation:
    """Figures of one set of predicted label sets.

    Attributes:
        labels: the labels, in order.
        rows: number of rows.
        micro_f1: F1 over all pairs of a row and a label.
        macro_f1: mean F1 of the labels that some row has.
        exact_match: share of the rows with exactly the right labels (subset accuracy).
        hamming_loss: share of the pairs of a row and a label that are wrong.
        per_label: label -> precision, recall, f1, support.
        threshold: the probability from which a row was given a label.
        interval: 95 % confidence interval of `micro_f1`; None where nothing is true or predicted.
        constant: the same figures of the guess without looking that has the best micro-F1:
            always its "labels", which are the most frequent ones.
    """

    labels: tuple[str, ...]
    rows: int
    micro_f1: float
    macro_f1: float
    exact_match: float
    hamming_loss: float
    per_label: dict[str, dict[str, float]]
    threshold: float
    interval: tuple[float, float] | None
    constant: dict[str, Any]

    @classmethod
    def of(
        cls,
        truth: NDArray[np.bool_],
        probabilities: NDArray[np.floating[Any]],
        labels: Sequence[str],
        threshold: float = 0.5,
    ) -> MultiLabelEvaluation:
        """Evaluate probabilities against the true labels, both [rows, labels]."""
        from sklearn.metrics import precision_recall_fscore_support

        predicted = probabilities >= threshold
        scores = precision_recall_fscore_support(truth, predicted, average=None, zero_division=0.0)
        names = ("precision", "recall", "f1", "support")
        per_label: dict[str, dict[str, float]] = {
            label: {name: column[i].item() for name, column in zip(names, scores, strict=True)}
            for i, label in enumerate(labels)
        }
        # Always the m most frequent labels: F1 = 2 TP / (predicted + true).
        support = truth.sum(0)
        often = np.argsort(-support, kind="stable")
        sizes = np.arange(1, len(labels) + 1)
        most = int((support[often].cumsum() / (len(truth) * sizes + truth.sum())).argmax()) + 1
        always = np.isin(np.arange(len(labels)), often[:most])
        named = [label for label, has in zip(labels, always, strict=True) if has]
        return cls(
            labels=tuple(labels),
            rows=len(truth),
            **_set_figures(truth, predicted),
            per_label=per_label,
            threshold=threshold,
            interval=_f1_interval(truth, predicted),
            constant={
                "labels": named,
                **_set_figures(truth, np.broadcast_to(always, truth.shape)),
            },
        )

    @property
    def headline(self) -> float:
        """The one figure that counts: the micro-F1."""
        return self.micro_f1

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        interval = self.interval and list(self.interval)
        return {**vars(self), "labels": list(self.labels), "interval": interval}


AnyEvaluation = Evaluation | RegressionEvaluation | MultiLabelEvaluation


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a share of `n`."""
    z, p = 1.959964, share
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * ((p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5)
    return max(0.0, middle - half), min(1.0, middle + half)


def paired(first: Sequence[float], second: Sequence[float]) -> float | None:
    """p of a two-sided paired t-test; None with fewer than two pairs."""
    from scipy.stats import ttest_rel

    if len(first) != len(second) or len(first) < 2:
        return None
    difference = np.subtract(first, second)
    if np.allclose(difference, difference[0]):  # with every seed the same: without variance no t
        return 1.0 if np.isclose(difference[0], 0) else 0.0
    p = float(ttest_rel(first, second).pvalue)
    return None if math.isnan(p) else p


def _set_figures(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> dict[str, float]:
    both, either = (truth & predicted).sum(0), truth.sum(0) + predicted.sum(0)
    f1 = 2 * both / np.maximum(either, 1)
    present = truth.any(0)
    return {
        "micro_f1": float(2 * both.sum() / max(either.sum(), 1)),
        "macro_f1": float(f1[present].mean()) if present.any() else 0.0,
        "exact_match": float((truth == predicted).all(1).mean()),
        "hamming_loss": float((truth != predicted).mean()),
    }


def _f1_interval(
    truth: NDArray[np.bool_], predicted: NDArray[np.bool_]
) -> tuple[float, float] | None:
    """Wilson's interval of J = TP / (TP + FP + FN), carried over to F1 = 2 J / (1 + J).

    The labels of a row are not independent, so J counts as a share of fewer pairs where it varies
    more between rows than it would by chance (a ratio estimator over clusters; Cochran 1977,
    section 6.5).
    """
    hit, pairs = (truth & predicted).sum(1), (truth | predicted).sum(1)
    n = float(pairs.sum())
    if not n:
        return None
    j, rows = hit.sum() / n, len(truth)
    spread = ((hit - j * pairs) ** 2).sum() / n**2 * rows / max(rows - 1, 1)
    if spread > 0:
        n *= min(1.0, j * (1 - j) / n / spread)
    low, high = wilson(float(j), n)
    return 2 * low / (1 + low), 2 * high / (1 + high)


def _calibration_error(confidence: NDArray[Any], correct: NDArray[Any], bins: int = 10) -> float:
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    error = 0.0
    for b in range(bins):
        inside = which == b
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return float(error)
