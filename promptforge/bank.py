"""Many tuned tasks over one frozen model: rows of different tasks in one forward pass."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from promptforge import artifact
from promptforge.backbone.addition import Addition, Folded
from promptforge.backbone.attached import check_names
from promptforge.backbone.base import Backbone
from promptforge.backbone.weights import Weights
from promptforge.classifier import Classifier, Probabilities, finite
from promptforge.encode import Encoded
from promptforge.errors import UserError, did_you_mean
from promptforge.model import PromptModel
from promptforge.multilabel import MultiLabelModel
from promptforge.progress import Reporter
from promptforge.readout import Readout

Row = Mapping[str, Any]


@dataclass(frozen=True)
class _Tasks:
    """The tasks of a bank at one time; never changed, only replaced."""

    classifiers: dict[str, Classifier] = field(default_factory=dict)
    models: dict[str, PromptModel] = field(default_factory=dict)
    weights: Weights | None = None

    def with_(self, name: str, classifier: Classifier, model: PromptModel) -> _Tasks:
        return _Tasks.of({**self.classifiers, name: classifier}, {**self.models, name: model})

    def without(self, name: str) -> _Tasks:
        return _Tasks.of(
            {k: v for k, v in self.classifiers.items() if k != name},
            {k: v for k, v in self.models.items() if k != name},
        )

    @classmethod
    def of(cls, classifiers: dict[str, Classifier], models: dict[str, PromptModel]) -> _Tasks:
        return cls(classifiers, models, Weights(each=[_added(m) for m in models.values()]))


class TaskBank:
    """One frozen model and many tasks, each with an addition, label words and templates of its own.

    A task is a prompt model that was tuned by a method that only adds to the model (soft prompt,
    prefix, adapter, LoRA, MAM), or not tuned at all. What it costs is what its parameters weigh.
    Rows of all tasks are read together, in batches by length, with the same results as alone.

    Tasks may be added, replaced and dropped from any thread at any time: a prediction that is under
    way goes on with the tasks that were there when it began. Predictions take turns, also with
    whatever else reads or tunes the model.

        bank = TaskBank(load_model("minilm-mlm"))
        bank.add("films", "runs/films-prompt-13")
        bank.predict([("films", {"text": "Dull."}), ...])

    Args:
        backbone: the loaded language model.
        report: where warnings go.
    """

    def __init__(self, backbone: Backbone, report: Reporter | None = None) -> None:
        self.backbone = backbone
        self.report = report or Reporter()
        self._tasks = _Tasks()
        self._changes = threading.Lock()
        self._left = False  # whether a task that is gone may still be in the model

    @classmethod
    def load(
        cls, artifacts: Mapping[str, str | Path], *, report: Reporter | None = None, **options: Any
    ) -> TaskBank:
        """A bank of artifacts, with the model that they were tuned from.

        Args:
            artifacts: name -> folder of an artifact or run; at least one.
            options: for `load_model`: device, dtype, batch_tokens.

        Raises:
            UserError: as for `add`; no artifact.
            PromptForgeError: damaged files.
        """
        if not artifacts:
            raise UserError("A bank is loaded from one artifact or more.")
        first = next(iter(artifacts.values()))
        backbone = artifact.open_parts(first, report=report, **options).backbone
        bank = cls(backbone, report)
        for name, folder in artifacts.items():
            bank.add(name, folder)
        return bank

    # --- the tasks ------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tasks, in the order in which they came."""
        return tuple(self._tasks.classifiers)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._tasks.classifiers

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, name: str) -> Classifier:
        """The classifier of a task.

        Raises:
            UserError: there is no such task.
        """
        return _known(self._tasks, name)

    def add(self, name: str, classifier: Classifier | str | Path) -> None:
        """Take a task in.

        Args:
            name: what rows call it.
            classifier: a tuned or untuned `PromptModel` on this backbone (or a `MultiLabelModel` of
                one), or the folder of an artifact or run.

        Raises:
            UserError: there is a task of that name; it was tuned on another model, or on one that
                reads otherwise (attention, positions, longest prompt, way of asking), by a method that
                changes the model's own weights, or puts modules of its own into the model; it is
                no prompt model.
            PromptForgeError: its files are damaged, or its tensors hold numbers that are not finite.
        """
        if name in self:
            raise _taken(name)
        found = self._checked(name, classifier)
        with self._changes:
            if name in self:  # another thread was quicker
                raise _taken(name)
            self._tasks = self._tasks.with_(name, *found)

    def replace(self, name: str, classifier: Classifier | str | Path) -> None:
        """Put another classifier in the place of a task's.

        Raises:
            UserError: there is no such task, or as for `add`.
        """
        _known(self._tasks, name)
        found = self._checked(name, classifier)
        with self._changes:
            _known(self._tasks, name)
            self._tasks = self._tasks.with_(name, *found)
        self._release()

    def drop(self, name: str) -> None:
        """Let a task go, and its memory: at once, or when the prediction under way has ended.

        Raises:
            UserError: there is no such task.
        """
        with self._changes:
            _known(self._tasks, name)
            self._tasks = self._tasks.without(name)
        self._release()

    def _release(self) -> None:
        """Take all tasks out of the model; the next prediction puts those in that are left."""
        self._left = True
        self._clear()

    def _clear(self) -> None:
        # Whoever has the model clears it afterwards, and looks again after that: nothing is left.
        busy = self.backbone.busy
        while self._left and busy.acquire(blocking=False):
            try:
                if busy.entered > 1:  # this thread itself, further up, reads some model
                    return
                self._left = False
                self.backbone.apply(None)
            finally:
                busy.release()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The model for oneself."""
        try:
            with self.backbone.busy:
                yield
        finally:
            self._clear()

    def _checked(
        self, name: str, classifier: Classifier | str | Path
    ) -> tuple[Classifier, PromptModel]:
        if isinstance(classifier, str | Path):
            with self._alone():  # it may look at the model
                classifier = artifact.load(classifier, backbone=self.backbone, report=self.report)
        model = classifier.inner
        if not isinstance(model, PromptModel):
            raise UserError(
                f"The task {name!r} is a {type(classifier).__name__}: a bank holds prompt models, one for "
                "each task."
            )
        if model.backbone is not self.backbone:
            raise UserError(
                f"The task {name!r} was made on another model ({model.backbone.name!r}) than the bank's "
                f"({self.backbone.name!r}), or on another copy of it. Load it with backbone=bank.backbone."
            )
        weights = model.weights or Weights()
        if weights.tensors or weights.rows:
            raise UserError(
                f"The task {name!r} was tuned by a method that changes the model's own weights "
                f"({next(iter(weights.flat()))} and others), which all tasks of a bank share. Tune it by one "
                "that only adds to the model: prompt-tuning, prefix, adapter, ..."
            )
        if weights.added is not None:
            added = weights.added.folded()
            if type(added).install is not Addition.install:
                raise UserError(
                    f"The task {name!r} was tuned by method {added.made_by.get('name')!r}, which puts modules "
                    "of its own into the model: it cannot share a pass with other tasks."
                )
            with self._alone():  # the model's parts are found by running it, as it is by itself
                self.backbone.apply(None)
                check_names(self.backbone, added.prefixes(), added.deltas())
            bad = [n for n, t in added.tensors().items() if not bool(torch.isfinite(t).all())]
            if bad:
                raise UserError(
                    f"The task {name!r}: {bad[0]} holds numbers that are not finite. Tune it again, with a "
                    "lower learning rate."
                )
        return classifier, model

    # --- reading --------------------------------------------------------------------------

    def predict_proba(self, rows: Sequence[tuple[str, Row]]) -> list[NDArray[np.float64]]:
        """Class probabilities of each row, [labels of its task].

        Args:
            rows: name of the task and row, in any order.

        Raises:
            UserError: there is no such task, or a row that does not fit its template.
        """
        return [p for _, p in self._read(rows)]

    def predict(self, rows: Sequence[tuple[str, Row]]) -> list[Any]:
        """What `Classifier.predict` of its task gives for each row; errors as `predict_proba`."""
        return [classifier.decide(p[None])[0] for classifier, p in self._read(rows)]

    def _read(
        self, rows: Sequence[tuple[str, Row]]
    ) -> list[tuple[Classifier, NDArray[np.float64]]]:
        """Each row's classifier and class probabilities."""
        rows = list(rows)
        with self._alone():
            tasks = self._tasks
            places: dict[str, list[int]] = {}
            for i, (name, _) in enumerate(rows):
                places.setdefault(name, []).append(i)
            asked: list[Sequence[Row]] = []
            for name in places:
                _known(tasks, name)
            for name, classifier in tasks.classifiers.items():
                own: list[Row] = [rows[i][1] for i in places.get(name, ())]
                if isinstance(classifier, MultiLabelModel):
                    own = [*classifier.multi_label.asked(own)]
                asked.append(own)
            models = list(tasks.models.values())
            found = read_together(self.backbone, models, asked, tasks.weights, self.report)
        out: dict[int, tuple[Classifier, NDArray[np.float64]]] = {}
        for (name, classifier), parts in zip(tasks.classifiers.items(), found, strict=True):
            if not parts:
                continue
            if isinstance(classifier, MultiLabelModel):
                parts = classifier.of_answers(parts)
            probabilities = finite(classifier.combined(parts))
            out |= {i: (classifier, p) for i, p in zip(places[name], probabilities, strict=True)}
        return [out[i] for i in range(len(rows))]


def read_together(
    backbone: Backbone,
    models: Sequence[PromptModel],
    rows: Sequence[Sequence[Row]],
    weights: Weights | None = None,
    report: Reporter | None = None,
    what: str = "Reading",
) -> list[dict[str, Probabilities]]:
    """What each model's `part_probabilities` gives for its own rows; all are read together.

    Args:
        models: their numbers are those of the tasks in `weights.each`.
        rows: of each model; may be empty.
        weights: put into the backbone; None where the additions are in it already.

    Returns:
        pattern -> class probabilities, [rows, labels], of each model; empty where it has no rows.
    """
    parts: list[tuple[int, str, list[Encoded]]] = []
    for number, (model, own) in enumerate(zip(models, rows, strict=True)):
        for pattern in model.task.patterns if own else ():
            for draw in model.draws:
                encoded = model.encode_rows(pattern, own, draw)
                model.make_ready(pattern, encoded[0])
                parts.append((number, pattern, [replace(e, task=number) for e in encoded]))
    out: list[dict[str, Probabilities]] = [{} for _ in models]
    if not parts:
        return out
    backbone.apply(weights)
    states = iter(backbone.states_each([e for *_, some in parts for e in some], report, what))
    for number, pattern, encoded in parts:
        model = models[number]
        own_states = [next(states) for _ in encoded]
        readout = Readout(backbone, encoded, torch.stack(own_states), rows[number])
        scores = model.class_scores(pattern, readout).double()
        share = torch.softmax(scores, -1).cpu().numpy() / len(model.draws)
        out[number][pattern] = out[number].get(pattern, 0.0) + share
    return out


def _added(model: PromptModel) -> Addition:
    """What a model adds to the backbone; nothing where it was not tuned."""
    added = model.weights.added if model.weights else None
    return added.folded() if added is not None else Folded({}, {}, {})


def _known(tasks: _Tasks, name: str) -> Classifier:
    if name not in tasks.classifiers:
        names = list(tasks.classifiers)
        raise UserError(f"The bank has no task {name!r}.{did_you_mean(name, names)}")
    return tasks.classifiers[name]


def _taken(name: str) -> UserError:
    return UserError(
        f"The bank has a task {name!r} already: give this one another name, or replace that one."
    )
