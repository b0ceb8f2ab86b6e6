"""PETAL equals a plain loop; candidates are whole words; a search holds little and says what lacks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from promptforge.candidates import most_frequent, whole_words
from promptforge.data import Example
from promptforge.errors import UserError
from promptforge.model import PromptModel
from promptforge.plugins import build
from promptforge.search import Evidence, FoundWords, VerbalizerSearch, search_verbalizer
from promptforge.task import Task
from promptforge.template import Template
from promptforge.verbalizer import LabelWords
from tests import reference, tiny

each = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
STEP = torch.finfo(torch.float64).eps


def petal(
    log_p: Sequence[Sequence[Sequence[float]]], targets: Sequence[int], label: int, *,
    score: str, balanced: bool, candidates: int, k: int,
) -> list[tuple[int, float]]:  # fmt: skip
    """The k best words of a label and their scores: the formula, word by word and row by row."""
    positive = sum(t == label for t in targets)
    weight = (len(targets) - positive) / positive if balanced else 1.0
    words = range(len(log_p[0][0]))
    scores, likelihood = [], []
    for w in words:
        total = mine = 0.0
        for pattern in log_p:
            for row, target in zip(pattern, targets, strict=True):
                p = min(row[w], -STEP)  # p is kept below 1 by one float step
                q = math.log(-math.expm1(p))
                if target == label:
                    mine += row[w]
                    total += weight * (row[w] if score == "ce" else row[w] - q)
                else:
                    total += q if score == "ce" else q - row[w]
        scores.append(total)
        likelihood.append(mine)
    kept = sorted(words, key=lambda w: (-likelihood[w], w))[: candidates or None]
    best = sorted(kept, key=lambda w: (-scores[w], w))[:k]
    return [(w, scores[w]) for w in best]


def check(
    logits: list[torch.Tensor], targets: list[int], labels: int, rel: float = 1e-9, **options: Any
) -> None:
    names = [f"w{i}" for i in range(logits[0].shape[1])]
    evidence = Evidence.of_logits(logits, torch.tensor(targets), list("abcdef"[:labels]), names)
    found = build("search", "petal", **options).search(evidence)
    log_p = [t.log_softmax(-1).tolist() for t in logits]
    for i, label in enumerate("abcdef"[:labels]):
        expected = petal(
            log_p, targets, i,
            score=options.get("score", "llr"), balanced=options.get("balanced", True),
            candidates=options.get("candidates", 1000), k=options.get("words_per_label", 10),
        )  # fmt: skip
        assert [w for w, _ in found.words[label]] == [names[w] for w, _ in expected]
        assert [s for _, s in found.words[label]] == pytest.approx(
            [s for _, s in expected], rel=rel, abs=1e-9
        )


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    labels=st.integers(2, 4),
    patterns=st.integers(1, 3),
    candidates=st.sampled_from([0, 5, 20, 1000]),
    balanced=st.booleans(),
    score=st.sampled_from(["llr", "ce"]),
    spread=st.sampled_from([1.0, 10.0]),
)
def test_petal_is_its_formula(
    seed: int,
    labels: int,
    patterns: int,
    candidates: int,
    balanced: bool,
    score: str,
    spread: float,
) -> None:
    draw = torch.Generator().manual_seed(seed)
    rows = int(torch.randint(labels, 20, (), generator=draw))
    targets = [*range(labels), *torch.randint(labels, (rows - labels,), generator=draw).tolist()]
    logits = [torch.randn(rows, 60, generator=draw).double() * spread for _ in range(patterns)]
    check(
        logits, targets, labels,
        candidates=candidates, balanced=balanced, score=score, words_per_label=7,
    )  # fmt: skip


@pytest.mark.parametrize(
    # log p is known to a float step of the logit (1e-15 at 10), and log(1-p) to that over 1-p.
    ("gap", "rel"),
    [(10.0, 1e-9), (20.0, 1e-6), (35.0, 1e-2), (100.0, 1e-9), (700.0, 1e-9)],
)
@pytest.mark.parametrize("targets", [[0, 1] * 4, [0] * 4 + [1] * 4])
def test_petal_at_extreme_probabilities(gap: float, rel: float, targets: list[int]) -> None:
    logits = torch.randn(8, 30, generator=torch.Generator().manual_seed(0)).double()
    logits[:4, 3] += gap  # p as near to 1 as a float can be
    logits[:, 7] -= gap  # and as near to 0
    for score in ("llr", "ce"):
        check([logits], targets, 2, rel=rel, score=score)


def test_a_word_that_only_one_label_writes_is_found() -> None:
    logits = torch.randn(64, 500, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(64) % 2
    logits[targets == 1, 123] += 4
    evidence = Evidence.of_logits([logits], targets, ["a", "b"], [f"w{i}" for i in range(500)])
    found = build("search", "petal").search(evidence)
    assert found.words["b"][0][0] == "w123"
    assert "w123" not in [w for w, _ in found.words["a"]]


# --- real logits ---------------------------------------------------------------------------


def task(*sources: str, labels: Sequence[str] = ("neg", "pos")) -> Task:
    templates = [Template(s, name=f"p{i}") for i, s in enumerate(sources)]
    return Task.inline(templates, labels={label: [] for label in labels})


def examples(n: int = 14, labels: Sequence[str] = ("neg", "pos")) -> list[Example]:
    texts = tiny.corpus()[:n]
    return [Example({"text": t}, labels[i % len(labels)], i + 1) for i, t in enumerate(texts)]


IT_WAS, REALLY = "{{ text }} It was {{ mask }}", "{{ text }} Really {{ mask }}"


@each
@pytest.mark.parametrize("joint", [False, True])
def test_petal_on_what_a_model_says(architecture: str, joint: bool) -> None:
    backbone = tiny.backbone(architecture)
    model = PromptModel(backbone, task(IT_WAS, REALLY))
    train = examples()
    words = search_verbalizer(model, train, joint=joint, candidates=50, words_per_label=4)
    assert list(words.patterns) == (["*"] if joint else ["p0", "p1"])
    candidates = whole_words(backbone, space_before=True)
    targets = [int(e.label == "pos") for e in train]
    log_p = []
    for name in model.task.patterns:
        encoded = model.encode(name, [model.prompt(name, e.row) for e in train])
        full = torch.stack([reference.full_logits(backbone, e)[e.reads[0]] for e in encoded])
        log_p.append(full.double().log_softmax(-1)[:, candidates.ids].tolist())
    for i, found in enumerate(words.patterns.values()):
        for label, target in (("neg", 0), ("pos", 1)):
            expected = petal(
                log_p if joint else [log_p[i]], targets, target,
                score="llr", balanced=True, candidates=50, k=4,
            )  # fmt: skip
            name = list(words.patterns)[i]
            assert found[label] == [candidates.words[w] for w, _ in expected]
            assert words.scores[name][label] == pytest.approx([s for _, s in expected], rel=1e-4)


def test_never_more_than_256_rows_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny.backbone("bert")
    model = PromptModel(backbone, task(IT_WAS))
    rows = [
        Example({"text": t[:30]}, "neg" if i % 2 else "pos", i)
        for i, t in enumerate(tiny.corpus()[:600])
    ]
    held: list[int] = []
    logits = backbone.logits
    monkeypatch.setattr(backbone, "logits", lambda s, w=None: held.append(len(s)) or logits(s, w))
    for search in ("petal", "lm-bff"):
        held.clear()
        search_verbalizer(model, rows, search=search)
        assert max(held) <= 256 and sum(held) >= 600


# --- candidates ----------------------------------------------------------------------------


@each
@pytest.mark.parametrize("space_before", [True, False])
def test_candidates_are_whole_words_of_one_token(architecture: str, space_before: bool) -> None:
    backbone = tiny.backbone(architecture)
    found = whole_words(backbone, space_before=space_before)
    assert len(found.words) == len(found.ids) == len(set(found.ids.tolist())) > 50
    assert found.ids.tolist() == sorted(found.ids.tolist())
    for word, token in zip(found.words, found.ids.tolist(), strict=True):
        assert backbone.text.word(word, space_before=space_before) == [token]
        assert sum(c.isalpha() for c in word) >= 2 and not word.startswith("##")
    lower = architecture == "bert"
    for word in {w for text in tiny.corpus() for w in text.split() if w.isalpha() and len(w) > 1}:
        one = len(backbone.text.word(word, space_before=space_before)) == 1
        known = backbone.text.word(word, space_before=space_before) != [backbone.text.unknown_id]
        assert ((word.lower() if lower else word) in found.words) == (one and known), word


@each
def test_max_words_keeps_the_most_frequent(architecture: str) -> None:
    backbone = tiny.backbone(architecture)
    candidates = whole_words(backbone, space_before=True)
    chosen = [candidates.words[i] for i in (5, 20, 35, 50)]
    texts = [" ".join([w] * n) for w, n in zip(chosen, (3, 9, 6, 1), strict=True)] * 300
    found = most_frequent(candidates, backbone, texts, 2, space_before=True)
    assert found.words == (chosen[1], chosen[2])
    assert found.ids.tolist() == candidates.ids[[20, 35]].tolist()
    with pytest.raises(UserError, match="none of the words"):
        most_frequent(candidates, backbone, ["1 2 3"], 2, space_before=True)


def test_a_search_among_the_most_frequent_words() -> None:
    model = PromptModel(tiny.backbone("bert"), task(IT_WAS))
    text = "film movie story good bad comedy"
    words = search_verbalizer(
        model, examples(), max_words=4, unlabeled=[{"text": text + " film movie story good"}],
        words_per_label=2,
    )  # fmt: skip
    found = {w for ws in words.patterns["p0"].values() for w in ws}
    assert found <= {"film", "movie", "story", "good"}


# --- what lacks ----------------------------------------------------------------------------


def test_a_search_says_what_it_lacks() -> None:
    model = PromptModel(tiny.backbone("roberta"), task(IT_WAS, "({{ mask }}) {{ text }}"))
    with pytest.raises(UserError, match="'pos' has no rows"):
        search_verbalizer(model, [e for e in examples() if e.label == "neg"])
    with pytest.raises(UserError, match="unlabelled text"):
        search_verbalizer(model, examples(), max_words=10)
    with pytest.raises(UserError, match="a space before the mask"):
        search_verbalizer(model, examples(), joint=True)
    with pytest.raises(UserError, match=r"candidats.*candidates"):
        search_verbalizer(model, examples(), candidats=10)


def test_labels_with_the_same_words_are_told_by_the_search() -> None:
    """Nothing would tell them apart: a word that every row has is the best of either label."""

    class Same(VerbalizerSearch):
        name = "same"

        def search(self, evidence: Evidence) -> FoundWords:
            return FoundWords({label: [("film", 1.0)] for label in evidence.labels})

    model = PromptModel(tiny.backbone("bert"), task(IT_WAS))
    with pytest.raises(
        UserError, match=r"labels 'neg' and 'pos'.* have the same words, 'film': search"
    ):
        search_verbalizer(model, examples(), search=Same())
    for many in (0, -3):
        with pytest.raises(UserError, match=f"max_words is {many}"):
            search_verbalizer(model, examples(), max_words=many, unlabeled=[{"text": "a film"}])


def test_the_origin_of_words_is_kept() -> None:
    model = PromptModel(tiny.backbone("gpt2"), task(IT_WAS))
    words = search_verbalizer(model, examples(), candidates=30, words_per_label=3)
    assert words.origin["search"] == "petal"
    assert words.origin["options"]["candidates"] == 30
    assert (words.origin["model"], words.origin["rows"]) == ("tiny-gpt2", 14)
    assert words.labels == ["neg", "pos"]


@pytest.mark.parametrize("search", ["petal", "lm-bff"])
def test_what_a_search_found_can_be_used(search: str) -> None:
    labels = ("bad", "fair", "good")
    model = PromptModel(tiny.backbone("bert"), task(IT_WAS, labels=labels))
    train = examples(30, labels)
    found = search_verbalizer(model, train, search=search)
    proba = model.with_words(found).predict_proba([e.row for e in train])
    assert proba.shape == (30, 3)


def test_options_and_scores_of_any_kind_can_be_saved(tmp_path: Path) -> None:
    class FromFile(VerbalizerSearch):
        name = "from-file"
        file: Path = Path("words.txt")

        def search(self, evidence: Evidence) -> FoundWords:
            return FoundWords(
                {lb: [(evidence.words[i], np.float32(0.5))] for i, lb in enumerate(evidence.labels)}  # type: ignore[list-item]
            )

    model = PromptModel(tiny.backbone("bert"), task(IT_WAS))
    found = search_verbalizer(model, examples(), search=FromFile())
    found.save(tmp_path / "verbalizer.json")
    again = LabelWords.load(tmp_path / "verbalizer.json")
    assert again.origin["options"]["file"] == "words.txt"
    assert again.scores == found.scores == {"p0": {"neg": [0.5], "pos": [0.5]}}


def test_a_search_reads_the_mask_that_the_verbalizer_reads() -> None:
    """Words of the second mask are those that a template with that mask alone gives."""
    backbone = tiny.backbone("bert")
    rows = [Example({"text": t}, "ab"[i % 2], i + 1) for i, t in enumerate(["good", "dull", "great fun", "no"])]  # fmt: skip
    found = {}
    for slot in (0, 1):
        task = Task.inline(
            [Template("{{ mask }} {{ text }} It was {{ mask }}", name="p")],
            labels={"a": ["good"], "b": ["bad"]},
        )
        model = PromptModel(backbone, task, options={"slot": slot})
        found[slot] = search_verbalizer(model, rows, search="petal", words_per_label=3)
        # The scores are of what the model with these words reads.
        readout = model.read("p", [e.row for e in rows])
        best = found[slot].patterns["p"]["a"][0]
        ids = torch.tensor([backbone.text.word(best, space_before=readout.space_before(slot))[0]])
        log_p = readout.log_probs(ids, slot)[:, 0].double()
        assert bool(log_p[::2].mean() > log_p[1::2].mean())
    assert found[0].patterns != found[1].patterns
    with pytest.raises(UserError, match="slot=2: the template has 2 mask"):
        search_verbalizer(PromptModel(backbone, task, options={"slot": 2}), rows)
