"""Mixing over tokens without attention: no queries, keys or values."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from promptforge import AttentionPattern
from promptforge.attention import Seen, Shape

#: Features whose transforms over the tokens are taken at once.
_FEATURES = 32


class Mixing(AttentionPattern):
    """Hidden states mixed over tokens. Rows of a batch must be of equal length; nothing is global."""

    mixes: ClassVar[bool] = True
    keeps_output: ClassVar[bool] = False
    ignores_padding: ClassVar[bool] = True

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, seen: Seen, weights: nn.Module | None
    ) -> Tensor:
        """The hidden states, which stand in the place of the values, mixed."""
        mixed = self.mix(value.transpose(1, 2).flatten(2), weights)
        return mixed.view(*mixed.shape[:2], value.shape[1], -1).transpose(1, 2)

    @abstractmethod
    def mix(self, hidden: Tensor, weights: nn.Module | None) -> Tensor:
        """Hidden states [rows, tokens, width] mixed over tokens."""


class FNet(Mixing):
    """The real part of the Fourier transform over tokens and over features.

    Lee-Thorp et al. 2021, "FNet: mixing tokens with Fourier transforms", equation 3. No weights.
    """

    name: ClassVar[str] = "fnet"
    sees_future: ClassVar[str] = "a Fourier transform makes every output of all tokens of the row."

    def mix(self, hidden: Tensor, weights: nn.Module | None) -> Tensor:
        """Re F_tokens(F_features(x)), [rows, tokens, width]."""
        mixed: Tensor = _RealFourier.apply(hidden)  # type: ignore[no-untyped-call]
        return mixed


class _RealFourier(torch.autograd.Function):
    """Re F_tokens(F_features(x)): linear, with the symmetric matrix cos 2 pi (n t / N + k h / H).

    So the backward pass is the same map of the gradient, and nothing is kept for it.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        """The real part of the transform, [rows, tokens, width]."""
        exact = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        width = exact.shape[-1]
        # The input is real: half of the features are enough, the rest being their mirror image.
        half = torch.fft.rfft(exact, dim=-1)
        # Some features at a time stay in a core's cache.
        parts = [torch.fft.fft(part, dim=1).real for part in half.split(_FEATURES, -1)]
        real = torch.cat(parts, -1)
        rest = real[..., 1 : (width + 1) // 2].flip(1, 2).roll(1, 1)
        return torch.cat([real, rest], -1).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """The gradient of the input, [rows, tokens, width]."""
        mixed: Tensor = _RealFourier.apply(grads[0])  # type: ignore[no-untyped-call]
        return mixed


class MLPMixer(Mixing):
    """A small network over the tokens of the row, the same for every feature.

    Tolstikhin et al. 2021, "MLP-Mixer", equation 1: `W2 gelu(W1 x)` over the tokens; norm and residual
    are the model's own. Its width is fixed, so time grows with the length; its weights are for the
    model's longest input and no longer one. A shorter row uses those of its first tokens.
    """

    name: ClassVar[str] = "mlp-mixer"
    needs_training: ClassVar[bool] = True
    fixed_length: ClassVar[bool] = True
    sees_future: ClassVar[str] = "its units read all tokens of the row."

    hidden: int = Field(256, ge=1, description="Units of the network over tokens.")

    def weights(self, shape: Shape) -> nn.Module:
        """`W1` and `W2`."""
        return _Tokens(shape.length, self.hidden)

    def mix(self, hidden: Tensor, weights: nn.Module | None) -> Tensor:
        """What the network makes of the tokens, [rows, tokens, width]."""
        assert isinstance(weights, _Tokens)
        mixed: Tensor = weights(hidden)
        return mixed


class _Tokens(nn.Module):
    """Two layers over tokens, the first cut to as many as there are."""

    def __init__(self, length: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(length, hidden), nn.Linear(hidden, length)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, tokens, width] to the same."""
        tokens = x.shape[1]
        units = self.first.weight[:, :tokens] @ x + self.first.bias[:, None]
        return self.second.weight[:tokens] @ F.gelu(units) + self.second.bias[:tokens, None]
