"""`promptforge predict`: labels and probabilities for a table, streaming and resumable."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from promptforge.cli.common import reporter
from promptforge.cli.setup import (
    build_model,
    class_options,
    class_roles,
    model_options,
    open_task,
    task_options,
)
from promptforge.errors import UserError

if TYPE_CHECKING:
    from promptforge.classifier import Classifier
    from promptforge.cli.setup import Setup
    from promptforge.data import Row
    from promptforge.progress import Reporter


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
    type=click.Choice(["csv", "tsv", "jsonl"]),
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

    TASK may also be the folder of a run or of an artifact: then what was tuned predicts.
    Writes every input column, then `prediction` (with a [scale] a number) and a probability per
    label. Rows stream: the
    memory does not grow with the table, and the order is kept.
    """
    from promptforge.data import iter_rows
    from promptforge.output import RowWriter

    setup = open_task(params, reporter(), class_roles(params), labelled=False)
    task = setup.task
    source = setup.table("test")
    to_file = output != "-"
    if (
        to_file
        and Path(output).is_file()
        and Path(source).is_file()
        and Path(output).samefile(source)
    ):
        raise UserError(f"{output} is the input: name another file for the output.")
    first = next(iter_rows(source, task.inputs, reader=setup.reader), None)
    added = ["prediction", *(f"probability_{label}" for label in task.labels)]
    clash = [c for c in added if first is not None and c in first]
    if clash:
        raise UserError(
            f"{source} already has a column {clash[0]!r}: rename it, since predict writes that column."
        )
    # What cannot be written is said before the model loads.
    out = RowWriter(
        output if to_file else None,
        _fingerprint(source, setup),
        resume,
        format=None if to_file else format_,
    )
    from promptforge.model import PromptModel

    model = build_model(setup)
    model.forget()
    if isinstance(model, PromptModel):
        model.warn_cuts = False
        model.cut.clear()
        model.cut_rows.clear()
    with out as writer, setup.report.meter("Predicting", None) as meter:
        if writer.done:
            setup.report.note(f"Going on after {writer.done} rows")
        before = writer.done
        rows = iter_rows(source, task.inputs, skip=before, reader=setup.reader)
        try:
            for part in _chunks(rows, chunk):
                writer.write(_predicted(model, part))
                meter.advance(len(part))
        except KeyboardInterrupt:
            if to_file and writer.rows:
                setup.report.note(
                    f"{writer.rows} rows are safe in {writer.partial}: go on with --resume."
                )
            raise
        finally:
            _warn_cuts(model, writer.rows - before, setup.report)


def _warn_cuts(model: Classifier, rows: int, report: Reporter) -> None:
    """One warning for the whole run: how many rows were cut, and by how many tokens."""
    from promptforge.model import PromptModel

    if not isinstance(model, PromptModel) or not model.cut_rows:
        return
    several = len(model.task.patterns) > 1
    cut = ", ".join(
        f"{n} of {rows}" + (f" (pattern {pattern})" if several else "")
        for pattern, n in model.cut_rows.items()
    )
    tokens = ", ".join(f"{column} by {n} tokens" for column, n in model.cut.items())
    limit = model.backbone.encoder.max_length
    report.warn(f"{cut} rows were cut to fit {limit} tokens, in all: {tokens}.")


def _predicted(model: Classifier, rows: list[Row]) -> list[Row]:
    probabilities = model.predict_proba(rows)
    decided = model.decide(probabilities)
    return [
        {
            **row,
            "prediction": decided[i],
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


def _fingerprint(source: str, setup: Setup) -> str:
    """What must be equal for a run to be resumed: input and everything that shapes the result."""
    import hashlib
    import json

    shaping = {k: v for k, v in setup.params.items() if k not in ("device", "batch_tokens")}
    path = Path(source)
    size = path.stat().st_size if path.is_file() else None
    patterns = {n: [p.template.source, p.words] for n, p in setup.task.patterns.items()}
    words = setup.words.to_json() if setup.words else setup.task.labels
    return hashlib.sha256(
        json.dumps([source, size, shaping, patterns, words], sort_keys=True, default=str).encode()
    ).hexdigest()
