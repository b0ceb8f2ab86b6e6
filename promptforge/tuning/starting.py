"""`--init-from`: what another task's training gave, as the start of this one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from promptforge import artifact, artifact_files
from promptforge.backbone.base import Backbone
from promptforge.backbone.weights import Tunable, Weights
from promptforge.errors import UserError, listed
from promptforge.tuning.method import TuningMethod

if TYPE_CHECKING:
    from promptforge.backbone.addition import Addition


@dataclass(frozen=True)
class Start:
    """Tuned parameters to start from.

    Attributes:
        path: where they were read, for messages.
        weights: they.
        digest: changes where they do.
    """

    path: str
    weights: Weights
    digest: str

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
                raise UserError(
                    f"--init-from {path}: there is no artifact, and nothing that method {method.name!r} reads."
                )
            files = sorted(p for p in Path(path).iterdir() if p.is_file())
            told = {p.name: artifact_files.sha256(p) for p in files}
            return cls(str(path), Weights(added=added), json.dumps(told))
        parts = artifact.open_parts(folder, backbone=backbone)
        if parts.weights is None:
            raise UserError(f"--init-from {path}: nothing was tuned there.")
        told = {"weights": parts.data.get("sha256", ""), **parts.data.get("files", {})}
        return cls(str(path), parts.weights, json.dumps(told))

    def begin(self, tunable: Tunable, addition: Addition | None, method: TuningMethod) -> None:
        """Write the values into what is trained.

        Raises:
            UserError: they are of another method, or of other shapes.
        """
        added, who = self.weights.added, f"--init-from {self.path}"
        theirs = added.made_by.get("name") if added is not None else None
        if theirs != (method.name if addition is not None else None):
            raise UserError(
                f"{who}: it was tuned by {f'method {theirs!r}' if theirs else 'a method that adds nothing'}, and this "
                f"is method {method.name!r}. Choose the same method, or, to go on from a tuned model, give "
                f"--model {self.path}."
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
