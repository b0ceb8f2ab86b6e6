"""The small tables and folders that pages speak of, made from the examples.

A page names them as a reader's own data (`reviews.csv`, `tickets.csv`, ...). Each is made when the
page names it, so that a page's folder holds nothing else.
"""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: Rows of the examples' tables that are enough for a test.
KEPT = {
    "movie-reviews": {"train": 20, "dev": 4, "test": 4, "unlabeled": 24},
    "restaurants": {"train": 8, "dev": 2, "test": 2},
}


def copy_examples(folder: Path) -> None:
    """`examples/` in `folder`, with fewer rows to measure on."""
    shutil.copytree(ROOT / "examples", folder / "examples")
    for example, tables in KEPT.items():
        for split, most in tables.items():
            path = folder / "examples" / example / f"{split}.csv"
            _write(path, _read(path)[: most + 1])


def make_tables(folder: Path, text: str) -> list[str]:
    """Make the tables that the page with `text` names; their names."""
    named = [name for name in TABLES if name in text]
    for name in named:
        TABLES[name](folder / name)
    return named


def _read(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def _write(path: Path, rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def _labelled(split: str, most: int) -> list[tuple[str, str]]:
    """(text, label) of the first reviews of a split, as many of each label."""
    rows = [(t, label) for t, label in _read(ROOT / f"examples/movie-reviews/{split}.csv")[1:]]
    each = [[row for row in rows if row[1] == label] for label in ("negative", "positive")]
    return [row for pair in zip(*each, strict=False) for row in pair][:most]


def _reviews(path: Path) -> None:
    _write(path, _read(ROOT / "examples/movie-reviews/unlabeled.csv")[:13])


def _relabelled(column: str, names: Sequence[object], most: int) -> Callable[[Path], None]:
    """A table with labels of another name: the first stands for negative, the last for positive."""

    def make(path: Path) -> None:
        rows = []
        for i, (text, label) in enumerate(_labelled("train", most)):
            half = len(names) // 2
            names_here = names[:half] if label == "negative" else names[half:]
            rows.append((text, names_here[(i // 2) % len(names_here)]))
        _write(path, [("text", column), *rows])

    return make


def _texts(path: Path) -> None:
    rows = _read(ROOT / "examples/movie-reviews/unlabeled.csv")[1:13]
    path.write_text("".join(f"{text}\n" for (text,) in rows), encoding="utf-8")


def _task_tables(column: str, names: Sequence[object]) -> Callable[[Path], None]:
    """A folder with train.csv, dev.csv and test.csv, to which a page adds task.toml."""

    def make(folder: Path) -> None:
        for split, most in (("train", 24), ("dev", 16), ("test", 16)):
            _relabelled(column, names, most)(folder / f"{split}.csv")

    return make


def _news(path: Path) -> None:
    rows = []
    for i, (text, _) in enumerate(_labelled("train", 24)):
        words = text.split()
        label = ("world", "sports", "business", "sci/tech")[i % 4]
        rows.append((" ".join(words[:4]), " ".join(words[4:]), label))
    _write(path, [("title", "description", "label"), *rows])


def _long_reviews(folder: Path) -> None:
    """A task with texts of a hundred words."""
    for split, most in (("train", 4), ("dev", 2), ("test", 2)):
        rows = _labelled(split, 4 * most)
        each = [[t for t, label in rows if label == wanted] for wanted in ("negative", "positive")]
        _write(folder / f"{split}.csv", [("text", "label")] + [
            (" ".join(texts[i : i + 4]), label)
            for texts, label in zip(each, ("negative", "positive"), strict=True)
            for i in range(0, len(texts), 4)
        ])  # fmt: skip
    example = ROOT / "examples" / "movie-reviews"
    for path in example.glob("*.jinja"):
        shutil.copy(path, folder)
    task = (example / "task.toml").read_text(encoding="utf-8").replace(example.name, folder.name)
    task = re.sub(r"unlabeled = .*\n", "", task)
    (folder / "task.toml").write_text(task, encoding="utf-8")


def _openprompt(folder: Path) -> None:
    """Template text and label words as that toolkit keeps them."""
    folder = folder / "scripts" / "TextClassification" / "imdb"
    folder.mkdir(parents=True)
    (folder / "manual_template.txt").write_text(
        '{"placeholder":"text_a"} All in all it was {"mask"} .\n', encoding="utf-8"
    )
    (folder / "manual_verbalizer.txt").write_text("awful,dull\nlovely,fine\n", encoding="utf-8")


QUESTIONS = ("description", "entity", "abbreviation", "human", "location", "number")
TOPICS = ("delivery", "price", "delivery,price", "", "quality", "price,quality")

#: name on a page -> what makes it, given its path
TABLES: dict[str, Callable[[Path], None]] = {
    "reviews.csv": _reviews,
    "tickets.csv": _relabelled("team", ("billing", "delivery"), 24),
    "questions.csv": _relabelled("label", QUESTIONS, 24),
    "news.csv": _news,
    "texts.txt": _texts,
    "stars/": _task_tables("rating", (-3.5, -2, -0.5, 0.5, 2, 3.5)),
    "long-reviews": _long_reviews,
    "OpenPrompt/": _openprompt,
    "tickets/": _task_tables("topics", TOPICS),
}
