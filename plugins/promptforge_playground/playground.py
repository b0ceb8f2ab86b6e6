"""What the page asks for: a row rendered, read by the model, and a pattern saved."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from promptforge._version import __version__
from promptforge.backbone.base import Backbone
from promptforge.cli.render import prompt_json
from promptforge.encode import Encoded
from promptforge.errors import UserError, listed
from promptforge.model import PromptModel
from promptforge.progress import Reporter
from promptforge.readout import Readout
from promptforge.selection import DemonstrationSelector
from promptforge.task import Task
from promptforge.template import Template, of_column
from promptforge.verbalizer import Words
from promptforge_playground.saving import Saved, Shelf
from promptforge_playground.turns import Turns

#: Characters of a template or of a value that the page may send.
MOST_CHARACTERS = 100_000
#: Tokens of rows whose keys and values are kept, so that only what was typed is read.
_KEPT_TOKENS = 4096


class Draft(BaseModel):
    """What is on the page.

    Attributes:
        row: number of the row, from 1.
        values: columns whose value the page changed.
        words: label -> words; None: the pattern's.
        page, serial: a request is dropped when the page has sent one with a higher number.
        stamp: of the pattern on the disk that the page started from.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    pattern: str
    template: str = Field(max_length=MOST_CHARACTERS)
    words: Words | None = None
    row: int = Field(1, ge=1)
    values: dict[str, str] = {}
    page: str = Field("", max_length=64)
    serial: int = Field(0, ge=0, lt=2**53)
    stamp: str | None = None


@dataclass(frozen=True)
class Shown:
    """A row of the page, and its label where the data has one."""

    values: Mapping[str, Any]
    label: str | None = None


class _Notes(Reporter):
    """Keeps what a person should know."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, text: str) -> None:
        self.said.append(text)


class Playground:
    """A task, its rows and a model, asked from several threads.

    Args:
        task: what is asked; its patterns are what the page starts from.
        backbone: the model.
        rows: at least one.
        demonstrations: a fitted selector, or None.
        shelf: where patterns are saved.
    """

    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        rows: Sequence[Shown],
        *,
        demonstrations: DemonstrationSelector | None = None,
        shelf: Shelf | None = None,
    ) -> None:
        self.task = task
        self.backbone = backbone
        self.rows = list(rows)
        self.demonstrations = demonstrations
        self.shelf = shelf or Shelf(task)
        try:
            layers = backbone.layers.modules
        except UserError:  # such a model is read to its end
            layers = ()
        self.turns = Turns(layers)
        self._kept: OrderedDict[int, tuple[int, Any]] = OrderedDict()

    def state(self) -> dict[str, Any]:
        """All that the page begins with."""
        task, folder, on_disk = self.task, self.shelf.folder, self.shelf.patterns()
        return {
            "version": __version__,
            "task": task.name,
            "description": task.description,
            "folder": str(folder) if folder else None,
            "refusal": self.shelf.refusal,
            "model": self.backbone.name,
            "family": self.backbone.family,
            "inputs": list(task.binary.inputs),
            "expressions": [of_column(c) for c in task.binary.inputs],
            "labels": list(task.labels),
            "scale": bool(task.scale),
            "patterns": [self._told(name, on_disk) for name in task.patterns],
            "rows": [
                {
                    "values": {c: str(shown.values.get(c, "")) for c in task.binary.inputs},
                    "label": shown.label,
                }
                for shown in self.rows
            ],
        }

    def pattern(self, name: str) -> dict[str, Any]:
        """A pattern as it is on the disk, or as the task was opened with it."""
        self._pattern(name)  # says what there is
        return self._told(name, self.shelf.patterns())

    def _told(self, name: str, on_disk: Mapping[str, Saved]) -> dict[str, Any]:
        pattern, saved = self.task.patterns[name], on_disk.get(name)
        return {
            "pattern": name,
            "description": pattern.description,
            "template": saved.source if saved else pattern.template.source,
            "words": saved.words if saved else self.task.words_for(name),
            "stamp": saved.stamp if saved else None,
            "file": str(saved.file) if saved else None,
        }

    def render(self, draft: Draft) -> dict[str, Any]:
        """The parts and tokens of a row, as `promptforge render --json` names them.

        Beside them stand `pieces`, the text of each token, and `most`, how many the model takes.

        Raises:
            UserError: a mistake in the template, with file, line and hint.
            Stale: the page has asked for something newer.
        """
        with self.turns.turn(draft.page, draft.serial):
            model = self._model(draft)
            prompt = model.prompt(draft.pattern, self._row(draft))
            encoded = model.encode(draft.pattern, [prompt])[0]
            pieces = [self._piece(i) for i in (*encoded.ids, *encoded.decoder_ids)]
            return {
                **prompt_json(draft.pattern, prompt, encoded, self.backbone),
                "pieces": pieces[: len(encoded.ids)],
                "decoder_pieces": pieces[len(encoded.ids) :],
                "most": self.backbone.encoder.max_length,
            }

    def read(self, draft: Draft, top: int = 10) -> dict[str, Any]:
        """The words at the masks as `promptforge fill --json` names them, and the classes.

        `classes` is label -> probability, None where a label has no words or `error` says what
        is wrong with them; `decided` is the label, or the number of a task with a scale.

        Raises:
            UserError, Stale: as `render`.
        """
        with self.turns.turn(draft.page, draft.serial), torch.inference_mode():
            notes = _Notes()
            model = self._model(draft, notes)
            row, name = self._row(draft), draft.pattern
            encoded = model.encode_rows(name, [row])
            readout = Readout(self.backbone, encoded, self._states(draft.row, encoded[0]), [row])
            words = [[vars(f) for f in place] for place in model.likely(readout.states[0], top)]
            out: dict[str, Any] = {"words": words, "classes": None, "decided": None, "error": None}
            given = model.task.words_for(name)
            if given and all(given.values()):
                try:
                    scores = model.class_scores(name, readout)
                    found = torch.softmax(scores.double(), -1).cpu().numpy()
                except UserError as error:
                    out["error"] = str(error)
                else:
                    out["classes"] = dict(zip(model.labels, found[0].tolist(), strict=True))
                    out["decided"] = model.decide(found)[0]
            return {**out, "notes": notes.said}

    def save(self, draft: Draft) -> dict[str, Any]:
        """Write the draft's template and words to the task folder; the pattern as it is then.

        `others` are the task's other patterns, each with `was`, its stamp before: a page that has
        that one has seen all but this save.

        Raises:
            Conflict: the pattern changed on the disk since `draft.stamp`.
            UserError: a mistake in it, or a task that cannot be saved.
        """
        with self.turns.turn():
            self._model(draft)
            task = self._task(draft, self.task.patterns)
            if any(not words for words in task.words_for(draft.pattern).values()):
                raise UserError("A label has no words: give each at least one, then save.")
            before, after = self.shelf.save(task, draft.pattern, draft.stamp)
            others = [
                {**self._told(name, after), "was": before[name].stamp if name in before else None}
                for name in self.task.patterns
                if name != draft.pattern
            ]
            told = self._told(draft.pattern, after)
            return {**told, "saved": told["file"], "others": others}

    def close(self) -> None:
        """Wait for what is under way; nothing is answered any more."""
        self.turns.close()

    # --- from a draft ---------------------------------------------------------------------

    def _pattern(self, name: str) -> Any:
        if name not in self.task.patterns:
            self.task.choose([name])  # says what there is
        return self.task.patterns[name]

    def _task(self, draft: Draft, patterns: Mapping[str, Any]) -> Task:
        """The task with the draft in place of its pattern."""
        pattern = self._pattern(draft.pattern)
        words = draft.words
        if words is not None and words.keys() != self.task.labels.keys():
            raise UserError(f"The labels are {listed(list(self.task.labels))}.")
        template = Template(
            draft.template,
            name=draft.pattern,
            origin=pattern.template.origin,
            renderer=pattern.template.renderer,
        )
        # The page always sends words; those that the task has anyway are not the pattern's own.
        own = words if words and words != self.task.words_for(draft.pattern) else pattern.words
        made = replace(pattern, template=template, words=own)
        return replace(self.task, patterns={**patterns, draft.pattern: made})

    def _model(self, draft: Draft, report: Reporter | None = None) -> PromptModel:
        task = self._task(draft, {})
        task.check(family=self.backbone.family)
        model = PromptModel(
            self.backbone, task.binary, demonstrations=self.demonstrations, remember=False,
            report=report or _Notes(),
        )  # fmt: skip
        model.warn_cuts = False  # the page shows them
        return model

    def _row(self, draft: Draft) -> dict[str, Any]:
        if draft.row > len(self.rows):
            raise UserError(f"There is no row {draft.row}: the page has {len(self.rows)}.")
        values, columns = self.rows[draft.row - 1].values, self.task.binary.inputs
        if strange := [c for c in draft.values if c not in columns]:
            raise UserError(
                f"{strange[0]!r} is no column of the task. It has: {listed(list(columns))}."
            )
        return {**values, **draft.values}

    def _piece(self, token: int) -> str:
        """The text of a token, with the space that SentencePiece drops where a text begins."""
        tokenizer = self.backbone.tokenizer
        space = " " if str(tokenizer.convert_ids_to_tokens(token)).startswith("▁") else ""
        return space + str(tokenizer.decode([token])).removeprefix(space)

    def _states(self, row: int, encoded: Encoded) -> torch.Tensor:
        """States at the masks; of a row that was read before only what changed is read again."""
        self.backbone.apply(None)
        states, kept = self.backbone.read_on(encoded, self._kept.pop(row, (0, None))[1])
        if kept is not None:
            self._kept[row] = (len(encoded.ids), kept)
            while sum(n for n, _ in self._kept.values()) > _KEPT_TOKENS:
                self._kept.popitem(last=False)
        return states
