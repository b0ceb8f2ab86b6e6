"""`promptforge templates`: the shipped task folders."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from promptforge.cli.common import (
    ListingGroup,
    console,
    json_option,
    plain,
    print_json,
    reporter,
)
from promptforge.errors import UserError


@click.group(cls=ListingGroup)
def templates() -> None:
    """List, show and copy the task folders that come with PromptForge and plugins."""


@templates.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the task folders."""
    from rich.table import Table

    from promptforge.task import Task, task_folders

    report = reporter()
    tasks = {}
    for name, folder in task_folders().items():
        try:
            tasks[name] = Task.load(folder)
        except UserError as error:  # a plugin's
            report.warn(f"The task {name!r} is left out: {error}")
    if as_json:
        print_json(
            [
                {
                    "name": n,
                    "kind": t.kind,
                    "labels": t.labels,
                    "patterns": list(t.patterns),
                    "folder": str(t.folder),
                }
                for n, t in tasks.items()
            ]
        )
        return
    table = Table(show_edge=False)
    for head in ("name", "kind", "labels", "patterns", "description"):
        table.add_column(head, style="bold" if head == "name" else None)
    for name, task in tasks.items():
        table.add_row(
            *map(plain, (name, task.kind, ", ".join(task.labels), ", ".join(task.patterns))),
            plain(task.description),
        )
    console().print(table)


@templates.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show a task folder: its patterns and label words."""
    from promptforge.task import Task

    task = Task.load(name, reporter())
    if as_json:
        print_json(
            {
                "name": task.name, "kind": task.kind, "inputs": task.inputs, "labels": task.labels,
                "patterns": {
                    n: {"template": p.template.source, "words": p.words, "premise": p.premise}
                    for n, p in task.patterns.items()
                },
            }
        )  # fmt: skip
        return
    out = console()
    out.print(
        f"[bold]{plain(task.name)}[/] ({plain(task.kind)}): {plain(task.description)}\n"
        f"columns: {plain(', '.join(task.inputs))}\n"
    )
    for label, words in task.labels.items():
        out.print(f"  [bold]{plain(label)}[/]: {plain(', '.join(words))}")
    for pattern in task.patterns.values():
        out.print(f"\n[bold cyan]{plain(pattern.name)}[/]  [dim]{plain(pattern.description)}[/]")
        out.print(pattern.template.source, markup=False)
        for label, words in (pattern.words or {}).items():
            out.print(f"  [bold]{plain(label)}[/]: {plain(', '.join(words))}")


@templates.command()
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path))
def copy(name: str, folder: Path) -> None:
    """Copy a task folder to FOLDER, to change it."""
    from promptforge.task import Task

    task = Task.load(name, reporter())
    if folder.exists():
        raise UserError(f"{folder} exists already: choose a folder that does not.")
    assert task.folder is not None
    import shutil

    try:
        shutil.copytree(task.folder, folder)
    except (OSError, shutil.Error) as error:
        said = getattr(error, "strerror", None) or error
        raise UserError(f"{folder} may not be written to: {said}. Name another folder.") from None
    console().print(
        f"Copied to [bold]{plain(folder)}[/]. Edit task.toml and the .jinja files, then give the folder as TASK."
    )
