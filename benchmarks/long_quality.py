"""Answers on long inputs: full attention, a window with global tokens, and truncation to 512.

    python benchmarks/long_quality.py --data DIR --corpora DIR --output FILE.jsonl

Two tasks, each tuned and measured with the same rows by three readers: `full` (full attention),
`window` (the pattern of --attention with --window, masks and the template's own text global) and
`cut` (full attention over what fits into 512 tokens). The first two read --lengths tokens, the
model's positions extended by --positions.

planted  A sentence such as "The special fruit is a lemon." in plain text of --lengths tokens
         (--corpora holds *.txt or *.txt.xz; lines that name one of the fruits are left out). The
         template asks at its end; the sentence's distance to the question is swept. Tuned in two
         stages, on short texts and then on long ones, distances drawn log-uniformly. Truncation
         keeps the end of the text, where the question is.
imdb     Whole film reviews (DIR/imdb/train.csv and test.csv: text, label). Rows that have more than
         512 tokens are reported apart. Truncation keeps the beginning.

Each cell (task, length, reader, seed) is a line of --output; cells that are there are not made
again. At the end the table of all cells is printed: mean accuracy over the seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
import lzma
import math
import random
import statistics as st
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from promptforge import Backbone, Settings, Task, Template, load_model, train
from promptforge.data import Example
from promptforge.progress import TerminalReporter

FRUITS = ("apple", "banana", "cherry", "lemon", "orange", "peach")
PLANTED = "The special fruit is the {fruit}."
ASKED = "{{{{ text | truncate_here(side='left') }}}} The special fruit is the {{{{ mask }}}}{tail}"
REVIEW = "{{{{ text | truncate_here }}}} It was {{{{ mask }}}}{tail}"
TAIL = "{{ tail('.') }}"
CUT = 512
#: Tokens that the question and the special tokens may take.
ROOM = 24


def main() -> None:
    """Make the cells that are missing, and print them all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="holds imdb/train.csv and imdb/test.csv")
    add("--corpora", type=Path, help="plain text to plant the sentence in")
    add("--output", type=Path, required=True)
    add("--tasks", nargs="+", default=["planted", "imdb"], choices=["planted", "imdb"])
    add(
        "--readers", nargs="+", default=["full", "window", "cut"], choices=["full", "window", "cut"]
    )
    add("--model", default="minilm-mlm")
    add("--lengths", type=int, nargs="+", default=[4096])
    add("--positions", default="copy")
    add("--attention", default="longformer")
    add("--window", type=int, default=64)
    add("--seeds", type=int, nargs="+", default=[13, 21, 42])
    add("--method", default="all")
    add("--learning-rate", type=float, default=1e-4)
    add("--batch-size", type=int, default=8)
    add("--short", type=int, default=256, help="planted: most tokens of a text of the first stage")
    add("--short-steps", type=int, default=200)
    add("--long-steps", type=int, default=40)
    add("--fruits", type=int, default=4, help="planted: how many answers there are")
    add("--distances", type=int, nargs="+", default=[32, 128, 384, 768, 1536, 3072])
    add("--rows", type=int, default=50, help="planted: test rows at each distance")
    add("--imdb-rows", type=int, default=2000, help="training rows of imdb")
    add("--imdb-test", type=int, default=300, help="test rows of imdb, of each of long and short")
    add("--imdb-steps", type=int, default=250)
    add("--batch-tokens", type=int, default=16384)
    add(
        "--no-dropout", action="store_true",
        help="full attention with dropout takes 14 GB at 4,096 tokens on a CPU",
    )  # fmt: skip
    add("--threads", type=int, default=2)
    add("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    done = cells(args.output)
    for length in args.lengths:
        for task in args.tasks:
            for reader in args.readers:
                for seed in args.seeds:
                    key = [task, args.model, length, reader, seed]
                    if key not in [c["key"] for c in done]:
                        made = {"key": key, "dropout": not args.no_dropout}
                        made |= CELLS[task](args, length, reader, seed)
                        done.append(made)
                        args.output.parent.mkdir(parents=True, exist_ok=True)
                        with args.output.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(made) + "\n")
                        print(json.dumps(made), flush=True)
    table(done)


def cells(path: Path) -> list[dict[str, Any]]:
    """The cells that were made before."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def model(args: argparse.Namespace, length: int, reader: str) -> Backbone:
    """The model as a reader has it."""
    common = {"device": args.device, "batch_tokens": args.batch_tokens}
    if reader == "cut":
        return load_model(args.model, max_length=min(CUT, length), **common)
    pattern = (
        {"attention": args.attention, "attention_options": {"window": args.window}}
        if reader == "window"
        else {}
    )
    return load_model(args.model, max_length=length, positions=args.positions, **common, **pattern)


def settings(args: argparse.Namespace, steps: int, rows: int) -> Settings:
    """As many steps as asked for; a batch of long rows is computed row by row."""
    return Settings.of(
        steps=steps, batch_size=args.batch_size, learning_rate=args.learning_rate, accumulate=rows,
        dropout=not args.no_dropout,
    )  # fmt: skip


# --- the planted sentence ---------------------------------------------------------------------


@cache
def sentences(folder: Path, fruits: tuple[str, ...]) -> list[str]:
    """Lines of plain text without any of the answers, in the order of the books."""
    found = []
    for path in sorted([*folder.glob("*.txt"), *folder.glob("*.txt.xz")]):
        opened: Any = lzma.open if path.suffix == ".xz" else open
        with opened(path, "rt", encoding="utf-8") as file:
            for i, line in enumerate(file):
                text = line.strip()
                if i > 20_000:  # some of every book
                    break
                named = any(fruit in text.lower() for fruit in (*fruits, "fruit"))
                if 20 < len(text) < 400 and not named:
                    found.append(text)
    return found


def filler(lines: Sequence[str], sizes: Sequence[int], tokens: int, rng: random.Random) -> str:
    """Lines that stand next to each other, of about as many tokens and no more."""
    start, out = rng.randrange(len(lines)), []
    for i in range(len(lines)):
        at = (start + i) % len(lines)
        if sizes[at] > tokens:
            break
        out.append(lines[at])
        tokens -= sizes[at]
    return " ".join(out)


def planted(
    args: argparse.Namespace,
    backbone: Backbone,
    plan: Iterator[tuple[int, int]],
    seed: int,
    what: str,
) -> list[Example]:
    """Rows with the sentence at a distance (tokens from its end to the question) in a text of a length."""
    fruits = FRUITS[: args.fruits]
    lines = sentences(args.corpora, FRUITS)
    rng = random.Random(f"{seed} {what}")
    sizes = counted(args.model, backbone, lines)
    out = []
    for number, (length, distance) in enumerate(plan):
        fruit = rng.choice(fruits)
        after = filler(lines, sizes, distance, rng)
        before = filler(lines, sizes, max(0, length - distance - ROOM), rng)
        text = " ".join(part for part in (before, PLANTED.format(fruit=fruit), after) if part)
        out.append(Example({"text": text}, fruit, number + 1))
    return out


_SIZES: dict[str, list[int]] = {}


def counted(name: str, backbone: Backbone, lines: Sequence[str]) -> list[int]:
    """Tokens of each line."""
    if name not in _SIZES:
        _SIZES[name] = [len(ids) for ids in backbone.text.ids(list(lines))]
    return _SIZES[name]


def drawn(lengths: tuple[int, int], rows: int, seed: int) -> Iterator[tuple[int, int]]:
    """Lengths, and distances within them, both log-uniform."""
    rng = random.Random(seed)
    for _ in range(rows):
        length = int(math.exp(rng.uniform(math.log(lengths[0]), math.log(lengths[1]))))
        most = max(length - ROOM, 2)
        yield length, int(math.exp(rng.uniform(0, math.log(most))))


def planted_cell(args: argparse.Namespace, length: int, reader: str, seed: int) -> dict[str, Any]:
    """Tuned on short texts, then on long ones; accuracy at each distance."""
    began = time.perf_counter()
    backbone, report = model(args, length, reader), TerminalReporter()
    task = Task.inline(
        [Template(ASKED.format(tail=TAIL), name="asked")], labels=FRUITS[: args.fruits]
    )
    stages = [
        (
            "short",
            args.short_steps,
            drawn((48, args.short), args.short_steps * args.batch_size, seed),
        ),
        (
            "long",
            args.long_steps,
            drawn((args.short, length), args.long_steps * args.batch_size, seed),
        ),
    ]
    classifier: Any = None
    with tempfile.TemporaryDirectory() as folder:
        start: str | None = None
        for name, steps, plan in stages:
            rows = planted(args, backbone, plan, seed, name)
            parts = 1 if name == "short" else args.batch_size
            start_next = str(Path(folder) / name)
            classifier = train(
                task, rows, backbone=backbone, method=args.method, seed=seed, run=start_next,
                settings=settings(args, steps, parts), init_from=start, compare_untrained=False,
                report=report,
            ).classifier  # fmt: skip
            start = start_next
        trained = time.perf_counter() - began
        found = {}
        for distance in [d for d in args.distances if d < length - ROOM]:
            test = planted(
                args, backbone, iter([(length, distance)] * args.rows), 7, f"test {distance}"
            )
            classifier.warn_cuts = False
            found[str(distance)] = accuracy(classifier, test)
    return {"accuracy": found, "train_seconds": trained, "seconds": time.perf_counter() - began}


def accuracy(classifier: Any, rows: Sequence[Example]) -> float:
    """Share of right answers."""
    said = classifier.predict_proba([e.row for e in rows]).argmax(1)
    labels = list(classifier.labels)
    return sum(labels[i] == e.label for i, e in zip(said, rows, strict=True)) / len(rows)


# --- film reviews -----------------------------------------------------------------------------


def reviews(path: Path) -> list[Example]:
    """The rows of a table."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Example({"text": r["text"]}, r["label"], i + 1)
            for i, r in enumerate(csv.DictReader(file))
        ]


def imdb_cell(args: argparse.Namespace, length: int, reader: str, seed: int) -> dict[str, Any]:
    """Tuned on whole reviews; accuracy on those above 512 tokens and on the others."""
    began = time.perf_counter()
    backbone = model(args, length, reader)
    words = {"negative": ["terrible"], "positive": ["great"]}
    task = Task.inline([Template(REVIEW.format(tail=TAIL), name="it-was")], labels=words)
    rows = reviews(args.data / "imdb" / "train.csv")
    random.Random(seed).shuffle(rows)
    run = train(
        task, rows[: args.imdb_rows], backbone=backbone, method=args.method, seed=seed,
        settings=settings(args, args.imdb_steps, args.batch_size), compare_untrained=False,
        report=TerminalReporter(),
    )  # fmt: skip
    trained = time.perf_counter() - began
    test = reviews(args.data / "imdb" / "test.csv")
    sizes = [len(ids) for ids in backbone.text.ids([str(e.row["text"]) for e in test])]
    found: dict[str, float] = {}
    counts: dict[str, int] = {}
    for name, wanted in (("above 512", True), ("others", False)):
        some = [e for e, size in zip(test, sizes, strict=True) if (size > CUT) == wanted]
        some = some[: args.imdb_test]
        run.classifier.warn_cuts = False  # type: ignore[attr-defined]
        found[name], counts[name] = accuracy(run.classifier, some), len(some)
    return {
        "accuracy": found, "rows": counts, "train_seconds": trained,
        "seconds": time.perf_counter() - began,
    }  # fmt: skip


CELLS = {"planted": planted_cell, "imdb": imdb_cell}


def table(done: Sequence[dict[str, Any]]) -> None:
    """Mean accuracy over the seeds, and how far the window is behind full attention."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell in done:
        task, name, length, reader, _ = cell["key"]
        groups.setdefault((task, name, length, reader), []).append(cell)
    for task in dict.fromkeys(key[0] for key in groups):
        columns = list(dict.fromkeys(
            c for key, made in groups.items() if key[0] == task for m in made for c in m["accuracy"]
        ))  # fmt: skip
        print(f"\n| {task} | tokens | reader | seeds | " + " | ".join(columns) + " | train, s |")
        print("| --- " * (len(columns) + 5) + "|")
        for (kind, name, length, reader), made in groups.items():
            if kind != task:
                continue
            values = [
                f"{100 * st.mean(m['accuracy'][c] for m in made):.1f}"
                if all(c in m["accuracy"] for m in made)
                else ""
                for c in columns
            ]
            seconds = st.mean(m["train_seconds"] for m in made)
            print(f"| {name} | {length} | {reader} | {len(made)} | " + " | ".join(values)
                  + f" | {seconds:.0f} |")  # fmt: skip


if __name__ == "__main__":
    main()
