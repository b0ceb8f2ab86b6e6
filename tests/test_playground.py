"""`promptforge playground`: who is let in, what is answered, what is saved."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import tiny
import torch
from promptforge_playground.playground import Draft, Playground, Shown
from promptforge_playground.saving import Conflict, Shelf
from promptforge_playground.server import MOST_BYTES, Server
from promptforge_playground.turns import Stale, Turns

from promptforge import PromptModel, Task, Template, UserError

Command = Callable[..., Any]
ROWS = [
    Shown({"text": "A joy from start to finish."}, "positive"),
    Shown({"text": "[MASK] </s> {{ 7*7 }} <b>"}, "negative"),
]


def playground(architecture: str, task: Task, **options: Any) -> Playground:
    return Playground(task, tiny.backbone(architecture), ROWS, **options)


@pytest.fixture(scope="module")
def served() -> Iterator[Server]:
    task = Task.load(tiny.EXAMPLES).choose(["it-was", "tone"])
    with Server(playground("bert", task, shelf=Shelf(Task.load("sentiment")))) as server:
        server.start()
        yield server


def send(
    server: Server, method: str, path: str, body: Any = None, **headers: str | None
) -> tuple[int, Any, dict[str, str]]:
    """A request as the page makes it, unless `headers` say otherwise; None leaves one out."""
    at = urlsplit(server.url)
    given = {"Host": at.netloc, "Content-Type": "application/json"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    data = body if isinstance(body, bytes) else json.dumps(body).encode() if body else None
    connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=20)
    try:
        connection.putrequest(method, path, skip_host=True)
        if data is not None and "Content-Length" not in given:
            given["Content-Length"] = str(len(data))
        for name, value in given.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(data)
        answer = connection.getresponse()
        text = answer.read().decode()
        kind = answer.headers.get_content_type()
        return answer.status, json.loads(text) if kind == "application/json" else text, dict(answer.headers)  # fmt: skip
    finally:
        connection.close()


def ask(server: Server, what: str, template: str, **more: Any) -> Any:
    """What the page is told of a template."""
    draft = {"pattern": "it-was", "template": template, **more}
    status, answer, _ = send(server, "POST", urlsplit(server.url).path + what, draft)
    assert status == 200, answer
    return answer


# --- who is let in --------------------------------------------------------------------------


def test_the_page_needs_nothing_else_and_says_so(served: Server) -> None:
    status, page, headers = send(served, "GET", urlsplit(served.url).path)
    assert status == 200 and page.startswith("<!doctype html>")
    policy = dict(p.split(" ", 1) for p in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    assert "unsafe" not in str(policy) and "http" not in str(policy)
    nonce = policy["script-src"].removeprefix("'nonce-").rstrip("'")
    assert page.count(f'nonce="{nonce}"') == 2 == page.count("nonce=")
    assert nonce not in send(served, "GET", urlsplit(served.url).path)[1]
    assert "%" not in "".join(line for line in page.splitlines() if "link rel" in line)
    assert headers["Cache-Control"] == "no-store" and headers["Referrer-Policy"] == "no-referrer"
    assert "Access-Control-Allow-Origin" not in headers


def test_only_this_machine_is_listened_to(served: Server) -> None:
    assert urlsplit(served.url).hostname == "127.0.0.1"
    assert served._http.server_address[0] == "127.0.0.1"
    assert len(served.token) >= 32
    with Server(playground("bert", served.playground.task)) as other:
        assert other.token != served.token


@pytest.mark.parametrize("token", ["", "x", "TOKEN", "TOKENx", "é"])
@pytest.mark.parametrize("what", ["", "state", "render", "save"])
def test_nobody_comes_in_without_the_token(served: Server, token: str, what: str) -> None:
    wrong = token.replace("TOKEN", served.token[:-1])
    from urllib.parse import quote

    method = "GET" if what in ("", "state") else "POST"
    path = f"/{quote(wrong)}/{what}" if wrong else f"/{what}"
    status, answer, _ = send(served, method, path, {"pattern": "it-was", "template": "x"})
    assert status == 403 and "token" in answer["error"]["message"]


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "0.0.0.0", "localhost.evil.example", "[::1]", "", None],
)  # fmt: skip
def test_a_strangers_name_for_this_machine_is_refused(served: Server, host: str | None) -> None:
    path = urlsplit(served.url).path
    assert send(served, "GET", path, Host=host)[0] == 403
    assert send(served, "POST", path + "render", {"pattern": "it-was", "template": "x"}, Host=host)[0] == 403  # fmt: skip


def test_localhost_and_a_forwarded_port_are_this_machine(served: Server) -> None:
    path = urlsplit(served.url).path
    for host in ("localhost", "localhost:9999", "127.0.0.1:1"):
        assert send(served, "GET", path, Host=host)[0] == 200
        assert send(served, "GET", path + "state", Host=host, Origin=f"http://{host}")[0] == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", ""])
def test_another_page_is_refused(served: Server, origin: str) -> None:
    draft = {"pattern": "it-was", "template": "{{ text }} {{ mask }}"}
    status, answer, headers = send(
        served, "POST", urlsplit(served.url).path + "render", draft, Origin=origin
    )
    assert status == 403 and "Access-Control-Allow-Origin" not in headers, answer


def test_only_json_of_a_known_length_is_read(served: Server) -> None:
    path, draft = urlsplit(served.url).path + "render", {"pattern": "it-was", "template": "x"}
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "",
        None,
    ):
        assert send(served, "POST", path, draft, Content_Type=kind)[0] == 415
    assert send(served, "POST", path, draft, Content_Type="application/json; charset=utf-8")[0] == 200  # fmt: skip
    for length in ("", "-1", "x", "1e3", None):
        assert send(served, "POST", path, b"", Content_Length=length)[0] == 411
    assert send(served, "POST", path, None, Transfer_Encoding="chunked", Content_Length="9")[0] == 411  # fmt: skip
    for length in (str(MOST_BYTES + 1), "9" * 400):
        status, answer, _ = send(served, "POST", path, b"", Content_Length=length)
        assert status == 413 and "bytes" in answer["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b"null", b"\xff", b"[" * 50_000, {"pattern": "it-was"}, {"pattern": 1, "template": "x"},
     {"pattern": "it-was", "template": "x", "more": 1}, {"pattern": "it-was", "template": "x", "row": 0},
     {"pattern": "it-was", "template": "x", "row": "1"}, {"pattern": "it-was", "template": "x" * 100_001},
     {"pattern": "it-was", "template": "x", "serial": 2**53}],
)  # fmt: skip
def test_a_body_that_is_no_draft_is_refused(served: Server, body: Any) -> None:
    status, answer, _ = send(served, "POST", urlsplit(served.url).path + "render", body)
    assert status == 400 and answer["error"]["message"]


def test_there_are_no_other_pages(served: Server) -> None:
    path = urlsplit(served.url).path
    for name in ("render", "x", "../state", "state/x", "%2e%2e/", "page.js"):
        assert send(served, "GET", path + name)[0] in (403, 404), name
    assert send(served, "POST", path + "state", {"pattern": "it-was", "template": "x"})[0] == 404
    for method in ("PUT", "DELETE", "OPTIONS", "HEAD", "TRACE"):
        assert send(served, method, path)[0] == 501


def test_who_promises_a_body_and_sends_none_stops_nobody(served: Server) -> None:
    at = urlsplit(served.url)
    with socket.create_connection((at.hostname or "", at.port or 0)) as slow:
        slow.sendall(
            f"POST {at.path}render HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Type: application/json\r\n"
            "Content-Length: 100\r\n\r\n{".encode()
        )
        assert ask(served, "render", "{{ text }} {{ mask }}")["tokens"]


# --- what is answered -----------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2", "t5"])
def test_what_is_answered_is_what_the_commands_say(
    architecture: str, command: Command, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """The parts and tokens of `render --json`, the words of `fill --json`, the model's classes."""
    source = '{{ text }} It was {{ mask }}{{ tail(".") }}'
    model = tiny_model(architecture)
    row = ROWS[1].values["text"]
    base = ("--template", source, "--set", f"text={row}", "--model", model, "--json")
    (rendered,) = command("render", *base).json
    filled = command("fill", *base).json["inline"]
    task = Task.inline([Template(source, name="p")], labels={"a": ["film"], "b": ["story"]})
    made = playground(architecture, task)
    draft = Draft(pattern="p", template=source, row=2)
    answer = json.loads(json.dumps(made.render(draft)))
    assert {key: answer[key] for key in rendered} == {**rendered, "pattern": "p"}
    assert len(answer["pieces"]) == len(answer["ids"]) == len(answer["tokens"])
    assert "It was" in "".join(answer["pieces"]) or architecture == "bert"
    read = made.read(draft)
    assert [w["token"] for w in read["words"][0]] == [w["token"] for w in filled[0]]
    for mine, theirs in zip(read["words"][0], filled[0], strict=True):
        assert mine["probability"] == pytest.approx(theirs["probability"], rel=1e-4)
    theirs = PromptModel(tiny.backbone(architecture), task).predict_proba([{"text": row}])[0]
    assert list(read["classes"].values()) == pytest.approx(theirs.tolist(), rel=1e-4)
    assert read["decided"] == max(read["classes"], key=read["classes"].__getitem__)
    assert read["error"] is None


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_what_was_typed_last_is_read_as_if_it_were_first(architecture: str) -> None:
    """What is kept of a row between two keystrokes changes nothing of the next answer."""
    task = Task.inline([Template("{{ text }} {{ mask }}", name="p")], labels={"a": ["film"], "b": ["story"]})  # fmt: skip
    typed = [
        "{{ text }} It {{ mask }}", "{{ text }} It was {{ mask }}", "{{ text }} {{ mask }}",
        "It: {{ text }} {{ mask }}", "{{ mask }}", "{{ text }}{{ soft('a film') }} {{ mask }}",
        "{{ text }}{{ soft('a story') }} {{ mask }}", "{{ text }}a film {{ mask }}", "{{ text }} It was {{ mask }}",
    ]  # fmt: skip
    made = playground(architecture, task)
    for source in typed:
        for row in (1, 2, 1):
            draft = Draft(pattern="p", template=source, row=row)
            fresh = playground(architecture, task).read(draft)
            found = made.read(draft)
            assert found["classes"] == pytest.approx(fresh["classes"], abs=1e-5), (source, row)
            for mine, theirs in zip(found["words"][0], fresh["words"][0], strict=True):
                assert mine["probability"] == pytest.approx(theirs["probability"], rel=1e-3)


def test_a_mistake_is_told_with_its_line(served: Server) -> None:
    for what in ("render", "read"):
        error = ask(served, what, "{{ text }}\nIt was {{ maks }}.")["error"]
        assert error["line"] == 2 and "Did you mean 'mask'?" in error["message"]
    assert ask(served, "render", "{{ text }}\n\n{{ mask ")["error"]["line"] == 3
    missing = ask(served, "render", "{{ text }}")["error"]
    assert missing["line"] is None and "has no mask" in missing["message"]
    assert "no pattern 'x'" in ask(served, "read", "x", pattern="x")["error"]["message"]
    assert "no row 3" in ask(served, "read", "{{ mask }}", row=3)["error"]["message"]
    assert "no column" in ask(served, "read", "{{ mask }}", values={"x": "y"})["error"]["message"]
    assert "labels are" in ask(served, "read", "{{ mask }}", words={"x": ["y"]})["error"]["message"]


def test_words_and_values_of_the_page_count(served: Server) -> None:
    words = {"negative": ["film"], "positive": ["story"]}
    plain = ask(served, "read", "{{ text }} It was {{ mask }}.", words=words)
    swapped = ask(served, "read", "{{ text }} It was {{ mask }}.",
                  words={"negative": ["story"], "positive": ["film"]})  # fmt: skip
    assert swapped["classes"]["negative"] == pytest.approx(plain["classes"]["positive"])
    assert swapped["words"] == plain["words"]
    other = ask(
        served, "read", "{{ text }} It was {{ mask }}.", words=words, values={"text": "Bad"}
    )
    assert other["words"] != plain["words"]
    (part,) = ask(served, "render", "{{ text }}{{ mask }}", values={"text": "{{ mask }}"})["parts"][
        :1
    ]
    assert part["text"] == "{{ mask }}" and part["source"] == "text"
    for some, why in (([], None), (["film"], "same")):
        poor = ask(served, "read", "{{ mask }}", words={"negative": some, "positive": ["film"]})
        assert (
            poor["classes"] is None and poor["words"] and (why is None) == (poor["error"] is None)
        )
        assert why is None or why in poor["error"]


@pytest.mark.parametrize(
    "source",
    ["{{ ''.__class__.__mro__ }}{{ mask }}", "{{ mask.__init__.__globals__ }}", "{% include '/etc/passwd' %}{{ mask }}",
     "{{ ''|attr('__class__') }}{{ mask }}", "{% for i in range(10**9) %}x{% endfor %}{{ mask }}", "{{ 'x' * 10**9 }}{{ mask }}",
     "{{ row.__class__ }}{{ mask }}", "{{ cycler.__init__ }}{{ mask }}", "{{ '%999999999d' % 1 }}{{ mask }}", "{{ 9**999 }}{{ mask }}"],
)  # fmt: skip
def test_a_template_does_not_get_out(served: Server, source: str) -> None:
    begun = time.monotonic()
    answer = ask(served, "render", source)
    assert set(answer) == {"error", "conflict"} and "Internal" not in answer["error"]["message"]
    assert time.monotonic() - begun < 5
    assert ask(served, "render", "{{ text }} {{ mask }}")["parts"]


def test_tasks_without_labels_and_with_candidates() -> None:
    bare = playground(
        "llama", Task.inline([Template("{{ text }} {{ mask }}", name="p")], labels={})
    )
    read = bare.read(Draft(pattern="p", template="{{ text }} {{ mask }}"))
    assert read["words"] and read["classes"] is None and read["error"] is None
    assert bare.state()["labels"] == []


# --- the newest wins ------------------------------------------------------------------------


def test_an_older_request_is_broken_off_within_the_model() -> None:
    """The one that waits is dropped, the one that runs stops between two layers, the newest is answered."""
    made = playground("llama", Task.inline([Template("{{ text }} {{ mask }}", name="p")], labels={"a": ["film"], "b": ["story"]}))  # fmt: skip
    inside, leave = threading.Event(), threading.Event()
    calls: list[int] = []

    def hold(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            inside.set()
            assert leave.wait(20)

    layers = made.backbone.layers.modules
    assert len(layers) > 1
    handle = layers[0].register_forward_hook(hold)
    told: dict[int, str] = {}

    def read(serial: int, page: str = "one") -> None:
        draft = Draft(pattern="p", template=f"{serial} {{{{ text }}}} {{{{ mask }}}}", page=page, serial=serial)  # fmt: skip
        try:
            told[serial] = "read" if made.read(draft)["words"] else "nothing"
        except Stale:
            told[serial] = "stale"

    threads = [threading.Thread(target=read, args=(1,))]
    try:
        threads[0].start()
        assert inside.wait(20)
        for serial, page in ((2, "one"), (3, "one"), (100, "other")):
            threads.append(threading.Thread(target=read, args=(serial, page)))
            threads[-1].start()
            while made.turns._newest.get(page) != serial:
                time.sleep(0.01)
        leave.set()
        for thread in threads:
            thread.join(20)
    finally:
        leave.set()
        handle.remove()
    assert told == {1: "stale", 2: "stale", 3: "read", 100: "read"}
    assert len(calls) == 3  # the first layer: the one broken off, the newest, the other page's


def test_turns_end_with_a_close() -> None:
    layer = torch.nn.Identity()
    turns = Turns([layer])
    layer(torch.ones(1))  # outside a turn the model is nobody's
    with turns.turn("a", 5):
        layer(torch.ones(1))
    with pytest.raises(Stale), turns.turn("a", 4):
        pass
    with turns.turn("b", 1):
        pass
    turns.close()
    with pytest.raises(Stale), turns.turn("a", 6):
        pass


def test_many_at_once_are_each_answered_their_own(served: Server) -> None:
    found: dict[int, Any] = {}

    def one(i: int) -> None:
        source = f"{'film ' * i}{{{{ text }}}} {{{{ mask }}}}"
        found[i] = (ask(served, "render", source, page=f"p{i}"), ask(served, "read", source, page=f"p{i}"))  # fmt: skip

    threads = [threading.Thread(target=one, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for i in range(8):
        rendered, read = found[i]
        assert "".join(p["text"] for p in rendered["parts"][:-1] if not p["source"]).count("film") == i  # fmt: skip
        alone = ask(served, "read", f"{'film ' * i}{{{{ text }}}} {{{{ mask }}}}")
        assert read["words"] == alone["words"]


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
        code = process.wait(20)
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
