"""What labels are worth: how many labelled rows fine-tuning needs to equal PET, iPET and LM-BFF.

    python benchmarks/label_cost.py --data DIR --task sst2 --folder FOLDER [--output FILE.json]

DIR holds sst2, trec and agnews, each with train.csv and test.csv. It is `promptforge compare
--label-cost`, from Python: fine-tuning with 16 to 256 rows a label, each of the others with 16, the
better of two learning rates by as many dev rows each, on the same test rows; 2,000 rows of the
training table are the unlabelled ones, and no labelled row is drawn from them. Finished cells are
kept in FOLDER: an interrupted run goes on, and more --seeds add to it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random

import torch
from few_shot_draw import TASKS

from promptforge import Settings, Task, compare, load_model
from promptforge.progress import TerminalReporter

CONTENDERS = [
    "lm-bff:samples=4",
    "pet:repetitions=2,final_steps=150",
    "ipet:repetitions=1,generations=2,final_steps=150",
]


def main() -> None:
    """Print and write the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--task", choices=list(TASKS), default="sst2")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", default="minilm-mlm")
    parser.add_argument("--contenders", nargs="+", default=CONTENDERS)
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--seeds", type=int, nargs="+", default=[13])
    parser.add_argument("--limit", type=int, default=500, help="test rows")
    parser.add_argument("--unlabeled", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    task = Task.load(TASKS[args.task][0])
    pool = task.examples(args.data / args.task / "train.csv")
    test = task.examples(args.data / args.task / "test.csv", complete=False)
    if args.limit < len(test):
        test = Random(0).sample(test, args.limit)

    def key(row: object) -> tuple[str, ...]:
        return tuple(str(row[column]) for column in task.inputs)  # type: ignore[index]

    tested = {key(e.row) for e in test}
    chosen = Random("label cost").sample(pool, len(pool))
    chosen = [e for e in chosen if key(e.row) not in tested]
    unlabeled = [{c: e.row[c] for c in task.inputs} for e in chosen[: args.unlabeled]]
    hidden = {key(row) for row in unlabeled}
    found = compare(
        task,
        [e for e in chosen[args.unlabeled :] if key(e.row) not in hidden],
        args.contenders,
        backbone=load_model(args.model),
        test=test,
        unlabeled=unlabeled,
        shots=16,
        seeds=args.seeds,
        label_cost={"finetune": args.rows},
        folder=args.folder,
        settings=Settings.of(steps=args.steps, learning_rate=[1e-4, 3e-4], patience=3),
        report=TerminalReporter(),
    )
    made = {**found.to_json(), "worth": found.worth("finetune")}
    if args.output:
        args.output.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    for line in made["summary"]:
        print(
            f"{line['contender']}, {line['shots']} rows a label: {100 * line['accuracy']:.1f} "
            f"± {100 * line['deviation']:.1f}, {line['seconds']:.0f} s, {line['memory'] / 1e6:,.0f} MB"
        )
    for name, rows in made["worth"].items():
        many = "more than were tried" if rows is None else f"about {rows:.0f}"
        print(f"{name} with 16 rows a label: fine-tuning needs {many}")


if __name__ == "__main__":
    main()
