"""LM-BFF (Gao, Fisch and Chen 2021): templates that a language model writes."""

from __future__ import annotations

from collections.abc import Sequence

from promptforge import hookimpl


@hookimpl
def promptforge_strategies() -> Sequence[type]:
    """Tuning with demonstrations, and with templates and words that were found."""
    from promptforge_lm_bff.strategy import LmBff

    return [LmBff]


@hookimpl
def promptforge_template_searches() -> Sequence[type]:
    """Labelled rows -> templates."""
    from promptforge_lm_bff.search import LmBffTemplates

    return [LmBffTemplates]
