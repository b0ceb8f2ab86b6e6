"""Writing the files of a model the same way each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from numpy.typing import NDArray


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def write_json(value: dict[str, Any], path: Path) -> None:
    """A JSON object with sorted keys, as transformers writes it."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def save_tensors(tensors: dict[str, NDArray[Any]], path: Path) -> None:
    """The tensors as safetensors that transformers reads."""
    import numpy as np
    from safetensors.numpy import save_file

    # safetensors makes a file that only its owner reads; a cache may be shared.
    path.touch()
    mode = path.stat().st_mode
    # Not contiguous arrays would be written in the order of their memory.
    whole = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(whole, path, metadata={"format": "pt"})
    path.chmod(mode)
