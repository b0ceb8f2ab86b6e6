"""Verbalizers: from label words to class scores. This is the protocol; methods are plugins."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, PrivateAttr

from promptforge.components import Component
from promptforge.errors import PromptForgeError, UserError, did_you_mean, listed
from promptforge.plugins import build
from promptforge.progress import Reporter

if TYPE_CHECKING:
    from torch import Tensor, nn

    from promptforge.backbone.base import Backbone
    from promptforge.readout import Readout
    from promptforge.scoring import Scorer

Words = dict[str, list[str]]
FORMAT = "promptforge-verbalizer"


class Verbalizer(Component):
    """Turns what a model says at a mask into one score per label.

    `bind` gives it the labels, their words and the model; `class_scores` does the work. Scores
    live in log space: their softmax over the labels is the class posterior.
    """

    role: ClassVar[str] = "verbalizer"
    #: whether `fit` learns something from rows without labels
    fits_rows: ClassVar[bool] = False
    #: whether the loss of a row depends on the other rows of its batch
    contrasts: ClassVar[bool] = False

    scorer: str = Field(
        "auto", description="How words of several tokens are scored; see 'promptforge plugins'."
    )
    scorer_options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the scorer."
    )
    slot: int = Field(0, ge=0, description="Which mask of the template is read, counted from 0.")

    _labels: tuple[str, ...] = PrivateAttr(())
    _words: Words = PrivateAttr(default_factory=dict)
    _sequences: dict[str, list[tuple[int, ...]]] = PrivateAttr(default_factory=dict)
    _parameters: dict[str, nn.Parameter] = PrivateAttr(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of the scores' columns."""
        return self._labels

    @property
    def words(self) -> Words:
        """label -> words."""
        return self._words

    @property
    def sequences(self) -> dict[str, list[tuple[int, ...]]]:
        """label -> the token ids of each of its words."""
        return self._sequences

    def bind(
        self,
        labels: Sequence[str],
        words: Mapping[str, Sequence[str]],
        backbone: Backbone,
        *,
        space_before: bool,
        report: Reporter | None = None,
    ) -> None:
        """Take labels and words, and make them ready for a model: see `prepare`.

        Raises:
            UserError: a label without words, two labels with the same words, or what `prepare`
                finds wrong.
        """
        self._labels = tuple(labels)
        # The prompt says what stands before a word.
        self._words = {label: [w.strip() for w in words.get(label, ())] for label in labels}
        owner: dict[tuple[str, ...], str] = {}
        for label, some in self._words.items():
            if not some:
                raise UserError(
                    f"The label {label!r} has no words. Give it at least one in task.toml, [labels]."
                )
            if not all(some):
                raise UserError(
                    f"A word of the label {label!r} is empty: write one, or take it out."
                )
            self._tell_apart(owner.setdefault(tuple(some), label), label)
        self.prepare(backbone, space_before=space_before, report=report or Reporter())

    def prepare(self, backbone: Backbone, *, space_before: bool, report: Reporter) -> None:
        """Tokenize the words; one that trains parameters makes them here, from the model's own.

        Raises:
            UserError: a word the tokenizer does not know, two labels with the same tokens.
        """
        self._sequences = {}
        owner: dict[tuple[int, ...], str] = {}
        shared: list[str] = []
        long: list[str] = []
        twice: list[str] = []
        for label, words in self._words.items():
            self._sequences[label] = []
            for word in words:
                ids = tuple(backbone.text.word(word, space_before=space_before))
                if not ids or backbone.text.unknown_id in ids:
                    raise UserError(
                        f"The label word {word!r} of {label!r} is unknown to the tokenizer of {backbone.name}. "
                        "Choose another word."
                    )
                other = owner.setdefault(ids, label)
                if other != label:
                    shared.append(f"{word!r} ({other}, {label})")
                if ids in self._sequences[label]:
                    twice.append(f"{word} ({label})")
                if len(ids) > 1:
                    long.append(f"{word!r} ({len(ids)} tokens)")
                self._sequences[label].append(ids)
        sets: dict[frozenset[tuple[int, ...]], str] = {}
        for label, sequences in self._sequences.items():
            self._tell_apart(sets.setdefault(frozenset(sequences), label), label)
        if shared:
            report.warn(f"Words that stand for two labels tell them apart less: {listed(shared)}.")
        if twice:
            report.warn(
                f"Words that are the same tokens as another of their label count twice: {listed(twice)}. Take "
                "them out."
            )
        if long:
            rest = f" and {len(long) - 8} more" if len(long) > 8 else ""
            report.note(f"Words of several tokens, scored whole: {', '.join(long[:8])}{rest}")

    def _tell_apart(self, one: str, other: str) -> None:
        if one != other:
            raise UserError(
                f"The labels {one!r} and {other!r} have the same words for the model "
                f"({listed(self._words[other])}), so it cannot tell them apart. Change one's words."
            )

    def shown(self, label: str, words: Sequence[str], row: Mapping[str, Any]) -> list[str]:
        """What stands in the masks of a demonstration: a text for each, or one for all.

        Called before `bind` too.

        Args:
            label: the demonstration's.
            words: that label's in the task; there may be none.
            row: the demonstration's.
        """
        return list(words[:1])

    @property
    def room(self) -> int:
        """Tokens a prompt must leave free, besides those of the task's words."""
        return 0

    @property
    def longest(self) -> int:
        """Tokens of the longest word."""
        return max(len(s) for sequences in self._sequences.values() for s in sequences)

    @property
    def one_pass(self) -> bool:
        """Whether class scores follow from the states at the masks, without reading the row again."""
        return bool(self._sequences) and self.longest == 1

    def build_scorer(self, backbone: Backbone) -> Scorer:
        """The scorer the options name, the family's own by default."""
        name = backbone.default_scorer if self.scorer == "auto" else self.scorer
        made: Scorer = build("scorer", name, **self.scorer_options)
        return made

    def word_scores(self, readout: Readout, *, normalised: bool = True) -> dict[str, Tensor]:
        """label -> scores of its words, [prompts, words]."""
        import torch

        sequences = [s for label in self.labels for s in self._sequences[label]]
        scores = readout.score(
            sequences, self.slot, normalised=normalised, scorer=self.build_scorer(readout.backbone)
        )
        sizes = [len(self._sequences[label]) for label in self.labels]
        return dict(zip(self.labels, torch.split(scores, sizes, dim=1), strict=True))

    @abstractmethod
    def class_scores(self, readout: Readout) -> Tensor:
        """Scores of the labels, [prompts, labels], in log space."""

    # --- tuning ---------------------------------------------------------------------------

    def parameters(self) -> dict[str, nn.Parameter]:
        """What this verbalizer trains along with the model, by name; made by `prepare`.

        Those that need no gradient are kept in artifacts with the others, and not trained.
        """
        return self._parameters

    def fit(self, readout: Readout) -> None:
        """Learn from rows whose labels are not known; only where `fits_rows`."""
        return

    def tokens_read(self) -> list[int] | None:
        """The only token ids whose logits `class_scores` and `loss` look at.

        None: they need the whole vocabulary, and it is trained whole.
        """
        return None

    def loss(self, readout: Readout, shares: Tensor, temperature: Tensor) -> Tensor:
        """The loss of each prompt, [prompts].

        Cross-entropy of the class posteriors with `shares`, at a temperature T and times T^2
        (Hinton, Vinyals & Dean 2015): for one-hot shares at T = 1 the usual one.

        Args:
            readout: states of the prompts, with gradients.
            shares: probability of each label, [prompts, labels].
            temperature: [prompts].
        """
        import torch

        scores = self.class_scores(readout) / temperature[:, None]
        return -(shares * torch.log_softmax(scores, -1)).sum(-1) * temperature.square()


@dataclass
class LabelWords:
    """Label words on their own: what `verbalizer.json` holds.

    Attributes:
        labels: the labels, in order.
        patterns: pattern -> label -> words; the key "*" holds for every pattern without its own.
        scores: pattern -> label -> the words' scores, where a search gave them.
        alternatives: pattern -> whole sets of words, best first, where the search ranked them.
        verbalizer, options: the component that reads them.
        origin: how they were found.
    """

    labels: list[str]
    patterns: dict[str, Words]
    scores: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    alternatives: dict[str, list[Words]] = field(default_factory=dict)
    verbalizer: str = "manual"
    options: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)

    def words_for(self, pattern: str) -> Words:
        """The words for a pattern.

        Raises:
            UserError: none for this pattern and none for all.
        """
        words = self.patterns.get(pattern) or self.patterns.get("*")
        if words is None:
            known = list(self.patterns)
            raise UserError(
                f"There are no words for the pattern {pattern!r}.{did_you_mean(pattern, known)} Only for {listed(known)}."
            )
        return words

    def check_labels(self, labels: Sequence[str], origin: str) -> None:
        """Raise a `UserError` unless the labels are the task's."""
        if set(labels) != set(self.labels):
            raise UserError(
                f"{origin} is for the labels {listed(self.labels)}, and the task has {listed(list(labels))}."
            )

    def to_json(self) -> dict[str, Any]:
        """As written to a file."""
        return {"format": FORMAT, "version": 1, **vars(self)}

    def save(self, path: str | Path) -> None:
        """Write `verbalizer.json`, whole or not at all."""
        path = Path(path)
        draft = path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(
                json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            draft.replace(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise PromptForgeError(
                f"{path} could not be written: {error.strerror or error}."
            ) from None

    @classmethod
    def load(cls, path: str | Path) -> LabelWords:
        """Read `verbalizer.json`.

        Raises:
            UserError: no such file, or not one of ours.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if data.pop("format") != FORMAT or data.pop("version") != 1:
                raise ValueError("another format or version")
            made = cls(**data)
            lists = [words[label] for words in made.patterns.values() for label in made.labels]
            if not all(
                isinstance(some, list) and all(isinstance(w, str) for w in some)
                for some in [made.labels, *lists]
            ):
                raise ValueError("labels and words must be lists of text")
        except FileNotFoundError:
            raise UserError(
                f"There is no verbalizer file {path}. 'promptforge search-verbalizer' writes one."
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not a verbalizer file of PromptForge: {error}") from None
        return made
