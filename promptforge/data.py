"""Tables of rows: reading them and checking their labels; `shots.py` draws K rows of each.

Formats are plugins (`Reader`); this module makes the checks that every format needs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from promptforge.components import Component
from promptforge.errors import PromptForgeError, UserError, did_you_mean, listed
from promptforge.plugins import manager
from promptforge.progress import Reporter
from promptforge.remote import place

Row = dict[str, Any]

MOST_LABELS = 1000
#: More rows than this that all have different values: no label column. Fewer can be one a label.
DISTINCT_ROWS = 10


@dataclass(frozen=True)
class Example:
    """A labelled row. `number` counts the rows of the source from 1, for messages.

    Where the task has a scale, `value` is the row's number, and the label its side of the median.
    Where a row has several labels, `labels` are they, in the task's order, and `label` names them all.
    """

    row: Row
    label: str
    number: int
    value: float | None = None
    labels: tuple[str, ...] | None = None


class Reader(Component):
    """Reads tables of one format. Subclass it, set `name`, and write the two methods."""

    role: ClassVar[str] = "reader"

    @abstractmethod
    def accepts(self, source: str) -> bool:
        """True when `source` looks like this format: by its suffix or prefix, not by reading it."""

    @abstractmethod
    def rows(self, source: str, skip: int = 0) -> Iterator[Row]:
        """The rows of `source` after the first `skip`, one at a time, in flat memory.

        Every row has the same columns in the same order; a value that is not there is None.

        Raises:
            UserError: there is no such source, it is damaged, or it has no rows at all.
        """


@dataclass(frozen=True)
class ReaderChoice:
    """The reader that tables get: `name`, or None: the first that accepts each; its options.

    Without `name` the options are for the reader `of`; tables of other formats get defaults.
    """

    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    of: str | None = None


#: A reader, its name, a choice with options, or None: the first reader that accepts the source.
AnyReader = str | Reader | ReaderChoice | None


def existing_file(source: str | Path) -> Path:
    """The path of a file that is there and can be read; for readers of files.

    Raises:
        UserError: no such file (with the nearest name in its folder), a folder, or a URL
            other than file://.
    """
    path = place(source)
    if isinstance(path, str):
        raise UserError(
            f"{path} is a URL, and tables are read from this machine's files. Copy it here and name the file."
        )
    try:
        return _existing(path)
    except OSError as error:
        raise UserError(f"No file can be read at {path}: {error.strerror}.") from None


def _existing(path: Path) -> Path:
    if path.is_dir():
        inside = sorted(p.name for p in islice(path.iterdir(), 1000) if p.is_file())
        has = f" It holds: {listed(inside)}." if inside else " It is empty."
        raise UserError(f"{path} is a folder, not a file. Name a file in it.{has}")
    if not path.exists():
        if not path.parent.is_dir():
            raise UserError(f"No such file: {path} (there is no folder {path.parent}).")
        beside = [p.name for p in islice(path.parent.iterdir(), 10_000)]
        raise UserError(f"No such file: {path}.{did_you_mean(path.name, beside)}")
    return path


def choose_reader(source: str, reader: AnyReader = None, **options: Any) -> Reader:
    """The reader called `reader` with `options`, else the first registered that accepts `source`.

    Raises:
        UserError: no reader has that name or accepts the source, or a wrong option.
    """
    registry = manager().registry("reader")
    if isinstance(reader, Reader):
        return reader
    chosen: Reader
    if isinstance(reader, ReaderChoice):
        if reader.of and not reader.name:
            chosen = choose_reader(source)
            if chosen.name != reader.of:
                return chosen
        return choose_reader(source, reader.name, **reader.options, **options)
    if reader is not None:
        return _built(source, reader, options)
    for name in registry.names():
        try:
            chosen = registry.build(name)
        except UserError:  # It has an option without a default, so it is only chosen by name.
            continue
        accepted = False
        with manager().tolerated(registry.provider(name), f"reader {name!r}"):
            accepted = chosen.accepts(source)
        if accepted:
            return _built(source, name, options) if options else chosen
    if ":" not in source or "://" in source:
        existing_file(source)
    raise UserError(
        f"{source}: the format is not known from the name. "
        f"Rename the file or choose a reader (--reader NAME): {listed(registry.names())}."
    )


def _built(source: str, name: str, options: Mapping[str, Any]) -> Reader:
    """A reader for a table, which an error names where an option is wrong."""
    cls = manager().registry("reader").get(name)
    try:
        made: Reader = cls.build(**options)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return made


def iter_rows(
    source: str | Path,
    columns: Sequence[str] = (),
    skip: int = 0,
    reader: AnyReader = None,
) -> Iterator[Row]:
    """The rows of `source` after the first `skip`, with a value in each of `columns`.

    Raises:
        UserError: no reader for the source, a column that is not there, a missing value, or
            what the reader finds wrong with the source.
    """
    chosen = choose_reader(str(source), reader)
    return _checked(chosen.rows(str(source), skip), str(source), tuple(columns), skip)


def read_rows(
    source: str | Path,
    columns: Sequence[str] = (),
    skip: int = 0,
    reader: AnyReader = None,
) -> list[Row]:
    """All rows at once; see `iter_rows`."""
    return list(iter_rows(source, columns, skip, reader))


def _checked(
    rows: Iterator[Row], source: str, columns: tuple[str, ...], skip: int
) -> Iterator[Row]:
    number = skip
    for row in rows:
        number += 1
        for column in columns:
            try:
                value = row[column]
            except KeyError:
                raise UserError(
                    f"{source} has no column {column!r} (row {number})."
                    f"{did_you_mean(column, list(row))} Its columns: {listed(list(row), 30)}."
                ) from None
            # Most values are texts, and a call for each would take a third of the time.
            if (not value or value.isspace()) if value.__class__ is str else missing(value):
                raise UserError(
                    f"{source}: row {number} has no value in the column {column!r} (row 1 is "
                    f"the first row of data). Fill it in or delete the row."
                )
        yield row


def check_row(row: Row, columns: Sequence[str], source: str, number: int) -> None:
    """Raise a `UserError` unless a row has a value in each of `columns`."""
    next(_checked(iter([row]), source, tuple(columns), number - 1))


def missing(value: Any) -> bool:
    """Whether a cell holds nothing: None, NaN, or a text of nothing but spaces."""
    if isinstance(value, str):
        return not value or value.isspace()
    # A NaN is how pandas writes an empty cell.
    return value is None or (isinstance(value, float) and value != value)


def label_text(value: Any) -> str | None:
    """A label as stripped text: 1 and 1.0 are "1", True is "true". None where there is none.

    Raises:
        UserError: a list, a mapping or another value that cannot be a label.
    """
    if hasattr(value, "item") and not isinstance(value, str):  # a numpy scalar
        value = value.item()
    if missing(value):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (str, int, float)):
        return str(value).strip()
    raise UserError(f"{value!r} is a {type(value).__name__}; a label is a text or a number.")


def labels_of(examples: Iterable[Example]) -> list[str]:
    """The labels of `examples`, sorted, each once."""
    return sorted({example.label for example in examples})


def examples(
    rows: Iterable[Row],
    labels: Sequence[str] | None,
    label_column: str,
    origin: str,
    values: Mapping[str, str] | None = None,
    *,
    report: Reporter | None = None,
    text_columns: Sequence[str] | None = None,
    complete: bool = True,
) -> list[Example]:
    """The labelled `rows`, checked, with warnings about duplicates.

    `labels` are the task's (None: learned from the data, see `labels_of`); `values` maps values
    of the label column to labels; `origin` is the source's name for messages; duplicates are
    looked for in `text_columns` (None: all but the label); with `complete=False` (an evaluation
    set) labels may be absent from the data.

    Raises:
        UserError: no label column, a row without a label, a label that the task does not have
            or that the data lack, a single class, or a column that is no label column.
    """
    report = report or Reporter()
    mapping = value_map(values or {}, labels)
    found: list[Example] = []
    for number, row in enumerate(rows, start=1):
        cell = label_cell(row, label_column, f"{origin}: row {number}")
        try:
            text = label_text(cell)
        except UserError as error:
            raise UserError(f"{origin}: row {number}, column {label_column!r}: {error}") from None
        if text is None:
            where = f"{origin}: row {number} has no label in the column {label_column!r}"
            raise UserError(f"{where}. Fill it in or delete the row.")
        found.append(Example(row, mapping.get(text, text), number))
    _check_labels(found, labels, label_column, origin, complete)
    if labels is None:
        _warn_alike(found, label_column, origin, report)
    warn_duplicates(found, label_column, text_columns, origin, report)
    return announce(found, origin)


def label_cell(row: Row, column: str, where: str) -> Any:
    """The value of the label column.

    Raises:
        UserError: the row has no such column.
    """
    if column not in row:
        raise UserError(
            f"{where} has no label column {column!r}.{did_you_mean(column, list(row))} "
            f"Its columns: {listed(list(row), 30)}."
        )
    return row[column]


def value_map(values: Mapping[str, str], labels: Sequence[str] | None) -> dict[str, str]:
    """Value in the data -> label, as a task has it, stripped.

    Raises:
        UserError: it maps to what is no label.
    """
    mapping = {str(raw).strip(): label for raw, label in values.items()}
    for raw, label in mapping.items():
        if labels is not None and label not in labels:
            raise UserError(
                f"The task's values map {raw!r} to {label!r}, which is not one of its labels."
                f"{did_you_mean(label, list(labels))} Its labels: {listed(list(labels))}."
            )
    return mapping


def _check_labels(
    found: list[Example], labels: Sequence[str] | None, column: str, origin: str, complete: bool
) -> None:
    if not found:
        raise UserError(f"{origin} has no rows.")
    counts = Counter(example.label for example in found)
    if labels is None:
        if len(counts) > MOST_LABELS or len(counts) == len(found) > DISTINCT_ROWS:
            raise UserError(
                f"{origin}: the column {column!r} has {len(counts)} different values in "
                f"{len(found)} rows: is this the label column? If it is, name the labels in the "
                f"task. The columns: {listed(list(found[0].row), 30)}."
            )
    else:
        for label, count in counts.items():
            if label not in labels:
                first = next(e.number for e in found if e.label == label)
                raise UserError(
                    f"{origin}: the label {label!r} in the column {column!r} (first in row "
                    f"{first}, {count} rows in all) is not one of the task's labels: "
                    f"{listed(list(labels))}.{did_you_mean(label, list(labels))} Mend the data, "
                    f"add the label to the task, or map it to one with the task's values."
                )
        lacking = [label for label in labels if label not in counts]
        if complete and lacking:
            cells = {label_text(example.row[column]) for example in found}
            if len(cells) == 1 and not cells & set(labels):  # a number, or what the values map
                raise UserError(
                    f"{origin}: every row has the value {cells.pop()!r} in the column {column!r}, so "
                    f"there is nothing to tell apart. Add rows with other values."
                )
            raise UserError(
                f"{origin} has no row with the label {listed(lacking)}; the column {column!r} "
                f"has {listed(sorted(counts))}. Add rows, or take the label out of the task."
            )
    if complete and len(counts) == 1:
        raise UserError(
            f"{origin}: every row has the label {next(iter(counts))!r} in the column {column!r}; "
            f"a classifier needs at least two. Add rows of another label."
        )


def _warn_alike(found: list[Example], column: str, origin: str, report: Reporter) -> None:
    """Warn of learned labels that only upper and lower case or spaces tell apart."""
    alike: dict[str, Counter[str]] = {}
    for example in found:
        key = " ".join(example.label.casefold().split())
        alike.setdefault(key, Counter())[example.label] += 1
    for counts in alike.values():
        if len(counts) > 1:
            told = ", ".join(f"{label!r} ({count} rows)" for label, count in counts.items())
            report.warn(
                f"{origin}: the column {column!r} has labels that differ only in upper and lower case or "
                f"in spaces: {told}. Each is a label of its own. If they are one, write it the same in "
                "all rows."
            )


def warn_duplicates(
    found: list[Example], column: str, texts: Sequence[str] | None, origin: str, report: Reporter
) -> None:
    """Warn of rows with the same values in `texts` (None: all columns but `column`)."""
    seen: dict[Any, Example] = {}
    same: list[tuple[int, int]] = []
    other: list[tuple[int, int]] = []
    clash: list[tuple[int, int]] = []
    for example in found:
        row = example.row
        names = [n for n in row if n != column] if texts is None else texts
        key: Any = tuple(row.get(n) for n in names)
        if not key:
            return
        try:
            first = seen.setdefault(key, example)
        except TypeError:  # a list or a mapping in a cell
            first = seen.setdefault(repr(key), example)
        if first is not example:
            alike = _value(first, column) == _value(example, column)
            kind = clash if first.label != example.label else same if alike else other
            kind.append((first.number, example.number))
    for kind, what, link, kept in (
        (same, "and its label", "repeats", " and count twice"),
        (other, f"with another value in the column {column!r}", "and", " and count twice"),
        (clash, "with a different label", "and", "; at most one can be right"),
    ):
        if kind:
            report.warn(
                f"{origin}: {len(kind)} rows repeat an earlier row {what} (row {kind[0][1]} {link} "
                f"row {kind[0][0]}). They are kept{kept}."
            )


def _value(example: Example, column: str) -> Any:
    """What the label column says: numbers on a scale differ where their label, a pole, does not."""
    return label_text(example.row[column]) if example.labels is None else example.labels


def announce(found: list[Example], origin: str) -> list[Example]:
    """The examples as the plugins that are told of them leave them."""
    event = "promptforge_examples_loaded"
    replaced = None
    if manager().listens(event):
        replaced = getattr(manager().pm.hook, event)(examples=found, origin=origin)
    if replaced is None:
        return found
    if not isinstance(replaced, list) or not all(isinstance(e, Example) for e in replaced):
        raise PromptForgeError(f"A plugin's {event} returned something else than Examples.")
    return replaced
