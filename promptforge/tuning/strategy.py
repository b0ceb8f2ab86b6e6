"""Tuning strategies: how a classifier is made from few labels. The protocol; strategies are plugins."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from promptforge.components import Component
from promptforge.errors import UserError

if TYPE_CHECKING:
    from promptforge.classifier import Classifier
    from promptforge.tuning.tuner import Tuner


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
        """Raise a `UserError` where what it is given does not fit it, before anything is trained."""

    @abstractmethod
    def train(self, tuner: Tuner) -> Classifier:
        """The classifier.

        Raises:
            UserError: data or options that do not fit the strategy.
        """
