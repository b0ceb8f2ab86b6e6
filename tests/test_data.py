"""Readers, label checks and few-shot sampling, on small files with everything wrong in them."""

from __future__ import annotations

import gzip
import json
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from promptforge.data import (
    Example,
    ReaderChoice,
    choose_reader,
    examples,
    iter_rows,
    read_rows,
)
from promptforge.errors import PromptForgeError, UserError
from promptforge.plugins import manager
from promptforge.progress import Reporter
from promptforge.scale import Scale
from promptforge.shots import sample_shots
from promptforge.task import Task
from promptforge.template import Template


def put(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return str(path)


def wrong(source: str, columns: tuple[str, ...] = ()) -> str:
    with pytest.raises(UserError) as caught:
        read_rows(source, columns)
    assert Path(source).name in str(caught.value)
    return str(caught.value)


class Warned(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\nfine,1\n"),
        ("a.CSV", "text,label\r\nfine,1\r\n"),
        ("mac.csv", "text,label\rfine,1\r"),
        ("bom.csv", "\ufefftext,label\nfine,1"),
        ("bom-quoted.csv", '\ufeff"text","label"\n"fine","1"'),
        ("blank.csv", "\ntext,label\n\nfine,1\n\n"),
        ("a.tsv", "text\tlabel\nfine\t1\n"),
        ("a.jsonl", '{"text": "fine", "label": "1"}\n\n'),
        ("bom.ndjson", '\ufeff{"text": "fine", "label": "1"}\r\n'),
        ("a.csv.gz", gzip.compress(b"text,label\nfine,1\n", mtime=0)),
        ("a.jsonl.gz", gzip.compress(b'{"text": "fine", "label": "1"}', mtime=0)),
    ],
)
def test_reads(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert read_rows(put(tmp_path, name, content)) == [{"text": "fine", "label": "1"}]


def test_line_ends_inside_cells_stay(tmp_path: Path) -> None:
    text = 'one\ntwo\r\nthree\rfour\u2028five\u2029six\x85seven\x0beight\x0c"nine"'
    quoted = text.replace('"', '""')
    rows = [{"text": text, "label": "a"}, {"text": "u\u2028v", "label": "b"}]
    source = put(tmp_path, "a.csv", f'text,label\n"{quoted}",a\nu\u2028v,b\n')
    assert read_rows(source) == rows
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert read_rows(put(tmp_path, "a.jsonl", lines)) == rows


def test_a_cell_of_ten_megabytes(tmp_path: Path) -> None:
    big = "x, " * 3_500_000
    assert read_rows(put(tmp_path, "a.csv", f'text,label\n"{big}",a\n'))[0]["text"] == big


def test_skip_continues_where_it_stopped(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"text": f"t{i}", "n": i} for i in range(5000)]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as file:
        file.write_table(table, 900)
    with pa.ipc.new_stream(str(tmp_path / "s.arrow"), table.schema) as stream:
        stream.write_table(table)
    put(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))
    for name in ("a.parquet", "a.arrow", "s.arrow", "a.jsonl"):
        for skip in (0, 1, 700, 1500, 4999, 5000, 6000):
            assert list(iter_rows(tmp_path / name, skip=skip)) == rows[skip:], (name, skip)
    put(tmp_path, "a.csv", "text\na\nb\nc\n")
    assert list(iter_rows(tmp_path / "a.csv", skip=2)) == [{"text": "c"}]
    assert list(iter_rows(tmp_path / "a.csv", skip=3)) == []


def test_json_keys_may_differ(tmp_path: Path) -> None:
    source = put(tmp_path, "a.jsonl", '{"text": "a"}\n{"label": 1, "text": "b"}\n')
    assert read_rows(source) == [{"text": "a", "label": None}, {"text": "b", "label": 1}]
    assert "row 1 has no value in the column 'label'" in wrong(source, ("text", "label"))


def test_quotes_as_plain_text(tmp_path: Path) -> None:
    source = put(tmp_path, "a.tsv", 'text\tlabel\n"so he said\t1\n')
    assert "reader.quote=''" in wrong(source)
    reader = choose_reader(source, quote="")
    assert read_rows(source, reader=reader) == [{"text": '"so he said', "label": "1"}]


def test_a_delimiter_can_be_said(tmp_path: Path) -> None:
    source = put(tmp_path, "a.csv", "text;label\na,b;1\n")
    rows = read_rows(source, reader=choose_reader(source, "csv", delimiter=";"))
    assert rows == [{"text": "a,b", "label": "1"}]
    assert read_rows(source, reader=choose_reader(source, delimiter=";")) == rows
    with pytest.raises(UserError, match="delimiter"):
        choose_reader(source, "csv", delimiter=";;")
    one = put(tmp_path, "one.csv", "a|b\nx\n")
    assert read_rows(one, reader=choose_reader(one, delimiter=",")) == [{"a|b": "x"}]


def test_reading_is_streaming(tmp_path: Path) -> None:
    source = put(tmp_path, "a.csv", "text,label\n" + "good,1\n" * 50_000 + "bad\n")
    rows = iter_rows(source, ("text",))
    assert next(rows) == {"text": "good", "label": "1"}
    with pytest.raises(UserError, match=r"row 50001 \(line 50002\) has 1 cells"):
        list(rows)


def test_class_numbers_of_the_datasets_library_become_names(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"text": ["a", "b", "c"], "label": [1, 0, -1]})
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "a.parquet")
    assert [row["label"] for row in read_rows(tmp_path / "a.parquet")] == ["pos", "neg", None]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "\n\n", "blank lines"),
        ("a.csv", "text,label\n", "no rows"),
        ("a.csv", "text;label\na;1\n", "reader.delimiter=';'"),
        ("a.csv", "text\tlabel\na\t1\n", "reader.delimiter='tab'"),
        ("a.tsv", "text,label\na,1\n", "reader.delimiter=','"),
        ("a.csv", b"text,label\nok,1\ncaf\xe9,1\n", "line 3: not UTF-8 (byte 0xe9, number 4"),
        ("a.csv", b"text,label\nok,1\ncaf\xe9,1\n", "iconv -f WINDOWS-1252"),
        ("a.csv", "text,label\na,1\n".encode("utf-16"), "UTF-16"),
        ("a.csv", "text,label\na,1\n".encode("utf-16-le"), "line 1: a NUL byte"),
        ("a.csv", "text,text\na,1\n", "more than one column is called 'text'"),
        ("a.csv", ",text\n0,1\n", "column 1 has no name"),
        ("a.csv", "text,label\n\na,1\nb\n", "row 2 (line 4) has 1 cells"),
        ("a.csv", 'text,label\n"a\nb",1\nb,c,1\n', "row 2 (line 4) has 3 cells"),
        ("a.csv", "text,label\na\0b,1\n", "line 2: a NUL byte"),
        ("a.csv", 'text,label\na,1\n"b,1\n', "row 2 (it begins on line 3): a quote is opened"),
        ("a.csv", 'text,label\n"a,1\nb,"c",1\n', "row 1 (it begins on line 2): text after"),
        ("a.csv.gz", gzip.compress(b"text,label\na,1\n" * 99, mtime=0)[:-12], "damaged or cut off"),
        ("a.jsonl", "", "is empty"),
        ("a.jsonl", "\n", "blank lines"),
        ("a.jsonl", '{"a": 1}\n{"a": }\n', "line 2, column 7: not JSON"),
        ("a.jsonl", "[1, 2]\n", "line 1: a JSON array"),
        ("a.jsonl", "3\n", "line 1: a JSON number"),
        ("a.jsonl", '[\n{"a": 1}]\n', "jq"),
        ("a.jsonl", b'{"a": "b"}\n{"a": "\xff"}\n', "line 2: not UTF-8 (byte 0xff"),
        ("a.jsonl", '{"a": "\0"}\n', "NUL"),
        ("a.jsonl", '{"a": "\\ud800"}\n', "surrogate"),
        ("a.jsonl", "[" * 100_000, "deeply"),
        (
            "a.jsonl",
            '{"a": 1}\n\n{"a": 1, "a": 2}\n',
            "line 3: one object has more than one key 'a'",
        ),
        ("a.jsonl", '{"a": {"b": 1, "b": 1}}\n', "line 1: one object has more than one key 'b'"),
        ("a.jsonl", '{"a": 1}\n{"a": 1, "": 2}\n', "row 2: column 2 has no name"),
        ("a.parquet", b"PAR1 and no more", "cut off or damaged"),
        ("a.parquet", b"", "cut off or damaged"),
        ("a.arrow", b"", "is empty"),
        ("a.arrow", b"ARROW1 and no more", "cut off or damaged"),
        ("a.arrow", b"nothing of the kind", "cut off or damaged"),
        ("a.feather", b"FEA1....", "version 1"),
        ("a.xlsx", b"PK", "choose a reader"),
    ],
)
def test_says_what_is_wrong(tmp_path: Path, name: str, content: str | bytes, expected: str) -> None:
    assert expected in wrong(put(tmp_path, name, content))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes in folders")
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_pipe_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)  # commands look at the first row, then read all of them
    assert "not a regular file" in wrong(str(tmp_path / name))


def test_truncated_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a" * 50] * 100}), tmp_path / "whole.parquet")
    data = (tmp_path / "whole.parquet").read_bytes()
    assert "cut off" in wrong(put(tmp_path, "half.parquet", data[: len(data) // 2]))
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "none.parquet")
    assert "no rows" in wrong(str(tmp_path / "none.parquet"))


def test_no_such_file_names_the_nearest(tmp_path: Path) -> None:
    put(tmp_path, "train.csv", "text\na\n")
    assert "Did you mean 'train.csv'?" in wrong(str(tmp_path / "trian.csv"))
    assert "there is no folder" in wrong(str(tmp_path / "no" / "train.csv"))
    (tmp_path / "folder.csv").mkdir()
    assert "is a folder" in wrong(str(tmp_path / "folder.csv"))
    assert "holds: 'train.csv'" in wrong(str(tmp_path))


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".csv", "a/" * 3000 + "x.csv"])
def test_a_name_that_is_too_long_is_no_file(name: str) -> None:
    assert "No file can be read at" in wrong(name)


def test_the_address_of_a_table(tmp_path: Path) -> None:
    source = put(tmp_path, "my rows.csv", "text\na\n")
    address = Path(source).as_uri()
    assert "my%20rows" in address
    assert read_rows(address) == [{"text": "a"}]
    with pytest.raises(UserError, match=r"No such file: .*my raws.csv. Did you mean 'my rows.csv'"):
        read_rows(address.replace("rows", "raws"))
    for other in ("s3://rows/dev.csv", "https://here/dev", "gs://rows/dev.parquet"):
        with pytest.raises(UserError, match=r"is a URL, and tables are read from this machine's"):
            read_rows(other)


def test_options_are_for_the_tables_of_their_reader(tmp_path: Path) -> None:
    semi = put(tmp_path, "a.csv", "text;label\na,b;1\n")
    choice = ReaderChoice(options={"delimiter": ";"}, of="csv")
    assert read_rows(semi, reader=choice) == [{"text": "a,b", "label": "1"}]
    lines = put(tmp_path, "b.jsonl", '{"text": "x;y"}')
    assert read_rows(lines, reader=choice) == [{"text": "x;y"}]
    tabs = put(tmp_path, "c.tsv", "text\tlabel\na\t1\n")
    assert read_rows(tabs, reader=choice) == [{"text": "a", "label": "1"}]
    with pytest.raises(UserError, match=r"b\.jsonl: .*no option 'delimiter'"):
        choose_reader(lines, delimiter=";")


def test_columns_and_values_are_checked(tmp_path: Path) -> None:
    source = put(tmp_path, "a.csv", "text,label\na,1\n  ,2\n")
    assert "Did you mean 'text'? Its columns: 'text', 'label'" in wrong(source, ("txt",))
    assert "row 2 has no value in the column 'text'" in wrong(source, ("text",))
    assert len(read_rows(source, ("label",))) == 2
    with pytest.raises(UserError, match=r"no reader called 'cvs'.* Did you mean 'csv'"):
        read_rows(source, reader="cvs")


def test_saved_data_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    one = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    one.save_to_disk(str(tmp_path / "one"))
    assert read_rows(tmp_path / "one")[0] == {"text": "a", "label": "pos"}
    assert read_rows(tmp_path / "one", skip=1) == [{"text": "b", "label": "neg"}]
    both = datasets.DatasetDict({"train": one, "test": one})
    both.save_to_disk(str(tmp_path / "both"))
    assert "several splits: 'train', 'test'" in wrong(str(tmp_path / "both"))
    assert "Did you mean 'train'" in wrong(f"{tmp_path / 'both'}:trian")
    assert len(read_rows(f"{tmp_path / 'both'}:train")) == 2


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: dict[str, Any] = {}

    def load(path: str, **options: Any) -> Any:
        asked.update(options, path=path)
        data = datasets.Dataset.from_dict({"text": ["a", "b"]}).to_iterable_dataset()
        return data if options["split"] else {"train": data, "test": data}

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_rows("hf:SetFit/sst2/plain:test", skip=1) == [{"text": "b"}]
    assert (asked["path"], asked["name"], asked["split"]) == ("SetFit/sst2", "plain", "test")
    with pytest.raises(UserError, match="several splits"):
        read_rows("hf:SetFit/sst2")
    with pytest.raises(UserError, match="hf:owner/name"):
        read_rows("hf:a/b/c/d")


def test_o_is_for_the_format_of_data(tmp_path: Path) -> None:
    from promptforge.cli.setup import options_of

    rows = put(tmp_path, "a.csv", "text;label\na;1\n")
    beside = put(tmp_path, "train.jsonl", '{"text": "x"}')
    given = {"options": ("reader.delimiter=;",)}
    _, reader = options_of(dict(given), {}, rows)
    assert read_rows(rows, reader=reader) == [{"text": "a", "label": "1"}]
    assert read_rows(beside, reader=reader) == [{"text": "x"}]


def test_a_task_names_tables_that_are_no_paths(tmp_path: Path) -> None:
    toml = 'name = "my task, 2.0"\n[columns]\ninputs = ["text"]\n[labels]\na = ["a"]\nb = ["b"]\n[data]\n'
    tables = {"train": "hf:imdb:train", "dev": "s3://rows/dev.csv", "test": "test.csv"}
    toml += "\n".join(f'{split} = "{table}"' for split, table in tables.items())
    put(tmp_path, "task.toml", toml)
    put(tmp_path, "p.jinja", "{{ text }} {{ mask }}")
    assert Task.load(tmp_path).data == {**tables, "test": str(tmp_path / "test.csv")}
    put(tmp_path, "task.toml", toml.replace("test.csv", "file:///else%20where/test.csv"))
    assert Task.load(tmp_path).data == {**tables, "test": str(Path("/else where/test.csv"))}


def test_the_hub_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: str, **options: Any) -> Any:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(PromptForgeError, match=r"cannot be reached .*save_to_disk"):
        read_rows("hf:owner/name")


def rows_of(*labels: Any) -> list[dict[str, Any]]:
    return [{"text": f"t{i}", "label": label} for i, label in enumerate(labels)]


def test_labels_are_compared_as_text() -> None:
    rows = rows_of(1, "1 ", 1.0, True, "true", "b")
    found = examples(rows, None, "label", "here")
    assert [e.label for e in found] == ["1", "1", "1", "true", "true", "b"]
    assert found[1] == Example(rows[1], "1", 2)
    found = examples(rows_of(0, 1), ["bad", "good"], "label", "x", {"0": "bad", "1": "good"})
    assert [e.label for e in found] == ["bad", "good"]


def test_labels_that_differ_in_case_or_spaces_are_counted() -> None:
    rows = rows_of("Positive", "positive", " positive", "very  good", "very good", "b")
    with pytest.warns(UserWarning, match="differ only in upper and lower case") as caught:
        found = examples(rows, None, "label", "here.csv")
    assert [e.label for e in found][:3] == ["Positive", "positive", "positive"]
    said = [str(one.message) for one in caught]
    assert len(said) == 2 and all("here.csv: the column 'label'" in line for line in said)
    assert "'Positive' (1 rows), 'positive' (2 rows)" in said[0] and "'very  good'" in said[1]
    # A task that names its labels means them so.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        examples(rows_of("I", "i"), ["I", "i"], "label", "here.csv")


@pytest.mark.parametrize(
    ("labels", "task", "expected"),
    [
        (["a", "b", "c", "c"], ["a", "b"], r"label 'c'.*first in row 3, 2 rows"),
        (["a", "a"], ["a", "b"], r"no row with the label 'b'"),
        (["a", "a"], None, r"every row has the label 'a'"),
        (["a", None], None, r"row 2 has no label"),
        (["a", " "], None, r"row 2 has no label"),
        (["a", float("nan")], None, r"row 2 has no label"),
        (["a", ["b"]], None, r"row 2, column 'label'.*list"),
        ([], None, r"no rows"),
        ([f"l{i}" for i in range(50)], None, r"is this the label column"),
        ([i // 2 for i in range(2002)], None, r"is this the label column"),
    ],
)
def test_wrong_labels(labels: list[Any], task: list[str] | None, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        examples(rows_of(*labels), task, "label", "here")


def test_an_evaluation_set_may_lack_labels() -> None:
    assert len(examples(rows_of("a"), ["a", "b"], "label", "here", complete=False)) == 1


def test_label_column_and_values_are_checked() -> None:
    with pytest.raises(UserError, match=r"no label column 'lable'.*Did you mean 'label'"):
        examples(rows_of("a", "b"), None, "lable", "here")
    with pytest.raises(UserError, match=r"map '0' to 'bda'.*Did you mean 'bad'"):
        examples(rows_of("0", "1"), ["bad", "good"], "label", "here", {"0": "bda"})


def test_duplicates_are_kept_and_counted() -> None:
    rows = [*rows_of("a", "b"), {"text": "t0", "label": "a"}, {"text": "t1", "label": "a"}]
    report = Warned()
    assert len(examples(rows, None, "label", "here", report=report)) == 4
    same, clash = report.lines
    assert "1 rows repeat an earlier row and its label (row 3 repeats row 1)" in same
    assert "different label (row 4 and row 2)" in clash
    lists = [{"text": ["x"], "label": label} for label in ("a", "a", "b")]
    report = Warned()
    examples(lists, None, "label", "here", report=report)
    assert len(report.lines) == 2
    numbered = [{"id": i, "text": "x", "label": label} for i, label in enumerate("aab")]
    report = Warned()
    examples(numbered, None, "label", "here", report=report, text_columns=["text"])
    assert len(report.lines) == 2


def test_duplicates_with_other_numbers_of_a_scale_do_not_repeat_their_label(tmp_path: Path) -> None:
    plain = Task.inline([Template("{{ text }} {{ mask }}")], labels={"low": "bad", "high": "good"})
    table = put(tmp_path, "rows.csv", "text,label\nsame,1\nsame,2\nsame,2\nother,4\nmore,5\n")
    report = Warned()
    found = replace(plain, scale=Scale(1, 5)).examples(table, report)
    assert [e.label for e in found[:3]] == ["low"] * 3
    (line,) = report.lines
    assert "2 rows repeat an earlier row with another value in the column 'label'" in line
    assert "(row 2 and row 1)" in line
    # Values of a task that stand for one label are no different labels.
    report = Warned()
    rows = [*rows_of("1", "5"), {"text": "t0", "label": "2"}, {"text": "t0", "label": 1}]
    examples(rows, None, "label", "here", {"1": "bad", "2": "bad", "5": "good"}, report=report)
    same, other = report.lines
    assert "row 4 repeats row 1" in same and "row 3 and row 1" in other


def test_a_plugin_can_replace_the_examples() -> None:
    from promptforge.hookspecs import hookimpl

    class Halver:
        @hookimpl
        def promptforge_examples_loaded(self, examples: list[Any], origin: str) -> list[Any]:
            assert origin == "here"
            return examples[:1]

    plugin = Halver()
    manager().pm.register(plugin)
    try:
        assert len(examples(rows_of("a", "b"), None, "label", "here")) == 1
    finally:
        manager().pm.unregister(plugin)


def test_shots_are_balanced_disjoint_and_repeatable() -> None:
    pool = [Example({"text": i}, "ab"[i % 2], i + 1) for i in range(40)]
    train, dev = sample_shots(pool, 4, 13, ["b", "a"])
    assert [e.label for e in train] == [e.label for e in dev] == ["b"] * 4 + ["a"] * 4
    assert not {e.number for e in train} & {e.number for e in dev}
    assert sample_shots(pool, 4, 13, ["b", "a"]) == (train, dev)
    assert sample_shots(pool, 4, 21, ["b", "a"]) != (train, dev)
    assert sample_shots(pool, 4, 13, ["b", "a"], dev=False) == (train, [])
    assert sample_shots(pool, 3, 13, ["b"])[0] == train[:3]
    with pytest.raises(UserError, match=r"'a' has 20 rows.*largest possible number of shots is 10"):
        sample_shots(pool, 11, 13, ["a", "b"])
    with pytest.raises(UserError, match="'c' has 0 rows"):
        sample_shots(pool, 1, 13, ["a", "c"])
    with pytest.raises(UserError, match="at least 1"):
        sample_shots(pool, 0, 13, ["a"])


def test_a_text_is_not_drawn_to_train_and_to_dev() -> None:
    # Each text stands in two rows, of one label or of both; `id` tells them apart.
    pool = [Example({"id": i, "text": i % 18}, "aab"[i % 3], i + 1) for i in range(36)]
    pool += [Example({"id": i, "text": i % 18}, "b", i + 1) for i in range(36, 54)]
    for seed in range(20):
        train, dev = sample_shots(pool, 4, seed, ["a", "b"], text_columns=["text"])
        assert not {e.row["text"] for e in train} & {e.row["text"] for e in dev}
        assert [e.label for e in train] == [e.label for e in dev] == ["a"] * 4 + ["b"] * 4
        assert sample_shots(pool, 4, seed, ["a", "b"], dev=False)[0] == train
    # Of whole rows where no columns are named.
    twice = [Example({"text": e.row["text"]}, e.label, e.number) for e in pool]
    train, dev = sample_shots(twice, 4, 0, ["a"])
    assert len(dev) == 4 and not any(e.row == d.row for e in train for d in dev)
    few = [Example({"text": i // 2}, "a", i + 1) for i in range(8)]
    with pytest.raises(
        UserError, match=r"'a' has \d rows for development whose text is in no train"
    ):
        sample_shots(few, 4, 0, ["a"])


def test_shots_without_duplicates_are_the_ones_they_always_were() -> None:
    pool = [Example({"text": i}, "ab"[i % 2], i + 1) for i in range(40)]
    train, dev = sample_shots(pool, 3, 13, ["a", "b"])
    assert [e.number for e in train] == [17, 7, 21, 10, 40, 34]
    assert [e.number for e in dev] == [29, 9, 3, 28, 22, 36]


# --- prompts of tables -----------------------------------------------------------------------


def test_masks_that_are_too_many_are_not_blamed_on_texts() -> None:
    from promptforge.encode import PromptEncoder
    from tests import tiny

    backbone = tiny.backbone("bert")
    prompt = Template("{{ text }} " + "{{ mask }}" * 8, name="t").render({"text": "a film"})
    with pytest.raises(UserError, match=r"the masks.* are 2 tokens more than a prompt may have"):
        PromptEncoder(backbone.text, backbone.frame, 8).encode([prompt])
