"""scikit-learn's own checks of estimators on `PromptClassifier`, and what it says to bad input."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from estimating import NAMES, TEXTS, WORDS, Make, maker
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.utils import estimator_checks as checks
from sklearn.utils.validation import validate_data

from promptforge import PromptClassifier, Template, UserError
from promptforge.errors import PromptForgeError

#: They look at parameters and tags only.
OF_PARAMETERS = [
    "do_not_raise_errors_in_init_or_set_params", "estimator_cloneable", "estimator_repr",
    "estimator_tags_renamed", "get_params_invariance", "mixin_order", "no_attributes_set_in_init",
    "parameters_default_constructible", "set_params", "valid_tag_types",
]  # fmt: skip
#: They fit on matrices of numbers; `OnNumbers` writes each row as a text.
OF_FITTING = [
    "classifiers_classes", "classifiers_one_label", "classifiers_one_label_sample_weights",
    "classifiers_regression_target", "dict_unchanged", "dont_overwrite_parameters",
    "estimators_empty_data_messages", "estimators_fit_returns_self", "estimators_nan_inf",
    "estimators_overwrite_params", "estimators_pickle", "estimators_unfitted", "fit2d_1sample",
    "fit_check_is_fitted", "fit_idempotent", "fit_score_takes_y",
    "methods_sample_order_invariance", "non_transformer_estimators_n_iter",
    "pipeline_consistency", "positive_only_tag_during_fit", "requires_y_none", "sample_weights_list", "sample_weights_not_an_array",
    "sample_weights_not_overwritten", "sample_weights_pandas_series", "sample_weights_shape",
    "all_zero_sample_weights_error", "supervised_y_2d", "supervised_y_no_nan",
]  # fmt: skip
#: Left out, by reason.
LEFT_OUT = {
    "of the matrix X itself, which `OnNumbers` and not the estimator looks at": [
        "array_api_input", "classifier_data_not_an_array", "complex_data", "dtype_object",
        "estimator_sparse_array", "estimator_sparse_matrix", "estimator_sparse_tag",
        "estimators_dtypes", "f_contiguous_array_estimator", "fit1d", "fit2d_1feature",
        "fit2d_predict1d", "n_features_in", "n_features_in_after_fitting", "readonly_memmap_input",
    ],
    "of methods that it does not have": ["decision_proba_consistency", "estimators_partial_fit_n_features"],
    "needs a model that learns from numbers": ["classifiers_train", "class_weight_classifiers"],
    "asks for 1e-7, and float32 sums of batches of other sizes differ by more": [
        "methods_subset_invariance",
    ],
    "a row of weight 0 takes part in the order of the batches, so results are alike, not the same": [
        "sample_weight_equivalence_on_dense_data",
    ],
}  # fmt: skip


class OnNumbers(PromptClassifier):  # type: ignore[misc]
    """Texts of "good" and "bad" out of numbers, for checks that know only those."""

    def _texts(self, X: Any, reset: bool) -> list[str]:
        X = validate_data(self, X, reset=reset)
        return [" ".join("good" if x > 1 else "bad" if x < 0 else "film" for x in row) for row in X]

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        return super().fit(self._texts(X, True), y, sample_weight=sample_weight)

    def predict_proba(self, X: Any) -> Any:
        if not hasattr(self, "classifier_"):
            return super().predict_proba(["text"])  # raises
        return super().predict_proba(self._texts(X, False))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.one_d_array = True, False
        tags.classifier_tags.poor_score = True
        return tags


@pytest.fixture
def make(tiny_model: Callable[[str], Path]) -> Make:
    return maker(tiny_model)


def run_check(name: str, estimator: Any) -> None:
    getattr(checks, f"check_{name}")(type(estimator).__name__, clone(estimator))


@pytest.mark.parametrize("name", OF_PARAMETERS)
def test_checks_of_parameters(make: Make, name: str) -> None:
    run_check(name, make())


@pytest.mark.parametrize("name", OF_FITTING)
def test_checks_of_fitting(make: Make, name: str) -> None:
    run_check(name, OnNumbers(**make(steps=1, architecture="roberta").get_params()))


def test_no_check_is_forgotten(make: Make) -> None:
    estimator = OnNumbers(**make().get_params())
    named = {*OF_PARAMETERS, *OF_FITTING, *chain(*LEFT_OUT.values())}
    every = {
        getattr(c, "func", c).__name__ for c in checks._yield_all_checks(estimator, legacy=True)
    }
    assert {name.removeprefix("check_") for name in every} <= named


# --- bad input ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        ("one text", ["a"], "X is one str"),
        ({"text": TEXTS}, NAMES, "X is one dict"),
        (None, NAMES, "X is one NoneType"),
        (5, NAMES, "X is one int"),
        ([], [], "X has no rows (0 samples)"),
        ([1, 2], ["a", "b"], "X: row 1 is int; give texts"),
        (["x", None], ["a", "b"], "X: row 2 is NoneType"),
        (np.array([["x", "y"]] * 2), ["a", "b"], "X has the shape (2, 2)"),
        ([{"title": "x"}] * 2, ["a", "b"], "'text'"),
        (pd.DataFrame([["x"], ["y"]]), ["a", "b"], "Columns: 0."),
        ([{"text": "x"}, {"title": "x"}], ["a", "b"], "X: row 2 has no column 'text'. It has 'title'."),
        (["x", " "], ["a", "b"], "X: row 2 has no value in 'text' (row 1 is the first). Fill it in"),
        ([{"text": None}, {"text": "x"}], ["a", "b"], "X: row 1 has no value in 'text'"),
        (pd.DataFrame({"text": ["x", np.nan]}), ["a", "b"], "X: row 2 has no value in 'text'"),
        (TEXTS, NAMES[:-1], "X has 12 rows and y has 11"),
        (TEXTS, None, "the target y is None"),
        (TEXTS, ["pos"] * 12, "y has 1 class ('pos')"),
        (TEXTS, [NAMES] * 12, "y: give one label per row"),
        (TEXTS, np.linspace(0, 1, 12), "Unknown label type: continuous"),
        (TEXTS, np.array([1, "1"] * 6, dtype=object), "y: give one label per row, all of one type"),
        (TEXTS, ["a", "a "] * 6, "y has two labels that are written the same: 'a', 'a'"),
        (TEXTS, ["a", ""] * 6, "y: the label '' is empty"),
        (TEXTS, np.array(["a", None] * 6, dtype=object), "y: give one label per row"),
        (TEXTS, [1.0, np.nan] * 6, "y: give one label per row"),
    ],
)  # fmt: skip
def test_wrong_rows_and_labels(make: Make, X: Any, y: Any, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        make().fit(X, y)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sample_weight": [1.0] * 11}, "sample_weight: give 12 weights"),
        ({"sample_weight": [np.nan] + [1.0] * 11}, "sample_weight: give 12 weights of 0 or more"),
        ({"sample_weight": [-1.0] + [1.0] * 11}, "sample_weight: give 12 weights of 0 or more"),
        ({"sample_weight": ["heavy"] * 12}, "sample_weight: give 12 weights"),
        ({"sample_weight": [0] * 12}, "sample_weight is zero for all rows"),
        ({"X_dev": TEXTS}, "X_dev and y_dev belong together"),
        ({"y_dev": NAMES}, "X_dev and y_dev belong together"),
        ({"X_dev": TEXTS, "y_dev": NAMES[:2]}, "X_dev has 12 rows and y_dev has 2"),
        ({"X_dev": ["x"], "y_dev": ["mixed"]}, "X_dev: there are labels that y does not have: 'mixed'"),
        ({"X_unlabeled": ["x", ""]}, "X_unlabeled: row 2 has no value in 'text'"),
        ({"X_unlabeled": [{"title": "x"}]}, "X_unlabeled: row 1 has no column 'text'"),
    ],
)  # fmt: skip
def test_wrong_things_beside_them(make: Make, given: Any, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        make(words=WORDS).fit(TEXTS, NAMES, **given)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"words": {"pos": "good", "mixed": "so"}}, "do not have the same labels: 'mixed', 'neg'"),
        ({"words": ["good"]}, "words has 1 entries and y has 2 classes"),
        ({"words": "good"}, "words is one text"),
        ({"words": {"good", "bad"}}, "words is a set, which has no order"),
        ({"templates": []}, "templates is empty"),
        ({"templates": [Template("{{ text }} {{ mask }}")]}, "templates: 'template' is a Template: give its text"),
        ({"templates": "{{ text }}"}, "mask"),
        ({"templates": "{{ texts }} {{ mask }}"}, "'texts'"),
        ({"options": {"repetitions": 2}}, "options: 'repetitions': write role.option"),
        ({"options": {"demonstrations.seed": 2}}, "options: 'demonstrations.seed': write role.option"),
        ({"options": {"strategy.repetitions": 2}}, "has no option 'repetitions'"),
        ({"settings": {"step": 2}}, "There is no setting 'step'. Did you mean 'steps'?"),
        ({"settings": {"steps": 2}}, "settings: 'steps' is a parameter of its own"),
        ({"steps": 0}, "setting steps"),
        ({"strategy": "promt"}, "Did you mean 'prompt'?"),
        ({"strategy": "priming"}, "priming"),
        ({"dtype": "float8"}, "dtype 'float8'"),
        ({"device": "abacus"}, "device 'abacus'"),
        ({"class_weight": "even"}, "class weight 'even'"),
        ({"class_weight": {"positive": 1}}, "class weight for 'positive'"),
        ({"class_weight": {"pos": -1}}, "it must be 0 or more"),
        ({"class_weight": {"pos": float("nan")}}, "it must be 0 or more"),
        ({"dev_share": 1.5}, "dev_share=1.5"),
        ({"dev_share": 0.01}, "dev_share=0.01"),
        ({"random_state": "x"}, "random_state is 'x': give a whole number"),
    ],
)  # fmt: skip
def test_wrong_parameters(make: Make, parameters: Any, message: str) -> None:
    estimator = make(**{"words": WORDS, **parameters})  # nothing is looked at before fit
    with pytest.raises((UserError, PromptForgeError, ValueError), match=re.escape(message)):
        estimator.fit(TEXTS, NAMES)
    assert not hasattr(estimator, "classes_")


def test_before_and_after_fit(make: Make, tmp_path: Path) -> None:
    estimator = make(words=WORDS)
    for call in (estimator.predict, estimator.predict_proba, lambda X: estimator.save(tmp_path)):
        with pytest.raises(NotFittedError):
            call(TEXTS)
    estimator.fit(TEXTS, NAMES)
    expected = estimator.predict_proba(TEXTS)
    with pytest.raises(UserError, match=re.escape("X has no rows (0 samples)")):
        estimator.predict([])
    with pytest.raises(UserError, match="X: row 2 has no value in 'text'"):
        estimator.predict(["x", ""])
    with pytest.raises(UserError, match=re.escape("X: row 1 has no column 'text'")):
        estimator.predict([{"title": "x"}])
    # A fit that fails leaves what was there.
    with pytest.raises(UserError):
        estimator.set_params(strategy="promt").fit(TEXTS, ["a", "b"] * 6)
    assert estimator.classes_.tolist() == ["neg", "pos"]
    assert np.array_equal(estimator.predict_proba(TEXTS), expected)


def test_a_column_of_labels_is_taken_with_a_warning(make: Make) -> None:
    with pytest.warns(DataConversionWarning):
        make(words=WORDS).fit(TEXTS, np.array(NAMES)[:, None])
