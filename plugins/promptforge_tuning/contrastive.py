"""Contrastive tuning: texts of one label become alike, and a logistic regression tells them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from promptforge import Classifier, UserError
from promptforge.tuning.loop import Target
from promptforge.tuning.objectives import tensors, warn_parts
from promptforge.tuning.texts import HeadObjective, LinearHead, Texts
from promptforge.tuning.tuner import Member, Tuner
from promptforge_tuning.strategies import Finetune

if TYPE_CHECKING:
    from promptforge import TuningMethod


class Contrastive(Finetune):
    """Contrastive tuning of a sentence encoder, and logistic regression on it (SetFit).

    (Tunstall et al. 2022, section 3.) The summaries of two texts of one label are drawn together
    and those of two labels apart; then a logistic regression is fitted on the summaries of the
    labelled rows. Rows of a batch are all compared with one another: larger batches contrast more.
    """

    name: ClassVar[str] = "contrastive"
    needs_classes: ClassVar[bool] = True
    joint_exits: ClassVar[bool] = False

    model: str = Field(
        "",
        description="Another model that is tuned in place of the run's, such as a sentence encoder "
        "(minilm) beside prompts of a language model.",
    )

    def check_tuner(self, tuner: Tuner) -> None:
        """Raise a `UserError` where demonstrations were asked for, or what another model cannot start from."""
        super().check_tuner(tuner)
        if tuner.init_from and self.model not in ("", tuner.backbone.source["name"]):
            raise UserError(
                f"strategy {self.name!r}: model={self.model} is tuned from itself, and what --init-from "
                "names is of the run's model. Leave one of the two out."
            )

    def train(self, tuner: Tuner) -> Classifier:
        """The regression and the tuned model under it."""
        own = tuner.on(self.model)
        warn_parts(own.report, f"strategy {self.name!r}", own.settings)
        kind = ContrastiveObjective
        targets = own.targets()
        # A row of weight 0 would still be another's partner; a label keeps one for the head.
        counted = [t for t in targets if t.weight > 0]
        if {t.shares for t in counted} != {t.shares for t in targets}:
            counted = targets
        return own.member(
            Member("head", counted, None, own.seed, pooling=self.pooling, objective=kind)
        )


class ContrastiveObjective(HeadObjective):
    """Texts of one label become alike and those of others unlike, and a linear head is fitted on them.

    SetFit (Tunstall et al. 2022, section 3) compares two texts at a time. Here each row of a batch
    brings another one of its label, drawn by the seed (where there is none, itself under another
    dropout), and all pairs of these texts are compared at once: 2B texts read make B(2B - 1) pairs,
    where SetFit's make B. With s the cosine of two summaries, the loss of row i is

        1/2 mean of (1 - s_ij)^2 over j of its label + 1/2 mean of s_ij^2 over j of other labels,

    j any other text of the batch; a mean over none is 0. That weighs pairs of both kinds alike, as
    SetFit does by drawing as many of either. Soft labels weigh a pair by the probability that both
    have the same label.

    The head is fitted whenever the model is looked at, by `commit`.
    """

    head_type: ClassVar[type[LinearHead]] = LinearHead
    head: LinearHead

    def __init__(
        self, texts: Texts, head: LinearHead, method: TuningMethod, targets: Sequence[Target],
        *more: Any, **options: Any,
    ) -> None:  # fmt: skip
        self._targets, self._method = list(targets), method.name
        self._labels = [max(range(len(t.shares)), key=t.shares.__getitem__) for t in targets]
        self._place = {id(t): i for i, t in enumerate(targets)}
        self._of: dict[int, list[int]] = {}
        for i, label in enumerate(self._labels):
            self._of.setdefault(label, []).append(i)
        super().__init__(texts, head, method, targets, *more, **options)

    def own(self) -> dict[str, nn.Parameter]:
        return {}

    def forward(self, targets: Sequence[Target], draw: int) -> Tensor:
        both = [*targets, *(self._partner(self._place[id(t)], draw) for t in targets)]
        shares, weight, _ = tensors(both, self.texts.backbone.device)
        u = F.normalize(self.summaries(both).float(), dim=-1)
        if not u.requires_grad:
            raise UserError(
                f"strategy 'contrastive' tunes what summaries of texts come from, and method {self._method!r} "
                "trains nothing of that. Use --method all, lora or another that reaches the layers."
            )
        rows = len(targets)
        cosine = u[:rows] @ u.T
        others = torch.ones_like(cosine).fill_diagonal_(0)
        alike = shares[:rows] @ shares.T * others
        unlike = others - alike
        loss = _mean((1 - cosine).square(), alike) + _mean(cosine.square(), unlike)
        return loss / 2 * weight[:rows]

    def _partner(self, place: int, draw: int) -> Target:
        """Another row of the label, or the row itself where it is alone."""
        others = [i for i in self._of[self._labels[place]] if i != place] or [place]
        rng = np.random.default_rng([self.seed, draw, place])
        return self._targets[others[int(rng.integers(len(others)))]]

    @torch.no_grad()
    def commit(self) -> None:
        """Also fit the head to the rows as the model sees them now."""
        super().commit()
        encoded = [self._encoded[id(t.row)] for t in self._targets]
        device = self.texts.backbone.device
        pooled = torch.empty(len(encoded), self.texts.backbone.width, device=device)
        for batch in self.texts.backbone.batches(encoded):
            seen = self.texts.pooled([encoded[i] for i in batch.indices])
            pooled[batch.indices] = seen.float()
        shares, weight, _ = tensors(self._targets, device)
        self.head.fit(pooled, shares, weight)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted means of rows, [rows]; 0 where nothing weighs."""
    return (values * weight).sum(-1) / weight.sum(-1).clamp(min=1e-9)
