"""Trackers: what TensorBoard reads is what the run's own files say."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from promptforge import Settings, Task, UserError, load_model, train
from promptforge.tuning import tracking
from promptforge.tuning.loop import Training

Command = Callable[..., Any]
Folder = Callable[[str], Path]
LOGS = Path("run/logs/tensorboard")


@pytest.fixture
def options(tiny_model: Folder, reviews: Path) -> list[Any]:
    return ["train", reviews, "--model", tiny_model("bert"), "--steps", 4, "--pattern", "it-was", "--run", "run",
            "--eval-every", 2, "--strategy", "ensemble", "--tracker", "tensorboard"]  # fmt: skip


def scalars(part: str) -> dict[str, list[tuple[int, float]]]:
    """tag -> step and value, from the event files right in a part's folder."""
    events = EventAccumulator(str(LOGS / part)).Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def same(found: list[tuple[int, float]], wanted: Sequence[tuple[int, float]]) -> bool:
    return found == [(step, pytest.approx(value, rel=1e-5)) for step, value in wanted]


def test_tensorboard_reads_what_the_run_says(command: Command, options: Sequence[Any]) -> None:
    assert command(*options, "--pattern", "tone").code == 0
    results = json.loads(Path("run/results.json").read_text(encoding="utf-8"))
    for member in ("it-was", "tone"):
        found, curve = scalars(f"members/{member}"), results["trained"][member]["curve"]
        assert same(found["train/loss"], [(e["step"], e["loss"]) for e in curve])
        assert [step for step, _ in found["train/learning_rate"]] == [1, 2, 3, 4]
        assert found["train/learning_rate"][1][1] == pytest.approx(3e-5)
        looks = [(e["step"], e["score"]) for e in curve if "score" in e]
        assert len(looks) == 2 and same(found["dev/score"], looks)
    found = scalars("run")
    for split in ("dev", "test"):
        for who, parts in results["results"][split].items():
            for part, figures in parts.items():
                for name in ("accuracy", "macro_f1"):
                    assert same(found[f"{split}/{who}/{part}/{name}"], [(0, figures[name])])
    (config,) = (LOGS / "run").glob("*/hparams.yml")
    assert "settings.steps: 4" in config.read_text(encoding="utf-8")


def test_a_resumed_training_has_every_step_once(
    command: Command, options: Sequence[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    every, real = (*options, "-o", "settings.save_every=2"), Training._update
    with monkeypatch.context() as patch:
        patch.setattr(
            Training, "_update",
            lambda self, *given: 1 / 0 if self.state.steps == 3 else real(self, *given),
        )  # fmt: skip
        assert command(*every).code == 1
    assert [step for step, _ in scalars("members/it-was")["train/loss"]] == [1, 2, 3]
    assert command(*every, "--resume").code == 0
    assert [step for step, _ in scalars("members/it-was")["train/loss"]] == [1, 2, 3, 4]
    # What is finished is not logged again, and another tracker is no other run.
    shutil.rmtree(LOGS)
    assert command(*every, "--resume").code == 0
    assert (LOGS / "run").is_dir() and not (LOGS / "members").exists()
    assert command(*every[:-4], *every[-2:], "--resume").code == 0


def test_every_pair_and_every_process_has_a_part(command: Command, options: Sequence[Any]) -> None:
    rates = ("--learning-rate", "1e-3", "--learning-rate", "1e-4")
    assert command(*options, *rates, "--pattern", "tone", "--jobs", 2).code == 0
    assert sorted(p.name for p in (LOGS / "members").iterdir()) == [
        f"{member}, learning rate {rate}, batch 8"
        for member in ("it-was", "tone")
        for rate in ("0.0001", "0.001")
    ]


def test_runs_within_a_run_have_parts_of_their_own(
    command: Command, options: Sequence[Any]
) -> None:
    of = ("-o", "strategy.of=prompt", "-o", "strategy.repetitions=2")
    assert command(*options, *of).code == 0
    trained = json.loads(Path("run/results.json").read_text(encoding="utf-8"))["trained"]
    for r in (1, 2):
        found = scalars(f"members/prompt-{r}/members/it-was")
        curve = trained[f"prompt-{r}/it-was"]["curve"]
        assert same(found["train/loss"], [(e["step"], e["loss"]) for e in curve])


def test_trackers_in_forge_toml(command: Command, options: Sequence[Any]) -> None:
    Path("forge.toml").write_text('[train]\ntracker = ["tensorboard"]\n', encoding="utf-8")
    assert command(*options[:-2]).code == 0
    assert scalars("members/it-was")["train/loss"]


def test_what_is_missing_is_said_first(
    command: Command,
    options: Sequence[Any],
    tiny_model: Folder,
    reviews: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = command(*options, "--tracker", "tensorbord")
    assert wrong.code == 2 and "Did you mean 'tensorboard'" in wrong.err
    find = importlib.util.find_spec
    monkeypatch.setattr(
        tracking, "find_spec", lambda name: None if name == "tensorboard" else find(name)
    )
    missing = command(*options)
    assert missing.code == 2 and "pip install tensorboard" in missing.err
    assert not Path("run").exists()
    monkeypatch.setattr(tracking, "find_spec", find)
    task = Task.load(reviews).choose(["it-was"])
    with pytest.raises(UserError, match="give run=FOLDER"):
        train(
            task, task.examples("train"), backbone=load_model(str(tiny_model("bert"))),
            settings=Settings(steps=1), tracker=["tensorboard"],
        )  # fmt: skip
