"""Models that come inside ordinary Python packages: no model hub is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from promptforge import hookimpl

if TYPE_CHECKING:
    from promptforge.models import ModelSource


@hookimpl
def promptforge_model_sources() -> Sequence[type[ModelSource]]:
    """`smollm2`, `minilm` and `minilm-mlm`."""
    from promptforge_local_models.source import PackagedModels

    return [PackagedModels]
