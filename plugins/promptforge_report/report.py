"""`report`: from the folders of runs to one HTML file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from promptforge._version import __version__
from promptforge.data import AnyReader, Example
from promptforge.errors import UserError
from promptforge.folders import write_text
from promptforge.progress import Reporter
from promptforge.remote import is_url
from promptforge_report.comparing import Comparison, compared
from promptforge_report.plots import Plots
from promptforge_report.records import Record, found
from promptforge_report.rereading import SHOWN, reread
from promptforge_report.views import View, names_of, view

if TYPE_CHECKING:
    from promptforge.task import Task

#: What a report may be called, so that no table or artifact is written over by mistake.
ENDINGS = (".html", ".htm")


@dataclass
class Report:
    """A report that was written.

    Attributes:
        output: the file.
        runs: what it says of each run, in the order in which they were named.
        comparison: of several runs; None of one.
    """

    output: Path
    runs: list[View]
    comparison: Comparison | None

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        runs = []
        for one in self.runs:
            final = one.headline
            runs.append({
                "run": str(one.record.path),
                "ended": one.record.results is not None,
                "split": one.record.split,
                "figure": final and final.kind,
                "value": final and final.value,
                "interval": final.figures.get("interval") if final else None,
                "sections": list(one.sections),
                "absent": one.absent,
            })  # fmt: skip
        made: dict[str, Any] = {"output": str(self.output), "runs": runs}
        if self.comparison:
            made["comparison"] = {
                "runs": [
                    {"run": str(line.record.path), "best": line.best, "p": line.p, "differ": line.differ}
                    for line in self.comparison.lines
                ],
                "seeds": [vars(group) for group in self.comparison.groups],
                "options": self.comparison.options,
                "why": self.comparison.why,
            }  # fmt: skip
        return made


def report(
    runs: Sequence[str | Path],
    output: str | Path | None = None,
    *,
    data: str | Path | None = None,
    rows: int = 0,
    reader: AnyReader = None,
    device: str = "cpu",
    report: Reporter | None = None,
) -> Report:
    """Write a report about runs.

    Args:
        runs: folders of runs, or folders with runs; or URLs of them.
        output: the HTML file, which is replaced; by default `report.html` in the run's folder, of
            several runs, or of one at a URL, in this folder.
        data: labelled rows to show in place of what the runs kept; with `rows` they are measured too.
        rows: load each run's model, and read that many of the hardest rows again.
        reader: how `data` is read.
        device: where models are loaded.

    Raises:
        UserError: no run there, an output that is no HTML file or is a folder, rows that do not fit.
        PromptForgeError: a damaged run, no space.
    """
    report = report or Reporter()
    if rows < 0:
        raise UserError(f"rows is {rows}; it must be 0 or more.")
    paths = found(runs)
    target = _target(output, paths, any(is_url(run) for run in runs))
    records = [Record.read(path) for path in paths]
    drawn, names, views = Plots(), names_of(paths), []
    with report.meter("Reading runs", len(records), "runs") as meter:
        for number, (record, name) in enumerate(zip(records, names, strict=True), start=1):
            task = record.task
            examples = _examples(task, data, reader, report) if task else []
            again = None
            if rows and task and not task.generates and record.results is not None:
                again = reread(record, rows, examples=examples, device=device, report=report)
            shown = _shown(record, examples)
            views.append(view(record, name, number, drawn=drawn, rows=shown, reread=again))
            meter.advance()
    comparison = compared(records, names) if len(records) > 1 else None
    made = Report(target, views, comparison)
    write_text(target, page(made, drawn))
    return made


def page(made: Report, drawn: Plots) -> str:
    """The report as HTML; every text from data or options is escaped."""
    from jinja2 import Environment, PackageLoader

    from promptforge.cli.common import p_value
    from promptforge_report import plots, views

    pages = Environment(
        loader=PackageLoader("promptforge_report", "pages"), autoescape=True,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    pages.filters |= {
        "percent": lambda value: f"{100 * value:.1f} %",
        "p": p_value,
        "duration": views.duration,
        "megabytes": views.megabytes,
        "options": _options,
    }
    forest = ""
    if made.comparison and made.comparison.alike and plots.drawable():
        lines = [
            line for line in made.comparison.lines if line.figure and line.figure.value is not None
        ]
        figures = [replace(line.figure, final=line.best) for line in lines if line.figure]
        forest = drawn.intervals(figures) if figures else ""
    return pages.get_template("report.html").render(
        report=made, views=made.runs, comparison=made.comparison, forest=forest,
        version=__version__, made=datetime.now().strftime("%Y-%m-%d %H:%M"), drawn=plots.TRAININGS,
        by_path={one.record.path: one for one in made.runs},
    )  # fmt: skip


def _options(text: str) -> Markup:
    """Text with the options in it as code that stays on one line."""
    return Markup(re.sub(r"(--[a-z][a-z-]*( [A-Z]+\b)?)", r"<code>\1</code>", str(escape(text))))


def _target(output: str | Path | None, paths: Sequence[Path], remote: bool) -> Path:
    if output is None:
        return (paths[0] if len(paths) == 1 and not remote else Path()) / "report.html"
    target = Path(output)
    if target.is_dir():
        raise UserError(
            f"--output {target} is a folder: name a file in it, such as {target / 'report.html'}."
        )
    if target.suffix.lower() not in ENDINGS:
        raise UserError(f"--output {target}: a report is an HTML file: end its name in .html.")
    if not target.parent.is_dir():
        raise UserError(f"--output {target}: there is no folder {target.parent}.")
    return target


def _examples(
    task: Task, data: str | Path | None, reader: AnyReader, report: Reporter
) -> list[Example]:
    if data is None or task.generates:
        return []
    return task.examples(data, report, complete=False, reader=reader)


def _shown(record: Record, examples: Sequence[Example]) -> list[tuple[int, Mapping[str, Any]]]:
    """Rows to render templates on: of --data, else of the run, else of its task's own tables."""
    if examples:
        return [(e.number, e.row) for e in examples[:SHOWN]]
    if record.said:
        return [(p.number, p.row) for p in record.said[:SHOWN]]
    return _own_rows(record.task) if record.task else []


def _own_rows(task: Task) -> list[tuple[int, Mapping[str, Any]]]:
    """The first rows of the task's test or dev table, where its folder is still there."""
    from itertools import islice

    from promptforge.data import iter_rows
    from promptforge.task import TASK_FILE
    from promptforge.task import Task as Tasks

    origins = {Path(pattern.template.origin).parent for pattern in task.patterns.values()}
    for folder in origins:
        if (folder / TASK_FILE).is_file():
            own = Tasks.load(folder)
            for split in ("test", "dev"):
                if own.name == task.name and split in own.data:
                    some = islice(iter_rows(own.data[split], list(task.inputs)), SHOWN)
                    return list(enumerate(some, start=1))
    return []
