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
from promptforge.tuning.dropout import cheap_dropout
from promptforge.tuning.precision import Precision
from promptforge.tuning.recomputing import recomputing
from promptforge.tuning.schedule import batch_at, rate_at
from promptforge.tuning.settings import Settings
from promptforge.tuning.tracking import Log

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

    def rates(self) -> dict[str, float]:
        """Those that learn slower, or faster: name -> share of the learning rate."""
        return {}

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
        best: score of the kept weights on the development rows, where there were any, and their
            step: the highest, or with `keep="last"` the last.
        curve: step, loss, and score where it was looked at.
        parameters: how many were trained; of a table of word embeddings, those of the words in use.
    """

    steps: int = 0
    loss: float = math.nan
    best: float | None = None
    best_step: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    parameters: int = 0


class Training:
    """One training, from its first to its last update.

    Args:
        objective: what is minimised.
        targets: the rows.
        settings: one pair of learning rate and batch size.
        seed: decides order and dropout.
        folder: where checkpoint and metrics are written; None: nowhere.
        score: the score on the development rows, higher is better.
        identity: what a checkpoint must have been made from to be gone on with.
        log: is given loss, learning rate and score of each step.
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
        log: Log | None = None,
    ) -> None:
        if not targets:
            raise UserError("There are no rows to train on.")
        self.objective, self.targets, self.settings = objective, list(targets), settings
        self.seed, self.folder, self.score = seed, folder, score
        self.report = report or Reporter()
        self.identity, self.log = identity, log
        self.parameters = objective.trained()
        self.lengths = [objective.length(t) for t in self.targets]
        device = next(iter(self.parameters.values())).device
        self.precision = Precision(
            settings.precision, device, {p.dtype for p in objective.parameters()}
        )
        half = sorted({str(p.dtype) for p in self.parameters.values() if p.itemsize < 4})
        if half:
            name = half[0].removeprefix("torch.")
            self.report.warn(
                f"Weights in {name} are trained, in which steps as small as a training's round away: it learns "
                "little or nothing. Load the model with --dtype float32 (--precision bfloat16 still computes "
                "in bfloat16), or use a method that adds to it, such as lora."
            )
        self.accelerator = processes.accelerator(device, unused=self._has_unused())
        self.state = Trained(parameters=sum(p.numel() for p in self.parameters.values()))
        self.best: dict[str, Tensor] | None = None
        self.bad_looks = 0
        self.half_made = True

    def run(self, label: str = "Training") -> Trained:
        """Train to the end, or from the checkpoint to the end; the weights to keep stay in place.

        Raises:
            PromptForgeError: the loss is not finite, or a checkpoint of another training.
        """
        settings, state = self.settings, self.state
        torch.manual_seed(self.seed)
        self.optimizer = self._optimizer()
        module, optimizer = self.accelerator.prepare(self.objective, self.optimizer)
        self._resume()
        for logged in self.state.curve:
            self._track(logged)
        last_save = began = time.monotonic()
        kept = max(1, settings.steps // 10)
        losses = [entry["loss"] for entry in state.curve][-kept:]
        module.train(settings.dropout)
        again = recomputing(self.objective, settings.checkpointing)
        with again, self.report.meter(label, settings.steps, "steps") as meter:
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

    def _has_unused(self) -> bool:
        if processes.count() == 1:
            return False  # nobody asks
        with self.precision.computing():
            loss = self.objective(self.targets[:1], 0).float().sum()
        return processes.has_unused(loss, list(self.parameters.values()))

    def _update(self, module: nn.Module, optimizer: Any) -> float:
        settings, accelerator = self.settings, self.accelerator
        step = self.state.steps
        if accelerator.num_processes > 1:
            # Draws of their own for dropout, the same ones again after a resume.
            draw = (self.seed * 1_000_003 + step) * accelerator.num_processes
            torch.manual_seed(draw + accelerator.process_index)
        rows = self.rows_at(step)
        share = settings.accumulate * accelerator.num_processes
        if len(rows) % share:
            raise UserError(
                f"batch_size {len(rows)} cannot be split over {accelerator.num_processes} processes "
                f"with accumulate={settings.accumulate}."
            )
        mine = rows[accelerator.process_index :: accelerator.num_processes]
        part = len(mine) // settings.accumulate
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate * group["share"] * rate_at(step, settings)
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for i in range(settings.accumulate):
            chosen = [self.targets[r] for r in mine[i * part : (i + 1) * part]]
            with self.precision.computing(), cheap_dropout(accelerator.device):
                loss = module(chosen, step).float().mean() / settings.accumulate
            total += float(loss.detach())
            accelerator.backward(loss)
        if accelerator.num_processes > 1:
            mean = torch.tensor(total, device=accelerator.device)
            total = float(accelerator.reduce(mean, "mean"))
        self._check_finite(total, "loss", step + 1)
        if settings.clip:
            for parameters in self.clipped():
                accelerator.clip_grad_norm_(parameters, settings.clip)
        optimizer.step()
        return total

    def rows_at(self, step: int) -> list[int]:
        """Which of the targets an update sees, counted from 0."""
        return batch_at(step, self.lengths, self.settings.rows, self.seed)

    def clipped(self) -> list[list[nn.Parameter]]:
        """The parameters whose gradients are clipped together."""
        return [list(self.parameters.values())]

    def _optimizer(self) -> torch.optim.Optimizer:
        plain, rates = self.objective.undecayed(), self.objective.rates()
        named: dict[tuple[float, float], list[str]] = {}
        for name, parameter in self.parameters.items():
            decay = 0.0 if parameter.ndim < 2 or name in plain else self.settings.weight_decay
            named.setdefault((decay, rates.get(name, 1.0)), []).append(name)
        self._names = [name for names in named.values() for name in names]
        groups = [
            {"params": [self.parameters[n] for n in names], "weight_decay": decay, "share": share}
            for (decay, share), names in named.items()
        ]
        return torch.optim.AdamW(groups, lr=self.settings.rate, fused=True)

    def _look(self) -> float:
        assert self.score is not None
        state = self.state
        self.objective.eval()
        with self.precision.computing():
            score = self.score()
        if self.accelerator.num_processes > 1:
            score = float(broadcast(torch.tensor(score, device=self.accelerator.device)))
        self._check_finite(score, "score on the development rows", state.steps)
        if self.settings.keep == "last":
            state.best, state.best_step = score, state.steps
        # The later of two equal looks has seen more rows.
        elif state.best is None or score >= state.best:
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
        asked = False

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
            self.half_made = True
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
        self._track(entry)
        if self.folder and self.accelerator.is_main_process:
            with (self.folder / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def _track(self, entry: dict[str, float]) -> None:
        if self.log:
            step = int(entry["step"])
            rate = self.settings.rate * rate_at(step - 1, self.settings)
            looked = {"dev/score": entry["score"]} if "score" in entry else {}
            self.log({"train/loss": entry["loss"], "train/learning_rate": rate, **looked}, step)

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
