"""Which tokens a template may be made of, and how a span of them is spelled in one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from promptforge import Backbone
from promptforge.template import of_column

#: "<extra_id_7>", "[unused3]", "<|im_end|>": control tokens, which not every tokenizer calls special.
_CONTROL = re.compile(r"\s*[<\[]\|?\w+\|?[>\]]\s*")


class Spelling:
    """The text of a model's tokens, spaces before them included.

    A token is decoded behind another one: that shows whether it brings a space, whatever mark
    the tokenizer uses for it.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self._anchor = backbone.text.ids(["a"])[0]
        self._head = self._decoded([self._anchor])[0]

    def _decoded(self, ids: Sequence[Sequence[int]]) -> list[str]:
        texts: list[str] = self.backbone.tokenizer.batch_decode(
            [list(i) for i in ids], clean_up_tokenization_spaces=False
        )
        return texts

    def texts(self, spans: Sequence[Sequence[int]]) -> list[str]:
        """What each span adds to a text before it."""
        return [
            text.removeprefix(self._head) if span else ""
            for span, text in zip(
                spans, self._decoded([[*self._anchor, *s] for s in spans]), strict=True
            )
        ]

    @cached_property
    def inside(self) -> Tensor:
        """Tokens that a span may have, [V] bool: text that shows, and nothing special."""
        return self._masks[0]

    @cached_property
    def first(self) -> Tensor:
        """Those it may begin with, [V] bool: no letter or digit glues to what stands before."""
        return self._masks[1]

    @cached_property
    def _masks(self) -> tuple[Tensor, Tensor]:
        size = min(self.backbone.vocabulary, len(self.backbone.tokenizer))
        inside = torch.zeros(self.backbone.vocabulary, dtype=torch.bool)
        first = inside.clone()
        for token, text in enumerate(self.texts([[t] for t in range(size)])):
            shown = text.replace("\n", " ")
            # U+FFFD: a part of a character.
            whole = text and shown.isprintable() and "\ufffd" not in text
            if whole and not _CONTROL.fullmatch(text):
                inside[token] = token not in self.backbone.text.special_ids
                first[token] = inside[token] and not text[0].isalnum()
        return inside.to(self.backbone.device), first.to(self.backbone.device)


def literal(text: str) -> str:
    """`text` as a Jinja template that renders to it: "{{ 7 }}" stays "{{ 7 }}"."""
    return re.sub(r"\{(?=[{%#]|$)", "{% raw %}{{% endraw %}", text)


def expression(column: str) -> str:
    """A column in a template: `{{ text }}`, or `{{ row["a name"] }}`."""
    return f"{{{{ {of_column(column)} }}}}"


@dataclass(frozen=True)
class Form:
    """An input form: columns before and after the label word, and a span on each side of it.

    `source` is used twice: with the label word and masks for the spans (the generator's input),
    and with the spans written out and a mask for the label word (a template).
    """

    before: tuple[str, ...]
    after: tuple[str, ...] = ()

    def source(self, left: str, word: str, right: str) -> str:
        """The template; `left` and `right` bring their own leading spaces."""
        inputs = [" ".join(expression(c) for c in side) for side in (self.before, self.after)]
        tail = f" {inputs[1]}" if inputs[1] else ""
        return f"{inputs[0]}{left} {word}{right}{tail}".strip()


def forms(columns: Sequence[str], *, mask_last: bool) -> list[Form]:
    """The input forms of section 5.2 for these columns.

    One column: before the label word, or after it. Several: the first before it, the others
    after it. Where the mask comes last, all columns stand before it.
    """
    if mask_last:
        return [Form(tuple(columns))]
    if len(columns) == 1:
        return [Form((), tuple(columns)), Form(tuple(columns))]
    return [Form(tuple(columns[:1]), tuple(columns[1:]))]
