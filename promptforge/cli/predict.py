"""`promptforge predict`: labels and probabilities for a table, streaming and resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import rich_click as click

from promptforge.cli.common import reporter
from promptforge.cli.config import with_config
from promptforge.cli.options import (
    class_options,
    exit_options,
    model_options,
    output_options,
    task_options,
)
from promptforge.cli.setup import build_model, class_roles, open_task
from promptforge.cli.tuned import digest
from promptforge.errors import UserError
from promptforge.remote import expanded

if TYPE_CHECKING:
    from promptforge.classifier import Classifier
    from promptforge.cli.setup import Setup
    from promptforge.data import AnyReader, Row
    from promptforge.output import RowWriter
    from promptforge.progress import Reporter


@click.command()
@task_options
@output_options
@class_options
@exit_options
@click.option("--adapter", metavar="FOLDER", help="A peft adapter of the model: read with it.")
@model_options
@with_config
def predict(output: str, format_: str, chunk: int, resume: bool, **params: Any) -> None:
    """Classify the rows of a table.

    TASK may also be the folder of a run or of an artifact: then what was tuned predicts.
    Writes every input column, then `prediction` (with a [scale] a number, with [multi_label] the
    labels joined by its separator, a list in jsonl, parquet and arrow) and a probability per label;
    with --exit-policy also `exit_layer`, how many layers the row went through.
    Rows stream: the memory does not grow with the table, and the order is kept.
    """
    from promptforge.data import iter_rows
    from promptforge.output import RowWriter

    setup = open_task(params, reporter(), class_roles(params), labelled=False, tuned=True)
    task = setup.task
    source = setup.table("test")
    to_file = output != "-"
    added = ["prediction", *(f"probability_{label}" for label in task.classes)]
    added += ["exit_layer"] if params["exit_policy"] else []
    check_output(output, source, added, task.inputs, setup.reader)
    # What cannot be written is said before the model loads.
    out = RowWriter(
        output if to_file else None,
        fingerprint(source, setup),
        resume,
        format=None if to_file else format_,
    )
    from promptforge.exits.model import ExitModel
    from promptforge.model import PromptModel

    model = build_model(setup)
    model.forget()
    reader = model.inner
    reader = reader.plain if isinstance(reader, ExitModel) else reader
    if isinstance(reader, PromptModel):
        reader.warn_cuts = False
        reader.cut.clear()
        reader.cut_rows.clear()
    # A cell of a text table holds one text.
    join = task.multi_label.joined if task.multi_label and out.format in ("csv", "tsv") else None
    asked = len(task.classes) if task.multi_label else 1
    with written(out, setup.report) as writer, setup.report.meter("Predicting", None) as meter:
        before = writer.done
        rows = iter_rows(source, task.inputs, skip=before, reader=setup.reader)
        try:
            for part in chunks(rows, chunk):
                writer.write(_predicted(model, part, join))
                meter.advance(len(part))
        finally:
            warn_cuts(reader, (writer.rows - before) * asked, setup.report)


@contextmanager
def written(out: RowWriter, report: Reporter) -> Iterator[RowWriter]:
    """Open a writer; say where an earlier run stopped and, after Ctrl-C, how to go on."""
    with out as writer:
        if writer.done:
            report.note(f"Going on after {writer.done} rows")
        try:
            yield writer
        except KeyboardInterrupt:
            if writer.path is not None and writer.rows:
                report.note(
                    f"{writer.rows} rows are safe in {writer.partial}: go on with --resume."
                )
            raise


def warn_cuts(model: Classifier, rows: int, report: Reporter, who: str = "") -> None:
    """One warning for the whole run: how many rows were cut, and by how many tokens."""
    from promptforge.model import PromptModel

    if not isinstance(model, PromptModel) or not model.cut_rows:
        return
    several, draws = len(model.task.patterns) > 1, len(model.draws)
    what = "rows" if draws == 1 else "prompts"
    cut = ", ".join(
        f"{n} of {rows * draws}" + (f" (pattern {pattern})" if several else "")
        for pattern, n in model.cut_rows.items()
    )
    tokens = ", ".join(f"{column} by {n} tokens" for column, n in model.cut.items())
    limit = model.backbone.encoder.max_length
    report.warn(f"{who}{cut} {what} were cut to fit {limit} tokens, in all: {tokens}.")


def _predicted(
    model: Classifier, rows: list[Row], join: Callable[[Sequence[str]], str] | None = None
) -> list[Row]:
    from promptforge.exits.model import layers_used

    probabilities = model.predict_proba(rows)
    decided = model.decide(probabilities)
    used = layers_used(model, len(rows))
    return [
        {
            **row,
            "prediction": join(decided[i]) if join else decided[i],
            **{
                f"probability_{label}": round(float(p), 6)
                for label, p in zip(model.labels, probabilities[i], strict=True)
            },
            **({"exit_layer": _layer(float(used[i]))} if used is not None else {}),
        }
        for i, row in enumerate(rows)
    ]


def _layer(number: float) -> float:
    """A number of layers; a mean over questions or draws has decimals."""
    return int(number) if number.is_integer() else round(number, 2)


def chunks(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    """`rows` in lists of `size`."""
    while part := list(islice(rows, size)):
        yield part


def check_output(
    output: str, source: str, added: Sequence[str], inputs: Sequence[str], reader: AnyReader
) -> None:
    """Raise a `UserError` where the output is the input, or has one of the columns `added`."""
    from promptforge.data import iter_rows

    target, table = expanded(output), expanded(source)
    if output != "-" and target.is_file() and table.is_file() and target.samefile(table):
        raise UserError(f"{output} is the input: name another file for the output.")
    first = next(iter_rows(source, inputs, reader=reader), None)
    if clash := [c for c in added if first is not None and c in first]:
        raise UserError(
            f"{source} already has a column {clash[0]!r}: rename it, since this command writes that column."
        )


def fingerprint(source: str, setup: Setup) -> str:
    """What must be equal for a run to be resumed: input and everything that shapes the result."""
    import hashlib
    import json

    shaping = {k: v for k, v in setup.params.items() if k not in ("device", "batch_tokens")}
    tuned = digest(setup.artifact) if setup.artifact else None
    patterns = {n: [p.template.source, p.words] for n, p in setup.task.patterns.items()}
    words: Any = setup.words.to_json() if setup.words else setup.task.labels
    if setup.task.multi_label:
        words = [words, vars(setup.task.multi_label)]
    told = [source, version(source), tuned, shaping, patterns, words]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def version(source: str) -> list[int] | None:
    """What a file is told by beside its name, without reading it: size and time; None: no file."""
    path = expanded(source)
    if not path.is_file():
        return None
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
