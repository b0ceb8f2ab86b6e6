"""What scikit-learn's users give as `X`, `y` and weights, as rows, labels and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import column_or_1d

from promptforge.data import Example, Row, label_text, missing
from promptforge.errors import UserError, listed
from promptforge.multilabel import MultiLabel
from promptforge.task import Task
from promptforge.template import Template


def as_rows(given: Any, what: str = "X") -> list[Row]:
    """Texts, mappings or a table with named columns as rows; a missing value is None.

    Raises:
        UserError: something else, or no rows.
    """
    if hasattr(given, "notna") and hasattr(given, "columns"):  # pandas
        given = given.astype(object).where(given.notna(), None).to_dict("records")
    elif hasattr(given, "to_dicts"):  # polars
        given = given.to_dicts()
    elif hasattr(given, "to_pylist"):  # pyarrow
        given = given.to_pylist()
    if isinstance(given, str | bytes | Mapping) or not hasattr(given, "__iter__"):
        raise UserError(
            f"{what} is one {type(given).__name__}: give a sequence of texts or of mappings."
        )
    if isinstance(given, np.ndarray):
        if given.ndim != 1 and given.shape[1:] != (1,):
            raise UserError(
                f"{what} has the shape {given.shape}: give one text per row, or a table with named columns."
            )
        given = given.ravel().tolist()
    rows: list[Row] = []
    for number, item in enumerate(given, start=1):
        if isinstance(item, Mapping):
            rows.append(dict(item))
        elif isinstance(item, str):
            rows.append({"text": item})
        else:
            raise UserError(
                f"{what}: row {number} is {type(item).__name__}; give texts, or mappings of column to value."
            )
    if not rows:
        raise UserError(f"{what} has no rows (0 samples); at least 1 is required.")
    return rows


def check_values(rows: Sequence[Row], names: Sequence[str], what: str) -> None:
    """Raise a `UserError` for a row that has nothing in any of the columns that the templates use.

    One that is empty in some of them may be meant: `{{ title or '' }} {{ text }}`.
    """
    for number, row in enumerate(rows, start=1):
        values = [row[name] for name in names if name in row]
        if values and all(map(missing, values)):
            raise UserError(
                f"{what}: row {number} has no value in {listed(list(names))} (row 1 is the first). Fill it "
                "in or leave the row out."
            )


def columns(rows: Sequence[Row], names: Sequence[str], what: str) -> list[Row]:
    """The columns that the templates use, and no others.

    Raises:
        UserError: a row without one of them, or with nothing in all of them.
    """
    check_values(rows, names, what)
    for number, row in enumerate(rows, start=1):
        if lacking := [name for name in names if name not in row]:
            raise UserError(
                f"{what}: row {number} has no column {listed(lacking)}. It has {listed(list(map(str, row)))}."
            )
    return [{name: row[name] for name in names} for row in rows]


def as_labels(given: Any, what: str) -> NDArray[Any]:
    """Labels as an array, [rows]."""
    if given is None:
        raise UserError(f"PromptClassifier requires y to be passed, but the target {what} is None.")
    try:
        y = np.asarray(column_or_1d(given, warn=True))
        check_classification_targets(y)
        np.unique(y)
    except (ValueError, TypeError) as error:
        raise UserError(f"{what}: give one label per row, all of one type ({error}).") from None
    return y


def as_sets(given: Any, names: Sequence[str] | None, what: str = "y") -> MultiLabel | None:
    """What the columns of an indicator of zeros and ones are; None where it is none.

    Args:
        given: the labels, [rows] or, as scikit-learn has several labels a row, [rows, labels].
        names: of the columns; those of a table by default.

    Raises:
        UserError: columns without names, names without columns.
    """
    try:
        several = type_of_target(given) == "multilabel-indicator"
    except (ValueError, TypeError):
        several = False
    if not several:
        if names is not None:
            raise UserError(
                f"labels name the columns of a two-dimensional {what} of zeros and ones, and {what} is none."
            )
        return None
    if names is None and hasattr(given, "columns"):
        names = given.columns
    if names is None:
        raise UserError(
            f"{what} has several labels a row, and the template asks about each by its name: give labels, "
            "the names of its columns. Or tune a classifier for each: scikit-learn's OneVsRestClassifier."
        )
    names = [str(name) for name in names]
    free = (s for s in (",", ";", "|", "\t") if not any(s in name for name in names))
    return MultiLabel(tuple(names), separator=next(free, "\n"))


def as_indicator(given: Any, multi_label: MultiLabel, what: str) -> NDArray[np.bool_]:
    """Zeros and ones as an array, [rows, labels]."""
    given = given.toarray() if hasattr(given, "toarray") else given
    try:
        made = np.asarray(given, dtype=float)
    except (ValueError, TypeError):
        made = np.empty(0)
    if made.shape[1:] != (len(multi_label.labels),) or not np.isin(made, (0, 1)).all():
        raise UserError(
            f"{what}: give a column of zeros and ones for each of {listed(list(multi_label.labels))}."
        )
    return made.astype(bool)


def written(label: Any) -> str:
    """A label as task and artifact have it."""
    if not (text := label_text(label)):
        raise UserError(f"y: the label {str(label)!r} is empty or missing.")
    return text


def same_length(rows: Sequence[Row], y: NDArray[Any], x_name: str, y_name: str) -> None:
    """A `UserError` where each row does not have one label."""
    if len(rows) != len(y):
        raise UserError(
            f"{x_name} has {len(rows)} rows and {y_name} has {len(y)}: give one label per row."
        )


def as_examples(rows: list[Row], y: NDArray[Any], task: Task, what: str) -> list[Example]:
    """Rows with their labels, of which `task` has all; `y` is [rows], or an indicator."""
    if multi := task.multi_label:
        sets = [tuple(n for n, has in zip(multi.labels, row, strict=True) if has) for row in y]
        return [
            Example(row, multi.joined(s), i + 1, labels=s)
            for i, (row, s) in enumerate(zip(columns(rows, task.inputs, what), sets, strict=True))
        ]
    labels = [written(label) for label in y]
    if strange := sorted(set(labels) - set(task.labels)):
        raise UserError(f"{what}: there are labels that y does not have: {listed(strange)}.")
    rows = columns(rows, task.inputs, what)
    return [
        Example(row, label, i + 1) for i, (row, label) in enumerate(zip(rows, labels, strict=True))
    ]


def as_weights(given: Any, rows: int) -> NDArray[np.float64]:
    """Weights of the rows, [rows]."""
    try:
        weights = np.ones(rows) if given is None else np.asarray(given, dtype=float)
    except (ValueError, TypeError):
        weights = np.empty(0)
    if weights.shape != (rows,) or not np.isfinite(weights).all() or (weights < 0).any():
        raise UserError(f"sample_weight: give {rows} weights of 0 or more, one for each row.")
    if not weights.any():
        raise UserError("sample_weight is zero for all rows.")
    return weights


def as_class_weights(given: Any) -> dict[str, float]:
    """Label -> weight, of the parameter `class_weight`."""
    try:
        return {written(label): float(weight) for label, weight in given.items()}
    except (AttributeError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"class_weight is {given!r}: write 'balanced', or label -> weight, class_weight={{'spam': 2.0}}."
        ) from None


def by_label(given: Any) -> Any:
    """A pandas Series as the mapping it stands for, of its index to its values; else as it is."""
    return given.to_dict() if hasattr(given, "to_dict") else given


def as_words(
    given: Mapping[Any, str | Sequence[str]] | Sequence[str | Sequence[str]] | None,
    labels: Sequence[str],
    answers: bool = False,
) -> dict[str, list[str]]:
    """Label -> words, in the order of `labels`; each label's own name where none are given.

    Args:
        answers: the labels are the answers to questions, whose order nobody has seen.
    """
    given = by_label(given)
    if given is None:
        return {label: [label] for label in labels}
    if answers and not isinstance(given, Mapping):
        raise UserError(
            "words: with several labels a row they are those of the answers to each question: write "
            "{'yes': 'good', 'no': 'bad'}."
        )
    if isinstance(given, set | frozenset):
        raise UserError("words is a set, which has no order: write {label: words}.")
    if isinstance(given, str):
        raise UserError(f"words is one text, {given!r}: write {{label: words}}.")
    if not isinstance(given, Mapping):
        if len(given) != len(labels):
            raise UserError(
                f"words has {len(given)} entries and y has {len(labels)} classes: give each its own."
            )
        given = dict(zip(labels, given, strict=True))
    words = {written(k): _words(w) for k, w in given.items()}
    if strange := set(words) ^ set(labels):
        raise UserError(
            f"words and y do not have the same labels: {listed(sorted(strange))} is in one only. "
            "Some of scikit-learn's meta-estimators hand on numbers for labels; for them give words "
            "as a list, in the order of the sorted labels."
        )
    return {label: words[label] for label in labels}


def _words(given: str | Iterable[str]) -> list[str]:
    """The words of one label; those of a set are sorted, so that they are the same every time."""
    if isinstance(given, str):
        return [given]
    if not isinstance(given, Iterable) or not all(isinstance(word, str) for word in given):
        raise UserError(f"words: {given!r}: give each label a word or several, as texts.")
    return sorted(given) if isinstance(given, set | frozenset) else list(given)


def as_templates(given: Any) -> list[Template]:
    """The templates as the parameter has them: one, several, or a mapping of names to templates.

    Raises:
        UserError: none, or something else than texts.
    """
    if isinstance(given, str | Template):
        given = [given]
    if not isinstance(given, Mapping):
        given = {f"template-{i + 1}" if i else "template": t for i, t in enumerate(given)}
    if not given:
        raise UserError("templates is empty: give at least one template.")
    for name, source in given.items():
        if not isinstance(source, str):
            raise UserError(
                f"templates: {name!r} is a {type(source).__name__}: give its text (of a Template, its "
                "`source`)."
            )
    return [Template(source, name=name) for name, source in given.items()]
