"""Trainings that are killed, interrupted or spread over processes end where the others end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from promptforge.tuning import checkpoint, loop
from promptforge.tuning.loop import CHECKPOINT, METRICS, Training
from promptforge.tuning.objectives import PromptObjective

Command = Callable[..., Any]
Folder = Callable[[str], Path]
STEPS = 60
WEIGHTS = Path("artifact") / "weights.safetensors"


@pytest.fixture
def options(tiny_model: Folder, reviews: Path) -> list[str]:
    """A training with dropout and ten looks at the development rows; words of one token."""
    (reviews / "test.csv").unlink()
    text = (reviews / "task.toml").read_text(encoding="utf-8").replace('test = "test.csv"\n', "")
    text = text.replace("awful", "bad").replace("wonderful", "best")
    (reviews / "task.toml").write_text(text, encoding="utf-8")
    return ["train", str(reviews), "--model", str(tiny_model("bert")), "--steps", str(STEPS),
            "--learning-rate", "1e-3", "--batch-size", "4", "--pattern", "it-was"]  # fmt: skip


# Each step takes a while, so that none of those to kill is over before the test has seen it.
SLOWLY = """
import time
from promptforge.cli import main
from promptforge.tuning.loop import Training
update = Training._update
Training._update = lambda *args: (time.sleep(0.1), update(*args))[1]
main()
"""


def start(args: Sequence[str], *before: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *(before or ("-m", "promptforge")), *args],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], file: Path, steps: int) -> None:
    """Until a training has written so many steps."""
    end = time.monotonic() + 120
    while not file.exists() or file.read_bytes().count(b"\n") < steps:
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            raise AssertionError(f"{file} has not come so far: {process.communicate()[1]}")
        time.sleep(0.001)


def figures(run: Path) -> Any:
    """What a run ended with, but for its times and memory."""
    made = json.loads((run / "results.json").read_text(encoding="utf-8"))
    del made["memory"]
    for entry in (made, *made["trained"].values()):
        del entry["seconds"]
    return made


def test_a_killed_training_goes_on_as_if_nothing_had_been(
    command: Command, options: list[str]
) -> None:
    run, metrics = Path("killed"), Path("killed/members/it-was.parts/0") / METRICS
    every = ("-o", "settings.save_every=1", "--run", str(run))
    resume: tuple[str, ...] = ()
    for steps in (1, 12, 37):
        process = start([*options, *every, *resume], "-c", SLOWLY)
        wait_for(process, metrics, steps)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert metrics.read_bytes().count(b"\n") < STEPS
        resume = ("--resume",)
    # How often it is saved may change on the way.
    assert command(*options, "--run", run, *resume).code == 0
    assert command(*options, "--run", "whole").code == 0
    assert (run / WEIGHTS).read_bytes() == (Path("whole") / WEIGHTS).read_bytes()
    assert figures(run) == figures(Path("whole"))
    assert not metrics.exists()


def test_ctrl_c_says_how_to_go_on(command: Command, options: list[str]) -> None:
    process = start([*options, "--run", "mine"], "-c", SLOWLY)
    wait_for(process, Path("mine/members/it-was.parts/0") / METRICS, 5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "kept in mine: go on with the same command and --resume." in err
    assert "Traceback" not in err
    assert Path("mine/members/it-was.parts/0", CHECKPOINT).exists()
    assert "A run was begun in mine" in command(*options, "--run", "mine").err
    assert command(*options, "--run", "mine", "--resume").code == 0
    assert command(*options, "--run", "whole").code == 0
    assert Path("mine", WEIGHTS).read_bytes() == Path("whole", WEIGHTS).read_bytes()


def test_a_run_and_its_task_can_be_moved(
    command: Command, options: list[str], reviews: Path, tmp_path: Path
) -> None:
    """Half of it was trained before: it is read, and not refused for where its template lay."""
    args = [*options, "--pattern", "tone", "--strategy", "ensemble", "--steps", "3"]
    assert command(*args, "--run", "mine").code == 0
    done = Path("mine/members/it-was/artifact.json")
    before = done.stat().st_mtime_ns
    shutil.rmtree("mine/members/tone")
    shutil.rmtree("mine/artifact")
    Path("mine/results.json").unlink()
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(reviews, moved / "reviews")
    shutil.move("mine", moved / "mine")
    args[args.index(str(reviews))] = str(moved / "reviews")
    ran = command(*args, "--run", moved / "mine", "--resume")
    assert ran.code == 0, ran.err
    assert (moved / done).stat().st_mtime_ns == before
    refused = command(*args, "--run", moved / "mine", "--resume", "--learning-rate", "1e-2")
    assert refused.code == 2 and "begun with other options" in refused.err


def test_a_kill_before_the_first_file_has_its_name(
    command: Command, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder then holds a draft and nothing else, which is no reason to refuse it."""
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if Path(target).name == "config.json":
            raise KeyboardInterrupt  # as a kill does, it leaves the draft
        return real(self, target)

    short = [*options, "--steps", "2", "--run", "mine"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        assert command(*short).code == 130
    left = [p.name for p in Path("mine").iterdir() if not p.name.startswith(".")]
    assert left == ["config.json.partial"]
    ran = command(*short, "--resume")
    assert ran.code == 0, ran.err
    assert not Path("mine/config.json.partial").exists()


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_in_the_middle_of_a_step(
    command: Command, options: list[str], monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """The step is finished first; the second Ctrl-C does not wait, and the step is made again."""
    real = PromptObjective.forward

    def forward(self: Any, targets: Any, draw: int) -> torch.Tensor:
        made = real(self, targets, draw)  # dropout has been drawn
        if draw == 7:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
        return made

    short = [*options, "--steps", "12", "-o", "settings.save_every=5", "--run", "mine"]
    with monkeypatch.context() as patch:
        patch.setattr(PromptObjective, "forward", forward)
        assert command(*short).code == 130
    _, state = checkpoint.load(Path("mine/members/it-was.parts/0") / CHECKPOINT)
    assert state["steps"] == (8 if times == 1 else 5)
    assert command(*short, "--resume").code == 0
    assert command(*options, "--steps", "12", "--run", "whole").code == 0
    assert Path("mine", WEIGHTS).read_bytes() == Path("whole", WEIGHTS).read_bytes()
    assert figures(Path("mine")) == figures(Path("whole"))


def test_what_is_finished_is_not_trained_again(
    command: Command, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = [*options, "--pattern", "tone", "--strategy", "ensemble", "--steps", "3", "--run", "mine",
            "-o", "strategy.repetitions=2"]  # fmt: skip
    assert command(*args).code == 0
    before, figured = Path("mine/artifact/members"), figures(Path("mine"))
    took = json.loads(Path("mine/results.json").read_text(encoding="utf-8"))["seconds"]
    config = json.loads(Path("mine/config.json").read_text(encoding="utf-8"))
    assert config["settings"].pop("keep") == "best"  # as in a run from before it was a setting
    Path("mine/config.json").write_text(json.dumps(config), encoding="utf-8")
    kept = {p.relative_to(before): p.read_bytes() for p in before.rglob("*.safetensors")}
    assert len(kept) == 4
    for path in ("artifact", "members/tone-2"):
        shutil.rmtree(Path("mine") / path)
    Path("mine/results.json").unlink()
    trained: list[str] = []
    real = Training.run

    def spy(self: Training, label: str = "") -> loop.Trained:
        trained.append(label)
        return real(self, label)

    monkeypatch.setattr(Training, "run", spy)
    assert (
        command("runs", "list", "--folder", ".", "--json")
        .json[0]["state"]
        .startswith("3 trainings")
    )
    assert command(*args, "--resume").code == 0
    assert trained == ["Tuning tone-2"]
    assert {p.relative_to(before): p.read_bytes() for p in before.rglob("*.safetensors")} == kept
    assert figures(Path("mine")) == figured
    assert command(*args, "--resume").code == 0
    assert len(trained) == 1
    # What was only read again is not said to have taken no time.
    again = json.loads(Path("mine/results.json").read_text(encoding="utf-8"))["seconds"]
    assert 0.5 * took < again


def test_a_grid_goes_on_where_it_stood(
    command: Command, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = [*options, "--learning-rate", "1e-2", "--steps", "4", "-o", "settings.save_every=1"]
    assert command(*args, "--run", "whole").code == 0
    real, updates = Training._update, 0

    def update(self: Training, module: Any, optimizer: Any) -> float:
        nonlocal updates
        updates += 1
        if updates == 6:
            raise RuntimeError("the machine burns")
        return real(self, module, optimizer)

    monkeypatch.setattr(Training, "_update", update)
    assert "the machine burns" in command(*args, "--run", "mine").err
    assert command(*args, "--run", "mine", "--resume").code == 0
    assert updates == 9  # 4 of the first pair, 1 and a failure of the second, 3 that were left
    assert Path("mine", WEIGHTS).read_bytes() == Path("whole", WEIGHTS).read_bytes()


@pytest.mark.parametrize("strategy", ["finetune", "prompt with alpha"])
def test_two_processes_train_as_one(command: Command, options: list[str], strategy: str) -> None:
    """With the command that the loop's page names: losses equal to 1e-4, and 99.5 % of the weights.

    One look at dev and one setting: where two tie, the order of the sums decides which is kept.
    In float32: bfloat16 rounds each process's own sums to three digits.
    """
    strategy, *alpha = strategy.split(" with ")
    options = ["8" if before == "--batch-size" else o for before, o in pairwise(["", *options])]
    args = [*options, "--precision", "float32", "--steps", "5", "--eval-every", "5", "-o", "settings.dropout=false",
            "--strategy", strategy, "-o", "settings.save_every=2",
            *(("-o", "strategy.alpha=0.5") if alpha else ())]  # fmt: skip
    said = loop.__doc__ or ""
    launch = "-m torch.distributed.run --nproc_per_node 2 -m -- promptforge"
    assert f"ACCELERATE_USE_CPU=true python {launch} train TASK" in said
    process = start([*args, "--run", "two", "--json"], *launch.split(), ACCELERATE_USE_CPU="true")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "find_unused_parameters" not in err
    assert err.count("Loading") == 1 and json.loads(out)["run"] == "two"  # one of them speaks
    one = command(*args, "--run", "one", "--json").json
    assert figures(Path("two"))["trained"].keys() == one["trained"].keys()
    losses = [
        [e["loss"] for t in json.loads(Path(r, "results.json").read_text())["trained"].values() for e in t["curve"]]
        for r in ("one", "two")
    ]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    tensors = [load_file(Path(r, WEIGHTS)) for r in ("one", "two")]
    assert tensors[0].keys() == tensors[1].keys()
    # Adam gives a gradient that is rounding alone a whole step, so single weights may differ.
    apart = torch.cat([(v - tensors[1][n]).abs().flatten() for n, v in tensors[0].items()])
    assert float((apart < 1e-4).float().mean()) > 0.995
    assert float(apart.max()) < 0.01  # what five steps can move
    assert {p.name for p in Path("two").iterdir()} >= {"config.json", "results.json", "artifact"}
    assert not list(Path("two").rglob("*.partial")) and not list(Path("two").rglob("*.parts"))
