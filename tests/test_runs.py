"""`promptforge runs list`, and a run in place of TASK: what a command takes from it, and what not."""

from __future__ import annotations

import csv
import errno
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_scale import folder as stars_folder

from promptforge import UserError
from promptforge.data import read_rows

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


# --- the folder -------------------------------------------------------------------------------


@pytest.fixture
def options(tiny_model: Folder, reviews: Path) -> tuple[Any, ...]:
    return ("train", reviews, "--model", tiny_model("bert"), "--steps", 3, "--pattern", "it-was",
            "--run", "run")  # fmt: skip


@pytest.mark.parametrize("tracker", [(), ("tensorboard",)])
def test_a_mistake_leaves_the_folder_free(
    command: Command,
    options: Sequence[Any],
    monkeypatch: pytest.MonkeyPatch,
    tracker: Sequence[str],
) -> None:
    """Where nothing was trained yet there is nothing to go on with."""
    if tracker:
        pytest.importorskip("tensorboard")
    args = (*options, *(part for name in tracker for part in ("--tracker", name)))

    def wrong(*_: Any) -> None:
        raise UserError("The task and the model do not fit.")

    with monkeypatch.context() as patch:
        patch.setattr("promptforge.tuning.tuner.Tuner.member", wrong)
        assert "do not fit" in error(command(*args))
        assert not Path("run").exists()
        Path("run").mkdir()
        Path("run/.mine").touch()
        assert "do not fit" in error(command(*args))
        assert {p.name for p in Path("run").iterdir()} <= {".mine", ".lock"}
    assert command(*args, "--steps", 2).code == 0
    with monkeypatch.context() as patch:  # what is there is kept, whatever happens later
        patch.setattr("promptforge.tuning.tuner.Tuner.member", wrong)
        assert "do not fit" in error(command(*args, "--steps", 2, "--resume"))
    assert command(*args, "--steps", 2, "--resume").code == 0


def test_another_folder_is_refused_before_a_model_loads(
    command: Command, reviews: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").touch()
    said = error(command("train", reviews, "--model", "nowhere", "--run", tmp_path))
    assert "holds something else than a run" in said


def test_a_folder_that_may_not_be_written_to(
    command: Command, options: Sequence[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before the model is loaded, and without a model's or PromptForge's fault in it."""
    Path("taken").touch()
    with monkeypatch.context() as patch:
        patch.setattr("promptforge.backbone.load_model", None)
        assert "taken is a file, so taken/run cannot be made" in error(
            command(*options[:-1], "taken/run")
        )
        patch.setattr("os.access", lambda *_: False)
        assert "may not be written to: permission denied" in error(
            command(*options[:-1], "new/run")
        )
        compared = ("compare", *options[1:-2], "--strategy", "prompt", "--folder", "new")
        assert "with --folder" in error(command(*compared))

    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    assert "run may not be written to: Permission denied" in error(command(*options))


def test_a_model_s_folder_is_found_from_elsewhere(
    command: Command, options: Sequence[Any], tiny_model: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model("bert"), "bert")
    args = [*options[:-1], "mine", "--model", "./bert", "--steps", 1]
    assert command(*args).code == 0
    config = Path("mine/config.json")
    assert json.loads(config.read_text(encoding="utf-8"))["model"]["name"] == str(
        Path("bert").resolve()
    )
    text = config.read_text(encoding="utf-8").replace(str(Path("bert").resolve()), "./bert")
    config.write_text(text, encoding="utf-8")  # as earlier versions wrote it
    assert command(*args, "--resume").code == 0
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert command("evaluate", "../mine", "--data", "../reviews/dev.csv").code == 0


def test_home_in_paths(
    command: Command, options: Sequence[Any], reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Path("home").absolute()
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    shutil.copy(reviews / "train.csv", home)
    task = reviews / "task.toml"
    text = task.read_text(encoding="utf-8").replace('"dev.csv"', '"~/train.csv"')
    task.write_text(text, encoding="utf-8")
    Path("forge.toml").write_text('[train]\nrun = "~/x"\ndata = "~/train.csv"\nsteps = 1', "utf-8")
    assert command(*options[:-2]).code == 0
    assert (home / "x" / "results.json").is_file() and not Path("~").exists()
    shutil.copy(reviews / "train.csv", "~plain.csv")
    assert len(read_rows("~plain.csv")) == len(read_rows("~/train.csv"))


def test_labels_without_words_are_not_compared_with_prompts(
    command: Command, options: Sequence[Any], reviews: Path
) -> None:
    task = reviews / "task.toml"
    text = task.read_text(encoding="utf-8")
    task.write_text(re.sub(r"(?m)^(negative|positive) = .*$", r"\1 = []", text), encoding="utf-8")
    ran = command(*options, "--strategy", "finetune", "--steps", 1, "--json")
    assert list(ran.json["results"]["test"]) == ["tuned"]
    assert "No zero-shot figures" in ran.err and "'negative', 'positive' has no" in ran.err
    assert "no words" in error(command(*options[:-1], "other"))


# --- a run in place of TASK ------------------------------------------------------------------


@pytest.fixture
def run(command: Command, tiny_model: Folder, reviews: Path) -> tuple[Any, ...]:
    """The folder `run`, as TASK, and test rows that have a second column of labels, `gold`."""
    ran = command("train", reviews, "--model", tiny_model("bert"), "--steps", 1, "--shots", 2,
                  "--pattern", "it-was", "--run", "run", "--no-compare-untrained")  # fmt: skip
    assert ran.code == 0, ran.err
    with (reviews / "test.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    other = {"positive": "negative", "negative": "positive"}
    with Path("data.csv").open("w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, ["text", "label", "gold"])
        out.writeheader()
        out.writerows({**row, "gold": other[row["label"]]} for row in rows)
    return ("run", "--data", "data.csv")


def error(ran: Any) -> str:
    assert ran.code == 2 and ran.out == "" and "Traceback" not in ran.err, ran.err
    return " ".join(ran.err.replace("│", " ").split())


def test_options_that_a_run_takes(command: Command, run: tuple[Any, ...]) -> None:
    plain = command("evaluate", *run, "--json").json["it-was"]["accuracy"]
    turned = command("evaluate", *run, "--label-column", "gold", "--json").json["it-was"]
    assert turned["accuracy"] == pytest.approx(1 - plain)
    assert "'nothing'" in error(command("evaluate", *run, "--label-column", "nothing"))
    cut = command("predict", *run, "--max-length", 16)
    assert cut.code == 0 and "rows were cut to fit 16 tokens" in " ".join(cut.err.split())
    assert "takes at most" in error(command("predict", *run, "--max-length", 5000))


def test_what_is_fixed_is_refused_where_it_is_typed(command: Command, run: tuple[Any, ...]) -> None:
    for option, value in (("--family", "causal"), ("--ask", "mask"), ("--revision", "main"),
                          ("--unlabeled", "x.csv"), ("--text-column", "text"), ("--model", "x")):  # fmt: skip
        assert f"{option} cannot be changed" in error(command("predict", *run, option, value))
    # What a file says of tasks is no mistake.
    Path("forge.toml").write_text('[predict]\nmodel = "x"\nsamples = 3\n', encoding="utf-8")
    assert command("predict", *run).code == 0


def test_fill_and_render_show_the_tuned_model(command: Command, run: tuple[Any, ...]) -> None:
    given = ("run", "--set", "text=Fun", "--json")
    tuned = command("fill", *given).json["it-was"]
    assert tuned == command("fill", "run/artifact", *given[1:]).json["it-was"]
    untuned = command("fill", "reviews", "--pattern", "it-was", "--model", "minilm-mlm", *given[1:])
    assert untuned.code != 0 or untuned.json["it-was"] != tuned
    (made,) = command("render", *given).json
    assert made["tokens"][0] == "[CLS]" and "mask" in [p["part"] for p in made["parts"]]
    (bare,) = command("render", *given, "--no-tokens").json
    assert bare["parts"] == made["parts"] and "tokens" not in bare
    assert "give --set text=VALUE" in error(command("fill", "run"))


def test_what_takes_a_task_refuses_a_run(command: Command, run: tuple[Any, ...]) -> None:
    for name in ("compare", "search-verbalizer", "search-template"):
        more = ("--strategy", "prompt") if name == "compare" else ()
        told = error(command(name, *run, *more))
        assert f"{name} takes a task" in told and "run as its --model" in told
    assert "--init-from run" in error(command("train", *run))


def test_a_resume_by_another_model_is_refused(
    command: Command, run: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from promptforge.output import RowWriter

    write = RowWriter.write

    def stops(self: RowWriter, rows: Any) -> None:
        if self.rows:
            raise KeyboardInterrupt
        write(self, rows)

    base = ("predict", *run, "--chunk", 10, "-O", "out.csv")
    with monkeypatch.context() as patch:
        patch.setattr(RowWriter, "write", stops)
        assert command(*base).code != 0
    file = Path("run/artifact/artifact.json")
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('"samples": 1', '"samples":  1'), encoding="utf-8")
    assert "other input or options" in error(command(*base, "--resume"))
    file.write_text(text, encoding="utf-8")
    assert command(*base, "--resume").code == 0
    assert Path("out.csv").read_text(encoding="utf-8").count("\n") == 41


def test_folders_without_a_model_say_what_to_name(command: Command, run: tuple[Any, ...]) -> None:
    Path("seeds").mkdir()
    shutil.copytree("run", "seeds/one")
    assert "name one of 'seeds/one'" in error(command("predict", "seeds", *run[1:]))
    shutil.rmtree("run/artifact")
    told = error(command("predict", *run))
    assert "name 'run/members/it-was'" in told  # as in a run of several tasks
    Path("run/results.json").unlink()
    assert "has not ended" in error(command("predict", *run))
