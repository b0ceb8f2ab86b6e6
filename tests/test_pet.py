"""PET and iPET: votes by hand, soft labels, who labels for whom, growth, widening, resuming."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import promptforge_pet
import pytest
import torch
from promptforge_pet.ipet import IPet
from promptforge_pet.pet import Pet, Voice
from promptforge_pet.votes import combined, drawn, most_likely, softmax
from torch.nn.functional import kl_div, log_softmax

from promptforge import Example, PromptModel, Settings, Task, Template, UserError, artifact, plugins
from promptforge.readout import Readout
from promptforge.tuning.loop import Target
from promptforge.tuning.members import HeadModel
from promptforge.tuning.objectives import PromptObjective
from promptforge.tuning.texts import HeadObjective
from promptforge.tuning.tuner import Member, Tuner
from tests import tiny

LABELS = ("neg", "pos")
PATTERNS = {"a": "{{ text }} It was {{ mask }}.", "b": "{{ mask }} : {{ text }}"}
WORDS = {"neg": ["bad"], "pos": ["best"]}
QUICK = {"final_steps": 2, "final_batch_size": 4, "repetitions": 1}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """The plugin is also known where PromptForge runs from its sources, without entry points."""
    manager = plugins.manager()
    known = "pet" in manager.registry("strategy").names()
    if not known:
        manager.register(promptforge_pet, "pet")
    yield
    if not known:
        plugins.manager.cache_clear()


def rows(first: int, last: int) -> list[dict[str, Any]]:
    return [{"text": " ".join(t.split()[:8])} for t in tiny.corpus()[first:last]]


def task(patterns: Sequence[str] = ("a", "b")) -> Task:
    return Task.inline([Template(PATTERNS[p], name=p) for p in patterns], labels=WORDS)


def tuner(
    architecture: str = "bert", *, labelled: int = 4, unlabelled: int = 40, **more: Any
) -> Tuner:
    train = [Example(row, LABELS[i % 2], i + 1) for i, row in enumerate(rows(0, labelled))]
    settings = Settings(steps=2, batch_size=4, precision="float32", learning_rate=1e-3)
    unlabeled = rows(50, 50 + unlabelled)
    given = {"task": task(), "train": train, "unlabeled": unlabeled, "settings": settings}
    return Tuner(tiny.backbone(architecture), **{**given, **more})


# --- votes ---------------------------------------------------------------------------------

SCORES = [np.array([[0.0, 2.0], [1.0, 0.0]]), np.array([[4.0, 0.0], [3.0, 0.0]])]


def test_scores_are_averaged_and_softened() -> None:
    # mean scores [2, 1] and [2, 0]; at temperature 2 their differences are 1/2 and 1
    expected = [1 / (1 + np.exp(-0.5)), 1 / (1 + np.exp(-1.0))]
    assert combined(SCORES, [1, 1], "scores", 2.0)[:, 0] == pytest.approx(expected, abs=1e-12)
    # weights 3 to 1: mean scores [1, 1.5] and [1.5, 0]
    expected = [1 / (1 + np.exp(0.25)), 1 / (1 + np.exp(-0.75))]
    assert combined(SCORES, [0.75, 0.25], "scores", 2.0)[:, 0] == pytest.approx(expected, abs=1e-12)
    moved = [SCORES[0] + [[7.0], [-3.0]], SCORES[1]]
    assert np.allclose(combined(moved, [1, 2], "scores"), combined(SCORES, [1, 2], "scores"))


def test_probabilities_are_averaged_after_a_softmax_each() -> None:
    one = [1 / (1 + np.exp(2.0)), 1 / (1 + np.exp(-1.0))]
    two = [1 / (1 + np.exp(-4.0)), 1 / (1 + np.exp(-3.0))]
    expected = [(a + b) / 2 for a, b in zip(one, two, strict=True)]
    found = combined(SCORES, [1, 1], "probabilities", 2.0)
    assert found[:, 0] == pytest.approx(expected, abs=1e-12)
    assert found.sum(1) == pytest.approx([1, 1])
    assert np.allclose(combined(SCORES, [0, 0], "probabilities"), found)


def test_rows_are_drawn_by_confidence_and_in_balance() -> None:
    votes = np.array([[0.9, 0.1]] * 30 + [[0.55, 0.45]] * 30 + [[0.2, 0.8]] * 20)
    rng = np.random.default_rng(0)
    neg, pos = drawn(votes, [12, 6], rng)
    assert (len(neg), len(pos)) == (12, 6)
    assert len({*neg, *pos}) == 18 and max(neg) < 60 <= min(pos)
    # 40 rows of 20 there are: half of what was wanted, for every label
    neg, pos = drawn(votes, [20, 40], rng)
    assert (len(neg), len(pos)) == (10, 20)
    assert drawn(votes[:60], [5, 5], rng) == [[], []]
    counts = np.zeros(80)
    for _ in range(2000):
        counts[drawn(votes, [1, 1], rng)[0]] += 1
    assert counts[:30].sum() / counts[30:60].sum() == pytest.approx(0.9 / 0.55, rel=0.15)


def test_the_most_likely_rows_whatever_else_is_likelier() -> None:
    votes = softmax(np.array([[5.0, 1.0], [4.0, 3.0], [6.0, 3.0], [9.0, 1.0], [8.0, 1.0]]))
    first, second = most_likely(votes, 2)
    assert first == [3, 4] and second == [1, 2]  # all five look like the first label
    assert [len(some) for some in most_likely(votes, 9)] == [2, 2]


# --- soft labels ---------------------------------------------------------------------------


@pytest.mark.parametrize("final", ["head", "prompt"])
def test_soft_labels_are_learned_by_kl_times_t_squared(final: str) -> None:
    made, t = tuner(task=task(["a"])), 2.0
    target = Target(rows(0, 1)[0], (0.3, 0.7), 1.0, t)
    member = Member("m", [target], "a" if final == "prompt" else None, 0)
    objective, classifier, _ = (made._prompt if final == "prompt" else made._head)(
        member, made.settings
    )
    objective.eval()
    try:
        loss = objective([target], 0).sum()
        slopes = torch.autograd.grad(loss, list(objective.trained().values()), allow_unused=True)
        q = torch.tensor([target.shares])
        if isinstance(objective, PromptObjective):
            assert isinstance(classifier, PromptModel) and objective.tunable.compact
            encoded = classifier.encode("a", [classifier.prompt("a", target.row)])
            made.backbone.compact = objective.tunable.compact
            readout = Readout(made.backbone, encoded, made.backbone.read(encoded))
            scores = objective.verbalizer.class_scores(readout)
            made.backbone.compact = None
        else:
            assert isinstance(objective, HeadObjective) and objective.tunable.compact
            made.backbone.compact = objective.tunable.compact
            scores = objective.head(objective.texts.pooled(objective.texts.encode([target.row])))
            made.backbone.compact = None
        kl = kl_div(log_softmax(scores / t, -1), q, reduction="sum") * t * t
        expected = torch.autograd.grad(kl, list(objective.trained().values()), allow_unused=True)
    finally:
        objective.close()
    entropy = -(q * q.log()).sum() * t * t
    torch.testing.assert_close(loss, kl + entropy)
    assert any(slope is not None and slope.any() for slope in slopes)
    for a, b in zip(slopes, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("combine", ["scores", "probabilities"])
def test_soft_targets_are_the_models_votes(combine: Any) -> None:
    made = tuner(class_weight={"pos": 3.0})
    strategy = Pet(combine=combine, **QUICK)
    models = {p: made.untrained(made.task.choose([p])) for p in PATTERNS}
    voices = [Voice(p, p, 1, strategy.scores(m, made)) for p, m in models.items()]
    targets = strategy.soft_targets(made, voices)
    own = []
    for model in models.values():
        proba = model.predict_proba(made.unlabeled)
        own.append(proba if combine == "probabilities" else np.log(proba))
    mean = np.mean(own, axis=0)
    # Log-probabilities differ from scores by a constant a row, which a softmax leaves out.
    expected = mean if combine == "probabilities" else softmax(mean, 2.0)
    found = np.array([t.shares for t in targets])
    assert np.allclose(found, expected, atol=1e-6)
    assert {t.temperature for t in targets} == {1.0 if combine == "probabilities" else 2.0}
    assert [t.weight for t in targets] == pytest.approx(found @ [1.0, 3.0])
    assert [t.row for t in targets] == made.unlabeled


def test_weights_are_the_accuracy_before_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tuner()
    right = {"a": 3, "b": 1}
    truth = [e.label for e in made.train]

    def predict(self: PromptModel, _: Any) -> list[str]:
        assert self.weights is None
        n = right[next(iter(self.task.patterns))]
        return truth[:n] + [LABELS[1 - LABELS.index(label)] for label in truth[n:]]

    monkeypatch.setattr(PromptModel, "predict", predict)
    voices = Pet(weights="accuracy", **QUICK).first(made)
    assert {v.name: v.weight for v in voices} == {"a-1": 0.75, "b-1": 0.25}


# --- PET as a whole ------------------------------------------------------------------------


def spied(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The members that are trained from here on, in order."""
    seen: list[Any] = []
    train = Tuner._train

    def spy(self: Tuner, member: Any, *rest: Any) -> Any:
        seen.append(member)
        return train(self, member, *rest)

    monkeypatch.setattr(Tuner, "_train", spy)
    return seen


@pytest.mark.parametrize(("final", "data"), [("head", "both"), ("prompt", "unlabeled")])
def test_pet_end_to_end_resumes_and_reloads(
    final: Any, data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spied(monkeypatch)
    strategy = Pet(final=final, final_data=data, max_unlabeled=10, **{**QUICK, "repetitions": 2})
    found = strategy.train(tuner(folder=tmp_path / "run"))
    names = ["a-1", "a-2", "b-1", "b-2", "final"]
    assert [m.name for m in seen] == names
    assert len({m.seed for m in seen[:2]}) == 2
    last = seen[-1]
    hard = [t for t in last.targets if t.temperature == 1.0]
    assert len(hard) == (4 if data == "both" else 0)
    assert len(last.targets) == len(hard) + 10
    assert (last.settings.steps, last.settings.rows, last.settings.rate) == (2, 4, 1e-3)
    # as in the paper it is trained to its end: a few dev rows know less than its teachers
    assert (last.settings.keep, last.settings.patience) == ("last", 0)
    assert last.pattern == (None if final == "head" else "a")
    assert isinstance(found, HeadModel if final == "head" else PromptModel)
    assert sorted(p.name for p in (tmp_path / "run" / "members").iterdir()) == names
    # what is there is not trained again, and the rest comes out the same
    (tmp_path / "run" / "members" / "final").rename(tmp_path / "kept")
    (tmp_path / "run" / "members" / "b-1").rename(tmp_path / "b-1")
    again = strategy.train(tuner(folder=tmp_path / "run"))
    assert [m.name for m in seen[5:]] == ["b-1", "final"]
    test = rows(100, 110)
    assert np.array_equal(again.predict_proba(test), found.predict_proba(test))
    strategy.train(tuner(folder=tmp_path / "run"))
    assert len(seen) == 7
    artifact.save(found, tmp_path / "out")
    loaded = artifact.load(tmp_path / "out", backbone=tiny.backbone("bert"))
    assert np.array_equal(loaded.predict_proba(test), found.predict_proba(test))


def test_pet_without_labelled_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spied(monkeypatch)
    Pet(**QUICK).train(tuner(labelled=0))
    (last,) = seen
    assert last.name == "final" and len(last.targets) == 40


def test_without_labelled_rows_the_development_rows_choose_the_final_pattern() -> None:
    made = tuner(labelled=0)
    asked = rows(0, 12)
    said = {p: made.untrained(made.task.choose([p])).predict(asked) for p in PATTERNS}
    assert said["a"] != said["b"]
    for pattern, labels in said.items():
        dev = [
            Example(row, label, i + 1)
            for i, (row, label) in enumerate(zip(asked, labels, strict=True))
        ]
        final = Pet(final="prompt", **QUICK).train(tuner(labelled=0, dev=dev))
        assert list(final.inner.task.patterns) == [pattern]


def test_a_model_of_another_family(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tuner("gpt2", task=Task.inline([Template("{{ text }} It was {{ mask }}", name=p) for p in "ab"], labels=WORDS))  # fmt: skip
    proba = Pet(combine="probabilities", **QUICK).train(made).predict_proba(rows(100, 104))
    assert proba.sum(1) == pytest.approx([1.0] * 4)


def test_mistakes_are_told_before_any_training() -> None:
    with pytest.raises(UserError, match="--unlabeled FILE"):
        Pet().train(tuner(unlabelled=0))
    with pytest.raises(UserError, match="cannot be split"):
        Pet(final_batch_size=3).train(tuner(settings=Settings(accumulate=2)))
    with pytest.raises(UserError, match="no option 'repetition'"):
        plugins.build("strategy", "pet", repetition=2)
    with pytest.warns(UserWarning, match="one only: 'a'"):
        Pet(**QUICK).train(tuner(task=task(["a"])))
    with pytest.raises(UserError, match="or repetitions=2"):
        IPet(**QUICK).train(tuner(task=task(["a"])))
    with pytest.raises(UserError, match=r"give another pattern\."):
        IPet().train(tuner(task=task(["a"]), labelled=0))
    with pytest.raises(UserError, match="no search called 'petall'"):
        IPet(widen=1, search="petall", **QUICK).train(tuner())
    with pytest.raises(UserError, match="words_per_label"):
        IPet(widen=1, search="lm-bff", **QUICK).check_tuner(tuner())
    with pytest.raises(UserError, match="final_model=other is trained from itself"):
        Pet(final_model="other", **QUICK).check_tuner(tuner(init_from="run"))


def test_options_of_models_that_there_are_not() -> None:
    for options, says in (
        ({"alpha": 0.1}, "alpha=0.1 is of the patterns' trainings"),
        ({"repetitions": 2}, "repetitions=2 is of the patterns' trainings"),
        ({"weights": "accuracy"}, "weights=accuracy .* no labelled row"),
    ):
        with pytest.raises(UserError, match=f"strategy 'pet': {says}"):
            Pet(**{**QUICK, **options}).check_tuner(tuner(labelled=0))
    for strategy in (Pet(), Pet(**QUICK), IPet(alpha=0.1, repetitions=2)):
        strategy.check_tuner(tuner(labelled=0))
    with pytest.raises(UserError, match=r"strategy 'ipet': weights=accuracy .* no labelled row"):
        IPet(weights="accuracy").check_tuner(tuner(labelled=0))
    with pytest.raises(UserError, match="no second pattern"):
        Pet(weights="accuracy").check_tuner(tuner(task=task(["a"])))
    Pet(weights="accuracy", alpha=0.1).check_tuner(tuner())


def test_no_two_runs_of_an_ensemble_have_a_model_in_common(tmp_path: Path) -> None:
    options = {**QUICK, "repetitions": 2}
    strategy = plugins.build("strategy", "ensemble", of="pet", repetitions=2, of_options=options)
    strategy.train(tuner(folder=tmp_path))
    files = list(tmp_path.glob("members/*/members/*/artifact.json"))
    digests = {json.loads(path.read_text(encoding="utf-8"))["sha256"] for path in files}
    assert len(digests) == len(files) == 2 * (2 * 2 + 1)
    with pytest.raises(UserError, match="of_options"):
        plugins.build("strategy", "ensemble", of_options=options).train(tuner())


@pytest.mark.parametrize("labelled", [4, 0])
def test_words_that_the_verbalizer_cannot_take_are_told_before_any_training(
    labelled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spied(monkeypatch)
    made = tuner(labelled=labelled, verbalizer=plugins.build("verbalizer", "rules"))
    with pytest.raises(
        UserError, match=r"strategy.widen=2: the verbalizer 'rules' cannot read .* 3 words"
    ):
        IPet(widen=2, **QUICK).train(made)
    with pytest.raises(UserError, match=r"^The word 'extraordinary' in the rule of 'pos'"):
        IPet(widen=2, **QUICK).train(
            made.with_(task=made.task.with_words({"*": {**WORDS, "pos": ["extraordinary"]}}))
        )
    assert seen == []
    IPet(generations=1, **QUICK).train(made)  # without more words it can
    assert seen


# --- iPET ----------------------------------------------------------------------------------


def balanced(n: int) -> np.ndarray[Any, Any]:
    """Scores of one model: every other row looks positive, some more clearly than others."""
    return np.array([[0.0, (i % 7 + 1) * (-1) ** i] for i in range(n)], dtype=float)


def say(monkeypatch: pytest.MonkeyPatch) -> None:
    """All models say what `balanced` says."""
    monkeypatch.setattr(Pet, "scores", lambda self, model, tuner: balanced(len(tuner.unlabeled)))


def test_training_sets_grow_by_the_factor_in_balance(monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch)
    seen = spied(monkeypatch)
    train = [Example(row, LABELS[i % 3 == 0], i) for i, row in enumerate(rows(0, 3))]
    made = tuner(train=train, unlabelled=60)
    IPet(generations=2, factor=3, **QUICK).train(made)
    assert [m.name for m in seen] == ["g0-a-1", "g0-b-1", "g1-a-1", "g1-b-1", "g2-a-1", "g2-b-1", "final"]  # fmt: skip
    for member in seen[:-1]:
        size = 3 ** int(member.name[1])
        # two of the three labelled rows are negative
        assert [sum(t.shares[i] for t in member.targets) for i in (0, 1)] == [2 * size, size]
        assert len({t.key for t in member.targets}) == 3 * size
        assert [t.row for t in member.targets[:3]] == [e.row for e in train]
        for t in member.targets[3:]:
            i = t.key - 3
            assert t.row == made.unlabeled[i] and t.shares[1] == (i % 2 == 0)
    assert seen[2].targets != seen[3].targets


@pytest.mark.parametrize("labelled", [4, 0])
def test_no_model_labels_for_itself(labelled: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each voice labels in a way of its own, and every model's rows are labelled as by another."""
    strategy = IPet(generations=1, factor=4, repetitions=2, lambda_=0.1, teachers=1, most_likely=3)
    made = tuner(labelled=labelled, unlabelled=64)
    keys = strategy.keys(made) if labelled else [(p, 0) for p in PATTERNS]
    # Bit k of a row's number is what voice k says of it.
    said = [np.array([[0.0, 3.0 if i >> k & 1 else -3.0] for i in range(64)]) for k in range(len(keys))]  # fmt: skip
    voices = [Voice(f"{p}{r}", p, r, s) for (p, r), s in zip(keys, said, strict=True)]
    used: list[list[str]] = []
    together = Pet.together

    def spy(self: Pet, voices: Sequence[Voice], *rest: Any) -> Any:
        used.append([v.name for v in voices])
        return together(self, voices, *rest)

    monkeypatch.setattr(Pet, "together", spy)
    heard = set()
    for number in range(1, 6):
        used.clear()
        _, members = strategy.generation(made, made.task, voices, number if labelled else 1)
        for (pattern, r), member, names in zip(members, members.values(), used, strict=True):
            assert len(names) == 1
            own = f"{pattern}{r if labelled else 0}"
            assert own not in names
            heard.add((own, *names))
            k = [v.name for v in voices].index(names[0])
            for t in member.targets[labelled:]:
                assert t.shares[1] == (t.key - labelled) >> k & 1
    if labelled:
        assert len(heard) > 6  # over the generations a model hears several others


@pytest.mark.parametrize(
    ("options", "others", "expected"),
    [
        ({}, 11, 3),  # three repetitions of four patterns, as in the paper
        ({}, 3, 3),
        ({}, 1, 1),
        ({}, 23, 6),
        ({"teachers": 1}, 3, 1),
        ({"teachers": 2}, 5, 2),
        ({"teachers": 1, "lambda_": 1}, 5, 5),
    ],
)
def test_how_many_label_for_a_model(
    options: dict[str, Any], others: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    together = Pet.together

    def spy(self: Pet, voices: Sequence[Voice], *rest: Any) -> Any:
        used.append(len(voices))
        return together(self, voices, *rest)

    monkeypatch.setattr(Pet, "together", spy)
    voices = [Voice(str(i), "a", i + 1, balanced(40)) for i in range(others)]
    IPet(**options, **QUICK).enlarged(tuner(labelled=4), voices, 1, np.random.default_rng(0))
    assert used == [expected]


def test_from_no_labelled_rows_the_most_likely_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spied(monkeypatch)
    always = np.array([[i / 10, 9.0] for i in range(40)])  # all look positive

    def scores(self: Pet, model: PromptModel, tuner: Tuner) -> Any:
        return always if model.weights is None else balanced(40)

    monkeypatch.setattr(Pet, "scores", scores)
    IPet(generations=2, factor=3, most_likely=4, **QUICK).train(tuner(labelled=0))
    assert [m.name for m in seen] == ["g1-a-1", "g1-b-1", "g2-a-1", "g2-b-1", "final"]
    for member in seen[:2]:
        by_label = [sorted(t.key for t in member.targets if t.shares[i]) for i in (0, 1)]
        assert by_label == [[36, 37, 38, 39], [0, 1, 2, 3]]
    for member in seen[2:4]:
        assert [sum(t.shares[i] for t in member.targets) for i in (0, 1)] == [12, 12]


def test_scarce_labels_keep_the_balance() -> None:
    strategy = IPet(factor=9, lambda_=1, **QUICK)
    scores = np.array([[0.0, 1.0 if i < 3 else -1.0] for i in range(40)])
    targets = strategy.enlarged(
        tuner(labelled=4), [Voice("x", "a", 1, scores)], 1, np.random.default_rng(0)
    )
    assert [sum(t.shares[i] for t in targets) for i in (0, 1)] == [5, 5]


def test_widening_grows_the_label_words(monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch)
    seen = spied(monkeypatch)
    made = tuner()
    strategy = IPet(
        generations=2,
        factor=3,
        widen=2,
        final="prompt",
        search_options={"candidates": 200},
        **QUICK,
    )
    found = strategy.train(made)
    words = {m.name: m.task.words_for(m.pattern) for m in seen if m.task}
    for name, by_label in words.items():
        n = 1 + 2 * (2 if name == "final" else int(name[1]))
        assert [len(by_label[label]) for label in LABELS] == [n, n]
        assert [by_label[label][0] for label in LABELS] == ["bad", "best"]
        assert len({w.lower() for some in by_label.values() for w in some}) == 2 * n
        before = words.get(f"g1-{name[3:]}", by_label)
        assert all(by_label[label][: len(before[label])] == before[label] for label in LABELS)
    assert isinstance(found, PromptModel) and found.task.words_for("a") == words["g2-a-1"]
    assert made.task.words_for("a") == WORDS


def test_ipet_is_the_same_by_seed_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = IPet(generations=1, factor=2, **QUICK)
    seen = spied(monkeypatch)
    folder = tmp_path / "run"
    first = strategy.train(tuner(folder=folder)).predict_proba(rows(100, 110))
    names = [m.name for m in seen]
    assert names[-1] == "final" and len(set(names)) == len(names) == 5
    assert np.array_equal(strategy.train(tuner(folder=folder)).predict_proba(rows(100, 110)), first)
    assert len(seen) == 5
    assert np.array_equal(strategy.train(tuner()).predict_proba(rows(100, 110)), first)
    other = strategy.train(tuner(seed=14)).predict_proba(rows(100, 110))
    assert not np.array_equal(other, first)
