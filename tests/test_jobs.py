"""Members in processes of their own give what one process gives, and share nothing but files."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from joblib import parallel_config

from promptforge import (
    PromptClassifier,
    PromptForgeError,
    Settings,
    Task,
    UserError,
    compare,
    load_model,
    train,
)
from promptforge.plugins import build
from promptforge.progress import KeptWarnings, Reporter
from promptforge.tuning import backends, jobs
from promptforge.tuning import tuner as tuners
from promptforge.tuning.tuner import Tuner

Command = Callable[..., Any]
Folder = Callable[[str], Path]


def tuner(model: Path, **changes: Any) -> Tuner:
    task = Task.load(tiny.EXAMPLES).choose(["it-was", "tone"])
    task.check()  # as the command does: the templates are compiled before they are sent
    backbone = load_model(str(model))
    return Tuner(backbone, task, task.examples("train")[::4], settings=Settings(steps=3), **changes)


def test_two_processes_give_what_one_gives(
    tiny_model: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = build("strategy", "ensemble")
    rows = [e.row for e in Task.load(tiny.EXAMPLES).examples("test")[:20]]
    one = strategy.train(tuner(tiny_model("bert"))).predict_proba(rows)
    folder = tmp_path / "run"
    two = strategy.train(tuner(tiny_model("bert"), jobs=2, folder=folder)).predict_proba(rows)
    np.testing.assert_allclose(two, one, atol=1e-6)
    assert sorted(p.name for p in (folder / "members").iterdir()) == ["it-was", "tone"]
    # What is done is read, not trained again.
    monkeypatch.setattr(tuners, "job_queue", None)
    again = strategy.train(tuner(tiny_model("bert"), jobs=2, folder=folder)).predict_proba(rows)
    np.testing.assert_array_equal(again, two)


def test_without_a_folder_nothing_stays(tiny_model: Folder) -> None:
    made = build("strategy", "ensemble").train(tuner(tiny_model("bert"), jobs=2))
    assert set(made.members) == {"it-was", "tone"}


def test_what_a_failing_job_warned_of_is_told(tiny_model: Folder) -> None:
    def work(_: Any, __: Any, name: str, fails: bool, report: Reporter) -> str:
        report.warn("these rows are odd")
        report.warn(f"{name} has a row that is odd")
        if fails:
            raise UserError("a row is empty")
        return name

    for items in ({"one": True}, {"one": False, "two": True}):
        told = KeptWarnings()
        with pytest.raises(UserError, match=f"^{list(items)[-1]}: a row is empty"):
            jobs.run(
                work, items, backbone=load_model(str(tiny_model("bert"))), jobs=2, report=told,
                what="Looking", unit="rows",
            )  # fmt: skip
        assert told.kept.count("these rows are odd") == 1
        assert f"{list(items)[-1]} has a row that is odd" in told.kept


def test_a_model_made_in_memory_is_tuned_in_this_process() -> None:
    task = Task.load(tiny.EXAMPLES).choose(["it-was", "tone"])
    alone = Tuner(tiny.backbone("bert"), task, task.examples("train")[::4],
                  settings=Settings(steps=1), jobs=2)  # fmt: skip
    with pytest.warns(UserWarning, match="made in memory"):
        build("strategy", "ensemble").train(alone)


# --- what a worker does --------------------------------------------------------------------


def failing(backbone: Any, folder: Any, name: str, item: int, report: Reporter) -> int:
    if item == 2:
        raise ValueError("two is too many")
    if item == 3:
        raise UserError("three is not allowed.")
    return item


@pytest.mark.parametrize(
    ("bad", "said", "kind"),
    [
        (2, "second: ValueError: two is too many", PromptForgeError),
        (3, "second: three is", UserError),
    ],
)
def test_an_error_names_its_job(tiny_model: Folder, bad: int, said: str, kind: type) -> None:
    backbone = load_model(str(tiny_model("bert")))
    with parallel_config(backend="threading"), pytest.raises(PromptForgeError, match=said) as told:
        jobs.run(failing, {"first": 1, "second": bad}, backbone=backbone, jobs=2, report=Reporter(),
                 what="Trying", unit="jobs")  # fmt: skip
    assert type(told.value) is kind


def test_a_worker_that_does_not_see_the_folder_sends_back_what_it_made(
    tiny_model: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = build("strategy", "ensemble")
    rows = [e.row for e in Task.load(tiny.EXAMPLES).examples("test")[:20]]
    one = strategy.train(tuner(tiny_model("bert"))).predict_proba(rows)
    monkeypatch.setattr(jobs, "_sees", lambda told: False)  # as on another machine
    folder = tmp_path / "run"
    with parallel_config(backend="threading"):
        two = strategy.train(tuner(tiny_model("bert"), jobs=2, folder=folder)).predict_proba(rows)
    np.testing.assert_allclose(two, one, atol=1e-6)
    assert sorted(p.name for p in (folder / "members").iterdir()) == ["it-was", "tone"]


def test_a_model_with_other_weights_on_a_worker_is_refused(
    tiny_model: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_model(str(tiny_model("bert")))
    monkeypatch.setattr(jobs, "_backbone", lambda *_: load_model(str(tiny_model("gpt2"))))
    with (
        parallel_config(backend="threading"),
        pytest.raises(UserError, match="has other weights on"),
    ):
        jobs.run(
            failing,
            {"a": 1, "b": 1},
            backbone=backbone,
            jobs=2,
            report=Reporter(),
            what="",
            unit="",
        )


# --- where jobs run ------------------------------------------------------------------------


def test_joblibs_own_configuration_is_heard(
    tiny_model: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    run = jobs.run

    def noted(*args: Any, **given: Any) -> Any:
        asked.append(given["jobs"])
        return run(*args, **given)

    monkeypatch.setattr(tuners.job_queue, "run", noted)
    texts, labels = ["bad film", "good film", "awful", "lovely"], ["bad", "good", "bad", "good"]
    plain = PromptClassifier(
        ["{{ text }} It was {{ mask }}.", "{{ text }} All {{ mask }}."], model=str(tiny_model("bert")),
        strategy="ensemble", steps=2,
    )  # fmt: skip
    want = plain.fit(texts, labels).predict_proba(texts)
    assert not asked
    with parallel_config(backend="threading", n_jobs=2):
        found = plain.fit(texts, labels).predict_proba(texts)
    assert asked == [2]
    np.testing.assert_allclose(found, want, atol=1e-6)
    plain.set_params(n_jobs=3, backend="loky")
    with parallel_config(backend="threading", n_jobs=2):
        assert backends.backend_class("loky") is backends.Loky
        with backends.started(plain.backend, plain.n_jobs) as many:
            assert many == 3


def test_cells_of_a_comparison_are_jobs(tiny_model: Folder, tmp_path: Path) -> None:
    task = Task.load(tiny.EXAMPLES).choose(["tone"])
    rows, test = task.examples("train"), task.examples("test")[:20]
    options: dict[str, Any] = {
        "backbone": load_model(str(tiny_model("bert"))), "test": test, "shots": 4, "seeds": [13, 21],
        "settings": Settings(steps=2), "class_weight": "balanced",
    }  # fmt: skip
    one = compare(task, rows, ["prompt"], **options)
    with parallel_config(backend="threading"):
        two = compare(task, rows, ["prompt"], jobs=2, folder=tmp_path / "cells", **options)
    assert [c.score for c in two.cells] == [c.score for c in one.cells]
    assert sorted(p.name for p in (tmp_path / "cells").iterdir()) == ["prompt-4-13", "prompt-4-21"]


def test_wrong_backends_are_said_before_a_model_is_loaded(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*more: str) -> str:
        ran = command("train", tiny.EXAMPLES, "--model", "nowhere", *more)
        assert ran.code == 2
        assert "Traceback" not in ran.err
        return str(ran.err)

    assert "Did you mean 'dask'" in said("--backend", "dusk")
    assert "Did you mean 'address'" in said("--backend", "dask", "-o", "backend.addres=x")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "ray" else find(name, *a)
    )
    assert "pip install ray" in said("--backend", "ray", "--jobs", "2")


@pytest.mark.parametrize("wrong", [0, -2])
def test_a_number_of_jobs_that_is_none(tiny_model: Folder, wrong: int) -> None:
    task = Task.load(tiny.EXAMPLES).choose(["tone"])
    backbone = load_model(str(tiny_model("bert")))
    with pytest.raises(UserError, match=f"jobs is {wrong}"):
        train(task, task.examples("train"), backbone=backbone, jobs=wrong)
    with pytest.raises(UserError, match="side by side: say how many"):
        train(task, task.examples("train"), backbone=backbone, backend="dask")


def test_ctrl_c_ends_with_130_and_the_run_goes_on(
    command: Command, reviews: Path, tiny_model: Folder, tmp_path: Path
) -> None:
    def line(run: Path, *more: str) -> list[str]:
        return ["train", str(reviews), "--model", str(tiny_model("bert")), "--run", str(run), "--strategy",
                "ensemble", "--pattern", "it-was", "--pattern", "tone", "--steps", "12", "--jobs", "2",
                "-o", "strategy.repetitions=2", "--no-compare-untrained", "--json", *more]  # fmt: skip

    dev = reviews / "dev.csv"  # read ten times in each training
    dev.write_text("".join(dev.read_text("utf-8").splitlines(keepends=True)[:9]), "utf-8")
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "promptforge", *line(run)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True, env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    end = time.monotonic() + 120
    while not list(run.glob("members/*/artifact.json")):  # one is done, others are not
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "--resume" in err
    done = {p: p.read_bytes() for p in run.glob("members/*/artifact.json")}
    assert 1 <= len(done) < 4
    # With another number of jobs: that is no part of what is trained.
    resumed = command(*line(run, "--resume", "--jobs", "1")).json
    assert all(p.read_bytes() == before for p, before in done.items())
    whole = command(*line(tmp_path / "whole", "--jobs", "1")).json
    assert resumed["results"] == whole["results"]
