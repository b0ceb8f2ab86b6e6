"""How long work shows itself: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Meter(Protocol):
    """One piece of long work."""

    def advance(self, n: int = 1) -> None:
        """`n` more units are done."""


class Reporter:
    """Says nothing; the base of those that do. Library functions take one as `report=`."""

    def note(self, text: str) -> None:
        """A line about what is going on."""

    def warn(self, text: str) -> None:
        """A line the user should not miss; Python callers see it as a warning."""
        import warnings

        warnings.warn(text, stacklevel=3)

    @contextmanager
    def meter(self, label: str, total: int | None, unit: str = "rows") -> Iterator[Meter]:
        """A meter for `total` units of work (None: unknown)."""
        yield _Silent()


class Mute(Reporter):
    """Says nothing at all: someone else does."""

    def warn(self, text: str) -> None:
        """Nothing."""


class _Silent:
    def advance(self, n: int = 1) -> None:
        pass


class KeptWarnings(Reporter):
    """Keeps its warnings: a job in another process has nobody there to tell, and sends them back.

    Attributes:
        kept: each once, in order.
    """

    def __init__(self) -> None:
        self.kept: list[str] = []

    def warn(self, text: str) -> None:
        """Keep it."""
        if text not in self.kept:
            self.kept.append(text)


class TerminalReporter(Reporter):
    """Writes to standard error: rich bars on a terminal, a line every few seconds elsewhere."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet

    def note(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        print(f"Warning: {text}", file=sys.stderr, flush=True)

    @contextmanager
    def meter(self, label: str, total: int | None, unit: str = "rows") -> Iterator[Meter]:
        if self.quiet:
            yield _Silent()
        elif sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
            with _bar(label, total, unit) as meter:
                yield meter
        else:
            lines = _Lines(label, total, unit)
            yield lines
            lines.close()


class _Lines:
    """A plain line every five seconds, and one at the end."""

    every = 5.0

    def __init__(self, label: str, total: int | None, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0
        self.start = self.last = time.monotonic()

    def advance(self, n: int = 1) -> None:
        self.done += n
        # Of the end `close` speaks.
        if self.done != self.total and time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            self._say()

    def close(self) -> None:
        self._say()

    def _say(self) -> None:
        rate = self.done / max(time.monotonic() - self.start, 1e-9)
        of = f"/{self.total}" if self.total else ""
        left = ""
        if self.total and rate and self.done < self.total:
            left = f", {(self.total - self.done) / rate:.0f} s left"
        print(
            f"{self.label}: {self.done}{of} {self.unit}, {rate:.1f}/s{left}",
            file=sys.stderr,
            flush=True,
        )


@contextmanager
def _bar(label: str, total: int | None, unit: str) -> Iterator[Meter]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed or 0:.0f} {unit}/s", style="cyan")

    columns: list[Any] = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True)) as progress:
        handle = progress.add_task(label, total=total)

        class Bar:
            def advance(self, n: int = 1) -> None:
                progress.advance(handle, n)

        yield Bar()
