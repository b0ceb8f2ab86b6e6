"""Whether a model is the one that an artifact was tuned from, and reads as it did then."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from promptforge.backbone.base import Backbone
from promptforge.backbone.probe import most_tokens
from promptforge.errors import UserError


def check_backbone(
    folder: Path, saved: Mapping[str, Any], backbone: Backbone, *, alike: bool
) -> None:
    """Raise a `UserError` where a model is not the one that an artifact was tuned from.

    Args:
        saved: what the artifact says of it.
        alike: whether it must also read as it did then.
    """
    other = _differences(saved, backbone)
    with backbone.busy:  # it is of the model's own weights, which are put in for it
        checksum = backbone.checksum
    if checksum != saved["sha256"]:
        why = do = ""
        # Options by which one model has other weights.
        causes = {"dtype", "positions", "attention", "attention_options"}
        if saved.get("positions") or saved.get("attention"):
            causes.add("max_length")
        if saved["name"] == backbone.source.get("name") and causes & other.keys():
            why = f", as it was loaded with {_told(other, 0)} then, and has {_told(other, 1)} now"
            do = f", with {_told(other, 0)}"
        raise UserError(
            f"{folder} was tuned from {saved['name']!r}, and the weights of {backbone.name!r} "
            f"here are others{why}. Load the model that it was tuned from{do}."
        )
    if "max_length" not in other:  # no rule for positions beyond the model's own was at work
        other.pop("positions", None)
    if alike and other:
        raise UserError(
            f"{folder} was tuned on {saved['name']!r} with {_told(other, 0)}, and {backbone.name!r} here "
            f"has {_told(other, 1)}: it would answer otherwise. Load the model with {_told(other, 0)}, or "
            "use this artifact by itself: promptforge predict, or load it without a backbone."
        )


def _differences(saved: Mapping[str, Any], backbone: Backbone) -> dict[str, tuple[Any, Any]]:
    """Option of `load_model` -> what an artifact was tuned with and what a model has, where they differ.

    What either does not tell, as of a model made in memory, is no difference.
    """
    here = {"max_length": backbone.encoder.max_length, **backbone.source}
    here["family"] = backbone.family
    if saved.get("ask"):  # None was written where the model's own way was meant
        here["ask"] = getattr(backbone, "ask", None)
    found = {
        key: (saved[key], here[key])
        for key in ("family", "dtype", "ask", "max_length")
        if key in saved and key in here and saved[key] != here[key]
    } | {
        key: (saved.get(key), here.get(key))
        for key in ("positions", "attention")
        if saved.get(key) != here.get(key)
    }
    if "max_length" in found and "positions" not in found:
        most = most_tokens(backbone.model, backbone.tokenizer)
        there, now = (length or most for length in found.pop("max_length"))
        found |= {"max_length": (there, now)} if there != now else {}
    options = saved.get("attention_options") or {}
    has = here.get("attention_options") or {}
    if changed := {k: v for k, v in options.items() if has.get(k) != v}:
        found["attention_options"] = (changed, {k: has[k] for k in changed if k in has})
    return found


def _told(differences: Mapping[str, tuple[Any, Any]], side: int) -> str:
    """One side of `_differences`, for a message."""
    return ", ".join(
        f"{key}={pair[side]!r}"
        for key, pair in differences.items()
        if pair[side] or key != "attention_options"
    )
