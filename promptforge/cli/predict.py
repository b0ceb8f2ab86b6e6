"""`promptforge predict`: labels and probabilities for a table, streaming and resumable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import rich_click as click

from promptforge.cli.common import reporter
from promptforge.cli.config import passed_over, with_config
from promptforge.cli.options import (
    class_options,
    exit_options,
    model_options,
    output_options,
    task_options,
)
from promptforge.cli.setup import build_model, check_apart, class_roles, open_task
from promptforge.cli.tuned import digest
from promptforge.errors import UserError
from promptforge.remote import place

if TYPE_CHECKING:
    from promptforge.classifier import Classifier
    from promptforge.cli.setup import Setup
    from promptforge.data import AnyReader, Row
    from promptforge.output import RowWriter
    from promptforge.progress import Reporter
    from promptforge.truncation import CutCounter


@click.command()
@task_options
@output_options
@class_options
@exit_options
@click.option("--adapter", metavar="FOLDER", help="A peft adapter of the model: read with it.")
@model_options
@with_config
def predict(output: str, format_: str | None, chunk: int, resume: bool, **params: Any) -> None:
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
    _check_label_column(setup)
    task = setup.task
    source = setup.table("test")
    to_file = output != "-"
    added = ["prediction", *(f"probability_{label}" for label in task.classes)]
    added += ["exit_layer"] if params["exit_policy"] else []
    check_apart(output, setup.read())
    check_output(output, source, added, task.inputs, setup.reader)
    # What cannot be written is said before the model loads.
    out = RowWriter(
        output if to_file else None,
        fingerprint(source, setup),
        resume,
        format=printed_as(output, format_),
    )
    model = build_model(setup)
    model.forget()
    for counter in model.cut_counters:
        counter.warn_cuts = False
        counter.forget_cuts()
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
            warn_cuts(model.cut_counters, (writer.rows - before) * asked, setup.report)


@contextmanager
def written(out: RowWriter, report: Reporter) -> Iterator[RowWriter]:
    """Open a writer; say what becomes of an earlier run's rows and, after Ctrl-C, how to go on."""
    with out as writer:
        if writer.done:
            report.note(f"Going on after {writer.done} rows")
        if writer.given_up:
            report.note(
                f"An earlier output that was interrupted after {writer.given_up} rows is begun anew; "
                "--resume would have gone on from it."
            )
        try:
            yield writer
        except KeyboardInterrupt:
            if writer.path is not None and writer.rows:
                report.note(
                    f"{writer.rows} rows are safe in {writer.partial}: go on with --resume."
                )
            raise


def warn_cuts(counters: Sequence[CutCounter], rows: int, report: Reporter, who: str = "") -> None:
    """One warning for the whole run: how many rows were cut, and by how many tokens.

    Models that take different numbers of tokens have one each.
    """
    several = len({pattern for one in counters for pattern in one.read_rows}) > 1
    for limit in sorted({one.cut_limit for one in counters if one.cut_rows}):
        some = [one for one in counters if one.cut_limit == limit]
        cut, read, tokens = (
            sum((getattr(one, counts) for one in some), Counter[str]())
            for counts in ("cut_rows", "read_rows", "cut")
        )
        what = "rows" if all(read[pattern] == rows for pattern in cut) else "prompts"
        told = ", ".join(
            f"{n} of {read[pattern]}" + _of(pattern) * several for pattern, n in cut.items()
        )
        by = ", ".join(f"{column} by {n} tokens" for column, n in tokens.items())
        report.warn(f"{who}{told} {what} were cut to fit {limit} tokens, in all: {by}.")


def _of(pattern: str) -> str:
    return f" (pattern {pattern})" if pattern else " (whole texts)"


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


def _check_label_column(setup: Setup) -> None:
    """Raise a `UserError` for a column of labels that nothing reads."""
    given = setup.params["label_column"]
    # Without a TASK it also says that a column called "label" is a text.
    if not given or setup.params["demonstrations"] or "label" in setup.task.inputs:
        return
    if setup.artifact and passed_over("label_column", "task"):
        return
    raise UserError(
        f"--label-column {given}: predict reads no labels, but for --demonstrations. Leave it out; 'promptforge "
        "evaluate' measures on labelled rows."
    )


def printed_as(output: str, format_: str | None) -> str | None:
    """The format of standard output; None for a file, whose ending says it, and by default.

    Raises:
        UserError: a format was named, and a file.
    """
    if output == "-":
        return format_
    if format_ and not passed_over("format_", "output"):
        raise UserError(
            f"--format {format_} is for standard output, and the ending of {output} says how it is written: "
            "leave --format out, name a file with another ending, or give --output -."
        )
    return None


def check_output(
    output: str, source: str, added: Sequence[str], inputs: Sequence[str], reader: AnyReader
) -> None:
    """Raise a `UserError` where the output is the input, or has one of the columns `added`."""
    from promptforge.data import iter_rows

    check_apart(output, {"the input": source})
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
    params, data = setup.params, setup.task.data
    fits = params.get("calibration") or params.get("verbalizer")
    others = [
        params.get("model"), params.get("adapter"),
        params.get("unlabeled") or data.get("unlabeled") if fits else None,
        data.get("train") if params.get("demonstrations") else None,
    ]  # fmt: skip
    versions = [version(place) if place else None for place in others]
    told = [source, version(source), tuned, shaping, patterns, words, versions]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def version(source: str) -> list[Any] | None:
    """What a file, or a folder's files, are told by without reading them: size and time; None: none."""
    path = place(source)
    if isinstance(path, str):
        return None
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file())
        return [[p.name, *(version(str(p)) or ())] for p in files]
    if not path.is_file():
        return None
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
