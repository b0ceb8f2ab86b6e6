"""The labelled and unlabelled rows of a task and seed, for the few-shot table (few_shot.py)."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from random import Random

from promptforge import Task, sample_shots
from promptforge.data import Example, Row

#: folder of the data -> shipped task, and the pattern of rows that use one: in all three tasks
#: the cloze sentence after the text. It was fixed before any row was tested.
TASKS = {
    "sst2": ("sentiment", "it-was"),
    "trec": ("question-type", "answer-is"),
    "agnews": ("news-topics", "about"),
}

#: Tables that other benchmarks draw from.
MORE = {"imdb": ("sentiment", "it-was")}


@dataclass(frozen=True)
class Draw:
    """The rows of one task and seed.

    Attributes:
        task: all patterns of the shipped task.
        pattern: that of rows that use one.
        train, dev: K rows a label each.
        test: a fixed sample, the same for every seed.
        unlabeled: rows of the training table that were not drawn.
        folder: keeps the trainings.
    """

    task: Task
    pattern: str
    train: list[Example]
    dev: list[Example]
    test: list[Example]
    unlabeled: list[Row]
    seed: int
    folder: Path

    @property
    def one(self) -> Task:
        """The task with one pattern."""
        return self.task.choose([self.pattern])

    def texts(self, examples: list[Example]) -> list[str]:
        """The columns of each row as one text, for methods without prompts."""
        return [" ".join(str(e.row[c]) for c in self.task.inputs) for e in examples]


def drawn(name: str, seed: int, args: argparse.Namespace) -> Draw:
    """Rows drawn as LM-BFF does; no unlabelled row is a drawn row or a test row.

    A label that has too few for that (at 200 shots TREC's abbreviations) gives half of its texts
    to each side.
    """
    shipped, pattern = {**TASKS, **MORE}[name]
    task = Task.load(shipped)
    pool = task.examples(args.data / name / "train.csv")
    test = task.examples(args.data / name / "test.csv", complete=False)
    if args.limit and args.limit < len(test):
        test = [test[i] for i in sorted(Random(0).sample(range(len(test)), args.limit))]

    def key(example: Example) -> tuple[str, ...]:
        return tuple(str(example.row[column]) for column in task.inputs)

    train, dev = [], []
    texts = {label: {key(e) for e in pool if e.label == label} for label in task.labels}
    counts = {label: min(args.shots, len(own) // 2) for label, own in texts.items()}
    for count in sorted(set(counts.values()), reverse=True):
        parts = sample_shots(pool, count, seed, [name for name, n in counts.items() if n == count])
        train += parts[0]
        dev += parts[1]

    used = {key(e) for e in (*train, *dev, *test)}
    rest = [{c: e.row[c] for c in task.inputs} for e in pool if key(e) not in used]
    unlabeled = Random(f"{seed}:unlabeled").sample(rest, min(args.unlabeled, len(rest)))
    folder = args.work / args.model.replace("/", "_") / f"{name}-{seed}"
    return Draw(task, pattern, train, dev, test, unlabeled, seed, folder)
