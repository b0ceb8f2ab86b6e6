"""The precisions that models are loaded in, by name, and a loaded model cast to another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from promptforge.errors import UserError

if TYPE_CHECKING:
    from promptforge.backbone.base import Backbone

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_of(name: str) -> torch.dtype:
    """A precision by name; a `UserError` lists them."""
    if name not in DTYPES:
        raise UserError(f"dtype {name!r}: choose one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def cast(backbone: Backbone, name: str) -> None:
    """Cast a model's parameters as transformers would have loaded them in that precision.

    Buffers stay: rotary frequencies and the like lose positions in half precision. So do parameters
    that the model itself wants in single precision. Source and checksum go on naming the model in
    its own precision, which is what artifacts of it know it by.
    """
    dtype, model = dtype_of(name), backbone.model
    single = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        single |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for key, parameter in backbone.parameters.items():
        kept = not single.isdisjoint(key.split("."))
        parameter.data = parameter.data.to(torch.float32 if kept else dtype)
