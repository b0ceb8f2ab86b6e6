"""`promptforge generate`, and what `train` and `evaluate` do for tasks that generate text."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import rich_click as click

from promptforge.cli.common import console, json_option, plain, print_json, reporter
from promptforge.cli.config import passed_over, with_config
from promptforge.cli.options import model_options, output_options, task_options
from promptforge.cli.predict import (
    check_output,
    chunks,
    fingerprint,
    printed_as,
    warn_cuts,
    written,
)
from promptforge.cli.setup import Setup, adapter_weights, check_apart, load, open_task
from promptforge.cli.tuned import limit, reading
from promptforge.errors import UserError
from promptforge.remote import place

if TYPE_CHECKING:
    from collections.abc import Mapping

    from promptforge.data import Row
    from promptforge.generation.decoding import Decoding
    from promptforge.generation.generator import Generator
    from promptforge.generation.metrics import TextEvaluation
    from promptforge.progress import Reporter

#: The column that `generate` adds.
COLUMN = "generated"
#: Options of `train` and `evaluate` that are for labels, with the values that ask for nothing.
_FOR_LABELS: dict[str, tuple[Any, ...]] = {
    "verbalizer": (None,), "calibration": (None,), "demonstrations": (None,), "samples": (None, 1),
    "shots": (None,), "unlabeled": (None,), "jobs": (1,), "backend": (None,), "class_weight": ((),),
    "exit_policy": (None,),
}  # fmt: skip


@click.command()
@task_options
@partial(output_options, chunk=256)
@click.option(
    "--beams", type=click.IntRange(min=1), help="Texts followed at the same time. [default: 1]"
)
@click.option(
    "--length-penalty", type=float, help="With beams: above 0 favours long texts. [default: 1]"
)
@click.option("--max-new-tokens", type=click.IntRange(min=1),
              help="Most tokens of a text. [default: what suits the training's texts]")  # fmt: skip
@click.option("--sample", is_flag=True, help="Draw each token instead of taking the likeliest.")
@click.option("--temperature", type=click.FloatRange(min=0, min_open=True),
              help="Of the draws. [default: 1]")  # fmt: skip
@click.option("--top-p", type=click.FloatRange(min=0, max=1, min_open=True),
              help="Draw among the likeliest tokens of this share. [default: 1]")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), help="Of the draws. [default: 13]")
@model_options
@click.option("--adapter", metavar="FOLDER", help="A peft adapter of the model: write with it.")
@json_option
@with_config
def generate(
    output: str, format_: str | None, chunk: int, resume: bool, as_json: bool, **params: Any
) -> None:
    """Write a text for each row of a table.

    TASK is the folder of a run of train --objective generate, of its artifact, or of a task with
    [generate], which the model then does untrained. Writes every input column, then `generated`.
    Rows stream, and the order is kept. Greedy, unless --beams or --sample.
    """
    from promptforge.generation.decoding import Decoding
    from promptforge.output import RowWriter

    setup = open_task(params, reporter(), {}, labelled=False, generates=True, tuned=True)
    asked = {k: params.get(k) for k in Decoding.model_fields}
    given = {k: v for k, v in asked.items() if v is not None and v is not False}  # 0 is given
    Decoding.of(**given)  # what is wrong is said before the model loads
    source = setup.table("test")
    check_apart(output, setup.read())
    check_output(output, source, [COLUMN], setup.task.inputs, setup.reader)
    if as_json:
        if output != "-" or resume or (format_ and not passed_over("format_", "as_json")):
            raise UserError(
                "--json prints one document on standard output: leave out --output, --format and --resume."
            )
        generator = _generator(setup)
        rows = setup.task.rows(source, reader=setup.reader)
        texts = generator.generate(rows, _decoding(generator, given))
        print_json([{**row, COLUMN: text} for row, text in zip(rows, texts, strict=True)])
        return
    to_file = output != "-"
    out = RowWriter(
        output if to_file else None, fingerprint(source, setup), resume,
        format=printed_as(output, format_),
    )  # fmt: skip
    _stream(setup, source, out, given, chunk)


def _stream(setup: Setup, source: str, out: Any, given: Mapping[str, Any], chunk: int) -> None:
    from promptforge.data import iter_rows

    generator = _generator(setup)
    generator.warn_cuts = False
    decoding = _decoding(generator, given)
    with written(out, setup.report) as writer, setup.report.meter("Generating", None) as meter:
        before = writer.done
        rows = iter_rows(source, setup.task.inputs, skip=before, reader=setup.reader)
        try:
            for part in chunks(rows, chunk):
                # Draws of their own for each chunk, the same ones again after a resume.
                drawn = decoding.model_copy(update={"seed": decoding.seed + writer.rows})
                texts = generator.generate(part, drawn, meter=meter)
                pairs = zip(part, texts, strict=True)
                writer.write([{**row, COLUMN: text} for row, text in pairs])
        finally:
            warn_cuts([generator], writer.rows - before, setup.report)


def _generator(setup: Setup) -> Generator:
    """The tuned generator that TASK names, or the model as it is."""
    from promptforge.generation.generator import Generator

    params = setup.params
    if setup.artifact is not None:
        tuned = Generator.load(setup.artifact, report=setup.report, **reading(params))
        limit(tuned.backbone, setup)
        tuned.task = replace(tuned.task, label_column=setup.task.label_column)
        return tuned
    _one_pattern(setup)
    backbone = load(params, setup.report, setup.task)
    return Generator(
        backbone, setup.task, weights=adapter_weights(params, backbone), report=setup.report
    )


def _one_pattern(setup: Setup) -> None:
    """Of several patterns the first is used, and named."""
    names = list(setup.task.patterns)
    if len(names) > 1:
        setup.report.note(
            f"Pattern {names[0]} is used; --pattern chooses another: {', '.join(names[1:])}"
        )
        setup.task = setup.task.choose(names[:1])


def _decoding(generator: Generator, given: Mapping[str, Any]) -> Decoding:
    """What the generator brings, with what the command line says over it."""
    from promptforge.generation.decoding import Decoding

    own = generator.decoding.model_dump(exclude_unset=True)
    if given.get("sample"):
        own = {k: v for k, v in own.items() if k not in ("beams", "length_penalty")}
    if given.get("beams"):
        own = {k: v for k, v in own.items() if k not in ("sample", "temperature", "top_p")}
    if given.get("beams") == 1:
        own.pop("length_penalty", None)
    return Decoding.of(**{**own, **given})


# --- train --objective generate ------------------------------------------------------------------


def train_to_write(
    params: dict[str, Any], report: Reporter, strategy: str, run_: str | None, resume: bool, as_json: bool
) -> None:  # fmt: skip
    """`promptforge train TASK --objective generate`."""
    from promptforge.cli.train import kept, refuse, settings_of
    from promptforge.generation.decoding import Decoding
    from promptforge.plugins import build
    from promptforge.tuning import processes

    if strategy != "prompt":
        raise UserError(
            f"--strategy {strategy} makes classifiers; leave it out with --objective generate."
        )
    _refuse_labels(params, "--objective generate")
    roles = {"method": params["method"], "settings": None, "decoding": None}
    setup = open_task(params, report, roles, labelled=False, generates=True)
    if not setup.task.label_column:
        raise UserError("Name the column of the texts: --label-column NAME.")
    _one_pattern(setup)
    method = build("method", params["method"], **setup.options["method"])
    decoding = Decoding.of(**setup.options.get("decoding", {}))
    settings = settings_of(params, setup)
    folder = place(run_ or f"runs/{setup.task.name}-generate-{params['seed']}")
    refuse(folder, resume)

    def rows(split: str) -> list[Row]:
        source = params[split] or setup.task.data.get(split)
        return setup.task.texts(source, reader=setup.reader) if source else []

    train = setup.task.texts(setup.table("train"), reader=setup.reader)
    dev, test = rows("dev"), rows("test")

    from promptforge.generation.metrics import need_metrics
    from promptforge.generation.train import train_generator
    from promptforge.tuning.tracking import check

    check(params["tracker"])
    if dev or test:
        need_metrics()
    backbone = load(params, report, setup.task)
    with kept(folder, report):
        run = train_generator(
            setup.task, train, backbone=backbone, method=method, dev=dev, test=test,
            settings=settings, decoding=decoding, seed=params["seed"], tracker=params["tracker"],
            init_from=params.get("init_from"), run=folder, resume=resume, report=report,
            compare_untrained=params["compare_untrained"],
        )  # fmt: skip
    if not processes.is_first():
        return
    if as_json:
        print_json({"run": str(folder), **run.to_json()})
        return
    for split, by in run.results.items():
        _show(f"On {split}", by)
    console().print(
        f"{run.trained.steps} steps, loss {run.trained.loss:.3f}, {run.seconds:.0f} s. Kept in "
        f"[bold]{plain(folder)}[/]; next: promptforge generate {plain(folder)} --data FILE"
    )


def _refuse_labels(params: Mapping[str, Any], who: str) -> None:
    for name, nothing in _FOR_LABELS.items():
        if name in params and params[name] not in nothing:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} is for tasks with labels; leave it out with {who}.")


# --- evaluate -------------------------------------------------------------------------------------


def measure(setup: Setup, as_json: bool) -> None:
    """`promptforge evaluate` of a task or run that generates text."""
    from promptforge.generation.metrics import need_metrics

    _refuse_labels(setup.params, "a task that generates text")
    need_metrics()
    _one_pattern(setup)
    rows = setup.task.texts(setup.table(setup.params["split"]), reader=setup.reader)
    generator = _generator(setup)
    evaluation = generator.evaluate(rows[: setup.params["limit"]])
    (pattern,) = generator.task.patterns
    if as_json:
        print_json({pattern: evaluation.to_json()})
    else:
        _show("", {pattern: evaluation})


def _show(title: str, by: Mapping[str, TextEvaluation]) -> None:
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", show_edge=False)
    for head in ("", "loss", "perplexity", "BLEU", "ROUGE-1", "ROUGE-2", "ROUGE-L", "length"):
        table.add_column(head, justify="right" if head else "left")
    for who, e in by.items():
        scores = [f"{n:.1f}" for n in (e.bleu, e.rouge1, e.rouge2, e.rougeL)]
        cells = [plain(who), f"{e.loss:.3f}", f"{e.perplexity:.3g}", *scores, f"{e.length:.2f}"]
        table.add_row(*cells, style="bold green" if who == "tuned" else None)
    one = next(iter(by.values()))
    out = console()
    out.print(table)
    out.print(
        f"[dim]{one.texts} texts, {one.rows} references; sacrebleu {plain(one.signature)}[/]\n"
    )
