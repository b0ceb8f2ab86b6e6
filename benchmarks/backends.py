"""The same ensemble under loky, Ray and Dask on this machine, and what a cell of a comparison costs.

    python benchmarks/backends.py --output FILE.json

Each backend trains the same members (examples/movie-reviews, minilm-mlm) in a fresh process, once with one
step, which is the start-up: cluster, workers, the model in each of them, the members' files; and once with
--steps. What is left when the first is taken from the second is the work. Rounds alternate, so that
whatever else the machine does hits all alike; the overhead is the median over the rounds of
work / work under loky - 1. A cell is one training of one pattern by `promptforge compare`, with what it leaves on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

EXAMPLE = Path(__file__).parent.parent / "examples" / "movie-reviews"
BACKENDS = ("loky", "ray", "dask")


def main() -> None:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="minilm-mlm")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=2, help="of each of three patterns")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shots", type=int, default=16, help="rows a label of the cell")
    parser.add_argument("--only", choices=["ensemble", "cell"])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("BACKEND", "STEPS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(ensemble(args, args.one[0], int(args.one[1]))))
        return
    found: dict[str, Any] = {"arguments": {k: str(v) for k, v in vars(args).items()}}
    if args.only != "cell":
        found["backends"] = compared(args)
    if args.only != "ensemble":
        found["cell"] = cell(args)
    print(json.dumps(found, indent=2))
    if args.output:
        args.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def ensemble(args: argparse.Namespace, backend: str, steps: int) -> dict[str, float]:
    """Seconds from the loaded model to the trained members, in this process."""
    from promptforge import Settings, Task, load_model
    from promptforge.plugins import build
    from promptforge.tuning.backends import started
    from promptforge.tuning.tuner import Tuner

    task = Task.load(EXAMPLE)
    task = task.choose(list(task.patterns)[:3])
    task.check()
    backbone = load_model(args.model)
    strategy = build("strategy", "ensemble", repetitions=args.repetitions)
    rows = task.examples("train")
    with tempfile.TemporaryDirectory() as run:
        began = time.perf_counter()
        with started(backend, args.jobs) as jobs:
            tuner = Tuner(
                backbone, task, rows, settings=Settings(steps=steps), jobs=jobs, folder=Path(run)
            )
            strategy.train(tuner)
        seconds = time.perf_counter() - began
        members = len(list(Path(run).glob("members/*/artifact.json")))
    return {"seconds": seconds, "members": members}


def compared(args: argparse.Namespace) -> dict[str, Any]:
    """Start-up and work of each backend, and the overhead over loky."""
    times: dict[str, list[dict[str, float]]] = {name: [] for name in BACKENDS}
    for number in range(args.rounds):
        for name in BACKENDS if number % 2 == 0 else reversed(BACKENDS):
            start, whole = once(args, name, 1), once(args, name, args.steps)
            row = {"start": start, "whole": whole, "work": whole - start}
            times[name].append(row)
            print(
                f"round {number + 1}, {name}: "
                + ", ".join(f"{k} {v:.1f} s" for k, v in row.items())
            )
    out: dict[str, Any] = {}
    for name, rows in times.items():
        ratios = [r["work"] / base["work"] for r, base in zip(rows, times["loky"], strict=True)]
        out[name] = {
            **{key: statistics.median(r[key] for r in rows) for key in ("start", "work")},
            "overhead": statistics.median(ratios) - 1, "rounds": rows,
        }  # fmt: skip
    return out


def once(args: argparse.Namespace, backend: str, steps: int) -> float:
    """Seconds of one ensemble, in a process of its own."""
    line = [
        sys.executable, "-W", "ignore", __file__, "--model", args.model, "--jobs", str(args.jobs),
        "--repetitions", str(args.repetitions), "--one", backend, str(steps),
    ]  # fmt: skip
    # Ray gives its workers the lowest priority, which on a machine with other work would be measured too.
    environment = {**os.environ, "RAY_worker_niceness": "0"}
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    told = json.loads(done.stdout.splitlines()[-1])
    return float(told["seconds"])


def cell(args: argparse.Namespace) -> dict[str, float]:
    """Seconds, bytes and memory of one cell of a comparison, in a process of its own."""
    with tempfile.TemporaryDirectory() as home:
        line = [
            sys.executable, "-W", "ignore", "-m", "promptforge", "-q", "compare", str(EXAMPLE), "--model",
            args.model, "--pattern", "tone", "--strategy", "prompt", "--seeds", "13", "--shots", str(args.shots), "--dev",
            str(EXAMPLE / "dev.csv"), "--folder",
            str(Path(home) / "cells"), "--steps", str(args.steps), "--json",
        ]  # fmt: skip
        began = time.perf_counter()
        process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
        peak = [0]
        watcher = threading.Thread(target=watch, args=(process.pid, peak))
        watcher.start()
        out, _ = process.communicate()
        seconds = time.perf_counter() - began
        watcher.join()
        if process.returncode:
            raise SystemExit("the cell failed")
        (made,) = [p for p in (Path(home) / "cells").iterdir() if p.is_dir()]
        sizes = {p: p.stat().st_size for p in made.rglob("*") if p.is_file()}
    weights = sum(size for p, size in sizes.items() if p.suffix == ".safetensors")
    return {
        "seconds": seconds,
        "training_seconds": json.loads(out)["cells"][0]["seconds"],
        "bytes": sum(sizes.values()),
        "bytes_without_weights": sum(sizes.values()) - weights,
        "files": len(sizes),
        "peak_memory": peak[0],
    }


def watch(pid: int, peak: list[int]) -> None:
    """Keep the largest resident size of a process in `peak`, until it ends."""
    process = psutil.Process(pid)
    while process.is_running():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return
            peak[0] = max(peak[0], process.memory_info().rss)
        except psutil.NoSuchProcess:
            return
        time.sleep(0.05)


if __name__ == "__main__":
    main()
