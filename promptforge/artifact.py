"""Tuned classifiers on disk: safetensors and JSON with checksums. Nothing is executed or unpickled.

An artifact is a folder: `artifact.json` says what it is, `weights.safetensors` holds only what
was changed. It names its backbone by id, revision and checksum, and loads on no other.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from promptforge import remote
from promptforge.artifact_backbone import check_backbone
from promptforge.artifact_files import (
    BINARY,
    FILE,
    FORMAT,
    MEMBERS,
    PLAIN,
    TENSORS,
    WRAPPING,
    found,
    header,
    own_files,
    sha256,
    tensors_of,
    undamaged,
    under,
)
from promptforge.artifact_files import about as about
from promptforge.artifact_files import member_folder as member_folder
from promptforge.artifact_files import size as size
from promptforge.backbone.addition import Addition
from promptforge.backbone.base import Backbone
from promptforge.backbone.dtypes import cast, dtype_of
from promptforge.backbone.weights import Weights
from promptforge.classifier import Classifier
from promptforge.data import Example
from promptforge.errors import PromptForgeError, UserError, listed
from promptforge.exits.exits import end_of
from promptforge.exits.model import ExitModel
from promptforge.folders import whole
from promptforge.model import PromptModel
from promptforge.multilabel import MultiLabel, MultiLabelModel
from promptforge.plugins import build
from promptforge.progress import Reporter
from promptforge.row_json import row_from_json
from promptforge.scale import Scale
from promptforge.selection import fit_selector
from promptforge.task import Task
from promptforge.tuning import checkpoint
from promptforge.tuning.members import Ensemble, HeadModel
from promptforge.tuning.texts import HEADS, Texts


class Savable(ABC):
    """What is tuned and is no classifier of one task; a plugin's own kind of artifact.

    Attributes:
        backbone: what it was tuned from.
        weights: the tuned weights, or None.
    """

    backbone: Backbone
    weights: Weights | None

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Everything but backbone and tensors; its "kind" is a word of its own."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Further tensors by name."""


@dataclass(frozen=True)
class Parts:
    """An artifact taken apart: its JSON, the backbone it was tuned from, what was tuned."""

    data: dict[str, Any]
    backbone: Backbone
    weights: Weights | None
    tensors: dict[str, Tensor]


def save(
    classifier: Classifier | Savable, folder: str | Path, about: Mapping[str, Any] | None = None
) -> None:
    """Write a classifier into `folder`, whole or not at all.

    Args:
        classifier: a `PromptModel`, a `HeadModel`, an `ExitModel`, an `Ensemble` of them, a
            `MultiLabelModel` of one of these, or a `Savable`.
        folder: a path or a URL (`s3://BUCKET/FOLDER`); made anew; an artifact that is there is replaced.
        about: further JSON values to keep (figures, settings).

    Raises:
        UserError: the folder holds something else.
        PromptForgeError: no space, no permission.
    """
    if remote.is_url(folder):
        with TemporaryDirectory() as home:
            save(classifier, Path(home) / "artifact", about)
            remote.send(Path(home) / "artifact", str(folder))
        return
    folder = Path(remote.place(folder)).absolute()
    if folder.is_dir() and {p.name for p in folder.iterdir()} - own_files(folder):
        raise UserError(f"{folder} holds something else than an artifact. Name another folder.")
    with whole(folder, replace=True) as draft:
        _write(classifier, draft, dict(about or {}))


def _write(classifier: Classifier | Savable, folder: Path, about: dict[str, Any]) -> None:
    data: dict[str, Any] = {"format": FORMAT, "version": 1, "about": about}
    tensors = {}
    if isinstance(classifier, Ensemble):
        data |= {"kind": "ensemble", "shares": classifier.shares}
        for name, member in classifier.members.items():
            (folder / MEMBERS / name).mkdir(parents=True)
            _write(member, folder / MEMBERS / name, {})
    elif isinstance(classifier, MultiLabelModel):
        data |= {
            "kind": "multi-label",
            "multi_label": vars(classifier.multi_label),
            "threshold": classifier.threshold,
        }
        (folder / MEMBERS / BINARY).mkdir(parents=True)
        _write(classifier.binary, folder / MEMBERS / BINARY, {})
    elif isinstance(classifier, ExitModel):
        data |= {"kind": "exits"}
        tensors = {f"exits/{n}": p.detach() for n, p in classifier.exits.named_parameters()}
        (folder / MEMBERS / PLAIN).mkdir(parents=True)
        _write(classifier.plain, folder / MEMBERS / PLAIN, {})
    elif isinstance(classifier, HeadModel):
        data |= {
            "kind": "head",
            "labels": list(classifier.labels),
            "inputs": list(classifier.texts.inputs),
            "scale": vars(classifier.scale) if classifier.scale else None,
            "pooling": classifier.texts.pooling,
            "head": classifier.head.kind,
            "dropout": classifier.head.dropout.p,
            "backbone": _backbone(classifier.backbone),
        }
        tensors = {f"head/{n}": p.detach() for n, p in classifier.head.named_parameters()}
    elif isinstance(classifier, PromptModel):
        data |= {
            "kind": "prompt",
            "backbone": _backbone(classifier.backbone),
            **classifier.to_json(),
            "templates": templates_hash(classifier.task),
        }
        tensors = {
            f"verbalizer/{pattern}/{name}": value
            for pattern, by_name in classifier.tuned.items()
            for name, value in by_name.items()
        }
    elif isinstance(classifier, Savable):
        data |= {"backbone": _backbone(classifier.backbone), **classifier.to_json()}
        tensors = classifier.tensors()
    else:
        raise PromptForgeError(f"A {type(classifier).__name__} cannot be saved as an artifact.")
    weights = getattr(classifier, "weights", None)
    if weights is not None:
        tensors |= {f"model/{name}": value for name, value in weights.flat().items()}
        if weights.added is not None:
            data["added"] = weights.added.to_json()
            if weights.added.file:
                data["files"] = _write_added(weights.added, folder)
            else:
                tensors |= {f"added/{name}": t for name, t in weights.added.tensors().items()}
    if tensors:
        checkpoint.save(folder / TENSORS, tensors, {})
        data["sha256"] = sha256(folder / TENSORS)
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    (folder / FILE).write_text(text, encoding="utf-8")


def _write_added(added: Addition, folder: Path) -> dict[str, str]:
    """Files by which other programs read what was added too; name -> SHA-256."""
    checkpoint.save(folder / added.file, added.tensors(), {})
    for name, text in added.texts().items():
        (folder / name).write_text(text, encoding="utf-8")
    return {name: sha256(folder / name) for name in (added.file, *added.texts())}


def _backbone(backbone: Backbone) -> dict[str, Any]:
    with backbone.busy:  # its own weights are put in for it
        told = {**backbone.source, "sha256": backbone.checksum}
    commit = getattr(backbone.model.config, "_commit_hash", None)
    if commit and "revision" in told and not Path(told["name"]).is_dir():
        # A branch or nothing, as users name it, moves on: this is what it stood for.
        told["revision"] = commit
    if "ask" in told:
        told["ask"] = getattr(backbone, "ask", None)  # and what none stood for
    return told


def templates_hash(task: Task) -> str:
    """A hash of what the task's templates say."""
    sources = [[name, pattern.template.source] for name, pattern in task.patterns.items()]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def check_templates(data: Mapping[str, Any], task: Task, weights: Weights | None) -> None:
    """Raise a `UserError` where an artifact's templates are not those that its additions were tuned with."""
    now = templates_hash(task)
    if weights and weights.added and data.get("templates", now) != now:
        raise UserError(
            f"The templates of the task {task.name!r} in this artifact were changed after it was tuned, and what "
            "was tuned belongs to them. Put them back, or tune it again."
        )


def load(
    path: str | Path,
    *,
    backbone: Backbone | None = None,
    report: Reporter | None = None,
    **options: Any,
) -> Classifier:
    """A classifier from an artifact's folder, or from the folder of a run.

    Args:
        path: the folder or URL.
        backbone: the loaded model it was tuned from, that reads as it did then: with the same attention,
            positions, longest prompt and way of asking. Loaded by its name otherwise.
        options: for `load_model`: device, dtype, batch_tokens. The model is cast to another dtype after
            it was found to be the one that was tuned; by default it has its own.

    Raises:
        UserError: no artifact there; another backbone than the one it was tuned from, or one that
            reads otherwise.
        PromptForgeError: its files are damaged.
    """
    return _read(found(path), backbone, report or Reporter(), options)


def open_parts(
    path: str | Path,
    *,
    backbone: Backbone | None = None,
    report: Reporter | None = None,
    alike: bool = True,
    **options: Any,
) -> Parts:
    """What lies in an artifact with a backbone, for `Savable`s; other arguments and errors as `load`.

    Args:
        alike: whether `backbone` must read as the artifact was tuned; False: the weights decide alone.

    Raises:
        UserError: an ensemble, which has parts for each member.
    """
    folder = found(path)
    data = header(folder)
    if data["kind"] in WRAPPING:
        inner = folder / MEMBERS / WRAPPING[data["kind"]]
        return open_parts(inner, backbone=backbone, report=report, alike=alike, **options)
    if data["kind"] == "ensemble":
        members = [str(folder / MEMBERS / name) for name in data["shares"]]
        raise UserError(
            f"{folder} is an ensemble: name one of its members' folders, {listed(members)}."
        )
    return _parts(folder, data, backbone, report or Reporter(), options, alike)


def _read(
    folder: Path, backbone: Backbone | None, report: Reporter, options: dict[str, Any]
) -> Classifier:
    data = header(folder)
    if data["kind"] == "ensemble":
        members: dict[str, Classifier] = {}
        # Members may be of several models, of which one is given.
        loaded: dict[str, Backbone] = {}
        if backbone is not None:
            known = backbone.checksum
            loaded[known if known in tuned_from(folder) else _first(folder)] = backbone
        for name in data["shares"]:
            home = folder / MEMBERS / name
            key = _first(home)
            members[name] = _read(home, loaded.get(key), report, options)
            if (made := _backbone_of(members[name])) is not None:
                loaded.setdefault(key, made)
        return Ensemble(members, data["shares"])
    if data["kind"] == "multi-label":
        binary = _read(folder / MEMBERS / BINARY, backbone, report, options)
        with undamaged(folder):
            multi_label = MultiLabel.from_json(data["multi_label"])
            if multi_label is None:
                raise KeyError("labels")
        return MultiLabelModel(binary, multi_label, data["threshold"])
    if data["kind"] == "exits":
        plain = _read(folder / MEMBERS / PLAIN, backbone, report, options)
        exits = end_of(plain).make()
        exits.load_state_dict(under("exits/", tensors_of(folder, data)))
        assert isinstance(plain, PromptModel | HeadModel)
        if _is_cast(plain.backbone):
            exits.to(plain.backbone.model.dtype)
        return ExitModel(plain, exits)
    if data["kind"] == "generator":
        raise UserError(
            f"{folder} is no classifier but writes text: use 'promptforge generate', or Generator.load."
        )
    if data["kind"] not in ("head", "prompt"):
        raise UserError(
            f"{folder} is no classifier but a {data['kind']} model, for any task: name the task, and "
            f"{folder} as its --model."
        )
    parts = _parts(folder, data, backbone, report, options, True)
    backbone, weights, tensors = parts.backbone, parts.weights, parts.tensors
    if data["kind"] == "head":
        kind = HEADS[data.get("head", "dense")]  # older than the linear one: none is named
        head = kind(backbone.width, len(data["labels"]), data["dropout"])
        own = under("head/", tensors)
        head.load_state_dict(own)
        head.to(backbone.device, next(iter(own.values())).dtype)
        added = weights.added if weights else None
        opening = added.opening if added is not None else ()
        texts = Texts(backbone, data["inputs"], data["pooling"], opening)
        with undamaged(folder):
            scale = Scale.from_json(data.get("scale"))
        return HeadModel(texts, head, data["labels"], weights, report, scale)
    return _prompt_model(folder, data, backbone, weights, tensors, report)


def _parts(
    folder: Path,
    data: dict[str, Any],
    backbone: Backbone | None,
    report: Reporter,
    options: dict[str, Any],
    alike: bool,
) -> Parts:
    with undamaged(folder):
        saved = data["backbone"]
        _ = saved["name"], saved["sha256"]
        if "task" in data:  # whoever asked for the parts makes it
            Task.from_json(data["task"])
    dtype, given = None, backbone is not None
    if backbone is None:
        # Tuned weights and checksum are those of the model in its own dtype.
        dtype = options.get("dtype")
        options = {key: value for key, value in options.items() if key != "dtype"}
        if dtype is not None:
            dtype_of(dtype)  # a mistake is said before a model is loaded
        backbone = _load_backbone(saved, report, options)
    check_backbone(folder, saved, backbone, alike=alike and given)
    if dtype is not None:
        cast(backbone, dtype)
    tensors = tensors_of(folder, data)
    if _is_cast(backbone):
        # What was tuned computes with the model, so it is cast as the model was.
        moved = {n: v.to(backbone.model.dtype) for n, v in tensors.items() if v.is_floating_point()}
        tensors |= moved
    of_model = under("model/", tensors)
    own = {n: v for n, v in tensors.items() if not n.startswith(("model/", "added/"))}
    weights = Weights.of_flat(of_model) if of_model or "added" in data else None
    if weights is not None and "added" in data:
        with undamaged(folder):
            made_by = data["added"]["method"]
            method = build("method", made_by["name"], **made_by["options"])
            weights.added = method.restore(backbone, data["added"], under("added/", tensors))
    return Parts(data, backbone, weights, own)


def _prompt_model(
    folder: Path,
    data: dict[str, Any],
    backbone: Backbone,
    weights: Weights | None,
    tensors: Any,
    report: Reporter,
) -> PromptModel:
    task = Task.from_json(data["task"])
    check_templates(data, task, weights)
    demonstrations = None
    with undamaged(folder):
        saved = data["verbalizer"]
        verbalizer = build("verbalizer", saved["name"], **saved["options"])
        if saved := data["demonstrations"]:
            demonstrations = build("demonstrations", saved["name"], **saved["options"])
            examples = [
                Example(row_from_json(e["row"]), e["label"], e["number"]) for e in saved["examples"]
            ]
    if demonstrations is not None:
        fit_selector(
            demonstrations, examples, list(task.labels), columns=task.inputs, report=report
        )
    tuned: dict[str, dict[str, Any]] = {}
    for key, value in tensors.items():
        kind, _, rest = key.partition("/")
        if kind == "verbalizer":
            pattern, _, name = rest.rpartition("/")
            tuned.setdefault(pattern, {})[name] = value
    return PromptModel(
        backbone,
        task,
        verbalizer=verbalizer,
        demonstrations=demonstrations,
        samples=data["samples"] if demonstrations is not None else 1,
        weights=weights,
        tuned=tuned,
        report=report,
    )


def _load_backbone(saved: dict[str, Any], report: Reporter, options: dict[str, Any]) -> Backbone:
    from promptforge.backbone import load_model

    # Whether to run code that comes with a model is the user's to say, never a file's.
    left_out = ("sha256", "name", "trust_remote_code")
    known = {key: value for key, value in saved.items() if key not in left_out}
    return load_model(saved["name"], report=report, trained=True, **{**known, **options})


def _is_cast(backbone: Backbone) -> bool:
    """Whether a model has another precision than the one that it was tuned and saved in."""
    own = backbone.source.get("dtype")
    return own is not None and dtype_of(own) != backbone.model.dtype


def tuned_from(path: str | Path) -> list[str]:
    """The checksums of the models that an artifact's parts were tuned from, each once, in their order.

    Raises:
        UserError, PromptForgeError: as `load`.
    """
    folder = found(path)
    data = header(folder)
    if data["kind"] == "ensemble":
        own = [sum_ for name in data["shares"] for sum_ in tuned_from(folder / MEMBERS / name)]
        return list(dict.fromkeys(own))
    if inner := WRAPPING.get(data["kind"]):
        return tuned_from(folder / MEMBERS / inner)
    with undamaged(folder):
        return [data["backbone"]["sha256"]]


def _first(folder: Path) -> str:
    return tuned_from(folder)[0]


def _backbone_of(classifier: Classifier) -> Backbone | None:
    if isinstance(classifier, Ensemble):
        return _backbone_of(next(iter(classifier.members.values())))
    backbone: Backbone | None = getattr(classifier, "backbone", None)
    return backbone
