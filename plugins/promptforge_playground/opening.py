"""From the options of the command to a playground."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from promptforge.cli.setup import (
    MODEL_KEYS,
    Setup,
    fit_demonstrations,
    load,
    open_task,
    options_of,
    read_template,
)
from promptforge.data import Row, iter_rows, label_text, value_map
from promptforge.errors import UserError
from promptforge.multilabel import LABEL, NO, YES
from promptforge.progress import Reporter
from promptforge.task import Task
from promptforge.template import of_column
from promptforge.tuning.run import find_artifact
from promptforge_playground.playground import Playground, Shown
from promptforge_playground.saving import Shelf

#: What a model is loaded with where nobody says.
_LOADING = {"dtype": "float32", "device": "cpu", "batch_tokens": 2048, "trust_remote_code": False}
_KNOWN = ("task", "data", "text_column", "label_column", "template", "pattern", "reader", "options",
          "demonstrations", "model")  # fmt: skip
#: A template is not written for the rows that it is measured on: those are taken last.
_SPLITS = ("dev", "train", "unlabeled", "test")


def open_playground(
    params: dict[str, Any], *, rows: int, save_to: Path | None, report: Reporter
) -> Playground:
    """The playground that the options of `promptforge playground` describe.

    Args:
        params: the options by name; those of the model may be left out.
        rows: how many rows of the data.
        save_to: a task folder to be made, or None.

    Raises:
        UserError: options, data or a model that do not fit.
    """
    strange = [k for k in params if k not in (*MODEL_KEYS, *_KNOWN)]
    if strange:
        raise UserError(f"There is no option {strange[0]!r} of the playground.")
    params = {**dict.fromkeys(MODEL_KEYS), **_LOADING, **params}
    setup = _setup(params, report)
    shelf = Shelf(setup.task, save_to)
    shown = _rows(setup, rows)
    selector = fit_demonstrations(setup)
    backbone = load(setup.params, report)
    return Playground(setup.task, backbone, shown, demonstrations=selector, shelf=shelf)


def _setup(params: dict[str, Any], report: Reporter) -> Setup:
    roles = {"demonstrations": params.get("demonstrations")}
    if params["task"]:
        if (tuned := find_artifact(params["task"])) is not None:
            raise UserError(
                f"{tuned} is a tuned model, whose template is part of what was tuned. Give the task folder "
                "that it was tuned for."
            )
        return open_task(params, report, roles, generates=None)
    if not params["data"]:
        raise UserError(
            "Give a TASK (a folder or a shipped task: 'promptforge templates list'), or --data FILE."
        )
    return _from_table(params, report, roles)


def _from_table(params: dict[str, Any], report: Reporter, roles: dict[str, str | None]) -> Setup:
    """A task for a table: its labels where it has some, and a template to begin with."""
    options, reader = options_of(dict(params), roles, params["data"])
    first = next(iter(iter_rows(params["data"], (), 0, reader)), None)
    if first is None:
        raise UserError(f"{params['data']} has no rows.")
    label_column = params["label_column"] or "label"
    columns = list(params["text_column"]) or [c for c in first if c != label_column]
    if not columns:
        raise UserError(
            f"{params['data']} has no column but {label_column!r}: name one with --text-column."
        )
    if not params["template"]:
        texts = [c for c in columns if isinstance(first.get(c), str)] or columns
        longest = max(texts, key=lambda c: len(str(first.get(c))))
        begun = f"{{{{ {of_column(longest)} }}}} It was {{{{ mask }}}}"
        params = {**params, "template": (begun,)}
    params = {**params, "text_column": tuple(columns)}
    if params["label_column"] or label_column in first:
        return open_task(params, report, roles, generates=None)
    templates = [read_template(t, i) for i, t in enumerate(params["template"])]
    task = Task.inline(templates, labels={}, inputs=columns, name=Path(params["data"]).stem)
    task = task.choose(params["pattern"])
    return Setup(task, report, params, options, reader)


def _rows(setup: Setup, most: int) -> list[Shown]:
    """The first rows of --data, or of the task's own; without data one to be written on the page."""
    task = setup.task
    source = setup.params["data"] or next((task.data[s] for s in _SPLITS if s in task.data), None)
    if source is None:
        found: list[Row] = [dict.fromkeys(task.inputs, "")]
    else:
        found = list(islice(iter_rows(source, task.inputs, 0, setup.reader), most))
    if not found:
        raise UserError(f"{source} has no rows.")
    if task.multi_label:
        return [
            Shown(asked, _answer(task, row, asked[LABEL]))
            for row in found
            for asked in task.multi_label.asked([row])
        ]
    return [Shown(row, _label(task, row)) for row in found]


def _label(task: Task, row: Row) -> str | None:
    """The label of a row, where it has one of the task's."""
    text = label_text(row.get(task.label_column))
    if text is None or not text or task.generates:
        return None
    found = task.values.get(text, text)
    return found if task.scale or found in task.labels else None


def _answer(task: Task, row: Row, asked: str) -> str | None:
    """Of a multi-label task: whether the row has the label that is asked about, where it says."""
    cell = row.get(task.label_column)
    if task.multi_label is None or cell is None:
        return None
    return YES if asked in task.multi_label.read(cell, value_map(task.values, task.classes)) else NO
