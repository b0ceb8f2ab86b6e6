"""One model for many tasks: trained on a mixture of prompts, read zero-shot for any task."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from promptforge import Example, PromptModel, Settings, Task, TuningMethod, UserError, Verbalizer
from promptforge.artifact import Savable, open_parts
from promptforge.artifact import save as save_artifact
from promptforge.backbone import Backbone
from promptforge.backbone.turns import one_training
from promptforge.backbone.weights import Weights
from promptforge.errors import listed
from promptforge.plugins import build
from promptforge.progress import Reporter
from promptforge.tuning import processes
from promptforge.tuning.loop import Trained, Training
from promptforge.tuning.method import check_dropout
from promptforge.tuning.run import ARTIFACT, find_artifact
from promptforge.tuning.scores import dev_score
from promptforge.tuning.train import check_truth
from promptforge_multitask.holdout import split
from promptforge_multitask.mixture import CAP, Draw, TaskExamples, mixture
from promptforge_multitask.objective import MixedObjective


class MultiTaskPromptModel(Savable):
    """Multitask prompted training (T0: Sanh et al. 2022).

    `fit` trains one model on rows of many tasks in all of their patterns; `classifier(task)` is
    then a prompt model for any task, also for one that was never seen.

    Args:
        backbone: the language model.
        method, verbalizer: components or their names; the verbalizer reads every task.

    Attributes:
        tasks: name -> each task that was trained on.
        held_out: name -> each task that was not, and none of its kind.
        removed: task -> how many of its rows had a text of a test row and were taken out.
        counts: task -> how many rows were drawn from it in all.
        tuned: task -> pattern -> tuned parameters of its verbalizer, by name.
        trained: how the training went.
        identity: a hash of all that decided what the model became.
    """

    kind = "multitask"

    def __init__(
        self,
        backbone: Backbone,
        *,
        method: str | TuningMethod = "all",
        verbalizer: str | Verbalizer = "manual",
        report: Reporter | None = None,
    ) -> None:
        self.backbone = backbone
        self.method: TuningMethod = build("method", method) if isinstance(method, str) else method
        self.verbalizer: Verbalizer = (
            build("verbalizer", verbalizer) if isinstance(verbalizer, str) else verbalizer
        )
        self.report = report or Reporter()
        self.weights: Weights | None = None
        self.tasks: dict[str, Task] = {}
        self.held_out: dict[str, Task] = {}
        self.removed: dict[str, int] = {}
        self.counts: dict[str, int] = {}
        self.tuned: dict[str, dict[str, dict[str, Tensor]]] = {}
        self.trained: Trained | None = None
        self.identity = ""

    def fit(
        self,
        data: Sequence[TaskExamples],
        *,
        hold_out: str | Sequence[str] = (),
        cap: int = CAP,
        shots: int | None = None,
        dev_rows: int = 100,
        settings: Settings | None = None,
        seed: int = 13,
        folder: Path | None = None,
    ) -> MultiTaskPromptModel:
        """Train on the mixture of all tasks but those of the kinds `hold_out`.

        Train and dev rows that share a text with a test row of any task are taken out first, and
        counted. The weights that are best on the dev rows, as the mean over tasks, are kept.

        Args:
            data: tasks with their rows; held-out ones with their test rows.
            hold_out: kinds of tasks.
            cap: rows beyond which a task does not count for more in the mixture.
            shots: draw this many rows per label of each task, and as many for dev where it has none.
            dev_rows: the most dev rows of a task that are looked at.
            settings: of the training; one learning rate and batch size.
            folder: where checkpoints are kept and gone on from, and then the model in `artifact/`;
                one that is done is not trained again.

        Raises:
            UserError: a hold-out that cannot be certain (`holdout.split`), several learning rates,
                a folder with another training.
            PromptForgeError: a loss that is not finite, a damaged checkpoint, no space.
        """
        check_dropout(self.method, settings)
        grid = (settings or Settings()).grid(self.method.learning_rate)
        if len(grid) > 1:
            raise UserError("Multitask training takes one learning rate and one batch size.")
        settings = grid[0]
        kinds = [hold_out] if isinstance(hold_out, str) else list(hold_out)
        seen, away, self.removed = split(data, kinds)
        self.tasks = {one.name: one.task for one in seen}
        self.held_out = {one.name: one.task for one in away}
        for name, count in self.removed.items():
            self.report.warn(f"{name}: {count} rows share a text with test rows and are left out.")
        rows: dict[str, Sequence[Example]] = {}
        dev: dict[str, list[Example]] = {}
        for one in data:
            splits = {"training": one.train, "dev": one.dev, "test": one.test}
            check_truth(one.task, splits, f" of the task {one.name!r}")
        for one in seen:
            own = list(one.dev)
            rows[one.name] = one.train
            if shots:
                rows[one.name], held = one.task.sample_shots(one.train, shots, seed, dev=not own)
                own = own or held
            dev[one.name] = random.Random(seed).sample(own, min(dev_rows, len(own)))
        settings.warn_looks(self.report, *dev.values())
        patterns = {one.name: list(one.task.patterns) for one in seen}
        draws = mixture(rows, patterns, settings.steps * settings.rows, cap=cap, seed=seed)
        self.counts = dict(Counter(draw.task for draw in draws))
        idle = [name for name in rows if name not in self.counts]
        if idle:
            self.report.warn(
                f"No row is drawn of {listed(idle)}: too few beside the others' rows. Lower the cap "
                "or make more steps."
            )
        with one_training(self.backbone):
            self._train(draws, dev, settings, seed, folder)
        return self

    def _train(
        self,
        draws: Sequence[Draw],
        dev: Mapping[str, Sequence[Example]],
        settings: Settings,
        seed: int,
        folder: Path | None,
    ) -> None:
        self.identity = self._identity(draws, dev, settings, seed)
        if folder is not None and find_artifact(folder) is not None:
            self._take_over(folder)
            return
        torch.manual_seed(seed)
        self.weights, self.tuned = None, {}
        live = {name: self._model(task, remember=False) for name, task in self.tasks.items()}
        looked = {name: examples for name, examples in dev.items() if examples}
        objective = MixedObjective(live, self.method, draws)

        def score() -> float:
            objective.commit()
            return float(np.mean([dev_score(live[name], rows) for name, rows in looked.items()]))

        parts = folder / "training" if folder is not None else None
        if parts is not None:
            parts.mkdir(parents=True, exist_ok=True)
        training = None
        try:
            training = Training(
                objective, objective.targets, settings, seed=seed, folder=parts,
                score=score if looked else None, report=self.report,
                identity=self.identity,
            )  # fmt: skip
            self.trained = training.run(f"Tuning on {len(self.tasks)} tasks")
            self.weights, self.tuned = objective.weights(), objective.tuned()
        except KeyboardInterrupt:
            if training:
                training.interrupted()
            raise
        finally:
            objective.close()
        if folder is not None and parts is not None and processes.is_first():
            self.save(folder / ARTIFACT)
            shutil.rmtree(parts)

    def _take_over(self, folder: Path) -> None:
        done = MultiTaskPromptModel.load(folder, backbone=self.backbone, report=self.report)
        if done.identity != self.identity:
            raise UserError(
                f"{folder} was trained on other data or with other settings. Use another folder, or "
                "delete this one."
            )
        self.weights, self.tuned, self.trained = done.weights, done.tuned, done.trained

    def classifier(self, task: Task | str | Path) -> PromptModel:
        """A prompt model with the tuned weights, for a task that was seen or for any other.

        Args:
            task: the task; its name, where it was given to `fit`; or as `Task.load` takes it.
        """
        if not isinstance(task, Task):
            known = {**self.tasks, **self.held_out}
            task = known.get(str(task)) or Task.load(task)
        model = self._model(task)
        model.weights = self.weights
        seen = self.tasks.get(task.name)
        if seen is not None and list(seen.labels) == list(task.labels):
            model.tuned = dict(self.tuned.get(task.name, {}))
        return model

    def _model(self, task: Task, *, remember: bool = True) -> PromptModel:
        made = PromptModel(
            self.backbone, task, verbalizer=self.verbalizer.model_copy(deep=True),
            remember=remember, report=self.report,
        )  # fmt: skip
        made.warn_cuts = remember
        return made

    # --- on disk --------------------------------------------------------------------------

    def save(self, folder: str | Path, about: Mapping[str, Any] | None = None) -> None:
        """Write an artifact: the tuned weights once, and all tasks; see `promptforge.artifact.save`."""
        save_artifact(self, folder, about)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        backbone: Backbone | None = None,
        report: Reporter | None = None,
        **options: Any,
    ) -> MultiTaskPromptModel:
        """What `save` wrote, from its folder or its run's; see `promptforge.artifact.load`.

        Raises:
            UserError: no artifact, one of another kind, or another backbone.
            PromptForgeError: its files are damaged.
        """
        found = open_parts(folder, backbone=backbone, report=report, **options)
        data = found.data
        if data["kind"] != cls.kind:
            raise UserError(f"{folder} is no multitask model: use promptforge.artifact.load.")
        method, verbalizer = (
            build(role, data[role]["name"], **data[role]["options"])
            for role in ("method", "verbalizer")
        )
        made = cls(found.backbone, method=method, verbalizer=verbalizer, report=report)
        made.weights = found.weights
        made.tasks, made.held_out = (
            {name: Task.from_json(task) for name, task in data[key].items()}
            for key in ("tasks", "held_out")
        )
        made.identity = data["identity"]
        made.removed, made.counts = data["removed"], data["counts"]
        made.trained = Trained(**data["trained"]) if data["trained"] else None
        for key, value in found.tensors.items():
            task, _, rest = key.removeprefix("verbalizer/").partition("/")
            pattern, _, name = rest.rpartition("/")
            made.tuned.setdefault(task, {}).setdefault(pattern, {})[name] = value
        return made

    def to_json(self) -> dict[str, Any]:
        """All but backbone and tensors."""
        return {
            "kind": self.kind,
            **{
                role: {"name": part.name, "options": part.model_dump(mode="json")}
                for role, part in (("method", self.method), ("verbalizer", self.verbalizer))
            },
            "tasks": {name: task.to_json() for name, task in self.tasks.items()},
            "held_out": {name: task.to_json() for name, task in self.held_out.items()},
            "identity": self.identity,
            "removed": self.removed,
            "counts": self.counts,
            "trained": vars(self.trained) if self.trained else None,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Tuned parameters of the verbalizers, as verbalizer/TASK/PATTERN/NAME."""
        return {
            f"verbalizer/{task}/{pattern}/{name}": value
            for task, by_pattern in self.tuned.items()
            for pattern, by_name in by_pattern.items()
            for name, value in by_name.items()
        }

    def _identity(
        self,
        draws: Sequence[Draw],
        dev: Mapping[str, Sequence[Example]],
        settings: Settings,
        seed: int,
    ) -> str:
        """A hash of all that decides what the model becomes."""

        def plain(example: Example) -> list[Any]:
            told = [sorted(map(str, example.row.items())), example.label]
            return told if example.value is None else [*told, example.value]

        told = {
            "draws": [[d.task, d.pattern, *plain(d.example)] for d in draws],
            "dev": {name: [plain(e) for e in examples] for name, examples in dev.items()},
            "tasks": {name: task.to_json() for name, task in self.tasks.items()},
            "seed": seed,
            "settings": settings.model_dump(exclude={"save_every"}),
            "method": [self.method.name, self.method.model_dump(mode="json")],
            "verbalizer": [self.verbalizer.name, self.verbalizer.model_dump(mode="json")],
            "backbone": self.backbone.checksum,
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
