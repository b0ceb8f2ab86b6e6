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
    from promptforge_multitask.cli import train_multitask

    return [train_multitask]
