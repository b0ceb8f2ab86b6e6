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
from promptforge.tuning.precision import Precision
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
        with how.forward():
            loss = objective(made.targets(), 0).float()
        with how.backward():
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


def test_updates_are_seen_by_the_next_pass() -> None:
    """Fused optimizers change weights without telling autograd: nothing stale may be used."""
    weight = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = torch.optim.AdamW([weight], lr=0.5, weight_decay=0, fused=True)
    how, x = Precision("bfloat16", CPU), torch.ones(2, 4)
    seen = []
    for _ in range(3):
        with how.forward():
            out = F.linear(x, weight).float()
        seen.append(out.detach().mean().item())
        optimizer.zero_grad()
        with how.backward():
            out.sum().backward()
        optimizer.step()
    assert seen == pytest.approx([4.0, 2.0, 0.0], abs=0.02)


def test_a_frozen_weight_that_is_replaced_in_place_is_seen_too() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 4), requires_grad=False)
    how, x = Precision("bfloat16", CPU), torch.ones(2, 4)
    with how.forward():
        first = F.linear(x, weight)
    with torch.no_grad():
        weight.copy_(torch.full((4, 4), 2.0))
    with how.forward():
        second = F.linear(x, weight)
    assert float(first[0, 0]) == 4.0 and float(second[0, 0]) == 8.0


def test_gradients_of_a_linear_layer_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randint(-4, 5, shape, generator=generator).float()
        for shape in ((2, 3, 8), (5, 8), (5,))
    )  # small whole numbers: bfloat16 and its sums are exact
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    how = Precision("bfloat16", CPU)
    with how.forward():
        out = F.linear(*leaves)
    assert out.dtype == torch.bfloat16 and torch.equal(out.float(), x @ weight.T + bias)
    up = torch.randint(-2, 3, out.shape, generator=generator).float()
    out.float().backward(up)
    assert torch.equal(leaves[0].grad, up @ weight)  # type: ignore[arg-type]
    assert torch.equal(leaves[1].grad, torch.einsum("abo,abi->oi", up, x))  # type: ignore[arg-type]
    assert torch.equal(leaves[2].grad, up.sum((0, 1)))  # type: ignore[arg-type]


def test_outside_of_a_pass_nothing_is_rounded() -> None:
    how = Precision("bfloat16", CPU)
    x, weight = torch.full((1, 1), 1.001), torch.nn.Parameter(torch.full((1, 1), 1.001))
    with how.forward():
        F.linear(x, weight)
    assert F.linear(x, weight).dtype == torch.float32
    with how.forward(), torch.autocast("cpu", enabled=False):
        assert F.linear(x, weight).dtype == torch.float32


@pytest.mark.parametrize(
    ("instructions", "half"),
    [((), False), (("_is_avx512_bf16_supported",), True), (("_is_amx_tile_supported",), True)],
)
def test_auto_is_bfloat16_where_the_processor_has_instructions_for_it(
    instructions: tuple[str, ...], half: bool, monkeypatch: Any
) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        answer = name in instructions
        monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
    assert Precision("auto", CPU).half is half
    assert Precision("float32", CPU).half is False
    assert Precision("bfloat16", CPU).half is True
    x = torch.ones(1, 1)
    with Precision("auto", CPU).forward():
        expected = torch.bfloat16 if half else torch.float32
        assert F.linear(x, torch.nn.Parameter(torch.ones(1, 1))).dtype == expected
