"""What a training computes in: float32, or bfloat16 where the machine multiplies faster in it.

Weights, gradients and the optimizer's state stay in float32.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Collection

import torch

from promptforge.errors import UserError


class Precision:
    """A training's precision, on one device.

    Args:
        wanted: "float32", "bfloat16", or "auto": bfloat16 where the device has instructions for it
            and a processor gains by them, which is measured once in a process.
        dtypes: those of the model's weights; one in float16 computes in that.

    Raises:
        UserError: bfloat16 is wanted of a model in float16.
    """

    def __init__(
        self, wanted: str, device: torch.device, dtypes: Collection[torch.dtype] = ()
    ) -> None:
        if wanted == "bfloat16" and torch.float16 in dtypes:
            raise UserError(
                "precision=bfloat16 and a model in float16 exclude one another: leave the precision out, "
                "or load the model with --dtype bfloat16 or float32."
            )
        able = torch.float16 not in dtypes and _has_bfloat16(device)
        self.half = wanted == "bfloat16" or (wanted == "auto" and able)
        self._device = device.type

    def computing(self) -> torch.autocast:
        """Around what computes a loss, or scores that only trainings see."""
        return torch.autocast(self._device, torch.bfloat16, enabled=self.half)


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    # Without such instructions a processor is slower in bfloat16 than in float32.
    asked = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    able = any(getattr(torch.cpu, name, bool)() for name in asked)
    return device.type == "cpu" and able and _gains()


@functools.cache
def _gains() -> bool:
    """Whether this processor multiplies faster in bfloat16.

    Its instructions do not tell: with AVX-512's and without AMX, one model takes two thirds of
    float32's time to tune and another twice as long. The least of several times is what the
    processor can do, so the answer is the same whatever else runs.
    """
    times: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for _ in range(8):
        for dtype, taken in times.items():
            taken.append(_product_seconds(dtype))
    return min(times[torch.bfloat16]) < 0.9 * min(times[torch.float32])


def _product_seconds(dtype: torch.dtype) -> float:
    """The time of one product of the size of a small encoder's feed-forward layer."""
    rows, weights = torch.ones(256, 384, dtype=dtype), torch.ones(1536, 384, dtype=dtype)
    began = time.perf_counter()
    torch.nn.functional.linear(rows, weights)
    return time.perf_counter() - began
