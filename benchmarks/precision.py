"""Tuning in float32 and in bfloat16, turn by turn in one process: steps per second of processor time.

    python benchmarks/precision.py --data DIR [--threads 1] [--output FILE.json]

DIR holds sst2, trec and agnews, each with train.csv and test.csv. All weights of the model are
tuned on 16 rows a label at batch 8, without development rows. Processor time, not wall time: with
one thread it does not depend on what else the machine does. A processor without instructions for
bfloat16 is slower in it than in float32 (`--precision auto` then takes float32).
"""

from __future__ import annotations

import argparse
import json
import statistics as st
import time
from pathlib import Path
from typing import Any

import torch
from few_shot_draw import TASKS, drawn

from promptforge import Settings, load_model, train
from promptforge.tuning.precision import Precision


def main() -> None:
    """Print and write the rates and their ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="minilm-mlm")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.limit, args.unlabeled, args.work = 1, 0, Path()
    backbone = load_model(args.model)
    result: dict[str, Any] = {"auto is bfloat16": Precision("auto", backbone.device).half}
    for name in args.tasks:
        draw = drawn(name, 13, args)

        def rate(precision: str, steps: int, draw: Any = draw) -> float:
            settings = Settings.of(steps=steps, learning_rate=3e-5, precision=precision)
            began = time.process_time()
            train(
                draw.one, draw.train, backbone=backbone, settings=settings, compare_untrained=False
            )
            return steps / (time.process_time() - began)

        found: dict[str, list[float]] = {"float32": [], "bfloat16": []}
        for precision in found:  # what is loaded and compiled on first use is not counted
            rate(precision, 2)
        for _ in range(args.rounds):
            for precision, rates in found.items():
                rates.append(rate(precision, args.steps))
        ratios = [b / a for a, b in zip(found["float32"], found["bfloat16"], strict=True)]
        result[name] = {**found, "ratio": st.median(ratios)}
        print(name, json.dumps(result[name]), flush=True)
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
