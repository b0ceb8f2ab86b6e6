"""`promptforge report` of several runs: which ones differ in nothing but the seed, and on which rows."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import labelling
import pytest
import tiny

from promptforge import Settings, Task, load_model, train
from promptforge.data import Example

pytest.importorskip("matplotlib")

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run with two seeds, by names that are awkward in a plot."""
    home = tmp_path_factory.mktemp("runs")
    task = Task.load(tiny.EXAMPLES).choose(["it-was"])
    backbone = load_model(str(tiny.save("bert", tmp_path_factory.mktemp("model"))))
    for name, seed in (("a$x^$", 13), ("電影", 21)):
        train(task, task.examples("train"), backbone=backbone, test=task.examples("test")[:30],
              shots=4, seed=seed, settings=Settings(steps=1), run=home / name)  # fmt: skip
    return home


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "mine"))


def change(path: Path, change: Callable[[Any], None]) -> None:
    told = json.loads(path.read_text(encoding="utf-8"))
    change(told)
    path.write_text(json.dumps(told), encoding="utf-8")


def over_seeds(command: Command, *runs: Path) -> list[Any]:
    ran = command("report", *runs, "--output", "r.html", "--json")
    assert ran.code == 0 and "Warning" not in ran.err, ran.err
    comparison = ran.json["comparison"]
    return [group for group in comparison["seeds"] if len(group["seeds"]) > 1]


def accuracy(run: Path) -> float:
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))["results"]
    value: float = results["test"]["tuned"]["it-was"]["accuracy"]
    return value


def test_names_are_text_in_plots(command: Command, runs: Path) -> None:
    (group,) = over_seeds(command, runs)
    assert group["names"] == ["a$x^$", "電影"] and group["seeds"] == [13, 21]
    drawn = Path("r.html").read_text(encoding="utf-8")
    assert drawn.count("a$x^$</text>") == 1 and "電影</text>" in drawn


def test_a_seed_counts_once(command: Command, runs: Path) -> None:
    one, two = runs / "a$x^$", runs / "電影"
    copy = Path(shutil.copytree(one, runs / "copy"))
    results = copy / "results.json"
    change(results, lambda r: r["results"]["test"]["tuned"]["it-was"].update(accuracy=0.9))
    (group,) = over_seeds(command, runs)
    assert group["names"] == ["copy", "a$x^$", "電影"] and group["seeds"] == [13, 21]
    values = [(0.9 + accuracy(one)) / 2, accuracy(two)]
    assert group["values"] == pytest.approx(values)
    assert group["deviation"] == pytest.approx(statistics.stdev(values))
    # A run that is named twice, by two paths, is one run.
    told = command("report", one, runs / ".." / "mine" / one.name, "--json").json
    assert [run["run"] for run in told["runs"]] == [str(one)]


def test_figures_of_other_rows_are_no_figures_of_these(command: Command, runs: Path) -> None:
    two = runs / "電影"
    change(two / "results.json", lambda r: r["digests"].update(test="0" * 32))
    assert not over_seeds(command, runs)
    # Development rows are another split: no run is the best of those two.
    change(two / "results.json", lambda r: r["results"].update(dev=r["results"].pop("test")))
    told = command("report", runs, "--output", "r.html", "--json").json["comparison"]
    assert not told["seeds"] and not any(run["best"] for run in told["runs"])
    assert "on different splits" in Path("r.html").read_text(encoding="utf-8")


def test_what_follows_from_a_draw_or_a_place_is_no_option(command: Command, runs: Path) -> None:
    config = runs / "電影" / "config.json"
    change(
        config, lambda c: c["task"]["patterns"]["it-was"].update(origin="elsewhere/it-was.jinja")
    )
    assert len(over_seeds(command, runs)) == 1
    told = command("runs", "diff", runs / "a$x^$", runs / "電影", "--json").json
    assert "seed" in told and not any("origin" in option for option in told)
    # Weights that balance three rows with one, and five with three.
    balanced = {"negative": 2 / 3, "positive": 2.0}
    change(config, lambda c: c.update(class_weight=balanced))
    assert not over_seeds(command, runs)  # the other run has none
    other = {"negative": 0.8, "positive": 4 / 3}
    change(runs / "a$x^$" / "config.json", lambda c: c.update(class_weight=other))
    assert len(over_seeds(command, runs)) == 1
    change(config, lambda c: c.update(class_weight={"negative": 1.0, "positive": 2.0}))
    assert not over_seeds(command, runs)


def test_zero_shot_has_its_own_threshold(command: Command, tmp_path: Path) -> None:
    rows: list[Example] = labelling.some(16)
    train(labelling.task(), rows, backbone=tiny.backbone("bert"), test=rows, settings=Settings(steps=1),
          run=tmp_path / "sets")  # fmt: skip

    def all_labels(results: Any) -> None:
        by = results["results"]["test"]
        for who, threshold in (("tuned", 1.0), ("zero-shot", 0.0)):
            list(by[who].values())[-1]["threshold"] = threshold

    change(tmp_path / "sets" / "results.json", all_labels)
    command("report", tmp_path / "sets", "--output", "r.html")
    page = Path("r.html").read_text(encoding="utf-8")
    assert "said <b>none</b>" in page and f"zero-shot said {', '.join(labelling.LABELS)}" in page


def test_forge_toml_has_the_reports_options(command: Command, runs: Path) -> None:
    Path("forge.toml").write_text("[report]\nrows = 1\n", encoding="utf-8")
    ran = command("report", runs / "電影", "--output", "r.html")
    assert "Loading the model of" in ran.err, ran.err
    Path("forge.toml").write_text("[report]\nrowz = 1\n", encoding="utf-8")
    wrong = command("report", runs)
    assert wrong.code == 2 and "rowz" in wrong.err and "'rows'" in wrong.err
