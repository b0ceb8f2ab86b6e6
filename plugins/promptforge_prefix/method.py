"""Prefix tuning (Li & Liang 2021) and deep prompt tuning (P-tuning v2, Liu et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from promptforge import TuningMethod
from promptforge.backbone import Addition, Backbone, Site
from promptforge.backbone.addition import Computed
from promptforge.backbone.sites import keys_and_values, need_sites
from promptforge.encode import Encoded
from promptforge.errors import UserError
from promptforge.tuning.starts import full, need_text, start_ids
from promptforge.verbalizer import Words

Pairs = Mapping[str, tuple[Tensor, Tensor]]
HIDDEN = 512


class Prefix(TuningMethod):
    """Trained keys and values in every layer, before those of the input; the model is frozen.

    Encoders and decoders have one prefix, encoder-decoders three: for the encoder, the decoder, and
    where the decoder looks at the encoder (Li & Liang 2021, sections 4.2 and 4.3).
    """

    name: ClassVar[str] = "prefix"
    learning_rate: ClassVar[float] = 3e-3

    length: int = Field(10, ge=1, description="Keys and values before those of the input.")
    init: Literal["vocabulary", "text", "labels", "random"] = Field(
        "vocabulary",
        description="What they start from: what the model makes of random words, of `text`, of the "
        "label words and then random ones, or noise.",
    )
    text: str = Field(
        "", description="The text to start from, with init=text; repeated or cut to `length`."
    )
    mlp: bool = Field(
        False,
        description="Compute them by a network while they are trained; it is folded away when saved.",
    )
    hidden: int = Field(HIDDEN, ge=1, description="With mlp: units of the network's middle layer.")
    seed: int = Field(0, description="Seed of random words and noise.")

    def add(self, backbone: Backbone, prompts: Sequence[Encoded], words: Words) -> Addition:
        """The prefixes of every attention.

        Raises:
            UserError: the model hides its attention or has a pattern in its place, a prefix longer than
                its positions, nothing to start from, or an option that another switches off.
        """
        who = f"method {self.name!r}"
        if self.hidden != HIDDEN and not self.mlp:
            raise UserError(f"{who}: hidden is of the network: add -o method.mlp=true.")
        sites = need_sites(backbone, ("attention", "cross-attention"), who)
        if backbone.placed is not None:
            backbone.placed.refuse_keys("A prefix")
        if self.length >= backbone.frame.max_length:
            raise UserError(
                f"{who}: length={self.length}, and {backbone.name} takes {backbone.frame.max_length} tokens."
            )
        if self.init == "random":
            need_text(self.init, self.text, who)
            draw = torch.Generator().manual_seed(self.seed)
            start = {site.name: _noise(site, self.length, draw, backbone) for site in sites}
        else:
            ids = start_ids(backbone, self.length, self.init, self.text, words, self.seed, who)
            found = keys_and_values(backbone, ids)
            start = {name: (full(keys), full(values)) for name, (keys, values) in found.items()}
        return Network(start, sites, self.hidden) if self.mlp else Direct(start)


class Direct(Computed):
    """The keys and values themselves."""

    def __init__(self, start: Pairs) -> None:
        super().__init__()
        self._names = list(start)
        self.pairs = nn.ParameterList(torch.stack(pair) for pair in start.values())

    def starts(self) -> Mapping[str, Tensor]:
        return _named(zip(self._names, self.pairs, strict=True))

    def prefixes(self) -> Pairs:
        pairs = zip(self._names, self.pairs, strict=True)
        return {name: (pair[0], pair[1]) for name, pair in pairs}


class Network(Computed):
    """Keys and values as the start plus what a network makes of a trained matrix, [length, d].

    Each kind of attention of each stack has a matrix and a network of its own, as in the paper
    (section 4.3). The network's last layer starts at zero, so training begins at the start.
    """

    def __init__(self, start: Pairs, sites: Sequence[Site], hidden: int) -> None:
        super().__init__()
        self._groups: list[list[str]] = []
        groups: dict[tuple[str, str], list[str]] = {}
        for site in sites:
            stack = site.name.rsplit(".", 2)[0]
            groups.setdefault((stack, site.kind), []).append(site.name)
        self.inputs, self.nets = nn.ParameterList(), nn.ModuleList()
        for number, names in enumerate(groups.values()):
            self._groups.append(names)
            pairs = torch.stack([torch.stack(start[name]) for name in names])
            self.register_buffer(f"start{number}", pairs)
            sites_, two, heads, length, size = pairs.shape
            width = heads * size
            last = nn.Linear(hidden, sites_ * two * heads * size)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.inputs.append(nn.Parameter(torch.randn(length, width).to(pairs)))
            self.nets.append(nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), last).to(pairs))

    def starts(self) -> Mapping[str, Tensor]:
        out: dict[str, Tensor] = {}
        for number, names in enumerate(self._groups):
            out |= _named(zip(names, getattr(self, f"start{number}"), strict=True))
        return out

    def prefixes(self) -> Pairs:
        out: dict[str, tuple[Tensor, Tensor]] = {}
        for number, names in enumerate(self._groups):
            start: Tensor = getattr(self, f"start{number}")
            sites, two, heads, length, size = start.shape
            made = self.nets[number](self.inputs[number]).view(length, sites, two, heads, size)
            pairs = start + made.permute(1, 2, 3, 0, 4)
            out |= {name: (pair[0], pair[1]) for name, pair in zip(names, pairs, strict=True)}
        return out


def _named(pairs: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Pairs of keys and values by the names of a folded addition's tensors."""
    parts = ("keys", "values")
    return {f"prefix/{name}/{p}": pair[i] for name, pair in pairs for i, p in enumerate(parts)}


def _noise(
    site: Site, length: int, draw: torch.Generator, backbone: Backbone
) -> tuple[Tensor, Tensor]:
    shape = (2, site.heads, length, site.head_size)
    noise = full(torch.randn(shape, generator=draw).to(backbone.device, backbone.model.dtype))
    return noise[0], noise[1]
