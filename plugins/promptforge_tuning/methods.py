"""Tuning methods that add nothing to a model: they choose which of its weights are trained."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from promptforge import TuningMethod, UserError
from promptforge.backbone import Backbone
from promptforge.template import Prompt, Text


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
        base = backbone.model.base_model
        parts = backbone.stacks if base is backbone.model else [*backbone.stacks, base]
        outside = {id(p) for part in parts for p in part.parameters()}
        outside.add(id(backbone.model.get_input_embeddings().weight))
        found = {n: p for n, p in backbone.parameters.items() if id(p) not in outside}
        if found:
            return found
        last = {id(p) for norm in _called_last(backbone) for p in norm.parameters()}
        found = {n: p for n, p in backbone.parameters.items() if id(p) in last}
        if not found:
            raise UserError(
                f"method 'head': {backbone.name} has no head of its own to train. Use 'bitfit' or 'all'."
            )
        return found


def _called_last(backbone: Backbone) -> list[nn.Module]:
    """The norm that a pass calls last, whose output the head reads; none where there is no norm."""
    called: list[nn.Module] = []
    handles = [
        norm.register_forward_hook(lambda module, *_: called.append(module))
        for norm in backbone.norms.values()
    ]
    encoded = backbone.encoder.encode([Prompt((Text("a"),))], masked=False)
    try:
        with torch.no_grad():
            backbone.hidden(backbone.collate([backbone.summary(encoded[0])], [0]))
    finally:
        for handle in handles:
            handle.remove()
    return called[-1:]


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
