"""Runs and artifacts at a URL: `s3://`, `gs://` and whatever else fsspec has a driver for.

To read is to bring the files into a folder of the cache. To write is to work in such a folder and to
publish it: what makes a folder valid (`artifact.json`, `results.json`) is removed first and uploaded
last, so nobody ever reads half of one. A folder whose `artifact.json`, which has the checksum of the
weights, is the same here and there is not carried again. `file://` is a plain path.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

from promptforge.errors import PromptForgeError, UserError

P = ParamSpec("P")
R = TypeVar("R")
#: files that say that their folder is complete; the last stands for the whole run
VALID, ENDED = "artifact.json", "results.json"
#: says where a working folder is published
_ADDRESS, _SENT = ".url", ".published"
_DRIVERS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}  # fmt: skip


def is_url(place: object) -> bool:
    """Whether a place is reached through fsspec; a path and `file://` are not."""
    text = str(place)
    return isinstance(place, str) and "://" in text and not text.startswith("file://")


def place(text: str | Path) -> str | Path:
    """A URL as it is, everything else as a path; "~" is the home folder."""
    if is_url(text):
        return str(text).rstrip("/")
    if str(text).startswith("file://"):
        return Path(unquote(urlsplit(str(text)).path))
    return expanded(text)


def expanded(path: str | Path) -> Path:
    """A path with the home folder in place of "~"; "~x.csv", a file's name, stays what it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path's own refuses the latter


def exists(url: str | Path, name: str) -> bool:
    """Whether a file lies in the folder `url`."""
    where = place(url)
    if isinstance(where, Path):
        return (where / name).is_file()
    with _explained(where, "read") as (fs, root):
        return bool(fs.isfile(f"{root}/{name}"))


def fetched(url: str | Path, *, members: bool = True) -> Path:
    """A folder with what lies at `url` now; that of a path is the path.

    Args:
        members: also the finished trainings of a run, which only going on with it needs.

    Raises:
        UserError: no such place, no driver for it.
        PromptForgeError: it could not be read.
    """
    where = place(url)
    if isinstance(where, Path):
        return where
    from filelock import FileLock

    folder = _own("read", where)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        _pull(where, folder, members=members)
    return folder


@contextmanager
def shared(url: str | Path) -> Iterator[Path]:
    """A folder to work in, with what lies at `url`; published when the block is left, also by an error.

    What a training that was interrupted had reached stays in the folder, on this machine. The same
    URL gives the same folder again.

    Raises:
        UserError: no driver for it.
        PromptForgeError: it could not be read or written.
    """
    from promptforge.tuning import processes

    where = place(url)
    if isinstance(where, Path):
        yield where
        return
    folder = _own("work", where)
    if not processes.is_first():
        yield folder
        return
    if _other_run(where, folder):
        shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _pull(where, folder, keep=True)
    if folder.is_dir():
        appoint(folder, where)
    try:
        yield folder
    finally:
        if folder.is_dir():
            appoint(folder, where)
            publish(folder)
            (folder / _SENT).touch()


def publishing(option: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """For functions that keep what they do in a folder: their argument `option` may be a URL."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **given: P.kwargs) -> R:
            where: Any = given.get(option)
            if where is None or isinstance(where, Path):
                return function(*args, **given)
            with shared(where) as folder:
                given[option] = folder
                return function(*args, **given)

        return call

    return decorate


def url_of(folder: Path) -> str:
    """Where a folder is published, as it is or lies in a working folder; "": nowhere."""
    for above in (folder, *folder.parents):
        if (above / _ADDRESS).is_file():
            top = (above / _ADDRESS).read_text(encoding="utf-8")
            below = folder.relative_to(above).as_posix()
            return top if below == "." else f"{top}/{below}"
    return ""


def appoint(folder: Path, url: str) -> None:
    """From now on `publish` takes what lies in `folder` to `url`; "": nowhere."""
    if url:
        (folder / _ADDRESS).write_text(url, encoding="utf-8")


def publish(folder: Path) -> None:
    """Upload a folder, where it lies in one that is published; else nothing.

    Raises:
        PromptForgeError: it could not be written.
    """
    if url := url_of(folder):
        send(folder, url)


def send(folder: Path, url: str) -> None:
    """Upload a folder to `url`; errors as for `publish`."""
    with _explained(url, "written") as (fs, root):
        _push(fs, folder, root)


def _push(fs: Any, folder: Path, root: str) -> None:
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    names = [name for name in names if _travels(name)]
    same = {
        _parent(n) for n in names if _base(n) == VALID and _equal(fs, f"{root}/{n}", folder / n)
    }
    names = [name for name in names if _parent(name) not in same]
    # From the outside in they cease to be valid, from the inside out they become so again.
    valid = sorted((n for n in names if _base(n) in (VALID, ENDED)), key=_outermost)
    for name in valid:
        if fs.exists(f"{root}/{name}"):
            fs.rm_file(f"{root}/{name}")
    for name in [*sorted(set(names) - set(valid)), *reversed(valid)]:
        fs.put_file(str(folder / name), f"{root}/{name}")


def _pull(url: str, folder: Path, *, keep: bool = False, members: bool = True) -> None:
    """Make `folder` what lies at `url`; with `keep`, what is only here stays."""
    with _explained(url, "read") as (fs, root):
        fs.invalidate_cache()
        there = [path[len(root) :].lstrip("/") for path in fs.find(root)] if fs.exists(root) else []
        names = [n for n in there if _travels(n) and (members or not _of_member(n))]
        if not names and not keep:
            raise UserError(f"There is nothing at {url}.")
        same = {
            _parent(n) for n in names if _base(n) == VALID and _equal(fs, f"{root}/{n}", folder / n)
        }
        if not keep and folder.is_dir():
            here = [p for p in folder.rglob("*") if p.is_file()]
            for path in here:
                if path.relative_to(folder).as_posix() not in names:
                    path.unlink()
        wanted = [n for n in names if _parent(n) not in same]
        valid = sorted((n for n in wanted if _base(n) in (VALID, ENDED)), key=_outermost)
        for name in valid:
            (folder / name).unlink(missing_ok=True)
        for name in [*sorted(set(wanted) - set(valid)), *reversed(valid)]:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f"{path.name}.partial")
            fs.get_file(f"{root}/{name}", str(draft))
            draft.replace(path)


def _other_run(url: str, folder: Path) -> bool:
    """Whether the working folder has begun another run than the one that is there now."""
    config = "config.json"
    with _explained(url, "read") as (fs, root):
        fs.invalidate_cache()
        if not (folder / config).is_file() or _equal(fs, f"{root}/{config}", folder / config):
            return False
        # What was never published, as the network was away, is still wanted.
        return bool(fs.exists(f"{root}/{config}")) or (folder / _SENT).is_file()


def _equal(fs: Any, remote: str, path: Path) -> bool:
    """Whether a small file is the same there and here."""
    return path.is_file() and fs.isfile(remote) and fs.cat_file(remote) == path.read_bytes()


def _travels(name: str) -> bool:
    """Not what is under way: checkpoints, drafts, locks."""
    parts = PurePosixPath(name).parts
    return not any(p.startswith(".") or p.endswith((".parts", ".partial", ".lock")) for p in parts)


def _of_member(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return "members" in parts and "artifact" not in parts[: parts.index("members")]


def _base(name: str) -> str:
    return PurePosixPath(name).name


def _parent(name: str) -> str:
    return PurePosixPath(name).parent.as_posix()


def _outermost(name: str) -> tuple[bool, int, str]:
    return _base(name) != ENDED, name.count("/"), name


def _own(kind: str, url: str) -> Path:
    """The folder of the cache for a URL; it has the name that it has there, which reports show."""
    from promptforge.models import cache_dir  # here, so that `--help` does not wait for it

    digest = hashlib.sha256(url.encode()).hexdigest()[:24]
    return cache_dir() / "remote" / kind / digest / PurePosixPath(url).name


@contextmanager
def _explained(url: str, done: str) -> Iterator[tuple[Any, str]]:
    """The file system of a URL and the path in it; what goes wrong is said in plain words."""
    from fsspec.core import url_to_fs

    protocol = url.split("://")[0]
    try:
        fs, root = url_to_fs(url)
    except ImportError:
        package = _DRIVERS.get(protocol)
        install = (
            f"pip install {package}" if package else "pip install the one that fsspec names for it"
        )
        raise UserError(
            f"{url}: the driver for {protocol}:// is not installed: {install}"
        ) from None
    except ValueError as error:
        raise UserError(
            f"{url}: {error}. Give a path, or a URL such as s3://BUCKET/FOLDER."
        ) from None
    try:
        yield fs, root.rstrip("/")
    except (PromptForgeError, KeyboardInterrupt):
        raise
    except Exception as error:  # each driver has errors of its own
        said = str(error).strip() or type(error).__name__
        raise PromptForgeError(f"{url} could not be {done}: {said}") from error
