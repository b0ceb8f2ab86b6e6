"""What is minimised: prompts with a verbalizer, or a classification head on whole texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from promptforge.backbone.base import Backbone
from promptforge.backbone.weights import CompactVocabulary, Tunable, Weights
from promptforge.data import Row
from promptforge.encode import Encoded
from promptforge.readout import Readout
from promptforge.template import COLUMN, Prompt, Sep, Text
from promptforge.tuning.loop import Objective, Target

if TYPE_CHECKING:
    from promptforge.model import PromptModel
    from promptforge.tuning.method import TuningMethod


class _Tuned(Objective):
    """Shared by both: the model's trained parameters, and some of its own."""

    def __init__(
        self, backbone: Backbone, method: TuningMethod, tokens: Sequence[int] | None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        backbone.apply(None)
        parameters = method.prepare(backbone)
        table = next(
            (n for n, p in backbone.parameters.items()
             if p is backbone.model.get_input_embeddings().weight), ""
        )  # fmt: skip
        compact = None
        if tokens is not None and table in parameters:
            compact = CompactVocabulary(backbone.model, tokens)
        self.tunable = Tunable(backbone.model, parameters, compact)
        self._tables = {n for n, p in backbone.parameters.items() if p.ndim == 2
                        and p.shape[0] == backbone.vocabulary}  # fmt: skip
        # Registered under plain names, so that gradients are shared between processes.
        self.shared = nn.ParameterList(self.trained().values())
        self.model = backbone.model  # train() and eval() reach its dropout

    def own(self) -> dict[str, nn.Parameter]:
        """Trained parameters that are not the model's."""
        return {}

    def trained(self) -> dict[str, nn.Parameter]:
        return {**self.tunable.parameters, **{f"own/{n}": p for n, p in self.own().items()}}

    def undecayed(self) -> set[str]:
        return self._tables

    def weights(self) -> Weights:
        """The model's tuned weights as they are now."""
        return self.tunable.weights()

    def own_tensors(self) -> dict[str, Tensor]:
        """Values of `own` as they are now."""
        return {name: p.detach().clone() for name, p in self.own().items()}

    def close(self) -> None:
        """Put the model back as it was."""
        self.backbone.compact = None
        self.tunable.close()
        self.model.eval()

    def commit(self) -> None:
        """Make the model as it is now fit for reading any text."""
        if self.tunable.compact:
            self.tunable.compact.commit()


class PromptObjective(_Tuned):
    """Cross-entropy (or the verbalizer's own loss) of class scores at the masks of one pattern.

    Args:
        model: renders, encodes and binds; its backbone is tuned.
        pattern: which of its patterns.
        targets: every row that will be trained on.
    """

    def __init__(
        self, model: PromptModel, pattern: str, method: TuningMethod, targets: Sequence[Target]
    ) -> None:
        self._prompted, self._pattern = model, pattern
        rows = {id(t.row): t.row for t in targets}
        encoded = model.encode(pattern, [model.prompt(pattern, row) for row in rows.values()])
        self._encoded: dict[int, Encoded] = dict(zip(rows, encoded, strict=True))
        self.verbalizer = model.verbalizer(pattern, encoded[0])
        read = self.verbalizer.tokens_read()
        tokens = None
        # Demonstrations bring other texts at every step, so the vocabulary stays whole.
        if read is not None and model.demonstrations is None:
            tokens = [*read, *(t for e in encoded for t in (*e.ids, *e.decoder_ids))]
        super().__init__(model.backbone, method, tokens)

    def own(self) -> dict[str, nn.Parameter]:
        return self.verbalizer.parameters()

    def length(self, target: Target) -> int:
        encoded = self._encoded[id(target.row)]
        return len(encoded.ids) + len(encoded.decoder_ids)

    def forward(self, targets: Sequence[Target], draw: int) -> Tensor:
        backbone, model = self.backbone, self._prompted
        if model.demonstrations is None:
            encoded = [self._encoded[id(t.row)] for t in targets]
        else:
            prompts = [model.prompt(self._pattern, t.row, draw) for t in targets]
            encoded = model.encode(self._pattern, prompts)
        backbone.compact = self.tunable.compact
        try:
            readout = Readout(backbone, encoded, backbone.read(encoded))
            shares, weight, temperature = tensors(targets, backbone.device)
            return self.verbalizer.loss(readout, shares, temperature) * weight
        finally:
            backbone.compact = None


class Head(nn.Module):
    """A classification head: dropout, a dense layer with tanh, dropout, one score per label."""

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
        hidden = torch.tanh(self.dense(self.dropout(pooled)))
        scores: Tensor = self.out(self.dropout(hidden))
        return scores


class Texts:
    """Rows as whole texts without a mask: the columns in order, apart from one another.

    Args:
        pooling: "mean" over the tokens that are read, or "first" of them; a causal model is
            read at its last token, an encoder-decoder at the decoder's first.
    """

    def __init__(self, backbone: Backbone, inputs: Sequence[str], pooling: str) -> None:
        self.backbone, self.inputs, self.pooling = backbone, tuple(inputs), pooling

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """Rows as the model takes them."""
        made = []
        for row in rows:
            parts: list[Text | Sep] = []
            for column in self.inputs:
                parts += [Sep()] if parts else []
                parts.append(Text(str(row[column]), source=column, cut=COLUMN))
            made.append(Prompt(tuple(parts)))
        encoded = self.backbone.encoder.encode(made, origin="the row's text", masked=False)
        return [self._read(self.backbone.summary(e)) for e in encoded]

    def _read(self, encoded: Encoded) -> Encoded:
        from dataclasses import replace

        return replace(encoded, reads=encoded.reads[:1]) if self.pooling == "first" else encoded

    def pooled(self, encoded: Sequence[Encoded]) -> Tensor:
        """Summaries of texts in one batch, [rows, d]; keeps gradients."""
        batch = self.backbone.collate(encoded, list(range(len(encoded))))
        compact = self.backbone.compact
        if compact is None:
            states = self.backbone.hidden(batch)
        else:
            with compact.used():
                states = self.backbone.hidden(batch)
        total = states.new_zeros(len(encoded), states.shape[-1]).index_add(0, batch.rows, states)
        return total / torch.bincount(batch.rows, minlength=len(encoded))[:, None]


class HeadObjective(_Tuned):
    """Cross-entropy of a classification head: standard fine-tuning (Devlin et al. 2019)."""

    def __init__(
        self, texts: Texts, head: Head, method: TuningMethod, targets: Sequence[Target]
    ) -> None:
        self.texts = texts
        self._head_parameters = dict(head.named_parameters())
        rows = {id(t.row): t.row for t in targets}
        encoded = texts.encode(list(rows.values()))
        self._encoded = dict(zip(rows, encoded, strict=True))
        tokens = [t for e in encoded for t in (*e.ids, *e.decoder_ids)]
        super().__init__(texts.backbone, method, tokens)
        self.head = head

    def own(self) -> dict[str, nn.Parameter]:
        return self._head_parameters

    def length(self, target: Target) -> int:
        return len(self._encoded[id(target.row)].ids)

    def forward(self, targets: Sequence[Target], draw: int) -> Tensor:
        backbone = self.backbone
        backbone.compact = self.tunable.compact
        try:
            pooled = self.texts.pooled([self._encoded[id(t.row)] for t in targets])
        finally:
            backbone.compact = None
        shares, weight, temperature = tensors(targets, backbone.device)
        scores = self.head(pooled).float() / temperature[:, None]
        loss = -(shares * torch.log_softmax(scores, -1)).sum(-1)
        return loss * temperature.square() * weight


def tensors(targets: Sequence[Target], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Shares [rows, labels], weights [rows] and temperatures [rows]."""
    return (
        torch.tensor([t.shares for t in targets], device=device),
        torch.tensor([t.weight for t in targets], device=device),
        torch.tensor([t.temperature for t in targets], device=device),
    )
