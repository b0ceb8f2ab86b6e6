"""Tuning strategies: how a classifier is made from few labels. The protocol; strategies are plugins."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from promptforge.components import Component

if TYPE_CHECKING:
    from promptforge.classifier import Classifier
    from promptforge.tuning.tuner import Tuner


class Strategy(Component):
    """Makes a classifier out of what a `Tuner` has: rows, a backbone, a method, settings.

    A strategy says which members are trained on what, and how they become one classifier. It
    never loads a model, writes a checkpoint or names a method: the tuner does.

    Attributes:
        needs_unlabeled: it cannot work without unlabelled rows.
        needs_classes: it cannot work with numbers in place of labels.
    """

    role: ClassVar[str] = "strategy"
    needs_unlabeled: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = False

    @abstractmethod
    def train(self, tuner: Tuner) -> Classifier:
        """The classifier.

        Raises:
            UserError: data or options that do not fit the strategy.
        """
