"""Input beyond a model's maximum: each rule for positions, against what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from test_long_inputs import patterns

from promptforge import UserError, load_model
from promptforge.template import Mask, Prompt, Text

Folder = Callable[[str], Path]
Command = Callable[..., Any]
__all__ = ["patterns"]
#: architecture -> where its tables are, and how many rows stand before the first position
TABLES = {
    "bert": (["bert.embeddings.position_embeddings"], 0),
    "roberta": (["roberta.embeddings.position_embeddings"], 2),
    "gpt2": (["transformer.wpe"], 0),
    "bart": (["model.encoder.embed_positions", "model.decoder.embed_positions"], 2),
}
LONG = " ".join(tiny.corpus()[:12])


def prompt(backbone: Any, text: str) -> Any:
    return backbone.encode([Prompt((Text(text, "text", cut=1), Text(" It was "), Mask()))])[0]


@pytest.mark.parametrize("architecture", TABLES)
@pytest.mark.parametrize("rule", ["copy", "interpolate"])
def test_a_table_is_extended_by_the_rule(architecture: str, rule: str, tiny_model: Folder) -> None:
    names, front = TABLES[architecture]
    plain = load_model(str(tiny_model(architecture)))
    longer = load_model(str(tiny_model(architecture)), max_length=150, positions=rule)
    for name in names:
        old = plain.model.get_submodule(name).weight.detach().numpy()
        new = longer.model.get_submodule(name).weight.detach().numpy()
        assert new.shape == (150 + front, 32)
        assert (new[:front] == old[:front]).all()
        if rule == "copy":
            assert (new[front:] == old[front + np.arange(150) % 64]).all()
        else:
            places = np.arange(150) * 63 / 149
            columns = [np.interp(places, np.arange(64), column) for column in old[front:].T]
            assert new[front:] == pytest.approx(np.stack(columns, 1), abs=1e-5)
    encoded = prompt(longer, LONG)
    assert len(encoded.ids) + len(encoded.decoder_ids) > 140
    assert torch.isfinite(longer.states([encoded])).all()
    assert longer.encoder.max_length == 150
    assert longer.tokenizer.model_max_length == 150
    if rule == "copy":  # short texts are read as ever
        short = prompt(plain, "a film")
        assert torch.equal(plain.states([short]), longer.states([short]))
    assert load_model(str(tiny_model(architecture))).encoder.max_length == 64


def test_the_last_position_is_read_from_the_last_row(tiny_model: Folder) -> None:
    """RoBERTa counts from behind its padding row, in the longer table too."""
    longer = load_model(str(tiny_model("roberta")), max_length=100, positions="interpolate")
    encoded = prompt(longer, LONG)
    assert len(encoded.ids) == 100
    encoded = replace(encoded, reads=(99,))
    longer.parameters["roberta.embeddings.position_embeddings.weight"].requires_grad_(True)
    longer.read([encoded]).pow(3).sum().backward()
    used = longer.parameters["roberta.embeddings.position_embeddings.weight"].grad
    assert used is not None
    assert (used.abs().sum(1) > 0).tolist() == [False] * 2 + [True] * 100


@pytest.mark.parametrize("architecture", ["llama", "modernbert"])
def test_rotary_positions_are_scaled_by_yarn(architecture: str, tiny_model: Folder) -> None:
    folder = tiny_model(architecture)
    longer = load_model(str(folder), max_length=256, positions="rope")
    config = transformers.AutoConfig.from_pretrained(folder)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    if architecture == "llama":
        config.rope_parameters = {**config.rope_parameters, **yarn}
    else:  # its local layers look no further than they did
        config.rope_parameters["full_attention"] |= yarn
    config.max_position_embeddings = 256
    made = type(longer.model).from_pretrained(folder, config=config).eval()
    encoded = prompt(longer, LONG)
    assert len(encoded.ids) > 200
    ids = torch.tensor([encoded.ids])
    body = made.model
    expected = body(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    found = longer.states([encoded])[0]
    assert torch.allclose(found, expected[0, list(encoded.reads)], atol=1e-5)
    plain = load_model(str(folder))
    short = prompt(plain, "a film")
    assert not torch.allclose(plain.states([short]), longer.states([short]), atol=1e-4)


def test_a_model_without_positions_of_its_own_needs_no_rule(tiny_model: Folder) -> None:
    longer = load_model(str(tiny_model("t5")), max_length=200)
    assert len(prompt(longer, LONG).ids) == 200
    assert torch.isfinite(longer.states([prompt(longer, LONG)])).all()


def test_a_tokenizers_limit_below_the_models_own_is_no_limit(
    tmp_path: Path, tiny_model: Folder
) -> None:
    folder = tiny.save("bert", tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 20
    tokenizer.save_pretrained(folder)
    assert load_model(str(folder)).encoder.max_length == 20
    assert load_model(str(folder), max_length=50).encoder.max_length == 50


def test_what_does_not_fit_is_said(tiny_model: Folder) -> None:
    bert, llama = str(tiny_model("bert")), str(tiny_model("llama"))
    with pytest.raises(UserError, match=r"at most 64 tokens\. Give --positions copy"):
        load_model(bert, max_length=65)
    with pytest.raises(UserError, match=r"at most 64 tokens\. Give --positions rope"):
        load_model(llama, max_length=65)
    with pytest.raises(UserError, match="table of learned positions: use copy"):
        load_model(bert, max_length=65, positions="rope")
    with pytest.raises(UserError, match="use positions rope"):
        load_model(llama, max_length=65, positions="copy")
    with pytest.raises(UserError, match="give that too"):
        load_model(bert, positions="copy")
    with pytest.raises(UserError, match="choose one of copy, interpolate, rope"):
        load_model(bert, positions="stretch", max_length=65)
    for rule in ("copy", "rope"):
        with pytest.raises(UserError, match="needs no such option"):
            load_model(str(tiny_model("t5")), positions=rule, max_length=65)
    assert load_model(bert, positions="copy", max_length=30).encoder.max_length == 30


@pytest.mark.parametrize(
    ("architecture", "rule", "told"),
    [
        ("bert", "rope", "table of learned positions: use copy"),
        ("llama", "copy", "use positions rope"),
        ("t5", "copy", "needs no such option"),
    ],
)  # fmt: skip
def test_a_rule_for_other_positions_is_refused_at_any_length(
    architecture: str, rule: str, told: str, tiny_model: Folder
) -> None:
    with pytest.raises(UserError, match=told):
        load_model(str(tiny_model(architecture)), max_length=30, positions=rule)


def test_a_run_keeps_its_positions(command: Command, reviews: Path, tiny_model: Folder) -> None:
    base = ("train", reviews, "--model", tiny_model("roberta"), "--shots", 2, "--steps", 1,
            "--no-compare-untrained", "--json")  # fmt: skip
    refused = command(*base, "--max-length", 100)
    assert refused.code == 2
    assert "Give --positions copy" in refused.err
    ran = command(*base, "--max-length", 100, "--positions", "copy", "--run", "run")
    again = command("evaluate", "run", "--data", reviews / "test.csv", "--json")
    figures = next(iter(ran.json["results"]["test"]["tuned"].values()))
    assert next(iter(again.json.values()))["confusion"] == figures["confusion"]
    backbone = load_model("run")
    assert backbone.encoder.max_length == 100
    assert load_model("run", max_length=70).encoder.max_length == 70
    with pytest.raises(UserError, match="extend that one"):
        load_model("run", max_length=200, positions="copy")
    # And without the rule it is not said to give it, which would lead back here.
    with pytest.raises(UserError, match="make it anew from the model that it began with"):
        load_model("run", max_length=200)


def test_positions_and_attention_are_adapted_together(
    command: Command, tmp_path: Path, tiny_model: Folder
) -> None:
    (tmp_path / "corpus.txt").write_text("\n".join(tiny.corpus()[:80]))
    made = command(
        "adapt", tiny_model("bert"), "--corpus", "corpus.txt", "--attention", "whole", "-o", "window=8",
        "--max-length", 120, "--positions", "interpolate", "--steps", 3, "--batch-size", 2,
        "--distill", "--output", "long", "--json",
    )  # fmt: skip
    assert made.json["length"] == 120
    backbone = load_model("long")
    assert backbone.encoder.max_length == 120
    assert backbone.placed is not None
    table = "bert.embeddings.position_embeddings.weight"
    assert backbone.parameters[table].shape == (120, 32)
