"""`promptforge runs list`: figures of every kind of run, and damaged files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_scale import folder as stars_folder

Command = Callable[..., Any]
Folder = Callable[[str], Path]


def test_a_damaged_file_spoils_one_row_only(
    command: Command, tiny_model: Folder, reviews: Path
) -> None:
    base = ("train", reviews, "--model", tiny_model("bert"), "--steps", 1, "--pattern", "it-was")
    assert command(*base, "--run", "runs/whole").code == 0
    whole = command("runs", "--json").json[0]
    config = json.loads(Path("runs/whole/config.json").read_text(encoding="utf-8"))
    del config["method"]
    for name, file, text in (
        ("config-cut", "config.json", '{"strategy": '),
        ("config-list", "config.json", "[1]"),
        ("config-other", "config.json", json.dumps(config)),
        ("results-cut", "results.json", "{"),
        ("results-other", "results.json", '{"results": {"dev": {"tuned": {}}}}'),
    ):
        shutil.copytree("runs/whole", f"runs/{name}")
        Path("runs", name, file).write_text(text, encoding="utf-8")
    rows = {Path(row["run"]).name: row for row in command("runs", "list", "--json").json}
    assert rows.pop("whole") == whole and len(rows) == 5
    for name, row in rows.items():
        file = f"{name.partition('-')[0]}.json"
        assert row["state"] == "damaged" and f"runs/{name}/{file} is damaged" in row["problem"]
        assert row.keys() == whole.keys() and row["test"] is None
        assert row["task"] == (whole["task"] if file == "results.json" else None)
        shown = command("runs", "show", f"runs/{name}")
        assert shown.code == 1 and "is damaged" in shown.err
    table = command("runs")
    assert table.code == 0 and "runs/whole" in table.out
    assert "runs/config-cut/config.json is damaged: Expecting value" in " ".join(table.out.split())


def test_numbers_and_mixtures_have_figures(
    command: Command,
    tiny_model: Folder,
    tmp_path: Path,
    reviews: Path,
) -> None:
    stars = stars_folder(tmp_path / "stars", "low = 1\nhigh = 5")
    model = ("--model", tiny_model("bert"))
    assert command("train", stars, *model, "--steps", 1, "--run", "runs/a-stars").code == 0
    topics = shutil.copytree(reviews, tmp_path / "topics")
    text = (topics / "task.toml").read_text(encoding="utf-8").replace("movie-reviews", "others")
    (topics / "task.toml").write_text(text, encoding="utf-8")
    both = ("train-multitask", reviews, topics, *model, "--steps", 1, "--batch-size", 4)
    mixed = command(*both, "--run", "runs/b-mixed", "--json").json
    one, two = command("runs", "--json").json
    results = json.loads(Path("runs/a-stars/results.json").read_text(encoding="utf-8"))["results"]
    pearson = results["test"]["tuned"]["it-was"]["pearson"]
    assert (one["figure"], one["test"], one["dev"]) == ("pearson", pearson, None)
    after = [list(task["after"].values())[-1]["accuracy"] for task in mixed["tasks"].values()]
    assert (two["figure"], two["test"]) == ("mean of 2 tasks", pytest.approx(np.mean(after)))
    shown = " ".join(command("runs").out.split())
    assert f"r {pearson:.3f}" in shown and f"{100 * np.mean(after):.1f} %" in shown
    told = command("runs", "show", "runs/b-mixed").out
    assert "movie-reviews, before" in told and "others, after" in told
    different = command("runs", "diff", "runs/a-stars", "runs/b-mixed", "--json").json
    assert different["test pearson"] == [pearson, None]
    assert different["test mean of 2 tasks"] == [None, two["test"]]
