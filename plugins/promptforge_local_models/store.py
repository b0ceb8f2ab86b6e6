"""The folders of fetched models: built aside, moved into place whole, described by a manifest.

A folder counts as a model only when it holds a manifest that says exactly what the pins say
and every file has the size the manifest gives. The manifest is written last and the folder is
moved by one rename, so a fetch that is cut off at any point leaves nothing that looks whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from promptforge.errors import PromptForgeError
from promptforge.models import CACHE_VARIABLE, cache_dir
from promptforge.progress import Reporter
from promptforge_local_models.pins import MB, Packaged

MANIFEST = "promptforge-model.json"
FORMAT = 1


@dataclass(frozen=True)
class State:
    """What lies in a model's folder."""

    kind: Literal["absent", "outdated", "damaged", "whole"]
    problem: str = ""
    size: int = 0  # bytes on disk


def home() -> Path:
    """Where the models' folders lie."""
    return cache_dir() / "models"


def folder(model: Packaged) -> Path:
    """The folder of `model`, fetched or not."""
    return home() / model.name


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(model: Packaged, root: Path) -> None:
    """Describe the files under `root`; no dates, so equal fetches give equal bytes."""
    files = {
        path.relative_to(root).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
    manifest = {"format": FORMAT, **model.identity(), "files": files}
    (root / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def inspect(model: Packaged, *, full: bool = False) -> State:
    """What lies in the model's folder: sizes only, which takes no time; hashes when `full`."""
    root = folder(model)
    try:
        manifest: Any = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        files = {name: (int(f["size"]), str(f["sha256"])) for name, f in manifest["files"].items()}
    except FileNotFoundError:
        # Without a manifest a folder with files in it was damaged by someone, not by us.
        if root.is_dir() and any(root.iterdir()):
            return State("damaged", f"{MANIFEST} is missing")
        return State("absent")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return State("damaged", f"{MANIFEST} cannot be read")
    said = {key: value for key, value in manifest.items() if key != "files"}
    if said != {"format": FORMAT, **model.identity()}:
        return State("outdated", "it was fetched by another version of PromptForge")
    for name, (size, digest) in files.items():
        path = root / name
        try:
            there = path.stat().st_size
        except OSError:
            return State("damaged", f"{name} is missing")
        if there != size:
            return State("damaged", f"{name} has {there} bytes instead of {size}")
        if full and sha256(path) != digest:
            return State("damaged", f"{name} has changed since it was fetched")
    return State("whole", size=sum(size for size, _ in files.values()))


@contextmanager
def locked(model: Packaged, report: Reporter) -> Iterator[None]:
    """One process at a time works on `model`; the others wait and find it done."""
    from filelock import FileLock, Timeout

    home().mkdir(parents=True, exist_ok=True)
    lock = FileLock(home() / f".{model.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report.note(f"Another process is fetching {model.name}; waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _asides(model: Packaged) -> list[Path]:
    return list(home().glob(f".{model.name}~*"))


def _aside(model: Packaged) -> Path:
    return Path(tempfile.mkdtemp(prefix=f".{model.name}~", dir=home()))


@contextmanager
def staging(model: Packaged) -> Iterator[Path]:
    """A new folder beside the target, gone at the end whatever happens; call it under the lock."""
    for leftover in _asides(model):  # of a process that was killed; we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    free = shutil.disk_usage(home()).free
    if free < model.peak:
        raise _no_space(model, free)
    try:
        yield _aside(model)
    finally:
        for made in _asides(model):
            shutil.rmtree(made, ignore_errors=True)


def publish(model: Packaged, built: Path) -> Path:
    """Move the whole folder `built` into the model's place; on failure the old one stays."""
    target = folder(model)
    if not target.exists():
        return built.rename(target)
    old = _aside(model) / "old"
    target.rename(old)
    try:
        built.rename(target)
    except BaseException:
        if not target.exists():
            old.rename(target)
        raise
    return target


def delete(model: Packaged) -> bool:
    """Remove the model's folder: out of its place first, so that it is never half a model."""
    target = folder(model)
    if not target.exists():
        return False
    aside = _aside(model)
    try:
        target.rename(aside / "old")
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return True


@contextmanager
def explained(model: Packaged) -> Iterator[None]:
    """Turn what the operating system says into what the user can do about it."""
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(model) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise PromptForgeError(
                f"{model.name}: {cache_dir()} cannot be written ({error.strerror}). "
                "Give yourself the right to write there, or set "
                f"{CACHE_VARIABLE} to another folder."
            ) from error
        raise PromptForgeError(f"{model.name}: {error}") from error
    except SafetensorError as error:
        if "os error 28" in str(error):  # ENOSPC, as safetensors words it
            raise _no_space(model) from error
        raise PromptForgeError(f"{model.name}: {error}") from error


def _no_space(model: Packaged, free: int | None = None) -> PromptForgeError:
    there = "" if free is None else f" and {free // MB} MB are free"
    return PromptForgeError(
        f"{model.name}: no disk space left in {cache_dir()}: fetching needs {model.peak // MB} MB"
        f"{there}. Make room there, or set {CACHE_VARIABLE} to a folder on another disk."
    )
