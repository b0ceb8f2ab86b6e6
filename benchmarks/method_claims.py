"""Two claims about tuning few parameters, each tested on its own.

    python benchmarks/method_claims.py --data DIR --output FILE.jsonl [--only starts|transfer]

starts    Prompt tuning that starts from the label words against one that starts from random words
          (Lester et al. 2021, section 3.2): the same rows, order and learning rate for both, one
          pair a seed, and a paired t test and Wilcoxon's signed-rank test over the seeds.
transfer  Adapters overfit less and transfer better than all weights (He et al. 2021): tuned on
          --source-shots rows a label of SST-2, then measured on its training rows, on its test rows
          and on whole film reviews (IMDB) without a label of theirs; then tuned further on --shots
          rows a label of IMDB, beside the same from an untuned model.

DIR holds sst2, trec, agnews and imdb, each with train.csv and test.csv. Each cell (claim, task, what
is compared, seed) is a line of FILE, and a cell that is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics as st
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from few_shot import append, read
from few_shot_draw import Draw, drawn
from scipy.stats import ttest_rel, wilcoxon

from promptforge import Backbone, Settings, TuningMethod, load_model, train
from promptforge.classifier import Classifier
from promptforge.data import Example
from promptforge.plugins import build

STARTS = ("labels", "vocabulary")
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "all weights": ("all", {}),
    "adapter (Pfeiffer)": ("pfeiffer", {}),
    "LoRA": ("lora", {}),
    "prefix": ("prefix", {}),
}
FIGURES = ("source train", "source test", "target", "target, 16 rows", "target, 16 rows alone")


def main() -> None:
    """Make the cells that are missing, and print the tables."""
    args = arguments()
    torch.set_num_threads(args.threads)
    backbone = load_model(args.model, max_length=args.max_length, device=args.device)
    made = {tuple(cell["key"]) for cell in read(args.output)}
    for key in planned(args):
        if key in made:
            continue
        began = time.perf_counter()
        cell = {"key": list(key), "settings": settings(args, key[0])}
        cell |= CLAIMS[key[0]](args, backbone, *key[1:])
        cell["cell_seconds"] = time.perf_counter() - began
        append(args.output, cell)
        print(json.dumps(cell), file=sys.stderr, flush=True)
    show(read(args.output), args)


def arguments() -> Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True)
    add("--output", type=Path, required=True)
    add("--only", choices=list(CLAIMS))
    add("--tasks", nargs="+", default=["sst2"], help="of starts")
    add("--seeds", type=int, nargs="+", help="by default 20 of starts and 3 of transfer")
    add("--model", default="minilm-mlm")
    add("--shots", type=int, default=16)
    add("--source-shots", type=int, default=200)
    add("--steps", type=int, default=250)
    add("--source-steps", type=int, default=500)
    add("--batch-size", type=int, default=8)
    add("--limit", type=int, default=500, help="test rows")
    add("--max-length", type=int, default=256, help="tokens of a prompt")
    add("--threads", type=int, default=1)
    add("--device", default="cpu")
    args = parser.parse_args()
    args.unlabeled, args.work = 0, Path(tempfile.gettempdir())
    return args


def planned(args: Namespace) -> Iterator[tuple[str, str, str, int]]:
    """Claim, task, what is compared and seed, of every cell; pairs next to each other."""
    if args.only != "transfer":
        for task in args.tasks:
            for seed in args.seeds or range(20):
                yield from (("starts", task, start, seed) for start in STARTS)
    if args.only != "starts":
        for seed in args.seeds or (13, 21, 42):
            yield from (("transfer", "sst2 to imdb", name, seed) for name in METHODS)


def settings(args: Namespace, claim: str) -> dict[str, Any]:
    """What a cell's figures depend on."""
    names = ["shots", "steps", "batch_size", "limit", "max_length"]
    more = ["source_shots", "source_steps"] if claim == "transfer" else []
    return {name: getattr(args, name) for name in names + more}


def starts(args: Namespace, backbone: Backbone, task: str, start: str, seed: int) -> dict[str, Any]:
    """Prompt tuning from one start."""
    draw = drawn(task, seed, args)
    method = build("method", "prompt-tuning", init=start, seed=seed)
    model = tuned(args, backbone, draw, method, args.steps)
    return {"accuracy": accuracy(model, draw.test), "train": accuracy(model, draw.train)}


def transfer(args: Namespace, backbone: Backbone, _: str, name: str, seed: int) -> dict[str, Any]:
    """From a source task to a target task."""
    plugin, options = METHODS[name]
    method = build("method", plugin, **options)
    source = drawn("sst2", seed, Namespace(**{**vars(args), "shots": args.source_shots}))
    target = drawn("imdb", seed, args)
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "source")
        model = tuned(args, backbone, source, method, args.source_steps, run=run)
        found = [
            accuracy(model, source.train),
            accuracy(model, source.test),
            accuracy(model, target.test),
        ]
        for start in (run, None):
            model = tuned(args, backbone, target, method, args.steps, init_from=start)
            found.append(accuracy(model, target.test))
    return {"accuracy": dict(zip(FIGURES, found, strict=True))}


def tuned(
    args: Namespace,
    backbone: Backbone,
    draw: Draw,
    method: TuningMethod,
    steps: int,
    **more: Any,
) -> Classifier:
    """A classifier of one pattern, chosen on the development rows, at the method's own learning rate."""
    made = train(
        draw.one, draw.train, dev=draw.dev, backbone=backbone, method=method, seed=draw.seed,
        settings=Settings.of(steps=steps, batch_size=args.batch_size), compare_untrained=False,
        **more,
    ).classifier  # fmt: skip
    made.warn_cuts = False  # type: ignore[attr-defined]
    return made


def accuracy(classifier: Classifier, rows: list[Example]) -> float:
    """Share of rows that are right."""
    said = classifier.predict([e.row for e in rows])
    return sum(s == e.label for s, e in zip(said, rows, strict=True)) / len(rows)


CLAIMS: dict[str, Any] = {"starts": starts, "transfer": transfer}


def show(cells: list[dict[str, Any]], args: Namespace) -> None:
    """Print both tables."""
    by_key = {tuple(cell["key"]): cell["accuracy"] for cell in cells}
    for task in args.tasks:
        seeds = [s for s in range(1000) if all(("starts", task, x, s) in by_key for x in STARTS)]
        if len(seeds) < 2:
            continue
        pairs = [[100 * by_key["starts", task, x, s] for s in seeds] for x in STARTS]
        gains = [one - other for one, other in zip(*pairs, strict=True)]
        print(
            f"\n{task}, {len(seeds)} seeds: label words {mean(pairs[0])}, random words {mean(pairs[1])}; "
            f"gain {mean(gains)}, better in {sum(g > 0 for g in gains)}, worse in {sum(g < 0 for g in gains)}; "
            f"p = {ttest_rel(*pairs).pvalue:.3f} (t), {wilcoxon(*pairs).pvalue:.3f} (Wilcoxon)"
        )
    found = {k: v for k, v in by_key.items() if k[0] == "transfer"}
    if found:
        print("\n| method | seeds | " + " | ".join((*FIGURES, "source train - test")) + " |")
        print("| --- " * (len(FIGURES) + 3) + "|")
    for name in METHODS:
        rows = [v for k, v in found.items() if k[2] == name]
        if rows:
            columns = [[100 * row[figure] for row in rows] for figure in FIGURES]
            columns.append([a - b for a, b in zip(columns[0], columns[1], strict=True)])
            print(f"| {name} | {len(rows)} | " + " | ".join(mean(c) for c in columns) + " |")


def mean(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{st.mean(values):.1f}" + (f" ± {st.stdev(values):.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
