"""PET: prompted models label rows, and a final model learns from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from promptforge import Classifier, GroupStrategy, PromptModel, Task, UserError
from promptforge.components import changed
from promptforge.tuning.loop import Target
from promptforge.tuning.scores import dev_score
from promptforge.tuning.settings import Settings
from promptforge.tuning.strategy import Made
from promptforge.tuning.tuner import Member, Tuner
from promptforge_pet.votes import Array, combined

#: Below this a probability's logarithm is of no use.
_TINY = 1e-12

#: pattern and repetition, from 1, of a model
Key = tuple[str, int]


@dataclass(frozen=True)
class Voice:
    """What one model says of the unlabelled rows.

    Attributes:
        name: the model's name.
        pattern: its pattern; of another strategy's run, that strategy.
        repetition: which of the pattern's trainings, from 1; 0: the untrained pattern.
        scores: class scores in log space over the pattern's own words, [rows, labels].
        weight: how much it counts.
    """

    name: str
    pattern: str
    repetition: int
    scores: Array
    weight: float = 1.0


class Pet(GroupStrategy):
    """Pattern-exploiting training (Schick & Schuetze 2021, "Exploiting Cloze Questions", section 3).

    Every pattern is tuned `repetitions` times on the labelled rows. Each of these models scores
    the unlabelled rows over its own label words, the scores are put together as soft labels, and
    a final model learns those. Without labelled rows the untrained patterns give the labels.

    A soft label at temperature T is compared with the final model at T: cross-entropy times T^2,
    which is the KL divergence times T^2 but for the soft labels' entropy, a constant. Combined
    scores are softened by `temperature`; combined probabilities are as they are, at T = 1.
    """

    name: ClassVar[str] = "pet"
    needs_labelled: ClassVar[bool] = False
    needs_unlabeled: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = True

    repetitions: int = Field(
        3, ge=1, description="Trainings of each pattern, with seeds of their own."
    )
    combine: Literal["scores", "probabilities"] = Field(
        "scores", description="What is averaged over the models for the soft labels."
    )
    weights: Literal["uniform", "accuracy"] = Field(
        "uniform",
        description="How much a pattern's model counts: as its accuracy before tuning.",
    )
    temperature: float = Field(2.0, gt=0, description="Softens combined scores to soft labels.")
    max_unlabeled: int = Field(
        0,
        ge=0,
        description="Use at most this many unlabelled rows, drawn by seed; 0: all. In a task of "
        "label sets every question about a text is a row.",
    )
    alpha: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of a masked-LM loss in the patterns' trainings (paper: 1e-4).",
    )
    final: Literal["head", "prompt"] = Field(
        "head",
        description="The final model: a classification head on whole texts, or a pattern (the best "
        "on the development rows, else the first).",
    )
    final_model: str = Field(
        "", description="Another model that the final one is tuned from; none: the patterns'."
    )
    final_data: Literal["both", "unlabeled"] = Field(
        "both", description="The final model learns soft labels, with or without the labelled rows."
    )
    final_steps: int = Field(1000, ge=1, description="Updates of the final model.")
    final_batch_size: int = Field(16, ge=1, description="Rows per update of the final model.")
    final_learning_rate: float = Field(
        0.0, ge=0, description="Of the final model; 0: as the patterns'."
    )

    def train(self, tuner: Tuner) -> Classifier:
        """The final model.

        Raises:
            UserError: no unlabelled rows, or settings that do not fit.
        """
        tuner = self.checked(tuner)
        voices = self.first(tuner)
        return self.distilled(tuner, [*voices, *self.joining(tuner, voices)])

    # --- shared with iPET -----------------------------------------------------------------

    def check_tuner(self, tuner: Tuner) -> None:
        """Raise a `UserError` where the settings do not fit the final model, others do not join, or an
        option is about trainings or patterns that there are not."""
        super().check_tuner(tuner)
        self.check_others(tuner)
        self.final_settings(tuner)
        self._check_models(tuner)
        if tuner.init_from and self.final_model not in ("", tuner.backbone.name):
            raise UserError(
                f"strategy {self.name!r}: final_model={self.final_model} is trained from itself, and what "
                "--init-from names is of the run's model. Leave one of the two out."
            )

    @property
    def makes(self) -> Made:
        """The final model."""
        return self.final

    def trains_patterns(self, tuner: Tuner) -> bool:
        """Whether patterns are tuned before the final model is; else they label as they are."""
        return bool(tuner.train)

    def _check_models(self, tuner: Tuner) -> None:
        who = f"strategy {self.name!r}"
        if not self.trains_patterns(tuner):
            many = changed(self, "repetitions") and self.repetitions > 1 and not self.also
            for option, given in (("alpha", self.alpha), ("repetitions", many)):
                if given:
                    raise UserError(
                        f"{who}: {option}={getattr(self, option)} is of the patterns' trainings, and without labelled "
                        f"rows there are none: leave {option} out, or give labelled rows."
                    )
        if self.weights == "accuracy" and (not tuner.train or len(tuner.task.patterns) < 2):
            raise UserError(
                f"{who}: weights=accuracy weighs patterns by their accuracy on labelled rows, and there is no "
                f"{'second pattern' if tuner.train else 'labelled row'}: leave weights out."
            )

    def checked(self, tuner: Tuner) -> Tuner:
        """The tuner with at most `max_unlabeled` rows; every mistake comes before any training."""
        self.check_rows(tuner.train, tuner.unlabeled)
        self.check_tuner(tuner)
        if len(tuner.task.patterns) == 1:
            tuner.report.warn(
                f"strategy {self.name!r} lives on patterns that differ, and there is one only: "
                f"{next(iter(tuner.task.patterns))!r}. Give two or more."
            )
        rows = tuner.unlabeled
        if 0 < self.max_unlabeled < len(rows):
            rng = np.random.default_rng(tuner.seed)
            kept = sorted(rng.choice(len(rows), self.max_unlabeled, replace=False).tolist())
            tuner = tuner.with_(unlabeled=[rows[i] for i in kept])
        return tuner

    def keys(self, tuner: Tuner) -> list[Key]:
        """Pattern and repetition of every model."""
        return [(p, r) for p in tuner.task.patterns for r in range(1, self.repetitions + 1)]

    def model(
        self,
        tuner: Tuner,
        key: Key,
        targets: Sequence[Target],
        prefix: str = "",
        task: Task | None = None,
    ) -> Member:
        """The training of one model; each repetition has a seed of its own."""
        pattern, repetition = key
        return Member(
            f"{prefix}{pattern}-{repetition}",
            targets,
            pattern,
            tuner.seed + 1000 * (repetition - 1),
            task=task,
            alpha=self.alpha,
        )

    def first(self, tuner: Tuner, prefix: str = "") -> list[Voice]:
        """The voices of the patterns tuned on the labelled rows; untrained without any."""
        if tuner.train:
            targets = tuner.targets()
            members = {key: self.model(tuner, key, targets, prefix) for key in self.keys(tuner)}
            return self.voices(tuner, members)
        tuner.report.note("No labelled rows: the untrained patterns give the labels")
        models = {p: tuner.untrained(tuner.task.choose([p])) for p in tuner.task.patterns}
        return [Voice(p, p, 0, self.scores(model, tuner)) for p, model in models.items()]

    def voices(self, tuner: Tuner, members: Mapping[Key, Member]) -> list[Voice]:
        """Train members and let each score the unlabelled rows."""
        made = tuner.members(list(members.values()))
        weights: dict[str, float] = {}
        out = []
        for (pattern, repetition), member in members.items():
            model = made.pop(member.name)
            assert isinstance(model, PromptModel)
            if pattern not in weights:
                weights[pattern] = self._weight(tuner, pattern, member.task or tuner.task)
            scores = self.scores(model, tuner)
            out.append(Voice(member.name, pattern, repetition, scores, weights[pattern]))
        return out

    def joining(self, tuner: Tuner, voices: Sequence[Voice]) -> list[Voice]:
        """The voices of other strategies: each counts as much as those of the patterns together.

        What they say are log-probabilities.
        """
        out = []
        for name, made in self.others(tuner).items():
            with tuner.precision.computing():
                parts = made.part_probabilities(tuner.unlabeled, "Labelling")
            scores = np.log(np.maximum(made.combined(parts), _TINY))
            other, _, repetition = name.rpartition("-")
            out.append(Voice(name, other, int(repetition), scores))
        return self.counted(out, voices)

    def counted(self, joining: Sequence[Voice], voices: Sequence[Voice]) -> list[Voice]:
        """What joins, each strategy with the weight of the patterns' `voices` together."""
        weight = sum(v.weight for v in voices) / self.repetitions
        return [replace(v, weight=weight) for v in joining]

    def _weight(self, tuner: Tuner, pattern: str, task: Task) -> float:
        """The accuracy of a pattern before tuning; 1 where all count the same."""
        if self.weights == "uniform" or not tuner.train:
            return 1.0
        found = tuner.untrained(task.choose([pattern])).predict([e.row for e in tuner.train])
        right = sum(int(f == e.label) for f, e in zip(found, tuner.train, strict=True))
        return right / len(found)

    def scores(self, model: PromptModel, tuner: Tuner) -> Array:
        """Class scores of the unlabelled rows in log space, [rows, labels], by one pattern.

        Where demonstrations are drawn, the mean over the draws.
        """
        (pattern,) = model.task.patterns
        rows, what = tuner.unlabeled, "Labelling"
        with tuner.precision.computing():
            if self.combine == "probabilities":
                read = model.part_probabilities(rows, what)[pattern]
                logs: Array = np.log(np.maximum(read, _TINY))
                return logs
            found = [
                model.class_scores(pattern, model.read(pattern, rows, what, d))
                .double()
                .cpu()
                .numpy()
                for d in model.draws
            ]
        mean: Array = np.mean(found, axis=0)
        return mean

    def together(self, voices: Sequence[Voice], temperature: float = 1.0) -> Array:
        """What voices say together, [rows, labels]."""
        scores, weights = [v.scores for v in voices], [v.weight for v in voices]
        return combined(scores, weights, self.combine, temperature)

    def soft_targets(self, tuner: Tuner, voices: Sequence[Voice]) -> list[Target]:
        """The unlabelled rows with soft labels; class weights count by a label's share."""
        temperature = self.temperature if self.combine == "scores" else 1.0
        shares = self.together(voices, temperature)
        weights = shares @ np.array([tuner.class_weight.get(label, 1.0) for label in tuner.labels])
        return [
            Target(row, tuple(q), float(w), temperature, key=len(tuner.train) + i)
            for i, (row, q, w) in enumerate(
                zip(tuner.unlabeled, shares.tolist(), weights, strict=True)
            )
        ]

    def distilled(
        self, tuner: Tuner, voices: Sequence[Voice], task: Task | None = None
    ) -> Classifier:
        """The final model, taught by voices; `task` has the words of a final prompt."""
        labelled = tuner.targets() if self.final_data == "both" else []
        pattern = self._best(tuner, voices) if self.final == "prompt" else None
        return tuner.on(self.final_model).members(
            [
                Member(
                    "final",
                    [*labelled, *self.soft_targets(tuner, voices)],
                    pattern,
                    tuner.seed,
                    settings=self.final_settings(tuner),
                    task=task,
                )
            ]
        )["final"]

    def _best(self, tuner: Tuner, voices: Sequence[Voice]) -> str:
        """The pattern whose models are best on the development rows; without any, the first."""
        scores: dict[str, list[float]] = {}
        for v in voices:
            if v.pattern not in tuner.task.patterns:
                continue
            trained = tuner.trained.get(v.name)
            best = trained.best if trained else None
            if not v.repetition and tuner.dev:
                best = dev_score(tuner.untrained(tuner.task.choose([v.pattern])), tuner.dev)
            scores.setdefault(v.pattern, []).append(0.0 if best is None else best)
        return max(scores, key=lambda pattern: sum(scores[pattern]) / len(scores[pattern]))

    def final_settings(self, tuner: Tuner) -> Settings:
        """The tuner's settings with those of the final model.

        It is trained to its end, as in the paper. Its teachers know more than the development
        rows, whose accuracy is often highest by chance before it has learned what they say.

        Raises:
            UserError: they do not fit together.
        """
        own: dict[str, Any] = {"steps": self.final_steps, "batch_size": self.final_batch_size}
        own |= {"keep": "last", "patience": 0}
        rate = {"learning_rate": self.final_learning_rate} if self.final_learning_rate else {}
        return Settings.of(**{**tuner.settings.model_dump(), **own, **rate})
