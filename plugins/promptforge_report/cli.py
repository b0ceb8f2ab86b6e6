"""`promptforge report`, the command."""

from __future__ import annotations

import rich_click as click

from promptforge.cli.common import console, json_option, plain, print_json, reporter
from promptforge.cli.config import with_config


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--output", metavar="FILE",
              help="Where it is written. [default: report.html, in the run's folder if there is one run]")  # fmt: skip
@click.option(
    "--data", metavar="FILE", help="Labelled rows to show, in place of what the runs kept."
)
@click.option("--rows", type=click.IntRange(min=0), default=0, show_default=True,
              help="Load each run's model and read this many of the hardest rows again: its top words at "
              "the mask, what was cut, and as many other rows for the label words.")  # fmt: skip
@click.option("--reader", help="How --data is read. [default: by the name's ending]")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps.")
@json_option
@with_config
def report(
    runs: tuple[str, ...], output: str | None, data: str | None, rows: int, reader: str | None,
    device: str, as_json: bool,
) -> None:  # fmt: skip
    """Write a report about runs of `promptforge train`: one HTML file that needs no network.

    RUN is the folder of a run, or a folder with runs. Of several runs the report compares them
    first: a sorted table, tests on the rows and seeds they share, time and parameters. Without
    --rows no model is loaded: everything comes from what the runs wrote.
    """
    from promptforge_report.report import report as write

    made = write(
        runs, output, data=data, rows=rows, reader=reader, device=device, report=reporter()
    )
    if as_json:
        print_json(made.to_json())
        return
    many = f"{len(made.runs)} runs" if len(made.runs) > 1 else str(made.runs[0].record.path)
    console().print(
        f"The report of {plain(many)} is in [bold]{plain(made.output)}[/]: open it in a browser.",
        soft_wrap=True,
    )
