"""Rows, labels and quick estimators for the tests of `PromptClassifier`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from promptforge import PromptClassifier

TEXTS = [
    "a good film", "bad and dull", "good good story", "a bad mess", "great fun", "boring",
    "I love it", "the worst", "a fine story", "bad acting", "good fun", "a dull film",
]  # fmt: skip
NAMES = ["pos", "neg"] * 6
WORDS = {"pos": "good", "neg": "bad"}
LEARNS: dict[str, Any] = {"steps": 60, "learning_rate": 1e-2, "settings": {"dropout": False}}

Make = Callable[..., PromptClassifier]


def maker(tiny_model: Callable[[str], Path]) -> Make:
    """Makes estimators on tiny models, trained in no time."""

    def make(**parameters: Any) -> PromptClassifier:
        model = str(tiny_model(parameters.pop("architecture", "bert")))
        return PromptClassifier(
            **{"model": model, "steps": 4, "batch_size": 4, "learning_rate": 5e-3, **parameters}
        )

    return make
