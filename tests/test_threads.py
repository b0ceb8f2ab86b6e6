"""Threads that share a model, and work that breaks off, leave it as it was and right."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import generating
import numpy as np
import pytest
import tiny
import torch
from torch import nn

from promptforge import (
    Decoding,
    PromptClassifier,
    PromptForgeError,
    Settings,
    Task,
    TaskBank,
    TaskExamples,
    adapt,
    artifact,
    load_model,
    plugins,
    train,
    train_generator,
    train_together,
)
from promptforge.backbone.attached import Attached
from promptforge.backbone.weights import Weights
from promptforge.exits.model import ExitModel, set_policy
from promptforge.tuning.loop import Training

ROWS = [e.row for e in Task.load(tiny.EXAMPLES).examples("test")[:12]]


@pytest.fixture
def hurried() -> Iterator[None]:
    """Threads change places often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


def tuned(backbone: Any, method: str, seed: int = 1, **settings: Any) -> Any:
    task = Task.load(tiny.EXAMPLES).choose(["it-was"])
    given = {"steps": 4, "learning_rate": 0.01, "precision": "float32", **settings}
    return train(
        task, task.examples("train")[::4], backbone=backbone, method=method, seed=seed,
        settings=Settings.of(**given), compare_untrained=False,
    ).classifier  # fmt: skip


def written(folder: Path, moved: float) -> None:
    """A model in a folder, all weights moved."""
    made = tiny.fresh("bert")
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter += moved
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)


def state(backbone: Any) -> tuple[dict[str, bytes], dict[str, bool], int, str]:
    """The weights, which of them are trained, the hooks, and the attention of a model."""
    model = backbone.model
    parameters = dict(model.named_parameters())
    hooks = sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in model.modules()
    )
    values = {n: p.detach().numpy().tobytes() for n, p in parameters.items()}
    flags = {n: p.requires_grad for n, p in parameters.items()}
    return values, flags, hooks, model.config._attn_implementation


@pytest.mark.usefixtures("hurried")
def test_two_tuned_models_of_one_backbone_predict_at_once() -> None:
    backbone = tiny.fresh("bert")
    models = [tuned(backbone, "all"), tuned(backbone, "lora", 2)]
    alone = [m.predict_proba(ROWS) for m in models]

    def often(i: int) -> float:
        worst = 0.0
        for _ in range(10):
            models[i].forget()
            worst = max(worst, np.abs(models[i].predict_proba(ROWS) - alone[i]).max())
        return worst

    with ThreadPoolExecutor(2) as threads:
        assert max(threads.map(often, [0, 1])) < 1e-6


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("shared", [True, False])
def test_trainings_at_once_are_as_one_after_another(shared: bool) -> None:
    def model() -> Any:
        return tiny.fresh("bert")

    one = model()
    alone = [tuned(one, m, 3).predict_proba(ROWS) for m in ("all", "prefix")]
    first = model()
    backbones = [first, first if shared else model()]
    with ThreadPoolExecutor(2) as threads:
        made = list(threads.map(tuned, backbones, ["all", "prefix"], [3, 3]))
    for classifier, expected in zip(made, alone, strict=True):
        np.testing.assert_array_equal(classifier.predict_proba(ROWS), expected)


def reading(kind: str, folder: Path) -> tuple[Any, Callable[[], Any]]:
    """A model, and something that reads it."""
    if kind in ("generate", "loss"):
        writer = generating.tuned("gpt2", "lora", Decoding(max_new_tokens=3))
        return writer.backbone, lambda: getattr(writer, kind)(generating.ROWS)
    backbone = tiny.fresh("bert")
    backbone.model.requires_grad_(False)
    one_token = {"*": {"negative": "bad", "positive": "best"}}
    task = Task.load(tiny.EXAMPLES).choose(["it-was"]).with_words(one_token)
    if kind in ("bank", "loading", "checking"):
        made = tuned(backbone, "lora")
        artifact.save(made, folder / "saved")
        if kind == "loading":
            return backbone, lambda: artifact.load(folder / "saved", backbone=backbone).labels
        bank = TaskBank(backbone)
        if kind == "checking":
            return backbone, lambda: bank.add(str(len(bank)), made)
        bank.add("films", made)
        return backbone, lambda: np.stack(bank.predict_proba([("films", r) for r in ROWS])).tolist()
    made = train(
        task, task.examples("train")[::4], backbone=backbone, method="lora", compare_untrained=False,
        strategy="finetune" if kind == "head" else "prompt",
        exits="joint" if kind.startswith("exits") else None,
        settings=Settings.of(steps=4, learning_rate=0.01, precision="float32"),
    ).classifier  # fmt: skip
    if kind.startswith("exits"):
        set_policy(made, "confidence", {"threshold": 0.6})
        assert isinstance(made, ExitModel)
        (encoded,) = made.encoded(ROWS)
        if kind == "exits, read":
            return backbone, lambda: made.read(encoded)[0].tolist()
        if kind == "exits, every layer":
            return backbone, lambda: made.every_layer(encoded).tolist()
    if kind == "fill":
        made.forget()
        return backbone, lambda: made.fill(ROWS[0])
    return backbone, lambda: made.predict_proba(ROWS).tolist()


@pytest.mark.parametrize(
    "kind",
    [
        "prompt",
        "fill",
        "head",
        "exits",
        "exits, read",
        "exits, every layer",
        "generate",
        "loss",
        "bank",
        "loading",
        "checking",
    ],
)
def test_who_reads_waits_for_who_has_the_model(kind: str, tmp_path: Path) -> None:
    backbone, read = reading(kind, tmp_path)
    expected = read()
    backbone.__dict__.pop("checksum", None)
    with ThreadPoolExecutor(1) as threads:
        with backbone.busy:
            backbone.apply(None)
            waiting = threads.submit(read)
            assert not wait([waiting], timeout=0.3).done
        assert waiting.result(60) == expected


@pytest.mark.usefixtures("hurried")
def test_a_bank_and_a_tuned_model_predict_at_once() -> None:
    backbone = tiny.fresh("bert")
    bank, other = TaskBank(backbone), tuned(backbone, "all", 2)
    bank.add("films", tuned(backbone, "lora"))
    asked = [("films", row) for row in ROWS]
    other.forget()
    reads = [lambda: np.stack(bank.predict_proba(asked)), lambda: other.predict_proba(ROWS)]
    alone = [read() for read in reads]
    with ThreadPoolExecutor(2) as threads:
        for _ in range(10):
            for made, expected in zip(threads.map(lambda r: r(), reads), alone, strict=True):
                np.testing.assert_allclose(made, expected, atol=1e-6)


def test_threads_that_come_at_once_get_one_plugin_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def slow(disabled: frozenset[str]) -> Any:
        time.sleep(0.05)
        made.append(disabled)
        return object()

    monkeypatch.setattr(plugins, "PluginManager", slow)
    plugins.manager.cache_clear()
    try:
        with ThreadPoolExecutor(4) as threads:
            found = set(threads.map(lambda _: plugins.manager(), range(4)))
    finally:
        plugins.manager.cache_clear()
    assert len(made) == len(found) == 1


def trained(kind: str, backbone: Any, folder: Path) -> Any:
    """What trains a model, by its name."""
    task = Task.load(tiny.EXAMPLES).choose(["it-was"])
    rows = task.examples("train")[::4]
    chosen = Settings(steps=2, precision="float32")
    if kind == "generator":
        return train_generator(
            generating.task(), generating.ROWS, backbone=backbone, settings=chosen
        )
    if kind == "adapt":
        return adapt(backbone, tiny.corpus()[:9], folder / "new", length=16, settings=chosen)
    if kind == "together":
        one = TaskExamples(task, rows)
        return train_together([one], backbone=backbone, settings=chosen, compare_untrained=False)
    return train(task, rows, backbone=backbone, settings=chosen, compare_untrained=False)


@pytest.mark.parametrize("kind", ["classifier", "generator", "together", "adapt"])
def test_a_training_leaves_the_callers_random_numbers_alone(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks_off(*_: Any) -> None:
        torch.rand(1)
        raise PromptForgeError("now")

    backbone = tiny.fresh("gpt2" if kind == "generator" else "bert")
    before = torch.get_rng_state()
    trained(kind, backbone, tmp_path / "whole")
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(Training, "_update", breaks_off)
    with pytest.raises(PromptForgeError, match="now"):
        trained(kind, backbone, tmp_path / "broken")
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_that_do_not_fit_leave_the_model_as_it_was() -> None:
    backbone = tiny.fresh("bert")
    before = state(backbone)
    values = {n: p.detach() + 1 for n, p in backbone.parameters.items()}
    wrong = list(values)[5]
    values[wrong] = torch.zeros(3, 5, 7)
    with pytest.raises(RuntimeError):
        backbone.apply(Weights(values))
    assert state(backbone) == before
    model = tuned(backbone, "all")
    assert model.predict_proba(ROWS).shape == (len(ROWS), 2)
    backbone.apply(None)
    assert state(backbone) == before


@pytest.mark.parametrize("method", ["lora", "prefix", "all"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_breaks_off_while_it_goes_in_is_taken_out(
    method: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = tiny.fresh("bert")
    before = state(backbone)

    def fails(*_: Any) -> None:
        raise error("now")

    with monkeypatch.context() as patch:
        patch.setattr(Attached, "_watch_matrices", fails)
        patch.setattr(nn, "ParameterList", fails if method == "all" else nn.ParameterList)
        with pytest.raises(error):
            tuned(backbone, method)
    assert state(backbone) == before


def test_checkpointing_leaves_nothing_in_the_model() -> None:
    backbone = tiny.fresh("bert")
    before = state(backbone)
    for _ in range(2):
        tuned(backbone, "lora", checkpointing=True)
    backbone.apply(None)
    assert state(backbone)[1:] == before[1:]


@pytest.mark.parametrize("method", ["lora", "parallel"])
def test_a_pass_leaves_no_inputs_behind(method: str) -> None:
    """Kept, they hold all layers' activations, and in training what checkpointing computes again."""
    model = tuned(tiny.fresh("bert"), method)
    model.predict_proba(ROWS[:1])
    gc.collect()

    def held() -> int:
        gc.collect()
        return sum(torch.is_tensor(o) and o.ndim == 3 and len(o) == 5 for o in gc.get_objects())

    before = held()
    model.forget()
    model.predict_proba(ROWS[1:6])
    assert held() == before


def test_a_model_whose_files_change_is_read_again_by_workers(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    task = Task.load(tiny.EXAMPLES).choose(["it-was", "tone"])
    for moved in (0.0, 0.01):
        written(folder, moved)
        backbone = load_model(str(folder))
        train(
            task, task.examples("train")[::5], backbone=backbone, strategy="ensemble", jobs=2,
            settings=Settings(steps=1), compare_untrained=False,
        )  # fmt: skip


def test_an_estimator_reads_a_folder_again_that_has_changed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    said = []
    for moved in (0.0, 0.01):
        written(folder, moved)
        made = PromptClassifier(
            "{{ text }} It was {{ mask }}.", {"bad": "awful", "good": "wonderful"},
            model=str(folder), steps=1, learning_rate=1e-9,
        )  # fmt: skip
        made.fit(["a", "b", "c", "d"], ["bad", "bad", "good", "good"])
        said.append(made.predict_proba(["a fine film"]))
    assert np.abs(said[0] - said[1]).max() > 1e-4


def test_bars_of_transformers_are_as_they_were(tiny_model: Callable[[str], Any]) -> None:
    from transformers import logging

    logging.enable_progress_bar()
    load_model(str(tiny_model("bert")))
    assert logging.is_progress_bar_enabled()
