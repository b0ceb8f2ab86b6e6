"""`promptforge predict`: labels and probabilities for a table, streaming and resumable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import rich_click as click

from promptforge.cli.common import reporter
from promptforge.cli.setup import build_model, class_options, model_options, open_task, task_options
from promptforge.errors import UserError

if TYPE_CHECKING:
    from promptforge.data import Row


@click.command()
@task_options
@click.option(
    "--output",
    "-O",
    default="-",
    show_default=True,
    help="csv, tsv, jsonl, parquet or arrow by its ending; - is standard output.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["csv", "jsonl"]),
    default="csv",
    show_default=True,
    help="On standard output.",
)
@click.option(
    "--chunk",
    default=4096,
    show_default=True,
    type=click.IntRange(min=1),
    help="Rows worked on and written together.",
)
@click.option("--resume", is_flag=True, help="Go on where an interrupted run stopped.")
@class_options
@model_options
def predict(output: str, format_: str, chunk: int, resume: bool, **params: Any) -> None:
    """Classify the rows of a table.

    Writes every input column, then `prediction` and a probability per label. Rows stream: the
    memory does not grow with the table, and the order is kept.
    """
    from promptforge.data import iter_rows
    from promptforge.output import RowWriter

    setup = open_task(params, reporter(), labelled=False)
    task = setup.task
    source = params["data"] or task.path("test")
    first = next(iter_rows(source, task.inputs), None)
    added = ["prediction", *(f"probability_{label}" for label in task.labels)]
    clash = [c for c in added if first is not None and c in first]
    if clash:
        raise UserError(
            f"{source} already has a column {clash[0]!r}: rename it, since predict writes that column."
        )
    model = build_model(setup, remember=False)
    with RowWriter(
        None if output == "-" else output, _fingerprint(source, params), resume, format=format_
    ) as writer:
        if writer.done:
            setup.report.note(f"Going on after {writer.done} rows")
        rows = iter_rows(source, task.inputs, skip=writer.done)
        with setup.report.meter("Predicting", None) as meter:
            for part in _chunks(rows, chunk):
                writer.write(_predicted(model, part))
                meter.advance(len(part))
    if model.cut:
        cut = ", ".join(f"{column}: {n} tokens" for column, n in model.cut.items())
        setup.report.note(f"Cut to fit in all: {cut}")


def _predicted(model: Any, rows: list[Row]) -> list[Row]:
    probabilities = model.predict_proba(rows)
    best = probabilities.argmax(1)
    return [
        {
            **row,
            "prediction": model.labels[best[i]],
            **{
                f"probability_{label}": round(float(p), 6)
                for label, p in zip(model.labels, probabilities[i], strict=True)
            },
        }
        for i, row in enumerate(rows)
    ]


def _chunks(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while part := list(islice(rows, size)):
        yield part


def _fingerprint(source: str, params: dict[str, Any]) -> str:
    """What must be equal for a run to be resumed: input and everything that shapes the result."""
    shaping = {k: v for k, v in params.items() if k not in ("device", "batch_tokens")}
    return hashlib.sha256(
        json.dumps([source, shaping], sort_keys=True, default=str).encode()
    ).hexdigest()
