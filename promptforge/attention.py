"""Attention patterns: what takes the place of full attention on long inputs. The protocol; patterns are plugins.

A pattern is written once, on queries, keys and values; `promptforge.backbone.patterned` puts it
into a model. A pattern that mixes tokens without queries and keys says so (`mixes`) and gets
hidden states in the place of the values.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from promptforge.components import Component

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Seen:
    """What a pattern is told about the tokens of a batch.

    Attributes:
        real: [rows, keys] bool: True for a token, False for padding; None: there is no padding.
        always: [rows, keys] bool: global tokens, which see and are seen by all (masks, the
            template's own text); None: there are none.
        causal: a token sees itself and what stands before it.
        scale: of the products of queries and keys.
        offset: position of the first query among the keys (more than 0 where a cache holds some).
    """

    real: Tensor | None = None
    always: Tensor | None = None
    causal: bool = False
    scale: float = 1.0
    offset: int = 0


@dataclass(frozen=True)
class Shape:
    """The attention that a pattern takes the place of.

    Attributes:
        heads: of the queries; keys and values are repeated to as many.
        head_size: of each head.
        width: of the hidden states.
        length: most tokens of an input.
    """

    heads: int
    head_size: int
    width: int
    length: int


class AttentionPattern(Component):
    """Attends in place of full attention.

    Attributes:
        sees_future: why a causal model cannot have it; "" where it can.
        needs_training: it has weights of its own that a model has not learned: `promptforge adapt`.
        mixes: it reads hidden states: they stand in the place of the values, cut into heads, and so
            does what it gives; queries and keys mean nothing.
        keeps_output: the model's output matrix of the attention stays behind it.
        ignores_padding: rows of a batch must be of equal length, because padding would change them.
        fixed_length: `Shape.length` is the longest input that its weights serve.
    """

    role: ClassVar[str] = "attention"
    sees_future: ClassVar[str] = ""
    needs_training: ClassVar[bool] = False
    mixes: ClassVar[bool] = False
    keeps_output: ClassVar[bool] = True
    ignores_padding: ClassVar[bool] = False
    fixed_length: ClassVar[bool] = False

    globals: Literal["template", "masks", "none"] = Field(
        "template",
        description="Tokens that see and are seen by all, where a pattern has such (longformer, bigbird): "
        "special tokens, masks and the template's own text; masks alone; or none.",
    )

    def check(self, shape: Shape, causal: bool) -> None:
        """Raise a `UserError` where the options do not fit a model."""

    def weights(self, shape: Shape) -> nn.Module | None:
        """New parameters of one layer's attention, or None; they begin where the paper says."""
        return None

    @abstractmethod
    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, seen: Seen, weights: nn.Module | None
    ) -> Tensor:
        """What each query gets, [rows, heads, queries, head_size].

        Args:
            query: [rows, heads, queries, head_size].
            key, value: [rows, heads, keys, head_size].
            seen: padding, global tokens, direction.
            weights: what `weights` made for this layer.
        """
