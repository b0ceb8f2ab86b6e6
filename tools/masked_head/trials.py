"""Short trainings that differ in one thing each, and a table of what came out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from train import Machine, Options, train

#: name -> what differs from the recipe that is given
TRIALS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "rank-16": {"rank": 16},
    "rank-256": {"rank": 256},
    "mask-15": {"mask": 0.15},
    "mask-40": {"mask": 0.4},
    "rare-words-masked": {"mask_power": 0.3},
    "top-3-layers": {"layers": 3},
    "zero-bias": {"unigram_bias": False},
    "length-128": {"length": 128},
    "reviews-80": {"mixture": "reviews=0.8,encyclopedia=0.1,mixed=0.1"},
    "reviews-only": {"mixture": "reviews=1"},
    "batch-2048": {"batch_tokens": 2048},
    "muon": {"optimizer": "muon"},
    "smollm2-teacher": {"teacher": "smollm2"},
}


def compare(
    options: Options, machine: Machine, base: Path, corpora: Path, work: Path, run: Path,
    only: list[str] | None,
) -> None:  # fmt: skip
    """Run each trial in its own folder under ``run``; finished ones are read, not run again."""
    if unknown := set(only or ()) - set(TRIALS):
        raise SystemExit(
            f"no such trial: {', '.join(sorted(unknown))}; there are {', '.join(TRIALS)}"
        )
    rows = []
    for name in only or TRIALS:
        folder = run / name
        if not (folder / "head.safetensors").exists():
            print(f"--- {name}", flush=True)
            train(replace(options, **TRIALS[name]), machine, base, corpora, work, folder)
        lines = (folder / "log.jsonl").read_text().splitlines()
        rows.append({"trial": name, **json.loads(lines[-1])})
    (run / "trials.json").write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """The trials as Markdown."""
    out = [
        "| trial | tokens | tokens/s | encyclopedia acc. | loss | reviews acc. | loss |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    out += [
        f"| {row['trial']} | {row['tokens']:,} | {row['tokens'] / row['seconds']:,.0f} "
        f"| {row['encyclopedia_accuracy']:.1%} | {row['encyclopedia_loss']:.3f} "
        f"| {row['reviews_accuracy']:.1%} | {row['reviews_loss']:.3f} |"
        for row in rows
    ]
    return "\n".join(out)
