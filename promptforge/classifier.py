"""What every trained or untrained classifier can do, however it was made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptforge.data import Example
from promptforge.evaluation import Evaluation
from promptforge.plugins import manager

#: The name of the average over the parts of a classifier in results.
ENSEMBLE = "all patterns"

Rows = Sequence[Mapping[str, Any]]
Probabilities = NDArray[np.float64]


class Classifier(ABC):
    """Gives each row a probability per label."""

    labels: tuple[str, ...]

    @abstractmethod
    def part_probabilities(self, rows: Rows, what: str = "Reading") -> dict[str, Probabilities]:
        """Class probabilities, [rows, labels], of each part: a pattern, or a member."""

    def combined(self, parts: Mapping[str, Probabilities]) -> Probabilities:
        """The parts' probabilities as one, [rows, labels]: their mean."""
        mean: Probabilities = np.mean(list(parts.values()), axis=0)
        return mean

    def predict_proba(self, rows: Rows) -> Probabilities:
        """Class probabilities, [rows, labels]."""
        return self.combined(self.part_probabilities(rows))

    def predict(self, rows: Rows) -> list[str]:
        """The most probable label of each row."""
        return [self.labels[i] for i in self.predict_proba(rows).argmax(1)]

    def evaluate(
        self, examples: Sequence[Example], what: str = "Evaluating"
    ) -> dict[str, Evaluation]:
        """Figures per part, and of the whole under the name `ENSEMBLE` where there are several."""
        truth = [e.label for e in examples]
        found = self.part_probabilities([e.row for e in examples], what)
        if len(found) > 1:
            found[ENSEMBLE] = self.combined(found)
        out = {name: Evaluation.of(truth, p, self.labels) for name, p in found.items()}
        for evaluation in out.values():
            manager().pm.hook.promptforge_evaluated(evaluation=evaluation)
        return out
