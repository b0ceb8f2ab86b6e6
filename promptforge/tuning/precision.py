"""What a training computes in: float32, or bfloat16 where the machine multiplies faster in it.

Weights, gradients and the optimizer's state stay in float32. `torch.autocast` alone is slow on a
processor: it casts every matrix anew in each pass, and the gradients of those that stand crosswise
in memory element by element. So there `torch.nn.functional.linear` is replaced while a pass runs,
by one that keeps a bfloat16 copy of a weight for the pass, and of a frozen one for the training.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Precision:
    """A training's precision, on one device.

    Args:
        wanted: "float32", "bfloat16", or "auto": bfloat16 where the device has instructions for it.
    """

    def __init__(self, wanted: str, device: torch.device) -> None:
        self.half = wanted == "bfloat16" or (wanted == "auto" and _has_bfloat16(device))
        self._device = device.type
        self._copies = _Copies() if self.half and device.type == "cpu" else None

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Around what computes a loss, or scores to choose by."""
        if self._copies is not None:
            self._copies.forget_trained()
        with self.backward(), torch.autocast(self._device, torch.bfloat16, enabled=self.half):
            yield

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Around a backward pass, where checkpointed layers are computed again as they were."""
        if self._copies is None:
            yield
            return
        outer, _THREAD.copies = getattr(_THREAD, "copies", None), self._copies
        _replaced(+1)
        try:
            yield
        finally:
            _replaced(-1)
            _THREAD.copies = outer


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    # Without such instructions a processor is slower in bfloat16 than in float32.
    asked = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in asked)


class _Copies:
    """bfloat16 copies of weights."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, int, Tensor]] = {}

    def forget_trained(self) -> None:
        """Drop those that an update makes stale: a fused optimizer counts no versions."""
        self._known = {i: known for i, known in self._known.items() if not known[0].requires_grad}

    def of(self, weight: Tensor) -> Tensor:
        """The copy of a weight."""
        if not isinstance(weight, nn.Parameter):  # a passing value; its place is used again
            return weight.detach().to(torch.bfloat16)
        known = self._known.get(id(weight))
        if known is None or known[0] is not weight or known[1] != weight._version:
            copy = weight.detach().to(torch.bfloat16)
            known = self._known[id(weight)] = (weight, weight._version, copy)
        return known[2]


_PLAIN = F.linear
_THREAD = threading.local()
_LOCK = threading.Lock()
_inside = 0


def _replaced(more: int) -> None:
    """Replace `linear` while any thread is inside a pass; other threads get the plain one by it."""
    global _inside
    with _LOCK:
        _inside += more
        F.linear = _linear if _inside else _PLAIN


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    copies = getattr(_THREAD, "copies", None)
    # Without autocast somebody asked for full precision.
    fits = weight.dtype == torch.float32 and weight.ndim == 2 and torch.is_autocast_enabled("cpu")
    if copies is None or not fits or input.dtype not in (torch.float32, torch.bfloat16):
        return _PLAIN(input, weight, bias)
    made: Tensor = _Linear.apply(input, weight, bias, copies.of(weight))  # type: ignore[no-untyped-call]
    return made


class _Linear(torch.autograd.Function):
    """`x W^T + b` in bfloat16, with gradients of `W` and `b` in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, half: Tensor) -> Tensor:
        x16 = x.to(torch.bfloat16)
        ctx.save_for_backward(x16 if weight.requires_grad else None, half)
        ctx.dtype = x.dtype
        return _PLAIN(x16, half, None if bias is None else bias.to(torch.bfloat16))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x16, half = ctx.saved_tensors
        rows = grad.to(torch.bfloat16).reshape(-1, grad.shape[-1])
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = (rows @ half).to(ctx.dtype).reshape(*grad.shape[:-1], half.shape[1])
        if ctx.needs_input_grad[1]:
            of_weight = (rows.T @ x16.reshape(-1, half.shape[1])).to(torch.float32)
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0, dtype=torch.float32)
        return of_x, of_weight, of_bias, None
