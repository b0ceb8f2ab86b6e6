"""Prompts and prefixes of plain `peft` as soft tokens, keys and values of ours: what `export` turns round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from promptforge import Backbone, UserError
from promptforge.backbone import Addition, Folded
from promptforge.backbone.causal import with_cache
from promptforge.plugins import build
from promptforge.template import OPENING, Soft

#: peft's kinds that become ours, and the method that makes the same.
READ = {"PROMPT_TUNING": "prompt-tuning", "P_TUNING": "prompt-tuning", "PREFIX_TUNING": "prefix"}
_VALUES = "prompt_embeddings"
#: Rotary positions whose frequencies are the same in texts of every length.
_STEADY = ("default", "linear", "llama3", "yarn")
Pairs = dict[str, tuple[Tensor, Tensor]]


def prompt(
    backbone: Backbone, config: Mapping[str, Any], tensors: Mapping[str, Tensor], origin: str
) -> Folded:
    """The addition that does what peft does with a prompt, or with a causal model's prefix.

    Args:
        config: peft's configuration, of a kind in `READ`.
        tensors: what peft saved; one matrix with a row for each virtual token.
        origin: what errors call it.

    Raises:
        UserError: it is of another model, or this model reads it otherwise than in peft.
    """
    if set(tensors) != {_VALUES}:
        raise UserError(
            f"{origin} must hold {_VALUES!r} and nothing else, and holds {sorted(tensors)}. Save it again "
            "with peft's save_pretrained."
        )
    values, count = tensors[_VALUES].to(backbone.device), int(config["num_virtual_tokens"])
    prefix = config["peft_type"] == "PREFIX_TUNING"
    made = (_prefix if prefix else _opening)(backbone, config, values, count, origin)
    method = build("method", READ[config["peft_type"]], **{"length" if prefix else "tokens": count})
    made.made_by = {"name": method.name, "options": method.model_dump(mode="json")}
    return made


def _opening(
    backbone: Backbone, config: Mapping[str, Any], values: Tensor, count: int, origin: str
) -> Folded:
    """Soft tokens before every prompt."""
    if backbone.frame.prefix:
        raise UserError(
            f"{origin}: peft puts its virtual tokens before the special tokens with which every text of "
            f"{backbone.name} begins, and here soft tokens stand after these: the outputs would be others. "
            "Run it with peft, or tune one here: --method prompt-tuning."
        )
    width = backbone.model.get_input_embeddings().weight.shape[-1]
    # peft makes a second half for the decoder of an encoder-decoder, and never reads it.
    if len(values) not in (count, 2 * count) or values.shape[1:] != (width,):
        raise _other_shape(origin, values, f"{count} x {width}")
    return Folded({OPENING: values[:count].clone()}, {}, {}, (Soft(n=count, id=OPENING),))


def _prefix(
    backbone: Backbone, config: Mapping[str, Any], values: Tensor, count: int, origin: str
) -> Folded:
    """Keys and values before those of every attention, as a text sees them whose positions begin at 0."""
    if backbone.family != "causal":
        raise UserError(
            f"{origin}: peft's prefixes are read for causal models alone, and {backbone.name} is a "
            f"{backbone.family} one. Run it with peft, or tune one here: --method prefix."
        )
    # peft gives a prefix to layers with a window as if it were text, which then leaves the window.
    if not sees_all(backbone):
        raise UserError(
            f"{origin}: {backbone.name} has layers that see less than a whole text, where peft lets a "
            "prefix out of sight and this does not. Run it with peft."
        )
    if count >= backbone.frame.max_length:
        raise UserError(
            f"{origin} has {count} virtual tokens, and {backbone.name} takes {backbone.frame.max_length} tokens."
        )
    sites = [site for site in backbone.sites if site.kind == "attention"]
    shape = (count, len(sites), 2, sites[0].heads, sites[0].head_size) if sites else (0,)
    same = {(site.heads, site.head_size) for site in sites} == {shape[3:]}
    if not same or values.shape != (count, torch.Size(shape[1:]).numel()):
        raise _other_shape(origin, values, f"{count} x {torch.Size(shape[1:]).numel()}")
    kept = values.view(shape).permute(1, 2, 3, 0, 4)  # sites, 2, heads, tokens, size
    raw = {s.name: (k.contiguous(), v.contiguous()) for s, (k, v) in zip(sites, kept, strict=True)}
    # In peft a text's positions begin after the prefix. Where queries are turned by their position,
    # keys that are turned back by as much see them as those would.
    back = {name: (turned(backbone, keys, -count), v) for name, (keys, v) in raw.items()}
    made = Folded({}, back, {})
    if not alike(backbone, list(raw.values()), made, count):
        raise UserError(
            f"{origin}: peft counts the positions of a text from the end of the prefix, and here they begin "
            f"at 0. {backbone.name} does not take its positions in a way that keys could make up for, "
            "so the outputs would be others. Run it with peft, or tune one here: --method prefix."
        )
    return made


def sees_all(backbone: Backbone) -> bool:
    """Whether every layer of a causal model sees a whole text: none has a window."""
    cache = DynamicCache(config=backbone.model.config)
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def turned(backbone: Backbone, keys: Tensor, positions: int) -> Tensor:
    """Keys, [heads, tokens, size], turned by steady rotary positions; as they are where the model has none."""
    rotary = getattr(backbone.body, "rotary_emb", None)
    frequencies = getattr(rotary, "inv_freq", None)
    steady = getattr(rotary, "rope_type", None) in _STEADY
    if not steady or not isinstance(frequencies, Tensor):
        return keys
    half = len(frequencies)
    angles = frequencies.double() * positions
    a, b = keys[..., :half].double(), keys[..., half : 2 * half].double()
    cos, sin = angles.cos(), angles.sin()
    made = torch.cat([a * cos - b * sin, b * cos + a * sin, keys[..., 2 * half :].double()], -1)
    return made.to(keys)


@torch.no_grad()
def alike(backbone: Backbone, raw: list[tuple[Tensor, Tensor]], made: Addition, count: int) -> bool:
    """Whether a text gets the same logits as in peft, which has the prefix in the cache.

    Asked of the model itself: there are many ways to take positions, and no list of them ends.

    Args:
        raw: keys and values of each layer as peft has them.
        made: the same prefix as it is here.
        count: its tokens.
    """
    model, draw = backbone.model, torch.Generator().manual_seed(0)
    length = min(16, backbone.frame.max_length - count)
    ids = torch.randint(backbone.vocabulary, (1, length), generator=draw).to(backbone.device)
    cache = DynamicCache(config=model.config)
    for layer, (keys, values) in enumerate(raw):
        cache.update(keys[None].to(model.dtype), values[None].to(model.dtype), layer)
    ones = ids.new_ones(1, count + length)
    places = torch.arange(length, device=backbone.device)[None]
    backbone.apply(None)
    there = model(ids, attention_mask=ones, **with_cache(model, cache)).logits
    attached = backbone.attach([made])
    try:
        told = {"attention_mask": ones[:, count:], "position_ids": places}
        here = model(ids, **told, use_cache=False).logits
    finally:
        attached.close()
    # In half precision turned keys are rounded otherwise.
    near = 1e-4 if model.dtype in (torch.float32, torch.float64) else 0.05
    return float((here - there).abs().max()) <= near * float(there.abs().max())


def _other_shape(origin: str, values: Tensor, wanted: str) -> UserError:
    return UserError(
        f"{origin} is of another shape: {_VALUES} is {' x '.join(map(str, values.shape))}, and this model "
        f"needs {wanted}. Load the model that it was trained on."
    )
