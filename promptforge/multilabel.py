"""Several labels a row, or none: one question with two answers for each label.

A task with `[multi_label]` lists the candidates, and its templates ask about one of them, which
they have as `{{ label }}`; the answers are `yes` and `no`, with label words as ever. Each row is
asked once for each candidate (binary relevance: Tsoumakas & Katakis 2007, section 3.1), so that
patterns, verbalizers and strategies see two classes, and one model learns all candidates.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptforge import data as tables
from promptforge.classifier import Classifier, Probabilities, Rows
from promptforge.data import Example, Row, label_text
from promptforge.errors import UserError, did_you_mean, listed
from promptforge.evaluation import MultiLabelEvaluation
from promptforge.progress import Reporter
from promptforge.truncation import CutCounter

#: The variable of the templates that holds the candidate a question is about.
LABEL = "label"
YES, NO = "yes", "no"


@dataclass(frozen=True)
class MultiLabel:
    """The candidates, and how a row's labels are written.

    Attributes:
        labels: the candidates, in order.
        separator: between the labels in a cell; a list in a cell needs none.
        threshold: the probability from which a row has a label; None: chosen on the dev rows
            where there are some, else a half.

    Raises:
        UserError: fewer than two candidates, one that is empty, twice there or holds the
            separator, a threshold that is not between 0 and 1.
    """

    labels: tuple[str, ...]
    separator: str = ","
    threshold: float | None = None

    def __post_init__(self) -> None:
        if len(self.labels) < 2:
            raise UserError("multi_label.labels: name at least two labels.")
        if not self.separator:
            raise UserError("multi_label.separator is empty: give at least one character.")
        for i, label in enumerate(self.labels):
            if not label or label != label.strip():
                raise UserError(f"multi_label.labels: {label!r} is empty or has spaces around it.")
            if self.separator in label:
                raise UserError(
                    f"multi_label.labels: {label!r} holds the separator {self.separator!r}. Choose "
                    "another separator, or another name for the label."
                )
            if label in self.labels[:i]:
                raise UserError(f"multi_label.labels: {label!r} is there twice.")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise UserError(
                f"multi_label.threshold is {self.threshold:g}; it must be between 0 and 1."
            )

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> MultiLabel | None:
        """From its attributes; None from None."""
        return cls(**{**data, "labels": tuple(data["labels"])}) if data else None

    def joined(self, labels: Sequence[str]) -> str:
        """Labels as one cell."""
        return self.separator.join(labels)

    # --- labels of rows -------------------------------------------------------------------

    def read(self, value: Any, mapping: Mapping[str, str] | None = None) -> tuple[str, ...]:
        """The labels in a cell, in the order of the candidates, each once; empty: none.

        Raises:
            UserError: one that is no candidate, a value that holds no labels.
        """
        if hasattr(value, "tolist"):  # a numpy array
            value = value.tolist()
        if isinstance(value, list | tuple | set):
            parts = [label_text(item) for item in value]
        else:
            parts = [part.strip() for part in (label_text(value) or "").split(self.separator)]
        found = {(mapping or {}).get(part, part) for part in parts if part}
        if strange := sorted(found - set(self.labels)):
            raise UserError(
                f"the label {strange[0]!r} is not one of the task's labels: {listed(list(self.labels))}."
                f"{did_you_mean(strange[0], list(self.labels))} Labels in a cell are separated by "
                f"{self.separator!r}."
            )
        return tuple(label for label in self.labels if label in found)

    def examples(
        self,
        rows: Sequence[Row],
        column: str,
        origin: str,
        values: Mapping[str, str] | None = None,
        *,
        report: Reporter | None = None,
        text_columns: Sequence[str] | None = None,
        complete: bool = True,
    ) -> list[Example]:
        """The labelled rows, checked; arguments as for `promptforge.data.examples`.

        Raises:
            UserError: no label column, an unknown label, with its row; with `complete`, a label
                that no row has, or all rows with the same labels.
        """
        mapping = tables.value_map(values or {}, self.labels)
        found: list[Example] = []
        for number, row in enumerate(rows, start=1):
            cell = tables.label_cell(row, column, f"{origin}: row {number}")
            try:
                labels = self.read(cell, mapping)
            except UserError as error:
                where = f"{origin}: row {number}, column {column!r}"
                raise UserError(f"{where}: {error}") from None
            found.append(Example(row, self.joined(labels), number, labels=labels))
        if not found:
            raise UserError(f"{origin} has no rows.")
        if complete:
            self.check(found, origin)
        tables.warn_duplicates(found, column, text_columns, origin, report or Reporter())
        return tables.announce(found, origin)

    def check(self, examples: Sequence[Example], origin: str) -> None:
        """Raise a `UserError` where there is nothing to learn of a label."""
        truth = self.indicator(examples)
        if lacking := [label for label, n in zip(self.labels, truth.sum(0), strict=True) if not n]:
            raise UserError(
                f"{origin} has no row with the label {listed(lacking)}. Add rows, or take the label out "
                "of the task."
            )
        if (truth == truth[0]).all():
            raise UserError(
                f"{origin}: every row has the same labels ({examples[0].label}). Add rows with others."
            )

    def indicator(self, examples: Sequence[Example]) -> NDArray[np.bool_]:
        """Which labels the rows have, [rows, labels].

        Raises:
            UserError: examples of a task with one label a row.
        """
        if any(e.labels is None for e in examples):
            raise UserError("Rows of a multi-label task need `Example.labels`: read them with it.")
        made = [[label in (e.labels or ()) for label in self.labels] for e in examples]
        return np.array(made, dtype=bool).reshape(len(examples), len(self.labels))

    # --- one question a label -------------------------------------------------------------

    def asked(self, rows: Rows) -> list[Row]:
        """Each row once for each candidate, which it has as `label`; rows stay together."""
        return [{**row, LABEL: label} for row in rows for label in self.labels]

    def questions(self, examples: Sequence[Example]) -> list[Example]:
        """`asked`, with the right answers."""
        rows, truth = self.asked([e.row for e in examples]), self.indicator(examples).ravel()
        numbers = [e.number for e in examples for _ in self.labels]
        return [
            Example(row, YES if has else NO, number)
            for row, has, number in zip(rows, truth, numbers, strict=True)
        ]

    def sample_shots(
        self,
        examples: Sequence[Example],
        shots: int,
        seed: int,
        columns: Sequence[str],
        *,
        dev: bool = True,
    ) -> tuple[list[Example], list[Example]]:
        """`shots` rows drawn for each label to train on, and as many for development.

        Labels take turns, the rarest first, and each draws a row that has it and whose text
        (its `columns`) was not drawn before: no text is in both lists. A row counts for the
        label that drew it. Rows without any label take a turn too, as long as there are some.
        A smaller K is the beginning of a larger one.

        Raises:
            UserError: `shots` below 1, or a label with too few rows.
        """
        if shots < 1:
            raise UserError(f"shots is {shots}; it must be at least 1.")
        pools: dict[str, list[Example]] = {}
        for label in self.labels:
            pools[label] = [e for e in examples if label in (e.labels or ())]
        turns = sorted(pools, key=lambda label: len(pools[label]))
        pools[""] = [e for e in examples if not e.labels]
        for label, pool in pools.items():
            random.Random(f"{seed}:{label}").shuffle(pool)
        drawn: set[tuple[str, ...]] = set()
        rounds: list[list[Example]] = []
        for number in range(2 * shots if dev else shots):
            rounds.append([])
            for label in [*turns, ""]:
                while pools[label]:
                    example = pools[label].pop(0)
                    text = tuple(str(example.row.get(column)) for column in columns)
                    if text not in drawn:
                        drawn.add(text)
                        rounds[-1].append(example)
                        break
                else:
                    if label:
                        raise _too_few(label, number, shots, dev)
        flat = [[e for some in part for e in some] for part in (rounds[:shots], rounds[shots:])]
        return flat[0], flat[1]


def _too_few(label: str, found: int, shots: int, dev: bool) -> UserError:
    need = f"{shots} for training" + (f" and {shots} for development" if dev else "")
    largest = found // (2 if dev else 1)
    advice = f"The largest possible number of shots is {largest}." if largest else "Add rows."
    return UserError(
        f"The label {label!r} has {found} rows that are drawn for no other label, but {need} are "
        f"needed. {advice}"
    )


class MultiLabelModel(Classifier):
    """A classifier of questions, as one that gives each row the probability of each label.

    The probabilities of a row do not sum to one: each label is there or not, for itself.

    Args:
        binary: answers the questions; its labels are `yes` and `no`.
        multi_label: the candidates.
        threshold: the probability from which a row has a label; by default that of `multi_label`,
            else a half.
    """

    def __init__(
        self, binary: Classifier, multi_label: MultiLabel, threshold: float | None = None
    ) -> None:
        self.binary, self.multi_label, self.labels = binary, multi_label, multi_label.labels
        chosen = multi_label.threshold if threshold is None else threshold
        self.threshold = 0.5 if chosen is None else chosen

    def part_probabilities(self, rows: Rows, what: str = "Reading") -> dict[str, Probabilities]:
        """The probability of each label, [rows, labels], by each part."""
        return self.of_answers(self.binary.part_probabilities(self.multi_label.asked(rows), what))

    def of_answers(self, parts: Mapping[str, Probabilities]) -> dict[str, Probabilities]:
        """The probability of each label, [rows, labels], from those of the answers."""
        yes = self.binary.labels.index(YES)
        return {name: p[:, yes].reshape(-1, len(self.labels)) for name, p in parts.items()}

    def combined(self, parts: Mapping[str, Probabilities]) -> Probabilities:
        """The parts' probabilities as one, as the binary classifier joins them, [rows, labels]."""
        return self.binary.combined(parts)

    @property
    def inner(self) -> Classifier:
        """The classifier of the questions."""
        return self.binary

    @property
    def cut_counters(self) -> list[CutCounter]:
        """Those of the classifier that is asked."""
        return self.binary.cut_counters

    def forget(self) -> None:
        """Remember nothing of what is read, from now on."""
        self.binary.forget()

    def decide(self, probabilities: Probabilities) -> list[list[str]]:
        """The labels of each row: those whose probability reaches the threshold."""
        return [
            [label for label, has in zip(self.labels, row, strict=True) if has]
            for row in probabilities >= self.threshold
        ]

    def choose_threshold(self, dev: Sequence[Example]) -> None:
        """Take the threshold with the best micro-F1 on `dev`, unless the task has one."""
        if dev and self.multi_label.threshold is None:
            probabilities = self.predict_proba([e.row for e in dev])
            self.threshold = best_threshold(probabilities, self.multi_label.indicator(dev))

    def _evaluation(
        self, examples: Sequence[Example], probabilities: Probabilities
    ) -> MultiLabelEvaluation:
        truth = self.multi_label.indicator(examples)
        return MultiLabelEvaluation.of(truth, probabilities, self.labels, self.threshold)


def label_sets(
    classifier: Classifier, multi: MultiLabel, rows: Sequence[Example]
) -> MultiLabelModel:
    """A classifier of questions as one of label sets, its threshold chosen on `rows`."""
    made = MultiLabelModel(classifier, multi)
    made.choose_threshold(rows)
    return made


def best_threshold(probabilities: Probabilities, truth: NDArray[np.bool_]) -> float:
    """The threshold with the best micro-F1; both are [rows, labels].

    Of equals the one nearest to a half. It lies half-way between two probabilities, so that the
    same rows are on the same side of it however they are batched.
    """
    order = np.argsort(-probabilities, axis=None, kind="stable")
    p, right = probabilities.ravel()[order], truth.ravel()[order]
    if not right.any():
        return 0.5
    # With the k first taken: 2 TP / (predicted + true).
    f1 = 2 * right.cumsum() / (np.arange(1, len(p) + 1) + right.sum())
    cuts = (p + np.append(p[1:], 0.0)) / 2
    cut = np.append(p[:-1] > p[1:], p[-1] > 0)  # not between equals
    f1, cuts = f1[cut], cuts[cut]
    best = cuts[f1 >= f1.max() - 1e-12]
    return float(best[abs(best - 0.5).argmin()])
