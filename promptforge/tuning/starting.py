"""`--init-from`: what another task's training gave, as the start of this one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from promptforge import artifact, artifact_files
from promptforge.backbone.addition import Addition
from promptforge.backbone.base import Backbone
from promptforge.backbone.weights import Tunable, Weights
from promptforge.errors import UserError, listed
from promptforge.task import Task
from promptforge.tuning.method import TuningMethod
from promptforge.tuning.run import find_artifact, one_for_each

if TYPE_CHECKING:
    from promptforge.model import PromptModel
    from promptforge.progress import Reporter
    from promptforge.tuning.texts import Head
    from promptforge.verbalizer import Verbalizer, Words

_HEAD = "the classification head"


@dataclass(frozen=True)
class Start:
    """Tuned parameters to start from.

    Attributes:
        path: where they were read, for messages.
        weights: they.
        digest: changes where they do.
        data: what the artifact says of itself; nothing where it is another program's folder.
        tensors: what it holds besides the weights.
        model: the folder that `--model` takes for the same model; "" where there is none.
    """

    path: str
    weights: Weights
    digest: str
    data: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    model: str = ""

    @classmethod
    def open(cls, path: str | Path, member: str, backbone: Backbone, method: TuningMethod) -> Start:
        """Read an artifact, or what the method reads of other programs' folders.

        Args:
            path: the folder of a run, of an artifact, or of a peft adapter. Of an ensemble the member of
                the same name is taken.

        Raises:
            UserError: nothing of the kind is there; it was tuned on another model or by another method.
            PromptForgeError: its files are damaged.
        """
        folder = artifact.member_folder(path, member)
        if folder is None:
            added = method.read(backbone, Path(path))
            if added is None:
                nothing = f"there is no artifact, and nothing that method {method.name!r} reads."
                raise UserError(f"--init-from {path}: {one_for_each(path) or nothing}")
            files = sorted(p for p in Path(path).iterdir() if p.is_file())
            told = {p.name: artifact_files.sha256(p) for p in files}
            return cls(str(path), Weights(added=added), json.dumps(told))
        # What reads otherwise (longer, with another attention) may start from it too.
        parts = artifact.open_parts(folder, backbone=backbone, alike=False)
        if parts.weights is None:
            raise UserError(f"--init-from {path}: nothing was tuned there.")
        told = {"weights": parts.data.get("sha256", ""), **parts.data.get("files", {})}
        given = str(path) if folder == find_artifact(path) else str(folder)
        model = given if _merges(parts.weights.added) else ""
        return cls(str(path), parts.weights, json.dumps(told), parts.data, parts.tensors, model)

    def begin(self, tunable: Tunable, addition: Addition | None, method: TuningMethod) -> None:
        """Write the values into what is trained.

        Raises:
            UserError: they are of another method, or of other shapes.
        """
        added, who = self.weights.added, f"--init-from {self.path}"
        theirs = added.made_by.get("name") if added is not None else None
        if theirs != (method.name if addition is not None else None):
            or_else = (
                f", or, to go on from a tuned model, give --model {self.model}"
                if self.model
                else ""
            )
            raise UserError(
                f"{who}: it was tuned by {f'method {theirs!r}' if theirs else 'a method that adds nothing'}, and this "
                f"is method {method.name!r}. Choose the same method{or_else}."
            )
        there = {*self.weights.tensors, *self.weights.rows}
        if strange := sorted(there ^ tunable.parameters.keys()):
            whose = "there" if strange[0] in there else "here"
            raise UserError(
                f"{who}: {listed(strange, 3)} of the model were tuned {whose} alone: it was another method than "
                f"{method.name!r}, or other options of it."
            )
        tunable.put(self.weights)
        if added is not None and addition is not None:
            with torch.no_grad():
                try:
                    addition.start_from(added)
                except UserError as error:
                    raise UserError(f"{who}: {error}") from None

    def begin_verbalizer(self, verbalizer: Verbalizer, model: PromptModel, pattern: str) -> None:
        """Write what a verbalizer learned there into this one, or warn that it begins anew.

        It belongs to its labels and their words, as in `PromptModel.with_words`.

        Args:
            verbalizer: of `model`, bound to the words of `pattern`.
        """
        here = _Learned(
            f"verbalizer {verbalizer.name!r}",
            list(model.labels),
            model.task.words_for(pattern),
            verbalizer.parameters(),
        )
        if pattern in model.tuned:  # what was fitted just now, on this task's rows, stays
            here.fitted = {n for n, p in here.values.items() if not p.requires_grad}
        self._hand_over(here, model.report, pattern)

    def begin_head(self, head: Head, labels: Sequence[str], report: Reporter) -> None:
        """Write the classification head of there into this one, or warn that it begins anew."""
        own = dict(head.named_parameters())
        self._hand_over(_Learned(_HEAD, list(labels), {}, own), report)

    def _hand_over(self, here: _Learned, report: Reporter, pattern: str = "") -> None:
        there = self._learned(pattern)
        if not there.values:
            return
        if why := here.misfit(there):
            report.warn(
                f"--init-from {self.path}: what {there.what} learned there is left out, and {here.what} begins "
                f"anew: {why}."
            )
            return
        with torch.no_grad():
            for name in here.values.keys() - here.fitted:
                here.values[name].copy_(there.values[name])

    def _learned(self, pattern: str) -> _Learned:
        """What learned to score labels there: under this pattern, or under the first."""
        data, tensors = self.data, self.tensors
        if not tensors:
            return _Learned("nothing")
        if data["kind"] == "head":
            return _Learned(_HEAD, data["labels"], {}, artifact_files.under("head/", tensors))
        if data["kind"] != "prompt":
            return _Learned(f"the {data['kind']} model", values=tensors)
        task = Task.from_json(data["task"])
        own = {n.removeprefix("verbalizer/").rpartition("/")[0] for n in tensors}
        found = pattern if pattern in own else min(own)
        return _Learned(
            f"verbalizer {data['verbalizer']['name']!r}",
            list(task.labels),
            task.words_for(found),
            artifact_files.under(f"verbalizer/{found}/", tensors),
        )


@dataclass
class _Learned:
    """What learned to score labels: a verbalizer or a head.

    Attributes:
        what: it, for messages.
        labels, words: what it scores.
        values: by name.
        fitted: names of values that stay as they are.
    """

    what: str
    labels: Sequence[str] = ()
    words: Words = field(default_factory=dict)
    values: Mapping[str, Tensor] = field(default_factory=dict)
    fitted: set[str] = field(default_factory=set)

    def misfit(self, other: _Learned) -> str:
        """Why the values of another are none for this one; "": they are."""
        if self.what != other.what:
            return "they are not of one kind"
        if self.labels != other.labels:
            return f"the labels there are {listed(list(other.labels))}"
        if self.words != other.words:
            return "the label words there are others"
        for name in {**other.values, **self.values}:
            there, here = (
                tuple(one[name].shape) if name in one else "nothing"
                for one in (other.values, self.values)
            )
            if there != here:
                return f"{name} is {there} there, and {here} here"
        return ""


def _merges(added: Addition | None) -> bool:
    """Whether matrices of the model can hold what was added, as `--model` has it."""
    if added is None:
        return True
    return (
        type(added).install is Addition.install
        and not added.soft()
        and not added.prefixes()
        and all(
            delta.activation == "identity"
            and delta.source in ("", name)
            and not any(isinstance(p, Tensor) for p in (delta.norm, delta.down_bias, delta.up_bias))
            for name, delta in added.deltas().items()
        )
    )
