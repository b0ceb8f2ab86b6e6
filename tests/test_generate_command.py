"""`promptforge generate`, `train --objective generate`, `evaluate`: what they do, and bad input."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from generating import ROWS, task

from promptforge import Decoding, Generator, Settings, Task, Template, UserError, train_generator
from promptforge.backbone import load_model

Command = Callable[..., Any]
Folder = Callable[[str], Path]


def table(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """A task folder that generates, with its tables."""
    folder = tmp_path / "tables"
    folder.mkdir()
    table(folder / "train.csv", ROWS[:2])
    table(folder / "dev.csv", ROWS[2:])
    (folder / "equals.jinja").write_text("{{ table }} = {{ mask }}")
    (folder / "task.toml").write_text(
        'name = "tables"\n[columns]\ninputs = ["table"]\n[generate]\ntarget = "text"\n'
        '[data]\ntrain = "train.csv"\ndev = "dev.csv"\n'
    )
    return folder


@pytest.mark.parametrize("architecture", ["gpt2", "t5"])
def test_the_path_from_a_table_to_texts(
    command: Command, tables: Path, tiny_model: Folder, architecture: str
) -> None:
    model = tiny_model(architecture)
    made = command(
        "train", tables, "--objective", "generate", "--method", "prefix", "-o", "length=3",
        "-o", "decoding.max_new_tokens=6", "--model", model, "--steps", 4, "--json",
    ).json  # fmt: skip
    run = Path(made["run"])
    assert run == Path("runs/tables-generate-13")
    figures = made["results"]["dev"]
    assert set(figures) == {"zero-shot", "tuned"}
    assert figures["tuned"]["equals"]["perplexity"] > 1
    measured = command("evaluate", run, "--data", tables / "dev.csv", "--json").json["equals"]
    assert measured == pytest.approx(figures["tuned"]["equals"], abs=1e-4)
    other = table(Path("o.csv"), [{"table": r["table"], "said": r["text"]} for r in ROWS[2:]])
    again = command("evaluate", run, "--data", other, "--label-column", "said", "--json").json
    assert again["equals"] == pytest.approx(measured)
    listed = command("runs", "--json").json
    assert (listed[0]["figure"], listed[0]["strategy"]) == ("bleu", "generate")
    assert "BLEU" in command("runs").out
    shown = command("train", tables, "--objective", "generate", "--model", model, "--steps", 1,
                    "--method", "prompt-tuning", "--run", "other").out  # fmt: skip
    assert "ROUGE-L" in shown and "promptforge generate other" in shown

    data = table(Path("new.csv"), [{"id": str(i), "table": r["table"]} for i, r in enumerate(ROWS)])
    generator = Generator.load(run)
    wanted = generator.generate(ROWS)
    ran = command("generate", run, "--data", data)
    assert ran.code == 0, ran.err
    rows = list(csv.DictReader(ran.out.splitlines()))
    assert [list(row) for row in rows] == [["id", "table", "generated"]] * 3
    assert [row["generated"] for row in rows] == [" ".join(t.splitlines()) for t in wanted]
    documents = command(
        "generate", run, "--data", data, "--json", "--beams", 3, "--max-new-tokens", 4
    )
    beams = generator.generate(ROWS, Decoding(beams=3, max_new_tokens=4))
    assert [row["generated"] for row in documents.json] == beams
    pq.write_table(
        pa.table({"table": [r["table"] for r in ROWS], "x": [math.nan, math.inf, 1.5]}), "x.parquet"
    )
    numbers = command("generate", run, "--data", "x.parquet", "--json", "--max-new-tokens", 1)
    assert "NaN" not in numbers.out and [row["x"] for row in numbers.json] == [None, None, 1.5]
    command(
        "generate", run, "--data", data, "-O", "out.jsonl", "--sample", "--top-p", 0.9, "--chunk", 2
    )
    lines = [json.loads(line) for line in Path("out.jsonl").read_text("utf-8").splitlines()]
    assert [line["id"] for line in lines] == ["0", "1", "2"]


def test_a_nought_is_a_number(command: Command, tables: Path, tiny_model: Folder) -> None:
    model = tiny_model("gpt2")
    base = ("generate", tables, "--data", tables / "dev.csv", "--model", model, "--json")
    draws = (*base, "--sample", "--max-new-tokens", 12, "--seed")
    made = {seed: command(*draws, seed).json[0]["generated"] for seed in (0, 1, 13)}
    generator = Generator(load_model(str(model)), task())
    for seed, text in made.items():
        own = Decoding(sample=True, max_new_tokens=12, seed=seed)
        assert text == generator.generate(ROWS[2:], own)[0]
    assert len(set(made.values())) == 3
    refused = command(*base, "--length-penalty", 0)
    assert refused.code == 2 and "is for beams" in refused.err


def test_exits_are_for_labels(command: Command, tables: Path, tiny_model: Folder) -> None:
    line = ("train", tables, "--objective", "generate", "--model", tiny_model("gpt2"), "--steps", 1)
    assert command(*line, "--method", "prompt-tuning", "--run", "r").code == 0
    said = command("evaluate", "r", "--data", tables / "dev.csv", "--exit-policy", "confidence")
    assert said.code == 2 and "--exit-policy is for tasks with labels" in said.err


def test_a_model_writes_untrained(command: Command, tables: Path, tiny_model: Folder) -> None:
    model = tiny_model("gpt2")
    options = ("--model", model, "--max-new-tokens", 5, "--json")
    made = command("generate", tables, "--data", tables / "dev.csv", *options).json
    generator = Generator(load_model(str(model)), task())
    assert made[0]["generated"] == generator.generate(ROWS[2:], Decoding(max_new_tokens=5))[0]
    template = ("--template", "{{ table }} = {{ mask }}")
    assert command("generate", "--data", tables / "dev.csv", *template, *options).json == made
    measured = command("evaluate", tables, "--split", "dev", "--model", model, "--json").json
    assert measured["equals"]["loss"] == pytest.approx(generator.loss(ROWS[2:]), abs=1e-5)
    rendered = command("render", tables, "--model", model)
    assert rendered.code == 0 and "the music is good" in rendered.out


def test_an_interrupted_output_goes_on(
    command: Command, tables: Path, tiny_model: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = table(Path("new.csv"), [{"table": tiny.corpus()[i][:20]} for i in range(7)])
    options = ("generate", tables, "--data", data, "--model", tiny_model("gpt2"), "--chunk", 2,
               "--max-new-tokens", 4, "--sample")  # fmt: skip
    assert command(*options, "-O", "whole.csv").code == 0
    write = Generator.generate
    calls = 0

    def stop(self: Generator, *given: Any, **more: Any) -> list[str]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return write(self, *given, **more)

    monkeypatch.setattr(Generator, "generate", stop)
    ran = command(*options, "-O", "parts.csv")
    assert ran.code == 130 and "4 rows are safe" in ran.err
    assert not Path("parts.csv").exists()
    monkeypatch.setattr(Generator, "generate", write)
    assert command(*options, "-O", "parts.csv", "--resume").code == 0
    assert Path("parts.csv").read_bytes() == Path("whole.csv").read_bytes()


# --- bad input -----------------------------------------------------------------------------


def said(ran: Any) -> str:
    assert ran.code == 2 and "Traceback" not in ran.err, (ran.code, ran.err)
    return " ".join(ran.err.replace("│", " ").split())


def test_bad_input(
    command: Command,
    tables: Path,
    reviews: Path,
    tiny_model: Folder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpt2, bert = tiny_model("gpt2"), tiny_model("bert")

    def train(*more: Any, folder: Any = tables) -> str:
        return said(command("train", folder, "--objective", "generate", "--model", gpt2, *more))

    assert "masked language model does not write" in train("--model", bert)
    assert "'reviews' classifies" in train(folder=reviews).replace("movie-reviews", "reviews")
    assert "has no labels, it generates text" in said(command("train", tables, "--model", gpt2))
    assert "has no labels" in said(command("predict", tables, "--data", "x.csv"))
    assert "classifies" in said(command("generate", reviews, "--model", gpt2))
    for flags, expected in (
        (("--strategy", "pet"), "makes classifiers"),
        (("--shots", 4), "--shots is for tasks with labels"),
        (("--verbalizer", "soft"), "--verbalizer is for tasks with labels"),
        (("--class-weight", "balanced"), "--class-weight is for"),
        (("--learning-rate", 1e-3, "--learning-rate", 1e-2), "one learning rate"),
        (("-o", "decoding.beams=0"), "decoding.beams"),
        (("-o", "decoding.beam=2"), "Did you mean"),
        (("-o", "decoding.max_new_tokens=64"), "has room for 63"),
    ):
        assert expected in train(*flags, "--run", "bad"), flags
        assert not Path("bad/artifact").exists()
    missing = table(Path("missing.csv"), [{"table": "a", "words": "b"}])
    assert "has no column 'text'" in train("--data", missing)
    empty = table(Path("empty.csv"), [ROWS[0], {"table": "b", "text": " "}])
    assert "row 2 has no value in the column 'text'" in train("--data", empty)
    inline = ("--data", tables / "dev.csv", "--template", "{{ table }} = {{ mask }}", "--objective",
              "generate", "--model", gpt2)  # fmt: skip
    assert "--label-column" in said(command("train", *inline))
    inside = ("train", *inline[:2], "--template", "{{ table }} {{ text }} {{ mask }}", *inline[4:])
    assert "cannot be an input" in said(command(*inside, "--label-column", "text"))
    for flags, expected in (
        (("--sample", "--beams", 2), "choose one of the two"),
        (("--length-penalty", 2.0), "add two or more (--beams 4)"),
        (("--top-p", 0.5), "add sample"),
        (("--json", "-O", "x.csv"), "--json prints one document"),
        (("--json", "--format", "tsv"), "--json prints one document"),
        (("--format", "tsv", "-O", "x.csv"), "--format tsv is for standard output"),
    ):
        ran = command("generate", tables, "--data", tables / "dev.csv", "--model", gpt2, *flags)
        assert expected in said(ran), flags
    taken = table(Path("taken.csv"), [{"table": "a", "generated": "b"}])
    assert "already has a column 'generated'" in said(
        command("generate", tables, "--data", taken, "--model", gpt2)
    )
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    assert "pip install sacrebleu rouge-score" in train()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('[columns]\ninputs = ["table"]', "labels: a task has at least two, or [generate]"),
        ('[columns]\ninputs = ["table"]\n[generate]\ntarget = "table"', "cannot be one of columns.inputs"),
        ('[columns]\ninputs = ["table"]\nlabel = "x"\n[generate]\ntarget = "y"', "columns.label"),
        ('[columns]\ninputs = ["t"]\n[generate]\ntarget = "y"\n[labels]\na = ["b"]\nc = ["d"]', "labels"),
        ('[columns]\ninputs = ["table"]\n[generate]\ncolumn = "y"', "generate"),
    ],
)  # fmt: skip
def test_a_wrong_task_file(tables: Path, lines: str, expected: str) -> None:
    (tables / "task.toml").write_text(f'name = "tables"\n{lines}\n')
    with pytest.raises(UserError) as caught:
        Task.load(tables)
    assert expected in str(caught.value) and "task.toml" in str(caught.value)


def test_bad_input_from_python() -> None:
    backbone = tiny.backbone("gpt2")
    with pytest.raises(UserError, match="masked language model"):
        Generator(tiny.backbone("bert"), task())
    with pytest.raises(UserError, match="mask must come last"):
        Generator(tiny.backbone("t5"), task("{{ mask }} {{ table }}"))
    generator = Generator(backbone, task())
    with pytest.raises(UserError, match="Row 2 has no column 'table'"):
        generator.generate([ROWS[0], {"text": "x"}])
    with pytest.raises(UserError, match="Row 1 has no text in the column 'text'"):
        generator.losses([{"table": "x"}])
    with pytest.raises(UserError, match="no rows"):
        generator.generate([])
    with pytest.raises(UserError, match="no rows to train on"):
        train_generator(task(), [], backbone=backbone)
    two = Task.inline(
        [Template("{{ t }} {{ mask }}", name="a"), Template("{{ t }}: {{ mask }}", name="b")],
        labels={}, label_column="text", generates=True,
    )  # fmt: skip
    with pytest.raises(UserError, match="choose the one"):
        Generator(backbone, two)
    with pytest.warns(UserWarning, match="have the inputs of training rows"):
        train_generator(
            task(), ROWS, backbone=backbone, method="prefix", dev=ROWS,
            settings=Settings(steps=1), compare_untrained=False,
        )  # fmt: skip


def test_long_sources_and_texts_are_cut_with_a_warning() -> None:
    backbone = tiny.backbone("llama")
    generator = Generator(backbone, task(), room=8)
    long = {"table": " ".join(["time"] * 200), "text": "It was a great film. " * 10}
    with pytest.warns(UserWarning, match=r"1 of 1 rows were cut to fit 64 tokens \(table by"):
        (source,) = generator.sources([long])
    assert len(source.ids) == 64 - 8
    with pytest.warns(UserWarning, match="tokens of texts were cut, which do not fit"):
        (tokens,) = generator.tokens([source], [long])
    assert len(tokens) == 8 and generator.writer.end not in tokens
    # After a short prompt there is room for more than is written by default.
    (source,) = generator.sources(ROWS[:1])
    (tokens,) = generator.tokens([source], [{"text": "It was a great film. It was a great film."}])
    assert len(tokens) > 8 and tokens[-1] == generator.writer.end
