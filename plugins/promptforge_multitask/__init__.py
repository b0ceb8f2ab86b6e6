"""Multitask prompted training (T0: Sanh et al. 2022): one model, many tasks, many templates.

from promptforge_multitask.mixture import TaskExamples
from promptforge_multitask.model import MultiTaskPromptModel
"""

from __future__ import annotations

from collections.abc import Sequence

import rich_click as click

from promptforge import hookimpl


@hookimpl
def promptforge_commands() -> Sequence[click.Command]:
    """`promptforge train-multitask`."""
    from promptforge.cli.later import LaterCommand

    says = "Train one model on many tasks, and measure it zero-shot on tasks it has never seen."
    return [LaterCommand("train-multitask", "promptforge_multitask.cli:train_multitask", says)]
