"""Adapters made with plain peft: every kind is read and gives peft's logits; none is read by half."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from promptforge_peft.additions import Injected, read_folder
from safetensors.torch import load_file, save_file

from promptforge import PromptModel, UserError, artifact
from promptforge.backbone.weights import Weights
from promptforge.plugins import build
from tests import adding
from tests.test_peft import KINDS, made_with_peft

TENSORS = "adapter_model.safetensors"


def read(architecture: str, folder: Path) -> Any:
    return build("method", "peft").read(tiny.fresh(architecture), folder)


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
    backbone = tiny.fresh("bert")
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
    backbone = tiny.fresh("gpt2")
    unchanged = adding.snapshot(backbone)
    method = build("method", "peft")
    assert method.read(backbone, tmp_path / "a").deltas() and unchanged()
    changed(tmp_path / "a", lambda t: t[name].add_(1))
    with pytest.raises(UserError, match=r"transformer.wte.weight' with other values"):
        method.read(backbone, tmp_path / "a")
    assert unchanged()


@pytest.mark.parametrize(
    "targets",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["q_proj"], "layers_to_transform": [0, 1]},
        {"target_modules": ["model.layers.0.self_attn.q_proj"]},
    ],
    ids=["every-layer", "own-layers", "one-layer"],
)
def test_repeated_layers_are_read(targets: dict[str, Any], tmp_path: Path) -> None:
    config = peft.LoraConfig(layer_replication=[(0, 2), (0, 2)], **targets)
    theirs = made_with_peft("llama", tmp_path / "a", config)
    backbone = tiny.fresh("llama")
    unchanged = adding.snapshot(backbone)
    prompts = adding.encoded(adding.tuner(backbone))
    attached = backbone.attach([build("method", "peft").read(backbone, tmp_path / "a")])
    here = adding.read_logits(backbone, prompts)
    attached.close()
    assert unchanged()
    there = adding.plain_logits(backbone, theirs, prompts)
    assert torch.allclose(here, there, atol=1e-5 * float(there.abs().max()))


def test_tokens_that_turn_an_adapter_on_are_refused(tmp_path: Path) -> None:
    """peft looks for them around each call of its own model, which is not called here."""
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], alora_invocation_tokens=[5, 6]
    )
    made_with_peft("llama", tmp_path / "a", config)
    with pytest.raises(UserError, match=r"alora_invocation_tokens=\[5, 6\].*run .* with peft"):
        read("llama", tmp_path / "a")
    backbone = tiny.fresh("llama")
    unchanged = adding.snapshot(backbone)
    with pytest.raises(UserError, match="leave alora_invocation_tokens out"):
        backbone.attach([Injected(*read_folder(tmp_path / "a"))])  # as from an artifact
    assert unchanged()


# --- what peft does not train by modules in the model ---------------------------------------------


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_adalora_is_read(architecture: str, tmp_path: Path) -> None:
    """With ranks that its schedule has cut, as it is saved after a training."""
    targets = {"bert": ["query", "value"], "gpt2": ["c_attn"]}[architecture]
    config = peft.AdaLoraConfig(
        target_modules=targets, init_r=6, target_r=3, tinit=1, tfinal=2, total_step=8,
        fan_in_fan_out=architecture == "gpt2",
    )  # fmt: skip
    backbone = tiny.fresh(architecture)
    prompts = adding.encoded(adding.tuner(backbone))
    torch.manual_seed(4)
    model = peft.get_peft_model(tiny.fresh(architecture).model, config)
    for step in range(8):
        for p in model.parameters():
            if p.requires_grad:
                p.data += 0.1 * torch.randn_like(p)
                p.grad = torch.randn_like(p)
        model.base_model.update_and_allocate(step)
    model.save_pretrained(tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(tiny.fresh(architecture).model, tmp_path / "a").eval()
    there = adding.plain_logits(backbone, theirs, prompts)
    plain, unchanged = adding.read_logits(backbone, prompts), adding.snapshot(backbone)
    found = build("method", "peft").read(backbone, tmp_path / "a")
    made = PromptModel(backbone, adding.tuner(backbone).task, weights=Weights(added=found))
    artifact.save(made, tmp_path / "ours")
    again: Any = artifact.load(tmp_path / "ours", backbone=backbone)
    for weights in (made.weights, again.weights):
        backbone.apply(weights)
        here = adding.read_logits(backbone, prompts)
        backbone.apply(None)
        assert torch.allclose(here, there, atol=1e-5)
        assert not torch.allclose(here, plain, atol=1e-2)
    assert unchanged()
    name = next(n for n in load_file(tmp_path / "a" / TENSORS) if "lora_E" in n)
    changed(tmp_path / "a", lambda t: t.pop(name))
    with pytest.raises(UserError, match=f"lacks tensors.*{name}"):
        read(architecture, tmp_path / "a")


TASKS = {
    "gpt2": "CAUSAL_LM",
    "llama": "CAUSAL_LM",
    "t5": "SEQ_2_SEQ_LM",
    "bert": "FEATURE_EXTRACTION",
}


def same_in_peft(architecture: str, folder: Path, theirs: Any) -> None:
    """What is read from the folder gives peft's logits; also saved and loaded again."""
    backbone = tiny.fresh(architecture)
    tuner = adding.tuner(backbone)
    there = []
    for ids in adding.encoded(tuner):
        told = adding.inputs(backbone, ids)
        told["attention_mask"] = torch.ones_like(told["input_ids"])
        with torch.no_grad():
            found = theirs(**told).logits[0]
        there.append(found[-1] if backbone.family == "causal" else found[ids.reads[0]])
    task, found = tuner.task, build("method", "peft").read(backbone, folder)
    made = PromptModel(backbone, task, weights=Weights(added=found))
    artifact.save(made, folder / "ours")
    plain = adding.read_logits(backbone, adding.encoded(tuner))
    again: Any = artifact.load(folder / "ours", backbone=backbone)
    for one in (made, again):
        prompts = one.encode("p", [one.prompt("p", e.row) for e in tuner.train])
        backbone.apply(one.weights)
        here = adding.read_logits(backbone, prompts)
        backbone.apply(None)
        assert torch.allclose(here, torch.stack(there), atol=1e-5)
        assert not torch.allclose(here, plain, atol=1e-3)


@pytest.mark.parametrize("architecture", ["gpt2", "t5"])
@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "P_TUNING"])
def test_a_prompt_of_peft_is_read(architecture: str, kind: str, tmp_path: Path) -> None:
    more = {"encoder_hidden_size": 16} if kind == "P_TUNING" else {}
    config = peft.PeftConfig.from_peft_type(
        peft_type=kind, task_type=TASKS[architecture], num_virtual_tokens=5, **more
    )
    theirs = made_with_peft(architecture, tmp_path / "a", config)
    same_in_peft(architecture, tmp_path / "a", theirs)


@pytest.mark.parametrize("projected", [False, True])
def test_a_prefix_of_peft_is_read(projected: bool, tmp_path: Path) -> None:
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=7, prefix_projection=projected
    )
    made_with_peft("llama", tmp_path / "a", config)
    # Large enough that it matters where the text's positions begin.
    changed(tmp_path / "a", lambda t: t["prompt_embeddings"].mul_(4))
    theirs = peft.PeftModel.from_pretrained(tiny.fresh("llama").model, tmp_path / "a").eval()
    same_in_peft("llama", tmp_path / "a", theirs)


@pytest.mark.parametrize(
    ("architecture", "kind", "says"),
    [
        ("llama", "PROMPT_TUNING", "before the special tokens with which every text of tiny-llama begins"),
        ("bert", "PROMPT_TUNING", "before the special tokens"),
        ("gpt2", "PREFIX_TUNING", "counts the positions of a text from the end of the prefix"),
        ("t5", "PREFIX_TUNING", "for causal models alone"),
        ("gpt2", "CARTRIDGE", "'CARTRIDGE' has parts in the prompt that are none of ours"),
    ],
)  # fmt: skip
def test_prompts_that_would_be_others_here(
    architecture: str, kind: str, says: str, tmp_path: Path
) -> None:
    config = peft.PeftConfig.from_peft_type(
        peft_type=kind, task_type=TASKS[architecture], num_virtual_tokens=4
    )
    made_with_peft(architecture, tmp_path / "a", config)
    with pytest.raises(UserError, match=says):
        read(architecture, tmp_path / "a")


def test_a_prompt_of_another_model_is_refused(tmp_path: Path) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    made_with_peft("gpt2", tmp_path / "a", config)
    changed(tmp_path / "a", lambda t: t.update(prompt_embeddings=torch.ones(4, 7)))
    with pytest.raises(UserError, match=r"another shape: prompt_embeddings is 4 x 7.*needs 4 x"):
        read("gpt2", tmp_path / "a")
    changed(tmp_path / "a", lambda t: t.clear())
    with pytest.raises(UserError, match="must hold 'prompt_embeddings'"):
        read("gpt2", tmp_path / "a")


def test_rotary_positions_that_depend_on_the_length_are_refused(tmp_path: Path) -> None:
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=7)
    made_with_peft("llama", tmp_path / "a", config)
    changed(tmp_path / "a", lambda t: t["prompt_embeddings"].mul_(4))
    backbone = tiny.fresh("llama")
    method = build("method", "peft")
    assert method.read(backbone, tmp_path / "a").prefixes()
    backbone.body.rotary_emb.rope_type = "dynamic"
    with pytest.raises(UserError, match="in a way that keys could make up for"):
        method.read(backbone, tmp_path / "a")
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5000)
    made_with_peft("llama", tmp_path / "b", config)
    with pytest.raises(UserError, match="has 5000 virtual tokens"):
        method.read(tiny.fresh("llama"), tmp_path / "b")
