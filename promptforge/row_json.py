"""Rows as JSON and back: tables such as Parquet have values that JSON has no word for."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptforge.data import Row

#: The name that values are kept under -> how they are read from text.
_KEPT: dict[str, Callable[[str], Any]] = {
    "$date": date.fromisoformat, "$datetime": datetime.fromisoformat, "$time": time.fromisoformat,
    "$Decimal": Decimal,
}  # fmt: skip


def row_to_json(row: Row) -> Row:
    """A row as JSON has it; a date, a time or a decimal number is one again after `row_from_json`.

    What else JSON does not know becomes the text that a template writes for it.
    """

    def kept(value: Any) -> Any:
        name = f"${type(value).__name__}"
        return {name: str(value)} if name in _KEPT else str(value)

    made: Row = json.loads(json.dumps(row, default=kept))
    return made


def row_from_json(row: Row) -> Row:
    """The reverse of `row_to_json`."""

    def read(found: dict[str, Any]) -> Any:
        if len(found) == 1:
            ((name, value),) = found.items()
            if name in _KEPT and isinstance(value, str):
                return _KEPT[name](value)
        return found

    made: Row = json.loads(json.dumps(row), object_hook=read)
    return made
