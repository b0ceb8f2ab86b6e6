"""Dropout in training on a processor: what torch's is, by formulas; elsewhere torch's to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptforge.tuning.dropout import ProcessorDropout

SHARE = 0.25
ROWS, HEADS, TOKENS, SIZE = 3, 4, 24, 8


def seeded(call: Callable[[], Tensor]) -> Tensor:
    torch.manual_seed(5)
    with ProcessorDropout():
        return call()


def states(dtype: torch.dtype = torch.float32, heads: int = HEADS, size: int = SIZE) -> Tensor:
    """As models have them: [rows, heads, tokens, size], the tokens before the heads in memory."""
    made = torch.randn(ROWS, TOKENS, heads, size).to(dtype)
    return made.transpose(1, 2).requires_grad_()


def bool_mask() -> Tensor:
    mask = torch.ones(ROWS, 1, TOKENS, TOKENS, dtype=torch.bool)
    mask[0, :, :, 17:] = False
    return mask


def float_mask() -> Tensor:
    return torch.randn(1, HEADS, TOKENS, TOKENS, requires_grad=True)


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, stays: Tensor, scale: float) -> Tensor:  # fmt: skip
    k, v = (x.repeat_interleave(HEADS // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * scale
    if mask is not None:
        scores = scores.where(mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    found = scores.softmax(-1) * stays / (1 - SHARE)
    return torch.einsum("bhqk,bhkd->bhqd", found, v)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"scale": 0.3},
    "padding": {"attn_mask": bool_mask},
    "bias that is trained": {"attn_mask": float_mask},
    "causal": {"is_causal": True},
    "grouped": {"enable_gqa": True},
}


@pytest.mark.parametrize("case", list(CASES))
def test_attention_and_its_gradients_are_the_formula_s(case: str) -> None:
    torch.manual_seed(1)
    told = {k: v() if callable(v) else v for k, v in CASES[case].items()}
    heads = 2 if "enable_gqa" in told else HEADS
    q, k, v = states(), states(heads=heads), states(heads=heads)
    # With one unit vector a token for values, what comes out is the probabilities that stayed.
    units = torch.eye(TOKENS).expand(ROWS, heads, TOKENS, TOKENS)
    seen = seeded(lambda: F.scaled_dot_product_attention(q, k, units, dropout_p=SHARE, **told))
    mask = told.get("attn_mask")
    causal = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    mask = causal if "is_causal" in told else mask
    whole = plain(q, k, units, mask, torch.ones(()), told.get("scale", SIZE**-0.5))
    stays = (seen != 0).float()
    assert torch.allclose(seen, whole * stays, atol=1e-6)
    possible = whole > 0
    assert abs(float(stays[possible].mean()) - (1 - SHARE)) < 0.02
    # Each head and row draws its own.
    assert not torch.equal(stays[0, 0] * possible[1, 1], stays[1, 1] * possible[0, 0])

    found = seeded(lambda: F.scaled_dot_product_attention(q, k, v, dropout_p=SHARE, **told))
    expected = plain(q, k, v, mask, stays, told.get("scale", SIZE**-0.5))
    assert torch.allclose(found, expected, atol=1e-5)
    inputs = [x for x in (q, k, v, mask) if x is not None and x.requires_grad]
    weight = torch.randn_like(found)
    ours = torch.autograd.grad((found * weight).sum(), inputs)
    theirs = torch.autograd.grad((expected * weight).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, atol=1e-5)


def test_attention_in_bfloat16_is_near_it() -> None:
    torch.manual_seed(1)
    q, k, v = states(), states(), states()
    units = torch.eye(TOKENS).expand(ROWS, HEADS, TOKENS, TOKENS)

    def attend(value: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.scaled_dot_product_attention(q, k, value, bool_mask(), SHARE)

    stays = (seeded(lambda: attend(units)) != 0).float()
    found = seeded(lambda: attend(v))
    assert found.dtype == torch.bfloat16
    expected = plain(q, k, v, bool_mask(), stays, SIZE**-0.5)
    assert (found - expected).abs().max() < 0.05
    found.float().sum().backward()
    assert q.grad is not None and q.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_leaves_out_its_share_and_scales_what_stays(dtype: torch.dtype, p: float) -> None:
    x = (torch.rand(301, 203) + 1).to(dtype).requires_grad_()
    module = nn.Dropout(p)
    found = seeded(lambda: module(x))
    stays = found != 0
    for along in (0, 1):  # as many in each row and column as independent draws give
        share = stays.float().mean(along)
        deviation = (p * (1 - p) / stays.shape[along]) ** 0.5
        assert abs(float(share.mean()) - (1 - p)) < 0.01
        assert 0.85 < float(share.std()) / deviation < 1.15
    assert torch.allclose(
        found, x * stays / (1 - p), rtol=1e-2 if dtype == torch.bfloat16 else 1e-4
    )
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert torch.equal(gradient != 0, stays)
    assert torch.equal(found, seeded(lambda: module(x)))
    assert not torch.equal(found, module(x))


def test_without_dropout_it_is_torch_s_own() -> None:
    torch.manual_seed(1)
    q, k, v = states(), states(), states()
    outside = F.scaled_dot_product_attention(q, k, v, bool_mask())
    assert torch.equal(
        seeded(lambda: F.scaled_dot_product_attention(q, k, v, bool_mask())), outside
    )
    assert torch.equal(seeded(lambda: nn.Dropout(0.5).eval()(q)), q)
    assert torch.equal(seeded(lambda: nn.Dropout(0.0)(q)), q)
    assert not seeded(lambda: nn.Dropout(1.0)(q)).any()
    torch.manual_seed(5)
    inside = seeded(lambda: F.dropout(q.detach().clone(), 0.5, inplace=True))
    torch.manual_seed(5)
    assert torch.equal(inside, F.dropout(q, 0.5))
