"""PromptForge: prompt and tune language models with few labels.

The names below are the public API; they are imported when first used, so that
`import promptforge` is fast and never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from promptforge._version import __version__
from promptforge.errors import PromptForgeError, UserError
from promptforge.hookspecs import hookimpl

if TYPE_CHECKING:
    from promptforge.backbone import Backbone, load_model
    from promptforge.calibration import Calibration
    from promptforge.components import Component
    from promptforge.data import Example, Reader, read_rows, sample_shots
    from promptforge.evaluation import Evaluation
    from promptforge.model import PromptModel
    from promptforge.models import ModelSource
    from promptforge.scoring import Scorer
    from promptforge.search import VerbalizerSearch, search_verbalizer
    from promptforge.selection import DemonstrationSelector
    from promptforge.task import Pattern, Task
    from promptforge.template import Prompt, Template, TemplateRenderer
    from promptforge.verbalizer import Verbalizer

_HOMES = {
    "Backbone": "backbone",
    "Calibration": "calibration",
    "Component": "components",
    "DemonstrationSelector": "selection",
    "Evaluation": "evaluation",
    "Example": "data",
    "ModelSource": "models",
    "Pattern": "task",
    "Prompt": "template",
    "PromptModel": "model",
    "Reader": "data",
    "Scorer": "scoring",
    "Task": "task",
    "Template": "template",
    "TemplateRenderer": "template",
    "Verbalizer": "verbalizer",
    "VerbalizerSearch": "search",
    "load_model": "backbone",
    "read_rows": "data",
    "sample_shots": "data",
    "search_verbalizer": "search",
}

__all__ = ["PromptForgeError", "UserError", "__version__", "hookimpl", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'promptforge' has no attribute {name!r}")
    return getattr(importlib.import_module(f"promptforge.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
