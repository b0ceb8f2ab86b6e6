"""Parquet and Arrow: damaged files, values that Python cannot hold, and what an output keeps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from promptforge.data import iter_rows, read_rows
from promptforge.errors import UserError
from promptforge.output import RowWriter
from promptforge.row_json import row_from_json, row_to_json

FORMATS = ["parquet", "arrow"]
#: the first second of the year 10000
LATE = 253_402_300_800


def save(table: pa.Table, path: Path) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(str(path), table.schema) as file:
            file.write_table(table)
    return path


def counted(values: list[int | None], kind: pa.DataType) -> pa.Array:
    """Times and durations by their number of units."""
    return pa.array(values, pa.int32() if kind == pa.date32() else pa.int64()).cast(kind)


def said(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        list(iter_rows(path, **options))
    assert str(path) in str(caught.value)
    return str(caught.value)


#: reads a file with each of its bytes wrong; a process of its own, since a crash would end it
BYTE_BY_BYTE = """
import sys
from pathlib import Path
from promptforge.data import read_rows
from promptforge.errors import UserError
whole = Path(sys.argv[1]).read_bytes()
wrong = Path(sys.argv[1]).with_name("wrong.arrow")
refused = 0
for i in range(len(whole)):
    wrong.write_bytes(whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1:])
    try:
        read_rows(wrong)
    except UserError as error:
        assert "wrong.arrow" in str(error), error
        refused += "is not an Arrow file, or it is cut off or damaged" in str(error)
print(refused)
"""


@pytest.mark.parametrize("stream", [False, True])
def test_a_damaged_arrow_file_is_refused(tmp_path: Path, stream: bool) -> None:
    table = pa.table({"text": ["one", "two", "three"], "label": [1, 0, 1]})
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(str(tmp_path / "a.arrow"), table.schema) as file:
        file.write_table(table)
    ran = subprocess.run(
        [sys.executable, "-c", BYTE_BY_BYTE, str(tmp_path / "a.arrow")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, (ran.returncode, ran.stderr)
    assert int(ran.stdout) > 100


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (counted([0, LATE * 10**6], pa.timestamp("us")), "years go from 1 to 9999"),
        (counted([0, LATE // 86400], pa.date32()), "years go from 1 to 9999"),
        (counted([0, 2**62], pa.duration("s")), "durations to 999999999 days"),
        (
            pa.ListArray.from_arrays([0, 1, 2], counted([0, LATE], pa.timestamp("s"))),
            "years go from 1 to 9999",
        ),
        (
            pa.StructArray.from_arrays([pa.array([1, 2])] * 2, ["a", "a"], mask=pa.array([True, False])),
            "duplicate field names",
        ),
        (counted([None, 1], pa.timestamp("us", "Mars/Phobos")), "time zone 'Mars/Phobos'"),
    ],
)  # fmt: skip
def test_a_value_that_python_cannot_hold_is_named(
    tmp_path: Path, format: str, values: pa.Array, expected: str
) -> None:
    fine = pa.nulls(1500, values.type)
    table = pa.table({"text": ["x"] * 1502, "odd": pa.chunked_array([fine, values])})
    error = said(save(table, tmp_path / f"a.{format}"), columns=("text",))
    assert "row 1502, column 'odd'" in error
    assert expected in error


def test_the_row_is_counted_from_the_first_of_the_file(tmp_path: Path) -> None:
    odd = pa.concat_arrays([pa.nulls(2999, pa.date32()), counted([LATE // 86400], pa.date32())])
    pq.write_table(pa.table({"odd": odd}), tmp_path / "a.parquet", row_group_size=700)
    for skip in (0, 700, 1500, 2999):
        assert "row 3000, column 'odd'" in said(tmp_path / "a.parquet", skip=skip)


def test_a_text_that_is_not_utf8(tmp_path: Path) -> None:
    ends, text = pa.array([0, 1, 2], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff")
    table = pa.table({"raw": pa.StringArray.from_buffers(2, ends, text)})
    error = said(save(table, tmp_path / "a.parquet"))
    assert "row 2, column 'raw': a text that is not UTF-8 (byte 0xff)" in error
    error = said(save(table, tmp_path / "a.arrow"))
    assert "damaged (column 'raw', rows 1 to 2: Invalid UTF8" in error


def copied(table: pa.Table, folder: Path, format: str) -> pa.Table:
    """What an output is whose rows are the table's."""
    rows = read_rows(save(table, folder / f"in.{format}"))
    with RowWriter(folder / f"out.{format}", "print") as out:
        out.write(rows)
    out_path = folder / f"out.{format}"
    return pq.read_table(out_path) if format == "parquet" else pa.ipc.open_file(out_path).read_all()


def _unnamed(kind: pa.DataType) -> str:
    """A type without the name of a list's items, which is the format's."""
    return str(kind).replace("element:", "item:")


@pytest.mark.parametrize("format", FORMATS)
def test_nanoseconds_zones_and_large_numbers_are_kept(
    tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promptforge.staging.STEP_ROWS", 2)
    summer, winter = 1_719_999_999_000_001, 1_700_000_000_000_002
    folded = 1_729_989_000_000_000  # 2:30 in Berlin, for the first time that night
    columns = {
        "nano": counted([1, None, 1000, 10**18 + 1], pa.timestamp("ns")),
        "there": counted(
            [summer * 1000 + 1, None, 0, 1 - 5 * 10**18], pa.timestamp("ns", "Europe/Berlin")
        ),
        "long": counted([1, None, -1, 10**15 + 1], pa.duration("ns")),
        "list": pa.ListArray.from_arrays(
            pa.array([0, 1, 2, None, 3], pa.int32()), counted([1, 2, 3], pa.timestamp("ns", "UTC"))
        ),
        "struct": pa.StructArray.from_arrays(
            [counted([1, None, 2, 3], pa.duration("ns")), pa.array(["a", "b", "c", None])],
            ["took", "what"],
        ),
        "zone": counted(
            [summer, winter, folded, folded + 3600 * 10**6], pa.timestamp("us", "Europe/Berlin")
        ),
        "offset": counted([summer, winter, 0, None], pa.timestamp("us", "+05:30")),
        "large last": pa.array([1, 2, None, 2**63 + 5], pa.uint64()),
        "large first": pa.array([2**64 - 1, None, 3, 4], pa.uint64()),
        "below": pa.array([1, 2, None, -(2**63)], pa.int64()),
        "small": pa.array([0, 1, None, 2**63 - 1], pa.int64()),
    }
    table = pa.table(columns)
    made = copied(table, tmp_path, format)
    for name in columns:
        assert _unnamed(made[name].type) == _unnamed(table[name].type), name
        assert made[name].to_pylist() == table[name].to_pylist(), name
    for row in read_rows(tmp_path / f"in.{format}"):
        assert str(row_from_json(row_to_json(row))) == str(row)


def test_numbers_that_no_type_holds_become_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promptforge.staging.STEP_ROWS", 1)
    for numbers in ([-1, 2**63], [2**63, -1], [1, 2**63, -1], [2**64, 1]):
        with RowWriter(tmp_path / "a.parquet", "print") as out:
            out.write([{"n": number} for number in numbers])
        assert [r["n"] for r in read_rows(tmp_path / "a.parquet")] == [str(n) for n in numbers]


@pytest.mark.parametrize("format", FORMATS)
def test_class_numbers_in_lists_become_names(tmp_path: Path, format: str) -> None:
    classes = {"names": ["x", "y"], "_type": "ClassLabel"}
    features = {
        "new": {"feature": classes, "_type": "List"},
        "large": {"feature": classes, "_type": "LargeList"},
        "old": {"feature": classes, "length": -1, "_type": "Sequence"},
        "oldest": [classes],
        "one": classes,
        "texts": {"feature": {"dtype": "int64", "_type": "Value"}, "_type": "List"},
        "struct": {"a": {"dtype": "int64", "_type": "Value"}},
        "other": [],
        "strange": "int64",
    }
    row: dict[str, Any] = {key: [1, 0, -1] for key in features} | {"one": 1}
    row["struct"] = {"a": 1}
    more = {**features, "dropped": classes}
    metadata = {"huggingface": json.dumps({"info": {"features": more}})}
    table = pa.Table.from_pylist([row, dict.fromkeys(row)]).replace_schema_metadata(metadata)
    named = {key: ["y", "x", None] for key in ("new", "large", "old", "oldest")}
    found = read_rows(save(table, tmp_path / f"a.{format}"))
    assert found == [{**row, **named, "one": "y"}, dict.fromkeys(row)]


def test_class_numbers_in_lists_of_a_saved_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    classes = datasets.ClassLabel(names=["x", "y"])
    features = datasets.Features(
        {"a": datasets.List(classes), "b": datasets.LargeList(classes), "c": classes}
    )
    rows = {"a": [[1, 0], []], "b": [[0], [1]], "c": [1, 0]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "set"))
    assert read_rows(tmp_path / "set") == [
        {"a": ["y", "x"], "b": ["x"], "c": "y"},
        {"a": [], "b": ["y"], "c": "x"},
    ]
