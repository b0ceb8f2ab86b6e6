"""What each thing that makes tuning fast is worth: with and without it, turn by turn in one process.

    python benchmarks/ablation_speed.py bfloat16 --data DIR [--threads 1] [--output FILE.json]
    python benchmarks/ablation_speed.py dropout --data DIR [--demonstrations]

DIR holds sst2, trec and agnews, each with train.csv and test.csv. All weights of the model are
tuned on 16 rows a label at batch 8, without development rows; `--demonstrations` puts a row of
each label before the text. Printed are steps per second of processor time, not wall time: with one
thread it does not depend on what else the machine does. `dropout` is in the precision that
`--precision auto` takes. A processor without instructions for bfloat16, and some that have them,
are slower in it than in float32 (`auto` then takes float32).
"""

from __future__ import annotations

import argparse
import json
import statistics as st
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from few_shot_draw import TASKS, drawn

from promptforge import Settings, load_model, train
from promptforge.tuning.precision import Precision

#: what -> (without it, with it): the precision, and what lasts during a training
WAYS: dict[str, dict[str, tuple[str, Callable[[], AbstractContextManager[Any]]]]] = {
    "bfloat16": {"without": ("float32", nullcontext), "with": ("bfloat16", nullcontext)},
    "dropout": {
        "without": ("auto", lambda: patch("promptforge.tuning.loop.cheap_dropout", nullcontext)),
        "with": ("auto", nullcontext),
    },
}


def main() -> None:
    """Print and write the rates and their ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=list(WAYS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="minilm-mlm")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--demonstrations", action="store_true")
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
    selector = "lm-bff" if args.demonstrations else None
    seconds: list[float] = []
    for name in args.tasks:
        draw = drawn(name, 13, args)

        def rate(way: str, steps: int, draw: Any = draw) -> float:
            precision, during = WAYS[args.what][way]
            settings = Settings.of(steps=steps, learning_rate=3e-5, precision=precision)
            with during():
                train(
                    draw.one, draw.train, backbone=backbone, settings=settings,
                    demonstrations=selector, compare_untrained=False,
                )  # fmt: skip
            return steps / seconds.pop()

        with timed(seconds):
            found: dict[str, list[float]] = {"without": [], "with": []}
            for way in found:  # what is loaded and compiled on first use is not counted
                rate(way, 2)
            for _ in range(args.rounds):
                for way, rates in found.items():
                    rates.append(rate(way, args.steps))
        ratios = [b / a for a, b in zip(found["without"], found["with"], strict=True)]
        result[name] = {**found, "ratio": st.median(ratios)}
        print(name, json.dumps(result[name]), flush=True)
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def timed(seconds: list[float]) -> AbstractContextManager[Any]:
    """While this lasts, the processor time of each training's loop is appended."""
    from promptforge.tuning.loop import Training

    plain = Training.run

    def run(self: Training, *args: Any, **options: Any) -> Any:
        began = time.process_time()
        try:
            return plain(self, *args, **options)
        finally:
            seconds.append(time.process_time() - began)

    return patch.object(Training, "run", run)


if __name__ == "__main__":
    main()
