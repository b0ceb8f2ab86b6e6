"""The tiny models of `promptforge.testing`, with tokenizers trained on the example's reviews."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import Any

from promptforge.testing import tiny
from promptforge.testing.tiny import ARCHITECTURES, CAUSAL, MASKED, SEQ2SEQ, SIZE

__all__ = ["ARCHITECTURES", "CAUSAL", "EXAMPLES", "MASKED", "SEQ2SEQ", "SIZE", "backbone", "corpus", "fresh", "save", "tokenizer"]  # fmt: skip

EXAMPLES = Path(__file__).parent.parent / "examples" / "movie-reviews"


@cache
def corpus() -> tuple[str, ...]:
    with (EXAMPLES / "unlabeled.csv").open(encoding="utf-8", newline="") as file:
        return tuple(row["text"] for row in csv.DictReader(file))


@cache
def tokenizer(architecture: str) -> Any:
    return tiny.tokenizer(architecture, corpus())


def backbone(architecture: str) -> Any:
    """The backbone that tests share, always the same weights: what another test's model left goes out."""
    made = _shared(architecture)
    made.apply(None)
    return made


def fresh(architecture: str) -> Any:
    """A backbone of its own with those weights, for a test that changes the model."""
    return tiny.wrapped(architecture, tokenizer(architecture))


_shared = cache(fresh)


def save(architecture: str, folder: Path) -> Path:
    """Write the model and tokenizer as `from_pretrained` reads them."""
    return tiny.write(backbone(architecture), folder)
