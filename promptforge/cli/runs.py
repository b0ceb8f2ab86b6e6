"""`promptforge runs`: what was trained, how it went, and where two runs differ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from promptforge.cli.common import (
    ListingGroup,
    console,
    json_option,
    percent,
    plain,
    print_json,
    size_text,
)
from promptforge.errors import PromptForgeError
from promptforge.remote import fetched

if TYPE_CHECKING:
    from promptforge.tuning.run import RunFolder

#: What a run was asked for, and what is known of its end; both in a summary's order.
_OPTIONS = ("run", "task", "strategy", "method", "model", "seed")
_OUTCOME = ("state", "problem", "figure", "dev", "test")


@click.group(cls=ListingGroup)
def runs() -> None:
    """List, show and compare the runs of `promptforge train`."""


@runs.command("list")
@click.option("--folder", default="runs", show_default=True, help="Where the runs are.")
@json_option
def list_(folder: str, as_json: bool) -> None:
    """The runs in a folder, with their figures; a damaged file is named in its run's row."""
    from rich.table import Table

    from promptforge.tuning.run import runs as found

    rows = [_row(run) for run in found(fetched(folder, members=False))]
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
        cells = ["" if row[key] is None else row[key] for key in _OPTIONS]
        figures = [_shown(row["figure"], row[split]) for split in ("dev", "test")]
        table.add_row(*map(plain, [*cells, *figures, row["state"]]))
    out = console()
    out.print(table)
    for row in rows:
        if row["problem"]:  # too long for the table
            out.print(plain(row["problem"]))


@runs.command()
@click.argument("run")
@json_option
def show(run: str, as_json: bool) -> None:
    """Everything that is known of one run: options, environment, members, figures."""
    from promptforge.tuning.run import ENVIRONMENT, RunFolder, flat

    folder = RunFolder(fetched(run))
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
    for key in (*_OPTIONS, "state"):
        out.print(f"[bold]{key}[/] {plain(data[key])}")
    if data["results"] and data["results"].get("size"):
        told = data["results"]
        out.print(
            f"[bold]trained parameters[/] {told['parameters']:,}, artifact {size_text(told['size'])}"
        )
    if data["results"] and data["results"].get("memory"):
        told = data["results"]
        out.print(
            f"[bold]training[/] {told['seconds']:.0f} s, at most {size_text(told['memory'])} of memory"
        )
    for key, value in flat(folder.config).items():
        out.print(f"  [dim]{plain(key)}[/] {plain(value)}")
    for split, by in (data["results"] or {}).get("results", {}).items():
        for who, parts in by.items():
            for part, figures in parts.items():
                out.print(f"{split}, {plain(who)}, {plain(part)}: {_figure(figures)}")
    for name, one in (data["results"] or {}).get("tasks", {}).items():
        held = ", held out" if one["held_out"] else ""
        for when in ("before", "after"):
            for part, figures in one[when].items():
                out.print(f"{plain(name)}{held}, {when}, {plain(part)}: {_figure(figures)}")


@runs.command()
@click.argument("first")
@click.argument("second")
@json_option
def diff(first: str, second: str, as_json: bool) -> None:
    """The options in which two runs differ, and their figures."""
    from rich.table import Table

    from promptforge.tuning.run import RunFolder, flat, is_place

    folders = [RunFolder(fetched(one, members=False)) for one in (first, second)]
    one, two = (flat(f.config) for f in folders)
    summaries = [_summary(f) for f in folders]
    for options, summary in zip((one, two), summaries, strict=True):
        for split in ("dev", "test"):
            options[f"{split} {summary['figure'] or 'accuracy'}"] = summary[split]
    keys = [k for k in {**one, **two} if one.get(k) != two.get(k) and not is_place(k)]
    if as_json:
        print_json({key: [one.get(key), two.get(key)] for key in keys})
        return
    table = Table(show_edge=False)
    for head in ("option", first, second):
        table.add_column(plain(head))
    for key in keys:
        table.add_row(plain(key), plain(one.get(key, "")), plain(two.get(key, "")))
    console().print(table if keys else "The two runs have the same options and figures.")


def _headline(figures: dict[str, Any]) -> tuple[str, float | None]:
    """Name and value of the figure that counts; its value may not be defined."""
    kind = next(name for name in ("micro_f1", "accuracy", "pearson", "bleu") if name in figures)
    return kind, figures[kind]


def _shown(kind: str | None, value: float | None) -> str:
    """A figure as text; what is no accuracy says so."""
    if kind == "pearson":
        return "r undefined" if value is None else f"r {value:.3f}"
    if value is None:
        return "see runs show" if kind and "tasks" in kind else ""
    if kind == "bleu":
        return f"BLEU {value:.1f}"
    return percent(value) if kind == "accuracy" else f"{percent(value)} ({kind})"


def _figure(figures: dict[str, Any]) -> str:
    shown = _shown(*_headline(figures))
    return f"{shown}, RMSE {figures['rmse']:.3g}" if "rmse" in figures else shown


def _row(run: RunFolder) -> dict[str, Any]:
    """A run's summary; where a file is damaged, what the others say, and which one it is."""
    row: dict[str, Any] = {**dict.fromkeys((*_OPTIONS, *_OUTCOME)), "run": str(run.path)}
    try:
        row |= _options(run)
        row |= _outcome(run)
    except PromptForgeError as error:
        row |= {"state": "damaged", "problem": str(error)}
    return row


def _summary(run: RunFolder) -> dict[str, Any]:
    """What was chosen, how far it is, and the figure of each split.

    Raises:
        UserError: no run there.
        PromptForgeError: one of its files is damaged.
    """
    return {**_options(run), **_outcome(run)}


def _options(run: RunFolder) -> dict[str, Any]:
    from promptforge.tuning.run import CONFIG

    config = run.config
    try:
        chosen = [config[role]["name"] for role in _OPTIONS[1:-1]]
        return dict(zip(_OPTIONS, [str(run.path), *chosen, config["seed"]], strict=True))
    except (KeyError, TypeError) as error:
        raise _damaged(run.path / CONFIG, error) from None


def _outcome(run: RunFolder) -> dict[str, Any]:
    from promptforge.tuning.run import RESULTS

    results = run.results
    row: dict[str, Any] = dict.fromkeys(_OUTCOME)
    if results is None:
        return {**row, "state": f"{run.done} trainings done, not ended"}
    row["state"] = "ended"
    try:
        for split, by in results["results"].items():
            row["figure"], row[split] = _headline(list(by["tuned"].values())[-1])
        # A multitask run has figures of each task, on its test rows.
        told = [one["after"] for one in results.get("tasks", {}).values()]
        after = [list(parts.values())[-1] for parts in told if parts]
        if after:
            kinds, values = zip(*map(_headline, after), strict=True)
            if len(set(kinds)) > 1:  # a mean of accuracies and correlations would say nothing
                row["figure"] = (
                    f"{len(values)} tasks, measured by {' and '.join(sorted(set(kinds)))}"
                )
            else:
                name = "" if kinds[0] == "accuracy" else f"{kinds[0]}, "
                row["figure"] = f"{name}mean of {len(values)} tasks"
                row["test"] = sum(value or 0.0 for value in values) / len(values)
    except (AttributeError, IndexError, KeyError, StopIteration, TypeError) as error:
        raise _damaged(run.path / RESULTS, error) from None
    return row


def _damaged(path: Path, error: Exception) -> PromptForgeError:
    return PromptForgeError(f"{path} is damaged: {type(error).__name__} {error}.")
