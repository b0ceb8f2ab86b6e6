"""Built-in demonstration selectors."""

from __future__ import annotations

from collections.abc import Sequence

from promptforge import hookimpl


@hookimpl
def promptforge_demonstration_selectors() -> Sequence[type]:
    """Which labelled rows stand before the row."""
    from promptforge_demonstrations.selectors import FirstPerLabel, RandomPerLabel

    return [FirstPerLabel, RandomPerLabel]
