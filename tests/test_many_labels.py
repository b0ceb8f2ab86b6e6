"""Seventy-seven labels, their names as label words: training, measuring, predicting, and the cost."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import Cache

from promptforge import PromptModel, Task, Template
from promptforge.plugins import build
from promptforge.readout import Readout

Command = Callable[..., Any]
Folder = Callable[[str], Path]

THINGS = ("card", "money", "top up", "exchange rate", "cash", "PIN", "fee", "refund", "transfer",
          "balance", "app")  # fmt: skip
HAPPENINGS = ("lost", "late", "declined", "wrong", "pending", "how to change", "not working")
LABELS = [f"{thing} {happening}" for thing in THINGS for happening in HAPPENINGS]
SOURCE = "{{ text }} It is about {{ mask }}{{ tail('.') }}"


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """`train.csv` with two rows of each label, `test.csv` with one of every seventh."""
    for split, labels in (("train", LABELS * 2), ("test", LABELS[::7])):
        with (tmp_path / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows([f"{split} {i}, my {x}, please", x] for i, x in enumerate(labels))
    return tmp_path


@pytest.mark.parametrize("strategy", ["prompt", "finetune"])
def test_train_evaluate_and_predict(
    strategy: str,
    command: Command,
    tables: Path,
    tiny_model: Folder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    data = ("--data", tables / "train.csv", "--test", tables / "test.csv", "--template", SOURCE)
    options = ("--strategy", strategy, "--model", tiny_model("bert"), "--steps", 3)
    ran = command("train", *data, *options, "--run", "run")
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert len(lines) < 20 and max(map(len, lines)) <= 80
    assert "77 labels; lowest F1:" in " ".join(ran.out.split())
    assert len(LABELS) == 77 == len({x.split()[0] for x in LABELS}) * 7

    shown = command("evaluate", "run", "--data", tables / "test.csv")
    assert shown.code == 0, shown.err
    lines = shown.out.splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) < 77 + 12
    assert all(any(label in line for line in lines) for label in LABELS)
    assert "Most often taken for another:" in shown.out

    found = command("evaluate", "run", "--data", tables / "test.csv", "--json")
    (figures,) = found.json.values()
    assert sum(map(sum, figures["confusion"])) == 11 and len(figures["per_label"]) == 77
    assert found.out.count("\n") < 77 * 9  # a row of the matrix is one line

    predicted = command("predict", "run", "--data", tables / "test.csv", "--output", "out.csv")
    assert predicted.code == 0, predicted.err
    with Path("out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    accuracy = sum(row["prediction"] == row["label"] for row in rows) / len(rows)
    assert len(rows) == 11 and accuracy == pytest.approx(figures["accuracy"])
    assert sum(float(v) for k, v in rows[0].items() if k.startswith("probability_")) == (
        pytest.approx(1, abs=1e-4)
    )


def test_few_labels_keep_their_columns(command: Command, reviews: Path, tiny_model: Folder) -> None:
    shown = command("evaluate", reviews, "--model", tiny_model("bert"), "--pattern", "review")
    assert "as negative" in shown.out and "taken for another" not in shown.out


def _readout(backbone: Any) -> tuple[Readout, list[tuple[int, ...]]]:
    template = Template(SOURCE)
    texts = [" ".join(t.split()[:8]) for t in tiny.corpus()[:6]]
    encoded = backbone.encode([template.render({"text": t}) for t in texts], reserve=12)
    words = [tuple(backbone.text.word(label, space_before=True)) for label in LABELS]
    return Readout(backbone, encoded, backbone.states(encoded)), words


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_words_together_score_as_each_alone(architecture: str) -> None:
    backbone = tiny.backbone(architecture)
    readout, words = _readout(backbone)
    assert len({len(w) for w in words}) > 2
    together = readout.score(words)
    for i in range(0, 77, 6):
        torch.testing.assert_close(together[:, i], readout.score([words[i]])[:, 0], atol=1e-4, rtol=1e-4)  # fmt: skip


@pytest.mark.parametrize("architecture", tiny.SEQ2SEQ)
def test_an_encoder_reads_a_prompt_once_for_all_words(architecture: str) -> None:
    backbone = tiny.backbone(architecture)
    readout, words = _readout(backbone)
    seen: list[int] = []
    encoder = backbone.model.get_encoder()
    handle = encoder.register_forward_hook(lambda *a: seen.append(len(a[2].last_hidden_state)))
    readout.score(words)
    handle.remove()
    assert sum(seen) == 6


@pytest.mark.parametrize("architecture", tiny.CAUSAL)
def test_keys_and_values_are_copied_for_some_words_at_a_time(architecture: str) -> None:
    backbone = tiny.backbone(architecture)
    readout, words = _readout(backbone)
    expected = readout.score(words)
    most, tokens = 0, backbone.batch_tokens

    def rows(_: Any, args: Any, given: dict[str, Any]) -> None:
        nonlocal most
        if any(isinstance(value, Cache) for value in given.values()):
            most = max(most, given["attention_mask"].numel())

    handle = backbone.body.register_forward_pre_hook(rows, with_kwargs=True)
    try:
        readout.score(words)
        whole, most = most, 0
        backbone.batch_tokens = 64
        torch.testing.assert_close(readout.score(words), expected, atol=1e-4, rtol=1e-4)
    finally:
        backbone.batch_tokens = tokens
        handle.remove()
    assert most < whole / 2


def test_label_names_are_words_and_one_pass_trains_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masked models are trained on words of many lengths in one pass over each batch."""
    backbone = tiny.backbone("bert")
    task = Task.inline([Template(SOURCE, name="p")], labels=LABELS)
    assert task.words_for("p") == {label: [label] for label in LABELS}
    model = PromptModel(backbone, task)
    probabilities = model.predict_proba([{"text": "My card is lost"}] * 2)
    assert probabilities.shape == (2, 77) and probabilities.sum() == pytest.approx(2)
    readout, _ = _readout(backbone)
    made = build("verbalizer", "manual")
    made.bind(LABELS, task.words_for("p"), backbone, space_before=True)
    states, hidden, passes = backbone.read(readout.encoded), backbone.hidden, []

    def counting(batch: Any) -> torch.Tensor:
        passes.append(batch)
        return hidden(batch)

    monkeypatch.setattr(backbone, "hidden", counting)
    read = Readout(backbone, readout.encoded, states)
    loss = made.loss(read, torch.eye(77)[: len(read)], torch.ones(len(read)))
    assert loss.requires_grad and len(passes) == 1
