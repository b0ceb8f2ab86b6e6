"""Adapters made with plain peft: every kind is read and gives peft's logits; none is read by half."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from promptforge import UserError
from promptforge.plugins import build
from tests import adding
from tests.test_peft import KINDS, made_with_peft

TENSORS = "adapter_model.safetensors"


def read(architecture: str, folder: Path) -> Any:
    return build("method", "peft").read(tiny.backbone.__wrapped__(architecture), folder)


def changed(folder: Path, change: Any) -> None:
    """The adapter's tensors after `change`, which gets them by name."""
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(tensors, folder / TENSORS)


def config_of(kind: str) -> Any:
    targets = {"target_modules": ["query", "value"]}
    if kind == "ln_tuning":
        targets = {"target_modules": ["LayerNorm"]}
    if kind == "trainable_tokens":
        targets = {"target_modules": ["word_embeddings"]}
    return peft.PeftConfig.from_peft_type(peft_type=kind.upper(), **targets, **KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_whole_and_not_by_half(kind: str, tmp_path: Path) -> None:
    theirs = made_with_peft("bert", tmp_path / "a", config_of(kind))
    backbone = tiny.backbone.__wrapped__("bert")
    unchanged = adding.snapshot(backbone)
    prompts = adding.encoded(adding.tuner(backbone))
    attached = backbone.attach([build("method", "peft").read(backbone, tmp_path / "a")])
    here = adding.read_logits(backbone, prompts)
    attached.close()
    assert torch.allclose(here, adding.plain_logits(backbone, theirs, prompts), atol=1e-4)
    name = sorted(load_file(tmp_path / "a" / TENSORS))[-1]
    changed(tmp_path / "a", lambda t: t.pop(name))
    with pytest.raises(UserError, match=f"{tmp_path / 'a'} lacks tensors.*{name}"):
        build("method", "peft").read(backbone, tmp_path / "a")
    assert unchanged()


@pytest.mark.parametrize("use_dora", [False, True], ids=["deltas", "modules"])
def test_missing_tensors_are_named(use_dora: bool, tmp_path: Path) -> None:
    config = peft.LoraConfig(target_modules=["query", "value"], use_dora=use_dora)
    made_with_peft("bert", tmp_path / "a", config)
    whole = load_file(tmp_path / "a" / TENSORS)
    name = next(n for n in whole if "layer.1" in n and "lora_B" in n)
    changed(tmp_path / "a", lambda t: t.pop(name))
    with pytest.raises(UserError, match=f"{tmp_path / 'a'} lacks tensors.*{name}"):
        read("bert", tmp_path / "a")
    changed(tmp_path / "a", lambda t: t.clear())
    with pytest.raises(UserError, match=f"{tmp_path / 'a'} lacks tensors"):
        read("bert", tmp_path / "a")


def test_values_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    made_with_peft("bert", tmp_path / "a", peft.LoraConfig(target_modules=["query"]))
    name = next(n for n in load_file(tmp_path / "a" / TENSORS) if "lora_A" in n)
    changed(tmp_path / "a", lambda t: t[name].fill_(float("nan")))
    with pytest.raises(UserError, match=f"{tmp_path / 'a'} holds values.*{name}"):
        read("bert", tmp_path / "a")


def test_the_models_own_embeddings_beside_an_adapter(tmp_path: Path) -> None:
    """peft saves them on its own account; they must not be written over the model's."""
    made = made_with_peft("gpt2", tmp_path / "a", peft.LoraConfig(target_modules=["c_attn"]))
    made.save_pretrained(tmp_path / "a", save_embedding_layers=True)
    (name,) = [n for n in load_file(tmp_path / "a" / TENSORS) if "wte" in n]
    backbone = tiny.backbone.__wrapped__("gpt2")
    unchanged = adding.snapshot(backbone)
    method = build("method", "peft")
    assert method.read(backbone, tmp_path / "a").deltas() and unchanged()
    changed(tmp_path / "a", lambda t: t[name].add_(1))
    with pytest.raises(UserError, match=r"transformer.wte.weight' with other values"):
        method.read(backbone, tmp_path / "a")
    assert unchanged()
