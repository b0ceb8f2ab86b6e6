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
                first = 0
                while first < len(groups) and groups[first] <= skip:
                    skip -= groups[first]
                    first += 1
                keep = list(range(first, len(groups)))
                batches = table.iter_batches(batch_size=STEP, row_groups=keep) if keep else iter(())
                yield from _rows(batches, class_names(table.schema_arrow), skip)
        except (pa.ArrowException, OSError) as error:
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

        def counted(batches: Iterator[Any]) -> Iterator[Any]:
            nonlocal total
            for batch in batches:
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
                yield from _rows(counted(batches), class_names(table.schema), skip)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(source, "Arrow", error) from None
        if not total:
            raise UserError(f"{source} has columns but no rows.")


def _rows(batches: Iterator[Any], names: dict[str, list[str]], skip: int) -> Iterator[Row]:
    for batch in batches:
        if skip >= batch.num_rows:
            skip -= batch.num_rows
            continue
        for start in range(skip, batch.num_rows, STEP):
            for row in batch.slice(start, STEP).to_pylist():
                yield named_classes(row, names) if names else row
        skip = 0


def named_classes(row: Row, names: dict[str, list[str]]) -> Row:
    """`row` with class numbers replaced by class names; -1 (no label) becomes None."""
    for column, classes in names.items():
        value = row.get(column)
        if isinstance(value, int):
            row[column] = classes[value] if 0 <= value < len(classes) else None
    return row


def class_names(schema: Any) -> dict[str, list[str]]:
    """Column -> names of its classes, as the datasets library keeps them in a file's metadata."""
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = info.get("info", {}).get("features", {})
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _damaged(source: str, kind: str, error: Exception) -> UserError:
    if isinstance(error, PermissionError):
        return UserError(f"{source} may not be read: permission denied.")
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(
        f"{source} is not a {kind} file, or it is cut off or damaged ({reason}). "
        f"Copy or write it again."
    )
