"""Scorers: the log-probability of a word that has several tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from promptforge.components import Component
from promptforge.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from promptforge.backbone.base import Backbone
    from promptforge.readout import Readout


class Scorer(Component):
    """Scores token sequences in a mask. `families` are the model families it serves."""

    role: ClassVar[str] = "scorer"
    families: ClassVar[tuple[str, ...]] = ()

    length_normalised: bool = Field(
        False, description="Divide a word's log-probability by its number of tokens."
    )

    def check(self, backbone: Backbone) -> None:
        """Raise a `UserError` where the model's family cannot be scored this way."""
        if backbone.family not in self.families:
            raise UserError(
                f"scorer {self.name!r} is for {' and '.join(self.families)} models; {backbone.name} is "
                f"{backbone.family}. Its own is {backbone.default_scorer!r}."
            )

    @abstractmethod
    def score(self, readout: Readout, sequences: Sequence[Sequence[int]], slot: int) -> Tensor:
        """Log-probabilities of each word at each prompt, [prompts, words]."""

    def training_scores(
        self, readout: Readout, sequences: Sequence[Sequence[int]], slot: int
    ) -> Tensor:
        """Log-probabilities of each word with gradients, [prompts, words]."""
        raise UserError(
            f"scorer {self.name!r} cannot be trained with: words of several tokens need "
            "'parallel', 'confident-first' or 'autoregressive', or words of one token."
        )

    def finish(self, scores: Tensor, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Apply `length_normalised` to summed log-probabilities, [prompts, words]."""
        if not self.length_normalised:
            return scores
        return scores / scores.new_tensor([len(s) for s in sequences])
