"""Input that looks wrong and is not: it works, and what was cut or repeated is counted."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
Folder = Callable[[str], Path]
FAMILIES = ("bert", "gpt2", "t5")
MARKERS = (
    "[MASK] [CLS] [SEP] [PAD] [UNK]",
    "<mask> <s> </s> <pad> <unk>",
    "<|endoftext|> <extra_id_0> <extra_id_9>",
    "{{ 7 * 7 }} {% raw %} {# note #} ||| \\n",
    "good[MASK]film</s>or<extra_id_0>not<|endoftext|>",
)


@pytest.fixture(params=FAMILIES)
def base(request: pytest.FixtureRequest, tiny_model: Folder, reviews: Path) -> tuple[Any, ...]:
    """The options that every command here takes, for each family."""
    return (reviews, "--pattern", "it-was", "--model", tiny_model(request.param))


def table(texts: list[str], name: str = "in.csv", labels: str = "positive negative") -> Path:
    both = labels.split()
    with Path(name).open("w", encoding="utf-8", newline="") as handle:
        out = csv.writer(handle)
        out.writerow(["text", "label"])
        out.writerows([text, both[i % 2]] for i, text in enumerate(texts))
    return Path(name)


def predictions(ran: Any) -> list[dict[str, str]]:
    assert ran.code == 0, ran.err
    return list(csv.DictReader(io.StringIO(ran.out, newline="")))


def test_a_byte_order_mark(command: Command, base: tuple[Any, ...]) -> None:
    plain = table(["good", "bad"])
    Path("bom.csv").write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    assert command("predict", *base, "--data", "bom.csv").out == command(
        "predict", *base, "--data", plain
    ).out  # fmt: skip


def test_a_cell_of_ten_megabytes(command: Command, base: tuple[Any, ...]) -> None:
    big = "a good film, " * 800_000
    ran = command("predict", *base, "--data", table([big, "short"]), "-O", "out.jsonl")
    assert ran.code == 0, ran.err
    assert re.search(r"1 of 2 rows were cut to fit \d+ tokens, in all: text by \d+", ran.err)
    lines = Path("out.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0])["text"] == big
    assert len(lines) == 2


def test_texts_that_are_too_long(command: Command, base: tuple[Any, ...]) -> None:
    source = table(["a good film " * 100, "fine", "a bad film " * 100])
    limit = ("--max-length", 40)  # T5 knows no limit of its own
    ran = command("evaluate", *base, *limit, "--data", source)
    assert ran.code == 0
    (warning,) = [line for line in ran.err.splitlines() if "cut" in line]
    assert "2 of 3 rows were cut to fit 40 tokens (pattern it-was: text by " in warning
    assert "cut: " in command("render", *base, *limit, "--data", source).out


@pytest.mark.parametrize("strategy", ["prompt", "finetune", "ensemble"])
def test_what_training_cuts_is_told_once(
    command: Command, base: tuple[Any, ...], strategy: str
) -> None:
    source = table(["a good film " * 100] * 4 + ["a bad film"] * 4)
    for split in ("train", "dev", "test"):
        shutil.copy(source, base[0] / f"{split}.csv")
    ran = command(
        "train", *base, "--strategy", strategy, "--steps", 2,
        "--max-length", 40, "--run", "run", *(("-o", "strategy.repetitions=2") if strategy == "ensemble" else ()),
    )  # fmt: skip
    assert ran.code == 0, ran.err
    cut = [line for line in ran.err.splitlines() if "were cut" in line]
    training = [line for line in cut if line.startswith("Warning: Training: ")]
    said = "4 of 8 rows were cut to fit 40 tokens"
    assert len(training) == 1 and said in training[0], cut
    measured = [line for line in cut if "Measuring on " in line]
    assert measured and all(said in line for line in measured), cut
    assert len(cut) == len(training) + len(measured), cut
    ran = command("predict", "run", "--data", source, "--chunk", 3, "-O", "out.csv")
    (warning,) = [line for line in ran.err.splitlines() if "were cut" in line]
    assert re.search(r"(4 of 8 rows|8 of 16 prompts) were cut", warning)


def test_what_workers_warn_of_is_told_once_too(
    command: Command, tiny_model: Folder, reviews: Path
) -> None:
    table([f"film {i} is good " * 100 for i in range(8)]).replace(reviews / "train.csv")
    told = "rows were cut to fit 40 tokens (pattern it-was: text by "
    base = ("--model", tiny_model("bert"), "--pattern", "it-was", "--steps", 1, "--max-length", 40)
    for args in (
        ("train", reviews, *base, "--strategy", "ensemble", "-o", "strategy.repetitions=2"),
        ("compare", reviews, *base, "--strategy", "prompt", "--seeds", "1,2", "--shots", 2),
    ):
        ran = command(*args, "--jobs", 2)
        assert ran.code == 0, ran.err
        training = [line for line in ran.err.splitlines() if "Training: " in line and told in line]
        assert len(training) == 1 and training[0].startswith("Warning: "), ran.err
        assert "UserWarning" not in ran.err, ran.err


def test_prompts_and_whole_texts_that_are_cut(command: Command, base: tuple[Any, ...]) -> None:
    source = table(["a good film " * 100] * 4 + ["a bad film"] * 4)
    for split in ("train", "dev", "test"):
        shutil.copy(source, base[0] / f"{split}.csv")
    both = ("--strategy", "ensemble", "-o", 'strategy.also=["finetune"]', "--max-length", 40)
    command("train", *base, *both, "--steps", 2, "--run", "run")
    ran = command("predict", "run", "--data", source, "-O", "out.csv")
    assert "4 of 8 (pattern it-was), 4 of 8 (whole texts) rows were cut" in ran.err


def test_rows_that_repeat(command: Command, base: tuple[Any, ...]) -> None:
    source = table(["good", "bad", "good", "bad", "bad"])
    ran = command("evaluate", *base, "--data", source)
    assert ran.code == 0
    assert "in.csv: 2 rows repeat an earlier row and its label (row 3 repeats row 1)" in ran.err
    assert "1 rows repeat an earlier row with a different label (row 5 and row 2)" in ran.err
    assert len(predictions(command("predict", *base, "--data", source))) == 5


@pytest.mark.parametrize("marker", MARKERS)
def test_data_that_look_like_markers(command: Command, base: tuple[Any, ...], marker: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base[-1])
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert special

    def specials(text: str) -> list[int]:
        (made,) = command("render", *base, "--json", "--set", f"text={text}").json
        assert "".join(p["text"] for p in made["parts"] if p.get("source") == "text") == text
        assert [p["part"] for p in made["parts"]].count("mask") == 1
        return [t for t in (*made["ids"], *made["decoder_ids"]) if t in special]

    assert specials(marker) == specials("plain words")


def test_markers_go_through_every_command(command: Command, base: tuple[Any, ...]) -> None:
    source = table([*MARKERS, "good", "bad", "fine"])
    rows = predictions(command("predict", *base, "--data", source))
    assert [row["text"] for row in rows][: len(MARKERS)] == list(MARKERS)
    assert command("evaluate", *base, "--data", source).code == 0
    ran = command("search-verbalizer", *base, "--data", source, "--json", "--shots", 2)
    assert ran.code == 0, ran.err
    found = ran.json["verbalizer"]["patterns"]["it-was"]
    assert not [w for words in found.values() for w in words if w in " ".join(MARKERS[:3]).split()]


def test_odd_values(command: Command, base: tuple[Any, ...]) -> None:
    rows = [{"text": "a\u2028b\x85c", "n": 1.5, "more": ["x"]}, {"text": 5, "n": None, "more": {}},
            {"text": "👍🏽 ﷽ e\u0301 \u200b", "n": True, "more": None}]  # fmt: skip
    Path("odd.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for name in ("out.jsonl", "out.parquet", "out.csv"):
        ran = command("predict", *base, "--data", "odd.jsonl", "-O", name)
        assert ran.code == 0, ran.err
    out = [
        json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    ]
    assert [{k: row[k] for k in rows[0]} for row in out] == rows
