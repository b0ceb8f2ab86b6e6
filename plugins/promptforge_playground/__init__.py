"""The playground: a local page to write a template and see live what the model makes of it.

from promptforge_playground import serve
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from promptforge import hookimpl

if TYPE_CHECKING:
    from promptforge.progress import Reporter

__all__ = ["promptforge_commands", "serve"]


@hookimpl
def promptforge_commands() -> Sequence[click.Command]:
    """`promptforge playground`."""
    from promptforge.cli.later import LaterCommand

    says = "Write a template in the browser and see live what the model makes of it."
    return [LaterCommand("playground", "promptforge_playground.cli:playground", says)]


def serve(
    task: str | Path | None = None,
    *,
    data: str | Path | None = None,
    text_column: Sequence[str] = (),
    label_column: str | None = None,
    template: Sequence[str] = (),
    pattern: Sequence[str] = (),
    demonstrations: str | None = None,
    reader: str | None = None,
    options: Sequence[str] = (),
    model: str | None = None,
    rows: int = 20,
    save_to: str | Path | None = None,
    port: int = 0,
    browser: bool = True,
    ready: Callable[[str], None] | None = None,
    report: Reporter | None = None,
    **loading: Any,
) -> None:
    """Serve the playground until it is interrupted (Ctrl-C: `KeyboardInterrupt`).

    Args:
        task: a task folder or the name of a shipped task; or None, with `data`.
        data: a table in place of the task's own.
        text_column, label_column, template, pattern, demonstrations, reader, options: as on the
            command line.
        model: packaged model, folder or Hugging Face id.
        rows: how many rows of the data the page has.
        save_to: a task folder to be made by the first "Save", where there is no TASK to save to.
        port: on 127.0.0.1; 0: a free one.
        browser: open the page in a browser.
        ready: called with the page's URL once it can be opened; without it the URL is noted.
        loading: further options of the model, as `load_model` takes them.

    Raises:
        UserError: options, data or a model that do not fit; a port that is taken.
    """
    from promptforge.progress import Reporter
    from promptforge_playground.opening import open_playground
    from promptforge_playground.server import Server, check_port

    report = report or Reporter()
    check_port(port)  # before minutes go into loading a model
    made = open_playground(
        {
            **loading, "task": str(task) if task else None, "data": str(data) if data else None,
            "text_column": tuple(text_column), "label_column": label_column,
            "template": tuple(template), "pattern": tuple(pattern), "reader": reader,
            "options": tuple(options), "demonstrations": demonstrations, "model": model,
        },
        rows=rows, save_to=Path(save_to) if save_to else None, report=report,
    )  # fmt: skip
    with Server(made, port) as server:
        (ready or report.note)(server.url)
        if browser:
            server.open_browser()
        server.run()
