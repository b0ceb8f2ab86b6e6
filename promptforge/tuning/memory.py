"""A warning before full attention with dropout takes more memory than there may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from promptforge.backbone.base import Backbone
from promptforge.progress import Reporter
from promptforge.tuning.settings import Settings

#: Bytes that nobody is warned of.
FREE = 4 * 2**30
#: What configurations call the share of dropout in attention.
_RATES = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop", "dropout_rate")
#: Matrices kept for the backward pass: probabilities, what dropout left out, what it left.
_KEPT = 3


def warn_matrices(
    backbone: Backbone, lengths: Sequence[int], settings: Settings, report: Reporter
) -> None:
    """Warn where the matrices of attention, [rows, heads, tokens, tokens] a layer, take much memory.

    torch's sdpa makes none of them, except on a processor for attention that has dropout.

    Args:
        lengths: tokens of the training rows.
    """
    config: Any = backbone.model.config
    rate = next(
        (getattr(config, n) for n in _RATES if isinstance(getattr(config, n, None), float)), 0
    )
    if not (settings.dropout and rate) or backbone.device.type != "cpu" or backbone.placed:
        return
    heads, layers = (getattr(config, f"num_{n}", 0) for n in ("attention_heads", "hidden_layers"))
    rows, longest = max(1, settings.rows // settings.accumulate), max(lengths)
    size = _KEPT * 4 * layers * rows * heads * longest**2
    if size > FREE:
        report.warn(
            f"Rows of up to {longest:,} tokens with dropout in full attention take about {size / 1e9:.0f} GB for "
            f"{rows} of them at once. Leave dropout out (-o settings.dropout=false), take fewer at once "
            "(--accumulate), or read them with --attention longformer."
        )
