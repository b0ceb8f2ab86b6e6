"""Label-word searches on given logits: PETAL beside timoschick/pet, LM-BFF beside brute force.

    python benchmarks/label_search.py --pet CHECKOUT

CHECKOUT is a clone of github.com/timoschick/pet; without it only our side is timed. Both sides
get the same logits in one process and must return the same ranking.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from promptforge.plugins import build
from promptforge.search import Evidence

sys.path.insert(0, str(Path(__file__).parent))
from peers.pet_search import load_search_class, made_up, pet_rankings


def best_of(runs: int, function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the fastest run, and its result."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return min(times), result


def petal(pet: Path | None, rows: int, patterns: int, labels: int, words: int, runs: int) -> None:
    """Time and compare the ten best words of each label."""
    logits, row_labels, names, vocabulary = made_up(rows, patterns, words, labels, seed=0)
    search = build("search", "petal", words_per_label=10, candidates=1000)
    targets = torch.tensor([names.index(label) for label in row_labels])

    def ours() -> dict[str, list[str]]:
        tensors = [torch.from_numpy(array) for array in logits]
        found = search.search(Evidence.of_logits(tensors, targets, names, vocabulary))
        return {label: [w for w, _ in best] for label, best in found.words.items()}

    seconds, mine = best_of(20, ours)
    line = f"PETAL {rows} rows x {patterns} patterns x {words} words x {labels} labels: {seconds:.3f} s"
    if pet is not None:
        class_ = load_search_class(pet)
        theirs, ranking = best_of(
            runs, lambda: pet_rankings(class_, logits, row_labels, names, vocabulary)
        )
        same = "the same ranking" if ranking == mine else "ANOTHER RANKING"
        line += f"; timoschick/pet {theirs:.2f} s, {theirs / seconds:.0f}x; {same}"
    print(line)


def lm_bff(rows: int, labels: int, words: int, top: int) -> None:
    """Time the search; compare with brute force for two labels."""
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.standard_normal((rows, words)) * 2)
    targets = torch.arange(rows) % labels
    for label in range(labels):  # some words mean something, so that there is a best answer
        logits[targets == label, label * 50 : label * 50 + 50] += 1.5
    names = [f"label{i}" for i in range(labels)]
    vocabulary = [f"w{i}" for i in range(words)]
    search = build("search", "lm-bff", top=top)
    seconds, found = best_of(
        1, lambda: search.search(Evidence.of_logits([logits], targets, names, vocabulary))
    )
    best, accuracy = found.alternatives[0]
    line = f"LM-BFF {labels} labels, top {top}, {rows} rows: {seconds:.2f} s, training accuracy {accuracy:.3f}"
    if labels == 2:
        brute = brute_force(torch.log_softmax(logits, -1), targets, top)
        mine = tuple(vocabulary.index(best[name][0]) for name in names)
        line += (
            "; equal to brute force"
            if brute == mine
            else f"; BRUTE FORCE FINDS {brute}, not {mine}"
        )
    print(line)


def brute_force(log_probs: torch.Tensor, targets: torch.Tensor, top: int) -> tuple[int, ...]:
    """The best pair under the rule: accuracy, mean margin, vocabulary order."""
    pools = []
    for label in (0, 1):
        sums = log_probs[targets == label].sum(0)
        pools.append(sorted(torch.sort(sums, descending=True, stable=True).indices[:top].tolist()))
    scored = []
    for pair in itertools.product(*pools):
        if pair[0] == pair[1]:
            continue
        difference = log_probs[:, pair[0]] - log_probs[:, pair[1]]
        margin = torch.where(targets == 0, difference, -difference)
        scored.append((-float((margin > 0).double().mean()), -float(margin.mean()), pair))
    return min(scored)[2]


def main() -> None:
    """Run the sizes of the project's goals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pet", type=Path, help="a checkout of timoschick/pet")
    args = parser.parse_args()
    torch.set_num_threads(2)
    petal(args.pet, rows=50, patterns=1, labels=2, words=10_000, runs=3)
    petal(args.pet, rows=1000, patterns=5, labels=6, words=10_000, runs=1)
    lm_bff(rows=32, labels=2, words=5000, top=100)
    lm_bff(rows=96, labels=6, words=5000, top=100)


if __name__ == "__main__":
    main()
