"""Ranking label words and templates by what tuning makes of them (Gao, Fisch & Chen 2021, section 5).

Each candidate is one training, a member of the tuner's: with a `folder` it is kept there, and one that
was tuned before is only read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from promptforge.backbone.base import Backbone
from promptforge.backbone.turns import one_training
from promptforge.candidates import whole_words
from promptforge.errors import UserError
from promptforge.progress import Mute, Reporter
from promptforge.task import Pattern, Task
from promptforge.template import Template
from promptforge.tuning import jobs as job_queue
from promptforge.tuning.run import RunFolder
from promptforge.tuning.scores import dev_score
from promptforge.tuning.tuner import Member, Tuner
from promptforge.verbalizer import LabelWords


def rerank_words(words: LabelWords, tuner: Tuner, most: int) -> LabelWords:
    """The same search's result with the set of words first that is best after tuning.

    Args:
        words: of a search that ranks whole sets (`alternatives`).
        tuner: has training and development rows; each set is one training, kept in the tuner's
            `folder` where it has one.
        most: how many sets of each pattern are tried.

    Returns:
        pattern -> of each set that was tried its accuracy on the development rows in
        `origin["reranked"]`, best first.

    Raises:
        UserError: no development rows, or a search that does not rank sets.
    """
    check_words(words, tuner)
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
        of = [[accuracy(measured[n], len(tuner.dev)) for n in names] for names in parts[pattern]]
        scores[pattern] = [sum(of[i]) / len(of[i]) for i in order]
    origin = {**words.origin, "reranked": scores}
    return replace(words, patterns=best, scores={}, alternatives=ranked, origin=origin)


def check_words(words: LabelWords, tuner: Tuner) -> None:
    """Raise the `UserError`s of `rerank_words`, before anything is tuned."""
    _need_dev(tuner)
    if not words.alternatives:
        raise UserError(
            f"The search {words.origin.get('search')!r} finds words one by one and ranks no sets of them: "
            "re-rank with --search lm-bff."
        )


def template_rank(tuner: Tuner) -> Callable[[Sequence[Template]], list[float]]:
    """For `search_template(rank=...)`: scores of templates on the dev rows after tuning.

    Args:
        tuner: has training and development rows; each template is one training, kept in the tuner's
            `folder` where it has one when the templates are ranked.

    Raises:
        UserError: no development rows.
    """
    _need_dev(tuner)
    words = tuner.task.words_for(next(iter(tuner.task.patterns)))

    def rank(templates: Sequence[Template]) -> list[float]:
        candidates = {}
        for i, template in enumerate(templates):
            # One name for all: where a template stands in the list decides nothing of its tuning.
            pattern = Pattern("found", Template(template.source, name="found"), words)
            task = replace(tuner.task, patterns={"found": pattern})
            candidates[f"found-{i + 1}"] = (task, "found")
        return list(tuned_scores(tuner, candidates).values())

    return rank


def accuracy(score: float, rows: int) -> float:
    """The accuracy on `rows` rows in a `dev_score`, which is it less a hair for unlikely labels."""
    return round(score * rows) / rows


def tuned_scores(tuner: Tuner, candidates: Mapping[str, tuple[Task, str]]) -> dict[str, float]:
    """`dev_score` after tuning of each candidate, a pattern of a task; `tuner.jobs` at a time."""
    if tuner.folder is not None:  # a worker may stand elsewhere
        tuner = replace(tuner, folder=tuner.folder.absolute())
    members = _members(tuner, candidates)
    work = partial(_tuned_score, replace(tuner, backbone=None, report=Reporter(), jobs=1))  # type: ignore[arg-type]
    done = RunFolder(tuner.folder).members() if tuner.folder else []
    items = {member.name: member for member in members.values()}
    open_ = {name: member for name, member in items.items() if name not in done}
    scores: dict[str, float] = {}
    if tuner.jobs > 1 and len(open_) > 1 and job_queue.can_send(tuner.backbone, tuner.report):
        scores = job_queue.run(
            work, open_, backbone=tuner.backbone, jobs=tuner.jobs, folder=tuner.folder,
            made="members/{}", report=tuner.report, what="Tuning", unit="candidates",
        )  # fmt: skip
    # Those that are done are read here: a worker of another machine would not see them.
    here = {name: member for name, member in items.items() if name not in scores}
    if here:
        meters = tuner.report.meter("Tuning", len(here), "candidates")
        quiet = Reporter()  # one meter for all of it
        with one_training(tuner.backbone), meters as meter:
            for name, member in here.items():
                scores[name] = work(tuner.backbone, tuner.folder, name, member, quiet)
                meter.advance()
    return {name: scores[member.name] for name, member in members.items()}


def _members(tuner: Tuner, candidates: Mapping[str, tuple[Task, str]]) -> dict[str, Member]:
    """Candidate -> its training.

    In a folder it is named by what it becomes, not by its place among the candidates: a search that
    goes on, or finds one candidate more, has no other candidate's folder under the name.
    """
    targets, members = tuner.targets(), {}
    for name, (task, pattern) in candidates.items():
        member = Member(name, targets, pattern, tuner.seed, task=task)
        if tuner.folder is not None:
            member = replace(member, name=f"{pattern}-{tuner.identity(member)}")
        members[name] = member
    return members


def _tuned_score(
    tuner: Tuner, backbone: Backbone, folder: Path | None, _: str, member: Member, report: Reporter
) -> float:
    """A job: what tuning makes of a candidate."""
    tuner = replace(tuner, backbone=backbone, folder=folder, trained={}, report=report)
    return dev_score(tuner.member(member), tuner.dev)


def check_takes(tuner: Tuner, option: str, words: int = 0, *, more: bool = False) -> None:
    """Refuse what the tuner's verbalizer could not read, before anything is searched or tuned.

    The verbalizer is asked: it reads one row with `words` of the model's vocabulary for each label,
    in place of the task's or with `more` after them; 0: with those of the task.

    Args:
        option: what asks for the search, for the message.

    Raises:
        UserError: it cannot read such words with the task's templates, or has words of its own.
    """
    row = tuner.train[0].row if tuner.train else tuner.unlabeled[0]
    plain = tuner.with_(unlabeled=[], demonstrations=None, report=Mute())
    for pattern in tuner.task.patterns:
        model = plain.untrained(tuner.task.choose([pattern]), remember=False)
        own = model.task.words_for(pattern)
        given = {label: list(own.get(label, ())) for label in tuner.labels}
        if words:
            readout = model.read(pattern, [row])
            if more:  # what it cannot read of the task's own words is told as it is
                model.class_scores(pattern, readout)
            known = whole_words(tuner.backbone, space_before=readout.space_before()).words
            taken = {word.lower() for some in given.values() for word in some}
            new = (word for word in known if word.lower() not in taken)
            given = {y: [*(some if more else ()), *islice(new, words)] for y, some in given.items()}
            model = plain.untrained(model.task.with_words({pattern: given}), remember=False)
        elif not all(given.values()):
            return  # the search says what it lacks
        try:
            with tuner.precision.computing():
                readout = model.read(pattern, [row])
                model.class_scores(pattern, readout)
            read = model.verbalizer(pattern, readout.encoded[0]).words
            if words and not all(set(some) <= set(read[label]) for label, some in given.items()):
                raise UserError("It has words of its own.")
        except UserError as error:
            raise UserError(
                f"-o {option}: the verbalizer {tuner.verbalizer.name!r} cannot read what the search would "
                f"find. Leave that option out, or choose another --verbalizer. ({error})"
            ) from None


def _need_dev(tuner: Tuner) -> None:
    if not tuner.dev:
        raise UserError("Re-ranking needs development rows: give --dev FILE, or --shots.")
