"""PETAL's label-word search (Schick et al., 2020), run from a checkout of its own code.

Runs in PromptForge's environment:

    git clone https://github.com/timoschick/pet     # the checkout
    python pet_search.py --pet pet --rows 50 --words 10000 --labels 2

petal.py itself imports modules that need an old transformers, so only its class
``AutomaticVerbalizerSearch``, which needs none of them, is compiled from the file.
"""

import argparse
import ast
import json
import platform
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

CLASS = "AutomaticVerbalizerSearch"


def load_search_class(pet: Path) -> type[Any]:
    """The class from ``petal.py`` in the checkout ``pet``."""
    path = pet / "petal.py"
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    body: list[ast.stmt] = [
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == CLASS
    ]
    if len(body) != 1:
        raise ValueError(f"{path} has no class {CLASS}")
    names: dict[str, Any] = {
        "__name__": "petal", "np": np, "Counter": Counter, "random": random,
        "Dict": dict, "List": list,
    }  # fmt: skip
    exec(compile(ast.Module(body=body, type_ignores=[]), str(path), "exec"), names)
    found: type[Any] = names[CLASS]
    return found


def pet_rankings(
    class_: type[Any],
    logits_list: Sequence[np.ndarray],
    row_labels: Sequence[str],
    labels: Sequence[str],
    words: Sequence[str],
    num_candidates: int = 1000,
    words_per_label: int = 10,
    score: str = "llr",
    *,
    normalize: bool = True,
    word_ids: Sequence[int] | None = None,
) -> dict[str, list[str]]:
    """The best words of each label, best first; one array ``[rows, columns]`` per pattern.

    Word ``i`` is column ``i``, or column ``word_ids[i]``. The class normalises over all columns,
    also those of no word, so give whole-vocabulary logits to match petal.py itself. ``score`` is
    "llr" or "ce"; ``num_candidates`` of 0 scores every word.
    """
    columns = range(len(words)) if word_ids is None else word_ids
    # petal.py shifts each row before it hands the logits over: the class takes their plain exp.
    shifted = [logits - logits.max(axis=1, keepdims=True) for logits in logits_list]
    gold = np.asarray(row_labels)
    expected = {label: (gold == label).astype(np.int64) for label in labels}
    search = class_(dict(zip(words, columns, strict=True)), list(labels), shifted, expected)
    found: dict[str, list[str]] = search.find_verbalizer(
        words_per_label=words_per_label,
        num_candidates=num_candidates,
        normalize=normalize,
        score_fct=score,
    )
    return found


def made_up(
    rows: int, patterns: int, words: int, labels: int, seed: int
) -> tuple[list[np.ndarray], list[str], list[str], list[str]]:
    """Random logits, the rows' labels, the labels and the words."""
    rng = np.random.default_rng(seed)
    logits = [rng.standard_normal((rows, words), dtype=np.float32) * 3 for _ in range(patterns)]
    names = [f"label{i}" for i in range(labels)]
    return logits, [names[i % labels] for i in range(rows)], names, [f"w{i}" for i in range(words)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pet", type=Path, required=True, help="a checkout of timoschick/pet")
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--patterns", type=int, default=1)
    parser.add_argument("--words", type=int, default=10_000)
    parser.add_argument("--labels", type=int, default=2)
    parser.add_argument("--num-candidates", type=int, default=1000)
    parser.add_argument("--words-per-label", type=int, default=10)
    parser.add_argument("--score", choices=("llr", "ce"), default="llr")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeat", type=int, default=1, help="the fastest of so many runs counts")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    class_ = load_search_class(args.pet)
    data = made_up(args.rows, args.patterns, args.words, args.labels, args.seed)
    times: list[float] = []
    cpu: list[float] = []
    for _ in range(args.repeat):
        started, used = time.perf_counter(), time.process_time()
        rankings = pet_rankings(
            class_, *data, args.num_candidates, args.words_per_label, args.score
        )
        times.append(time.perf_counter() - started)
        cpu.append(time.process_time() - used)
    result = {
        "peer": "petal",
        **{name: getattr(args, name) for name in ("rows", "patterns", "words", "labels")},
        "num_candidates": args.num_candidates,
        "score": args.score,
        "seed": args.seed,
        "seconds": min(times),
        "cpu_seconds": min(cpu),  # far below ``seconds``: other work held the core
        "all_seconds": times,
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "rankings": rankings,
    }
    if args.output:
        args.output.write_text(json.dumps(result), encoding="utf-8")
    print(json.dumps({k: v for k, v in result.items() if k != "rankings"}, indent=2))


if __name__ == "__main__":
    main()
