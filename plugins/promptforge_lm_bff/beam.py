"""Beam search over one sequence that many examples share."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Tokens = tuple[int, ...]
#: Sequences of one length, B of them -> what each next token adds to their scores, [B, V], and
#: what it adds to end there, [B]; minus infinity where that is not allowed.
Step = Callable[[list[Tokens]], tuple[Tensor, Tensor]]


def joint_beam(step: Step, width: int) -> list[tuple[Tokens, float]]:
    """The best ended sequences with their scores, best first, at most `width`.

    After each token the `width` best unended sequences go on; those that end leave the beam and
    take no place in it. Ties go to the smaller token ids.
    """
    alive: list[tuple[Tokens, float]] = [((), 0.0)]
    ended: list[tuple[Tokens, float]] = []
    while alive:
        grow, close = step([tokens for tokens, _ in alive])
        for (tokens, score), end in zip(alive, close.tolist(), strict=True):
            if end > -math.inf:
                ended.append((tokens, score + end))
        scores = torch.tensor([s for _, s in alive], dtype=grow.dtype, device=grow.device)
        total = (scores[:, None] + grow).flatten()
        best = total.topk(min(width, len(total)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        alive = sorted(
            (
                ((*alive[i // grow.shape[1]][0], i % grow.shape[1]), score)
                for i, score in pairs
                if score > -math.inf
            ),
            key=_best_first,
        )
    return sorted(ended, key=_best_first)[:width]


def _best_first(sequence: tuple[Tokens, float]) -> tuple[float, Tokens]:
    return -sequence[1], sequence[0]
