"""What a foreign template is made of, and how it is written in our template language."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from promptforge.template import of_column


class Unconvertible(Exception):
    """A foreign template says what ours cannot; the text is the reason."""


@dataclass(frozen=True)
class Value:
    """Text from a row: a Jinja expression.

    Attributes:
        source: the expression.
        kept: it is never cut.
    """

    source: str
    kept: bool = False

    def then(self, step: str) -> Value:
        """With an index or a method after it."""
        simple = re.fullmatch(r"[\w.\[\]:\-\"()]+", self.source)
        return replace(self, source=f"{self.source if simple else f'({self.source})'}{step}")


@dataclass(frozen=True)
class Slot:
    """A mask of `length` tokens."""

    length: int = 1


@dataclass(frozen=True)
class Break:
    """The separator of two segments."""


@dataclass(frozen=True)
class SoftText:
    """Trainable tokens: initialised from `text`, or `n` of them; one `id` shares vectors."""

    text: str | None = None
    n: int = 1
    id: str | None = None


#: A string is the template's own words.
Piece = str | Value | Slot | Break | SoftText


def quoted(text: str) -> str:
    """`text` as a literal of Jinja's expressions."""
    return json.dumps(text, ensure_ascii=False)


def literal(text: str) -> str:
    """`text` as the words of a template, with nothing in it that Jinja reads."""
    if re.search(r"\{[{%#]|\{$|^[{%#]", text):
        return (
            f"{{% raw %}}{text}{{% endraw %}}"
            if "endraw" not in text
            else f"{{{{ {quoted(text)} }}}}"
        )
    return text


def column(name: str) -> Value:
    """The value of a column."""
    return Value(of_column(name))


def template(pieces: Iterable[Piece]) -> str:
    """The pieces as one of our templates; punctuation after the last mask becomes a tail.

    A causal model reads nothing after the mask: a tail is what it may do without.
    """
    merged: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, str) and merged and isinstance(merged[-1], str):
            merged[-1] += piece
        elif piece != "":
            merged.append(piece)
    last = len(merged) - 1
    out = []
    for i, piece in enumerate(merged):
        after = i == last and i > 0 and isinstance(merged[i - 1], Slot)
        if isinstance(piece, str) and after and not re.search(r"\w", piece) and piece.strip():
            out.append(f"{{{{ tail({quoted(piece.rstrip())}) }}}}")
        else:
            out.append(_written(piece))
    return "".join(out)


def _written(piece: Piece) -> str:
    match piece:
        case str():
            return literal(piece)
        case Value():
            return f"{{{{ {piece.source}{' | keep' if piece.kept else ''} }}}}"
        case Slot():
            return "{{ mask }}" if piece.length == 1 else f"{{{{ mask({piece.length}) }}}}"
        case Break():
            return "{{ sep }}"
        case SoftText():
            what = f"n={piece.n}" if piece.text is None else quoted(piece.text)
            shared = f", id={quoted(piece.id)}" if piece.id else ""
            return f"{{{{ soft({what}{shared}) }}}}"


def slots(pieces: Iterable[Piece]) -> int:
    """How many masks there are."""
    return sum(isinstance(piece, Slot) for piece in pieces)
