"""Classifiers that tuning makes besides `PromptModel`: a classification head, and a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from promptforge.backbone.turns import in_turn
from promptforge.backbone.weights import Weights
from promptforge.classifier import Classifier, Probabilities, Rows
from promptforge.progress import Reporter
from promptforge.scale import Scale
from promptforge.truncation import CutCounter
from promptforge.tuning.texts import Head, LinearHead, Texts

if TYPE_CHECKING:
    from promptforge.backbone.base import Backbone
    from promptforge.encode import Encoded


class HeadModel(CutCounter, Classifier):
    """A classification head on whole texts.

    Args:
        texts: how rows become summaries.
        head: its scores are the classes'.
        labels: in the order of the head's scores.
        weights: the backbone's tuned weights.
        scale: where numbers are predicted.
    """

    def __init__(
        self,
        texts: Texts,
        head: Head | LinearHead,
        labels: Sequence[str],
        weights: Weights | None = None,
        report: Reporter | None = None,
        scale: Scale | None = None,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.texts, self.head, self.labels = texts, head.eval(), tuple(labels)
        self.weights = weights
        self.report = report or Reporter()

    @property
    def backbone(self) -> Backbone:
        """The language model under the head."""
        return self.texts.backbone

    @in_turn
    @torch.inference_mode()
    def part_probabilities(self, rows: Rows, what: str = "Reading") -> dict[str, Probabilities]:
        """Class probabilities, [rows, labels], under the name "head"."""
        self.backbone.apply(self.weights)
        return {"head": self.read(self.encode_rows(rows, what), what)}

    def encode_rows(self, rows: Rows, what: str = "Reading") -> list[Encoded]:
        """Rows as the model takes them; what was cut is counted and said."""
        encoded = self.texts.encode([dict(row) for row in rows])
        self.count_cuts(encoded, "", self.backbone.encoder.max_length, self.report, what)
        return encoded

    @torch.inference_mode()
    def read(self, encoded: Sequence[Encoded], what: str = "Reading") -> Probabilities:
        """Class probabilities of texts, [texts, labels], with the weights that are in the backbone."""
        backbone = self.backbone
        out = np.empty((len(encoded), len(self.labels)))
        with self.report.meter(what, len(encoded)) as meter:
            for batch in backbone.batches(encoded):
                pooled = self.texts.pooled([encoded[i] for i in batch.indices])
                out[batch.indices] = self.head(pooled).double().softmax(-1).cpu().numpy()
                meter.advance(len(batch.indices))
        return out


class Ensemble(Classifier):
    """Several classifiers whose probabilities are averaged.

    Args:
        members: name -> classifier; all for the same labels in the same order.
        shares: how much each counts; equal by default.
    """

    def __init__(
        self, members: Mapping[str, Classifier], shares: Mapping[str, float] | None = None
    ) -> None:
        self.members = dict(members)
        first = next(iter(self.members.values()))
        self.labels, self.scale = first.labels, first.scale
        self.shares = dict(shares or dict.fromkeys(self.members, 1.0))

    def part_probabilities(self, rows: Rows, what: str = "Reading") -> dict[str, Probabilities]:
        """Class probabilities of each member, [rows, labels]."""
        return {
            name: member.combined(member.part_probabilities(rows, f"{what}, {name}"))
            for name, member in self.members.items()
        }

    @property
    def cut_counters(self) -> list[CutCounter]:
        """The members'."""
        return [one for member in self.members.values() for one in member.cut_counters]

    def forget(self) -> None:
        """No member remembers anything, from now on."""
        for member in self.members.values():
            member.forget()

    def combined(self, parts: Mapping[str, Probabilities]) -> Probabilities:
        """The weighted mean of the members' probabilities, [rows, labels]."""
        total = sum(self.shares[name] for name in parts)
        summed: Probabilities = np.sum(
            [self.shares[n] / total * p for n, p in parts.items()], axis=0
        )
        return summed
