"""Tuning methods: what is trained. The protocol; methods are plugins."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from promptforge.components import Component

if TYPE_CHECKING:
    from torch import nn

    from promptforge.backbone.base import Backbone


class TuningMethod(Component):
    """Chooses, or adds, the parameters of a model that are trained."""

    role: ClassVar[str] = "method"

    @abstractmethod
    def prepare(self, backbone: Backbone) -> dict[str, nn.Parameter]:
        """The parameters to train, by the names that `backbone.parameters` gives them.

        Raises:
            UserError: the model has nothing of this kind.
        """
