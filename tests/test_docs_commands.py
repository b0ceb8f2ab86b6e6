"""What the pages show is what happens: every command and Python snippet of them is run.

The pages of the methods are in test_docs_methods.py, so that both files run at the same time.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from promptforge.cli import cli
from tests.doc_pages import ROOT, Step, WrongPage, pages, steps
from tests.doc_reader import Reader, parsed, run_page

#: page -> how many of its blocks are not run. Of each the page says why; a new one is written here.
NOT_RUN = {
    "README.md": 3,
    "CONTRIBUTING.md": 1,
    "docs/how-to/cluster.md": 5,
    "docs/how-to/offline.md": 1,
    "docs/how-to/own-model.md": 1,
    "docs/how-to/playground.md": 4,
    "docs/index.md": 1,
    "docs/tutorial.md": 1,
}


@pytest.mark.parametrize("page", [p for p in pages() if not p.startswith("docs/methods/")])
def test_a_page(
    page: str,
    packaged_models: Path,
    command: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All that a page shows runs, in its order."""
    run_page(page, tmp_path, command, monkeypatch)


def test_what_is_not_run_is_known() -> None:
    """So that a page does not grow lines that nobody tries."""
    found = {
        page: [s for s in steps(page, (ROOT / page).read_text("utf-8")) if s.kind == "not run"]
        for page in pages()
    }
    counted = {page: len(kept) for page, kept in found.items() if kept}
    told = [f"{page}:{s.line}: {s.told}" for page, kept in found.items() for s in kept]
    assert counted == NOT_RUN, "\n".join(told)
    for page, how_many in NOT_RUN.items():
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


def test_a_command_that_fails_fails_the_page(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader("a.md", tmp_path, command, monkeypatch)
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
