"""`promptforge merge`: a plain transformers folder that gives the same probabilities."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)

from promptforge import PromptModel, UserError, artifact, load_model, merge
from promptforge.tuning.members import Ensemble
from promptforge.tuning.tuner import Member
from tests import adding

each = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
Command = Callable[..., Any]
Folder = Callable[[str], Path]
AUTO = {
    "masked": AutoModelForMaskedLM, "causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM,
}  # fmt: skip

MERGED: dict[str, dict[str, Any]] = {
    "all": {}, "head": {}, "lora": {"targets": "all"}, "ia3": {},
    "adapter": {"activation": "identity"},
    "peft": {"config": "loha", "options": {"r": 2}},
}  # fmt: skip


def tuned(folder: Path, method: str, **options: Any) -> tuple[PromptModel, Any]:
    """A classifier tuned from the model in a folder, and its tuner."""
    tuner = adding.tuner(load_model(str(folder)), method, **options)
    made = adding.trained(tuner)
    if made.weights is not None and made.weights.added is not None:
        moved = made.weights.added
        with torch.no_grad():
            for value in moved.tensors().values():  # views of what it holds
                value.add_(0.02 * torch.randn_like(value))
    return made, tuner


@each
@pytest.mark.parametrize("method", MERGED)
def test_the_folder_gives_the_same_probabilities(
    architecture: str, method: str, tiny_model: Folder, tmp_path: Path
) -> None:
    if method == "adapter" and architecture in ("llama", "t5", "modernbert"):
        pytest.skip("its matrices have no biases: test_what_cannot_be_merged")
    if method == "peft" and architecture == "gpt2":
        pytest.skip("peft's LoHa knows no matrices that lie the other way round")
    made, tuner = tuned(tiny_model(architecture), method, **MERGED[method])
    rows = [e.row for e in tuner.train]
    expected = made.predict_proba(rows)
    assert np.abs(expected - tuner.untrained().predict_proba(rows)).max() > 1e-4
    artifact.save(made, tmp_path / "a")
    assert merge(tmp_path / "a", tmp_path / "m") == tmp_path / "m"
    backbone = load_model(str(tmp_path / "m"))
    again = PromptModel(backbone, made.task).predict_proba(rows)
    assert np.allclose(again, expected, atol=1e-5)
    # By transformers alone, from the files.
    model = AUTO[backbone.family].from_pretrained(tmp_path / "m").eval()
    assert len(AutoTokenizer.from_pretrained(tmp_path / "m")) == len(tuner.backbone.tokenizer)
    prompts = adding.encoded(tuner)
    logits = adding.plain_logits(backbone, model, prompts)
    words = [
        backbone.text.word(made.task.words_for("p")[x][0], space_before=True)[0]
        for x in made.labels
    ]
    assert np.allclose(logits[:, words].softmax(-1).numpy(), expected, atol=1e-5)
    # What was tuned can be a model at once, too.
    assert np.allclose(
        PromptModel(load_model(str(tmp_path / "a")), made.task).predict_proba(rows),
        expected,
        atol=1e-5,
    )


@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2", "bart", "modernbert"])
def test_biases(architecture: str, tiny_model: Folder, tmp_path: Path) -> None:
    made, tuner = tuned(tiny_model(architecture), "bitfit")
    artifact.save(made, tmp_path / "a")
    merge(tmp_path / "a", tmp_path / "m")
    rows = [e.row for e in tuner.train]
    again = PromptModel(load_model(str(tmp_path / "m")), made.task).predict_proba(rows)
    assert np.allclose(again, made.predict_proba(rows), atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"form": "sequential", "composition": "scaled", "scale": "trained"},
        {"form": "parallel", "targets": "intermediate.dense"},
        {"form": "sequential", "composition": "gated"},
    ],
    ids=["trained-scale", "parallel", "gated"],
)
def test_linear_adapters(options: dict[str, Any], tiny_model: Folder, tmp_path: Path) -> None:
    made, tuner = tuned(tiny_model("bert"), "adapter", activation="identity", **options)
    artifact.save(made, tmp_path / "a")
    merge(tmp_path / "a", tmp_path / "m")
    rows = [e.row for e in tuner.train]
    again = PromptModel(load_model(str(tmp_path / "m")), made.task).predict_proba(rows)
    assert np.allclose(again, made.predict_proba(rows), atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "method", "options", "says"),
    [
        ("bert", "prompt-tuning", {}, "soft tokens stand in the prompt"),
        ("gpt2", "prefix", {}, "a prefix is more keys and values"),
        ("bert", "pfeiffer", {}, "has an activation \\(relu\\)"),
        ("bert", "parallel", {"activation": "tanh"}, "has an activation \\(tanh\\)"),
        ("bert", "adapter", {"activation": "identity", "form": "parallel", "targets": "output.dense"}, "takes the input"),
        ("llama", "adapter", {"activation": "identity"}, "has biases, and that matrix of the model has none"),
        ("bert", "adapter", {"norm": True, "targets": "dense"}, "activation"),
        ("bert", "peft", {"config": "lily"}, "peft cannot merge LILY"),
    ],
)  # fmt: skip
def test_what_cannot_be_merged(
    architecture: str, method: str, options: dict[str, Any], says: str, tiny_model: Folder, tmp_path: Path
) -> None:  # fmt: skip
    made, _ = tuned(tiny_model(architecture), method, **options)
    artifact.save(made, tmp_path / "a")
    with pytest.raises(UserError, match=says):
        merge(tmp_path / "a", tmp_path / "m")
    with pytest.raises(UserError, match=says):
        load_model(str(tmp_path / "a"))
    assert not (tmp_path / "m").exists()


def test_a_head_and_a_folder_in_use(tiny_model: Folder, tmp_path: Path) -> None:
    tuner = adding.tuner(load_model(str(tiny_model("bert"))), "lora")
    artifact.save(tuner.member(Member("head", tuner.targets(), None, 3)), tmp_path / "head")
    with pytest.raises(UserError, match="has a classification head"):
        merge(tmp_path / "head", tmp_path / "m")
    with pytest.raises(UserError, match="is there already"):
        merge(tmp_path / "head", tmp_path)
    with pytest.raises(UserError, match="no artifact"):
        merge(tmp_path, tmp_path / "m")
    two = Ensemble({name: tuner.untrained() for name in ("a", "b")}, {"a": 1.0, "b": 1.0})
    artifact.save(two, tmp_path / "two")
    with pytest.raises(
        UserError, match=f"one of its members' folders, '{tmp_path}/two/members/a', "
    ):
        merge(tmp_path / "two", tmp_path / "m")


def test_the_command(command: Command, tiny_model: Folder, reviews: Path) -> None:
    base = (reviews, "--model", tiny_model("bert"), "--pattern", "it-was", "--steps", 2)
    assert command("train", *base, "--method", "lora", "--run", "run").code == 0
    ran = command("merge", "run", "merged")
    assert ran.code == 0 and "--model" in ran.out, ran.err
    data = ("--data", reviews / "test.csv", "--json")
    tuned = command("evaluate", "run", *data).json
    merged = command("evaluate", reviews, "--model", "merged", "--pattern", "it-was", *data).json
    assert [e["confusion"] for e in tuned.values()] == [e["confusion"] for e in merged.values()]
    ran = command("merge", "run", "merged")
    assert ran.code == 2 and "is there already" in ran.err
    assert command("train", *base, "--method", "prefix", "--run", "run2").code == 0
    ran = command("merge", "run2", "other")
    assert ran.code == 2 and "cannot be merged" in ran.err
