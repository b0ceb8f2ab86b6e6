"""`promptforge runs`: what was trained, how it went, and where two runs differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from promptforge.cli.common import ListingGroup, console, json_option, percent, plain, print_json


@click.group(cls=ListingGroup)
def runs() -> None:
    """List, show and compare the runs of `promptforge train`."""


@runs.command("list")
@click.option("--folder", default="runs", show_default=True, help="Where the runs are.")
@json_option
def list_(folder: str, as_json: bool) -> None:
    """The runs in a folder, with their figures."""
    from rich.table import Table

    from promptforge.tuning.run import runs as found

    rows = [_summary(run) for run in found(folder)]
    if as_json:
        print_json(rows)
        return
    if not rows:
        console().print(f"There are no runs in {plain(folder)}. 'promptforge train' makes one.")
        return
    table = Table(show_edge=False)
    for head in ("run", "task", "strategy", "method", "model", "seed", "dev", "test", "state"):
        number = head in ("seed", "dev", "test")
        table.add_column(head, justify="right" if number else "left", no_wrap=head == "run")
    for row in rows:
        figures = [percent(row[s]) if row[s] is not None else "" for s in ("dev", "test")]
        cells = [row[k] for k in ("run", "task", "strategy", "method", "model", "seed")]
        table.add_row(*map(plain, cells), *figures, row["state"])
    console().print(table)


@runs.command()
@click.argument("run")
@json_option
def show(run: str, as_json: bool) -> None:
    """Everything that is known of one run: options, environment, members, figures."""
    from promptforge.tuning.run import ENVIRONMENT, RunFolder, flat

    folder = RunFolder(Path(run))
    data = {
        **_summary(folder),
        "config": folder.config,
        "environment": folder.read(ENVIRONMENT),
        "members": folder.members(),
        "results": folder.results,
    }
    if as_json:
        print_json(data)
        return
    out = console()
    for key in ("run", "task", "strategy", "method", "model", "seed", "state"):
        out.print(f"[bold]{key}[/] {plain(data[key])}")
    for key, value in flat(folder.config).items():
        out.print(f"  [dim]{plain(key)}[/] {plain(value)}")
    for split, by in (data["results"] or {}).get("results", {}).items():
        for who, parts in by.items():
            for part, figures in parts.items():
                out.print(f"{split}, {plain(who)}, {plain(part)}: {_figure(figures)}")


@runs.command()
@click.argument("first")
@click.argument("second")
@json_option
def diff(first: str, second: str, as_json: bool) -> None:
    """The options in which two runs differ, and their figures."""
    from rich.table import Table

    from promptforge.tuning.run import RunFolder, flat

    folders = [RunFolder(Path(first)), RunFolder(Path(second))]
    one, two = (flat(f.config) for f in folders)
    summaries = [_summary(f) for f in folders]
    for split in ("dev", "test"):
        one[f"{split} accuracy"], two[f"{split} accuracy"] = (s[split] for s in summaries)
    keys = [k for k in {**one, **two} if one.get(k) != two.get(k)]
    if as_json:
        print_json({key: [one.get(key), two.get(key)] for key in keys})
        return
    table = Table(show_edge=False)
    for head in ("option", first, second):
        table.add_column(plain(head))
    for key in keys:
        table.add_row(plain(key), plain(one.get(key, "")), plain(two.get(key, "")))
    console().print(table if keys else "The two runs have the same options and figures.")


def _figure(figures: dict[str, Any]) -> str:
    if "accuracy" in figures:
        return percent(figures["accuracy"])
    return f"Pearson {figures['pearson']}, RMSE {figures['rmse']:.3g}"


def _summary(run: Any) -> dict[str, Any]:
    config, results = run.config, run.results
    row: dict[str, Any] = {
        "run": str(run.path),
        "task": config["task"]["name"],
        "strategy": config["strategy"]["name"],
        "method": config["method"]["name"],
        "model": config["model"]["name"],
        "seed": config["seed"],
        "state": "ended" if results else f"{len(run.members())} members done; go on with --resume",
    }
    for split in ("dev", "test"):
        parts = ((results or {}).get("results", {}).get(split) or {}).get("tuned")
        row[split] = list(parts.values())[-1].get("accuracy") if parts else None
    return row
