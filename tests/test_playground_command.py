"""`promptforge playground`: what it saves, what it opens, and how it ends."""

from __future__ import annotations

import csv
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import tiny
from promptforge_playground.playground import Draft, Playground, Shown
from promptforge_playground.saving import Conflict, Shelf

from promptforge import Task, Template, UserError
from promptforge.task import Pattern

Command = Callable[..., Any]
ROWS = [Shown({"text": "A joy from start to finish."}, "positive")]


def playground(architecture: str, task: Task, **options: Any) -> Playground:
    return Playground(task, tiny.backbone(architecture), ROWS, **options)


# --- what is saved --------------------------------------------------------------------------


def test_a_pattern_is_saved_and_a_change_by_others_is_not_lost(reviews: Path) -> None:
    made = playground("bert", Task.load(reviews))
    start = {p["pattern"]: p for p in made.state()["patterns"]}["it-was"]
    text = "{{ text }}\nIt was {{ mask }}."
    draft = Draft(pattern="it-was", template=text + "\n\n", stamp=start["stamp"])
    saved = made.save(draft)
    file = reviews / "it-was.jinja"
    assert file.read_text(encoding="utf-8") == text + "\n" and saved["saved"] == str(file)
    assert Task.load(reviews).patterns["it-was"].template.source == text == saved["template"]
    with pytest.raises(Conflict, match=r"it-was\.jinja has changed on the disk"):
        made.save(draft)  # from what is there no more
    again = draft.model_copy(update={"stamp": saved["stamp"], "template": "{{ text }} {{ mask }}"})
    file.write_text("Mine: {{ text }} {{ mask }}\n", encoding="utf-8")
    with pytest.raises(Conflict):
        made.save(again)
    assert file.read_text(encoding="utf-8") == "Mine: {{ text }} {{ mask }}\n"
    fresh = made.pattern("it-was")
    assert fresh["template"] == "Mine: {{ text }} {{ mask }}"
    made.save(again.model_copy(update={"stamp": fresh["stamp"]}))
    assert file.read_text(encoding="utf-8") == "{{ text }} {{ mask }}\n"
    assert not list(reviews.glob("*.partial"))


@pytest.mark.parametrize("pattern", ["review", "tone"])
def test_words_are_saved_where_they_stood(reviews: Path, pattern: str) -> None:
    toml = reviews / "task.toml"
    toml.write_text("# a comment of mine\n" + toml.read_text(encoding="utf-8"), encoding="utf-8")
    before, made = Task.load(reviews), playground("bert", Task.load(reviews))
    start = made.pattern(pattern)
    words = {"negative": ["dull", "not good"], "positive": ["a, b"]}
    made.save(Draft(pattern=pattern, template=start["template"], words=words, stamp=start["stamp"]))
    after = Task.load(reviews)
    assert after.words_for(pattern) == words
    assert "# a comment of mine" in toml.read_text(encoding="utf-8")
    others = [p for p in before.patterns if (before.patterns[p].words is None) == (pattern == "review")]  # fmt: skip
    assert others and all(after.words_for(p) == before.words_for(p) for p in others)
    assert {n: p.template.source for n, p in after.patterns.items()} == {
        n: p.template.source for n, p in before.patterns.items()
    }


def test_what_cannot_be_saved_says_why(reviews: Path, tmp_path: Path) -> None:
    made = playground("bert", Task.load(reviews))
    before = {p.name: p.read_bytes() for p in reviews.iterdir()}
    stamp = made.pattern("tone")["stamp"]
    for source, why in (("{{ text }}", "no mask"), ("{{ text }} {{ mask", "line 1"), ("{{ texd }}{{ mask }}", "'text'")):  # fmt: skip
        with pytest.raises(UserError, match=why):
            made.save(Draft(pattern="tone", template=source, stamp=stamp))
    with pytest.raises(UserError, match="no words"):
        made.save(Draft(pattern="tone", template="{{ text }} {{ mask }}", stamp=stamp, words={"negative": [], "positive": ["x"]}))  # fmt: skip
    assert {p.name: p.read_bytes() for p in reviews.iterdir()} == before

    shipped = Task.load("sentiment")
    name = next(iter(shipped.patterns))
    held = playground("bert", shipped)
    with pytest.raises(UserError, match="promptforge templates copy sentiment"):
        held.save(Draft(pattern=name, template="{{ text }} {{ mask }}", stamp=None))
    assert held.state()["refusal"] and held.state()["folder"] is None
    with pytest.raises(UserError, match="--save-to"):
        playground("bert", Task.inline([Template("{{ text }} {{ mask }}", name="p")], labels=["a", "b"])).save(
            Draft(pattern="p", template="{{ text }} {{ mask }}")
        )  # fmt: skip
    toml = reviews / "task.toml"
    toml.write_text("nonsense", encoding="utf-8")
    with pytest.raises(UserError, match=r"task\.toml is not valid TOML"):
        made.save(Draft(pattern="tone", template="{{ text }} {{ mask }}", stamp=stamp))


def test_a_new_task_folder_is_made_by_the_first_save(tmp_path: Path, reviews: Path) -> None:
    task = Task.inline([Template("{{ text }} {{ mask }}", name="p")], labels={"a": ["x"], "b": ["y"]})  # fmt: skip
    made = playground("bert", task, shelf=Shelf(task, tmp_path / "mine"))
    assert not (tmp_path / "mine").exists() and made.pattern("p")["stamp"] is None
    saved = made.save(Draft(pattern="p", template="It: {{ text }} {{ mask }}"))
    assert Task.load(tmp_path / "mine").patterns["p"].template.source == "It: {{ text }} {{ mask }}"
    made.save(Draft(pattern="p", template="{{ mask }}", stamp=saved["stamp"], words={"a": ["z"], "b": ["y"]}))  # fmt: skip
    assert Task.load(tmp_path / "mine").words_for("p") == {"a": ["z"], "b": ["y"]}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("mine")] == ["mine"]
    with pytest.raises(UserError, match="exists already"):
        Shelf(task, tmp_path / "mine")
    with pytest.raises(UserError, match="is a task folder already"):
        Shelf(Task.load(reviews), tmp_path / "other")


def test_a_save_tells_what_it_changed_of_the_other_patterns(tmp_path: Path) -> None:
    """The first save writes all patterns, and saving words those of all that share them."""
    templates = [
        Template(f"{{{{ text }}}} {name} {{{{ mask }}}}", name=name) for name in ("p", "q")
    ]
    task = Task.inline(templates, labels={"a": ["x"], "b": ["y"]})
    made = playground("bert", task, shelf=Shelf(task, tmp_path / "mine"))
    first = made.save(Draft(pattern="p", template="{{ text }} P {{ mask }}", words=task.labels))
    assert all(p.words is None for p in Task.load(tmp_path / "mine").patterns.values())
    (other,) = first["others"]
    assert (other["pattern"], other["was"], other["template"]) == ("q", None, "{{ text }} q {{ mask }}")  # fmt: skip
    second = made.save(Draft(pattern="q", template="Q {{ text }} {{ mask }}", stamp=other["stamp"]))
    assert [(o["pattern"], o["was"], o["stamp"]) for o in second["others"]] == [("p", first["stamp"], first["stamp"])]  # fmt: skip
    assert [p.template.source for p in Task.load(tmp_path / "mine").patterns.values()] == [
        "{{ text }} P {{ mask }}", "Q {{ text }} {{ mask }}",
    ]  # fmt: skip

    again = Task.load(tmp_path / "mine")
    made = playground("bert", again)
    start = {p["pattern"]: p for p in made.state()["patterns"]}
    words = {"a": ["v"], "b": ["w"]}
    saved = made.save(Draft(pattern="p", template="{{ mask }}", words=words, stamp=start["p"]["stamp"]))  # fmt: skip
    (other,) = saved["others"]
    assert (other["was"], other["words"]) == (start["q"]["stamp"], words)
    made.save(Draft(pattern="q", template="{{ mask }} !", words=words, stamp=other["stamp"]))
    # What somebody else changed of the other one before the save is not what the page has seen.
    fresh, seen = made.pattern("p"), made.pattern("q")["stamp"]
    (tmp_path / "mine" / "q.jinja").write_text("Theirs {{ mask }}\n", encoding="utf-8")
    (other,) = made.save(Draft(pattern="p", template="{{ mask }}.", stamp=fresh["stamp"]))["others"]
    assert other["was"] != seen


def test_a_save_keeps_permissions_line_ends_and_the_byte_order_mark(reviews: Path) -> None:
    toml, file = reviews / "task.toml", reviews / "it-was.jinja"
    text = "# of mine\n" + toml.read_text(encoding="utf-8")
    toml.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    file.write_bytes(b"{{ text }}\r\nIt was {{ mask }}\r\n")
    toml.chmod(0o600)
    file.chmod(0o664)
    made = playground("bert", Task.load(reviews))
    words = {"negative": ["dull"], "positive": ["great"]}
    made.save(Draft(pattern="it-was", template="{{ text }}\nSo {{ mask }}", words=words, stamp=made.pattern("it-was")["stamp"]))  # fmt: skip
    assert Task.load(reviews).words_for("it-was") == words
    assert file.read_bytes() == b"{{ text }}\r\nSo {{ mask }}\r\n"
    before, after = text.splitlines(), toml.read_bytes().decode("utf-8-sig").split("\r\n")
    assert toml.read_bytes().startswith(b"\xef\xbb\xbf# of mine\r\n")
    changed = [line for line in before if line not in after]
    assert len(after) == len(before) + 1 and "\n" not in "".join(after)
    assert changed and all(line.startswith(("negative", "positive")) for line in changed)
    assert [oct(path.stat().st_mode & 0o777) for path in (toml, file)] == ["0o600", "0o664"]


def test_a_pattern_in_a_folder_below_is_saved(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "sub").mkdir(parents=True)
    (folder / "task.toml").write_text(
        'name = "mine"\n[columns]\ninputs = ["text"]\n[labels]\na = ["x"]\nb = ["y"]\n'
        '[patterns.p]\nfile = "sub/p.jinja"\n[patterns.q]\n', encoding="utf-8",
    )  # fmt: skip
    for name in ("sub/p", "q"):
        (folder / f"{name}.jinja").write_text("{{ text }} {{ mask }}\n", encoding="utf-8")
    made = playground("bert", Task.load(folder))
    assert made.state()["refusal"] == ""
    made.save(Draft(pattern="p", template="So {{ text }} {{ mask }}", stamp=made.pattern("p")["stamp"]))  # fmt: skip
    assert (folder / "sub" / "p.jinja").read_text(encoding="utf-8") == "So {{ text }} {{ mask }}\n"
    chosen = playground("bert", Task.load(folder).choose(["p"]))
    assert chosen.state()["refusal"] == ""
    strange = replace(Task.load(folder), patterns={"inline": Pattern("inline", Template("{{ text }} {{ mask }}"))})  # fmt: skip
    assert "--template" in playground("bert", strange).state()["refusal"]


# --- the command ----------------------------------------------------------------------------


def test_the_command_serves_until_it_is_interrupted(
    tiny_model: Callable[[str], Path], reviews: Path
) -> None:
    asked = [sys.executable, "-m", "promptforge", "-q", "playground", str(reviews), "--model", str(tiny_model("bert")),
             "--rows", "3", "--pattern", "tone", "--no-browser", "--json"]  # fmt: skip
    with subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}) as process:  # fmt: skip
        assert process.stdout and process.stderr
        url = json.loads(process.stdout.readline())["url"]
        at = urlsplit(url)
        connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=20)
        connection.request("GET", at.path + "state")
        state = json.loads(connection.getresponse().read())
        process.send_signal(signal.SIGINT)
        try:
            code = process.wait(20)
        finally:
            process.kill()  # nothing where it has ended
        assert (code, process.stderr.read().strip()) == (130, "Interrupted.")
    assert [p["pattern"] for p in state["patterns"]] == ["tone"] and len(state["rows"]) == 3
    assert state["rows"][0]["label"] in ("negative", "positive") and state["inputs"] == ["text"]
    dev = (reviews / "dev.csv").read_text(encoding="utf-8")
    assert all(r["values"]["text"].split(",")[0] in dev for r in state["rows"])
    assert state["folder"] == str(reviews)


def test_what_the_command_refuses(
    command: Command, tiny_model: Callable[[str], Path], tmp_path: Path, reviews: Path
) -> None:
    model = ("--model", tiny_model("bert"), "--no-browser")
    for arguments, why in {
        (): "Give a TASK",
        ("nothing-like-it",): "There is no task",
        ("--data", "none.csv"): "none.csv",
        (reviews, "--pattern", "x"): "no pattern 'x'",
        (reviews, "--save-to", tmp_path / "x"): "is a task folder already",
        (reviews, "--template", "{{ texd }} {{ mask }}"): "texd",
        (reviews, "--demonstrations", "none-such"): "none-such",
    }.items():
        ran = command("playground", *arguments, *model)
        assert ran.code == 2 and why in ran.err and "Traceback" not in ran.err, (arguments, ran.err)


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(command: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = command("playground", "sentiment", "--port", port, "--model", "none-such")
        assert ran.code == 2 and f"--port {port} is taken" in ran.err


def test_a_table_alone_is_enough(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Columns and labels come from the table, and there is a template to begin with."""
    from promptforge_playground.opening import open_playground

    from promptforge.progress import Reporter

    def opened(**params: Any) -> Playground:
        base = dict.fromkeys(("task", "label_column", "reader", "demonstrations"))
        given = {**base, "text_column": (), "template": (), "pattern": (), "options": (), "model": str(tiny_model("bert")), **params}  # fmt: skip
        return open_playground(given, rows=5, save_to=None, report=Reporter())

    table = tmp_path / "t.csv"
    table.write_text("no,the review,label\n1,A long and dull film,bad\n2,Great,good\n", encoding="utf-8")  # fmt: skip
    made = opened(data=str(table))
    state = made.state()
    assert state["labels"] == ["bad", "good"] and state["inputs"] == ["no", "the review"]
    (pattern,) = state["patterns"]
    assert pattern["template"] == '{{ row["the review"] }} It was {{ mask }}'
    assert [r["label"] for r in state["rows"]] == ["bad", "good"] and state["refusal"]
    assert made.read(Draft(pattern="inline", template=pattern["template"]))["words"]
    bare = opened(data=str(table), label_column=None, text_column=("the review",), template=('{{ row["the review"] }} {{ mask }}',))  # fmt: skip
    assert bare.state()["inputs"] == ["the review"]
    table.write_text("text\nA long film\n", encoding="utf-8")
    unlabelled = opened(data=str(table)).state()
    assert unlabelled["labels"] == [] and unlabelled["rows"] == [{"values": {"text": "A long film"}, "label": None}]  # fmt: skip
    empty = opened(task="sentiment", data=None).state()
    assert empty["rows"] == [{"values": {"text": ""}, "label": None}]


@pytest.mark.parametrize(
    "column", ["row", "words", "labels", "mask", "true", 'say "x"', "a\\b", "it's"]
)
def test_the_first_template_shows_the_column_whatever_it_is_called(
    tiny_model: Callable[[str], Path], tmp_path: Path, column: str
) -> None:
    from promptforge_playground.opening import open_playground

    from promptforge.progress import Reporter

    with (tmp_path / "t.csv").open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([[column, "label"], ["great film", "pos"], ["dull", "neg"]])
    params: dict[str, Any] = dict.fromkeys(("task", "label_column", "reader", "demonstrations"))
    params |= {"data": str(tmp_path / "t.csv"), "text_column": (), "template": (), "pattern": (), "options": (), "model": str(tiny_model("bert"))}  # fmt: skip
    made = open_playground(params, rows=2, save_to=None, report=Reporter())
    state = made.state()
    source = state["patterns"][0]["template"]
    parts = made.render(Draft(pattern="inline", template=source))["parts"]
    assert [part.get("text") for part in parts] == ["great film", " It was ", None]
    assert parts[0]["source"] == column
    assert source.startswith(f"{{{{ {state['expressions'][0]} }}}}")


def test_rows_of_a_task_with_several_labels_are_asked_one_by_one(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    from promptforge_playground.opening import open_playground

    from promptforge.progress import Reporter

    folder = tmp_path / "topics"
    folder.mkdir()
    (folder / "task.toml").write_text(
        'name = "topics"\n[columns]\ninputs = ["text"]\nlabel = "topics"\n[labels]\nyes = ["yes"]\nno = ["no"]\n'
        '[multi_label]\nlabels = ["sport", "film"]\n[data]\ntrain = "train.csv"\n', encoding="utf-8",
    )  # fmt: skip
    (folder / "train.csv").write_text("text,topics\nA goal,sport\nBoth,\"sport,film\"\n", encoding="utf-8")  # fmt: skip
    (folder / "ask.jinja").write_text("{{ text }} Is it {{ label }}? {{ mask }}", encoding="utf-8")
    params: dict[str, Any] = dict.fromkeys(("data", "label_column", "reader", "demonstrations"))
    params |= {"task": str(folder), "text_column": (), "template": (), "pattern": (), "options": (), "model": str(tiny_model("llama"))}  # fmt: skip
    made = open_playground(params, rows=2, save_to=None, report=Reporter())
    rows = made.state()["rows"]
    assert [(r["values"]["label"], r["label"]) for r in rows] == [("sport", "yes"), ("film", "no"), ("sport", "yes"), ("film", "yes")]  # fmt: skip
    read = made.read(Draft(pattern="ask", template="{{ text }} Is it {{ label }}? {{ mask }}", row=2))  # fmt: skip
    assert set(read["classes"]) == {"yes", "no"}
