"""Soft prompts: what is refused and how it is said; the methods on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import plain_tuning as plain
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from test_soft_prompts import PATTERN, refused, tuner
from torch import Tensor

from promptforge import Task, Template, artifact
from promptforge.errors import PromptForgeError
from promptforge.plugins import build
from promptforge.tuning.tuner import Member


def test_soft_tokens_that_no_method_trains_are_warned_of() -> None:
    said: list[str] = []
    made = tuner(tiny.backbone("bert"))
    made.report.warn = said.append  # type: ignore[method-assign]
    made.method = build("method", "bitfit")
    made.member(Member("m", made.targets(), "p", made.seed))
    assert any("'a', 'soft 0'" in text and "--method prompt-tuning" in text for text in said)
    said.clear()
    made.method = build("method", "p-tuning")
    made.member(Member("n", made.targets(), "p", made.seed))
    assert not any("soft tokens" in text for text in said)


@pytest.mark.parametrize(
    ("pattern", "options", "parts"),
    [
        ("{{ text }} {{ mask }}", {"tokens": 0}, ["no soft tokens", "tokens=0"]),
        ("{{ text }} {{ mask }}", {"init": "text"}, ["init=text", "option text"]),
        ("{{ text }} {{ soft(n=2) }} {{ mask }}", {"init": "labels"}, ["init and text", "tokens=10"]),
        ("{{ text }} {{ mask }}", {"text": "good or bad"}, ["init is vocabulary", "init=text"]),
        ("{{ text }} {{ mask }}", {"init": "text", "text": "\u200b"}, ["no token for text='\\u200b'", "words"]),
        ('{{ text }} {{ soft("\u200b") }} {{ mask }}', {}, ["soft prompt", "no token", "number of tokens"]),
        ("{{ text }} {{ mask }}", {"tokens": 70}, ["70 soft tokens", "takes 64"]),
        ("{{ soft(n=70) }} {{ text }} {{ mask }}", {}, ["70 soft tokens", "takes 64"]),
        ('{{ soft(n=3, id="a") }} {{ text }} {{ soft(n=2, id="a") }} {{ mask }}', {},
         ["'a'", "3 tokens", "2 in another", "equally long"]),
        ('{{ soft(n=3, id="opening") }} {{ text }} {{ mask }}', {}, ["opening", "another id"]),
    ],
)  # fmt: skip
def test_soft_prompts_that_cannot_be(
    pattern: str, options: dict[str, Any], parts: Sequence[str]
) -> None:
    def train() -> None:
        made = tuner(tiny.backbone("bert"), pattern)
        made.method = build("method", "prompt-tuning", **options)
        made.member(Member("m", made.targets(), "p", made.seed))

    refused(train, *parts)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"init": "random", "text": "good or bad"}, ["'prefix'", "init is random", "init=text"]),
        ({"init": "labels", "text": "good or bad"}, ["'prefix'", "init is labels"]),
        ({"init": "text"}, ["init=text needs"]),
        ({"hidden": 8}, ["hidden", "mlp=true"]),
    ],
)
def test_options_of_a_prefix_that_would_do_nothing(
    options: dict[str, Any], parts: Sequence[str]
) -> None:
    made = tuner(tiny.backbone("bert"))
    made.method = build("method", "prefix", **options)
    refused(lambda: made.member(Member("m", made.targets(), "p", made.seed)), *parts)


def test_label_words_to_start_from_are_asked_for() -> None:
    made = tuner(tiny.backbone("bert"))
    method = build("method", "prompt-tuning", init="labels", tokens=4)
    refused(
        lambda: method.add(made.backbone, plain.encoded(made), {}), "init=labels", "label words"
    )
    made.method = method
    refused(lambda: made.member(Member("m", made.targets(), None, 1)), "init=labels")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"parametrization": "mpl"}, ["'mpl'", "Did you mean 'mlp'"]),
        ({"parametrization_options": {"hidden": 4}}, ["parametrization 'plain'", "'hidden'"]),
        ({"parametrization": "lstm", "parametrization_options": {"hiden": 4}}, ["Did you mean 'hidden'"]),
        ({"model": "al"}, ["method called 'al'"]),
    ],
)  # fmt: skip
def test_options_are_checked_before_a_model_loads(
    options: dict[str, Any], parts: Sequence[str]
) -> None:
    refused(lambda: build("method", "prompt-tuning", **options), *parts)


def test_a_method_that_trains_nothing_of_the_model_cannot_be_its_model_option() -> None:
    made = tuner(tiny.backbone("bert"))
    made.method = build("method", "prompt-tuning", model="prefix")
    refused(lambda: made.member(Member("m", made.targets(), "p", 1)), "model=prefix", "all, bitfit")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """An artifact of prompt tuning on the tiny BERT."""
    made = tuner(tiny.backbone("bert"))
    made.method = build("method", "prompt-tuning", tokens=3)
    artifact.save(made.member(Member("m", made.targets(), "p", 1)), tmp_path / "made")
    made.backbone.apply(None)
    return tmp_path / "made"


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors of an artifact, and its checksum with them."""
    path, file = folder / "weights.safetensors", folder / "artifact.json"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"promptforge": "{}"})
    data = json.loads(file.read_text())
    data["sha256"] = artifact.sha256(path)
    file.write_text(json.dumps(data))


def test_an_artifact_on_another_model_is_refused(kept: Path) -> None:
    other = tiny.backbone("roberta")
    refused(lambda: artifact.load(kept, backbone=other), "tuned from", "Load the model")


def test_damaged_artifacts_are_refused(kept: Path) -> None:
    def load() -> None:
        artifact.load(kept, backbone=tiny.backbone("bert"))

    whole = (kept / "weights.safetensors").read_bytes()
    (kept / "weights.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(load, "weights.safetensors", "damaged", kind=PromptForgeError)
    (kept / "weights.safetensors").write_bytes(whole)
    load()
    rewritten(kept, lambda tensors: tensors["added/soft/a"][0].fill_(torch.nan))
    refused(load, "no numbers", "added/soft/a", kind=PromptForgeError)


@pytest.mark.parametrize(
    "pattern",
    ["{{ text }} {{ mask }}", PATTERN.replace("n=3", "n=2"), PATTERN.replace("It was", "It")],
)
def test_an_artifact_with_a_changed_template_is_refused(kept: Path, pattern: str) -> None:
    file = kept / "artifact.json"
    data = json.loads(file.read_text())
    data["task"]["patterns"]["p"]["source"] = pattern
    file.write_text(json.dumps(data))
    backbone = tiny.backbone("bert")
    refused(
        lambda: artifact.load(kept, backbone=backbone), "templates", "changed after it was tuned"
    )


def test_vectors_are_not_read_in_a_template_they_were_not_tuned_for(kept: Path) -> None:
    made = artifact.load(kept, backbone=tiny.backbone("bert"))
    for pattern, key in ((PATTERN.replace("n=3", "n=2"), "soft 0"), (PATTERN.replace("id=\"a\"", "id=\"b\""), "b")):  # fmt: skip
        made.task = Task.inline([Template(pattern, name="p")], labels=made.task.labels)
        refused(lambda: made.predict([{"text": "a film"}]), repr(key), "the template was changed")


# --- the command line ----------------------------------------------------------------------


def test_plugins_lists_the_methods_and_what_vectors_are_computed_from(command: Any) -> None:
    shown = {p["name"]: p["provides"] for p in command("plugins", "list", "--json").json}
    assert shown["soft-prompts"] == [
        "method prompt-tuning", "method p-tuning", "parametrization plain", "parametrization mlp",
        "parametrization low-rank", "parametrization lstm",
    ]  # fmt: skip
    assert shown["prefix"] == ["method prefix"]
    for name in ("prompt-tuning", "p-tuning", "prefix", "lstm", "mlp", "low-rank"):
        (told,) = command("plugins", "show", name, "--json").json
        assert told["doc"] and all(len(o["description"]) > 10 for o in told["options"]), name


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("--method", "prefix", "-o", "method.length=5"), 2 * 2),
        (("--method", "p-tuning", "-o", "parametrization_options.hidden=8", "-o", "tokens=4"), 1),
        (("--method", "p-tuning", "-o", 'method.parametrization_options={"hidden": 8}'), 1),
    ],
)
def test_train_on_the_command_line(
    command: Any, reviews: Path, tiny_model: Any, options: tuple[str, ...], names: int
) -> None:
    ran = command("train", reviews, "--model", tiny_model("bert"), "--pattern", "it-was", "--shots", 4,
                  "--steps", 3, "--run", "made", *options)  # fmt: skip
    assert ran.code == 0, ran.err
    tensors = load_file(next(Path("made").rglob("weights.safetensors")))
    assert len(tensors) == names
    config = json.loads(Path("made/config.json").read_text())
    assert "hidden" in json.dumps(config) or "length" in json.dumps(config)
    table = reviews / "test.csv"
    assert command("predict", "made", "--data", table).code == 0


def test_a_wrong_option_on_the_command_line(command: Any, reviews: Path) -> None:
    ran = command("train", reviews, "--method", "p-tuning", "-o", "parametrization_options.hiden=8")
    assert ran.code == 2
    assert "Did you mean 'hidden'" in " ".join(ran.err.split())
    assert "Traceback" not in ran.err
