"""`promptforge predict-many`: one table, many tuned tasks, one model in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from promptforge.cli.common import reporter
from promptforge.cli.config import with_config
from promptforge.cli.options import output_options
from promptforge.errors import UserError, did_you_mean, listed
from promptforge.remote import fetched

if TYPE_CHECKING:
    from promptforge.bank import TaskBank
    from promptforge.data import ReaderChoice, Row


@click.command("predict-many")
@click.argument("artifacts", nargs=-1, required=True, metavar="[NAME=]ARTIFACT...")
@click.option("--data", required=True, help="Table with rows of all tasks: file or hf:NAME.")
@click.option("--task-column", default="task", show_default=True,
              help="Column that says which task a row is of.")  # fmt: skip
@output_options
@click.option("--reader", help="How the table is read. [default: by the name's ending]")
@click.option("-o", "options", multiple=True, metavar="[ROLE.]KEY=VALUE",
              help="Option of the reader (several: repeat).")  # fmt: skip
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]),
              help="Precision of the model. [default: the one that the tasks were tuned in]")  # fmt: skip
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps.")
@click.option("--batch-tokens", type=click.IntRange(min=16), default=2048, show_default=True,
              help="Tokens in a batch.")  # fmt: skip
@with_config
def predict_many(
    artifacts: tuple[str, ...], data: str, task_column: str, output: str, format_: str | None,
    chunk: int, resume: bool, **params: Any,
) -> None:  # fmt: skip
    """Classify the rows of a table, each with the tuned task that it names.

    ARTIFACT is the folder of an artifact or of a run; the run of promptforge train TASK TASK ... has
    several. All must have been tuned from one model by a method that only adds to it (prompt-tuning,
    prefix, adapter, lora, ...): it is loaded once, and rows of all tasks go through it together. A
    row's --task-column holds the task's name, or the NAME given here. Writes every input column,
    then `prediction` and `probability`, and in jsonl `probabilities`, one per label.
    """
    from promptforge.cli.predict import check_output, chunks, printed_as, warn_cuts, written
    from promptforge.cli.setup import options_of
    from promptforge.cli.tuned import digest
    from promptforge.model import PromptModel
    from promptforge.multilabel import LABEL, MultiLabelModel
    from promptforge.output import RowWriter

    report = reporter()
    found = named(artifacts)
    _, reader = options_of({**params, "data": data}, {}, data)
    to_file = output != "-"
    added = ("prediction", "probability", "probabilities")
    check_output(output, data, added, (task_column,), reader)
    told = {name: digest(folder) for name, folder in found.items()}
    out = RowWriter(
        output if to_file else None,
        _fingerprint(data, task_column, told, params),
        resume,
        format=printed_as(output, format_),
    )
    given = {key: params[key] for key in ("device", "dtype", "batch_tokens")}
    from promptforge.bank import TaskBank

    bank = TaskBank.load(found, report=report, **given)
    models: dict[str, PromptModel] = {}
    inputs: dict[str, list[str]] = {}
    for name in bank:
        classifier = bank[name]
        model = classifier.inner
        assert isinstance(model, PromptModel)
        model.warn_cuts = False
        models[name] = model
        # The label that a question is about is none of the table's columns.
        asks = LABEL if isinstance(classifier, MultiLabelModel) else None
        inputs[name] = [c for c in model.task.inputs if c != asks]
    counts = dict.fromkeys(bank, 0)
    with written(out, report) as writer, report.meter("Predicting", None) as meter:
        rows = _checked(data, task_column, inputs, reader, writer.done)
        try:
            for part in chunks(rows, chunk):
                writer.write(_predicted(bank, part, task_column, out.format))
                for row in part:
                    counts[str(row[task_column])] += 1
                meter.advance(len(part))
        finally:
            for name, model in models.items():
                asked = len(bank[name].labels) if bank[name] is not model else 1
                warn_cuts(model.cut_counters, counts[name] * asked, report, f"Task {name}: ")


def named(artifacts: Sequence[str]) -> dict[str, Path]:
    """Name of the task -> folder of its artifact; a run of several tasks has several.

    Raises:
        UserError: no artifact in a folder, or two tasks of one name.
        PromptForgeError: a damaged artifact.
    """
    from promptforge.tuning.run import RunFolder, artifact_task, find_artifact

    found: dict[str, Path] = {}

    def take(name: str, folder: Path) -> None:
        if name in found:
            raise UserError(
                f"Two tasks are called {name!r}: {found[name]} and {folder}. Give one another name: "
                f"NAME={folder}."
            )
        found[name] = folder

    for given in artifacts:
        name, _, path = given.rpartition("=") if not Path(given).exists() else ("", "", given)
        folder = find_artifact(path)
        home = fetched(path) if folder is None else Path()
        members = RunFolder(home).members() if folder is None else []
        if folder is not None:
            take(name or str(artifact_task(folder)["name"]), folder)
        elif members and name:
            raise UserError(f"{given}: the run {path} has several tasks: {listed(members)}.")
        elif members:
            for member in members:
                place = home / "members" / member
                take(str(artifact_task(place)["name"]), place)
        else:
            raise UserError(f"There is no artifact in {path} (no artifact.json).")
    return found


def _checked(
    source: str, column: str, inputs: dict[str, list[str]], reader: ReaderChoice, skip: int
) -> Iterator[Row]:
    """The rows of a table, each with a known task and all that its template reads."""
    from promptforge.data import check_row, iter_rows, label_text

    for number, row in enumerate(iter_rows(source, (column,), skip, reader), start=skip + 1):
        name = label_text(row[column]) or ""
        if name not in inputs:
            raise UserError(
                f"{source}: row {number} is of the task {name!r}, and there are {listed(list(inputs), 20)} "
                f"(column {column!r}).{did_you_mean(name, list(inputs))}"
            )
        check_row(row, inputs[name], source, number)
        yield {**row, column: name}


def _predicted(bank: TaskBank, rows: list[Row], column: str, format_: str) -> list[Row]:
    probabilities = bank.predict_proba([(row[column], row) for row in rows])
    out = []
    for row, p in zip(rows, probabilities, strict=True):
        classifier = bank[row[column]]
        decided = classifier.decide(p[None])[0]
        several = isinstance(decided, list)
        if several and format_ != "jsonl":
            decided = classifier.multi_label.joined(decided)  # type: ignore[attr-defined]
        single = not several and classifier.scale is None
        made = {
            **row,
            "prediction": decided,
            "probability": round(float(p.max()), 6) if single else None,
        }
        if format_ == "jsonl":
            each = zip(classifier.labels, p, strict=True)
            made["probabilities"] = {label: round(float(q), 6) for label, q in each}
        out.append(made)
    return out


def _fingerprint(source: str, column: str, tasks: dict[str, str], params: dict[str, Any]) -> str:
    """What must be equal for a run to be resumed: input, tasks, and how they are read."""
    import hashlib
    import json

    from promptforge.cli.predict import version

    shaping = {k: v for k, v in params.items() if k not in ("device", "batch_tokens")}
    text = json.dumps(
        [source, version(source), column, shaping, tasks], sort_keys=True, default=str
    )
    return hashlib.sha256(text.encode()).hexdigest()
