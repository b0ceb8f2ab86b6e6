"""Ranking label words and templates by what tuning makes of them (Gao, Fisch & Chen 2021, section 5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from promptforge.backbone.base import Backbone
from promptforge.errors import UserError
from promptforge.progress import Reporter
from promptforge.task import Pattern, Task
from promptforge.template import Template
from promptforge.tuning import jobs as job_queue
from promptforge.tuning.tuner import Member, Tuner, dev_score
from promptforge.verbalizer import LabelWords


def rerank_words(words: LabelWords, tuner: Tuner, most: int) -> LabelWords:
    """The same search's result with the set of words first that is best after tuning.

    Args:
        words: of a search that ranks whole sets (`alternatives`).
        tuner: has training and development rows; each set is one training.
        most: how many sets of each pattern are tried.

    Raises:
        UserError: no development rows, or a search that does not rank sets.
    """
    _need_dev(tuner)
    if not words.alternatives:
        raise UserError(
            f"The search {words.origin.get('search')!r} finds words one by one and ranks no sets of them: "
            "re-rank with --search lm-bff."
        )
    candidates: dict[str, tuple[Task, str]] = {}
    parts: dict[str, list[list[str]]] = {}  # pattern -> of each set, the trainings that measure it
    for pattern, sets in words.alternatives.items():
        named = [pattern] if pattern in tuner.task.patterns else list(tuner.task.patterns)
        parts[pattern] = []
        for i, one in enumerate(sets[:most]):
            task = tuner.task.with_words({pattern: one})
            names = {f"{p}-words-{i + 1}": (task, p) for p in named}
            candidates |= names
            parts[pattern].append(list(names))
    measured = tuned_scores(tuner, candidates)
    best, ranked, scores = dict(words.patterns), dict(words.alternatives), {}
    for pattern, sets in words.alternatives.items():
        found = [sum(measured[n] for n in names) / len(names) for names in parts[pattern]]
        # Ties stay as the search has them.
        order = sorted(range(len(found)), key=lambda i: -found[i])
        ranked[pattern] = [sets[i] for i in order] + sets[most:]
        best[pattern] = ranked[pattern][0]
        scores[pattern] = [found[i] for i in order]
    origin = {**words.origin, "reranked": scores}
    return replace(words, patterns=best, scores={}, alternatives=ranked, origin=origin)


def template_rank(tuner: Tuner) -> Callable[[Sequence[Template]], list[float]]:
    """For `search_template(rank=...)`: scores of templates on the dev rows after tuning."""
    _need_dev(tuner)
    words = tuner.task.words_for(next(iter(tuner.task.patterns)))

    def rank(templates: Sequence[Template]) -> list[float]:
        candidates = {}
        for i, template in enumerate(templates):
            name = f"found-{i + 1}"
            made = Template(template.source, name=name)
            task = replace(tuner.task, patterns={name: Pattern(name, made, words)})
            candidates[name] = (task, name)
        return list(tuned_scores(tuner, candidates).values())

    return rank


def tuned_scores(tuner: Tuner, candidates: Mapping[str, tuple[Task, str]]) -> dict[str, float]:
    """`dev_score` after tuning of each candidate, a pattern of a task; `tuner.jobs` at a time."""
    work = partial(_tuned_score, replace(tuner, backbone=None, report=Reporter(), jobs=1))  # type: ignore[arg-type]
    many = tuner.jobs > 1 and len(candidates) > 1
    if many and job_queue.can_send(tuner.backbone, tuner.report):
        found = job_queue.run(
            work, candidates, backbone=tuner.backbone, jobs=tuner.jobs, report=tuner.report,
            what="Tuning", unit="candidates",
        )  # fmt: skip
        return {name: found[name] for name in candidates}
    with tuner.report.meter("Tuning", len(candidates), "candidates") as meter:
        scores = {}
        for name, candidate in candidates.items():
            scores[name] = work(tuner.backbone, None, name, candidate)
            meter.advance()
    return scores


def _tuned_score(
    tuner: Tuner, backbone: Backbone, _: Path | None, name: str, candidate: tuple[Task, str]
) -> float:
    """A job: what tuning makes of a pattern of a task."""
    task, pattern = candidate
    tuner = replace(tuner, backbone=backbone, trained={})
    member = Member(name, tuner.targets(), pattern, tuner.seed, task=task)
    return dev_score(tuner.member(member), tuner.dev)


def _need_dev(tuner: Tuner) -> None:
    if not tuner.dev:
        raise UserError("Re-ranking needs development rows: give --dev FILE, or --shots.")
