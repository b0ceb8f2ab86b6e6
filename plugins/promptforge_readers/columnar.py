"""Parquet and Arrow files, read some rows at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, ClassVar

from promptforge.data import Reader, Row
from promptforge.errors import UserError
from promptforge_readers.files import check_columns, has_suffix, regular_file

#: Rows turned into Python objects at once.
STEP = 1024


class ParquetReader(Reader):
    """Apache Parquet (.parquet)."""

    name: ClassVar[str] = "parquet"

    def accepts(self, source: str) -> bool:
        return has_suffix(source, ".parquet", ".pq")

    def rows(self, source: str, skip: int = 0) -> Iterator[Row]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = regular_file(source)
        try:
            with pq.ParquetFile(path) as table:
                check_columns(table.schema_arrow.names, source)
                total = table.metadata.num_rows
                groups = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
                first = passed = 0
                while first < len(groups) and passed + groups[first] <= skip:
                    passed += groups[first]
                    first += 1
                keep = list(range(first, len(groups)))
                batches = table.iter_batches(batch_size=STEP, row_groups=keep) if keep else iter(())
                yield from _rows(batches, class_names(table.schema_arrow), source, skip, passed)
        except (pa.ArrowException, OSError, UnicodeError, SystemError) as error:
            raise _damaged(source, "Parquet", error) from None
        if not total:
            raise UserError(f"{source} has columns but no rows.")


class ArrowReader(Reader):
    """Arrow IPC files and streams, and Feather (.arrow, .feather)."""

    name: ClassVar[str] = "arrow"

    def accepts(self, source: str) -> bool:
        return has_suffix(source, ".arrow", ".feather", ".arrows", ".ipc")

    def rows(self, source: str, skip: int = 0) -> Iterator[Row]:
        import pyarrow as pa

        path = regular_file(source)
        total = 0

        def checked(batches: Iterator[Any]) -> Iterator[Any]:
            nonlocal total
            for batch in batches:
                if total + batch.num_rows > skip:
                    _check(batch, total)
                total += batch.num_rows
                yield batch

        try:
            with path.open("rb") as raw:
                start = raw.read(6)
            if not start:
                raise UserError(f"{source} is empty.")
            if start.startswith(b"FEA1"):
                raise UserError(f"{source} is Feather version 1. Write it again as version 2.")
            with pa.memory_map(str(path)) as handle:
                if start == b"ARROW1":
                    table = pa.ipc.open_file(handle)
                    batches = (table.get_batch(i) for i in range(table.num_record_batches))
                else:
                    table = pa.ipc.open_stream(handle)
                    batches = iter(table)
                check_columns(table.schema.names, source)
                yield from _rows(checked(batches), class_names(table.schema), source, skip)
        except (pa.ArrowException, OSError, UnicodeError, SystemError) as error:
            raise _damaged(source, "Arrow", error) from None
        if not total:
            raise UserError(f"{source} has columns but no rows.")


def _check(batch: Any, before: int) -> None:
    """Raise where a batch is damaged: its bytes are used as they lie in the file, unread until now.

    Without this a wrong offset ends the process, since it leads out of the file.
    """
    import pyarrow as pa

    batch.validate()
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowException as error:
            rows = f"rows {before + 1} to {before + batch.num_rows}"
            raise pa.ArrowInvalid(f"column {name!r}, {rows}: {error}") from None


def _rows(
    batches: Iterator[Any], names: dict[str, list[str]], source: str, skip: int, before: int = 0
) -> Iterator[Row]:
    """The rows of `batches` after the first `skip` of `source`; `before` of them are passed over."""
    for batch in batches:
        for start in range(max(0, skip - before), batch.num_rows, STEP):
            part = batch.slice(start, STEP)
            try:
                rows = part.to_pylist()
            except Exception as error:  # Types have errors of their own: a dozen in all.
                raise _not_for_python(part, source, before + start, error) from None
            for row in rows:
                yield named_classes(row, names) if names else row
        before += batch.num_rows


def _not_for_python(batch: Any, source: str, before: int, error: Exception) -> UserError:
    """The error for a batch that Python cannot hold, with the value that shows it."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        for number, value in enumerate(column, start=before + 1):
            try:
                value.as_py()
            except Exception as wrong:
                return UserError(
                    f"{source}: row {number}, column {name!r}: {_reason(column.type, wrong)}. Mend "
                    f"the column, or write the table again without it."
                )
    return UserError(f"{source}: rows from {before + 1} on cannot be read: {error}")


def _reason(kind: Any, error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"a text that is not UTF-8 (byte 0x{error.object[error.start]:02x})"
    if isinstance(error, OverflowError):
        return f"a {kind} that Python cannot hold: years go from 1 to 9999, durations to 999999999 days"
    if getattr(kind, "tz", None):
        return f"this machine does not know the time zone {kind.tz!r}"
    return f"a {kind} that Python cannot hold ({error})"


def named_classes(row: Row, names: dict[str, list[str]]) -> Row:
    """`row` with class numbers, alone or in lists, replaced by names; -1 (no label) becomes None."""
    for column, classes in names.items():
        value = row.get(column)
        if isinstance(value, list):
            row[column] = [_named(item, classes) for item in value]
        elif isinstance(value, int):
            row[column] = _named(value, classes)
    return row


def _named(value: Any, classes: list[str]) -> Any:
    if not isinstance(value, int):
        return value
    return classes[value] if 0 <= value < len(classes) else None


def class_names(schema: Any) -> dict[str, list[str]]:
    """Column -> names of its classes, as the datasets library keeps them in a file's metadata."""
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = info.get("info", {}).get("features", {})
        inner = {column: _of_items(feature) for column, feature in features.items()}
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in inner.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _of_items(feature: Any) -> Any:
    """What a list of the datasets library holds; every other feature is itself."""
    if isinstance(feature, list):  # as the library wrote lists once
        return next(iter(feature), None)
    lists = isinstance(feature, dict) and feature.get("_type") in ("List", "LargeList", "Sequence")
    return feature.get("feature") if lists else feature


def _damaged(source: str, kind: str, error: Exception) -> UserError:
    if isinstance(error, PermissionError):
        return UserError(f"{source} may not be read: permission denied.")
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(
        f"{source} is not {'an' if kind == 'Arrow' else 'a'} {kind} file, or it is cut off or damaged ({reason}). "
        f"Copy or write it again."
    )
