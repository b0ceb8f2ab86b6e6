"""`promptforge playground`, the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import rich_click as click

from promptforge.cli.common import console, plain, reporter
from promptforge.cli.config import with_config
from promptforge.cli.options import model_options, task_options


@click.command()
@task_options
@click.option("--rows", default=20, show_default=True, type=click.IntRange(min=1),
              help="How many rows of the data the page has.")  # fmt: skip
@click.option(
    "--demonstrations", help="Show labelled rows in the prompt: fixed, random or a plugin's."
)
@click.option("--save-to", metavar="FOLDER", type=click.Path(path_type=Path),
              help="A new task folder, made by the first save, where there is no TASK to save to.")  # fmt: skip
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="[default: a free one]")
@click.option("--browser/--no-browser", default=True, show_default=True, help="Open the page.")
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print the URL as a line of JSON.")
@with_config
def playground(as_json: bool, **params: Any) -> None:
    """Write a template in the browser and see live what the model makes of it.

    For rows of your data the page shows the parts, the tokens, the top words at the mask and the
    class probabilities, and saves the template to the task folder. Only this machine can open it,
    with the token in its address. Ctrl-C ends it.
    """
    from promptforge_playground import serve

    def ready(url: str) -> None:
        if as_json:
            sys.stdout.write(json.dumps({"url": url}) + "\n")
        else:
            console().print(
                f"The playground is at [bold]{plain(url)}[/] (Ctrl-C ends it)", soft_wrap=True
            )
        sys.stdout.flush()

    serve(params.pop("task"), ready=ready, report=reporter(), **params)
