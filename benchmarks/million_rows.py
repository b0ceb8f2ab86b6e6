"""A million rows through `promptforge predict` with a tiny random model: memory, order, resume.

    python benchmarks/million_rows.py [--rows 1000000]

Starts the real command in a process of its own, samples its memory, interrupts it once half-way
with SIGINT, resumes it, and checks that every input row is in the output, in order, once.
"""

from __future__ import annotations

import argparse
import csv
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import tiny

TEMPLATE = "{{ text }} It was {{ mask }}."


def main() -> None:
    """Print peak memory in the first and the last tenth, rows per second, and the checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = tiny.save("bert", folder / "model")
        table = folder / "rows.csv"
        texts = tiny.corpus()
        with table.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["number", "text"])
            writer.writerows((i, f"{texts[i % len(texts)]} {i}") for i in range(args.rows))
        task = folder / "task"
        task.mkdir()
        (task / "p.jinja").write_text(TEMPLATE, encoding="utf-8")
        (task / "task.toml").write_text(
            'name = "t"\n[columns]\ninputs = ["text"]\n[labels]\nno = ["bad"]\nyes = ["good"]\n',
            encoding="utf-8",
        )
        out = folder / "out.csv"
        command = [
            sys.executable, "-m", "promptforge", "predict", str(task), "--data", str(table),
            "--model", str(model), "--output", str(out), "--resume",
        ]  # fmt: skip
        started = time.perf_counter()
        code, first = watch(command, stop_after=args.rows // 2, partial=Path(f"{out}.partial.json"))
        assert code == 130, f"an interrupted run exits with 130, not {code}"
        done = json.loads(Path(f"{out}.partial.json").read_text())["rows"]
        code, second = watch(command)
        seconds = time.perf_counter() - started
        assert code == 0, code
        with out.open(encoding="utf-8", newline="") as file:
            for i, row in enumerate(csv.DictReader(file)):
                assert int(row["number"]) == i, f"row {i} is out of order"
        assert i + 1 == args.rows
        tenth = max(1, len(second) // 10)
        print(
            json.dumps(
                {
                    "rows": args.rows,
                    "rows/s, both runs and their starts": args.rows / seconds,
                    "rows written when interrupted": done,
                    "peak MB, first run": max(first) / 2**20,
                    "peak MB, second run": max(second) / 2**20,
                    "median MB, second tenth of the second run": middle(second[tenth : 2 * tenth]),
                    "median MB, last tenth of the second run": middle(second[-tenth:]),
                },
                indent=2,
            )
        )


def middle(values: list[int]) -> float:
    """Median in MB."""
    return sorted(values)[len(values) // 2] / 2**20


def watch(
    command: list[str], stop_after: int | None = None, partial: Path | None = None
) -> tuple[int, list[int]]:
    """Run; sample the resident memory; interrupt once `stop_after` rows are written."""
    # A benchmark in the background may have been told to ignore SIGINT; its child must not.
    process = subprocess.Popen(
        command,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    memory: list[int] = []
    handle = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            memory.append(handle.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        if stop_after and partial and partial.exists():
            try:
                if json.loads(partial.read_text())["rows"] >= stop_after:
                    process.send_signal(signal.SIGINT)
                    stop_after = None
            except (ValueError, KeyError):
                pass
        time.sleep(0.5)
    return process.wait(), memory


if __name__ == "__main__":
    main()
