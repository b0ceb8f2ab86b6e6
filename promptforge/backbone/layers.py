"""The layers of a model's body, found by watching one pass, and a walk from layer to layer.

Rows of a batch may leave on the way: later layers run on those that are left. Nothing of the
model is written again: hooks cut the hidden states and what goes along with them, so masks,
position embeddings, caches and whatever was put into the model stay the model's own affair.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from transformers import Cache

from promptforge.errors import PromptForgeError, UserError
from promptforge.template import Prompt, Text

if TYPE_CHECKING:
    from promptforge.backbone.base import Backbone
    from promptforge.backbone.batch import Batch

#: Keyword arguments of layers that have one entry for each row of the batch.
_BY_ROW = {
    "attention_mask", "position_ids", "position_embeddings", "encoder_hidden_states",
    "encoder_attention_mask", "query_states",
}  # fmt: skip


@dataclass(frozen=True)
class Layers:
    """The layers of a body.

    Attributes:
        modules: each once, though it may be called for several layers (ALBERT).
        count: how many layers a pass goes through.
        norm: what stands between the last layer and the head (the final norm of pre-norm models).
    """

    modules: tuple[nn.Module, ...]
    count: int
    norm: tuple[nn.Module, ...]


def find_layers(backbone: Backbone) -> Layers:
    """The layers of the body that the head reads: an encoder, a causal model, or a decoder.

    Raises:
        UserError: the model has no list of layers, or something other than modules stands behind
            the last one.
    """
    body = backbone.body
    modules = layer_modules(body)
    if not modules:
        raise UserError(f"Exits: {backbone.name} has no list of layers to put them on.")
    order: list[Tensor] = []

    def note(_: nn.Module, __: Any, out: Any) -> None:
        order.append(out[0] if isinstance(out, tuple) else out)

    inside = {id(m) for layer in modules for m in layer.modules()}
    others = [m for m in body.modules() if m is not body and id(m) not in inside]
    encoded = backbone.encoder.encode([Prompt((Text("a"),))], masked=False)
    batch = backbone.collate([backbone.summary(encoded[0])], [0])
    handles = [layer.register_forward_hook(note) for layer in modules]
    last: list[Tensor] = []
    handles.append(body.register_forward_hook(lambda _, __, out: last.append(out[0])))
    try:
        with torch.no_grad(), Calls(others) as calls:
            backbone.hidden(batch)
    finally:
        for handle in handles:
            handle.remove()
    norm = calls.path(order[-1], last[-1]) if order and last else None
    if norm is None:
        raise UserError(
            f"Exits: what {backbone.name} ({backbone.model.config.model_type}) does behind its last layer "
            "cannot be found, so nothing can be read before it."
        )
    return Layers(tuple(modules), len(order), tuple(norm))


def layer_modules(body: nn.Module) -> list[nn.Module]:
    """The modules that are layers of a body, each once; empty where none can be told."""
    recorded: Any = (getattr(type(body), "_can_record_outputs", None) or {}).get("hidden_states")
    if isinstance(recorded, list | tuple):
        recorded = recorded[0]
    kind = getattr(recorded, "target_class", None) or recorded
    if isinstance(kind, type):
        found = [m for m in body.modules() if isinstance(m, kind)]
        if found:
            return found
    lists = [list(m) for m in body.modules() if isinstance(m, nn.ModuleList)]
    return max(lists, key=len, default=[])


class Calls:
    """While this lasts, what modules make of which tensors is written down."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self._modules = modules
        self._made: list[tuple[nn.Module, Tensor, Tensor]] = []

    def __enter__(self) -> Calls:
        def note(module: nn.Module, args: Any, out: Any) -> None:
            if args and torch.is_tensor(args[0]) and torch.is_tensor(out):
                self._made.append((module, args[0], out))

        self._handles = [m.register_forward_hook(note) for m in self._modules]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def path(self, start: Tensor, end: Tensor) -> list[nn.Module] | None:
        """The modules that make `end` of `start`, one after the other; None: it takes more.

        All tensors are kept, so one place in memory is one tensor.
        """
        if _same(start, end):
            return []
        for i, (module, given, made) in enumerate(self._made):
            if _same(given, start) and not _same(made, start):
                rest = Calls([])
                rest._made = self._made[i + 1 :]
                behind = rest.path(made, end)
                if behind is not None:
                    return [module, *behind]
        return None


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.data_ptr() == other.data_ptr() and one.shape == other.shape)


class Visit(Protocol):
    """What is done at each layer of a walk."""

    def __call__(self, layer: int, states: Tensor, places: Tensor, /) -> Tensor | bool:
        """Which rows go on, [rows left] bool; True: all, False: none.

        Args:
            layer: from 0; what is answered at the last is not looked at.
            states: after the layer and the body's final norm, at the reads of the rows that are
                left, [reads, d].
            places: the row of each read among those that are left, [reads].
        """


class _Done(Exception):
    """No row is left, or there is no layer left."""


class Walk:
    """Passes through a model, layer by layer.

    Hooks are in the model while this is entered, and each call is a pass.

    Args:
        backbone: the model, with whatever weights and additions are in it.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone, self.layers = backbone, backbone.layers
        self._visit: Visit | None = None

    def __enter__(self) -> Walk:
        self._handles = [m.register_forward_hook(self._after) for m in self.layers.modules]
        self._cuts = False
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def __call__(self, batch: Batch, visit: Visit, wanted: Collection[int] | None = None) -> None:
        """Read a batch; `visit` is called after each layer until no row is left.

        Args:
            wanted: only after these layers; everyone goes on from the others.

        Raises:
            PromptForgeError: the model called other layers than it did before.
            UserError: an attention pattern that padding would change, and rows of several lengths.
        """
        placed = self.backbone.placed
        if placed is not None and placed.parts(batch):
            raise UserError(
                f"Exits: attention {placed.pattern.name!r} takes rows of one length alone, and layers are read of "
                "all rows of a batch: use a pattern that padding does not change, or batch_size=1."
            )
        self._batch, self._visit, self._layer, self._wanted = batch, visit, 0, wanted
        self._size, self._places, self._columns = (
            len(batch.inputs["input_ids"]), batch.rows, batch.columns
        )  # fmt: skip
        # A single place is looked up faster by its number.
        self._column = int(batch.columns[0]) if len(batch.columns) == 1 else None
        batch.left = None
        try:
            self.backbone.hidden(batch)
        except _Done:
            return
        finally:
            self._visit, batch.left = None, None
        raise PromptForgeError(
            f"{self.backbone.name} went through {self._layer} layers, not {self.layers.count}."
        )

    def _after(self, _: nn.Module, __: Any, out: Any) -> Any:
        if self._visit is None:
            return None
        layer, self._layer = self._layer, self._layer + 1
        if self._wanted is not None and layer not in self._wanted:
            return None
        hidden = out[0] if isinstance(out, tuple) else out
        if self._column is not None:
            states = hidden[:, self._column]
        else:
            states = hidden[self._places, self._columns]
        for module in self.layers.norm:
            states = module(states)
        stays = self._visit(layer, states, self._places)
        if stays is False or self._layer == self.layers.count:
            raise _Done
        return None if stays is True else self._without(out, hidden, stays)

    def _without(self, out: Any, hidden: Tensor, stays: Tensor) -> Any:
        """A layer's output for the rows that stay; later layers get all else cut likewise."""
        if not self._cuts:  # nothing needs them before
            self._handles += [
                m.register_forward_pre_hook(self._before, with_kwargs=True)
                for m in self.layers.modules
            ]
            self._cuts = True
        size, kept = len(stays), stays.nonzero()[:, 0]
        left = self._batch.left
        self._batch.left = kept if left is None else left[kept]
        reads = stays[self._places]
        self._places = (stays.cumsum(0) - 1)[self._places[reads]]
        self._columns = self._columns[reads]
        if isinstance(out, tuple):  # T5 hands its position bias from layer to layer
            return (hidden[kept], *(self._cut(v, size, kept) for v in out[1:]))
        return hidden[kept]

    def _before(self, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if self._visit is None or (left := self._batch.left) is None:
            return None
        for value in (*args, *kwargs.values()):
            if isinstance(value, Cache):  # what was read before belongs to all rows
                value.layers[self._layer].batch_select_indices(left)
        cut = {k: self._cut(v, self._size, left) if k in _BY_ROW else v for k, v in kwargs.items()}
        return (args[0], *(self._cut(v, self._size, left) for v in args[1:])), cut

    def _cut(self, value: Any, size: int, rows: Tensor) -> Any:
        if isinstance(value, tuple):
            return tuple(self._cut(v, size, rows) for v in value)
        by_row = torch.is_tensor(value) and value.dim() > 1 and len(value) == size > 1
        return value[rows] if by_row else value


def all_layers(backbone: Backbone, batch: Batch, walk: Walk | None = None) -> list[Tensor]:
    """States of every layer at the batch's reads, [reads, d] each, after the final norm; keeps gradients."""
    found: list[Tensor] = []

    def keep(_: int, states: Tensor, __: Tensor) -> bool:
        found.append(states)
        return True

    if walk is not None:
        walk(batch, keep)
    else:
        with Walk(backbone) as own:
            own(batch, keep)
    return found
