"""The training loop: one page, for every strategy and every method.

An `Objective` says what the loss of some rows is; the loop does the rest. The order of the rows
depends on the seed and the epoch alone, so a training that was interrupted goes on exactly
where it stood, and two processes see together what one would see. They are started by

    ACCELERATE_USE_CPU=true python -m torch.distributed.run --nproc_per_node 2 -m -- promptforge train TASK

(without the variable on GPUs). Batch size and learning rate mean the same as with one process.
The first process writes the run's folder and speaks.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast
from torch import Tensor, nn

from promptforge.data import Row
from promptforge.errors import PromptForgeError, UserError
from promptforge.progress import Reporter
from promptforge.tuning import checkpoint, processes
from promptforge.tuning.settings import Settings

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Target:
    """A row and what should come out.

    Attributes:
        shares: probability of each label, in the task's order; one-hot for a hard label.
        weight: how much the row counts.
        temperature: of the softmax that is compared with `shares` (distillation).
        key: what tells the row from others, for strategies that must know.
    """

    row: Row
    shares: tuple[float, ...]
    weight: float = 1.0
    temperature: float = 1.0
    key: int = -1


class Objective(nn.Module):
    """What is minimised. Holds the trained parameters, so that processes can share gradients."""

    @abstractmethod
    def trained(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name."""

    @abstractmethod
    def undecayed(self) -> set[str]:
        """Names of those that weight decay must leave alone, besides vectors."""

    @abstractmethod
    def length(self, target: Target) -> int:
        """About how long a row is; rows of like length go together."""

    @abstractmethod
    def forward(self, targets: Sequence[Target], draw: int) -> Tensor:
        """The weighted loss of each row, [rows]; `draw` numbers the batch, for sampling."""


@dataclass
class Trained:
    """How a training went.

    Attributes:
        steps: updates made.
        loss: mean loss of the last tenth of them.
        best: highest score on the development rows, where there were any, and its step.
        curve: step, loss, and score where it was looked at.
    """

    steps: int = 0
    loss: float = math.nan
    best: float | None = None
    best_step: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)


def order(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
    """The rows of an epoch in batches: shuffled, then rows of like length together.

    Groups of eight batches are sorted by length, and the batches of the epoch are shuffled.
    The last batch is filled up from the front, so every batch has `size` rows.
    """
    rng = np.random.default_rng([seed, epoch])
    rows = rng.permutation(len(lengths)).tolist()
    while len(rows) % size:
        rows += rows[: size - len(rows) % size]
    group = 8 * size
    batches = []
    for start in range(0, len(rows), group):
        part = sorted(rows[start : start + group], key=lambda i: lengths[i])
        batches += [part[i : i + size] for i in range(0, len(part), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def batch_at(step: int, lengths: Sequence[int], size: int, seed: int) -> list[int]:
    """The rows of an update, counted from 0."""
    epoch, index = divmod(step, math.ceil(len(lengths) / size))
    return order(lengths, size, seed, epoch)[index]


def rate_at(step: int, settings: Settings) -> float:
    """The share of the learning rate at an update, counted from 0."""
    rising = math.ceil(settings.warmup * settings.steps)
    if step < rising:
        return (step + 1) / rising
    if settings.schedule == "constant":
        return 1.0
    done = (step - rising) / max(1, settings.steps - rising)
    return 1 - done if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


class Training:
    """One training, from its first to its last update.

    Args:
        objective: what is minimised.
        targets: the rows.
        settings: one pair of learning rate and batch size.
        seed: decides order and dropout.
        folder: where checkpoint and metrics are written; None: nowhere.
        score: the score on the development rows, higher is better; the best weights are kept.
        identity: what a checkpoint must have been made from to be gone on with.
    """

    def __init__(
        self,
        objective: Objective,
        targets: Sequence[Target],
        settings: Settings,
        *,
        seed: int,
        folder: Path | None = None,
        score: Callable[[], float] | None = None,
        report: Reporter | None = None,
        identity: str = "",
    ) -> None:
        if not targets:
            raise UserError("There are no rows to train on.")
        self.objective, self.targets, self.settings = objective, list(targets), settings
        self.seed, self.folder, self.score = seed, folder, score
        self.report = report or Reporter()
        self.identity = identity
        self.parameters = objective.trained()
        self.lengths = [objective.length(t) for t in self.targets]
        device = next(iter(self.parameters.values())).device
        self.accelerator = processes.accelerator(device)
        self.autocast = torch.autocast(
            device.type, torch.bfloat16, enabled=_bfloat16(settings.precision, device)
        )
        self.state = Trained()
        self.best: dict[str, Tensor] | None = None
        self.bad_looks = 0
        self.half_made = True

    def run(self, label: str = "Training") -> Trained:
        """Train to the end, or from the checkpoint to the end; the best weights stay in place.

        Raises:
            PromptForgeError: the loss is not finite, or a checkpoint of another training.
        """
        settings, state = self.settings, self.state
        torch.manual_seed(self.seed)
        self.optimizer = self._optimizer()
        module, optimizer = self.accelerator.prepare(self.objective, self.optimizer)
        self._resume()
        last_save = began = time.monotonic()
        kept = max(1, settings.steps // 10)
        losses = [entry["loss"] for entry in state.curve][-kept:]
        module.train(settings.dropout)
        with self.report.meter(label, settings.steps, "steps") as meter:
            meter.advance(state.steps)
            while state.steps < settings.steps and not self._patience_is_over():
                with self._whole():
                    loss = self._update(module, optimizer)
                    losses = [*losses, loss][-kept:]
                    state.steps += 1
                    state.loss = float(np.mean(losses))
                    entry: dict[str, float] = {"step": state.steps, "loss": loss}
                    if self.score and (
                        state.steps % settings.looks == 0 or state.steps == settings.steps
                    ):
                        entry["score"] = self._look()
                        module.train(settings.dropout)
                    self._log(entry)
                meter.advance()
                now = time.monotonic()
                due = (
                    state.steps % settings.save_every == 0
                    if settings.save_every
                    else now - last_save > 60
                )
                if self.folder and due:
                    state.seconds += now - began
                    began = last_save = now
                    self._save()
        state.seconds += time.monotonic() - began
        self.objective.eval()
        if self.best is not None:
            with torch.no_grad():
                for name, value in self.best.items():
                    self.parameters[name].copy_(value)
        return state

    def _update(self, module: nn.Module, optimizer: Any) -> float:
        settings, accelerator = self.settings, self.accelerator
        size, step = settings.rows, self.state.steps
        if accelerator.num_processes > 1:
            # Draws of their own for dropout, the same ones again after a resume.
            draw = (self.seed * 1_000_003 + step) * accelerator.num_processes
            torch.manual_seed(draw + accelerator.process_index)
        rows = batch_at(step, self.lengths, size, self.seed)
        share = settings.accumulate * accelerator.num_processes
        if size % share:
            raise UserError(
                f"batch_size {size} cannot be split over {accelerator.num_processes} processes "
                f"with accumulate={settings.accumulate}."
            )
        mine = rows[accelerator.process_index :: accelerator.num_processes]
        part = len(mine) // settings.accumulate
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate * rate_at(step, settings)
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for i in range(settings.accumulate):
            chosen = [self.targets[r] for r in mine[i * part : (i + 1) * part]]
            with self.autocast:
                loss = module(chosen, step).float().mean() / settings.accumulate
            total += float(loss.detach())
            accelerator.backward(loss)
        if accelerator.num_processes > 1:
            mean = torch.tensor(total, device=accelerator.device)
            total = float(accelerator.reduce(mean, "mean"))
        self._check_finite(total, "loss", step + 1)
        if settings.clip:
            accelerator.clip_grad_norm_(list(self.parameters.values()), settings.clip)
        optimizer.step()
        return total

    def _optimizer(self) -> torch.optim.Optimizer:
        plain = self.objective.undecayed()
        decayed: list[str] = []
        rest: list[str] = []
        for name, parameter in self.parameters.items():
            (rest if parameter.ndim < 2 or name in plain else decayed).append(name)
        self._names = [*decayed, *rest]
        groups = [
            {"params": [self.parameters[n] for n in decayed], "weight_decay": self.settings.weight_decay},
            {"params": [self.parameters[n] for n in rest], "weight_decay": 0.0},
        ]  # fmt: skip
        groups = [group for group in groups if group["params"]]
        return torch.optim.AdamW(groups, lr=self.settings.rate, fused=True)

    def _look(self) -> float:
        assert self.score is not None
        state = self.state
        self.objective.eval()
        score = self.score()
        if self.accelerator.num_processes > 1:
            score = float(broadcast(torch.tensor(score, device=self.accelerator.device)))
        self._check_finite(score, "score on the development rows", state.steps)
        # The later of two equal looks has seen more rows.
        if state.best is None or score >= state.best:
            self.bad_looks = 0 if state.best is None or score > state.best else self.bad_looks + 1
            state.best, state.best_step = score, state.steps
            self.best = {n: p.detach().clone() for n, p in self.parameters.items()}
        else:
            self.bad_looks += 1
        return score

    def _check_finite(self, value: float, what: str, step: int) -> None:
        if not math.isfinite(value):
            raise PromptForgeError(
                f"The {what} is not finite at step {step}. Try a lower learning rate (now "
                f"{self.settings.rate:g}), precision=float32, or more warm-up; a row with a very "
                "long or empty text can be the cause too."
            )

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Ctrl-C waits for the end of a step: nobody can go on from a half made one.

        A second Ctrl-C does not wait, and then the last checkpoint is what is kept.
        """
        self.half_made, asked = True, False

        def note(*_: Any) -> None:
            nonlocal asked
            if asked:
                raise KeyboardInterrupt
            asked = True

        # Elsewhere than in the main thread Ctrl-C does not arrive; another handler is not ours.
        ours = threading.current_thread() is threading.main_thread() and (
            signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if ours:
            signal.signal(signal.SIGINT, note)
        try:
            yield
            self.half_made = False
        finally:
            if ours:
                signal.signal(signal.SIGINT, signal.default_int_handler)
        if asked:
            raise KeyboardInterrupt

    def _patience_is_over(self) -> bool:
        return bool(self.settings.patience) and self.bad_looks >= self.settings.patience

    def _log(self, entry: dict[str, float]) -> None:
        self.state.curve.append(entry)
        if self.folder and self.accelerator.is_main_process:
            with (self.folder / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def _save(self) -> None:
        assert self.folder is not None
        if not self.accelerator.is_main_process:
            return
        tensors: dict[str, Tensor] = {f"parameters/{n}": p for n, p in self.parameters.items()}
        tensors |= checkpoint.optimizer_tensors(self.optimizer, self._names)
        tensors |= {f"best/{n}": v for n, v in (self.best or {}).items()}
        tensors["random/torch"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["random/cuda"] = torch.cuda.get_rng_state()
        state = {"identity": self.identity, "bad_looks": self.bad_looks, **vars(self.state)}
        checkpoint.save(self.folder / CHECKPOINT, tensors, state)

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT if self.folder else None
        if path is None or not path.exists():
            if self.folder and self.accelerator.is_main_process:
                (self.folder / METRICS).unlink(missing_ok=True)
            return
        tensors, state = checkpoint.load(path)
        if state.pop("identity") != self.identity:
            raise PromptForgeError(
                f"{path} belongs to a training with other data or settings. Use another folder, or delete it."
            )
        self.bad_looks = state.pop("bad_looks")
        self.state.__dict__.update(state)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"parameters/{name}"])
        checkpoint.restore_optimizer(self.optimizer, self._names, tensors)
        best = {n.removeprefix("best/"): v for n, v in tensors.items() if n.startswith("best/")}
        self.best = best or None
        torch.set_rng_state(tensors["random/torch"])
        if "random/cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random/cuda"])
        assert self.folder is not None
        if not self.accelerator.is_main_process:
            return
        # Steps after the checkpoint are made again, so their lines go.
        lines = "".join(json.dumps(entry) + "\n" for entry in self.state.curve)
        (self.folder / METRICS).write_text(lines, encoding="utf-8")

    def interrupted(self) -> None:
        """Save where the training stands, for Ctrl-C."""
        if self.folder and self.state.steps and not self.half_made:
            self._save()


def _bfloat16(wanted: str, device: torch.device) -> bool:
    if wanted != "auto":
        return wanted == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    # Without instructions for it a processor is slower in bfloat16 than in float32.
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
