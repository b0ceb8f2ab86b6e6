"""Built-in tuning: what is trained (all, head, bitfit) and the plain strategies."""

from __future__ import annotations

from collections.abc import Sequence

from promptforge import hookimpl


@hookimpl
def promptforge_tuning_methods() -> Sequence[type]:
    """What is trained."""
    from promptforge_tuning.methods import All, BitFit, HeadOnly

    return [All, HeadOnly, BitFit]


@hookimpl
def promptforge_strategies() -> Sequence[type]:
    """How a classifier is made from few labels."""
    from promptforge_tuning.contrastive import Contrastive
    from promptforge_tuning.strategies import (
        EnsembleStrategy,
        Finetune,
        Priming,
        PromptTuning,
        ZeroShot,
    )

    return [PromptTuning, Finetune, Contrastive, EnsembleStrategy, ZeroShot, Priming]
