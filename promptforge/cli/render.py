"""`promptforge render`: what a template makes of a row, part by part and token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import rich_click as click

from promptforge.cli.common import console, json_option, print_json, reporter
from promptforge.cli.config import with_config
from promptforge.cli.options import F, model_options, task_options
from promptforge.cli.setup import Setup, fit_demonstrations, load
from promptforge.errors import UserError, did_you_mean, listed

if TYPE_CHECKING:
    from promptforge.encode import Encoded
    from promptforge.model import PromptModel
    from promptforge.progress import Reporter
    from promptforge.selection import DemonstrationSelector
    from promptforge.template import Prompt

COLOURS = {"": "white", "expression": "magenta"}


def ROW_OPTIONS(function: F) -> F:
    """Which row is rendered: of a table, or given on the command line."""
    function = click.option(
        "--row", default=1, show_default=True, type=click.IntRange(min=1), help="Row of the table."
    )(function)
    function = click.option(
        "--set",
        "values",
        multiple=True,
        metavar="COLUMN=VALUE",
        help="A value instead of a table's.",
    )(function)
    return task_options(function)


def the_row(params: dict[str, Any], report: Reporter) -> tuple[Setup, dict[str, Any], int]:
    """The task with its options, the row, and its number."""
    from itertools import islice

    from promptforge.data import iter_rows
    from promptforge.multilabel import LABEL

    if params["task"] and "{{" in params["task"]:
        params = {**params, "template": (params["task"], *params["template"]), "task": None}
    given = {}
    for pair in params["values"]:
        column, eq, value = pair.partition("=")
        if not eq:
            raise UserError(f"--set {pair!r}: write COLUMN=VALUE.")
        given[column] = value
    setup = _setup(params, report, given)
    task, number = setup.task, params["row"]
    source = params["data"] or next(
        (task.data[s] for s in ("test", "dev", "train") if s in task.data), None
    )
    # A question about one label: the first, where --set names none.
    asked = {LABEL: given.pop(LABEL, task.classes[0])} if task.multi_label else {}
    wanted = [c for c in task.inputs if c not in given]
    if not source and wanted:
        raise UserError(
            f"There is no data for {wanted[0]!r}: give --set {wanted[0]}=VALUE, or --data FILE."
        )
    row: dict[str, Any] = {}
    if source and (params["data"] or wanted or not given or number > 1):
        rows = list(islice(iter_rows(source, wanted, number - 1, setup.reader), 1))
        if not rows:
            raise UserError(f"{source} has fewer than {number} rows.")
        row = rows[0]
    elif number > 1:
        raise UserError(f"--row {number}: there is no table. Give --data FILE, or no --row.")
    used = [c for pattern in task.patterns.values() for c in pattern.template.columns]
    known = list(dict.fromkeys([*task.inputs, *used, *row]))
    # A template without columns of its own may go through all that its row has.
    if known and (strange := [c for c in given if c not in known]):
        raise UserError(
            f"--set {strange[0]}=...: there is no such column.{did_you_mean(strange[0], known)} "
            f"The columns: {listed(known, 30)}."
        )
    return setup, {**row, **given, **asked}, number if row else 1


def _setup(params: dict[str, Any], report: Reporter, given: dict[str, Any]) -> Setup:
    """A TASK, or a task without labels made of --template alone."""
    from promptforge.cli.setup import open_task, options_of, read_template
    from promptforge.plugins import manager
    from promptforge.task import Task

    roles = {"demonstrations": params.get("demonstrations")}
    if params["task"] or params["label_column"]:
        given = {**params, "verbalizer": None}
        return open_task(given, report, roles, generates=None, tuned=True)
    manager().pm.hook.promptforge_configure(settings=params)
    if not params["template"]:
        raise UserError("Give a TASK, or a template such as 'The film was {{ mask }}.'")
    templates = [read_template(t, i) for i, t in enumerate(params["template"])]
    task = Task.inline(templates, labels={"": []}, inputs=params["text_column"] or None)
    task = task.choose(params["pattern"])
    task.check(given if given and set(task.inputs) <= given.keys() else None)
    return Setup(task, report, params, *options_of(params, roles, params["data"]))


def prompts(setup: Setup, selector: DemonstrationSelector | None = None) -> PromptModel:
    """The model that reads the prompts: the tuned one that TASK names, or the model as it is."""
    from promptforge.cli.tuned import tuned_prompts
    from promptforge.model import PromptModel

    if setup.artifact is not None:
        return tuned_prompts(setup)
    backbone = load(setup.params, setup.report, setup.task)
    return PromptModel(backbone, setup.task, demonstrations=selector, report=setup.report)


@click.command()
@ROW_OPTIONS
@click.option(
    "--tokens/--no-tokens",
    default=True,
    help="Show the model's tokens (loads its tokenizer and weights).",
)
@click.option(
    "--demonstrations", help="Show labelled rows in the prompt: fixed, random or a plugin's."
)
@model_options
@json_option
@with_config
def render(as_json: bool, tokens: bool, **params: Any) -> None:
    """Show what a template makes of a row: parts in colour, tokens, masks, what was cut.

    TASK may also be the folder of a run or of an artifact: then the prompts are those of the
    tuned model. With [multi_label] a prompt asks about the first label, or --set label=NAME.
    """
    setup, row, number = the_row(params, reporter())
    selector = fit_demonstrations(setup)
    # What was tuned may put more into a prompt than its template says, so it is always loaded.
    model = prompts(setup, selector) if tokens or setup.artifact else None
    task = model.task if model else setup.task
    backbone = model.backbone if model else None
    results = []
    for name, pattern in task.patterns.items():
        if model is not None:
            prompt = model.prompt(name, row)
        else:
            demos = [(d.row, d.label) for d in selector.select(row)] if selector else []
            words = task.words_for(name)
            prompt = pattern.template.render(
                row, labels=list(task.labels), words=words, demos=demos
            )
        encoded = model.encode(name, [prompt])[0] if model and tokens else None
        results.append((name, prompt, encoded))
    if as_json:
        print_json([prompt_json(*result, backbone) for result in results])
        return
    for name, prompt, encoded in results:
        _show(name, number, prompt, encoded, backbone)


def prompt_json(
    name: str, prompt: Prompt, encoded: Encoded | None, backbone: Any
) -> dict[str, Any]:
    """A prompt as `--json` prints it: its parts and, where a model is there, its tokens."""
    from dataclasses import asdict

    parts = [{"part": type(p).__name__.lower(), **asdict(p)} for p in prompt.parts]
    out: dict[str, Any] = {"pattern": name, "parts": parts}
    if encoded is not None:
        tokens = backbone.tokenizer.convert_ids_to_tokens(list(encoded.ids))
        out |= {"tokens": tokens, **asdict(encoded)}
        out["decoder_tokens"] = backbone.tokenizer.convert_ids_to_tokens(list(encoded.decoder_ids))
    return out


def _show(name: str, number: int, prompt: Prompt, encoded: Encoded | None, backbone: Any) -> None:
    from rich.text import Text as Rich

    from promptforge.template import Mask, Sep, Soft, Text

    out = console()
    line = Rich()
    sources: dict[str, str] = {}
    palette = ["green", "yellow", "blue", "bright_red"]
    for part in prompt.parts:
        if isinstance(part, Text):
            colour = COLOURS.get(part.source)
            if colour is None:
                colour = sources.setdefault(part.source, palette[len(sources) % len(palette)])
            line.append(part.text, style=f"{colour} dim" if part.tail else colour)
        elif isinstance(part, Mask):
            line.append(
                " mask " if part.length == 1 else f" mask x{part.length} ", style="black on cyan"
            )
        elif isinstance(part, Soft):
            line.append(f" soft {part.text or part.n} ", style="black on magenta")
        elif isinstance(part, Sep):
            line.append(" sep ", style="black on white")
    out.print(Rich(f"{name}, row {number}", style="bold"))
    out.print(line)
    legend = Rich("  ").join(
        [Rich("template", style="white"), *(Rich(s, style=c) for s, c in sources.items())]
    )
    out.print(legend)
    if encoded is None:
        return
    tokens = Rich()
    slots = {p for s in encoded.slots for p in range(s.start, s.start + max(s.length, 1))}
    for i, token in enumerate(backbone.tokenizer.convert_ids_to_tokens(list(encoded.ids))):
        tokens.append(str(token), style="black on cyan" if i in slots else "")
        tokens.append(" ")
    out.print(tokens)
    places = ", ".join(str(s.start) for s in encoded.slots)
    out.print(
        f"{len(encoded.ids)} of {backbone.encoder.max_length} tokens; mask at {places}", style="dim"
    )
    for source, n in encoded.cut.items():
        out.print(f"cut: {n} tokens of {source}", style="yellow")
    out.print()
