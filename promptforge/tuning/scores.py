"""How good a model is on development rows: what trainings and strategies choose by."""

from __future__ import annotations

import math
from collections.abc import Sequence

from promptforge.classifier import Classifier, Probabilities
from promptforge.data import Example
from promptforge.evaluation import RegressionEvaluation


def dev_score(classifier: Classifier, dev: Sequence[Example]) -> float:
    """Accuracy; among equals the higher mean log-probability of the true labels counts.

    With 16 rows a label many looks tie in accuracy, and the likelihood tells them apart. Of
    numbers it is Pearson's correlation.
    """
    # Unchecked: that it is not finite is said with the step.
    found = classifier.combined(classifier.part_probabilities([e.row for e in dev]))
    return score_of(classifier, found, dev)


def score_of(classifier: Classifier, probabilities: Probabilities, dev: Sequence[Example]) -> float:
    """`dev_score` of class probabilities, [rows, labels], of `dev`."""
    if classifier.scale is not None:
        truth = [e.value for e in dev if e.value is not None]
        return RegressionEvaluation.of(truth, classifier.scale.numbers(probabilities)).headline
    index = {label: i for i, label in enumerate(classifier.labels)}
    truth = [index[e.label] for e in dev]
    right = sum(int(p.argmax() == t) for p, t in zip(probabilities, truth, strict=True))
    likelihood = sum(
        math.log(max(float(p[t]), 1e-12)) for p, t in zip(probabilities, truth, strict=True)
    )
    return (right + likelihood / 1000 / len(dev)) / len(dev)
