"""What every command shares: consoles, the reporter, `--json`, and one way to print errors."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import rich_click as click

from promptforge.progress import TerminalReporter
from promptforge.row_json import finite

F = TypeVar("F", bound=Callable[..., Any])
#: Columns of what is no terminal.
ENDLESS = 10_000
#: Labels that get a column each in a table; of more, a line says what is worth knowing.
MOST_COLUMNS = 8
#: A list of numbers as `json` indents it, one a line.
_NUMBERS = re.compile(r"\[\n\s+(-?[\d.eE+-]+(?:,\n\s+-?[\d.eE+-]+)*)\n\s+\]")


class ListingGroup(click.RichGroup):
    """A group whose `list` command runs when no other is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        named = bool(args) and (not args[0].startswith("-") or args[0] in ctx.help_option_names)
        if not named and not ctx.resilient_parsing:  # while a shell completes, that is not known
            args = ["list", *args]
        return super().parse_args(ctx, args)


def json_option(function: F) -> F:
    """`--json`: print the result as one JSON document on standard output."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(
        function
    )


def reporter() -> TerminalReporter:
    """Progress on standard error, quiet after `promptforge -q`."""
    context = click.get_current_context(silent=True)
    quiet = bool(context and context.find_root().params.get("quiet"))
    return TerminalReporter(quiet=quiet)


def print_json(value: Any) -> None:
    """`value` as indented JSON on standard output, a list of numbers on one line; NaN is null."""
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    # A line break between quotes is written as two characters, so no text is touched.
    text = _NUMBERS.sub(lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text)
    sys.stdout.write(text + "\n")


def console() -> Any:
    """A rich console on standard output that loses nothing, however narrow it is.

    `NO_COLOR` and `TERM=dumb` are respected by rich. What goes into a pipe or a file is not cut to a
    width that nobody asked for (`COLUMNS` asks).
    """
    from promptforge.cli.consoles import Whole

    free = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Whole(highlight=False, width=ENDLESS if free else None)


def size_text(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def plain(value: object) -> str:
    """Text from data, as it is: brackets in it are no markup of rich."""
    from rich.markup import escape

    return escape(str(value))


def percent(value: float) -> str:
    """0.8125 as "81.2 %"."""
    return f"{100 * value:.1f} %"


def p_value(p: float) -> str:
    """The p of a test; of a small one that it is small."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
