"""What a tuning method adds to a frozen model: vectors, keys and values, low-rank matrices.

Three kinds of things are added, and every method is made of them (He et al. 2022, "Towards a
unified view of parameter-efficient transfer learning"):

- vectors in place of the embeddings of soft tokens (prompt tuning, P-tuning);
- keys and values before those of an attention (prefix tuning);
- a change of what a matrix gives: `Delta` (adapters, LoRA, (IA)^3).

An `Addition` says what they are; `promptforge.backbone.attached` puts them into a model. So rows of
different tasks, each with an addition of its own, can share one forward pass, whatever the methods.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promptforge.errors import UserError, listed
from promptforge.template import OPENING, Soft

if TYPE_CHECKING:
    from promptforge.backbone.base import Backbone
    from promptforge.encode import Encoded

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"identity": lambda x: x, "relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}  # fmt: skip


@dataclass(frozen=True)
class Delta:
    """A change of `h`, what the matrix at a place gives: `h * multiply + scale * f(x down) up`.

    Attributes:
        down: [d_in, r], and up [r, d_out]; both None where nothing is added.
        source: the matrix whose input is `x` (parallel: the sub-layer's input; LoRA: the matrix
            itself); "" takes `h` for `x` (sequential).
        activation: f; a name in `ACTIVATIONS`.
        scale: a number, or a trained scalar [].
        down_bias, up_bias: [r] and [d_out], or None.
        multiply: [d_out], or None.
        gate: [d_out] logits g of a gated sum, `(1 - s + c) h + s * added` with s = sigmoid(g), or
            None; c = sigmoid(CLOSED), so that a gate that is `CLOSED` leaves h as it is.
        norm: weight and bias, [2, d_in], of a LayerNorm of `x`, or None.
        dropout: rate of x while training.
        at: "output", or "input": `h` is what the matrix takes.
    """

    #: where gates start
    CLOSED: ClassVar[float] = -4.0

    down: Tensor | None = None
    up: Tensor | None = None
    source: str = ""
    activation: str = "identity"
    scale: Tensor | float = 1.0
    down_bias: Tensor | None = None
    up_bias: Tensor | None = None
    multiply: Tensor | None = None
    gate: Tensor | None = None
    norm: Tensor | None = None
    dropout: float = 0.0
    at: str = "output"

    @property
    def form(self) -> tuple[Any, ...]:
        """What deltas must have in common to be computed together, row by row."""
        optional = (self.down, self.down_bias, self.up_bias, self.multiply, self.gate, self.norm)
        shape = None if self.down is None else tuple(self.down.shape)
        return (
            shape,
            self.source,
            self.activation,
            self.dropout,
            *(x is not None for x in optional),
        )

    def apply(self, h: Tensor, x: Tensor, training: bool = False) -> Tensor:
        """The changed `h`, [rows, tokens, d_out], in its precision; tensors may have one dimension, of rows, more."""
        out = h if self.multiply is None else h * _rowwise(self.multiply, 1)
        if self.down is None or self.up is None:
            return out.to(h.dtype)
        if self.dropout and training:
            x = F.dropout(x, self.dropout)
        if self.norm is not None:
            weight, bias = self.norm.unbind(-2)
            x = F.layer_norm(x, x.shape[-1:]) * _rowwise(weight, 1) + _rowwise(bias, 1)
        middle = x @ self.down.to(x.dtype)
        if self.down_bias is not None:
            middle = middle + _rowwise(self.down_bias, 1)
        middle = ACTIVATIONS[self.activation](middle)
        added = middle @ self.up.to(middle.dtype)
        if self.up_bias is not None:
            added = added + _rowwise(self.up_bias, 1)
        scale = self.scale if isinstance(self.scale, float) else _rowwise(self.scale, 0)
        added = added * scale
        if self.gate is None:
            return (out + added).to(h.dtype)
        share, keeps = self.shares(_rowwise(self.gate, 1))
        return (keeps * out + share * added).to(h.dtype)

    @classmethod
    def shares(cls, gate: Tensor) -> tuple[Tensor, Tensor]:
        """What a gate lets through of what is added, and of h."""
        share = torch.sigmoid(gate)
        return share, 1 - share + 1 / (1 + math.exp(-cls.CLOSED))

    @classmethod
    def stacked(cls, deltas: list[Delta]) -> Delta:
        """Deltas of one form as one whose tensors have a first dimension that numbers them."""
        made: dict[str, Any] = {}
        for name in ("down", "up", "down_bias", "up_bias", "multiply", "gate", "norm"):
            values = [getattr(d, name) for d in deltas]
            made[name] = None if values[0] is None else torch.stack(values)
        scales = [d.scale for d in deltas]
        if all(isinstance(s, float) and s == scales[0] for s in scales):
            return replace(deltas[0], **made)
        like = next(value for value in made.values() if value is not None)
        each = [torch.as_tensor(s, device=like.device, dtype=like.dtype) for s in scales]
        return replace(deltas[0], **made, scale=torch.stack(each))

    def of_rows(self, numbers: Tensor) -> Delta:
        """Of stacked deltas, the one that each row has, [rows]."""
        chosen: dict[str, Any] = {
            k: v[numbers] for k, v in vars(self).items() if isinstance(v, Tensor)
        }
        return replace(self, **chosen)


def _rowwise(value: Tensor, own: int) -> Tensor:
    """A tensor with `own` dimensions of its own and, where it has rows, one for the tokens."""
    if value.ndim == own:
        return value
    return value.view(len(value), 1, *value.shape[1:]) if own else value.view(-1, 1, 1)


class Addition(nn.Module, ABC):
    """What one task adds to a frozen model.

    A subclass registers its trained parameters and computes from them what the model gets; it is
    asked once for every forward pass. What a reparametrisation makes of them is all that is kept:
    `folded` is that, and `Folded` is an addition of plain tensors.

    Attributes:
        opening: soft tokens that stand before every prompt.
        made_by: name and options of the tuning method, for artifacts.
        file: the file of an artifact that holds `tensors`, where they have one of their own.
    """

    file: ClassVar[str] = ""

    def __init__(self) -> None:
        super().__init__()
        self.opening: tuple[Soft, ...] = ()
        self.made_by: dict[str, Any] = {}

    def soft(self) -> Mapping[str, Tensor]:
        """Vectors of soft tokens: key of the slot -> [n, d]."""
        return {}

    def prefixes(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Keys and values by the name of a `Site`: two of [heads, length, head_size]."""
        return {}

    def deltas(self) -> Mapping[str, Delta]:
        """Changes by the name of a matrix."""
        return {}

    def install(self, backbone: Backbone) -> Callable[[], None] | None:
        """Put further modules of its own into the model; returns what takes them out again.

        Rows of several tasks cannot share a pass where one addition does this.
        """
        return None

    @abstractmethod
    def folded(self) -> Addition:
        """The same addition as it is now, on the same device, with gradients cut: to keep."""

    def to_json(self) -> dict[str, Any]:
        """What an artifact keeps of a folded addition besides its tensors."""
        return {"method": self.made_by}

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What an artifact keeps of a folded addition, by name."""

    def texts(self) -> Mapping[str, str]:
        """Further files of an artifact, by which other programs read it: name -> text."""
        return {}

    def start_from(self, other: Addition) -> None:
        """Take the tensors of another addition, a folded one of the same method, as the start.

        Raises:
            UserError: it has other parts, or parts of other shapes.
        """
        raise UserError(f"method {self.made_by['name']!r} cannot start from what was tuned before.")

    def merge_into(self, backbone: Backbone) -> None:
        """Write what it does into the model's own matrices.

        Raises:
            UserError: matrices cannot say it; nothing is written then.
        """
        from promptforge.backbone.merge import merge_parts

        merge_parts(backbone, self)

    def to_device(self, device: torch.device) -> Addition:
        """A folded addition on another device."""
        return self.to(device)

    def check(self, prompts: Sequence[Encoded], origin: str) -> None:
        """Raise a `UserError` where prompts have other soft tokens than those that were trained.

        A method that trains none leaves a template's as they are: then any will do.
        """
        lengths = {key: len(vectors) for key, vectors in self.soft().items()}
        for key, length in {(s.key, s.length) for e in prompts for s in e.soft} if lengths else ():
            if lengths.get(key) != length:
                trained = listed([f"{k} ({n} tokens)" for k, n in lengths.items()])
                raise UserError(
                    f"{origin} has the soft prompt {key!r} of {length} tokens, and what was tuned are "
                    f"{trained}: the template was changed after the tuning. Tune it again."
                )

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def undecayed(self) -> set[str]:
        """Names of those that weight decay leaves alone, besides vectors: the norms, called `norm`."""
        return {name for name in self.trained() if name.rpartition(".")[2] == "norm"}


class Computed(Addition):
    """An addition that is made of soft tokens, prefixes and deltas: all that is kept is these."""

    def starts(self) -> Mapping[str, Tensor]:
        """Where a start is written: tensors by the names that `Folded.tensors` gives; none: nowhere."""
        return {}

    def start_from(self, other: Addition) -> None:
        own, theirs = self.starts(), Folded.of(other).tensors()
        if not own:
            super().start_from(other)
        for name in sorted({*own, *theirs}):
            here, there = (tuple(t[name].shape) if name in t else "nothing" for t in (own, theirs))
            if here != there:
                raise UserError(f"{name} is {there} there, and {here} here.")
        there_is = other.deltas()
        for name, delta in self.deltas().items():
            for part in ("source", "activation", "at", "scale"):
                here, there = getattr(delta, part), getattr(there_is[name], part)
                if here != there and not isinstance(here, Tensor):
                    raise UserError(f"{part} of {name} is {there!r} there, and {here!r} here.")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(theirs[name])

    def folded(self) -> Addition:
        return Folded.of(self)

    def tensors(self) -> dict[str, Tensor]:
        return Folded.of(self).tensors()


class Folded(Addition):
    """An addition of plain tensors: what artifacts hold.

    Args:
        soft, prefixes, deltas: as the methods of `Addition` give them.
        opening: how many soft tokens stand before every prompt.
    """

    def __init__(
        self,
        soft: Mapping[str, Tensor],
        prefixes: Mapping[str, tuple[Tensor, Tensor]],
        deltas: Mapping[str, Delta],
        opening: tuple[Soft, ...] = (),
        made_by: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._soft, self._prefixes, self._deltas = dict(soft), dict(prefixes), dict(deltas)
        self.opening, self.made_by = opening, dict(made_by or {})

    def soft(self) -> Mapping[str, Tensor]:
        return self._soft

    def prefixes(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        return self._prefixes

    def deltas(self) -> Mapping[str, Delta]:
        return self._deltas

    def folded(self) -> Addition:
        return self

    @classmethod
    def of(cls, addition: Addition) -> Folded:
        """The tensors that an addition computes now."""
        with torch.no_grad():
            return cls(
                {k: v.detach().clone() for k, v in addition.soft().items()},
                {k: (a.detach().clone(), b.detach().clone()) for k, (a, b) in addition.prefixes().items()},
                {k: _detached(d) for k, d in addition.deltas().items()},
                addition.opening,
                addition.made_by,
            )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """All but the tensors."""
        return {
            "method": self.made_by,
            "opening": [s.n for s in self.opening],
            "deltas": {
                name: {
                    "source": d.source, "activation": d.activation, "dropout": d.dropout, "at": d.at,
                    "scale": None if isinstance(d.scale, Tensor) else d.scale,
                }
                for name, d in self._deltas.items()
            },
        }  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, for a file."""
        out = {f"soft/{key}": value for key, value in self._soft.items()}
        for name, (keys, values) in self._prefixes.items():
            out[f"prefix/{name}/keys"], out[f"prefix/{name}/values"] = keys, values
        for name, delta in self._deltas.items():
            for part, value in vars(delta).items():
                if isinstance(value, Tensor):
                    out[f"delta/{name}/{part}"] = value
        return out

    @classmethod
    def from_parts(cls, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Folded:
        """The reverse of `to_json` and `tensors`."""
        soft: dict[str, Tensor] = {}
        prefixes: dict[str, dict[str, Tensor]] = {}
        deltas: dict[str, dict[str, Any]] = {}
        for name, told in data["deltas"].items():
            deltas[name] = {key: value for key, value in told.items() if value is not None}
        for key, value in tensors.items():
            kind, _, rest = key.partition("/")
            if kind == "soft":
                soft[rest] = value
                continue
            name, _, part = rest.rpartition("/")
            (prefixes if kind == "prefix" else deltas).setdefault(name, {})[part] = value
        opening = tuple(Soft(n=n, id=OPENING) for n in data["opening"])
        return cls(
            soft,
            {name: (kv["keys"], kv["values"]) for name, kv in prefixes.items()},
            {name: Delta(**parts) for name, parts in deltas.items()},
            opening,
            data["method"],
        )

    def to_device(self, device: torch.device) -> Folded:
        """The same on another device."""
        if all(t.device == device for t in self.tensors().values()):
            return self
        moved = {name: value.to(device) for name, value in self.tensors().items()}
        return Folded.from_parts(self.to_json(), moved)


class Joined(Computed):
    """Several additions as one: MAM is a prefix and an adapter.

    Raises:
        ValueError: two of them change one matrix at one place.
    """

    def __init__(self, parts: Mapping[str, Computed]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.opening = tuple(s for part in parts.values() for s in part.opening)

    def _merged(self, what: str) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for part in self.parts.values():
            own = getattr(part, what)()
            if shared := out.keys() & own.keys():
                raise ValueError(f"two methods add to {min(shared)}")
            out |= own
        return out

    def starts(self) -> Mapping[str, Tensor]:
        return self._merged("starts")

    def soft(self) -> Mapping[str, Tensor]:
        return self._merged("soft")

    def prefixes(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        return self._merged("prefixes")

    def deltas(self) -> Mapping[str, Delta]:
        return self._merged("deltas")


def _detached(delta: Delta) -> Delta:
    moved: dict[str, Any] = {
        k: v.detach().clone() for k, v in vars(delta).items() if isinstance(v, Tensor)
    }
    return replace(delta, **moved)
