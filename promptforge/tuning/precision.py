"""What a training computes in: float32, or bfloat16 where the machine multiplies faster in it.

Weights, gradients and the optimizer's state stay in float32.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from promptforge.errors import UserError


class Precision:
    """A training's precision, on one device.

    Args:
        wanted: "float32", "bfloat16", or "auto": bfloat16 where the device has instructions for it.
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
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in asked)
