"""Multitask prompts: each kind of task held out once, zero-shot on it before and after.

    python benchmarks/hold_out.py --data DIR --output FILE.jsonl

DIR holds sst2, trec and agnews, each with train.csv and test.csv: sentiment, question types and
topics. One model is trained on the whole training tables of two of them, in all of their patterns
(T0: Sanh et al. 2022), and reads the third, of which it has seen nothing, with all patterns
averaged. Accuracy on 500 test rows, the same for every seed and as in few_shot.py; that of the two
trained tasks is kept too. Each cell (held-out table, seed) is a line of FILE, and a cell that is
there is not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics as st
import sys
from argparse import Namespace
from pathlib import Path
from random import Random
from typing import Any

import torch
from few_shot import append, read
from few_shot_draw import TASKS
from promptforge_multitask.mixture import TaskExamples
from promptforge_multitask.model import MultiTaskPromptModel
from promptforge_multitask.run import train_multitask

from promptforge import Backbone, Settings, Task, load_model

DEV = 100


def main() -> None:
    """Make the cells that are missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True)
    add("--output", type=Path, required=True)
    add("--held-out", nargs="+", choices=list(TASKS), default=list(TASKS))
    add("--seeds", type=int, nargs="+", default=[13, 21, 42])
    add("--model", default="minilm-mlm")
    add("--steps", type=int, default=1000)
    add("--batch-size", type=int, default=16)
    add("--learning-rate", type=float, default=5e-5)
    add("--max-length", type=int, default=128)
    add("--limit", type=int, default=500, help="test rows of a table")
    add("--threads", type=int, default=2)
    add("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    backbone = load_model(args.model, max_length=args.max_length, device=args.device)
    made = {tuple(cell["key"]) for cell in read(args.output)}
    for seed in args.seeds:
        for name in args.held_out:
            key = (args.model, name, args.steps, seed)
            if key not in made:
                cell = {"key": list(key), **held_out(args, backbone, name, seed)}
                append(args.output, cell)
                print(json.dumps(cell), file=sys.stderr, flush=True)
    show(read(args.output))


def held_out(args: Namespace, backbone: Backbone, name: str, seed: int) -> dict[str, Any]:
    """Train on all tables but one."""
    data = {table: rows(args, table, seed) for table in TASKS}
    kind = data[name].task.kind
    run = train_multitask(
        MultiTaskPromptModel(backbone), list(data.values()), hold_out=[kind], seed=seed,
        settings=Settings.of(
            steps=args.steps, batch_size=args.batch_size, learning_rate=args.learning_rate
        ),
    )  # fmt: skip
    figures = {
        table: [run.figures(one.name, when).headline for when in ("before", "after")]
        for table, one in data.items()
    }
    return {"accuracy": figures, "removed": run.model.removed, "seconds": run.seconds}


def rows(args: Namespace, name: str, seed: int) -> TaskExamples:
    """A table's rows: some of the training rows to choose by, and the sample of test rows."""
    task = Task.load(TASKS[name][0])
    train = task.examples(args.data / name / "train.csv")
    test = task.examples(args.data / name / "test.csv", complete=False)
    if args.limit and args.limit < len(test):
        test = [test[i] for i in sorted(Random(0).sample(range(len(test)), args.limit))]
    Random(seed).shuffle(train)
    return TaskExamples(task, train[DEV:], train[:DEV], test)


def show(cells: list[dict[str, Any]]) -> None:
    """Print accuracy on each table held out, before and after training on the others."""
    print("\n| model | held out | seeds | before | after | seconds |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault(tuple(cell["key"][:3]), []).append(cell)  # type: ignore[arg-type]
    for (model, name, _), made in groups.items():
        before, after = ([100 * c["accuracy"][name][i] for c in made] for i in (0, 1))
        spread = f" ± {st.stdev(after):.1f}" if len(after) > 1 else ""
        seconds = st.mean(c["seconds"] for c in made)
        print(
            f"| {model} | {name} | {len(made)} | {before[0]:.1f} | {st.mean(after):.1f}{spread} | {seconds:.0f} |"
        )


if __name__ == "__main__":
    main()
