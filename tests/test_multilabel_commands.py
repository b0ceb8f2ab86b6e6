"""The commands on a multi-label task, and what they say of mistakes in it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from labelling import KIND, LABELS, QUESTION, films_folder
from sklearn import metrics

from promptforge import (
    LabelWords,
    MultiLabelModel,
    PromptModel,
    Task,
    load_model,
    search_verbalizer,
)

Command = Callable[..., Any]
Folder = Callable[[str], Path]


@pytest.fixture
def films(tmp_path: Path) -> Path:
    return films_folder(tmp_path)


def changed(folder: Path, old: str, new: str) -> Path:
    path = folder / "task.toml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    return folder


def test_words_for_the_answers_are_found(command: Command, tiny_model: Folder, films: Path) -> None:
    """They are those that the questions about the labels would find, measured by micro-F1."""
    task, base = Task.load(films), ("--model", tiny_model("bert"))
    found = command("search-verbalizer", films, *base, "--json").json
    questions = KIND.questions(task.examples("train"))
    model = PromptModel(load_model(str(tiny_model("bert"))), task.binary)
    words = search_verbalizer(model, questions)
    assert LabelWords.load("verbalizer.json").patterns == words.patterns
    made = MultiLabelModel(model.with_words(words), KIND)
    made.choose_threshold(task.examples("train"))
    expected = made.evaluate(task.examples("test"))["asks"]
    assert found["results"]["test"]["found"]["asks"]["micro_f1"] == expected.micro_f1
    shown = command("search-verbalizer", films, *base, "--shots", "3", "--search", "lm-bff",
                    "--rerank", "2", "--steps", "1")  # fmt: skip
    assert "Zero-shot micro-F1" in shown.out and "most frequent labels" in shown.out
    ran = command(
        "train", films, *base, "--verbalizer", "verbalizer.json", "--steps", "1", "--run", "w"
    )
    assert ran.code == 0, ran.err


def test_the_commands(command: Command, tiny_model: Folder, films: Path) -> None:
    base = ("--model", tiny_model("bert"))
    zero = command("evaluate", films, *base, "--json").json["asks"]
    assert zero["labels"] == list(LABELS) and zero["threshold"] == 0.5 and zero["rows"] == 16
    ran = command("train", films, *base, "--steps", "4", "--shots", "3", "--run", "r")
    assert ran.code == 0, ran.err
    for shown in ("micro-F1", "Hamming", "95 % interval", "zero-shot", "always the same"):
        assert shown in " ".join(ran.out.split())
    results = json.loads(Path("r/results.json").read_text(encoding="utf-8"))["results"]
    tuned = next(iter(results["test"]["tuned"].values()))
    measured = command("evaluate", "r", "--data", films / "test.csv", "--json").json["asks"]
    assert measured == tuned
    assert "micro-F1" in command("evaluate", "r", "--data", films / "test.csv").out
    # What is predicted: the labels whose probability reaches the threshold.
    table = films / "test.csv"
    told = list(csv.DictReader(command("predict", "r", "--data", table).out.splitlines()))
    lines = command("predict", "r", "--data", table, "--format", "jsonl").out.splitlines()
    listed = [json.loads(line) for line in lines]
    assert len(told) == len(listed) == 16
    for row, same in zip(told, listed, strict=True):
        wanted = [n for n in LABELS if float(row[f"probability_{n}"]) >= tuned["threshold"]]
        assert same["prediction"] == wanted and row["prediction"] == ";".join(wanted)
        assert row["topics"] == same["topics"]
    kind = Task.load(films).multi_label
    assert kind is not None
    examples = kind.examples([dict(row) for row in told], "topics", "told")
    truth = kind.indicator(examples)
    y = [[n in same["prediction"] for n in LABELS] for same in listed]
    assert metrics.f1_score(truth, y, average="micro", zero_division=0) == pytest.approx(
        measured["micro_f1"]
    )
    assert command("predict", "r", "--data", table, "-O", "out.parquet").code == 0
    kept = pd.read_parquet("out.parquet")["prediction"]
    assert [list(labels) for labels in kept] == [row["prediction"] for row in listed]
    assert command("runs", "list").code == 0


def test_a_prompt_asks_about_a_label(command: Command, tiny_model: Folder, films: Path) -> None:
    changed(films, 'label = "topics"', 'label = "label"')
    table = films / "test.csv"
    table.write_text("text,label\nWarm.,plot;cast\n", encoding="utf-8")
    for given, asked in ((), "price"), (("--set", "label=cast"), "cast"):
        made = command("render", films, "--no-tokens", "--json", *given).json[0]["parts"]
        assert [p["text"] for p in made if p.get("source")] == ["Warm.", asked]
    assert command("render", films, "--model", tiny_model("bert")).code == 0
    assert len(command("fill", films, "--model", tiny_model("bert"), "--json").json["asks"]) == 1


def test_a_threshold_that_dev_chose_stays_behind(
    command: Command, tiny_model: Folder, films: Path
) -> None:
    base = ("--model", tiny_model("bert"), "--steps", 1)
    assert command("train", films, *base, "--run", "r", "--method", "lora").code == 0
    threshold = json.loads(Path("r/artifact/artifact.json").read_text("utf-8"))["threshold"]
    assert threshold != 0.5  # else there is nothing to say
    for said in (command("merge", "r", "m"), command("export", "r", "e")):
        assert said.code == 0 and f"threshold = {threshold!r} below [multi_label]" in said.err
    measured = command("evaluate", "r", "--data", films / "test.csv", "--json").json["asks"]
    changed(films, 'separator = ";"', f'separator = ";"\nthreshold = {threshold!r}')
    merged = command("evaluate", films, "--model", "m", "--data", films / "test.csv", "--json").json
    assert merged["asks"]["micro_f1"] == pytest.approx(measured["micro_f1"])
    # Where the task says it, it goes along.
    assert command("train", films, *base, "--run", "own", "--method", "lora").code == 0
    assert "threshold" not in command("merge", "own", "m2").err


def test_demonstrations_and_calibration(command: Command, tiny_model: Folder, films: Path) -> None:
    base = ("evaluate", films, "--model", tiny_model("bert"), "--limit", 4, "--json")
    plain = command(*base).json["asks"]
    (films / "asks.jinja").write_text(
        "{% for d in demos %}{{ d.prompt }} {% endfor %}" + QUESTION, encoding="utf-8"
    )
    shown = command(*base, "--demonstrations", "random")
    assert shown.code == 0, shown.err
    batch = command(*base, "--calibration", "batch", "--unlabeled", films / "dev.jsonl")
    assert batch.json["asks"]["rows"] == plain["rows"] == 4


MISTAKES = {
    'separator = ";"': [
        ('separator = "o"', "multi_label.labels: 'plot' holds the separator 'o'"),
        ('separator = ""', "multi_label.separator is empty"),
        ("threshold = 2.0", "multi_label.threshold is 2; it must be between 0 and 1"),
        ("treshold = 0.5", "multi_label.treshold"),
        ("[scale]\nlow = 1\nhigh = 2", "scale: a task has [scale] or [multi_label], not both"),
    ],
    '["price", "plot", "cast"]': [
        ('["price"]', "multi_label.labels: name at least two labels"),
        ('["price", "plot", "plot"]', "multi_label.labels: 'plot' is there twice"),
        ('["price", " "]', "multi_label.labels: ' ' is empty or has spaces around it"),
        ('"price"', "multi_label.labels"),
        ('["price", "plot"]', "row 5, column 'topics': the label 'cast' is not one of the task's labels"),
        ('["price", "plot", "cast", "music"]', "has no row with the label 'music'"),
    ],
    "yes = [": [("maybe = [", "labels: with [multi_label] they are yes and no")],
    'inputs = ["text"]': [('inputs = ["text", "label"]', "columns.inputs: 'label' is the label that")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "message"), [(old, *case) for old, cases in MISTAKES.items() for case in cases]
)
def test_mistakes_in_the_task(
    command: Command, tiny_model: Folder, films: Path, old: str, new: str, message: str
) -> None:
    changed(films, old, new)
    ran = command("train", films, "--model", tiny_model("bert"), "--run", "r")
    told = " ".join(ran.err.replace("│", " ").split())
    assert ran.code == 2 and message in told and not Path("r").exists()
    assert ("task.toml" in told) != ("train.csv" in told)
    assert "Traceback" not in ran.err


def test_mistakes_in_the_rows_and_templates(
    command: Command, tiny_model: Folder, films: Path
) -> None:
    def refused(*args: object) -> str:
        ran = command("train", films, "--model", tiny_model("bert"), "--run", "r", *args)
        assert ran.code == 2 and "Traceback" not in ran.err
        return " ".join(ran.err.replace("│", " ").split())

    same = films / "same.csv"
    same.write_text("text,topics\na,price;plot;cast\nb,price;plot;cast\n", encoding="utf-8")
    assert "same.csv: every row has the same labels (price;plot;cast)" in refused("--data", same)
    other = films / "other.csv"
    other.write_text("text,topic\na,price\n", encoding="utf-8")
    assert "other.csv: row 1 has no label column 'topics'. Did you mean 'topic'" in refused(
        "--data", other
    )
    ran = command("search-template", films, "--model", tiny_model("bert"))
    assert ran.code == 2 and "[multi_label]" in ran.err
    (films / "asks.jinja").write_text("{{ text }} {{ mask }}", encoding="utf-8")
    assert "asks about no label: write {{ label }}" in refused()
