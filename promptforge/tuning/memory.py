"""Memory of a training: how much it took, and a warning before it takes more than there may be."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psutil
import torch

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


class PeakMemory:
    """The most memory held while it lasts.

    On a processor: what lies in main memory of this process, the loaded model included, looked at
    ten times a second. On a GPU: what torch held there.

    Args:
        device: where the model is.
        children: add what the processes hold that this one started; pages they share count for each.

    Attributes:
        bytes: the most so far.
    """

    def __init__(self, device: torch.device, *, children: bool = False) -> None:
        self.bytes = 0
        self._device, self._children = device, children
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self._device)
        else:
            self._over.set()
            self._watcher.join()

    def _watch(self) -> None:
        own = psutil.Process()
        while True:
            held = own.memory_info().rss
            for child in own.children(recursive=True) if self._children else ():
                with suppress(psutil.Error):  # it has ended meanwhile
                    held += child.memory_info().rss
            self.bytes = max(self.bytes, held)
            # To find the processes takes some milliseconds.
            if self._over.wait(1.0 if self._children else 0.1):
                return
