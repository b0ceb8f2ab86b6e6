"""What a comparison compares: a strategy with its components and options, in one line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from promptforge.components import Component, parse_options
from promptforge.errors import UserError, did_you_mean
from promptforge.plugins import build, component

ROLES = ("strategy", "method", "verbalizer", "demonstrations")
#: what stands in quotes, else a character
_TOKEN = re.compile(r""""(?:\\.|[^"\\])*"|'[^']*'|.""", re.DOTALL)


@dataclass(frozen=True)
class Contender:
    """A strategy with its components and options, as `prompt:demonstrations=lm-bff,samples=4`.

    Attributes:
        text: as the user wrote it; also its name in tables.
        components: role -> name.
        options: role -> options.
        samples: draws of demonstrations averaged when predicting.
    """

    text: str
    components: dict[str, str]
    options: dict[str, dict[str, Any]]
    samples: int = 1

    @classmethod
    def parse(cls, text: str) -> Contender:
        """`NAME`, or `NAME:KEY=VALUE,...`; a KEY is a role, `samples`, or an option of a component.

        A VALUE is what `-o` takes; its commas stand in brackets, braces or quotes.

        Raises:
            UserError: no such component or option.
        """
        name, _, rest = text.partition(":")
        components = {"strategy": name.strip(), "method": "all", "verbalizer": "manual"}
        pairs, samples = [], 1
        for pair in _pairs(rest):
            key, _, value = pair.partition("=")
            if key in ROLES:
                components[key] = value
            elif key == "samples":
                if not (value.isdecimal() and int(value)):
                    raise UserError(f"--strategy {text!r}: samples is a whole number from 1.")
                samples = int(value)
            else:
                pairs.append(pair)
        classes = {role: component(role, chosen) for role, chosen in components.items()}
        try:
            return cls(text, components, parse_options(pairs, classes), samples)
        except UserError as error:
            keys = [pair.partition("=")[0] for pair in pairs]
            near = (did_you_mean(key, [*ROLES, "samples"]) for key in keys)
            hint = next(filter(None, near), "")
            raise UserError(
                f"--strategy {text!r}: {str(error).removeprefix('-o ')}{hint}"
            ) from None

    @classmethod
    def of(cls, text: str, made: Mapping[str, Component], samples: int = 1) -> Contender:
        """One of components, role -> component, that were built already."""
        options = {role: one.model_dump(exclude_unset=True) for role, one in made.items()}
        return cls(text, {role: one.name for role, one in made.items()}, options, samples)

    def build(self) -> dict[str, Any]:
        """Fresh components."""
        return {
            role: build(role, name, **self.options.get(role, {}))
            for role, name in self.components.items()
        }


def _pairs(text: str) -> list[str]:
    """What stands between the commas that are in no brackets, braces or quotes."""
    out, depth = [""], 0
    for token in _TOKEN.findall(text):
        depth += (token in "[{") - (token in "]}")
        if token == "," and not depth:
            out.append("")
        else:
            out[-1] += token
    return [pair.strip() for pair in out if pair.strip()]
