"""How a fitted `PromptClassifier` is kept: its parameters as JSON, its classifier as bytes."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from promptforge import artifact
from promptforge.classifier import Classifier
from promptforge.data import label_text
from promptforge.errors import UserError
from promptforge.estimator_input import by_label


def packed(classifier: Classifier) -> bytes:
    """The files of a classifier's artifact, as one."""
    out = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(out, "w") as archive:
        home = Path(folder) / "artifact"
        artifact.save(classifier, home)
        for path in sorted(home.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(home).as_posix())
    return out.getvalue()


def unpacked(given: bytes, folder: str | Path) -> None:
    """Write what `packed` made to a folder again."""
    with zipfile.ZipFile(io.BytesIO(given)) as archive:
        archive.extractall(folder)


def kept(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """An estimator's parameters as JSON can hold them.

    Raises:
        UserError: one that it cannot.
    """
    made = dict(parameters)
    made |= {name: by_label(made[name]) for name in ("words", "class_weight")}
    if isinstance(made["random_state"], np.random.RandomState):
        made["random_state"] = None  # which draws a seed, as that would
    return {name: plain(value, name) for name, value in made.items()}


def plain(value: Any, what: str) -> Any:
    """The value of the parameter `what` as JSON can hold it; a `UserError` where it cannot."""
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, Mapping):
        return {label_text(key) or "": plain(item, what) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    if isinstance(value, list | tuple):
        return [plain(item, what) for item in value]
    if hasattr(value, "tolist"):  # numpy's and pandas'
        return plain(value.tolist(), what)
    if isinstance(value, Path):
        return str(value)
    raise UserError(
        f"The parameter {what} holds a {type(value).__name__}, which a saved estimator cannot keep: give it "
        "as text, numbers, lists and mappings of them."
    )
