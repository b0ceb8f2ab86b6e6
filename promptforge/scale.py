"""Numbers in place of labels: a scale between two poles (Gao, Fisch & Chen 2021, section 4.2).

A task with a scale has two labels, the pole of its low end and that of its high end, with label
words as ever. A number y in [l, u] is the mixture of the poles with `p = (y - l) / (u - l)` of the
high one; training minimises the KL divergence of the model's two probabilities from it, and the
prediction is `l + (u - l) p`. Patterns, verbalizers and strategies see two classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptforge.data import Row, label_text
from promptforge.errors import UserError


@dataclass(frozen=True)
class Scale:
    """The numbers from `low` to `high`.

    Attributes:
        round_to: ordinal labels: predictions are rounded to the nearest of these; empty: they
            are left as they are.

    Raises:
        UserError: an end that is no finite number, `low` not below `high`, a number to round to
            that lies outside.
    """

    low: float
    high: float
    round_to: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, end in (("low", self.low), ("high", self.high)):
            if not math.isfinite(end):
                raise UserError(f"scale: {name} is {end:g}; it must be a number.")
        if not self.low < self.high:
            raise UserError(f"scale: low is {self.low:g} and high {self.high:g}; low must be less.")
        for number in self.round_to:
            if not self.low <= number <= self.high:
                raise UserError(
                    f"scale: round_to has {number:g}, which is not between {self.low:g} and {self.high:g}."
                )

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> Scale | None:
        """A scale from its attributes; None from None."""
        return cls(data["low"], data["high"], tuple(data["round_to"])) if data else None

    def shares(self, number: float) -> tuple[float, float]:
        """The poles' probabilities that stand for a number: `(1 - p, p)`."""
        p = (number - self.low) / (self.high - self.low)
        return 1 - p, p

    def numbers(self, probabilities: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Predictions [rows] from the poles' probabilities [rows, 2], rounded where asked."""
        made = self.low + (self.high - self.low) * np.asarray(probabilities, dtype=float)[:, 1]
        if not self.round_to:
            return made
        steps = np.array(sorted(self.round_to))
        nearest: NDArray[np.float64] = steps[abs(made[:, None] - steps).argmin(1)]
        return nearest

    def number(self, value: Any) -> float:
        """A cell of the label column as a number.

        Raises:
            UserError: it is none, or lies outside the scale.
        """
        text = label_text(value)
        try:
            number = float(text or "")
        except ValueError:
            raise UserError(f"{value!r} is not a number.") from None
        if not self.low <= number <= self.high:
            raise UserError(
                f"{number:g} is not on the scale from {self.low:g} to {self.high:g}. Mend the data, or "
                "the task's [scale]."
            )
        return number

    def poles(
        self, rows: Sequence[Row], column: str, labels: Sequence[str], origin: str
    ) -> Mapping[str, str]:
        """Value -> the pole on its side of the rows' median, for drawing rows of both sides.

        (Section 6 of the paper: demonstrations are drawn from each side of the median.) The
        median itself is on the low side, unless no number lies above it.

        Raises:
            UserError: a value that is no number on the scale, with its row.
        """
        found: dict[str, float] = {}
        every = []
        for i, row in enumerate(rows, start=1):
            try:
                text, number = label_text(row[column]), self.number(row[column])
            except UserError as error:
                raise UserError(f"{origin}: row {i}, column {column!r}: {error}") from None
            found[str(text)] = number
            every.append(number)
        middle = median(every) if every else math.nan
        if any(number > middle for number in every):
            return {text: labels[int(number > middle)] for text, number in found.items()}
        return {text: labels[int(number >= middle)] for text, number in found.items()}
