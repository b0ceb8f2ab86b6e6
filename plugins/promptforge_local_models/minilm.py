"""`minilm` as its package has it, and `minilm-mlm`: the same encoder with our masked-LM head."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptforge.errors import PromptForgeError
from promptforge_local_models.files import read_json, save_tensors, write_json
from promptforge_local_models.pins import HEAD, HEAD_SHA256
from promptforge_local_models.store import sha256

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def copy(parts: Path, built: Path) -> None:
    """The unpacked model, with a tokenizer that neither pads nor cuts unless it is told to."""
    shutil.copytree(parts, built, dirs_exist_ok=True)
    path = built / "tokenizer.json"
    tokenizer = read_json(path)
    # The package's file pads every text to 128 tokens, which only costs time.
    tokenizer["padding"] = tokenizer["truncation"] = None
    text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
    path.write_text(text, encoding="utf-8")


def merge(base: Path, built: Path) -> None:
    """`BertForMaskedLM` from the folder of `minilm` and the head that ships with this plugin."""
    from safetensors.numpy import load_file

    if not HEAD.is_file() or sha256(HEAD) != HEAD_SHA256:
        raise PromptForgeError(
            f"{HEAD} is missing or damaged: it belongs to PromptForge. Install PromptForge again, "
            "from where you have it, with pip's --force-reinstall --no-deps."
        )
    tensors = merged(load_file(base / "model.safetensors"), load_file(HEAD))
    save_tensors(tensors, built / "model.safetensors")
    write_json(_config(read_json(base / "config.json")), built / "config.json")
    for name in _TOKENIZER:
        shutil.copyfile(base / name, built / name)
    shutil.copyfile(base / "LICENSE", built / "LICENSE")
    shutil.copyfile(HEAD.parent / "README.md", built / "README.md")


def merged(
    base: dict[str, NDArray[Any]], head: dict[str, NDArray[Any]]
) -> dict[str, NDArray[np.float32]]:
    """The full fp32 weights: `W_base + B @ A` where the head has A and B, else its own values."""
    out: dict[str, NDArray[np.float32]] = {}
    for name, value in base.items():
        # BertForMaskedLM has no pooler; the positions are a buffer that it makes itself.
        if not name.startswith("pooler.") and not name.endswith("position_ids"):
            out[f"bert.{name.removeprefix('bert.')}"] = value.astype(np.float32)
    for name, value in head.items():
        if name.endswith(".A"):
            weight = name.removesuffix(".A")
            # Summed in double precision: rounded to single, the result does not depend on
            # the order in which a machine's matrix product adds.
            update = head[f"{weight}.B"].astype(np.float64) @ value.astype(np.float64)
            out[weight] = (out[weight] + update).astype(np.float32)
        elif not name.endswith(".B"):
            out[name] = value.astype(np.float32)
    return out


def _config(base: dict[str, Any]) -> dict[str, Any]:
    # Where and with what the base was once saved says nothing about this model.
    dropped = {"_name_or_path", "transformers_version", "gradient_checkpointing"}
    config = {key: value for key, value in base.items() if key not in dropped}
    config.update(architectures=["BertForMaskedLM"], dtype="float32", tie_word_embeddings=True)
    return config
