"""`promptforge train TASK TASK ...`: each task's own parameters, trained in mixed batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from promptforge.cli.common import console, percent, plain, print_json
from promptforge.errors import UserError, did_you_mean, listed
from promptforge.remote import place

if TYPE_CHECKING:
    from promptforge.evaluation import AnyEvaluation
    from promptforge.progress import Reporter
    from promptforge.task import Task
    from promptforge.tuning.together import TogetherRun

#: option -> the split of a task that it names a table of
_TABLES = {"data": "train", "dev": "dev", "test": "test"}
#: options that say something of one task, and what they are when they are not given
_ALONE: dict[str, Any] = {
    "template": (), "text_column": (), "label_column": None, "demonstrations": None, "samples": 1,
    "unlabeled": None, "jobs": 1, "backend": None, "class_weight": (), "init_from": None, "tracker": (),
    "objective": "classify",
}  # fmt: skip


def train_tasks(
    params: dict[str, Any], report: Reporter, strategy: str, run_: str | None, resume: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Train several tasks together; `params` are the options of `promptforge train`.

    Raises:
        UserError: an option that is for one task; what `train_together` raises.
    """
    from promptforge.cli.setup import Setup, load, options_of
    from promptforge.cli.train import kept, refuse, settings_of
    from promptforge.plugins import build, component, manager
    from promptforge.tuning import processes
    from promptforge.tuning.mixed import TaskExamples
    from promptforge.tuning.together import train_together

    manager().pm.hook.promptforge_configure(settings=params)
    for name, default in _ALONE.items():
        if params.get(name, default) != default:
            raise UserError(
                f"--{name.replace('_', '-')} is for one TASK, and there are {len(params['task'])}."
            )
    component("strategy", strategy)
    if strategy != "prompt":
        raise UserError(f"--strategy {strategy} is for one TASK: several are trained by prompt.")
    verbalizer = params["verbalizer"] or "manual"
    if verbalizer.endswith(".json"):
        raise UserError("--verbalizer FILE has the words of one TASK: put them into its task.toml.")
    tasks = _chosen(with_tables(params["task"], params, report), params["pattern"], report)
    source = next((path for task in tasks for path in task.data.values()), None)
    roles = {"method": params["method"], "verbalizer": verbalizer, "settings": None}
    options, reader = options_of(params, roles, source)
    settings = settings_of(params, Setup(tasks[0], report, params, options, reader))
    method = build("method", params["method"], **options["method"])
    folder = place(run_ or f"runs/together-{method.name}-{params['seed']}")
    refuse(folder, resume)
    data = []
    for task in tasks:
        task.check()
        # A draw of --shots brings dev rows, unless they are named.
        chosen_by = ["dev"] if params["dev"] or params["shots"] is None else []
        read = {
            split: task.examples(task.path(split), report, complete=split == "train", reader=reader)
            for split in ("train", *chosen_by, "test")
            if split in task.data or split == "train"
        }
        data.append(TaskExamples(task, **read))
    backbone = load(params, report, *tasks)
    with kept(folder, report):
        done = train_together(
            data, backbone=backbone, method=method,
            verbalizer=build("verbalizer", verbalizer, **options["verbalizer"]),
            settings=settings, shots=params["shots"], seed=params["seed"], run=folder,
            resume=resume, compare_untrained=params["compare_untrained"], report=report,
        )  # fmt: skip
    if not processes.is_first():
        return
    if as_json:
        print_json({"run": str(folder), **done.to_json()})
    else:
        show(done)


def with_tables(names: Sequence[str], params: dict[str, Any], report: Reporter) -> list[Task]:
    """The tasks, with the tables of --data, --dev and --test in place of their own.

    TASK is what the task is called on the command line or in its task.toml.

    Raises:
        UserError: no such task, or something else than TASK=FILE.
    """
    from promptforge.task import Task

    found = [Task.load(name, report) for name in names]
    for option, split in _TABLES.items():
        for given in params[option]:
            name, _, table = given.partition("=")
            meant = [
                i for i, (typed, task) in enumerate(zip(names, found, strict=True))
                if name in (typed, task.name)
            ]  # fmt: skip
            if not meant or not table:
                known = [task.name for task in found]
                raise UserError(
                    f"--{option} {given!r}: write TASK=FILE, with one of the tasks that are trained on: "
                    f"{listed(known)}.{did_you_mean(name, known)}"
                )
            for i in meant:
                found[i] = replace(found[i], data={**found[i].data, split: table})
    return found


def _chosen(tasks: Sequence[Task], patterns: Sequence[str], report: Reporter) -> list[Task]:
    """The tasks with one pattern each: the named one, else their first, which is said.

    Raises:
        UserError: a pattern that no task has, several of one task.
    """
    known = sorted({name for task in tasks for name in task.patterns})
    for name in patterns:
        if name not in known:
            raise UserError(
                f"--pattern {name!r}: no task has it.{did_you_mean(name, known)} There are: {listed(known)}."
            )
    chosen = []
    for task in tasks:
        named = [name for name in dict.fromkeys(patterns) if name in task.patterns]
        if len(named) > 1:
            raise UserError(
                f"--pattern: the task {task.name!r} has {listed(named)}, and tasks that are trained "
                "together have one pattern each: name one of them."
            )
        first, *others = task.patterns
        if others and not named:
            report.note(
                f"{task.name}: pattern {first} is used; --pattern chooses another: {', '.join(others)}"
            )
        chosen.append(task.choose(named or [first]))
    return chosen


def show(run: TogetherRun) -> None:
    """The table at the end: each task before and after."""
    from rich.table import Table

    out = console()
    title = "Each task on its test rows" + _measures(run)
    table = Table(title=title, title_justify="left", show_edge=False)
    for head in (
        "task",
        "rows",
        "majority",
        "zero-shot",
        "tuned",
        "95 % interval",
        "dev",
        "trained",
    ):
        table.add_column(head, justify="left" if head == "task" else "right")
    for name, splits in run.results.items():
        if not splits:
            table.add_row(plain(name), *[""] * 6, str(_trained(run, name)))
            continue
        split = "test" if "test" in splits else "dev"
        tuned = run.figures(name, split)
        before = run.figures(name, split, "zero-shot") if "zero-shot" in splits[split] else None
        low, high = tuned.interval or (None, None)
        table.add_row(
            plain(name) if split == "test" else f"{plain(name)} [dim](dev rows)[/]", str(tuned.rows),
            _guess(tuned), percent(before.headline) if before else "", percent(tuned.headline),
            f"{100 * low:.1f}-{100 * high:.1f}" if low is not None and high is not None else "",
            percent(run.figures(name, "dev").headline) if "dev" in splits else "",
            str(_trained(run, name)),
        )  # fmt: skip
    out.print(table)
    out.print(
        f"{run.trained.steps} steps, {run.seconds:.0f} s. Kept in [bold]{plain(run.folder)}[/], a task in "
        f"members/TASK; next: promptforge predict-many {plain(run.folder)} --data FILE"
    )


def _guess(tuned: AnyEvaluation) -> str:
    """What always saying the most frequent label, or labels, gives; nothing of numbers."""
    from promptforge.evaluation import Evaluation, MultiLabelEvaluation

    if isinstance(tuned, MultiLabelEvaluation):
        return percent(tuned.constant["micro_f1"])
    return percent(tuned.majority) if isinstance(tuned, Evaluation) else ""


def _measures(run: TogetherRun) -> str:
    """What figures that are no accuracies are, for the table's title."""
    from promptforge.evaluation import MultiLabelEvaluation, RegressionEvaluation

    names = {
        RegressionEvaluation: "of numbers: Pearson",
        MultiLabelEvaluation: "of label sets: micro-F1",
    }
    measured = [
        run.figures(name, list(splits)[-1]) for name, splits in run.results.items() if splits
    ]
    told = [text for kind, text in names.items() if any(isinstance(e, kind) for e in measured)]
    return f" ({'; '.join(told)})" if told else ""


def _trained(run: TogetherRun, name: str) -> int:
    """How many numbers were trained for a task."""
    from promptforge.model import PromptModel

    classifier = run.classifiers[name]
    model = classifier.inner
    assert isinstance(model, PromptModel) and model.weights and model.weights.added
    own = sum(value.numel() for values in model.tuned.values() for value in values.values())
    return own + sum(t.numel() for t in model.weights.added.tensors().values())
