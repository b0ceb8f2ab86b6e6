"""A generator: a backbone, a task's pattern, and what was tuned; writes the text of each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptforge.artifact import Savable, check_templates, open_parts, templates_hash
from promptforge.artifact import save as save_artifact
from promptforge.backbone.base import Backbone
from promptforge.backbone.turns import in_turn
from promptforge.backbone.weights import Weights
from promptforge.backbone.writing import writer
from promptforge.data import Row
from promptforge.encode import Encoded
from promptforge.errors import PromptForgeError, UserError, listed
from promptforge.generation.decoding import Decoding
from promptforge.generation.metrics import TextEvaluation
from promptforge.plugins import manager
from promptforge.progress import Meter, Reporter
from promptforge.task import Task
from promptforge.template import Prompt, Soft
from promptforge.truncation import CutCounter

#: Tokens of a text where nothing was trained that would say how long texts are.
ROOM = 64


class Generator(Savable, CutCounter):
    """Writes texts with prompts.

    Args:
        backbone: a causal language model or an encoder-decoder.
        task: one that generates text, with one pattern.
        weights: tuned weights that take the place of the backbone's own while this model works.
        decoding: how texts are chosen where a call does not say.
        room: tokens that a text may have; prompts are cut to leave them free.

    Raises:
        UserError: a masked model; a task that classifies or has several patterns; more room than
            the model has.
    """

    kind = "generator"

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        weights: Weights | None = None,
        decoding: Decoding | None = None,
        room: int | None = None,
        report: Reporter | None = None,
    ) -> None:
        CutCounter.__init__(self)
        self.backbone, self.task, self.weights = backbone, task, weights
        self.decoding, self.report = decoding or Decoding(), report or Reporter()
        task.need_text("A generator")
        if len(task.patterns) != 1:
            raise UserError(
                f"The task {task.name!r} has the patterns {listed(list(task.patterns))}: choose the one to "
                "write with (--pattern)."
            )
        task.check(family=backbone.family)
        self.writer = writer(backbone)
        self.room = self._room(room or self.decoding.max_new_tokens)
        self.opening: tuple[Soft, ...] = ()
        if weights is not None and weights.added is not None:
            self.opening = weights.added.opening

    @property
    def template(self) -> Any:
        """The template of its pattern."""
        (pattern,) = self.task.patterns.values()
        return pattern.template

    def _room(self, wanted: int | None) -> int:
        most = self.writer.most
        if wanted is None:
            return min(ROOM, max(1, most // 2))
        if wanted > most:
            raise UserError(
                f"max_new_tokens is {wanted}, and {self.backbone.name} has room for {most} in all."
            )
        return wanted

    # --- rows to token ids ----------------------------------------------------------------

    def sources(self, rows: Sequence[Mapping[str, Any]], room: int | None = None) -> list[Encoded]:
        """What the model reads before it writes.

        Raises:
            UserError: a mistake in the template, a missing column, a row that does not fit, or other
                soft tokens than those that were tuned.
        """
        for number, row in enumerate(rows, 1):
            if missing := [c for c in self.task.inputs if c not in row]:
                raise UserError(
                    f"Row {number} has no column {missing[0]!r}. Its columns: {listed(list(row), 30)}."
                )
        template = self.template
        prompts = [Prompt((*self.opening, *template.render(row).parts)) for row in rows]
        found = self.writer.sources(prompts, room or self.room, template.origin)
        if self.weights is not None and self.weights.added is not None:
            self.weights.added.check(found, template.origin)
        self.count_cuts(found, "", self.backbone.encoder.max_length, self.report, "Reading")
        return found

    def tokens(
        self, sources: Sequence[Encoded], rows: Sequence[Mapping[str, Any]]
    ) -> list[tuple[int, ...]]:
        """The tokens of the rows' own texts, cut where the model cannot take them.

        Raises:
            UserError: a row without a text.
        """
        column = self.task.label_column
        for number, row in enumerate(rows, 1):
            if not str(row.get(column) or "").strip():
                raise UserError(
                    f"Row {number} has no text in the column {column!r}. Fill it in or delete the row."
                )
        found = self.writer.tokens(sources, [str(row[column]) for row in rows])
        cut = [ids[: self.writer.space(s)] for s, ids in zip(sources, found, strict=True)]
        if (long := sum(map(len, found)) - sum(map(len, cut))) and self.warn_cuts:
            self.report.warn(
                f"{long} tokens of texts were cut, which do not fit into the model's "
                f"{self.backbone.encoder.max_length} after their prompts. A larger max_new_tokens cuts the "
                "prompts instead."
            )
        return cut

    # --- what it does ---------------------------------------------------------------------

    @in_turn
    def generate(
        self,
        rows: Sequence[Mapping[str, Any]],
        decoding: Decoding | None = None,
        *,
        label: str = "Generating",
        meter: Meter | None = None,
    ) -> list[str]:
        """The text of each row.

        Equal prompts are written once, unless texts are sampled.

        Args:
            decoding: how texts are chosen; by default as this generator was made.
            meter: is told of each finished row; by default one of the reporter's, called `label`.

        Raises:
            UserError: no rows, a missing column, a row that does not fit.
            PromptForgeError: memory ran out.
        """
        if not rows:
            raise UserError("There are no rows to write for.")
        if meter is None:
            with self.report.meter(label, len(rows)) as own:
                return self.generate(rows, decoding, meter=own)
        decoding = decoding or self.decoding
        room = self._room(decoding.max_new_tokens or self.room)
        self.backbone.apply(self.weights)
        self.backbone.model.eval()
        sources = self.sources(rows, room)
        places: dict[Any, list[int]] = {}
        for i, e in enumerate(sources):
            places.setdefault((i if decoding.sample else 0, e.key), []).append(i)
        groups = list(places.values())
        texts = [""] * len(rows)
        device = self.backbone.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(decoding.seed)
            for batch in self._batches([sources[g[0]] for g in groups], room * decoding.beams):
                chosen = [sources[groups[i][0]] for i in batch]
                try:
                    written = self.writer.write(chosen, decoding.config(room))
                except torch.OutOfMemoryError as error:
                    raise PromptForgeError(
                        f"Out of memory at {self.backbone.batch_tokens} tokens a batch: lower it."
                    ) from error
                for i, ids in zip(batch, written, strict=True):
                    for place in groups[i]:
                        texts[place] = self.writer.text(ids)
                    meter.advance(len(groups[i]))
        return texts

    def _batches(self, sources: Sequence[Encoded], more: int) -> Iterator[list[int]]:
        """Prompts of like length within the token budget, `more` tokens to come in each row."""
        order = sorted(range(len(sources)), key=lambda i: len(sources[i].ids))
        batch: list[int] = []
        for i in order:
            if (
                batch
                and (len(sources[i].ids) + more) * (len(batch) + 1) > self.backbone.batch_tokens
            ):
                yield batch
                batch = []
            batch.append(i)
        yield batch

    @in_turn
    @torch.no_grad()
    def losses(
        self, rows: Sequence[Mapping[str, Any]], label: str = "Reading"
    ) -> tuple[Tensor, Tensor]:
        """Minus log-probability of each row's text, in nats, and its tokens; [rows] both.

        Raises:
            UserError: a row without a text, and as `sources`.
        """
        self.backbone.apply(self.weights)
        sources = self.sources(rows)
        tokens = self.tokens(sources, rows)
        told = [self.writer.told(*pair) for pair in zip(sources, tokens, strict=True)]
        out = torch.zeros(len(rows))
        with self.report.meter(label, len(rows)) as meter:
            for batch in self.backbone.batches(told):
                found = self.writer.surprise(batch, [tokens[i] for i in batch.indices])
                own = torch.zeros(len(batch.indices), device=found.device)
                out[batch.indices] = own.index_add(0, batch.rows, found).cpu()
                meter.advance(len(batch.indices))
        return out, torch.tensor([len(ids) for ids in tokens])

    def loss(self, rows: Sequence[Mapping[str, Any]], label: str = "Reading") -> float:
        """Mean of minus log-probability of a token of the rows' texts, in nats."""
        losses, tokens = self.losses(rows, label)
        return float(losses.double().sum() / tokens.sum())

    def evaluate(
        self,
        rows: Sequence[Row],
        decoding: Decoding | None = None,
        label: str = "Generating",
    ) -> TextEvaluation:
        """How good the texts are beside the rows' own; rows with equal inputs are one source.

        Raises:
            UserError: as `generate` and `losses`; sacrebleu or rouge-score is not installed.
        """
        if not rows:
            raise UserError("There are no rows to measure on.")
        losses, tokens = self.losses(rows, f"{label}: likelihood")
        by_source: dict[Any, list[Row]] = {}
        for row in rows:
            by_source.setdefault(tuple(str(row[c]) for c in self.task.inputs), []).append(row)
        written = self.generate([own[0] for own in by_source.values()], decoding, label=label)
        column = self.task.label_column
        references = [[str(row[column]).strip() for row in own] for own in by_source.values()]
        loss = float(losses.double().sum() / tokens.sum())
        evaluation = TextEvaluation.of(written, references, loss, int(tokens.sum()))
        manager().pm.hook.promptforge_evaluated(evaluation=evaluation)
        return evaluation

    # --- on disk --------------------------------------------------------------------------

    def save(self, folder: str | Path, about: Mapping[str, Any] | None = None) -> None:
        """Write an artifact; see `promptforge.artifact.save`."""
        save_artifact(self, folder, about)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        backbone: Backbone | None = None,
        report: Reporter | None = None,
        **options: Any,
    ) -> Generator:
        """What `save` wrote, from its folder or its run's; see `promptforge.artifact.load`.

        Raises:
            UserError: no artifact, one of another kind, another backbone, or templates that were
                changed after the tuning.
            PromptForgeError: its files are damaged.
        """
        found = open_parts(folder, backbone=backbone, report=report, **options)
        data = found.data
        if data["kind"] != cls.kind:
            raise UserError(f"{folder} is no generator but a {data['kind']} model.")
        task = Task.from_json(data["task"])
        check_templates(data, task, found.weights)
        return cls(
            found.backbone, task, weights=found.weights,
            decoding=Decoding.of(**data["decoding"]), room=data["room"], report=report,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """All but backbone and tensors."""
        decoding = self.decoding.model_dump(exclude_unset=True)
        return {
            "kind": self.kind, "task": self.task.to_json(), "room": self.room, "decoding": decoding,
            "templates": templates_hash(self.task),
        }  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """None besides the tuned weights."""
        return {}
