"""Built-in plugin: PET and iPET, which let prompted models label rows for each other and for a final one."""

from __future__ import annotations

from collections.abc import Sequence

from promptforge import hookimpl


@hookimpl
def promptforge_strategies() -> Sequence[type]:
    """How a classifier is made from few labels and many rows without."""
    from promptforge_pet.ipet import IPet
    from promptforge_pet.pet import Pet

    return [Pet, IPet]
