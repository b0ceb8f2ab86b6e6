"""How each family writes spans around the label word, for all examples together.

The score of spans is the sum, over the examples, of the log-probability of each token given
the example's input and the tokens before it:

- T5 writes `X <sentinel> Y <sentinel>` after the first sentinel; the sentinels count.
- A causal model writes X and then the example's label word, which counts and ends it.
- A masked model fills its masks from left to right; those to come are still masks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from promptforge import Backbone
from promptforge.encode import Encoded
from promptforge_lm_bff.beam import Tokens
from promptforge_lm_bff.spelling import Spelling


class Filler(ABC):
    """One joint step of a beam: see `promptforge_lm_bff.beam.Step`.

    Args:
        spelling: the generator and the tokens it may write.
        encoded: the generator's input for each example; every span is a slot.
        words: token ids of each example's label word.
        lengths: the most tokens of each span (a masked model: exactly so many).
        glued: whether the first span stands after something it must not glue to.
        advance: called after each example of each step.
    """

    def __init__(
        self,
        spelling: Spelling,
        encoded: Sequence[Encoded],
        words: Sequence[Tokens],
        lengths: Sequence[int],
        *,
        glued: bool,
        advance: Callable[[], None],
    ) -> None:
        self.spelling = spelling
        self.backbone: Backbone = spelling.backbone
        self.encoded = encoded
        self.words = words
        self.lengths = lengths
        self.first = [spelling.first] * len(lengths)
        if not glued:
            self.first[0] = spelling.inside
        self.advance = advance

    @staticmethod
    @abstractmethod
    def steps(lengths: Sequence[int]) -> int:
        """How many times each example is read for spans of these lengths."""

    def at_once(self, beams: int) -> int:
        """How many examples are read together, each with so many beams."""
        return 1

    @abstractmethod
    def read(self, examples: Sequence[int], beams: list[Tokens]) -> tuple[Tensor, Tensor]:
        """The sums over `at_once` examples: log-probabilities of the next token [B, V] and of an end [B]."""

    @abstractmethod
    def rules(self, beam: Tokens) -> tuple[Tensor | None, bool]:
        """Tokens that may follow, [V] bool (None: no token), and whether it may end here."""

    @abstractmethod
    def spans(self, beam: Tokens) -> list[Tokens]:
        """The beam as the tokens of each span."""

    def __call__(self, beams: list[Tokens]) -> tuple[Tensor, Tensor]:
        """What the next token and an end add to each beam: [B, V] and [B], float64."""
        grow = torch.zeros(
            len(beams), self.backbone.vocabulary, dtype=torch.float64, device=self.backbone.device
        )
        close = grow.new_zeros(len(beams))
        every, some = range(len(self.encoded)), self.at_once(len(beams))
        for start in every[::some]:
            examples = every[start : start + some]
            next_token, end = self.read(examples, beams)
            grow += next_token
            close += end
            for _ in examples:
                self.advance()
        for i, beam in enumerate(beams):
            allowed, may_end = self.rules(beam)
            grow[i, slice(None) if allowed is None else ~allowed] = -math.inf
            close[i] = close[i] if may_end else -math.inf
        return grow, close


class SentinelFiller(Filler):
    """T5: spans and sentinels by turns. Each example's encoder runs once."""

    @cached_property
    def _sentinels(self) -> list[int]:
        """The one that opens each span, and the one that closes the last."""
        return [self.backbone.frame.slot(i, 1)[0] for i in range(len(self.lengths) + 1)]

    @cached_property
    def _seen(self) -> list[Tensor]:
        """What the encoder makes of each example, [1, tokens, d]."""
        encoder = self.backbone.model.get_encoder()
        inputs = [torch.tensor([e.ids], device=self.backbone.device) for e in self.encoded]
        return [
            encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            for ids in inputs
        ]

    @staticmethod
    def steps(lengths: Sequence[int]) -> int:
        """Every span to its full length, and its sentinel."""
        return sum(lengths) + len(lengths)

    def read(self, examples: Sequence[int], beams: list[Tokens]) -> tuple[Tensor, Tensor]:
        """The decoder after the first sentinel; an end is the last one."""
        (example,) = examples
        head = self.encoded[0].decoder_ids[:2]  # its start and the first sentinel
        ids = torch.tensor([head + b for b in beams], device=self.backbone.device)
        found = []
        for part in torch.split(ids, max(1, self.backbone.batch_tokens // ids.shape[1])):
            hidden = self.backbone.body(
                input_ids=part,
                attention_mask=torch.ones_like(part),
                encoder_hidden_states=self._seen[example].expand(len(part), -1, -1),
                use_cache=False,
            ).last_hidden_state
            found.append(self.backbone.log_probs(hidden[:, -1]))
        log_probs = torch.cat(found)
        return log_probs, log_probs[:, self._sentinels[-1]]

    def rules(self, beam: Tokens) -> tuple[Tensor | None, bool]:
        """A span's tokens up to its length, then the next sentinel; all empty is no template."""
        spans = self.spans(beam)
        now = len(spans) - 1
        if len(spans[-1]) < self.lengths[now]:
            allowed = (self.spelling.inside if spans[-1] else self.first[now]).clone()
        else:
            allowed = torch.zeros_like(self.spelling.inside)
        last = now == len(self.lengths) - 1
        if not last:
            allowed[self._sentinels[now + 1]] = True
        return allowed, last and any(spans)

    def spans(self, beam: Tokens) -> list[Tokens]:
        """What stands between the sentinels."""
        out: list[Tokens] = [()]
        for token in beam:
            if token in self._sentinels:
                out.append(())
            else:
                out[-1] += (token,)
        return out


class CausalFiller(Filler):
    """A causal model: one span, ended by the label word."""

    @staticmethod
    def steps(lengths: Sequence[int]) -> int:
        """The span to its full length, and the label word."""
        return lengths[0] + 1

    def read(self, examples: Sequence[int], beams: list[Tokens]) -> tuple[Tensor, Tensor]:
        """One pass gives the next token and, after it, what is left of the label word."""
        (example,) = examples
        word = self.words[example]
        placed = []
        for beam in beams:
            # Reads begin before the span; those of the word are the last.
            e = self.backbone.place(self.encoded[example], 0, beam + word)
            placed.append(replace(e, reads=e.reads[len(beam) :]))
        states = self.backbone.states(placed)
        log_probs = self.backbone.log_probs(states[:, 0])
        end = log_probs[:, word[0]].double()
        for j, token in enumerate(word[1:], start=1):
            end += self.backbone.log_probs(states[:, j], torch.tensor([token]))[:, 0]
        return log_probs, end

    def rules(self, beam: Tokens) -> tuple[Tensor | None, bool]:
        """Any tokens up to the length; an end after the first."""
        if len(beam) == self.lengths[0]:
            return None, True
        return (self.spelling.inside if beam else self.first[0]), bool(beam)

    def spans(self, beam: Tokens) -> list[Tokens]:
        """There is one."""
        return [beam]


class MaskFiller(Filler):
    """A masked model: as many masks as tokens, filled from left to right."""

    @staticmethod
    def steps(lengths: Sequence[int]) -> int:
        """One for each mask."""
        return sum(lengths)

    def __call__(self, beams: list[Tokens]) -> tuple[Tensor, Tensor]:
        """When no mask is left there is nothing to read: the beams end as they are."""
        if len(beams[0]) < sum(self.lengths):
            return super().__call__(beams)
        end = torch.zeros(len(beams), dtype=torch.float64, device=self.backbone.device)
        return end[:, None].expand(-1, self.backbone.vocabulary) - math.inf, end

    def at_once(self, beams: int) -> int:
        """A batch of the backbone's."""
        longest = max(len(e.ids) for e in self.encoded)
        return max(1, self.backbone.batch_tokens // (longest * beams))

    def read(self, examples: Sequence[int], beams: list[Tokens]) -> tuple[Tensor, Tensor]:
        """The first mask that is left."""
        filled = []
        for e in (self.encoded[i] for i in examples):
            for beam in beams:
                ids = list(e.ids)
                for place, token in zip(e.reads, beam, strict=False):
                    ids[place] = token
                filled.append(replace(e, ids=tuple(ids), reads=(e.reads[len(beam)],)))
        log_probs = self.backbone.log_probs(self.backbone.states(filled)[:, 0])
        of_each = log_probs.view(len(examples), len(beams), -1).sum(0, dtype=torch.float64)
        return of_each, of_each.new_zeros(len(beams))

    def rules(self, beam: Tokens) -> tuple[Tensor | None, bool]:
        """No end before the last mask."""
        starts = [sum(self.lengths[:i]) for i in range(len(self.lengths))]
        begins = len(beam) in starts
        return (self.first[starts.index(len(beam))] if begins else self.spelling.inside), False

    def spans(self, beam: Tokens) -> list[Tokens]:
        """By their lengths."""
        ends = [sum(self.lengths[: i + 1]) for i in range(len(self.lengths))]
        return [beam[e - n : e] for e, n in zip(ends, self.lengths, strict=True)]


FILLERS: dict[str, type[Filler]] = {
    "seq2seq": SentinelFiller,
    "causal": CausalFiller,
    "masked": MaskFiller,
}
