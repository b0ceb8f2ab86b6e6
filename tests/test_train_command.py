"""`promptforge train` and `runs`: wrong input, `forge.toml`, what is kept, and what reads it."""

from __future__ import annotations

import csv
import errno
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from filelock import FileLock
from safetensors import SafetensorError

from promptforge import PromptForgeError, UserError, artifact
from promptforge.backbone import load_model
from promptforge.tuning import checkpoint
from promptforge.tuning.loop import CHECKPOINT, Training

Command = Callable[..., Any]
Folder = Callable[[str], Path]
PART = Path("run/members/it-was.parts/0")


@pytest.fixture
def reviews(reviews: Path) -> Path:
    """With label words of one token, and few rows."""
    text = (reviews / "task.toml").read_text(encoding="utf-8")
    text = text.replace("awful", "bad").replace("wonderful", "best")
    (reviews / "task.toml").write_text(text, encoding="utf-8")
    return reviews


@pytest.fixture
def options(tiny_model: Folder, reviews: Path) -> tuple[Any, ...]:
    return ("train", reviews, "--model", tiny_model("bert"), "--steps", 3, "--pattern", "it-was",
            "--run", "run")  # fmt: skip


def said(ran: Any, code: int = 2) -> str:
    """What a command said when it failed: one error, no traceback, no standard output."""
    assert (ran.code, ran.out) == (code, ""), ran.err
    assert "Traceback" not in ran.err and "This is a mistake in PromptForge" not in ran.err
    errors = ran.err[ran.err.index("Error") :]
    assert errors.count("\n") < 12
    return " ".join(errors.replace("│", " ").split())


def table(path: str, rows: Sequence[Sequence[str]]) -> str:
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


# --- the rows --------------------------------------------------------------------------------


def test_too_few_rows(command: Command, options: Sequence[Any]) -> None:
    err = said(command(*options, "--shots", 9))
    assert "has 16 rows, but 9 for training and 9 for development are needed" in err
    assert "The largest possible number of shots is 8" in err
    assert not Path("run").exists()


def test_a_label_without_rows(command: Command, options: Sequence[Any]) -> None:
    one = table("one.csv", [(f"text {i}", "positive") for i in range(9)])
    assert "'negative'" in said(command(*options, "--data", one))
    inline = ("--data", one, "--template", "{{ text }} It was {{ mask }}", "--text-column", "text")
    err = said(command("train", *inline, *options[2:6], "--run", "run"))
    assert "'positive'" in err
    unknown = table("unknown.csv", [("a", "positive"), ("b", "negative"), ("c", "positve")])
    assert "Did you mean 'positive'" in said(command(*options, "--data", unknown))
    assert "no rows" in said(command(*options, "--data", table("none.csv", [])))


def test_rows_that_should_be_apart(command: Command, options: Sequence[Any], reviews: Path) -> None:
    ran = command(*options, "--dev", reviews / "train.csv", "--unlabeled", reviews / "test.csv")
    assert ran.code == 0
    assert "32 of 32 dev rows are training rows too" in ran.err
    assert "40 of 40 unlabelled rows are test rows too" in ran.err
    assert "test rows are training rows" not in ran.err


def test_patterns_that_were_not_chosen_are_shown_too(
    command: Command, options: Sequence[Any]
) -> None:
    ran = command(*options, "--pattern", "tone", "--eval-every", 1)
    assert ran.code == 0
    results = json.loads(Path("run/results.json").read_text(encoding="utf-8"))
    assert set(results["trained"]) == {"it-was", "tone"}
    assert len(results["results"]["dev"]["tuned"]) == 1
    told = ran.out.partition("each training at its best: ")[2].splitlines()[0]
    rows = next(iter(results["results"]["dev"]["tuned"].values()))["rows"]
    for name, how in results["trained"].items():
        right = max(round(e["score"] * rows) for e in how["curve"] if "score" in e)
        assert f"{name} {100 * right / rows:.1f}" in told
    assert "each training" not in command(*options[:-1], "alone").out


# --- options and settings --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (("--strategy", "promt"), "Did you mean 'prompt'"),
        (("--method", "bitfti"), "Did you mean 'bitfit'"),
        (("-o", "settings.warm_up=0.1"), "Did you mean 'warmup'"),
        (("-o", "settings.warmup=2"), "warmup"),
        (("-o", "strategy.alfa=0.1"), "Did you mean 'alpha'"),
        (("--steps", "0"), "--steps"),
        (("--learning-rate", "0"), "--learning-rate"),
        (("--seed", "-1"), "--seed"),
        (("--batch-size", "6", "--accumulate", "4"), "cannot be split into accumulate=4"),
        (("--class-weight", "positive"), "write LABEL=WEIGHT, or balanced"),
        (("--class-weight", "positiv=2"), "Did you mean 'positive'"),
        (("--learning-rate", "1e-4", "--learning-rate", "1e-3", "--dev", "no.csv"), "no.csv"),
        (("--strategy", "priming"), "choose them with --demonstrations"),
        (("--config", "no.toml"), "There is no file no.toml"),
    ],
)
def test_wrong_options(
    command: Command, options: Sequence[Any], wrong: Sequence[str], expected: str
) -> None:
    assert expected in said(command(*options, *wrong))
    assert not Path("run/results.json").exists()


def test_a_choice_needs_development_rows(
    command: Command, options: Sequence[Any], reviews: Path
) -> None:
    text = (reviews / "task.toml").read_text(encoding="utf-8").replace('dev = "dev.csv"\n', "")
    (reviews / "task.toml").write_text(text, encoding="utf-8")
    err = said(command(*options, "--batch-size", 4, "--batch-size", 8))
    assert "2 pairs of learning rate and batch size" in err and "--dev" in err


def test_forge_toml(command: Command, options: Sequence[Any]) -> None:
    lines = ["[train]", "steps = 2", "learning-rate = [1e-3, 1e-2]", "batch_size = 4", 'method = "bitfit"',
             'pattern = "it-was"', 'options = ["settings.warmup=0.5"]', "json = true"]  # fmt: skip
    Path("forge.toml").write_text("\n".join(lines), encoding="utf-8")
    base = options[:4]
    assert command(*base, "--run", "a").json["run"] == "a"
    config = command("runs", "show", "a", "--json").json["config"]
    assert list(config["task"]["patterns"]) == ["it-was"]
    assert config["method"]["name"] == "bitfit"
    found = config["settings"]
    assert (found["steps"], found["learning_rate"], found["batch_size"]) == (2, [1e-3, 1e-2], 4)
    assert found["warmup"] == 0.5
    over = ("--steps", 1, "--learning-rate", "0.1", "--method", "head", "-o", "settings.clip=2")
    assert command(*base, *over, "--run", "b").code == 0
    config = command("runs", "show", "b", "--json").json["config"]
    found = config["settings"]
    assert config["method"]["name"] == "head"
    assert (found["steps"], found["learning_rate"], found["warmup"]) == (1, 0.1, 0.06)
    Path("forge.toml").rename("other.toml")
    assert command(*base, *over, "--config", "other.toml", "--run", "c").json["run"] == "c"


def test_processes_of_two_kinds(
    command: Command, options: Sequence[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert "choose one of the two" in said(command(*options, "--jobs", 2))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[train]\nstepps = 3", "has no option 'stepps'. Did you mean 'steps'"),
        ("[train]\nsteps = 'many'", "many"),
        ("[train]\nsteps = [1, 2]", "steps"),
        ("[train]\nsteps = 3.7", "[train] steps = 3.7: write a whole number"),
        ("[train]\nbatch-size = [4, true]", "batch-size = True: write a whole number"),
        ("[train]\nlearning-rate = true", "learning-rate = True: write a number"),
        ("[trian]\nsteps = 3", "'trian' is no command with options. Did you mean 'train'"),
        ("train = 3", "'train' is a command: write [train]"),
        ("[train]\nsteps = ", "forge.toml is not valid TOML"),
    ],
)
def test_wrong_forge_toml(
    command: Command, options: Sequence[Any], text: str, expected: str
) -> None:
    Path("forge.toml").write_text(text, encoding="utf-8")
    args = [*options[:4], *options[6:]]
    assert expected in said(command(*args))


# --- the run's folder ------------------------------------------------------------------------


def test_a_loss_that_is_not_finite(command: Command, options: Sequence[Any]) -> None:
    args = (*options, "--learning-rate", "1e30", "--eval-every", 3)
    err = said(command(*args), 1)
    assert "loss is not finite at step 2" in err and "lower learning rate (now 1e+30)" in err
    err = said(command(*options[:-1], "b", "--learning-rate", "1e30", "--eval-every", 1), 1)
    assert "not finite at step" in err


def test_a_folder_of_something_else(command: Command, options: Sequence[Any]) -> None:
    assert command(*options).code == 0
    assert "Go on with it with --resume" in said(command(*options))
    err = said(command(*options, "--resume", "--steps", 4))
    assert "begun with other options: 'settings.steps'." in err
    assert command(*options, "--resume", "-o", "settings.save_every=1").code == 0
    err = said(command(*options, "--resume", "--seed", 14, "--method", "head"))
    assert "method.name" in err and "seed" in err
    Path("letters").mkdir()
    Path("letters/one.txt").write_text("Dear", encoding="utf-8")
    assert "holds something else than a run" in said(command(*options[:-1], "letters"))
    assert "is a file" in said(command(*options[:-1], "letters/one.txt"))


def test_other_rows_in_the_same_table(
    command: Command, options: Sequence[Any], reviews: Path
) -> None:
    assert command(*options).code == 0
    path = reviews / "train.csv"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(" the ", " thy "), encoding="utf-8")
    assert "begun with other rows: 'train'" in said(command(*options, "--resume"))
    path.write_text(text, encoding="utf-8")
    dev = ("--dev", reviews / "other.csv")
    other = (reviews / "dev.csv").read_text(encoding="utf-8").replace(" the ", " thy ")
    dev[1].write_text(other, encoding="utf-8")
    assert "begun with other rows: 'dev'" in said(command(*options, "--resume", *dev))
    # Nothing that was kept depends on the test rows.
    assert command(*options, "--resume", "--test", reviews / "dev.csv").code == 0


def test_a_checkpoint_cut_in_half(
    command: Command, options: Sequence[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    every = (*options, "-o", "settings.save_every=1")
    real = Training._update
    with monkeypatch.context() as patch:
        patch.setattr(
            Training, "_update",
            lambda self, *given: 1 / 0 if self.state.steps == 2 else real(self, *given),
        )  # fmt: skip
        assert command(*every).code == 1
    path = PART / CHECKPOINT
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    err = said(command(*every, "--resume"), 1)
    assert "is damaged or cut off" in err and str(path) in err.replace(" ", "")
    path.unlink()
    assert command(*every, "--resume").code == 0


def test_two_runs_in_one_folder(command: Command, options: Sequence[Any]) -> None:
    assert command(*options).code == 0
    with FileLock("run/.lock"):
        assert "Another run is at work in run" in said(command(*options, "--resume"), 1)
    assert command(*options, "--resume").code == 0


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"),
                                   SafetensorError("Error while serializing: No space left")])  # fmt: skip
@pytest.mark.parametrize("every", [0, 1])
def test_a_full_disk(
    command: Command, options: Sequence[Any], monkeypatch: pytest.MonkeyPatch, error: Exception, every: int
) -> None:  # fmt: skip
    def full(tensors: Any, path: Path, **_: Any) -> None:
        path.write_bytes(b"half of it")
        raise error

    args = (*options, "-o", f"settings.save_every={every}")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        err = said(command(*args), 1)
    assert "could not be written" in err and "No space left" in err and "--resume" in err
    assert not list(Path("run").rglob("*.partial"))
    assert command(*args, "--resume").code == 0


# --- what reads a run --------------------------------------------------------------------------


def test_runs(command: Command, options: Sequence[Any]) -> None:
    assert command("runs", "--json").json == []
    assert "There are no runs in runs" in command("runs").out
    args = [*options[:-2], "--run"]
    assert command(*args, "runs/one").code == 0
    assert command(*args, "runs/two", "--seed", 42, "-o", "settings.clip=0.5").code == 0
    shutil.copytree(options[3], "runs/model")  # its config.json is not a run's
    one, two = command("runs", "list", "--json").json
    assert (one["run"], one["task"], one["strategy"], one["method"]) == (
        "runs/one", "movie-reviews", "prompt", "all",
    )  # fmt: skip
    assert (one["seed"], two["seed"], one["state"]) == (13, 42, "ended")
    results = json.loads(Path("runs/one/results.json").read_text(encoding="utf-8"))["results"]
    assert one["test"] == results["test"]["tuned"]["it-was"]["accuracy"]
    assert "runs/two" in command("runs").out
    shown = command("runs", "show", "runs/one", "--json").json
    assert shown["members"] == ["it-was"] and shown["results"]["results"] == results
    assert shown["environment"]["packages"]["torch"]
    assert "settings.steps 3" in command("runs", "show", "runs/one").out
    different = command("runs", "diff", "runs/one", "runs/two", "--json").json
    assert different["settings.clip"] == [1.0, 0.5] and different["seed"] == [13, 42]
    assert different.keys() <= {"settings.clip", "seed", "dev accuracy", "test accuracy"}
    assert "settings.clip" in command("runs", "diff", "runs/one", "runs/two").out
    assert "same options" in command("runs", "diff", "runs/one", "runs/one").out
    for wrong in ("runs/three", "runs/model"):
        assert f"There is no run in {wrong}" in said(command("runs", "show", wrong))
    Path("runs/two/config.json").write_text("{", encoding="utf-8")
    assert "is damaged" in said(command("runs", "show", "runs/two"), 1)


@pytest.mark.parametrize("strategy", ["prompt", "finetune", "ensemble"])
def test_evaluate_and_predict_a_run(
    command: Command, options: Sequence[Any], reviews: Path, strategy: str
) -> None:
    args = (*options, "--strategy", strategy, "--learning-rate", "1e-2", "--pattern", "tone")
    if strategy == "prompt":
        args = args[:-2]
    trained = command(*args, "--json").json["results"]["test"]["tuned"]
    data = ("--data", reviews / "test.csv")
    for place in ("run", "run/artifact"):
        figures = command("evaluate", place, *data, "--json").json
        assert figures.keys() == trained.keys()
        for part, wanted in trained.items():
            assert figures[part]["confusion"] == wanted["confusion"]
    predicted = list(csv.DictReader(command("predict", "run", *data).out.splitlines()))
    assert len(predicted) == 40
    whole = list(trained.values())[-1]
    with (reviews / "test.csv").open(encoding="utf-8", newline="") as file:
        truth = [row["label"] for row in csv.DictReader(file)]
    right = sum(p["prediction"] == t for p, t in zip(predicted, truth, strict=True))
    assert right / 40 == pytest.approx(whole["accuracy"])
    assert "part of what was tuned" in said(command("predict", "run", *data, "--model", "x"))
    assert "give --data FILE" in said(command("evaluate", "run"))


def test_a_run_in_bfloat16(command: Command, options: Sequence[Any], reviews: Path) -> None:
    trained = command(*options, "--dtype", "bfloat16", "--json").json["results"]["test"]["tuned"]
    ran = command("evaluate", "run", "--data", reviews / "test.csv", "--json")
    assert ran.json["it-was"]["accuracy"] == trained["it-was"]["accuracy"]


def test_an_artifact_knows_its_model(
    command: Command, options: Sequence[Any], tiny_model: Folder, reviews: Path
) -> None:
    assert command(*options).code == 0
    same = load_model(str(tiny_model("bert")))
    assert artifact.load("run", backbone=same).labels == ("negative", "positive")
    with pytest.raises(UserError, match="Load the model that it was tuned from"):
        artifact.load("run", backbone=load_model(str(tiny_model("roberta"))))
    same.model.get_input_embeddings().weight.data[3] += 0.1
    del same.checksum
    with pytest.raises(UserError, match=r"the weights of .* here are others"):
        artifact.load("run", backbone=same)
    weights = Path("run/artifact/weights.safetensors")
    whole = weights.read_bytes()
    flipped = bytearray(whole)
    flipped[-9] ^= 1
    for damaged in (bytes(flipped), whole[:1000], None):
        weights.unlink(missing_ok=True)
        if damaged is not None:
            weights.write_bytes(damaged)
        with pytest.raises(PromptForgeError, match="missing or damaged"):
            artifact.load("run")
    err = said(command("predict", "run", "--data", reviews / "dev.csv"), 1)
    assert "missing or damaged: its checksum is wrong" in err
    weights.write_bytes(whole)
    assert safetensors.torch.load(whole).keys()
    assert command("predict", "run", "--data", reviews / "dev.csv").code == 0
    file = Path("run/artifact/artifact.json")
    file.write_text(file.read_text(encoding="utf-8")[:100], encoding="utf-8")
    assert "is damaged" in said(command("predict", "run", "--data", reviews / "dev.csv"), 1)


def test_what_python_has_the_command_has(
    command: Command, options: Sequence[Any], reviews: Path, tiny_model: Folder
) -> None:
    ran = command(*options, "--no-compare-untrained", "--json")
    assert set(ran.json["results"]["test"]) == {"tuned"}
    shown = ("predict", reviews, "--model", tiny_model("bert"), "--pattern", "found",
             "--demonstrations", "random", "--data", reviews / "test.csv")  # fmt: skip
    one, same, three = (
        command(*shown, *more).out for more in ((), ("--samples", 1), ("--samples", 3))
    )
    assert one.count("\n") == 41
    assert one == same != three  # probabilities: an average of three draws is another
    refused = command("evaluate", "run", "--data", reviews / "test.csv", "--samples", 3)
    assert "--samples cannot be changed" in said(refused)
