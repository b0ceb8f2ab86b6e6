"""Bad input: one clear message, the right exit code, nothing half-written."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from promptforge.verbalizer import LabelWords

Command = Callable[..., Any]
Folder = Callable[[str], Path]
IT_WAS = "{{ text }} It was {{ mask }}"
NAMED = (
    'name = "{}"\n[columns]\ninputs = ["text"]\n[labels]\na = ["b"]\nc = ["d"]\n[patterns."{}"]\n'
)
GOOD = "text,label\ngreat fun,pos\ndull,neg\nfine,pos\nbad,neg\n"


@pytest.fixture
def fails(command: Command, tmp_path: Path) -> Callable[..., str]:
    """Runs a command that must fail and leave no file behind; its message."""

    def run(*args: object, code: int = 2) -> str:
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
        ran = command(*args)
        assert ran.code == code, ran.err
        after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
        folders = {p for p in after if p.is_dir()}
        assert after.keys() - folders == before.keys() - folders, "a file was left"
        assert all(after[p] == before[p] for p in after.keys() - folders)
        assert ran.out == ""
        assert sum(line.startswith("Error: ") for line in ran.err.splitlines()) == 1
        assert "Traceback" not in ran.err
        assert "mistake in PromptForge" not in ran.err
        message: str = ran.err[ran.err.index("Error: ") :]
        assert len(message) < 1000
        return message

    return run


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model may be loaded: the mistake is found before."""

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("promptforge.backbone.load_model", load)


def put(name: str, content: str | bytes) -> Path:
    path = Path(name)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def task_folder(words: str = "", template: str = IT_WAS) -> Path:
    folder = Path("task")
    folder.mkdir()
    (folder / "task.toml").write_text(
        'name = "t"\n[columns]\ninputs = ["text"]\n[labels]\npos = ["great"]\nneg = ["awful"]\n'
        + words,
        encoding="utf-8",
    )
    (folder / "p.jinja").write_text(template, encoding="utf-8")
    return folder


DATA = {
    "empty": ("", ["d.csv is empty"]),
    "only a header": ("text,label\n", ["d.csv", "no rows"]),
    "no such column": (GOOD.replace("text", "txt"), ["'text'", "Did you mean 'txt'", "row 1"]),
    "no label column": (GOOD.replace("label", "lable"), ["'label'", "Did you mean 'lable'"]),
    "unknown label": (
        GOOD + "so,meh\n",
        ["'meh'", "column 'label'", "row 5", "'pos', 'neg'"],
    ),
    "a label without rows": (
        "text,label\na,pos\nb,pos\n",
        ["d.csv", "no row with the label 'neg'"],
    ),
    "missing text": (GOOD + ",pos\n", ["row 5", "no value", "'text'"]),
    "missing label": (GOOD + "so,\n", ["row 5", "'label'"]),
    "wrong delimiter": (GOOD.replace(",", ";"), ["d.csv", "-o reader.delimiter=';'"]),
    "not UTF-8": (b"text,label\ncaf\xe9,pos\n", ["d.csv, line 2", "not UTF-8", "iconv"]),
    "duplicate columns": (GOOD.replace("label", "text"), ["d.csv", "called 'text'"]),
    "uneven rows": (GOOD + "a,b,c\n", ["row 5 (line 6)", "3 cells"]),
    "a quote not closed": (GOOD + '"a,pos\n', ["row 5", "never closed"]),
}


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("command_name", ["search-verbalizer", "evaluate"])
def test_data(fails: Callable[..., str], name: str, command_name: str) -> None:
    content, expected = DATA[name]
    table = put("d.csv", content)
    if name == "a label without rows" and command_name == "evaluate":
        return  # Rows to measure on may lack a label.
    message = fails(command_name, task_folder(), "--data", table)
    assert all(text in message for text in expected), message


@pytest.mark.usefixtures("no_model")
def test_one_class_only(fails: Callable[..., str]) -> None:
    put("d.csv", "text,label\na,pos\nb,pos\n")
    message = fails("search-verbalizer", "--data", "d.csv", "--template", IT_WAS)
    assert "every row has the label 'pos'" in message


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_predict_checks_the_first_row_before_the_model(
    fails: Callable[..., str], ending: str
) -> None:
    folder = task_folder()
    bad = put(f"d.{ending}", "txt\na\n" if ending == "csv" else '{"txt": "a"}\n')
    for output in ("-", "out.csv", "out.parquet"):
        assert f"d.{ending}" in fails("predict", folder, "--data", bad, "-O", output)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--shots", 3), "the label 'neg' has 2 rows, but 3 for training and 3"),
        (("--shots", 2), "The largest possible number of shots is 1"),
        (("--search", "pteal"), "Did you mean 'petal'"),
        (("-o", "search.scores=ce"), "Did you mean 'score'"),
        (("-o", "score=cosine"), "'score'"),
        (("--text-column", "txt"), "no column 'txt'"),
        (("--label-column", "lable"), "no column 'lable'"),
        (("--max-words", 50), "--unlabeled FILE"),
        (("--max-words", 50, "--unlabeled", "u.csv"), "No such file: u.csv"),
        (("--pattern", "inlin"), "Did you mean 'inline'"),
        (("--dev", "no.csv"), "No such file: no.csv"),
        (("--output", "."), "is a folder"),
        (("--output", "no/where/v.json"), "no folder"),
        (("--words-per-label", 0), "--words-per-label"),
        (("--search", "lm-bff", "--words-per-label", 2), "words_per_label"),
        (("--template", "no.jinja"), "--template 'no.jinja' is neither a file"),
        (("--seed", "x"), "--seed"),
    ],
)
def test_search_options(fails: Callable[..., str], args: tuple[object, ...], expected: str) -> None:
    put("d.csv", GOOD)
    message = fails("search-verbalizer", "--data", "d.csv", "--template", IT_WAS, *args)
    assert expected.lower() in message.lower()


TEMPLATES = {
    "no mask": ("{{ text }} It was", "has no mask"),
    "undefined": ("{{ txt }} {{ mask }}", "'txt' is neither a column"),
    "syntax": ("{{ text }\n{{ mask }}", "line 1"),
    "joined": ("{{ text ~ mask }}", 'Write {{ "a" }}{{ mask }}'),
    "unknown filter": ("{{ text | shout }} {{ mask }}", "shout"),
    "endless": ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"
                "{{ text }} {{ mask }}", "does not end"),
    "endless macro": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}{{ text }} {{ mask }}", "end"),
    "huge": ("{% for a in range(99999) %}{{ text * 9999 }}{% endfor %}{{ mask }}", "characters"),
    "huge range": ("{{ text }}{{ range(10 ** 9) }} {{ mask }}", "Range too big"),
    "sandbox": ("{{ text.__class__.__mro__ }} {{ mask }}", "not allowed"),
    "globals": ("{{ soft.__globals__ }} {{ text }} {{ mask }}", "not allowed"),
    "include": ("{% include '/etc/passwd' %}{{ text }} {{ mask }}", "line 1"),
}  # fmt: skip


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", TEMPLATES)
def test_templates(fails: Callable[..., str], name: str) -> None:
    template, expected = TEMPLATES[name]
    table = put("d.csv", GOOD)
    message = fails("evaluate", task_folder(template=template), "--data", table)
    assert "p.jinja" in message
    assert expected in message


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("[columns", "not valid TOML"),
        ('name = "t"', "columns"),
        ('name = "t"\n[columns]\ninputs = ["a"]\n[labels]\na = ["b"]', "labels"),
        ('name = "t"\n[columns]\ninputs = "a"\n[labels]\na = ["b"]\nc = ["d"]', "columns.inputs"),
        ('name = "t"\nsize = 3', "size: there is no such key here (a key belongs to"),
        (
            NAMED.format("t", "p").replace("inputs", "input"),
            "columns.input: there is no such key here (did you mean 'inputs'?)",
        ),
        (
            NAMED.format("t", "p").replace("[labels]", "[label]"),
            "label: there is no such key here (did you mean 'labels'?)",
        ),
        (
            NAMED.format("t", "p") + "word = {}",
            "patterns.p.word: there is no such key here (did you mean 'words'?)",
        ),
        (NAMED.format("t", "p").replace('["b"]', '"b"'), 'labels.a: write a list, such as ["..."]'),
        (
            NAMED.format("t", "p").replace('["text"]', '["text", "label"]'),
            "columns.inputs: 'label' is the column of the labels, which no prompt may show",
        ),
        (NAMED.format("../../up", "p"), "name: '../../up' is also the name of a folder"),
        (NAMED.format("t", "a/b"), "patterns: 'a/b' is also the name of a folder"),
        (NAMED.format("t", "all patterns"), "patterns: 'all patterns' is what results call"),
    ],
)
def test_task_files(fails: Callable[..., str], toml: str, expected: str) -> None:
    folder = task_folder()
    (folder / "task.toml").write_text(toml, encoding="utf-8")
    message = fails("evaluate", folder)
    assert "task.toml" in message
    assert expected in message


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("predict", "--label-column", "label"), "--label-column label: predict reads no labels"),
        (("predict", "--format", "tsv", "-O", "out.csv"), "--format tsv is for standard output, and the ending of out.csv"),
        (("evaluate", "--split", "dev"), "--split dev is one of the task's own tables, and --data stands in"),
    ],
)  # fmt: skip
def test_options_that_would_do_nothing(
    fails: Callable[..., str], args: tuple[object, ...], expected: str
) -> None:
    assert expected in fails(args[0], task_folder(), *args[1:], "--data", put("d.csv", GOOD))


def test_a_label_column_tells_texts_from_labels(command: Command, tiny_model: Folder) -> None:
    """Without a TASK a template may read a column called "label" only where another has the labels."""
    put("d.csv", "label,gold\ngreat fun,pos\ndull,neg\n")
    LabelWords(["pos", "neg"], {"inline": {"pos": ["good"], "neg": ["bad"]}}).save("v.json")
    base = ("predict", "--data", "d.csv", "--template", "{{ label }} It was {{ mask }}",
            "--verbalizer", "v.json", "--model", tiny_model("bert"))  # fmt: skip
    assert "Name the right one with --label-column" in command(*base).err
    ran = command(*base, "--label-column", "gold")
    assert ran.code == 0, ran.err


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("data", "split", "expected"),
    [
        ('tran = "d.csv"', "train", "has no 'train' data. Is 'tran' a mistyped 'train'?"),
        ('train = "d.csv"\ntets = "d.csv"', "test", "has no 'test' data. Is 'tets' a mistyped 'test'?"),
        ('hard = "d.csv"\ntest2 = "d.csv"', "test", "has no 'test' data. Did you mean 'test2'?"),
        ('hard = "d.csv"', "hrad", "has no 'hrad' data. Did you mean 'hard'?"),
    ],
)  # fmt: skip
def test_a_split_that_is_not_there(
    fails: Callable[..., str], data: str, split: str, expected: str
) -> None:
    folder = task_folder(f"[data]\n{data}\n")
    put("task/d.csv", GOOD)
    assert expected in fails("evaluate", folder, "--split", split)


def test_a_mistyped_split_is_warned_of(command: Command, tiny_model: Folder) -> None:
    def said(data: str) -> list[str]:
        (folder / "task.toml").write_text(toml + f"[data]\n{data}", encoding="utf-8")
        ran = command("evaluate", folder, "--split", "train", "--model", tiny_model("bert"))
        assert ran.code == 0, ran.err
        return [line for line in ran.err.splitlines() if "no command looks" in line]

    folder = task_folder()
    put("task/d.csv", GOOD)
    toml = (folder / "task.toml").read_text(encoding="utf-8").replace("great", "good")
    toml = toml.replace("awful", "bad")
    (line,) = said('train = "d.csv"\nUnlabelled = "d.csv"\n')
    assert "task.toml: data.Unlabelled: no command looks for a table of that name." in line
    assert line.endswith("Did you mean 'unlabeled'?")
    # Splits of one's own are nobody's mistake.
    assert not said('train = "d.csv"\ntest2 = "d.csv"\ndev-hard = "d.csv"\nhard = "d.csv"\n')
    assert not said('train = "d.csv"\ntest = "d.csv"\ntests = "d.csv"\n')
    assert not said('train = "d.csv"\nlabeled = "d.csv"\ndevtest = "d.csv"\nrest = "d.csv"\n')


def test_label_words_that_are_missing(fails: Callable[..., str], tiny_model: Folder) -> None:
    folder = task_folder()
    file = folder / "task.toml"
    file.write_text(file.read_text(encoding="utf-8").replace('["great"]', "[]"), encoding="utf-8")
    message = fails("predict", folder, "--data", put("d.csv", GOOD), "--model", tiny_model("bert"))
    assert f"{file}: The label 'pos' has no words." in message


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no verbalizer file"),
        ("{", "not a verbalizer file"),
        ("[]", "not a verbalizer file"),
        ('{"format": "other"}', "not a verbalizer file"),
        ('{"format": "promptforge-verbalizer", "version": 1, "labels": ["a", "b"],'
         ' "patterns": {"*": {"a": ["x"], "b": ["y"]}}}', "for the labels 'a', 'b'"),
        ('{"format": "promptforge-verbalizer", "version": 1, "labels": ["pos", "neg"],'
         ' "patterns": {"q": {"pos": ["x"], "neg": ["y"]}}}', "no words for the pattern 'p'"),
    ],
)  # fmt: skip
def test_verbalizer_files(fails: Callable[..., str], content: str | None, expected: str) -> None:
    if content is not None:
        put("v.json", content)
    for name in ("evaluate", "predict"):
        folder = Path("task") if Path("task").exists() else task_folder()
        message = fails(name, folder, "--data", put("d.csv", GOOD), "--verbalizer", "v.json")
        assert expected in message
        assert "v.json" in message or "pattern" in message


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("out.xlsx", "told from the suffix"),
        ("no/out.csv", "no folder"),
        ("task", "is a folder"),
        ("d.csv", "is the input"),
    ],
)
def test_predict_outputs(fails: Callable[..., str], output: str, expected: str) -> None:
    put("d.csv", GOOD)
    assert expected in fails("predict", task_folder(), "--data", "d.csv", "-O", output)


@pytest.mark.usefixtures("no_model")
def test_a_prompt_that_shows_the_label(fails: Callable[..., str]) -> None:
    put("d.csv", GOOD)
    told = "'label' is the column of the labels, which no prompt may show"
    shows = ("--template", "{{ text }} {{ label }} {{ mask }}")
    assert told in fails("evaluate", "--data", "d.csv", *shows)
    told = told.replace("label'", "text'")
    assert told in fails("evaluate", task_folder(), "--data", "d.csv", "--label-column", "text")


@pytest.mark.usefixtures("no_model")
def test_a_value_for_no_column(fails: Callable[..., str]) -> None:
    put("d.csv", GOOD)
    message = fails(
        "render", "sentiment", "--set", "text=Warm.", "--set", "txt=Hot.", "--no-tokens"
    )
    assert "--set txt=...: there is no such column. Did you mean 'text'?" in message
    message = fails("render", "sentiment", "--set", "text=Warm.", "--row", "7", "--no-tokens")
    assert "--row 7: there is no table. Give --data FILE, or no --row." in message
    message = fails("render", task_folder(), "--data", "d.csv", "--set", "txt=Warm.")
    assert "--set txt=...: there is no such column. Did you mean 'text'?" in message


@pytest.mark.usefixtures("no_model")
def test_a_column_that_predict_writes(fails: Callable[..., str]) -> None:
    put("d.csv", GOOD.replace("label", "prediction"))
    message = fails("predict", task_folder(), "--data", "d.csv")
    assert "already has a column 'prediction'" in message


# --- mistakes that only the model shows ----------------------------------------------------------


def test_the_mask_is_not_last(fails: Callable[..., str], tiny_model: Folder) -> None:
    folder = task_folder(template="It was {{ mask }}: {{ text }}")
    table = put("d.csv", GOOD)
    message = fails("evaluate", folder, "--data", table, "--model", tiny_model("gpt2"))
    assert "p.jinja" in message
    assert "mask must come last" in message


def test_a_word_the_tokenizer_does_not_know(fails: Callable[..., str], tiny_model: Folder) -> None:
    folder = task_folder('[patterns.p.words]\npos = ["☃"]\nneg = ["bad"]\n')
    table = put("d.csv", GOOD)
    args = (folder, "--data", table, "--model", tiny_model("bert"))
    for name, output in (("evaluate", ()), ("predict", ("-O", "out.csv"))):
        message = fails(name, *args, *output)
        assert "'☃' of 'pos' is unknown to the tokenizer" in message


def test_a_prompt_that_cannot_be_cut(fails: Callable[..., str], tiny_model: Folder) -> None:
    folder = task_folder(template="{{ text | keep }} It was {{ mask }}")
    table = put("d.csv", GOOD + "good " * 300 + ",pos\n")
    message = fails(
        "predict", folder, "--data", table, "--model", tiny_model("bert"), "-O", "o.csv"
    )
    assert "remove 'keep'" in message


def test_not_a_language_model(fails: Callable[..., str], tmp_path: Path) -> None:
    import transformers

    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    config.save_pretrained("vit")
    args = ("evaluate", task_folder(), "--data", put("d.csv", GOOD), "--model")
    assert "three families" in fails(*args, "./vit")
    assert "no such folder" in fails(*args, "./nothing")
    Path("hollow").mkdir()
    assert "hollow" in fails(*args, "./hollow", code=1)


def test_a_damaged_model(fails: Callable[..., str], tiny_model: Folder) -> None:
    import shutil

    shutil.copytree(tiny_model("bert"), "half")
    weights = Path("half/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    args = ("evaluate", task_folder(), "--data", put("d.csv", GOOD), "--model", "./half")
    assert "missing or cut off" in fails(*args, code=1)
    weights.unlink()
    assert "half" in fails(*args, code=1)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (("--dtype", "int8"), "dtype 'int8'"),
        (("--device", "cuda:9"), "not available"),
        (("--max-length", 1000), "at most 64 tokens"),
        (("--ask", "mask"), "encoder-decoder"),
    ],
)
def test_model_options(
    fails: Callable[..., str], tiny_model: Folder, option: tuple[object, ...], expected: str
) -> None:
    table = put("d.csv", GOOD)
    args = ("--data", table, "--model", tiny_model("bert"), *option)
    assert expected in fails("evaluate", task_folder(), *args)


# --- the disk and Ctrl-C -------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["out.csv", "out.parquet"])
def test_no_disk_space_for_predictions(
    fails: Callable[..., str], tiny_model: Folder, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder, table = task_folder(), put("d.csv", GOOD)
    model = tiny_model("bert")
    monkeypatch.setattr("promptforge.output.os.fsync", full)
    message = fails("predict", folder, "--data", table, "--model", model, "-O", output, code=1)
    assert "No space left" in message
    assert output in message


def test_no_disk_space_for_words(
    fails: Callable[..., str], tiny_model: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("d.csv", GOOD)
    real = Path.write_text

    def full(path: Path, *args: Any, **kwargs: Any) -> int:
        if "words.json" in path.name:
            real(path, "half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, *args, **kwargs)

    model = tiny_model("bert")
    monkeypatch.setattr(Path, "write_text", full)
    message = fails("search-verbalizer", "--data", "d.csv", "--template", IT_WAS, "--model", model,
                    "--output", "words.json", code=1)  # fmt: skip
    assert "words.json could not be written" in message


def test_ctrl_c(command: Command, tiny_model: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    folder, table = task_folder(), put("d.csv", GOOD)
    monkeypatch.setattr("promptforge.model.PromptModel.predict_proba", interrupt)
    ran = command("predict", folder, "--data", table, "--model", tiny_model("bert"), "-O", "o.csv")
    assert ran.code == 130
    assert ran.err.endswith("Interrupted.\n")
    assert not list(Path().glob("o.csv*"))


@pytest.mark.usefixtures("no_model")
def test_a_name_that_is_too_long(fails: Callable[..., str]) -> None:
    long = "a" * 300
    for args in (
        ("evaluate", long),
        ("evaluate", "sentiment", "--template", long),
        ("predict", "sentiment", "--data", long),
    ):
        message = fails(*args)
        assert "too long" in message or "No file can be read" in message, message
        assert "mistake in PromptForge" not in message
