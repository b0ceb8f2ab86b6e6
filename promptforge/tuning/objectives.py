"""What is minimised: prompts with a verbalizer, or a classification head on whole texts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from promptforge.backbone.base import Backbone
from promptforge.backbone.weights import CompactVocabulary, Tunable, Weights
from promptforge.data import Row
from promptforge.encode import Encoded
from promptforge.errors import UserError
from promptforge.readout import Readout
from promptforge.template import COLUMN, Prompt, Sep, Text
from promptforge.tuning.loop import Objective, Target, batch_at

if TYPE_CHECKING:
    from promptforge.model import PromptModel
    from promptforge.tuning.method import TuningMethod
    from promptforge.tuning.settings import Settings
    from promptforge.verbalizer import Verbalizer


class TunedObjective(Objective):
    """A model tuned by a method: its trained parameters, and some of the objective's own.

    Args:
        tokens: every token id that the training feeds or scores; the rest of the vocabulary is
            left out of it. None: all of it stays.
    """

    def __init__(
        self, backbone: Backbone, method: TuningMethod, tokens: Collection[int] | None
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
        own = {f"own/{n}": p for n, p in self.own().items() if p.requires_grad}
        return {**self.tunable.parameters, **own}

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


class PromptObjective(TunedObjective):
    """Cross-entropy (or the verbalizer's own loss) of class scores at the masks of one pattern.

    Args:
        model: renders, encodes and binds; its backbone is tuned.
        pattern: which of its patterns.
        targets: every row that will be trained on.
        alpha: share of the masked-LM loss on unlabelled rows: `(1-a) L_CE + a L_MLM`.
        unlabeled: rows for it.
        settings, seed: of the training; with demonstrations they say which prompts it will meet.
    """

    def __init__(
        self,
        model: PromptModel,
        pattern: str,
        method: TuningMethod,
        targets: Sequence[Target],
        *,
        alpha: float = 0.0,
        unlabeled: Sequence[Row] = (),
        settings: Settings | None = None,
        seed: int = 0,
    ) -> None:
        self._prompted, self._pattern = model, pattern
        self._alpha = alpha
        self._masked = MaskedWords(model, pattern, unlabeled) if alpha else None
        rows = {id(t.row): t.row for t in targets}
        encoded = model.encode(pattern, [model.prompt(pattern, row) for row in rows.values()])
        self._encoded: dict[int, Encoded] = dict(zip(rows, encoded, strict=True))
        self.verbalizer = model.verbalizer(pattern, encoded[0])
        check_poles(model, self.verbalizer)
        read = self.verbalizer.tokens_read()
        tokens: set[int] | None = None
        # The masked-LM loss reads every word's logit, so with it the vocabulary stays whole.
        if read is not None and not alpha and (settings or model.demonstrations is None):
            tokens = {*read, *(t for e in encoded for t in (*e.ids, *e.decoder_ids))}
            if model.demonstrations is not None and settings:
                tokens |= self._met(targets, settings, seed)
        super().__init__(model.backbone, method, tokens)

    def _met(self, targets: Sequence[Target], settings: Settings, seed: int) -> set[int]:
        """Every token that the training will meet: its demonstrations are drawn by step and row."""
        lengths = [self.length(t) for t in targets]
        model, pattern, found = self._prompted, self._pattern, set[int]()
        for step in range(settings.steps):
            rows = [targets[i].row for i in batch_at(step, lengths, settings.rows, seed)]
            encoded = model.encode(pattern, [model.prompt(pattern, row, step) for row in rows])
            found.update(t for e in encoded for t in (*e.ids, *e.decoder_ids))
        return found

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
            rows = [t.row for t in targets]
            readout = Readout(backbone, encoded, backbone.read(encoded), rows=rows)
            shares, weight, temperature = tensors(targets, backbone.device)
            loss = self.verbalizer.loss(readout, shares, temperature) * weight
        finally:
            backbone.compact = None
        if self._masked is None:
            return loss
        return (1 - self._alpha) * loss + self._alpha * self._masked.loss(len(targets), draw)


def check_poles(model: PromptModel, verbalizer: Verbalizer) -> None:
    """Raise a `UserError` where a scale's poles have words that no probabilities are trained for.

    A masked model learns words of several tokens by a hinge loss, which knows no numbers.
    """
    long = any(len(s) > 1 for words in verbalizer.sequences.values() for s in words)
    if model.scale and long and model.backbone.family == "masked":
        raise UserError(
            f"The task {model.task.name!r} predicts numbers, and a masked model learns them from words "
            "of one token: give each pole such words."
        )


class MaskedWords:
    """The masked-LM loss on unlabelled rows in a pattern (Schick & Schuetze 2021, section 3.2).

    Three unlabelled rows go with each labelled one. Of their words 15 % are to be found again:
    80 % of those are masked, 10 % replaced by a random token, 10 % left (Devlin et al. 2019). The
    label mask, special and soft tokens are never among them. Draws come from torch's generator,
    which a checkpoint keeps.

    Args:
        model: renders and encodes; a masked language model.
        pattern: which of its patterns.
        rows: unlabelled rows.

    Raises:
        UserError: another kind of model, or no rows.
    """

    RATIO = 3
    SHARE = 0.15

    def __init__(self, model: PromptModel, pattern: str, rows: Sequence[Row]) -> None:
        backbone = model.backbone
        if backbone.family != "masked":
            raise UserError(
                f"alpha: the masked-LM loss needs a masked language model, and {backbone.name} is "
                f"{backbone.family}. Leave alpha at 0, or choose a masked model."
            )
        if not rows:
            raise UserError(
                "alpha: the masked-LM loss is taken on rows without labels, and there are none: give "
                "--unlabeled FILE, or leave alpha at 0."
            )
        self._model, self._pattern, self._rows = model, pattern, rows

    def hidden(self, encoded: Encoded) -> tuple[Encoded, list[int]]:
        """A prompt with some of its words hidden, read where they stood, and their token ids."""
        backbone = self._model.backbone
        spans = [(s.start, s.length) for s in encoded.slots]
        spans += [(s.start, s.length) for s in encoded.soft]
        fixed = {p for start, length in spans for p in range(start, start + length)}
        words = [
            p for p, token in enumerate(encoded.ids)
            if p not in fixed and token not in backbone.text.special_ids
        ]  # fmt: skip
        chosen = [p for p, x in zip(words, torch.rand(len(words)).tolist(), strict=True)
                  if x < self.SHARE]  # fmt: skip
        ids = list(encoded.ids)
        for place, x in zip(chosen, torch.rand(len(chosen)).tolist(), strict=True):
            if x < 0.8:
                ids[place] = backbone.tokenizer.mask_token_id
            elif x < 0.9:
                ids[place] = int(torch.randint(backbone.vocabulary, ()))
        return replace(encoded, ids=tuple(ids), reads=tuple(chosen)), [
            encoded.ids[p] for p in chosen
        ]

    def loss(self, rows: int, draw: int) -> Tensor:
        """Mean cross-entropy of the hidden words of the unlabelled rows that go with `rows`."""
        model, backbone = self._model, self._model.backbone
        picked = torch.randint(len(self._rows), (self.RATIO * rows,)).tolist()
        prompts = [model.prompt(self._pattern, self._rows[i], draw) for i in picked]
        made = [self.hidden(e) for e in model.encode(self._pattern, prompts)]
        batch = backbone.collate([e for e, _ in made], list(range(len(made))))
        words = torch.tensor([t for _, tokens in made for t in tokens], device=backbone.device)
        if not len(words):
            return torch.zeros((), device=backbone.device)
        logits = backbone.logits(backbone.hidden(batch)).float()
        return nn.functional.cross_entropy(logits, words)


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


class HeadObjective(TunedObjective):
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
