"""Values on their way into an output file: as text, as JSON lines, as Arrow columns.

Parquet and Arrow files cannot be appended to safely, so their rows wait as JSON lines, in which
values that JSON does not have are tagged, and are converted at the end. `output.py` uses it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptforge.data import Row
from promptforge.row_json import TAG, finite, in_nanoseconds, plain, tagged, untagged

if TYPE_CHECKING:
    import pyarrow as pa

#: A part of the rows that is converted at once: at most as many rows and (about) bytes.
STEP_ROWS = 50_000
STEP_BYTES = 32 << 20


def as_text(value: Any) -> str:
    """A value as a cell of a text table: None is empty, lists and mappings are JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float, Decimal)):
        return str(value)
    made = plain(value)
    return made if isinstance(made, str) else json.dumps(made, default=plain, ensure_ascii=False)


def plain_lines(rows: Sequence[Row], columns: list[str], header: bool) -> str:
    """The rows as JSON lines for anyone to read; NaN and infinity, which JSON has not, are null."""
    try:
        return _lines(rows, columns, plain, nan=False)
    except ValueError:
        return _lines([finite(row) for row in rows], columns, plain, nan=False)


def tagged_lines(rows: Sequence[Row], columns: list[str], header: bool) -> str:
    """The rows as JSON lines from which `convert` makes the same values again."""
    return _lines(rows, columns, tagged)


def _lines(
    rows: Sequence[Row], columns: list[str], default: Callable[[Any], Any], *, nan: bool = True
) -> str:
    encode = json.JSONEncoder(ensure_ascii=False, default=default, allow_nan=nan).encode
    return "".join(encode({c: row[c] for c in columns}) + "\n" for row in rows)


def _steps(partial: Path) -> Iterator[list[Row]]:
    rows: list[Row] = []
    size = 0
    with partial.open("rb") as handle:
        for line in handle:
            hook = untagged if TAG.encode() in line else None
            rows.append(json.loads(line, object_hook=hook))
            size += len(line)
            if len(rows) >= STEP_ROWS or size >= STEP_BYTES:
                yield rows
                rows, size = [], 0
    if rows:
        yield rows


def convert(partial: Path, target: Path, format: str, columns: list[str]) -> None:
    """Write the tagged JSON lines of `partial` to `target` as `format`, in flat memory.

    The file is read twice: a column's type must hold for all of its values. A column with
    values of different kinds becomes text.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    types: dict[str, pa.DataType] = {column: pa.null() for column in columns}
    for rows in _steps(partial):
        for column in columns:
            types[column] = _joined(types[column], [row[column] for row in rows])
    schema = pa.schema([(column, _storable(types[column])) for column in columns])
    writer: Any
    with target.open("wb") as handle:
        if format == "parquet":
            writer = pq.ParquetWriter(handle, schema)
        else:
            writer = pa.ipc.new_file(handle, schema)
        with writer:
            for rows in _steps(partial):
                arrays = [_array([row[f.name] for row in rows], f.type) for f in schema]
                writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
        handle.flush()
        os.fsync(handle.fileno())


def _joined(known: pa.DataType, values: list[Any]) -> pa.DataType:
    """The type that holds `known` and `values`."""
    import pyarrow as pa

    if pa.types.is_string(known):
        return known
    try:
        kind = _inferred(values)
        if known == kind or pa.types.is_null(kind):
            return known
        if pa.types.is_null(known):
            return kind
        if {known, kind} == {pa.int64(), pa.uint64()}:  # no type holds both
            return pa.string()
        if not (pa.types.is_integer(known) and pa.types.is_integer(kind)):
            known, kind = _whole(known), _whole(kind)
        fields = [pa.schema([("", known)]), pa.schema([("", kind)])]
        return pa.unify_schemas(fields, promote_options="permissive").field(0).type
    except (pa.ArrowException, OverflowError):
        return pa.string()


def _inferred(values: list[Any]) -> pa.DataType:
    """The type of values; uint32 stands for whole numbers from 0 to 2**63 - 1, whatever their size.

    `_joined` makes int64 of it where a lower number comes, and uint64 where a higher one does; where
    none does, `_whole` makes int64 of it.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        made = pa.array(values)
    except OverflowError:
        return pa.array(values, pa.uint64()).type
    if made.type == pa.int64() and pc.min(made).as_py() >= 0:
        return pa.uint32()
    fine = _in_nanoseconds(made.type)
    # Arrow itself would cut nanoseconds off.
    if fine != made.type and in_nanoseconds(values):
        return pa.array(values, fine).type
    return made.type


def _in_nanoseconds(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    if pa.types.is_timestamp(kind):
        return pa.timestamp("ns", kind.tz)
    if pa.types.is_duration(kind):
        return pa.duration("ns")
    if pa.types.is_list(kind):
        return pa.list_(_in_nanoseconds(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_in_nanoseconds(field.type)) for field in kind])
    return kind


def _storable(kind: pa.DataType) -> pa.DataType:
    """Parquet has no mapping without keys, and few programs know a column of nulls."""
    import pyarrow as pa

    if pa.types.is_null(kind):
        return pa.string()
    return pa.string() if _hollow(kind) else _whole(kind)


def _whole(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    return pa.int64() if kind == pa.uint32() else kind


def _hollow(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        fields = [kind.field(i).type for i in range(kind.num_fields)]
        return not fields or any(_hollow(field) for field in fields)
    return bool(pa.types.is_list(kind)) and _hollow(kind.value_type)


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    if pa.types.is_string(kind):
        return pa.array([None if v is None else as_text(v) for v in values], kind)
    if pa.types.is_floating(kind):
        # Integers above 2**53 are rounded here; Arrow would refuse them.
        return pa.array([None if v is None else float(v) for v in values], kind)
    return pa.array(values, kind)
