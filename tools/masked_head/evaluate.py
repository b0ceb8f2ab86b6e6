"""What a head can do: hidden tokens of held-out text, and classification with the shipped tasks."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from corpus import CLS, MASK, SEP, UNK, Masker, held_out, prepare
from promptforge_local_models.files import save_tensors
from promptforge_local_models.minilm import merged
from safetensors.numpy import load_file
from student import gather
from tokenizers import Tokenizer

from promptforge import PromptModel, Task, load_model
from promptforge.backbone import Backbone
from promptforge.data import Example, sample_shots
from promptforge.progress import TerminalReporter

#: task -> folder of its tables
TASKS = {"sentiment": "sst2", "news-topics": "agnews", "question-type": "trec"}
SEEDS = (13, 21, 42, 87, 100)


def evaluate(
    head: Path, base: Path, corpora: Path, work: Path, data: Path, device: str,
    output: Path | None, shots: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Every figure of the model card, printed and written as JSON to ``output``."""
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    prepare(corpora, tokenizer, work)
    out: dict[str, Any] = {"masked tokens": {}, "zero-shot": {}, "16 rows a label": {}}
    with tempfile.TemporaryDirectory() as folder:
        model = build(head, base, Path(folder))
        backbone = load_model(str(model), device=device, report=TerminalReporter())
        for kind in ("encyclopedia", "reviews"):
            out["masked tokens"][kind] = masked_tokens(
                backbone, held_out(work, tokenizer, kind), tokenizer
            )
            print(kind, out["masked tokens"][kind], flush=True)
        encoder = sentence_encoder(base, device)
        for name, table in TASKS.items():
            task = Task.load(name)
            test = task.examples(data / table / "test.csv")
            figures = {
                pattern: round(100 * found.accuracy, 1)
                for pattern, found in PromptModel(backbone, task).evaluate(test).items()
            }
            alone = [figures[pattern] for pattern in task.patterns]
            out["zero-shot"][table] = {
                "mean over patterns": round(float(np.mean(alone)), 1), "best": max(alone), **figures,
            }  # fmt: skip
            print(table, out["zero-shot"][table], flush=True)
            if shots:
                train = task.examples(data / table / "train.csv")
                out["16 rows a label"][table] = logistic_regression(encoder, task, train, test)
                print(table, out["16 rows a label"][table], flush=True)
    if output:
        output.write_text(json.dumps(out, indent=2) + "\n")
    return out


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


def logistic_regression(
    encode: Any, task: Task, train: list[Example], test: list[Example]
) -> dict[str, float]:
    """The baseline: C = 10 on the embeddings of 16 rows a label, mean and deviation over seeds."""
    from sklearn.linear_model import LogisticRegression

    def texts(examples: list[Example]) -> list[str]:
        return [" ".join(str(e.row[c]) for c in task.inputs) for e in examples]

    embedded, truth = encode(texts(test)), [e.label for e in test]
    scores = []
    for seed in SEEDS:
        rows, _ = sample_shots(train, 16, seed, list(task.labels))
        model = LogisticRegression(C=10, max_iter=1000).fit(
            encode(texts(rows)), [e.label for e in rows]
        )
        scores.append(100 * model.score(embedded, truth))
    return {
        "logistic regression, mean": round(float(np.mean(scores)), 1),
        "logistic regression, deviation": round(float(np.std(scores)), 1),
    }
