"""Sampled demonstrations, drawn from what is most like the row (Gao, Fisch and Chen 2021)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from promptforge_demonstrations.base import EmbeddingSelector, Row
from promptforge_demonstrations.selectors import RandomPerLabel


class LmBff(RandomPerLabel, EmbeddingSelector):
    """LM-BFF's demonstrations (Gao, Fisch and Chen 2021, section 6).

    One example of each label is drawn for the row, in the task's order of labels, from the half
    of that label's examples whose sentence embeddings are most like the row's. A label with n
    examples besides the row keeps `keep * n` of them, rounded down, and never fewer than are
    shown. At inference the paper averages over several samples: `sample(row, 0)`, `(row, 1)`, ...
    """

    name: ClassVar[str] = "lm-bff"

    filter: bool = Field(True, description="Draw from the most similar of each label only.")
    keep: float = Field(0.5, gt=0, le=1, description="The part of each label's examples kept.")

    @property
    def compares(self) -> bool:
        """Without the filter no text is embedded."""
        return self.filter

    def candidates(self, row: Row) -> dict[str, list[int]]:
        """Label -> its examples that pass the filter, in the pool's order."""
        if not self.filter:
            return self.others(row)
        ranked = self.best(row, self.cosines(row))
        # In the pool's order, a draw does not hang on the last bit of a cosine.
        return {label: sorted(ids[: self._kept(len(ids))]) for label, ids in ranked.items()}

    def _kept(self, n: int) -> int:
        # 0.29 * 100 is a hair below 29.
        return max(self.per_label, int(self.keep * n + 1e-9))
