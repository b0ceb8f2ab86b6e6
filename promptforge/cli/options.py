"""Options that several commands share: the task and its data, the model, how scores become classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import rich_click as click

F = TypeVar("F", bound=Callable[..., Any])


def _apply(options: Sequence[Callable[[F], F]], function: F) -> F:
    for option in reversed(options):
        function = option(function)
    return function


def task_options(function: F, *, several: bool = False) -> F:
    """TASK, or --data with --template: what to classify and how to ask.

    With `several` there may be many of TASK, and of --data, as TASK=FILE.
    """
    return _apply(
        [
            click.argument("task", required=False, nargs=-1 if several else 1),
            click.option(
                "--data",
                multiple=several,
                help="A table instead of the task folder's own data: file or hf:NAME."
                + (" With several TASKs: TASK=FILE (repeat)." if several else ""),
            ),
            click.option(
                "--text-column", multiple=True, help="Column the template uses (several: repeat)."
            ),
            click.option(
                "--label-column", help="Column of the labels, or of the texts to be written."
            ),
            click.option(
                "--template", multiple=True, help="Template file, or the template itself."
            ),
            click.option(
                "--pattern",
                multiple=True,
                help="Use only this pattern of the task (several: repeat).",
            ),
            click.option(
                "--reader",
                help="How tables are read: csv, tsv, jsonl, ... or a plugin's. [default: by the name's ending]",
            ),
            click.option(
                "-o",
                "options",
                multiple=True,
                metavar="[ROLE.]KEY=VALUE",
                help="Option of a component, such as reader.delimiter=';' (several: repeat).",
            ),
        ],
        function,
    )


def model_options(function: F, *, named: bool = False) -> F:
    """Which model and how it runs; with `named` the model is the argument MODEL."""
    model = (
        click.argument("model")
        if named
        else click.option(
            "--model", help="Packaged model, folder or Hugging Face id. [default: smollm2]"
        )
    )
    return _apply(
        [
            model,
            click.option("--family", type=click.Choice(["masked", "causal", "seq2seq"]), help="Found from the config."),
            click.option("--dtype", default="float32", show_default=True, help="float32, bfloat16 or float16."),
            click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps."),
            click.option("--revision", help="Branch, tag or commit on the hub."),
            click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the model."),
            click.option("--max-length", type=click.IntRange(min=8),
                         help="Most tokens of a prompt; more than the model's own with --positions."),
            click.option("--attention", metavar="NAME",
                         help="In place of full attention on long inputs: longformer, bigbird, ... or a plugin's."),
            click.option("--positions", type=click.Choice(["copy", "interpolate", "rope"]),
                         help="How the model's positions are extended to --max-length."),
            click.option("--batch-tokens", type=click.IntRange(min=16), default=2048, show_default=True,
                         help="Tokens in a batch."),
            click.option("--ask", type=click.Choice(["sentinel", "mask", "prefix"]),
                         help="How an encoder-decoder model is asked."),
        ],
        function,
    )  # fmt: skip


def class_options(function: F) -> F:
    """How scores become classes."""
    return _apply(
        [
            click.option(
                "--verbalizer", help="verbalizer.json of a search, or the name of a verbalizer."
            ),
            click.option("--calibration", help="contextual, pmi-dc, batch or a plugin's."),
            click.option(
                "--unlabeled", help="Unlabelled rows: a file, or the task's own by default."
            ),
            click.option(
                "--demonstrations",
                help="Show labelled rows in the prompt: fixed, random or a plugin's.",
            ),
            click.option(
                "--samples",
                type=click.IntRange(min=1),
                help="Draws of demonstrations averaged. [default: 1]",
            ),
        ],
        function,
    )


def job_options(function: F, *, what: str) -> F:
    """How many of `what` run at the same time, and where."""
    return _apply(
        [
            click.option("--jobs", type=click.IntRange(min=-1), default=1, show_default=True,
                         help=f"{what} at the same time, in processes of their own; -1: one for each CPU."),
            click.option("--backend", metavar="NAME",
                         help="Where these processes are: loky (here), ray or dask (-o backend.address=...). [default: loky]"),
        ],
        function,
    )  # fmt: skip


def exit_options(function: F) -> F:
    """When rows leave a model that was trained with exits."""
    return click.option(
        "--exit-policy", metavar="NAME",
        help="Of a model trained with --exits: rows leave it by layer, confidence, entropy, patience or a "
        "plugin's rule (-o threshold=...).",
    )(function)  # fmt: skip


def output_options(function: F, *, chunk: int = 4096) -> F:
    """Where rows go, in which format, how many at a time, and --resume."""
    return _apply(
        [
            click.option("--output", "-O", default="-", show_default=True,
                         help="csv, tsv, jsonl, parquet or arrow by its ending; - is standard output."),
            click.option("--format", "format_", type=click.Choice(["csv", "tsv", "jsonl"]),
                         help="On standard output. [default: csv]"),
            click.option("--chunk", default=chunk, show_default=True, type=click.IntRange(min=1),
                         help="Rows worked on and written together."),
            click.option("--resume", is_flag=True, help="Go on where an interrupted run stopped."),
        ],
        function,
    )  # fmt: skip
