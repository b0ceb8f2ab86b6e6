"""`forge.toml` is read by every command with options of a model; `train`'s own tests have the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rich_click as click

from promptforge import Task
from promptforge.cli import cli

Command = Callable[..., Any]
Folder = Callable[[str], Path]

#: what a command needs before its options are looked at
NEEDED = {
    "adapt": ("model", "--output", "folder"),
    "compare": ("--strategy", "prompt"),
    "exit-curve": ("run",),
    "predict-many": ("run", "--data", "rows.csv"),
    "train-multitask": ("task",),
}


def with_models() -> list[str]:
    """The commands that load a model as their options say, whoever brings them."""
    context = click.Context(cli)
    named = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    return [
        name
        for name, command in named.items()
        if command is not None and any(p.name == "batch_tokens" for p in command.params)
    ]


def said(ran: Any) -> str:
    return " ".join(ran.err.replace("│", " ").split())


def test_the_commands_are_found() -> None:
    assert {"train", "search-template", "evaluate", "fill", "playground"} <= set(with_models())


@pytest.mark.parametrize("name", with_models())
def test_a_section_is_read(command: Command, name: str) -> None:
    args = (name, *NEEDED.get(name, ()))
    Path("forge.toml").write_text(f"[{name}]\nbatch-tokens = 1\n", encoding="utf-8")
    ran = command(*args)
    assert ran.code == 2 and "'--batch-tokens': 1 is not in the range" in said(ran)
    # What is typed goes over it: now something else is missing.
    ran = command(*args, "--batch-tokens", 64)
    assert ran.code == 2 and "batch-tokens" not in said(ran)
    Path("forge.toml").rename("other.toml")
    assert "'--batch-tokens': 1 is not in" in said(command(*args, "--config", "other.toml"))
    Path("forge.toml").write_text(f"[{name}]\nbatch-tokns = 64\n", encoding="utf-8")
    expected = f"[{name}] has no option 'batch-tokns'. Did you mean 'batch-tokens'"
    ran = command(*args)
    assert ran.code == 2 and expected in said(ran)


def test_a_section_that_nobody_reads(command: Command) -> None:
    Path("forge.toml").write_text("[merge]\ndevice = 'cuda'\n", encoding="utf-8")
    ran = command("evaluate", "reviews")
    assert ran.code == 2 and "[merge] would never be read" in said(ran)


def test_a_command_that_is_no_section(command: Command) -> None:
    Path("forge.toml").write_text("evaluate = 'x'\n", encoding="utf-8")
    ran = command("evaluate", "reviews")
    assert ran.code == 2 and "'evaluate' is a command: write [evaluate]" in said(ran)


def test_evaluate(command: Command, tiny_model: Folder, reviews: Path) -> None:
    lines = ("[evaluate]", f"model = '{tiny_model('bert')}'", "limit = 4", "pattern = 'it-was'",
             "json = true")  # fmt: skip
    Path("forge.toml").write_text("\n".join(lines), encoding="utf-8")
    made = command("evaluate", reviews).json
    assert list(made) == ["it-was"] and made["it-was"]["rows"] == 4
    made = command("evaluate", reviews, "--pattern", "tone", "--limit", 3).json
    assert list(made) == ["tone"] and made["tone"]["rows"] == 3


def test_what_is_typed_switches_off_what_stands_there(
    command: Command, tiny_model: Folder, reviews: Path
) -> None:
    lines = (
        "[evaluate]",
        "split = 'dev'",
        "[predict]",
        "format = 'jsonl'",
        "label-column = 'label'",
    )
    Path("forge.toml").write_text("\n".join(lines), encoding="utf-8")
    base = (reviews, "--model", tiny_model("bert"), "--pattern", "it-was")
    test = ("--data", reviews / "test.csv")
    assert command("evaluate", *base, "--json").json["it-was"]["rows"] == 32
    assert command("evaluate", *base, *test, "--json").json["it-was"]["rows"] == 40
    assert "--label-column label: predict reads" in said(command("predict", *base, *test))
    Path("forge.toml").write_text("\n".join(lines[:-1]), encoding="utf-8")
    assert command("predict", *base, *test).out.startswith("{")
    assert command("predict", *base, *test, "-O", "out.csv").code == 0
    assert Path("out.csv").read_text(encoding="utf-8").startswith("text,label,prediction")
    refused = command("predict", *base, *test, "-O", "out.csv", "--format", "tsv")
    assert refused.code == 2 and "--format tsv is for standard output" in said(refused)


def test_home_folder(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reviews: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "t.jinja").write_text("{{ text }} It is {{ mask }}", encoding="utf-8")
    Path("forge.toml").write_text('[render]\ntemplate = ["~/t.jinja"]\n', encoding="utf-8")
    assert "It is" in command("render", "--data", reviews / "test.csv").out
    # In Python no shell stands before it.
    assert Task.load("~/reviews").data["test"] == str(tmp_path / "reviews" / "test.csv")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tokens = 0", "[render] tokens = 0: write true or false"),
        ("tokens = 'perhaps'", "'perhaps' is not a valid boolean"),
        ("model = true", "[render] model = True: write a text"),
        ("row = 'first'", "'first' is not a valid integer range (in forge.toml, [render])"),
        ("family = 'big'", "'big' is not one of 'masked', 'causal', 'seq2seq' (in forge.toml"),
        ("batch-tokens = 64\nbatch_tokens = 65", "'batch_tokens' is there twice"),
        ("no-tokens = true", "has no option 'no-tokens'. Did you mean 'tokens'?"),
        ("config = 'x'", "has no option 'config'. There are: 'ask'"),
    ],
)
def test_wrong_values(command: Command, reviews: Path, line: str, expected: str) -> None:
    Path("forge.toml").write_text(f"[render]\n{line}\n", encoding="utf-8")
    ran = command("render", reviews)
    assert ran.code == 2 and "forge.toml" in said(ran) and expected in said(ran)
    assert "mistake in PromptForge" not in ran.err


def test_an_option_goes_by_the_name_that_is_typed(command: Command, reviews: Path) -> None:
    Path("forge.toml").write_text("[render]\nst = 'text=x'\n", encoding="utf-8")
    ran = command("render", reviews)
    assert ran.code == 2 and "Did you mean 'set'?" in said(ran) and "'json'" in said(ran)
    Path("forge.toml").write_text(
        "[render]\nset = 'text=Oh.'\njson = true\ntokens = false\n", encoding="utf-8"
    )
    assert command("render", reviews).json[0]["parts"]
    # The file is not blamed for what was typed.
    ran = command("render", reviews, "--row", "first")
    assert ran.code == 2 and "forge.toml" not in said(ran)
