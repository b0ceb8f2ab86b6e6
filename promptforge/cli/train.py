"""`promptforge train`: tune a classifier from few labels, and say honestly how good it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
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
    size_text,
)
from promptforge.cli.config import with_config
from promptforge.cli.label_sets import show_sets
from promptforge.cli.numbers import numbers_table
from promptforge.cli.options import job_options, model_options, task_options
from promptforge.cli.setup import backend_of, class_roles, load, open_task
from promptforge.errors import UserError
from promptforge.remote import exists, place

if TYPE_CHECKING:
    from promptforge.cli.setup import Setup
    from promptforge.data import Example
    from promptforge.evaluation import Evaluation
    from promptforge.progress import Reporter
    from promptforge.tuning.settings import Settings
    from promptforge.tuning.train import Run

#: setting -> its type and what --help says; the rest of them go through `-o settings.KEY=VALUE`
_SETTINGS: dict[str, tuple[Any, str]] = {
    "steps": (click.IntRange(min=1), "Updates of the weights. [default: 250]"),
    "batch_size": (click.IntRange(min=1), "Rows per update; several: repeat, dev decides. [default: 8]"),
    "learning_rate": (
        click.FloatRange(min=0, min_open=True),
        "Highest learning rate; several: repeat, dev decides. [default: what suits the method]",
    ),
    "patience": (click.IntRange(min=0), "Looks at dev without gain before a training stops; 0: never."),
    "eval_every": (click.IntRange(min=0), "Steps between looks at dev; 0: ten looks in all."),
    "accumulate": (click.IntRange(min=1), "Parts that a batch is computed in. [default: 1]"),
    "precision": (
        click.Choice(["auto", "float32", "bfloat16"]),
        "What a training is computed in; auto: bfloat16 where the processor or GPU has it. [default: auto]",
    ),
    "checkpointing": (bool, "Compute layers again in the backward pass: less memory, more time."),
}  # fmt: skip
_SEVERAL = {"batch_size", "learning_rate"}


def setting_options(function: Any, *, choosing: bool = True) -> Any:
    """How it is tuned; with `choosing=False` for a training where dev rows decide nothing."""
    for name, (kind, text) in reversed(_SETTINGS.items()):
        if not choosing and name in ("patience", "eval_every"):
            continue
        flag, several = f"--{name.replace('_', '-')}", choosing and name in _SEVERAL
        text = text if several else text.replace("; several: repeat, dev decides", "")
        told = {"is_flag": True, "default": None} if kind is bool else {"type": kind}
        function = click.option(flag, multiple=several, help=text, **told)(function)
    return function


def tuning_options(function: Any, *, several: bool = False) -> Any:
    """What is tuned and on which rows; with `several`, TASK=FILE for each of many tasks."""
    options: list[Callable[[Any], Any]] = [
        click.option("--method", default="all", show_default=True, help="What is trained: all, prefix, adapter, lora, ... ('promptforge plugins list')."),
        click.option("--verbalizer", help="verbalizer.json of a search, or the name of a verbalizer."),
        click.option("--demonstrations", help="Show labelled rows in the prompt: lm-bff, random or a plugin's."),
        click.option("--samples", type=click.IntRange(min=1), default=1, show_default=True,
                     help="Draws of demonstrations averaged when predicting."),
        click.option("--shots", type=click.IntRange(min=0),
                     help="Draw this many rows per label, and as many for dev; 0: none (ipet, pet, zero-shot)."),
        click.option("--dev", multiple=several, help="Table to choose by; the task's own by default."),
        click.option("--test", multiple=several, help="Table to measure on; the task's own by default."),
        click.option("--unlabeled", help="Unlabelled rows; the task's own by default."),
        partial(job_options, what="Members trained"),
        click.option("--class-weight", multiple=True, metavar="LABEL=WEIGHT", help="Or: balanced."),
        click.option("--init-from", metavar="FOLDER",
                     help="Start from what this run, artifact or peft adapter tuned, by the same method."),
        click.option("--tracker", multiple=True, metavar="NAME",
                     help="Log to tensorboard or mlflow too, in the run's folder (several: repeat)."),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


@click.command()
@partial(task_options, several=True)
@click.option(
    "--strategy",
    default="prompt",
    show_default=True,
    help="How it is tuned: prompt, finetune, pet, ... or a plugin's.",
)
@click.option(
    "--objective",
    type=click.Choice(["classify", "generate"]),
    default="classify",
    show_default=True,
    help="What is learned: the label of a row, or to write its text.",
)
@partial(tuning_options, several=True)
@setting_options
@click.option("--exits", type=click.Choice(["joint", "two-stage"]),
              help="Train a classifier at every layer, with the model or after it; then see exit-curve.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=13, show_default=True,
              help="Seed of the draw and of the training.")  # fmt: skip
@click.option(
    "--seeds",
    metavar="SEED,SEED,...",
    help="In place of --seed: a run with each, then mean and deviation. In Python: `compare` of one strategy.",
)
@click.option(
    "--run",
    "run_",
    help="Folder or URL (s3://...) to keep everything in; with --seeds, to keep the runs' folders "
    "in. [default: runs/TASK-STRATEGY[-METHOD]-SEED]",
)
@click.option("--resume", is_flag=True, help="Go on with the run in that folder; with --seeds, with what is missing.")  # fmt: skip
@click.option("--compare-untrained/--no-compare-untrained", default=True, show_default=True,
              help="Measure the prompts before tuning too.")  # fmt: skip
@model_options
@json_option
@with_config
def train(as_json: bool, strategy: str, run_: str | None, resume: bool, **params: Any) -> None:
    """Tune a classifier from few labels, and say honestly how good it is.

    Tunes for TASK (or for --data with --template). Ends with accuracy on dev and test, with a 95 % interval, beside the same prompts before
    tuning and the majority class. Everything is kept in the run's folder: `promptforge predict
    FOLDER`, `promptforge evaluate FOLDER` and `promptforge runs` use it.

    With several TASKs, by a method that only adds to the model (--method prefix, prompt-tuning,
    adapter, lora, ...), each gets parameters of its own, trained in mixed batches over one frozen
    model; `promptforge predict-many FOLDER` reads rows of all of them.

    With --seeds 13,21,42 each seed is a run of its own, in the folder that --seed would give it, and the
    end is mean and standard deviation over them; --resume reads those that have ended.

    With --objective generate the model learns to write the text of each row (TASK has [generate], or
    --label-column names the texts' column), and `promptforge generate FOLDER` uses it.
    """
    from promptforge.cli.train_seeds import seeds_of, train_seeds
    from promptforge.tuning import processes

    report = launched(params)
    seeds = seeds_of(params)
    if params["exits"] and (len(params["task"]) > 1 or params["objective"] == "generate"):
        raise UserError("--exits is for a classifier of one TASK.")
    if len(params["task"]) > 1:
        from promptforge.cli.train_together import train_tasks

        train_tasks(params, report, strategy, run_, resume, as_json)
        return
    _only_task(params)
    if params["objective"] == "generate":
        from promptforge.cli.generate import train_to_write

        train_to_write(params, report, strategy, run_, resume, as_json)
        return
    setup, options = prepare(params, strategy)
    chosen = options["strategy"]
    rows, dev, test = splits(setup, labelled=chosen.needs_labelled)
    unlabeled = setup.unlabeled() or []
    chosen.check_rows(rows, unlabeled)
    method = "" if params["method"] == "all" else f"-{options['method'].name}"
    name = f"{setup.task.name}-{strategy}{method}"
    folder = place(run_ or f"runs/{name}-{params['seed']}")
    home = place(run_ or "runs")
    for one in [f"{home}/{name}-{seed}" for seed in seeds] or [str(folder)]:
        refuse(one, resume)
    settings = settings_of(params, setup)

    from promptforge.tuning.tracking import check
    from promptforge.tuning.train import train as tune

    check(params["tracker"])
    common: dict[str, Any] = {
        "dev": dev, "test": test, "unlabeled": unlabeled, "settings": settings, "report": report,
        "class_weight": class_weight(params["class_weight"]), "tracker": params["tracker"],
        "init_from": params["init_from"], "compare_untrained": params["compare_untrained"],
    }  # fmt: skip

    backbone = load(params, report, setup.task)
    if seeds:
        names = {seed: f"{name}-{seed}" for seed in seeds}
        train_seeds(setup.task, rows, names, backbone, params, options, common, home, as_json)
        return
    with kept(folder, report):
        run = tune(
            setup.task, rows, backbone=backbone, shots=params["shots"], seed=params["seed"],
            samples=params["samples"], jobs=params["jobs"], run=folder, resume=resume,
            **common, **options,
        )  # fmt: skip
    if not processes.is_first():
        return
    if as_json:
        print_json({"run": str(folder), **run.to_json()})
    else:
        show(run, folder)


def _only_task(params: dict[str, Any]) -> None:
    """The options of several tasks as those of one."""
    for name in ("task", "data", "dev", "test"):
        given = params[name]
        if len(given) > 1:
            raise UserError(
                f"--{name} is given {len(given)} times, and there is one TASK: give it once."
            )
        params[name] = given[0] if given else None


def launched(params: dict[str, Any]) -> Reporter:
    """The reporter of this process, mute in all but the first that a launcher made.

    Where there are several, `--device cuda` becomes the GPU that is this one's.
    """
    from promptforge.progress import Mute
    from promptforge.tuning import processes

    if processes.count() > 1 and params["device"] == "cuda":
        params["device"] = f"cuda:{os.environ['LOCAL_RANK']}"
    return reporter() if processes.is_first() else Mute()


@contextmanager
def kept(
    folder: str | Path, report: Reporter, again: str = "the same command and --resume"
) -> Iterator[None]:
    """Says, where a training is interrupted, how to go on with it."""
    try:
        yield
    except KeyboardInterrupt:
        report.note(f"What was done is kept in {folder}: go on with {again}.")
        raise


def prepare(params: dict[str, Any], strategy: str) -> tuple[Setup, dict[str, Any]]:
    """The task, and the components that were chosen, options checked."""
    from promptforge.plugins import build

    roles = {**class_roles(params), "strategy": strategy, "method": params["method"]}
    roles.pop("calibration", None)
    exits = params.get("exits")
    roles |= {"exits": exits, "backend": params["backend"]}
    setup = open_task(params, reporter(), {**roles, "settings": None})
    words = setup.words
    verbalizer = {**(words.options if words else {}), **setup.options["verbalizer"]}
    made = {
        "strategy": build("strategy", strategy, **setup.options["strategy"]),
        "method": build("method", params["method"], **setup.options["method"]),
        "verbalizer": build("verbalizer", roles["verbalizer"] or "manual", **verbalizer),
        "demonstrations": params["demonstrations"]
        and build("demonstrations", params["demonstrations"], **setup.options["demonstrations"]),
    }
    if params["backend"]:
        made["backend"] = backend_of(params, setup.options)
    if exits:
        from promptforge.exits.train import exit_training

        made["exits"] = exit_training(exits).build(**setup.options["exits"])
    if words:
        setup.task = setup.task.with_words(words.patterns)
    return setup, made


def splits(
    setup: Setup, *, labelled: bool = True
) -> tuple[list[Example], list[Example], list[Example]]:
    """Labelled rows to train on, to choose by and to measure on; the last two may be empty.

    The first are empty with --shots 0; with `labelled=False` also where no table has them.
    """
    params, task = setup.params, setup.task
    rows: list[Example] = []
    if params["shots"] != 0 and (labelled or params["data"] or "train" in task.data):
        rows = setup.examples or setup.labelled(setup.table("train"))

    def of(split: str) -> list[Example]:
        source = params[split] or task.data.get(split)
        return setup.labelled(source, complete=False) if source else []

    # A K-shot draw brings a dev set of K rows a label, unless one is named.
    dev = of("dev") if params["shots"] is None or params["dev"] else []
    return rows, dev, of("test")


def settings_of(params: dict[str, Any], setup: Setup) -> Settings:
    """The settings: flags, and `-o settings.KEY=VALUE` for those without a flag."""
    from promptforge.tuning.settings import Settings

    given = {name: params[name] for name in _SETTINGS if params.get(name) not in (None, ())}
    for name in _SEVERAL & given.keys():
        if isinstance(given[name], tuple):
            values = list(given[name])
            given[name] = values[0] if len(values) == 1 else values
    return Settings.of(**{**setup.options.get("settings", {}), **given})


def class_weight(given: tuple[str, ...]) -> str | dict[str, float] | None:
    """`("balanced",)` or `("a=2", "b=1")`."""
    if not given:
        return None
    if given == ("balanced",):
        return "balanced"
    weights = {}
    for pair in given:
        label, eq, value = pair.rpartition("=")
        try:
            weights[label] = float(value)
        except ValueError:
            eq = ""
        if not eq:
            raise UserError(f"--class-weight {pair!r}: write LABEL=WEIGHT, or balanced.")
    return weights


def refuse(folder: str | Path, resume: bool, option: str = "--run") -> None:
    """Say before any model loads that a folder has a run already, or may not be written to."""
    from promptforge.tuning import processes
    from promptforge.tuning.run import RunFolder

    if not processes.is_first():
        return
    if isinstance(where := place(folder), Path):
        RunFolder(where, option).check()
    if not resume and exists(folder, "config.json"):
        raise UserError(
            f"A run was begun in {folder}. Go on with it with --resume, or name another folder with {option}."
        )


def show(run: Run, folder: str | Path) -> None:
    """The table at the end: accuracy with its interval, per part and per label."""
    from rich.table import Table

    from promptforge.evaluation import Evaluation, MultiLabelEvaluation, RegressionEvaluation

    out = console()
    for split, by in run.results.items():
        rows = {
            who if len(parts) == 1 else f"{who}, {part}": figures
            for who, parts in by.items()
            for part, figures in parts.items()
        }
        final = run.figures(split)
        numbers = {n: e for n, e in rows.items() if isinstance(e, RegressionEvaluation)}
        if sets := {n: e for n, e in rows.items() if isinstance(e, MultiLabelEvaluation)}:
            show_sets(f"On {split}", sets)
            continue
        if not isinstance(final, Evaluation):
            out.print(numbers_table(f"On {split}", numbers), f"[dim]{final.rows} rows[/]\n")
            continue
        table = Table(title=f"On {split}", title_justify="left", show_edge=False)
        for head in ("", "accuracy", "95 % interval", "macro-F1"):
            table.add_column(head, justify="right" if head else "left")
        few = len(final.labels) <= MOST_COLUMNS
        for label in final.labels if few else ():
            table.add_column(f"F1 {plain(label)}", justify="right", style="dim")
        table.add_row("majority class", percent(final.majority), style="dim")
        for name, figures in rows.items():
            if isinstance(figures, Evaluation):
                style = "bold green" if figures is final else None
                table.add_row(*_cells(name, figures, few), style=style)
        out.print(table, f"[dim]{final.rows} rows{'' if few else _hardest(final)}[/]\n")
    if others := _trainings(run):
        out.print(f"On dev, each training at its best: {others}\n")
    steps = sum(t.steps for t in run.trained.values())
    out.print(
        f"{len(run.trained)} training(s), {steps} steps, {run.seconds:.0f} s; {run.parameters:,} trained "
        f"parameters, an artifact of {size_text(run.size)}. Kept in [bold]{plain(folder)}[/]; "
        f"next: promptforge predict {plain(folder)} --data FILE"
    )


def _trainings(run: Run) -> str:
    """The trainings that are no part of the classifier: patterns that were not chosen, PET's models."""
    from promptforge.evaluation import Evaluation

    bests = {name: t.best for name, t in run.trained.items() if t.best is not None}
    dev = run.figures("dev") if run.results.get("dev") else None
    if (
        not isinstance(dev, Evaluation)
        or len(bests) < 2
        or bests.keys() <= set(run.results["dev"]["tuned"])
    ):
        return ""
    # The score that looks are compared by is the accuracy less a hair for unlikely labels.
    exact = {name: round(best * dev.rows) / dev.rows for name, best in bests.items()}
    return ", ".join(f"{plain(name)} {percent(value)}" for name, value in exact.items())


def _cells(name: str, figures: Evaluation, labels: bool) -> list[str]:
    low, high = figures.interval
    by_label = figures.per_label.values() if labels else ()
    return [
        plain(name), percent(figures.accuracy), f"{100 * low:.1f}-{100 * high:.1f}",
        percent(figures.macro_f1), *(percent(row["f1"]) for row in by_label),
    ]  # fmt: skip


def _hardest(figures: Evaluation, most: int = 5) -> str:
    """The labels with rows and the lowest F1, where there are too many to show them all."""
    rows = [(row["f1"], label) for label, row in figures.per_label.items() if row["support"]]
    shown = ", ".join(f"{plain(label)} {percent(f1)}" for f1, label in sorted(rows)[:most])
    return f", {len(figures.labels)} labels; lowest F1: {shown}; --json has all"
