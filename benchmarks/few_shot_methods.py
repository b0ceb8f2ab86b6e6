"""The rows of the table of tuning methods: what is trained, in place of all weights.

Used by few_shot.py (--table methods). Every row is prompt-based tuning of one pattern; each method
tries a third of, once and three times the learning rate that it recommends.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from few_shot_draw import Draw
from few_shot_rows import Bench, TableRow, figures

from promptforge import artifact
from promptforge.plugins import build

_USES = ("shots", "steps", "patience", "batch_sizes", "precision")


def tuned(bench: Bench, draw: Draw, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """One method, with what it weighs and how well it fits its own training rows."""
    method = build("method", name, **options)
    rates = [method.learning_rate / 3, method.learning_rate, method.learning_rate * 3]
    made, classifier = bench.trained(build("strategy", "prompt"), draw, method=method, rates=rates)
    on_train = next(iter(figures(classifier, draw.train).values())).accuracy
    with tempfile.TemporaryDirectory() as folder:
        artifact.save(classifier, Path(folder) / "artifact")
        files = list((Path(folder) / "artifact").rglob("*.safetensors"))
        size = sum(f.stat().st_size for f in files)
    weights = classifier.weights
    count = sum(t.numel() for t in weights.flat().values())
    if weights.added is not None:
        count += sum(t.numel() for t in weights.added.tensors().values())
    return {**made, "gap": on_train - made["accuracy"], "bytes": size, "kept": count}


def _row(title: str, name: str, **options: Any) -> TableRow:
    return TableRow(title, lambda bench, draw: tuned(bench, draw, name, options), _USES)


METHODS: dict[str, TableRow] = {
    "all": _row("all weights", "all"),
    "bitfit": _row("bitfit", "bitfit"),
    "prompt-random": _row("prompt tuning, random words", "prompt-tuning"),
    "prompt-text": _row(
        "prompt tuning, a text", "prompt-tuning", init="text", text="Is this good or bad?"
    ),
    "prompt-labels": _row("prompt tuning, label words", "prompt-tuning", init="labels"),
    "p-tuning": _row("P-tuning, model frozen", "p-tuning"),
    "p-tuning-all": _row("P-tuning, model trained", "p-tuning", model="all"),
    "prefix": _row("prefix tuning", "prefix"),
    "houlsby": _row("adapter (Houlsby)", "houlsby"),
    "pfeiffer": _row("adapter (Pfeiffer)", "pfeiffer"),
    "parallel": _row("adapter (parallel)", "parallel"),
    "lora-attention": _row("LoRA, attention", "lora", targets="attention"),
    "lora-feed-forward": _row("LoRA, feed-forward", "lora", targets="feed-forward"),
    "lora-all": _row("LoRA, all matrices", "lora", targets="all"),
    "ia3": _row("(IA)^3", "ia3"),
    "mam": _row("MAM", "mam"),
}
