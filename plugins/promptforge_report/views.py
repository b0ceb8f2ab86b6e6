"""What the page shows of a run, section by section; what is not there says why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from promptforge.tuning.run import flat
from promptforge_report import plots
from promptforge_report.figures import (
    Bin,
    Figure,
    Judged,
    figures_of,
    hardest,
    headline,
    judged,
    reliability,
)
from promptforge_report.plots import Plots
from promptforge_report.prompts import Rendered, rendered
from promptforge_report.records import Record
from promptforge_report.rereading import SHOWN, Reread

#: Section -> its title, in the order of the page.
SECTIONS = {
    "run": "What was run",
    "data": "Data",
    "templates": "Templates on real rows",
    "words": "Label words",
    "figures": "Figures",
    "tasks": "Tasks",
    "labels": "Each label",
    "confusion": "Confusion",
    "numbers": "Predicted against true",
    "calibration": "Calibration",
    "learning": "Learning",
    "trainings": "Trainings",
    "hardest": "Hardest rows",
    "exits": "Leaving early",
}
#: Wrong rows shown, and labels of which a confusion matrix can still be read.
HARDEST, MOST_LABELS = 10, 30
_NOT_ENDED = "The run has not ended: go on with the command that began it ('train' with --resume)."
_OLD = (
    "This run kept no predictions: an older PromptForge trained it. With --data FILE --rows N its "
    "model reads labelled rows again."
)
_NO_ROWS = "The run had neither dev nor test rows to measure on."
_NO_PLOTS = "Plots need matplotlib: pip install matplotlib."


@dataclass
class View:
    """A run on the page.

    Attributes:
        absent: section -> why it is not there.
        drawings: section, or what is drawn in it -> SVG.
    """

    record: Record
    name: str
    anchor: str
    facts: list[tuple[str, str]]
    options: dict[str, str]
    absent: dict[str, str] = field(default_factory=dict)
    drawings: dict[str, str] = field(default_factory=dict)
    headline: Figure | None = None
    before: Figure | None = None
    guess: Figure | None = None
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    prompts: dict[str, list[Rendered]] = field(default_factory=dict)
    words: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    reread: Reread | None = None
    figures: dict[str, list[Figure]] = field(default_factory=dict)
    tasks: dict[str, tuple[bool, Figure | None, Figure | None]] = field(default_factory=dict)
    bins: list[Bin] = field(default_factory=list)
    hardest: list[Judged] = field(default_factory=list)
    wrong: int = 0
    judged: int = 0

    @property
    def sections(self) -> dict[str, str]:
        """Section -> title, of those that are there."""
        own = SECTIONS.keys() - self.absent.keys()
        own -= {"tasks"} if not self.tasks else set()
        own -= {"numbers"} if "numbers" not in self.drawings else set()
        return {name: title for name, title in SECTIONS.items() if name in own}

    @property
    def missing(self) -> dict[str, str]:
        """Why something is not there -> the titles of the sections."""
        out: dict[str, list[str]] = {}
        for name, title in SECTIONS.items():
            if name in self.absent:
                out.setdefault(self.absent[name], []).append(title)
        return {why: ", ".join(titles) for why, titles in out.items()}


def view(
    record: Record,
    name: str,
    number: int,
    *,
    drawn: Plots,
    rows: Sequence[tuple[int, Mapping[str, Any]]] = (),
    reread: Reread | None = None,
) -> View:
    """Make a run ready for the page.

    Args:
        rows: number and columns of rows to render templates on.
        reread: what its model added, where it was loaded.
    """
    settings = flat(record.config)
    made = View(
        record, name, f"run-{number}", _facts(record),
        {k: str(v) for k, v in settings.items() if not k.startswith("task.patterns.")},
        reread=reread,
    )  # fmt: skip
    _prompts(made, rows)
    results, task = record.results, record.task
    if results is None:
        made.absent |= dict.fromkeys(
            ("data", "figures", "labels", "confusion", "calibration", "learning", "trainings", "hardest"), _NOT_ENDED
        )  # fmt: skip
    else:
        made.counts = results.counts
        if not made.counts:
            kept = task is not None and not task.scale and not task.generates
            made.absent["data"] = (
                "This run did not keep its counts per label." if kept
                else "Rows are not counted by label: the run is not of one task with labels."
            )  # fmt: skip
        _figures(made, drawn)
        _learning(made, drawn)
        _rows(made, drawn)
    if record.curve is None and not record.name("exits"):
        made.absent["exits"] = (
            "The model was trained without --exits: every row goes through all layers."
        )
    elif record.curve is None:
        made.absent["exits"] = (
            f"No exit curve was measured: 'promptforge exit-curve {record.path} --data FILE' does."
        )
    elif record.curve and plots.drawable():
        made.drawings["exits"] = drawn.exits(record.curve)
    return made


def _facts(record: Record) -> list[tuple[str, str]]:
    config, results = record.config, record.results
    settings, rows = config["settings"], config.get("rows") or {}
    facts = [
        ("Task", record.name("task")),
        ("Model", record.name("model")),
        ("Strategy", record.name("strategy")),
        ("Method", record.name("method")),
        ("Verbalizer", record.name("verbalizer")),
        ("Demonstrations", record.name("demonstrations")),
        ("Exits", record.name("exits")),
        ("Rows", ", ".join(f"{split} {_several(n)}" for split, n in rows.items() if n)),
        ("Shots", str(config.get("shots") or "")),
        ("Steps", str(settings["steps"])),
        ("Batch size", _several(settings.get("batch_size"))),
        ("Learning rate", _several(settings.get("learning_rate")) or "what suits the method"),
        ("Seed", str(config["seed"])),
    ]
    if results is not None:
        if results.seconds is not None:
            facts.append(("Time", duration(results.seconds)))
        if results.parameters is not None:
            facts.append(("Trained parameters", f"{results.parameters:,}"))
        if results.size:
            facts.append(("Artifact", megabytes(results.size)))
    versions = {
        "promptforge": record.environment.get("promptforge"),
        **record.environment.get("packages", {}),
    }
    kept = ("promptforge", "torch", "transformers")
    facts.append(("Versions", ", ".join(f"{n} {versions[n]}" for n in kept if versions.get(n))))
    facts.append(("Python", str(record.environment.get("python", ""))))
    facts.append(("Machine", str(record.environment.get("platform", ""))))
    return [(name, text) for name, text in facts if text]


def _several(value: Any) -> str:
    if value is None:
        return ""
    return ", ".join(f"{v:g}" for v in (value if isinstance(value, list) else [value]))


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def megabytes(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def _prompts(made: View, rows: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
    task, read = made.record.task, made.reread
    if task is None:
        made.absent["templates"] = made.absent["words"] = (
            "The run is of several tasks: each has its own."
        )
        return
    if not task.patterns:
        made.absent["templates"] = made.absent["words"] = "The task has no templates."
        return
    shown = read.prompts if read else []
    if not shown and rows:
        shown = rendered(task, list(rows)[:SHOWN])
    for one in shown:
        made.prompts.setdefault(one.pattern, []).append(one)
    if not shown:
        made.absent["templates"] = (
            "There are no rows to render: this run kept none. Give labelled rows with --data FILE."
        )
    if task.generates:
        made.absent["words"] = "The task generates text: it has no label words."
    else:
        made.words = {name: task.words_for(name) for name in task.patterns}


def _figures(made: View, drawn: Plots) -> None:
    record, results = made.record, made.record.results
    assert results is not None
    made.figures = {
        split: found for split in results.results if (found := figures_of(record, split))
    }
    for name, one in results.tasks.items():
        made.tasks[name] = (one.held_out, headline(one.before, name), headline(one.after, name))
    split = record.split
    if split is None or split not in made.figures:
        why = _NO_ROWS
        if made.tasks:
            why = "The run is of several tasks: each has its own figures, above."
        made.absent |= dict.fromkeys(("figures", "labels", "confusion"), why)
        return
    here = made.figures[split]
    made.headline, made.before = here[-1], headline(record.parts("zero-shot"), "zero-shot")
    made.guess = here[0] if here[0].name.startswith(("majority", "always")) else None
    if plots.drawable() and any(f.value is not None for f in here):
        made.drawings["figures"] = drawn.intervals(here)
    told = made.headline.figures
    if "per_label" not in told:
        made.absent["labels"] = "What was measured has no labels."
    if "confusion" not in told:
        made.absent["confusion"] = (
            "A row may have several labels: see each label's own figures." if "per_label" in told
            else "What was measured has no labels."
        )  # fmt: skip
    elif len(told["labels"]) > MOST_LABELS:
        made.absent["confusion"] = (
            f"{len(told['labels'])} labels are too many for a matrix; results.json has it."
        )


def _learning(made: View, drawn: Plots) -> None:
    results = made.record.results
    assert results is not None
    if not results.trained:
        made.absent["trainings"] = made.absent["learning"] = (
            "Nothing was trained: the model was read as it is."
        )
    elif not any(t.curve for t in results.trained.values()):
        made.absent["learning"] = "The trainings kept no losses."
    elif plots.drawable():
        made.drawings["loss"] = drawn.losses(results.trained)
        if any("score" in entry for t in results.trained.values() for entry in t.curve):
            made.drawings["score"] = drawn.scores(results.trained)
    else:
        made.absent["learning"] = _NO_PLOTS


def _rows(made: View, drawn: Plots) -> None:
    """What follows from what was said of each row."""
    record, task, results = made.record, made.record.task, made.record.results
    assert results is not None
    said = record.said
    why = ""
    if task is None:
        why = "The run is of several tasks, of which no predictions are kept."
    elif task.generates:
        why = "The task generates text: there are no labels to be right about."
    elif not said:
        why = _NO_ROWS if record.split is None else _OLD
    if task is None or why:
        made.absent["calibration"] = made.absent["hardest"] = why
        return
    rows = judged(record)
    made.judged, made.wrong = len(rows), sum(r.wrong for r in rows)
    made.hardest = hardest(rows, HARDEST)
    if not made.hardest:
        made.absent["hardest"] = f"All {len(rows)} rows are right."
    if task.scale:
        made.absent["calibration"] = "The task predicts numbers, which have no confidence."
        if plots.drawable():
            numbers = [float(r.said) for r in rows]
            made.drawings["numbers"] = drawn.against([float(r.truth) for r in rows], numbers)
        return
    made.bins = reliability(task, said)
    if plots.drawable():
        made.drawings["calibration"] = drawn.reliability(
            made.bins, reliability(task, said, "zero-shot")
        )


def names_of(paths: Sequence[Path]) -> list[str]:
    """A short name for each run: the folder's own, or the path where two are alike."""
    own = [path.resolve().name for path in paths]
    return [
        name if own.count(name) == 1 else str(path) for name, path in zip(own, paths, strict=True)
    ]
