"""`PromptClassifier`: parameters that cannot be, rows of weight 0, strategies that tune another model."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from estimating import NAMES, TEXTS, WORDS, Make, maker

from promptforge import PromptClassifier, Settings, UserError, artifact

TWO = ["{{ text }} It was {{ mask }}", "{{ text }} So {{ mask }}"]


@pytest.fixture
def make(tiny_model: Callable[[str], Path]) -> Make:
    return maker(tiny_model)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"class_weight": [1, 2]}, r"class_weight is \[1, 2\]: write 'balanced', or label -> weight"),
        ({"class_weight": {"pos": None}}, "class_weight is .*None"),
        ({"words": {"pos": 1, "neg": 2}}, "words: 1: give each label a word or several"),
        ({"words": {"pos": None, "neg": "bad"}}, "words: None: give each label"),
        ({"words": {"pos": [1], "neg": "bad"}}, r"words: \[1\]: give each label"),
        ({"settings": Settings(steps=3)}, "settings is a Settings: give a mapping"),
        ({"random_state": "a"}, "random_state is 'a': give a whole number"),
        ({"random_state": np.random.default_rng(1)}, "random_state is Generator"),
        ({"samples": 0}, "samples is 0"),
    ],
)  # fmt: skip
def test_parameters_that_cannot_be(make: Make, parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make(**{"words": WORDS, **parameters}).fit(TEXTS, NAMES)


def test_the_answers_words_have_no_order(make: Make) -> None:
    """Of a task with several labels a row: nobody has seen the answers, so a list says nothing."""
    Y = [[i % 2, i % 3 == 0] for i in range(12)]
    asked = {"templates": "{{ text }} {{ label }}? {{ mask }}", "labels": ["a", "b"], "strategy": "zero-shot"}  # fmt: skip
    with pytest.raises(UserError, match=r"write \{'yes': 'good', 'no': 'bad'\}"):
        make(words=["good", "bad"], **asked).fit(TEXTS, Y)
    said = [
        make(words=words, **asked).fit(TEXTS, Y).predict_proba(TEXTS)
        for words in ({"yes": "good", "no": "bad"}, {"yes": "bad", "no": "good"})
    ]
    assert np.allclose(said[0], 1 - said[1], atol=1e-6) and not np.allclose(*said)


@pytest.mark.parametrize(
    "parameters",
    [
        {"strategy": "lm-bff", "samples": 2},
        {"strategy": "lm-bff", "options": {"strategy.assignments": 1, "strategy.demonstrate": False}},
        {"demonstrations": "random"},
        {"verbalizer": "prototypical"},
        {"strategy": "finetune"},
    ],
    ids=["shown by lm-bff", "searched for words", "shown", "compared with", "read"],
)  # fmt: skip
def test_a_row_of_weight_0_is_as_if_it_were_not_there(make: Make, parameters: Any) -> None:
    fitted = make(words=WORDS, **parameters).fit(TEXTS[:-1], NAMES[:-1])
    weights = [1.0] * 11 + [0.0]
    for label in ("pos", "neg"):
        again = make(words=WORDS, **parameters)
        again.fit(TEXTS, [*NAMES[:-1], label], sample_weight=weights)
        assert np.array_equal(again.predict_proba(TEXTS), fitted.predict_proba(TEXTS))


@pytest.mark.parametrize("strategy", ["contrastive", "ensemble", "pet"])
def test_a_strategy_that_tunes_another_model(
    strategy: str, make: Make, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    other = str(tiny_model("roberta"))
    options: dict[str, Any] = {
        "contrastive": {"strategy.model": other},
        "ensemble": {"strategy.of": "contrastive", "strategy.of_options": {"model": other}, "strategy.repetitions": 2},
        "pet": {"strategy.final_model": other, "strategy.repetitions": 1, "strategy.final_steps": 2},
    }[strategy]  # fmt: skip
    made = make(strategy=strategy, words=WORDS, templates=TWO, options=options, max_length=32)
    made.fit(TEXTS, NAMES, X_unlabeled=TEXTS[:6])
    said = made.predict_proba(TEXTS)
    made.save(tmp_path / "saved")
    assert np.array_equal(PromptClassifier.load(tmp_path / "saved").predict_proba(TEXTS), said)
    assert np.array_equal(pickle.loads(pickle.dumps(made)).predict_proba(TEXTS), said)
    # The other model reads no longer texts than the run's own was told to.
    classifier: Any = made.classifier_
    inner = next(iter(classifier.members.values())) if strategy == "ensemble" else classifier
    assert inner.backbone.encoder.max_length == 32
    assert artifact.tuned_from(tmp_path / "saved") == [inner.backbone.checksum]


@pytest.mark.parametrize("strategy", ["prompt", "finetune"])
def test_bytes_are_no_text(strategy: str, make: Make) -> None:
    fitted = make(words=WORDS, strategy=strategy).fit(TEXTS, NAMES)
    with pytest.raises(UserError, match="bytes and no text"):
        fitted.classifier_.predict_proba([{"text": b"a film"}])
