"""What added parameters can start from: words of the vocabulary, a text, or the label words."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from promptforge.backbone.base import Backbone
from promptforge.errors import UserError
from promptforge.verbalizer import Words

Item = TypeVar("Item")


def embedded(backbone: Backbone, ids: Sequence[int]) -> Tensor:
    """The model's own vectors for tokens, [n, d], scaled as the model scales them; see `full`."""
    with torch.no_grad():
        found: Tensor = backbone.embedding(torch.tensor([list(ids)], device=backbone.device))[0]
    return full(found).clone()


def full(value: Tensor) -> Tensor:
    """A tensor to train in at least single precision: in half precision small steps round to none."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def start_ids(
    backbone: Backbone, n: int, init: str, text: str, words: Words, seed: int, who: str
) -> list[int]:
    """`n` token ids to start from: random words, a text, repeated to fill, or the label words.

    After the label words come random ones, as in Lester et al. 2021 (section 3.2): copies of a
    few vectors learn nearly the same. Labels take turns, so that each has a word among the `n` where
    these are fewer than all words.

    Raises:
        UserError: there is no text, or there are no label words, to start from; a text, and `init`
            is another.
    """
    need_text(init, text, who)
    if init == "vocabulary":
        return _random_ids(backbone, n, seed)
    if init == "labels":
        source = in_turns([list(ws) for ws in words.values()])
        if not source:
            raise UserError(f"{who}: init=labels needs label words, and there are none here.")
        parts = backbone.text.ids([f" {w}" for w in source])
        firsts = parts[: sum(1 for ws in words.values() if ws)]
        if sum(map(len, firsts)) > n:  # not even one whole word of each label
            parts = [in_turns(firsts)]
        found = [token for part in parts for token in part][:n]
        return found + _random_ids(backbone, n - len(found), seed)
    (found,) = backbone.text.ids([text])
    if not found:
        raise UserError(
            f"{who}: {backbone.name} has no token for text={text!r}: give one with words."
        )
    return [found[i % len(found)] for i in range(n)]


def need_text(init: str, text: str, who: str) -> None:
    """A text with init=text, and with nothing else.

    Raises:
        UserError: there is none, or it would not be used.
    """
    if init == "text" and not text.strip():
        raise UserError(f"{who}: init=text needs the option text.")
    if init != "text" and text:
        raise UserError(
            f"{who}: the option text is what init=text starts from, and init is {init}: add "
            "-o method.init=text, or leave text out."
        )


def _random_ids(backbone: Backbone, n: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    ids: list[int] = []
    while len(ids) < n:
        token = draw.randrange(backbone.frame.vocabulary)
        if token not in backbone.text.special_ids:
            ids.append(token)
    return ids


def in_turns(groups: Sequence[Sequence[Item]]) -> list[Item]:
    """The first of each group, then the second of each, and so on."""
    longest = max(map(len, groups), default=0)
    return [group[i] for i in range(longest) for group in groups if i < len(group)]
