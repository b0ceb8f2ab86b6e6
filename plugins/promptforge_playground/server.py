"""The playground over HTTP: on this machine only, for whoever knows the token."""

from __future__ import annotations

import base64
import errno
import json
import re
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pydantic import ValidationError

from promptforge.errors import PromptForgeError, UserError
from promptforge_playground.playground import Draft, Playground
from promptforge_playground.saving import Conflict
from promptforge_playground.turns import Stale

ADDRESS = "127.0.0.1"
#: What a browser may call this machine; a name that a stranger's DNS points here is none of these.
_HOSTS = frozenset({"127.0.0.1", "localhost"})
#: Bytes of a request's body.
MOST_BYTES = 1_000_000
#: Seconds that a client may take to send what it promised.
_PATIENCE = 30


class Server:
    """Serves a playground on 127.0.0.1. `with` closes it; `run` blocks, `start` does not.

    Args:
        playground: what the page shows.
        port: 0: a free one.

    Attributes:
        url: the page's address, with the token.

    Raises:
        UserError: the port is taken, or is not the user's to take.
    """

    def __init__(self, playground: Playground, port: int = 0) -> None:
        self.playground = playground
        self.token = secrets.token_urlsafe(24)
        handler = type("Handler", (_Handler,), {"server_": self})
        self._http = listening(port, handler)
        self.url = f"http://{ADDRESS}:{self._http.server_port}/{self.token}/"
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Serve until interrupted."""
        self._http.serve_forever(poll_interval=0.2)

    def start(self) -> None:
        """Serve in a thread of its own."""
        self._thread = threading.Thread(target=self.run, daemon=True)
        self._thread.start()

    def open_browser(self) -> None:
        """Open the page; a machine without a browser goes on without."""
        threading.Thread(target=webbrowser.open, args=(self.url,), daemon=True).start()

    def close(self) -> None:
        """Take no more requests, and wait for what is under way."""
        if self._thread is not None:
            self._http.shutdown()
            self._thread.join()
        self.playground.close()
        self._http.server_close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_port(port: int) -> None:
    """Raise a `UserError` unless the port can be listened to."""
    listening(port, BaseHTTPRequestHandler).server_close()


def listening(port: int, handler: type[BaseHTTPRequestHandler]) -> _Threads:
    """A socket on 127.0.0.1 that takes connections.

    Raises:
        UserError: the port is taken, or is not the user's to take.
    """
    try:
        return _Threads((ADDRESS, port), handler)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "is taken" if taken else f"cannot be used: {error.strerror}"
        raise UserError(f"--port {port} {why}. Name another, or none for a free one.") from None


class _Threads(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True  # a port that was ours a moment ago; never one that is in use

    def __init__(self, *args: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Listen no more, and hang up on pages that keep their connection."""
        super().server_close()
        for request in list(self._open):
            with suppress(OSError):  # it went by itself
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves in the middle of an answer is no news."""


class _Refused(Exception):
    """A request that gets no answer but its status."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "PromptForge", ""
    timeout = _PATIENCE
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave together
    server_: ClassVar[Server]

    def do_GET(self) -> None:
        """The page, and what it begins with."""
        self._answer({"": self._page, "state": lambda: self._json(self._playground.state())})

    def do_POST(self) -> None:
        """What the page asks while somebody writes."""
        asked = self._playground
        self._answer({
            "render": lambda: self._draft(asked.render),
            "read": lambda: self._draft(asked.read),
            "save": lambda: self._draft(asked.save),
            "reload": lambda: self._draft(lambda draft: asked.pattern(draft.pattern)),
        })  # fmt: skip

    @property
    def _playground(self) -> Playground:
        return self.server_.playground

    def _answer(self, pages: dict[str, Callable[[], None]]) -> None:
        try:
            name = self._admitted()
            if name not in pages:
                raise _Refused(HTTPStatus.NOT_FOUND, "There is no such page.")
            pages[name]()
        except _Refused as refused:
            self.close_connection = True  # its body was not read
            self._json({"error": {"message": str(refused), "line": None}}, refused.status)

    def _admitted(self) -> str:
        """The name of what is asked for, of a request that comes from the page."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if urlsplit(f"//{host}").hostname not in _HOSTS:
            raise _Refused(HTTPStatus.FORBIDDEN, "The playground answers to 127.0.0.1 only.")
        if origin is not None and origin != f"http://{host}":
            raise _Refused(
                HTTPStatus.FORBIDDEN, "Another page asks: the playground answers its own."
            )
        _, token, *rest = [*urlsplit(self.path).path.split("/"), ""]
        if not secrets.compare_digest(token.encode(), self.server_.token.encode()):
            raise _Refused(
                HTTPStatus.FORBIDDEN,
                "The token is missing or wrong: open the whole address that was printed.",
            )
        return "/".join(rest).rstrip("/")

    def _draft(self, answer: Callable[[Draft], dict[str, Any]]) -> None:
        """Read the body, and send what `answer` makes of it, or the person's mistake."""
        draft = self._body()
        try:
            made = answer(draft)
        except Stale:
            made = {"stale": True}
        except PromptForgeError as error:
            made = {"error": located(error), "conflict": isinstance(error, Conflict)}
        except Exception as error:  # a plugin's, or ours: the page goes on
            made = {"error": located(error, f"{type(error).__name__}: {error}")}
        self._json(made)

    def _body(self) -> Draft:
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Send application/json.")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or "Transfer-Encoding" in self.headers:
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "Say how long the body is.")
        if int(length[:12]) > MOST_BYTES:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"At most {MOST_BYTES:,} bytes.")
        try:
            return Draft.model_validate_json(self.rfile.read(int(length)))
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3]]
            raise _Refused(HTTPStatus.BAD_REQUEST, "; ".join(wrong)) from None

    def _page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        self._send(page(nonce).encode(), "text/html; charset=utf-8", HTTPStatus.OK, nonce)

    def _json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value).encode(), "application/json", status)

    def _send(self, body: bytes, kind: str, status: HTTPStatus, nonce: str = "") -> None:
        inline = f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; " if nonce else ""
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": f"default-src 'none'; {inline}connect-src 'self'; img-src data:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
            **({"Connection": "close"} if self.close_connection else {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """The terminal is the person's; the address with the token is not written to it again."""


def located(error: Exception, message: str | None = None) -> dict[str, Any]:
    """An error as the page shows it: its message, and the line of the template that it names."""
    text = message or str(error)
    found = re.match(r".*?, line (\d+): ", text.partition("\n")[0])
    return {"message": text, "line": int(found[1]) if found else None}


def page(nonce: str) -> str:
    """The page in one piece: its style, its script and its icon are in it."""
    folder = files("promptforge_playground") / "pages"
    html, style, icon, *scripts = (
        (folder / name).read_text(encoding="utf-8")
        for name in ("page.html", "page.css", "icon.svg", "painting.js", "page.js")
    )
    data = base64.b64encode(icon.encode()).decode()
    for mark, text in {
        "%NONCE%": nonce,
        "%ICON%": f"data:image/svg+xml;base64,{data}",
        "/*STYLE*/": style,
        "/*SCRIPT*/": "\n".join(scripts),
    }.items():
        html = html.replace(mark, text)
    return html
