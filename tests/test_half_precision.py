"""What is trained beside a model in half precision stays in single precision, so small steps count."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import plain_tuning as plain
import pytest
import tiny
import torch

from promptforge import UserError, artifact, load_model, train
from promptforge.exits.exits import mean_of_rows
from promptforge.exits.model import exit_model, set_policy
from promptforge.exits.train import TwoStage
from tests import adding

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"targets": "all"}),
    "dora": ("lora", {"options": {"use_dora": True}}),
    "ia3": ("ia3", {}),
    "loha": ("peft", {"config": "loha", "options": {"r": 2}}),
    "pfeiffer": ("pfeiffer", {"size": 4}),
    "all-parts": ("adapter", {"norm": True, "composition": "gated", "form": "parallel", "size": 4}),
    "multi-head": ("adapter", {"form": "multi-head", "at": "attention", "size": 3}),
    "prompt-tuning": ("prompt-tuning", {"tokens": 3}),
    "p-tuning": ("p-tuning", {"tokens": 3}),
    "mam": ("mam", {"methods": {"prefix": {"length": 3}, "scaled-parallel": {"size": 4}}}),
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_a_model_in_bfloat16_learns_by_small_steps(
    method: str, precision: str, tmp_path: Path
) -> None:
    backbone = tiny.fresh("bert")
    backbone.model.bfloat16()
    unchanged = adding.snapshot(backbone)
    name, options = METHODS[method]
    tuner = adding.tuner(backbone, name, steps=4, **options)
    tuner.settings = tuner.settings.model_copy(
        update={
            "learning_rate": 1e-3,
            "warmup": 0.0,
            "schedule": "constant",
            "precision": precision,
        }
    )
    still = tuner.settings.model_copy(update={"learning_rate": 1e-12})
    moving, tuner.settings = tuner.settings, still
    before = adding.trained(tuner).weights.added.tensors()  # type: ignore[union-attr]
    tuner.settings, tuner.trained = moving, {}
    made = adding.trained(tuner)
    assert made.weights is not None and made.weights.added is not None
    after = made.weights.added.tensors()
    assert before.keys() == after.keys() and after
    assert {t.dtype for t in after.values()} == {torch.float32}
    for part, value in after.items():
        # Steps of 1e-3 on factors of one: bfloat16 has none between 1 and 1.008.
        assert 0 < float((value - before[part]).abs().max()) < 0.1, part
    assert unchanged()
    rows = [e.row for e in tuner.train]
    expected = made.predict_proba(rows)
    artifact.save(made, tmp_path / "made")
    backbone.apply(None)
    assert (
        artifact.load(tmp_path / "made", backbone=backbone).predict_proba(rows) == expected
    ).all()
    backbone.apply(None)


@pytest.mark.parametrize(("method", "warned"), [("all", True), ("houlsby", True), ("lora", False)])
def test_the_models_own_weights_in_half_precision_are_warned_of(method: str, warned: bool) -> None:
    backbone = tiny.fresh("bert")
    backbone.model.bfloat16()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        adding.trained(adding.tuner(backbone, method))
    said = ["Weights in bfloat16 are trained" in str(w.message) for w in told]
    assert any(said) == warned


@pytest.mark.parametrize("kind", ["lora", "ia3", "pfeiffer", "all-parts"])
def test_states_stay_in_the_models_precision(kind: str) -> None:
    """And what is added is near that of the same model in single precision."""
    name, options = METHODS[kind]
    found = []
    for half in (False, True):
        backbone = tiny.fresh("bert")
        tuner = adding.tuner(backbone, name, **options)
        prompts = adding.encoded(tuner)[:3]
        if half:
            backbone.model.bfloat16()
        addition = adding.added(tuner)
        adding.moved(addition, by=0.1)
        attached = backbone.attach([addition])
        try:
            logits = adding.read_logits(backbone, prompts)
        finally:
            attached.close()
        assert logits.dtype == (torch.bfloat16 if half else torch.float32)
        found.append(logits.float().numpy())
    assert np.abs(found[0] - found[1]).max() < 0.05 * np.abs(found[0]).max()


def test_a_model_in_float16_is_trained_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the processor is fast in: bfloat16's products and float16's do not mix."""
    monkeypatch.setattr("promptforge.tuning.precision._has_bfloat16", lambda device: True)
    backbone = tiny.fresh("llama")
    backbone.model.half()
    tuner = adding.tuner(backbone, "lora", steps=2)
    tuner.settings = tuner.settings.model_copy(update={"precision": "auto"})
    assert math.isfinite(adding.trained(tuner).predict_proba([{"text": "a fine film"}]).sum())
    tuner.settings = tuner.settings.model_copy(update={"precision": "bfloat16"})
    tuner.trained = {}
    with pytest.raises(UserError, match="a model in float16"):
        adding.trained(tuner)


@pytest.mark.parametrize(
    "exits", [None, "joint", TwoStage(steps=20)], ids=["none", "joint", "two-stage"]
)
@pytest.mark.parametrize("strategy", ["prompt", "finetune"])
def test_heads_and_exits_are_trained_behind_a_model_in_bfloat16(
    strategy: str, exits: Any, tmp_path: Path
) -> None:
    """In single precision, whatever the training computes in; read again, cast or as it was."""
    made = plain.of_every_label(plain.tuner(tiny.fresh("llama")))
    rows = [e.row for e in made.train]
    folder = tiny.save("llama", tmp_path / "model")
    for precision in ("float32", "bfloat16"):
        settings = made.settings.model_copy(update={"precision": precision})
        backbone = load_model(str(folder), dtype="bfloat16")
        run = train(
            made.task, made.train, backbone=backbone, strategy=strategy, method="lora",
            exits=exits, settings=settings,
        )  # fmt: skip
        classifier = run.classifier
        expected = classifier.predict_proba(rows)
        assert np.isfinite(expected).all()
        artifact.save(classifier, tmp_path / precision)
        again = artifact.load(tmp_path / precision)
        assert np.allclose(again.predict_proba(rows), expected)
        wide = artifact.load(tmp_path / precision, dtype="float32")
        assert np.allclose(wide.predict_proba(rows), expected, atol=0.05)
        if exits:
            last = exit_model(classifier).layers
            set_policy(classifier, "layer", {"layer": last})
            assert np.allclose(classifier.predict_proba(rows), expected, atol=0.02)
            set_policy(classifier, "layer", {"layer": 1})
            first = classifier.predict_proba(rows)
            set_policy(again, "layer", {"layer": 1})
            assert np.allclose(again.predict_proba(rows), first, atol=0.02)


def test_a_mean_over_tokens_loses_no_digits_to_half_precision() -> None:
    states = torch.full((3000, 1), 1.0, dtype=torch.bfloat16)
    mean = mean_of_rows(states, torch.zeros(3000, dtype=torch.long), 1)
    assert mean.dtype == torch.float32 and float(mean) == 1.0
