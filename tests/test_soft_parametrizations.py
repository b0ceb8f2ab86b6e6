"""Parametrizations of soft prompts: where they start, and what they compute, by other means."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promptforge.plugins import build
from promptforge.tuning.starts import start_ids
from tests import adding

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mlp": {"hidden": 6},
    "low-rank": {"rank": 2},
    "lstm": {"hidden": 5, "layers": 2},
}


def module(kind: str, start: Tensor, *, moved: bool) -> nn.Module:
    """The module of a parametrization, with random values in all that it trains if `moved`."""
    torch.manual_seed(0)
    made: nn.Module = build("parametrization", kind, **KINDS[kind]).module(start)
    with torch.no_grad():
        for parameter in made.parameters() if moved else ():
            parameter += 0.3 * torch.randn_like(parameter)
    return made


@pytest.mark.parametrize("init", [{"init": "labels"}, {"init": "text", "text": "a fine old film"}])
@pytest.mark.parametrize("kind", KINDS)
def test_training_starts_where_it_is_told_to(kind: str, init: dict[str, str]) -> None:
    """Bit for bit: nothing that a network makes of the vectors is in the first step."""
    backbone = tiny.fresh("bert")
    options = {"parametrization": kind, "parametrization_options": KINDS[kind]}
    for method in ("prompt-tuning", "p-tuning"):
        made = adding.tuner(backbone, method, tokens=6, **init, **options)
        words = made.task.words_for("p")
        texts = (
            [f" {w}" for ws in words.values() for w in ws] if "text" not in init else [init["text"]]
        )
        ids = [token for part in backbone.text.ids(texts) for token in part]
        table = backbone.model.get_input_embeddings().weight
        if "text" in init:
            ids = [ids[i % len(ids)] for i in range(6)]
        else:
            ids = [*ids, *start_ids(backbone, 6, "vocabulary", "", {}, 0, "who")]
        expected = table[ids[:6]]
        assert torch.equal(adding.added(made).soft()["opening"], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_as_the_start_is_what_comes_out(kind: str) -> None:
    made: Any = module(kind, torch.zeros(4, 8), moved=False)
    other = torch.randn(4, 8)
    with torch.no_grad():
        made.vectors.copy_(other)
    assert torch.equal(made(), other)


def cell(x: Tensor, weights: dict[str, Tensor], layer: int, ending: str) -> Tensor:
    """One direction of one LSTM layer over tokens in the order given, [n, d] -> [n, hidden]."""
    w_in, w_own, b_in, b_own = (
        weights[f"{part}_l{layer}{ending}"]
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    state = memory = x.new_zeros(w_own.shape[1])
    states = []
    for token in x:
        i, f, g, o = (w_in @ token + b_in + w_own @ state + b_own).chunk(4)
        memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
        state = o.sigmoid() * memory.tanh()
        states.append(state)
    return torch.stack(states)


def plain(start: Tensor, made: Any) -> Tensor:
    return next(iter(made.parameters()))


def mlp(start: Tensor, made: Any) -> Tensor:
    """Razdaibiedina et al. 2023, section 3: P' = P + LayerNorm(W_up ReLU(W_down P))."""
    values = dict(made.named_parameters())
    p = values["vectors"]
    middle = F.relu(p @ values["net.0.weight"].T + values["net.0.bias"])
    up = middle @ values["net.2.weight"].T + values["net.2.bias"]
    up = (up - up.mean(1, keepdim=True)) / (up.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    return p + up * values["net.3.weight"] + values["net.3.bias"]


def low_rank(start: Tensor, made: Any) -> Tensor:
    values = dict(made.named_parameters())
    return start + sum(
        torch.outer(values["left"][:, r], values["right"][r])
        for r in range(KINDS["low-rank"]["rank"])
    )


def lstm(start: Tensor, made: Any) -> Tensor:
    """Liu et al. 2021, equation 5: a network over [state from the left : state from the right]."""
    weights = {n.removeprefix("lstm."): p for n, p in made.named_parameters() if "lstm" in n}
    x = dict(made.named_parameters())["inputs"]
    for layer in range(KINDS["lstm"]["layers"]):
        backward = cell(x.flip(0), weights, layer, "_reverse").flip(0)
        x = torch.cat([cell(x, weights, layer, ""), backward], 1)
    values = dict(made.named_parameters())
    middle = F.relu(x @ values["net.0.weight"].T + values["net.0.bias"])
    return start + middle @ values["net.2.weight"].T + values["net.2.bias"]


REFERENCES = {"plain": plain, "mlp": mlp, "low-rank": low_rank, "lstm": lstm}


@pytest.mark.parametrize("kind", KINDS)
def test_the_vectors_and_their_gradients_are_the_formulas(kind: str) -> None:
    start = torch.randn(7, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    made = module(kind, start, moved=True)
    found, expected = made(), REFERENCES[kind](start, made)
    assert float((found - start).detach().abs().max()) > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weight = torch.randn_like(start)
    parameters = list(made.parameters())
    both = [torch.autograd.grad((v * weight).sum(), parameters) for v in (found, expected)]
    for own, other in zip(*both, strict=True):
        assert float(own.abs().max()) > 1e-6  # all of it is trained, end to end
        torch.testing.assert_close(own, other, rtol=0, atol=1e-10)
    if kind == "low-rank":
        assert torch.linalg.matrix_rank(found - start) == KINDS[kind]["rank"]
