"""Built-in verbalizers, searches for label words, scorers and calibrations."""

from __future__ import annotations

from collections.abc import Sequence

from promptforge import hookimpl


@hookimpl
def promptforge_verbalizers() -> Sequence[type]:
    """Label words -> class scores."""
    from promptforge_verbalizers.generation import GenerationVerbalizer
    from promptforge_verbalizers.knowledgeable import KnowledgeableVerbalizer
    from promptforge_verbalizers.manual import ManualVerbalizer
    from promptforge_verbalizers.prototypical import PrototypicalVerbalizer
    from promptforge_verbalizers.rules import RulesVerbalizer
    from promptforge_verbalizers.soft import SoftVerbalizer

    return [
        ManualVerbalizer,
        SoftVerbalizer,
        PrototypicalVerbalizer,
        KnowledgeableVerbalizer,
        RulesVerbalizer,
        GenerationVerbalizer,
    ]


@hookimpl
def promptforge_verbalizer_searches() -> Sequence[type]:
    """Labelled rows -> label words."""
    from promptforge_verbalizers.lm_bff import LmBffSearch
    from promptforge_verbalizers.petal import PetalSearch

    return [PetalSearch, LmBffSearch]


@hookimpl
def promptforge_scorers() -> Sequence[type]:
    """Words of several tokens."""
    from promptforge_verbalizers.scorers import Autoregressive, ConfidentFirst, Parallel

    return [ConfidentFirst, Parallel, Autoregressive]


@hookimpl
def promptforge_calibrations() -> Sequence[type]:
    """Corrections of class scores."""
    from promptforge_verbalizers.calibrations import Batch, Contextual, PmiDc

    return [Contextual, PmiDc, Batch]
