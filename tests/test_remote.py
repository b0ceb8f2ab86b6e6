"""Runs and artifacts at URLs: what is published, what is carried, and what a store without a run says."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from promptforge import PromptForgeError, Settings, Task, UserError, load_model, remote, train
from promptforge.artifact import load, save

fsspec = pytest.importorskip("fsspec")

Command = Callable[..., Any]
Folder = Callable[[str], Path]
URL = "memory://bucket/run"


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty store in memory, and a cache of the test's own."""
    monkeypatch.setenv("PROMPTFORGE_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    yield memory
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def train_command(task: Path, model: Path, run: str, *more: str) -> list[object]:
    return ["train", task, "--model", model, "--run", run, "--strategy", "ensemble", "--steps", "3",
            "--pattern", "it-was", "--pattern", "tone", "--json", *more]  # fmt: skip


def test_a_run_at_a_url_is_used_by_every_command(
    command: Command, reviews: Path, tiny_model: Folder, store: Any, tmp_path: Path
) -> None:
    model = tiny_model("bert")
    ran = command(*train_command(reviews, model, URL)).json
    assert ran["run"] == URL
    there = sorted(store.find("/bucket/run"))
    assert "/bucket/run/results.json" in there
    assert "/bucket/run/members/tone/artifact.json" in there
    assert not [name for name in there if ".lock" in name or ".parts" in name or "/." in name]
    here = command(*train_command(reviews, model, str(tmp_path / "here"))).json
    assert ran["results"] == here["results"]

    # On another machine nothing is in the cache.
    remote.shutil.rmtree(tmp_path / "cache")
    table = reviews / "test.csv"
    outs = [command("predict", run, "--data", table) for run in (URL, tmp_path / "here")]
    assert outs[0].code == 0, outs[0].err
    assert outs[0].out == outs[1].out
    assert command("evaluate", f"{URL}/artifact", "--data", table, "--json").code == 0
    assert command("runs", "show", URL, "--json").json["members"] == ["it-was", "tone"]
    assert [
        r["state"] for r in command("runs", "list", "--folder", "memory://bucket", "--json").json
    ]
    made = command("report", URL, "--json").json
    assert Path(made["output"]).resolve() == (tmp_path / "report.html").resolve()
    again = command(*train_command(reviews, model, URL))
    assert again.code == 2
    assert f"A run was begun in {URL}" in again.err


def test_a_run_goes_on_elsewhere_with_the_members_that_were_published(
    command: Command, reviews: Path, tiny_model: Folder, store: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from promptforge.tuning.tuner import Tuner

    line = train_command(reviews, tiny_model("bert"), URL)
    member = Tuner.member
    trained: list[str] = []

    def second_is_interrupted(self: Tuner, one: Any) -> Any:
        if trained:
            raise KeyboardInterrupt
        trained.append(one.name)
        return member(self, one)

    monkeypatch.setattr(Tuner, "member", second_is_interrupted)
    assert command(*line).code == 130
    assert not store.exists("/bucket/run/results.json")
    first = store.cat_file("/bucket/run/members/it-was/artifact.json")
    assert not store.exists("/bucket/run/members/tone")
    monkeypatch.undo()
    monkeypatch.setenv("PROMPTFORGE_CACHE", str(tmp_path / "elsewhere"))
    done = command(*line, "--resume").json
    assert store.cat_file("/bucket/run/members/it-was/artifact.json") == first
    assert store.exists("/bucket/run/members/tone/artifact.json")
    whole = command(*train_command(reviews, tiny_model("bert"), str(tmp_path / "whole"))).json
    assert done["results"] == whole["results"]


def test_what_makes_a_folder_valid_is_uploaded_last(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    for name in ("config.json", "results.json", "artifact/artifact.json", "artifact/weights",
                 "artifact/members/a/artifact.json", "artifact/members/a/weights"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    order: list[str] = []
    put = type(store).put_file

    def noted(self: Any, here: str, there: str, **options: Any) -> None:
        order.append(there.removeprefix("/bucket/run/"))
        put(self, here, there, **options)

    monkeypatch.setattr(type(store), "put_file", noted)
    remote.send(folder, URL)
    assert order[-3:] == [
        "artifact/members/a/artifact.json",
        "artifact/artifact.json",
        "results.json",
    ]

    # New weights: while they are uploaded nothing there says that it is whole.
    (folder / "artifact/weights").write_text("others")
    (folder / "artifact/artifact.json").write_text("others")
    order.clear()

    def broken(self: Any, here: str, there: str, **options: Any) -> None:
        assert not store.exists("/bucket/run/artifact/artifact.json")
        assert not store.exists("/bucket/run/results.json")
        raise OSError("the network is down")

    monkeypatch.setattr(type(store), "put_file", broken)
    with pytest.raises(
        PromptForgeError, match=r"memory://bucket/run could not be written: the network"
    ):
        remote.send(folder, URL)
    # What is the same there is not carried again.
    monkeypatch.setattr(type(store), "put_file", noted)
    remote.send(folder, URL)
    assert "artifact/members/a/weights" not in order
    assert store.cat_file("/bucket/run/artifact/weights") == b"others"


def test_reading_brings_what_changed_and_drops_what_is_gone(store: Any, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "artifact.json").write_text("1")
    (folder / "weights").write_text("one")
    (folder / "old").write_text("old")
    remote.send(folder, "memory://bucket/a")
    cached = remote.fetched("memory://bucket/a")
    assert (cached / "weights").read_text() == "one"
    (folder / "artifact.json").write_text("2")
    (folder / "weights").write_text("two")
    store.rm("/bucket/a/old")
    (folder / "old").unlink()
    remote.send(folder, "memory://bucket/a")
    assert remote.fetched("memory://bucket/a") == cached
    assert (cached / "weights").read_text() == "two"
    assert not (cached / "old").exists()
    with pytest.raises(UserError, match="There is nothing at memory://bucket/b"):
        remote.fetched("memory://bucket/b")


def test_a_run_that_was_deleted_there_does_not_come_back(store: Any) -> None:
    with remote.shared(URL) as folder:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    store.rm("/bucket/run", recursive=True)
    with remote.shared(URL) as again:
        assert again == folder
        assert not folder.exists()


def test_what_could_not_be_published_is_published_next_time(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: Any, **__: Any) -> None:
        raise OSError("the network is down")

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "put_file", down)
        with (
            pytest.raises(PromptForgeError, match="could not be written"),
            remote.shared(URL) as folder,
        ):
            folder.mkdir(parents=True)
            (folder / "config.json").write_text("{}")
    with remote.shared(URL) as folder:
        assert (folder / "config.json").read_text() == "{}"
    assert store.cat_file("/bucket/run/config.json") == b"{}"


def test_artifacts_from_python(store: Any, tiny_model: Folder, tmp_path: Path) -> None:
    task = Task.load(tiny.EXAMPLES).choose(["tone"])
    backbone = load_model(str(tiny_model("bert")))
    rows = [e.row for e in task.examples("test")[:5]]
    run = train(
        task, task.examples("train")[::4], backbone=backbone, settings=Settings(steps=2), run=URL
    )
    want = run.classifier.predict_proba(rows)
    np.testing.assert_array_equal(load(URL, backbone=backbone).predict_proba(rows), want)
    save(run.classifier, "memory://bucket/own")
    np.testing.assert_array_equal(load("memory://bucket/own").predict_proba(rows), want)
    place = (tmp_path / "a folder").as_uri()  # file:// is a path
    save(run.classifier, place)
    assert (tmp_path / "a folder" / "artifact.json").is_file()
    np.testing.assert_array_equal(load(place).predict_proba(rows), want)
    with pytest.raises(UserError, match="no artifact in memory://bucket/none"):
        load("memory://bucket/none")


def test_a_driver_that_is_missing(
    command: Command, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as where it is not installed
    said = command("predict", "s3://bucket/run", "--data", reviews / "test.csv")
    assert said.code == 2
    assert "pip install s3fs" in said.err
    said = command("predict", "nowhere://bucket/run", "--data", reviews / "test.csv")
    assert said.code == 2
    assert "nowhere" in said.err


def test_comparison_at_a_url_is_read_not_trained_again(
    command: Command, reviews: Path, tiny_model: Folder, store: Any, tmp_path: Path
) -> None:
    line = ["compare", reviews, "--strategy", "prompt", "--seeds", "13,21", "--shots", "4", "--steps", "2",
            "--pattern", "tone", "--model", tiny_model("bert"), "--folder", "memory://bucket/cmp",
            "--json"]  # fmt: skip
    first = command(*line).json
    remote.shutil.rmtree(tmp_path / "cache")
    assert command(*line).json["cells"] == first["cells"]  # seconds of the training and all
    assert json.loads(store.cat_file("/bucket/cmp/prompt-4-13/results.json"))["seconds"]
