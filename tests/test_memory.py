"""What a training held at most: its own tensors, and those of the processes it starts."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import tiny
import torch

from promptforge import Settings, Task, compare, train
from promptforge.tuning.memory import PeakMemory

MEGABYTE = 10**6


def test_the_most_is_remembered_after_it_was_freed() -> None:
    with PeakMemory(torch.device("cpu")) as before:
        time.sleep(0.15)
    with PeakMemory(torch.device("cpu")) as held:
        some = torch.ones(75 * MEGABYTE)  # 300 MB
        time.sleep(0.25)
        del some
    assert 290 * MEGABYTE < held.bytes - before.bytes < 400 * MEGABYTE


def test_processes_that_were_started_count() -> None:
    code = "import time; some = bytearray(b'x' * 300_000_000); print(flush=True); time.sleep(60)"
    with PeakMemory(torch.device("cpu")) as before:
        time.sleep(0.15)
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    try:
        with PeakMemory(torch.device("cpu"), children=True) as held:
            time.sleep(0.1)
    finally:
        child.kill()
        child.communicate()
    assert held.bytes - before.bytes > 290 * MEGABYTE


def test_runs_and_comparisons_say_it(tmp_path: Any) -> None:
    task = Task.load(tiny.EXAMPLES).choose(["it-was"])
    told: dict[str, Any] = {
        "backbone": tiny.backbone("bert"), "test": task.examples("test")[:8], "shots": 4,
        "settings": Settings(steps=1),
    }  # fmt: skip
    run = train(task, task.examples("train"), **told)
    assert run.memory > 100 * MEGABYTE and run.to_json()["memory"] == run.memory
    found = compare(task, task.examples("train"), ["prompt"], seeds=(1, 2), **told)
    held = [cell.memory for cell in found.cells]
    assert all(m is not None and m > 100 * MEGABYTE for m in held)
    assert found.to_json()["summary"][0]["memory"] == max(m for m in held if m)
