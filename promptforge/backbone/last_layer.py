"""The feed-forward part of the last layer, computed only where its output is read.

Nothing follows it that mixes tokens, so what it would give for all the others is never looked at:
a prompt is read at its masks alone. It is most of a layer's arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

from torch import Tensor, nn

from promptforge.backbone.batch import Batch
from promptforge.backbone.layers import layer_modules


class LastLayer:
    """The last layer of a body.

    Layers of BERT's family have a method for their feed-forward part, those of most others a module.
    Where there is neither, or one layer is called several times (ALBERT), all is computed.

    Args:
        model: the language model.
        body: what of it has the layers.
    """

    def __init__(self, model: Any, body: nn.Module) -> None:
        layers = layer_modules(body)
        self._layer = layers[-1] if layers else body
        self._part: tuple[nn.Module, str] | None = None
        if layers and len(layers) == getattr(model.config, "num_hidden_layers", 0):
            mlp = getattr(self._layer, "mlp", None)
            if callable(getattr(self._layer, "feed_forward_chunk", None)):
                self._part = self._layer, "feed_forward_chunk"
            elif isinstance(mlp, nn.Module) and len(signature(mlp.forward).parameters) == 1:
                self._part = mlp, "forward"

    @contextmanager
    def only_at_reads(self, batch: Batch) -> Iterator[None]:
        """While this lasts, the feed-forward part gives zeros where `batch` is not read."""
        rows, tokens = batch.inputs["input_ids"].shape
        each = batch.reads_each
        # A checkpointed layer is called again on the way back, when this is over.
        again = getattr(self._layer, "gradient_checkpointing", False)
        if self._part is None or again or not each or 2 * each > tokens:
            yield
            return
        module, name = self._part
        plain: Callable[[Tensor], Any] = getattr(module, name)
        places = batch.rows.view(rows, each), batch.columns.view(rows, each)

        def at_reads(states: Tensor) -> Any:
            if states.shape[:2] != (rows, tokens):  # rows have left
                return plain(states)
            made = plain(states[places])
            if not isinstance(made, Tensor):  # experts
                return plain(states)
            return made.new_zeros(*states.shape[:2], made.shape[-1]).index_put(places, made)

        vars(module)[name] = at_reads
        try:
            yield
        finally:
            del vars(module)[name]
