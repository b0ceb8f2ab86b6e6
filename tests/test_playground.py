"""The page of `promptforge playground`: who is let in, what is answered."""

from __future__ import annotations

import http.client
import json
import socket
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
from promptforge_playground.saving import Shelf
from promptforge_playground.server import MOST_BYTES, Server
from promptforge_playground.turns import Stale, Turns

from promptforge import PromptModel, Task, Template

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


@pytest.mark.parametrize("token", ["", "x", "TOKENx", "xTOKEN", "é"])
@pytest.mark.parametrize("what", ["", "state", "render", "save"])
def test_nobody_comes_in_without_the_token(served: Server, token: str, what: str) -> None:
    wrong = token.replace("TOKEN", served.token)
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
