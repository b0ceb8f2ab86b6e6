"""A tuning method: what of a model is trained, or added to it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from promptforge import Backbone, TuningMethod, UserError


class BlankMethod(TuningMethod):
    """The norms alone: a few thousand numbers of a model are trained, the rest is frozen."""

    name: ClassVar[str] = "blank"
    learning_rate: ClassVar[float] = 1e-3

    part: Literal["all", "weight", "bias"] = Field("all", description="Which of their parameters.")

    def prepare(self, backbone: Backbone) -> dict[str, nn.Parameter]:
        """The parameters of the norms, by the names that the model gives them.

        Raises:
            UserError: the model has none.
        """
        wanted = {id(p) for norm in backbone.norms.values() for p in norm.parameters()}
        found = {
            name: p
            for name, p in backbone.parameters.items()
            if id(p) in wanted and self.part in ("all", name.rpartition(".")[2])
        }
        if not found:
            raise UserError(f"method {self.name!r}: {backbone.name} has no norms with {self.part}.")
        return found
