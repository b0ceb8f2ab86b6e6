"""PETAL: label words by one-vs-rest likelihood (Schick, Schmid and Schuetze 2020)."""

from __future__ import annotations

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

    Everything needed is sums of log p and log(1-p) per label: two matrices [labels, words],
    filled block by block, so the probabilities are never held.
    """

    name: ClassVar[str] = "petal"

    score: Literal["llr", "ce"] = Field("llr", description="Log-likelihood ratio or cross-entropy.")
    balanced: bool = Field(True, description="Weigh a label's rows by n_neg/n_pos.")

    def search(self, evidence: Evidence) -> FoundWords:
        """The best words per label with their scores."""
        log_p, log_q, rows = label_sums(evidence)
        scores = self._scores(log_p, log_q, rows)
        found = {}
        size = len(evidence.words)
        for i, label in enumerate(evidence.labels):
            kept = _top(log_p[i], self.candidates or size)
            best = kept[_top(scores[i, kept], self.words_per_label)]
            found[label] = [(evidence.words[j], float(scores[i, j])) for j in best.tolist()]
        return FoundWords(found)

    def _scores(self, log_p: Tensor, log_q: Tensor, rows: Tensor) -> Tensor:
        """Scores of all words for all labels, [labels, words], from the sums per label."""
        weight = ((rows.sum() - rows) / rows if self.balanced else torch.ones_like(rows))[:, None]
        if self.score == "ce":
            return weight * log_p + (log_q.sum(0) - log_q)
        odds = log_p - log_q
        return weight * odds - (odds.sum(0) - odds)


def label_sums(evidence: Evidence) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over each label's rows of log p and log(1-p), [labels, words]; rows, [labels]."""
    labels = len(evidence.labels)
    log_p = torch.zeros(labels, len(evidence.words), dtype=torch.float64)
    log_q = torch.zeros_like(log_p)
    for targets, block in evidence.blocks():
        # One row per label, ones where a row of the block has it: a matrix product sums.
        member = torch.nn.functional.one_hot(targets, labels).T.to(block)
        log_p += (member @ block).cpu()
        log_q += (member @ _log1mexp(block)).cpu()
    return log_p, log_q, torch.bincount(evidence.targets, minlength=labels).double()


def _log1mexp(log_p: Tensor) -> Tensor:
    """log(1 - exp(log_p)), stable near both ends; p is kept below 1 by one float step."""
    log_p = log_p.clamp(max=-torch.finfo(log_p.dtype).eps)
    return torch.where(log_p > -0.6931, (-torch.expm1(log_p)).log(), torch.log1p(-log_p.exp()))


def _top(scores: Tensor, k: int) -> Tensor:
    """Indices of the `k` highest scores; ties in vocabulary order."""
    order: Tensor = torch.sort(scores, descending=True, stable=True).indices
    return order[:k]
