"""Training of exits: together with the model, or after it on what its frozen layers give."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from promptforge.components import Component
from promptforge.errors import UserError, did_you_mean, listed
from promptforge.exits.exits import End, Exits, PromptEnd, end_of
from promptforge.exits.model import ExitModel, layered
from promptforge.tuning import checkpoint, processes
from promptforge.tuning.loop import Objective, Target, Trained, Training
from promptforge.tuning.objectives import tensors
from promptforge.tuning.scores import score_of
from promptforge.tuning.settings import Settings

if TYPE_CHECKING:
    from promptforge.classifier import Classifier
    from promptforge.model import PromptModel
    from promptforge.tuning.members import HeadModel
    from promptforge.tuning.strategy import Strategy
    from promptforge.tuning.tuner import Tuner

#: In a run's `members`: the exits of a finished training.
_TRAINED = "exits.safetensors"


class ExitTraining(Component):
    """How exits are trained."""

    role: ClassVar[str] = "exits"

    learning_rate: float = Field(1e-3, gt=0, description="Highest learning rate of the exits.")


class Joint(ExitTraining):
    """With the model: `sum_i i L_i / sum_i i` over all layers (Zhou et al. 2020, section 3.2)."""

    name: ClassVar[str] = "joint"


class TwoStage(ExitTraining):
    """After the model: all earlier exits on its frozen layers (DeeBERT, Xin et al. 2020, section 3.2).

    The training rows go through the model once; what the layers give is kept in memory.
    """

    name: ClassVar[str] = "two-stage"

    steps: int = Field(1000, ge=1, description="Updates of the exits.")
    batch_size: int = Field(32, ge=1, description="Rows per update.")
    weight_decay: float = Field(0.01, ge=0, description="Of the exits' matrices.")
    rows: int = Field(
        20000, ge=1, description="Most training rows whose states are kept; drawn by the seed."
    )


TRAININGS: dict[str, type[ExitTraining]] = {made.name: made for made in (Joint, TwoStage)}


def exit_training(name: str) -> type[ExitTraining]:
    """The class of a training by its name.

    Raises:
        UserError: there is none of this name.
    """
    if name not in TRAININGS:
        raise UserError(
            f"exits={name!r}: choose one of {listed(list(TRAININGS))}.{did_you_mean(name, list(TRAININGS))}"
        )
    return TRAININGS[name]


def check_exits(
    training: ExitTraining | None, strategy: Strategy, labelled: Sequence[object]
) -> None:
    """Raise a `UserError` where exits cannot be trained, before anything else is."""
    if training is None:
        return
    if not labelled:
        raise UserError("Exits learn from labelled rows, and there are none: give --data FILE.")
    if isinstance(training, Joint) and not strategy.joint_exits:
        raise UserError(
            f"exits='joint' trains exits with the model, and what strategy {strategy.name!r} trains are "
            "steps on the way: use --exits two-stage, which trains them on the final model."
        )


def check_end(training: ExitTraining | None, strategy: Strategy, tuner: Tuner) -> None:
    """Raise a `UserError` where what a strategy ends in can have no exits, before it is trained."""
    if not isinstance(training, TwoStage):
        return
    if strategy.makes == "group":
        raise UserError(
            f"Exits are for one tuned model, and strategy {strategy.name!r} makes a group of them: use a "
            "strategy that ends in one (prompt, finetune, pet, ...)."
        )
    if strategy.makes == "prompt":
        bare = tuner.with_(unlabeled=[], demonstrations=None)
        for pattern in tuner.task.patterns:
            model = bare.untrained(tuner.task.choose([pattern]), remember=False)
            prompt = model.prompt(pattern, tuner.train[0].row)
            end_of(model).ready(model.encode(pattern, [prompt])[0])


class ExitObjective(Objective):
    """The mean loss of all earlier exits on states that were read before.

    Args:
        end: how the model classifies.
        exits: what is trained.
        seen: what each exit sees, [layers - 1, rows, ...].
        targets: of those rows, in their order.
    """

    def __init__(self, end: End, exits: Exits, seen: Tensor, targets: Sequence[Target]) -> None:
        super().__init__()
        self.end, self.exits, self.kept = end, exits, seen
        self._place = {id(target): i for i, target in enumerate(targets)}

    def trained(self) -> dict[str, nn.Parameter]:
        return dict(self.exits.named_parameters())

    def undecayed(self) -> set[str]:
        return set()

    def length(self, target: Target) -> int:
        return 1

    def forward(self, targets: Sequence[Target], draw: int) -> Tensor:
        seen = self.kept[:, [self._place[id(t)] for t in targets]]
        shares, weight, temperature = tensors(targets, seen.device)
        losses = [
            self.end.loss(one, shares, temperature, module)
            for module, one in zip(self.exits.each, seen, strict=True)
        ]
        return torch.stack(losses).mean(0) * weight


def train_exits(tuner: Tuner, classifier: Classifier, training: TwoStage) -> ExitModel:
    """Exits for a trained classifier, on the tuner's labelled rows; the classifier stays as it is.

    With development rows the exits are kept that have the best mean accuracy over the layers.

    Raises:
        UserError: the classifier is a group of models, or needs several passes for a row.
    """
    targets = tuner.targets()
    if len(targets) > training.rows:
        drawn = sorted(random.Random(tuner.seed).sample(range(len(targets)), training.rows))
        targets = [targets[i] for i in drawn]
    identity = _identity(targets, training)
    end = end_of(classifier)
    model = ExitModel(cast("PromptModel | HeadModel", classifier), end.make())
    home = tuner.folder / "members" if tuner.folder else None
    if home and (home / _TRAINED).is_file():
        tuner.trained["exits"] = _restored(model.exits, home / _TRAINED, identity)
        return model
    (encoded, *_) = model.encoded([t.row for t in targets])
    seen = layered(end, model.plain.weights, encoded, tuner.report, "Reading layers for exits")
    objective = ExitObjective(end, model.exits, seen[:-1], targets)
    score = None
    if tuner.dev:
        (held, *_) = model.encoded([e.row for e in tuner.dev])
        looked = layered(end, model.plain.weights, held, tuner.report, "Reading layers on dev")[:-1]

        @torch.no_grad()
        def score() -> float:
            found = [
                score_of(
                    model.plain,
                    end.scores(one, module).double().softmax(-1).cpu().numpy(),
                    tuner.dev,
                )
                for module, one in zip(model.exits.each, looked, strict=True)
            ]
            return sum(found) / len(found)

    settings = Settings(
        steps=training.steps, batch_size=training.batch_size, learning_rate=training.learning_rate,
        weight_decay=training.weight_decay, precision="float32",
    )  # fmt: skip
    folder = home / "exits.parts" if home else None
    if folder and processes.is_first():
        folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(tuner.seed)
    frozen = [*tuner.backbone.model.parameters()]
    if isinstance(end, PromptEnd):
        frozen += end.verbalizer.parameters().values()
    with _frozen(frozen), tuner.tracking.part("exits", settings.model_dump()) as log:
        made = Training(
            objective, targets, settings, seed=tuner.seed, folder=folder, score=score,
            report=tuner.report, identity=identity, log=log,
        )  # fmt: skip
        try:
            tuner.trained["exits"] = made.run("Training exits")
        except KeyboardInterrupt:
            made.interrupted()
            raise
    model.exits.eval()
    if home and folder:
        if processes.is_first():
            state = {"identity": identity, "trained": vars(tuner.trained["exits"])}
            checkpoint.save(home / _TRAINED, dict(model.exits.named_parameters()), state)
            shutil.rmtree(folder, ignore_errors=True)
        processes.wait(tuner.backbone.device)
    return model


def _restored(exits: Exits, path: Path, identity: str) -> Trained:
    """How the finished training of exits in a file went; they become what it made."""
    tensors, state = checkpoint.load(path)
    if state["identity"] != identity:
        raise UserError(
            f"{path} was trained on other data or with other settings. Use another --run folder, or "
            "delete this file."
        )
    exits.load_state_dict(tensors)
    return Trained(**state["trained"])


@contextmanager
def _frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """While this lasts they get no gradients."""
    before = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p, flag in zip(parameters, before, strict=True):
            p.requires_grad_(flag)


def _identity(targets: Sequence[Target], training: TwoStage) -> str:
    told = [
        training.model_dump(mode="json"),
        [(sorted(map(str, t.row.items())), t.shares, t.weight) for t in targets],
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
