"""`promptforge search-verbalizer`: find label words, measure them, write them."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from promptforge.cli.common import console, json_option, percent, plain, print_json, reporter
from promptforge.cli.config import typed, with_config
from promptforge.cli.options import job_options, model_options, task_options
from promptforge.cli.reranking import RerankRun, rerank_options
from promptforge.cli.setup import backend_of, check_apart, load, open_task
from promptforge.cli.train import setting_options, settings_of
from promptforge.errors import UserError

if TYPE_CHECKING:
    from promptforge.classifier import Classifier
    from promptforge.cli.setup import Setup
    from promptforge.data import Example
    from promptforge.evaluation import AnyEvaluation
    from promptforge.model import PromptModel
    from promptforge.verbalizer import LabelWords

    Results = dict[str, dict[str, dict[str, AnyEvaluation]]]


@click.command("search-verbalizer")
@task_options
@click.option("--search", default="petal", show_default=True, help="petal, lm-bff or a plugin's.")
@click.option("--joint", is_flag=True, help="One set of words for all patterns.")
@click.option("--words-per-label", type=click.IntRange(min=1), help="Words to find per label.")
@click.option(
    "--candidates", type=click.IntRange(min=0), help="Words kept per label before scoring; 0: all."
)
@click.option(
    "--max-words", type=click.IntRange(min=2), help="Only the words most frequent in --unlabeled."
)
@click.option("--unlabeled", help="Unlabelled rows for --max-words; the task's own by default.")
@click.option("--dev", help="Table to measure on; the task's own by default.")
@click.option("--test", help="Table to measure on; the task's own by default.")
@click.option(
    "--shots",
    type=click.IntRange(min=1),
    help="Draw this many training rows per label, and as many for dev.",
)
@click.option("--seed", type=click.IntRange(min=0), default=13, show_default=True,
              help="Seed of the draw.")  # fmt: skip
@click.option(
    "--output", default="verbalizer.json", show_default=True, help="Where the words are written."
)
@click.option("--rerank", type=click.IntRange(min=1), metavar="N",
              help="Tune with each of the N best sets of words, and rank by dev (lm-bff).")  # fmt: skip
@rerank_options
@partial(job_options, what="Sets of --rerank tuned")
@setting_options
@model_options
@json_option
@with_config
def search_verbalizer(as_json: bool, **params: Any) -> None:
    """Find the words that stand for each label.

    Reads labelled rows of TASK (or of --data with --template), finds per label the words that
    the model says where a row has that label, and measures them beside the task's own words.
    """
    from promptforge.output import check_target
    from promptforge.plugins import build

    check_target(Path(params["output"]))
    report = reporter()
    roles = {"search": params["search"], "settings": None, "backend": params["backend"]}
    setup = open_task(params, report, roles)
    backend = backend_of(params, setup.options)
    settings = settings_of(params, setup)
    # Of label sets the words of the answers are sought: rows are the questions about each label.
    task, multi = setup.task.binary, setup.task.multi_label
    task.need_classes("A search for label words")
    check_apart(params["output"], setup.read())
    if not params["max_words"] and typed("unlabeled"):
        raise UserError(
            f"--unlabeled {params['unlabeled']}: only --max-words looks at unlabelled rows: add it, or leave "
            "--unlabeled out."
        )
    labelled, splits = _data(setup, params)
    train = multi.questions(labelled) if multi else labelled
    unlabeled = setup.unlabeled() if params["max_words"] else None
    if params["max_words"] and not unlabeled:
        raise UserError("--max-words counts words in unlabelled text: give --unlabeled FILE.")
    flags = {k: params[k] for k in ("words_per_label", "candidates") if params[k] is not None}
    finder = build("search", params["search"], **{**setup.options["search"], **flags})
    run = RerankRun.of(params, "search-verbalizer", setup.task.name)

    from promptforge.model import PromptModel
    from promptforge.search import search_verbalizer as search
    from promptforge.tuning.run import RESULTS
    from promptforge.tuning.train import check_rows

    dev, test = splits.get("dev", []), splits.get("test", [])
    check_rows(setup.task, labelled, dev, test, unlabeled or (), report)
    model = PromptModel(load(params, report, setup.task), task, report=report)
    words = search(
        model,
        train,
        search=finder,
        joint=params["joint"],
        max_words=params["max_words"],
        unlabeled=unlabeled,
    )
    with ExitStack() as stack:
        if run:
            from promptforge.tuning.backends import started
            from promptforge.tuning.rerank import check_words, rerank_words
            from promptforge.tuning.tuner import Tuner

            tuner = Tuner(
                model.backbone, task, train, multi.questions(dev) if multi else dev,
                settings=settings, seed=params["seed"], report=report,
            )  # fmt: skip
            check_words(words, tuner)
            asked = {key: params[key] for key in ("joint", "max_words", "shots")}
            folder = stack.enter_context(run.opened(tuner, finder, **asked))
            with started(backend, params["jobs"]) as tuner.jobs:
                words = rerank_words(words, tuner, params["rerank"])
        words.origin.update(shots=params["shots"], seed=params["seed"])
        results = _measured(model, words, setup, labelled, splits)
        words.save(params["output"])
        if run:
            folder.write(RESULTS, {"verbalizer": words.to_json(), "results": _figures(results)})
    if as_json:
        print_json(
            {
                "output": params["output"],
                "verbalizer": words.to_json(),
                "results": _figures(results),
                **({"run": str(run.place)} if run else {}),
            }
        )
    else:
        _show(words, results, params["output"])
        if run:
            console().print(f"What was tuned is kept in [bold]{plain(run.place)}[/]")


def _measured(
    model: PromptModel, words: LabelWords, setup: Setup, labelled: list[Example],
    splits: dict[str, list[Example]],
) -> Results:  # fmt: skip
    """Split -> whose words -> pattern -> figures: of the words found, and of the task's own."""
    from promptforge.multilabel import label_sets

    multi = setup.task.multi_label
    measured: dict[str, Classifier] = {"found": model.with_words(words)}
    if setup.task.folder is not None:
        measured["task"] = model
    if multi:
        measured = {who: label_sets(one, multi, labelled) for who, one in measured.items()}
    results: Results = {}
    for split, examples in splits.items():
        what = f"Measuring on {split}"
        results[split] = {who: one.evaluate(examples, what) for who, one in measured.items()}
    return results


def _figures(results: Results) -> dict[str, Any]:
    """The figures as JSON."""
    return {
        split: {who: {p: e.to_json() for p, e in by.items()} for who, by in kinds.items()}
        for split, kinds in results.items()
    }


def _data(setup: Setup, params: dict[str, Any]) -> tuple[list[Example], dict[str, list[Example]]]:
    """Training examples, and the splits to measure on."""
    task = setup.task
    train = setup.examples or setup.labelled(setup.table("train"))
    splits: dict[str, list[Example]] = {}
    if params["shots"]:
        enough = not (params["dev"] or "dev" in task.data)
        train, held = task.sample_shots(train, params["shots"], params["seed"], dev=enough)
        if held:
            splits["dev"] = held
    for split in ("dev", "test"):
        source = params[split] or task.data.get(split)
        if source:
            splits[split] = setup.labelled(source, complete=False)
    return train, splits


def _show(words: LabelWords, results: dict[str, Any], output: str) -> None:
    from rich.table import Table

    from promptforge.evaluation import MultiLabelEvaluation

    out = console()
    for pattern, by_label in words.patterns.items():
        title = "Label words" + (
            f" for the pattern [bold]{plain(pattern)}[/]" if pattern != "*" else " for all patterns"
        )
        table = Table(title=title, title_justify="left", show_edge=False)
        table.add_column("label", style="bold")
        table.add_column("words, best first, with their scores")
        for label, found in by_label.items():
            scores = words.scores.get(pattern, {}).get(label, [])
            cells = [
                f"[cyan]{plain(w)}[/] [dim]{s:.3g}[/]" for w, s in zip(found, scores, strict=False)
            ]
            table.add_row(plain(label), "  ".join(cells or map(plain, found)))
        out.print(table, "")
    for pattern, tuned in words.origin.get("reranked", {}).items():
        which = (
            "for all patterns" if pattern == "*" else f"for the pattern [bold]{plain(pattern)}[/]"
        )
        ranked = ", ".join(map(percent, tuned))
        out.print(f"Accuracy on dev after tuning, by set of words {which}, best first: {ranked}\n")
    if not results:
        out.print(f"No dev or test rows to measure on. Words written to [bold]{plain(output)}[/]")
        return
    heads = [(split, who) for split, kinds in results.items() for who in kinds]
    first = results[heads[0][0]]["found"]
    sets = isinstance(next(iter(first.values())), MultiLabelEvaluation)
    title = f"Zero-shot {'micro-F1' if sets else 'accuracy'}"
    table = Table(title=title, title_justify="left", show_edge=False)
    table.add_column("pattern", style="bold")
    for split, who in heads:
        table.add_column(
            f"{split}, {'words found' if who == 'found' else 'task words'}", justify="right"
        )
    for pattern in first:
        table.add_row(plain(pattern), *(percent(results[s][w][pattern].headline) for s, w in heads))
    any_ = [next(iter(results[s][w].values())) for s, w in heads]
    blind = [e.constant["micro_f1"] if sets else e.chance for e in any_]
    guess = "most frequent labels" if sets else "chance"
    table.add_row(guess, *map(percent, blind), style="dim")
    rows = ", ".join(
        f"{split}: {next(iter(kinds['found'].values())).rows}" for split, kinds in results.items()
    )
    out.print(table, f"\nRows measured: {rows}. Words written to [bold]{plain(output)}[/]")
