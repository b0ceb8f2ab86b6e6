"""How long `promptforge --help` takes, and what it imports.

python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

HEAVY = ("torch", "transformers", "pydantic", "numpy", "pyarrow", "datasets", "sklearn", "jinja2")


def main() -> None:
    """Print the median of twenty starts, and that of an empty interpreter."""
    command = [sys.executable, "-m", "promptforge", "--help"]
    print(f"promptforge --help: {median(command):.3f} s (median of 20)")
    print(f"python -c pass:     {median([sys.executable, '-c', 'pass']):.3f} s")
    code = f"import sys, promptforge.cli as c; c.run(['--help']); print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    print("heavy modules imported:", done.stdout.splitlines()[-1])


def median(command: list[str]) -> float:
    """Seconds of a whole process."""
    times = []
    for _ in range(20):
        start = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
