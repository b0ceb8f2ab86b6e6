"""What a head can do: hidden tokens of held-out text, and classification with the shipped tasks."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from corpus import CLS, MASK, SEP, UNK, Masker, sequences_of
from promptforge_local_models.files import save_tensors
from promptforge_local_models.minilm import merged
from safetensors.numpy import load_file
from student import gather
from tokenizers import Tokenizer

from promptforge import PromptModel, Settings, Task, load_model, sample_shots, train
from promptforge.backbone import Backbone
from promptforge.data import Example

#: task -> folder of its tables
TASKS = {"sentiment": "sst2", "news-topics": "agnews", "question-type": "trec"}


def evaluate(
    head: Path, base: Path, data: Path, texts: dict[str, str], device: str, seeds: list[int],
    output: Path | None,
) -> dict[str, Any]:  # fmt: skip
    """Every figure of the model card, printed and written as JSON to ``output``."""
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    out: dict[str, Any] = {"masked tokens": {}, "zero-shot": {}, "16 rows a label": {}}

    def keep(kind: str, name: str, found: dict[str, Any]) -> None:
        out[kind][name] = found
        print(f"{kind}, {name}: {found}", flush=True)
        if output:
            output.write_text(json.dumps(out, indent=2) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        model = build(head, base, Path(folder))
        backbone = load_model(str(model), device=device)
        for kind, path in texts.items():
            sequences = sequences_of(Path(path), tokenizer)
            keep("masked tokens", kind, masked_tokens(backbone, sequences, tokenizer))
        encoder = sentence_encoder(base, device)
        for name, table in TASKS.items():
            task = Task.load(name)
            test = task.examples(data / table / "test.csv")
            keep("zero-shot", table, zero_shot(PromptModel(backbone, task), test))
            rows = task.examples(data / table / "train.csv")
            if seeds:
                tuned = few_shot(backbone, encoder, task, rows, test, seeds)
                keep("16 rows a label", table, tuned)
    return out


def zero_shot(model: PromptModel, test: list[Example]) -> dict[str, Any]:
    """Accuracy of each pattern, as it is and after batch calibration on the test rows.

    Batch calibration (Zhou et al. 2023) divides by the mean probability of each label over the
    rows, whose labels it does not see.
    """
    truth = np.array([model.labels.index(e.label) for e in test])
    out: dict[str, Any] = {}
    for pattern, found in model.part_probabilities([e.row for e in test]).items():
        plain, fair = (100 * (p.argmax(1) == truth).mean() for p in (found, found / found.mean(0)))
        out[pattern] = {"plain": round(float(plain), 1), "calibrated": round(float(fair), 1)}
    for how in ("plain", "calibrated"):
        each = [figures[how] for figures in out.values() if isinstance(figures, dict)]
        out |= {f"mean, {how}": round(float(np.mean(each)), 1), f"best, {how}": max(each)}
    return out


def few_shot(
    backbone: Backbone, encode: Any, task: Task, rows: list[Example], test: list[Example],
    seeds: list[int],
) -> dict[str, Any]:  # fmt: skip
    """Accuracy of the task's first pattern tuned on 16 rows a label, on a fixed test sample.

    150 steps at batch 8, the best look on 16 further rows a label kept; beside a logistic
    regression (C = 10) on the encoder's mean-pooled sentence embeddings of the same 16 rows.
    """
    from sklearn.linear_model import LogisticRegression

    def texts(examples: list[Example]) -> list[str]:
        return [" ".join(str(e.row[c]) for c in task.inputs) for e in examples]

    sample = random.Random(0).sample(test, min(500, len(test)))
    embedded, truth = encode(texts(test)), [e.label for e in test]
    scores: dict[str, list[float]] = {"prompt-based tuning": [], "logistic regression": []}
    pattern = next(iter(task.patterns))
    for seed in seeds:
        run = train(
            task.choose([pattern]), rows, backbone=backbone, shots=16, seed=seed, test=sample,
            settings=Settings(steps=150, eval_every=30), compare_untrained=False,
        )  # fmt: skip
        scores["prompt-based tuning"].append(100 * run.figures("test").accuracy)
        shots, _ = sample_shots(rows, 16, seed, list(task.labels))
        plain = LogisticRegression(C=10, max_iter=1000)
        plain.fit(encode(texts(shots)), [e.label for e in shots])
        scores["logistic regression"].append(100 * plain.score(embedded, truth))
    return {
        "pattern": pattern, "seeds": seeds, "measured on rows": len(sample),
        **{f"{who}, mean": round(float(np.mean(s)), 1) for who, s in scores.items()},
        **{f"{who}, deviation": round(float(np.std(s)), 1) for who, s in scores.items()},
    }  # fmt: skip


def build(head: Path, base: Path, folder: Path) -> Path:
    """The merged model as `promptforge models fetch` would make it."""
    target = folder / "model"
    shutil.copytree(locate_merged(), target)
    save_tensors(
        merged(load_file(base / "model.safetensors"), load_file(head)), target / "model.safetensors"
    )
    return target


def locate_merged() -> str:
    """The folder of the model that ships now: its config and tokenizer serve every head."""
    from promptforge.models import locate

    return locate("minilm-mlm")


@torch.inference_mode()
def masked_tokens(
    backbone: Backbone, sequences: np.ndarray, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Accuracy and loss of hidden tokens: 15 % chosen, 80/10/10, seed 0, plain transformers."""
    special = {name: tokenizer.token_to_id(name) for name in (CLS, SEP, MASK, UNK)}
    masker = Masker(0.15, special, np.ones(tokenizer.get_vocab_size()))
    hidden = masker.hide(sequences, np.random.default_rng(0))
    right = total = 0
    loss = 0.0
    for ids, positions, targets in zip(
        *(torch.from_numpy(x).split(20) for x in hidden), strict=True
    ):
        model = backbone.model
        states = model.bert(input_ids=ids.to(model.device)).last_hidden_state
        scores = model.cls(gather(states, positions.to(model.device))).float().flatten(0, 1)
        true = targets.to(model.device).flatten()
        loss += float(F.cross_entropy(scores, true, reduction="sum"))
        right += int((scores.argmax(-1) == true).sum())
        total += int((true >= 0).sum())
    return {"tokens": total, "accuracy": round(right / total, 4), "loss": round(loss / total, 4)}


def sentence_encoder(base: Path, device: str):
    """Texts to mean-pooled, normalised embeddings of the encoder without a head."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModel.from_pretrained(base)
    model = model.to(device).eval()

    @torch.inference_mode()
    def encode(texts: list[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
        for start in range(0, len(order), 64):
            chosen = order[start : start + 64]
            batch = tokenizer(
                [texts[i] for i in chosen],
                padding=True,
                truncation=True,
                max_length=256,
                return_tensors="pt",
            ).to(device)
            states = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            out[chosen] = F.normalize((states * mask).sum(1) / mask.sum(1)).cpu().numpy()
        return out

    return encode
