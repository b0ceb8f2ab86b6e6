"""iPET: generations of prompted models that label ever more rows for each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from promptforge import Classifier, Example, Task, UserError, search_verbalizer
from promptforge.plugins import build
from promptforge.tuning.loop import Target
from promptforge.tuning.rerank import check_takes
from promptforge.tuning.tuner import Member, Tuner
from promptforge.verbalizer import Words
from promptforge_pet.pet import Key, Pet, Voice
from promptforge_pet.votes import drawn, most_likely


class IPet(Pet):
    """Iterative PET (Schick & Schuetze 2021, "Exploiting Cloze Questions", section 3.4).

    In every generation each model is trained anew, on the labelled rows and on rows that a
    random subset of the *other* models labelled: the share `lambda_` of them, and `teachers` or
    more where there are so many (the paper's quarter is of ten models or more, so never one alone;
    with fewer models it would be, and a weak one spoils its pupils). The rows are drawn in proportion to confidence
    and in the balance of the labelled rows, so that the set is `factor` times the last one's.
    Without labelled rows the first set is the `most_likely` rows of each label (the paper draws
    ten in all from the hundred most likely), and it grows from there.

    With `widen=N` a verbalizer search runs on the enlarged sets of each generation (on the
    untrained model, whose words are not yet bent towards the ones in use), and each pattern
    gains N words a label before it is trained.
    """

    name: ClassVar[str] = "ipet"

    generations: int = Field(3, ge=1, description="Generations after the first models.")
    factor: float = Field(5.0, gt=1, description="How much the training sets grow a generation.")
    lambda_: float = Field(
        0.25, gt=0, le=1, description="Share of the other models that label for a model."
    )
    teachers: int = Field(
        3,
        ge=1,
        description="The fewest models that label for a model, where there are so many others.",
    )
    most_likely: int = Field(
        10, ge=1, description="Without labelled rows: how many rows a label begins with."
    )
    widen: int = Field(0, ge=0, description="Words a label that patterns gain each generation.")
    search: str = Field("petal", description="The verbalizer search that finds those words.")
    search_options: dict[str, Any] = Field(default_factory=dict, description="Its options.")

    def check_tuner(self, tuner: Tuner) -> None:
        """Raise a `UserError` where settings do not fit, fewer than two models label, or the verbalizer
        cannot read more words."""
        super().check_tuner(tuner)
        # Untrained, the repetitions of a pattern are one model.
        models = len(tuner.task.patterns) * (self.repetitions if tuner.train else 1)
        if models < 2:
            raise UserError(
                "strategy 'ipet' needs two models that label for each other: give another pattern"
                f"{' or repetitions=2' if tuner.train else ''}."
            )
        if self.widen:
            for pattern in tuner.task.patterns:
                build("search", self.search, **self._search(tuner.task.words_for(pattern)))
            check_takes(tuner, f"strategy.widen={self.widen}", self.widen, more=True)

    def trains_patterns(self, tuner: Tuner) -> bool:
        """Every generation does, with labelled rows or without."""
        return True

    def train(self, tuner: Tuner) -> Classifier:
        """The final model, taught by the last generation.

        Raises:
            UserError: no unlabelled rows, or what `check_tuner` says.
        """
        tuner = self.checked(tuner)
        voices = self.first(tuner, "g0-")
        joining = self.joining(tuner, voices)
        voices = [*voices, *joining]
        task = tuner.task
        for generation in range(1, self.generations + 1):
            task, members = self.generation(tuner, task, voices, generation)
            own = self.voices(tuner, members)
            voices = [*own, *self.counted(joining, own)]
        return self.distilled(tuner, voices, task)

    def generation(
        self, tuner: Tuner, task: Task, voices: Sequence[Voice], number: int
    ) -> tuple[Task, dict[Key, Member]]:
        """The members of a generation with their training sets, and the task with their words.

        Args:
            voices: of the generation before.
            number: from 1.
        """
        sets: dict[Key, list[Target]] = {}
        for pattern, repetition in self.keys(tuner):
            # The same model a generation before must not label for itself.
            others = [
                v
                for v in voices
                if (v.pattern, v.repetition or repetition) != (pattern, repetition)
            ]
            rng = np.random.default_rng([tuner.seed, number, len(sets)])
            sets[pattern, repetition] = self.enlarged(tuner, others, number, rng)
        if not all(sets.values()):
            # Labels stay in balance: where one gets no row, none does.
            raise UserError(
                f"iPET generation {number}: the models give one of the labels no unlabelled row, and there "
                "are no labelled rows to go on with. Give more rows with --unlabeled, a few labelled ones, "
                "or fewer generations (-o strategy.generations=N)."
            )
        sizes = sorted({len(some) for some in sets.values()})
        shown = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        full = len(tuner.train) + sum(self.wanted(tuner, number))
        tuner.report.note(
            f"iPET generation {number}: {len(sets)} models, {shown} rows each"
            + (f" ({full} wanted; a label has no more)" if sizes[0] < full else "")
        )
        if self.widen:
            words = {}
            for pattern in task.patterns:
                # A row that two of its models have with the same label counts once.
                of_pattern = [t for key, some in sets.items() if key[0] == pattern for t in some]
                once = {(t.key, t.shares): t for t in of_pattern}
                words[pattern] = self.widened(tuner, task, pattern, list(once.values()))
            task = task.with_words(words)
        prefix = f"g{number}-"
        return task, {key: self.model(tuner, key, s, prefix, task) for key, s in sets.items()}

    def wanted(self, tuner: Tuner, number: int) -> list[int]:
        """How many new rows of each label a training set of generation `number` gets."""
        if not tuner.train:
            return [round(self.factor ** (number - 1) * self.most_likely)] * len(tuner.labels)
        counts = Counter(e.label for e in tuner.train)
        return [round((self.factor**number - 1) * counts[label]) for label in tuner.labels]

    def enlarged(
        self, tuner: Tuner, others: Sequence[Voice], number: int, rng: np.random.Generator
    ) -> list[Target]:
        """The training set of one model in generation `number`: labelled rows and new ones.

        Args:
            others: the voices of which a random subset labels.
        """
        size = min(len(others), max(self.teachers, round(self.lambda_ * len(others))))
        chosen = sorted(rng.choice(len(others), size, replace=False).tolist())
        votes = self.together([others[i] for i in chosen])
        if tuner.train or number > 1:
            rows = drawn(votes, self.wanted(tuner, number), rng)
        else:
            rows = most_likely(votes, self.most_likely)
        first = len(tuner.train)
        return tuner.targets() + [
            tuner.hard(tuner.unlabeled[i], label, key=first + i)
            for label, of_label in zip(tuner.labels, rows, strict=True)
            for i in of_label
        ]

    def _search(self, words: Words) -> dict[str, Any]:
        """Options of the search: enough words that `widen` new ones a label are among them."""
        known = {word.lower() for some in words.values() for word in some}
        return {"words_per_label": len(known) + 2 * self.widen * len(words), **self.search_options}

    def widened(
        self, tuner: Tuner, task: Task, pattern: str, targets: Sequence[Target]
    ) -> dict[str, list[str]]:
        """A pattern's words with `widen` more a label, found on the training rows of its models.

        A word that the pattern has already, for any label and in any case, is no new one.
        """
        words = {label: list(some) for label, some in task.words_for(pattern).items()}
        taken = {word.lower() for some in words.values() for word in some}
        found = search_verbalizer(
            tuner.untrained(task.choose([pattern])),
            [Example(t.row, tuner.labels[t.shares.index(max(t.shares))], t.key) for t in targets],
            search=self.search,
            report=tuner.report,
            **self._search(words),
        ).words_for(pattern)
        for label in tuner.labels:
            wanted = len(words[label]) + self.widen
            for word in found[label]:
                if word.lower() not in taken and len(words[label]) < wanted:
                    words[label].append(word)
                    taken.add(word.lower())
        return words
