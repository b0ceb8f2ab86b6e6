"""`promptforge new-plugin`: for every kind a package that installs, is listed and passes its tests."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from promptforge import UserError, new_plugin
from promptforge.cli import cli
from promptforge.hookspecs import ROLES
from promptforge.plugin_skeleton import KINDS

Command = Callable[..., Any]
Python = Callable[..., "subprocess.CompletedProcess[str]"]
pytest.importorskip("setuptools")
pytest.importorskip("pip")


def _name(kind: str) -> str:
    return f"my-{kind}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one plugin of each kind, and `site`, into which pip has installed them all."""
    root = tmp_path_factory.mktemp("plugins")
    folders = [new_plugin(_name(kind), kind, root / _name(kind)) for kind in ROLES]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation",
         "--target", str(root / "site"), *map(str, folders)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return root


@pytest.fixture
def python(made: Path) -> Python:
    """Runs `python ARGS...` where the plugins are installed."""

    def run(*args: object) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(made / "site"), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, *map(str, args)],
            cwd=made, env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


def test_all_are_listed_and_healthy(python: Python) -> None:
    done = python("-m", "promptforge", "plugins", "doctor", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 0, [p["problems"] for p in told["plugins"]]
    found = {p["name"]: p for p in told["plugins"]}
    for kind, hook in ROLES.items():
        plugin = found[_name(kind)]
        assert (plugin["distribution"], plugin["version"]) == (
            f"promptforge-{_name(kind)}",
            "0.1.0",
        )
        assert plugin["provides"] == [f"{kind} {_name(kind)}"]
        assert plugin["hooks"] == [hook]
        assert plugin["problems"] == plugin["heavy"] == []
        assert plugin["import_seconds"] < 0.2


def test_their_own_tests_pass(python: Python, made: Path) -> None:
    tests = [made / _name(kind) / "tests" for kind in ROLES]
    (made / "pytest.ini").write_text(
        "[pytest]\naddopts = -q -rA --import-mode=importlib\n", encoding="utf-8"
    )
    done = python("-m", "pytest", "-c", "pytest.ini", *tests)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    for kind in ROLES:
        # The conformance kit is called for each of them, and so is the check of the whole plugin.
        passed = [
            line for line in done.stdout.splitlines() if line.startswith(f"PASSED {_name(kind)}/")
        ]
        assert any("test_it_keeps_the_promises" in line for line in passed), kind
        assert any("test_it_is_installed_and_listed" in line for line in passed), kind
        assert len(passed) >= 3, kind


def test_what_is_written(command: Command, tmp_path: Path) -> None:
    ran = command("new-plugin", "word-pairs", "--kind", "verbalizer", "--json")
    folder = tmp_path / "promptforge-word-pairs"
    assert ran.json["folder"] == str(folder)
    assert ran.json["files"] == [
        ".github/workflows/tests.yml", ".gitignore", "README.md",
        "promptforge_word_pairs/__init__.py", "promptforge_word_pairs/component.py",
        "pyproject.toml", "tests/test_component.py", "tests/test_plugin.py",
    ]  # fmt: skip
    told = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    assert told["project"]["name"] == "promptforge-word-pairs"
    assert told["project"]["entry-points"]["promptforge"] == {
        "word-pairs": "promptforge_word_pairs"
    }
    component = (folder / "promptforge_word_pairs" / "component.py").read_text(encoding="utf-8")
    assert "class WordPairsVerbalizer(Verbalizer):" in component
    # From zero to a plugin in twenty lines of the author's own.
    assert 10 <= sum(bool(line.strip()) for line in component.partition("class ")[2].splitlines()) <= 20  # fmt: skip
    for path in ran.json["files"]:
        text = (folder / path).read_text(encoding="utf-8").lower()
        assert "blank" not in text and "@" not in text.replace("@hookimpl", "").replace("@v", ""), path  # fmt: skip


def test_the_words_on_the_terminal(command: Command, tmp_path: Path) -> None:
    ran = command("new-plugin", "promptforge-loud", "--kind", "search", "--output", "here/there")
    assert ran.code == 0
    assert "pip install -e '.[test]'" in ran.out and "promptforge plugins show loud" in ran.out
    assert (tmp_path / "here" / "there" / "promptforge_loud" / "component.py").is_file()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("Loud", "--kind", "search"), "'Loud' is no name for a plugin: write small letters"),
        (("lo ud", "--kind", "search"), "'lo ud' is no name"),
        (("-loud", "--kind", "search"), "No such option"),
        (("lo--ud", "--kind", "search"), "'lo--ud' is no name"),
        (("loud", "--kind", "verbaliser"), "no kind of plugin 'verbaliser'. Did you mean 'verbalizer'?"),
        (("loud",), "Missing option '--kind'"),
        (("verbalizers", "--kind", "search"), "A plugin called 'verbalizers' is installed already"),
        (("prompt", "--kind", "method"), "The plugin 'soft-prompts' has a method called 'prompt' already"),
        (("petal", "--kind", "search"), "The plugin 'verbalizers' has a search called 'petal' already"),
    ],
)  # fmt: skip
def test_mistakes(command: Command, tmp_path: Path, args: tuple[str, ...], says: str) -> None:
    ran = command("new-plugin", *args)
    assert ran.code == 2
    assert says in " ".join(ran.err.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(command: Command, tmp_path: Path) -> None:
    (tmp_path / "promptforge-loud").mkdir()
    (tmp_path / "promptforge-loud" / "mine.txt").write_text("mine", encoding="utf-8")
    ran = command("new-plugin", "loud", "--kind", "search")
    assert ran.code == 2 and "is there already" in ran.err
    assert [p.name for p in tmp_path.rglob("*")] == ["promptforge-loud", "mine.txt"]
    with pytest.raises(UserError, match="is there already"):
        new_plugin("loud", "search", tmp_path / "promptforge-loud")


def test_a_name_with_blank_in_it(tmp_path: Path) -> None:
    folder = new_plugin("blank-lines", "reader", tmp_path / "made")
    assert (folder / "promptforge_blank_lines" / "component.py").is_file()
    for path in folder.rglob("*.py"):
        compile(path.read_text(encoding="utf-8"), str(path), "exec")
        assert "lines_lines" not in path.read_text(encoding="utf-8")


def test_there_is_one_for_every_role() -> None:
    assert list(KINDS) == list(ROLES)


@pytest.mark.parametrize("kind", ROLES)
def test_the_command_of_its_readme(kind: str) -> None:
    """Command and options exist, and the line is complete."""
    _, line = KINDS[kind]
    words = [w for w in shlex.split(line, comments=True) if not w.startswith("BLANK_MODELS=")]
    assert words[0] == "promptforge"
    context = click.Context(cli)
    command: click.Command = cli
    for i, word in enumerate(words[1:], 1):
        if not isinstance(command, click.Group):
            command.make_context(word, words[i:], parent=context, resilient_parsing=False)
            break
        found = command.get_command(context, word)
        assert found is not None, f"no command {word!r}"
        command = found
