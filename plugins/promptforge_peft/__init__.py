"""LoRA, (IA)^3 and every other method of the `peft` library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import rich_click as click

from promptforge import hookimpl

if TYPE_CHECKING:
    from promptforge import TuningMethod


@hookimpl
def promptforge_tuning_methods() -> Sequence[type[TuningMethod]]:
    """LoRA and (IA)^3 by what they change, and any configuration of `peft` by its name."""
    from promptforge_peft.methods import IA3, LoRA, Peft

    return [LoRA, IA3, Peft]


@hookimpl
def promptforge_commands() -> Sequence[click.Command]:
    """`promptforge export`."""
    from promptforge.cli.later import LaterCommand

    says = "Write a tuned prompt, prefix or adapter as a folder that plain peft reads."
    return [LaterCommand("export", "promptforge_peft.cli:export", says)]
