"""`promptforge fill`: the most likely words at the mask."""

from __future__ import annotations

from typing import Any

import rich_click as click

from promptforge.cli.common import console, json_option, plain, print_json, reporter
from promptforge.cli.config import with_config
from promptforge.cli.options import model_options
from promptforge.cli.render import ROW_OPTIONS, prompts, the_row


@click.command()
@ROW_OPTIONS
@click.option(
    "--top", default=10, show_default=True, type=click.IntRange(min=1), help="How many words."
)
@model_options
@json_option
@with_config
def fill(as_json: bool, top: int, **params: Any) -> None:
    """Show the words the model would write at the mask, with their probabilities.

    The text is given directly (promptforge fill "The film was {{ mask }}.") or comes from a
    TASK's row. TASK may also be the folder of a run or of an artifact: then what was tuned writes.
    """
    from rich.table import Table

    setup, row, _ = the_row(params, reporter())
    model = prompts(setup)
    results = model.fill(row, top)
    if as_json:
        print_json(
            {p: [[vars(f) for f in place] for place in places] for p, places in results.items()}
        )
        return
    out = console()
    for pattern, places in results.items():
        out.print(f"[bold]{plain(pattern)}[/]: {plain(model.prompt(pattern, row))}")
        for number, words in enumerate(places, 1):
            table = Table(title=f"mask {number}" if len(places) > 1 else None, show_edge=False)
            table.add_column("word", style="cyan")
            table.add_column("probability", justify="right")
            for word in words:
                table.add_row(plain(repr(word.word)), f"{word.probability:.4f}")
            out.print(table, "")
