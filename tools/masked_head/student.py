"""The encoder with a low-rank update and a masked-LM head, written for speed.

The base's matrices stay frozen; ``W + B @ A`` takes their place (Hu et al. 2021), and biases,
LayerNorms and the head are trained. The sequences are full, so no padding mask is needed, and the
last layer and the head run on the hidden positions only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

HEADS, EPS = 12, 1e-12
LINEAR = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
NORMS = ("attention.output.LayerNorm", "output.LayerNorm")
HEAD = "cls.predictions"


class Linear(nn.Module):
    """A frozen matrix, a trained bias and, if ``rank`` is above 0, a trained low-rank update."""

    def __init__(self, weight: Tensor, bias: Tensor, rank: int) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.bias = nn.Parameter(bias.clone())
        if rank:
            self.A = nn.Parameter(torch.empty(rank, weight.shape[1]))
            self.B = nn.Parameter(torch.zeros(weight.shape[0], rank))
            nn.init.kaiming_uniform_(self.A, a=5**0.5)
        self.rank = rank

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        # Merged once a step: for thousands of tokens that costs less than a second, thin product.
        weight = self.weight + self.B @ self.A if self.rank else self.weight
        return F.linear(x, weight, self.bias)


class Layer(nn.Module):
    """One post-norm BERT layer."""

    def __init__(self, base: dict[str, Tensor], prefix: str, rank: int) -> None:
        super().__init__()
        self.linear = nn.ModuleList(
            Linear(base[f"{prefix}{name}.weight"], base[f"{prefix}{name}.bias"], rank)
            for name in LINEAR
        )
        self.norms = nn.ModuleList(_norm(base, f"{prefix}{name}") for name in NORMS)

    def forward(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """(rows, length, width) to the same, or to (rows, k, width) for ``positions`` (rows, k)."""
        query, key, value, projected, up, down = self.linear
        asked = x if positions is None else gather(x, positions)
        mixed = F.scaled_dot_product_attention(
            _split(query(asked)), _split(key(x)), _split(value(x))
        )
        asked = self.norms[0](asked + projected(mixed.transpose(1, 2).flatten(2)))
        return self.norms[1](asked + down(F.gelu(up(asked))))


class Student(nn.Module):
    """Encoder and head.

    Args:
        base: the tensors of the encoder's package.
        rank: of the update of every matrix of a tuned layer.
        tuned: how many layers are tuned, counted from the top; the others stay as they are.
        counts: of every token of the vocabulary; the output bias starts at their log frequency.
            None starts it at zero.
    """

    def __init__(
        self, base: dict[str, Tensor], rank: int, tuned: int, counts: np.ndarray | None
    ) -> None:
        super().__init__()
        self.register_buffer("words", base["embeddings.word_embeddings.weight"])
        self.register_buffer(
            "places",
            base["embeddings.position_embeddings.weight"]
            + base["embeddings.token_type_embeddings.weight"][0],
        )
        self.norm = _norm(base, "embeddings.LayerNorm")
        count = 1 + max(int(name.split(".")[2]) for name in base if "encoder.layer." in name)
        self.frozen = count - tuned
        self.layers = nn.ModuleList(
            Layer(base, f"encoder.layer.{i}.", rank if i >= self.frozen else 0)
            for i in range(count)
        )
        width = self.words.shape[1]
        self.transform = nn.Linear(width, width)
        nn.init.normal_(self.transform.weight, std=0.02)
        nn.init.zeros_(self.transform.bias)
        self.head_norm = nn.LayerNorm(width, eps=EPS)
        start = torch.zeros(len(self.words))
        if counts is not None:
            start = torch.from_numpy(np.log(counts / counts.sum())).float()
        self.bias = nn.Parameter(start)
        for part in [self.norm, *self.layers[: self.frozen]] if self.frozen else []:
            part.requires_grad_(False)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Vectors (rows, k, width) at ``positions`` (rows, k) of ``ids`` (rows, length).

        Their products with ``words``, plus ``bias``, are the scores.
        """
        x = self.norm(F.embedding(ids, self.words) + self.places[: ids.shape[1]])
        for layer in self.layers[:-1]:
            x = layer(x, None)
        x = self.layers[-1](x, positions)
        return self.head_norm(F.gelu(self.transform(x)))

    def groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
        """The head's parameters, the matrices of the update, and its biases and LayerNorms."""
        head = [*self.transform.parameters(), *self.head_norm.parameters(), self.bias]
        known = {id(parameter) for parameter in head}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in known]
        return head, [p for p in rest if p.ndim > 1], [p for p in rest if p.ndim == 1]

    def _trained(self) -> dict[str, nn.Parameter]:
        """Every trained parameter under its name in `BertForMaskedLM`."""
        out: dict[str, nn.Parameter] = {}

        def take(name: str, module: nn.Module) -> None:
            for key, value in module.named_parameters(recurse=False):
                if value.requires_grad:
                    out[f"{name}.weight.{key}" if key in "AB" else f"{name}.{key}"] = value

        take("bert.embeddings.LayerNorm", self.norm)
        for i, layer in enumerate(self.layers):
            for name, part in zip(LINEAR + NORMS, [*layer.linear, *layer.norms], strict=True):
                take(f"bert.encoder.layer.{i}.{name}", part)
        take(f"{HEAD}.transform.dense", self.transform)
        take(f"{HEAD}.transform.LayerNorm", self.head_norm)
        out[f"{HEAD}.bias"] = self.bias
        return out

    def tensors(self) -> dict[str, Tensor]:
        """What was trained, as the shipped file holds it: matrices in fp16, vectors in fp32."""
        return {
            name: (p.detach().half() if p.ndim > 1 else p.detach().float()).cpu().contiguous()
            for name, p in self._trained().items()
        }

    def restore(self, path: Path) -> None:
        """Start from a head that was saved before; what it does not hold stays the base's.

        Raises:
            SystemExit: it has another rank or other tuned layers.
        """
        saved = load_file(path)
        targets = self._trained()
        for name, value in saved.items():
            if name not in targets or targets[name].shape != value.shape:
                raise SystemExit(
                    f"{path} has another rank or other layers than this training: {name}"
                )
        with torch.no_grad():
            for name, value in saved.items():
                targets[name].copy_(value)

    def save(self, path: Path, about: dict[str, str]) -> None:
        """Write :meth:`tensors`; nothing half-written is left."""
        part = path.with_suffix(".part")
        save_file(self.tensors(), part, metadata=about)
        part.replace(path)


class Loss(torch.autograd.Function):
    """Mean cross-entropy over a whole vocabulary, in slices, with its gradients made on the way.

    Only one slice of scores exists at a time. Rows whose target is negative are left out. With
    ``words``/``shares`` of a teacher, (n, top) each, the share ``weight`` of a target is the
    teacher's, and what the teacher does not name stays with the true token.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, words: Tensor, bias: Tensor, targets: Tensor, rows: int,
        taught: tuple[Tensor, Tensor] | None = None, weight: float = 0.0,
    ):  # fmt: skip
        """``x`` (n, width), ``words`` (vocabulary, width), ``bias``, ``targets`` (n,)."""
        kept = (targets >= 0).nonzero().squeeze(1)
        count = max(1, len(kept))
        dx, dbias = torch.zeros_like(x, dtype=torch.float), torch.zeros_like(bias)
        total = x.new_zeros((), dtype=torch.float)
        words = words.to(x.dtype)
        for part in kept.split(rows):
            true = targets[part].unsqueeze(1)
            scores = F.linear(x[part], words).float().add_(bias)
            log_z = scores.logsumexp(1, keepdim=True)
            index, share = true, scores.new_ones(true.shape)
            if taught is not None:
                named, given = taught[0][part], weight * taught[1][part]
                share = share - given.sum(1, keepdim=True)
                index, share = torch.cat([true, named], 1), torch.cat([share, given], 1)
            total += (share * (log_z - scores.gather(1, index))).sum()
            slope = scores.sub_(log_z).exp_()
            slope.scatter_add_(1, index, -share)
            dbias += slope.sum(0)
            dx[part] = (slope.to(x.dtype) @ words).float()
        ctx.save_for_backward((dx / count).to(x.dtype), dbias / count)
        return total / count

    @staticmethod
    def backward(ctx, slope: Tensor):
        """The gradients of ``x`` and ``bias``; the matrix is frozen."""
        dx, dbias = ctx.saved_tensors
        return dx * slope, None, dbias * slope, None, None, None, None


def load_base(folder: Path) -> dict[str, Tensor]:
    """The encoder's tensors without any prefix, in fp32."""
    tensors = load_file(folder / "model.safetensors")
    return {name.removeprefix("bert."): value.float() for name, value in tensors.items()}


def gather(x: Tensor, positions: Tensor) -> Tensor:
    """Rows of ``x`` (rows, length, width) at ``positions`` (rows, k): (rows, k, width)."""
    return x.gather(1, positions.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def _split(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def _norm(base: dict[str, Tensor], name: str) -> nn.LayerNorm:
    norm = nn.LayerNorm(base[f"{name}.weight"].shape[0], eps=EPS)
    norm.load_state_dict({key: base[f"{name}.{key}"] for key in ("weight", "bias")})
    return norm
