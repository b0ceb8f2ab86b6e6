"""Whole texts without a prompt: their summaries, classification heads on them, and what is minimised."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promptforge.backbone.layers import all_layers
from promptforge.data import Row
from promptforge.encode import Encoded
from promptforge.errors import UserError, did_you_mean, listed
from promptforge.exits.exits import HeadEnd, mean_of_rows
from promptforge.template import COLUMN, Part, Prompt, Sep, Soft, Text
from promptforge.truncation import told_cuts
from promptforge.tuning.loop import Target
from promptforge.tuning.objectives import TunedObjective, tensors

if TYPE_CHECKING:
    from promptforge.backbone.base import Backbone
    from promptforge.tuning.method import TuningMethod
    from promptforge.tuning.starting import Start

#: The score of a label that no row had: no probability, and still finite.
_NEVER = -1e4


class Head(nn.Module):
    """A classification head: dropout, a dense layer with tanh, dropout, one score per label."""

    kind: ClassVar[str] = "dense"

    def __init__(self, width: int, labels: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(width, width)
        self.out = nn.Linear(width, labels)
        for layer in (self.dense, self.out):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """(rows, width) to scores (rows, labels)."""
        # A model that is read again in half precision has its head in it too.
        pooled = self.dropout(pooled).to(self.dense.weight.dtype)
        hidden = torch.tanh(self.dense(pooled))
        scores: Tensor = self.out(self.dropout(hidden))
        return scores


class LinearHead(nn.Module):
    """One linear score per label on a summary of length 1; fitted, not trained by gradients."""

    kind: ClassVar[str] = "linear"

    def __init__(self, width: int, labels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, labels)
        self.requires_grad_(False)

    def forward(self, pooled: Tensor) -> Tensor:
        """(rows, width) to scores (rows, labels)."""
        unit = F.normalize(self.dropout(pooled).float(), dim=-1)
        scores: Tensor = self.out(unit.to(self.out.weight.dtype))
        return scores

    def fit(self, pooled: Tensor, shares: Tensor, weight: Tensor) -> None:
        """Logistic regression (scikit-learn's, C = 1) on summaries.

        Args:
            pooled: (rows, width).
            shares: probability of each label, (rows, labels); a label that no row has gets no
                probability.
            weight: of each row, (rows).
        """
        from sklearn.linear_model import LogisticRegression

        row, label = torch.nonzero(shares * weight[:, None], as_tuple=True)
        x, y = F.normalize(pooled.float(), dim=-1)[row].cpu().numpy(), label.cpu().numpy()
        counts = (shares * weight[:, None])[row, label].cpu().numpy()
        self.out.weight.zero_()
        self.out.bias.fill_(_NEVER)
        if len(set(y)) == 1:  # nothing to tell apart: the others weigh nothing
            self.out.bias[label[0]] = 0
            return
        model = LogisticRegression(max_iter=1000).fit(x, y, sample_weight=counts)
        there = torch.as_tensor(model.classes_, device=self.out.weight.device)
        vectors, bias = torch.as_tensor(model.coef_), torch.as_tensor(model.intercept_)
        if len(there) == 2:  # the second label's score beside a first one of nothing
            vectors = torch.cat([torch.zeros_like(vectors), vectors])
            bias = torch.cat([torch.zeros_like(bias), bias])
        self.out.weight[there] = vectors.to(self.out.weight)
        self.out.bias[there] = bias.to(self.out.bias)


HEADS: dict[str, type[Head | LinearHead]] = {made.kind: made for made in (Head, LinearHead)}


def dropout_of(backbone: Backbone) -> float:
    """The dropout rate of a head: the model's own, else a tenth."""
    config = backbone.model.config.get_text_config()
    for name in ("classifier_dropout", "hidden_dropout_prob", "dropout_rate", "dropout"):
        rate = getattr(config, name, None)
        if isinstance(rate, float):
            return rate
    return 0.1


class Texts:
    """Rows as whole texts without a mask: the columns in order, apart from one another.

    Args:
        pooling: "mean" over the tokens that are read, or "first" of them; a causal model is
            read at its last token, an encoder-decoder at the decoder's first.
        opening: soft tokens that stand before every text.
    """

    def __init__(
        self,
        backbone: Backbone,
        inputs: Sequence[str],
        pooling: str,
        opening: tuple[Soft, ...] = (),
    ) -> None:
        self.backbone, self.inputs, self.pooling = backbone, tuple(inputs), pooling
        self.opening = opening

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """Rows as the model takes them."""
        made = []
        for number, row in enumerate(rows, start=1):
            parts: list[Part] = []
            for column in self.inputs:
                if column not in row:
                    raise UserError(
                        f"Row {number} has no column {column!r}, which the model reads. It has "
                        f"{listed(list(row)) or 'none'}.{did_you_mean(column, list(row))}"
                    )
                value = row[column]
                if value is None or (isinstance(value, float) and value != value):
                    continue  # missing: there is nothing to read
                if isinstance(value, bytes):
                    raise UserError(
                        f"Row {number}: the column {column!r} holds bytes and no text: have it written as text, "
                        "in Parquet as a string."
                    )
                parts += [Sep()] if parts else []
                parts.append(Text(str(value), source=column, cut=COLUMN))
            made.append(Prompt((*self.opening, *parts)))
        encoded = self.backbone.encoder.encode(made, origin="the row's text", masked=False)
        return [self._read(self.backbone.summary(e)) for e in encoded]

    def _read(self, encoded: Encoded) -> Encoded:
        return replace(encoded, reads=encoded.reads[:1]) if self.pooling == "first" else encoded

    def pooled(self, encoded: Sequence[Encoded]) -> Tensor:
        """Summaries of texts in one batch, [rows, d]; keeps gradients."""
        batch = self.backbone.collate(encoded, list(range(len(encoded))))
        compact = self.backbone.compact
        with compact.used() if compact else nullcontext():
            states = self.backbone.hidden(batch)
        return mean_of_rows(states, batch.rows, len(encoded))

    def pooled_layers(self, encoded: Sequence[Encoded]) -> Tensor:
        """As `pooled`, after each layer: [layers, rows, d]; keeps gradients."""
        batch = self.backbone.collate(encoded, list(range(len(encoded))))
        compact = self.backbone.compact
        with compact.used() if compact else nullcontext():
            states = all_layers(self.backbone, batch)
        return torch.stack([mean_of_rows(one, batch.rows, len(encoded)) for one in states])


class HeadObjective(TunedObjective):
    """Cross-entropy of a classification head: standard fine-tuning (Devlin et al. 2019).

    What trains a model of whole texts otherwise derives from it, and a strategy names it as its
    member's `objective`.

    Attributes:
        head_type: the head that it trains or fits.

    Args:
        exits: train an exit at every layer too, at this share of the learning rate.
        seed: of what it draws itself.
    """

    head_type: ClassVar[type[Head | LinearHead]] = Head

    def __init__(
        self,
        texts: Texts,
        head: Head | LinearHead,
        method: TuningMethod,
        targets: Sequence[Target],
        start: Start | None = None,
        exits: float | None = None,
        seed: int = 0,
    ) -> None:
        self.texts, self.seed = texts, seed
        self._head_parameters = dict(head.named_parameters())
        rows = {id(t.row): t.row for t in targets}
        texts.backbone.apply(None)
        encoded = texts.encode(list(rows.values()))
        addition = method.add(texts.backbone, encoded, {})
        if addition is not None and addition.opening:
            texts.opening = addition.opening
            encoded = texts.encode(list(rows.values()))
        self._encoded = dict(zip(rows, encoded, strict=True))
        self.cut = told_cuts(encoded, "", texts.backbone.encoder.max_length)
        tokens = [t for e in encoded for t in (*e.ids, *e.decoder_ids)]
        end = None if exits is None else HeadEnd(texts.backbone, head)
        super().__init__(texts.backbone, method, tokens, addition, start, end, exits)
        self.head = head

    def own(self) -> dict[str, nn.Parameter]:
        return self._head_parameters

    def length(self, target: Target) -> int:
        return len(self._encoded[id(target.row)].ids)

    def summaries(self, targets: Sequence[Target]) -> Tensor:
        """Of rows, [rows, d]; keeps gradients."""
        backbone = self.texts.backbone
        backbone.compact = self.tunable.compact
        try:
            return self.texts.pooled([self._encoded[id(t.row)] for t in targets])
        finally:
            backbone.compact = None

    def forward(self, targets: Sequence[Target], draw: int) -> Tensor:
        backbone = self.texts.backbone
        shares, weight, temperature = tensors(targets, backbone.device)
        if self.end is not None and self.exits is not None:
            backbone.compact = self.tunable.compact
            try:
                seen = self.texts.pooled_layers([self._encoded[id(t.row)] for t in targets])
                return self.end.joint(self.exits, seen, shares, temperature) * weight
            finally:
                backbone.compact = None
        scores = self.head(self.summaries(targets)).float() / temperature[:, None]
        loss = -(shares * torch.log_softmax(scores, -1)).sum(-1)
        return loss * temperature.square() * weight
