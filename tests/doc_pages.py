"""What stands in a page of the documentation: its fenced blocks, as steps that can be run.

The conventions are those of CONTRIBUTING.md: commands in `console` fences, one a line; Python in
`python` fences; `text` for sample output; a comment before a fence says that it is a file, or why it
is not run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent
#: Made when the site is built, or by it.
GENERATED = ("reference", "_build")


@dataclass(frozen=True)
class Step:
    """One thing that a reader does: `kind` is "command", "python", "file" or "not run"."""

    kind: str
    text: str
    line: int
    #: of a file its path, of what is not run the reason
    told: str = ""


class WrongPage(ValueError):
    """A page that does not keep the conventions."""


def pages() -> list[str]:
    """Every page that people write, as a path from the root of the repository."""
    found = [
        path
        for path in sorted((ROOT / "docs").rglob("*.md"))
        if path.relative_to(ROOT / "docs").parts[0] not in GENERATED
    ]
    return ["README.md", "CONTRIBUTING.md", *(p.relative_to(ROOT).as_posix() for p in found)]


def steps(page: str, text: str) -> list[Step]:
    """The steps of a page in their order.

    Raises:
        WrongPage: a fence of no known kind, a comment with no fence behind it.
    """
    out: list[Step] = []
    comments: list[tuple[str, str]] = []
    for token in MarkdownIt().parse(text):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "html_block":
            comments += re.findall(
                r"<!--\s*(file|not run):\s*(.*?)\s*-->", token.content, re.DOTALL
            )
            continue
        if token.type == "fence":
            try:
                out += _fence(token, line + 1, comments)
            except WrongPage as error:
                raise WrongPage(f"{page}:{line}: {error}") from None
        elif comments:
            raise WrongPage(f"{page}:{line}: a comment ({comments[0][0]}) with no fence behind it.")
        comments = []
    return out


def _fence(token: Token, line: int, comments: list[tuple[str, str]]) -> Iterator[Step]:
    told = dict(comments)
    language = token.info.strip()
    if "not run" in told:
        if len(told["not run"].split()) < 2:
            raise WrongPage("say in words why it is not run.")
        yield Step("not run", token.content, line, told["not run"])
    elif "file" in told:
        if Path(told["file"]).is_absolute() or ".." in Path(told["file"]).parts:
            raise WrongPage(f"{told['file']}: files of a page lie below the folder it begins in.")
        yield Step("file", token.content, line, told["file"])
    elif language == "console":
        for text in _lines(token.content):
            yield Step("command", text, line)
    elif language == "python":
        yield Step("python", token.content, line)
    elif language != "text" and not re.match(r"\{(?!code)", language):
        raise WrongPage(
            f"a fence of kind {language!r}: it is `console`, `python` or `text`, or has a comment "
            "before it, <!-- file: PATH --> or <!-- not run: REASON -->."
        )


def _lines(content: str) -> Iterator[str]:
    """The command lines of a fence; a backslash at the end of a line continues it."""
    for line in re.sub(r"\\\n\s*", "", content).splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip()
