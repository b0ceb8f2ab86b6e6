"""A training's state as one safetensors file: tensors, and everything else as JSON beside them.

One file is replaced whole or not at all, so a machine that stops at any moment leaves the last
complete checkpoint. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from promptforge.errors import PromptForgeError

_KEY = "promptforge"


def save(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write tensors and JSON values, whole or not at all.

    Raises:
        PromptForgeError: the disk is full or cannot be written.
    """
    draft = path.with_name(f"{path.name}.partial")
    kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(kept, draft, metadata={_KEY: json.dumps(state)})
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except (OSError, SafetensorError) as error:
        draft.unlink(missing_ok=True)
        raise PromptForgeError(
            f"{path} could not be written: {error}. Free some space and run the same command with "
            "--resume; what was saved before is still there."
        ) from None


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and JSON values of a file.

    Raises:
        PromptForgeError: the file is cut off or no checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()[_KEY])
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise PromptForgeError(
            f"{path} is damaged or cut off ({error}). Delete it: this training then begins anew, and "
            "everything else in the run is kept."
        ) from None


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """The optimizer's state per parameter; `names` are in the order of its parameters."""
    out = {}
    for index, entry in optimizer.state_dict()["state"].items():
        for key, value in entry.items():
            out[f"optimizer/{names[index]}/{key}"] = torch.as_tensor(value)
    return out


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` took."""
    whole = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for index, name in enumerate(names):
        prefix = f"optimizer/{name}/"
        found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if found:
            state[index] = found
    whole["state"] = state
    optimizer.load_state_dict(whole)
