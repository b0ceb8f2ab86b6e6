"""Files that a command reads are not written over, and rows of other data are not mixed with a resumed run's."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
Folder = Callable[[str], Path]


def table(name: str, *rows: tuple[str, str]) -> Path:
    with Path(name).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return Path(name)


@pytest.mark.parametrize("shown", ["unlabelled rows", "demonstrations", "the model"])
def test_a_resumed_run_reads_what_it_read_before(
    shown: str, command: Command, reviews: Path, tiny_model: Folder
) -> None:
    model = Path(shutil.copytree(tiny_model("bert"), "model"))
    task = Path(shutil.copytree(reviews, "task"))
    unlabeled = table("unlabeled.csv", ("a film", ""), ("dull", ""))
    many = table("many.csv", *(("a fine film", "positive") for _ in range(6)))
    asked = [
        "predict",
        task,
        "--pattern",
        "it-was",
        "--model",
        model,
        "--data",
        many,
        "--output",
        "o.csv",
    ]
    asked += {
        "unlabelled rows": ["--calibration", "batch", "--unlabeled", unlabeled],
        "demonstrations": ["--demonstrations", "fixed"],
        "the model": [],
    }[shown]
    asked += ["--chunk", 2]
    # An interrupted run, as it leaves its files: four rows are safe.
    from promptforge.output import RowWriter

    written = RowWriter.write
    calls: list[int] = []

    def stops(self: RowWriter, rows: Any) -> None:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(rows))
        written(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RowWriter, "write", stops)
        assert command(*asked).code == 130
    if shown == "unlabelled rows":
        table("unlabeled.csv", ("another film", ""), ("dull and long", ""))
    elif shown == "demonstrations":
        with (task / "train.csv").open("a", encoding="utf-8") as file:
            file.write("one more,positive\n")
    else:
        (model / "notes.txt").write_text("changed", encoding="utf-8")
    ran = command(*asked, "--resume")
    assert ran.code == 2 and "other input or options" in ran.err
    assert not Path("o.csv").exists()


def test_no_command_writes_over_a_table_that_it_reads(
    command: Command, reviews: Path, tiny_model: Folder
) -> None:
    task = Path(shutil.copytree(reviews, "task"))
    model = ("--model", tiny_model("bert"))
    rows = table("rows.csv", ("a fine film", "positive"), ("dull", "negative"))
    before = {
        path: path.read_bytes() for path in (rows, task / "train.csv", task / "unlabeled.csv")
    }
    template = ("--template", "{{ text }} It was {{ mask }}", "--text-column", "text")
    for asked, told in (
        (("search-verbalizer", *template, "--data", rows, "--output", rows), "rows.csv is the input, --data"),
        (("search-verbalizer", task, "--output", task / "train.csv"), "is the task's train"),
        (("predict", task, "--data", rows, "--output", task / "unlabeled.csv"), "is the task's unlabeled"),
        (("predict", task, "--data", rows, "--output", rows), "is the input"),
    ):  # fmt: skip
        ran = command(*asked, *model)
        assert ran.code == 2 and told in ran.err, ran.err
    assert all(path.read_bytes() == bytes_ for path, bytes_ in before.items())


def test_a_search_replaces_its_own_templates_alone(
    command: Command, reviews: Path, tiny_model: Folder
) -> None:
    Path("made").mkdir()
    for name in ("lm-bff-1", "lm-bff-1-mine", "lm-bff-2024"):
        Path("made", f"{name}.jinja").write_text("mine", encoding="utf-8")
    ran = command("search-template", reviews, "--model", tiny_model("bert"), "--output", "made", "--keep", 1,
                  "--shots", 2, "--force", "-o", "template-search.beam=2", "-o", "template-search.candidates=2")  # fmt: skip
    assert ran.code == 0, ran.err
    kept = {path.stem: path.read_text(encoding="utf-8") for path in Path("made").glob("*.jinja")}
    assert kept["lm-bff-1"] != "mine"
    assert kept["lm-bff-1-mine"] == kept["lm-bff-2024"] == "mine"


def test_unlabelled_rows_that_nothing_reads(
    command: Command, reviews: Path, tiny_model: Folder
) -> None:
    model = ("--model", tiny_model("bert"), "--unlabeled", "nowhere.csv")
    for asked in (
        ("evaluate", reviews, "--pattern", "it-was"),
        ("evaluate", reviews, "--pattern", "it-was", "--calibration", "contextual"),
        ("predict", reviews, "--pattern", "it-was", "--data", reviews / "test.csv"),
        ("search-verbalizer", reviews, "--pattern", "it-was"),
    ):
        ran = command(*asked, *model)
        assert ran.code == 2 and "--unlabeled nowhere.csv" in ran.err, ran.err
    Path("forge.toml").write_text('[evaluate]\nunlabeled = "nowhere.csv"\n', encoding="utf-8")
    assert command("evaluate", reviews, "--pattern", "it-was", *model[:2]).code == 0


def test_demonstrations_without_a_task_say_what_has_them(
    command: Command, tiny_model: Folder
) -> None:
    rows = table("rows.csv", ("a fine film", "positive"), ("dull", "negative"))
    ran = command("evaluate", "--template", "{{ text }} {{ mask }}", "--text-column", "text", "--data", rows,
                  "--demonstrations", "bm25", "--model", tiny_model("bert"))  # fmt: skip
    assert ran.code == 2 and "name a TASK that has a train table" in ran.err, ran.err
