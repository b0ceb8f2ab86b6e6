"""Plain references: one row at a time, no padding, no cache, logits of the whole vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from promptforge.candidates import whole_words
from promptforge.encode import Encoded

torch.set_num_threads(1)  # tiny models only lose by more


@torch.inference_mode()
def full_logits(backbone: Any, encoded: Encoded, decoder: Sequence[int] | None = None) -> Tensor:
    """`model(...)` on one prompt: logits at every position (of the decoder where there is one)."""
    inputs = {"input_ids": torch.tensor([encoded.ids])}
    if backbone.family == "seq2seq":
        inputs["decoder_input_ids"] = torch.tensor([decoder or encoded.decoder_ids])
    elif "token_type_ids" in backbone.tokenizer.model_input_names:
        inputs["token_type_ids"] = torch.tensor([encoded.types])
    logits: Tensor = backbone.model(**inputs).logits[0].float()
    return logits


def with_ids(encoded: Encoded, slot: int, ids: Sequence[int]) -> Encoded:
    """The prompt with `ids` where its slot was, and nothing else that is known about it."""
    s = encoded.slots[slot]
    ids = (*encoded.ids[: s.start], *ids, *encoded.ids[s.start + s.length :])
    kind = encoded.types[min(s.start, len(encoded.types) - 1)]
    types = (
        *encoded.types[: s.start],
        *[kind] * (len(ids) - len(encoded.ids) + s.length),
        *encoded.types[s.start + s.length :],
    )
    return Encoded(ids, types, encoded.slots)


def masked_tokens(
    backbone: Any, encoded: Encoded, word: Sequence[int], filled: set[int]
) -> list[float]:
    """log p of each token of `word` at its mask, where the tokens in `filled` are written in."""
    mask = backbone.tokenizer.mask_token_id
    ids = [t if i in filled else mask for i, t in enumerate(word)]
    log_p = full_logits(backbone, with_ids(encoded, 0, ids)).log_softmax(-1)
    start = encoded.slots[0].start
    return [float(log_p[start + i, t]) for i, t in enumerate(word)]


def parallel(backbone: Any, encoded: Encoded, word: Sequence[int]) -> float:
    return sum(masked_tokens(backbone, encoded, word, set()))


def confident_first(backbone: Any, encoded: Encoded, word: Sequence[int]) -> float:
    """Schick and Schuetze 2021, "It's not just size", section 3."""
    total, filled = 0.0, set[int]()
    while len(filled) < len(word):
        log_p = masked_tokens(backbone, encoded, word, filled)
        best = max((i for i in range(len(word)) if i not in filled), key=lambda i: log_p[i])
        total += log_p[best]
        filled.add(best)
    return total


def autoregressive(backbone: Any, encoded: Encoded, word: Sequence[int]) -> float:
    """log P of the string, token by token: every token from a forward of its own."""
    total = 0.0
    for i, token in enumerate(word):
        if backbone.family == "causal":
            read = Encoded((*encoded.ids, *word[:i]), (), ())
            logits = full_logits(backbone, read)[-1]
        else:
            logits = full_logits(backbone, encoded, [*encoded.decoder_ids, *word[:i]])[-1]
        total += float(logits.log_softmax(-1)[token])
    return total


def word_score(backbone: Any, encoded: Encoded, word: Sequence[int]) -> float:
    """The family's own way."""
    rule = confident_first if backbone.family == "masked" else autoregressive
    return rule(backbone, encoded, word)


def some_words(backbone: Any, n: int, *, space_before: bool = True) -> list[str]:
    """`n` whole words of one token, spread over the vocabulary."""
    words = whole_words(backbone, space_before=space_before).words
    return [words[i * (len(words) - 1) // n] for i in range(n)]


def long_word(backbone: Any, tokens: int) -> str:
    """A word of exactly this many tokens."""
    for first in some_words(backbone, 40):
        for second in some_words(backbone, 40):
            word = first + second
            if len(backbone.text.word(word, space_before=True)) == tokens:
                return word
    raise AssertionError("no such word")
