"""Drawing K rows of each label: the few-shot sets to train on and to choose by."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from promptforge.errors import UserError

if TYPE_CHECKING:
    from promptforge.data import Example


def sample_shots(
    examples: Sequence[Example], shots: int, seed: int, labels: Sequence[str], *, dev: bool = True,
    text_columns: Sequence[str] | None = None,
) -> tuple[list[Example], list[Example]]:  # fmt: skip
    """`shots` rows of each label to train on and as many others for development.

    The few-shot protocol of LM-BFF (Gao, Fisch & Chen 2021, section 3). Each label is shuffled
    by itself: a smaller K is the beginning of a larger one, and training rows are the same with
    and without `dev`. No row for development has the text of a training row: all its columns,
    or those that `text_columns` names. Both lists are in the order of `labels`.

    Raises:
        UserError: `shots` below 1, or a label with too few rows.
    """

    def text(example: Example) -> tuple[str, ...]:
        row = example.row
        return tuple(str(row.get(n)) for n in text_columns or row)

    if shots < 1:
        raise UserError(f"shots is {shots}; it must be at least 1.")
    pools: dict[str, list[Example]] = {label: [] for label in labels}
    for example in examples:
        if example.label in pools:
            pools[example.label].append(example)
    parts = 2 if dev else 1
    short = min(pools, key=lambda label: len(pools[label]), default="")
    if not pools or len(pools[short]) < parts * shots:
        count = len(pools.get(short, ()))
        need = f"{shots} for training" + (f" and {shots} for development" if dev else "")
        largest = count // parts
        advice = f"The largest possible number of shots is {largest}." if largest else "Add rows."
        raise UserError(f"The label {short!r} has {count} rows, but {need} are needed. {advice}")
    train: list[Example] = []
    for label, pool in pools.items():
        random.Random(f"{seed}:{label}").shuffle(pool)
        train += pool[:shots]
    held: list[Example] = []
    drawn = {text(example) for example in train}
    for label, pool in pools.items() if dev else ():
        others = [example for example in pool[shots:] if text(example) not in drawn]
        if len(others) < shots:
            raise UserError(
                f"The label {label!r} has {len(others)} rows for development whose text is in no training "
                f"row, but {shots} are needed. Take out rows that repeat others, or draw fewer shots."
            )
        held += others[:shots]
    return train, held
