"""Calibrations: corrections of class scores for what a model would say anyway. Protocol only."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from promptforge.components import Component

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from torch import Tensor

    from promptforge.task import Pattern
    from promptforge.template import Prompt

    #: prompts -> class scores [prompts, labels]
    Score = Callable[[Sequence[Prompt]], Tensor]
    #: a row -> the pattern's prompt for it
    Render = Callable[[Mapping[str, Any]], Prompt]


class Calibration(Component):
    """Learns a correction for one pattern, then applies it to class scores.

    A calibration is fitted once per pattern, on fixed inputs; applying it to a row does not
    depend on the batch the row comes in.
    """

    role: ClassVar[str] = "calibration"
    #: whether `fit` needs rows of the task (labels are never used)
    needs_rows: ClassVar[bool] = False

    @abstractmethod
    def fit(
        self,
        pattern: Pattern,
        columns: Sequence[str],
        render: Render,
        score: Score,
        rows_scores: Tensor | None,
    ) -> None:
        """Learn the correction.

        Args:
            pattern: the pattern, with its `premise`.
            columns: the columns the template uses.
            render: makes the pattern's prompt for a row.
            score: scores prompts, [prompts, labels] in log space.
            rows_scores: scores of the calibration rows, [rows, labels], where `needs_rows`.
        """

    @abstractmethod
    def apply(self, scores: Tensor) -> Tensor:
        """Corrected scores, [rows, labels] in log space."""
