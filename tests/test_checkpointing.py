"""Layers computed again in the backward pass: the same gradients, less kept, and nothing left on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from promptforge import Settings, UserError
from promptforge.plugins import build
from promptforge.tuning.loop import Training
from promptforge.tuning.mixed import TogetherObjective
from promptforge.tuning.objectives import PromptObjective
from promptforge.tuning.recomputing import recomputing
from tests import adding, test_mixed_training

Command = Callable[..., Any]


def layers(backbone: Any) -> list[nn.Module]:
    return [m for m in backbone.model.modules() if hasattr(m, "gradient_checkpointing")]


def is_on(backbone: Any) -> bool:
    return any(m.gradient_checkpointing for m in layers(backbone))


class Counted:
    """How often attention was computed, in a training of some steps, and what its parameters became."""

    def __init__(self, architecture: str, method: str, steps: int = 1, **settings: Any) -> None:
        torch.manual_seed(0)
        backbone = tiny.fresh(architecture)
        made = adding.tuner(backbone, method)
        objective = PromptObjective(made.untrained(), "p", made.method, made.targets())
        told = {"steps": steps, "batch_size": 4, "learning_rate": 1e-2, "precision": "float32"}
        training = Training(
            objective, made.targets(), Settings.of(**{**told, "dropout": False, **settings}), seed=3
        )
        self.gradients: dict[str, Tensor] = {}
        self.kept = 0

        def pack(value: Tensor) -> Tensor:
            self.kept += value.numel()
            return value

        clipped = training.clipped

        def looked() -> Any:
            found = training.parameters.items()
            self.gradients = {n: p.grad.clone() for n, p in found if p.grad is not None}
            return clipped()

        training.clipped = looked  # type: ignore[method-assign]
        modes = {id(m): m.training for m in backbone.model.modules()}
        try:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
                training.run()
        finally:
            objective.close()
        assert not is_on(backbone)
        assert modes == {id(m): m.training for m in backbone.model.modules()}
        assert not any("_gradient_checkpointing_func" in vars(m) for m in layers(backbone))
        self.curve = [e["loss"] for e in training.state.curve]


@pytest.mark.parametrize("method", ["all", "prefix", "lora"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5", "bart"])
def test_gradients_are_the_same_and_less_is_kept(architecture: str, method: str) -> None:
    plainly, again = (Counted(architecture, method, checkpointing=c) for c in (False, True))
    assert plainly.curve == pytest.approx(again.curve, abs=1e-6)
    assert plainly.gradients.keys() == again.gradients.keys() and plainly.gradients
    for name, value in plainly.gradients.items():
        torch.testing.assert_close(again.gradients[name], value, rtol=1e-4, atol=1e-7)
    assert again.kept < 0.7 * plainly.kept


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_with_dropout_the_same_is_dropped_on_the_way_back(precision: str) -> None:
    told = {"dropout": True, "precision": precision, "steps": 3}
    plainly, again = (Counted("bart", "all", checkpointing=c, **told) for c in (False, True))
    assert plainly.curve == pytest.approx(again.curve, abs=1e-5)
    without = Counted("bart", "all", steps=3, precision=precision)
    assert plainly.curve != pytest.approx(without.curve, abs=1e-4)


@pytest.mark.parametrize("architecture", ["bert", "t5"])
@pytest.mark.parametrize("method", ["prompt-tuning", "prefix", "lora", "mam"])
def test_each_of_several_passes_is_computed_again_for_its_own_rows(
    architecture: str, method: str, monkeypatch: Any
) -> None:
    """Rows of several tasks go through the model in several passes before the way back begins."""
    monkeypatch.setattr("promptforge.tuning.mixed.PASS", 0)
    backbone = tiny.fresh(architecture)
    backbone.model.double()
    data = test_mixed_training.tasks()
    found = []
    for wanted in (False, True):
        models = [test_mixed_training.PromptModel(backbone, one.task) for one in data]
        rows = [test_mixed_training.targets(one, number) for number, one in enumerate(data)]
        objective = TogetherObjective(models, build("method", method), rows, 5)
        try:
            for number, parameter in enumerate(objective.trained().values()):
                draw = torch.Generator().manual_seed(number)
                with torch.no_grad():
                    parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
            objective.eval()
            passes: list[int] = []
            hook = backbone.embedding.register_forward_hook(lambda *_, p=passes: p.append(1))
            with recomputing(objective, wanted):
                objective([t for own in rows for t in own], 0).sum().backward()
            hook.remove()
            assert len(passes) > 1
            found.append([p.grad.clone() for p in objective.trained().values()])
        finally:
            objective.close()
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-9)


def test_it_is_off_again_after_an_error() -> None:
    backbone = tiny.fresh("bert")
    made = adding.tuner(backbone, "bitfit")
    objective = PromptObjective(made.untrained(), "p", made.method, made.targets())

    def broken(*_: Any) -> None:
        assert is_on(backbone)
        raise RuntimeError("in the second layer")

    hook = layers(backbone)[-1].register_forward_pre_hook(broken)
    training = Training(objective, made.targets(), Settings.of(steps=1, checkpointing=True), seed=3)
    with pytest.raises(RuntimeError, match="in the second layer"):
        training.run()
    hook.remove()
    objective.close()
    assert not is_on(backbone) and not any(m.training for m in backbone.model.modules())


def test_a_model_that_cannot_says_so() -> None:
    from tests.test_exits import albert

    backbone = albert()
    made = adding.tuner(backbone, "bitfit")
    made.settings = made.settings.model_copy(update={"checkpointing": True})
    unchanged = adding.snapshot(backbone)
    with pytest.raises(
        UserError, match=r"checkpointing: AlbertForMaskedLM of deep-albert cannot .*--accumulate"
    ):
        adding.trained(made)
    assert unchanged()


def test_the_name_of_earlier_transformers(monkeypatch: Any) -> None:
    from transformers import PreTrainedModel

    for name in ("activation_checkpointing_enable", "activation_checkpointing_disable"):
        monkeypatch.delattr(PreTrainedModel, name)
    calls = []

    def switch(model: Any, value: bool) -> None:
        calls.append(value)
        for module in model.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = value

    monkeypatch.setattr(PreTrainedModel, "gradient_checkpointing_enable", lambda m: switch(m, True))
    monkeypatch.setattr(
        PreTrainedModel, "gradient_checkpointing_disable", lambda m: switch(m, False)
    )
    plainly, again = (Counted("bert", "bitfit", checkpointing=c) for c in (False, True))
    assert calls == [True, False]
    assert again.kept < plainly.kept
    assert again.curve == pytest.approx(plainly.curve, abs=1e-6)


def test_the_command(command: Command, tiny_model: Callable[[str], Path], reviews: Path) -> None:
    base = ("train", reviews, "--model", tiny_model("bert"), "--pattern", "it-was", "--steps", 2)
    for name, given, wanted in (
        ("a", (), False),
        ("b", ("--checkpointing",), True),
        ("c", ("-o", "settings.checkpointing=true"), True),
    ):
        ran = command(*base, *given, "--run", name)
        assert ran.code == 0, ran.err
        settings = json.loads(Path(name, "config.json").read_text())["settings"]
        assert settings["checkpointing"] is wanted
