"""`promptforge train --seeds`: a run with each seed, and their mean."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import labelling
import numpy as np
import pytest

from promptforge import Settings, Task, compare, train
from promptforge.backbone import load_model

Command = Callable[..., Any]
Folder = Callable[[str], Path]
SEEDS = (13, 21, 42)
NAME = "movie-reviews-prompt-{}"


@pytest.fixture
def options(tiny_model: Folder, reviews: Path) -> tuple[Any, ...]:
    return ("train", reviews, "--model", tiny_model("bert"), "--steps", 2, "--pattern", "it-was",
            "--shots", 4, "--learning-rate", "0.01")  # fmt: skip


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of the trainings that `train` begins."""
    seeds: list[int] = []

    def counted(*given: Any, **more: Any) -> Any:
        seeds.append(more["seed"])
        return train(*given, **more)

    monkeypatch.setattr("promptforge.tuning.compare.train", counted)
    return seeds


def said(ran: Any) -> str:
    assert (ran.code, ran.out) == (2, "") and "Traceback" not in ran.err, ran.err
    return " ".join(ran.err.replace("│", " ").split())


def accuracy(folder: Path, split: str, who: str) -> float:
    told = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return float(told["results"][split][who]["it-was"]["accuracy"])


def test_mean_and_deviation_over_runs_as_single_ones(
    command: Command, options: Sequence[Any]
) -> None:
    found = command(*options, "--seeds", "13,21,42", "--json").json
    assert [(r["seed"], r["run"]) for r in found["runs"]] == [
        (seed, f"runs/{NAME.format(seed)}") for seed in SEEDS
    ]
    assert found["figure"] == "accuracy"
    for split in ("dev", "test"):
        for who in ("zero-shot", "tuned"):
            values = [accuracy(Path(r["run"]), split, who) for r in found["runs"]]
            line = found["summary"][split][who]
            assert line["values"] == values
            assert line["mean"] == pytest.approx(np.mean(values))
            assert line["deviation"] == pytest.approx(np.std(values, ddof=1))
        majority = [r["results"][split]["tuned"]["it-was"]["majority"] for r in found["runs"]]
        assert found["summary"][split]["majority"]["mean"] == pytest.approx(np.mean(majority))
    assert len({run["digests"]["train"] for run in found["runs"]}) == 3  # each draws its own rows
    # The run of one seed alone is the same run in the same folder.
    alone = command(*options, "--seed", 21, "--run", "alone", "--json").json
    assert alone["results"] == found["runs"][1]["results"]
    configs = [
        Path(p, "config.json").read_text() for p in ("alone", "runs/movie-reviews-prompt-21")
    ]
    assert configs[0] == configs[1]
    shown = command(*options, "--seeds", "13,21,42", "--resume").out
    for part in ("seed 21", "tuned, mean", "zero-shot, mean", "majority class, mean", "deviation"):
        assert part in shown
    assert f"{100 * found['summary']['test']['tuned']['mean']:.1f} %" in shown


def test_resume_trains_the_seeds_that_are_missing(
    command: Command, options: Sequence[Any], trained: list[int]
) -> None:
    command(*options, "--seed", 13)
    more = (*options, "--seeds", "13,21")
    assert "A run was begun in runs/movie-reviews-prompt-13" in said(command(*more))
    first = command(*more, "--resume", "--json").json
    assert trained == [21]
    three = command(*options, "--seeds", "13,21,42", "--resume", "--json").json
    assert trained == [21, 42] and three["runs"][:2] == first["runs"]
    # A run of other options is neither read nor overwritten, nor is one of other test rows.
    err = said(command(*more, "--resume", "--steps", 3))
    assert "runs/movie-reviews-prompt-13" in err and "--run" in err
    assert "'settings.steps' (2 there, 3 now)" in err
    assert "other rows: 'test'" in said(
        command(*more, "--resume", "--test", options[1] / "dev.csv")
    )
    assert trained == [21, 42]


def test_interrupted_it_goes_on(
    command: Command, options: Sequence[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def second(*given: Any, **more: Any) -> Any:
        if more["seed"] == 21:
            raise KeyboardInterrupt
        return train(*given, **more)

    more = (*options, "--seeds", "13,21", "--run", "mine")
    with monkeypatch.context() as patch:
        patch.setattr("promptforge.tuning.compare.train", second)
        ran = command(*more)
    assert ran.code == 130
    assert "kept in mine: go on with the same command and --resume." in ran.err
    assert [p.name for p in Path("mine").iterdir()] == [NAME.format(13)]
    assert len(command(*more, "--resume", "--json").json["runs"]) == 2


def test_components_and_their_options_reach_every_run(
    command: Command, options: Sequence[Any], trained: list[int]
) -> None:
    more = (*options, "--strategy", "ensemble", "-o", "repetitions=2", "--method", "bitfit",
            "--demonstrations", "random", "--samples", 2, "--no-compare-untrained")  # fmt: skip
    found = command(*more, "--seeds", "13", "--json").json
    assert "zero-shot" not in found["summary"]["test"]
    assert found["summary"]["test"]["tuned"]["deviation"] is None
    (run,) = found["runs"]
    assert run["run"] == "runs/movie-reviews-ensemble-bitfit-13"
    shutil.move(run["run"], "one")
    command(*more, "--seed", 13)
    configs = [Path(p, "config.json").read_text() for p in ("one", run["run"])]
    assert configs[0] == configs[1]
    assert trained == [13]


def test_wrong_seeds(command: Command, options: Sequence[Any], reviews: Path) -> None:
    assert "--seed and --seeds are both given" in said(
        command(*options, "--seeds", "1,2", "--seed", 3)
    )
    assert "whole numbers with commas" in said(command(*options, "--seeds", "1,b"))
    assert "has 1 twice" in said(command(*options, "--seeds", "1,2,1"))
    assert "has -1: the least is 0" in said(command(*options, "--seeds", "1,-1"))
    written = ("--seeds", "1,2", "--objective", "generate")
    assert "not for --objective generate" in said(command(*options, *written))
    assert "not for several TASKs" in said(command("train", reviews, reviews, "--seeds", "1"))
    assert not Path("runs").exists()


def test_what_is_typed_goes_over_the_file(command: Command, options: Sequence[Any]) -> None:
    Path("forge.toml").write_text('[train]\nseeds = "1,2"\n', encoding="utf-8")
    assert command(*options, "--seed", 3, "--json").json["run"].endswith("prompt-3")
    Path("forge.toml").write_text("[train]\nseed = 3\n", encoding="utf-8")
    assert len(command(*options, "--seeds", "1,2", "--json").json["runs"]) == 2
    Path("forge.toml").write_text('[train]\nseed = 3\nseeds = "1,2"\n', encoding="utf-8")
    assert "both given" in said(command(*options))


def test_python_has_it_by_comparing_one_strategy(
    command: Command, options: Sequence[Any], tiny_model: Folder, reviews: Path
) -> None:
    found = command(*options, "--seeds", "13,21", "--json").json
    task = Task.load(reviews).choose(["it-was"])
    compared = compare(
        task, task.examples("train"), ["prompt"], backbone=load_model(str(tiny_model("bert"))),
        test=task.examples("test"), shots=4, seeds=(13, 21),
        settings=Settings(steps=2, learning_rate=0.01),
    )  # fmt: skip
    (line,) = compared.summary()
    told = found["summary"]["test"]["tuned"]
    assert (line["accuracy"], line["deviation"]) == (told["mean"], pytest.approx(told["deviation"]))


def test_label_sets(command: Command, tiny_model: Folder, tmp_path: Path) -> None:
    folder = labelling.films_folder(tmp_path)
    base = ("train", folder, "--model", tiny_model("bert"), "--shots", 2, "--steps", 1)
    found = command(*base, "--seeds", "1,2", "--json").json
    assert found["figure"] == "micro_f1" and found["summary"]["test"]["majority"]["mean"] > 0
    assert "most frequent labels, mean" in command(*base, "--seeds", "1,2", "--resume").out


def test_multitask_is_a_command(command: Command, options: Sequence[Any], reviews: Path) -> None:
    for tasks in ((), (reviews,)):
        err = said(command(*options, *tasks, "--strategy", "multitask"))
        assert "There is no strategy called 'multitask'" in err
        assert "'promptforge train-multitask' trains one model on many tasks" in err
    assert "train-multitask" not in said(command(*options, "--strategy", "multi"))
