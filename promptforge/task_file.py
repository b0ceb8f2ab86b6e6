"""`task.toml`: what may stand in it, and the task that it makes."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from promptforge.classifier import ENSEMBLE
from promptforge.errors import UserError, listed, nearest
from promptforge.multilabel import LABEL, NO, YES, MultiLabel
from promptforge.plugins import manager
from promptforge.progress import Reporter
from promptforge.remote import place
from promptforge.scale import Scale
from promptforge.task import TASK_FILE, Pattern, Task, mistyped_splits
from promptforge.template import Template


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Columns(_Strict):
    inputs: list[str] = Field(min_length=1)
    label: str = "label"
    values: dict[str, str] = {}


class _Scale(_Strict):
    low: float
    high: float
    round_to: list[float] = []


class _MultiLabel(_Strict):
    labels: list[str]
    separator: str = ","
    threshold: float | None = None


class _Generate(_Strict):
    target: str


class _Pattern(_Strict):
    file: str | None = None
    description: str = ""
    premise: str | None = None
    words: dict[str, list[str]] | None = None


class _TaskFile(_Strict):
    name: str
    kind: str = ""
    description: str = ""
    columns: _Columns
    labels: dict[str, list[str]] = {}
    data: dict[str, str] = {}
    scale: _Scale | None = None
    multi_label: _MultiLabel | None = None
    generate: _Generate | None = None
    patterns: dict[str, _Pattern] = {}


def read_task(folder: Path, report: Reporter | None = None) -> Task:
    """The task in a folder.

    Args:
        folder: where it lies.
        report: where warnings go.

    Raises:
        UserError: a mistake in its files, with file and key.
    """
    path = folder / TASK_FILE
    try:
        parsed = _TaskFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    except ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, e['loc']))}: {_said(e['type'], e['msg'], e['loc'])}"
            for e in error.errors()
        ]
        raise UserError(f"{path}: {'; '.join(wrong[:5])}.") from None
    check_name(parsed.name, f"{path}: name")
    _check_labels(path, parsed)
    for name, pattern in parsed.patterns.items():
        check_name(name, f"{path}: patterns")
        strange = set(pattern.words or parsed.labels) ^ set(parsed.labels)
        if strange:
            raise UserError(
                f"{path}: the words of the pattern {name!r} do not fit the labels: {listed(sorted(strange))}."
            )
    scale = None
    if parsed.scale:
        if len(parsed.labels) != 2 or parsed.columns.values:
            raise UserError(
                f"{path}: a task with a [scale] has two labels, the poles of its low and its high end, "
                "and no [columns.values]."
            )
        try:
            scale = Scale.from_json(parsed.scale.model_dump())
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    multi_label = _multi_label(path, parsed)
    for name, near in mistyped_splits(parsed.data).items():
        (report or Reporter()).warn(
            f"{path}: data.{name}: no command looks for a table of that name. Did you mean {near!r}?"
        )
    declared = parsed.patterns or _found(folder)
    if not declared:
        raise UserError(
            f"{folder} has no pattern: add a .jinja file or a [patterns.NAME] table to {TASK_FILE}."
        )
    patterns = {
        name: Pattern(
            name,
            Template.from_file(folder / (p.file or f"{name}.jinja"), name=name),
            p.words,
            p.premise,
            p.description,
        )
        for name, p in declared.items()
    }
    return Task(
        name=parsed.name,
        labels=parsed.labels,
        patterns=patterns,
        inputs=tuple(parsed.columns.inputs),
        label_column=parsed.generate.target if parsed.generate else parsed.columns.label,
        kind=parsed.kind,
        description=parsed.description,
        values=parsed.columns.values,
        data={split: _table(folder, table) for split, table in parsed.data.items()},
        folder=folder,
        scale=scale,
        multi_label=multi_label,
        generates=parsed.generate is not None,
    )


def _found(folder: Path) -> dict[str, _Pattern]:
    """The templates in a folder, in any template language, by the stem of their file's name."""
    registry = manager().registry("renderer")
    suffixes = {s for name in registry.names() for s in getattr(registry.get(name), "suffixes", ())}
    found: dict[str, _Pattern] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix in suffixes and p.is_file()):
        if path.stem in found:
            raise UserError(
                f"{folder} has two templates called {path.stem!r}: {found[path.stem].file} and {path.name}. "
                f"Rename one, or name those that are meant in [patterns.NAME] tables of {TASK_FILE}."
            )
        found[path.stem] = _Pattern(file=path.name)
    return found


def check_name(name: str, where: str) -> None:
    """Raise a `UserError` where a task's or a pattern's name is none for the folders of its runs."""
    if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
        raise UserError(
            f"{where}: {name!r} is also the name of a folder in a run's, so it cannot be empty, '.' or "
            "'..', and has no slash or backslash. Choose another."
        )
    if name == ENSEMBLE:
        raise UserError(f"{where}: {name!r} is what results call their mean. Choose another.")


def _table(folder: Path, table: str) -> str:
    """A table of [data]: beside the task file, unless it is no path (hf:NAME, s3://...)."""
    where = place(table)
    return table if table.startswith("hf:") or isinstance(where, str) else str(folder / where)


def write_task(task: Task, folder: Path) -> None:
    """Write a task folder that `read_task` reads: all but `data`, whose paths are the caller's.

    Args:
        folder: made anew.

    Raises:
        UserError: two patterns whose files would have one name.
    """
    import tomlkit

    patterns: dict[str, dict[str, object]] = {}
    files: dict[str, str] = {}
    for name, pattern in task.patterns.items():
        renderer = manager().registry("renderer").get(pattern.template.renderer)
        file = f"{name}{renderer.suffixes[0]}"  # type: ignore[attr-defined]
        if files.setdefault(file.lower(), name) != name:  # some disks know no upper case
            raise UserError(f"The patterns {files[file.lower()]!r} and {name!r} need one file.")
        own = {
            "file": file,
            "description": pattern.description,
            "premise": pattern.premise,
            "words": pattern.words,
        }
        patterns[name] = {key: value for key, value in own.items() if value}
    columns: dict[str, object] = {"inputs": list(task.inputs)}
    if not task.generates:
        columns["label"] = task.label_column
    if task.values:
        columns["values"] = task.values
    data: dict[str, object] = {
        "name": task.name,
        "kind": task.kind,
        "description": task.description,
    }
    data = {key: value for key, value in data.items() if value} | {"columns": columns}
    if task.generates:
        data["generate"] = {"target": task.label_column}
    else:
        data["labels"] = task.labels
    for key, kind in (("scale", task.scale), ("multi_label", task.multi_label)):
        if kind:
            data[key] = {k: v for k, v in vars(kind).items() if v is not None}
    data["patterns"] = patterns
    folder.mkdir(parents=True)
    (folder / TASK_FILE).write_text(tomlkit.dumps(data), encoding="utf-8", newline="\n")
    for name, pattern in task.patterns.items():
        source = pattern.template.source.replace("\r\n", "\n").rstrip() + "\n"
        (folder / str(patterns[name]["file"])).write_text(source, encoding="utf-8", newline="\n")


#: table of the file -> what may stand in it
_TABLES: dict[object, type[BaseModel]] = {
    "columns": _Columns,
    "scale": _Scale,
    "multi_label": _MultiLabel,
    "generate": _Generate,
    "patterns": _Pattern,
}

#: What pydantic finds -> what to do about it; the rest is said in its words.
_REMEDIES = {
    "extra_forbidden": "there is no such key here (a key belongs to the [table] above it)",
    "missing": "this key is missing",
    "list_type": 'write a list, such as ["..."]',
    "string_type": "write a text in quotes",
}


def _said(kind: str, message: str, place: tuple[int | str, ...]) -> str:
    if kind == "extra_forbidden":
        table = _TABLES[place[0]] if len(place) > 1 else _TaskFile
        if near := nearest(str(place[-1]), list(table.model_fields)):
            return f"there is no such key here (did you mean {near!r}?)"
    return _REMEDIES.get(kind, message)


def _check_labels(path: Path, parsed: _TaskFile) -> None:
    if parsed.generate is None:
        if len(parsed.labels) < 2:
            raise UserError(
                f"{path}: labels: a task has at least two, or [generate] with the column of the texts that "
                "are to be written."
            )
        if parsed.columns.label in parsed.columns.inputs:
            raise UserError(
                f"{path}: columns.inputs: {parsed.columns.label!r} is the column of the labels, which no "
                "prompt may show. Take it out, or name another column in columns.label."
            )
        return
    beside = [key for key in ("labels", "scale", "multi_label") if getattr(parsed, key)]
    beside += ["columns.label"] * ("label" in parsed.columns.model_fields_set)
    beside += ["columns.values"] * bool(parsed.columns.values)
    if beside:
        raise UserError(
            f"{path}: {beside[0]}: a task with [generate] writes a text and has no labels. Delete one of "
            "the two."
        )
    if parsed.generate.target in parsed.columns.inputs:
        raise UserError(
            f"{path}: generate.target: {parsed.generate.target!r} is the text that is to be written, so it "
            "cannot be one of columns.inputs."
        )


def _multi_label(path: Path, parsed: _TaskFile) -> MultiLabel | None:
    if parsed.multi_label is None:
        return None
    if set(parsed.labels) != {YES, NO}:
        raise UserError(
            f"{path}: labels: with [multi_label] they are {YES} and {NO}, the answers to a question about "
            "one label, with label words of your choice. The labels themselves go into multi_label.labels."
        )
    if parsed.scale:
        raise UserError(f"{path}: scale: a task has [scale] or [multi_label], not both.")
    if LABEL in parsed.columns.inputs:
        raise UserError(
            f"{path}: columns.inputs: {LABEL!r} is the label that a template of a [multi_label] task asks "
            "about. Rename the column."
        )
    try:
        return MultiLabel.from_json(parsed.multi_label.model_dump())
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
