"""What the commands look like: on narrow and dumb terminals, without colours, and through pipes."""

from __future__ import annotations

import json
import os
import re
import select
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from promptforge import progress
from promptforge.progress import TerminalReporter

Command = Callable[..., Any]
ESCAPE = "\x1b"
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")
#: Commands whose tables, bars and texts are looked at. TASK, MODEL and RUNS are folders.
SHOWN = [
    ["templates"],
    ["templates", "show", "nli"],
    ["plugins"],
    ["plugins", "show", "petal"],
    ["plugins", "hooks"],
    ["models"],
    ["render", "TASK", "--model", "MODEL", "--pattern", "tone"],
    ["fill", "TASK", "--model", "MODEL", "--pattern", "tone"],
    ["evaluate", "TASK", "--model", "MODEL"],
    ["search-verbalizer", "TASK", "--model", "MODEL", "--pattern", "tone", "--output", "w.json"],
    ["runs", "list", "--folder", "RUNS"],
    ["runs", "show", "RUNS/a-run-with-a-long-name-13"],
    ["runs", "diff", "RUNS/a-run-with-a-long-name-13", "RUNS/another-run-with-a-long-name-21"],
]
each = pytest.mark.parametrize("arguments", SHOWN, ids=" ".join)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A task of a few rows, a tiny model, and two runs of it."""
    import csv
    import shutil

    from promptforge.cli import run

    home = tmp_path_factory.mktemp("terminal")
    found = {"TASK": home / "reviews", "MODEL": tiny.save("bert", home / "bert"), "RUNS": home / "runs"}  # fmt: skip
    shutil.copytree(tiny.EXAMPLES, found["TASK"])
    for split in ("test", "unlabeled"):
        path = found["TASK"] / f"{split}.csv"
        with path.open(encoding="utf-8", newline="") as handle:
            rows = list(csv.reader(handle))[:31]
        with path.open("w", encoding="utf-8", newline="") as handle:
            csv.writer(handle).writerows(rows)
    for name, seed in (("a-run-with-a-long-name-13", "13"), ("another-run-with-a-long-name-21", "21")):  # fmt: skip
        assert run(["-q", "train", str(found["TASK"]), "--model", str(found["MODEL"]), "--steps", "2",
                    "--eval-every", "2", "--shots", "2", "--pattern", "tone", "--seed", seed,
                    "--run", str(found["RUNS"] / name)]) == 0  # fmt: skip
    return found


@pytest.fixture
def typed(
    command: Command, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, models_cache: Path
) -> Callable[..., str]:
    """What a command writes to standard output where these variables are set."""
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "TERM", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)

    def run(arguments: list[str], *more: str, **variables: str) -> str:
        here = [re.sub(r"^(TASK|MODEL|RUNS)", lambda m: str(places[m[1]]), a) for a in arguments]
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            ran = command("-q", *here, *more)
        assert ran.code == 0, ran.err
        return str(ran.out)

    return run


def signs(text: str) -> Counter[str]:
    """Letters and digits, each as often as it is there."""
    return Counter(re.sub(r"[^\w]", "", re.sub(r"\x1b\[[\d;]*m", "", text)))


@each
def test_nothing_is_lost_on_a_narrow_terminal(
    typed: Callable[..., str], arguments: list[str]
) -> None:
    wide = typed(arguments, COLUMNS="1000")
    for width in (40, 60, 80):
        narrow = typed(arguments, COLUMNS=str(width))
        unbroken = [line for line in narrow.splitlines() if len(line) > width]
        assert unbroken == [], width
        # Times may differ from run to run by a digit; what is said may not.
        if not re.search(r"\d(?: |\u202f)?(?:s|/s)\b", wide):
            assert not signs(wide) - signs(narrow), (width, narrow)
        assert narrow.count("…") <= wide.count("…")


def test_rows_that_do_not_fit_are_told_line_by_line(typed: Callable[..., str]) -> None:
    told = typed(["templates"], COLUMNS="40").split("\n\n")
    assert len(told) == len(json.loads(typed(["templates"], "--json")))
    for record in told:
        heads = re.findall(r"^(\w+): ", record, re.MULTILINE)
        assert heads == ["name", "kind", "labels", "patterns", "description"], record


@each
def test_a_pipe_gets_plain_uncut_text(typed: Callable[..., str], arguments: list[str]) -> None:
    piped = typed(arguments)
    assert ESCAPE not in piped and "\r" not in piped
    assert piped.count("…") <= typed(arguments, COLUMNS="1000").count("…")
    assert max(map(len, piped.splitlines())) < 10_000  # no line is filled up to a width


@each
def test_colours_stay_away_where_they_are_not_wanted(
    typed: Callable[..., str], arguments: list[str]
) -> None:
    coloured = typed(arguments, FORCE_COLOR="1", TERM="xterm-256color", COLUMNS="100")
    plain = typed(arguments, FORCE_COLOR="1", TERM="xterm-256color", COLUMNS="100", NO_COLOR="1")
    dumb = typed(arguments, FORCE_COLOR="1", TERM="dumb", COLUMNS="100")
    assert not COLOUR.search(plain) and ESCAPE not in dumb
    if arguments[0] in ("render", "models", "plugins", "evaluate"):
        assert ESCAPE in coloured


@pytest.mark.parametrize("width", ["20", "40"])
@pytest.mark.parametrize(
    "arguments",
    [a for a in SHOWN if a[0] not in ("search-verbalizer", "evaluate")] + [["plugins", "doctor"]],
    ids=" ".join,
)
def test_json_is_never_cut_or_coloured(
    typed: Callable[..., str], arguments: list[str], width: str
) -> None:
    plain = typed(arguments, "--json")
    if arguments != ["plugins", "doctor"]:  # which times imports
        assert typed(arguments, "--json", COLUMNS=width, FORCE_COLOR="1", TERM="xterm") == plain
    assert json.loads(plain) and ESCAPE not in plain


def on_terminal(arguments: list[str], width: int, **variables: str) -> str:
    """What a command writes to a real terminal of this width, bars and all."""
    fcntl, pty, termios = (pytest.importorskip(m) for m in ("fcntl", "pty", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
    clean = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    with subprocess.Popen(
        [sys.executable, "-m", "promptforge", *arguments], stdin=theirs, stdout=theirs, stderr=theirs,
        env={**clean, "TERM": "xterm-256color", **variables}, start_new_session=True,
    ) as process:  # fmt: skip
        os.close(theirs)
        out, end = b"", time.monotonic() + 60
        while time.monotonic() < end:
            if not select.select([ours], [], [], 1)[0]:
                continue
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            out += part
        code = process.wait(10)
    os.close(ours)
    text = out.decode()
    assert code == 0, text
    return text


def test_a_terminal_has_colours_and_its_own_width() -> None:
    told = on_terminal(["templates"], 50)
    assert ESCAPE in told
    bare = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", told)
    assert max(len(line) for line in bare.splitlines()) <= 50
    assert not COLOUR.search(on_terminal(["plugins", "show", "petal"], 50, NO_COLOR="1"))
    assert ESCAPE not in on_terminal(["templates"], 50, TERM="dumb")


@pytest.mark.parametrize(
    ("variables", "bars", "colours"),
    [({}, True, True), ({"NO_COLOR": "1"}, True, False), ({"TERM": "dumb"}, False, False)],
    ids=["terminal", "NO_COLOR", "dumb"],
)
def test_bars_are_drawn_where_they_can_be(
    variables: dict[str, str], bars: bool, colours: bool
) -> None:
    """A reporter on a real terminal: a bar that is drawn over, or lines that stay."""
    code = (
        "from promptforge.progress import TerminalReporter\n"
        "with TerminalReporter().meter('Reading', 3) as meter:\n"
        "    [meter.advance() for _ in range(3)]\n"
    )
    fcntl, pty, termios = (pytest.importorskip(m) for m in ("fcntl", "pty", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 40, 0, 0))
    clean = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, check=True,
        env={**clean, "TERM": "xterm-256color", **variables},
    )  # fmt: skip
    assert done.returncode == 0
    os.close(theirs)
    told = os.read(ours, 65536).decode()
    os.close(ours)
    assert "Reading" in told and "3/3" in told
    assert (ESCAPE in told) == bars and bool(COLOUR.search(told)) == colours


def test_the_end_is_said_once_in_a_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the last step falls on a line's time."""
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with TerminalReporter().meter("Reading", 4) as meter:
        for _ in range(4):
            meter.advance()
    said = [line.split(" rows")[0] for line in capsys.readouterr().err.splitlines()]
    assert said[-1] == "Reading: 4/4" and 1 < len(said) == len(set(said))
