"""Exits in a run's folder: templates that read more than texts, what stays there, the curve's options."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plain_tuning as plain
import pytest
from conftest import Ran

from promptforge import (
    Example,
    Scale,
    Settings,
    Task,
    Template,
    UserError,
    artifact,
    exit_curve,
    train,
)
from promptforge.exits.model import set_policy
from promptforge.exits.train import TwoStage
from promptforge.progress import Reporter
from promptforge.tuning import loop

FAST = Settings(steps=2, batch_size=4, precision="float32", learning_rate=1e-3)


class Heard(Reporter):
    """Keeps what it is warned of."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(scope="module")
def scaled() -> tuple[Any, list[Example]]:
    """A model with exits that predicts numbers, and its rows."""
    backbone = plain.fresh("bert")
    backbone.model.float()
    first, second = plain.some_words(backbone, 2)
    task = Task.inline(
        [Template(plain.PATTERN, name="p")], labels={"low": [first], "high": [second]}
    )
    rows = plain.rows(0, 12)
    examples = [Example(r, "low", i + 1, value=float(i % 11)) for i, r in enumerate(rows)]
    made = train(
        replace(task, scale=Scale(0, 10)), examples, backbone=backbone, settings=FAST, exits="joint"
    )
    return made.classifier, examples


@pytest.mark.parametrize("exits", ["joint", "two-stage"])
def test_a_template_may_count_with_a_column(exits: str, tmp_path: Path) -> None:
    """No row that is in no table is rendered: `n` is a number in all of them."""
    backbone = plain.fresh("bert")
    backbone.model.float()
    first, second = plain.some_words(backbone, 2)
    task = Task.inline(
        [Template("{{ text }} ({{ n + 1 }} words) It was {{ mask }}", name="p")],
        labels={"neg": [first], "pos": [second]}, inputs=["text", "n"],
    )  # fmt: skip
    rows = [{**row, "n": i} for i, row in enumerate(plain.rows(0, 12))]
    examples = [Example(row, ("neg", "pos")[i % 2], i + 1) for i, row in enumerate(rows)]
    made: Any = train(
        task, examples, backbone=backbone, settings=FAST, run=tmp_path / "run",
        exits=TwoStage(steps=2) if exits == "two-stage" else exits,
    ).classifier  # fmt: skip
    again: Any = artifact.load(tmp_path / "run", backbone=backbone)
    for layer in (1, 2):
        for model in (made, again):
            set_policy(model, "layer", {"layer": layer})
        found = again.predict_proba(rows)
        assert np.abs(found - made.predict_proba(rows)).max() < 1e-6
    assert np.abs(found - made.plain.predict_proba(rows)).max() < 1e-6


def test_exits_that_are_trained_leave_no_checkpoint_and_are_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = plain.fresh("bert")
    tuner = plain.of_every_label(plain.tuner(backbone))

    def go(steps: int = 3, **more: Any) -> Any:
        return train(
            tuner.task, tuner.train, backbone=backbone, settings=FAST, run=tmp_path / "run",
            exits=TwoStage(steps=steps), compare_untrained=False, **more,
        )  # fmt: skip

    first = go()
    assert not list(tmp_path.rglob("*.parts"))
    monkeypatch.setattr(loop.Training, "_update", None)  # a call would fail
    again = go(resume=True)
    assert again.trained["exits"].curve == first.trained["exits"].curve
    set_policy(first.classifier, "layer", {"layer": 1})
    set_policy(again.classifier, "layer", {"layer": 1})
    rows = plain.rows(30, 36)
    expected = first.classifier.predict_proba(rows)
    assert np.abs(again.classifier.predict_proba(rows) - expected).max() < 1e-6
    # Those of another training are not taken for these.
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"steps": 3', '"steps": 4'))
    with pytest.raises(UserError, match=r"exits\.safetensors was trained on other data"):
        go(steps=4, resume=True)


def test_the_curve_tries_the_threshold_itself(scaled: tuple[Any, list[Example]]) -> None:
    model, examples = scaled
    with pytest.raises(UserError, match=r"patience\.patience is what the curve tries"):
        exit_curve(model, examples, options={"patience": {"patience": 1, "difference": 0.2}})


def test_a_policy_that_was_named_and_has_no_curve_is_said(
    scaled: tuple[Any, list[Example]],
) -> None:
    model, examples = scaled
    few: dict[str, Any] = {"timed_rows": 2, "repeats": 1, "batch_sizes": [2]}
    report = Heard()
    found = exit_curve(
        model, examples, policies=["confidence", "patience"], report=report, **few,
        options={"patience": {"difference": 0.2}},
    )  # fmt: skip
    assert {p.policy for p in found.points} == {"patience"}
    assert [p.threshold for p in found.points] == [p.options["patience"] for p in found.points]
    assert [w for w in report.warnings if "confidence" in w and "patience" not in w]
    report = Heard()
    exit_curve(model, examples, report=report, **few)  # nobody asked for confidence
    assert not report.warnings


def test_the_curves_column_has_the_threshold(
    command: Callable[..., Ran], tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    """Not the last option, which may be another one."""
    first, second = plain.some_words(plain.fresh("bert"), 2)
    table = tmp_path / "rows.jsonl"
    rows = [{**row, "label": i % 11} for i, row in enumerate(plain.rows(0, 12))]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "stars"
    folder.mkdir()
    (folder / "p.jinja").write_text(plain.PATTERN)
    (folder / "task.toml").write_text(
        'name = "stars"\n[columns]\ninputs = ["text"]\nlabel = "label"\n[labels]\n'
        f'low = ["{first}"]\nhigh = ["{second}"]\n[scale]\nlow = 0\nhigh = 10\n'
    )
    ran = command("train", folder, "--data", table, "--model", tiny_model("bert"), "--exits", "joint",
                  "--steps", 1, "--run", "run", "--no-compare-untrained")  # fmt: skip
    assert ran.code == 0, ran.err
    base = ("exit-curve", "run", "--data", table, "--policies", "patience", "--max-drop", 1000,
            "--timed-rows", 2, "--repeats", 1, "--batch-size", 2)  # fmt: skip
    ran = command(*base, "-o", "patience.difference=0.2")
    (line,) = [line for line in ran.out.splitlines() if line.strip().startswith("patience")]
    assert line.replace("│", " ").split()[1] == "1"
    refused = command(*base, "-o", "patience.patience=1", "-o", "patience.difference=0.2")
    assert refused.code == 2
    assert "patience.patience is what the curve tries" in refused.err
    assert "Loading" not in refused.err
