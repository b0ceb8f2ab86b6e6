"""How good the words found are: accuracy on a test table, over seeds, beside the task's own words.

    python benchmarks/words_found.py examples/movie-reviews --model smollm2

Training and development rows are pooled and drawn anew for each seed (LM-BFF's sampling, K per
label); each pattern reads every row once, so seeds and searches cost no further model time.
"""

from __future__ import annotations

import argparse
import json
import statistics as st
import sys
from pathlib import Path

from promptforge import PromptModel, Task, load_model, sample_shots, search_verbalizer
from promptforge.data import Example
from promptforge.errors import UserError
from promptforge.progress import TerminalReporter

SEARCHES = {
    "petal": {},
    "petal, cross-entropy": {"score": "ce"},
    "lm-bff": {},
}


def main() -> None:
    """Print one row per pattern and search, and the mean over the patterns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task")
    parser.add_argument("--data", help="folder of train.csv and test.csv instead of the task's own")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--pattern", action="append", default=[])
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[13, 21, 42, 87, 100])
    parser.add_argument("--limit", type=int, default=500, help="test rows")
    parser.add_argument("--words-per-label", type=int, default=10)
    parser.add_argument("--max-words", type=int, help="words most frequent in unlabelled text")
    parser.add_argument("--joint", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    report = TerminalReporter()
    task = Task.load(args.task).choose(args.pattern)
    pool, test = tables(task, args.data)
    test = test[: args.limit]
    model = PromptModel(load_model(args.model, report=report), task, report=report)
    unlabeled = task.rows("unlabeled") if args.max_words else None
    own = {name: e.accuracy for name, e in model.evaluate(test).items()}
    rows = []
    for label, options in SEARCHES.items():
        found: dict[str, list[float]] = {}
        size = {} if label == "lm-bff" else {"words_per_label": args.words_per_label}
        for seed in args.seeds:
            train, _ = sample_shots(pool, args.shots, seed, list(task.labels), dev=False)
            search = label.split(",")[0]
            words = search_verbalizer(
                model,
                train,
                search=search,
                joint=args.joint,
                max_words=args.max_words,
                unlabeled=unlabeled,
                **options,
                **size,
            )
            for name, words_of in words.patterns.items():
                alone = model.with_words({name: words_of})
                alone.task = alone.task.choose([] if args.joint else [name])
                try:
                    results = alone.evaluate(test)
                except UserError as error:  # the same words for two labels: no classifier
                    print(f"{label}, {name}, seed {seed}: {error}", file=sys.stderr)
                    results = {}
                    found.setdefault(name, []).append(1 / len(task.labels))
                for pattern, evaluation in results.items():
                    found.setdefault(pattern, []).append(evaluation.accuracy)
            if seed == args.seeds[0]:
                print(label, words.patterns, file=sys.stderr)
        for name, values in found.items():
            rows.append(
                {
                    "search": label,
                    "pattern": name,
                    "found": st.mean(values),
                    "deviation": st.stdev(values) if len(values) > 1 else 0.0,
                    "own": own[name],
                    "chance": 1 / len(task.labels),
                }
            )
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'search':22} {'pattern':14} {'found':>14} {'own words':>10} {'chance':>7}")
    for row in rows:
        print(
            f"{row['search']:22} {row['pattern']:14} {100 * row['found']:7.1f} ± {100 * row['deviation']:4.1f}"
            f" {100 * row['own']:10.1f} {100 * row['chance']:7.1f}"
        )


def tables(task: Task, folder: str | None) -> tuple[list[Example], list[Example]]:
    """The pool to draw from, and the test examples."""
    if folder:
        root = Path(folder)
        return task.examples(root / "train.csv"), task.examples(root / "test.csv", complete=False)
    pool = [e for split in ("train", "dev") for e in task.examples(split)]
    return pool, task.examples("test", complete=False)


if __name__ == "__main__":
    main()
