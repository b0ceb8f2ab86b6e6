"""Tuned parameters written into a model's own: afterwards it is a model like any other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from promptforge.backbone.addition import Addition, Delta
from promptforge.backbone.base import Backbone
from promptforge.backbone.weights import Weights
from promptforge.errors import UserError


def merge_weights(backbone: Backbone, weights: Weights) -> None:
    """Make tuned weights the model's own.

    Raises:
        UserError: something was added to the model that its matrices cannot say.
        KeyError: the model has no parameter of a name.
    """
    backbone.apply(None)
    if weights.added is not None:
        weights.added.to_device(backbone.device).merge_into(backbone)
    weights.write_to(backbone.parameters)
    backbone.__dict__.pop("checksum", None)  # its weights are others now


def merge_parts(backbone: Backbone, addition: Addition) -> None:
    """Write the deltas of an addition into the matrices that they change.

    Raises:
        UserError: the addition has soft tokens or prefixes, or a delta that is not linear in what its
            matrix takes.
    """
    if addition.soft():
        raise UserError(
            "soft tokens stand in the prompt, and no matrix of the model can hold them."
        )
    if addition.prefixes():
        raise UserError(
            "a prefix is more keys and values in every attention: no matrix can hold it."
        )
    made = {
        name: _merged(name, backbone.matrices[name], delta)
        for name, delta in addition.deltas().items()
    }
    with torch.no_grad():
        for name, (weight, bias) in made.items():
            module = backbone.matrices[name]
            module.get_parameter("weight").copy_(weight)
            if bias is not None:
                module.get_parameter("bias").copy_(bias)


def _merged(name: str, module: nn.Module, delta: Delta) -> tuple[Tensor, Tensor | None]:
    """Weight (as the module has it) and bias that do what module and delta do, in float64.

    The delta makes `z A + c` of `z`, which is what the matrix gives or takes.
    """
    if delta.down is not None and delta.activation != "identity":
        raise UserError(
            f"the adapter at {name!r} has an activation ({delta.activation}) between its two matrices, and one "
            "matrix cannot do what it does."
        )
    if delta.norm is not None:
        raise UserError(f"the adapter at {name!r} has a LayerNorm, which no matrix can hold.")
    if delta.down is not None and delta.source not in ("", name):
        raise UserError(
            f"the adapter at {name!r} takes the input of {delta.source!r}, so neither matrix can hold it."
        )

    def double(value: Tensor | float) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float64, device=matrix.device).detach()

    matrix = module.get_parameter("weight").detach()
    own = module.bias
    turned = not isinstance(module, Conv1D)
    w = double(matrix.T if turned else matrix)
    b = double(own if isinstance(own, Tensor) else 0.0)
    kept = double(1.0 if delta.multiply is None else delta.multiply)
    product, c = torch.zeros((), dtype=w.dtype, device=w.device), double(0.0)
    if delta.down is not None and delta.up is not None:
        share = double(delta.scale)
        if delta.gate is not None:
            opened, keeps = Delta.shares(double(delta.gate))
            kept, share = kept * keeps, share * opened
        up = double(delta.up) * share
        product = double(delta.down) @ up
        if delta.down_bias is not None:
            c = c + double(delta.down_bias) @ up
        if delta.up_bias is not None:
            c = c + double(delta.up_bias) * share
    if delta.at == "input":
        weight = kept.reshape(-1, 1) * w + (product @ w if product.ndim else product)
        bias = b + (c @ w if c.ndim else c)
    elif delta.source == name:
        weight, bias = w * kept + product, b * kept + c
    else:
        weight = w * kept + (w @ product if product.ndim else product)
        bias = b * kept + c + (b @ product if b.ndim and product.ndim else 0.0)
    if not isinstance(own, Tensor):
        if bool((bias != 0).any()):
            raise UserError(
                f"the adapter at {name!r} has biases, and that matrix of the model has none to hold them."
            )
        return weight.T if turned else weight, None
    return weight.T if turned else weight, bias
