"""`promptforge adapt`: a model gets used to another attention or to longer inputs, on plain text."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from promptforge.cli.common import console, json_option, plain, print_json
from promptforge.cli.config import passed_over, with_config
from promptforge.cli.options import model_options
from promptforge.cli.setup import load, options_of
from promptforge.cli.train import kept, launched, refuse, setting_options, settings_of
from promptforge.errors import UserError

if TYPE_CHECKING:
    from promptforge.data import ReaderChoice


@click.command()
@partial(model_options, named=True)
@click.option(
    "--data", multiple=True, help="A table with texts: file or hf:NAME (several: repeat)."
)
@click.option(
    "--text-column", multiple=True, help="Its column of texts (several: repeat). [default: text]"
)
@click.option("--reader", help="How tables are read. [default: by the name's ending]")
@click.option(
    "--corpus",
    multiple=True,
    metavar="FILE",
    help="A plain text file, also as .gz or .xz (several: repeat).",
)
@click.option(
    "--objective",
    type=click.Choice(["masked", "causal"]),
    help="Find hidden words, or the next one. [default: by the model]",
)
@click.option("--distill", is_flag=True, help="Learn from the same model with full attention too.")
@click.option(
    "--length",
    type=click.IntRange(min=8),
    help="Tokens of a row of text. [default: the most that the model takes]",
)
@partial(setting_options, choosing=False)
@click.option("--seed", type=click.IntRange(min=0), default=13, show_default=True,
              help="Seed of the rows and of the training.")  # fmt: skip
@click.option("--output", required=True, metavar="FOLDER", help="Where the adapted model goes.")
@click.option("--resume", is_flag=True, help="Go on with what was begun in that folder.")
@click.option(
    "-o",
    "options",
    multiple=True,
    metavar="[ROLE.]KEY=VALUE",
    help="Option of the attention pattern, of a reader or of the settings (several: repeat).",
)
@json_option
@with_config
def adapt(as_json: bool, output: str, resume: bool, **params: Any) -> None:
    """Train a model on plain text for a while: for another attention, or longer inputs.

    For a pattern with weights of its own, for a window that MODEL was not trained with, or for
    positions beyond its maximum. What it becomes is written to a folder, which is a model like any other, read with that pattern and
    those positions: promptforge train TASK --model FOLDER.
    """
    from promptforge.cli.setup import Setup
    from promptforge.plugins import manager
    from promptforge.task import Task
    from promptforge.tuning import processes

    manager().pm.hook.promptforge_configure(settings=params)
    if not params["data"] and not params["corpus"]:
        raise UserError(
            "There is nothing to learn from: give --data TABLE, or --corpus FILE of plain text."
        )
    report = launched(params)
    source = params["data"][0] if params["data"] else None
    options, reader = options_of(params, {"settings": None}, source)
    _check_table_options(params, reader)
    task = Task.inline([], labels={}, generates=True)
    settings = settings_of(params, Setup(task, report, params, options, reader))
    refuse(Path(output), resume, "--output")
    texts = [*_table_texts(params, reader), *(_read(Path(name)) for name in params["corpus"])]

    from promptforge.adapting import adapt as learn
    from promptforge.adapting import perplexity

    backbone = load(params, report)
    with kept(Path(output), report):
        done = learn(
            backbone, texts, output, objective=params["objective"], distill=params["distill"],
            length=params["length"], settings=settings, seed=params["seed"], resume=resume,
            report=report,
        )  # fmt: skip
    if not processes.is_first():
        return
    if as_json:
        print_json(done.to_json())
        return
    out = console()
    full = "" if done.teacher is None else f"; with full attention {perplexity(done.teacher):.1f}"
    measured = "rows kept apart" if done.apart else "the row that was learned from"
    out.print(
        f"{done.steps} steps on {done.rows} rows of {done.length} tokens, {done.seconds:.0f} s. Perplexity on "
        f"{measured}: {perplexity(done.before):.1f} before, [bold]{perplexity(done.after):.1f}[/] after{full}."
    )
    out.print(
        f"Kept in [bold]{plain(output)}[/]; next: promptforge train TASK --model {plain(output)}"
    )


def _check_table_options(params: dict[str, Any], reader: ReaderChoice) -> None:
    """Raise a `UserError` where it is typed how tables are read, and there are none."""
    said = {"text_column": "--text-column", "reader": "--reader"}
    if reader.options:
        said["options"] = f"-o reader.{next(iter(reader.options))}"
    for name, option in said.items():
        if params[name] and not params["data"] and not passed_over(name, "corpus"):
            raise UserError(
                f"{option} says how the tables of --data are read, and --corpus is plain "
                "text: leave it out, or give a table with --data."
            )


def _table_texts(params: dict[str, Any], reader: ReaderChoice) -> list[str]:
    from promptforge.data import read_rows

    columns = params["text_column"] or ("text",)
    return [
        "\n".join(str(row[column]) for column in columns)
        for table in params["data"]
        for row in read_rows(table, columns, reader=reader)
    ]


def _read(path: Path) -> str:
    import gzip
    import lzma
    import zlib

    opened: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            text: str = file.read()
    except (OSError, UnicodeDecodeError, lzma.LZMAError, zlib.error, EOFError) as error:
        what = getattr(error, "strerror", None) or error
        raise UserError(f"--corpus {path} cannot be read as UTF-8 text: {what}.") from None
    return text
