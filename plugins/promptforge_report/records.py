"""A run as its folder tells it: options, figures, trainings, predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from promptforge.errors import PromptForgeError, UserError
from promptforge.remote import fetched
from promptforge.task import Task
from promptforge.tuning.predictions import Prediction, read_predictions
from promptforge.tuning.run import (
    CONFIG,
    ENVIRONMENT,
    EXIT_CURVE,
    PREDICTIONS,
    RESULTS,
    RunFolder,
)
from promptforge.tuning.run import runs as runs_in

M = TypeVar("M", bound=BaseModel)


class Figures(BaseModel):
    """What a report reads of an evaluation; see `promptforge.evaluation` and `generation.metrics`."""

    rows: int = 0
    accuracy: float | None = None
    macro_f1: float | None = None
    micro_f1: float | None = None
    pearson: float | None = None
    bleu: float | None = None
    rmse: float | None = None
    mae: float | None = None
    exact_match: float | None = None
    calibration_error: float | None = None
    threshold: float | None = None
    majority: float | None = None
    interval: tuple[float, float] | None = None
    labels: list[str] = Field(default_factory=list)
    per_label: dict[str, dict[str, float]] = Field(default_factory=dict)
    confusion: list[list[int]] = Field(default_factory=list)
    constant: dict[str, Any] = Field(default_factory=dict)


def _readable(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures as they are, once they are known to be of these types."""
    Figures.model_validate(figures)
    return figures


#: part -> figures, as an evaluation's `to_json` has them; those of the whole come last
Parts = dict[str, Annotated[dict[str, Any], AfterValidator(_readable)]]


class Training(BaseModel):
    """How a training went; see `promptforge.tuning.loop.Trained`."""

    steps: int = 0
    loss: float | None = None
    best: float | None = None
    best_step: int = 0
    seconds: float = 0.0
    parameters: int = 0
    curve: list[dict[str, float]] = Field(default_factory=list)


class OfTask(BaseModel):
    """Figures of one of a run's several tasks."""

    held_out: bool = False
    before: Parts = Field(default_factory=dict)
    after: Parts = Field(default_factory=dict)


class Results(BaseModel):
    """`results.json`; what an older run did not write is empty or None."""

    seconds: float | None = None
    parameters: int | None = None
    size: int | None = None
    counts: dict[str, dict[str, int]] = Field(default_factory=dict)
    digests: dict[str, str] = Field(default_factory=dict)
    results: dict[str, dict[str, Parts]] = Field(default_factory=dict)
    trained: dict[str, Training] = Field(default_factory=dict)
    tasks: dict[str, OfTask] = Field(default_factory=dict)


class CurvePoint(BaseModel):
    """A policy with a threshold; see `promptforge.exits.curve.Point`."""

    policy: str
    line: str
    score: float
    drop: float
    mean_layers: float
    share: float
    seconds: dict[int, float] = Field(default_factory=dict)
    speedup: dict[int, float] = Field(default_factory=dict)


class Curve(BaseModel):
    """`exit-curve.json`; see `promptforge.exits.curve.ExitCurve`."""

    layers: int
    rows: int
    timed_rows: int
    score: float
    by_layer: list[float]
    points: list[CurvePoint]
    max_drop: float
    best: dict[str, CurvePoint]


@dataclass
class Record:
    """A run, read.

    Attributes:
        results: None where the run has not ended.
        predictions: None where the run kept none (older ones, several tasks, generated text).
        curve: None where `promptforge exit-curve` was not run on it.
        task: None where the run is of several tasks.
    """

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    results: Results | None
    predictions: list[Prediction] | None
    curve: Curve | None
    task: Task | None

    @classmethod
    def read(cls, path: Path) -> Record:
        """The run in a folder.

        Raises:
            UserError: no run there.
            PromptForgeError: one of its files is damaged.
        """
        folder = RunFolder(path)
        config = folder.config
        try:
            for role in ("task", "model", "strategy", "method"):
                config[role]["name"]
            made = config["task"]
            task = Task.from_json(made) if "patterns" in made else None
            config["settings"]["steps"]
            config["seed"]
        except (KeyError, TypeError, AttributeError) as error:
            raise PromptForgeError(
                f"{path / CONFIG} is damaged: {type(error).__name__} {error}."
            ) from None
        said = read_predictions(path)
        _check_said(path, task, said or [])
        return cls(
            path, config, folder.read(ENVIRONMENT) or {}, _checked(folder, RESULTS, Results),
            said, _checked(folder, EXIT_CURVE, Curve), task,
        )  # fmt: skip

    def name(self, role: str) -> str:
        """The name of what was chosen for a role; empty: nothing."""
        return str((self.config.get(role) or {}).get("name", ""))

    @property
    def split(self) -> str | None:
        """The split that counts: of --data, else test, else dev; None without figures."""
        found = self.results.results if self.results else {}
        return next((split for split in ("data", "test", "dev") if split in found), None)

    def parts(self, who: str) -> Parts:
        """The figures on the split that counts; empty where there are none."""
        if self.results is None or self.split is None:
            return {}
        return self.results.results[self.split].get(who, {})

    @property
    def said(self) -> list[Prediction]:
        """The predictions on the split that counts."""
        return [p for p in self.predictions or () if p.split == self.split]


def _check_said(path: Path, task: Task | None, said: Sequence[Prediction]) -> None:
    for line, one in enumerate(said, start=1):
        sizes = {len(p) for p in one.said.values()}
        if task is None or "tuned" not in one.said or sizes != {len(task.classes)}:
            raise PromptForgeError(
                f"{path / PREDICTIONS} is damaged: line {line}: its probabilities are not those of the task's labels."
            )


def _checked(folder: RunFolder, name: str, kind: type[M]) -> M | None:
    data = folder.read(name)
    if data is None:
        return None
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PromptForgeError(
            f"{folder.path / name} is damaged: {where}: {first['msg']}."
        ) from None


def found(paths: Sequence[str | Path]) -> list[Path]:
    """The runs that are named: each itself, or those in a folder of runs; each once.

    Raises:
        UserError: no run there.
    """
    out: list[Path] = []
    for path in (fetched(path, members=False) for path in paths):
        inside = [path] if (path / CONFIG).exists() else [run.path for run in runs_in(path)]
        if not inside:
            raise UserError(
                f"There is no run in {path} (no {CONFIG}). 'promptforge runs' lists those in runs/; "
                "'promptforge train' makes one."
            )
        out += inside
    return list({path.resolve(): path for path in reversed(out)}.values())[::-1]
