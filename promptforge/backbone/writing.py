"""How a model writes a text in a prompt's mask: token by token, and how likely a given text is.

Causal models go on with the prompt. The decoder of an encoder-decoder writes the text alone, from
its start token on; nothing stands for the mask in what the encoder reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig

from promptforge.backbone.base import Backbone
from promptforge.backbone.batch import Batch, SoftTokens
from promptforge.backbone.seq2seq import Seq2SeqBackbone
from promptforge.encode import Encoded
from promptforge.errors import UserError
from promptforge.template import Prompt, TemplateError

#: Places whose logits over the whole vocabulary are held at once where no gradient is kept.
_PLACES = 256


def writer(backbone: Backbone) -> Writer:
    """How `backbone` writes.

    Raises:
        UserError: a masked model, or one whose texts have no end token.
    """
    if isinstance(backbone, Seq2SeqBackbone):
        return Seq2SeqWriter(backbone)
    if backbone.family == "causal":
        return CausalWriter(backbone)
    raise UserError(
        f"{backbone.name} is a masked language model, which does not write from left to right. Generate "
        "with a causal (GPT-2, Llama, smollm2) or an encoder-decoder model (T5, BART)."
    )


class Writer(ABC):
    """What the families do differently, and what they share.

    Attributes:
        end: the token that ends a text.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        end = backbone.tokenizer.eos_token_id
        if end is None:
            raise UserError(
                f"The tokenizer of {backbone.name} has no end token (eos_token): its texts would never end."
            )
        self.end = int(end)
        self.pad = int(backbone.tokenizer.pad_token_id or 0)

    @property
    @abstractmethod
    def most(self) -> int:
        """The most tokens that a text can have, its end counted."""

    def sources(self, prompts: Sequence[Prompt], room: int, origin: str) -> list[Encoded]:
        """Prompts as the model reads them before it writes.

        Args:
            prompts: what a template made; tails after the mask are left out.
            room: tokens that a text may have.
            origin: the template's name, for messages.

        Raises:
            TemplateError: no mask, several, or something after it.
            UserError: the parts that must not be cut are too long.
        """
        for prompt in prompts:
            if not prompt.masks:
                raise TemplateError(
                    f"{origin} has no mask: write {{{{ mask }}}} at the end, where the text belongs."
                )
        cut = [Prompt(prompt.up_to_mask(origin)) for prompt in prompts]
        return [self._source(e) for e in self._encode(cut, room, origin)]

    @abstractmethod
    def _encode(self, prompts: Sequence[Prompt], room: int, origin: str) -> list[Encoded]: ...

    @abstractmethod
    def _source(self, encoded: Encoded) -> Encoded: ...

    @abstractmethod
    def _space(self, source: Encoded) -> bool:
        """Whether a text begins with a space."""

    def tokens(self, sources: Sequence[Encoded], texts: Sequence[str]) -> list[tuple[int, ...]]:
        """The tokens of texts as they follow their prompts, the end token last."""
        spaced = [
            f" {t.strip()}" if self._space(s) else t.strip()
            for s, t in zip(sources, texts, strict=True)
        ]
        return [(*ids, self.end) for ids in self.backbone.text.ids(spaced)]

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens up to the end token, without special tokens and outer spaces."""
        ids = list(tokens)
        if self.end in ids:
            ids = ids[: ids.index(self.end)]
        decoded: str = self.backbone.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return decoded.strip()

    @abstractmethod
    def space(self, source: Encoded) -> int:
        """The most tokens that the model can take after a prompt."""

    @abstractmethod
    def told(self, source: Encoded, tokens: Sequence[int]) -> Encoded:
        """The prompt with a text after it, read where each of its tokens is predicted."""

    def surprise(self, batch: Batch, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Minus log-probability of each token of the batch's texts, in nats, [reads]; keeps gradients.

        The head runs where a token is predicted and nowhere else.

        Args:
            batch: of what `told` made.
            tokens: the same texts, in the batch's order.
        """
        states = self.backbone.hidden(batch)
        wanted = torch.tensor([t for ids in tokens for t in ids], device=states.device)
        size = len(states) if torch.is_grad_enabled() else _PLACES
        return torch.cat(
            [
                F.cross_entropy(self.backbone.logits(part).float(), ids, reduction="none")
                for part, ids in zip(
                    torch.split(states, size), torch.split(wanted, size), strict=True
                )
            ]
        )

    @abstractmethod
    def start(self, sources: Sequence[Encoded]) -> Batch:
        """Prompts as `generate` of transformers takes them."""

    @torch.no_grad()
    def write(self, sources: Sequence[Encoded], config: Mapping[str, Any]) -> list[list[int]]:
        """The tokens that the model writes after prompts in one batch, at most up to the end token.

        Args:
            sources: what `sources` made.
            config: of `transformers.GenerationConfig`; what it leaves open has the library's
                defaults, whatever the model's own generation config says.
        """
        placed, lengths = self.backbone.placed, [len(e.ids) for e in sources]
        if placed is not None and placed.pattern.ignores_padding and len(set(lengths)) > 1:
            apart = {
                n: iter(self.write([e for e in sources if len(e.ids) == n], config))
                for n in set(lengths)
            }
            return [next(apart[n]) for n in lengths]
        model, batch = self.backbone.model, self.start(sources)
        given = batch.inputs.get("decoder_input_ids", batch.inputs["input_ids"])
        asked = GenerationConfig(
            **config, eos_token_id=self.end, pad_token_id=self.pad,
            decoder_start_token_id=int(given[0, 0]) if "decoder_input_ids" in batch.inputs else None,
        )  # fmt: skip
        own, model.generation_config = model.generation_config, GenerationConfig()
        try:
            with self._reading(batch, bool(config.get("use_cache", True))):
                made = model.generate(**batch.inputs, generation_config=asked)
        finally:
            model.generation_config = own
        rows: list[list[int]] = made[:, given.shape[1] :].tolist()
        return [ids[: ids.index(self.end) + 1] if self.end in ids else ids for ids in rows]

    @contextmanager
    def _reading(self, batch: Batch, cache: bool) -> Iterator[None]:
        """While this lasts the additions know which prompts the model reads, and when it reads them.

        Soft tokens stand in the prompts, so they are put in when those are read: in the first pass,
        and without a cache in every pass of a causal model. With beams a prompt has several rows.
        """
        backbone, passes = self.backbone, 0

        def meet(_: Any, args: Any) -> None:
            nonlocal passes
            passes += 1
            if passes == 1 or not (cache or "decoder_input_ids" in batch.inputs):
                ids = args[0]
                beams = len(ids) // len(batch.indices)
                tasks = None if batch.tasks is None else batch.tasks.repeat_interleave(beams)
                backbone.current = replace(
                    batch, inputs={"input_ids": ids}, soft=_repeated(batch.soft, beams), tasks=tasks
                )
            elif passes == 2 and backbone.current is not None:
                backbone.current = replace(backbone.current, soft=[])

        backbone.current = batch
        handle = backbone.embedding.register_forward_pre_hook(meet)
        try:
            yield
        finally:
            handle.remove()


def _repeated(soft: Sequence[SoftTokens], beams: int) -> list[SoftTokens]:
    return [s._replace(row=s.row * beams + beam) for s in soft for beam in range(beams)]


class CausalWriter(Writer):
    """The text follows the prompt."""

    @property
    def most(self) -> int:
        return self.backbone.encoder.max_length - 1

    def _encode(self, prompts: Sequence[Prompt], room: int, origin: str) -> list[Encoded]:
        return self.backbone.encode(prompts, reserve=room, origin=origin)

    def _source(self, encoded: Encoded) -> Encoded:
        return encoded

    def _space(self, source: Encoded) -> bool:
        return source.slots[0].space_before

    def space(self, source: Encoded) -> int:
        return self.backbone.encoder.max_length - len(source.ids)

    def told(self, source: Encoded, tokens: Sequence[int]) -> Encoded:
        return self.backbone.place(source, 0, tokens)

    def start(self, sources: Sequence[Encoded]) -> Batch:
        # Padded on the left: what is written goes on from the last column of every row.
        width = max(len(e.ids) for e in sources)
        rows = []
        for e in sources:
            shift = width - len(e.ids)
            soft = tuple(replace(s, start=s.start + shift) for s in e.soft)
            always = e.always and (False,) * shift + e.always
            ids = (self.pad,) * shift + e.ids
            rows.append(replace(e, ids=ids, soft=soft, reads=(), always=always))
        device = self.backbone.device
        tokens = torch.tensor([e.ids for e in rows], device=device)
        lengths = torch.tensor([len(e.ids) for e in sources], device=device)
        mask = torch.arange(width, device=device)[None] >= width - lengths[:, None]
        inputs = {"input_ids": tokens, "attention_mask": mask.long()}
        return Batch.of(rows, list(range(len(rows))), inputs)


class Seq2SeqWriter(Writer):
    """The decoder writes the text, framed as the model's tokenizer frames one."""

    @property
    def most(self) -> int:
        return self.backbone.encoder.max_length - len(self._head)

    @property
    def _head(self) -> tuple[int, ...]:
        backbone = self.backbone
        assert isinstance(backbone, Seq2SeqBackbone)
        return (backbone.start, *backbone.frame.prefix)

    def _encode(self, prompts: Sequence[Prompt], room: int, origin: str) -> list[Encoded]:
        return self.backbone.encode(prompts, origin=origin)

    def _source(self, encoded: Encoded) -> Encoded:
        return replace(encoded.spliced(0, ()), decoder_ids=self._head, reads=(), decoder_soft=())

    def _space(self, source: Encoded) -> bool:
        return self.backbone.text.prefix_space

    def space(self, source: Encoded) -> int:
        return self.most

    def told(self, source: Encoded, tokens: Sequence[int]) -> Encoded:
        n = len(source.decoder_ids)
        reads = tuple(range(n - 1, n - 1 + len(tokens)))
        return replace(source, decoder_ids=(*source.decoder_ids, *tokens[:-1]), reads=reads)

    def start(self, sources: Sequence[Encoded]) -> Batch:
        return self.backbone.collate(sources, list(range(len(sources))))
