"""What is minimised: the base of all objectives, and prompts with a verbalizer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from promptforge.backbone.addition import Addition
from promptforge.backbone.base import Backbone
from promptforge.backbone.weights import CompactVocabulary, Tunable, Weights
from promptforge.data import Row
from promptforge.encode import Encoded
from promptforge.errors import UserError, listed
from promptforge.exits.exits import End, PromptEnd
from promptforge.readout import Readout
from promptforge.truncation import told_cuts
from promptforge.tuning import processes
from promptforge.tuning.loop import Objective, Target
from promptforge.tuning.masked_words import MaskedWords
from promptforge.tuning.schedule import batch_at

if TYPE_CHECKING:
    from promptforge.model import PromptModel
    from promptforge.progress import Reporter
    from promptforge.tuning.method import TuningMethod
    from promptforge.tuning.settings import Settings
    from promptforge.tuning.starting import Start
    from promptforge.verbalizer import Verbalizer


class TunedObjective(Objective):
    """A model tuned by a method: its trained parameters, and some of the objective's own.

    Attributes:
        cut: what was cut from the rows that are trained on, as a sentence, or "".

    Args:
        tokens: every token id that the training feeds or scores; the rest of the vocabulary is
            left out of it. None: all of it stays.
        addition: what the method added to the model.
        start: tuned values to start from.
        end: where every layer gets an exit that is trained too: what the exits stand before.
        exit_share: the exits' share of the learning rate.

    Raises:
        UserError: the method trains nothing of this model.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: TuningMethod,
        tokens: Collection[int] | None,
        addition: Addition | None = None,
        start: Start | None = None,
        end: End | None = None,
        exit_share: float | None = None,
    ) -> None:
        super().__init__()
        self.end, self.exits = end, end.make() if end is not None else None
        self._exit_share = 1.0 if exit_share is None else exit_share
        self.backbone = backbone
        self.model = backbone.model  # train() and eval() reach its dropout
        backbone.apply(None)
        parameters = method.prepare(backbone)
        if addition is None and not parameters:
            raise UserError(f"method {method.name!r} trains nothing of {backbone.name}.")
        table = next(
            (n for n, p in backbone.parameters.items()
             if p is backbone.model.get_input_embeddings().weight), ""
        )  # fmt: skip
        compact = None
        if tokens is not None and start is not None:
            rows = start.weights.rows.get(table)
            tokens = {*tokens, *(rows[0].tolist() if rows else ())}
            tokens = None if table in start.weights.tensors else tokens
        if tokens is not None and table in parameters:
            compact = CompactVocabulary(backbone.model, tokens)
        self.tunable = Tunable(backbone.model, parameters, compact)
        self._share = method.model_share
        self._tables = {n for n, p in backbone.parameters.items() if p.ndim == 2
                        and p.shape[0] == backbone.vocabulary}  # fmt: skip
        self.addition = addition
        if addition is not None:
            addition.made_by = {"name": method.name, "options": method.model_dump(mode="json")}
            try:
                self._attached = backbone.attach([addition])
            except BaseException:
                self.tunable.close()
                raise
        if start is not None:
            try:
                start.begin(self.tunable, addition, method)
            except BaseException:
                self.close()
                raise
        # Registered under plain names, so that gradients are shared between processes.
        try:
            self.shared = nn.ParameterList(self.trained().values())
        except BaseException:
            self.close()
            raise

    def own(self) -> dict[str, nn.Parameter]:
        """Trained parameters that are not the model's."""
        return {}

    def trained(self) -> dict[str, nn.Parameter]:
        own = {f"own/{n}": p for n, p in self.own().items() if p.requires_grad}
        added = self.addition.trained() if self.addition is not None else {}
        return {
            **self.tunable.parameters, **{f"added/{n}": p for n, p in added.items()}, **own,
            **self._of_exits(),
        }  # fmt: skip

    def _of_exits(self) -> dict[str, nn.Parameter]:
        found = self.exits.named_parameters() if self.exits is not None else ()
        return {f"exits/{name}": p for name, p in found}

    def undecayed(self) -> set[str]:
        added = self.addition.undecayed() if self.addition is not None else ()
        return self._tables | {f"added/{name}" for name in added}

    def rates(self) -> dict[str, float]:
        exits = dict.fromkeys(self._of_exits(), self._exit_share)
        return {**dict.fromkeys(self.tunable.parameters, self._share), **exits}

    def weights(self) -> Weights:
        """The model's tuned weights, and what was added, as they are now."""
        made = self.tunable.weights()
        if self.addition is not None:
            made.added = self.addition.folded()
        return made

    def own_tensors(self) -> dict[str, Tensor]:
        """Values of `own` as they are now."""
        return {name: p.detach().clone() for name, p in self.own().items()}

    def close(self) -> None:
        """Put the model back as it was."""
        self.backbone.compact = None
        if self.addition is not None:
            self._attached.close()
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
        start: tuned values to start from.
        exits: train an exit at every layer too, at this share of the learning rate.
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
        start: Start | None = None,
        exits: float | None = None,
    ) -> None:
        self._prompted, self._pattern = model, pattern
        self._alpha = alpha
        self._masked = MaskedWords(model, pattern, unlabeled, seed) if alpha else None
        rows = {id(t.row): t.row for t in targets}
        self._numbers = {key: number for number, key in enumerate(rows)}
        model.backbone.apply(None)

        def encode() -> list[Encoded]:
            return model.encode(pattern, [model.prompt(pattern, row) for row in rows.values()])

        encoded = encode()
        addition = method.add(model.backbone, encoded, model.task.words_for(pattern))
        if addition is not None and addition.opening:
            model.opening = addition.opening
            encoded = encode()
        warn_untrained(model.report, encoded, addition, method)
        self.cut = told_cuts(encoded, pattern, model.backbone.encoder.max_length)
        self._encoded: dict[int, Encoded] = dict(zip(rows, encoded, strict=True))
        self.verbalizer = model.verbalizer(pattern, encoded[0])
        check_poles(model, self.verbalizer)
        if settings and self.verbalizer.contrasts:
            warn_parts(model.report, f"verbalizer {self.verbalizer.name!r}", settings)
        read = self.verbalizer.tokens_read()
        tokens: set[int] | None = None
        # The masked-LM loss reads every word's logit, so with it the vocabulary stays whole.
        if read is not None and not alpha and (settings or model.demonstrations is None):
            tokens = {*read, *(t for e in encoded for t in (*e.ids, *e.decoder_ids))}
            if model.demonstrations is not None and settings:
                tokens |= self._met(targets, settings, seed)
        end = None if exits is None else PromptEnd(model.backbone, self.verbalizer, encoded[0])
        super().__init__(model.backbone, method, tokens, addition, start, end, exits)

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
            shares, weight, temperature = tensors(targets, backbone.device)
            if self.end is not None and self.exits is not None:
                states = backbone.read_layers(encoded)
                loss = self.end.joint(self.exits, states, shares, temperature) * weight
            else:
                rows = [t.row for t in targets]
                readout = Readout(backbone, encoded, backbone.read(encoded), rows=rows)
                loss = self.verbalizer.loss(readout, shares, temperature) * weight
        finally:
            backbone.compact = None
        if self._masked is None:
            return loss
        numbers = [self._numbers[id(t.row)] for t in targets]
        return (1 - self._alpha) * loss + self._alpha * self._masked.loss(numbers, draw)


def warn_parts(report: Reporter, who: str, settings: Settings) -> None:
    """Warn where a batch is computed in parts, and the loss needs its rows side by side."""
    if (parts := settings.accumulate * processes.count()) > 1:
        report.warn(
            f"{who} compares the rows of a batch with one another, and a batch is "
            f"computed in {parts} parts here: rows of different parts are not compared. With accumulate=1 "
            "in one process all are."
        )


def warn_untrained(
    report: Reporter, encoded: Sequence[Encoded], addition: Addition | None, method: TuningMethod
) -> None:
    """Warn where a template has soft tokens that the method leaves as they are."""
    trained = set(addition.soft()) if addition is not None else set()
    left = sorted({s.key for e in encoded for s in e.soft} - trained)
    if left:
        report.warn(
            f"The template has soft tokens ({listed(left)}), and method {method.name!r} trains none: they are "
            "read as the words they start from. Use --method prompt-tuning or p-tuning."
        )


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


def tensors(targets: Sequence[Target], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Shares [rows, labels], weights [rows] and temperatures [rows]."""
    return (
        torch.tensor([t.shares for t in targets], device=device),
        torch.tensor([t.weight for t in targets], device=device),
        torch.tensor([t.temperature for t in targets], device=device),
    )
