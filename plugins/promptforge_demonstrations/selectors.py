"""Demonstrations that do not look at the row: the first of each label, or drawn at random."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field, PrivateAttr

from promptforge import DemonstrationSelector, Example


class _PerLabel(DemonstrationSelector):
    per_label: int = Field(1, ge=1, le=16, description="Demonstrations of each label.")

    _pools: dict[str, list[Example]] = PrivateAttr(default_factory=dict)

    def fit(self, examples: Sequence[Example], labels: Sequence[str]) -> None:
        """Sort the examples by label, in the task's order of labels."""
        self._pools = {label: [e for e in examples if e.label == label] for label in labels}

    def others(self, label: str, row: Mapping[str, Any]) -> list[Example]:
        """The label's examples that are not `row` itself."""
        return [e for e in self._pools[label] if e.row is not row and dict(e.row) != dict(row)]


class FirstPerLabel(_PerLabel):
    """The first examples of each label, the same for every row: what they share is read once."""

    name: ClassVar[str] = "fixed"

    def select(self, row: Mapping[str, Any]) -> list[Example]:
        """Label by label, the first that are not the row."""
        return [e for label in self._pools for e in self.others(label, row)[: self.per_label]]


class RandomPerLabel(_PerLabel):
    """Examples of each label drawn for each row; a row always gets the same ones."""

    name: ClassVar[str] = "random"

    seed: int = Field(0, description="Seed of the draw.")

    def select(self, row: Mapping[str, Any]) -> list[Example]:
        """Label by label, drawn from those that are not the row."""
        draw = random.Random(f"{self.seed}:{sorted((k, str(v)) for k, v in row.items())}")
        chosen: list[Example] = []
        for label in self._pools:
            pool = self.others(label, row)
            chosen += draw.sample(pool, min(self.per_label, len(pool)))
        return chosen
