"""`promptforge exit-curve`: what leaving early costs in accuracy and saves in time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from promptforge.cli.common import console, json_option, percent, plain, print_json, reporter
from promptforge.cli.config import with_config
from promptforge.cli.setup import build_model, open_task
from promptforge.errors import UserError
from promptforge.remote import is_url

if TYPE_CHECKING:
    from promptforge.exits.curve import ExitCurve


@click.command("exit-curve")
@click.argument("run")
@click.option("--data", help="Labelled rows that the model was not trained on.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first rows.")
@click.option("--policies", multiple=True, metavar="NAME", help="Only these (several: repeat).")
@click.option("--max-drop", type=click.FloatRange(min=0), default=1.0, show_default=True,
              help="Points of accuracy that may be lost.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), multiple=True, default=(1, 32), show_default=True,
              help="Rows read together when time is measured (several: repeat).")  # fmt: skip
@click.option("--timed-rows", type=click.IntRange(min=1), default=128, show_default=True,
              help="Rows that are timed.")  # fmt: skip
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True,
              help="How often each batch is timed; the median counts.")  # fmt: skip
@click.option("--plot", metavar="FILE", help="Draw it too: .svg, .png or .pdf.")
@click.option("--reader", help="How tables are read. [default: by the name's ending]")
@click.option("-o", "options", multiple=True, metavar="POLICY.KEY=VALUE",
              help="Option of a policy besides its threshold, such as patience.difference=0.2.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps.")
@click.option("--batch-tokens", type=click.IntRange(min=16), default=2048, show_default=True,
              help="Tokens in a batch.")  # fmt: skip
@json_option
@with_config
def exit_curve(as_json: bool, run: str, plot: str | None, **params: Any) -> None:
    """Measure what each exit policy costs and saves, and choose a threshold.

    RUN was trained with --exits. Every policy is tried with many thresholds on labelled rows; a few
    are timed beside the plain model. Ends with the fastest threshold of each policy that loses no
    more than --max-drop points, and the options that choose it.
    """
    from promptforge.components import parse_options
    from promptforge.exits.curve import check_options
    from promptforge.exits.curve import exit_curve as draw
    from promptforge.exits.curve import plot as draw_file
    from promptforge.plugins import component, manager
    from promptforge.tuning.run import CONFIG, EXIT_CURVE, RunFolder, find_artifact

    if find_artifact(run) is None:
        raise UserError(
            f"{run}: there is no trained model: 'promptforge train TASK --exits joint'."
        )
    if plot:  # measuring takes long: what cannot be drawn is said before
        _check_plot(Path(plot))
    names = params["policies"] or manager().registry("exit-policy").names()
    classes: dict[str, Any] = {name: component("exit-policy", name) for name in names}
    options = parse_options(list(params["options"]), classes)
    check_options(options)
    given = {**params, "task": run, "options": (), "dtype": "float32"}
    setup = open_task(given, reporter(), tuned=True)
    examples = setup.labelled(setup.table("test"), complete=False)[: params["limit"]]
    found = draw(
        build_model(setup), examples, policies=params["policies"], options=options,
        max_drop=params["max_drop"], batch_sizes=params["batch_size"],
        timed_rows=params["timed_rows"], repeats=params["repeats"], report=setup.report,
    )  # fmt: skip
    if not is_url(run) and (Path(run) / CONFIG).is_file():  # `promptforge report` shows it
        RunFolder(Path(run)).write(EXIT_CURVE, found.to_json())
    if plot:
        draw_file(found, plot)
    if as_json:
        print_json(found.to_json())
    else:
        show(found, run)


def _check_plot(path: Path) -> None:
    """Raise a `UserError` where no figure can be drawn to `path`."""
    from promptforge.output import check_target

    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install matplotlib, or use --json.") from None
    if path.suffix[1:].lower() not in FigureCanvasBase.get_supported_filetypes():
        raise UserError(f"--plot {path}: the format is told from the ending: .svg, .png or .pdf.")
    check_target(path)


def show(curve: ExitCurve, run: str) -> None:
    """The best threshold of each policy as a table, and the lines that choose them."""
    from rich.table import Table

    out = console()
    layers = " ".join(f"{i}: {percent(s)}" for i, s in enumerate(curve.by_layer, start=1))
    out.print(f"[dim]Each layer for itself, {curve.rows} rows:[/] {layers}")
    table = Table(
        title=f"Fastest within {curve.max_drop:g} points of the plain model", title_justify="left",
        show_edge=False,
    )  # fmt: skip
    for head in ("policy", "threshold", "score", "points lost", "layers"):
        table.add_column(head, justify="left" if head == "policy" else "right")
    for size in curve.seconds:
        table.add_column(f"faster, batch {size}", justify="right", style="bold green")
        table.add_column("overhead", justify="right", style="dim")
    empty = ["1.00x", "1.00"] * len(curve.seconds)
    table.add_row(
        "plain model", "", percent(curve.score), "", str(curve.layers), *empty, style="dim"
    )
    for name, p in curve.best.items():
        times = [
            text for s in curve.seconds for text in (f"{p.speedup[s]:.2f}x", f"{p.overhead[s]:.2f}")
        ]
        table.add_row(
            plain(name),
            f"{p.threshold:g}",
            percent(p.score),
            f"{p.drop:+.1f}",
            f"{p.mean_layers:.2f}",
            *times,
        )
    out.print(table)
    lost = [n for n in dict.fromkeys(p.policy for p in curve.points) if n not in curve.best]
    if lost:
        out.print(f"[dim]No threshold of {', '.join(lost)} loses as little.[/]")
    out.print(
        f"[dim]Overhead: time through (the plain model's x share of layers), {curve.timed_rows} rows.[/]\n"
    )
    for p in curve.best.values():
        out.print(f"promptforge predict {plain(run)} --data FILE {p.line}", soft_wrap=True)
