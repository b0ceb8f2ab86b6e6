"""Tuning strategies: how a classifier is made from few labels. The protocol; strategies are plugins."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from promptforge.components import Component
from promptforge.errors import UserError, listed
from promptforge.plugins import build

if TYPE_CHECKING:
    from promptforge.classifier import Classifier
    from promptforge.tuning.tuner import Tuner


#: What a strategy ends in; see `Strategy.makes`.
Made = Literal["prompt", "head", "group", ""]


class Strategy(Component):
    """Makes a classifier out of what a `Tuner` has: rows, a backbone, a method, settings.

    A strategy says which members are trained on what, and how they become one classifier. It
    never loads a model, writes a checkpoint or names a method: the tuner does.

    Attributes:
        needs_labelled: it cannot work without labelled rows.
        needs_unlabeled: it cannot work without unlabelled rows.
        needs_classes: it cannot work with numbers in place of labels.
        joint_exits: each of its members is a classifier of its own, which exits may be trained with.
    """

    role: ClassVar[str] = "strategy"
    needs_labelled: ClassVar[bool] = True
    needs_unlabeled: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = False
    joint_exits: ClassVar[bool] = False

    @property
    def makes(self) -> Made:
        """What its classifier is: a prompt of one pattern with the task's words, a head on whole texts,
        a group of models; "" where only training tells."""
        return ""

    @property
    def demonstrates(self) -> bool:
        """Whether it shows demonstrations of its own choice where none are asked for."""
        return False

    def check_rows(self, labelled: Sequence[object], unlabeled: Sequence[object]) -> None:
        """Raise a `UserError` where it lacks rows that it cannot work without."""
        if self.needs_labelled and not labelled:
            raise UserError(
                f"strategy {self.name!r} learns from labelled rows, and there are none: give --data FILE, "
                "name a table as 'train' in task.toml, [data], or leave out --shots 0. Without labelled "
                "rows there are --strategy zero-shot, and ipet and pet with --unlabeled FILE."
            )
        if self.needs_unlabeled and not unlabeled:
            raise UserError(
                f"strategy {self.name!r} labels rows that have no labels, and there are none: give "
                "--unlabeled FILE (in Python: unlabeled=rows), or 'unlabeled' in task.toml, [data]."
            )

    def check_tuner(self, tuner: Tuner) -> None:
        """Raise a `UserError` where what it is given does not fit it, before anything is trained.

        Unless a strategy says otherwise it reads prompts, which takes a language model.
        """
        tuner.backbone.need_head()

    @abstractmethod
    def train(self, tuner: Tuner) -> Classifier:
        """The classifier.

        Raises:
            UserError: data or options that do not fit the strategy.
        """


class GroupStrategy(Strategy):
    """A strategy of several models that whole runs of other strategies may join."""

    repetitions: int = Field(
        1, ge=1, description="Trainings of each pattern, with seeds of their own."
    )
    also: list[str] = Field(
        default_factory=list,
        description="Other strategies that join the patterns' models, each with as many repetitions; each "
        "counts as much as the patterns together.",
    )
    also_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Their options, by strategy."
    )

    @property
    def demonstrates(self) -> bool:
        """Whether one of `also` does."""
        return any(self._other(name).demonstrates for name in self.also)

    def check_others(self, tuner: Tuner) -> None:
        """Raise a `UserError` where one of `also` is not there, there twice, or does not fit."""
        if strange := sorted(self.also_options.keys() - set(self.also)):
            raise UserError(
                f"strategy {self.name!r}: also_options has {listed(strange)}, and also={self.also} has not."
            )
        for i, name in enumerate(self.also):
            if name in self.also[:i] or name == self.name:
                why = "itself" if name == self.name else f"{name!r} twice"
                raise UserError(f"strategy {self.name!r}: also has {why}.")
            if name in tuner.task.patterns:
                raise UserError(
                    f"strategy {self.name!r}: also={name} and the pattern {name!r} would have one folder. Give "
                    "the pattern another name in task.toml."
                )
            other = self._other(name)
            other.check_rows(tuner.train, tuner.unlabeled)
            if other.needs_classes:
                tuner.task.need_classes(f"strategy {name!r}")
            other.check_tuner(tuner)

    def others(self, tuner: Tuner) -> dict[str, Classifier]:
        """The classifiers of `also`, by name and repetition: "contrastive-1"."""
        # Far apart: a run's own repetitions are 1,000 apart, and no two runs may share a model.
        return {
            f"{name}-{r + 1}": tuner.run(
                self._other(name), f"{name}-{r + 1}", tuner.seed + 1_000_000 * r
            )
            for name in self.also
            for r in range(self.repetitions)
        }

    def _other(self, name: str) -> Strategy:
        made: Strategy = build("strategy", name, **self.also_options.get(name, {}))
        return made
