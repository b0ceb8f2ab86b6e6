"""Holding out kinds of tasks, and every row whose text stands in a test table.

T0 holds out whole kinds of tasks, so that zero-shot means that nothing like the task was
trained on (Sanh et al. 2022, section 4, and its section on contamination).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace

from promptforge import Example, Task, UserError
from promptforge.errors import did_you_mean, listed
from promptforge_multitask.mixture import TaskExamples

#: A single column counts as a shared text from so many words on; "yes" is shared by too many.
WORDS = 4
#: Letters of scripts that are written without spaces between words (Thai, Lao, Burmese, Khmer, Japanese, Chinese).
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
)


def normalised(text: str) -> str:
    """The words of a text: compatibility forms, case and all that is no letter or digit gone."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"[^\W_]+", folded))


def texts(task: Task, example: Example) -> set[str]:
    """What a row is known by: its inputs together, and each that is long enough alone."""
    parts = [normalised(str(example.row[column])) for column in task.inputs]
    return {" ".join(parts), *(p for p in parts if _words(p) >= WORDS)} - {""}


def _words(text: str) -> int:
    """About how many words a normalised text has; without spaces, two letters are one."""
    return max(len(text.split()), len(_UNSPACED.findall(text)) // 2)


def check_kinds(tasks: Iterable[Task], hold_out: Sequence[str]) -> None:
    """Whether it is certain what is held out.

    Raises:
        UserError: two tasks with one name, a kind that no task has, a task without a kind beside
            held-out ones, or nothing left to train on.
    """
    tasks = list(tasks)
    names = [task.name for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"Two tasks are called {twice[0]!r}: rename one in its task.toml.")
    kinds = sorted({task.kind for task in tasks if task.kind})
    for kind in hold_out:
        if kind not in kinds:
            raise UserError(
                f"No task is of the kind {kind!r}.{did_you_mean(kind, kinds)} "
                f"The tasks' kinds: {listed(kinds)}."
            )
    if hold_out:
        for task in tasks:
            if not task.kind:
                raise UserError(
                    f"The task {task.name!r} has no kind, so nobody knows whether it is like the ones "
                    'that are held out. Write kind = "..." in its task.toml.'
                )
    if all(task.kind in hold_out for task in tasks):
        raise UserError("Every task is held out: nothing is left to train on.")


def without_tested(data: Sequence[TaskExamples]) -> tuple[list[TaskExamples], dict[str, int]]:
    """The tasks without the train and dev rows that share a text with any task's test rows.

    Returns:
        The tasks, and how many rows were taken from each that lost some.
    """
    tested: set[str] = set()
    for one in data:
        for example in one.test:
            tested |= texts(one.task, example)
    clean, removed = [], {}
    for one in data:
        train = [e for e in one.train if not texts(one.task, e) & tested]
        dev = [e for e in one.dev if not texts(one.task, e) & tested]
        lost = len(one.train) + len(one.dev) - len(train) - len(dev)
        if lost:
            removed[one.name] = lost
        clean.append(replace(one, train=train, dev=dev))
    return clean, removed


def split(
    data: Sequence[TaskExamples], hold_out: Sequence[str]
) -> tuple[list[TaskExamples], list[TaskExamples], dict[str, int]]:
    """The tasks to train on, those held out, and how many rows each of the first lost.

    Raises:
        UserError: as `check_kinds`; a held-out task without test rows, since rows that others
            share with them cannot be found; a task to train on that has no rows left.
    """
    check_kinds((one.task for one in data), hold_out)
    away = [replace(one, train=[], dev=[]) for one in data if one.task.kind in hold_out]
    for one in away:
        if not one.test:
            raise UserError(
                f"The task {one.name!r} is held out and has no test rows: rows that other tasks share "
                "with them cannot be found."
            )
    clean, removed = without_tested([*(o for o in data if o.task.kind not in hold_out), *away])
    seen = clean[: len(clean) - len(away)]
    for one in seen:
        if not one.train:
            why = f": {removed[one.name]} stand in test tables" if one.name in removed else ""
            raise UserError(f"The task {one.name!r} has no rows to train on{why}.")
    return seen, away, removed
