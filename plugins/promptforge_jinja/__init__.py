"""The built-in template language: Jinja, rendered to parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from promptforge import hookimpl


@hookimpl
def promptforge_template_renderers() -> Sequence[type]:
    """Jinja."""
    from promptforge_jinja.renderer import JinjaRenderer

    return [JinjaRenderer]


@hookimpl
def promptforge_template_filters() -> Mapping[str, Callable[..., Any]]:
    """`truncate_here` and `keep`."""
    from promptforge_jinja.language import keep, truncate_here

    return {"truncate_here": truncate_here, "keep": keep}


@hookimpl
def promptforge_template_globals() -> Mapping[str, Any]:
    """`mask`, `soft`, `sep` and `tail`."""
    from promptforge.template import Mask, Sep
    from promptforge_jinja.language import soft, tail

    return {"mask": Mask(), "soft": soft, "sep": Sep(), "tail": tail}
