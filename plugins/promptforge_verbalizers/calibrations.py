"""Three calibrations of class scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from promptforge import Calibration, Pattern, Prompt, UserError
from promptforge.template import Mask, TemplateValueError, Text


class _Shift(Calibration):
    """A calibration that subtracts one learned number per label."""

    _shift: Tensor | None = PrivateAttr(None)

    def apply(self, scores: Tensor) -> Tensor:
        """Subtract the shift from the scores, [rows, labels]."""
        assert self._shift is not None, "fit comes first"
        return scores - self._shift


def _rendered(render: Any, columns: Sequence[str], text: str, who: str) -> Prompt:
    """The prompt with a text in place of every column.

    Raises:
        UserError: the template looks into a column, which holds more than a text.
    """
    try:
        prompt: Prompt = render(dict.fromkeys(columns, text))
    except TemplateValueError as error:
        raise UserError(
            f"calibration {who!r} puts {text!r} in place of every column, and the template takes none: {error} "
            "Write the columns as texts, or use calibration 'batch'."
        ) from None
    return prompt


class Contextual(_Shift):
    """Divide by what the model says of inputs without content (Zhao et al. 2021).

    `p(y|x) / mean of p(y|x_cf)`, both normalised over the classes.
    """

    name: ClassVar[str] = "contextual"

    inputs: list[str] = Field(
        ["N/A", "", "[MASK]"], min_length=1, description="Inputs without content."
    )

    def fit(
        self,
        pattern: Pattern,
        columns: Sequence[str],
        render: Any,
        score: Any,
        rows_scores: Tensor | None,
    ) -> None:
        """Average the class probabilities over the content-free inputs."""
        prompts = [_rendered(render, columns, text, self.name) for text in self.inputs]
        self._shift = torch.softmax(score(prompts).double(), -1).mean(0).log()

    def apply(self, scores: Tensor) -> Tensor:
        """log p(y|x) - log mean p(y|content-free), [rows, labels]."""
        return super().apply(torch.log_softmax(scores.double(), -1))


class PmiDc(_Shift):
    """Domain-conditional pointwise mutual information (Holtzman et al. 2021).

    `log P(y|x) - log P(y|domain premise)`, not normalised over the classes. The premise is the
    pattern's `premise` from task.toml, else the pattern with empty columns.
    """

    name: ClassVar[str] = "pmi-dc"

    premise: str | None = Field(
        None, description="The domain premise; by default the pattern's own."
    )

    def fit(
        self,
        pattern: Pattern,
        columns: Sequence[str],
        render: Any,
        score: Any,
        rows_scores: Tensor | None,
    ) -> None:
        """Score the premise."""
        premise = self.premise if self.premise is not None else pattern.premise
        if premise is None:
            prompt = _rendered(render, columns, "", self.name)
        else:
            prompt = Prompt((Text(premise.rstrip() + " "), Mask()))
        self._shift = score([prompt])[0]


class Batch(_Shift):
    """Subtract the log of the mean class probability over rows (Zhou et al. 2024).

    The mean is taken once, over the calibration rows, so a row's result does not depend on the
    batch it comes in.
    """

    name: ClassVar[str] = "batch"
    needs_rows: ClassVar[bool] = True

    def fit(
        self,
        pattern: Pattern,
        columns: Sequence[str],
        render: Any,
        score: Any,
        rows_scores: Tensor | None,
    ) -> None:
        """Average the class probabilities over the calibration rows."""
        assert rows_scores is not None
        self._shift = torch.softmax(rows_scores.double(), -1).mean(0).log()

    def apply(self, scores: Tensor) -> Tensor:
        """log p(y|x) - log mean p(y), [rows, labels]."""
        return super().apply(torch.log_softmax(scores.double(), -1))
