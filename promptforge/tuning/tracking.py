"""Trackers: what a run shows in TensorBoard or MLflow besides its own files.

Everything is written below the run's folder and nothing is sent anywhere:

logs/tensorboard/          `tensorboard --logdir runs` shows all runs
logs/mlflow.db             `mlflow ui --backend-store-uri sqlite:///RUN/logs/mlflow.db`

The run and each training are parts of their own. A training that goes on logs its curve anew.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from promptforge.errors import UserError, did_you_mean, listed

#: tracker -> the package it needs
PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow"}
#: values by name, at a step
Log = Callable[[Mapping[str, float], int], None]


def check(names: Sequence[str]) -> None:
    """Raise a `UserError` for a tracker that does not exist, or whose package is missing."""
    for name in names:
        if name not in PACKAGES:
            raise UserError(
                f"There is no tracker {name!r}.{did_you_mean(name, list(PACKAGES))} There are: "
                f"{listed(list(PACKAGES))}."
            )
        if find_spec(PACKAGES[name]) is None:
            raise UserError(
                f"The tracker {name!r} needs the package {PACKAGES[name]!r}, which is not installed: "
                f"pip install {PACKAGES[name]}"
            )


@dataclass(frozen=True)
class Tracking:
    """The trackers of a run.

    Attributes:
        names: of them; none by default.
        folder: the run's.
        within: what the names of parts begin with, as "members/pet-1/": the run of a strategy in
            another's has trainings of the same names as the next one.
    """

    names: tuple[str, ...] = ()
    folder: Path | None = None
    within: str = ""

    @contextmanager
    def part(self, name: str, config: Mapping[str, Any] | None = None) -> Iterator[Log]:
        """Open the trackers for a part of the run: "run", or "members/NAME".

        Args:
            config: kept with the part; nested values as flat names.
        """
        trackers = []
        try:
            for kind in self.names:
                assert self.folder is not None
                made = _tracker(kind, self.folder.absolute(), f"{self.within}{name}")
                made.start()
                trackers.append(made)
                if config:
                    made.store_init_configuration(_plain(config))

            def log(values: Mapping[str, float], step: int) -> None:
                for tracker in trackers:
                    tracker.log({_name(key): value for key, value in values.items()}, step=step)

            yield log
        finally:
            for tracker in reversed(trackers):
                tracker.finish()


def _tracker(kind: str, folder: Path, part: str) -> Any:
    from accelerate import tracking

    logs = folder / "logs"
    if kind == "tensorboard":
        # What an interrupted training logged is logged anew.
        shutil.rmtree(logs / kind / part, ignore_errors=True)
        return tracking.TensorBoardTracker(part, logs / kind)
    # Before the package is imported: it tells its makers how it is used.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow  # type: ignore[import-not-found,unused-ignore]

    logs.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(f"sqlite:///{(logs / 'mlflow.db').as_posix()}")
    return tracking.MLflowTracker(
        folder.name, (logs / kind).as_uri(), run_name=part, nested_run=True
    )


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as trackers take it: one level, numbers and text."""
    from promptforge.tuning.run import flat

    return {
        _name(key): value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in flat(dict(config)).items()
    }


def _name(text: str) -> str:
    """A name that every tracker takes."""
    return re.sub(r"[^\w\-. /]", "_", text)


def figures(results: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among the figures of `results.json`, as SPLIT/WHO/PART/FIGURE."""
    found = {}
    for split, by in results.items():
        for who, parts in by.items():
            for part, of_part in parts.items():
                for name, value in of_part.items():
                    if isinstance(value, int | float):
                        found[f"{split}/{who}/{part}/{name}"] = float(value)
    return found
