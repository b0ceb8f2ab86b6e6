"""What a model says at the masks of many prompts, worked out only as far as somebody asks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from promptforge.backbone.base import Backbone
from promptforge.encode import Encoded
from promptforge.errors import UserError
from promptforge.plugins import manager

if TYPE_CHECKING:
    from promptforge.scoring import Scorer


class Readout:
    """Hidden states at the masks, and everything that follows from them.

    Args:
        backbone: the model that was read.
        encoded: the prompts, N of them.
        states: hidden states at their reads, [N, reads, d].
    """

    def __init__(self, backbone: Backbone, encoded: Sequence[Encoded], states: Tensor) -> None:
        self.backbone = backbone
        self.encoded = encoded
        self.states = states
        self._log_z: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.encoded)

    def _as_read(self) -> AbstractContextManager[Any]:
        # States read without gradients cannot meet weights that want them.
        return torch.inference_mode() if self.states.is_inference() else nullcontext()

    def at(self, slot: int = 0) -> Tensor:
        """States that predict the first token of a slot, [N, d].

        Raises:
            UserError: the template has no such mask.
        """
        slots = self.encoded[0].slots
        if slot >= len(slots):
            raise UserError(f"slot={slot}: the template has {len(slots)} mask(s), counted from 0.")
        per_slot = self.backbone.family == "masked"
        return self.states[:, sum(s.length for s in slots[:slot]) if per_slot else slot]

    def space_before(self, slot: int = 0) -> bool:
        """Whether words in this slot take a leading space."""
        return self.encoded[0].slots[slot].space_before

    def logits(self, words: Tensor, slot: int = 0) -> Tensor:
        """Logits of one-token words, [N, words]: only these rows of the head are computed."""
        with self._as_read():
            return self.backbone.logits(self.at(slot), words).float()

    def log_z(self, slot: int = 0) -> Tensor:
        """log Z over the whole vocabulary, [N]; computed once."""
        if slot not in self._log_z:
            with self._as_read():
                self._log_z[slot] = self.backbone.log_z(self.at(slot))
        return self._log_z[slot]

    def log_probs(self, words: Tensor, slot: int = 0) -> Tensor:
        """Log-probabilities of one-token words over the whole vocabulary, [N, words]."""
        return self.logits(words, slot) - self.log_z(slot)[:, None]

    def score(
        self,
        sequences: Sequence[Sequence[int]],
        slot: int = 0,
        *,
        normalised: bool = True,
        scorer: Scorer | None = None,
    ) -> Tensor:
        """Scores of words, [N, words].

        Args:
            sequences: each word's token ids.
            slot: which mask.
            normalised: log-probabilities; False gives logits, allowed where every word has one
                token and only differences between words matter.
            scorer: how words of several tokens are scored; the family's default if None.
        """
        if all(len(s) == 1 for s in sequences):
            words = torch.tensor([s[0] for s in sequences])
            return self.log_probs(words, slot) if normalised else self.logits(words, slot)
        with torch.inference_mode():
            if scorer is None:
                scorer = manager().registry("scorer").build(self.backbone.default_scorer)
            scorer.check(self.backbone)
            return scorer.score(self, sequences, slot)
