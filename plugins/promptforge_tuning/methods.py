"""Tuning methods that add nothing to a model: they choose which of its weights are trained."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from promptforge import TuningMethod, UserError
from promptforge.backbone import Backbone


class All(TuningMethod):
    """Every weight of the model."""

    name: ClassVar[str] = "all"

    def prepare(self, backbone: Backbone) -> dict[str, nn.Parameter]:
        """All parameters."""
        return dict(backbone.parameters)


class HeadOnly(TuningMethod):
    """The language-model head alone: what stands between the body and the words.

    The output matrix is left out where it is tied to the word embeddings. A model whose head is
    nothing but that matrix (most causal ones) is trained in the norm before it.
    """

    name: ClassVar[str] = "head"

    def prepare(self, backbone: Backbone) -> dict[str, nn.Parameter]:
        """The head's parameters, by name.

        Raises:
            UserError: the model has neither a head of its own nor a norm before it.
        """
        body = {id(p) for p in backbone.body.parameters()}
        tables = {id(backbone.model.get_input_embeddings().weight)}
        outside = body | tables | {id(p) for p in backbone.model.base_model.parameters()}
        if backbone.model.base_model is backbone.model:
            outside = body | tables
        found = {n: p for n, p in backbone.parameters.items() if id(p) not in outside}
        if found:
            return found
        norms = [m for m in backbone.body.modules() if "norm" in type(m).__name__.lower()]
        last = {id(p) for p in norms[-1].parameters()} if norms else set()
        found = {n: p for n, p in backbone.parameters.items() if id(p) in last}
        if not found:
            raise UserError(
                f"method 'head': {backbone.name} has no head of its own to train. Use 'bitfit' or 'all'."
            )
        return found


class BitFit(TuningMethod):
    """Biases alone (Ben Zaken, Goldberg & Ravfogel 2022)."""

    name: ClassVar[str] = "bitfit"

    def prepare(self, backbone: Backbone) -> dict[str, nn.Parameter]:
        """The parameters called "bias", those of the norms included.

        Raises:
            UserError: the model has no biases (Llama, T5).
        """
        found = {n: p for n, p in backbone.parameters.items() if n.rpartition(".")[2] == "bias"}
        if not found:
            raise UserError(f"method 'bitfit': {backbone.name} has no biases. Use 'all'.")
        return found
