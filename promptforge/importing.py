"""Prompts from elsewhere: the files of other toolkits become task folders of ours.

A format is a `TemplateImporter` that a plugin provides. It reads a source and gives tasks, and a
`Remark` for everything that it could not make one of; the host checks each pattern by rendering
it, writes the task folders and loads them back. Nothing in a source is ever run.
"""

from __future__ import annotations

import re
import shutil
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from promptforge.components import Component
from promptforge.errors import UserError, listed
from promptforge.folders import check_new, whole
from promptforge.plugins import component, manager
from promptforge.task import Pattern, Task


@dataclass(frozen=True)
class Remark:
    """What became of a template, where it did not simply become a pattern.

    Attributes:
        source: the file it stands in.
        template: its name there; empty where it is about the whole file.
        reason: why it was not imported, or what of it was not.
        imported: there is a pattern for it all the same.
    """

    source: str
    template: str
    reason: str
    imported: bool = False


@dataclass(frozen=True)
class Imported:
    """What an import made.

    Attributes:
        importer: the name of the importer.
        folder: the folder that holds the task folders.
        tasks: name of the task folder -> the task, loaded from there.
        remarks: what was not imported and why, in the order of the source.
    """

    importer: str
    folder: Path
    tasks: dict[str, Task]
    remarks: list[Remark] = field(default_factory=list)


class TemplateImporter(Component):
    """Reads the prompts of one format. Subclass it, set `name`, and write the two methods."""

    role: ClassVar[str] = "importer"

    @abstractmethod
    def accepts(self, source: Path) -> bool:
        """True when `source`, a file or folder that is there, holds prompts of this format."""

    @abstractmethod
    def read(self, source: Path) -> Iterator[Task | Remark]:
        """The tasks in `source`, and a remark for all that is not in one of them.

        The columns that the templates use need not be among a task's `inputs`: the host adds
        them. A mistake in one file is a remark, not an error, so that the others are read.
        """


def import_templates(
    source: str | Path,
    folder: str | Path,
    importer: str | TemplateImporter | None = None,
    **options: Any,
) -> Imported:
    """Make task folders from a file or folder of another toolkit.

    Args:
        source: a file, or a folder that is searched.
        folder: made anew to hold a task folder for each task; must not exist, or be empty.
        importer: its name, or the importer; None: the one that knows the source.
        options: the importer's options.

    Raises:
        UserError: no such source, no importer or several know it, a wrong option, nothing in it
            could be imported (the message says why), the folder is in use.
        PromptForgeError: no space, no permission.
    """
    source, folder = Path(source), Path(folder).absolute()
    if not source.exists():
        raise UserError(f"There is no file or folder {source}.")
    check_new(folder)
    if not isinstance(importer, TemplateImporter):
        name = importer or find_importer(source)
        importer = component("importer", name).build(**options)
    elif options:
        raise UserError("Give the options to the importer, or its name and the options.")
    assert isinstance(importer, TemplateImporter)
    remarks: list[Remark] = []
    tasks: list[Task] = []
    for found in importer.read(source):
        if isinstance(found, Remark):
            remarks.append(found)
        elif (checked := _checked(found, remarks)).patterns:
            tasks.append(checked)
    names: list[str] = []
    if tasks:
        with whole(folder) as draft:
            for task in tasks:
                name = unique(slug(task.name), names)
                if _write(task, draft / name, remarks):
                    names.append(name)
            _need(names, source, importer, remarks)
    _need(names, source, importer, remarks)
    return Imported(importer.name, folder, {n: Task.load(folder / n) for n in names}, remarks)


def find_importer(source: str | Path) -> str:
    """The name of the importer that knows `source`.

    Raises:
        UserError: no such file or folder, no importer or several know it.
    """
    source = Path(source)
    if not source.exists():
        raise UserError(f"There is no file or folder {source}.")
    registry = manager().registry("importer")
    known = []
    for name in registry.names():
        try:
            importer = registry.build(name)  # no option changes what a format is
        except UserError:  # It has an option without a default, so it is only chosen by name.
            continue
        with manager().tolerated(registry.provider(name), f"importer {name!r}"):
            if importer.accepts(source):
                known.append(name)
    if not known:
        raise UserError(
            f"{source} holds no prompts that an importer knows. There are: {listed(registry.names())}. "
            "Name the one it is for with --importer."
        )
    if len(known) > 1:
        raise UserError(
            f"{source} holds prompts for several importers: {listed(known)}. Choose one with --importer."
        )
    return known[0]


def _need(
    names: list[str], source: Path, importer: TemplateImporter, remarks: list[Remark]
) -> None:
    """Raise a `UserError` where nothing was imported."""
    if names:
        return
    reasons = [
        f"  {r.source}{f', {r.template}' if r.template else ''}: {r.reason}" for r in remarks
    ]
    more = f"\n  and {len(reasons) - 10} more" if len(reasons) > 10 else ""
    told = "\n".join(reasons[:10]) + more if reasons else "  It has none."
    raise UserError(f"Nothing in {source} could be imported as {importer.name!r}:\n{told}")


def _checked(task: Task, remarks: list[Remark]) -> Task:
    """The task with the patterns that render, and all the columns that these use."""
    patterns: dict[str, Pattern] = {}
    inputs = list(task.inputs)
    for name, pattern in task.patterns.items():
        template = pattern.template
        try:
            columns = template.columns
            if not columns and not task.inputs:
                raise UserError("it uses no column of the data.")
            if task.label_column in columns:
                raise UserError(
                    f"it shows {task.label_column!r}, the column of what is to be found."
                )
            one = replace(task, inputs=(*task.inputs, *columns), patterns={name: pattern})
            one.check()
        except UserError as error:
            reason = str(error).removeprefix(template.origin).lstrip(":, ")
            remarks.append(Remark(template.origin, pattern.description or name, reason))
            continue
        inputs += [c for c in columns if c not in inputs]
        patterns[name] = pattern
    return replace(task, patterns=patterns, inputs=tuple(inputs))


def _write(task: Task, folder: Path, remarks: list[Remark]) -> bool:
    """Write a task folder and load it back; what is wrong with it becomes a remark."""
    from promptforge.task_file import write_task

    try:
        write_task(task, folder)
        Task.load(folder).check()
    except (UserError, UnicodeError) as error:
        origin = next(iter(task.patterns.values())).template.origin
        remarks.append(Remark(origin, task.name, str(error).replace(f"{folder}/", "")))
        shutil.rmtree(folder, ignore_errors=True)
        return False
    return True


# --- names ---------------------------------------------------------------------------------


def slug(text: str) -> str:
    """`text` as the name of a file or a pattern: "Always/Sometimes?" is "always-sometimes"."""
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-_")[:60] or "template"


def unique(name: str, taken: list[str]) -> str:
    """`name`, or the first of "name-2", "name-3", ... that is not taken."""
    count = 1
    made = name
    while made in taken:
        count += 1
        made = f"{name}-{count}"
    return made
