"""`promptforge predict`: every format in and out, streaming, interrupted and resumed."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from promptforge import Task, artifact, load_model
from promptforge.cli.predict import warn_cuts
from promptforge.data import read_rows
from promptforge.model import PromptModel
from promptforge.progress import Reporter
from promptforge.truncation import CutCounter
from promptforge.tuning.members import Ensemble

Command = Callable[..., Any]
Folder = Callable[[str], Path]
Row = dict[str, Any]


@pytest.fixture
def rows(reviews: Path) -> list[Row]:
    texts = [row["text"] for row in read_rows(reviews / "unlabeled.csv")][:30]
    return [{"id": f"r{i}", "text": t, "note": 'a, "b"\n' * (i % 2)} for i, t in enumerate(texts)]


def write(rows: list[Row], path: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as handle:
            out = csv.DictWriter(
                handle, list(rows[0]), delimiter="," if path.suffix == ".csv" else "\t"
            )
            out.writeheader()
            out.writerows(rows)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_file(path, table.schema) as sink:
            sink.write_table(table)
    return path


def same(read: list[Row], rows: list[Row]) -> None:
    """Columns and order are kept, and the prediction is the most probable label."""
    added = ["prediction", "probability_negative", "probability_positive"]
    assert [list(row) for row in read] == [[*rows[0], *added]] * len(rows)
    assert [{k: row[k] for k in rows[0]} for row in read] == rows
    for row in read:
        negative, positive = (float(row[f"probability_{x}"]) for x in ("negative", "positive"))
        assert negative + positive == pytest.approx(1, abs=1e-5)
        assert row["prediction"] == ("positive" if positive > negative else "negative")


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet", "arrow"])
def test_formats(
    command: Command, tiny_model: Folder, reviews: Path, rows: list[Row], ending: str
) -> None:
    base = ("predict", reviews, "--model", tiny_model("bert"), "--pattern", "it-was", "--chunk", 7)
    source = write(rows, Path(f"in.{ending}"))
    assert command(*base, "--data", source, "-O", f"out.{ending}").code == 0
    same(read_rows(f"out.{ending}"), rows)
    other = "out.jsonl" if ending != "jsonl" else "out.parquet"
    assert command(*base, "--data", source, "--output", other).code == 0
    same(read_rows(other), rows)
    assert sorted(p.name for p in Path().iterdir() if "partial" in p.name) == []


@pytest.mark.parametrize("architecture", ["gpt2", "t5"])
def test_to_standard_output(
    command: Command, tiny_model: Folder, reviews: Path, rows: list[Row], architecture: str
) -> None:
    base = ("predict", reviews, "--model", tiny_model(architecture), "--pattern", "it-was",
            "--data", write(rows, Path("in.csv")))  # fmt: skip
    ran = command(*base)
    assert ran.code == 0, ran.err
    same(list(csv.DictReader(io.StringIO(ran.out, newline=""))), rows)
    lines = command(*base, "--format", "jsonl").out
    same([json.loads(line) for line in lines.splitlines()], rows)
    tabs = command(*base, "--format", "tsv").out
    same(list(csv.DictReader(io.StringIO(tabs, newline=""), delimiter="\t")), rows)


def test_one_warning_for_all_cut_rows(
    command: Command, tiny_model: Folder, reviews: Path, rows: list[Row]
) -> None:
    long = [{"text": "good " * (500 if i % 3 == 0 else 3)} for i in range(30)]
    base = ("predict", reviews, "--model", tiny_model("bert"), "--chunk", 4)
    ran = command(*base, "--pattern", "it-was", "--data", write(long, Path("long.csv")))
    warnings = [line for line in ran.err.splitlines() if line.startswith("Warning")]
    assert len(warnings) == 1
    assert re.search(r"10 of 30 rows were cut to fit 64 tokens, in all: text by \d+", warnings[0])
    two = ("--pattern", "it-was", "--pattern", "tone", "--data", "long.csv")
    ran = command(*base, *two)
    assert "10 of 30 (pattern it-was), 10 of 30 (pattern tone) rows were cut" in ran.err
    drawn = ("--pattern", "it-was", "--demonstrations", "random", "--samples", 2)
    ran = command(*base, *drawn, "--data", "long.csv")
    assert re.search(r"\d+ of 60 prompts were cut", ran.err), ran.err


def test_every_model_of_an_ensemble_is_cut_to_max_length(
    command: Command, tiny_model: Folder, reviews: Path
) -> None:
    task = Task.load(reviews)
    members = {
        name: PromptModel(load_model(str(tiny_model(architecture))), task.choose([name]))
        for name, architecture in (("it-was", "bert"), ("tone", "roberta"))
    }
    artifact.save(Ensemble(members), "both", {"task": task.to_json()})
    source = write([{"text": "good " * (3 if i % 3 else 40)} for i in range(9)], Path("long.csv"))
    ran = command("predict", "both", "--data", source, "--max-length", 20, "-O", "out.csv")
    assert ran.code == 0, ran.err
    warnings = [line for line in ran.err.splitlines() if line.startswith("Warning")]
    assert len(warnings) == 1
    told = r"3 of 9 \(pattern it-was\), 3 of 9 \(pattern tone\) rows were cut to fit 20 tokens"
    assert re.search(told, warnings[0])
    long = command("predict", "both", "--data", source, "--max-length", 65, "-O", "out.csv")
    assert long.code == 2
    assert "--max-length 65: both takes at most 64 tokens" in long.err


def test_a_cut_is_said_with_the_limit_that_it_was_made_for() -> None:
    """Of models with different limits, and not of one that read and cut nothing."""
    counters = [CutCounter() for _ in range(4)]
    for one, limit, cut in zip(counters, (64, 16, 16, 512), (2, 5, 0, 0), strict=True):
        one.cut_limit = limit
        one.read_rows["a"] = 40
        if cut:
            one.cut_rows["a"], one.cut["text"] = cut, 9
    told: list[str] = []
    report = Reporter()
    report.warn = told.append  # type: ignore[method-assign]
    warn_cuts(counters[:2], 40, report)
    assert told == [
        "5 of 40 rows were cut to fit 16 tokens, in all: text by 9 tokens.",
        "2 of 40 rows were cut to fit 64 tokens, in all: text by 9 tokens.",
    ]
    told.clear()
    warn_cuts([counters[1], counters[3]], 40, report)
    assert told == ["5 of 40 rows were cut to fit 16 tokens, in all: text by 9 tokens."]


def test_label_words_of_a_search_without_a_task(
    command: Command, tiny_model: Folder, reviews: Path, rows: list[Row]
) -> None:
    model = ("--model", tiny_model("bert"))
    template = ("--template", "{{ text }} It was {{ mask }}")
    command("search-verbalizer", "--data", reviews / "train.csv", *template, *model)
    base = (*template, *model, "--verbalizer", "verbalizer.json")
    ran = command("predict", "--data", write(rows, Path("in.csv")), *base)
    same(list(csv.DictReader(io.StringIO(ran.out, newline=""))), rows)
    assert command("evaluate", "--data", reviews / "dev.csv", *base).code == 0


# --- in a process of its own -------------------------------------------------------------------


MANY = 600


def start(*args: object, **kwargs: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "promptforge", *map(str, args)],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs,
    )  # fmt: skip


@pytest.fixture
def many(command: Command, reviews: Path, tiny_model: Folder, rows: list[Row]) -> tuple[Any, ...]:
    """A command that takes a while: MANY rows, 25 at a time."""
    copies = rows * (MANY // len(rows))
    write([{**row, "id": str(i)} for i, row in enumerate(copies)], Path("many.csv"))
    return ("predict", reviews, "--model", tiny_model("bert"), "--pattern", "it-was",
            "--data", "many.csv", "--chunk", 25)  # fmt: skip


def interrupted(process: subprocess.Popen[str], journal: Path, sign: signal.Signals) -> str:
    """Stop the process after some chunks; its standard error."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if json.loads(journal.read_text(encoding="utf-8"))["rows"] >= 100:
                break
        except (OSError, ValueError):
            pass
        time.sleep(0.01)
    process.send_signal(sign)
    return process.communicate(timeout=60)[1]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_interrupted_and_resumed(command: Command, many: tuple[Any, ...], rows: list[Row]) -> None:
    journal, partial = Path("part.csv.partial.json"), Path("part.csv.partial")
    process = start(*many, "-O", "part.csv")
    errors = interrupted(process, journal, signal.SIGINT)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "go on with --resume" in errors
    done = json.loads(journal.read_text(encoding="utf-8"))["rows"]
    assert 100 <= done < MANY
    assert not Path("part.csv").exists()
    safe = partial.read_bytes()[: json.loads(journal.read_text(encoding="utf-8"))["bytes"]]
    assert len(list(csv.reader(io.StringIO(safe.decode(), newline="")))) == done + 1

    other = command(*many, "-O", "part.csv", "--resume", "--max-length", 50)
    assert other.code == 2
    assert "other input or options" in other.err
    # Killed, not only interrupted, the second time.
    process = start(*many, "-O", "part.csv", "--resume")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if json.loads(journal.read_text(encoding="utf-8"))["rows"] > done:
            break
        time.sleep(0.01)
    process.kill()
    process.communicate()
    ran = command(*many, "-O", "part.csv", "--resume")
    assert ran.code == 0, ran.err
    assert "Going on after" in ran.err
    assert command(*many, "-O", "whole.csv").code == 0
    assert Path("part.csv").read_bytes() == Path("whole.csv").read_bytes()
    ids = [row["id"] for row in read_rows("part.csv")]
    assert ids == [str(i) for i in range(MANY)]
    assert not list(Path().glob("*.partial*"))


@pytest.mark.skipif(sys.platform == "win32", reason="pipes")
def test_the_reader_of_the_output_goes_away(many: tuple[Any, ...]) -> None:
    process = start(*many)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("id,text,note,prediction")
    process.stdout.close()
    assert process.stderr is not None
    errors = process.stderr.read()
    assert process.wait(timeout=60) in (0, 1)
    assert "Traceback" not in errors
    assert "Broken" not in errors
    assert "Error" not in errors


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["1", ""])
def test_a_full_disk_behind_standard_output(unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "promptforge", "templates", "list", "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
