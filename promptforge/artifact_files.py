"""An artifact's files: what its header says, its tensors with their checksums, its members' folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptforge.errors import PromptForgeError, UserError, listed
from promptforge.progress import Reporter
from promptforge.tuning import checkpoint
from promptforge.tuning.run import ARTIFACT_FILE, find_artifact, one_for_each

FILE = ARTIFACT_FILE
TENSORS, MEMBERS, BINARY, PLAIN = "weights.safetensors", "members", "binary", "plain"
FORMAT = "promptforge-artifact"
#: Kinds that put something around one other classifier, and its folder among the members.
WRAPPING = {"exits": PLAIN, "multi-label": BINARY}


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size(folder: Path) -> int:
    """Bytes of all of an artifact's files."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def member_folder(path: str | Path, member: str) -> Path | None:
    """The folder of an artifact, of the member of this name where it is an ensemble; None: none there.

    Raises:
        UserError: the ensemble has no such member.
    """
    folder = find_artifact(path)
    if folder is None or (data := header(folder))["kind"] not in ("ensemble", *WRAPPING):
        return folder
    if data["kind"] in WRAPPING:
        return member_folder(folder / MEMBERS / WRAPPING[data["kind"]], member)
    if member not in data["shares"]:
        raise UserError(
            f"{path} is an ensemble without a member {member!r}; it has {listed(list(data['shares']))}."
        )
    return folder / MEMBERS / member


def about(path: str | Path) -> dict[str, Any]:
    """What `save` was told to keep besides the classifier; errors as for `load`."""
    told: dict[str, Any] = header(found(path))["about"]
    return told


def found(path: str | Path) -> Path:
    """The folder of the artifact in a path or URL; a `UserError` where there is none."""
    folder = find_artifact(path)
    if folder is None:
        raise UserError(one_for_each(path) or f"There is no artifact in {path} (no {FILE}).")
    return folder


def warn_left_behind(
    path: str | Path, tensors: Mapping[str, Tensor], what: str, report: Reporter
) -> None:
    """Say what of an artifact stays in it where only its tuned weights go elsewhere.

    Args:
        tensors: what it holds besides the weights.
        what: what they become, for the message.
    """
    if any(name.startswith("verbalizer/") for name in tensors):
        report.warn(
            f"{path} also tuned its verbalizer: that stays there, and {what} alone reads otherwise."
        )
    around = _around(path)
    if several := around.get("multi-label"):
        threshold, of_task = several["threshold"], several["multi_label"].get("threshold")
        if threshold != (0.5 if of_task is None else of_task):
            report.warn(
                f"{path} chose the probability from which a row has a label: that stays there. Write threshold "
                f"= {threshold!r} below [multi_label] in task.toml, or {what} alone takes a half."
            )
    if "exits" in around:
        report.warn(
            f"{path} also has early exits: they stay there, and with {what} alone every row goes through all "
            "layers."
        )


def _around(path: str | Path) -> dict[str, dict[str, Any]]:
    """Kind -> header of what an artifact puts around its one model: exits, questions about labels."""
    folder, out = found(path), {}
    while (data := header(folder))["kind"] in WRAPPING:
        out[data["kind"]] = data
        folder = folder / MEMBERS / WRAPPING[data["kind"]]
    return out


class Header(dict[str, Any]):
    """What `artifact.json` says; a key that it lacks is a `PromptForgeError` that names the file.

    Args:
        path: the file.
        data: what was read from it.
    """

    def __init__(self, path: Path, data: Any) -> None:
        super().__init__(data)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise PromptForgeError(f"{self.path} is damaged: it has no {key!r}.")


@contextmanager
def undamaged(folder: Path) -> Iterator[None]:
    """While the parts of `artifact.json` are read: a `PromptForgeError` where they are not as written."""
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        what = f"a part of it has no {error}" if isinstance(error, KeyError) else error
        raise PromptForgeError(f"{folder / FILE} is damaged: {what}.") from error


def header(folder: Path) -> dict[str, Any]:
    """What `artifact.json` says; a `PromptForgeError` where it is damaged, or lacks a key that is asked for."""
    path = folder / FILE
    try:
        data = Header(path, json.loads(path.read_text(encoding="utf-8")))
        if data["format"] != FORMAT:
            raise ValueError("another format")
    except FileNotFoundError:
        raise UserError(f"There is no artifact in {folder} (no {FILE}).") from None
    except (OSError, ValueError, TypeError) as error:
        raise PromptForgeError(f"{path} is damaged: {error}.") from None
    if data["version"] != 1:
        raise UserError(f"{folder} was written by a newer PromptForge: update PromptForge.")
    return data


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, without the beginning."""
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}


def tensors_of(folder: Path, data: dict[str, Any]) -> dict[str, Tensor]:
    """All tensors of an artifact's files, checked.

    Raises:
        PromptForgeError: a file is damaged or missing; `artifact.json` does not say what they hold.
    """
    tensors: dict[str, Tensor] = {}
    files = {TENSORS: data["sha256"]} if "sha256" in data or (folder / TENSORS).is_file() else {}
    for name, digest in (files | data.get("files", {})).items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise PromptForgeError(f"{folder / name} is missing or damaged: its checksum is wrong.")
        if name == TENSORS:
            tensors |= checkpoint.load(folder / name)[0]
        elif name.endswith(".safetensors"):
            added, _ = checkpoint.load(folder / name)
            tensors |= {f"added/{key}": value for key, value in added.items()}
    held = any(name.startswith("added/") for name in tensors)
    if held and "added" not in data:
        raise PromptForgeError(
            f"{folder / FILE} is damaged: it has no 'added', to which tensors of its files belong."
        )
    if "added" in data and not held:
        raise PromptForgeError(
            f"{folder / FILE} is damaged: it names no file with the tensors of its 'added'."
        )
    if strange := [n for n, v in tensors.items() if not bool(torch.isfinite(v).all())]:
        raise PromptForgeError(
            f"{folder} holds values that are no numbers (in {listed(strange, 3)}): its training went "
            "wrong. Tune it again, with a lower learning rate."
        )
    return tensors


def own_files(folder: Path) -> set[str]:
    """Names of what an artifact's folder holds."""
    own = {FILE, TENSORS, MEMBERS}
    return own | header(folder).get("files", {}).keys() if (folder / FILE).is_file() else own
