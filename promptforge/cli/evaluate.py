"""`promptforge evaluate`: how good a task's prompts and words are without training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import rich_click as click

from promptforge.cli.common import (
    MOST_COLUMNS,
    console,
    json_option,
    percent,
    plain,
    print_json,
    reporter,
)
from promptforge.cli.config import passed_over, with_config
from promptforge.cli.label_sets import show_sets
from promptforge.cli.numbers import numbers_table
from promptforge.cli.options import class_options, exit_options, model_options, task_options
from promptforge.cli.setup import build_model, class_roles, open_task
from promptforge.errors import UserError

if TYPE_CHECKING:
    from promptforge.classifier import Classifier
    from promptforge.evaluation import Evaluation


@click.command()
@task_options
@click.option("--split", help="Which of the task's tables. [default: test]")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first rows.")
@class_options
@exit_options
@model_options
@click.option("--adapter", metavar="FOLDER", help="A peft adapter of the model: read with it.")
@json_option
@with_config
def evaluate(as_json: bool, **params: Any) -> None:
    """Measure accuracy, macro-F1, each label, confusion and calibration on labelled rows.

    TASK may also be the folder of a run or of an artifact: then what was tuned is measured. Of a
    task with a [scale]: correlations and errors of the numbers; with [multi_label]: F1, exact
    match and Hamming loss of the label sets; with [generate]: loss, perplexity, BLEU and ROUGE.
    """
    from promptforge.evaluation import Evaluation, MultiLabelEvaluation, RegressionEvaluation

    split = params["split"]
    if passed_over("data", "split"):  # what is typed goes over the file
        params["data"] = None
    if split and params["data"] and not passed_over("split", "data"):
        raise UserError(
            f"--split {split} is one of the task's own tables, and --data stands in their place: leave one of "
            "the two out."
        )
    params["split"] = split or "test"
    setup = open_task(params, reporter(), class_roles(params), generates=None, tuned=True)
    if setup.task.generates:
        from promptforge.cli.generate import measure

        measure(setup, as_json)
        return
    examples = setup.examples or setup.labelled(setup.table(params["split"]), complete=False)
    examples = examples[: params["limit"]]
    model = build_model(setup, rows=[e.row for e in examples])
    results = model.evaluate(examples)
    used = _layers_used(model, len(examples))
    if as_json:
        print_json(
            {n: {**e.to_json(), **({"exits": used} if used else {})} for n, e in results.items()}
        )
        return
    numbers = {n: e for n, e in results.items() if isinstance(e, RegressionEvaluation)}
    if numbers:
        rows = next(iter(numbers.values())).rows
        console().print(numbers_table("", numbers), f"[dim]{rows} rows[/]")
    if sets := {n: e for n, e in results.items() if isinstance(e, MultiLabelEvaluation)}:
        show_sets("", sets)
    for name, evaluation in results.items():
        if isinstance(evaluation, Evaluation):
            show(name, evaluation)
    if used:
        console().print(
            f"Exits by {used['policy']}: [bold]{used['mean_layers']:.2f}[/] of {used['layers']} layers a row, "
            f"{percent(used['share'])} of them"
        )


def _layers_used(model: Classifier, rows: int) -> dict[str, Any] | None:
    """What an exit policy saved; None without one."""
    from promptforge.exits.model import exit_model, layers_used

    used = layers_used(model, rows)
    if used is None:
        return None
    found = exit_model(model)
    mean = float(used.mean())
    return {
        "policy": found.policy.name if found.policy else "",
        "options": found.policy.model_dump(mode="json") if found.policy else {},
        "mean_layers": mean, "layers": found.layers, "share": mean / found.layers,
    }  # fmt: skip


def show(name: str, evaluation: Evaluation) -> None:
    """Print one evaluation as tables."""
    from rich.table import Table

    out = console()
    out.print(
        f"[bold]{plain(name)}[/]: accuracy [bold green]{percent(evaluation.accuracy)}[/], macro-F1 "
        f"{percent(evaluation.macro_f1)}, calibration error {percent(evaluation.calibration_error)} "
        f"[dim]({evaluation.rows} rows; chance {percent(evaluation.chance)}, majority {percent(evaluation.majority)})[/]"
    )
    table = Table(show_edge=False)
    for head in ("label", "precision", "recall", "F1", "rows"):
        table.add_column(head, justify="left" if head == "label" else "right")
    few = len(evaluation.labels) <= MOST_COLUMNS
    for label in evaluation.labels if few else ():
        table.add_column(f"as {plain(label)}", justify="right", style="dim")
    for i, (label, row) in enumerate(evaluation.per_label.items()):
        counts = [str(n) for n in evaluation.confusion[i]] if few else []
        cells = [
            percent(row["precision"]),
            percent(row["recall"]),
            percent(row["f1"]),
            f"{row['support']:.0f}",
        ]
        table.add_row(plain(label), *cells, *counts)
    out.print(table)
    if not few:
        out.print(f"[dim]{_confused(evaluation)}[/]")
    out.print("")


def _confused(evaluation: Evaluation, most: int = 5) -> str:
    """The labels that are most often taken for one another; --json has the whole matrix."""
    labels = evaluation.labels
    counts = [
        (count, true, said)
        for true, row in zip(labels, evaluation.confusion, strict=True)
        for said, count in zip(labels, row, strict=True)
        if count and said != true
    ]
    counts.sort(key=lambda found: -found[0])
    shown = ", ".join(f"{plain(true)} as {plain(said)} ({n})" for n, true, said in counts[:most])
    return f"Most often taken for another: {shown or 'none'}. --json has all."
