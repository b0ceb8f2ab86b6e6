"""Zero-shot inference beside OpenPrompt 1.0.1 and beside the bare backbone, in one run.

    python benchmarks/zero_shot.py --data DIR --openprompt PYTHON

DIR holds sst2/test.csv (text, label). PYTHON is the interpreter of the environment described in
benchmarks/peers/requirements-openprompt.txt; without it only the backbone is compared. Both
sides use the same weights, two threads and float32, and are timed from rows in memory to
predictions; our side is timed before and after the peer, so a drifting machine shows.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from promptforge import PromptModel, Task, Template, load_model
from promptforge.backbone import Backbone
from promptforge.models import locate
from promptforge.progress import TerminalReporter

WORDS = {"negative": ["terrible"], "positive": ["great"]}
PEER_TEMPLATE = '{"placeholder":"text_a"} It was {"mask"} .'
PEER = Path(__file__).parent / "peers" / "openprompt_zero_shot.py"


def main() -> None:
    """Print rows per second, ratios and agreement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="minilm-mlm")
    parser.add_argument("--openprompt", help="python of OpenPrompt's environment")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    args = parser.parse_args()

    torch.set_num_threads(2)
    table = args.data / "sst2" / "test.csv"
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[: args.limit]
    task = Task.inline([Template("{{ text }} It was {{ mask }}.")], labels=WORDS)
    backbone = load_model(args.model, batch_tokens=args.batch_tokens, report=TerminalReporter())
    model = PromptModel(backbone, task, remember=False)
    model.predict(rows[:64])

    ours, predictions = timed(model, rows)
    floor = bare(model, rows)
    result: dict[str, Any] = {
        "rows": len(rows),
        "ours rows/s": len(rows) / ours,
        "bare backbone rows/s": len(rows) / floor,
        "ours over bare backbone (time)": ours / floor,
    }
    if args.openprompt:
        peer = openprompt(args, table)
        again, _ = timed(model, rows)
        ours = min(ours, again)
        same = sum(a == b for a, b in zip(predictions, peer["predictions"], strict=True))
        result |= {
            "ours, after the peer, rows/s": len(rows) / again,
            "openprompt rows/s": peer["rows_per_second"]["end_to_end"],
            "speed-up": len(rows) / ours / peer["rows_per_second"]["end_to_end"],
            "equal predictions": same / len(rows),
        }
    print(json.dumps(result, indent=2))


def timed(model: PromptModel, rows: list[dict[str, Any]]) -> tuple[float, list[str]]:
    """Seconds from rows to labels, and the labels."""
    start = time.perf_counter()
    predictions = model.predict(rows)
    return time.perf_counter() - start, predictions


@torch.inference_mode()
def bare(model: PromptModel, rows: list[dict[str, Any]]) -> float:
    """Seconds of the body's forward alone on the very same batches: no head, nothing around it."""
    backbone: Backbone = model.backbone
    pattern = next(iter(model.task.patterns))
    encoded = model.encode(pattern, [model.prompt(pattern, row) for row in rows])
    unique = list({(e.ids, e.types): e for e in encoded}.values())
    batches = list(backbone.batches(unique))
    start = time.perf_counter()
    for batch in batches:
        backbone.body(**batch.inputs)
    return time.perf_counter() - start


def openprompt(args: argparse.Namespace, table: Path) -> dict[str, Any]:
    """Run the peer in its own environment."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [
            args.openprompt, str(PEER), "--model", locate(args.model), "--data", str(table),
            "--template", PEER_TEMPLATE, "--words", json.dumps(WORDS), "--max-seq-length", "128",
            "--batch-size", "32", "--threads", "2", "--output", str(out),
        ]  # fmt: skip
        if args.limit:
            command += ["--limit", str(args.limit)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        result: dict[str, Any] = json.loads(out.read_text())
        return result


if __name__ == "__main__":
    main()
