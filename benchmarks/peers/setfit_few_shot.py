"""SetFit 1.2 on drawn rows, tuned on development rows like every other row of the few-shot table.

Runs in the environment of requirements-setfit.txt, not in PromptForge's own:

    python setfit_few_shot.py job.json out.json

job.json has: model (folder of a sentence encoder), seed, settings (a list of arguments, each tried
and chosen between on dev), max_steps, device, and train, dev and test with texts and labels.
SetFit's own defaults otherwise: one epoch of oversampled pairs, cosine-similarity loss, and a
logistic regression on the tuned embeddings. The encoder is all-MiniLM's: mean of the last states,
scaled to length 1, at most 256 tokens.
"""

import json
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from datasets import Dataset
from sentence_transformers import SentenceTransformer, models
from setfit import SetFitModel, Trainer, TrainingArguments
from sklearn.linear_model import LogisticRegression


def encoder(folder: str, device: str) -> SentenceTransformer:
    body = models.Transformer(folder, max_seq_length=256)
    pooling = models.Pooling(body.get_word_embedding_dimension(), pooling_mode="mean")
    return SentenceTransformer(modules=[body, pooling, models.Normalize()], device=device)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    labels = list(dict.fromkeys(job["train"]["labels"]))
    train = Dataset.from_dict(
        {
            "text": job["train"]["texts"],
            "label": [labels.index(label) for label in job["train"]["labels"]],
        }
    )

    def accuracy(model: SetFitModel, split: str) -> tuple[float, list[str]]:
        found = model.predict_proba(job[split]["texts"], as_numpy=True)
        named = [labels[i] for i in found.argmax(1)]
        truth = job[split]["labels"]
        return sum(a == b for a, b in zip(named, truth, strict=True)) / len(truth), named

    tried = []
    best = None
    began = time.perf_counter()
    for options in job["settings"]:
        model = SetFitModel(
            model_body=encoder(job["model"], job["device"]), model_head=LogisticRegression()
        )
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                num_epochs=1,
                max_steps=job["max_steps"],
                seed=job["seed"],
                report_to="none",
                save_strategy="no",
                show_progress_bar=False,
                **options,
            )
            start = time.perf_counter()
            Trainer(model=model, args=arguments, train_dataset=train).train()
            seconds = time.perf_counter() - start
        dev, _ = accuracy(model, "dev")
        tried.append({**options, "dev": dev, "seconds": seconds})
        print(json.dumps(tried[-1]), flush=True)
        if best is None or dev > best[0]:
            best = (dev, model, options)
    seconds = time.perf_counter() - began
    assert best is not None
    test, predictions = accuracy(best[1], "test")
    result = {
        "accuracy": test,
        "dev": best[0],
        "seconds": seconds,
        "chosen": best[2],
        "tried": tried,
        "predictions": predictions,
        "versions": {
            "python": platform.python_version(),
            **{
                name: version(name)
                for name in ("setfit", "sentence-transformers", "torch", "transformers")
            },
        },
    }
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
