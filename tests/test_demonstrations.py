"""Demonstration selectors against plain references, and the embeddings they stand on."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import Field

from promptforge import (
    DemonstrationSelector,
    PromptForgeError,
    PromptModel,
    Task,
    Template,
    UserError,
    artifact,
)
from promptforge.data import Example
from promptforge.embeddings import SentenceEncoder
from promptforge.plugins import build
from promptforge.selection import fit_selector
from promptforge.tuning.plan import planned
from tests import tiny

NAMES = ("fixed", "random", "similarity", "balanced", "lm-bff", "mmr", "bm25")
EMBEDDING = ("similarity", "balanced", "lm-bff", "mmr")
LABELS = ["y", "x", "z"]  # neither sorted nor in the order of the data


class Fake(SentenceEncoder):
    """A random unit vector per text, always the same one."""

    asked: int = 0

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked += len(texts)
        seeds = [zlib.crc32(t.encode()) for t in texts]
        rows = [np.random.default_rng(s).standard_normal(6) for s in seeds]
        return np.stack([r / np.linalg.norm(r) for r in rows]).astype(np.float32)


def cosine(a: str, b: str) -> float:
    u, v = Fake().encode([a, b]).astype(float)
    return float(u @ v)


def pool(n: int = 30) -> list[Example]:
    """Rows as a reader gives them: with their label, and of labels in turn."""
    rows = [{"text": f"row {i}", "label": "xyz"[i % 3]} for i in range(n)]
    return [Example(row, row["label"], i) for i, row in enumerate(rows, 1)]


def fitted(name: str, examples: Sequence[Example], **options: Any) -> DemonstrationSelector:
    if name in EMBEDDING:
        options.setdefault("encoder", Fake())
    made: DemonstrationSelector = build("demonstrations", name, **options)
    fit_selector(made, examples, LABELS, columns=["text"])
    return made


def of(label: str, examples: Sequence[Example], text: str) -> list[Example]:
    return [e for e in examples if e.label == label and e.row["text"] != text]


def nearest(label: str, examples: Sequence[Example], text: str) -> list[Example]:
    return sorted(of(label, examples, text), key=lambda e: -cosine(e.row["text"], text))


QUERIES = [{"text": t} for t in ("a film", "row 4", "row 5 ", "row 29")]
each_query = pytest.mark.parametrize("row", QUERIES, ids=lambda row: str(row["text"]))


# --- each against a reference --------------------------------------------------------------


@each_query
@pytest.mark.parametrize("per_label", [1, 3])
def test_similarity_is_the_nearest_of_each_label(row: dict[str, str], per_label: int) -> None:
    text = row["text"].strip()
    expected = [e for label in LABELS for e in nearest(label, pool(), text)[:per_label]]
    assert fitted("similarity", pool(), per_label=per_label).select(row) == expected


@each_query
@pytest.mark.parametrize("k", [1, 2, 3, 5, 9, 40])
def test_balanced_takes_turns(row: dict[str, str], k: int) -> None:
    text = row["text"].strip()
    examples = [e for e in pool() if e.label != "x" or e.number < 7]  # x runs out first
    left = {label: nearest(label, examples, text) for label in LABELS}
    chosen: list[Example] = []
    while len(chosen) < k and any(left.values()):
        turn = [near.pop(0) for near in left.values() if near]
        turn.sort(key=lambda e: -cosine(e.row["text"], text))
        chosen += turn[: k - len(chosen)]
    found = fitted("balanced", examples, k=k).select(row)
    key = [(LABELS.index(e.label), -cosine(e.row["text"], text)) for e in found]
    assert key == sorted(key)
    assert {e.number for e in found} == {e.number for e in chosen}
    assert len(found) == len(chosen) == min(k, sum(len(of(c, examples, text)) for c in LABELS))


@each_query
@pytest.mark.parametrize("diversity", [0, 0.3, 0.7, 1])
def test_mmr_is_greedy_maximal_marginal_relevance(row: dict[str, str], diversity: float) -> None:
    text = row["text"].strip()
    expected = []
    for label in LABELS:
        left, chosen = nearest(label, pool(), text), list[Example]()
        while len(chosen) < 4:

            def gain(e: Example, chosen: list[Example] = chosen) -> float:
                alike = [cosine(e.row["text"], c.row["text"]) for c in chosen]
                relevance = (1 - diversity) * cosine(e.row["text"], text)
                return relevance - diversity * max(alike, default=0)

            best = max(left, key=gain)
            left.remove(best)
            chosen.append(best)
        expected += chosen
    found = fitted("mmr", pool(), per_label=4, diversity=diversity).select(row)
    assert found == expected
    if diversity == 0:
        assert found == fitted("similarity", pool(), per_label=4).select(row)


@each_query
@pytest.mark.parametrize(("keep", "per_label"), [(0.5, 1), (0.29, 2), (0.01, 3), (1, 1)])
def test_lm_bff_draws_from_the_most_similar_of_each_label(
    row: dict[str, str], keep: float, per_label: int
) -> None:
    text = row["text"].strip()
    allowed = {}
    for label in LABELS:
        near = nearest(label, pool(), text)
        kept = max(per_label, math.floor(keep * len(near)))
        allowed[label] = {e.number for e in near[:kept]}
    selector = fitted("lm-bff", pool(), keep=keep, per_label=per_label)
    samples = [selector.sample(row, i) for i in range(150)]
    for sample in samples:
        assert [e.label for e in sample] == [c for c in LABELS for _ in range(per_label)]
        assert len({e.number for e in sample}) == len(sample)
    seen = {c: {e.number for s in samples for e in s if e.label == c} for c in LABELS}
    assert seen == allowed  # nothing else, and each of them sooner or later
    assert build("demonstrations", "lm-bff", keep=0.29)._kept(100) == 29


def test_without_the_filter_lm_bff_draws_from_all_and_embeds_nothing() -> None:
    fake = Fake()
    selector = fitted("lm-bff", pool(), filter=False, encoder=fake)
    selector.prepare(QUERIES)
    row = {"text": "row 4"}
    seen = {e.number for i in range(200) for e in selector.sample(row, i)}
    assert seen == {e.number for e in pool()} - {5}
    assert fake.asked == 0


def test_bm25_by_hand() -> None:
    # Three rows of 3, 1 and 2 words: the mean length is 2.
    texts = ["Good good film", "Film", "bad ending"]
    examples = [Example({"text": t}, c, 1) for t, c in zip(texts, "xxy", strict=True)]
    selector: Any = fitted("bm25", examples, k1=1.2, b=0.75)
    good, film = math.log(1 + 2.5 / 1.5), math.log(1 + 1.5 / 2.5)
    # Slowness k1 * (1 - b + b * length / mean): 1.2 * 1.375 = 1.65 and 1.2 * 0.625 = 0.75.
    first = good * 2 / (2 + 1.65) + film * 1 / (1 + 1.65)
    second = film / (1 + 0.75)
    assert selector.scores({"text": "a GOOD, good film!"}) == pytest.approx([first, second, 0])
    assert (first, second) == pytest.approx((0.7148, 0.2686), abs=1e-4)
    assert [e.row["text"] for e in selector.select({"text": "film"})] == ["bad ending", "Film"]
    plain: Any = fitted("bm25", examples, k1=0)  # counts and lengths do not matter
    assert plain.scores({"text": "good film"}) == pytest.approx([good + film, film, 0])
    assert plain.scores({"text": "?!"}) == pytest.approx([0, 0, 0])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("ab ", max_size=9), min_size=1, max_size=8), st.text("abc ", max_size=6))
def test_bm25_is_its_formula(texts: list[str], query: str) -> None:
    examples = [Example({"text": t}, "x", i) for i, t in enumerate(texts)]
    selector: Any = fitted("bm25", examples, k1=1.5, b=0.4)
    docs = [t.split() for t in texts]
    mean = sum(map(len, docs)) / len(docs)
    expected = []
    for doc in docs:
        total = 0.0
        for word in set(query.split()) & set(doc):
            n, tf = sum(word in d for d in docs), doc.count(word)
            slow = 1.5 * (1 - 0.4 + 0.4 * len(doc) / mean)
            total += math.log(1 + (len(docs) - n + 0.5) / (n + 0.5)) * tf / (tf + slow)
        expected.append(total)
    assert selector.scores({"text": query}) == pytest.approx(expected)


# --- what all of them hold to --------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from(LABELS)), max_size=14),
    st.sampled_from("abcdef"),
    st.integers(1, 3),
    st.integers(0, 99),
)
@pytest.mark.parametrize("name", NAMES)
def test_a_row_never_demonstrates_itself(
    name: str, content: list[tuple[str, str]], text: str, most: int, index: int
) -> None:
    examples = [Example({"id": i, "text": t, "label": c}, c, i) for i, (t, c) in enumerate(content)]
    selector = fitted(name, examples, **{"k" if name == "balanced" else "per_label": most})
    # The same text as elsewhere in the pool is the row itself, whatever its other columns say.
    rows: list[Mapping[str, Any]] = [{"text": text}, {"text": f" {text}\n", "id": "?"}]
    rows += [e.row for e in examples]
    for row in rows:
        for chosen in (selector.select(row), selector.sample(row, index)):
            assert all(e.row["text"] != row["text"].strip() for e in chosen)
            assert len({e.number for e in chosen}) == len(chosen)
            order = [LABELS.index(e.label) for e in chosen]
            assert order == sorted(order)
            enough = [len(of(c, examples, row["text"].strip())) for c in LABELS]
            total = sum(enough) if name == "balanced" else sum(min(most, n) for n in enough)
            assert len(chosen) == (min(most, total) if name == "balanced" else total)


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_told_apart_by_number_and_seed_alone(name: str) -> None:
    a, b = fitted(name, pool()), fitted(name, pool())
    b.prepare(QUERIES)
    row = {"text": "row 4"}
    labelled = {**row, "label": "y", "more": 1}
    numbers = range(20)
    samples = [a.sample(row, i) for i in numbers]
    assert a.select(row) == samples[0]
    assert [b.sample(labelled, i) for i in reversed(numbers)] == samples[::-1]
    assert a.varies == (name in ("random", "lm-bff"))
    assert len({tuple(e.number for e in s) for s in samples}) > 5 if a.varies else True
    assert a.varies or all(s == samples[0] for s in samples)
    if a.varies:
        other = fitted(name, pool(), seed=1)
        assert [other.sample(row, i) for i in numbers] != samples
        assert a.sample({"text": "row 5"}, 1) != samples[1]


@pytest.mark.parametrize("name", ["random", "lm-bff"])
def test_random_order(name: str) -> None:
    selector = fitted(name, pool(), order="random")
    orders = {tuple(e.label for e in selector.sample({"text": "?"}, i)) for i in range(60)}
    assert len(orders) == 6  # every order of three labels


def test_texts_are_found_where_no_columns_are_named() -> None:
    rows = [{"n": i, "a": f"a{i}", "b": None if i else "b", "c": "xyz"[i % 3]} for i in range(9)]
    selector: Any = build("demonstrations", "similarity", encoder=Fake("some/model"))
    assert selector.model_dump(mode="json") == {"encoder": "some/model", "per_label": 1}
    selector.fit([Example(r, str(r["c"]), i) for i, r in enumerate(rows)], LABELS)
    assert selector.text(rows[0]) == "a0 b"
    assert selector.text({"a": "only"}) == "only"
    assert rows[0] not in [e.row for e in selector.select({"a": "a0"})]


def test_an_encoders_folder_is_kept_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    selector: Any = build("demonstrations", "similarity", encoder="./mine")
    assert selector.model_dump(mode="json")["encoder"] == str((tmp_path / "mine").resolve())


def test_a_selector_from_before_the_keywords_still_works() -> None:
    class Old(DemonstrationSelector):
        name: ClassVar[str] = "old"
        seen: list[str] = Field([])

        def fit(self, examples: Sequence[Example], labels: Sequence[str]) -> None:  # type: ignore[override]
            self.seen = list(labels)

        def select(self, row: Mapping[str, Any]) -> list[Example]:
            return pool(2)

    old = Old()
    fit_selector(old, pool(), LABELS, columns=["text"])
    old.prepare(QUERIES)
    assert (old.seen, old.varies, old.sample({}, 7)) == (LABELS, False, pool(2))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("similarity", {"per_label": 0}, "option 'per_label'.*greater than or equal to 1"),
        ("similarity", {"encoder": 5}, r"option 'encoder': .*name of a model.*\(given: 5\)"),
        ("similarity", {"encoder": " "}, "option 'encoder'"),
        ("lm-bff", {"keep": 0}, "option 'keep'.*greater than 0"),
        ("lm-bff", {"order": "label"}, "option 'order'.*'labels' or 'random'"),
        ("lm-bff", {"filters": False}, "no option 'filters'. Did you mean 'filter'"),
        ("mmr", {"diversity": 2}, "option 'diversity'.*less than or equal to 1"),
        ("bm25", {"b": -1}, "option 'b'"),
        ("balanced", {"per_label": 2}, "no option 'per_label'.*'k'"),
        ("knn", {}, "no demonstrations called 'knn'"),
    ],
)  # fmt: skip
def test_options_are_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build("demonstrations", name, **options)


def test_options_are_checked_without_torch() -> None:
    code = (
        "import sys; from promptforge.plugins import build; from promptforge.data import Example\n"
        f"made = [build('demonstrations', n) for n in {NAMES}]\n"
        "made[-1].fit([Example({'text': 'a'}, 'x', 1)], ['x']); made[-1].select({'text': 'b'})\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_model_shows_them(name: str) -> None:
    task = Task.load(tiny.EXAMPLES).choose(["review"])
    options = {"encoder": Fake()} if name in EMBEDDING else {}
    selector = build("demonstrations", name, **options)
    fit_selector(selector, task.examples("train"), list(task.labels), columns=task.inputs)
    model = PromptModel(tiny.backbone("bert"), task, demonstrations=selector)
    row = task.examples("train")[0].row
    prompt = str(model.prompt("review", row))
    shown = selector.select(row)
    assert len(shown) >= 2
    assert [prompt.count(e.row["text"]) for e in shown] == [1] * len(shown)
    assert prompt.count(row["text"]) == 1


def test_saved_demonstrations_give_the_same_prompts(tmp_path: Path) -> None:
    """Also of values that JSON does not know, whatever a template does with them."""
    template = (
        "{{ text }} ({{ seen.year }}, {{ at }}, {{ '%.1f' % paid }}, {{ raw | length }}) {{ mask }}"
    )
    more = {"seen": date(2024, 1, 31), "at": datetime(2024, 1, 31, 12), "paid": Decimal("7.25"), "raw": b"x", "no": None}  # fmt: skip
    examples = [Example({**e.row, **more}, e.label, e.number) for e in pool(6)]
    labels = {"y": ["good"], "x": ["bad"], "z": ["fine"]}
    task = Task.inline([Template(template)], labels=labels, inputs=["text"])
    model = PromptModel(tiny.backbone("bert"), task, demonstrations=fitted("random", examples))
    artifact.save(model, tmp_path / "saved")
    again: Any = artifact.load(tmp_path / "saved", backbone=model.backbone)
    row = {"text": "row 99", **more}
    assert "(2024, 2024-01-31 12:00:00, 7.2, 1)" in str(again.prompt("template", row))
    assert str(again.prompt("template", row)) == str(model.prompt("template", row))


# --- sentence embeddings -------------------------------------------------------------------

TEXTS = ["a good film", "it was dull", "no", "the film is good and the plot is not", "film " * 99]


@pytest.mark.parametrize("architecture", ["bert", "roberta", "llama", "t5", "bart"])
def test_embeddings_are_means_over_tokens(
    architecture: str, tiny_model: Callable[[str], Path]
) -> None:
    folder = tiny_model(architecture)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    expected = []
    for text in TEXTS:
        ids = tokenizer(text, truncation=True, max_length=64)["input_ids"]
        with torch.no_grad():
            mean = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
        expected.append((mean / mean.norm()).tolist())
    state = torch.get_rng_state()
    encoder = SentenceEncoder(str(folder), batch_tokens=70, max_length=64)
    found = encoder.encode(TEXTS)
    assert found == pytest.approx(np.array(expected), abs=1e-5)
    assert found.dtype == np.float32
    assert torch.equal(torch.get_rng_state(), state)
    assert np.linalg.norm(encoder.encode(["", " "]), axis=1) == pytest.approx(1, abs=1e-5)


def test_each_text_is_embedded_once(tiny_model: Callable[[str], Path]) -> None:
    encoder: Any = SentenceEncoder(str(tiny_model("bert")), remember=3)
    first = encoder.encode(["a", "b", "a"])
    assert (first[0] == first[2]).all()
    read: list[int] = []
    vectors = encoder._loaded.vectors
    encoder._loaded.vectors = lambda ids: read.append(len(ids)) or vectors(ids)
    assert (encoder.encode(["b", "a"]) == first[[1, 0]]).all()
    assert read == []
    assert encoder.encode([*"cdefg", "c"]).shape == (6, 32)
    assert sum(read) == 5
    assert list(encoder._known) == list("efg")
    copy = pickle.loads(pickle.dumps(encoder))
    assert copy._loaded is None
    assert copy.encode(["a"]) == pytest.approx(first[:1], abs=1e-6)


def test_special_tokens_in_a_text_are_text(tiny_model: Callable[[str], Path]) -> None:
    encoder: Any = SentenceEncoder(str(tiny_model("bert")))
    encoder.encode(["a"])
    ids = encoder._loaded.ids(["good [SEP] film"])[0]
    assert [i for i in ids if i in (2, 3)] == [2, 3]


def test_encoders_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        fitted("similarity", pool(), encoder="./nowhere")
    with pytest.raises(PromptForgeError, match=r"sentence encoder .* cannot be loaded: .*minilm"):
        fitted("lm-bff", pool(), encoder=str(tmp_path))
    with pytest.raises(UserError, match="no texts"):
        SentenceEncoder().encode([])


def test_minilm(packaged_models: Path) -> None:
    """The four sentences of the model's card, with the similarities that it gives for them."""
    texts = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]  # fmt: skip
    encoder = SentenceEncoder()
    vectors = encoder.encode(texts)
    assert vectors.shape == (4, 384)
    assert vectors[1:] @ vectors[0] == pytest.approx([0.695, 0.943, 0.257], abs=1e-3)
    task = Task.load(tiny.EXAMPLES)
    selector: Any = build("demonstrations", "similarity", encoder=encoder)
    fit_selector(selector, task.examples("train"), list(task.labels), columns=task.inputs)
    example = task.examples("train")[5]
    assert selector.cosines(example.row).argmax() == 5
    assert example not in selector.select(example.row)


def test_a_training_draws_with_its_own_seed() -> None:
    """Where none is named: over seeds, what is shown differs as all else does."""
    task = Task.load(tiny.EXAMPLES).choose(["tone"])
    rows, backbone = task.examples("train"), tiny.backbone("bert")

    def seed(selector: Any) -> int:
        found = planned(task, rows, [], backbone=backbone, seed=21, demonstrations=selector).config
        drawn: int = found["demonstrations"]["seed"]
        return drawn

    plain = build("demonstrations", "random")
    assert (seed("random"), seed("lm-bff"), seed(plain), plain.seed) == (21, 21, 21, 0)
    assert [seed(build("demonstrations", "random", seed=n)) for n in (0, 5)] == [0, 5]
    assert "seed" not in planned(task, rows, [], backbone=backbone, demonstrations="fixed").config["demonstrations"]  # fmt: skip
