"""bfloat16 on a processor: the loss and its gradients are near float32's, and weights stay whole."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from plain_tuning import tuner
from torch import Tensor
from torch.nn import functional as F

from promptforge import Settings
from promptforge.plugins import build
from promptforge.tuning.precision import Precision, _gains
from promptforge.tuning.tuner import Member

CPU = torch.device("cpu")


def one_pass(
    architecture: str, precision: str, method: str = "all", checkpointing: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """The losses of nine rows, [9], and the gradients of what is trained."""
    torch.manual_seed(13)
    made = tuner(tiny.backbone(architecture), method=build("method", method))
    if checkpointing:
        made.backbone.model.activation_checkpointing_enable()
    objective, _, _ = made._prompt(Member("m", made.targets(), "p", 13), Settings(dropout=False))
    try:
        objective.eval()
        for module in made.backbone.model.modules():  # layers are computed again in training only
            module.training = checkpointing and hasattr(module, "gradient_checkpointing")
        how = Precision(precision, CPU)
        with how.computing():
            loss = objective(made.targets(), 0).float()
        loss.sum().backward()
        gradients = {n: p.grad for n, p in objective.trained().items() if p.grad is not None}
        assert all(g.dtype == torch.float32 for g in gradients.values())
        return loss.detach(), {n: g.clone() for n, g in gradients.items()}
    finally:
        objective.close()
        for parameter in made.backbone.model.parameters():
            parameter.grad = None
        if checkpointing:
            made.backbone.model.activation_checkpointing_disable()
            made.backbone.model.eval()


def direction(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)]).double()


@pytest.mark.parametrize("method", ["all", "lora", "prefix"])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_losses_and_gradients_are_those_of_float32_but_for_rounding(
    architecture: str, method: str
) -> None:
    whole, half = (one_pass(architecture, p, method) for p in ("float32", "bfloat16"))
    assert not torch.equal(whole[0], half[0])
    torch.testing.assert_close(half[0], whole[0], rtol=0.02, atol=0.02)
    assert half[1].keys() == whole[1].keys()
    exact, rounded = direction(whole[1]), direction(half[1])
    # bfloat16 has eight bits: each value may be off by 0.4 %, and layers add up.
    assert (exact - rounded).norm() < 0.05 * exact.norm()


def test_layers_that_are_computed_again_are_computed_in_the_same_precision() -> None:
    plainly, again = (one_pass("bert", "bfloat16", checkpointing=c) for c in (False, True))
    assert torch.equal(plainly[0], again[0])
    torch.testing.assert_close(direction(again[1]), direction(plainly[1]), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("instructions", "seconds", "half"),
    [
        ((), 0.1, False),
        (("_is_avx512_bf16_supported",), 0.6, True),
        (("_is_avx512_bf16_supported",), 1.9, False),
        (("_is_avx512_bf16_supported",), 0.95, False),
        (("_is_amx_tile_supported",), 0.2, True),
    ],
)
def test_auto_is_bfloat16_where_the_processor_gains_by_its_instructions_for_it(
    instructions: tuple[str, ...], seconds: float, half: bool, monkeypatch: Any
) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        answer = name in instructions
        monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
    noise = iter([3.0, 3.0, 1.0, 1.0] * 4)
    monkeypatch.setattr(
        "promptforge.tuning.precision._product_seconds",
        lambda dtype: next(noise) + (seconds if dtype == torch.bfloat16 else 1.0) - 1.0,
    )
    _gains.cache_clear()
    try:
        assert Precision("auto", CPU).half is half
        assert Precision("float32", CPU).half is False
        assert Precision("bfloat16", CPU).half is True
        x = torch.ones(1, 1)
        with Precision("auto", CPU).computing():
            expected = torch.bfloat16 if half else torch.float32
            assert F.linear(x, torch.nn.Parameter(torch.ones(1, 1))).dtype == expected
    finally:
        _gains.cache_clear()
