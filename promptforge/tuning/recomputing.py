"""Layers that are computed again on the way back, instead of kept: `checkpointing=True`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from promptforge.backbone.base import Backbone
from promptforge.errors import UserError
from promptforge.tuning.dropout import cheap_dropout


@contextmanager
def recomputing(objective: nn.Module, wanted: bool = True) -> Iterator[None]:
    """While this lasts, each layer of the objective's model keeps its input alone for the way back.

    Chen et al. 2016, "Training deep nets with sublinear memory cost". An objective without a model
    (exits on states that were read before) has nothing to compute again.

    Args:
        wanted: False: nothing is done.

    Raises:
        UserError: the model's code cannot do it.
    """
    backbone: Backbone | None = getattr(objective, "backbone", None)
    if backbone is None or not wanted:
        yield
        return
    model = backbone.model
    _switch(backbone, True)
    marked = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    # What holds layers, and what is in them, may be marked too, and have dropout of its own.
    layers = [m for m in marked if isinstance(m, GradientCheckpointingLayer)] or marked
    # Read when a pass begins: what each would be outside of the pass.
    own: dict[nn.Module, bool] = {}

    def begin(*_: Any) -> None:
        own.update({layer: layer.training for layer in layers})
        for layer in layers:  # without dropout they would be in no training, and keep all
            layer.training = True

    def end(*_: Any) -> None:
        for layer, training in own.items():
            layer.training = training

    def again(function: Callable[..., Any], *args: Any, **more: Any) -> Any:
        return checkpoint(
            _as_it_was(function, own), *args, use_reentrant=False,
            context_fn=lambda: (nullcontext(), _reading(backbone, backbone.current)), **more,
        )  # fmt: skip

    for layer in marked:
        layer._gradient_checkpointing_func = again
    hooks = [
        objective.register_forward_pre_hook(begin),
        objective.register_forward_hook(end, always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        _switch(backbone, False)
        for layer in marked:
            vars(layer).pop("_gradient_checkpointing_func", None)


def _switch(backbone: Backbone, on: bool) -> None:
    model, what = backbone.model, "enable" if on else "disable"
    # transformers before 5.23 has only the second name, and later ones warn of it.
    names = (f"activation_checkpointing_{what}", f"gradient_checkpointing_{what}")
    function = next((f for name in names if (f := getattr(model, name, None))), None)
    if function is None or not getattr(model, "supports_gradient_checkpointing", False):
        raise UserError(
            f"checkpointing: {type(model).__name__} of {backbone.name} cannot compute layers again in the backward "
            "pass. Leave checkpointing out; a smaller --batch-size, or --accumulate 2 or more, needs less "
            "memory too."
        )
    asked = bool(getattr(model, "_require_grads_hooks", None))
    function()
    # It has the embeddings' output ask for gradients, and takes that back for peft's models alone.
    if on and not asked and hasattr(model, "disable_input_require_grads"):
        model.disable_input_require_grads()


def _as_it_was(function: Callable[..., Any], own: dict[nn.Module, bool]) -> Callable[..., Any]:
    """The function with the layers' modes as they were: some layers drop out by their own mode."""

    def called(*args: Any, **more: Any) -> Any:
        now = {layer: layer.training for layer in own}
        for layer, training in own.items():
            layer.training = training
        try:
            return function(*args, **more)
        finally:
            for layer, training in now.items():
                layer.training = training

    return called


@contextmanager
def _reading(backbone: Backbone, batch: Any) -> Iterator[None]:
    """As the layer was read: with its batch (a loss may have several before its way back), and dropout."""
    now, backbone.current = backbone.current, batch
    try:
        with cheap_dropout(backbone.device):
            yield
    finally:
        backbone.current = now
