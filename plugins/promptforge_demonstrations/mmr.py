"""Like the row, but not like each other: maximal marginal relevance."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from promptforge import Example
from promptforge_demonstrations.base import EmbeddingSelector, PerLabel, Row


class Mmr(PerLabel, EmbeddingSelector):
    """Examples of each label by maximal marginal relevance (Carbonell and Goldstein 1998).

    One after the other, the example with the highest

        (1 - diversity) * cos(example, row) - diversity * max cos(example, chosen)

    is chosen, where `chosen` are those of its own label: an example of another label that says
    nearly the same is a contrast and no repetition. Shown label by label in the task's order,
    in the order in which they were chosen; ties go to the more similar.
    """

    name: ClassVar[str] = "mmr"

    per_label: int = Field(2, ge=1, le=16, description="Demonstrations of each label.")
    diversity: float = Field(
        0.5, ge=0, le=1, description="0: similarity to the row alone; 1: difference alone."
    )

    def select(self, row: Row) -> list[Example]:
        """Label by label, `per_label` that are not the row."""
        cosines = self.cosines(row)
        ranked = self.best(row, cosines).values()
        return self.examples([i for ids in ranked for i in self._spread(ids, cosines)])

    def _spread(self, left: list[int], cosines: NDArray[np.float32]) -> list[int]:
        """The chosen of `left`, which are the most similar first; `cosines` is [n]."""
        chosen: list[int] = []
        while left and len(chosen) < self.per_label:
            gain = (1 - self.diversity) * cosines[left]
            if chosen:
                alike = self.vectors()[left] @ self.vectors()[chosen].T
                gain = gain - self.diversity * alike.max(1)
            chosen.append(left.pop(int(gain.argmax())))
        return chosen
