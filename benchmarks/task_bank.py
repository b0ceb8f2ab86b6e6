"""Many tasks over one model against one task at a time: a `TaskBank`, and training together.

    python benchmarks/task_bank.py [--model smollm2] [--only bank|training] [--train-tasks 32]
    python benchmarks/task_bank.py --only training --data DIR --train-tasks 4 --steps 250 --pet

Three parts, the first two for prompt tuning, prefix, adapter and LoRA:

- one batch: as many rows as there are tasks, each of another task, against as many rows of one task
  (`batch`: rows a second, and the ratio of the two);
- one row a task: a bank against switching from task to task in one process, each task's tuned
  parameters in memory (`switching`: how many times faster the bank is);
- training: --train-tasks tasks together in mixed batches against one after the other, wall time of
  both; with --data, a folder with NAME/train.csv and NAME/test.csv (text, label), the mean accuracy
  too. The tasks are then the tables, and where more are asked for, these with two or three of their
  labels. --pet adds PET on the same rows, one task after the other, with unlabelled rows besides.

Both sides of a comparison take turns, and the medians count, so a machine that drifts helps neither.
Equal results, to 1e-5, are checked in the same run, and without them nothing is printed. Tuned
parameters are made by noise: what they say does not change what they cost.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import statistics
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from promptforge import Backbone, PromptModel, Settings, Task, Template, load_model, train
from promptforge.backbone.weights import Weights
from promptforge.bank import TaskBank
from promptforge.data import Example, read_rows
from promptforge.plugins import build
from promptforge.tuning.mixed import TaskExamples
from promptforge.tuning.together import train_together

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt-tuning": ("prompt-tuning", {"tokens": 20}),
    "prefix": ("prefix", {"length": 10}),
    "adapter": ("adapter", {"size": 24}),
    "lora": ("lora", {"rank": 8}),
}
WORDS = {"negative": ["terrible"], "positive": ["great"]}
SOURCE = "{{ text }} It was {{ mask }}."
LAST = "Review: {{ text }}\nIt was {{ mask }}"  # for causal models: the mask comes last
REVIEWS = Path(__file__).parent.parent / "examples" / "movie-reviews" / "unlabeled.csv"


def main() -> None:
    """Print a Markdown table of each part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="minilm-mlm")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tasks", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--only", choices=["bank", "training"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--train-tasks", type=int, default=4)
    parser.add_argument("--pet", action="store_true", help="with --data")
    parser.add_argument("--unlabeled", type=int, default=500, help="of each of PET's tasks")
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--limit", type=int, default=200, help="test rows of a task")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    backbone = load_model(
        args.model, device=args.device, batch_tokens=args.batch_tokens, max_length=args.max_length
    )
    print(
        f"{args.model} on {args.device}, {args.threads} threads, {args.batch_tokens} tokens a batch\n"
    )
    if args.only != "training":
        inference(backbone, args)
    if args.only != "bank":
        training(backbone, args)


# --- inference ---------------------------------------------------------------------------------


def inference(backbone: Backbone, args: argparse.Namespace) -> None:
    """The first two parts."""
    print(
        f"| method | one task, rows/s | {args.tasks} tasks, rows/s | ratio | switching, rows/s | bank against switching |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    texts = some_texts(args.tasks)
    for name in args.methods:
        models = [tuned(backbone, name, number) for number in range(args.tasks)]
        bank = TaskBank(backbone)
        for number, model in enumerate(models):
            bank.add(str(number), model)
        rows = [{"text": text} for text in texts]
        mixed = [(str(number), row) for number, row in enumerate(rows)]
        single = models[0]
        alone = [model.predict_proba([row])[0] for model, row in zip(models, rows, strict=True)]
        worst = max(abs(a - b).max() for a, b in zip(bank.predict_proba(mixed), alone, strict=True))
        if worst > 1e-5:
            raise SystemExit(f"{name}: a bank's results differ by {worst:.1e}")

        def switching(models: list[PromptModel] = models, rows: list[Any] = rows) -> None:
            for model, row in zip(models, rows, strict=True):
                model.predict_proba([row])

        one, many, each = in_turns(
            [lambda s=single, r=rows: s.predict_proba(r), lambda b=bank, m=mixed: b.predict_proba(m), switching],
            args.rounds,
        )  # fmt: skip
        n = args.tasks
        print(
            f"| {name} | {n / one:.0f} | {n / many:.0f} | {one / many:.2f} | {n / each:.0f} "
            f"| {each / many:.1f} |",
            flush=True,
        )
        backbone.apply(None)


# --- training ----------------------------------------------------------------------------------


def training(backbone: Backbone, args: argparse.Namespace) -> None:
    """The third part: wall time of a number of updates, dev rows aside."""
    n = args.train_tasks
    print(
        f"\n| method | {n} tasks together, s | one after the other, s | times faster | accuracy together | alone |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    settings = Settings(
        steps=args.steps, batch_size=args.batch_size, precision="float32", dropout=False
    )
    data = tables(args, backbone) if args.data else made_up(n, backbone)
    for name in args.methods:
        method = build("method", METHODS[name][0], **METHODS[name][1])
        common: dict[str, Any] = {
            "backbone": backbone, "method": method, "settings": settings, "seed": args.seed,
            "shots": args.shots if args.data else None, "compare_untrained": False,
        }  # fmt: skip
        together = train_together(data, **common)
        alone = [train(one.task, one.train, test=one.test, **common) for one in data]
        seconds = sum(run.seconds for run in alone)
        for number, (one, run) in enumerate(zip(data, alone, strict=True)):
            rows = [e.row for e in one.train[:8]]
            worst = abs(
                together.classifiers[one.name].predict_proba(rows)
                - run.classifier.predict_proba(rows)
            ).max()
            if not args.data and worst > 1e-3:  # without choosing on dev rows the two are one
                raise SystemExit(f"{name}, task {number}: trained together differs by {worst:.1e}")
        figures = ["", ""]
        if args.data:
            figures = [
                f"{100 * statistics.mean(found):.1f}"
                for found in (
                    [together.figures(one.name).headline for one in data],
                    [run.figures("test").headline for run in alone],
                )
            ]
        print(
            f"| {name} | {together.seconds:.1f} | {seconds:.1f} | {seconds / together.seconds:.2f} "
            f"| {figures[0]} | {figures[1]} |",
            flush=True,
        )
    if args.data and args.pet:
        strategy = build("strategy", "pet", final_steps=args.steps)
        common |= {"method": "all", "strategy": strategy}
        alone = [
            train(
                one.task, one.train, test=one.test, unlabeled=unlabeled(one, args.unlabeled), **common
            )
            for one in data
        ]  # fmt: skip
        accuracy = statistics.mean(run.figures("test").headline for run in alone)
        print(
            f"| PET, all weights | | {sum(run.seconds for run in alone):.1f} | | | {100 * accuracy:.1f} |"
        )


def unlabeled(task: TaskExamples, most: int) -> list[Any]:
    """Rows of a task without their labels."""
    rows = [e.row for e in task.train]
    return random.Random(0).sample(rows, min(most, len(rows)))


def made_up(n: int, backbone: Backbone) -> list[TaskExamples]:
    """Tasks of 32 short reviews each, labelled by turns."""
    source = LAST if backbone.family == "causal" else SOURCE
    found = []
    for number in range(n):
        rows = some_texts(32, number + 1)
        task = Task.inline([Template(source, name="p")], labels=WORDS, name=f"task-{number}")
        labelled = [Example({"text": t}, list(WORDS)[i % 2], i + 1) for i, t in enumerate(rows)]
        found.append(TaskExamples(task, labelled))
    return found


def tables(args: argparse.Namespace, backbone: Backbone) -> list[TaskExamples]:
    """The tables of the folder, then parts of them: all with two of their labels, then with three."""
    source = LAST if backbone.family == "causal" else SOURCE
    places = sorted(path.parent for path in args.data.glob("*/train.csv"))
    read: dict[Path, list[list[Example]]] = {}
    parts: list[tuple[Path, tuple[str, ...]]] = []
    for place in places:
        read[place] = [table(place / f"{split}.csv") for split in ("train", "test")]
        parts.append((place, tuple(sorted({e.label for e in read[place][0]}))))
    for size in (2, 3):
        parts += [
            (place, some)
            for place, labels in parts[: len(places)]
            if len(labels) > size
            for some in combinations(labels, size)
        ]
    found = []
    for place, labels in parts[: args.train_tasks]:
        words = {label: [re.split(r"\W", label)[0].lower()] for label in labels}
        name = "-".join((place.name, *(w[0] for w in words.values())))
        task = Task.inline([Template(source, name="p")], labels=words, name=name)
        rows, test = ([e for e in split if e.label in labels] for split in read[place])
        test = random.Random(0).sample(test, min(args.limit, len(test)))
        found.append(TaskExamples(task, rows, [], test))
    if len(found) < args.train_tasks:
        raise SystemExit(f"{args.data} has tables for {len(found)} tasks, not {args.train_tasks}.")
    return found


def table(path: Path) -> list[Example]:
    """The rows of a table, with its text in one column."""
    return [
        Example({"text": row.get("text") or f"{row['title']} {row['description']}"}, str(row["label"]), i + 1)
        for i, row in enumerate(read_rows(path))
    ]  # fmt: skip


def tuned(backbone: Backbone, name: str, number: int) -> PromptModel:
    """A task of its own words and tuned parameters."""
    source = LAST if backbone.family == "causal" else SOURCE
    task = Task.inline([Template(source, name="p")], labels=WORDS, name=str(number))
    method = build("method", METHODS[name][0], **METHODS[name][1])
    torch.manual_seed(number)
    backbone.apply(None)
    prompts = PromptModel(backbone, task).encode_rows("p", [{"text": "Fine."}])
    added = method.add(backbone, prompts, WORDS)
    assert added is not None
    with torch.no_grad():
        for parameter in added.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    weights = Weights(added=added.folded())
    return PromptModel(backbone, task, weights=weights, remember=False)


def some_texts(n: int, seed: int = 0) -> list[str]:
    """Short reviews, of 5 to 40 words."""
    with REVIEWS.open(encoding="utf-8", newline="") as file:
        found = [row["text"] for row in csv.DictReader(file)]
    draw = random.Random(seed)
    return [" ".join(draw.choice(found).split()[: draw.randint(5, 40)]) for i in range(n)]


def in_turns(jobs: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Median seconds of each job; they take turns, after a first time that does not count."""
    seconds: list[list[float]] = [[] for _ in jobs]
    for number in range(rounds + 1):
        for job, own in zip(jobs, seconds, strict=True):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            began = time.perf_counter()
            job()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                own.append(time.perf_counter() - began)
    return [statistics.median(own) for own in seconds]


if __name__ == "__main__":
    main()
