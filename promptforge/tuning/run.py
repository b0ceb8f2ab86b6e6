"""The folder of a run: what was asked, with what, how it went, and what came out of it.

config.json        every option as it was resolved
rows.json          a digest of the rows of each split that it was begun with
environment.json   versions and machine
members/NAME/      each finished training, an artifact of its own
members/NAME.parts checkpoints and metrics of a training under way
members/exits.safetensors  exits that were trained after the model
logs/              what trackers wrote, where there are any
artifact/          the classifier
predictions.jsonl  what was said of each dev and test row
exit-curve.json    what `promptforge exit-curve` found last
results.json       figures; its presence says that the run ended
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from promptforge import remote
from promptforge._version import __version__
from promptforge.errors import PromptForgeError, UserError, listed
from promptforge.folders import write_text

CONFIG, ENVIRONMENT, ROWS, RESULTS, ARTIFACT = (
    "config.json", "environment.json", "rows.json", "results.json", "artifact",
)  # fmt: skip
PREDICTIONS, EXIT_CURVE, LOGS = "predictions.jsonl", "exit-curve.json", "logs"
#: What an artifact's folder holds.
ARTIFACT_FILE = "artifact.json"
#: Options that say where and how fast, not what: they may change when a run goes on.
FREE = {"device", "batch_tokens", "resume", "run", "settings.save_every"}
#: What `write` leaves of a run's first file where it is killed before the file has its name.
_DRAFT = f"{CONFIG}.partial"


@dataclass
class RunFolder:
    """A run on disk; `option` is the one that names its folder on the command line."""

    path: Path
    option: str = "--run"

    @contextmanager
    def opened(
        self, config: Mapping[str, Any], *, resume: bool, rows: Mapping[str, str] | None = None
    ) -> Iterator[None]:
        """Begin or go on, with nobody else in the folder.

        Where a run that begins fails before anything is trained, nothing of it stays: what was
        wrong may have been an option, and the folder is free for another.

        Args:
            rows: split -> a digest of its rows. A run goes on with the same ones; test rows may be
                others, as nothing that was kept depends on them.

        Raises:
            UserError: the folder has a run and `resume` is off; a run with another config or other
                rows; the folder of something else; one that may not be written to.
            PromptForgeError: another process works in it.
        """
        path = self.path
        wanted = json.loads(json.dumps(config, default=str))
        self.check()
        saved = self.read(CONFIG)
        if saved is not None:
            if not resume:
                state = "has ended" if self.results is not None else "was begun"
                raise UserError(
                    f"A run {state} in {path}. Go on with it with --resume, or name another folder "
                    f"with {self.option}."
                )
            if other := list(changed(saved, wanted)):
                raise UserError(
                    f"The run in {path} was begun with other options: {listed(other, 20)}. Give the same "
                    f"again, or name another folder with {self.option}."
                )
            if other := _other_rows(self.read(ROWS), rows or {}):
                raise UserError(
                    f"The run in {path} was begun with other rows: {listed(other)}. Give the same again, "
                    f"or name another folder with {self.option}."
                )
        new = not path.is_dir()
        lock = FileLock(path / ".lock", timeout=0)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise PromptForgeError(
                f"Another run is at work in {path}. Name another folder."
            ) from None
        except OSError as error:
            raise UserError(f"{path} may not be written to: {error.strerror or error}.") from None
        try:
            if saved is None:
                self.write(CONFIG, wanted)
                if rows:
                    self.write(ROWS, dict(rows))
            self.write(ENVIRONMENT, environment())
            yield
        except Exception:
            if saved is None and not self._has_progress():
                self._forget()
                lock.release()
                if new:
                    shutil.rmtree(path, ignore_errors=True)
            raise
        finally:
            lock.release()

    def check(self) -> None:
        """Raise a `UserError` where the folder can be no run's; imports nothing that takes time."""
        path = self.path
        check_place(path, self.option)
        if (
            path.is_dir()
            and not (path / CONFIG).exists()
            and any(not p.name.startswith(".") and p.name != _DRAFT for p in path.iterdir())
        ):
            raise UserError(f"{path} holds something else than a run. Name another folder.")

    def _has_progress(self) -> bool:
        """Whether more lies there than what `opened` and trackers write at a run's beginning."""
        ours = {CONFIG, ROWS, ENVIRONMENT, LOGS}
        there = (
            p for p in self.path.iterdir() if not p.name.startswith(".") and p.name not in ours
        )
        return any(p.is_file() or any(q.is_file() for q in p.rglob("*")) for p in there)

    def _forget(self) -> None:
        """Delete what a run without progress has written; the lock and other hidden files stay."""
        for inside in [p for p in self.path.iterdir() if not p.name.startswith(".")]:
            if inside.is_dir():
                shutil.rmtree(inside, ignore_errors=True)
            else:
                inside.unlink(missing_ok=True)

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file, whole or not at all."""
        text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
        write_text(self.path / name, f"{text}\n")

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the run; None where there is none."""
        try:
            data: dict[str, Any] = json.loads((self.path / name).read_text(encoding="utf-8"))
            if not isinstance(data, dict):
                raise ValueError("no JSON object")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise PromptForgeError(f"{self.path / name} is damaged: {error}.") from None
        return data

    @property
    def config(self) -> dict[str, Any]:
        """The resolved options.

        Raises:
            UserError: no run there.
        """
        found = self.read(CONFIG)
        if found is None or "strategy" not in found:
            raise UserError(f"There is no run in {self.path} (no {CONFIG}).")
        return found

    @property
    def results(self) -> dict[str, Any] | None:
        """The figures; None until the run has ended."""
        return self.read(RESULTS)

    def differences(self, config: Mapping[str, Any], rows: Mapping[str, str]) -> str:
        """In what the run there is not the wanted one, for a message; "" where it is.

        Args:
            rows: split -> a digest of its rows; figures count only of the same test rows too.
        """
        other = []
        if options := changed(self.config, config):
            pairs = [
                f"{name!r} ({_short(a)} there, {_short(b)} now)" for name, (a, b) in options.items()
            ]
            more = ", ..." if len(pairs) > 6 else ""
            other.append(f"other options: {', '.join(pairs[:6])}{more}")
        results = self.results
        splits = _other_rows(self.read(ROWS), rows)
        if results is not None:
            had = results.get("digests")
            if had is None:
                other.append("no record of the rows that it was measured on")
            else:
                splits = sorted(k for k in {*had, *rows} if had.get(k) != rows.get(k))
        if splits:
            other.append(f"other rows: {listed(splits)}")
        return " and ".join(other)

    @property
    def artifact(self) -> Path:
        """Where the classifier is."""
        return self.path / ARTIFACT

    def members(self) -> list[str]:
        """Names of the trainings that are done; not of those within another, as PET's in an ensemble."""
        folder = self.path / "members"
        return sorted(p.parent.name for p in folder.glob(f"*/{ARTIFACT_FILE}"))

    @property
    def done(self) -> int:
        """How many trainings are done, at any depth."""
        return sum(1 for _ in (self.path / "members").rglob(ARTIFACT_FILE))


def check_place(path: Path, option: str = "--run") -> None:
    """Raise a `UserError` where a folder can be neither used nor made.

    Args:
        option: names the folder on the command line, which says it before a model is loaded.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; name a folder for the run.")
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not there.is_dir():
        raise UserError(f"{there} is a file, so {path} cannot be made. Name another with {option}.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"{there} may not be written to: permission denied. Name another folder with {option}."
        )


def no_task(folder: Path) -> UserError:
    """The error for a folder without a task, which says what to do with the runs in it."""
    if find_artifact(folder) is not None:
        return UserError(f"{folder} is a trained model, and a task is wanted here.")
    run = RunFolder(folder)
    if "strategy" not in (run.read(CONFIG) or {}):
        inside = sorted(str(p) for p in folder.iterdir() if find_artifact(p) is not None)
        which = f" It holds trained models: name one of {listed(inside)}." if inside else ""
        return UserError(f"{folder} is not a task folder: it has no task.toml.{which}")
    if run.results is None:
        return UserError(
            f"The run in {folder} has not ended: go on with the command that began it ('train' with --resume)."
        )
    return UserError(one_for_each(folder) or f"{folder} holds no trained model.")


def one_for_each(path: str | Path) -> str:
    """What to say where one model is wanted and a run tuned one for each of its tasks; "" elsewhere."""
    if remote.is_url(path) or not (folder := Path(path)).is_dir():
        return ""
    run = RunFolder(folder)
    members = [str(folder / "members" / name) for name in run.members()]
    if run.results is None or find_artifact(folder) is not None or not members:
        return ""
    return f"The run in {folder} has no one model, but one for each task: name {listed(members)}."


def find_artifact(path: str | Path) -> Path | None:
    """The artifact in a folder or at a URL: its own, or that of a run; None where there is none."""
    if remote.is_url(path):
        urls = (str(path), f"{path}/{ARTIFACT}")
        found = next((url for url in urls if remote.exists(url, ARTIFACT_FILE)), None)
        return remote.fetched(found) if found else None
    path = Path(remote.place(path))
    places = (path, path / ARTIFACT)
    return next((p for p in places if (p / ARTIFACT_FILE).is_file()), None)


def artifact_task(path: Path) -> dict[str, Any]:
    """The task that an artifact was tuned for, as JSON.

    Raises:
        UserError: it holds none (an artifact saved from Python without a task).
        PromptForgeError: it is damaged.
    """
    try:
        data = json.loads((path / ARTIFACT_FILE).read_text(encoding="utf-8"))
        task: dict[str, Any] | None = data["about"].get("task") or data.get("task")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PromptForgeError(f"{path / ARTIFACT_FILE} is damaged: {error}.") from None
    if task is None:
        raise UserError(
            f"{path} is of no one task: name the task to read for, and {path} as its --model."
        )
    return task


def runs(folder: str | Path = "runs") -> list[RunFolder]:
    """The runs in a folder, by name; also one whose config cannot be read."""
    found = [RunFolder(p.parent) for p in sorted(Path(folder).rglob(CONFIG))]
    return [run for run in found if _is_run(run)]


def _is_run(folder: RunFolder) -> bool:
    """Whether a folder with a config is a run's; a model's folder has a file of that name too."""
    try:
        return "strategy" in (folder.read(CONFIG) or {})
    except PromptForgeError:
        return True


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    if not isinstance(value, dict):
        return {prefix: value}
    out: dict[str, Any] = {}
    for key, inner in value.items():
        out |= flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return out


def changed(saved: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Option -> (what a saved config has, what another says), where they differ and must not."""
    from promptforge.tuning.settings import Settings

    # As JSON both: what was saved knows no tuples.
    begun, now = flat(saved), flat(json.loads(json.dumps(config, default=str)))
    name = "model.name"  # of a folder it is the whole path, and was once what the user typed
    if name in begun and name in now and str(Path(str(begun[name])).resolve()) == now[name]:
        begun[name] = now[name]
    # A setting that is younger than the run was then what it is by default.
    for option, value in flat(Settings().model_dump(), "settings").items():
        if now.get(option) == value:
            begun.setdefault(option, value)
    options = sorted({*begun, *now} - FREE)
    return {
        k: (begun.get(k), now.get(k))
        for k in options
        # An option that says nothing is as if it were not there; it may be younger than the run.
        if (begun.get(k) or None) != (now.get(k) or None) and not is_place(k)
    }


def is_place(option: str) -> bool:
    """Whether an option says where a template lies: it changes nothing, so that a folder can be moved."""
    return option.startswith("task.patterns.") and option.endswith(".origin")


def _other_rows(had: Mapping[str, str] | None, rows: Mapping[str, str]) -> list[str]:
    """Splits that a run was begun with other rows of; none where it has no record of them."""
    if had is None or not rows:
        return []
    return sorted(k for k in {*had, *rows} - {"test"} if had.get(k) != rows.get(k))


def _short(value: object, most: int = 40) -> str:
    text = str(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def environment() -> dict[str, Any]:
    """Versions and machine, for the record."""
    import torch

    packages = {}
    for name in ("torch", "transformers", "accelerate", "tokenizers", "scikit-learn", "numpy"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:  # pragma: no cover - all are dependencies
            continue
    return {
        "promptforge": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "packages": packages,
    }
