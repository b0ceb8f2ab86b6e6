"""What the pages show is what happens: every command and Python snippet of them is run.

A page's blocks are run in order, in one folder that holds a copy of `examples/` with fewer rows and
the tables that the page names. Trainings are cut to a few steps, whatever the page types: the tests
are of what is written there, not of how well it does.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import venv
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from promptforge import hookimpl, plugins
from promptforge.cli import cli
from tests.doc_pages import ROOT, Step, WrongPage, pages, steps
from tests.doc_tables import copy_examples, make_tables

STEPS = 2
#: page -> how many of its blocks are not run. Of each the page says why; a new one is written here.
NOT_RUN = {
    "README.md": 2,
    "CONTRIBUTING.md": 1,
    "docs/how-to/cluster.md": 5,
    "docs/how-to/offline.md": 1,
    "docs/how-to/own-model.md": 1,
    "docs/how-to/playground.md": 4,
    "docs/index.md": 1,
    "docs/tutorial.md": 1,
}
#: Words of a command line that only a shell understands.
OPERATORS = re.compile(r"^[();<>|&]+$")


class Brief:
    """A plugin that cuts trainings down, and gives them the quick model where none is named."""

    @hookimpl
    def promptforge_configure(self, settings: dict[str, Any]) -> None:
        name = click.get_current_context().info_name
        if "steps" not in settings or name == "search-verbalizer":  # it trains with --rerank alone
            return
        settings["steps"] = min(settings["steps"] or STEPS, STEPS)
        settings["batch_size"] = (2,) if isinstance(settings["batch_size"], tuple) else 2
        settings["options"] = tuple(
            re.sub(
                r"generations=\d+$",
                "generations=1",
                re.sub(r"steps=\d+$", f"steps={STEPS}", option),
            )
            for option in settings.get("options") or ()
        )
        if "eval_every" in settings:
            settings["eval_every"] = STEPS
        if settings.get("shots") or name == "search-template":
            settings["shots"] = min(settings["shots"] or 2, 2)
        if name == "search-template":
            few = ("candidates=4", "beam=4", "left=1", "right=1")
            settings["options"] += tuple(f"template-search.{option}" for option in few)
        if name == "compare":
            settings["seeds"] = settings["seeds"].partition(",")[0]
        if not settings.get("model") and settings.get("objective") != "generate":
            settings["model"] = "minilm-mlm"


@pytest.fixture
def brief(packaged_models: Path) -> Iterator[None]:
    """Trainings of this process are short."""
    plugins.manager().register(Brief(), "brief")
    yield
    plugins.manager().unregister("brief")


class Reader:
    """Someone who types what a page says, from its top to its end.

    Commands of promptforge run in this process. What needs a shell runs in one; so does everything
    after something was installed, which goes to an environment of the page's own.
    """

    def __init__(self, page: str, folder: Path, command: Callable[..., Any]) -> None:
        self.page, self.folder, self.command = page, folder, command
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.environment: Path | None = None

    def does(self, step: Step) -> None:
        where = f"{self.page}:{step.line}"
        if step.kind == "file":
            path = Path(step.told)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.text, encoding="utf-8")
        elif step.kind == "python":
            exec(compile(step.text, where, "exec"), self.names)
        elif step.kind == "command":
            code, said = self.types(step.text)
            assert code == 0, f"{where}: {step.text}\nexit code {code}\n{said[-3000:]}"

    def types(self, line: str) -> tuple[int, str]:
        """Exit code and what was said."""
        words, plain = parsed(line)
        if words[0] == "cd" and plain:
            os.chdir(words[1])
            return 0, ""
        if installs(words):
            self.environment = self.environment or own_environment(self.folder / ".venv")
        if words[0] == "promptforge" and plain and self.environment is None:
            ran = self.command(*words[1:])
            return ran.code, ran.out + ran.err
        return self.shell(line)

    def shell(self, line: str) -> tuple[int, str]:
        scripts = [Path(sys.executable).parent]
        env = {**os.environ, "NO_COLOR": "1"}
        if self.environment:
            scripts.insert(0, self.environment / "bin")
            # Nothing is fetched: what a plugin needs is in the environment of the tests.
            env |= {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "VIRTUAL_ENV": str(self.environment)}  # fmt: skip
        env["PATH"] = os.pathsep.join([*map(str, scripts), os.environ["PATH"]])
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, check=False, timeout=240,
        )  # fmt: skip
        return done.returncode, done.stdout


def parsed(line: str) -> tuple[list[str], bool]:
    """The words of a command line without its comment, and whether no shell is needed for it."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", line.partition(" #")[0])
    assigns = re.match(r"\w+=", words[0])
    shell = assigns or any(OPERATORS.match(w) for w in words) or re.search(r"[$*~`]", bare)
    return words, not shell


def installs(words: list[str]) -> bool:
    return words[:2] in (["pip", "install"], ["promptforge", "install"])


def own_environment(folder: Path) -> Path:
    """An environment that sees all that this one has, and into which a page may install."""
    venv.create(folder, with_pip=False)
    site = next(folder.glob("lib/python*/site-packages"))
    packages = [p for p in sys.path if p.endswith("site-packages")]
    (site / "tests.pth").write_text(
        "".join(f"import site; site.addsitedir({p!r})\n" for p in packages), encoding="utf-8"
    )
    for name in ("pip", "pytest", "promptforge"):
        script = folder / "bin" / name
        script.write_text(
            f'#!/bin/sh\nexec "{folder}/bin/python" -m {name} "$@"\n', encoding="utf-8"
        )
        script.chmod(0o755)
    return folder


@pytest.mark.parametrize("page", pages())
def test_a_page(page: str, brief: None, command: Callable[..., Any], tmp_path: Path) -> None:
    """All that a page shows runs, in its order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    copy_examples(tmp_path)
    make_tables(tmp_path, text)
    sys.path.insert(0, str(tmp_path))  # as for a script in that folder
    modules = set(sys.modules)
    reader = Reader(page, tmp_path, command)
    try:
        for step in steps(page, text):
            reader.does(step)
    finally:
        sys.path.remove(str(tmp_path))
        for name in set(sys.modules) - modules:
            if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


def test_what_is_not_run_is_known() -> None:
    """So that a page does not grow lines that nobody tries."""
    found = {
        page: [s for s in steps(page, (ROOT / page).read_text("utf-8")) if s.kind == "not run"]
        for page in pages()
    }
    counted = {page: len(kept) for page, kept in found.items() if kept}
    told = [f"{page}:{s.line}: {s.told}" for page, kept in found.items() for s in kept]
    assert counted == NOT_RUN, "\n".join(told)
    for page, how_many in Counter(NOT_RUN).items():
        run = sum(s.kind != "not run" for s in steps(page, (ROOT / page).read_text("utf-8")))
        assert how_many < max(run, 6), f"{page}: more is left out than is run"


def test_ci_runs_the_readmes_test_command() -> None:
    """What `.ci/run` takes from the README is the command between the markers, and nothing else."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme.split("<!-- test command -->")[1].split("<!-- end -->")[0]
    shown = [line for line in block.splitlines() if line and not line.startswith(("```", "<!--"))]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    extraction = next(line for line in script.splitlines() if line.startswith("command="))
    done = subprocess.run(
        ["bash", "-c", f'{extraction}; echo "$command"'],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == shown
    assert len(shown) == 1 and "constraints.txt" in shown[0] and shown[0].endswith("pytest")


@pytest.mark.parametrize("page", pages())
def test_every_command_that_is_named_exists(page: str) -> None:
    """Within sentences too, where nothing is run."""
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`)promptforge ([a-z][a-z-]+)", text, re.MULTILINE))
    known = set(cli.list_commands(click.Context(cli)))
    assert named <= known, named - known


# --- the runner ------------------------------------------------------------------------------


def test_a_command_that_fails_fails_the_page(command: Callable[..., Any], tmp_path: Path) -> None:
    reader = Reader("a.md", tmp_path, command)
    for line in ("promptforge plugins show petla", "false | cat", "cat nothing.csv", "nonsuch -x"):
        with pytest.raises(AssertionError, match=r"a\.md:3: .*\n\s*exit code"):
            reader.does(Step("command", line, 3))
    with pytest.raises(ZeroDivisionError):
        reader.does(Step("python", "1 / 0", 3))


def test_commands_are_read_as_a_shell_reads_them() -> None:
    assert parsed("promptforge fill '{{ text | keep }} a' # why") == (
        ["promptforge", "fill", "{{ text | keep }} a"], True
    )  # fmt: skip
    for line in ("promptforge a | head", "promptforge a > b", "A=1 promptforge a", "promptforge $A", "promptforge *.csv"):  # fmt: skip
        assert not parsed(line)[1], line


def test_the_steps_of_a_page() -> None:
    text = """\
# Title

<!-- file: a/b.toml -->
```toml
x = 1
```

```console
promptforge fill "it \\
    was"   # so
# only words
echo b
```

```text
output
```

<!-- not run: needs a network -->
```console
pip install x
```
"""
    assert steps("a.md", text) == [
        Step("file", "x = 1\n", 5, "a/b.toml"),
        Step("command", 'promptforge fill "it was"   # so', 9),
        Step("command", "echo b", 9),
        Step("not run", "pip install x\n", 21, "needs a network"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("```\npromptforge x\n```\n", "a.md:1: a fence of kind ''"),
        ("```toml\nx = 1\n```\n", "a.md:1: a fence of kind 'toml'"),
        ("a\n\n<!-- not run: none -->\n```python\nx\n```\n", "a.md:4: say in words"),
        ("<!-- file: a.txt -->\n\nwords\n", "a.md:3: a comment"),
        ("<!-- file: ../a.txt -->\n```text\na\n```\n", "below the folder"),
    ],
)
def test_conventions_that_are_not_kept(text: str, says: str) -> None:
    with pytest.raises(WrongPage, match=re.escape(says)):
        steps("a.md", text)
