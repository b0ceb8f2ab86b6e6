"""Numbers in place of labels: the formula, the gradient, the median, the figures, the commands."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from promptforge_multitask.mixture import TaskExamples
from promptforge_multitask.model import MultiTaskPromptModel
from scipy import stats

from promptforge import (
    Example,
    PromptModel,
    RegressionEvaluation,
    Scale,
    Settings,
    Task,
    Template,
    UserError,
    artifact,
    train,
)
from promptforge.plugins import build
from promptforge.selection import fit_selector
from promptforge.tuning.loop import Target
from promptforge.tuning.objectives import PromptObjective
from promptforge.tuning.tuner import Tuner

Command = Callable[..., Any]
Folder = Callable[[str], Path]
POLES = {"poor": ["bad"], "rich": ["good"]}


def task(scale: Scale) -> Task:
    made = Task.inline([Template("{{ text }} It was {{ mask }}", name="p")], labels=POLES)
    return replace(made, label_column="score", scale=scale)


def examples(numbers: list[float], scale: Scale) -> list[Example]:
    rows = [
        {"text": t, "score": n} for t, n in zip(tiny.corpus()[: len(numbers)], numbers, strict=True)
    ]
    poles = scale.poles(rows, "score", list(POLES), "here")
    return [
        Example(row, poles[f"{row['score']:g}"], i + 1, float(row["score"]))
        for i, row in enumerate(rows)
    ]


def test_numbers_that_are_all_equal(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("text,score\na film,3\na book,3\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"every row has the value '3'.*Add rows with other values"):
        task(Scale(1, 5)).examples(table)


# --- the formula ---------------------------------------------------------------------------


def test_numbers_and_shares_by_hand() -> None:
    scale = Scale(1, 5)
    # (y - l) / (u - l): (2 - 1) / 4 = 0.25.
    assert scale.shares(2) == (0.75, 0.25)
    assert scale.shares(1) == (1, 0) and scale.shares(5) == (0, 1)
    # l + (u - l) p: 1 + 4 * 0.25 = 2.
    found = scale.numbers(np.array([[0.75, 0.25], [1.0, 0.0], [0.0, 1.0], [0.1, 0.9]]))
    assert found.tolist() == pytest.approx([2, 1, 5, 4.6])
    ordinal = Scale(1, 5, round_to=(5, 1, 3))
    assert ordinal.numbers(np.array([[0.75, 0.25], [0.7, 0.3], [0.1, 0.9]])).tolist() == [1, 3, 5]
    for wrong in ((2, 2, ()), (3, 1, ()), (0, 1, (2,))):
        with pytest.raises(UserError, match="scale"):
            Scale(*wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
def test_the_gradient_is_that_of_the_kl_divergence(architecture: str) -> None:
    backbone = tiny.backbone(architecture)
    scale = Scale(0, 5)
    row = {"text": "A film that goes on."}
    target = Target(row, scale.shares(2.0))
    assert target.shares == (0.6, 0.4)
    model = PromptModel(backbone, task(scale), remember=False)
    objective = PromptObjective(model, "p", build("method", "all"), [target])
    objective.eval()
    parameters = list(objective.trained().values())
    loss = objective([target], 0)[0]
    given = torch.autograd.grad(loss, parameters, allow_unused=True)
    # KL(q || p) with q = (0.6, 0.4), written out; cross-entropy differs by the entropy of q.
    bad = objective([Target(row, (1.0, 0.0))], 0)[0]  # -log p(poor)
    good = objective([Target(row, (0.0, 1.0))], 0)[0]
    q = torch.tensor([0.6, 0.4])
    kl = q[0] * (q[0].log() + bad) + q[1] * (q[1].log() + good)
    wanted = torch.autograd.grad(kl, parameters, allow_unused=True)
    entropy = -(q * q.log()).sum()
    assert loss.item() == pytest.approx((kl + entropy).item(), abs=1e-5)
    for one, other in zip(given, wanted, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, atol=1e-6)
    objective.close()


def test_predictions_lie_on_the_scale_and_fit_their_probabilities() -> None:
    scale = Scale(-2, 3)
    model = PromptModel(tiny.backbone("bert"), task(scale))
    rows = [{"text": t} for t in tiny.corpus()[:20]]
    p = model.predict_proba(rows)
    found = model.predict(rows)
    assert found == pytest.approx((-2 + 5 * p[:, 1]).tolist())
    assert all(-2 <= y <= 3 for y in found) and len({round(y, 4) for y in found}) > 5


# --- the median ----------------------------------------------------------------------------


def test_rows_lie_on_either_side_of_the_median() -> None:
    scale = Scale(0, 5)
    sides = [e.label for e in examples([0.5, 4, 3, 2, 5], scale)]  # the median, 3, is low
    assert sides == ["poor", "rich", "poor", "poor", "rich"]
    assert [e.label for e in examples([5, 5, 5, 1], scale)] == ["rich", "rich", "rich", "poor"]
    with pytest.raises(UserError, match="here: row 2, column 'score': 7 is not on the scale"):
        scale.poles([{"score": "1"}, {"score": 7}], "score", list(POLES), "here")
    with pytest.raises(UserError, match="'many' is not a number"):
        scale.poles([{"score": "many"}], "score", list(POLES), "here")
    with pytest.raises(
        UserError, match=r"here: row 2, column 'score': \[3\] is a list; a label is"
    ):
        scale.poles([{"score": 3}, {"score": [3]}], "score", list(POLES), "here")
    with pytest.raises(UserError, match="not on the scale"):
        scale.number("nan")


def test_demonstrations_come_from_each_side_of_the_median() -> None:
    scale = Scale(0, 10)
    rows = examples([float(n) for n in range(10)], scale)  # the median is 4.5
    selector = build("demonstrations", "random", seed=3)
    fit_selector(selector, rows, list(POLES), columns=["text"])
    for draw in range(8):
        low, high = selector.sample({"text": "Another text."}, draw)
        assert low.value < 4.5 < high.value
    shown = replace(
        task(scale),
        patterns=Task.inline(
            [Template("{% for d in demos %}{{ d.prompt }} {% endfor %}{{ text }} It was {{ mask }}", name="p")],
            labels=POLES,
        ).patterns,
    )  # fmt: skip
    text = str(
        PromptModel(tiny.backbone("bert"), shown, demonstrations=selector).prompt(
            "p", {"text": "X"}
        )
    )
    assert "It was bad" in text and "It was good" in text


# --- figures and training ------------------------------------------------------------------


def test_figures_are_those_of_scipy() -> None:
    truth, predicted = [1.0, 2.0, 4.0, 3.5], np.array([1.5, 1.0, 3.0, 4.0])
    found = RegressionEvaluation.of(truth, predicted)
    assert found.pearson == pytest.approx(stats.pearsonr(truth, predicted).statistic)
    assert found.spearman == pytest.approx(stats.spearmanr(truth, predicted).statistic)
    # errors 0.5, -1, -1, 0.5
    assert found.mae == pytest.approx(0.75) and found.rmse == pytest.approx((2.5 / 4) ** 0.5)
    assert found.mean_rmse == pytest.approx(np.std(truth))
    low, high = stats.pearsonr(truth, predicted).confidence_interval()
    assert found.interval == pytest.approx((low, high), abs=1e-4)
    flat = RegressionEvaluation.of(truth, np.full(4, 2.0))
    assert flat.pearson is None and flat.interval is None and flat.headline == 0


@pytest.mark.parametrize("strategy", ["prompt", "finetune", "ensemble"])
def test_training_learns_numbers_and_keeps_the_scale(strategy: str, tmp_path: Path) -> None:
    scale = Scale(1, 5, round_to=())
    rows = examples([1.0, 5.0, 2.0, 4.0, 3.0, 1.5], scale)
    run = train(
        task(scale), rows, backbone=tiny.backbone("bert"), strategy=strategy, test=rows, dev=rows,
        settings=Settings(steps=60, batch_size=6, learning_rate=5e-3, dropout=False),
    )  # fmt: skip
    figures = run.figures("test")
    assert isinstance(figures, RegressionEvaluation)
    assert figures.rmse < 0.5 < figures.mean_rmse and figures.headline > 0.9
    found = run.classifier.predict([e.row for e in rows])
    artifact.save(run.classifier, tmp_path / "kept")
    again = artifact.load(tmp_path / "kept", backbone=tiny.backbone("bert"))
    assert again.scale == scale
    assert again.predict([e.row for e in rows]) == pytest.approx(found, abs=1e-5)


def test_targets_are_numbers_places_in_every_objective() -> None:
    scale = Scale(0, 4)
    rows = examples([1.0, 3.0], scale)
    tuner = Tuner(tiny.backbone("bert"), task(scale), rows)
    assert [t.shares for t in tuner.targets()] == [(0.75, 0.25), (0.25, 0.75)]
    model = MultiTaskPromptModel(tiny.backbone("bert"))
    model.fit([TaskExamples(task(scale), rows)], settings=Settings(steps=1, batch_size=2))
    assert model.trained is not None and np.isfinite(model.trained.loss)


def test_what_counts_right_labels_is_refused() -> None:
    from promptforge import search_verbalizer

    scale = Scale(0, 4)
    rows = examples([1.0, 3.0], scale)
    backbone = tiny.backbone("bert")
    with pytest.raises(UserError, match="A search for label words counts right labels"):
        search_verbalizer(PromptModel(backbone, task(scale)), rows)
    with pytest.raises(UserError, match="strategy 'pet'"):
        train(task(scale), rows, backbone=backbone, strategy="pet", unlabeled=[rows[0].row])
    with pytest.raises(UserError, match=r"training rows: row 2 has no number.*Example\.value"):
        train(task(scale), [rows[0], replace(rows[1], value=None)], backbone=backbone)
    long = replace(task(scale), labels={"poor": ["xylophonically"], "rich": ["good"]})
    with pytest.raises(UserError, match="words of one token"):
        train(long, rows, backbone=backbone)


# --- the commands --------------------------------------------------------------------------


def folder(path: Path, scale: str) -> Path:
    path.mkdir()
    (path / "it-was.jinja").write_text("{{ text }} It was {{ mask }}", encoding="utf-8")
    (path / "task.toml").write_text(
        'name = "stars"\n[columns]\ninputs = ["text"]\nlabel = "stars"\n[labels]\n'
        f'poor = ["bad"]\nrich = ["good"]\n[scale]\n{scale}\n'
        '[data]\ntrain = "train.csv"\ntest = "test.csv"\n', encoding="utf-8",
    )  # fmt: skip
    for split, start in (("train", 0), ("test", 30)):
        with (path / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "stars"])
            writer.writerows(
                [t, 1 + i % 5] for i, t in enumerate(tiny.corpus()[start : start + 15])
            )
    return path


def test_the_commands(command: Command, tiny_model: Folder, tmp_path: Path) -> None:
    stars = folder(tmp_path / "stars", "low = 1\nhigh = 5\nround_to = [1, 2, 3, 4, 5]")
    base = (stars, "--model", tiny_model("bert"))
    found = command("evaluate", *base, "--json").json["it-was"]
    assert set(found) == {"rows", "pearson", "spearman", "mae", "rmse", "mean_rmse", "interval"}
    assert found["rows"] == 15 and found["mean_rmse"] == pytest.approx(2**0.5)
    ran = command(
        "train",
        *base,
        "--shots",
        "3",
        "--steps",
        "2",
        "--strategy",
        "lm-bff",
        "-o",
        "filter=false",
        "--run",
        "r",
    )
    assert ran.code == 0, ran.err
    assert "Pearson" in ran.out and "always the mean" in ran.out
    assert "Pearson" in command("evaluate", "r", "--data", stars / "test.csv").out
    told = command("predict", "r", "--data", stars / "test.csv").out
    rows = list(csv.DictReader(told.splitlines()))
    assert {float(row["prediction"]) for row in rows} <= {1, 2, 3, 4, 5}
    for row in rows:
        assert round(1 + 4 * float(row["probability_rich"])) == float(row["prediction"])
    assert command("runs", "show", "r").code == 0 and command("runs", "list").code == 0
    # The task's mistakes.
    for i, (scale, message) in enumerate(
        [
            ("low = 5\nhigh = 1", "task.toml: scale: low is 5 and high 1; low must be less"),
            ("low = 1\nhigh = inf", "task.toml: scale: high is inf; it must be a number"),
            ("low = 1", "task.toml: scale.high: this key is missing"),
            ("low = 2\nhigh = 5", "row 1, column 'stars': 1 is not on the scale"),
        ]
    ):
        wrong = folder(tmp_path / f"wrong-{i}", scale)
        refused = command("evaluate", wrong, "--model", tiny_model("bert"))
        assert refused.code == 2 and message in refused.err
