"""Built-in demonstration selectors."""

from __future__ import annotations

from collections.abc import Sequence

from promptforge import hookimpl


@hookimpl
def promptforge_demonstration_selectors() -> Sequence[type]:
    """Which labelled rows stand before the row."""
    from promptforge_demonstrations.bm25 import Bm25
    from promptforge_demonstrations.lm_bff import LmBff
    from promptforge_demonstrations.mmr import Mmr
    from promptforge_demonstrations.selectors import FirstPerLabel, RandomPerLabel
    from promptforge_demonstrations.similarity import Balanced, Similarity

    return [FirstPerLabel, RandomPerLabel, Similarity, Balanced, LmBff, Mmr, Bm25]
