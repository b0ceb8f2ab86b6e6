"""`PromptClassifier` as scikit-learn's users know estimators."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from estimating import LEARNS, NAMES, TEXTS, WORDS, Make, maker
from joblib import parallel_config
from sklearn.base import clone
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from promptforge import (
    Classifier,
    Example,
    PromptClassifier,
    Task,
    Template,
    UserError,
    artifact,
    train,
)
from promptforge.estimator import shared_backbone


@pytest.fixture
def make(tiny_model: Callable[[str], Path]) -> Make:
    return maker(tiny_model)


# --- labels and rows ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (("neg", "pos"), WORDS),
        ((2, 10), {2: "bad", 10: "good"}),
        ((False, True), {False: ["bad", "dull"], True: "good"}),
        ((0.0, 1.0), {0: "bad", 1: "good"}),
        (np.array(["neg", "pos"]), ["bad", "good"]),
        (("neg", "pos"), None),
    ],
    ids=["text", "int", "bool", "float", "numpy text", "own names"],
)
def test_labels_come_back_as_they_were_given(make: Make, labels: Any, words: Any) -> None:
    y = np.array([labels[i % 2] for i in range(len(TEXTS))])
    fitted = make(words=words).fit(TEXTS, y)
    assert fitted.classes_.tolist() == sorted(labels)
    assert fitted.classes_.dtype == y.dtype
    probabilities = fitted.predict_proba(TEXTS)
    assert probabilities.shape == (len(TEXTS), 2)
    assert np.allclose(probabilities.sum(1), 1)
    predicted = fitted.predict(TEXTS)
    assert predicted.dtype == y.dtype
    assert (predicted == fitted.classes_[probabilities.argmax(1)]).all()
    assert fitted.score(TEXTS, y) == np.mean(predicted == y)


def test_every_label_has_its_own_column_of_probabilities(make: Make) -> None:
    """Labels that sort otherwise as texts: 10 before 2."""
    y = [2, 10, 3] * 4
    fitted = make(words={2: "bad", 10: "good", 3: "dull"}, **LEARNS).fit(TEXTS, y)
    assert fitted.classes_.tolist() == [2, 3, 10]
    assert fitted.score(TEXTS, y) > 0.9


def test_rows_are_texts_mappings_or_tables(make: Make) -> None:
    rows = [{"a": t, "b": "fun", "number": i} for i, t in enumerate(TEXTS)]
    estimator = make(templates="{{ a }} It was {{ mask }}. {{ b }}", words=WORDS)
    expected = estimator.fit(rows, NAMES).predict_proba(rows)
    table = pd.DataFrame(rows)
    assert np.array_equal(clone(estimator).fit(table, NAMES).predict_proba(table), expected)
    # Columns that the templates do not use need not be there.
    assert np.array_equal(estimator.predict_proba(table[["b", "a"]]), expected)

    plain = make(words=WORDS)
    expected = plain.fit(TEXTS, NAMES).predict_proba(TEXTS)
    for texts in (np.array(TEXTS), np.array(TEXTS)[:, None], pd.Series(TEXTS), iter(TEXTS)):
        assert np.array_equal(plain.predict_proba(texts), expected)
    assert np.array_equal(plain.predict_proba(pd.DataFrame({"text": TEXTS})), expected)


def test_a_missing_value_is_not_the_text_nan(make: Make) -> None:
    table = pd.DataFrame({"a": TEXTS, "b": [None, np.nan] * 6})
    with pytest.raises(UserError, match="a value is missing"):
        make(templates="{{ a }} {{ b }} {{ mask }}").fit(table, NAMES)
    parameters = {"templates": "{{ a }} {{ b or '' }} {{ mask }}", "words": WORDS}
    make(**parameters).fit(table, NAMES)
    # A head reads whole rows: one without a value is as one without the column.
    both = make(strategy="finetune", **parameters).fit(table, NAMES)
    texts = both.classifier_.texts.encode([{"a": "good", "b": v} for v in (None, np.nan, "fun")])
    ids = [e.ids for e in texts]
    one = make(templates="{{ a }} {{ mask }}", strategy="finetune").fit(table, NAMES)
    assert ids[0] == ids[1] == one.classifier_.texts.encode([{"a": "good"}])[0].ids != ids[2]


@pytest.mark.parametrize(
    ("template", "more"),
    [
        ("{% for demo in demos %}{{ demo.prompt }} {% endfor %}{{ text }} {{ mask }}",
         {"demonstrations": "random"}),
        ("{{ text }} {{ labels | join(' or ') }}? {{ words['pos'][0] }} {{ mask }}", {}),
        ("{{ row['the text'] }} {{ row.text }} {{ mask }}", {}),
        ("row.one and row['two'] are words, {{ row['the text'] }} {{ mask }}", {}),
    ],
    ids=["demos", "labels", "row", "words"],
)  # fmt: skip
def test_words_of_the_template_language_are_no_columns(
    make: Make, template: str, more: Any
) -> None:
    table = pd.DataFrame({"text": TEXTS, "the text": TEXTS})
    fitted = make(templates=template, words=WORDS, **more).fit(table, NAMES)
    assert set(fitted.task_["inputs"]) <= set(table)
    assert len(fitted.predict(table)) == len(TEXTS)


def test_words_keep_to_their_labels(make: Make) -> None:
    """Those of a pandas Series by its index, in whatever order it has them."""
    fitted = make(words=pd.Series({"pos": "good", "neg": "bad"})).fit(TEXTS, NAMES)
    assert fitted.task_["labels"] == {"neg": ["bad"], "pos": ["good"]}


# --- weights, splits, seeds ---------------------------------------------------------------


def test_weights_of_rows_and_labels(make: Make) -> None:
    def shares(**parameters: Any) -> Any:
        weights = parameters.pop("sample_weight", None)
        estimator = make(words=WORDS, steps=20, settings={"dropout": False}, **parameters)
        return estimator.fit(TEXTS, NAMES, sample_weight=weights).predict_proba(TEXTS).mean(0)

    neg, pos = [float(n == "neg") for n in NAMES], [float(n == "pos") for n in NAMES]
    only_neg, only_pos = shares(sample_weight=neg), shares(sample_weight=pos)
    assert only_neg[0] > 0.9
    assert only_pos[1] > 0.9
    assert np.array_equal(shares(class_weight={"neg": 1, "pos": 0}), only_neg)
    assert np.array_equal(shares(class_weight={"neg": 0}), only_pos)
    # The labels are in balance, so the weights that balance them are all one.
    assert np.array_equal(shares(class_weight="balanced"), shares())


def test_weights_that_leave_nothing_to_learn(make: Make) -> None:
    estimator = make(words=WORDS, dev_share=0.5, random_state=0)
    held = estimator._split(np.array(NAMES), NAMES, 0)[1]
    weights = [float(i in held) for i in range(len(NAMES))]
    with pytest.raises(
        UserError, match=r"dev_share=0\.5 keeps every row apart whose sample_weight"
    ):
        estimator.fit(TEXTS, NAMES, sample_weight=weights)
    nothing = r"The weights of rows and classes are 0 .* there is nothing to learn"
    with pytest.raises(UserError, match=nothing):
        make(words=WORDS, class_weight={"neg": 0, "pos": 0}).fit(TEXTS, NAMES)
    of_pos = [float(name == "pos") for name in NAMES]
    with pytest.raises(UserError, match=nothing):  # the ones leave out what the others leave
        make(words=WORDS, class_weight={"pos": 0}).fit(TEXTS, NAMES, sample_weight=of_pos)
    with pytest.raises(
        UserError, match="class weight of 'neg' is inf; it must be 0 or more, and fin"
    ):
        make(words=WORDS, class_weight={"neg": np.inf}).fit(TEXTS, NAMES)
    task = Task.inline([Template("{{ text }} It was {{ mask }}.")], labels=WORDS)
    rows = [
        Example({"text": t}, n, i) for i, (t, n) in enumerate(zip(TEXTS, NAMES, strict=True), 1)
    ]
    for wrong in (np.inf, -1.0, np.nan):
        weights = [1.0, wrong, *[1.0] * 10]
        with pytest.raises(
            UserError, match=r"weight of row 2 is .*; it must be 0 or more, and finite"
        ):
            train(task, rows, backbone=shared_backbone(estimator.model), row_weights=weights)


def test_class_weights_of_rows_without_labels(make: Make) -> None:
    """PET learns from unlabelled rows alone, and its soft labels count by their classes' weights."""
    task = Task.inline([Template("{{ text }} It was {{ mask }}.")], labels=WORDS)
    with pytest.raises(UserError, match="nothing to learn"):
        train(
            task, backbone=shared_backbone(make().model), strategy="pet",
            unlabeled=[{"text": t} for t in TEXTS], class_weight={"pos": 0, "neg": 0},
        )  # fmt: skip


def test_dev_rows_are_given_or_kept_apart(make: Make) -> None:
    fitted = make(words=WORDS, dev_share=0.34, steps=10).fit(TEXTS, NAMES)
    assert fitted.run_.figures("dev").rows == 5
    given = make(words=WORDS, steps=10).fit(
        TEXTS, NAMES, X_dev=["so good", "so bad"], y_dev=NAMES[:2]
    )
    assert given.run_.figures("dev").rows == 2
    # With dev rows patterns and learning rates are chosen between.
    grid = make(words=WORDS, templates={"a": "{{ text }} {{ mask }}", "b": "{{ mask }}: {{ text }}"},
                learning_rate=[1e-3, 1e-2], dev_share=4)  # fmt: skip
    assert set(grid.fit(TEXTS, NAMES).run_.trained) == {"a", "b"}


def test_random_state_decides_everything(make: Make) -> None:
    def of(seed: Any) -> Any:
        return (
            make(words=WORDS, random_state=seed, dev_share=0.5)
            .fit(TEXTS, NAMES)
            .predict_proba(TEXTS)
        )

    make()  # the first makes the tiny model, from a seed
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert np.array_equal(of(1), of(1))
    assert torch.equal(torch.get_rng_state(), before)  # the user's own numbers go on
    assert not np.array_equal(of(1), of(2))
    assert np.array_equal(of(np.int64(1)), of(1))
    assert np.array_equal(of(np.random.RandomState(3)), of(np.random.RandomState(3)))
    of(None)
    for wrong in (-1, 2**70):
        with pytest.raises(UserError, match="a whole number from 0"):
            make(words=WORDS, random_state=wrong).fit(TEXTS, NAMES)


# --- components ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters",
    [
        {"strategy": "prompt", "options": {"strategy.alpha": 0.01}},
        {"strategy": "prompt", "demonstrations": "random", "samples": 2},
        {"strategy": "finetune"},
        {"strategy": "ensemble", "options": {"strategy.repetitions": 2}},
        {"strategy": "zero-shot"},
        {"strategy": "priming", "demonstrations": "random", "options": {"demonstrations.seed": 3}},
        {"method": "bitfit"},
        {"architecture": "gpt2"},
        {"architecture": "t5", "method": "head"},
    ],
    ids=lambda p: "-".join(map(str, p.values()))[:30],
)
def test_save_pickle_and_copy_keep_predictions(make: Make, tmp_path: Path, parameters: Any) -> None:
    fitted = make(words=WORDS, **parameters).fit(TEXTS, NAMES, TEXTS)
    expected = fitted.predict_proba(TEXTS)
    fitted.save(tmp_path / "saved")
    loaded = PromptClassifier.load(tmp_path / "saved")
    assert np.array_equal(loaded.predict_proba(TEXTS), expected)
    assert loaded.classes_.tolist() == fitted.classes_.tolist()
    assert loaded.get_params() == fitted.get_params()
    sent = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(sent.predict_proba(TEXTS), expected)
    # Once more: what was read can be written, and trained anew with the same result.
    sent.save(tmp_path / "saved")
    again = pickle.loads(pickle.dumps(PromptClassifier.load(tmp_path / "saved")))
    assert np.array_equal(again.predict_proba(TEXTS), expected)
    assert np.array_equal(again.fit(TEXTS, NAMES, TEXTS).predict_proba(TEXTS), expected)


def test_saved_labels_keep_their_kind(make: Make, tmp_path: Path) -> None:
    y = np.array([True, False] * 6)
    fitted = make(words={np.True_: "good", np.False_: "bad"}, class_weight={True: 2}).fit(TEXTS, y)
    fitted.save(tmp_path / "saved")
    loaded = PromptClassifier.load(tmp_path / "saved")
    assert loaded.classes_.dtype == bool
    assert np.array_equal(loaded.predict(TEXTS), fitted.predict(TEXTS))
    clone(loaded).fit(TEXTS, y)


def test_parameters_are_kept_or_refused(make: Make, tmp_path: Path) -> None:
    parameters = {"words": pd.Series({"pos": {"good", "fun"}, "neg": ["bad"]}),
                  "class_weight": pd.Series({"pos": 2.0})}  # fmt: skip
    fitted = make(**parameters).fit(TEXTS, NAMES)
    fitted.save(tmp_path / "saved")
    loaded = PromptClassifier.load(tmp_path / "saved")
    assert loaded.words == {"pos": ["fun", "good"], "neg": ["bad"]}
    assert np.array_equal(
        loaded.fit(TEXTS, NAMES).predict_proba(TEXTS), fitted.predict_proba(TEXTS)
    )
    with pytest.raises(UserError, match="The parameter options holds a object"):
        fitted.set_params(options={"strategy.alpha": object()}).save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_is_set_after_fit_is_for_the_next_fit(make: Make, tmp_path: Path) -> None:
    fitted = make(words=WORDS, exits="two-stage", options={"exits.steps": 2}).fit(TEXTS, NAMES)
    expected = fitted.predict_proba(TEXTS)
    later = {"model": "gone", "max_length": 7, "exit_policy": "confidence",
             "options": {"exits.steps": 2, "exit-policy.threshold": 0.5}}  # fmt: skip
    fitted.set_params(**later)
    fitted.save(tmp_path / "saved")
    loaded = PromptClassifier.load(tmp_path / "saved")
    for same in (fitted, loaded, copy.deepcopy(fitted), pickle.loads(pickle.dumps(loaded))):
        assert np.array_equal(same.predict_proba(TEXTS), expected)
        assert {name: same.get_params()[name] for name in later} == later


def test_nothing_but_plain_values_is_unpickled(make: Make) -> None:
    fitted = make(words=WORDS).fit(TEXTS, NAMES)
    assert isinstance(fitted.classifier_, Classifier)
    found = set()

    class Watched(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            found.add(f"{module.split('.')[0]}.{name}")
            return super().find_class(module, name)

    Watched(io.BytesIO(pickle.dumps(fitted))).load()
    assert found == {
        "promptforge.PromptClassifier",
        "numpy._reconstruct",
        "numpy.ndarray",
        "numpy.dtype",
    }
    # The language model stays out; what training changed is in.
    size = sum(p.numel() * 4 for p in shared_backbone(fitted.model).model.parameters())
    assert len(pickle.dumps(make(words=WORDS, method="bitfit").fit(TEXTS, NAMES))) < size / 4


def test_a_model_that_has_moved_or_changed(
    make: Make, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    import shutil

    home = shutil.copytree(tiny_model("bert"), tmp_path / "here")
    fitted = make(model=str(home), words=WORDS).fit(TEXTS, NAMES)
    fitted.save(tmp_path / "saved")
    home.rename(tmp_path / "there")
    loaded = PromptClassifier.load(tmp_path / "saved", model=str(tmp_path / "there"))
    assert np.array_equal(loaded.predict_proba(TEXTS), fitted.predict_proba(TEXTS))
    with pytest.raises(UserError, match="Load the model that it was tuned from"):
        PromptClassifier.load(tmp_path / "saved", model=str(tiny_model("gpt2")))


def test_what_cannot_be_loaded_and_where_nothing_is_saved(make: Make, tmp_path: Path) -> None:
    fitted = make(words=WORDS, strategy="zero-shot", run=str(tmp_path / "run")).fit(TEXTS, NAMES)
    with pytest.raises(UserError, match="was not saved by PromptClassifier"):
        PromptClassifier.load(tmp_path / "run")
    with pytest.raises(UserError, match="There is no artifact"):
        PromptClassifier.load(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds something else"):
        fitted.save(tmp_path / "own")
    assert (tmp_path / "own" / "thesis.txt").read_text() == "years of work"
    artifact.load(tmp_path / "run", backbone=shared_backbone(fitted.model))


# --- one model, several estimators --------------------------------------------------------


def test_estimators_on_one_model_do_not_disturb_each_other(make: Make) -> None:
    first = make(words=WORDS, steps=10).fit(TEXTS, NAMES)
    before = first.predict_proba(TEXTS)
    others = [
        make(words=WORDS, steps=10).fit(TEXTS, NAMES[::-1]),
        make(strategy="finetune", steps=10).fit(TEXTS, NAMES),
        make(words=WORDS, strategy="zero-shot").fit(TEXTS, NAMES),
    ]
    theirs = [o.predict_proba(TEXTS) for o in others]
    unseen = [f"{t} indeed" for t in TEXTS]  # nothing of these is remembered
    new = [e.predict_proba(unseen) for e in (first, *others)]
    assert len({e.classifier_.backbone for e in (first, *others)}) == 1
    for e, old, fresh in zip((first, *others), (before, *theirs), new, strict=True):
        assert np.array_equal(e.predict_proba(TEXTS), old)
        assert np.array_equal(pickle.loads(pickle.dumps(e)).predict_proba(unseen), fresh)
    assert np.array_equal(
        make(words=WORDS, steps=10).fit(TEXTS, NAMES).predict_proba(TEXTS), before
    )


def test_two_models_at_once(make: Make) -> None:
    bert, gpt2 = make(words=WORDS), make(words=WORDS, architecture="gpt2")
    expected = [e.fit(TEXTS, NAMES).predict_proba(TEXTS) for e in (bert, gpt2)]
    assert np.array_equal(bert.predict_proba(TEXTS), expected[0])
    assert np.array_equal(gpt2.predict_proba(TEXTS), expected[1])
    # A model that somebody uses is not loaded a second time.
    assert shared_backbone(bert.model) is bert.classifier_.backbone
    assert shared_backbone(gpt2.model) is gpt2.classifier_.backbone


def test_threads(make: Make) -> None:
    texts = [f"{t} {i}" for i in range(8) for t in TEXTS]
    fitted = [make(words=WORDS, steps=10).fit(TEXTS, y) for y in (NAMES, NAMES[::-1])]
    sent = [pickle.dumps(e) for e in fitted]
    expected = [e.predict_proba(texts) for e in fitted]
    expected.append(fitted[0].predict_proba(TEXTS))
    wrong: list[Any] = []

    def predict(index: int) -> None:
        estimator = pickle.loads(sent[index])
        for start in range(0, len(texts), 12):
            found = estimator.predict_proba(texts[start : start + 12])
            if not np.allclose(found, expected[index][start : start + 12], atol=1e-5):
                wrong.append((index, start))

    def fit() -> None:
        again = make(words=WORDS, steps=10).fit(TEXTS, NAMES).predict_proba(TEXTS)
        if not np.array_equal(again, expected[2]):
            wrong.append("fit")

    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(predict, i) for i in (0, 1, 0, 1)] + [pool.submit(fit) for _ in "ab"]
        for job in jobs:
            job.result()
    assert not wrong


# --- the folder of a run ------------------------------------------------------------------


def test_a_run_is_read_again_and_never_mixed_with_another(make: Make, tmp_path: Path) -> None:
    home = tmp_path / "run"
    estimator = make(words=WORDS, run=str(home))
    expected = estimator.fit(TEXTS, NAMES).predict_proba(TEXTS)
    weights = home / "members" / "template" / "weights.safetensors"
    written = weights.stat().st_mtime_ns
    assert np.array_equal(clone(estimator).fit(TEXTS, NAMES).predict_proba(TEXTS), expected)
    assert weights.stat().st_mtime_ns == written
    with pytest.raises(UserError, match="other rows: 'train'"):
        clone(estimator).fit(TEXTS[::-1], NAMES)
    with pytest.raises(UserError, match="other data"):
        clone(estimator).fit(TEXTS, NAMES, sample_weight=range(12))
    with pytest.raises(UserError, match="settings"):
        clone(estimator).set_params(steps=5).fit(TEXTS, NAMES)
    assert np.array_equal(estimator.predict_proba(TEXTS), expected)


# --- scikit-learn's own company -----------------------------------------------------------


def test_clone_and_parameters(make: Make) -> None:
    estimator = make(words=WORDS, steps=3).fit(TEXTS, NAMES)
    fresh = clone(estimator)
    assert fresh.get_params() == estimator.get_params()
    assert not hasattr(fresh, "classifier_")
    assert fresh.set_params(steps=7) is fresh
    assert (fresh.steps, estimator.steps) == (7, 3)
    assert not hasattr(pickle.loads(pickle.dumps(fresh)), "classifier_")
    with pytest.raises(ValueError, match="Invalid parameter 'stepps'"):
        fresh.set_params(stepps=1)


def test_pipeline_and_grid_search(make: Make) -> None:
    whole = make_pipeline(FunctionTransformer(lambda X: [x.lower() for x in X]), make(words=WORDS))
    grid = {
        "promptclassifier__learning_rate": [1e-9, 1e-2],
        "promptclassifier__words": [WORDS, {"pos": "bad", "neg": "good"}],
    }
    found = GridSearchCV(whole, grid, cv=2).fit(TEXTS, NAMES)
    assert len(found.cv_results_["params"]) == 4
    assert found.predict(TEXTS).shape == (12,)
    assert set(found.classes_) == {"neg", "pos"}
    search = GridSearchCV(make(words=WORDS), {"options": [None, {"strategy.alpha": 0.1}]}, cv=2)
    assert search.fit(TEXTS, NAMES, X_unlabeled=TEXTS[:3]).best_params_


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums differ in their last digits with the number of threads: one here and in other processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with parallel_config("loky", inner_max_num_threads=1):
        yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_other_processes(make: Make) -> None:
    """joblib sends estimators there, and fitted ones back."""
    numbered = make(words=["bad", "good"])
    voting = VotingClassifier(
        [("a", numbered), ("b", make(strategy="finetune"))], voting="soft", n_jobs=2
    )
    found = voting.fit(TEXTS, NAMES).predict_proba(TEXTS)
    own = np.mean([clone(e).fit(TEXTS, [int(n == "pos") for n in NAMES]).predict_proba(TEXTS)
                   for _, e in voting.estimators], axis=0)  # fmt: skip
    assert np.allclose(found, own, atol=1e-4)
    assert set(voting.predict(TEXTS)) <= {"neg", "pos"}
    scores = cross_val_score(make(words=WORDS), TEXTS, NAMES, cv=2, n_jobs=2)
    assert np.array_equal(scores, cross_val_score(make(words=WORDS), TEXTS, NAMES, cv=2))


def test_stacking(make: Make) -> None:
    parts = [("a", make(words=["bad", "good"])), ("b", make(strategy="zero-shot"))]
    stacked = StackingClassifier(parts, cv=2).fit(TEXTS, NAMES)
    assert stacked.predict_proba(TEXTS).shape == (12, 2)
    assert set(stacked.predict(TEXTS)) <= {"neg", "pos"}
    with pytest.raises(UserError, match="give words as a list"):
        StackingClassifier([("a", make(words=WORDS))], cv=2).fit(TEXTS, NAMES)


def test_several_labels_a_row(make: Make) -> None:
    """scikit-learn's own wrappers ask one question a label: does it fit?"""
    Y = np.array([[i % 2, i % 3 == 0] for i in range(12)], dtype=int)
    asked = make(templates="{{ text }} {{ mask }}", words=["bad", "good"], **LEARNS)
    rest = OneVsRestClassifier(asked).fit(TEXTS, Y)
    assert rest.multilabel_
    assert np.mean(rest.predict(TEXTS) == Y) > 0.9
    assert rest.predict_proba(TEXTS).shape == (12, 2)
    several = MultiOutputClassifier(asked).fit(TEXTS, Y)
    assert np.array_equal(several.predict(TEXTS), rest.predict(TEXTS))
    assert [p.shape for p in several.predict_proba(TEXTS)] == [(12, 2)] * 2
    classes = OneVsRestClassifier(asked).fit(TEXTS, ["x", "y", "z"] * 4)
    assert np.mean(classes.predict(TEXTS) == ["x", "y", "z"] * 4) > 0.9


def test_an_arrow_table_is_a_table(make: Make) -> None:
    arrow = pytest.importorskip("pyarrow").table({"text": TEXTS})
    fitted = make(words=WORDS).fit(arrow, NAMES)
    assert np.array_equal(fitted.predict_proba(arrow), fitted.predict_proba(TEXTS))
