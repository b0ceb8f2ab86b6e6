"""Zero-shot classification with OpenPrompt 1.0.1, timed as its user gets it.

Runs in the environment of requirements-openprompt.txt, not in PromptForge's own:

    python openprompt_zero_shot.py --model DIR --data test.csv \
        --template '{"placeholder":"text_a"} It was {"mask"} .' \
        --words '{"negative": ["terrible"], "positive": ["great"]}' --output out.json

Timed from rows in memory to predictions. Loading the model, the template and the verbalizer, and
one batch before the clock starts, are not counted.
"""

import argparse
import csv
import json
import platform
import shutil
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from openprompt import PromptDataLoader, PromptForClassification
from openprompt.data_utils import InputExample
from openprompt.plms import load_plm
from openprompt.prompts import ManualTemplate, ManualVerbalizer

SPECIAL = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def readable_copy(model: Path, target: Path) -> Path:
    """A copy of ``model`` whose tokenizer transformers 4.30.2 can load.

    transformers 5 saves tokenizer.json alone, while OpenPrompt asks for the slow BertTokenizer,
    which reads vocab.txt: that file is written from tokenizer.json, and tokenizer_config.json is
    reduced to what 4.30.2 knows. config.json and the safetensors weights load as they are.
    """
    if (model / "vocab.txt").exists():
        return model
    for path in [model / "config.json", *model.glob("*.safetensors*")]:
        shutil.copy(path, target / path.name)
    fast = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    ids: dict[str, int] = fast["model"]["vocab"]
    tokens = sorted(ids, key=ids.__getitem__)
    if fast["model"]["type"] != "WordPiece" or list(map(ids.get, tokens)) != [*range(len(tokens))]:
        raise SystemExit("only a WordPiece vocabulary without gaps can be copied")
    (target / "vocab.txt").write_text("".join(f"{t}\n" for t in tokens), encoding="utf-8")
    saved = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    normalizer = fast["normalizer"] or {}
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": normalizer.get("lowercase", True),
        "strip_accents": normalizer.get("strip_accents"),
        "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True),
        "model_max_length": saved.get("model_max_length", 512),
    }
    for name in SPECIAL:
        if name in saved:
            token = saved[name]
            config[name] = token["content"] if isinstance(token, dict) else token
    (target / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a BertForMaskedLM folder")
    parser.add_argument("--data", type=Path, required=True, help="CSV with text and label")
    parser.add_argument("--template", required=True, help="OpenPrompt template text")
    parser.add_argument("--words", required=True, help="JSON: label -> list of words")
    parser.add_argument("--max-seq-length", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, help="only the first rows")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    words: dict[str, list[str]] = json.loads(args.words)
    labels = list(words)
    with args.data.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[: args.limit]

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = readable_copy(args.model, Path(folder))
        plm, tokenizer, _, wrapper = load_plm("bert", str(path))
    template = ManualTemplate(tokenizer=tokenizer, text=args.template)
    verbalizer = ManualVerbalizer(tokenizer=tokenizer, classes=labels, label_words=words)
    model = PromptForClassification(plm=plm, template=template, verbalizer=verbalizer)
    model.eval()
    seconds = {"load": time.perf_counter() - started}

    def loader(texts: list[str]) -> PromptDataLoader:
        """Wrap and tokenise everything, as OpenPrompt's loader does when it is made."""
        return PromptDataLoader(
            dataset=[InputExample(guid=i, text_a=text) for i, text in enumerate(texts)],
            template=template,
            tokenizer=tokenizer,
            tokenizer_wrapper_class=wrapper,
            max_seq_length=args.max_seq_length,
            batch_size=args.batch_size,
        )

    texts = [row["text"] for row in rows]
    with torch.no_grad():
        for batch in loader(texts[: args.batch_size]):
            model(batch)

        started, cpu = time.perf_counter(), time.process_time()
        data = loader(texts)
        tokenised = time.perf_counter()
        probabilities: list[list[float]] = []
        for batch in data:
            probabilities += torch.softmax(model(batch), dim=-1).tolist()
        predictions = [labels[row.index(max(row))] for row in probabilities]
        ended, cpu = time.perf_counter(), time.process_time() - cpu

    seconds["tokenisation"] = tokenised - started
    seconds["inference"] = ended - tokenised
    seconds["end_to_end"] = ended - started
    parts = ("tokenisation", "inference", "end_to_end")
    gold = [row.get("label") for row in rows]
    result = {
        "peer": "openprompt",
        "rows": len(rows),
        "batch_size": args.batch_size,
        "max_seq_length": args.max_seq_length,
        "threads": args.threads,
        "template": args.template,
        "words": words,
        "labels": labels,
        "accuracy": sum(p == g for p, g in zip(predictions, gold, strict=True)) / len(rows),
        "seconds": seconds,
        # Well below ``threads`` means that other work held the cores: time it again.
        "cores_used": cpu / seconds["end_to_end"],
        "rows_per_second": {part: len(rows) / seconds[part] for part in parts},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("openprompt", "torch", "transformers", "numpy")},
        },
        "predictions": predictions,
        "probabilities": probabilities,
    }
    args.output.write_text(json.dumps(result), encoding="utf-8")
    shown = ("rows", "accuracy", "seconds", "cores_used", "rows_per_second", "versions")
    print(json.dumps({key: result[key] for key in shown}, indent=2))


if __name__ == "__main__":
    main()
