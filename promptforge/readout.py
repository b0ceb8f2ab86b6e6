"""What a model says at the masks of many prompts, worked out only as far as somebody asks."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from promptforge.backbone.base import Backbone
from promptforge.encode import Encoded
from promptforge.errors import PromptForgeError, UserError
from promptforge.plugins import manager

if TYPE_CHECKING:
    from promptforge.scoring import Scorer


class Readout:
    """Hidden states at the masks, and everything that follows from them.

    Args:
        backbone: the model that was read.
        encoded: the prompts, N of them.
        states: hidden states at their reads, [N, reads, d].
        rows: the rows that the prompts were made from, where they are known.
    """

    def __init__(
        self,
        backbone: Backbone,
        encoded: Sequence[Encoded],
        states: Tensor,
        rows: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self.backbone = backbone
        self.encoded = encoded
        self.states = states
        self.rows = rows
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

    def head_logits(self, vectors: Tensor, bias: Tensor, slot: int = 0) -> Tensor:
        """Logits as if `vectors` were rows of the output matrix, [N, vectors]; keeps gradients.

        They multiply what the matrix multiplies: the state after all layers of the head before
        it. What the model does to its logits afterwards (a scale, a cap) is done to these.

        Args:
            vectors: [m, d]; bias: [m].
            slot: which mask.

        Raises:
            PromptForgeError: the model's head does not call its output matrix as a module.
        """
        head = self.backbone.model.get_output_embeddings()
        places = torch.arange(len(vectors), device=vectors.device)
        caller, called = threading.get_ident(), False

        def instead(_: Any, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
            nonlocal called
            if threading.get_ident() != caller:
                return output
            called = True
            made = F.linear(given[0].to(vectors.dtype), vectors, bias)
            # A head that cannot be cut to a few rows has logits for the whole vocabulary.
            cut = output.shape[-1] == len(vectors)
            return made if cut else output.index_copy(-1, places, made.to(output.dtype))

        handle = head.register_forward_hook(instead)
        try:
            logits = self.logits(places, slot)
        finally:
            handle.remove()
        if not called:
            raise PromptForgeError(
                f"The head of {self.backbone.name} does not call its output matrix as a layer, so "
                "label vectors cannot take the matrix's place."
            )
        return logits

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
