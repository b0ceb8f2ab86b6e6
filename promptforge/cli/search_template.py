"""`promptforge search-template`: find templates, measure them, write them."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from promptforge.cli.common import console, json_option, percent, plain, print_json, reporter
from promptforge.cli.config import with_config
from promptforge.cli.options import job_options, model_options, task_options
from promptforge.cli.reranking import RerankRun, rerank_options
from promptforge.cli.setup import backend_of, class_roles, load, open_task
from promptforge.cli.train import setting_options, settings_of
from promptforge.errors import PromptForgeError, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from promptforge.backbone import Backbone
    from promptforge.cli.setup import Setup
    from promptforge.data import Example
    from promptforge.progress import Reporter
    from promptforge.template import Template
    from promptforge.template_search import FoundTemplate


@click.command("search-template")
@task_options
@click.option("--search", default="lm-bff", show_default=True, help="lm-bff or a plugin's.")
@click.option(
    "--generator", help="The model that writes: packaged, folder or id. [default: the model]"
)
@click.option("--keep", type=click.IntRange(min=1), default=10, show_default=True,
              help="How many templates to write.")  # fmt: skip
@click.option("--verbalizer", help="verbalizer.json with label words, or a verbalizer's name.")
@click.option("--dev", help="Table to measure on too; the task's own by default.")
@click.option(
    "--shots",
    type=click.IntRange(min=1),
    help="Draw this many training rows per label, and as many for dev.",
)
@click.option("--seed", type=click.IntRange(min=0), default=13, show_default=True,
              help="Seed of the draw.")  # fmt: skip
@click.option("--output", default="found-templates", show_default=True, type=click.Path(path_type=Path),
              help="Folder that the .jinja files are written to.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the templates of an earlier search there.")
@click.option(
    "--rerank", is_flag=True, help="Tune with each template that is kept, and rank by dev."
)
@rerank_options
@partial(job_options, what="Templates measured and tuned")
@setting_options
@model_options
@json_option
@with_config
def search_template(as_json: bool, **params: Any) -> None:
    """Find templates: a model writes the words around the label word.

    Reads labelled rows of TASK (or of --data with --text-column), lets the generator write what
    fits before and after the label words of all of them, and ranks what it wrote by zero-shot
    accuracy on these rows, then by the score of the search.
    """
    from promptforge.plugins import build
    from promptforge.template_search import search_template as search

    folder: Path = params["output"]
    if not params["task"] and not params["template"]:
        if not (params["data"] and params["text_column"]):
            raise UserError("Give a TASK, or --data FILE with --text-column.")
        # Templates are what is looked for: this one only stands where one has to.
        params["template"] = ("{{ mask }}",)
    report = reporter()
    roles = {
        "settings": None,
        "backend": params["backend"],
        "template-search": params["search"],
        "verbalizer": class_roles(params)["verbalizer"],
    }
    setup = open_task(params, report, roles)
    run = RerankRun.of(params, "search-template", setup.task.name)
    # A search that was interrupted while it wrote may have left some; they go to the same folder.
    _check_folder(folder, params["search"], params["force"] or bool(run and run.goes_on))
    settings = settings_of(params, setup)
    setup.task.need_classes("A search for templates")
    finder = build("template-search", params["search"], **setup.options["template-search"])
    words = setup.words
    verbalizer = build(
        "verbalizer",
        roles["verbalizer"],
        **{**(words.options if words else {}), **setup.options["verbalizer"]},
    )
    backend = backend_of(params, setup.options)
    train, dev = _data(setup, params)
    backbone = load(params, report, replace(setup.task, patterns={}))
    task = setup.task.with_words(words.patterns) if words else setup.task
    from promptforge.tuning.backends import started
    from promptforge.tuning.run import RESULTS, RunFolder
    from promptforge.tuning.train import check_rows

    check_rows(setup.task, train, dev, (), (), report)
    with started(backend, params["jobs"]) as jobs, ExitStack() as stack:
        rank = None
        if run:
            from promptforge.tuning.rerank import template_rank
            from promptforge.tuning.tuner import Tuner

            tuner = Tuner(
                backbone, task, train, dev, settings=settings, verbalizer=verbalizer,
                seed=params["seed"], jobs=jobs, report=report,
            )  # fmt: skip
            asked = {**{key: params[key] for key in ("generator", "shots")}, "output": str(folder)}
            opened = run.opened(tuner, finder, **asked)
            tuned = template_rank(tuner)

            def rank(templates: Sequence[Template]) -> list[float]:
                stack.enter_context(opened)  # now, as a search that fails has begun no run
                return tuned(templates)

        found = search(
            backbone,
            task,
            train,
            search=finder,
            generator=_generator(params, report),
            dev=dev,
            keep=params["keep"],
            verbalizer=verbalizer,
            rank=rank,
            jobs=jobs,
            report=report,
        )
        digits = len(str(len(found)))
        named = {f"{params['search']}-{i:0{digits}}": t for i, t in enumerate(found, start=1)}
        _write(folder, params["search"], named)
        if run:
            from promptforge.tuning.rerank import accuracy

            named = {name: replace(t, tuned=accuracy(t.tuned or 0.0, len(dev)))
                     for name, t in named.items()}  # fmt: skip
        templates = [{"name": name, **asdict(t)} for name, t in named.items()]
        if run:
            assert tuner.folder is not None
            RunFolder(tuner.folder).write(RESULTS, {"templates": templates})
    chance = 1 / len(setup.task.labels)
    if as_json:
        print_json({
            "output": str(folder), "search": params["search"], "options": finder.model_dump(),
            "rows": len(train), "shots": params["shots"], "seed": params["seed"], "chance": chance,
            "templates": templates, **({"run": str(run.place)} if run else {}),
        })  # fmt: skip
    else:
        _show(named, folder, len(train), len(dev), chance)
        if run:
            console().print(f"What was tuned is kept in [bold]{plain(run.place)}[/]")


def _data(setup: Setup, params: dict[str, Any]) -> tuple[list[Example], list[Example]]:
    """Rows to learn from, and rows to measure the templates on too."""
    from promptforge.shots import sample_shots

    task = setup.task
    train = setup.examples or setup.labelled(setup.table("train"))
    source = params["dev"] or task.data.get("dev")
    held: list[Example] = []
    if params["shots"]:
        train, held = sample_shots(
            train, params["shots"], params["seed"], list(task.labels), dev=not source,
            text_columns=task.inputs,
        )  # fmt: skip
    return train, setup.labelled(source, complete=False) if source else held


def _generator(params: dict[str, Any], report: Reporter) -> Backbone | None:
    """The model of --generator; None where it is the model itself."""
    name = params["generator"]
    if not name or name == params["model"]:
        return None
    from promptforge.backbone import load_model

    report.note(f"Loading {name}")
    # The other model options are about the model that reads.
    options = {key: params[key] for key in ("dtype", "device", "batch_tokens")}
    return load_model(name, report=report, **options)


def _earlier(folder: Path, search: str) -> list[Path]:
    """The templates that a search of this name has written there."""
    own = re.compile(rf"{re.escape(search)}-\d{{1,3}}")  # not the user's own, as lm-bff-1-mine
    return sorted(p for p in folder.glob(f"{search}-*.jinja") if own.fullmatch(p.stem))


def _check_folder(folder: Path, search: str, force: bool) -> None:
    """Raise a `UserError` unless the templates can be written to `folder`."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file. Name a folder for the templates.")
    place = folder if folder.exists() else folder.parent
    if not place.is_dir():
        raise UserError(f"There is no folder {place} to make {folder.name} in. Make it first.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{place} may not be written to: permission denied.")
    there = _earlier(folder, search)
    if there and not force:
        raise UserError(
            f"{folder} holds templates of an earlier search ({there[0].name}): choose another --output, "
            "or replace them with --force."
        )


def _write(folder: Path, search: str, named: dict[str, FoundTemplate]) -> None:
    """Write the templates aside, then move them in place of an earlier search's."""
    made = not folder.exists()
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as draft:
            for name, template in named.items():
                path = Path(draft) / f"{name}.jinja"
                path.write_text(template.source + "\n", encoding="utf-8", newline="\n")
            for path in sorted(Path(draft).iterdir()):
                path.replace(folder / path.name)
            for old in _earlier(folder, search):
                if old.stem not in named:
                    old.unlink()
    except OSError as error:
        raise PromptForgeError(
            f"The templates could not be written to {folder}: {error.strerror or error}."
        ) from None
    finally:
        if made and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _show(
    named: dict[str, FoundTemplate], folder: Path, train: int, dev: int, chance: float
) -> None:
    from rich.table import Table

    table = Table(title="Templates, best first", title_justify="left", show_edge=False)
    table.add_column("name", style="bold", no_wrap=True)
    table.add_column("template")
    table.add_column("score", justify="right")
    table.add_column("train", justify="right")
    if dev:
        table.add_column("dev", justify="right")
    tuned = any(found.tuned is not None for found in named.values())
    if tuned:
        table.add_column("dev after tuning", justify="right")
    for name, found in named.items():
        shown = [found.train, *([found.dev] if dev else []), *([found.tuned] if tuned else [])]
        cells = [percent(value or 0.0) for value in shown]
        table.add_row(plain(name), plain(found.source), f"{found.score:.1f}", *cells)
    table.add_row("chance", "", "", *[percent(chance)] * len(cells), style="dim")
    measured = f"{train} train" + (f", {dev} dev" if dev else "")
    console().print(
        table, f"\nAccuracy, zero-shot{' but for the last column' if tuned else ''}. Rows: {measured}. "
        f"Templates written to [bold]{plain(folder)}[/]"
    )  # fmt: skip
