"""Demonstration selectors: which labelled rows stand in a prompt before the row. Protocol only."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PrivateAttr

from promptforge.components import Component
from promptforge.multilabel import LABEL, NO, YES

if TYPE_CHECKING:
    from promptforge.data import Example
    from promptforge.progress import Reporter


class DemonstrationSelector(Component):
    """Chooses demonstrations for a row from labelled examples.

    Attributes:
        varies: True where `sample` draws other demonstrations for another number, so that a mean
            over several samples says more than one.
    """

    role: ClassVar[str] = "demonstrations"
    varies: ClassVar[bool] = False

    _examples: Sequence[Example] = PrivateAttr(())

    @property
    def fitted_on(self) -> Sequence[Example]:
        """What the host fitted this selector on."""
        return self._examples

    @abstractmethod
    def fit(
        self,
        examples: Sequence[Example],
        labels: Sequence[str],
        *,
        columns: Sequence[str] | None = None,
        report: Reporter | None = None,
    ) -> None:
        """Take the examples to choose from.

        The host calls this through `fit_selector`, so a selector may leave out the keyword
        arguments that it has no use for.

        Args:
            examples: labelled rows.
            labels: the labels, in the task's order.
            columns: the columns whose texts the task uses; None: the selector finds them.
            report: where progress goes.
        """

    @abstractmethod
    def select(self, row: Mapping[str, Any]) -> list[Example]:
        """The demonstrations for `row`, in the order they are shown; never the row itself."""

    def sample(self, row: Mapping[str, Any], index: int) -> list[Example]:
        """Sample number `index` of the demonstrations for `row`; number 0 is `select(row)`.

        Every number gives the same where `varies` is False.
        """
        return self.select(row)

    def prepare(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Told which rows will be asked for next, so that work can be done for all at once."""


def warn_samples(
    samples: int, selector: DemonstrationSelector | str | None, report: Reporter
) -> None:
    """Warn where draws of demonstrations are to be averaged, and none are shown."""
    if samples > 1 and selector is None:
        report.warn(
            f"--samples {samples} averages over draws of demonstrations, and none are shown: it does nothing. "
            "Choose them with --demonstrations (in Python: demonstrations=...)."
        )


def fit_selector(
    selector: DemonstrationSelector,
    examples: Sequence[Example],
    labels: Sequence[str],
    *,
    columns: Sequence[str] | None = None,
    report: Reporter | None = None,
) -> None:
    """Fit `selector` with as many of the keyword arguments as its `fit` takes.

    A selector written before an argument was added keeps working.
    """
    selector._examples = list(examples)
    if columns and LABEL in columns and set(labels) == {YES, NO}:
        # Questions about one text: another of them must not demonstrate it.
        columns = [column for column in columns if column != LABEL]
    given = {"columns": columns, "report": report}
    parameters = inspect.signature(selector.fit).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        given = {name: value for name, value in given.items() if name in parameters}
    selector.fit(examples, labels, **given)  # type: ignore[arg-type]
