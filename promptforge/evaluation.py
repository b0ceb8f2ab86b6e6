"""How good predictions are: accuracy, macro-F1, per label, confusion, calibration error."""

from __future__ import annotations

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
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % confidence interval of the accuracy."""
        z, n, p = 1.959964, self.rows, self.accuracy
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * ((p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5)
        return max(0.0, middle - half), min(1.0, middle + half)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**vars(self), "labels": list(self.labels), "interval": list(self.interval)}


def _calibration_error(confidence: NDArray[Any], correct: NDArray[Any], bins: int = 10) -> float:
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    error = 0.0
    for b in range(bins):
        inside = which == b
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return float(error)
