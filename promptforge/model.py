"""A prompt model: a backbone, a task's patterns, and label words. The whole path in one place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor

from promptforge.backbone.base import Backbone
from promptforge.backbone.turns import in_turn
from promptforge.backbone.weights import Weights
from promptforge.calibration import Calibration
from promptforge.classifier import Classifier, Probabilities, Rows
from promptforge.encode import Encoded
from promptforge.errors import UserError, listed
from promptforge.plugins import build
from promptforge.progress import Reporter
from promptforge.readout import Readout
from promptforge.row_json import row_to_json
from promptforge.selection import DemonstrationSelector
from promptforge.task import TASK_FILE, Task
from promptforge.template import Mask, Prompt, Soft
from promptforge.truncation import CutCounter
from promptforge.verbalizer import LabelWords, Verbalizer


@dataclass(frozen=True)
class Filled:
    """A word the model would write at a mask."""

    word: str
    token: int
    probability: float


class PromptModel(CutCounter, Classifier):
    """Classifies rows with prompts.

    Several patterns are averaged: each gives class probabilities, and their mean decides.
    Hidden states at the masks are remembered, so reading the same rows for other label words
    costs no second pass through the model.

    Args:
        backbone: the language model.
        task: labels and patterns.
        words: pattern -> label -> words, which replace the task's; "*" is for all patterns without
            their own. Or what a search found, or a file holds.
        verbalizer: a component or its name.
        calibration: a component, its name, or None.
        demonstrations: a fitted selector of rows to show in each prompt, or None.
        samples: how many draws of demonstrations are averaged, where the selector draws.
        options: options for the verbalizer when it is given by name.
        remember: keep the hidden states of what was read.
        weights: tuned weights that take the place of the backbone's own while this model reads.
        tuned: pattern -> tuned parameters of its verbalizer, by name.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        words: LabelWords | Mapping[str, Mapping[str, str | Sequence[str]]] | None = None,
        verbalizer: str | Verbalizer | None = None,
        calibration: str | Calibration | None = None,
        demonstrations: DemonstrationSelector | None = None,
        samples: int = 1,
        options: Mapping[str, Any] | None = None,
        remember: bool = True,
        weights: Weights | None = None,
        tuned: Mapping[str, Mapping[str, Tensor]] | None = None,
        report: Reporter | None = None,
    ) -> None:
        super().__init__()
        backbone.need_head()
        self.backbone = backbone
        self.weights = weights
        self.tuned = dict(tuned or {})
        self.report = report or Reporter()
        self.demonstrations = demonstrations
        self.samples = samples
        if isinstance(words, LabelWords):
            words.check_labels(list(task.labels), "The verbalizer file")
            verbalizer = verbalizer or words.verbalizer
            options = {**words.options, **(options or {})}
            words = words.patterns
        self.task = task.with_words(words) if words else task
        self.labels = tuple(task.labels)
        self.scale = task.scale
        self._prototype: Verbalizer = (
            verbalizer
            if isinstance(verbalizer, Verbalizer)
            else build("verbalizer", verbalizer or "manual", **(options or {}))
        )
        self._calibration = (
            build("calibration", calibration) if isinstance(calibration, str) else calibration
        )
        self._verbalizers: dict[str, Verbalizer] = {}
        self._calibrations: dict[str, Calibration] = {}
        self._spaces: dict[str, bool] = {}  # pattern -> whether one stands before the mask
        self._warned: set[str] = set()
        self._states: dict[Any, Tensor] | None = {} if remember else None
        self._opening: tuple[Soft, ...] = ()  # while its soft tokens are trained

    def with_words(
        self, words: LabelWords | Mapping[str, Mapping[str, str | Sequence[str]]]
    ) -> PromptModel:
        """The same model and memory with other label words.

        `LabelWords` that name options or a verbalizer bring their own; else this model's stays.
        What a verbalizer has learned belongs to its words: it stays with the patterns that keep
        theirs, and the others begin anew, with a warning.
        """
        own = isinstance(words, LabelWords) and (words.options or words.verbalizer != "manual")
        made = PromptModel(
            self.backbone, self.task, words=words, calibration=self._calibration,
            verbalizer=None if own else self._prototype.model_copy(),
            demonstrations=self.demonstrations, samples=self.samples, weights=self.weights, report=self.report,
        )  # fmt: skip
        same = {p for p in self.tuned if made.task.words_for(p) == self.task.words_for(p)}
        made.tuned = {p: self.tuned[p] for p in same if not own}
        if lost := [p for p in self.tuned if p not in made.tuned]:
            self.report.warn(
                f"What the verbalizer of {listed(lost)} has learned was for other words or another verbalizer, "
                "and is left out: tune or calibrate the model with the new ones."
            )
        made._states = self._states
        made.warn_cuts = self.warn_cuts
        return made

    def to_json(self) -> dict[str, Any]:
        """Everything but the backbone and the tensors, for an artifact."""
        shown: dict[str, Any] | None = None
        if self.demonstrations is not None:
            chosen = self.demonstrations
            shown = {
                "name": chosen.name, "options": chosen.model_dump(mode="json"),
                "examples": [{**vars(e), "row": row_to_json(e.row)} for e in chosen.fitted_on],
            }  # fmt: skip
        return {
            "task": self.task.to_json(),
            "verbalizer": {
                "name": self._prototype.name,
                "options": self._prototype.model_dump(mode="json"),
            },
            "demonstrations": shown,
            "samples": self.samples,
        }

    @property
    def slot(self) -> int:
        """Which mask its verbalizer reads, counted from 0."""
        return self._prototype.slot

    def forget(self) -> None:
        """Remember no hidden states, from now on."""
        self._states = None

    # --- rows to readouts -----------------------------------------------------------------

    def prompt(self, pattern: str, row: Mapping[str, Any], draw: int | None = None) -> Prompt:
        """What a pattern makes of a row; `draw` numbers the sample of demonstrations."""
        demos = []
        if self.demonstrations:
            chosen = self.demonstrations
            demos = chosen.select(row) if draw is None else chosen.sample(row, draw)
        words = self.task.words_for(pattern)
        made = self.task.patterns[pattern].template.render(
            row,
            labels=self.labels,
            words=words,
            demos=[(d.row, d.label) for d in demos],
            shown=[self._prototype.shown(d.label, words.get(d.label, ()), d.row) for d in demos],
        )
        return Prompt((*self.opening, *made.parts)) if self.opening else made

    @property
    def opening(self) -> tuple[Soft, ...]:
        """Soft tokens that stand before every prompt: those its weights were tuned with."""
        added = self.weights.added if self.weights else None
        return added.opening if added is not None else self._opening

    @opening.setter
    def opening(self, parts: tuple[Soft, ...]) -> None:
        self._opening = parts

    def encode(self, pattern: str, prompts: Sequence[Prompt]) -> list[Encoded]:
        """Prompts of a pattern as the model takes them, with room for its longest word."""
        origin = self.task.patterns[pattern].template.origin
        reserve = 0
        words = self.task.words_for(pattern)
        if prompts and words and all(words.values()):
            slots = self.backbone.encode(prompts[:1], origin=origin)[0].slots
            reserve = self._longest(pattern, {s.space_before for s in slots}) - 1
            if not reserve and len(slots) == 1 and slots[0].length > 1:
                # A word is read at as many masks as it has tokens, whatever the template says.
                prompts = [prompt.with_mask(Mask()) for prompt in prompts]
        reserve = max(reserve, self._prototype.room)
        encoded = self.backbone.encode(prompts, reserve=reserve, origin=origin)
        if self.weights is not None and self.weights.added is not None:
            self.weights.added.check(encoded, origin)
        return encoded

    def _longest(self, pattern: str, spaces: Iterable[bool]) -> int:
        words = [w for ws in self.task.words_for(pattern).values() for w in ws]
        texts = [f" {w}" if space else w for w in words for space in spaces]
        return max(len(ids) for ids in self.backbone.text.ids(texts))

    def read(
        self,
        pattern: str,
        rows: Sequence[Mapping[str, Any]],
        what: str = "Reading",
        draw: int | None = None,
    ) -> Readout:
        """Run the model over `rows` with one pattern; `draw` numbers a sample of demonstrations.

        Raises:
            UserError: a mistake in the template, or a row that does not fit the model.
        """
        self.backbone.apply(self.weights)
        encoded = self.encode_rows(pattern, rows, draw, what)
        label = f"{what}, pattern {pattern}" if len(self.task.patterns) > 1 else what
        return Readout(self.backbone, encoded, self._remembered(encoded, label), rows)

    def encode_rows(
        self,
        pattern: str,
        rows: Sequence[Mapping[str, Any]],
        draw: int | None = None,
        what: str = "Reading",
    ) -> list[Encoded]:
        """The prompts of `rows` as the model takes them; what was cut is counted and said.

        Raises:
            UserError: as `read`.
        """
        if not rows:
            raise UserError("There are no rows to read.")
        if self.demonstrations is not None:
            self.demonstrations.prepare(rows)
        encoded = self.encode(pattern, [self.prompt(pattern, row, draw) for row in rows])
        counts = [len(e.reads) for e in encoded]
        if (other := next((i for i, n in enumerate(counts) if n != counts[0]), None)) is not None:
            raise UserError(
                f"{self.task.patterns[pattern].template.origin} gives some rows more masks than others; "
                f"every row needs as many. {counts[0]} where {_short(rows[0])}; "
                f"{counts[other]} where {_short(rows[other])}"
            )
        self.count_cuts(encoded, pattern, self.backbone.encoder.max_length, self.report, what)
        self._warn_of_spaces(pattern, encoded)
        return encoded

    def _warn_of_spaces(self, pattern: str, encoded: Sequence[Encoded]) -> None:
        """Warn once of a pattern that has a space before the mask in some rows only."""
        if self.slot >= len(encoded[0].slots):
            return
        first = self._spaces.setdefault(pattern, encoded[0].slots[self.slot].space_before)
        others = (e.slots[self.slot].space_before != first for e in encoded)
        row = next((i for i, other in enumerate(others, start=1) if other), None)
        if row is not None and pattern not in self._warned:
            self._warned.add(pattern)
            self.report.warn(
                f"Pattern {pattern}: row {row} has {'no' if first else 'a'} space before the mask and others have "
                f"{'one' if first else 'none'}, so its words are not written as it would write them. Let the template "
                "give all rows the same."
            )

    def _remembered(self, encoded: list[Encoded], label: str) -> Tensor:
        if self._states is None:
            return self.backbone.states(encoded, self.report, label)
        keys = [e.key for e in encoded]
        new = {key: e for key, e in zip(keys, encoded, strict=True) if key not in self._states}
        if new:
            states = self.backbone.states(list(new.values()), self.report, label)
            self._states.update(zip(new, states, strict=True))
        known = self._states
        return torch.stack([known[key] for key in keys])

    # --- readouts to classes --------------------------------------------------------------

    def verbalizer(self, pattern: str, encoded: Encoded) -> Verbalizer:
        """The verbalizer of a pattern, bound to its words; `encoded` is any prompt of it."""
        if pattern not in self._verbalizers:
            made = self._prototype.model_copy(deep=True)
            if made.slot >= (masks := len(encoded.slots)):
                raise UserError(
                    f"slot={made.slot}: the template has {masks} mask(s), counted from 0."
                )
            # What it starts from is the model's own, whatever is tuned; and it can be trained.
            self.backbone.apply(None)
            words, folder = self.task.words_for(pattern), self.task.folder
            with torch.inference_mode(False), torch.no_grad():
                try:
                    made.bind(
                        self.labels, words, self.backbone,
                        space_before=encoded.slots[made.slot].space_before, report=self.report,
                    )  # fmt: skip
                except UserError as error:
                    # Only here is it known which file the words that are missing belong to.
                    if folder is None or words is not self.task.labels or all(words.values()):
                        raise
                    raise UserError(f"{folder / TASK_FILE}: {error}") from None
                for name, value in self.tuned.get(pattern, {}).items():
                    made.parameters()[name].copy_(value)
            self.backbone.apply(self.weights)
            self._verbalizers[pattern] = made
        return self._verbalizers[pattern]

    def class_scores(self, pattern: str, readout: Readout) -> Tensor:
        """Class scores of a pattern in log space, [rows, labels], calibrated where asked."""
        self.make_ready(pattern, readout.encoded[0])
        with torch.inference_mode():
            scores = self.verbalizer(pattern, readout.encoded[0]).class_scores(readout)
        return scores if self._calibration is None else self._calibrations[pattern].apply(scores)

    def make_ready(self, pattern: str, encoded: Encoded) -> None:
        """Bind the verbalizer of a pattern and fit its calibration, once; `encoded`: any prompt of it.

        After this the scores of a readout need nothing but the model that was read.
        """
        self.verbalizer(pattern, encoded)
        if self._calibration is None or pattern in self._calibrations:
            return
        if self._calibration.needs_rows:
            raise UserError(
                f"calibration {self._calibration.name!r} learns from rows: call calibrate(rows) first "
                "(on the command line: --unlabeled FILE)."
            )
        self.backbone.apply(self.weights)
        self._fit_calibration(pattern, None)

    @in_turn
    def calibrate(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Fit verbalizer and calibration on rows (their labels are never looked at)."""
        fits = self._prototype.fits_rows
        if fits:
            for pattern in self.task.patterns:
                readout = self.read(pattern, rows, "Fitting the verbalizer")
                verbalizer = self.verbalizer(pattern, readout.encoded[0])
                verbalizer.fit(readout)
                self.tuned[pattern] = {
                    name: p.detach().clone() for name, p in verbalizer.parameters().items()
                }
        if self._calibration is None:
            if fits:
                return
            raise UserError(
                "The model has no calibration to fit: give one, for example calibration='batch'."
            )
        for pattern in self.task.patterns:
            scores = None
            # The template says how its words are written, not what a calibration reads besides.
            if rows:
                self.verbalizer(pattern, self.encode(pattern, [self.prompt(pattern, rows[0])])[0])
            if self._calibration.needs_rows:
                readout = self.read(pattern, rows, "Calibrating")
                with torch.inference_mode():
                    scores = self.verbalizer(pattern, readout.encoded[0]).class_scores(readout)
            self._fit_calibration(pattern, scores)

    def _fit_calibration(self, pattern: str, scores: Tensor | None) -> None:
        assert self._calibration is not None

        def score(prompts: Sequence[Prompt]) -> Tensor:
            opening = self.opening
            prompts = [
                p if p.parts[: len(opening)] == opening else Prompt((*opening, *p.parts))
                for p in prompts
            ]
            encoded = self.encode(pattern, prompts)
            readout = Readout(self.backbone, encoded, self.backbone.states(encoded))
            with torch.inference_mode():
                return self.verbalizer(pattern, readout.encoded[0]).class_scores(readout)

        made = self._calibration.model_copy(deep=True)
        template = self.task.patterns[pattern].template
        columns = [c for c in template.columns if c in self.task.inputs]
        made.fit(
            self.task.patterns[pattern],
            columns,
            lambda row: self.prompt(pattern, row),
            score,
            scores,
        )
        self._calibrations[pattern] = made

    @property
    def draws(self) -> list[int | None]:
        """The samples of demonstrations that are averaged; [None] where there is but one way."""
        varies = self.demonstrations is not None and self.demonstrations.varies
        return [*range(self.samples)] if varies and self.samples > 1 else [None]

    @in_turn
    def part_probabilities(self, rows: Rows, what: str = "Reading") -> dict[str, Probabilities]:
        """Class probabilities of each pattern, [rows, labels]: the mean over the samples."""
        return {name: self._probabilities(name, rows, what) for name in self.task.patterns}

    def _probabilities(self, pattern: str, rows: Rows, what: str) -> Probabilities:
        found = [
            torch.softmax(
                self.class_scores(pattern, self.read(pattern, rows, what, d)).double(), -1
            )
            for d in self.draws
        ]
        return torch.stack(found).mean(0).cpu().numpy()

    @in_turn
    def fill(self, row: Mapping[str, Any], top: int = 10) -> dict[str, list[list[Filled]]]:
        """The most likely tokens: pattern -> per place in its masks -> words, best first."""
        return {
            pattern: self.likely(self.read(pattern, [row]).states[0], top)
            for pattern in self.task.patterns
        }

    def likely(self, states: Tensor, top: int = 10) -> list[list[Filled]]:
        """The most likely tokens at each of `states`, [places, d], best first."""
        log_probs = self.backbone.log_probs(states)
        best = log_probs.topk(min(top, log_probs.shape[1]))
        return [
            [
                Filled(self.backbone.tokenizer.decode([t]), t, p)
                for t, p in zip(tokens, probs, strict=True)
            ]
            for tokens, probs in zip(best.indices.tolist(), best.values.exp().tolist(), strict=True)
        ]


def _short(row: Mapping[str, Any]) -> str:
    """What tells a row from others, for whoever has to find it in a large table."""
    return shorten(", ".join(f"{name}: {value}" for name, value in row.items()), 100)
