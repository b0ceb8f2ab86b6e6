"""From command-line options to a task, its data and a prompt model; shared by the commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptforge.cli.config import typed
from promptforge.errors import UserError
from promptforge.remote import expanded, place

if TYPE_CHECKING:
    from pydantic import BaseModel

    from promptforge.classifier import Classifier
    from promptforge.data import Example, ReaderChoice, Row
    from promptforge.progress import Reporter
    from promptforge.selection import DemonstrationSelector
    from promptforge.task import Task
    from promptforge.template import Template
    from promptforge.tuning.backends import Backend
    from promptforge.verbalizer import LabelWords

MODEL_KEYS = (
    "family", "dtype", "device", "revision", "trust_remote_code", "max_length", "batch_tokens", "ask",
    "attention", "positions",
)  # fmt: skip


@dataclass
class Setup:
    """A task with what was read for it, before any model is loaded.

    Attributes:
        options: role -> what `-o` says for it.
        reader: how every table is read.
        words: the label words of `--verbalizer FILE`.
        artifact: the tuned classifier that TASK names, where it names one.
        examples: the labelled rows of `--data`, where the task was made from them.
    """

    task: Task
    report: Reporter
    params: dict[str, Any]
    options: dict[str, dict[str, Any]]
    reader: ReaderChoice
    words: LabelWords | None = None
    artifact: Path | None = None
    examples: list[Example] = field(default_factory=list)

    def table(self, split: str) -> str:
        """--data, else the task's own table of `split`."""
        if self.artifact and not self.params.get("data"):
            raise UserError(f"{self.artifact} brings no data: give --data FILE.")
        return self.params.get("data") or self.task.path(split)

    def labelled(self, source: str, *, complete: bool = True) -> list[Example]:
        """The labelled rows of a table."""
        return self.task.examples(source, self.report, complete=complete, reader=self.reader)

    def unlabeled(self) -> list[Row] | None:
        """The rows of --unlabeled, else the task's own unlabelled ones, else None."""
        source = self.params.get("unlabeled") or self.task.data.get("unlabeled")
        return self.task.rows(source, reader=self.reader) if source else None

    def read(self) -> dict[str, str]:
        """The tables that the command may read, by what names them."""
        given = {f"--{name}": self.params.get(name) for name in ("dev", "test", "unlabeled")}
        given["the input, --data"] = self.params.get("data")
        own = {f"the task's {name}": place for name, place in self.task.data.items()}
        return {name: place for name, place in {**given, **own}.items() if place}


def check_apart(output: str, tables: Mapping[str, str]) -> None:
    """Raise a `UserError` where a file that is to be written is one that is read.

    Args:
        output: a file; "-" is standard output.
        tables: what names a table -> the table.
    """
    if output == "-" or not (target := expanded(output)).is_file():
        return
    for name, source in tables.items():
        table = place(source)
        if isinstance(table, Path) and table.is_file() and target.samefile(table):
            raise UserError(f"{output} is {name}: name another file for the output.")


def open_task(
    params: dict[str, Any],
    report: Reporter,
    roles: Mapping[str, str | None] | None = None,
    *,
    labelled: bool = True,
    generates: bool | None = False,
    tuned: bool = False,
) -> Setup:
    """The task that the options describe, its templates and the `-o` options checked.

    Args:
        params: the command's options.
        report: where warnings go.
        roles: role -> the component chosen for it, or None; `-o` options are for these.
        labelled: without TASK and label words the labels are learned from --data, so its
            examples are read here.
        generates: whether the task must be one that generates text; None: either will do.
        tuned: whether TASK may be a run or an artifact, with whose model the command works.

    Raises:
        UserError: options that do not fit, a mistake in the data or a template, a run where it
            has to be a task.
    """
    from dataclasses import replace

    from promptforge.plugins import manager
    from promptforge.task import Task, task_from_data
    from promptforge.tuning.run import find_artifact

    manager().pm.hook.promptforge_configure(settings=params)
    folder = find_artifact(params["task"]) if params.get("task") else None
    if folder is not None:
        from promptforge.cli.tuned import open_tuned, refuse_tuned

        if not tuned:
            raise refuse_tuned(params)
        return open_tuned(folder, params, report, generates)
    templates = [read_template(t, i) for i, t in enumerate(params.get("template") or ())]
    words = _label_words(params)
    table = params.get("data")
    found: list[Example] = []
    if params.get("exit_policy"):
        raise UserError(
            "--exit-policy is for a model that was trained with exits: 'promptforge train TASK --exits joint "
            "--run FOLDER', then name FOLDER in place of TASK."
        )
    if params.get("task"):
        if params.get("text_column"):
            raise UserError(
                "--text-column goes with --data and --template, without a TASK: the task names its columns."
            )
        task = Task.load(params["task"], report)
        check_kind(task, generates)
        if templates:
            inline = Task.inline(templates, labels=task.labels, inputs=task.inputs)
            task = replace(task, patterns=inline.patterns)
        if params.get("label_column"):
            task = replace(task, label_column=params["label_column"])
        task.check()
        source = table or next(iter(task.data.values()), None)
        options, reader = options_of(params, roles or {}, source)
    else:
        if not table or not templates:
            raise UserError(
                "Give a TASK (a folder or a shipped task: 'promptforge templates list'), or --data FILE "
                "with --template, for example --template '{{ text }} It was {{ mask }}'."
            )
        columns = params.get("text_column") or tuple(
            dict.fromkeys(c for t in templates for c in t.columns)
        )
        label_column = params.get("label_column") or "label"
        options, reader = options_of(params, roles or {}, table)
        if generates:
            task = Task.inline(
                templates, labels={}, label_column=params.get("label_column") or "", inputs=columns,
                name=Path(table).stem, generates=True,
            )  # fmt: skip
        elif words:
            task = Task.inline(
                templates, labels=words.labels, label_column=label_column, inputs=columns,
                name=Path(table).stem,
            )  # fmt: skip
        elif labelled:
            task, found = task_from_data(
                table, columns, label_column, templates, report, reader=reader
            )
        else:
            raise UserError(
                "Without a TASK the labels are not known: give --verbalizer FILE of a search."
            )
    if task.label_column in task.inputs and not task.generates:
        raise UserError(
            f"{task.label_column!r} is the column of the labels, which no prompt may show, and the template "
            "reads it. Name the right one with --label-column, or change the template."
        )
    task = task.choose(params.get("pattern") or ())
    task.check()
    if words:
        words.check_labels(list(task.labels), str(params["verbalizer"]))
        for pattern in task.patterns:
            words.words_for(pattern)
    return Setup(task, report, params, options, reader, words, examples=found)


def check_kind(task: Task, generates: bool | None) -> None:
    """Raise a `UserError` where a task does not do what the command is for; None: either will do."""
    if generates:
        task.need_text("This")
    elif generates is False:
        task.need_labels()


def backend_of(params: Mapping[str, Any], options: Mapping[str, dict[str, Any]]) -> Backend | None:
    """The backend of --backend with its `-o` options; a `UserError` where it is not installed."""
    from promptforge.tuning.backends import backend_class

    if not params["backend"]:
        return None
    made: Backend = backend_class(params["backend"]).build(**options.get("backend", {}))
    made.check()
    return made


def class_roles(params: dict[str, Any]) -> dict[str, str | None]:
    """The components that `class_options` choose, for `open_task`."""
    return {
        "verbalizer": verbalizer_name(params, _label_words(params)),
        "calibration": params.get("calibration"),
        "demonstrations": params.get("demonstrations"),
    }


def options_of(
    params: dict[str, Any], roles: Mapping[str, str | None], source: str | None
) -> tuple[dict[str, dict[str, Any]], ReaderChoice]:
    """What `-o` says for each role, and how tables are read.

    What it says for --attention is left in `params`, where `load` finds it.
    """
    from promptforge.components import parse_options
    from promptforge.data import ReaderChoice, choose_reader
    from promptforge.plugins import component

    named: str | None = params.get("reader")
    if named:
        component("reader", named)
    pairs = list(params.get("options") or ())
    read_by = None
    roles = {**roles, "attention": params.get("attention")}
    if roles["attention"]:
        component("attention", roles["attention"])
    found: dict[str, dict[str, Any]] = {role: {} for role in roles}
    if pairs:
        chosen = {role: name for role, name in roles.items() if name}
        read_by = named or (choose_reader(source).name if source else "csv")
        chosen["reader"] = read_by
        # A role's class may need torch to be imported: load those that are meant.
        prefixes = {pair.partition("=")[0].strip().rpartition(".")[0] for pair in pairs}
        meant = prefixes if prefixes <= {*chosen, *roles} else chosen.keys()
        classes: dict[str, type[BaseModel]] = {
            role: component(role, name)
            for role, name in chosen.items()
            if role in meant and role not in ("exits", "backend")
        }
        if chosen.get("backend"):
            from promptforge.tuning.backends import backend_class

            classes["backend"] = backend_class(chosen["backend"])
        if chosen.get("exits"):
            from promptforge.exits.train import exit_training

            classes["exits"] = exit_training(chosen["exits"])
        if "settings" in roles:
            from promptforge.tuning.settings import Settings

            classes["settings"] = Settings
        if "decoding" in roles:
            from promptforge.generation.decoding import Decoding

            classes["decoding"] = Decoding
        found |= parse_options(pairs, classes)
    params["attention_options"] = found.pop("attention")
    choice = ReaderChoice(named, found.pop("reader", {}), read_by)
    if choice.options and source:
        choose_reader(source, choice)
    return found, choice


def read_template(text: str, index: int = 0) -> Template:
    """A template from a file or from the text itself."""
    from promptforge.template import Template

    if "{{" in text:
        return Template(text, name="inline" if index == 0 else f"inline-{index + 1}")
    if not Path(text).is_file():
        raise UserError(
            f"--template {text!r} is neither a file nor a template (which holds '{{{{ mask }}}}')."
        )
    return Template.from_file(text)


def _label_words(params: dict[str, Any]) -> LabelWords | None:
    from promptforge.verbalizer import LabelWords

    given = params.get("verbalizer")
    return (
        LabelWords.load(given)
        if given and (given.endswith(".json") or Path(given).is_file())
        else None
    )


def verbalizer_name(params: dict[str, Any], words: LabelWords | None) -> str:
    """The verbalizer component that is meant."""
    return words.verbalizer if words else (params.get("verbalizer") or "manual")


def build_model(setup: Setup, rows: Sequence[Row] | None = None) -> Classifier:
    """The classifier: options checked first, then the model loaded, then calibrated.

    Args:
        setup: the task.
        rows: rows for a calibration that needs some where no unlabelled ones are given.
    """
    from promptforge.model import PromptModel
    from promptforge.multilabel import MultiLabelModel
    from promptforge.plugins import build

    if setup.artifact is not None:
        from promptforge.cli.tuned import load_tuned

        tuned = load_tuned(setup)
        if setup.params.get("exit_policy"):
            from promptforge.exits.model import set_policy

            set_policy(tuned, setup.params["exit_policy"], setup.options["exit-policy"])
        return tuned
    params, words, options = setup.params, setup.words, setup.options
    verbalizer = build(
        "verbalizer",
        verbalizer_name(params, words),
        **{**(words.options if words else {}), **options["verbalizer"]},
    )
    calibration = None
    if params.get("calibration"):
        calibration = build("calibration", params["calibration"], **options["calibration"])
    calibration_rows: Sequence[Row] | None = setup.unlabeled() if verbalizer.fits_rows else None
    if calibration is not None and calibration.needs_rows:
        calibration_rows = calibration_rows or setup.unlabeled() or rows
        if not calibration_rows:
            raise UserError(
                f"--calibration {calibration.name} learns from rows: give --unlabeled FILE."
            )
    elif not verbalizer.fits_rows and params.get("unlabeled") and typed("unlabeled"):
        raise UserError(
            f"--unlabeled {params['unlabeled']}: nothing here learns from rows without labels (--calibration "
            "batch does): leave it out."
        )
    demonstrations = fit_demonstrations(setup)
    multi = setup.task.multi_label
    if multi and calibration_rows:
        calibration_rows = multi.asked(calibration_rows)
    backbone = load(params, setup.report, setup.task)
    model = PromptModel(
        backbone,
        setup.task.binary,
        words=words,
        verbalizer=verbalizer,
        calibration=calibration,
        demonstrations=demonstrations,
        samples=params.get("samples") or 1,
        weights=adapter_weights(params, backbone),
        report=setup.report,
    )
    if calibration_rows:
        model.calibrate(calibration_rows)
    return MultiLabelModel(model, multi) if multi else model


def adapter_weights(params: Mapping[str, Any], backbone: Any) -> Any:
    """The weights of --adapter, a folder that peft saved; None without."""
    from promptforge.backbone.weights import Weights
    from promptforge.plugins import build

    if not params.get("adapter"):
        return None
    added = build("method", "peft").read(backbone, Path(params["adapter"]))
    if added is None:
        raise UserError(f"--adapter {params['adapter']}: there is no adapter_config.json there.")
    return Weights(added=added)


def fit_demonstrations(setup: Setup) -> DemonstrationSelector | None:
    """The selector of --demonstrations, fitted on the task's training rows."""
    from promptforge.plugins import build
    from promptforge.selection import fit_selector, warn_samples

    name = setup.params.get("demonstrations")
    warn_samples(setup.params.get("samples") or 1, name, setup.report)
    if not name:
        return None
    selector: DemonstrationSelector = build(
        "demonstrations", name, **setup.options["demonstrations"]
    )
    if not setup.task.folder and "train" not in setup.task.data:
        raise UserError(
            f"--demonstrations {name} shows a task's labelled rows: name a TASK that has a train table, in its "
            "task.toml, [data]."
        )
    examples, task = setup.labelled(setup.task.path("train")), setup.task.binary
    if setup.task.multi_label:
        examples = setup.task.multi_label.questions(examples)
    fit_selector(selector, examples, list(task.labels), columns=task.inputs, report=setup.report)
    return selector


def load(params: dict[str, Any], report: Reporter, *tasks: Task) -> Any:
    """The backbone that the model options name; the tasks are checked for its family first."""
    from promptforge.models import DEFAULT_MODEL

    name = params.get("model") or DEFAULT_MODEL
    report.note(f"Loading {name}")
    from promptforge.backbone import load_model

    def check(family: str) -> None:
        for task in tasks:
            task.check(family=family)

    return load_model(
        name, report=report, check=check, attention_options=params.get("attention_options"),
        **{k: params[k] for k in MODEL_KEYS},
    )  # fmt: skip
