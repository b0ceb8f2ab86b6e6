"""Independent jobs through joblib: processes here, or a cluster where joblib is told of one.

A job gets the language model, a folder and what to do. Each process loads the model once, from its
source, and keeps it: it is never sent. A worker that sees the run's folder leaves what it made there;
one that does not, as it stands on another machine, sends it back and it is put there for it. So what
is done is in the folder, and nothing but the model has to lie where every machine sees it.
"""

from __future__ import annotations

import io
import json
import socket
import threading
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from promptforge import remote
from promptforge.errors import PromptForgeError, UserError
from promptforge.folders import whole
from promptforge.progress import KeptWarnings, Reporter

if TYPE_CHECKING:
    from promptforge.backbone.base import Backbone
    from promptforge.progress import Meter

#: (model, folder, name, item, report) -> a small result; what it makes lies in the folder's `made(name)`
Work = Callable[["Backbone", Path | None, str, Any, Reporter], Any]

#: a job's name, its result, what it made where the run's folder is not seen, and what it warned of
_Result = tuple[str, Any, bytes, list[str]]

# A model has room for one set of tuned weights, and threads of a worker share it.
_alone = threading.Lock()
_MARK = ".jobs"


def can_send(backbone: Backbone, report: Reporter) -> bool:
    """Whether other processes can load the model; a warning says that they cannot."""
    if "dtype" in backbone.source:
        return True
    report.warn("A model made in memory cannot be sent to other processes: one is used.")
    return False


@dataclass(frozen=True)
class _Sent:
    """What each job of a list needs to know.

    Attributes:
        model: its source, as JSON, and the checksum of its weights.
        folder: where things are made; None: nothing is made.
        url: where it is published; "": nowhere.
        mark: the text of a file in it, by which a worker knows that it is the same folder.
        made: name of a job -> the folder in it that the job makes.
    """

    work: Work
    model: str
    checksum: str
    folder: Path | None
    url: str
    mark: str
    made: str


def run(
    work: Work,
    items: Mapping[str, Any],
    *,
    backbone: Backbone,
    jobs: int,
    folder: Path | None = None,
    made: str = "{}",
    report: Reporter,
    what: str,
    unit: str,
) -> dict[str, Any]:
    """Do `work(model, folder, name, item, report)` for each of `items`, `jobs` at a time.

    What jobs warn of is told here, and what several warn of once.

    Args:
        work: picklable (a function of a module, or a `functools.partial` of one).
        items: name -> what the job is about.
        folder: what jobs make lies there; None: they make nothing.
        made: where in `folder` a job's things are; `{}` is its name.
        what: begins the line of progress, which counts `unit`s.

    Returns:
        What `work` gave, by name.

    Raises:
        UserError, PromptForgeError: a job's error, with the job's name; a worker that was lost.
    """
    import cloudpickle
    from joblib import delayed

    out: dict[str, Any] = {}
    with _marked(folder) as mark, _told_once(report) as warned:
        url = remote.url_of(folder) if folder else ""
        told = _Sent(work, _source(backbone), backbone.checksum, folder, url, mark, made)
        # As bytes: Dask spreads other objects over workers, and what a lost one had is gone.
        sent = cloudpickle.dumps(told)
        tasks = (delayed(_do)(sent, name, cloudpickle.dumps(item)) for name, item in items.items())
        with report.meter(f"{what}, {jobs} at a time", len(items), unit) as meter, _explained():
            for name, result, packed, kept in _results(jobs, tasks, meter):
                warned |= dict.fromkeys(kept)
                if packed and folder is not None:
                    unpack(packed, folder / made.format(name))
                out[name] = result
    return out


@contextmanager
def _told_once(report: Reporter) -> Iterator[dict[str, None]]:
    """What jobs warn of is told at the end, what a job warned of that failed and others' too."""
    warned: dict[str, None] = {}
    try:
        yield warned
    except PromptForgeError as error:
        warned |= dict.fromkeys(getattr(error, "warned", ()))
        raise
    finally:
        for text in warned:
            report.warn(text)


def _results(jobs: int, tasks: Iterator[Any], meter: Meter) -> Iterator[_Result]:
    """What the jobs give, as they end where joblib's backend can do that (Ray's cannot)."""
    from joblib import Parallel
    from joblib.parallel import get_active_backend

    class Counting(Parallel):  # type: ignore[misc]
        shown = 0

        def print_progress(self) -> None:
            meter.advance(self.n_completed_tasks - self.shown)
            self.shown = self.n_completed_tasks

    streams = get_active_backend()[0].supports_return_generator
    yield from Counting(
        n_jobs=jobs, return_as="generator_unordered" if streams else "list", batch_size=1
    )(tasks)


def _do(sent: bytes, name: str, item: bytes) -> _Result:
    """One job, in a worker."""
    import pickle

    told: _Sent = pickle.loads(sent)
    report = KeptWarnings()
    with _alone:
        try:
            backbone = _backbone(told.model, told.checksum)
            _check_same(backbone, told)
            if told.folder is None or _sees(told):
                result = told.work(backbone, told.folder, name, pickle.loads(item), report)
                return name, result, b"", report.kept
            with TemporaryDirectory() as home:
                remote.appoint(Path(home), told.url)
                result = told.work(backbone, Path(home), name, pickle.loads(item), report)
                made = pack(Path(home) / told.made.format(name))
                return name, result, made, report.kept
        except PromptForgeError as error:
            raise _telling(type(error)(f"{name}: {error}"), report) from None
        except Exception as error:
            failed = PromptForgeError(f"{name}: {type(error).__name__}: {error}")
            raise _telling(failed, report) from error


def _telling(error: PromptForgeError, report: KeptWarnings) -> PromptForgeError:
    """An error that takes along what its job warned of; it is pickled with it."""
    vars(error)["warned"] = report.kept
    return error


def _source(backbone: Backbone) -> str:
    """What `load_model` needs to load the same model in another process, wherever that stands."""
    source = dict(backbone.source)
    if Path(source["name"]).is_dir():
        source["name"] = str(Path(source["name"]).absolute())
    source |= {"device": str(backbone.device), "batch_tokens": backbone.batch_tokens}
    return json.dumps(source, sort_keys=True)


@lru_cache(maxsize=1)
def _backbone(source: str, checksum: str) -> Backbone:
    """The model; `checksum` has it loaded again where its files have changed."""
    from promptforge.backbone import load_model

    options = json.loads(source)
    return load_model(options.pop("name"), **options)


def _check_same(backbone: Backbone, told: _Sent) -> None:
    if backbone.checksum != told.checksum:
        raise UserError(
            f"the model {backbone.name!r} has other weights on {socket.gethostname()} than where the run was "
            "started: put the same model on every machine."
        )


@contextmanager
def _marked(folder: Path | None) -> Iterator[str]:
    if folder is None:
        yield ""
        return
    folder.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex
    (folder / _MARK).write_text(mark, encoding="utf-8")
    try:
        yield mark
    finally:
        (folder / _MARK).unlink(missing_ok=True)


def _sees(told: _Sent) -> bool:
    assert told.folder is not None
    try:
        return (told.folder / _MARK).read_text(encoding="utf-8") == told.mark
    except OSError:
        return False


@contextmanager
def _explained() -> Iterator[None]:
    """A lost worker in plain words; errors of jobs as they are."""
    try:
        yield
    except PromptForgeError:
        raise
    except Exception as error:
        kind = type(error).__name__
        if kind not in ("TerminatedWorkerError", "BrokenProcessPool", "KilledWorker") and not (
            type(error).__module__.startswith("ray.")
        ):
            raise
        raise PromptForgeError(
            f"A worker process was lost and its job could not be done elsewhere ({kind}). Is there enough "
            "memory for that many --jobs? What was finished is kept: go on with the same command, and with "
            "--resume where it has that."
        ) from error


def pack(folder: Path) -> bytes:
    """All files of a folder as one zip archive; b"" where there is no folder."""
    if not folder.is_dir():
        return b""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder).as_posix())
    return out.getvalue()


def unpack(packed: bytes, folder: Path) -> None:
    """Write what `pack` read, whole or not at all; what lies in `folder` is replaced."""
    archive = zipfile.ZipFile(io.BytesIO(packed))
    with whole(folder.absolute(), replace=True) as draft, archive:
        archive.extractall(draft)
