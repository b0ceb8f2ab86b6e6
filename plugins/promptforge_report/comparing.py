"""Several runs beside each other: sorted, tested on the rows and seeds they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from promptforge.evaluation import paired
from promptforge.tuning.run import FREE, flat, is_place
from promptforge_report.figures import Figure, headline
from promptforge_report.records import Record

#: Options that tell nothing about how a run was made.
_ASIDE = (*FREE, "rows", "task.description")


@dataclass
class Line:
    """A run in the comparison.

    Attributes:
        p: of McNemar's exact test against the best run on the rows of both; None: it is the best,
            or they do not share their rows.
        differ: rows that only the best, and only this run has right.
    """

    record: Record
    name: str
    figure: Figure | None
    before: Figure | None
    p: float | None = None
    differ: tuple[int, int] | None = None
    best: bool = False


@dataclass
class Group:
    """Runs that differ in nothing but the seed, measured on the same rows.

    Attributes:
        seeds, values: one of each seed: runs that share it, as copies do, count once with their mean.
        mean, deviation: of the figure that counts over the seeds.
        p: of a paired t-test over the seeds shared with the best group; None: under two, on other
            rows than the best, or it is the best.
    """

    names: list[str]
    seeds: list[int]
    values: list[float]
    mean: float
    deviation: float
    p: float | None = None
    best: bool = False


@dataclass
class Comparison:
    """What `compared` found.

    Attributes:
        lines: the best run first, those without a figure last.
        groups: empty where no two runs differ in the seed alone.
        options: option -> what each run has, in the order of `lines`; those in which they differ.
        why: why there is no test on rows, where there is none.
        alike: whether all are of one task and measured by one figure on one split.
    """

    lines: list[Line]
    groups: list[Group] = field(default_factory=list)
    options: dict[str, list[str]] = field(default_factory=dict)
    why: str = ""
    alike: bool = True


def compared(records: Sequence[Record], names: Sequence[str]) -> Comparison:
    """Compare runs; all figures are those of each run's own split that counts."""
    lines = [
        Line(r, name, headline(r.parts("tuned"), name), headline(r.parts("zero-shot"), name))
        for r, name in zip(records, names, strict=True)
    ]
    lines.sort(key=lambda line: -_value(line))
    made = Comparison(lines)
    kinds = {
        (line.figure.kind, line.record.name("task"), line.record.split)
        for line in lines
        if line.figure
    }
    made.alike = len(kinds) < 2
    if not made.alike:
        made.why = (
            "The runs are of different tasks, or measured by different figures or on different splits: no "
            "test compares them."
        )
    elif lines[0].figure:
        lines[0].best = True
        made.why = _test(lines)
        made.groups = _groups(lines)
    made.options = _options(lines)
    return made


def _options(lines: Sequence[Line]) -> dict[str, list[str]]:
    """The options in which the runs differ; of templates those that two runs have by one name."""
    flats = []
    for line in lines:
        config = line.record.config
        told = {k: _text(v) for k, v in flat(config).items() if not _aside(k)}
        flats.append({"patterns": _text([*config["task"].get("patterns", ())]), **told})
    out = {}
    for key in dict.fromkeys(k for options in flats for k in options):
        values = [options.get(key, "") for options in flats]
        lacking = {""} if key.startswith("task.patterns.") else set()
        if len(set(values) - lacking) > 1:
            out[key] = values
    return out


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> tuple[float, int, int]:
    """McNemar's exact test of two classifiers on the same rows (McNemar 1947).

    Args:
        first, second: whether each row was right.

    Returns:
        Two-sided p, and how many rows only the first, and only the second has right.
    """
    from scipy.special import bdtr

    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    n = only_first + only_second
    # Under the null either side of a difference is as likely: a binomial with p = 1/2.
    p = min(1.0, 2 * float(bdtr(min(only_first, only_second), n, 0.5)))
    return p, only_first, only_second


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _aside(key: str) -> bool:
    return key in _ASIDE or (
        key.startswith(("task.patterns.", "rows.")) and not key.endswith(".source")
    )


def _value(line: Line) -> float:
    value = line.figure.value if line.figure else None
    return float("-inf") if value is None else value


def _right(record: Record) -> dict[str, bool] | None:
    """Which rows a run has right, by what tells a row from others; None without predictions."""
    task = record.task
    if task is None or task.scale or task.multi_label or not record.said:
        return None
    return {
        f"{p.number} {p.truth} {sorted(p.row.items(), key=lambda item: item[0])}":
        task.classes[max(range(len(p.said["tuned"])), key=p.said["tuned"].__getitem__)] == p.truth
        for p in record.said
    }  # fmt: skip


def _test(lines: Sequence[Line]) -> str:
    """Fill in McNemar's test against the first; why not, where it could not be done."""
    best = _right(lines[0].record)
    if best is None:
        return (
            "Runs are tested against the best one row by row where both kept predictions of single labels; "
            "the best run has none."
        )
    missing = []
    for line in lines[1:]:
        own = _right(line.record)
        if own is None or own.keys() != best.keys():
            missing.append(line.name)
            continue
        p, only_best, only_own = mcnemar(list(best.values()), [own[key] for key in best])
        line.p, line.differ = p, (only_best, only_own)
    if missing:
        return f"Not tested, because the rows are not those of the best run, or were not kept: {', '.join(missing)}."
    return ""


def _groups(lines: Sequence[Line]) -> list[Group]:
    """Runs by all that decides a figure but the seed; none where every seed is alone."""
    by: dict[tuple[str, str], dict[int, list[Line]]] = {}
    for line in lines:
        if line.figure and line.figure.value is not None:
            key = (_measured_on(line.record), repr(_decides(line.record.config)))
            by.setdefault(key, {}).setdefault(int(line.record.config["seed"]), []).append(line)
    if all(len(seeds) < 2 for seeds in by.values()):
        return []
    made = [(rows, _group(seeds)) for (rows, _), seeds in by.items()]
    made.sort(key=lambda one: -one[1].mean)
    best_rows, best = made[0]
    best.best = True
    first = dict(zip(best.seeds, best.values, strict=True))
    for rows, group in made[1:]:
        own = dict(zip(group.seeds, group.values, strict=True))
        shared = [seed for seed in first if seed in own]
        if rows == best_rows:
            group.p = paired([first[s] for s in shared], [own[s] for s in shared])
    return [group for _, group in made]


def _group(seeds: Mapping[int, Sequence[Line]]) -> Group:
    ordered = dict(sorted(seeds.items()))
    values = [fmean(map(_value, some)) for some in ordered.values()]
    names = [line.name for some in ordered.values() for line in some]
    spread = stdev(values) if len(values) > 1 else 0.0
    return Group(names, list(ordered), values, fmean(values), spread)


def _measured_on(record: Record) -> str:
    """What tells the rows of a figure from others; dev rows, which a seed may draw, by nothing more."""
    told = record.results.digests.get("test", "") if record.results else ""
    return f"{record.split} {told if record.split == 'test' else ''}"


def _decides(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The options that decide a run but the seed and what follows from the rows that it draws."""
    options = {k: v for k, v in flat(config).items() if k not in (*_ASIDE, "seed")}
    follows = ["rows.train", "rows.dev"] if config.get("shots") else []
    weights = [v for k, v in options.items() if k.startswith("class_weight.")]
    # Weights that balance labels are n / (k * n_label), so the mean of 1 / weight is 1.
    if weights and all(weights) and abs(fmean(1 / w for w in weights) - 1) < 1e-9:
        follows += [k for k in options if k.startswith("class_weight.")]
        options["class_weight"] = "balanced"
    return sorted((k, str(v)) for k, v in options.items() if k not in follows and not is_place(k))
