"""A classifier with exits: rows leave the model as soon as a policy says that they have their answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promptforge.backbone.base import different
from promptforge.backbone.layers import Walk, all_layers
from promptforge.backbone.turns import in_turn
from promptforge.classifier import Classifier, Probabilities, Rows
from promptforge.errors import UserError
from promptforge.exits.exits import End, Exits, Score, end_of
from promptforge.exits.policy import ExitPolicy
from promptforge.model import PromptModel
from promptforge.plugins import build
from promptforge.truncation import CutCounter

if TYPE_CHECKING:
    from promptforge.backbone.base import Backbone
    from promptforge.backbone.batch import Batch
    from promptforge.encode import Encoded
    from promptforge.tuning.members import HeadModel


class ExitModel(Classifier):
    """A prompt model or a head model with a classifier behind each layer.

    Without a policy it is the plain model. With one, later layers read only the rows that are left.

    Args:
        plain: of one pattern, or with a head; its classifier is the last layer's exit.
        exits: those of the other layers.
        policy: when rows leave.

    Attributes:
        exit_layers: layers used for each row that was read last, [rows], from 1; means where several
            draws of demonstrations were averaged.

    Raises:
        UserError: `plain` is another classifier; the policy does not fit.
    """

    def __init__(
        self, plain: PromptModel | HeadModel, exits: Exits, policy: ExitPolicy | None = None
    ) -> None:
        self.plain, self.exits = plain, exits.eval()
        self.labels, self.scale = plain.labels, plain.scale
        self.exit_layers: NDArray[np.float64] = np.empty(0)
        self._policy: ExitPolicy | None = None
        self.policy = policy

    @property
    def backbone(self) -> Backbone:
        """The language model."""
        return self.plain.backbone

    @property
    def layers(self) -> int:
        """How many layers the model has."""
        return len(self.exits.each) + 1

    @property
    def policy(self) -> ExitPolicy | None:
        """When rows leave; None: never."""
        return self._policy

    @policy.setter
    def policy(self, policy: ExitPolicy | None) -> None:
        if policy is not None:
            policy.check(self.layers, self.answers)
        self._policy = policy

    @property
    def answers(self) -> int:
        """How many values a policy sees of a row: the labels' probabilities, or one number."""
        return 1 if self.scale else len(self.labels)

    @property
    def cut_counters(self) -> list[CutCounter]:
        """Those of the classifier without exits."""
        return self.plain.cut_counters

    def forget(self) -> None:
        """Remember nothing of what is read, from now on."""
        self.plain.forget()

    @cached_property
    def end(self) -> End:
        """What stands behind the last layer."""
        return end_of(self.plain)

    @cached_property
    def _quick(self) -> list[Score]:
        return [self.end.quick(module) for module in self.exits.each]

    # --- reading --------------------------------------------------------------------------

    @in_turn
    @torch.inference_mode()
    def part_probabilities(self, rows: Rows, what: str = "Reading") -> dict[str, Probabilities]:
        """Class probabilities, [rows, labels], under the name of the pattern, or "head"."""
        if self.policy is None:
            self.exit_layers = np.full(len(rows), float(self.layers))
            return self.plain.part_probabilities(rows, what)
        found = [self.read(encoded, what) for encoded in self.encoded(rows, what)]
        self.exit_layers = np.mean([layers for _, layers in found], axis=0)
        return {self.part: np.mean([p for p, _ in found], axis=0)}

    @property
    def part(self) -> str:
        """The name of its only part."""
        plain = self.plain
        return next(iter(plain.task.patterns)) if isinstance(plain, PromptModel) else "head"

    def encoded(self, rows: Rows, what: str = "Reading") -> list[list[Encoded]]:
        """Rows as the model takes them, for each draw of demonstrations."""
        plain = self.plain
        if isinstance(plain, PromptModel):
            return [plain.encode_rows(self.part, rows, draw, what) for draw in plain.draws]
        return [plain.encode_rows(rows, what)]

    @in_turn
    @torch.inference_mode()
    def read(
        self, encoded: Sequence[Encoded], what: str = "Reading"
    ) -> tuple[Probabilities, NDArray[np.float64]]:
        """Class probabilities, [prompts, labels], by the policy, and layers used, [prompts].

        Raises:
            UserError: there is no policy.
        """
        if self.policy is None:
            raise UserError("No exit policy is chosen: set one.")
        end, backbone = self.end, self.backbone
        end.ready(encoded[0])
        backbone.apply(self.plain.weights)
        unique, where = different(encoded)
        quick = self._quick
        reader = _Reader(self, end, quick, self.policy, len(unique))
        with Walk(backbone) as walk:
            for batch in backbone.reading(unique, self.plain.report, what):
                reader.read(walk, batch)
        return reader.probabilities().numpy()[where], reader.used.numpy()[where]

    @in_turn
    @torch.inference_mode()
    def every_layer(self, encoded: Sequence[Encoded], what: str = "Reading") -> Probabilities:
        """Class probabilities after every layer, without leaving: [layers, prompts, labels]."""
        backbone = self.backbone
        seen = layered(self.end, self.plain.weights, encoded, self.plain.report, what)
        backbone.apply(self.plain.weights)
        scores = [quick(one) for quick, one in zip(self._quick, seen[:-1], strict=True)]
        made = torch.stack([*scores, self.end.scores(seen[-1])]).double().softmax(-1)
        return cast(Probabilities, made.cpu().numpy())

    def outputs(self, probabilities: Tensor) -> Tensor:
        """What a policy sees of class probabilities, [rows, labels]: they, or numbers [rows, 1]."""
        if self.scale is None:
            return probabilities
        low, high = self.scale.low, self.scale.high
        return low + (high - low) * probabilities[:, 1:]


class _Reader:
    """Reads batches by a policy and keeps what each prompt left with."""

    def __init__(
        self, model: ExitModel, end: End, quick: list[Score], policy: ExitPolicy, prompts: int
    ) -> None:
        self.model, self.end, self.quick, self.policy = model, end, quick, policy
        self.last = len(quick)
        self.wanted = {i for i in range(self.last) if policy.asks(i)} | {self.last}
        self.found = torch.zeros(prompts, len(model.labels), dtype=torch.double)
        self.used = torch.full((prompts,), float(self.last + 1), dtype=torch.double)
        self.stayed: list[Tensor] = []
        self.seen: list[Tensor] = []

    def read(self, walk: Walk, batch: Batch) -> None:
        self.left = torch.tensor(batch.indices)
        self.memory: dict[str, Tensor] = {}
        walk(batch, self._visit, self.wanted)

    def _visit(self, layer: int, states: Tensor, places: Tensor) -> Tensor | bool:
        left = self.left
        seen = self.end.seen(states, places, len(left))
        if layer == self.last:
            self.stayed.append(left)
            self.seen.append(seen)
            return False
        probabilities = self.quick[layer](seen).softmax(-1, dtype=torch.double)
        leaves = self.policy.leaves(layer, self.model.outputs(probabilities), self.memory)
        if not bool(leaves.any()):
            return True
        if bool(leaves.all()):
            self.found[left], self.used[left] = probabilities.cpu(), float(layer + 1)
            return False
        here, stays = leaves.cpu(), ~leaves
        self.found[left[here]], self.used[left[here]] = (
            probabilities[leaves].cpu(),
            float(layer + 1),
        )
        self.left = left[~here]
        self.memory = {name: value[stays] for name, value in self.memory.items()}
        return stays

    def probabilities(self) -> Tensor:
        """Class probabilities of all prompts, [prompts, labels]; those that stayed are read as ever."""
        if self.stayed:
            scores = self.end.scores(torch.cat(self.seen))
            self.found[torch.cat(self.stayed)] = scores.double().softmax(-1).cpu()
        return self.found


@torch.no_grad()
def layered(
    end: End, weights: Any, encoded: Sequence[Encoded], report: Any, what: str = "Reading"
) -> Tensor:
    """What exits see of every layer, [layers, prompts, ...]; each prompt goes through the model once."""
    backbone = end.backbone
    end.ready(encoded[0])
    backbone.apply(weights)
    unique, where = different(encoded)
    out: Tensor | None = None
    with Walk(backbone) as walk:
        for batch in backbone.reading(unique, report, what):
            rows = len(batch.indices)
            states = all_layers(backbone, batch, walk)
            seen = torch.stack([end.seen(one, batch.rows, rows) for one in states])
            if out is None:
                out = seen.new_empty(len(seen), len(unique), *seen.shape[2:])
            out[:, batch.indices] = seen
    assert out is not None
    return out[:, where]


def exit_model(classifier: Classifier) -> ExitModel:
    """The model with exits in a classifier.

    Raises:
        UserError: it was trained without exits.
    """
    inner = classifier.inner
    if not isinstance(inner, ExitModel):
        raise UserError(
            "This model was not trained with exits, so rows cannot leave it early: train it with "
            "--exits joint or --exits two-stage (in Python: train(..., exits='joint'))."
        )
    return inner


def set_policy(
    classifier: Classifier,
    policy: str | ExitPolicy | None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Choose when rows leave a model with exits; None: never.

    Args:
        policy: a component, or its name with its options.

    Raises:
        UserError: the model has no exits; options that do not fit.
    """
    model = exit_model(classifier)
    model.policy = (
        build("exit-policy", policy, **(options or {})) if isinstance(policy, str) else policy
    )


def layers_used(classifier: Classifier, rows: int) -> NDArray[np.float64] | None:
    """Layers used for each of the rows that were read last, [rows]; None without a policy.

    Of label sets it is the mean over the questions of a row.
    """
    inner = classifier.inner
    if not isinstance(inner, ExitModel) or inner.policy is None:
        return None
    return cast("NDArray[np.float64]", inner.exit_layers.reshape(rows, -1).mean(1))
