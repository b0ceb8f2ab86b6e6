"""Encoder-decoder models: T5 fills sentinels, BART denoises, others answer from the start.

Three ways of asking, chosen by what the tokenizer has: `sentinel` (T5: the mask is
`<extra_id_0>` and the decoder says what it stands for), `mask` (BART: the decoder writes the
text again up to the mask), `prefix` (T0, FLAN-T5: the mask is left out and the decoder's
first words are the answer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from promptforge.backbone.base import Backbone
from promptforge.backbone.batch import Batch
from promptforge.backbone.probe import most_tokens, probe_frame
from promptforge.encode import Encoded, Frame
from promptforge.errors import UserError


class Seq2SeqBackbone(Backbone):
    """The decoder predicts the mask's word from left to right.

    Args:
        ask: "sentinel", "mask" or "prefix"; by default the first that the tokenizer has.
    """

    family: ClassVar[str] = "seq2seq"
    default_scorer: ClassVar[str] = "autoregressive"

    def __init__(
        self, model: Any, tokenizer: Any, *, ask: str | None = None, **options: Any
    ) -> None:
        self._sentinels = _sentinels(tokenizer)
        ways = (
            ["sentinel"] * bool(self._sentinels)
            + ["mask"] * (tokenizer.mask_token_id is not None)
            + ["prefix"]
        )
        if ask is not None and ask not in ways:
            raise UserError(f"ask={ask!r}: this model's tokenizer allows {', '.join(ways)}.")
        self.ask = ask or ways[0]
        super().__init__(model, tokenizer, **options)

    def _frame(self) -> Frame:
        prefix, separator, suffix = probe_frame(self.tokenizer)
        # A pair that is merely joined (T5's end token between two texts) reads as one text.
        return Frame(
            prefix=prefix,
            suffix=suffix,
            separator=separator,
            slot=self._slot,
            reads_right=True,
            segments=False,
            max_length=most_tokens(self.model, self.tokenizer),
            vocabulary=self.vocabulary,
        )

    def _slot(self, index: int, length: int) -> list[int]:
        if self.ask == "prefix":
            return []
        if self.ask == "mask":
            return [self.tokenizer.mask_token_id]
        if index >= len(self._sentinels):
            raise UserError(
                f"The template has more masks than the model has sentinels ({len(self._sentinels)})."
            )
        return [self._sentinels[index]]

    @property
    def start(self) -> int:
        """The token that the decoder reads first."""
        config = self.model.config
        for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
            value = getattr(config, name, None)
            if value is not None:
                return int(value)
        return 0

    def finish(self, encoded: Encoded) -> Encoded:
        slots = encoded.slots
        if self.ask == "sentinel":
            decoder = (self.start, *self._sentinels[: len(slots)])
            return replace(encoded, decoder_ids=decoder, reads=tuple(range(1, len(decoder))))
        if self.ask == "prefix":
            if len(slots) > 1:
                raise UserError(
                    f"The template has {len(slots)} masks; with ask='prefix' the model reads one."
                )
            return replace(encoded, decoder_ids=(self.start,), reads=(0,))
        written = self._written(encoded, slots[-1].start)
        return replace(written, reads=tuple(s.start for s in slots))

    def _written(self, encoded: Encoded, end: int) -> Encoded:
        """With a decoder that has written the text again up to `end`, soft tokens included.

        It is shifted right: the token at position i is predicted at position i.
        """
        soft = tuple(replace(s, start=s.start + 1) for s in encoded.soft if s.start < end)
        return replace(encoded, decoder_ids=(self.start, *encoded.ids[:end]), decoder_soft=soft)

    def summary(self, encoded: Encoded) -> Encoded:
        return replace(encoded, decoder_ids=(self.start,), reads=(0,), decoder_soft=())

    def place(self, encoded: Encoded, slot: int, tokens: Sequence[int | None]) -> Encoded:
        given = tuple(t for t in tokens[:-1] if t is not None)
        if self.ask == "sentinel":
            head: tuple[int, ...] = (self.start, *self._sentinels[: slot + 1])
        elif self.ask == "prefix":
            head = (self.start,)
        else:
            encoded = self._written(encoded, encoded.slots[slot].start)
            head = encoded.decoder_ids
        reads = tuple(range(len(head) - 1, len(head) + len(given)))
        return replace(encoded, decoder_ids=head + given, reads=reads)

    def collate(self, encoded: Sequence[Encoded], indices: list[int]) -> Batch:
        ids = [e.ids for e in encoded]
        pad = self.tokenizer.pad_token_id or 0
        inputs = {
            "input_ids": self.padded(ids, pad),
            "attention_mask": self.attention_mask(ids),
            # The decoder is causal: what is padded on the right is never seen.
            "decoder_input_ids": self.padded([e.decoder_ids for e in encoded], pad),
        }
        return Batch.of(encoded, indices, inputs)

    def _hidden(self, batch: Batch) -> Tensor:
        mask, decoder_ids = batch.inputs["attention_mask"], batch.inputs["decoder_input_ids"]
        seen = batch.extra.get("seen")  # by the encoder, where other words were read before
        if seen is None:
            read = self.model.get_encoder()(
                input_ids=batch.inputs["input_ids"], attention_mask=mask
            )
            seen = batch.extra["seen"] = read.last_hidden_state
        last: Tensor = self.body(
            input_ids=decoder_ids,
            attention_mask=torch.ones_like(decoder_ids),
            encoder_hidden_states=seen,
            encoder_attention_mask=mask,
            use_cache=False,
        ).last_hidden_state
        return last[batch.rows, batch.columns]

    @property
    def stacks(self) -> list[nn.Module]:
        return [self.model.get_encoder(), self.body]

    @property
    def decoder_embedding(self) -> nn.Module | None:
        # What a sentinel stands for, or an answer, has no soft tokens.
        return self.body.get_submodule("embed_tokens") if self.ask == "mask" else None

    @property
    def embedding(self) -> nn.Module:
        encoder = self.model.get_encoder()
        module: nn.Module = getattr(encoder, "embed_tokens", None) or super().embedding
        return module

    def head_inputs(self, rows: Tensor) -> dict[str, Any]:
        ids = torch.zeros(rows.shape[:2], dtype=torch.long, device=rows.device)
        return {
            "encoder_outputs": BaseModelOutput(last_hidden_state=rows),
            "decoder_input_ids": ids,
        }


def _sentinels(tokenizer: Any) -> tuple[int, ...]:
    found = []
    for i in range(100):
        token = tokenizer.convert_tokens_to_ids(f"<extra_id_{i}>")
        if token is None or token == tokenizer.unk_token_id:
            break
        found.append(int(token))
    return tuple(found)
