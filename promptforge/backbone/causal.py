"""Causal language models: GPT-2, Llama, Qwen, OPT, SmolLM2, ...

The mask comes last and the word is predicted from what stands before it. What all prompts of
a run share at their beginning is read once, and its keys and values are used for every batch.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from promptforge.backbone.base import Backbone
from promptforge.backbone.batch import Batch
from promptforge.backbone.probe import most_tokens, probe_frame
from promptforge.encode import Encoded, Frame, SoftSlot

#: How many full batches of keys and values are held at once, a copy of the prompts' for each word.
_COPIES = 16
#: Shorter shared beginnings cost more to copy than to read again.
_LEAST_PREFIX = 8


def with_cache(module: nn.Module, cache: Cache) -> dict[str, Any]:
    """The arguments with which a model reads on from a cache, and adds to it.

    `cache` since transformers 5.24, `past_key_values` before, and in code of a model's own.
    """
    new = "cache" in inspect.signature(type(module).forward).parameters
    return {"cache" if new else "past_key_values": cache, "use_cache": True}


class CausalBackbone(Backbone):
    """The mask stands last; a word's tokens are predicted from left to right."""

    family: ClassVar[str] = "causal"
    default_scorer: ClassVar[str] = "autoregressive"

    _prefix: Any = None
    _prefix_length: int = 0

    def _frame(self) -> Frame:
        prefix, _, _ = probe_frame(self.tokenizer)
        return Frame(
            prefix=prefix,
            suffix=(),
            separator=(),
            slot=lambda _, __: [],
            reads_right=False,
            segments=False,
            max_length=most_tokens(self.model, self.tokenizer),
            vocabulary=self.vocabulary,
        )

    def finish(self, encoded: Encoded) -> Encoded:
        if not encoded.ids:
            # Nothing stands before the mask: the model still needs a token to start from.
            start = next(
                (
                    t
                    for t in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
                    if t is not None
                ),
                0,
            )
            slots = tuple(replace(s, start=1) for s in encoded.slots)
            encoded = replace(encoded, ids=(start,), types=(0,), slots=slots)
        # The mask has no token of its own: the last one before it is read in its place.
        always = encoded.always and (*encoded.always[:-1], True)
        return replace(encoded, reads=(len(encoded.ids) - 1,), always=always)

    def summary(self, encoded: Encoded) -> Encoded:
        return self.finish(encoded)

    def place(self, encoded: Encoded, slot: int, tokens: Sequence[int | None]) -> Encoded:
        start = encoded.slots[slot].start
        given = [t for t in tokens[:-1] if t is not None]
        ids = encoded.ids[:start] + tuple(given)
        reads = tuple(range(start - 1, start + len(given)))
        always = encoded.always and encoded.always[:start] + (True,) * len(given)
        return replace(encoded, ids=ids, types=(0,) * len(ids), reads=reads, always=always)

    def collate(self, encoded: Sequence[Encoded], indices: list[int]) -> Batch:
        ids = [e.ids for e in encoded]
        inputs = {
            "input_ids": self.padded(ids, self._pad),
            "attention_mask": self.attention_mask(ids),
        }
        done = self._prefix_length
        length = inputs["input_ids"].shape[1]
        inputs["position_ids"] = torch.arange(done, done + length, device=self.device).expand(
            len(ids), -1
        )
        if done:
            ones = torch.ones(len(ids), done, dtype=torch.long, device=self.device)
            inputs["attention_mask"] = torch.cat([ones, inputs["attention_mask"]], 1)
        return Batch.of(encoded, indices, inputs)

    @property
    def _pad(self) -> int:
        pad = self.tokenizer.pad_token_id
        return 0 if pad is None else int(pad)

    def _hidden(self, batch: Batch) -> Tensor:
        past: dict[str, Any] = {"use_cache": False}
        if self._prefix is not None:
            cache = copy.deepcopy(self._prefix)
            cache.batch_repeat_interleave(len(batch.indices))
            past = with_cache(self.body, cache)
        last: Tensor = self.body(**batch.inputs, **past).last_hidden_state
        return last[batch.rows, batch.columns]

    def _cache(self) -> Any:
        """An empty cache; None where a layer (windowed, recurrent) keeps less than everything.

        Such a layer counts padding as what was read, so a batch cannot go on from its cache. Patterns
        that hash, sample or project are exact on whole inputs alone.
        """
        if self.placed is not None:
            return None
        cache = DynamicCache(config=self.model.config)
        return cache if all(type(layer) is DynamicLayer for layer in cache.layers) else None

    @contextmanager
    def _shared_prefix(self, encoded: list[Encoded]) -> Iterator[list[Encoded]]:
        shared = _common_prefix([e.ids[: e.reads[0]] for e in encoded])
        # Equal ids are not the same where other soft tokens, or another task's parts, stand there.
        same = len({(e.soft, e.task) for e in encoded}) == 1
        cache = self._cache()
        if len(encoded) < 2 or not same or shared < _LEAST_PREFIX or cache is None:
            yield encoded
            return
        first = encoded[0]
        opening = replace(
            first, ids=first.ids[:shared], types=first.types[:shared], reads=(),
            soft=tuple(
                replace(s, length=min(s.length, shared - s.start))
                for s in first.soft if s.start < shared
            ),
        )  # fmt: skip
        ids = torch.tensor([opening.ids], device=self.device)
        self.current = Batch.of([opening], [0], {"input_ids": ids})
        self.body(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **with_cache(self.body, cache),
        )
        self._prefix, self._prefix_length = cache, shared
        try:
            yield [e.after(shared) for e in encoded]
        finally:
            self._prefix, self._prefix_length = None, 0

    @torch.inference_mode()
    def read_on(self, encoded: Encoded, kept: Any = None) -> tuple[Tensor, Any]:
        """As the base says; a prompt that begins like the last is read from where they differ.

        A pass may be broken off by an exception: what is kept then ends where the prompts differed.
        """
        cache = self._cache()
        if cache is None:
            return super().read_on(encoded)
        kept = kept or _Kept(cache)
        shared = _common_prefix([encoded.ids[: encoded.reads[0]], kept.ids])
        if encoded.soft != kept.soft or encoded.task != kept.task:
            starts = [s.start for s in (*encoded.soft, *kept.soft)]
            shared = min([shared, *starts]) if encoded.task == kept.task else 0
        if shared:
            kept.end(shared)
        else:
            kept = _Kept(cache)
        kept.ids, kept.soft, kept.task = encoded.ids[:shared], encoded.soft, encoded.task
        self._prefix_length = shared
        try:
            (batch,) = self.batches([encoded.after(shared)])
        finally:
            self._prefix_length = 0
        self.current = batch
        last = self.body(**batch.inputs, **with_cache(self.body, kept.cache)).last_hidden_state
        kept.ids = encoded.ids
        return last[batch.rows, batch.columns].view(1, len(encoded.reads), -1), kept

    @torch.inference_mode()
    def continuations(
        self, encoded: Sequence[Encoded], slot: int, words: Sequence[Sequence[int]]
    ) -> Tensor:
        """Exact log-probabilities of token sequences after each prompt, [prompts, words].

        The prompt is read once; each word's later tokens continue from its keys and values.
        """
        if self._cache() is None:
            return super().continuations(encoded, slot, words)
        out = torch.zeros(len(encoded), len(words), device=self.device)
        first = torch.tensor([w[0] for w in words], device=self.device)
        long = [i for i, w in enumerate(words) if len(w) > 1]
        for batch in self.batches([replace(e, reads=(e.slots[slot].start - 1,)) for e in encoded]):
            cache, self.current = self._cache(), batch
            last = self.body(**batch.inputs, **with_cache(self.body, cache)).last_hidden_state
            scores = self.log_probs(last[batch.rows, batch.columns], first)
            # Every word gets the prompts' keys and values: no more at once than the memory takes.
            some = max(1, _COPIES * self.batch_tokens // batch.inputs["input_ids"].numel())
            for part in (long[i : i + some] for i in range(0, len(long), some)):
                scores[:, part] += self._continue(batch, cache, [words[i] for i in part])
            out[batch.indices] = scores
        return out

    def _continue(self, batch: Batch, cache: Any, words: list[Sequence[int]]) -> Tensor:
        """Log-probability of each word's tokens after its first, [rows, words]."""
        n, m = len(batch.indices), len(words)
        cache = copy.copy(cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        cache.batch_repeat_interleave(m)
        tail = self.padded([w[:-1] for w in words], self._pad).repeat(n, 1)
        lengths = batch.inputs["attention_mask"].sum(1).repeat_interleave(m)
        mask = torch.cat(
            [batch.inputs["attention_mask"].repeat_interleave(m, 0), torch.ones_like(tail)], 1
        )
        positions = lengths[:, None] + torch.arange(tail.shape[1], device=self.device)
        self.current = replace(batch, soft=[])
        hidden = self.body(
            input_ids=tail,
            attention_mask=mask,
            position_ids=positions,
            **with_cache(self.body, cache),
        ).last_hidden_state
        out = torch.zeros(n * m, device=self.device)
        for j in range(tail.shape[1]):
            alive = [i for i, w in enumerate(words) if len(w) > j + 1]
            target = torch.tensor([words[i][j + 1] for i in alive], device=self.device).repeat(n)
            rows = (
                torch.arange(n, device=self.device)[:, None] * m
                + torch.tensor(alive, device=self.device)
            ).view(-1)
            scores = self.log_probs(hidden[rows, j])
            out[rows] += scores.gather(1, target[:, None])[:, 0]
        return out.view(n, m)


@dataclass
class _Kept:
    """Keys and values of a prompt, and which it was."""

    cache: Any
    ids: tuple[int, ...] = ()
    soft: tuple[SoftSlot, ...] = ()
    task: int = 0

    def end(self, length: int) -> None:
        """Forget what comes after the first `length` tokens, layers by their own number of them."""
        for layer in self.cache.layers:
            if layer.is_initialized:
                layer.keys = layer.keys[..., :length, :]
                layer.values = layer.values[..., :length, :]


def _common_prefix(rows: list[tuple[int, ...]]) -> int:
    low, high = min(rows), max(rows)
    n = 0
    for a, b in zip(low, high, strict=False):
        if a != b:
            break
        n += 1
    return n
