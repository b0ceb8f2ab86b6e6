"""Demonstration selectors: which labelled rows stand in a prompt before the row. Protocol only."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from promptforge.components import Component

if TYPE_CHECKING:
    from promptforge.data import Example


class DemonstrationSelector(Component):
    """Chooses demonstrations for a row from labelled examples."""

    role: ClassVar[str] = "demonstrations"

    @abstractmethod
    def fit(self, examples: Sequence[Example], labels: Sequence[str]) -> None:
        """Take the examples to choose from."""

    @abstractmethod
    def select(self, row: Mapping[str, Any]) -> list[Example]:
        """The demonstrations for `row`, in the order they are shown; never the row itself."""
