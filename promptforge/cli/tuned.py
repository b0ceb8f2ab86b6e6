"""Commands on what was tuned: TASK is the folder of a run or of an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptforge.cli.setup import Setup, check_kind, options_of
from promptforge.errors import UserError

if TYPE_CHECKING:
    from promptforge.backbone.base import Backbone
    from promptforge.classifier import Classifier
    from promptforge.model import PromptModel
    from promptforge.progress import Reporter

#: Options of what was tuned, or of the model that it was tuned from.
FIXED = (
    "template", "text_column", "pattern", "verbalizer", "calibration", "unlabeled", "demonstrations",
    "samples", "model", "family", "revision", "ask", "adapter", "attention", "positions",
)  # fmt: skip


def refuse_tuned(params: Mapping[str, Any]) -> UserError:
    """The error where a command takes a task, and was given what was trained."""
    import click

    context = click.get_current_context(silent=True)
    command = (context and context.info_name) or "this"
    given = params["task"]
    do = (
        f"To go on from what it learned, name the task and give --init-from {given}."
        if "init_from" in params
        else f"Name the task, and {given} as its --model."
    )
    return UserError(f"{given} is a trained model, and {command} takes a task. {do}")


def open_tuned(
    folder: Path, params: dict[str, Any], report: Reporter, generates: bool | None
) -> Setup:
    """The task of an artifact; what it was tuned with cannot be changed here.

    What `forge.toml` says of that is meant for tasks, and passed over.

    Raises:
        UserError: an option that cannot be changed was typed; a task of another kind.
    """
    from promptforge.task import Task
    from promptforge.tuning.run import artifact_task

    for name in FIXED:
        if params.get(name) and _source(name) not in ("DEFAULT", "DEFAULT_MAP"):
            raise UserError(
                f"--{name.replace('_', '-')} cannot be changed in {folder}: it is part of what was tuned."
            )
    params.update({name: None for name in FIXED if params.get(name)})
    task = Task.from_json(artifact_task(folder))
    check_kind(task, generates)
    if params.get("label_column"):
        task = replace(task, label_column=params["label_column"])
        task.check()
    roles = {"exit-policy": params.get("exit_policy")}
    options, reader = options_of(params, roles, params.get("data"))
    return Setup(task, report, params, options, reader, artifact=folder)


def _source(name: str) -> str:
    """Where an option's value comes from, by click's name: DEFAULT, DEFAULT_MAP (`forge.toml`), ..."""
    import click

    context = click.get_current_context(silent=True)
    source = context.get_parameter_source(name) if context else None
    return source.name if source else ""


def reading(params: Mapping[str, Any]) -> dict[str, Any]:
    """How an artifact's model is loaded: in its own dtype, unless the user names one."""
    return {
        **{key: params[key] for key in ("device", "batch_tokens")},
        "dtype": params["dtype"] if _source("dtype") not in ("", "DEFAULT") else None,
        "trust_remote_code": bool(params.get("trust_remote_code")),
    }


def load_tuned(setup: Setup) -> Classifier:
    """The tuned classifier that TASK names, its prompts cut to --max-length."""
    from promptforge.artifact import load

    assert setup.artifact is not None
    made = load(setup.artifact, report=setup.report, **reading(setup.params))
    # The one that takes the fewest tokens says what is too long for all.
    for backbone in sorted(_backbones_of(made), key=lambda one: one.frame.max_length):
        limit(backbone, setup)
    return made


def limit(backbone: Backbone, setup: Setup) -> None:
    """Cut the prompts of a tuned model to --max-length, where that is given.

    Raises:
        UserError: the model takes fewer tokens.
    """
    length, most = setup.params.get("max_length"), backbone.frame.max_length
    if not length:
        return
    if length > most:
        raise UserError(f"--max-length {length}: {setup.artifact} takes at most {most} tokens.")
    backbone.limit(length)


def _backbones_of(classifier: Classifier) -> list[Backbone]:
    """The backbones of a classifier from an artifact, each once: members may be of several models."""
    from promptforge.tuning.members import Ensemble

    classifier = classifier.inner
    if isinstance(classifier, Ensemble):
        found = [one for made in classifier.members.values() for one in _backbones_of(made)]
        return list({id(one): one for one in found}.values())
    return [classifier.backbone]  # type: ignore[attr-defined]


def tuned_prompts(setup: Setup) -> PromptModel:
    """The model with the templates that TASK, a run or an artifact, was tuned with.

    Raises:
        UserError: it has none of its own.
    """
    from promptforge.exits.model import ExitModel
    from promptforge.model import PromptModel
    from promptforge.tuning.members import Ensemble

    model = load_tuned(setup).inner
    model = model.plain if isinstance(model, ExitModel) else model
    if isinstance(model, PromptModel):
        return model
    if isinstance(model, Ensemble):
        folders = sorted(str(p.parent) for p in Path(setup.artifact or "").rglob("artifact.json"))
        raise UserError(
            f"{setup.artifact} is an ensemble: name one of its members, such as {folders[-1]}."
        )
    raise UserError(f"{setup.artifact} has no template: it classifies a row's text without a mask.")


def digest(folder: Path) -> str:
    """What an artifact holds, in few letters: each header has the checksum of its tensors."""
    import hashlib

    from promptforge.tuning.run import ARTIFACT_FILE

    found = hashlib.sha256()
    for path in sorted(folder.rglob(ARTIFACT_FILE)):
        found.update(path.read_bytes())
    return found.hexdigest()
