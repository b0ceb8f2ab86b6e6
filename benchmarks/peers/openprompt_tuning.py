"""Prompt-based tuning with OpenPrompt 1.0.1, timed as its user gets it: tuning, and the test.

Runs in the environment of requirements-openprompt.txt, not in PromptForge's own:

    python openprompt_tuning.py job.json out.json

job.json has: model (a BertForMaskedLM folder), train and test (lists of text and label), template,
words (label -> words), steps, batch_size, learning_rate, warmup (steps), weight_decay,
clip, max_seq_length, test_batch_size, seed, threads, and rounds (how many runs; each starts from the
model's own weights).

The loop is that of OpenPrompt's own tutorials: PromptDataLoader, cross-entropy over the
verbalizer's scores, AdamW without decay for biases and norms, a linear schedule with warm-up.
Timed: tuning (its loader, which tokenises, included), and the test from rows to predictions.
Loading the model and one step before the clock starts are not counted.
"""

import copy
import json
import platform
import resource
import sys
import tempfile
import time
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import torch
from openprompt import PromptDataLoader, PromptForClassification
from openprompt.data_utils import InputExample
from openprompt.plms import load_plm
from openprompt.prompts import ManualTemplate, ManualVerbalizer
from openprompt_zero_shot import readable_copy
from transformers import get_linear_schedule_with_warmup


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    words: dict[str, list[str]] = job["words"]
    labels = list(words)
    with tempfile.TemporaryDirectory() as folder:
        path = readable_copy(Path(job["model"]), Path(folder))
        plm, tokenizer, _, wrapper = load_plm("bert", str(path))
    template = ManualTemplate(tokenizer=tokenizer, text=job["template"])
    verbalizer = ManualVerbalizer(tokenizer=tokenizer, classes=labels, label_words=words)
    model = PromptForClassification(plm=plm, template=template, verbalizer=verbalizer)
    start = copy.deepcopy(model.state_dict())

    def loader(rows: list[dict[str, str]], size: int, shuffle: bool) -> PromptDataLoader:
        return PromptDataLoader(
            dataset=[
                InputExample(guid=i, text_a=row["text"], label=labels.index(row["label"]))
                for i, row in enumerate(rows)
            ],
            template=template,
            tokenizer=tokenizer,
            tokenizer_wrapper_class=wrapper,
            max_seq_length=job["max_seq_length"],
            batch_size=size,
            shuffle=shuffle,
        )

    def tune(steps: int) -> float:
        torch.manual_seed(job["seed"])
        model.load_state_dict(start)
        model.train()
        decayed = ("bias", "LayerNorm.weight")
        named = list(model.named_parameters())
        groups = [
            {
                "params": [p for n, p in named if not any(part in n for part in decayed)],
                "weight_decay": job["weight_decay"],
            },
            {
                "params": [p for n, p in named if any(part in n for part in decayed)],
                "weight_decay": 0.0,
            },
        ]
        optimizer = torch.optim.AdamW(groups, lr=job["learning_rate"])
        schedule = get_linear_schedule_with_warmup(optimizer, job["warmup"], job["steps"])
        criterion = torch.nn.CrossEntropyLoss()
        data = loader(job["train"], job["batch_size"], True)

        def batches():
            while True:  # shuffled anew in every epoch
                yield from data

        loss = torch.zeros(())
        for batch in islice(batches(), steps):
            loss = criterion(model(batch), batch["label"])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), job["clip"])
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        return loss.item()

    def test() -> list[str]:
        model.eval()
        found: list[str] = []
        with torch.no_grad():
            for batch in loader(job["test"], job["test_batch_size"], False):
                found += [labels[i] for i in model(batch).argmax(-1).tolist()]
        return found

    tune(1)
    rounds = []
    for _ in range(job["rounds"]):
        began, cpu = time.perf_counter(), time.process_time()
        loss = tune(job["steps"])
        tuned = time.perf_counter()
        predictions = test()
        ended, cpu = time.perf_counter(), time.process_time() - cpu
        truth = [row["label"] for row in job["test"]]
        right = sum(a == b for a, b in zip(predictions, truth, strict=True))
        rounds.append(
            {
                "tuning_seconds": tuned - began,
                "test_seconds": ended - tuned,
                "whole_seconds": ended - began,
                "steps_per_second": job["steps"] / (tuned - began),
                # Well below ``threads`` means that other work held the cores: time it again.
                "cores_used": cpu / (ended - began),
                "last_loss": loss,
                "accuracy": right / len(truth),
            }
        )
        print(json.dumps(rounds[-1]), flush=True)
    result = {
        "rounds": rounds,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("openprompt", "torch", "transformers")},
        },
    }
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
