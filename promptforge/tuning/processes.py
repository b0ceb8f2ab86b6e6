"""Several processes that train together: the first writes and speaks, the others compute with it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from promptforge.progress import Reporter

if TYPE_CHECKING:
    import torch


class Mute(Reporter):
    """The reporter of every process but the first."""

    def warn(self, text: str) -> None:
        """Nothing: the first process says it."""


def count() -> int:
    """How many processes a launcher started."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_first() -> bool:
    """Whether this process writes files and speaks."""
    return count() == 1 or os.environ.get("RANK", "0") == "0"


def accelerator(device: torch.device) -> Any:
    """What gradients are shared with; the model stays where it is.

    A head leaves the language-model head unused, so parameters may be without a gradient.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    return Accelerator(
        cpu=_on_processors(device),
        device_placement=False,
        mixed_precision="no",
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def wait(device: torch.device) -> None:
    """Go on when all processes have come here."""
    if count() > 1:
        from accelerate import PartialState

        PartialState(cpu=_on_processors(device)).wait_for_everyone()


def _on_processors(device: torch.device) -> bool:
    # Asked of accelerate only where it decides how processes talk: it is fixed for the process.
    return count() > 1 and device.type == "cpu"
