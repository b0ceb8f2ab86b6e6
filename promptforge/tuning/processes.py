"""Several processes that train together: the first writes and speaks, the others compute with it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def count() -> int:
    """How many processes a launcher started."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_first() -> bool:
    """Whether this process writes files and speaks."""
    return count() == 1 or os.environ.get("RANK", "0") == "0"


def accelerator(device: torch.device, *, unused: bool) -> Any:
    """What gradients are shared with; the model stays where it is.

    Args:
        unused: some parameters get no gradient, so it must be found out which (see `has_unused`).
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    return Accelerator(
        cpu=_on_processors(device),
        device_placement=False,
        mixed_precision="no",
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)],
    )


def has_unused(loss: Tensor, parameters: Sequence[Tensor]) -> bool:
    """Whether a loss, [], of one row leaves trained parameters without a gradient.

    A classification head does with the language-model head, and a mixture of tasks with the
    verbalizers of the others.
    """
    import torch

    return any(g is None for g in torch.autograd.grad(loss, parameters, allow_unused=True))


def wait(device: torch.device) -> None:
    """Go on when all processes have come here."""
    if count() > 1:
        _state(device).wait_for_everyone()


def total(value: float, device: torch.device) -> float:
    """The sum of a number over the processes."""
    if count() == 1:
        return value
    import torch
    from accelerate.utils import reduce

    _state(device)
    return float(reduce(torch.tensor(float(value), device=device), "sum"))


def _state(device: torch.device) -> Any:
    from accelerate import PartialState

    return PartialState(cpu=_on_processors(device))


def _on_processors(device: torch.device) -> bool:
    # Asked of accelerate only where it decides how processes talk: it is fixed for the process.
    return count() > 1 and device.type == "cpu"
