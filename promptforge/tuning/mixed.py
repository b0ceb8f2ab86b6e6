"""Batches that mix tasks: the loss of each row is its own task's, and so is what is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast
from torch import Tensor, nn

from promptforge.backbone.addition import Addition
from promptforge.backbone.base import Backbone
from promptforge.backbone.weights import Tunable, Weights
from promptforge.data import Example
from promptforge.encode import Encoded
from promptforge.errors import UserError
from promptforge.model import PromptModel
from promptforge.readout import Readout
from promptforge.task import Task
from promptforge.truncation import told_cuts
from promptforge.tuning.loop import Objective, Target, Trained, Training
from promptforge.tuning.method import TuningMethod
from promptforge.tuning.objectives import check_poles, tensors, warn_untrained
from promptforge.tuning.schedule import batch_at
from promptforge.verbalizer import Verbalizer

#: What a pass of its own costs, about, in tokens that it computes.
PASS = 128


@dataclass(frozen=True)
class TaskExamples:
    """A task with its labelled rows.

    Attributes:
        train: rows to train on.
        dev: rows to choose the best weights by.
        test: rows to measure on.
    """

    task: Task
    train: Sequence[Example] = field(default_factory=list)
    dev: Sequence[Example] = field(default_factory=list)
    test: Sequence[Example] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name


def passes(lengths: Sequence[int], own: int | None = None) -> list[list[int]]:
    """Numbers of rows in groups of like length: those that are cheapest when each is one padded pass.

    Tasks differ in length, so one pass of all rows would pad reviews' neighbours, questions, to reviews.

    Args:
        lengths: tokens of each row.
        own: what each pass costs beside its padded tokens; by default `PASS`.
    """
    own = PASS if own is None else own
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    cheapest, begins = [0], [0]
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        costs = [cheapest[start] + own + (end - start) * longest for start in range(end)]
        cheapest.append(min(costs))
        begins.append(costs.index(cheapest[-1]))
    groups, end = [], len(order)
    while end:
        groups.append(sorted(order[begins[end] : end]))
        end = begins[end]
    return groups[::-1]


def mixed_losses(
    backbone: Backbone,
    encoded: Sequence[Encoded],
    targets: Sequence[Target],
    verbalizers: Sequence[Verbalizer],
) -> Tensor:
    """The weighted loss of each row, [rows], under the verbalizer whose number is its `key`.

    All rows go through the model in one pass; `backbone.compact` is used where it is set.
    """
    # Rows of one task stand together: what it adds is computed for all of them at once.
    order = sorted(range(len(targets)), key=lambda i: (targets[i].key, i))
    encoded, targets = [encoded[i] for i in order], [targets[i] for i in order]
    batch = backbone.collate(encoded, list(range(len(encoded))))
    with backbone.compact.used() if backbone.compact else nullcontext():
        states = torch.split(backbone.hidden(batch), [len(e.reads) for e in encoded])
    losses: list[Tensor] = []
    start = 0
    for key in dict.fromkeys(t.key for t in targets):
        chosen = [t for t in targets if t.key == key]
        own = slice(start, start + len(chosen))
        rows = [t.row for t in chosen]
        readout = Readout(backbone, encoded[own], torch.stack(states[own]), rows)
        shares, weight, temperature = tensors(chosen, backbone.device)
        losses.append(verbalizers[key].loss(readout, shares, temperature) * weight)
        start = own.stop
    return torch.cat(losses)[torch.tensor(order, device=backbone.device).argsort()]


class TogetherObjective(Objective):
    """The losses of several tasks, summed: each has what a method adds, and a verbalizer, of its own.

    What one task's parameters get from a batch is what its own rows of the batch alone would give
    them. The model is frozen.

    Args:
        models: an untrained prompt model of each task, all on one backbone; each with one pattern.
        method: adds to the model, for each task anew.
        targets: each task's rows; their `key` is the number of the task.
        seed: of what a method draws at random; each task gets what it would get alone.

    Raises:
        UserError: the method trains weights of the model, adds nothing, or cannot share a pass.
    """

    def __init__(
        self,
        models: Sequence[PromptModel],
        method: TuningMethod,
        targets: Sequence[Sequence[Target]],
        seed: int,
    ) -> None:
        super().__init__()
        self.backbone = backbone = models[0].backbone
        self.model = backbone.model  # train() and eval() reach its dropout
        self.models = list(models)
        self.patterns = [next(iter(model.task.patterns)) for model in models]
        #: how many tasks an update has rows of: their mean losses are summed
        self.at_once = len(models)
        backbone.apply(None)
        if method.prepare(backbone):
            raise UserError(
                f"method {method.name!r} trains weights of the model itself, which the tasks share. Tasks "
                "are trained together by a method that only adds to it: prompt-tuning, prefix, adapter, lora."
            )
        self.additions: list[Addition] = []
        self.verbalizers: list[Verbalizer] = []
        self._encoded: dict[tuple[int, int], Encoded] = {}
        for number, (model, own) in enumerate(zip(models, targets, strict=True)):
            torch.manual_seed(seed)
            self._take(number, model, method, own)
        self._tunable = Tunable(backbone.model, {}, None)  # frozen
        try:
            self._attached = backbone.attach(self.additions)
        except UserError:
            self._tunable.close()
            raise
        # Registered under plain names, so that gradients are shared between processes.
        self.shared = nn.ParameterList(self.trained().values())

    def _take(
        self, number: int, model: PromptModel, method: TuningMethod, targets: Sequence[Target]
    ) -> None:
        pattern = self.patterns[number]
        rows = {id(t.row): t.row for t in targets}

        def encode() -> list[Encoded]:
            return model.encode(pattern, [model.prompt(pattern, row) for row in rows.values()])

        encoded = encode()
        addition = method.add(self.backbone, encoded, model.task.words_for(pattern))
        if addition is None:
            raise UserError(
                f"method {method.name!r} adds nothing to the model that tasks could be trained in. Use "
                "prompt-tuning, prefix, adapter, lora, ..."
            )
        addition.made_by = {"name": method.name, "options": method.model_dump(mode="json")}
        if addition.opening:
            model.opening = addition.opening
            encoded = encode()
        warn_untrained(model.report, encoded, addition, method)
        if cut := told_cuts(encoded, pattern, self.backbone.encoder.max_length):
            model.report.warn(f"Training {model.task.name}: {cut}")
        tagged = [replace(e, task=number) for e in encoded]
        self._encoded |= {(number, key): e for key, e in zip(rows, tagged, strict=True)}
        self.additions.append(addition)
        self.verbalizers.append(model.verbalizer(pattern, encoded[0]))
        check_poles(model, self.verbalizers[-1])

    def own(self, number: int) -> dict[str, nn.Parameter]:
        """What is trained for one task."""
        added = self.additions[number].trained()
        read = self.verbalizers[number].parameters()
        return {
            **{f"{number}/added/{name}": p for name, p in added.items()},
            **{f"{number}/own/{name}": p for name, p in read.items() if p.requires_grad},
        }

    def trained(self) -> dict[str, nn.Parameter]:
        return {n: p for number in range(len(self.models)) for n, p in self.own(number).items()}

    def undecayed(self) -> set[str]:
        return {
            f"{i}/added/{name}" for i, own in enumerate(self.additions) for name in own.undecayed()
        }

    def length(self, target: Target) -> int:
        encoded = self._encoded[target.key, id(target.row)]
        return len(encoded.ids) + len(encoded.decoder_ids)

    def forward(self, targets: Sequence[Target], draw: int) -> Tensor:
        encoded = [self._prompt(target, draw) for target in targets]
        groups = [list(range(len(encoded)))]
        if not any(verbalizer.contrasts for verbalizer in self.verbalizers):
            groups = passes([len(e.ids) + len(e.decoder_ids) for e in encoded])
        losses = [
            mixed_losses(
                self.backbone, [encoded[i] for i in g], [targets[i] for i in g], self.verbalizers
            )
            for g in groups
        ]
        places = torch.tensor([i for g in groups for i in g], device=self.backbone.device)
        return torch.cat(losses)[places.argsort()] * self.at_once

    def _prompt(self, target: Target, draw: int) -> Encoded:
        number = target.key
        model, pattern = self.models[number], self.patterns[number]
        if model.demonstrations is None:
            return self._encoded[number, id(target.row)]
        made = model.encode(pattern, [model.prompt(pattern, target.row, draw)])
        return replace(made[0], task=number)

    def tuned(self, number: int) -> tuple[Weights, dict[str, dict[str, Tensor]]]:
        """A task's addition, and its verbalizer's parameters by pattern, as they are now."""
        read = self.verbalizers[number].parameters()
        own = {name: p.detach().clone() for name, p in read.items()}
        weights = Weights(added=self.additions[number].folded())
        return weights, {self.patterns[number]: own} if own else {}

    def close(self) -> None:
        """Put the model back as it was."""
        self._attached.close()
        self._tunable.close()
        self.model.eval()


@dataclass
class TogetherTrained(Trained):
    """How a training of several tasks went.

    Attributes:
        tasks: number of the task -> best score on its dev rows, its step, and looks without gain.
    """

    tasks: dict[str, dict[str, float]] = field(default_factory=dict)


class TogetherTraining(Training):
    """A training in which every task goes its own way.

    Each update sees `batch_size` rows of every task, the ones that the task would see alone; each
    task's gradients are clipped alone, its best weights kept by its own dev rows, and its rows left
    out when its own patience is over. So it learns what it would learn alone.

    Args:
        scores: the score of each task on its dev rows; None for a task without.
    """

    def __init__(
        self,
        objective: TogetherObjective,
        targets: Sequence[Sequence[Target]],
        *args: Any,
        scores: Callable[[], list[float | None]] | None = None,
        **options: Any,
    ) -> None:
        flat = [target for own in targets for target in own]
        super().__init__(objective, flat, *args, score=scores and (lambda: 0.0), **options)
        self.tasks, self.scores = objective, scores
        sizes = [len(own) for own in targets]
        self._starts = [sum(sizes[:number]) for number in range(len(sizes))]
        self._lengths = [
            self.lengths[start : start + size]
            for start, size in zip(self._starts, sizes, strict=True)
        ]
        self._names_of = [list(objective.own(number)) for number in range(len(sizes))]
        self.state: TogetherTrained = TogetherTrained(parameters=self.state.parameters)

    def _over(self, number: int) -> bool:
        looks = self.state.tasks.get(str(number), {}).get("bad_looks", 0)
        return bool(self.settings.patience) and looks >= self.settings.patience

    def _patience_is_over(self) -> bool:
        return all(self._over(number) for number in range(len(self._starts)))

    def rows_at(self, step: int) -> list[int]:
        going = [number for number in range(len(self._starts)) if not self._over(number)]
        self.tasks.at_once = len(going)
        each = [
            [self._starts[n] + row for row in batch_at(step, self._lengths[n], self.settings.rows, self.seed)]
            for n in going
        ]  # fmt: skip
        # In turns, so that every part of an accumulated batch has rows of all tasks.
        return [row for rows in zip(*each, strict=True) for row in rows]

    def clipped(self) -> list[list[nn.Parameter]]:
        return [[self.parameters[name] for name in names] for names in self._names_of]

    def _look(self) -> float:
        assert self.scores is not None
        self.objective.eval()
        with self.precision.computing():
            found = [math.nan if score is None else score for score in self.scores()]
        if self.accelerator.num_processes > 1:
            sent = torch.tensor(found, dtype=torch.float64, device=self.accelerator.device)
            found = broadcast(sent).tolist()
        looked = {number: score for number, score in enumerate(found) if not math.isnan(score)}
        kept = self.best = self.best or {n: p.detach().clone() for n, p in self.parameters.items()}
        for number, names in enumerate(self._names_of):
            state = self.state.tasks.setdefault(str(number), {"bad_looks": 0})
            if number not in looked:  # nothing is chosen: the last weights are kept
                kept |= {name: self.parameters[name].detach().clone() for name in names}
                continue
            if self._over(number):
                continue
            score, best = looked[number], state.get("best", -math.inf)
            # The later of two equal looks has seen more rows.
            state["bad_looks"] = 0 if score > best else state["bad_looks"] + 1
            if score >= best or self.settings.keep == "last":
                state |= {"best": score, "best_step": self.state.steps}
                kept |= {name: self.parameters[name].detach().clone() for name in names}
        mean = float(np.mean(list(looked.values())))
        self._check_finite(mean, "score on the development rows", self.state.steps)
        bests = [one["best"] for one in self.state.tasks.values() if "best" in one]
        self.state.best = float(np.mean(bests))
        return mean
