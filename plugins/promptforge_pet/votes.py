"""What several models say of the same rows: put together, and drawn from. Plain arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def softmax(scores: Array, temperature: float = 1.0) -> Array:
    """Probabilities of scores along the last axis, softened by a temperature."""
    scores = scores / temperature
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    made: Array = shares / shares.sum(-1, keepdims=True)
    return made


def combined(
    scores: Sequence[Array],
    weights: Sequence[float],
    how: str,
    temperature: float = 1.0,
) -> Array:
    """The models' votes as one distribution over the labels, [rows, labels].

    Args:
        scores: class scores in log space of each model, [rows, labels], each over its own words.
            What is added to all labels of a row changes nothing.
        weights: how much each model counts; all zero: equally.
        how: "scores": the weighted mean of the scores, then a softmax (Schick & Schuetze 2021,
            section 3.3); "probabilities": a softmax per model, then the weighted mean.
        temperature: of the softmax over mean scores.
    """
    shares = np.asarray(weights, dtype=float)
    shares = shares / shares.sum() if shares.sum() > 0 else np.full(len(shares), 1 / len(shares))
    if how == "scores":
        return softmax(np.tensordot(shares, np.stack(scores), 1), temperature)
    mean: Array = np.tensordot(shares, softmax(np.stack(scores)), 1)
    return mean


def drawn(votes: Array, wanted: Sequence[int], rng: np.random.Generator) -> list[list[int]]:
    """Rows for each label, drawn without replacement in proportion to the votes' confidence.

    A row is drawn only for its most likely label. Where a label has too few rows, all labels get
    less, so that the balance of `wanted` stays.

    Args:
        votes: probabilities, [rows, labels].
        wanted: how many rows of each label.

    Returns:
        Row numbers, one list a label.
    """
    best = votes.argmax(1)
    pools = [np.flatnonzero(best == label) for label in range(votes.shape[1])]
    part = min([1.0, *(len(p) / n for p, n in zip(pools, wanted, strict=True) if n)])
    out = []
    for label, (pool, n) in enumerate(zip(pools, wanted, strict=True)):
        # A hair more than nothing, so that 3 * (2 / 3) is 2.
        size = int(part * n + 1e-9)
        if size:
            confidence = votes[pool, label]
            pool = rng.choice(pool, size, replace=False, p=confidence / confidence.sum())
        out.append(pool[:size].tolist())
    return out


def most_likely(votes: Array, n: int) -> list[list[int]]:
    """The `n` rows where each label is most likely, even where another label is more so.

    No row is taken twice, and all labels get equally many where the rows run short.

    Args:
        votes: probabilities, [rows, labels].
        n: rows a label.

    Returns:
        Row numbers, one list a label, most likely first.
    """
    n = min(n, len(votes) // votes.shape[1])
    taken: set[int] = set()
    out = []
    for label in range(votes.shape[1]):
        ranked = np.argsort(-votes[:, label], kind="stable").tolist()
        chosen = [i for i in ranked if i not in taken][:n]
        taken.update(chosen)
        out.append(chosen)
    return out
