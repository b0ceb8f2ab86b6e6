"""YAML from strangers: plain values only, custom tags kept as text and never constructed.

Aliases make a small file stand for a value of any size. In memory it is small all the same, so
nothing but a text is ever written out, and what `<<` copies is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from promptforge_importers.files import read_text
from promptforge_importers.writing import Unconvertible

#: Keys that a mapping may have with all that it takes over with `<<`.
MOST_KEYS = 10_000

# The C loader reads ten times as fast; both make the same values.
_Base: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Tagged:
    """A value with a tag of its own, such as `!function utils.doc_to_text`."""

    tag: str
    value: Any

    def __str__(self) -> str:
        return f"{self.tag} {self.value}" if isinstance(self.value, str) else self.tag


class _Loader(_Base):  # type: ignore[misc, valid-type]
    """`SafeLoader` that keeps what it does not know."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MOST_KEYS:
            raise yaml.constructor.ConstructorError(
                problem=f"a mapping has more than {MOST_KEYS:,} keys",
                problem_mark=node.start_mark,
            )


def _keep(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> Tagged:
    if isinstance(node, yaml.MappingNode):
        return Tagged(node.tag, loader.construct_mapping(node, deep=True))
    if isinstance(node, yaml.SequenceNode):
        return Tagged(node.tag, loader.construct_sequence(node, deep=True))
    return Tagged(node.tag, node.value)


_Loader.add_multi_constructor("", _keep)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        Unconvertible: it cannot be read, or is no YAML.
    """
    text = read_text(path)
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise Unconvertible(f"{where}no valid YAML: {problem}.") from None
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
        # What `!!int ""` and its like come to.
        raise Unconvertible(
            f"a value in it is not of the kind that its tag says: {error}"
        ) from None
    except RecursionError:
        raise Unconvertible("its values are nested too deeply.") from None


def text_of(data: Mapping[str, Any], key: str) -> str:
    """The text under a key; empty where there is none.

    Raises:
        Unconvertible: something else stands there.
    """
    value = data.get(key)
    if value is None:
        return ""
    if not isinstance(value, str | int | float | date):  # `dataset: 2024` is a name too
        raise Unconvertible(f"{key}: a text was expected.")
    return str(value)


def yaml_files(source: Path) -> list[Path]:
    """`source` itself, or the YAML files in it."""
    if source.is_file():
        return [source]
    return sorted(p for p in source.rglob("*") if p.suffix in (".yaml", ".yml") and p.is_file())
