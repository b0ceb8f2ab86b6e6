"""Contrastive tuning: its loss and its regression by a plain loop, and the strategies it joins."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plain_tuning as plain
import pytest
import tiny
import torch
from plain_tuning import tuner
from sklearn.linear_model import LogisticRegression
from test_pet import QUICK
from test_pet import rows as pet_rows
from test_pet import tuner as pet_tuner
from torch.nn.functional import cosine_similarity, normalize
from transformers import BertModel

from promptforge import (
    Ensemble,
    Example,
    PromptForgeError,
    Settings,
    Template,
    UserError,
    artifact,
    load_model,
    train,
)
from promptforge.plugins import build
from promptforge.task import Task
from promptforge.tuning.tuner import Tuner

Command = Callable[..., Any]
Folder = Callable[[str], Path]
RATES = (1.0, 0.75, 0.5, 0.25)


def summary(backbone: Any, model: Any, text: str) -> torch.Tensor:
    """What the model makes of one text, [d]."""
    given = dict(backbone.tokenizer(text, return_tensors="pt"))
    if backbone.family == "seq2seq":
        given["decoder_input_ids"] = torch.tensor([[0]])
    out = model(**given, output_hidden_states=True)
    seq2seq = backbone.family == "seq2seq"
    states = (out.decoder_hidden_states if seq2seq else out.hidden_states)[-1][0]
    return states.mean(0) if backbone.family == "masked" else states[-1]


def plain_contrast(made: Tuner) -> tuple[Any, list[float]]:
    """Contrastive tuning pair by pair: the tuned model, and the loss at each step."""
    backbone = made.backbone
    texts, labels = [e.row["text"] for e in made.train], [e.label for e in made.train]

    def batch_loss(model: Any, batch: Any, step: int) -> Any:
        partners = []
        for i in batch:
            others = [j for j, label in enumerate(labels) if label == labels[i] and j != i] or [i]
            draw = np.random.default_rng([made.seed, step, i])
            partners.append(others[int(draw.integers(len(others)))])
        both = [*batch, *partners]
        u = [summary(backbone, model, texts[i]) for i in both]
        total = torch.zeros(())
        for a in range(len(batch)):
            near, far = [], []
            for b in range(len(both)):
                if a == b:
                    continue
                s = cosine_similarity(u[a], u[b], dim=0)
                if labels[both[a]] == labels[both[b]]:
                    near.append((1 - s) ** 2)
                else:
                    far.append(s**2)
            total = total + torch.stack(near).mean() / 2
            total = total + (torch.stack(far).mean() / 2 if far else 0.0)
        return total / len(batch)

    sizes = [len(backbone.tokenizer(t)["input_ids"]) for t in texts]
    return plain.train_batches(made, sizes, RATES, batch_loss)


def contrasted(made: Tuner, **options: Any) -> Any:
    return build("strategy", "contrastive", **options).train(made)


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "gpt2", "t5"])
def test_it_is_as_by_a_plain_loop_over_pairs(architecture: str) -> None:
    """Two labels have several rows, and no row has the third."""
    settings = Settings.of(
        steps=4, batch_size=4, precision="float32", warmup=0, learning_rate=1e-3, dropout=False
    )
    made = tuner(plain.fresh(architecture), settings=settings)
    model, losses = plain_contrast(made)
    classifier = contrasted(made)
    assert [e["loss"] for e in made.trained["head"].curve] == pytest.approx(losses, abs=1e-5)
    made.backbone.apply(classifier.weights)
    for name, wanted in model.named_parameters():
        found = made.backbone.parameters[name]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    made.backbone.apply(None)

    def units(texts: list[Any]) -> Any:
        with torch.no_grad():
            seen = [normalize(summary(made.backbone, model, t), dim=0) for t in texts]
        return torch.stack(seen).numpy()

    texts, labels = [e.row["text"] for e in made.train], [e.label for e in made.train]
    regression = LogisticRegression().fit(units(texts), labels)
    unseen = plain.rows(30, 36)
    expected = regression.predict_proba(units([row["text"] for row in unseen]))
    found = classifier.predict_proba(unseen)
    assert list(regression.classes_) == ["neg", "pos"] and made.labels == ("neg", "pos", "odd")
    assert found[:, :2] == pytest.approx(expected, abs=1e-4)
    assert np.abs(found[:, 2]).max() == 0


def test_three_labels_one_of_a_single_row() -> None:
    made = tuner(tiny.backbone("bert"), settings=Settings(steps=2, batch_size=4))
    made.train[4] = Example(made.train[4].row, "odd", 5)
    found = contrasted(made).predict_proba(plain.rows(30, 36))
    assert found.sum(1) == pytest.approx(1) and (found > 0).all()


def test_weights_of_labels_count_in_the_regression() -> None:
    made = tuner(tiny.backbone("bert"), settings=Settings(steps=1, learning_rate=1e-30))
    unseen = plain.rows(30, 36)
    even = contrasted(made).predict_proba(unseen)
    heavy = contrasted(made.with_(class_weight={"neg": 50.0})).predict_proba(unseen)
    assert (heavy[:, 0] > even[:, 0] + 0.05).all()
    alone = contrasted(made.with_(class_weight={"neg": 0.0})).predict_proba(unseen)
    assert np.array_equal(alone, [[0.0, 1.0, 0.0]] * len(unseen))


@pytest.mark.parametrize("method", ["all", "lora", "prefix", "houlsby", "prompt-tuning"])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_every_method_tunes_it_and_it_reads_back_the_same(
    architecture: str, method: str, tmp_path: Path
) -> None:
    more: dict[str, Any] = {"method": build("method", method)}
    settings = Settings(steps=3, batch_size=4, precision="float32", learning_rate=1e-2)
    made = tuner(tiny.backbone(architecture), settings=settings, **more)
    unseen = plain.rows(30, 36)
    before = contrasted(made.with_(settings=Settings(steps=1, learning_rate=1e-30)))
    after = contrasted(made.with_(folder=tmp_path / "run"))
    found = after.predict_proba(unseen)
    assert np.abs(found - before.predict_proba(unseen)).max() > 1e-6
    artifact.save(after, tmp_path / "artifact")
    again = artifact.load(tmp_path / "artifact", backbone=made.backbone)
    assert np.array_equal(again.predict_proba(unseen), found)
    read = contrasted(made.with_(folder=tmp_path / "run", trained={}))
    assert np.array_equal(read.predict_proba(unseen), found)


def test_what_does_not_fit_is_told() -> None:
    made = tuner(tiny.backbone("bert"), method=build("method", "head"))
    with pytest.raises(UserError, match="method 'head' trains nothing of that"):
        contrasted(made)
    with pytest.raises(UserError, match="'contrastive' reads the text alone"):
        strategy = build("strategy", "contrastive")
        strategy.check_tuner(made.with_(demonstrations=build("demonstrations", "random")))
    with pytest.raises(UserError, match="model=gpt2 is tuned from itself"):
        started = made.with_(init_from="runs/one")
        build("strategy", "contrastive", model="gpt2").check_tuner(started)
    with pytest.raises(UserError, match="strategy 'contrastive'"):
        task, rows, backbone = made.task, plain.of_every_label(made).train, made.backbone
        train(task, rows, backbone=backbone, strategy="contrastive", exits="joint")


def test_a_batch_in_parts_is_warned_of() -> None:
    settings = Settings(steps=2, batch_size=4, accumulate=2, precision="float32")
    with pytest.warns(UserWarning, match="strategy 'contrastive' compares the rows.*in 2 parts"):
        contrasted(tuner(tiny.backbone("bert"), settings=settings))


# --- a model without a language-model head -------------------------------------------------


@pytest.fixture
def encoder(tiny_model: Folder, tmp_path: Path) -> Path:
    """The folder of a sentence encoder: a tiny BERT whose head was left out."""
    home = tmp_path / "encoder"
    BertModel.from_pretrained(tiny_model("bert"), add_pooling_layer=False).save_pretrained(home)  # fmt: skip
    for file in tiny_model("bert").iterdir():
        if "token" in file.name or "vocab" in file.name:
            shutil.copy(file, home)
    return home


@pytest.mark.parametrize("strategy", ["contrastive", "finetune"])
def test_a_sentence_encoder_is_tuned_without_prompts(
    strategy: str, encoder: Path, command: Command, reviews: Path
) -> None:
    args = ("train", reviews, "--model", encoder, "--steps", 2, "--run", "run")
    made = command(*args, "--strategy", strategy, "--json")
    assert made.code == 0, made.err
    assert "No zero-shot figures" in made.err and "no language-model head" in made.err
    assert set(made.json["results"]["test"]) == {"tuned"}
    assert command("evaluate", "run", "--data", reviews / "test.csv").code == 0


@pytest.mark.parametrize("strategy", ["prompt", "pet", "zero-shot", "lm-bff", "ensemble"])
def test_a_sentence_encoder_reads_no_prompts(
    strategy: str, encoder: Path, command: Command, reviews: Path
) -> None:
    made = command("train", reviews, "--model", encoder, "--strategy", strategy, "--run", "run")
    assert made.code == 2 and "encoder has no trained language-model head" in made.err
    assert "--strategy contrastive and finetune" in made.err
    assert not Path("run").exists()
    made = command("predict", reviews, "--model", encoder, "--data", reviews / "test.csv")
    assert made.code == 2 and "it cannot fill masks" in made.err


def test_members_of_two_models_read_back(encoder: Path, tmp_path: Path, tiny_model: Folder) -> None:
    options = {"also": ["contrastive"], "also_options": {"contrastive": {"model": str(encoder)}}}
    backbone = load_model(str(tiny_model("bert")))
    made = pet_tuner(folder=tmp_path / "run").with_(backbone=backbone)
    both = build("strategy", "ensemble", **options).train(made)
    assert isinstance(both, Ensemble)
    assert both.members["contrastive-1"].backbone.headless and not backbone.headless  # type: ignore[attr-defined]
    artifact.save(both, tmp_path / "artifact")
    unseen = pet_rows(90, 96)
    found = both.predict_proba(unseen)
    for given in (None, backbone):
        again = artifact.load(tmp_path / "artifact", backbone=given)
        assert np.array_equal(again.predict_proba(unseen), found)
    with pytest.raises(UserError, match=r"the weights of .* here are others"):
        artifact.load(tmp_path / "artifact", backbone=tiny.backbone("gpt2"))


def test_pets_final_model_may_be_another(encoder: Path, tmp_path: Path) -> None:
    options = {**QUICK, "final_model": str(encoder)}
    made = pet_tuner(folder=tmp_path / "run")
    final = build("strategy", "pet", **options).train(made)
    assert final.backbone.headless and final.backbone is not made.backbone
    artifact.save(final, tmp_path / "artifact")
    unseen = pet_rows(90, 96)
    again = artifact.load(tmp_path / "artifact")
    assert np.array_equal(again.predict_proba(unseen), final.predict_proba(unseen))


def test_rows_of_weight_0_teach_nothing() -> None:
    """Not as partners of the others either: with their labels turned round, all stays the same."""
    made = pet_tuner(labelled=8)
    said = []
    for turned in (False, True):
        rows = list(made.train)
        if turned:
            other = {"neg": "pos", "pos": "neg"}
            rows[-2:] = [Example(e.row, other[e.label], e.number) for e in rows[-2:]]
        run = train(
            made.task, rows, backbone=made.backbone, row_weights=[1.0] * 6 + [0.0] * 2,
            settings=made.settings, compare_untrained=False, strategy="contrastive",
        )  # fmt: skip
        said.append(run.classifier.predict_proba(pet_rows(90, 96)))
    assert np.array_equal(*said)


# --- joining other strategies --------------------------------------------------------------


def test_an_ensemble_of_patterns_and_contrastive_runs(tmp_path: Path) -> None:
    made = pet_tuner(folder=tmp_path)
    strategy = build("strategy", "ensemble", repetitions=2, also=["contrastive"])
    both = strategy.train(made)
    assert isinstance(both, Ensemble)
    names = ["a-1", "a-2", "b-1", "b-2", "contrastive-1", "contrastive-2"]
    assert list(both.members) == names
    assert set(made.trained) == {*names[:4], "contrastive-1/head", "contrastive-2/head"}
    unseen = pet_rows(90, 96)
    said = [m.predict_proba(unseen) for m in both.members.values()]
    mean = np.mean(said[:4], axis=0) / 2 + np.mean(said[4:], axis=0) / 2
    assert both.predict_proba(unseen) == pytest.approx(mean, abs=1e-6)
    one, two = (both.members[n].predict_proba(unseen) for n in names[4:])
    assert np.abs(one - two).max() > 1e-6  # of another seed
    alone = contrasted(pet_tuner())
    assert np.array_equal(one, alone.predict_proba(unseen))


@pytest.mark.parametrize("combine", ["scores", "probabilities"])
def test_contrastive_runs_vote_for_pets_soft_labels(combine: str) -> None:
    made = pet_tuner()
    strategy = build("strategy", "pet", **QUICK, combine=combine, also=["contrastive"])
    voices = strategy.first(made)
    voices += strategy.joining(made, voices)
    assert [(v.name, v.weight) for v in voices] == [("a-1", 1), ("b-1", 1), ("contrastive-1", 2)]
    rows = made.unlabeled
    said = contrasted(pet_tuner()).predict_proba(rows)
    assert np.exp(voices[-1].scores) == pytest.approx(said, abs=1e-4)
    final = strategy.train(pet_tuner())
    plainly = build("strategy", "pet", **QUICK, combine=combine).train(pet_tuner())
    assert np.abs(final.predict_proba(rows) - plainly.predict_proba(rows)).max() > 1e-7


def test_they_vote_in_every_generation_of_ipet(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {**QUICK, "generations": 2, "factor": 2, "final": "prompt"}
    strategy = build("strategy", "ipet", **options, also=["contrastive"])
    heard: list[set[str]] = []
    real = type(strategy).enlarged

    def enlarged(self: Any, tuner: Any, others: Any, *rest: Any) -> Any:
        heard.append({v.name for v in others})
        return real(self, tuner, others, *rest)

    monkeypatch.setattr(type(strategy), "enlarged", enlarged)
    strategy.train(pet_tuner())
    assert heard == [{"g0-b-1", "contrastive-1"}, {"g0-a-1", "contrastive-1"},
                     {"g1-b-1", "contrastive-1"}, {"g1-a-1", "contrastive-1"}]  # fmt: skip


def test_runs_that_join_share_no_training(tmp_path: Path) -> None:
    """PET's own repetitions have seeds 1,000 apart, and so have the ensemble's."""
    own = {**QUICK, "repetitions": 2}
    strategy = build("strategy", "ensemble", repetitions=2, also=["pet"], also_options={"pet": own})
    strategy.train(pet_tuner(folder=tmp_path))
    told = [
        json.loads(path.read_text(encoding="utf-8"))["sha256"]
        for run in ("pet-1", "pet-2")
        for path in (tmp_path / "members" / run).glob("members/*/artifact.json")
    ]
    assert len(told) > 6 and len(set(told)) == len(told)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"also": ["contrastiv"]}, "Did you mean 'contrastive'"),
        ({"also": ["contrastive", "contrastive"]}, "also has 'contrastive' twice"),
        ({"also": ["pet"]}, "also has itself"),
        ({"also": ["lm-bff"]}, "'lm-bff' has 2 candidates to rank and no development rows"),
        ({"also": ["priming"]}, "choose them with --demonstrations"),
        ({"also_options": {"contrastive": {}}}, "also_options has 'contrastive'"),
        ({"also": ["contrastive"], "also_options": {"contrastive": {"pool": 1}}}, "pool"),
    ],
)
def test_joiners_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptForgeError, match=message):
        build("strategy", "pet", **QUICK, **options).train(pet_tuner())


def test_a_pattern_of_a_joiners_name() -> None:
    made = pet_tuner()
    template = Template("{{ text }} It was {{ mask }}.", name="contrastive")
    task = Task.inline([template], labels={"neg": ["bad"], "pos": ["best"]})
    with pytest.raises(UserError, match="would have one folder"):
        strategy = build("strategy", "ensemble", also=["contrastive"])
        strategy.train(made.with_(task=task))


# --- a real model --------------------------------------------------------------------------


def test_on_real_reviews() -> None:
    """32 labelled reviews, 15 steps, seed 13: above 64 % of 500 test rows (a coin has 50 %)."""
    task = Task.load("examples/movie-reviews")
    run = train(
        task, task.examples("train"), backbone=load_model("minilm-mlm"), strategy="contrastive",
        settings=Settings.of(steps=15, learning_rate=1e-4), seed=13,
    )  # fmt: skip
    found = run.classifier.predict([e.row for e in task.examples("test")])
    truth = [e.label for e in task.examples("test")]
    assert np.mean([f == t for f, t in zip(found, truth, strict=True)]) > 0.64
