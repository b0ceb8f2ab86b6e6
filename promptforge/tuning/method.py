"""Tuning methods: what is trained. The protocol; methods are plugins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from promptforge.components import Component
from promptforge.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from promptforge.backbone.addition import Addition
    from promptforge.backbone.base import Backbone
    from promptforge.encode import Encoded
    from promptforge.tuning.settings import Settings
    from promptforge.verbalizer import Words


class TuningMethod(Component):
    """Chooses parameters of a model that are trained, or adds some, or both.

    Attributes:
        learning_rate: what suits it where the user names none.
    """

    role: ClassVar[str] = "method"
    learning_rate: ClassVar[float] = 3e-5

    @property
    def model_share(self) -> float:
        """The share of the learning rate at which the model's own parameters are trained."""
        return 1.0

    def prepare(self, backbone: Backbone) -> dict[str, nn.Parameter]:
        """The model's own parameters to train, by the names that `backbone.parameters` gives them.

        Raises:
            UserError: the model has nothing of this kind.
        """
        return {}

    def add(self, backbone: Backbone, prompts: Sequence[Encoded], words: Words) -> Addition | None:
        """What is added to the model, with its trained parameters on the model's device.

        Args:
            backbone: the model as it is.
            prompts: the rows that will be trained on, as the template has them; those of one
                template have the same soft tokens.
            words: label -> words, for methods that start from them; empty where there is no mask.

        Raises:
            UserError: the model cannot have it.
        """
        return None

    def read(self, backbone: Backbone, folder: Path) -> Addition | None:
        """What another program left in a folder, as this method's; None: nothing that it reads.

        Raises:
            UserError: it is of another model.
        """
        return None

    def restore(
        self, backbone: Backbone, data: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> Addition:
        """What was added, from the JSON and the tensors that it gave to an artifact."""
        from promptforge.backbone.addition import Folded

        return Folded.from_parts(data, tensors).to_device(backbone.device)


def check_dropout(method: TuningMethod, settings: Settings | None) -> None:
    """Raise a `UserError` where a method's dropout is asked for, and the training uses none."""
    if settings is not None and not settings.dropout and getattr(method, "dropout", False):
        raise UserError(
            f"settings.dropout=false trains without any dropout, and method {method.name!r} asks for its own: "
            "leave one of the two out."
        )
