"""Attention patterns and longer positions as a user meets them: options, artifacts, `adapt`."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_long_inputs import Whole, patterns, prompts

from promptforge import PromptClassifier, UserError, adapt, artifact, load_model
from promptforge.tuning.settings import Settings

Folder = Callable[[str], Path]
Command = Callable[..., Any]
__all__ = ["patterns"]  # a fixture that every test here uses too
TEMPLATE = "{{ text }} It was {{ mask }}{{ tail('.') }}"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(tiny.corpus()[:60]), encoding="utf-8")
    return path


def test_a_run_keeps_its_attention(command: Command, reviews: Path, tiny_model: Folder) -> None:
    ran = command(
        "train", reviews, "--model", tiny_model("bert"), "--shots", 2, "--steps", 2, "--run", "run",
        "--attention", "whole", "-o", "window=3", "--no-compare-untrained", "--json",
    )  # fmt: skip
    assert ran.json["results"]
    config = json.loads(Path("run/config.json").read_text())
    assert config["model"]["attention"] == "whole"
    assert config["model"]["attention_options"] == {"globals": "template", "window": 3}
    first = command("predict", "run", "--data", reviews / "test.csv", "--format", "jsonl")
    assert first.code == 0, first.err
    loaded = artifact.load("run")
    assert loaded.backbone.placed.pattern == Whole(window=3)
    again = command("evaluate", "run", "--data", reviews / "test.csv", "--json")
    figures = next(iter(ran.json["results"]["test"]["tuned"].values()))
    assert next(iter(again.json.values()))["accuracy"] == figures["accuracy"]
    refused = command("predict", "run", "--data", reviews / "test.csv", "--attention", "whole")
    assert "--attention cannot be changed" in refused.err


def test_the_options_of_a_pattern_are_checked_before_a_model_loads(
    command: Command, reviews: Path
) -> None:
    base = ("evaluate", reviews, "--model", "nowhere/at-all")
    assert "There is no attention called 'hole'" in command(*base, "--attention", "hole").err
    wrong = command(*base, "--attention", "whole", "-o", "width=3").err
    assert "no chosen component has 'width'" in wrong
    assert "attention.window" in wrong
    none = command(*base, "-o", "attention.window=3").err
    assert "there is no 'attention'" in none or "no chosen component" in none


@pytest.mark.parametrize("name", ["fill", "render"])
def test_commands_that_show_a_row_take_it_too(
    command: Command, reviews: Path, tiny_model: Folder, name: str
) -> None:
    ran = command(
        name, reviews, "--model", tiny_model("bert"), "--attention", "whole", "-o",
        "attention.window=2", "-o", "globals=masks", "--json", "--pattern", "it-was",
    )  # fmt: skip
    if name == "render":
        shown = ran.json[0]
        marked = [t for t, own in zip(shown["tokens"], shown["always"], strict=True) if own]
        assert marked == ["[MASK]"]
    else:
        assert ran.json["it-was"]


def test_fewer_layers_of_trouble_where_a_pattern_does_not_fit(tiny_model: Folder) -> None:
    with pytest.raises(UserError, match="sees the future: its mean is over the whole text"):
        load_model(str(tiny_model("gpt2")), attention="mean")
    with pytest.raises(UserError, match="adds a bias of its own"):
        load_model(str(tiny_model("t5")), attention="whole")
    with pytest.raises(UserError, match="attention_options are for"):
        load_model(str(tiny_model("bert")), attention_options={"window": 2})
    with pytest.warns(UserWarning, match="promptforge adapt .* --attention learned"):
        load_model(str(tiny_model("bert")), attention="learned")


def test_adapt_on_the_command_line(
    command: Command, corpus: Path, tiny_model: Folder, reviews: Path
) -> None:
    base = ("adapt", tiny_model("bert"), "--corpus", corpus, "--attention", "learned", "--length", 32,
            "--steps", 40, "--batch-size", 4, "--learning-rate", 1e-2, "--output", "made")  # fmt: skip
    ran = command(*base, "--json")
    assert ran.json["after"] < ran.json["before"] - 0.2
    assert ran.json["teacher"] is None
    assert not Path("made/parts").exists()
    backbone = load_model("made")
    assert backbone.placed is not None and backbone.placed.pattern.name == "learned"
    told = command("evaluate", reviews, "--model", "made", "--json", "--limit", 4)
    assert told.code == 0
    assert "has not learned" not in told.err
    trained = command("train", reviews, "--model", "made", "--shots", 2, "--steps", 1, "--run", "run",
                      "--no-compare-untrained", "--json")  # fmt: skip
    assert trained.code == 0, trained.err
    assert command("evaluate", "run", "--data", reviews / "test.csv", "--limit", 4).code == 0
    # The same command again is refused, and with --resume it has nothing to do.
    assert "--resume, or name another folder with --output" in command(*base).err
    assert command(*base, "--resume", "--json").json == ran.json
    assert "other options" in command(*base, "--resume", "--seed", 5).err
    assert "cannot say" in command("merge", "run", "plain").err
    assert "is of no one task" in command("predict", "made", "--data", reviews / "test.csv").err


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "bart"])
def test_what_is_written_is_the_model_that_was_trained(
    architecture: str, tmp_path: Path, tiny_model: Folder
) -> None:
    with pytest.warns(UserWarning, match="has not learned"):
        backbone = load_model(str(tiny_model(architecture)), attention="learned", max_length=48)
    before = backbone.states(prompts(backbone))
    checksum = backbone.checksum
    settings = Settings.of(steps=6, batch_size=4, learning_rate=1e-3)
    texts = tiny.corpus()[:50]
    done = adapt(backbone, texts, tmp_path / "made", distill=True, settings=settings)
    assert done.length == 48
    assert done.teacher is not None
    assert done.teacher != done.before
    # The model that was given is as it was, and what was made is another.
    assert torch.equal(backbone.states(prompts(backbone)), before)
    made = load_model(str(tmp_path / "made"))
    assert made.encoder.max_length == 48
    assert not torch.allclose(made.states(prompts(made)), before, atol=1e-3)
    stored = artifact.open_parts(tmp_path / "made")
    assert stored.weights is not None
    assert any("attention_pattern" in name for name in stored.weights.tensors)
    assert stored.backbone.checksum == checksum


def test_adapting_goes_on_where_it_stopped(
    tmp_path: Path, tiny_model: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the middle, and gone on with: the same weights to the last bit."""
    from promptforge.tuning.loop import Training

    texts, options = tiny.corpus()[:50], {"steps": 8, "batch_size": 4, "learning_rate": 1e-3}

    def make(folder: str, **more: Any) -> Any:
        backbone = load_model(str(tiny_model("bert")), attention="whole",
                              attention_options={"window": 4})  # fmt: skip
        settings = Settings.of(**options, save_every=3)
        return adapt(backbone, texts, tmp_path / folder, length=24, settings=settings, **more)

    whole = make("whole")
    update = Training._update

    def stopped(self: Training, *args: Any) -> float:
        if self.state.steps == 5:
            raise KeyboardInterrupt
        return update(self, *args)

    monkeypatch.setattr(Training, "_update", stopped)
    with pytest.raises(KeyboardInterrupt):
        make("parts")
    monkeypatch.setattr(Training, "_update", update)
    with pytest.raises(UserError, match="was begun in"):
        make("parts")
    again = make("parts", resume=True)
    assert again.after == whole.after
    one, other = (artifact.open_parts(tmp_path / name).weights for name in ("whole", "parts"))
    assert one is not None and other is not None
    assert all(torch.equal(v, other.tensors[n]) for n, v in one.tensors.items())


def test_adapt_says_what_is_wrong(
    command: Command, corpus: Path, tiny_model: Folder, tmp_path: Path
) -> None:
    model = tiny_model("bert")
    assert "nothing to learn from" in command("adapt", model, "--output", "x").err
    (tmp_path / "empty.txt").write_text(" \n")
    empty = command("adapt", model, "--corpus", "empty.txt", "--output", "x")
    assert "no text to learn from" in empty.err
    assert empty.code == 2
    assert "cannot be read" in command("adapt", model, "--corpus", "gone.txt", "--output", "x").err
    causal = command("adapt", model, "--corpus", corpus, "--output", "x", "--objective", "causal")
    assert "learns by 'masked'" in causal.err
    full = command("adapt", model, "--corpus", corpus, "--output", "x", "--distill")
    assert "full attention is what is learned from" in full.err
    long = command("adapt", model, "--corpus", corpus, "--output", "x", "--length", 100)
    assert "takes 8 to 64 tokens" in long.err
    looks = command(
        "adapt", model, "--corpus", corpus, "--output", "x", "-o", "settings.patience=2"
    )
    assert "and adapt takes none: leave them out" in looks.err
    assert not Path("x/artifact").exists()


def test_every_process_sees_that_an_adaptation_has_ended(
    tmp_path: Path, tiny_model: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one returns at once, so one that waits for it would wait for ever."""
    from promptforge.tuning import processes

    def go(**more: Any) -> Any:
        return adapt(
            load_model(str(tiny_model("bert"))), tiny.corpus()[:20], tmp_path / "made", length=24,
            settings=Settings.of(steps=1, batch_size=2), **more,
        )  # fmt: skip

    done = go()
    monkeypatch.setattr(processes, "is_first", lambda: False)
    monkeypatch.setattr(processes, "wait", lambda device: pytest.fail("it waits"))
    assert go(resume=True) == done


def test_a_lone_row_of_text_is_not_kept_apart(command: Command, tiny_model: Folder) -> None:
    base = ("adapt", tiny_model("bert"), "--corpus", "short.txt", "--steps", 1, "--batch-size", 1)
    Path("short.txt").write_text("a good film that was made for all of them\n")
    ran = command(*base, "--output", "made")
    assert ran.code == 0, ran.err
    assert "The text fills one row of 64 tokens" in ran.err
    assert "Perplexity on the row that was learned from" in ran.out
    Path("short.txt").write_text("\n".join(tiny.corpus()[:20]))
    ran = command(*base, "--output", "more")
    assert "fills one row" not in ran.err
    assert "Perplexity on rows kept apart" in ran.out


def test_a_damaged_corpus_is_named(command: Command, tiny_model: Folder) -> None:
    whole = gzip.compress(b"a good film that was made for all of them\n" * 200)
    Path("texts.gz").write_bytes(whole[:20] + b"\xff" * 20 + whole[40:])
    ran = command("adapt", tiny_model("bert"), "--corpus", "texts.gz", "--output", "made")
    assert ran.code == 2
    assert "--corpus texts.gz cannot be read" in ran.err


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (["--text-column", "words"], "--text-column"),
        (["--reader", "csv"], "--reader"),
        (["-o", "delimiter=;"], "-o reader.delimiter"),
    ],
)
def test_how_a_table_is_read_is_for_a_table(
    typed: list[str], named: str, command: Command, corpus: Path, tiny_model: Folder
) -> None:
    ran = command("adapt", tiny_model("bert"), "--corpus", corpus, *typed, "--output", "made")
    assert ran.code == 2
    assert f"{named} says how the tables of --data are read" in ran.err


def test_the_estimator_takes_a_pattern_and_positions(tiny_model: Folder) -> None:
    texts = ["a fine film", "a dull film", "good fun", "bad luck"] * 2
    labels = ["good", "bad"] * 4
    made = PromptClassifier(
        TEMPLATE, model=str(tiny_model("bert")), steps=2, attention="whole", positions="copy",
        max_length=100, options={"attention.window": 5},
    )  # fmt: skip
    made.fit([f"{t} {'and so on ' * 30}" for t in texts], labels)
    backbone = made.classifier_.backbone  # type: ignore[union-attr]
    assert backbone.placed.pattern == Whole(window=5)
    assert backbone.encoder.max_length == 100
    assert made.predict_proba(texts).shape == (8, 2)
