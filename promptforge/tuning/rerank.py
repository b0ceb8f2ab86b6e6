"""Ranking label words and templates by what tuning makes of them (Gao, Fisch & Chen 2021, section 5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from promptforge.errors import UserError
from promptforge.task import Pattern, Task
from promptforge.template import Template
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
    best = dict(words.patterns)
    ranked = dict(words.alternatives)
    scores = {}
    for pattern, sets in words.alternatives.items():
        tried = sets[:most]
        named = [pattern] if pattern in tuner.task.patterns else list(tuner.task.patterns)
        found = []
        for i, one in enumerate(tried):
            task = tuner.task.with_words({pattern: one})
            parts = [tuned_score(tuner, task, p, f"{p}-words-{i + 1}") for p in named]
            found.append(sum(parts) / len(parts))
        order = sorted(
            range(len(tried)), key=lambda i: -found[i]
        )  # ties stay as the search has them
        ranked[pattern] = [tried[i] for i in order] + sets[most:]
        best[pattern] = ranked[pattern][0]
        scores[pattern] = [found[i] for i in order]
    origin = {**words.origin, "reranked": scores}
    return replace(words, patterns=best, scores={}, alternatives=ranked, origin=origin)


def template_rank(tuner: Tuner) -> Callable[[Template], float]:
    """For `search_template(rank=...)`: the score of a template on the dev rows after tuning."""
    _need_dev(tuner)
    words = tuner.task.words_for(next(iter(tuner.task.patterns)))
    numbers: dict[str, str] = {}

    def rank(template: Template) -> float:
        name = numbers.setdefault(template.source, f"found-{len(numbers) + 1}")
        made = Template(template.source, name=name)
        task = replace(tuner.task, patterns={name: Pattern(name, made, words)})
        return tuned_score(tuner, task, name, name)

    return rank


def tuned_score(tuner: Tuner, task: Task, pattern: str, name: str) -> float:
    """`dev_score` of a pattern after tuning."""
    member = Member(name, tuner.targets(), pattern, tuner.seed, task=task)
    return dev_score(tuner.member(member), tuner.dev)


def _need_dev(tuner: Tuner) -> None:
    if not tuner.dev:
        raise UserError("Re-ranking needs development rows: give --dev FILE, or --shots.")
