"""Adapters as points of one table (He et al. 2022, "Towards a unified view ...", table 1)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from promptforge import TuningMethod
from promptforge.backbone import Addition, Backbone, Delta, Site
from promptforge.backbone.addition import Computed
from promptforge.backbone.sites import chosen_layers, need_sites, widths
from promptforge.components import changed
from promptforge.encode import Encoded
from promptforge.errors import UserError, listed
from promptforge.verbalizer import Words


class Adapter(TuningMethod):
    """A bottleneck at the sub-layers of a frozen model: `h + scale * f(x W_down) W_up`.

    The options are the columns of the table: the insertion form, the modified part, and the
    composition; `houlsby`, `pfeiffer`, `parallel` and `scaled-parallel` are points of it. `W_up`
    starts at zero, so the model starts as it was.
    """

    name: ClassVar[str] = "adapter"
    learning_rate: ClassVar[float] = 1e-3

    form: Literal["sequential", "parallel", "multi-head"] = Field(
        "sequential",
        description="x is the sub-layer's output, its input, or (multi-head) the attention's input, "
        "with a W_up for each head before the output matrix.",
    )
    at: Literal["attention", "feed-forward", "both"] = Field(
        "both", description="Which sub-layers."
    )
    size: int = Field(24, ge=1, description="Size r of the bottleneck.")
    activation: Literal["relu", "gelu", "silu", "tanh", "identity"] = Field(
        "relu", description="f."
    )
    composition: Literal["simple", "scaled", "gated"] = Field(
        "simple", description="Add, add `scale` times, or mix by a trained gate a channel."
    )
    scale: float | Literal["trained"] = Field(
        4.0, description="With composition=scaled: a number, or trained from 1."
    )
    norm: bool = Field(False, description="A LayerNorm of x of the adapter's own.")
    norms: bool = Field(False, description="Train the model's own norms too (Houlsby et al.).")
    dropout: float = Field(0.0, ge=0, lt=1, description="Of x, while it is trained.")
    layers: list[int] = Field([], description="Numbers of the layers; none: all.")
    targets: str = Field(
        "",
        description="Regular expression: the matrices after which adapters stand (form=parallel: beside which), in "
        "place of `at` and `layers`.",
    )

    def prepare(self, backbone: Backbone) -> dict[str, nn.Parameter]:
        if not self.norms:
            return {}
        norms = {
            id(p) for module in backbone.norms.values() for p in module.parameters(recurse=False)
        }
        return {name: p for name, p in backbone.parameters.items() if id(p) in norms}

    def add(self, backbone: Backbone, prompts: Sequence[Encoded], words: Words) -> Addition:
        """An adapter for every chosen sub-layer.

        Raises:
            UserError: no such matrices, or layers; the candidates are listed. An option that another
                switches off.
        """
        if changed(self, "scale") and self.composition != "scaled":
            raise UserError(
                f"method {self.name!r}: scale={self.scale} is of composition=scaled, and composition={self.composition} "
                "has none: add composition=scaled, or leave scale out."
            )
        made: dict[str, Bottleneck] = {}
        for matrix, source, heads in self._places(backbone):
            module = backbone.matrices[matrix]
            width = widths(module)
            entering = widths(backbone.matrices[source])[0] if source else width[1]
            leaving = width[0] if self.form == "multi-head" else width[1]
            made[matrix] = Bottleneck(self, entering, leaving, source, heads)
        # In half precision small steps of what is trained round to none.
        precise = torch.promote_types(backbone.model.dtype, torch.float32)
        return Adapters(made).to(backbone.device, precise)

    def _places(self, backbone: Backbone) -> list[tuple[str, str, int]]:
        """Matrix, the matrix whose input is x ("": h is), and heads, of each adapter."""
        if self.targets:
            return self._named(backbone)
        kinds = {
            "attention": ("attention", "cross-attention"),
            "feed-forward": ("feed-forward",),
            "both": ("attention", "cross-attention", "feed-forward"),
        }[self.at]
        sites = need_sites(backbone, kinds, f"method {self.name!r}")
        sites = chosen_layers(sites, self.layers, f"method {self.name!r}")
        return [(site.output, self._source(site), self._heads(backbone, site)) for site in sites]

    def _source(self, site: Site) -> str:
        return "" if self.form == "sequential" else site.inputs[0]

    def _heads(self, backbone: Backbone, site: Site) -> int:
        if self.form != "multi-head":
            return 1
        if not site.heads:
            raise UserError("form=multi-head is for attention: add at=attention.")
        # A site's heads are those of its keys; where queries share keys there are more heads.
        return widths(backbone.matrices[site.output])[0] // site.head_size

    def _named(self, backbone: Backbone) -> list[tuple[str, str, int]]:
        who = f"method {self.name!r}"
        if self.layers:
            raise UserError(
                f"{who}: layers goes with at, and targets={self.targets!r} stands in its place. Name the layers in "
                "the regular expression, or leave targets out."
            )
        if changed(self, "at"):
            raise UserError(
                f"{who}: at={self.at} and targets={self.targets!r} both say where adapters stand: leave one of "
                "them out."
            )
        if self.form == "multi-head":
            raise UserError(
                f"{who}: form=multi-head needs the heads of an attention, and targets={self.targets!r} names "
                "matrices. Write at=attention in place of targets, or another form."
            )
        try:
            pattern = re.compile(self.targets)
        except re.error as error:
            raise UserError(f"{who}: targets={self.targets!r}: {error}.") from None
        found = [name for name in backbone.matrices if pattern.search(name)]
        if not found:
            raise UserError(
                f"{who}: no matrix matches {self.targets!r}. There are: "
                f"{listed(list(backbone.matrices), 40)}."
            )
        if self.form == "sequential":
            return [(name, "", 1) for name in found]
        # Beside a sub-layer x is what the whole of it takes; beside another matrix, what that takes.
        beside = {site.output: site.inputs[0] for site in backbone.sites}
        return [(name, beside.get(name, name), 1) for name in found]


class Houlsby(Adapter):
    """After attention and feed-forward, with the model's norms trained too (Houlsby et al. 2019)."""

    name: ClassVar[str] = "houlsby"
    activation: Literal["relu", "gelu", "silu", "tanh", "identity"] = Field(
        "gelu", description="f."
    )
    norms: bool = Field(True, description="Train the model's own norms too.")


class Pfeiffer(Adapter):
    """After the feed-forward part only (Pfeiffer et al. 2021)."""

    name: ClassVar[str] = "pfeiffer"
    at: Literal["attention", "feed-forward", "both"] = Field(
        "feed-forward", description="Which sub-layers."
    )
    size: int = Field(48, ge=1, description="Size r of the bottleneck.")


class Parallel(Adapter):
    """Beside the feed-forward part (He et al. 2022)."""

    name: ClassVar[str] = "parallel"
    form: Literal["sequential", "parallel", "multi-head"] = Field(
        "parallel", description="What x is."
    )
    at: Literal["attention", "feed-forward", "both"] = Field(
        "feed-forward", description="Which sub-layers."
    )
    size: int = Field(48, ge=1, description="Size r of the bottleneck.")


class ScaledParallel(Parallel):
    """Beside the feed-forward part, four times (He et al. 2022, section 4.6)."""

    name: ClassVar[str] = "scaled-parallel"
    composition: Literal["simple", "scaled", "gated"] = Field(
        "scaled", description="How it is added."
    )


class Bottleneck(nn.Module):
    """One adapter.

    Args:
        options: of the method.
        entering, leaving: sizes of x and h.
        source: the matrix whose input is x, or "".
        heads: W_up is one for each, [r, leaving / heads].
    """

    def __init__(
        self, options: Adapter, entering: int, leaving: int, source: str, heads: int
    ) -> None:
        super().__init__()
        self.options, self.source, self.heads = options, source, heads
        self.down = nn.Parameter(torch.empty(entering, heads * options.size))
        nn.init.kaiming_uniform_(self.down.T, a=5**0.5)
        self.down_bias = nn.Parameter(torch.zeros(heads * options.size))
        self.up = nn.Parameter(torch.zeros(heads, options.size, leaving // heads))
        self.up_bias = nn.Parameter(torch.zeros(leaving))
        own_scale = options.composition == "scaled" and options.scale == "trained"
        self.scale = nn.Parameter(torch.ones(())) if own_scale else None
        gated = options.composition == "gated"
        self.gate = nn.Parameter(torch.full((leaving,), Delta.CLOSED)) if gated else None
        unit = torch.stack([torch.ones(entering), torch.zeros(entering)])
        self.norm = nn.Parameter(unit) if options.norm else None

    def delta(self) -> Delta:
        """The change as the model takes it."""
        options = self.options
        scale: Tensor | float = 1.0
        if options.composition == "scaled":
            scale = self.scale if self.scale is not None else float(options.scale)
        up = self.up[0] if self.heads == 1 else torch.block_diag(*self.up)  # type: ignore[no-untyped-call]
        return Delta(
            self.down, up, self.source, options.activation, scale, self.down_bias, self.up_bias,
            gate=self.gate, norm=self.norm, dropout=options.dropout,
            at="input" if options.form == "multi-head" else "output",
        )  # fmt: skip


class Adapters(Computed):
    """Adapters by the matrix that they stand at."""

    def __init__(self, made: Mapping[str, Bottleneck]) -> None:
        super().__init__()
        self._names = list(made)
        self._made = list(made.values())
        self.made = nn.ModuleList(self._made)

    def starts(self) -> Mapping[str, Tensor]:
        out: dict[str, Tensor] = {}
        for name, one in zip(self._names, self._made, strict=True):
            if one.heads > 1:
                raise UserError("adapters of several heads cannot start from others.")
            parts = dict(one.named_parameters()) | {"up": one.up[0]}
            out |= {f"delta/{name}/{part}": value for part, value in parts.items()}
        return out

    def deltas(self) -> Mapping[str, Delta]:
        return {name: one.delta() for name, one in zip(self._names, self._made, strict=True)}
