"""Demonstrations that do not look at what the row says: the first of each label, or drawn."""

from __future__ import annotations

import random
from typing import ClassVar, Literal

from pydantic import Field

from promptforge import Example
from promptforge_demonstrations.base import PerLabel, Row


class FirstPerLabel(PerLabel):
    """The first examples of each label, the same for every row: what they share is read once."""

    name: ClassVar[str] = "fixed"

    def select(self, row: Row) -> list[Example]:
        """Label by label, the first that are not the row."""
        chosen = [i for ids in self.others(row).values() for i in ids[: self.per_label]]
        return self.examples(chosen)


class RandomPerLabel(PerLabel):
    """Examples of each label drawn for each row; a row always gets the same ones."""

    name: ClassVar[str] = "random"
    varies: ClassVar[bool] = True

    order: Literal["labels", "random"] = Field(
        "labels", description="Show them in the task's order of labels, or shuffled."
    )
    seed: int = Field(
        0, description="Seed of the draw; a training that names none draws with its own."
    )

    def candidates(self, row: Row) -> dict[str, list[int]]:
        """Label -> the examples that are drawn from."""
        return self.others(row)

    def select(self, row: Row) -> list[Example]:
        """Sample number 0."""
        return self.sample(row, 0)

    def sample(self, row: Row, index: int) -> list[Example]:
        """Draw number `index` for `row`; it depends on nothing but seed, number and text."""
        draw = random.Random(f"{self.seed}:{index}:{self.text(row)}")
        chosen: list[int] = []
        for pool in self.candidates(row).values():
            chosen += draw.sample(pool, min(self.per_label, len(pool)))
        if self.order == "random":
            draw.shuffle(chosen)
        return self.examples(chosen)
