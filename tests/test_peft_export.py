"""`promptforge export`: prompts and prefixes as plain peft reads them, and where they are the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from promptforge_peft.export import export
from safetensors.torch import load_file

from promptforge import Settings, UserError, artifact, load_model, train_generator
from promptforge.backbone.weights import Weights
from promptforge.exits.exits import end_of
from promptforge.exits.model import ExitModel
from promptforge.merging import merge
from promptforge.plugins import build
from promptforge.progress import Reporter
from promptforge.tuning.tuner import Member
from tests import adding, generating

Folder = Callable[[str], Path]


class Warned(Reporter):
    """Keeps what it was warned of."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, message: str) -> None:
        self.said.append(message)


def exported(
    folder: Path, model: Path, method: str, /, **options: Any
) -> tuple[Any, Any, list[str]]:
    """A tuner, the classifier it tuned, and what exporting it warned of."""
    tuner = adding.tuner(load_model(str(model)), method, **options)
    made = adding.trained(tuner)
    artifact.save(made, folder / "a")
    report = Warned()
    assert export(folder / "a", folder / "peft", report=report) == folder / "peft"
    return tuner, made, report.said


def logits(tuner: Any, made: Any) -> torch.Tensor:
    """Of our own classifier, at the mask of each row."""
    prompts = made.encode("p", [made.prompt("p", e.row) for e in tuner.train])
    tuner.backbone.apply(made.weights)
    return adding.read_logits(tuner.backbone, prompts)


@pytest.mark.parametrize("architecture", ["gpt2", "t5"])
def test_a_prompt_is_the_same_in_peft(
    architecture: str, tiny_model: Folder, tmp_path: Path
) -> None:
    tuner, made, said = exported(tmp_path, tiny_model(architecture), "prompt-tuning", tokens=5)
    here = logits(tuner, made)
    assert said == []
    model = peft.PeftModel.from_pretrained(
        load_model(str(tiny_model(architecture))).model, tmp_path / "peft"
    ).eval()
    there = []
    for ids in adding.encoded(tuner):
        told = adding.inputs(tuner.backbone, ids)
        told["attention_mask"] = torch.ones_like(told["input_ids"])
        with torch.no_grad():
            found = model(**told).logits[0]
        there.append(found[-1] if architecture == "gpt2" else found[ids.reads[0]])
    assert torch.allclose(here, torch.stack(there), atol=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_prefix_is_the_same_in_peft(
    architecture: str, tiny_model: Folder, tmp_path: Path
) -> None:
    """Where positions are rotary without a word; else where they begin at 0, as they do here."""
    tuner, made, said = exported(tmp_path, tiny_model(architecture), "prefix", length=3)
    here = logits(tuner, made)
    rotary = architecture == "llama"
    assert len(said) == (0 if rotary else 1) and all("positions" in one for one in said)
    base = load_model(str(tiny_model(architecture))).model
    model = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    there = []
    for ids in adding.encoded(tuner):
        told = adding.inputs(tuner.backbone, ids)
        count = told["input_ids"].shape[1]
        if not rotary:
            told["past_key_values"] = model.get_prompt(1)
            told["position_ids"] = torch.arange(count)[None]
        told["attention_mask"] = torch.ones(1, count if rotary else 3 + count, dtype=torch.long)
        with torch.no_grad():
            found = (model if rotary else base)(**told)
        there.append(found.logits[0, -1])
    assert torch.allclose(here, torch.stack(there), atol=1e-5)


def test_a_prefix_of_peft_leaves_as_it_came(tiny_model: Folder, tmp_path: Path) -> None:
    model = tiny_model("llama")
    exported(tmp_path, model, "prefix", length=3)
    backbone = load_model(str(model))
    added = build("method", "lora").read(backbone, tmp_path / "peft")
    tuner = adding.tuner(backbone, "prefix")
    made = tuner.untrained()
    made.weights = Weights(added=added)
    artifact.save(made, tmp_path / "read")
    export(tmp_path / "read", tmp_path / "again")
    one, other = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("peft", "again")
    )
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.allclose(value, other[name], atol=1e-5)


def test_special_tokens_before_a_text_are_warned_of(tiny_model: Folder, tmp_path: Path) -> None:
    said = exported(tmp_path, tiny_model("llama"), "prompt-tuning", tokens=2)[2]
    assert len(said) == 1 and "special tokens" in said[0]


def test_a_decoder_that_reads_its_prompt_again_is_warned_of(
    tiny_model: Folder, tmp_path: Path
) -> None:
    """BART's does for a mask, and not where it writes a text."""
    said = exported(tmp_path, tiny_model("bart"), "prompt-tuning", tokens=2)[2]
    assert ["again" in one for one in said] == [False, True]
    train_generator(
        generating.task(), generating.ROWS, backbone=load_model(str(tiny_model("bart"))),
        method="prompt-tuning", settings=Settings(steps=1), run=tmp_path / "g",
    )  # fmt: skip
    report = Warned()
    export(tmp_path / "g", tmp_path / "written", report=report)
    assert len(report.said) == 1 and "special tokens" in report.said[0]


def test_lora_is_copied(tiny_model: Folder, tmp_path: Path) -> None:
    tuner, made, said = exported(tmp_path, tiny_model("bert"), "lora")
    assert said == []
    base = load_model(str(tiny_model("bert"))).model
    model = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    there = adding.plain_logits(tuner.backbone, model, adding.encoded(tuner))
    assert torch.allclose(logits(tuner, made), there, atol=1e-5)


# --- what an adapter leaves behind ----------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "prompt-tuning"])
@pytest.mark.parametrize("verbalizer", ["soft", "prototypical"])
def test_a_verbalizer_that_learned_is_warned_of(
    verbalizer: str, method: str, tiny_model: Folder, tmp_path: Path
) -> None:
    tuner = adding.tuner(load_model(str(tiny_model("gpt2"))), method)
    made = adding.trained(replace(tuner, verbalizer=build("verbalizer", verbalizer)))
    artifact.save(made, tmp_path / "a")
    report = Warned()
    export(tmp_path / "a", tmp_path / "peft", report=report)
    assert len(report.said) == 1 and "also tuned its verbalizer" in report.said[0]


def test_early_exits_are_warned_of(tiny_model: Folder, tmp_path: Path) -> None:
    made = adding.trained(adding.tuner(load_model(str(tiny_model("bert"))), "lora"))
    artifact.save(ExitModel(made, end_of(made).make()), tmp_path / "a")
    report = Warned()
    export(tmp_path / "a", tmp_path / "peft", report=report)
    assert len(report.said) == 1 and "also has early exits" in report.said[0]
    report = Warned()
    merge(tmp_path / "a", tmp_path / "merged", report=report)
    assert len(report.said) == 1 and "also has early exits" in report.said[0]


def test_a_head_is_refused(tiny_model: Folder, tmp_path: Path) -> None:
    tuner = adding.tuner(load_model(str(tiny_model("bert"))), "lora")
    artifact.save(tuner.member(Member("head", tuner.targets(), None, 3)), tmp_path / "a")
    with pytest.raises(UserError, match="has a classification head"):
        export(tmp_path / "a", tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_an_attention_pattern_is_refused(tiny_model: Folder, tmp_path: Path) -> None:
    backbone = load_model(str(tiny_model("bert")), attention="longformer")
    artifact.save(adding.trained(adding.tuner(backbone, "lora")), tmp_path / "a")
    with pytest.raises(UserError, match="reads with attention 'longformer'"):
        export(tmp_path / "a", tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


@pytest.mark.parametrize(
    ("architecture", "method", "says"),
    [
        ("bert", "prompt-tuning", "for causal and encoder-decoder models"),
        ("t5", "prefix", "are the decoder's alone"),
        ("gpt2", "pfeiffer", "peft has no method that is the same as 'pfeiffer'"),
        ("gpt2", "mam", "peft has no method"),
        ("gpt2", "all", "promptforge merge"),
    ],
)
def test_what_is_refused(
    architecture: str, method: str, says: str, tiny_model: Folder, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        exported(tmp_path, tiny_model(architecture), method)
    assert not (tmp_path / "peft").exists()


def test_a_prompt_beside_trained_weights_is_refused(tiny_model: Folder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"promptforge predict .* read.*-o method\.model=none"):
        exported(tmp_path, tiny_model("gpt2"), "p-tuning", model="bitfit")
    with pytest.raises(UserError, match="cannot be merged"):  # so that is no way out
        merge(tmp_path / "a", tmp_path / "merged")
    exported(tmp_path / "alone", tiny_model("gpt2"), "p-tuning", model="none")


@pytest.mark.parametrize("architecture", ["gpt2", "bert"])
def test_an_adapter_with_norms_has_no_way_to_peft(
    architecture: str, tiny_model: Folder, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no method that is the same as 'houlsby'"):
        exported(tmp_path, tiny_model(architecture), "houlsby")


def test_what_was_not_tuned_has_nothing_to_export(tiny_model: Folder, tmp_path: Path) -> None:
    artifact.save(adding.tuner(load_model(str(tiny_model("gpt2")))).untrained(), tmp_path / "a")
    with pytest.raises(UserError, match="nothing to export"):
        export(tmp_path / "a", tmp_path / "peft")


@pytest.mark.parametrize("method", ["prompt-tuning", "lora"])
def test_an_adapter_of_what_a_run_tuned_says_what_it_belongs_to(
    method: str, tiny_model: Folder, tmp_path: Path
) -> None:
    first = adding.tuner(load_model(str(tiny_model("gpt2"))), "lora", targets="all")
    artifact.save(adding.trained(first), tmp_path / "run")
    made = exported(tmp_path, tmp_path / "run", method)
    assert any(f"promptforge merge {tmp_path / 'run'} FOLDER" in said for said in made[2])
    config = peft.PeftConfig.from_pretrained(tmp_path / "peft")
    assert config.base_model_name_or_path == str(tmp_path / "run")


def test_the_command(command: Callable[..., Any], tiny_model: Folder, tmp_path: Path) -> None:
    exported(tmp_path, tiny_model("gpt2"), "prompt-tuning")
    ran = command("export", tmp_path / "a", tmp_path / "peft2")
    assert ran.code == 0 and "PeftModel.from_pretrained" in ran.out, ran.err
    assert (tmp_path / "peft2" / "adapter_config.json").is_file()
    ran = command("export", tmp_path / "a", tmp_path / "peft2")
    assert ran.code == 2 and "is there already" in " ".join(ran.err.split())
