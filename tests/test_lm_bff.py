"""LM-BFF's search equals brute force under its stated rule, and ends where brute force cannot."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from promptforge.errors import UserError
from promptforge.plugins import build
from promptforge.search import Evidence, FoundWords


def search(logits: list[Tensor], targets: Tensor, labels: int, **options: int) -> FoundWords:
    words = [f"w{i}" for i in range(logits[0].shape[1])]
    evidence = Evidence.of_logits(logits, targets, list("abcdef"[:labels]), words)
    found: FoundWords = build("search", "lm-bff", **options).search(evidence)
    return found


def quality(
    log_p: list[list[float]], targets: list[int], words: tuple[int, ...]
) -> tuple[int, int]:
    """Rows whose own word is ahead of all others, and the mean margin in steps of 1e-9."""
    hits, margin = 0, 0.0
    for row, target in zip(log_p, targets, strict=True):
        own = row[words[target]]
        other = max(row[w] for label, w in enumerate(words) if label != target)
        hits += own > other
        margin += own - other
    return hits, round(margin / len(targets) * 1e9)


def brute_force(
    log_p: list[list[float]], targets: list[int], labels: int, top: int
) -> list[tuple[int, ...]]:
    """Every assignment of distinct words: by accuracy, then margin, then vocabulary order."""
    pools = []
    for label in range(labels):
        sums = [
            sum(row[w] for row, t in zip(log_p, targets, strict=True) if t == label)
            for w in range(len(log_p[0]))
        ]
        pools.append(sorted(range(len(sums)), key=lambda w: (-sums[w], w))[:top])
    every = [a for a in itertools.product(*pools) if len(set(a)) == labels]
    scored = {a: quality(log_p, targets, a) for a in every}
    return sorted(every, key=lambda a: (-scored[a][0], -scored[a][1], a))


def ranked(found: FoundWords) -> list[tuple[int, ...]]:
    return [tuple(int(ws[0][1:]) for ws in words.values()) for words, _ in found.alternatives]


@pytest.mark.parametrize(
    ("labels", "words", "top"),
    [(2, 150, 20), (2, 120, 60), (2, 100, 100), (3, 40, 8), (4, 20, 5), (4, 6, 100), (2, 20, 100)],
)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tied", [False, True])
def test_equals_brute_force(labels: int, words: int, top: int, seed: int, tied: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    rows = 16 if labels != 3 else 24
    targets = torch.arange(rows)[torch.randperm(rows, generator=draw)] % labels
    logits = torch.randn(rows, words, generator=draw).double()
    if tied:  # few values, so that many assignments are equally good
        logits = (logits * 2).round() / 2
        top = max(top, words) if words**labels < 20_000 else top
    log_p = logits.log_softmax(-1)
    if tied and top < words:
        log_p = logits = logits.float().double().log_softmax(-1)
    found = search([logits], targets, labels, top=top, assignments=50)
    expected = brute_force(log_p.tolist(), targets.tolist(), labels, top)[:50]
    if tied and top < words:  # which equal word enters a pool is free: the qualities are not

        def qualities(a: list[tuple[int, ...]]) -> list[tuple[int, int]]:
            return [quality(log_p.tolist(), targets.tolist(), x) for x in a]

        assert qualities(ranked(found))[0][0] == qualities(expected)[0][0]
        return
    assert ranked(found) == expected
    accuracies = [quality(log_p.tolist(), targets.tolist(), a)[0] / rows for a in expected]
    assert [s for _, s in found.alternatives] == pytest.approx(accuracies)
    best = {
        label: [(f"w{w}", pytest.approx(accuracies[0]))]
        for label, w in zip("abcd", expected[0], strict=False)
    }
    assert found.words == best


@pytest.mark.parametrize("labels, words, top", [(2, 40, 20), (3, 40, 8), (4, 20, 5), (4, 6, 100)])
@pytest.mark.parametrize("seed", range(3))
def test_a_beam_that_keeps_all_equals_brute_force(
    labels: int, words: int, top: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words are added and exchanged one by one, and judged as whole assignments are."""
    monkeypatch.setattr("promptforge_verbalizers.lm_bff._EXHAUSTIVE", 0)
    draw = torch.Generator().manual_seed(seed)
    targets = torch.randperm(24, generator=draw) % labels
    logits = torch.randn(24, words, generator=draw).double()
    expected = brute_force(logits.log_softmax(-1).tolist(), targets.tolist(), labels, top)[:50]
    found = search([logits], targets, labels, top=top, assignments=50, beam=top**labels)
    assert ranked(found) == expected
    # What a narrow beam lost is found again by exchanges.
    narrow = search([logits], targets, labels, top=top, assignments=50, beam=1)
    assert ranked(narrow)[0] == expected[0]


def test_patterns_are_summed() -> None:
    draw = torch.Generator().manual_seed(5)
    two = [torch.randn(12, 15, generator=draw).double() for _ in range(2)]
    targets = torch.arange(12) % 3
    found = search(two, targets, 3, top=15, assignments=20)
    log_p = (two[0].log_softmax(-1) + two[1].log_softmax(-1)).tolist()
    assert ranked(found) == brute_force(log_p, targets.tolist(), 3, 15)[:20]


def test_a_word_that_is_best_for_two_labels_is_given_to_one() -> None:
    logits = torch.zeros(8, 5).double()
    logits[:, 2] = 5.0
    logits[4:, 3] = 1.0
    found = search([logits], torch.tensor([0] * 4 + [1] * 4), 2, top=5)
    for words, _ in found.alternatives:
        assert len({w for ws in words.values() for w in ws}) == 2


def test_six_labels_of_a_hundred_words_in_seconds() -> None:
    draw = torch.Generator().manual_seed(0)
    targets = torch.arange(96) % 6
    logits = torch.randn(96, 400, generator=draw).double()
    for label in range(6):  # words that help a little
        logits[targets == label, label * 20 : label * 20 + 20] += 1.0
    found = search([logits], targets, 6, top=100)
    best = ranked(found)
    assert len(best) == 100 and all(len(set(a)) == 6 for a in best)
    log_p = logits.log_softmax(-1)
    scored = [quality(log_p.tolist(), targets.tolist(), a) for a in best]
    assert scored == sorted(scored, reverse=True)
    assert scored[0][0] / 96 == pytest.approx(found.words["a"][0][1])

    greedy: list[int] = []
    for label in range(6):
        rows = (targets <= label).nonzero()[:, 0]
        some, own = log_p[rows].tolist(), targets[rows].tolist()
        sums = log_p[targets == label].sum(0)
        pool = [w for w in sums.topk(100).indices.tolist() if w not in greedy]
        if label == 0:
            greedy.append(pool[0])
        else:
            greedy.append(max(pool, key=lambda w: quality(some, own, (*greedy, w))))
    assert scored[0][0] >= quality(log_p.tolist(), targets.tolist(), tuple(greedy))[0]


def test_fewer_words_than_labels() -> None:
    with pytest.raises(UserError, match="words"):
        search([torch.zeros(4, 1).double()], torch.tensor([0, 1, 0, 1]), 2)
