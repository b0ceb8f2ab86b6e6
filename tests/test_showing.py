"""Demonstrations are shown by every template, and strategies compose with one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import plain_tuning as plain
import pytest
import tiny
import torch
from plain_tuning import tuner
from test_pet import QUICK
from test_pet import tuner as pet_tuner

from promptforge import (
    Ensemble,
    Example,
    PromptModel,
    Settings,
    Task,
    Template,
    UserError,
    artifact,
    train,
)
from promptforge.plugins import build
from promptforge.selection import fit_selector
from promptforge.tuning.tuner import Member

WRITTEN = "{% for demo in demos %}{{ demo.prompt }}\n{% endfor %}"
WORDS = {"neg": ["bad"], "pos": ["best"], "odd": ["one"]}


def fitted(name: str, made: Any, **options: Any) -> Any:
    selector = build("demonstrations", name, **options)
    fit_selector(selector, made.train, list(made.labels), columns=made.task.inputs)
    return selector


def seen_in_training(made: Any, monkeypatch: pytest.MonkeyPatch, strategy: Any) -> list[str]:
    """The prompts of every look and update while a strategy trains."""
    seen: list[str] = []
    prompt = PromptModel.prompt

    def noted(self: Any, *args: Any) -> Any:
        out = prompt(self, *args)
        seen.append(str(out))
        return out

    monkeypatch.setattr(PromptModel, "prompt", noted)
    strategy.train(made)
    return seen


def test_a_template_that_does_not_place_demonstrations_has_them_before_it() -> None:
    plainly, written = (
        Template("{{ text }} It was {{ mask }}."),
        Template(WRITTEN + "{{ text }} It was {{ mask }}."),
    )
    shown = [({"text": "Dull."}, "neg"), ({"text": "A joy."}, "pos")]
    given: dict[str, Any] = {"words": WORDS, "labels": list(WORDS)}
    row = {"text": "Warm."}
    assert plainly.render(row, demos=shown, **given) == written.render(row, demos=shown, **given)
    text = str(plainly.render(row, demos=shown, **given))
    assert text == "Dull. It was bad.\nA joy. It was best.\nWarm. It was ▁▁▁."
    assert str(plainly.render(row, **given)) == "Warm. It was ▁▁▁."
    own = Template("{{ demos | length }} rows. {{ text }} It was {{ mask }}.")
    assert str(own.render(row, demos=shown, **given)) == "2 rows. Warm. It was ▁▁▁."


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
def test_demonstrations_change_what_is_read(architecture: str) -> None:
    made = tuner(tiny.backbone(architecture))
    rows = plain.rows(30, 34)
    without = made.untrained().predict_proba(rows)
    made.demonstrations = fitted("fixed", made)
    with_ = made.untrained().predict_proba(rows)
    assert np.abs(with_ - without).max() > 1e-6


def test_priming_reads_the_prompts_of_lm_bff() -> None:
    """LM-BFF's rendering with a frozen model: the same prompts, so the same probabilities."""
    made = tuner(tiny.backbone("bert"), settings=Settings(steps=1, batch_size=9, dropout=False))
    selector = fitted("random", made, seed=5)
    rows = plain.rows(30, 34)
    primed = build("strategy", "priming").train(made.with_(demonstrations=selector))
    assert isinstance(primed, PromptModel)
    tuned = build("strategy", "lm-bff").train(made.with_(demonstrations=selector))
    assert isinstance(tuned, PromptModel)
    prompts = [[str(m.prompt("p", row)) for row in rows] for m in (primed, tuned)]
    assert prompts[0] == prompts[1]
    assert all(p.count("It was") == 1 + len({e.label for e in made.train}) for p in prompts[0])
    frozen = made.with_(demonstrations=selector, settings=Settings(steps=1, learning_rate=1e-30))
    same = build("strategy", "lm-bff").train(frozen).predict_proba(rows)
    assert np.allclose(primed.predict_proba(rows), same, atol=1e-6)


def test_members_of_pet_show_demonstrations_while_they_train(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = pet_tuner()
    made.demonstrations = fitted("random", made, seed=3)
    seen = seen_in_training(made, monkeypatch, build("strategy", "pet", **QUICK))
    assert seen and all(p.count("\n") == 2 for p in seen)


def test_zero_shot_is_without_demonstrations() -> None:
    task = Task.inline([Template("{{ text }} It was {{ mask }}.", name="p")], labels=WORDS)
    rows = [Example(row, list(WORDS)[i % 3], i + 1) for i, row in enumerate(plain.rows(0, 9))]
    given: dict[str, Any] = {"backbone": tiny.backbone("bert"), "test": rows[:6]}
    run = train(task, rows, strategy="priming", demonstrations="random", **given)
    plainly = train(task, strategy="zero-shot", **given)
    assert set(run.results["test"]) == {"zero-shot", "tuned"}
    assert (
        run.results["test"]["zero-shot"]["p"].to_json()
        == plainly.results["test"]["tuned"]["p"].to_json()
    )


# --- own words, ensembles ------------------------------------------------------------------


def test_each_member_of_pet_learns_and_votes_over_its_own_words() -> None:
    """Pattern `b` has words of its own; whoever gives it the others' learns something else."""
    own = {"neg": ["film"], "pos": ["story"]}

    def members(words_of_b: Any) -> Any:
        made = pet_tuner()
        task = made.task.with_words({"b": words_of_b}) if words_of_b else made.task
        made = made.with_(task=task, trained={})
        pet = build("strategy", "pet", **QUICK)
        return made, {v.name: v.scores for v in pet.first(made)}

    made, voices = members(own)
    _, others = members(None)
    assert np.allclose(voices["a-1"], others["a-1"])
    assert np.abs(voices["b-1"] - others["b-1"]).max() > 1e-3
    # By hand: the tuned model's log-probability of the pattern's own words, on each row.
    (member,) = made.members([Member("b-1", made.targets(), "b", made.seed)]).values()
    assert isinstance(member, PromptModel)
    readout = member.read("b", made.unlabeled)
    ids = [made.backbone.text.word(own[label][0], space_before=False)[0] for label in made.labels]
    logits = readout.logits(torch.tensor(ids)).log_softmax(-1).double().detach().numpy()
    found = voices["b-1"] - voices["b-1"].max(1, keepdims=True)
    wanted = logits - logits.max(1, keepdims=True)
    assert np.allclose(found, wanted, atol=1e-4)


def test_an_ensemble_of_pet_runs(tmp_path: Path) -> None:
    made = pet_tuner(folder=tmp_path / "run")
    strategy = build("strategy", "ensemble", of="pet", of_options=QUICK, repetitions=2)
    strategy.check_rows(made.train, made.unlabeled)
    ensemble = strategy.train(made)
    assert isinstance(ensemble, Ensemble) and list(ensemble.members) == ["pet-1", "pet-2"]
    assert {"pet-1/final", "pet-2/final", "pet-2/b-1"} <= set(made.trained)
    rows = plain.rows(30, 34)
    alone = [
        build("strategy", "pet", **QUICK).train(pet_tuner(seed=seed)).predict_proba(rows)
        for seed in (made.seed, made.seed + 1_000_000)
    ]
    assert np.abs(alone[0] - alone[1]).max() > 1e-6
    assert np.allclose(ensemble.predict_proba(rows), (alone[0] + alone[1]) / 2, atol=1e-6)
    artifact.save(ensemble, tmp_path / "kept")
    again = artifact.load(tmp_path / "kept", backbone=made.backbone)
    assert np.allclose(again.predict_proba(rows), ensemble.predict_proba(rows), atol=1e-6)


def test_an_ensemble_of_templates_verbalizers_and_seeds() -> None:
    made = pet_tuner()
    strategy = build("strategy", "ensemble", verbalizers=["manual", "soft"], repetitions=2)
    ensemble = strategy.train(made)
    assert isinstance(ensemble, Ensemble)
    assert set(ensemble.members) == {
        f"{verbalizer}-{pattern}-{r}"
        for verbalizer in ("manual", "soft") for pattern in ("a", "b") for r in (1, 2)
    }  # fmt: skip
    rows = plain.rows(30, 34)
    parts = [m.predict_proba(rows) for m in ensemble.members.values()]
    assert np.allclose(ensemble.predict_proba(rows), np.mean(parts, 0), atol=1e-6)


def test_an_ensemble_reads_the_runs_own_verbalizer_with_its_options() -> None:
    own = build("verbalizer", "manual", aggregate="max")
    made = pet_tuner(verbalizer=own)
    ensemble = build("strategy", "ensemble", verbalizers=["manual", "soft"]).train(made)
    read = {n: m.to_json()["verbalizer"] for n, m in ensemble.members.items()}
    assert {v["name"] for v in read.values()} == {"manual", "soft"}
    assert read["manual-a"]["options"]["aggregate"] == "max"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of": "ensemble"}, "ensemble of itself"),
        ({"of": "pet", "verbalizers": ["soft"]}, "choose their verbalizer with --verbalizer"),
        ({"of": "pett"}, "Did you mean 'pet'"),
    ],
)
def test_ensembles_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build("strategy", "ensemble", **options).train(pet_tuner())


def test_an_ensemble_of_runs_needs_what_they_need() -> None:
    strategy = build("strategy", "ensemble", of="pet")
    with pytest.raises(UserError, match="'pet' labels rows that have no labels"):
        strategy.check_rows(["row"], [])


@pytest.mark.parametrize("strategy", ["prompt", "finetune", "lm-bff"])
def test_training_rows_without_a_label_are_refused(strategy: str) -> None:
    task = Task.inline([Template("{{ text }} It was {{ mask }}.", name="p")], labels=WORDS)
    rows = [Example(row, "neg", i + 1) for i, row in enumerate(plain.rows(0, 4))]
    with pytest.raises(UserError, match="No training row has the label"):
        train(task, rows, strategy=strategy, backbone=tiny.backbone("bert"))
