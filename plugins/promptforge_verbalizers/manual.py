"""The manual verbalizer: words given by hand, in a task file or by a search."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from promptforge import UserError, Verbalizer
from promptforge.readout import Readout


class ManualVerbalizer(Verbalizer):
    """Label words given by hand or found by a search, aggregated per label.

    The score of a label aggregates the log-probabilities of its words at the mask (Schick and
    Schuetze 2021, section 3.1, for one word). Where every word has one token and the
    aggregate shifts with log Z, log Z cancels in the posterior and only the words' rows of the
    output matrix are computed; else log-probabilities over the whole vocabulary are.
    """

    name: ClassVar[str] = "manual"

    aggregate: Literal["mean", "max", "first", "weighted", "sum"] = Field(
        "mean",
        description="mean, max, first or weighted log-probability of a label's words; sum of probabilities.",
    )
    weights: dict[str, list[float]] = Field(
        default_factory=dict,
        description="For aggregate=weighted: label -> a weight per word, in the words' order.",
    )

    def class_scores(self, readout: Readout) -> Tensor:
        """Class scores in log space, [prompts, labels]."""
        by_label = self.word_scores(readout, normalised=not self._log_z_cancels())
        return torch.stack(
            [self._aggregated(label, scores) for label, scores in by_label.items()], dim=1
        )

    def loss(self, readout: Readout, shares: Tensor, temperature: Tensor) -> Tensor:
        """The loss of each prompt, [prompts].

        Words of one token: cross-entropy. Longer ones in a masked model: the hinge loss of
        Schick and Schuetze (2021, "It's not just size", section 3) on one parallel pass,
        weighted by `shares`; in causal and encoder-decoder models cross-entropy of the exact
        log-probabilities.
        """
        if self.longest == 1:
            return super().loss(readout, shares, temperature)
        backbone = readout.backbone
        sequences = [s for label in self.labels for s in self.sequences[label]]
        scorer = self.build_scorer(backbone)
        scorer.check(backbone)
        by_word = scorer.training_scores(readout, sequences, self.slot)
        parts = torch.split(by_word, [len(self.sequences[label]) for label in self.labels], dim=1)
        scores = torch.stack(
            [self._aggregated(label, p) for label, p in zip(self.labels, parts, strict=True)], dim=1
        )
        if backbone.family != "masked":
            log_q = torch.log_softmax(scores / temperature[:, None], -1)
            return -(shares * log_q).sum(-1) * temperature.square()
        margins = (1 - scores[:, :, None] + scores[:, None, :]).clamp(min=0)  # true, other
        others = 1 - torch.eye(len(self.labels), device=scores.device)
        return (shares * (margins * others).sum(2)).sum(1)

    def tokens_read(self) -> list[int] | None:
        """The label words' tokens where log Z cancels."""
        if not self._log_z_cancels():
            return None
        return [s[0] for sequences in self.sequences.values() for s in sequences]

    def _log_z_cancels(self) -> bool:
        return self.longest == 1 and all(
            math.isclose(sum(self._weights(label)), 1) for label in self.labels
        )

    def _weights(self, label: str) -> list[float]:
        if self.aggregate != "weighted":
            return [1.0]
        weights, words = self.weights.get(label), self.words[label]
        if weights is None or len(weights) != len(words):
            raise UserError(
                f"aggregate=weighted: the label {label!r} has {len(words)} words and "
                f"{len(weights or [])} weights. Give one weight per word."
            )
        return weights

    def _aggregated(self, label: str, scores: Tensor) -> Tensor:
        if self.aggregate == "mean":
            return scores.mean(1)
        if self.aggregate == "max":
            return scores.amax(1)
        if self.aggregate == "first":
            return scores[:, 0]
        if self.aggregate == "sum":
            return torch.logsumexp(scores, 1)
        return scores @ scores.new_tensor(self._weights(label))
