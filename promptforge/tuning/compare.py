"""Several strategies on one task, each with several seeds: mean, deviation, paired test, time."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from promptforge.backbone.base import Backbone
from promptforge.data import Example, Row
from promptforge.errors import UserError, did_you_mean
from promptforge.evaluation import MultiLabelEvaluation, paired
from promptforge.progress import Reporter
from promptforge.remote import publish, publishing, url_of
from promptforge.task import Task
from promptforge.tuning import jobs as job_queue
from promptforge.tuning import processes, zero_shot
from promptforge.tuning.backends import Backend, started
from promptforge.tuning.contender import ROLES, Contender
from promptforge.tuning.plan import check_seed, wanted
from promptforge.tuning.run import CONFIG, RunFolder
from promptforge.tuning.settings import Settings
from promptforge.tuning.train import train

#: what is predicted -> the figure that counts, and one beside it, as evaluations name them
FIGURES = {
    "classes": ("accuracy", "macro_f1"),
    "label sets": ("micro_f1", "macro_f1"),
    "numbers": ("pearson", "spearman"),
}
#: The arguments of a training that differ from cell to cell.
_OF_CELLS = (*ROLES, "train", "samples", "seed", "run", "resume")
_OF_TRAINING = tuple(signature(train).parameters)
#: Those that a comparison says in another way.
_ELSEWHERE = {
    "train": "The training rows are its second argument, rows.",
    "seed": "It takes several: seeds=[13, 21].",
    "run": "Its runs are kept in folder=...",
    "resume": "The same call with the same folder=... goes on where it stopped.",
}
#: bytes of a cell's name that every file system takes
_LONGEST = 200


@dataclass
class Cell:
    """One contender with one seed and one number of rows.

    Attributes:
        shots: rows of each label; 0: all of them.
        score, other: the two figures on the test rows that `Comparison.figures` names.
        seconds: wall time of the training.
        zero_shot: the score before tuning.
        memory: most bytes held in the training, the loaded model included; None: nobody looked.
    """

    contender: str
    seed: int
    shots: int
    score: float
    other: float
    seconds: float
    zero_shot: float | None = None
    memory: int | None = None


@dataclass
class Comparison:
    """Cells, and what follows from them.

    Attributes:
        rows: number of test rows.
        majority: the score of the best guess without looking: the most frequent label, or of label
            sets always the most frequent ones; 0 where numbers are predicted.
        figures: what the cells' score and other figure are.
    """

    task: str
    rows: int
    majority: float
    cells: list[Cell] = field(default_factory=list)
    figures: tuple[str, str] = FIGURES["classes"]

    def of(self, contender: str, shots: int | None = None) -> list[Cell]:
        """The cells of a contender, by seed."""
        found = [c for c in self.cells if c.contender == contender and shots in (None, c.shots)]
        return sorted(found, key=lambda c: (c.shots, c.seed))

    def summary(self) -> list[dict[str, Any]]:
        """Per contender and number of shots: mean figures, deviation, seconds, memory, and p against the best.

        Memory is the most of any seed. The figures have their names as keys, and `deviation` is that of the first. `p` is that of a two-sided paired t-test over the seeds; both are None with fewer than two.
        """
        keys = list(dict.fromkeys((c.contender, c.shots) for c in self.cells))
        scores = {key: [c.score for c in self.of(*key)] for key in keys}
        means = {key: float(np.mean(values)) for key, values in scores.items()}
        best = max(keys, key=lambda key: means[key])
        return [
            {
                "contender": key[0],
                "shots": key[1],
                "seeds": len(scores[key]),
                self.figures[0]: means[key],
                "deviation": float(np.std(scores[key], ddof=1)) if len(scores[key]) > 1 else None,
                self.figures[1]: float(np.mean([c.other for c in self.of(*key)])),
                "seconds": float(np.mean([c.seconds for c in self.of(*key)])),
                "memory": max((c.memory for c in self.of(*key) if c.memory), default=None),
                "p": None if key == best else paired(scores[best], scores[key]),
            }
            for key in keys
        ]

    def worth(self, baseline: str) -> dict[str, float | None]:
        """How many rows of each label the baseline needs to reach each other contender's mean.

        Read off the baseline's curve, straight between its points in the logarithm of the rows;
        None where it does not get there with the rows it was given. The least that was tried is
        enough where its first point is as good already. All rows (0 shots) are no point. A contender
        of several sizes is named with each: "pet with 16".
        """
        score, lines = self.figures[0], self.summary()
        own = [s for s in lines if s["contender"] == baseline and s["shots"]]
        curve = sorted((s["shots"], s[score]) for s in own)
        others = [s for s in lines if s["contender"] != baseline]
        sizes = Counter(s["contender"] for s in others)
        return {
            s["contender"] + (f" with {s['shots'] or 'all'}" if sizes[s["contender"]] > 1 else ""):
                _reached(curve, s[score])
            for s in others
        }  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        names = dict(zip(("score", "other"), self.figures, strict=True))
        return {
            "task": self.task,
            "rows": self.rows,
            "majority": self.majority,
            "summary": self.summary(),
            "cells": [{names.get(k, k): v for k, v in vars(c).items()} for c in self.cells],
        }


@publishing("folder")
def compare(
    task: Task,
    rows: Sequence[Example],
    contenders: Sequence[str | Contender],
    *,
    backbone: Backbone,
    test: Sequence[Example],
    dev: Sequence[Example] = (),
    unlabeled: Sequence[Row] = (),
    shots: int | None = 16,
    seeds: int | Sequence[int] = (13, 21, 42, 87, 100),
    label_cost: Mapping[str, Sequence[int]] | None = None,
    folder: str | Path | None = None,
    jobs: int | None = None,
    backend: str | Backend | None = None,
    report: Reporter | None = None,
    **options: Any,
) -> Comparison:
    """Train every contender with every seed, and measure on the same test rows.

    Args:
        rows: labelled rows; with `shots`, drawn from with each seed.
        contenders: see `Contender.parse`.
        seeds: one or several.
        label_cost: contender -> numbers of shots to try it with as well (a baseline's curve).
        folder: a folder or URL; keeps a run per cell; cells that are there are read, never trained
            again, where their options and rows are these.
        jobs, backend: cells trained at the same time, and where; as for `train`. The members of the
            only cell that is left are trained so, too.
        options: further arguments of `train` (settings, class_weight).

    Raises:
        UserError: no such argument, no test rows, a contender that does not exist or does not fit the task, too few
            rows, a seed that is there twice, no such backend, a cell of other options or rows in the
            folder.
    """
    report = report or Reporter()
    _check_options(options)
    seeds = [check_seed(s) for s in ([seeds] if isinstance(seeds, int | np.integer) else seeds)]
    made = [c if isinstance(c, Contender) else Contender.parse(c) for c in contenders]
    if not test:
        raise UserError("A comparison needs test rows: give --test FILE.")
    if not made:
        raise UserError(
            "There is nothing to compare: name strategies, contenders=['prompt', 'pet']."
        )
    if not seeds:
        raise UserError("A comparison needs seeds: give one or several, seeds=[13, 21].")
    if len({c.text for c in made}) < len(made):
        raise UserError("The same strategy is named twice.")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds={list(seeds)} has one twice: its run would count twice.")
    if any(size < 1 for sizes in (label_cost or {}).values() for size in sizes):
        raise UserError("label_cost has less than 1: name numbers of rows a label, from 1.")
    out = Comparison(task.name, len(test), _majority(task, test), figures=FIGURES[kind_of(task)])
    if shots is not None and shots < 1:
        raise UserError(
            "shots is less than 1: name a number of rows a label, or None for all rows."
        )
    plan = {(c.text, shots or 0): c for c in made}
    given = {c.text: c for c in made}
    for text, sizes in (label_cost or {}).items():
        for size in sizes:
            plan.setdefault((text, size), given.get(text) or Contender.parse(text))
    cells = [(text, size, seed) for text, size in plan for seed in seeds]
    names = _file_names([f"{text}-{size}-{seed}" for text, size, seed in cells])
    todo = [
        Job(name, plan[text, size], size or None, seed)
        for name, (text, size, seed) in zip(names, cells, strict=True)
    ]
    common = {"dev": dev, "test": test, "unlabeled": unlabeled, **options}
    for job in todo:  # said before hours of work
        if job.seed == seeds[0]:
            wanted(task, rows, backbone=backbone, **job.arguments(), **common)
        elif job.shots:  # a draw may meet too many repeated rows
            task.sample_shots(rows, job.shots, job.seed, dev=not dev)
    with started(backend, jobs) as many:
        done = trained(
            task, rows, todo, backbone=backbone, jobs=many, folder=folder, report=report, **common
        )
    out.cells = [_cell(job, done[job.name], out.figures) for job in todo]
    return out


@dataclass(frozen=True)
class Job:
    """A contender to be trained with a seed; the name is its run's folder.

    Attributes:
        shots: as for `train`: None: all rows, 0: none.
    """

    name: str
    contender: Contender
    shots: int | None
    seed: int

    def arguments(self) -> dict[str, Any]:
        """What `train` is given of it, with fresh components."""
        own = {"shots": self.shots, "seed": self.seed, "samples": self.contender.samples}
        return {**self.contender.build(), **own}


@publishing("folder")
def trained(
    task: Task,
    rows: Sequence[Example],
    todo: Sequence[Job],
    *,
    backbone: Backbone,
    jobs: int = 1,
    folder: str | Path | None = None,
    option: str = "--folder",
    report: Reporter,
    **common: Any,
) -> dict[str, dict[str, Any]]:
    """The results of each job by its name: read where there are some, else trained.

    Args:
        jobs: trained at the same time; where one is left, its members.
        folder: a folder or URL that has the jobs' folders.
        option: what names that folder on the command line.
        common: arguments of `train` for all of them.

    Raises:
        UserError: a job's folder has a run of other options or rows.
    """
    home = Path(folder).absolute() if folder else None
    done = _found(task, rows, todo, backbone, Path(folder), option, common) if folder else {}
    # One that looked later, when others train, would think that their cells were done before.
    processes.wait(backbone.device)
    open_ = [job for job in todo if job.name not in done]
    work = partial(_train_cell, task, rows, common)
    try:
        if jobs > 1 and len(open_) > 1 and job_queue.can_send(backbone, report):
            return done | job_queue.run(
                work, {job.name: job for job in open_}, backbone=backbone, jobs=jobs, folder=home,
                report=report, what="Training", unit="cells",
            )  # fmt: skip
        for job in open_:
            many = "no" if job.shots == 0 else job.shots or "all"
            report.note(f"{job.contender.text}, {many} rows a label, seed {job.seed}")
            # The members of a cell that is alone may be trained side by side.
            own = partial(_train_cell, task, rows, {**common, "jobs": jobs})
            done[job.name] = own(backbone, home, job.name, job, report)
        return done
    finally:
        zero_shot.forget(backbone)


def _found(
    task: Task, rows: Sequence[Example], todo: Sequence[Job], backbone: Backbone, home: Path,
    option: str, common: dict[str, Any],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """The results of the jobs that are done, where they and those under way are what is wanted."""
    done: dict[str, dict[str, Any]] = {}
    others: dict[str, str] = {}
    for job in todo:
        folder = RunFolder(home.absolute() / job.name)
        if folder.read(CONFIG) is None:
            continue
        config, rows_now = wanted(task, rows, backbone=backbone, **job.arguments(), **common)
        if other := folder.differences(config, rows_now):
            others[url_of(folder.path) or str(home / job.name)] = other
        elif (results := folder.results) is not None:
            done[job.name] = results
    if others:
        (place, what), *more = others.items()
        raise UserError(
            f"The run in {place} has {what}{f'; {len(more)} more runs there differ too' if more else ''}. Give "
            f"the same again, name another folder with {option}, or delete {place} to train it anew."
        )
    return done


def _train_cell(
    task: Task,
    rows: Sequence[Example],
    common: dict[str, Any],
    backbone: Backbone,
    folder: Path | None,
    name: str,
    job: Job,
    report: Reporter,
) -> dict[str, Any]:
    home = folder / name if folder else None
    zero_shot.share(backbone)  # here, as the cell may be in a process of its own
    run = train(
        task, rows, backbone=backbone, run=home, resume=home is not None and home.exists(), report=report,
        **job.arguments(), **common,
    )  # fmt: skip
    if home:
        publish(home)
    return run.to_json()


def _check_options(given: Iterable[str]) -> None:
    """Raise a `UserError` for what a comparison does not hand on to `train`."""
    known = [name for name in _OF_TRAINING if name not in _OF_CELLS]
    for name in given:
        if name in known:
            continue
        if name in Settings.model_fields:
            near = f" It is a setting: settings=Settings.of({name}=...)."
        elif name == "strategy":
            near = " Strategies are the contenders: compare(task, rows, ['prompt', 'pet'], ...)."
        elif name in (*ROLES, "samples"):
            near = f" It is each contender's own: 'prompt:{name}=...'."
        elif name in _ELSEWHERE:
            near = f" {_ELSEWHERE[name]}"
        else:
            near = did_you_mean(name, [*known, *signature(compare).parameters])
        raise UserError(f"compare has no argument {name!r}.{near}")


def kind_of(task: Task) -> str:
    """What the task predicts, as `FIGURES` names it."""
    return "numbers" if task.scale else "label sets" if task.multi_label else "classes"


def _majority(task: Task, test: Sequence[Example]) -> float:
    """The score of the best guess without looking."""
    if task.scale:
        return 0.0
    if task.multi_label:
        truth = task.multi_label.indicator(test)
        made = MultiLabelEvaluation.of(truth, truth.astype(float), task.multi_label.labels)
        return float(made.constant["micro_f1"])
    return max(Counter(example.label for example in test).values()) / len(test)


def _cell(job: Job, done: dict[str, Any], figures: tuple[str, str]) -> Cell:
    by = done["results"]["test"]
    # A correlation with a constant is not defined, and says as much as none.
    score, other = (list(by["tuned"].values())[-1][figure] or 0.0 for figure in figures)
    before = list(by["zero-shot"].values())[-1][figures[0]] or 0.0 if "zero-shot" in by else None
    return Cell(
        job.contender.text, job.seed, job.shots or 0, score, other, done["seconds"], before,
        done.get("memory"),
    )  # fmt: skip


def _reached(curve: Sequence[tuple[int, float]], score: float) -> float | None:
    if not curve or score <= curve[0][1]:
        return float(curve[0][0]) if curve else None
    for (low, a), (high, b) in pairwise(curve):
        if a < score <= b:
            return float(low * (high / low) ** ((score - a) / (b - a)))
    return None


def _file_names(texts: Sequence[str]) -> list[str]:
    """A file's name for each text; with a digest where it would be too long or an earlier one's."""
    names: list[str] = []
    for text in texts:
        name = "".join(c if c.isalnum() or c in "-._=" else "_" for c in text)
        if len(name.encode()) > _LONGEST or name in names:
            begin = name.encode()[: _LONGEST // 2].decode(errors="ignore")
            name = f"{begin}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        names.append(name)
    return names
