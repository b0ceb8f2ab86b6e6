"""Several labels a row: the expansion, the draw, the threshold, the figures, the commands."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
from labelling import KIND, LABELS, LEARNS, QUESTION, WORDS, films_folder, rows_of, some, task
from sklearn import metrics

from promptforge import (
    Example,
    MultiLabelEvaluation,
    MultiLabelModel,
    PromptClassifier,
    PromptModel,
    Settings,
    Task,
    Template,
    UserError,
    artifact,
    train,
)
from promptforge.multilabel import best_threshold
from promptforge.plugins import build
from promptforge.selection import fit_selector

Command = Callable[..., Any]
Folder = Callable[[str], Path]


@pytest.fixture
def films(tmp_path: Path) -> Path:
    return films_folder(tmp_path)


# --- labels of rows ------------------------------------------------------------------------


def test_a_cell_holds_several_labels_or_none() -> None:
    for cell in ("plot,price", " price , plot,", ["plot", "price"], np.array(["price", "plot"])):
        assert KIND.read(cell) == ("price", "plot")
    for cell in ("", " ", None, float("nan"), [], ","):
        assert KIND.read(cell) == ()
    assert KIND.read("1", {"1": "cast"}) == ("cast",)
    with pytest.raises(
        UserError, match=r"'plto' is not one of the task's labels.*Did you mean 'plot'"
    ):
        KIND.read("price,plto")
    with pytest.raises(UserError, match="a dict"):
        KIND.read([{}])


def test_tables_give_the_same_rows(films: Path) -> None:
    read = Task.load(films)
    truth = [[bool(i >> k & 1) for k in range(3)] for i in range(16)]
    for split in ("dev", "test"):
        found = read.examples(split)
        assert [[label in (e.labels or ()) for label in LABELS] for e in found] == truth
    table = films / "dev.parquet"
    pd.DataFrame([e.row for e in some(16, 60)]).to_parquet(table)
    assert [e.labels for e in read.examples(table)] == [e.labels for e in read.examples("dev")]
    assert Task.from_json(json.loads(json.dumps(read.to_json()))).multi_label == read.multi_label


# --- the expansion -------------------------------------------------------------------------


def test_questions_are_rows_by_labels() -> None:
    examples = rows_of([["plot"], [], ["price", "cast"]])
    found = KIND.questions(examples)
    assert [(e.row["text"], e.row["label"], e.label) for e in found] == [
        (e.row["text"], label, "yes" if label in e.row["topics"] else "no")
        for e in examples
        for label in LABELS
    ]
    assert [e.number for e in found] == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_probabilities_are_those_of_the_questions() -> None:
    backbone = tiny.backbone("bert")
    rows = [e.row for e in some(5)]
    model = MultiLabelModel(PromptModel(backbone, task().binary), KIND)
    found = model.predict_proba(rows)
    for j, label in enumerate(LABELS):
        one = Task.inline([Template(QUESTION.replace("{{ label }}", label))], labels=WORDS)
        alone = PromptModel(backbone, one).predict_proba([{"text": r["text"]} for r in rows])
        assert np.allclose(found[:, j], alone[:, 1], atol=1e-5)
    assert model.predict(rows) == [
        [label for label, p in zip(LABELS, row, strict=True) if p >= 0.5] for row in found
    ]
    every = MultiLabelModel(model.binary, KIND, threshold=0.0)
    assert every.predict(rows) == [list(LABELS)] * len(rows)


def test_another_question_about_a_text_does_not_demonstrate_it() -> None:
    questions = KIND.questions(some(4))
    selector = build("demonstrations", "random", seed=1)
    fit_selector(selector, questions, ["no", "yes"], columns=task().binary.inputs)
    for question in questions:
        for draw in range(5):
            shown = selector.sample(question.row, draw)
            assert len(shown) == 2
            assert all(d.row["text"] != question.row["text"] for d in shown)


# --- the draw ------------------------------------------------------------------------------


def test_a_draw_has_k_rows_a_label_and_no_text_twice() -> None:
    examples = some(64) + some(64)  # every text twice
    kept, held = KIND.sample_shots(examples, 4, 7, ["text"])
    texts = [e.row["text"] for e in kept + held]
    assert len(set(texts)) == len(texts) == 2 * 4 * 4  # three labels, and rows without any
    for part in (kept, held):
        assert all(sum(label in (e.labels or ()) for e in part) >= 4 for label in LABELS)
        assert sum(not e.labels for e in part) == 4
    assert KIND.sample_shots(examples, 4, 7, ["text"]) == (kept, held)
    assert KIND.sample_shots(examples, 4, 7, ["text"], dev=False) == (kept, [])
    assert KIND.sample_shots(examples, 2, 7, ["text"])[0] == kept[:8]
    assert KIND.sample_shots(examples, 4, 8, ["text"])[0] != kept
    with pytest.raises(UserError, match="shots is 0"):
        KIND.sample_shots(examples, 0, 7, ["text"])


def test_too_few_rows_for_a_draw() -> None:
    examples = rows_of([["price"]] * 9 + [["plot"]] * 9 + [["cast"]] * 5)
    with pytest.raises(
        UserError, match=r"'cast' has 5 rows .* 3 for training and 3 for dev"
    ) as told:
        KIND.sample_shots(examples, 3, 1, ["text"])
    assert "largest possible number of shots is 2" in str(told.value)
    kept, held = KIND.sample_shots(examples, 2, 1, ["text"])
    assert len(kept) == len(held) == 6


# --- the threshold and the figures ---------------------------------------------------------


def test_the_threshold_has_the_best_micro_f1() -> None:
    random = np.random.default_rng(1)
    for _ in range(50):
        p = 0.05 + 0.9 * random.random((7, 3)).round(1)
        truth = random.random((7, 3)) < 0.4
        t = best_threshold(p, truth)

        def f1(at: float, p: Any = p, truth: Any = truth) -> float:
            y = p >= at
            return float(2 * (truth & y).sum() / max(truth.sum() + y.sum(), 1))

        assert f1(t) == pytest.approx(max(f1(at) for at in np.linspace(0, 1, 101)))
        assert 0 <= t <= 1
    assert best_threshold(p, np.zeros_like(truth)) == 0.5
    # Both lie between 0.2 and 0.9, where every threshold is as good: the middle.
    assert best_threshold(np.array([[0.2, 0.9]]), np.array([[False, True]])) == pytest.approx(0.55)


def test_figures_are_scikit_learns() -> None:
    random = np.random.default_rng(3)
    truth, p = random.random((40, 3)) < [0.1, 0.5, 0.7], random.random((40, 3))
    found = MultiLabelEvaluation.of(truth, p, LABELS, 0.4)
    y = p >= 0.4
    assert found.micro_f1 == pytest.approx(metrics.f1_score(truth, y, average="micro"))
    assert found.macro_f1 == pytest.approx(metrics.f1_score(truth, y, average="macro"))
    assert found.exact_match == pytest.approx(metrics.accuracy_score(truth, y))
    assert found.hamming_loss == pytest.approx(metrics.hamming_loss(truth, y))
    report = metrics.classification_report(truth, y, target_names=LABELS, output_dict=True)
    for label, row in found.per_label.items():
        assert row["f1"] == pytest.approx(report[label]["f1-score"])
        for key in ("precision", "recall", "support"):
            assert row[key] == pytest.approx(report[label][key])
    # The best of all guesses that are the same for every row.
    guesses = [[bool(i >> k & 1) for k in range(3)] for i in range(8)]
    scores = [
        metrics.f1_score(truth, np.tile(g, (40, 1)), average="micro", zero_division=0)
        for g in guesses
    ]
    best = guesses[int(np.argmax(scores))]
    assert found.constant["micro_f1"] == pytest.approx(max(scores))
    assert found.constant["labels"] == [n for n, has in zip(LABELS, best, strict=True) if has]
    assert found.constant["exact_match"] == pytest.approx((truth == best).all(1).mean())
    made = json.loads(json.dumps(found.to_json()))
    assert made["micro_f1"] == found.headline and made["interval"] == list(found.interval or ())


def test_figures_without_any_label() -> None:
    none = np.zeros((4, 3), dtype=bool)
    found = MultiLabelEvaluation.of(none, np.full((4, 3), 0.1), LABELS)
    assert (found.micro_f1, found.exact_match, found.hamming_loss) == (0, 1, 0)
    assert found.interval is None and found.macro_f1 == 0
    right = MultiLabelEvaluation.of(~none, np.ones((4, 3)), LABELS)
    assert right.micro_f1 == 1 and right.interval is not None
    assert right.interval[0] < 0.9 and right.interval[1] == pytest.approx(1)


def test_the_interval_holds_the_true_figure() -> None:
    """In 95 of 100 samples of rows whose labels are wrong together."""
    random = np.random.default_rng(5)

    def sample(rows: int) -> tuple[Any, Any]:
        truth = random.random((rows, 3)) < 0.5
        spoilt = random.random(rows) < 0.3
        return truth, np.where(spoilt[:, None], ~truth, truth).astype(float)

    population = MultiLabelEvaluation.of(*sample(200_000), LABELS).micro_f1
    inside = 0
    for _ in range(400):
        interval = MultiLabelEvaluation.of(*sample(60), LABELS).interval
        assert interval is not None
        inside += interval[0] <= population <= interval[1]
    assert 0.92 <= inside / 400 <= 0.99


# --- training ------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["prompt", "finetune", "ensemble", "lm-bff", "pet"])
def test_strategies_learn_label_sets(strategy: str, tmp_path: Path) -> None:
    rows = some(8)
    options = {
        "lm-bff": {"filter": False},
        "pet": {"repetitions": 1, "final_steps": 3},
        "ensemble": {"repetitions": 1},
    }
    made = build("strategy", strategy, **options.get(strategy, {}))
    learns = strategy in ("prompt", "finetune")
    run = train(
        task(), rows, backbone=tiny.backbone("bert"), strategy=made, dev=rows, test=rows,
        unlabeled=[{"text": t} for t in tiny.corpus()[20:24]], run=tmp_path / "run",
        settings=LEARNS if learns else Settings(steps=3, batch_size=4),
    )  # fmt: skip
    assert isinstance(run.classifier, MultiLabelModel)
    figures = run.figures("test")
    assert isinstance(figures, MultiLabelEvaluation)
    assert figures.rows == 8 and (figures.micro_f1 > 0.9 or not learns)
    p = run.classifier.predict_proba([e.row for e in rows])
    truth = KIND.indicator(rows)
    assert run.classifier.threshold == pytest.approx(best_threshold(p, truth))
    assert figures.threshold == run.classifier.threshold
    again = artifact.load(tmp_path / "run", backbone=tiny.backbone("bert"))
    assert isinstance(again, MultiLabelModel)
    assert (again.labels, again.threshold) == (LABELS, run.classifier.threshold)
    assert again.multi_label == KIND
    assert np.allclose(again.predict_proba([e.row for e in rows]), p, atol=1e-5)
    assert again.predict([e.row for e in rows]) == run.classifier.predict([e.row for e in rows])
    config = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert config["task"]["multi_label"]["labels"] == list(LABELS)
    assert config["rows"] == {"train": 8, "dev": 8, "unlabeled": 4}


def test_the_threshold_without_dev_rows_and_a_given_one() -> None:
    options: dict[str, Any] = {
        "backbone": tiny.backbone("bert"), "strategy": "zero-shot", "test": some(8),
    }  # fmt: skip
    run = train(task(), some(8), **options)
    assert run.figures("test").threshold == 0.5  # type: ignore[union-attr]
    fixed = task(multi_label=replace(KIND, threshold=0.3))
    run = train(fixed, some(8), dev=some(8), **options)
    assert run.figures("test").threshold == 0.3  # type: ignore[union-attr]


def test_row_weights_and_class_weights_are_of_rows_and_answers() -> None:
    run = train(
        task(), some(8), backbone=tiny.backbone("bert"), row_weights=[1.0, 2.0] * 4,
        class_weight="balanced", settings=Settings(steps=1),
    )  # fmt: skip
    assert isinstance(run.classifier, MultiLabelModel)
    with pytest.raises(UserError, match="class weight for 'price'"):
        train(task(), some(8), backbone=tiny.backbone("bert"), class_weight={"price": 2.0})


def test_what_wants_one_label_is_refused() -> None:
    from promptforge import search_verbalizer
    from promptforge.tuning.tuner import Tuner

    backbone, rows = tiny.backbone("bert"), some(8)
    with pytest.raises(UserError, match=r"A search for label words .* \[multi_label\]"):
        search_verbalizer(PromptModel(backbone, task()), rows)
    with pytest.raises(UserError, match="MultiLabelModel"):
        asked = [replace(e, row={**e.row, "label": "price"}) for e in rows]
        PromptModel(backbone, task().binary).evaluate(asked)
    with pytest.raises(UserError, match="one label a row"):
        Tuner(backbone, task(), rows).targets()
    single = [Example({"text": "x"}, "price", 1)]
    with pytest.raises(UserError, match=r"Example\.labels"):
        train(task(), single, backbone=backbone)
    strange = replace(rows[1], labels=("prize",))
    with pytest.raises(UserError, match=r"dev rows: row 2: the label 'prize' is not .* 'price'"):
        train(task(), rows, backbone=backbone, dev=[strange])


# --- scikit-learn --------------------------------------------------------------------------


def test_the_estimator_takes_an_indicator(tiny_model: Folder, tmp_path: Path) -> None:
    texts, truth = list(tiny.corpus()[:8]), KIND.indicator(some(8))
    made = PromptClassifier(
        QUESTION, WORDS, labels=list(LABELS), model=str(tiny_model("bert")), steps=60, batch_size=12,
        learning_rate=5e-3, settings={"dropout": False},
    )  # fmt: skip
    made.fit(texts, truth.astype(int))
    assert made.classes_.tolist() == list(LABELS)
    found, p = made.predict(texts), made.predict_proba(texts)
    assert found.shape == p.shape == (8, 3) and found.dtype.kind == "i"
    assert np.array_equal(found, p >= 0.5)
    assert metrics.f1_score(truth, found, average="micro") > 0.9
    assert made.score(texts, truth.astype(int)) == (found == truth).all(1).mean()
    again = pickle.loads(pickle.dumps(made))
    assert np.array_equal(again.predict(texts), found)
    made.save(tmp_path / "kept")
    assert np.array_equal(PromptClassifier.load(tmp_path / "kept").predict(texts), found)
    made.set_params(labels=[1, 2, 3], steps=1).fit(texts, truth.astype(int))
    assert made.classes_.tolist() == ["1", "2", "3"]
    # A table names its columns; a share of the rows chooses the threshold.
    made.set_params(labels=None, dev_share=0.25, steps=2)
    made.fit(texts, pd.DataFrame(truth, columns=list(LABELS)))
    assert made.classifier_.threshold != 0.5  # type: ignore[union-attr]


def test_wrong_indicators(tiny_model: Folder) -> None:
    texts, truth = list(tiny.corpus()[:8]), KIND.indicator(some(8)).astype(int)

    def refused(message: str, y: Any, **parameters: Any) -> None:
        made = PromptClassifier(
            **{
                "templates": QUESTION,
                "words": WORDS,
                "model": str(tiny_model("bert")),
                **parameters,
            }
        )
        with pytest.raises(UserError, match=message):
            made.fit(texts, y)

    refused("names of its columns.*OneVsRestClassifier", truth)
    refused("a column of zeros and ones for each of", truth, labels=["a", "b"])
    refused("labels name the columns of a two-dimensional y", list("abababab"), labels=["a", "b"])
    refused("asks about no label", truth, labels=LABELS, templates="{{ text }} {{ mask }}")
    refused("words and y do not have the same labels", truth, labels=LABELS, words={"a": "b"})
    refused("'a' is there twice", truth, labels=["a", "a", "b"])
