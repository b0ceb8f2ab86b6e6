"""`promptforge train-multitask`: one model for many tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import rich_click as click

from promptforge.cli.common import console, json_option, percent, plain, print_json
from promptforge.cli.config import with_config
from promptforge.cli.options import model_options
from promptforge.cli.setup import Setup, load, options_of
from promptforge.cli.train import kept, launched, refuse, setting_options, settings_of
from promptforge.cli.train_together import with_tables
from promptforge.remote import place

if TYPE_CHECKING:
    from promptforge_multitask.run import MultiTaskRun


@click.command("train-multitask")
@click.argument("tasks", nargs=-1, required=True, metavar="TASK...")
@click.option("--data", multiple=True, metavar="TASK=FILE",
              help="Table to train on, in place of the task's own (several: repeat).")  # fmt: skip
@click.option("--dev", multiple=True, metavar="TASK=FILE", help="Table to choose by, likewise.")
@click.option("--test", multiple=True, metavar="TASK=FILE", help="Table to measure on, likewise.")
@click.option("--hold-out", multiple=True, metavar="KIND",
              help="Train on no task of this kind (several: repeat).")  # fmt: skip
@click.option("--cap", type=click.IntRange(min=1), default=500_000, show_default=True,
              help="Rows beyond which a task does not count for more.")  # fmt: skip
@click.option(
    "--method",
    default="all",
    show_default=True,
    help="What is trained: all, head, bitfit or a plugin's.",
)
@click.option("--verbalizer", default="manual", show_default=True, help="Reads every task.")
@click.option(
    "--shots",
    type=click.IntRange(min=1),
    help="Draw this many rows per label of each task, and as many for dev.",
)
@click.option("--dev-rows", type=click.IntRange(min=1), default=100, show_default=True,
              help="The most dev rows of a task to choose by.")  # fmt: skip
@click.option("--reader", help="How tables are read. [default: by the name's ending]")
@click.option("-o", "options", multiple=True, metavar="[ROLE.]KEY=VALUE",
              help="Option of a component (several: repeat).")  # fmt: skip
@setting_options
@click.option("--seed", type=click.IntRange(min=0), default=13, show_default=True,
              help="Seed of the draw and of the training.")  # fmt: skip
@click.option("--run", "run_", help="Folder to keep everything in. [default: runs/multitask-SEED]")
@click.option("--resume", is_flag=True, help="Go on with the run in that folder.")
@model_options
@json_option
@with_config
def train_multitask(
    as_json: bool, tasks: tuple[str, ...], run_: str | None, resume: bool, **params: Any
) -> None:
    """Train one model on many tasks, and measure it zero-shot on tasks it has never seen.

    Trains on each TASK in all of its patterns (T0: Sanh et al. 2022), on the tables of its [data]
    or on those of --data TASK=FILE, --dev TASK=FILE and --test TASK=FILE. With
    --hold-out no task of that kind is trained on, and no row that has a text of a test row of
    any task. The result is a model for any task: promptforge predict TASK --model FOLDER.
    """
    from promptforge.errors import UserError
    from promptforge.plugins import build, manager
    from promptforge.tuning import processes
    from promptforge_multitask.holdout import check_kinds
    from promptforge_multitask.mixture import TaskExamples
    from promptforge_multitask.model import MultiTaskPromptModel
    from promptforge_multitask.run import train_multitask as run

    manager().pm.hook.promptforge_configure(settings=params)
    report = launched(params)
    loaded = with_tables(tasks, params, report)
    hold_out = params["hold_out"]
    check_kinds(loaded, hold_out)
    source = next((path for task in loaded for path in task.data.values()), None)
    roles = {"method": params["method"], "verbalizer": params["verbalizer"], "settings": None}
    options, reader = options_of(params, roles, source)
    settings = settings_of(params, Setup(loaded[0], report, params, options, reader))
    method, verbalizer = (build(r, params[r], **options[r]) for r in ("method", "verbalizer"))
    folder = place(run_ or "-".join(["runs/multitask", *hold_out, str(params["seed"])]))
    refuse(folder, resume)
    data = []
    for task in loaded:
        task.check()
        if task.multi_label:
            task.need_classes("train-multitask")
        away = task.kind in hold_out
        # A draw of --shots brings dev rows, unless they are named.
        chosen_by = ["dev"] if params["dev"] or not params["shots"] else []
        wanted = ["test"] if away else ["train", *chosen_by, "test"]
        read = {
            split: task.examples(task.path(split), report, complete=split == "train", reader=reader)
            for split in wanted
            if split in task.data or split == "train" or away
        }
        data.append(TaskExamples(task, **read))
    if not any(one.test for one in data):
        raise UserError(
            "No task has test rows in its [data] or by --test: there is nothing to measure on."
        )
    model = MultiTaskPromptModel(
        load(params, report, *loaded), method=method, verbalizer=verbalizer, report=report
    )
    with kept(folder, report):
        done = run(
            model, data, hold_out=hold_out, cap=params["cap"], shots=params["shots"],
            dev_rows=params["dev_rows"], settings=settings, seed=params["seed"],
            run=folder, resume=resume,
        )  # fmt: skip
    if not processes.is_first():
        return
    if as_json:
        print_json({"run": str(folder), **done.to_json()})
    else:
        show(done)


def show(run: MultiTaskRun) -> None:
    """The table at the end: each task before and after, held-out ones marked."""
    from rich.table import Table

    from promptforge.evaluation import Evaluation

    model = run.model
    title = "Zero-shot on test rows, all patterns together"
    if any(task.scale for task in (*model.tasks.values(), *model.held_out.values())):
        title += " (of numbers: Pearson)"
    table = Table(title=title, title_justify="left", show_edge=False)
    for head in ("task", "kind", "rows trained on", "majority", "before", "after", "95 % interval"):
        table.add_column(head, justify="left" if head in ("task", "kind") else "right")
    for name in run.results:
        before, after = (run.figures(name, when) for when in ("before", "after"))
        majority = percent(after.majority) if isinstance(after, Evaluation) else ""
        low, high = after.interval or (0.0, 0.0)
        interval = f"{100 * low:.1f}-{100 * high:.1f}" if after.interval else ""
        held = name in model.held_out
        task = model.held_out[name] if held else model.tasks[name]
        table.add_row(
            plain(name), plain(task.kind), "held out" if held else str(model.counts.get(name, 0)),
            majority, percent(before.headline), percent(after.headline),
            interval, style="bold green" if held else None,
        )  # fmt: skip
    out = console()
    out.print(table)
    for name, count in model.removed.items():
        out.print(f"[dim]{plain(name)}: {count} rows with a text of a test row were left out.[/]")
    out.print(
        f"{model.trained.steps if model.trained else 0} steps, {run.seconds:.0f} s. Kept in "
        f"[bold]{plain(run.folder)}[/]; next: promptforge predict TASK --model {plain(run.folder)}"
    )
