"""The plain strategies: no training, a classification head, prompts, and ensembles of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from promptforge import Classifier, GroupStrategy, Strategy, UserError, Verbalizer
from promptforge.plugins import build
from promptforge.tuning.members import Ensemble
from promptforge.tuning.scores import dev_score
from promptforge.tuning.strategy import Made
from promptforge.tuning.tuner import Member, Tuner


class ZeroShot(Strategy):
    """No training: the patterns as they are, averaged."""

    name: ClassVar[str] = "zero-shot"
    needs_labelled: ClassVar[bool] = False

    def check_tuner(self, tuner: Tuner) -> None:
        """Raise a `UserError` where something to start from was named: nothing is trained."""
        super().check_tuner(tuner)
        if tuner.init_from:
            raise UserError(
                f"strategy {self.name!r} trains nothing, so it starts from nothing: leave out --init-from "
                f"{tuner.init_from}, or read with what is there: --model {tuner.init_from}."
            )

    def train(self, tuner: Tuner) -> Classifier:
        """The untrained prompt model."""
        return tuner.untrained()


class Priming(ZeroShot):
    """No training either: labelled rows are shown in the prompt (Brown et al. 2020)."""

    name: ClassVar[str] = "priming"
    needs_labelled: ClassVar[bool] = True

    def check_tuner(self, tuner: Tuner) -> None:
        """Raise a `UserError` where no demonstrations were asked for."""
        super().check_tuner(tuner)
        if tuner.demonstrations is None:
            raise UserError(
                "strategy 'priming' shows labelled rows: choose them with --demonstrations, for "
                "example --demonstrations random; in a comparison --strategy "
                "priming:demonstrations=random."
            )


class Finetune(Strategy):
    """Standard fine-tuning: a classification head on the whole text, and no prompt."""

    name: ClassVar[str] = "finetune"
    joint_exits: ClassVar[bool] = True

    pooling: Literal["mean", "first"] = Field(
        "mean", description="What the head sees of an encoder: the mean over tokens, or the first."
    )

    @property
    def makes(self) -> Made:
        """A head."""
        return "head"

    def check_tuner(self, tuner: Tuner) -> None:
        """Raise a `UserError` where demonstrations were asked for: there is no prompt to show them."""
        if tuner.demonstrations is not None:
            raise UserError(
                f"strategy {self.name!r} reads the text alone and shows no demonstrations: leave out "
                "--demonstrations, or choose another --strategy."
            )

    def train(self, tuner: Tuner) -> Classifier:
        """The head and the tuned model under it."""
        return tuner.member(Member("head", tuner.targets(), None, tuner.seed, pooling=self.pooling))


class PromptTuning(Strategy):
    """Prompt-based fine-tuning: cross-entropy over the class scores of a pattern.

    (Schick & Schuetze 2021, section 3; Gao, Fisch & Chen 2021, section 4.) Each pattern is tuned
    on its own; the development rows choose between them.
    """

    name: ClassVar[str] = "prompt"
    joint_exits: ClassVar[bool] = True

    alpha: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of a masked-LM loss on unlabelled rows (PET: 1e-4); masked models.",
    )

    @property
    def makes(self) -> Made:
        """The prompt of the best pattern."""
        return "prompt"

    def train(self, tuner: Tuner) -> Classifier:
        """The pattern that is best on the development rows; without any, the first."""
        patterns = list(tuner.task.patterns)
        if not tuner.dev and len(patterns) > 1:
            tuner.report.warn(
                f"No development rows to choose a pattern with: {patterns[0]!r} is taken. "
                "Name one with --pattern, or use --strategy ensemble."
            )
            patterns = patterns[:1]
        made = tuner.members(
            [Member(p, tuner.targets(), p, tuner.seed, alpha=self.alpha) for p in patterns]
        )
        if len(made) == 1:
            return next(iter(made.values()))
        scores = {name: dev_score(model, tuner.dev) for name, model in made.items()}
        return made[max(scores, key=lambda name: scores[name])]


class EnsembleStrategy(GroupStrategy):
    """Every pattern, tuned several times, averaged; or whole runs of another strategy.

    With `of` each repetition is that strategy's classifier, PET's final model for example.
    """

    name: ClassVar[str] = "ensemble"

    verbalizers: list[str] = Field(
        default_factory=list,
        description="Every pattern is tuned with each of these, the run's own with its options; none: "
        "with the run's.",
    )
    of: str = Field("", description="A strategy that is run `repetitions` times; none: patterns.")
    of_options: dict[str, Any] = Field(default_factory=dict, description="Its options.")

    @property
    def makes(self) -> Made:
        """All of them."""
        return "group"

    @property
    def demonstrates(self) -> bool:
        """Whether what it is made of does."""
        return super().demonstrates or (bool(self.of) and self._inner().demonstrates)

    def check_rows(self, labelled: Sequence[object], unlabeled: Sequence[object]) -> None:
        """As what it is made of does."""
        if self.of:
            self._inner().check_rows(labelled, unlabeled)
        else:
            super().check_rows(labelled, unlabeled)

    def check_tuner(self, tuner: Tuner) -> None:
        """Raise a `UserError` for a verbalizer that is not there or there twice, and where runs of
        another strategy do not fit the options or the task."""
        self.check_others(tuner)
        if not self.of:
            if self.of_options:
                raise UserError(
                    "strategy 'ensemble': of_options are of the strategy that `of` names."
                )
            super().check_tuner(tuner)
            for i, name in enumerate(self.verbalizers):
                self._verbalizer(name, tuner)
                if name in self.verbalizers[:i]:
                    raise UserError(f"strategy 'ensemble': verbalizers has {name!r} twice.")
            return
        if self.of in self.also:
            raise UserError(f"strategy 'ensemble': of and also both have {self.of!r}.")
        if self.verbalizers:
            raise UserError(
                f"strategy 'ensemble': verbalizers are for patterns, and its members are runs of {self.of!r}: "
                "choose their verbalizer with --verbalizer."
            )
        inner = self._inner()
        if inner.needs_classes:
            tuner.task.need_classes(f"strategy {self.of!r}")
        inner.check_tuner(tuner)

    def train(self, tuner: Tuner) -> Classifier:
        """The mean of the members' probabilities; over strategies, where others join.

        Raises:
            UserError: an ensemble of ensembles, options that do not fit each other.
        """
        self.check_tuner(tuner)
        made = self._runs(tuner) if self.of else self._patterns(tuner)
        others = self.others(tuner)
        # Each strategy that joins counts as much as the patterns together.
        shares = {name: len(made) / self.repetitions for name in others}
        shares = {**dict.fromkeys(made, 1.0), **shares}
        made |= others
        return Ensemble(made, shares) if len(made) > 1 else next(iter(made.values()))

    def _patterns(self, tuner: Tuner) -> dict[str, Classifier]:
        made: dict[str, Classifier] = {}
        for verbalizer in self.verbalizers or [""]:
            begin = f"{verbalizer}-" if verbalizer else ""
            members = [
                Member(f"{begin}{pattern}" + (f"-{r + 1}" if self.repetitions > 1 else ""),
                       tuner.targets(), pattern, tuner.seed + 1000 * r)
                for pattern in tuner.task.patterns
                for r in range(self.repetitions)
            ]  # fmt: skip
            own = self._verbalizer(verbalizer, tuner)
            made |= tuner.with_(verbalizer=own).members(members)
        return made

    def _verbalizer(self, name: str, tuner: Tuner) -> Verbalizer:
        """A verbalizer by its name; the run's own keeps its options."""
        if name in ("", tuner.verbalizer.name):
            return tuner.verbalizer
        made: Verbalizer = build("verbalizer", name)
        return made

    def _runs(self, tuner: Tuner) -> dict[str, Classifier]:
        inner = self._inner()
        names = [f"{self.of}-{r + 1}" for r in range(self.repetitions)]
        # Far apart: within a run, repetitions are 1000 apart, and no two runs may share a model.
        return {
            name: tuner.run(inner, name, tuner.seed + 1_000_000 * r) for r, name in enumerate(names)
        }

    def _inner(self) -> Strategy:
        if self.of == self.name:
            raise UserError(
                "strategy 'ensemble': of=ensemble is an ensemble of itself; name another."
            )
        made: Strategy = build("strategy", self.of, **self.of_options)
        return made
