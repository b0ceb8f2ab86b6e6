"""Rows as JSON and back: tables such as Parquet have values that JSON has no word for."""

from __future__ import annotations

import base64
import datetime as dt
import json
import math
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from promptforge.data import Row

TAG = "$promptforge"


def plain(value: Any) -> Any:
    """What stands in JSON for a value that JSON does not have."""
    if hasattr(value, "tolist"):  # numpy's arrays and scalars
        return value.tolist()
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, (dt.datetime, dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    if isinstance(value, (list, tuple, dict, bool, int, float)) or value is None:
        return value
    return str(value)


def finite(value: Any) -> Any:
    """`plain`, through and through, with None for NaN and infinity: JSON has no word for them."""
    value = plain(value)
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def in_nanoseconds(value: Any) -> bool:
    """Whether a value is or holds pandas' time with nanoseconds, which Python's own do not have."""
    if isinstance(value, (list, tuple, dict)):
        return any(map(in_nanoseconds, value.values() if isinstance(value, dict) else value))
    return isinstance(value, (dt.datetime, dt.timedelta)) and getattr(value, "unit", "") == "ns"


def tagged(value: Any) -> Any:
    """The same, marked with its type, so that `untagged` makes the value again."""
    if in_nanoseconds(value):
        if isinstance(value, dt.timedelta):
            return {TAG: "Timedelta", "value": value.value}  # type: ignore[attr-defined]
        # In UTC, since pandas does not read the offsets of old local times, which have seconds.
        time = value.tz_convert("UTC") if _zone(value) else value
        return {TAG: "Timestamp", "value": time.isoformat() + _zone(value)}
    # datetime is a date too, so it comes first.
    if isinstance(value, dt.datetime):
        return {TAG: "datetime", "value": value.isoformat() + _zone(value)}
    for kind in (dt.date, dt.time, bytes, Decimal):
        if isinstance(value, kind):
            text = str(value) if isinstance(value, Decimal) else plain(value)
            return {TAG: kind.__name__, "value": text}
    if isinstance(value, dt.timedelta):
        return {TAG: "timedelta", "value": value // dt.timedelta(microseconds=1)}
    return plain(value)


def _zone(value: dt.datetime) -> str:
    """The name of a time's zone, behind it in brackets (RFC 9557); its offset is in the time."""
    name = getattr(value.tzinfo, "key", None)
    return f"[{name}]" if name else ""


def _datetime(text: str) -> dt.datetime:
    time, _, zone = text.rstrip("]").partition("[")
    made = dt.datetime.fromisoformat(time)
    return made.astimezone(ZoneInfo(zone)) if zone else made


def _timestamp(text: str) -> Any:
    time, _, zone = text.rstrip("]").partition("[")
    made = _pandas().Timestamp(time).as_unit("ns")
    return made.tz_convert(zone) if zone else made


def _pandas() -> Any:
    import pandas  # type: ignore[import-untyped]  # slow to import, and rarely needed

    return pandas


_UNTAG: dict[str, Callable[[Any], Any]] = {
    "datetime": _datetime,
    "date": dt.date.fromisoformat,
    "time": dt.time.fromisoformat,
    "bytes": base64.b64decode,
    "Decimal": Decimal,
    "timedelta": lambda value: dt.timedelta(microseconds=value),
    "Timestamp": _timestamp,
    "Timedelta": lambda value: _pandas().Timedelta(value, "ns"),
}


def untagged(pairs: dict[str, Any]) -> Any:
    """The value that `tagged` marked; every other mapping as it is. For `json.loads(object_hook=...)`."""
    make = _UNTAG.get(str(pairs.get(TAG))) if pairs.keys() == {TAG, "value"} else None
    return pairs if make is None else make(pairs["value"])


def row_to_json(row: Row) -> Row:
    """A row as JSON has it; what `tagged` knows is itself again after `row_from_json`."""
    made: Row = json.loads(json.dumps(row, default=tagged))
    return made


def row_from_json(row: Row) -> Row:
    """The reverse of `row_to_json`."""
    made: Row = json.loads(json.dumps(row), object_hook=untagged)
    return made
