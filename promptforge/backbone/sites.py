"""Where a model's sub-layers are, learned from what it calls: no names of architectures.

One short text goes through the model while its matrices and its attention calls are written down
in order. Around every attention call stand the matrices that feed it and the one that takes its
output; what follows in the same layer is the feed-forward part. So adapters, LoRA and prefixes
find their places in any model that calls a registered attention function.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.pytorch_utils import Conv1D

from promptforge.encode import Encoded
from promptforge.errors import UserError
from promptforge.template import Prompt, Text

if TYPE_CHECKING:
    from promptforge.backbone.base import Backbone

_PROBE = "promptforge_probe"
#: What some models tell their attention besides queries, keys, values, a mask and a scale.
_SPECIAL = ("position_bias", "softcap", "s_aux")
# The probe is registered for the whole process, whatever model it watches.
_one_at_a_time = threading.RLock()
_LAYER = re.compile(r"^(?P<stack>.*?)\.(?P<number>\d+)(\.|$)")


@dataclass(frozen=True)
class Site:
    """A sub-layer.

    Attributes:
        name: unique, and the same whenever the model is loaded: STACK.LAYER.KIND.
        kind: "attention", "cross-attention" or "feed-forward".
        layer: number of the layer in its stack, from 0, in the order of the calls.
        inputs: names of the matrices that take the sub-layer's input, in the order of the calls.
        output: name of the matrix that gives the sub-layer's output.
        module: name of the module that attends; "" for a feed-forward part.
        call: how many times `module` (or `output`) was called before, where layers share modules.
        heads, head_size: of the keys and values that the attention sees; 0 for feed-forward.
        query_heads: of the queries; several share keys and values where there are more.
        window: the model itself lets a token see only others that are less far away; 0: all.
        special: arguments of this model's own attention that others do not know (a position bias, a cap).
    """

    name: str
    kind: str
    layer: int
    inputs: tuple[str, ...]
    output: str
    module: str = ""
    call: int = 0
    heads: int = 0
    head_size: int = 0
    query_heads: int = 0
    window: int = 0
    special: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Call:
    name: str
    kind: str  # "matrix" or "attention"
    shape: tuple[int, ...]
    crosses: bool = False
    seen: tuple[Tensor, Tensor] | None = None  # keys and values
    heads: int = 0
    window: int = 0
    special: tuple[str, ...] = ()


def find_sites(backbone: Backbone) -> list[Site]:
    """The sub-layers of a model in the order of their calls; empty where it hides its attention."""
    encoded = backbone.encoder.encode([Prompt((Text("a"),))], masked=False)
    calls = _calls(backbone, backbone.summary(encoded[0]))
    attentions = [i for i, call in enumerate(calls) if call.kind == "attention"]
    sites: list[Site] = []
    counts: dict[tuple[str, str], int] = {}
    for n, i in enumerate(attentions):
        call = calls[i]
        stop = attentions[n + 1] if n + 1 < len(attentions) else len(calls)
        # Behind the output matrix of the one before, which shared layers have in common.
        start = attentions[n - 1] + 2 if n else 0
        inputs = [c.name for c in calls[start:i] if c.name.startswith(f"{call.name}.")]
        following = [c for c in calls[i + 1 : stop] if c.kind == "matrix"]
        if not following:
            continue
        output, rest = following[0], following[1:]
        layer = _layer(call.name)
        kind = "cross-attention" if call.crosses else "attention"
        stack, number = _place(layer, kind, counts)
        sites.append(
            Site(
                f"{stack}.{number}.{kind}", kind, number, tuple(inputs), output.name, call.name,
                sum(s.module == call.name for s in sites), call.shape[1], call.shape[3], call.heads,
                call.window, call.special,
            )
        )  # fmt: skip
        following_module = calls[stop].name if stop < len(calls) else ""
        rest = [
            c for c in rest
            if c.name.startswith(f"{layer}.")
            and not (following_module and c.name.startswith(f"{following_module}."))
            # The module that attends next may be the one that attended now (shared layers).
            and not c.name.startswith(f"{call.name}.")
        ]  # fmt: skip
        width = output.shape[1]
        entering = [c for c in rest if c.shape[0] == width]
        leaving = [c for c in rest if c.shape[1] == width and c not in entering[:1]]
        if entering and leaving:
            last = leaving[-1]
            first = [c.name for c in entering if c is not last]
            seen = sum(s.output == last.name for s in sites)
            stack, number = _place(layer, "feed-forward", counts)
            sites.append(
                Site(
                    f"{stack}.{number}.feed-forward", "feed-forward", number, tuple(first),
                    last.name, call=seen,
                )
            )  # fmt: skip
    return sites


def _place(layer: str, kind: str, counts: dict[tuple[str, str], int]) -> tuple[str, int]:
    """The stack of a layer and its number there, counted by calls."""
    match = _LAYER.match(layer)
    stack = match["stack"] if match else layer
    number = counts.get((stack, kind), 0)
    counts[stack, kind] = number + 1
    return stack, number


def _layer(name: str) -> str:
    """The name of the layer that a module is in: up to the last number of a list of layers."""
    match = _LAYER.match(name)
    if not match:
        return name.rpartition(".")[0]
    layer = f"{match['stack']}.{match['number']}"
    # ALBERT's groups are lists of lists; T5's layer holds a list of sub-layers.
    inner = re.match(r"\.\w*layers\.\d+", name[len(layer) :])
    return layer + inner[0] if inner else layer


def keys_and_values(backbone: Backbone, ids: Sequence[int]) -> dict[str, tuple[Tensor, Tensor]]:
    """What each attention sees of a text: site -> keys and values, [heads, len(ids), head_size].

    The text stands alone, without special tokens; decoders read it too.
    """
    text = tuple(ids)
    encoded = Encoded(text, (0,) * len(text), (), decoder_ids=text, reads=(0,))
    seen = [call.seen for call in _calls(backbone, encoded) if call.seen is not None]
    names = [site.name for site in backbone.sites if site.module]
    return {name: (k[0], v[0]) for name, (k, v) in zip(names, seen, strict=True)}


def _calls(backbone: Backbone, encoded: Encoded) -> list[_Call]:
    names = {id(module): name for name, module in backbone.model.named_modules()}
    calls: list[_Call] = []
    plain = backbone.model.config._attn_implementation == "eager"

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **more: Any
    ) -> Any:
        base = own_eager(module) if plain else sdpa_attention_forward
        config = getattr(module, "config", None)
        crosses = bool(getattr(module, "is_decoder", False)) and not bool(
            getattr(module, "is_causal", True)
        )
        crosses |= "crossattention" in names[id(module)].lower().replace("_", "")
        crosses &= bool(getattr(config, "is_encoder_decoder", True))
        name = names[id(module)]
        window = int(more.get("sliding_window") or 0)
        special = tuple(n for n in _SPECIAL if more.get(n) is not None)
        seen = (key, value)
        calls.append(
            _Call(
                name, "attention", tuple(key.shape), crosses, seen, query.shape[1], window, special
            )
        )
        return base(module, query, key, value, *args, **more)

    def note(module: nn.Module, _: Any) -> None:
        calls.append(_Call(names[id(module)], "matrix", widths(module)))

    matrices = [m for m in backbone.model.modules() if is_matrix(m)]
    with _one_at_a_time:
        AttentionInterface.register(_PROBE, attend)
        AttentionMaskInterface.register(_PROBE, eager_mask if plain else sdpa_mask)
        handles = [m.register_forward_pre_hook(note) for m in matrices]
        try:
            with attending(backbone.model, _PROBE), torch.no_grad():
                backbone.hidden(backbone.collate([encoded], [0]))
        finally:
            for handle in handles:
                handle.remove()
    return calls


def own_eager(module: nn.Module) -> Callable[..., Any]:
    """The plain attention code of a model's own file."""
    function: Callable[..., Any] = sys.modules[type(module).__module__].eager_attention_forward
    return function


def is_matrix(module: nn.Module) -> bool:
    """Whether a module multiplies by a matrix."""
    return isinstance(module, nn.Linear | Conv1D)


def widths(matrix: nn.Module) -> tuple[int, int]:
    """How many values a matrix takes, and gives."""
    weight = matrix.weight
    assert isinstance(weight, Tensor)
    rows, columns = weight.shape
    return (rows, columns) if isinstance(matrix, Conv1D) else (columns, rows)


@contextmanager
def attending(model: Any, name: str) -> Iterator[None]:
    """While this lasts every part of the model attends by the registered function `name`."""
    undo = set_attention(model, name)
    try:
        yield
    finally:
        undo()


def set_attention(model: Any, name: str) -> Any:
    """Have every part of the model attend by a registered function; returns what undoes it."""
    before: list[tuple[Any, str]] = []
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            config = module.config
            before.append((config, config._attn_implementation))
    parts = [m for m in model.modules() if isinstance(m, PreTrainedModel)]
    for part in parts:
        part.set_attn_implementation(name)

    def undo() -> None:
        for part, (_, old) in zip(parts, before, strict=True):
            part.set_attn_implementation(old)

    return undo


def need_sites(backbone: Backbone, kinds: Sequence[str], what: str) -> list[Site]:
    """The sites of some kinds.

    Raises:
        UserError: the model has none that can be found.
    """
    found = [site for site in backbone.sites if site.kind in kinds]
    if not found:
        raise UserError(
            f"{what}: {backbone.name} ({backbone.model.config.model_type}) does not attend through "
            "transformers' attention interface, so its layers cannot be found. Use a model that does: "
            "BERT, RoBERTa, ALBERT, ELECTRA, DistilBERT, ModernBERT, GPT-2, OPT, Llama, Qwen, Gemma, "
            "T5, BART."
        )
    return found


def chosen_layers(sites: Sequence[Site], layers: Sequence[int], what: str) -> list[Site]:
    """The sites of some layers, by number; of all where none is named.

    Raises:
        UserError: there is no such layer, or it shares its matrices with one that is not named.
    """
    known = sorted({site.layer for site in sites})
    if strange := sorted(set(layers) - set(known)):
        raise UserError(
            f"{what}: there is no layer {strange[0]}; layers: {known[0]} to {known[-1]}."
        )
    chosen = [site for site in sites if not layers or site.layer in layers]
    outputs = {site.output for site in chosen}
    shared = sorted({s.layer for s in sites if s.output in outputs} - {s.layer for s in chosen})
    if shared:
        # A matrix is changed wherever it is called.
        raise UserError(
            f"{what}: layers={sorted(set(layers))} cannot be changed alone: this model calls the same matrices "
            f"in {'layer' if len(shared) == 1 else 'layers'} {', '.join(map(str, shared))} too. Name these as "
            "well, or leave layers out."
        )
    return chosen
