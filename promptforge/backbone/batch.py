"""Prompts of like length as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from promptforge.encode import Encoded, SoftSlot


class SoftTokens(NamedTuple):
    """Soft tokens of a row: positions [start, stop), the vectors from `offset` on of `key`."""

    row: int
    start: int
    stop: int
    offset: int
    key: str


@dataclass(eq=False)
class Batch:
    """Prompts of like length as tensors.

    Attributes:
        indices: which of the encoded prompts these are.
        inputs: keyword arguments of the model's body.
        rows, columns: where to read hidden states, [reads] each.
        soft: where soft tokens stand in `inputs["input_ids"]`.
        decoder_soft: and in `inputs["decoder_input_ids"]`.
        tasks: the task of each row, [rows], where rows of several tasks are read together.
        always: [rows, tokens] bool: global tokens of an attention pattern; None: there are none.
        left: while rows leave the model early: those that are still in it, [rows left].
    """

    indices: list[int]
    inputs: dict[str, Tensor]
    rows: Tensor
    columns: Tensor
    soft: list[SoftTokens] = field(default_factory=list)
    tasks: Tensor | None = None
    always: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    left: Tensor | None = None
    decoder_soft: list[SoftTokens] = field(default_factory=list)

    @classmethod
    def of(cls, encoded: Sequence[Encoded], indices: list[int], inputs: dict[str, Tensor]) -> Batch:
        """The batch of `inputs`, made of these prompts, read where they say, prompt by prompt."""
        device = inputs["input_ids"].device
        rows = [i for i, e in enumerate(encoded) for _ in e.reads]
        columns = [c for e in encoded for c in e.reads]
        tasks = [e.task for e in encoded]
        return cls(
            indices,
            inputs,
            torch.tensor(rows, device=device),
            torch.tensor(columns, device=device),
            _soft_tokens([e.soft for e in encoded]),
            torch.tensor(tasks, device=device) if any(tasks) else None,
            _always(encoded, inputs["input_ids"]),
            decoder_soft=_soft_tokens([e.decoder_soft for e in encoded]),
        )

    def part(self, rows: Sequence[int], length: int) -> Batch:
        """Some of the rows, their padding beyond `length` tokens left out."""
        device, number = self.rows.device, {row: i for i, row in enumerate(rows)}
        chosen = torch.tensor(rows, device=device)
        read = torch.isin(self.rows, chosen)
        return Batch(
            [self.indices[row] for row in rows],
            # What the decoder reads keeps its own length.
            {n: v[chosen] if n.startswith("decoder") else v[chosen, :length]
             for n, v in self.inputs.items()},
            torch.tensor([number[int(row)] for row in self.rows[read]], device=device),
            self.columns[read],
            [s._replace(row=number[s.row]) for s in self.soft if s.row in number],
            None if self.tasks is None else self.tasks[chosen],
            None if self.always is None else self.always[chosen, :length],
            decoder_soft=[
                s._replace(row=number[s.row]) for s in self.decoder_soft if s.row in number
            ],
        )  # fmt: skip

    @cached_property
    def reads_each(self) -> int:
        """How many reads every row has; 0 where rows have different numbers of them."""
        counts = set(self.rows.bincount(minlength=len(self.inputs["input_ids"])).tolist())
        return int(counts.pop()) if len(counts) == 1 else 0

    @cached_property
    def task_list(self) -> list[int]:
        """`tasks` as plain numbers; all 0 where there are none."""
        if self.tasks is None:
            return [0] * len(self.inputs["input_ids"])
        found: list[int] = self.tasks.tolist()
        return found


def _always(encoded: Sequence[Encoded], ids: Tensor) -> Tensor | None:
    """Global tokens, [rows, tokens]; None where no prompt has any."""
    if not any(any(e.always) for e in encoded):
        return None
    width = ids.shape[1]
    rows = [[*e.always, *[False] * (width - len(e.always))] for e in encoded]
    return torch.tensor(rows, device=ids.device)


def _soft_tokens(slots: Sequence[Sequence[SoftSlot]]) -> list[SoftTokens]:
    """Where the soft tokens of prompts stand, from the slots of each."""
    return [
        SoftTokens(row, s.start, s.start + s.length, s.offset, s.key)
        for row, own in enumerate(slots)
        for s in own
    ]
