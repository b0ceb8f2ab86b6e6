"""Dropout on a processor, where torch draws a random number of its own for each that may be left out.

A training with dropout spends much of its time on that, in attention most of all: torch's sdpa has
no fast path for it there. `cheap_dropout` does the same with 16 random bits a number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

#: Of 16 bits one is needed to tell the two sides of the bound apart without overflow.
_STEPS = 2**15
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class ProcessorDropout(TorchFunctionMode):
    """While this lasts, dropout of tensors on a processor, by itself and in attention, is cheap.

    It is dropout as it was (Srivastava et al. 2014), its share rounded to 1/32,768 and what stays
    scaled by just that share. torch's generator draws, so a seed decides. Whoever calls is served:
    modules, functions, and the attention that transformers registers. In autocast, attention keeps
    its scores in autocast's type, as transformers' eager attention does.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            return _dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def cheap_dropout(device: torch.device) -> AbstractContextManager[Any]:
    """`ProcessorDropout` where a model is on a processor; elsewhere torch's own is cheap."""
    return ProcessorDropout() if device.type == "cpu" else nullcontext()


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    share = _share(x, p if training else 0.0)
    if not share or inplace:
        return F.dropout(x, p, training, inplace)
    out: Tensor = _Dropout.apply(x, share)  # type: ignore[no-untyped-call]
    return out


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    share = _share(query, dropout_p)
    if not share:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
    if is_causal:
        attn_mask = query.new_ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        # A query that sees nothing is padding: any numbers will do, but none that are not finite.
        lowest = torch.finfo(query.dtype).min
        attn_mask = query.new_zeros(attn_mask.shape).masked_fill_(~attn_mask, lowest)
    elif attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast("cpu", enabled=False):  # it would have the softmax in float32
        out: Tensor = _Attention.apply(query, key, value, attn_mask, share, scale)  # type: ignore[no-untyped-call]
    return out


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        left = _left(x, share)
        ctx.save_for_backward(left)
        ctx.scale = 1 / (1 - share)
        return _masked(x, left).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (left,) = ctx.saved_tensors
        return _masked(gradient, left).mul_(ctx.scale), None


class _Attention(torch.autograd.Function):
    """`dropout(softmax(scale * q k^T + mask)) v`; the mask is added, and may have gradients."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, share: float, scale: float
    ) -> Tensor:
        q = q * scale
        scores = q @ k.transpose(-1, -2)
        if mask is not None:
            scores += mask
        found = scores.softmax(-1)
        left = _left(found, share)
        ctx.save_for_backward(q, k, v, found, left)
        ctx.scale, ctx.kept, ctx.mask = scale, 1 / (1 - share), mask is not None and mask.shape
        # Scaled where there are fewer numbers.
        return (_masked(found, left) @ v).mul_(ctx.kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, found, left = ctx.saved_tensors
        gradient = gradient * ctx.kept
        of_v = _masked(found, left).transpose(-1, -2) @ gradient
        scores = gradient @ v.transpose(-1, -2)
        scores.view(left.dtype).bitwise_and_(left)
        scores = torch._softmax_backward_data(scores, found, -1, found.dtype)
        of_q, of_k = (scores @ k).mul_(ctx.scale), scores.transpose(-1, -2) @ q
        of_mask = scores.sum_to_size(ctx.mask) if ctx.needs_input_grad[3] else None
        return of_q, of_k, of_v, of_mask, None, None


def _share(x: Tensor, p: float) -> float:
    """The share that is left out; 0 where torch's own dropout, or none, is wanted."""
    steps = round(p * _STEPS)
    mine = x.device.type == "cpu" and x.is_floating_point() and 0 < steps < _STEPS
    return steps / _STEPS if mine else 0.0


def _left(x: Tensor, share: float) -> Tensor:
    """All bits set where a number stays, none where it is left out; integers of x's size and shape."""
    count = x.numel()
    drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    numbers = drawn.view(torch.int16)[:count].view(x.shape)
    # The sign of what is above the bound or below it, as all bits.
    numbers.bitwise_right_shift_(1).sub_(round(share * _STEPS) - _STEPS // 2)
    numbers.bitwise_right_shift_(15).bitwise_not_()
    return numbers.to(_INTEGERS[x.element_size()])


def _masked(x: Tensor, left: Tensor) -> Tensor:
    return (x.view(left.dtype) & left).view(x.dtype)
