"""Verbalizer searches: labelled rows and a model -> label words.

A search sees `Evidence` and nothing else: candidate words, labels, and log-probabilities that
are worked out block by block, so that not even one pattern's are ever held whole.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from promptforge.candidates import Candidates, most_frequent, texts_of, whole_words
from promptforge.classifier import check_labels
from promptforge.components import Component
from promptforge.data import Example, Row
from promptforge.errors import UserError, listed
from promptforge.model import PromptModel
from promptforge.plugins import build
from promptforge.progress import Reporter
from promptforge.readout import Readout
from promptforge.verbalizer import LabelWords

#: Rows whose log-probabilities are worked out at once from a model's states.
_ROWS = 128
#: Log-probabilities of given logits that stay in the processor's cache.
_CACHED = 2**18


@dataclass
class Evidence:
    """What a search may look at.

    Attributes:
        labels: the labels, in order.
        words: candidate words, W of them, in vocabulary order.
        targets: index of each row's label, [rows].
        sources: one per pattern; each yields (rows, log-probabilities of the words [rows, W]).
    """

    labels: tuple[str, ...]
    words: tuple[str, ...]
    targets: Tensor
    sources: Sequence[Any]

    @classmethod
    def of(
        cls,
        readouts: Sequence[tuple[Readout, Candidates]],
        targets: Tensor,
        labels: Sequence[str],
        slot: int = 0,
    ) -> Evidence:
        """Evidence from readouts at one of their masks; their candidates are the same words."""
        sources = [_Source(readout, candidates, slot) for readout, candidates in readouts]
        return cls(tuple(labels), readouts[0][1].words, targets, sources)

    @classmethod
    def of_logits(
        cls,
        logits: Sequence[Tensor],
        targets: Tensor,
        labels: Sequence[str],
        words: Sequence[str],
    ) -> Evidence:
        """Evidence from logits at hand, one tensor [rows, W] per pattern.

        Normalised over the W words, a block of rows at a time; log-probabilities pass unchanged.
        """
        return cls(tuple(labels), tuple(words), targets, [_Given(t) for t in logits])

    def blocks(self, words: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Over all patterns, a block of rows at a time: targets [n], log-probabilities [n, words].

        `words` are indices into `self.words`; None means all.
        """
        for source in self.sources:
            for rows, log_probs in source.blocks(words):
                yield self.targets[rows], log_probs

    def columns(self, words: Tensor) -> Iterator[Tensor]:
        """Per pattern, log-probabilities of some words in all rows, [rows, words]."""
        for source in self.sources:
            yield torch.cat([log_probs for _, log_probs in source.blocks(words)])


def _row_blocks(rows: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, rows, size))


class _Source:
    """Evidence from what a model said."""

    def __init__(self, readout: Readout, candidates: Candidates, slot: int) -> None:
        self.readout, self.candidates, self.slot = readout, candidates, slot

    def blocks(self, words: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
        ids = self.candidates.ids if words is None else self.candidates.ids[words]
        readout, slot = self.readout, self.slot
        states, backbone, log_z = readout.at(slot), readout.backbone, readout.log_z(slot)
        for rows in _row_blocks(len(states), _ROWS):
            yield rows, backbone.logits(states[rows], ids).float() - log_z[rows, None]


class _Given:
    """Evidence from logits at hand."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        # Highest logit and log Z above it, apart: near p = 1 their sum would round log p away.
        self.highest: Tensor | None = None
        self.rest: Tensor | None = None

    def blocks(self, words: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
        rows, width = self.logits.shape
        if words is not None and self.highest is not None and self.rest is not None:
            for part in _row_blocks(rows, max(16, _CACHED // len(words))):
                block = self.logits[part][:, words] - self.highest[part, None]
                yield part, block - self.rest[part, None]
            return
        highest, rest = [], []
        for part in _row_blocks(rows, max(16, _CACHED // width)):
            block = torch.log_softmax(self.logits[part], -1)
            top = block.max(1, keepdim=True)
            highest.append(self.logits[part].gather(1, top.indices)[:, 0])
            rest.append(-top.values[:, 0])
            yield part, block if words is None else block[:, words]
        self.highest, self.rest = torch.cat(highest), torch.cat(rest)


@dataclass(frozen=True)
class FoundWords:
    """What a search found.

    Attributes:
        words: label -> (word, score), best first.
        alternatives: whole assignments of words to labels, best first, for searches that rank
            them: (label -> words, score).
    """

    words: dict[str, list[tuple[str, float]]]
    alternatives: list[tuple[dict[str, list[str]], float]] = field(default_factory=list)


class VerbalizerSearch(Component):
    """Finds label words. Options every search has; plugins add their own.

    `search` is called once per pattern, or once for all patterns with `joint`.
    """

    role: ClassVar[str] = "search"

    words_per_label: int = Field(10, ge=1, description="How many words to find for each label.")
    candidates: int = Field(1000, ge=0, description="First keep this many words per label; 0: all.")

    @abstractmethod
    def search(self, evidence: Evidence) -> FoundWords:
        """The words for each label.

        Raises:
            UserError: the evidence does not allow an answer.
        """


def _check_apart(found: Mapping[str, Any]) -> None:
    """Raise a `UserError` where two labels have the same words: no prompt would tell them apart."""
    for pattern, one in found.items():
        seen: dict[frozenset[str], str] = {}
        for label, scored in one.words.items():
            words = frozenset(word for word, _ in scored)
            if words and (other := seen.setdefault(words, label)) != label:
                where = "" if pattern == "*" else f" of the pattern {pattern!r}"
                raise UserError(
                    f"The labels {other!r} and {label!r}{where} have the same words, {listed(sorted(words))}: search "
                    "for more (--words-per-label, --candidates), or with --search lm-bff, which gives each its own."
                )


def search_verbalizer(
    model: PromptModel,
    train: Sequence[Example],
    *,
    search: str | VerbalizerSearch = "petal",
    joint: bool = False,
    max_words: int | None = None,
    unlabeled: Sequence[Row] | None = None,
    report: Reporter | None = None,
    **options: Any,
) -> LabelWords:
    """Find label words for each pattern of `model.task`, or one set for all with `joint`.

    Args:
        model: the backbone and the task's patterns.
        train: labelled examples.
        search: a search component or its name; `options` are its options.
        max_words: only the words most frequent in `unlabeled`.
        unlabeled: rows for `max_words`.

    Raises:
        UserError: options that do not fit, a label without rows, templates that disagree on
            the space before the mask (with `joint`).
    """
    report = report or model.report
    model.task.need_classes("A search for label words")
    finder: VerbalizerSearch = (
        build("search", search, **options) if isinstance(search, str) else search
    )
    if max_words is not None and not unlabeled:
        raise UserError(
            "max_words keeps the words most frequent in unlabelled text: give that too (--unlabeled)."
        )
    if max_words is not None and max_words < 1:
        raise UserError(f"max_words is {max_words}: give how many words are looked at, from 1.")
    labels = model.labels
    lacking = [label for label in labels if not any(e.label == label for e in train)]
    if lacking:
        raise UserError(f"The label {lacking[0]!r} has no rows to learn words from.")
    check_labels(train, labels, "The labelled rows")
    targets = torch.tensor([labels.index(e.label) for e in train])
    rows = [e.row for e in train]
    read = {p: model.read(p, rows, "Reading labelled rows") for p in model.task.patterns}

    slot = model.slot

    def candidates(readout: Readout) -> Candidates:
        readout.at(slot)  # raises where there is no such mask
        space = readout.space_before(slot)
        found = whole_words(model.backbone, space_before=space)
        if max_words is None:
            return found
        texts = texts_of(unlabeled or (), model.task.inputs)
        return most_frequent(found, model.backbone, texts, max_words, space_before=space)

    pairs = {p: (readout, candidates(readout)) for p, readout in read.items()}
    report.note(f"Searching {len(next(iter(pairs.values()))[1].words)} words with {finder.name}")
    with torch.inference_mode():
        if joint:
            if len({c.words for _, c in pairs.values()}) > 1:
                raise UserError(
                    "A joint search needs patterns that all have, or all lack, a space before the mask."
                )
            found = {"*": finder.search(Evidence.of(list(pairs.values()), targets, labels, slot))}
        else:
            found = {
                p: finder.search(Evidence.of([pair], targets, labels, slot))
                for p, pair in pairs.items()
            }
    _check_apart(found)
    return LabelWords(
        labels=list(labels),
        patterns={
            p: {label: [w for w, _ in f.words[label]] for label in labels} for p, f in found.items()
        },
        scores={
            p: {label: [float(s) for _, s in f.words[label]] for label in labels}
            for p, f in found.items()
        },
        alternatives={
            p: [words for words, _ in f.alternatives] for p, f in found.items() if f.alternatives
        },
        origin={
            "search": finder.name,
            "options": finder.model_dump(mode="json"),
            "joint": joint,
            "max_words": max_words,
            "model": model.backbone.name,
            "task": model.task.name,
            "rows": len(train),
        },
    )
