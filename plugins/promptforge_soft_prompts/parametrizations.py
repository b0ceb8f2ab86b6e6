"""What the vectors of a soft prompt are computed from while they are trained."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from promptforge import Parametrization


class Plain(Parametrization):
    """The vectors themselves (Lester, Al-Rfou & Constant 2021)."""

    name: ClassVar[str] = "plain"

    def module(self, start: Tensor) -> nn.Module:
        return _Vectors(start)


class Residual(Parametrization):
    """The vectors plus what a two-layer network with LayerNorm makes of each.

    Residual prompt tuning (Razdaibiedina et al. 2023, section 3). It starts at the given vectors.
    """

    name: ClassVar[str] = "mlp"
    hidden: int = Field(128, ge=1, description="Units of the middle layer.")

    def module(self, start: Tensor) -> nn.Module:
        return _Residual(start, self.hidden)


class LowRank(Parametrization):
    """The given vectors, which stay, plus a trained product of two thin matrices.

    The low-rank half of decomposed prompt tuning (Shi & Lipani 2024, section 2.2).
    """

    name: ClassVar[str] = "low-rank"
    rank: int = Field(4, ge=1, description="Rank of the trained difference.")

    def module(self, start: Tensor) -> nn.Module:
        return _LowRank(start, self.rank)


class LSTM(Parametrization):
    """A bidirectional LSTM of two layers and a two-layer network over trained inputs.

    P-tuning (Liu et al. 2021, "GPT understands, too", section 3.2). The inputs start at the given
    vectors, and what the networks make of them is added to these. The last layer starts at zero, so
    training begins at the given vectors.
    """

    name: ClassVar[str] = "lstm"
    hidden: int = Field(0, ge=0, description="Units a direction; 0: half of the vectors' size.")
    layers: int = Field(2, ge=1, description="Layers of the LSTM.")

    def module(self, start: Tensor) -> nn.Module:
        return _LSTM(start, self.hidden or max(1, start.shape[1] // 2), self.layers)


class _Vectors(nn.Module):
    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(start.detach().clone())

    def forward(self) -> Tensor:
        return self.vectors


class _Residual(_Vectors):
    def __init__(self, start: Tensor, hidden: int) -> None:
        super().__init__(start)
        width = start.shape[1]
        norm = nn.LayerNorm(width)
        # The norm's weight starts at zero, so the network adds nothing at first.
        nn.init.zeros_(norm.weight)
        self.net = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width), norm
        ).to(start)

    def forward(self) -> Tensor:
        changed: Tensor = self.vectors + self.net(self.vectors)
        return changed


class _LowRank(nn.Module):
    def __init__(self, start: Tensor, rank: int) -> None:
        super().__init__()
        self.vectors = nn.Buffer(start.detach().clone())
        self.left = nn.Parameter(torch.zeros(len(start), rank).to(start))
        self.right = nn.Parameter(torch.randn(rank, start.shape[1]).to(start) / rank**0.5)

    def forward(self) -> Tensor:
        changed: Tensor = self.vectors + self.left @ self.right
        return changed


class _LSTM(nn.Module):
    def __init__(self, start: Tensor, hidden: int, layers: int) -> None:
        super().__init__()
        width = start.shape[1]
        # Fixed, so that all that is learned goes through the networks, as in the paper.
        self.vectors = nn.Buffer(start.detach().clone())
        self.inputs = nn.Parameter(start.detach().clone())
        self.lstm = nn.LSTM(width, hidden, layers, bidirectional=True, batch_first=True).to(start)
        last = nn.Linear(width, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(nn.Linear(2 * hidden, width), nn.ReLU(), last).to(start)

    def forward(self) -> Tensor:
        # Never in autocast's type: processors without its instructions have no such LSTM.
        with torch.autocast(self.inputs.device.type, enabled=False):
            read, _ = self.lstm(self.inputs[None])
        made: Tensor = self.vectors + self.net(read[0])
        return made
