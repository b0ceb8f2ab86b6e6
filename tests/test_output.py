"""Outputs survive whatever stops the run, and read back as what was written."""

from __future__ import annotations

import datetime as dt
import errno
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptforge.cli.predict import written
from promptforge.data import read_rows
from promptforge.errors import PromptForgeError, UserError
from promptforge.output import RowWriter
from promptforge.progress import Reporter

ROWS = [{"text": f"täxt, {i}\nand more", "label": "pos" if i % 2 else "neg"} for i in range(10)]
FORMATS = ["csv", "tsv", "jsonl", "parquet", "arrow"]


def write(path: Path, rows: list[dict[str, Any]], step: int = 3) -> None:
    with RowWriter(path, "print") as out:
        for start in range(0, len(rows), step):
            out.write(rows[start : start + step])


def partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def journal(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(Path(f"{partial(path)}.json").read_text())
    return loaded


def stop_after(path: Path, rows: list[dict[str, Any]], error: type[BaseException]) -> None:
    with pytest.raises(error), RowWriter(path, "print") as out:
        out.write(rows)
        raise error


@pytest.mark.parametrize("format", FORMATS)
def test_only_the_finished_file_is_left(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"out.{format}"
    path.write_text("what was there before")
    with RowWriter(path, "print") as out:
        out.write(ROWS)
        out.write([])
        assert path.read_text() == "what was there before"
        assert journal(path)["rows"] == len(ROWS)
    assert read_rows(path) == ROWS
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_stopped_run_goes_on(tmp_path: Path, format: str, error: type[BaseException]) -> None:
    path = tmp_path / f"out.{format}"
    stop_after(path, ROWS[:4], error)
    assert not path.exists()
    assert set(journal(path)) >= {"fingerprint", "rows", "bytes"}
    with partial(path).open("ab") as tail:
        tail.write(b"half a ch")
    with RowWriter(path, "print", resume=True) as out:
        assert out.done == 4
        out.write(ROWS[out.done :])
        assert (out.done, out.rows) == (4, 10)
    whole = tmp_path / f"whole.{format}"
    write(whole, ROWS)
    assert read_rows(path) == read_rows(whole) == ROWS
    if format not in ("parquet", "arrow"):
        assert path.read_bytes() == whole.read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9")
@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_killed_run_goes_on(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"out.{format}"
    code = (
        "import sys, time\n"
        "from promptforge.output import RowWriter\n"
        "with RowWriter(sys.argv[1], 'print') as out:\n"
        "    out.write([{'text': f't{i}'} for i in range(5)])\n"
        "    out.write([{'text': f't{i}'} for i in range(5, 7)])\n"
        "    out._file.write(b'half a chunk')\n"
        "    out._file.flush()\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"ready"
        with (
            pytest.raises(UserError, match="another process"),
            RowWriter(path, "print", resume=True),
        ):
            pass
        process.send_signal(signal.SIGKILL)
    assert not path.exists()
    with RowWriter(path, "print", resume=True) as out:
        assert out.done == 7
        out.write([{"text": "t7"}])
    assert read_rows(path) == [{"text": f"t{i}"} for i in range(8)]


def test_other_options_do_not_continue(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    stop_after(path, ROWS[:4], ValueError)
    with pytest.raises(UserError, match=r"other input or options.*Delete .*--resume"):
        RowWriter(path, "another", resume=True)
    with RowWriter(path, "another") as out:
        assert out.done == out.given_up == 0
        out.write(ROWS[:2])
    assert read_rows(path) == ROWS[:2]


def test_what_a_run_without_resume_gives_up_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    stop_after(path, ROWS[:4], ValueError)
    said: list[str] = []
    report = Reporter()
    report.note = said.append  # type: ignore[method-assign]
    with written(RowWriter(path, "print"), report) as out:
        assert (out.given_up, out.done, out.rows) == (4, 0, 0)
        out.write(ROWS[:2])
    assert read_rows(path) == ROWS[:2]
    assert len(said) == 1 and "interrupted after 4 rows is begun anew; --resume would" in said[0]
    with RowWriter(path, "print") as out:
        assert out.given_up == 0
        out.write(ROWS)


def test_a_resume_with_nothing_to_resume_starts(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with pytest.raises(KeyError), RowWriter(path, "print", resume=True) as out:
        assert out.done == 0
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_finished_conversion_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.parquet"

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("promptforge.staging.convert", full)
        with pytest.raises(PromptForgeError, match="No space left"), RowWriter(path, "p") as out:
            out.write(ROWS)
    with RowWriter(path, "p", resume=True) as out:
        assert out.done == len(ROWS)
    assert read_rows(path) == ROWS


def test_damaged_partials_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    stop_after(path, ROWS[:4], ValueError)
    os.truncate(partial(path), 5)
    with pytest.raises(UserError, match="shorter than its journal"):
        RowWriter(path, "print", resume=True)
    Path(f"{partial(path)}.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        RowWriter(path, "print", resume=True)


def test_a_full_disk_keeps_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.csv"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.raises(PromptForgeError, match=r"No space left.*4 rows are safe.*--resume"),
        RowWriter(path, "print") as out,
    ):
        out.write(ROWS[:4])
        monkeypatch.setattr(os, "fsync", full)
        out.write(ROWS[4:])
    monkeypatch.undo()
    with RowWriter(path, "print", resume=True) as out:
        out.write(ROWS[out.done :])
    assert read_rows(path) == ROWS


def test_targets_are_checked_at_once(tmp_path: Path) -> None:
    for path, expected in [
        (tmp_path / "no" / "out.csv", "no folder"),
        (tmp_path / "out.xlsx", "suffix"),
        (tmp_path, "is a folder"),
    ]:
        with pytest.raises(UserError, match=expected):
            RowWriter(path, "print")
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        RowWriter(tmp_path / "out.csv", "print")
    with pytest.raises(UserError, match="Did you mean 'jsonl'"):
        RowWriter(tmp_path / "out", "print", format="json")
    with pytest.raises(UserError, match="Standard output"):
        RowWriter(None, "print", resume=True)
    with pytest.raises(UserError, match="standard output"):
        RowWriter("-", "print", format="parquet")


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    with RowWriter("~/out.csv", "f") as out:
        out.write([{"a": "1"}])
    assert read_rows("~/out.csv") == [{"a": "1"}]


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="nothing is forbidden to root"
)
def test_an_unwritable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="permission denied"):
            RowWriter(tmp_path / "out.csv", "print")
    finally:
        tmp_path.chmod(0o700)


def test_rows_need_the_same_columns(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with pytest.raises(UserError, match="Row 3"), RowWriter(path, "print") as out:
        out.write([{"a": 1, "b": 2}, {"b": 4, "a": 3}])
        out.write([{"a": 1}])
    with pytest.raises(UserError, match="Row 3"), RowWriter(path, "print", resume=True) as out:
        out.write([{"a": 1}])
    with RowWriter(path, "print", resume=True):
        pass
    assert path.read_text() == "a,b\n1,2\n3,4\n"


def test_half_a_surrogate_pair(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="surrogate"), RowWriter(tmp_path / "a.csv", "p") as out:
        out.write([{"text": "\ud800"}])


def test_json_lines_have_no_nan(tmp_path: Path) -> None:
    nan = float("nan")
    write(
        tmp_path / "a.jsonl", [{"a": nan, "b": [1.5, {"c": -float("inf")}], "d": np.array([nan])}]
    )
    text = (tmp_path / "a.jsonl").read_text(encoding="utf-8")
    assert text == '{"a": null, "b": [1.5, {"c": null}], "d": [null]}\n'


@pytest.mark.parametrize(("format", "expected"), [(None, "a,b\n1,\n"), ("jsonl", '{"a": 1, "b"')])
def test_standard_output(
    monkeypatch: pytest.MonkeyPatch, format: str | None, expected: str
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with RowWriter("-", "print", format=format) as out:
        out.write([{"a": 1, "b": None}])
        out.write([{"a": "ä", "b": True}])
    text = raw.getvalue().decode("utf-8")
    assert text.startswith(expected)
    assert "ä" in text


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_types_are_kept(tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("promptforge.staging.STEP_ROWS", 2)
    rows: list[dict[str, Any]] = [
        {
            "late": None,
            "number": 1,
            "score": 0.5,
            "yes": True,
            "when": dt.datetime(2024, 1, 2, 3, 4, 5, 678),
            "day": dt.date(2024, 1, 2),
            "long": dt.timedelta(days=1, microseconds=5),
            "raw": b"\x00\xff",
            "price": Decimal("1.50"),
            "words": ["a", "b"],
            "scores": {"neg": 0.25, "pos": 0.75},
        }
    ] * 3
    rows = [*rows, {**rows[0], "late": "x"}]
    write(tmp_path / f"a.{format}", rows)
    assert read_rows(tmp_path / f"a.{format}") == rows


def test_mixed_columns_become_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("promptforge.staging.STEP_ROWS", 1)
    rows = [
        {"a": 1, "b": 1, "c": None, "d": {}},
        {"a": "x", "b": 2.5, "c": None, "d": {}},
        {"a": None, "b": 2**60 + 1, "c": None, "d": {}},
        {"a": [1], "b": None, "c": None, "d": {}},
    ]
    write(tmp_path / "a.parquet", rows)
    back = read_rows(tmp_path / "a.parquet")
    assert [row["a"] for row in back] == ["1", "x", None, "[1]"]
    assert [row["b"] for row in back] == [1.0, 2.5, float(2**60), None]
    assert [row["c"] for row in back] == [None] * 4
    assert [row["d"] for row in back] == ["{}"] * 4


def test_text_tables_hold_other_values_as_text(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    row = {"a": True, "b": 0.1, "c": [1, "ä"], "d": None, "e": numpy.float64(0.5), "f": "x"}
    write(tmp_path / "a.csv", [row])
    assert read_rows(tmp_path / "a.csv") == [
        {"a": "true", "b": "0.1", "c": '[1, "ä"]', "d": "", "e": "0.5", "f": "x"}
    ]
    write(tmp_path / "a.jsonl", [{"e": numpy.float32(0.5), "f": numpy.arange(2)}])
    assert read_rows(tmp_path / "a.jsonl") == [{"e": 0.5, "f": [0, 1]}]


# Neither NUL nor half a surrogate pair is text that the formats can hold.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
NAMES = st.sampled_from(["text", "läbel", "a,b", 'c"d', "e\tf", "g\nh"])
NUMBER = st.integers(-(2**63), 2**63 - 1)
FLOAT = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def tables(draw: st.DrawFn, kinds: list[Any]) -> list[dict[str, Any]]:
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    columns = {name: draw(st.sampled_from(kinds)) for name in names}
    return draw(st.lists(st.fixed_dictionaries(columns), min_size=1, max_size=8))


def back_again(format: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from promptforge.data import choose_reader

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{format}"
        write(path, rows)
        # Said, so that a header of one column with a delimiter in it is not taken for a mistake.
        options = {"csv": {"delimiter": ","}, "tsv": {"delimiter": "tab"}}.get(format, {})
        return read_rows(path, reader=choose_reader(str(path), **options))


@pytest.mark.parametrize("format", FORMATS)
@given(rows=tables([TEXT]))
@settings(deadline=None, max_examples=40)
def test_texts_read_back_equal(format: str, rows: list[dict[str, Any]]) -> None:
    assert back_again(format, rows) == rows


@pytest.mark.parametrize("format", ["jsonl", "parquet", "arrow"])
@given(rows=tables([st.none() | kind for kind in (TEXT, NUMBER, FLOAT, st.booleans())]))
@settings(deadline=None, max_examples=40)
def test_values_read_back_equal(format: str, rows: list[dict[str, Any]]) -> None:
    assert back_again(format, rows) == rows
