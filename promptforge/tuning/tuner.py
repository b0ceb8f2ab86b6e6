"""The tuner: trains members one by one, never twice, and hands strategies all they may use."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from promptforge import artifact, remote
from promptforge.backbone.base import Backbone
from promptforge.backbone.load import load_model
from promptforge.classifier import Classifier
from promptforge.data import Example, Row
from promptforge.errors import UserError
from promptforge.exits.exits import Exits
from promptforge.exits.model import ExitModel
from promptforge.exits.train import ExitTraining
from promptforge.model import PromptModel
from promptforge.plugins import build
from promptforge.progress import Reporter
from promptforge.selection import DemonstrationSelector
from promptforge.task import Task
from promptforge.tuning import jobs as job_queue
from promptforge.tuning import processes
from promptforge.tuning.loop import Target, Trained, Training
from promptforge.tuning.members import HeadModel
from promptforge.tuning.memory import warn_matrices
from promptforge.tuning.method import TuningMethod
from promptforge.tuning.objectives import PromptObjective
from promptforge.tuning.precision import Precision
from promptforge.tuning.run import ARTIFACT_FILE
from promptforge.tuning.scores import dev_score
from promptforge.tuning.settings import Settings
from promptforge.tuning.starting import Start
from promptforge.tuning.texts import Head, HeadObjective, Texts, dropout_of
from promptforge.tuning.tracking import Tracking
from promptforge.verbalizer import Verbalizer

if TYPE_CHECKING:
    from promptforge.tuning.strategy import Strategy


@dataclass(frozen=True)
class Member:
    """One training.

    Attributes:
        name: unique in a run; also the name of its folder.
        targets: what it is trained on.
        pattern: the pattern of the prompt; None trains a classification head on whole texts.
        seed: decides order, dropout and, for a head, its first values.
        settings: in place of the tuner's.
        pooling: of the texts under a head.
        task: in place of the tuner's task (other words for the pattern).
        alpha: share of the masked-LM loss on the tuner's unlabelled rows; with a pattern only.
        objective: what is minimised without a pattern.
    """

    name: str
    targets: Sequence[Target]
    pattern: str | None
    seed: int
    settings: Settings | None = None
    pooling: str = "mean"
    task: Task | None = None
    alpha: float = 0.0
    objective: type[HeadObjective] = HeadObjective


@dataclass
class Tuner:
    """What a strategy works with.

    Attributes:
        backbone: the language model, with its own weights.
        task: labels and the chosen patterns.
        train, dev: labelled rows; `dev` may be empty, and then nothing is chosen.
        unlabeled: rows without labels; may be empty.
        settings, method: how, and what is trained.
        verbalizer: an unbound prototype; each member gets a copy.
        demonstrations: a fitted selector, or None.
        samples: draws of demonstrations that are averaged when predicting.
        folder: where members are kept; None: in memory only.
        class_weight: label -> how much its rows count.
        jobs: members trained at the same time, in processes of their own.
        tracking: where else trainings are logged.
        init_from: the folder of what each training starts from; "": of the model as it is.
        exits: train exits with each member; None: without.
    """

    backbone: Backbone
    task: Task
    train: list[Example]
    dev: list[Example] = field(default_factory=list)
    unlabeled: list[Row] = field(default_factory=list)
    settings: Settings = field(default_factory=Settings)
    method: TuningMethod = field(default_factory=lambda: build("method", "all"))
    verbalizer: Verbalizer = field(default_factory=lambda: build("verbalizer", "manual"))
    demonstrations: DemonstrationSelector | None = None
    samples: int = 1
    seed: int = 13
    folder: Path | None = None
    report: Reporter = field(default_factory=Reporter)
    jobs: int = 1
    class_weight: Mapping[str, float] = field(default_factory=dict)
    row_weights: Sequence[float] = ()
    tracking: Tracking = field(default_factory=Tracking)
    init_from: str = ""
    exits: ExitTraining | None = None
    #: member -> how its training went
    trained: dict[str, Trained] = field(default_factory=dict)
    #: name -> a model beside the run's own
    beside: dict[str, Backbone] = field(default_factory=dict, repr=False)
    #: what was cut from training rows, as far as it was told
    told: set[str] = field(default_factory=set, repr=False)

    # --- what strategies use --------------------------------------------------------------

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in order."""
        return tuple(self.task.labels)

    def targets(self) -> list[Target]:
        """The labelled rows as hard targets; `key` is their place in `train`."""
        weights = list(self.row_weights) or [1.0] * len(self.train)
        return [
            Target(e.row, self.task.shares(e), w * self.class_weight.get(e.label, 1.0), key=i)
            for i, (e, w) in enumerate(zip(self.train, weights, strict=True))
        ]

    def hard(self, row: Row, label: str, *, weight: float = 1.0, key: int = -1) -> Target:
        """A row with one label; class weights count."""
        shares = tuple(float(label == other) for other in self.labels)
        return Target(row, shares, weight * self.class_weight.get(label, 1.0), key=key)

    @property
    def precision(self) -> Precision:
        """What trainings compute in; also for scores that only trainings see, such as soft labels."""
        return Precision(self.settings.precision, self.backbone.device, {self.backbone.model.dtype})

    def untrained(self, task: Task | None = None, *, remember: bool = True) -> PromptModel:
        """The prompt model as it is before tuning."""
        made = self._model(task or self.task, remember=remember)
        if self.verbalizer.fits_rows and self.unlabeled:
            made.calibrate(self.unlabeled)
        return made

    def _model(self, task: Task, **more: Any) -> PromptModel:
        """A prompt model that has read nothing."""
        samples = 1 if self.demonstrations is None else self.samples
        return PromptModel(
            self.backbone, task, verbalizer=self.verbalizer.model_copy(deep=True),
            demonstrations=self.demonstrations, samples=samples, report=self.report, **more,
        )  # fmt: skip

    def members(self, members: Sequence[Member]) -> dict[str, Classifier]:
        """Train members; those that a run has finished before are only read."""
        names = [m.name for m in members]
        if len(set(names)) < len(names):
            raise UserError("Two members of a strategy have the same name.")
        homes = [self._home(m) for m in members]
        open_ = [
            m for m, home in zip(members, homes, strict=True)
            if home is None or not (home / ARTIFACT_FILE).is_file()
        ]  # fmt: skip
        if self.jobs > 1 and len(open_) > 1:
            return self._in_processes(members, open_)
        return {member.name: self.member(member) for member in members}

    def _in_processes(
        self, members: Sequence[Member], open_: Sequence[Member]
    ) -> dict[str, Classifier]:
        if not job_queue.can_send(self.backbone, self.report):
            return {member.name: self.member(member) for member in members}
        with nullcontext(self.folder) if self.folder else TemporaryDirectory() as folder:
            shared = replace(self, folder=Path(folder).absolute())  # a worker may stand elsewhere
            alone = replace(shared, backbone=None, report=Reporter(), trained={}, jobs=1, beside={})  # type: ignore[arg-type]
            job_queue.run(
                partial(_train_member, alone), {m.name: m for m in open_}, backbone=self.backbone,
                jobs=self.jobs, folder=shared.folder, made="members/{}", report=self.report,
                what="Tuning", unit="members",
            )  # fmt: skip
            return {member.name: shared.member(member) for member in members}

    def _home(self, member: Member) -> Path | None:
        return self.folder / "members" / member.name if self.folder else None

    def member(self, member: Member) -> Classifier:
        """Train one member with the best of the settings' pairs, chosen on the dev rows.

        In a run's folder its weights stay on disk, mapped into memory where they are read: many
        members take no more of it than one.
        """
        home = self._home(member)
        identity = self.identity(member)
        if home is not None and (home / ARTIFACT_FILE).is_file():
            return self._finished(home, member, identity)
        grid = (member.settings or self.settings).grid(self.method.learning_rate)
        if len(grid) > 1 and not self.dev:
            raise UserError(
                f"{len(grid)} pairs of learning rate and batch size are chosen between on development "
                "rows, and there are none: give --dev, or one learning rate and one batch size."
            )
        best: tuple[float, Classifier, Trained] | None = None
        for number, settings in enumerate(grid):
            part = home.with_name(f"{member.name}.parts") / str(number) if home else None
            classifier, trained = self._train(member, settings, part, f"{identity}:{number}")
            score = trained.best if trained.best is not None else -math.inf
            if best is None or score > best[0]:
                best = (score, classifier, trained)
        assert best is not None
        _, made, trained = best
        self.trained[member.name] = trained
        if home is None:
            return made
        if processes.is_first():
            artifact.save(made, home, {"identity": identity, "trained": vars(trained)})
            _remove(home.with_name(f"{member.name}.parts"))
            remote.publish(home)
        processes.wait(self.backbone.device)
        plain = made.plain if isinstance(made, ExitModel) else made
        assert isinstance(plain, PromptModel | HeadModel)
        plain.weights = artifact.open_parts(home, backbone=self.backbone).weights or plain.weights
        return made

    def run(self, strategy: Strategy, name: str, seed: int) -> Classifier:
        """A whole run of another strategy as a member called `name`, with a folder of its own."""
        trained = dict[str, Trained]()
        own = self.with_(
            seed=seed,
            trained=trained,
            folder=self.folder and self.folder / "members" / name,
            tracking=replace(self.tracking, within=f"members/{name}/"),
        )
        made = strategy.train(own)
        self.trained.update({f"{name}/{member}": how for member, how in trained.items()})
        return made

    def on(self, model: str) -> Tuner:
        """The same tuner with another model, loaded once; with the run's own by its name or ""."""
        if model in ("", self.backbone.source["name"]):
            return self
        if model not in self.beside:
            self.report.note(f"Loading {model}")
            source = self.backbone.source
            made = load_model(
                model, device=str(self.backbone.device), batch_tokens=self.backbone.batch_tokens,
                dtype=source.get("dtype", "float32"), report=self.report,
            )  # fmt: skip
            most = source.get("max_length")
            if most and most < made.encoder.max_length:  # its own positions may be fewer
                made.limit(most)
                made.source["max_length"] = most
            self.beside[model] = made
        return self.with_(backbone=self.beside[model])

    # --- one training ---------------------------------------------------------------------

    def _train(
        self, member: Member, settings: Settings, folder: Path | None, identity: str
    ) -> tuple[Classifier, Trained]:
        torch.manual_seed(member.seed)
        if folder and processes.is_first():
            folder.mkdir(parents=True, exist_ok=True)
        make = self._prompt if member.pattern is not None else self._head
        objective, classifier, finish = make(member, settings)
        if objective.cut and objective.cut not in self.told:  # members of one pattern cut the same
            self.told.add(objective.cut)
            self.report.warn(f"Training: {objective.cut}")
        score = None
        if self.dev:

            def score() -> float:
                objective.commit()
                return dev_score(classifier, self.dev)

        name = member.name
        if len((member.settings or self.settings).grid()) > 1:
            name += f", learning rate {settings.rate:g}, batch {settings.rows}"
        training = None
        try:
            with self.tracking.part(f"members/{name}", settings.model_dump()) as log:
                training = Training(
                    objective, member.targets, settings, seed=member.seed, folder=folder,
                    score=score, report=self.report, identity=identity, log=log,
                )  # fmt: skip
                warn_matrices(self.backbone, training.lengths, settings, self.report)
                trained = training.run(f"Tuning {name}")
            return finish(), trained
        except KeyboardInterrupt:
            if training:
                training.interrupted()
            raise
        finally:
            objective.close()

    def _prompt(
        self, member: Member, settings: Settings
    ) -> tuple[PromptObjective, Classifier, Callable[[], Classifier]]:
        assert member.pattern is not None
        pattern, task = member.pattern, (member.task or self.task).choose([member.pattern])
        live = self.untrained(task, remember=False)
        live.warn_cuts = False
        start = self._start(member)
        objective = PromptObjective(
            live, pattern, self.method, member.targets,
            alpha=member.alpha, unlabeled=self.unlabeled, settings=settings, seed=member.seed,
            start=start, exits=self._exit_share(settings),
        )  # fmt: skip
        if start is not None:
            try:
                start.begin_verbalizer(objective.verbalizer, live, pattern)
            except BaseException:
                objective.close()
                raise

        def finish() -> Classifier:
            own = objective.own_tensors()
            tuned = {pattern: own} if own else {}
            made = self._model(task, weights=objective.weights(), tuned=tuned)
            return _exiting(made, objective.exits)

        live.samples = 1
        return objective, live, finish

    def _head(
        self, member: Member, settings: Settings
    ) -> tuple[HeadObjective, Classifier, Callable[[], Classifier]]:
        backbone, labels = self.backbone, self.labels
        texts = Texts(backbone, self.task.inputs, member.pooling)
        kind = member.objective
        head = kind.head_type(backbone.width, len(labels), dropout_of(backbone))
        head.to(backbone.device)
        start = self._start(member)
        if start is not None and isinstance(head, Head):  # before exits start as it is
            start.begin_head(head, labels, self.report)
        objective = kind(
            texts, head, self.method, member.targets, start, self._exit_share(settings), member.seed
        )
        live = HeadModel(texts, head, labels, scale=self.task.scale)
        live.warn_cuts = False

        def finish() -> Classifier:
            objective.commit()
            made = HeadModel(
                texts, copy.deepcopy(head), labels, objective.weights(), self.report, self.task.scale,
            )  # fmt: skip
            return _exiting(made, objective.exits)

        return objective, live, finish

    def _exit_share(self, settings: Settings) -> float | None:
        """Of the learning rate, for exits that are trained with a member; None: there are none."""
        return self.exits.learning_rate / settings.rate if self.exits is not None else None

    def _start(self, member: Member) -> Start | None:
        if not self.init_from:
            return None
        return Start.open(self.init_from, member.name, self.backbone, self.method)

    def _finished(self, home: Path, member: Member, identity: str) -> Classifier:
        about = json.loads((home / ARTIFACT_FILE).read_text(encoding="utf-8"))["about"]
        if about["identity"] != identity:
            raise UserError(
                f"{home} was trained on other data or with other settings. Use another --run folder, "
                "or delete this one."
            )
        self.trained[member.name] = Trained(**about["trained"])
        made = artifact.load(home, backbone=self.backbone, report=self.report)
        plain = made.plain if isinstance(made, ExitModel) else made
        if isinstance(plain, PromptModel):
            plain.samples = self.samples if plain.demonstrations is not None else 1
        return made

    def identity(self, member: Member) -> str:
        """A hash of all that decides what a member becomes.

        `samples` is no part of it: while training each prompt shows one draw, and so does each
        look at the dev rows. Only a finished member's predictions are averaged over several.
        """
        settings = (member.settings or self.settings).model_dump(exclude={"save_every"})
        if settings["keep"] == "best":  # younger than the members of some runs
            del settings["keep"]
        task = member.task or self.task
        asked = task.patterns.get(member.pattern or "")
        told = {
            "targets": [(sorted(map(str, t.row.items())), t.shares, t.weight, t.temperature)
                        for t in member.targets],
            "dev": [(sorted(map(str, e.row.items())), e.label) for e in self.dev],
            "pattern": [member.pattern, asked.decides() if asked else {}, task.labels],
            "seed": member.seed, "pooling": member.pooling,
            "settings": settings,
            "method": [self.method.name, self.method.model_dump(mode="json")],
            "verbalizer": [self.verbalizer.name, self.verbalizer.model_dump(mode="json")],
            "demonstrations": self.demonstrations
            and [
                self.demonstrations.name, self.demonstrations.model_dump(mode="json"),
                [(sorted(map(str, e.row.items())), e.label) for e in self.demonstrations.fitted_on],
            ],
            "backbone": self.backbone.checksum,
        }  # fmt: skip
        if start := self._start(member):
            told["start"] = start.digest
        if self.exits is not None:
            told["exits"] = self.exits.model_dump(mode="json")
        if member.objective is not HeadObjective:
            told["objective"] = f"{member.objective.__module__}.{member.objective.__qualname__}"
        if member.alpha or (self.verbalizer.fits_rows and self.unlabeled):
            rows = [sorted(map(str, row.items())) for row in self.unlabeled]
            if member.alpha:
                told["alpha"] = [member.alpha, rows]
            else:  # `untrained` calibrates the verbalizer on them
                told["calibrated"] = rows
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def with_(self, **changes: Any) -> Tuner:
        """The same tuner with some attributes changed; it shares the record of trainings."""
        return replace(self, **changes)


def _train_member(
    tuner: Tuner, backbone: Backbone, folder: Path | None, _: str, member: Member, report: Reporter
) -> None:
    """A job: train a member into `folder`."""
    if folder != tuner.folder:  # of another machine, where nobody would look for logs
        tuner = replace(tuner, tracking=Tracking())
    replace(tuner, backbone=backbone, folder=folder, report=report).member(member)


def _exiting(made: PromptModel | HeadModel, exits: Exits | None) -> Classifier:
    return made if exits is None else ExitModel(made, copy.deepcopy(exits))


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
