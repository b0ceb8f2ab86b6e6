"""The nearest neighbours of the row by sentence embedding: of each label, or balanced over all."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from promptforge import Example
from promptforge_demonstrations.base import EmbeddingSelector, PerLabel, Row


class Similarity(PerLabel, EmbeddingSelector):
    """The examples of each label that are most like the row (kNN; KATE, Liu et al. 2022).

    Alike means the cosine of the sentence embeddings. Shown label by label in the task's order,
    the most similar first.
    """

    name: ClassVar[str] = "similarity"

    def select(self, row: Row) -> list[Example]:
        """Label by label, the `per_label` nearest that are not the row."""
        ranked = self.best(row, self.cosines(row)).values()
        return self.examples([i for ids in ranked for i in ids[: self.per_label]])


class Balanced(EmbeddingSelector):
    """The `k` examples most like the row, as evenly over the labels as `k` allows.

    Every label gives its nearest example before any gives its second. A round that `k` cuts
    short goes to the labels whose next example is nearest; a label that has run out leaves its
    share to the others. Shown label by label in the task's order, the most similar first.
    """

    name: ClassVar[str] = "balanced"

    k: int = Field(4, ge=1, le=64, description="Demonstrations in all.")

    def select(self, row: Row) -> list[Example]:
        """Label by label, `k` in all, none of them the row."""
        cosines = self.cosines(row)
        ranked = self.best(row, cosines).values()
        rounds = [(rank, -cosines[i], i) for ids in ranked for rank, i in enumerate(ids)]
        taken = {i for _, _, i in sorted(rounds)[: self.k]}
        return self.examples([i for ids in ranked for i in ids if i in taken])
