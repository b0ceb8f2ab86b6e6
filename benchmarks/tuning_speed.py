"""Prompt-based tuning beside OpenPrompt 1.0.1, in one run: steps per second, and a whole run.

    python benchmarks/tuning_speed.py --data DIR --openprompt PYTHON --output FILE.json

DIR holds sst2/train.csv and sst2/test.csv (text, label). PYTHON is the interpreter of the
environment described in benchmarks/peers/requirements-openprompt.txt; without it only our side is
timed. Both sides tune all weights of the same model on the same rows (16 a label), with the same
template and words, batch, number of steps, peak learning rate, warm-up, weight decay, clipping,
threads and float32, with AdamW; then both read the whole test table. A whole run is tuning and
test, from rows in memory to predictions. Loading the model and a first step are not counted on
either side. Ours is timed before and after the peer, and the slower of the two decides, so a
machine that drifts does not help us. Several --seeds draw other rows; accuracies are means.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import resource
import statistics as st
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from promptforge import Backbone, Settings, Task, Template, load_model, sample_shots, train
from promptforge.data import Example, examples
from promptforge.models import locate
from promptforge.progress import TerminalReporter

WORDS = {"negative": ["terrible"], "positive": ["great"]}
TEMPLATE = "{{ text }} It was {{ mask }}."
PEER_TEMPLATE = '{"placeholder":"text_a"} It was {"mask"} .'
PEER = Path(__file__).parent / "peers" / "openprompt_tuning.py"
MAX_LENGTH = 128


def main() -> None:
    """Print and write seconds, rates and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="minilm-mlm")
    parser.add_argument("--openprompt", metavar="PYTHON")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=3e-5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[13])
    parser.add_argument("--limit", type=int, help="only the first test rows")
    parser.add_argument("--test-batch-size", type=int, default=32, help="of the peer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    report = TerminalReporter(quiet=True)
    task = Task.inline([Template(TEMPLATE, name="it-was")], labels=WORDS)
    pool = table(task, args.data / "sst2" / "train.csv")
    test = table(task, args.data / "sst2" / "test.csv")[: args.limit]
    backbone = load_model(args.model, max_length=MAX_LENGTH, report=report)
    settings = Settings.of(
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        precision="float32",
    )
    draws = {seed: sample_shots(pool, args.shots, seed, list(WORDS), dev=False)[0]
             for seed in args.seeds}  # fmt: skip
    ours(backbone, task, draws[args.seeds[0]], test[:64], settings.model_copy(update={"steps": 1}))

    found: dict[str, list[dict[str, Any]]] = {"before": [], "peer": [], "after": []}
    memory = 0.0
    for seed, rows in draws.items():
        found["before"].append(ours(backbone, task, rows, test, settings, seed))
        if args.openprompt:
            told = openprompt(args, rows, test, settings, seed)
            found["peer"] += told["rounds"]
            memory = max(memory, told["peak_memory_mib"])
            found["after"].append(ours(backbone, task, rows, test, settings, seed))
        print(json.dumps({"seed": seed, **{k: v[-1:] for k, v in found.items()}}), flush=True)

    def mean(who: str, what: str) -> float:
        return float(st.mean(run[what] for run in found[who]))

    result: dict[str, Any] = {
        "rows": {"train": args.shots * len(WORDS), "test": len(test)},
        "settings": settings.model_dump(),
        "threads": args.threads,
        "seeds": args.seeds,
        "runs": found,
        "ours": {what: mean("before", what) for what in found["before"][0]},
        "ours peak memory, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    if args.openprompt:
        rate = min(mean(who, "steps_per_second") for who in ("before", "after"))
        whole = max(mean(who, "whole_seconds") for who in ("before", "after"))
        result |= {
            "ours, after the peer": {what: mean("after", what) for what in found["after"][0]},
            "openprompt": {what: mean("peer", what) for what in found["peer"][0]},
            "openprompt peak memory, MiB": memory,
            "steps per second, ratio": rate / mean("peer", "steps_per_second"),
            "whole run, ratio": mean("peer", "whole_seconds") / whole,
            "accuracy, difference": mean("before", "accuracy") - mean("peer", "accuracy"),
        }
    text = json.dumps(result, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")


def table(task: Task, path: Path) -> list[Example]:
    """A table in memory; the clock starts after this."""
    with path.open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    return examples(rows, list(task.labels), "label", str(path), {})


def ours(
    backbone: Backbone,
    task: Task,
    rows: list[Example],
    test: list[Example],
    settings: Settings,
    seed: int = 13,
) -> dict[str, float]:
    """Tune and test, from rows in memory to predictions."""
    began, cpu = time.perf_counter(), time.process_time()
    run = train(
        task, rows, backbone=backbone, settings=settings, seed=seed, compare_untrained=False
    )
    tuned = time.perf_counter()
    predictions = run.classifier.predict([e.row for e in test])
    ended, cpu = time.perf_counter(), time.process_time() - cpu
    right = sum(p == e.label for p, e in zip(predictions, test, strict=True))
    return {
        "tuning_seconds": tuned - began,
        "test_seconds": ended - tuned,
        "whole_seconds": ended - began,
        "steps_per_second": settings.steps / (tuned - began),
        "cores_used": cpu / (ended - began),
        "last_loss": next(iter(run.trained.values())).curve[-1]["loss"],
        "accuracy": right / len(test),
    }


def openprompt(
    args: argparse.Namespace,
    rows: list[Example],
    test: list[Example],
    settings: Settings,
    seed: int,
) -> dict[str, Any]:
    """Run the peer in its own environment."""

    def plain(some: list[Example]) -> list[dict[str, str]]:
        return [{"text": e.row["text"], "label": e.label} for e in some]

    job = {
        "model": locate(args.model), "train": plain(rows), "test": plain(test),
        "template": PEER_TEMPLATE, "words": WORDS, "steps": settings.steps,
        "batch_size": settings.rows, "learning_rate": settings.rate,
        "warmup": math.ceil(settings.warmup * settings.steps),
        "weight_decay": settings.weight_decay, "clip": settings.clip,
        "max_seq_length": MAX_LENGTH, "test_batch_size": args.test_batch_size,
        "seed": seed, "threads": args.threads, "rounds": 1,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        command = [args.openprompt, str(PEER), str(folder / "job.json"), str(folder / "out.json")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        result: dict[str, Any] = json.loads((folder / "out.json").read_text(encoding="utf-8"))
        return result


if __name__ == "__main__":
    main()
