"""What every trained or untrained classifier can do, however it was made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptforge.data import Example
from promptforge.errors import PromptForgeError, UserError, did_you_mean, listed
from promptforge.evaluation import AnyEvaluation, Evaluation, RegressionEvaluation
from promptforge.plugins import manager
from promptforge.scale import Scale
from promptforge.truncation import CutCounter

#: The name of the average over the parts of a classifier in results.
ENSEMBLE = "all patterns"

Rows = Sequence[Mapping[str, Any]]
Probabilities = NDArray[np.float64]


class Classifier(ABC):
    """Gives each row a probability per label."""

    labels: tuple[str, ...]
    #: where numbers are predicted: what the two labels are the poles of
    scale: Scale | None = None

    @abstractmethod
    def part_probabilities(self, rows: Rows, what: str = "Reading") -> dict[str, Probabilities]:
        """Class probabilities, [rows, labels], of each part: a pattern, or a member."""

    @property
    def inner(self) -> Classifier:
        """What reads the prompts: the classifier itself, or the binary one that label sets are asked of."""
        return self

    @property
    def cut_counters(self) -> list[CutCounter]:
        """Those that read prompts or texts, and count what they cut."""
        return [self] if isinstance(self, CutCounter) else []

    def forget(self) -> None:  # noqa: B027 - most remember nothing
        """Remember nothing of what is read, from now on: for streams of rows."""

    def combined(self, parts: Mapping[str, Probabilities]) -> Probabilities:
        """The parts' probabilities as one, [rows, labels]: their mean."""
        mean: Probabilities = np.mean(list(parts.values()), axis=0)
        return mean

    def predict_proba(self, rows: Rows) -> Probabilities:
        """Class probabilities, [rows, labels].

        Raises:
            UserError: a row that is no mapping of columns to values, or does not fit a template.
            PromptForgeError: scores that are no numbers.
        """
        rows = list(rows)
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, Mapping):
                raise UserError(
                    f"Row {number} is {type(row).__name__}: give a sequence of mappings of column to value, "
                    "for example [{'text': 'A fine film.'}]."
                )
        return finite(self.combined(self.part_probabilities(rows)))

    def predict(self, rows: Rows) -> list[Any]:
        """The most probable label of each row; with a scale, its number."""
        return self.decide(self.predict_proba(rows))

    def decide(self, probabilities: Probabilities) -> list[Any]:
        """What class probabilities, [rows, labels], say of each row: a label, or a number."""
        if self.scale:
            return list(self.scale.numbers(probabilities).tolist())
        return [self.labels[i] for i in probabilities.argmax(1)]

    def evaluate(
        self,
        examples: Sequence[Example],
        what: str = "Evaluating",
        *,
        keep: dict[str, Probabilities] | None = None,
        known: Mapping[str, Probabilities] | None = None,
    ) -> dict[str, AnyEvaluation]:
        """Figures per part, and of the whole under the name `ENSEMBLE` where there are several.

        Args:
            keep: takes the class probabilities that the figures are of, by the same names.
            known: what `keep` took of these rows before, in place of reading them again.
        """
        found = dict(known or self.part_probabilities([e.row for e in examples], what))
        if len(found) > 1 and ENSEMBLE not in found:
            found[ENSEMBLE] = self.combined(found)
        if keep is not None:
            keep.update(found)
        out = {name: self._evaluation(examples, finite(p)) for name, p in found.items()}
        for evaluation in out.values():
            manager().pm.hook.promptforge_evaluated(evaluation=evaluation)
        return out

    def _evaluation(
        self, examples: Sequence[Example], probabilities: Probabilities
    ) -> AnyEvaluation:
        if any(e.labels is not None for e in examples):
            raise UserError(
                "The rows have several labels each, and the model gives one: wrap it in MultiLabelModel."
            )
        if self.scale is None:
            check_labels(examples, self.labels, "The rows to measure on")
            return Evaluation.of([e.label for e in examples], probabilities, self.labels)
        truth = [e.value for e in examples if e.value is not None]
        if len(truth) < len(examples):
            raise UserError("The model predicts numbers, and some rows to measure on have none.")
        return RegressionEvaluation.of(truth, self.scale.numbers(probabilities))


def finite(probabilities: Probabilities) -> Probabilities:
    """The same; a `PromptForgeError` where some are no numbers, of which `argmax` makes a label."""
    if wrong := int((~np.isfinite(probabilities)).any(-1).sum()):
        raise PromptForgeError(
            f"The scores of {wrong} of {len(probabilities)} rows are not finite: the model's numbers are too "
            "large for its precision. Read it with --dtype float32 (or bfloat16), or tune it anew at a "
            "lower learning rate."
        )
    return probabilities


def check_labels(examples: Sequence[Example], labels: Sequence[str], origin: str) -> None:
    """Raise a `UserError` where a row has a label that is none of `labels`."""
    for example in examples:
        for label in (example.label,) if example.labels is None else example.labels:
            if label not in labels:
                raise UserError(
                    f"{origin}: row {example.number}: the label {label!r} is not one of the task's labels: "
                    f"{listed(list(labels))}.{did_you_mean(label, list(labels))}"
                )
