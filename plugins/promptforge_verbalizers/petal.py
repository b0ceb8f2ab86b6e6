"""PETAL: label words by one-vs-rest likelihood (Schick, Schmid and Schuetze 2020)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from promptforge import VerbalizerSearch
from promptforge.search import Evidence, FoundWords


class PetalSearch(VerbalizerSearch):
    """PETAL: the words that best tell a label's rows from all others.

    With p the probability of a word at the mask, the score of a word for a label is the
    log-likelihood ratio

        n_neg/n_pos * sum_pos [log p - log(1-p)] - sum_neg [log p - log(1-p)]

    or, with `score=ce`, the cross-entropy `n_neg/n_pos * sum_pos log p + sum_neg log(1-p)`.
    Before that, each label keeps the `candidates` words with the highest sum of log p over its
    own rows. Over several patterns all sums run over the patterns too (section 3).

    Everything needed is sums per label, a matrix [labels, words] each, filled block by block:
    log p of all words first, then log(1-p) of the words that some label keeps.
    """

    name: ClassVar[str] = "petal"

    score: Literal["llr", "ce"] = Field("llr", description="Log-likelihood ratio or cross-entropy.")
    balanced: bool = Field(True, description="Weigh a label's rows by n_neg/n_pos.")

    def search(self, evidence: Evidence) -> FoundWords:
        """The best words per label with their scores."""
        log_p = label_sums(evidence)
        size = self.candidates or len(evidence.words)
        kept = [torch.sort(_top(sums, size)).values for sums in log_p]
        union = torch.unique(torch.cat(kept))
        log_q = label_sums(evidence, union, log1mexp)
        scores = self._scores(log_p[:, union], log_q, torch.bincount(evidence.targets).double())
        found = {}
        for i, label in enumerate(evidence.labels):
            columns = torch.searchsorted(union, kept[i])
            best = columns[_top(scores[i, columns], self.words_per_label)]
            words = [evidence.words[w] for w in union[best].tolist()]
            found[label] = list(zip(words, scores[i, best].tolist(), strict=True))
        return FoundWords(found)

    def _scores(self, log_p: Tensor, log_q: Tensor, rows: Tensor) -> Tensor:
        """Scores of words for labels, [labels, words], from the sums per label."""
        weight = ((rows.sum() - rows) / rows if self.balanced else torch.ones_like(rows))[:, None]
        if self.score == "ce":
            return weight * log_p + (log_q.sum(0) - log_q)
        odds = log_p - log_q
        return weight * odds - (odds.sum(0) - odds)


def label_sums(
    evidence: Evidence,
    words: Tensor | None = None,
    function: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Sums over each label's rows of (a function of) log-probabilities, [labels, words]."""
    labels = len(evidence.labels)
    width = len(evidence.words if words is None else words)
    sums = torch.zeros(labels, width, dtype=torch.float64)
    for targets, block in evidence.blocks(words):
        # One row per label, ones where a row of the block has it: a matrix product sums.
        member = torch.nn.functional.one_hot(targets, labels).T.to(block)
        sums += (member @ (function(block) if function else block)).cpu()
    return sums


def log1mexp(log_p: Tensor) -> Tensor:
    """log(1 - p) from log p, [rows, words]; p is kept below 1 by one float step."""
    eps = torch.finfo(log_p.dtype).eps
    log_q = log_p.exp().clamp_(max=1 - eps).neg_().log1p_()
    # Above one half, which one word of a row can be, the other formula is the exact one.
    top, word = log_p.max(1, keepdim=True)
    if bool((top > -0.6931).any()):
        exact = torch.log(-torch.expm1(top.clamp(max=-eps)))
        log_q.scatter_(1, word, torch.where(top > -0.6931, exact, log_q.gather(1, word)))
    return log_q


def _top(scores: Tensor, k: int) -> Tensor:
    """Indices of the `k` highest scores; ties in vocabulary order."""
    order: Tensor = torch.sort(scores, descending=True, stable=True).indices
    return order[:k]
