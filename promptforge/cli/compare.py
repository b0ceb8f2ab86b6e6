"""`promptforge compare`: several strategies and seeds on one task, in one table."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from promptforge.cli.common import (
    console,
    json_option,
    p_value,
    percent,
    plain,
    print_json,
)
from promptforge.cli.config import with_config
from promptforge.cli.options import job_options, model_options, task_options
from promptforge.cli.setup import backend_of, load, open_task
from promptforge.cli.train import class_weight, kept, launched, setting_options, settings_of, splits
from promptforge.errors import UserError
from promptforge.remote import place

if TYPE_CHECKING:
    from promptforge.tuning.compare import Comparison

#: figure -> its name in a table
TITLES = {
    "accuracy": "accuracy", "micro_f1": "micro-F1", "macro_f1": "macro-F1", "pearson": "Pearson's r",
    "spearman": "Spearman's rho",
}  # fmt: skip


class Shots(click.IntRange):
    """A number of rows a label, or all there are, which is None as in Python."""

    name = "number or 'all'"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or None."""
        return None if value == "all" else super().convert(value, param, ctx)


@click.command()
@task_options
@click.option(
    "--strategy", "strategies", multiple=True, required=True, metavar="NAME[:KEY=VALUE,...]",
    help="A strategy with its options, for example 'prompt:demonstrations=lm-bff,samples=4' or "
    "'ensemble:verbalizers=[\"manual\",\"soft\"]' (several: repeat). verbalizer=NAME takes no verbalizer.json: only train does.",
)  # fmt: skip
@click.option("--seeds", default="13,21,42,87,100", show_default=True, help="Seeds, with commas.")
@click.option("--shots", type=Shots(min=1), metavar="K|all", default=16, show_default=True,
              help="Rows of each label to draw, and as many for dev; all: every row.")  # fmt: skip
@click.option(
    "--label-cost",
    metavar="K,K,...",
    help="Also fine-tune with these numbers of rows a label, and say how many rows each strategy is worth.",
)
@click.option("--dev", help="Table to choose by, in place of drawn rows.")
@click.option("--test", help="Table to measure on; the task's own by default.")
@click.option(
    "--limit", type=click.IntRange(min=1), help="Measure on a sample of the test rows (seed 0)."
)
@click.option("--unlabeled", help="Unlabelled rows; the task's own by default.")
@click.option("--class-weight", multiple=True, metavar="LABEL=WEIGHT", help="Or: balanced.")
@partial(job_options, what="Trainings")
@setting_options
@click.option("--exits", type=click.Choice(["joint", "two-stage"]),
              help="Train every strategy with a classifier at every layer, with the model or after it.")  # fmt: skip
@click.option(
    "--folder",
    help="Folder or URL; keeps a run per cell; a cell is never trained twice, and cells of other options "
    "or rows are refused. [default: runs/compare-TASK]",
)
@model_options
@json_option
@with_config
def compare(as_json: bool, strategies: tuple[str, ...], **params: Any) -> None:
    """Compare strategies with several seeds: mean, deviation, paired test, time."""
    import random

    report = launched(params)
    roles = {"settings": None, "backend": params["backend"], "exits": params["exits"]}
    setup = open_task(params, report, roles)
    backend = backend_of(params, setup.options)
    from promptforge.exits.train import exit_training
    from promptforge.tuning import processes
    from promptforge.tuning.compare import compare as run
    from promptforge.tuning.contender import Contender
    from promptforge.tuning.run import check_place

    contenders = [Contender.parse(text) for text in strategies]
    rows, dev, test = splits(setup)
    if not test:
        raise UserError("A comparison needs test rows: give --test FILE.")
    if params["limit"] and params["limit"] < len(test):
        test = random.Random(0).sample(test, params["limit"])
    cost = (
        {"finetune": numbers("--label-cost", params["label_cost"], least=1)}
        if params["label_cost"]
        else None
    )
    seeds = numbers("--seeds", params["seeds"], least=0)
    folder = place(params["folder"] or f"runs/compare-{setup.task.name}")
    if isinstance(folder, Path):
        check_place(folder, "--folder")
    exits = params["exits"] and exit_training(params["exits"]).build(**setup.options["exits"])
    backbone = load(params, report, setup.task)
    with kept(folder, report, "the same command"):
        found = run(
            setup.task, rows, contenders, backbone=backbone, test=test, dev=dev,
            unlabeled=setup.unlabeled() or [], shots=params["shots"], label_cost=cost,
            seeds=seeds, settings=settings_of(params, setup),
            class_weight=class_weight(params["class_weight"]), jobs=params["jobs"], backend=backend,
            exits=exits, report=report, folder=folder,
        )  # fmt: skip
    if not processes.is_first():
        return
    worth = found.worth("finetune") if cost else None
    if as_json:
        print_json({**found.to_json(), "worth": worth})
    else:
        show(found, worth)


def numbers(option: str, text: str, least: int | None = None) -> list[int]:
    """`"13,21"` to `[13, 21]`.

    Raises:
        UserError: what is no number, is there twice or is less than `least`.
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text!r}: write whole numbers with commas.") from None
    if least is not None and min(found) < least:
        raise UserError(f"{option} {text!r} has {min(found)}: the least is {least}.")
    if twice := [one for i, one in enumerate(found) if one in found[:i]]:
        raise UserError(f"{option} {text!r} has {twice[0]} twice: give each once.")
    return found


def show(found: Comparison, worth: dict[str, float | None] | None) -> None:
    """Print the comparison as a table."""
    from rich.table import Table

    lines, (score, other) = found.summary(), found.figures
    shown = "{:.3f}".format if score == "pearson" else percent
    best = max(line[score] for line in lines)
    table = Table(show_edge=False)
    for head in (
        "strategy",
        "rows a label",
        TITLES[score],
        "deviation",
        TITLES[other],
        "p",
        "seconds",
        "memory",
    ):
        table.add_column(head, justify="left" if head == "strategy" else "right")
    if score != "pearson":
        guess = "majority class" if score == "accuracy" else "most frequent labels"
        table.add_row(guess, "", shown(found.majority), style="dim")
    before = _untrained(found, shown)
    for value, names in before.items():
        of = f" ({plain(', '.join(names))})" if len(before) > 1 else ""
        table.add_row(f"zero-shot{of}", "0", value, style="dim")
    for line in lines:
        table.add_row(
            plain(line["contender"]), str(line["shots"] or "all"), shown(line[score]),
            "" if line["deviation"] is None else shown(line["deviation"]), shown(line[other]),
            "" if line["p"] is None else p_value(line["p"]), f"{line['seconds']:.0f}",
            "" if line["memory"] is None else f"{line['memory'] / 1e6:,.0f} MB",
            style="bold green" if line[score] == best else None,
        )  # fmt: skip
    out = console()
    out.print(
        table, f"[dim]{found.rows} test rows; p: paired t-test over the seeds against the best[/]"
    )
    own = [line["shots"] for line in lines if line["contender"] == "finetune" and line["shots"]]
    for name, rows in (worth or {}).items():
        about = "at most" if rows == min(own, default=0) else "about"
        many = "more rows than were tried" if rows is None else f"{about} {rows:.0f} rows a label"
        out.print(f"{plain(name)}: fine-tuning needs {many} to be as good.")


def _untrained(found: Comparison, shown: Callable[[float], str]) -> dict[str, list[str]]:
    """Each zero-shot figure, as shown -> the contenders whose it is: verbalizers may differ."""
    by_name: dict[str, list[float]] = {}
    for cell in found.cells:
        # Draws of other sizes choose other thresholds for label sets, and are of other rows.
        if cell.zero_shot is not None and cell.shots == found.cells[0].shots:
            by_name.setdefault(cell.contender, []).append(cell.zero_shot)
    out: dict[str, list[str]] = {}
    for name, values in by_name.items():
        out.setdefault(shown(sum(values) / len(values)), []).append(name)
    return out
