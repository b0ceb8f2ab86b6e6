"""`promptforge train --seeds`: a run with each seed, and what they say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from promptforge.cli.common import console, percent, plain, print_json
from promptforge.errors import UserError

if TYPE_CHECKING:
    from promptforge.backbone.base import Backbone
    from promptforge.data import Example
    from promptforge.task import Task

#: who is measured, in the order of the table
_WHO = ("majority", "zero-shot", "tuned")


def seeds_of(params: Mapping[str, Any]) -> list[int]:
    """The seeds of --seeds; none where --seed counts.

    What is typed goes over `forge.toml`, here as everywhere.

    Raises:
        UserError: both are given, a seed is no number or is there twice, there is no such training.
    """
    from promptforge.cli.compare import numbers

    if not params["seeds"]:
        return []
    context = click.get_current_context()
    assert context is not None
    seed, seeds = (context.get_parameter_source(name) for name in ("seed", "seeds"))
    if seed == seeds:
        raise UserError(
            "--seed and --seeds are both given: give --seed for one run, --seeds for several."
        )
    if seed is not None and seed.name == "COMMANDLINE":
        return []
    found = numbers("--seeds", params["seeds"], least=0)
    if len(params["task"]) > 1 or params["objective"] == "generate":
        what = "several TASKs" if len(params["task"]) > 1 else "--objective generate"
        raise UserError(f"--seeds is not for {what}: give --seed, and run it once for each.")
    return found


def train_seeds(
    task: Task,
    rows: Sequence[Example],
    names: Mapping[int, str],
    backbone: Backbone,
    params: Mapping[str, Any],
    parts: Mapping[str, Any],
    common: Mapping[str, Any],
    home: str | Path,
    as_json: bool,
) -> None:
    """Train with every seed and show the mean; runs that have ended are read.

    Args:
        names: seed -> the name of its run's folder in `home`.
        parts: the components, and where and with which exits they are trained.
        common: further arguments of `promptforge.train`.

    Raises:
        UserError: as `promptforge.train`; a folder has a run of other options or rows.
    """
    from promptforge.cli.train import kept
    from promptforge.tuning import processes
    from promptforge.tuning.backends import started
    from promptforge.tuning.compare import Job, trained
    from promptforge.tuning.contender import ROLES, Contender

    made = {role: parts[role] for role in ROLES if parts.get(role) is not None}
    contender = Contender.of(made["strategy"].name, made, params["samples"])
    jobs = [Job(name, contender, params["shots"], seed) for seed, name in names.items()]
    common = {**common, **({"exits": parts["exits"]} if "exits" in parts else {})}
    with kept(home, common["report"]), started(parts.get("backend"), params["jobs"]) as many:
        done = trained(
            task, rows, jobs, backbone=backbone, jobs=many, folder=home, option="--run", **common
        )
    if not processes.is_first():
        return
    by_seed = {seed: done[name] for seed, name in names.items()}
    figure, splits = over_seeds(task, by_seed)
    folders = {seed: f"{home}/{name}" for seed, name in names.items()}
    if as_json:
        runs = [{"seed": seed, "run": folders[seed], **told} for seed, told in by_seed.items()]
        print_json({"figure": figure, "summary": splits, "runs": runs})
    else:
        _show(figure, splits, list(names), folders)


def over_seeds(
    task: Task, done: Mapping[int, Mapping[str, Any]]
) -> tuple[str, dict[str, dict[str, dict[str, Any]]]]:
    """The figure that counts, and split -> who -> its mean, deviation and values over the seeds.

    Args:
        done: seed -> `results.json`.

    Returns:
        The figure's name; "majority" (not of numbers), "zero-shot" (where it was measured) and
        "tuned" of each split. `deviation` is the sample standard deviation, None of one seed.
    """
    import numpy as np

    from promptforge.tuning.compare import FIGURES, kind_of

    figure = FIGURES[kind_of(task)][0]
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for told in done.values():
        for split, by in told["results"].items():
            wholes = {who: list(measured.values())[-1] for who, measured in by.items()}
            values = {who: whole[figure] or 0.0 for who, whole in wholes.items()}
            always = wholes["tuned"].get("majority", wholes["tuned"].get("constant"))
            if always is not None:
                values["majority"] = always[figure] if isinstance(always, dict) else always
            for who in _WHO:
                if who in values:
                    line = out.setdefault(split, {}).setdefault(who, {"values": []})
                    line["values"].append(values[who])
    for lines in out.values():
        for line in lines.values():
            many = len(line["values"]) > 1
            line["mean"] = float(np.mean(line["values"]))
            line["deviation"] = float(np.std(line["values"], ddof=1)) if many else None
    return figure, out


def _show(
    figure: str,
    splits: Mapping[str, Mapping[str, Mapping[str, Any]]],
    seeds: Sequence[int],
    folders: Mapping[int, str],
) -> None:
    from rich.table import Table

    from promptforge.cli.compare import TITLES

    shown = "{:.3f}".format if figure == "pearson" else percent
    guess = "majority class" if figure == "accuracy" else "most frequent labels"
    table = Table(show_edge=False)
    table.add_column("")
    for split in splits:
        for head in (f"{TITLES[figure]} on {split}", "deviation"):
            table.add_column(head, justify="right")
    for i, seed in enumerate(seeds):
        cells = [(shown(lines["tuned"]["values"][i]), "") for lines in splits.values()]
        table.add_row(f"seed {seed}", *(cell for pair in cells for cell in pair))
    for who in _WHO:
        means = []
        for lines in splits.values():
            line = lines.get(who, {})
            means += [
                "" if line.get(key) is None else shown(line[key]) for key in ("mean", "deviation")
            ]
        if any(means):
            name = f"{guess if who == 'majority' else who}, mean"
            measured = min(len(lines[who]["values"]) for lines in splits.values() if who in lines)
            if measured < len(seeds):  # runs of before were made without the comparison
                name += f" of {measured} of the seeds"
            style = "bold green" if who == "tuned" else "dim"
            table.add_row(name, *means, style=style)
    out = console()
    out.print(table)
    first = folders[seeds[0]]
    out.print(
        f"{len(seeds)} seeds; deviation: standard deviation over them. Kept in "
        f"{', '.join(f'[bold]{plain(folder)}[/]' for folder in folders.values())}; next: promptforge "
        f"predict {plain(first)} --data FILE"
    )
