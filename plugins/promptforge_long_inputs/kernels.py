"""Kernel attention: softmax is replaced by a product of features, and time and memory grow with length.

What a query gets is `phi(q) (phi(K)^T V)`, normalised. Where the model is causal, the sums over the
keys run: they are carried from chunk to chunk, and within a chunk the products are taken directly.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from promptforge import AttentionPattern, UserError
from promptforge.attention import Seen
from promptforge.errors import did_you_mean, listed
from promptforge_long_inputs.rows import in_blocks, unseen

#: Tokens of a chunk, within which causal products are taken directly.
_CHUNK = 128

#: Features that are computed at once: few enough to stay in a core's cache.
_FEATURES = 2**20

#: Least exponent of a feature beside the greatest of its chunk; `exp` of it and of its opposite are numbers.
_DEEPEST = -80.0

#: Sums over the keys of earlier chunks, as each kernel needs them.
State = tuple[Tensor, ...]
FeatureMap = Callable[[Tensor], Tensor]

#: Positive feature maps by name, [..., d] to [..., d].
FEATURE_MAPS: dict[str, FeatureMap] = {
    "elu": lambda x: F.elu(x) + 1,  # Katharopoulos et al. 2020, equation 7
    "relu": F.relu,
    "softplus": F.softplus,
}


class Kernel(AttentionPattern):
    """Attention by features. Global tokens have no part in it: every token sees all."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, seen: Seen, weights: nn.Module | None
    ) -> Tensor:
        """`phi(q) (phi(K)^T V)`, normalised; sums are in float32 at least."""
        exact = torch.promote_types(value.dtype, torch.float32)
        q, k, v = (x.to(exact) for x in (query, key, value))
        real = None if seen.real is None else seen.real[:, None, :, None]
        if not seen.causal or q.shape[2] == 1:
            return self.whole(q, k, v, seen.scale, real).to(value.dtype)
        q = F.pad(q, (0, 0, seen.offset, 0))
        state, out = None, []
        chunks = [torch.split(x, _CHUNK, 2) for x in (q, k, v)]
        shown = [None] * len(chunks[0]) if real is None else torch.split(real, _CHUNK, 2)
        for q, k, v, mask in zip(*chunks, shown, strict=True):
            got, state = self.running(q, k, v, seen.scale, mask, state)
            out.append(got)
        return torch.cat(out, 2)[:, :, seen.offset :].to(value.dtype)

    @abstractmethod
    def whole(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, real: Tensor | None
    ) -> Tensor:
        """Every query sees every key; `real`: [rows, 1, keys, 1]."""

    @abstractmethod
    def running(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, real: Tensor | None,
        before: State | None,
    ) -> tuple[Tensor, State]:  # fmt: skip
        """Query i of a chunk sees the keys up to i, and those of earlier chunks by their sums `before`."""


class Efficient(Kernel):
    """Softmax over the features of a query and over the positions of the keys; no division.

    Shen et al. 2021, "Efficient attention: attention with linear complexities", section 3. Causal:
    the softmax over positions is over those up to the query (a normaliser that runs along).
    """

    name: ClassVar[str] = "efficient"

    def whole(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, real: Tensor | None
    ) -> Tensor:
        """`softmax_features(Q) (softmax_positions(K)^T V)`."""
        context = _hide(key, real).softmax(-2).transpose(-1, -2) @ value
        return query.softmax(-1) @ context

    def running(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, real: Tensor | None,
        before: State | None,
    ) -> tuple[Tensor, State]:  # fmt: skip
        """The same with a softmax over the positions up to each query."""
        key, shrink, most = _stable(_hide(key, real), (2,), before[2] if before else None)
        sums = key.cumsum(2)
        if before:
            sums = sums + before[1] * shrink
        context = before[0] * shrink.transpose(-1, -2) if before else None
        out, context = _causal(query.softmax(-1) / _nonzero(sums), key, value, context)
        return out, (context, sums[:, :, -1:], most)


class Linear(Kernel):
    """`phi(Q) (phi(K)^T V) / (phi(Q) sum phi(K))`.

    Katharopoulos et al. 2020, "Transformers are RNNs", sections 3.2 and 3.3, with phi = elu + 1.
    """

    name: ClassVar[str] = "linear"

    feature_map: str = Field(
        "elu", description="phi: elu (elu + 1), relu, softplus or a plugin's; it must be positive."
    )

    @field_validator("feature_map")
    @classmethod
    def _known(cls, name: str) -> str:
        known = _feature_maps()
        if name not in known:
            raise UserError(
                f"There is no feature map called {name!r}.{did_you_mean(name, list(known))} "
                f"Available: {listed(list(known))}. A plugin may bring more."
            )
        return name

    def whole(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, real: Tensor | None
    ) -> Tensor:
        """The sums over all keys."""
        query, key = self._features(query, key, real)
        return _divided(query @ (key.transpose(-1, -2) @ _with_ones(value)))

    def running(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, real: Tensor | None,
        before: State | None,
    ) -> tuple[Tensor, State]:  # fmt: skip
        """The sums over the keys up to each query."""
        query, key = self._features(query, key, real)
        out, context = _causal(query, key, _with_ones(value), before[0] if before else None)
        return _divided(out), (context,)

    def _features(self, query: Tensor, key: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        phi = _feature_maps()[self.feature_map]
        query, key = phi(query), phi(key)
        return query, key if real is None else key * real


class Performer(Kernel):
    """Random positive features whose products are, on average, those of softmax attention.

    Choromanski et al. 2021, "Rethinking attention with Performers", section 2: `phi(x) = exp(W x -
    |x|^2 / 2)` with orthogonal rows in W; queries and keys are scaled by the root of the attention's
    scale (d^-1/4) first. The greatest exponent is taken off before `exp`: for queries each its own, for
    keys that of all (causal: of the keys so far), which leaves the quotient as it is.
    """

    name: ClassVar[str] = "performer"

    features: int = Field(
        256, ge=1, description="Random features; more are nearer to softmax attention."
    )
    seed: int = Field(0, description="Seed of the random features.")

    def whole(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, real: Tensor | None
    ) -> Tensor:
        """The sums over all keys, some tokens at a time, as their features take much room."""
        w = self._rotation(query)
        length, value = key.shape[2], _with_ones(value)
        step = max(1, _FEATURES // (key[:, :, 0, 0].numel() * self.features))

        def sums(start: int, stop: int, key: Tensor, value: Tensor) -> Tensor:
            """[rows, heads, 1, features, size + 2]: the last column is the greatest exponent."""
            part = None if real is None else real[:, :, start:stop]
            exponents = _hide(_exponents(key, w, scale, 1), part)
            most = exponents.detach().amax((-1, -2), keepdim=True)
            own = (exponents - most).exp().transpose(-1, -2) @ value
            return torch.cat([own, most.expand(-1, -1, self.features, 1)], -1)[:, :, None]

        found = in_blocks(sums, length, step, 2, key, value)
        most = found[..., -1:].detach()
        state = (found[..., :-1] * (most - most.amax(2, keepdim=True)).exp()).sum(2)

        def quotients(start: int, stop: int, query: Tensor) -> Tensor:
            return _divided(_own(_exponents(query, w, scale, 0)) @ state)

        return in_blocks(quotients, query.shape[2], step, 2, query)

    def running(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, real: Tensor | None,
        before: State | None,
    ) -> tuple[Tensor, State]:  # fmt: skip
        """The sums over the keys up to each query."""
        w = self._rotation(query)
        exponents = _hide(_exponents(key, w, scale, 1), real)
        key, shrink, most = _stable(exponents, (2, 3), before[1] if before else None)
        context = before[0] * shrink if before else None
        out, context = _causal(
            _own(_exponents(query, w, scale, 0)), key, _with_ones(value), context
        )
        return _divided(out), (context, most)

    def _rotation(self, like: Tensor) -> Tensor:
        return orthogonal(self.features, like.shape[-1], self.seed).to(like).t()


def _exponents(x: Tensor, w: Tensor, scale: float, lengths: int) -> Tensor:
    """Logarithms of the features of keys, [..., features]; of queries (`lengths` 0) up to a constant each."""
    x = x * scale**0.5
    return x @ w - x.square().sum(-1, keepdim=True) / 2 if lengths else x @ w


@lru_cache(32)
@torch.inference_mode(False)  # what is kept may be trained with later
def orthogonal(features: int, size: int, seed: int) -> Tensor:
    """[features, size]: rows as long as Gaussian ones are, in groups of `size` orthogonal rows.

    Choromanski et al. 2021, section 2.4.
    """
    draw = torch.Generator().manual_seed(seed)
    count = -(-features // size)
    gaussian = torch.randn(count, size, size, generator=draw, dtype=torch.float64)
    turn, rest = torch.linalg.qr(gaussian)
    # The signs make the rotations uniform (Mezzadri 2007); as LAPACK leaves them, they lean one way.
    turn = turn * rest.diagonal(dim1=1, dim2=2).sign()[:, None]
    norms = torch.randn(features, size, generator=draw, dtype=torch.float64).norm(dim=1)
    rows: Tensor = turn.flatten(0, 1)[:features] * norms[:, None]
    return rows


def _feature_maps() -> dict[str, FeatureMap]:
    from promptforge.plugins import manager

    return manager().named_values("promptforge_feature_maps")


def _hide(exponents: Tensor, real: Tensor | None) -> Tensor:
    return exponents if real is None else exponents.masked_fill(~real, unseen(exponents.dtype))


def _own(exponents: Tensor) -> Tensor:
    """Features of queries, each query's greatest 1."""
    return (exponents - exponents.amax(-1, keepdim=True).detach()).exp()


def _with_ones(value: Tensor) -> Tensor:
    """A last column of ones, which sums to the divisor."""
    return F.pad(value, (0, 1), value=1.0)


def _divided(sums: Tensor) -> Tensor:
    quotient: Tensor = sums[..., :-1] / _nonzero(sums[..., -1:])
    return quotient


def _nonzero(divisor: Tensor) -> Tensor:
    """Padding before a row's first token has seen nothing yet: its divisor is 0."""
    return divisor.masked_fill(divisor == 0, 1.0)


def _stable(
    exponents: Tensor, over: tuple[int, ...], before: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`exp` of what exponents [rows, heads, tokens, features] are under the greatest so far; and that.

    Between them, by how much earlier sums shrink, because the greatest has grown. What is further
    down than float32 reaches counts as just within it: a query whose keys are all that small beside
    a later one of its chunk gets their mean, and not 0 / 0.
    """
    most = exponents.detach().amax(over, keepdim=True)
    if before is not None:
        most = most.maximum(before)
    features = (exponents - most).clamp(min=_DEEPEST).exp()
    features = features.masked_fill(exponents < unseen(exponents.dtype) / 2, 0.0)
    return features, ((most if before is None else before) - most).exp(), most


def _causal(
    query: Tensor, key: Tensor, value: Tensor, before: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Products with the keys of a chunk up to the query and with the sums of earlier ones; the sums now."""
    out = (query @ key.transpose(-1, -2)).tril() @ value
    sums = key.transpose(-1, -2) @ value
    return (out, sums) if before is None else (out + query @ before, sums + before)
