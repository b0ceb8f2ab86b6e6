"""Tuning held against a plain loop, on seven architectures; what is trained; what is kept."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plain_tuning as plain
import pytest
import tiny
import torch
from plain_tuning import tuner
from torch.nn.functional import log_softmax

from promptforge import (
    Example,
    PromptForgeError,
    Settings,
    Task,
    Template,
    UserError,
    train,
    train_together,
)
from promptforge.plugins import build
from promptforge.progress import Reporter
from promptforge.selection import fit_selector
from promptforge.tuning import loop
from promptforge.tuning import tuner as tuner_module
from promptforge.tuning.loop import Target
from promptforge.tuning.memory import FREE, warn_matrices
from promptforge.tuning.mixed import TaskExamples
from promptforge.tuning.objectives import PromptObjective
from promptforge.tuning.schedule import order, rate_at
from promptforge.tuning.texts import Head, HeadObjective
from promptforge.tuning.tuner import Member, Tuner

#: linear schedule, no warm-up, four steps
LINEAR = (1.0, 0.75, 0.5, 0.25)
CLOSE = {"rtol": 0, "atol": 1e-5}


def same(made: Tuner, classifier: Any, losses: list[float], expected: Any) -> None:
    """Losses at each step and every weight are the plain loop's."""
    model, plain_losses = expected
    assert losses == pytest.approx(plain_losses, abs=1e-5)
    before = {n: p.detach().clone() for n, p in made.backbone.parameters.items()}
    made.backbone.apply(classifier.weights)
    moved = 0.0
    for name, wanted in model.named_parameters():
        torch.testing.assert_close(made.backbone.parameters[name], wanted, **CLOSE)
        moved = max(moved, float((wanted.detach() - before[name]).abs().max()))
    assert moved > 1e-3
    made.backbone.apply(None)


def losses(made: Tuner, name: str = "m") -> list[float]:
    return [entry["loss"] for entry in made.trained[name].curve]


def cross_entropy(made: Tuner, weights: Any = None) -> Any:
    ids, labels = plain.encoded(made), made.labels

    def row_loss(model: Any, i: int) -> Any:
        log_q = log_softmax(plain.class_scores(made, model, ids[i]), -1)
        return -log_q[labels.index(made.train[i].label)] * (weights[i] if weights else 1.0)

    return row_loss


def lengths(made: Tuner) -> list[int]:
    return [len(e.ids) + len(e.decoder_ids) for e in plain.encoded(made)]


@pytest.mark.parametrize("make", [Settings, Settings.of])
def test_settings_that_are_none(make: Any) -> None:
    with pytest.raises(UserError, match=r"There is no setting 'step'\. Did you mean 'steps'"):
        make(step=3)
    with pytest.raises(UserError, match=r"setting steps: .*\(given: 0\)"):
        make(steps=0)


def settings(**more: Any) -> Settings:
    return Settings.of(**{"steps": 4, "batch_size": 4, "precision": "float32", "warmup": 0,
                          "learning_rate": 1e-3, "dropout": False, **more})  # fmt: skip


# --- prompts -------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_prompts_are_tuned_as_by_a_plain_loop_over_all_weights(architecture: str) -> None:
    made = tuner(plain.fresh(architecture), settings=settings())
    expected = plain.train(made, lengths(made), LINEAR, cross_entropy(made))
    classifier = made.member(Member("m", made.targets(), "p", made.seed))
    assert classifier.weights.rows  # only these rows of the word embeddings were trained
    same(made, classifier, losses(made), expected)


@pytest.mark.parametrize(
    ("more", "shares"),
    [
        ({"warmup": 0.5}, (0.5, 1.0, 1.0, 0.5)),
        ({"schedule": "cosine", "clip": 0.05, "weight_decay": 0.3}, (1.0, 0.853553, 0.5, 0.146447)),
        ({"schedule": "constant", "clip": 0, "warmup": 0.25}, (1.0, 1.0, 1.0, 1.0)),
        ({"accumulate": 4}, LINEAR),
        ({"batch_size": 12, "accumulate": 3}, LINEAR),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_schedule_decay_clipping_and_accumulation(more: dict[str, Any], shares: Any) -> None:
    made = tuner(plain.fresh("bert"), settings=settings(**more))
    expected = plain.train(made, lengths(made), shares, cross_entropy(made))
    same(made, made.member(Member("m", made.targets(), "p", 13)), losses(made), expected)


def test_classes_and_rows_have_weights() -> None:
    of_rows = [1.0, 0.0, 2.0, 0.5, 1.0, 3.0, 1.0, 1.0, 0.25]
    of_classes = {"neg": 0.5, "odd": 3.0}
    made = tuner(
        plain.fresh("gpt2"), settings=settings(), class_weight=of_classes, row_weights=of_rows
    )
    weights = [w * of_classes.get(e.label, 1.0) for w, e in zip(of_rows, made.train, strict=True)]
    expected = plain.train(made, lengths(made), LINEAR, cross_entropy(made, weights))
    same(made, made.member(Member("m", made.targets(), "p", 13)), losses(made), expected)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5", "bart"])
def test_words_of_several_tokens(architecture: str) -> None:
    """Hinge loss at all masks at once in a masked model, exact log-probabilities elsewhere."""
    made = tuner(plain.fresh(architecture), tokens=3, settings=settings(steps=2))
    ids = plain.encoded(made)

    def row_loss(model: Any, i: int) -> Any:
        scores = plain.class_scores(made, model, ids[i])
        true = made.labels.index(made.train[i].label)
        if made.backbone.family != "masked":
            return -log_softmax(scores, -1)[true]
        others = [s for k, s in enumerate(scores) if k != true]
        return sum(torch.clamp(1 - scores[true] + other, min=0) for other in others)

    expected = plain.train(made, lengths(made), (1.0, 0.5), row_loss)
    classifier = made.member(Member("m", made.targets(), "p", 13))
    assert not classifier.weights.rows  # the whole vocabulary is read, and trained whole
    same(made, classifier, losses(made), expected)


@pytest.mark.parametrize(("architecture", "tokens"), [("roberta", 1), ("llama", 1), ("gpt2", 2)])
def test_soft_labels_at_a_temperature(architecture: str, tokens: int) -> None:
    made = tuner(plain.fresh(architecture), tokens=tokens, labelled=5, settings=settings(steps=2))
    ids = plain.encoded(made)
    shares = torch.tensor(
        [[0.2, 0.5, 0.3], [1.0, 0, 0], [0.1, 0.1, 0.8], [0, 0.5, 0.5], [0.3, 0.3, 0.4]]
    )
    heat = [2.0, 1.0, 3.0, 2.0, 0.5]
    targets = [
        Target(e.row, tuple(s.tolist()), 1.0, t)
        for e, s, t in zip(made.train, shares, heat, strict=True)
    ]

    def row_loss(model: Any, i: int) -> Any:
        scores = plain.class_scores(made, model, ids[i])
        return -(shares[i] * log_softmax(scores / heat[i], -1)).sum() * heat[i] ** 2

    expected = plain.train(made, lengths(made), (1.0, 0.5), row_loss)
    same(made, made.member(Member("m", targets, "p", 13)), losses(made), expected)


# --- the classification head ---------------------------------------------------------------


class DoubleHead(Head):
    """In float64, as what it is compared with."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.double()


class InDouble(HeadObjective):
    """The plain loss of one."""

    head_type = DoubleHead


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
def test_a_head_is_tuned_as_by_a_plain_loop(architecture: str) -> None:
    made = tuner(plain.fresh(architecture), settings=settings())
    backbone, family = made.backbone, made.backbone.family
    torch.manual_seed(13)
    head = DoubleHead(32, 3, 0.0)
    texts = [e.row["text"] for e in made.train]
    ids = [backbone.tokenizer(t, return_tensors="pt") for t in texts]

    def row_loss(model: Any, i: int) -> Any:
        given = dict(ids[i])
        if family == "seq2seq":
            given["decoder_input_ids"] = torch.tensor([[0]])
        out = model(**given, output_hidden_states=True)
        states = (out.decoder_hidden_states if family == "seq2seq" else out.hidden_states)[-1][0]
        pooled = states.mean(0) if family == "masked" else states[-1]
        log_q = log_softmax(head.out(torch.tanh(head.dense(pooled))), -1)
        return -log_q[made.labels.index(made.train[i].label)]

    sizes = [len(i["input_ids"][0]) for i in ids]
    expected = plain.train(made, sizes, LINEAR, row_loss, list(head.parameters()))
    classifier = made.member(Member("m", made.targets(), None, 13, objective=InDouble))
    same(made, classifier, losses(made), expected)
    for found, wanted in zip(classifier.head.parameters(), head.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, **CLOSE)


# --- what is trained, and what is left -----------------------------------------------------


class Smoothed(HeadObjective):
    """What an author may bring: a head's loss on labels a fifth of which is any label's."""

    def forward(self, targets: Sequence[Target], draw: int) -> torch.Tensor:
        return super().forward([smooth(t) for t in targets], draw)


def smooth(target: Target) -> Target:
    return replace(target, shares=tuple(0.8 * s + 0.2 / 3 for s in target.shares))


def test_an_objective_of_a_strategy_s_own(tmp_path: Path) -> None:
    made = tuner(plain.fresh("bert"), settings=settings(), folder=tmp_path)
    own = Member("m", made.targets(), None, seed=1, objective=Smoothed)
    plainly = Member("p", [smooth(t) for t in own.targets], None, seed=1)
    texts = [e.row for e in made.train]
    found = [made.member(member).predict_proba(texts) for member in (own, plainly)]
    assert np.array_equal(*found)
    assert np.array_equal(made.member(own).predict_proba(texts), found[0])  # read from its folder
    with pytest.raises(UserError, match="other data or with other settings"):
        made.member(replace(own, objective=HeadObjective))


def weights_of(backbone: Any) -> dict[str, torch.Tensor]:
    backbone.apply(None)
    return {name: p.detach().clone() for name, p in backbone.model.named_parameters()}


@pytest.mark.parametrize(
    ("method", "architecture", "names"),
    [
        ("head", "bert", ("cls.predictions.bias", "cls.predictions.transform.")),
        ("head", "gpt2", ("transformer.ln_f.",)),
        ("bitfit", "bert", ("bias",)),
        ("bitfit", "bart", ("bias",)),
    ],
)
@pytest.mark.parametrize("pattern", ["p", None])
def test_methods_change_only_what_they_say(
    method: str, architecture: str, names: tuple[str, ...], pattern: str | None
) -> None:
    backbone = tiny.backbone(architecture)
    before = weights_of(backbone)
    flags = [p.requires_grad for p in backbone.model.parameters()]
    made = tuner(backbone, method=build("method", method))
    classifier = made.member(Member("m", made.targets(), pattern, 13))
    backbone.apply(classifier.weights)
    now = dict(backbone.model.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], now[name])}
    assert changed or pattern is None
    assert all(n.endswith(names) if method == "bitfit" else n.startswith(names) for n in changed)
    after = weights_of(backbone)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert flags == [p.requires_grad for p in backbone.model.parameters()]
    assert not backbone.model.training and backbone.compact is None


HEADS = {
    "bert": ("cls.predictions",), "roberta": ("lm_head",), "modernbert": ("head", "decoder"),
    "gpt2": ("transformer.ln_f",), "llama": ("lm_head",),  # the one whose matrix is not tied
    "t5": ("decoder.final_layer_norm",), "bart": ("model.decoder.layers.1.final_layer_norm",),
}  # fmt: skip


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_head_alone_is_what_stands_between_the_body_and_the_words(architecture: str) -> None:
    backbone = tiny.backbone(architecture)
    found = build("method", "head").prepare(backbone)
    assert found and all(name.startswith(HEADS[architecture]) for name in found)
    table = backbone.model.get_input_embeddings().weight
    assert not any(p is table for p in found.values())


@pytest.mark.parametrize("architecture", ["bert", "t5", "bart"])
def test_norms_are_those_of_encoder_and_decoder(architecture: str) -> None:
    backbone = tiny.backbone(architecture)
    norms = {n.rpartition(".")[0] for n in build("method", "houlsby").prepare(backbone)}
    expected = {n for n, m in backbone.model.named_modules() if type(m).__name__.endswith("Norm")}
    assert norms == {n for n in expected if not n.startswith("cls.")}
    if architecture != "bert":
        assert any("encoder" in n for n in norms) and any("decoder" in n for n in norms)


@pytest.mark.parametrize("method", ["prefix", "pfeiffer", "lora"])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_optimizer_holds_state_for_what_is_added_alone(architecture: str, method: str) -> None:
    """Soft prompts: test_soft_prompts.py."""
    made = tuner(tiny.backbone(architecture), method=build("method", method))
    before = weights_of(made.backbone)
    objective = PromptObjective(made.untrained(), "p", made.method, made.targets())
    own = objective.addition.trained()
    start = {name: p.detach().clone() for name, p in own.items()}
    chosen = made.settings.grid(made.method.learning_rate)[0]
    training = loop.Training(objective, made.targets(), chosen, seed=3)
    training.run()
    assert {id(p) for p in training.parameters.values()} == {id(p) for p in own.values()}
    state = training.optimizer.state
    assert {id(p) for p in state} == {id(p) for p in own.values()}
    assert all(state[p]["exp_avg"].shape == p.shape for p in own.values())
    assert not any(torch.equal(start[name], p) for name, p in own.items())
    assert all(torch.equal(before[n], p) for n, p in made.backbone.model.named_parameters())
    objective.close()
    after = weights_of(made.backbone)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize("error", [PromptForgeError, KeyboardInterrupt])
@pytest.mark.parametrize("pattern", ["p", None])
def test_the_model_is_as_before_whatever_happens(
    error: type[BaseException], pattern: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = tiny.backbone("t5")
    before, checksum = weights_of(backbone), backbone.checksum
    rate = 1e30 if error is PromptForgeError else 1e-2
    made = tuner(backbone, settings=settings(learning_rate=rate, steps=20, dropout=True))
    made.dev = made.train
    if error is KeyboardInterrupt:
        monkeypatch.setattr(tuner_module, "dev_score", interrupted)
    with pytest.raises(error):
        made.member(Member("m", made.targets(), pattern, 13))
    assert all(torch.equal(before[n], p) for n, p in backbone.model.named_parameters())
    assert all(p.grad is None and p.requires_grad for p in backbone.model.parameters())
    del backbone.checksum
    assert backbone.checksum == checksum
    assert not backbone.model.training


def interrupted(*_: Any) -> float:
    raise KeyboardInterrupt


# --- choosing on the development rows --------------------------------------------------------


def looks(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> list[dict[str, torch.Tensor]]:
    """The weights at each look; the looks score as given."""
    seen: list[dict[str, torch.Tensor]] = []

    def score(classifier: Any, dev: Any) -> float:
        seen.append(
            {n: p.detach().clone() for n, p in classifier.backbone.model.named_parameters()}
        )
        return scores[len(seen) - 1]

    monkeypatch.setattr(tuner_module, "dev_score", score)
    return seen


def with_dev(architecture: str = "bert", **more: Any) -> Tuner:
    dev = [Example(row, plain.LABELS[i % 3], i + 1) for i, row in enumerate(plain.rows(20, 26))]
    return tuner(tiny.backbone(architecture), dev=dev, settings=settings(**more))


@pytest.mark.parametrize(("scores", "best"), [([0.1, 0.9, 0.3, 0.8], 2), ([0.1, 0.9, 0.9, 0.8], 3)])
def test_the_best_look_is_kept(
    scores: list[float], best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = looks(monkeypatch, scores)
    made = with_dev(eval_every=3, steps=12)
    classifier = made.member(Member("m", made.targets(), "p", 13))
    assert (made.trained["m"].best, made.trained["m"].best_step) == (0.9, 3 * best)
    made.backbone.apply(classifier.weights)
    for name, value in made.backbone.model.named_parameters():
        assert torch.equal(value, seen[best - 1][name]), name


def test_the_last_weights_are_kept_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = looks(monkeypatch, [0.1, 0.9, 0.3, 0.8])
    made = with_dev(eval_every=3, steps=12, keep="last")
    classifier = made.member(Member("m", made.targets(), "p", 13))
    assert (made.trained["m"].best, made.trained["m"].best_step) == (0.8, 12)
    made.backbone.apply(classifier.weights)
    for name, value in made.backbone.model.named_parameters():
        assert torch.equal(value, seen[3][name]), name
    with pytest.raises(UserError, match=r"patience .* keep=last"):
        settings(keep="last", patience=2)


def test_patience_ends_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = looks(monkeypatch, [0.5, 0.6, 0.6, 0.6, 0.7, 0.7])
    made = with_dev(eval_every=1, steps=12, patience=2)
    made.member(Member("m", made.targets(), "p", 13))
    assert (len(seen), made.trained["m"].steps) == (4, 4)


@pytest.mark.parametrize("name", ["patience", "eval_every"])
def test_looks_at_rows_that_are_not_there(name: str) -> None:
    """A forge.toml may name them for trainings with and without development rows."""
    made, asked = plain.of_every_label(tuner(tiny.backbone("bert"))), settings(**{name: 2})
    told = rf"^{name}=2 is about looks at dev.* does nothing.* --dev "
    with pytest.warns(UserWarning, match=told):
        train(made.task, made.train, backbone=made.backbone, settings=asked)
    one = TaskExamples(made.task, made.train)
    with pytest.warns(UserWarning, match=told):
        train_together([one], backbone=made.backbone, method="lora", settings=asked)


def test_draws_of_demonstrations_that_are_not_shown() -> None:
    """A warning: what tries settings side by side has them for those that show some."""
    made = plain.of_every_label(tuner(tiny.backbone("bert")))
    given: dict[str, Any] = {"backbone": made.backbone, "samples": 3, "settings": settings(steps=1)}
    told = r"^--samples 3 averages .* does nothing.* --demonstrations"
    alone = build("strategy", "ensemble", of="lm-bff", of_options={"demonstrate": False})
    for strategy in ("prompt", alone):
        with pytest.warns(UserWarning, match=told):
            train(made.task, made.train, dev=made.train, strategy=strategy, **given)
    # Those that show some of their own choice need none.
    for strategy in (
        build("strategy", "ensemble", of="lm-bff"),
        build("strategy", "ensemble", also=["lm-bff"]),
    ):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="--samples")
            train(made.task, made.train, dev=made.train, strategy=strategy, **given)


def test_a_member_read_again_draws_only_what_it_shows(tmp_path: Path) -> None:
    made = plain.of_every_label(tuner(tiny.backbone("bert")))
    mixed = build("strategy", "ensemble", also=["lm-bff"])
    found = []
    for resume in (False, True):
        run = train(
            made.task, made.train, dev=made.train, backbone=made.backbone, strategy=mixed, samples=3,
            settings=settings(steps=1), run=tmp_path / "run", resume=resume,
        )  # fmt: skip
        (tmp_path / "run" / "results.json").unlink()
        found.append({name: m.samples for name, m in run.classifier.members.items()})  # type: ignore[attr-defined]
    assert found[0] == found[1] and set(found[0].values()) == {1, 3}


def test_rate_and_batch_are_chosen_on_dev(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = looks(monkeypatch, [0.1, 0.2, 0.4, 0.3])
    made = with_dev(eval_every=4, learning_rate=[1e-3, 1e-2], batch_size=[2, 4])
    tried: list[tuple[float, int]] = []
    real = loop.Training.__init__

    def spy(self: Any, objective: Any, targets: Any, chosen: Settings, **more: Any) -> None:
        tried.append((chosen.rate, chosen.rows))
        real(self, objective, targets, chosen, **more)

    monkeypatch.setattr(loop.Training, "__init__", spy)
    classifier = made.member(Member("m", made.targets(), "p", 13))
    assert tried == [(1e-3, 2), (1e-3, 4), (1e-2, 2), (1e-2, 4)]
    assert made.trained["m"].best == 0.4
    made.backbone.apply(classifier.weights)
    assert all(torch.equal(p, seen[2][n]) for n, p in made.backbone.model.named_parameters())
    made.backbone.apply(None)
    made.dev = []
    with pytest.raises(UserError, match=r"4 pairs of learning rate and batch size .* give --dev"):
        made.member(Member("other", made.targets(), "p", 13))


# --- order, rate, chance -------------------------------------------------------------------


def test_every_epoch_has_every_row_in_an_order_of_its_own() -> None:
    sizes = [i * 7 % 23 for i in range(40)]
    epochs = [order(sizes, 8, 13, epoch) for epoch in range(3)]
    for batches in epochs:
        assert sorted(i for batch in batches for i in batch) == list(range(40))
    assert epochs[0] != epochs[1] != epochs[2]
    assert order(sizes, 8, 13, 1) == epochs[1] and order(sizes, 8, 14, 1) != epochs[1]
    filled = order(sizes[:3], 8, 13, 0)
    assert [len(batch) for batch in filled] == [8] and set(filled[0]) == {0, 1, 2}
    assert rate_at(0, Settings(steps=1)) == 1


@pytest.mark.parametrize("pattern", ["p", None])
def test_a_seed_says_everything(pattern: str | None) -> None:
    def tuned(seed: int) -> tuple[list[float], dict[str, torch.Tensor]]:
        made = tuner(tiny.backbone("bert"), settings=settings(dropout=True))
        classifier = made.member(Member("m", made.targets(), pattern, seed))
        return losses(made), classifier.weights.flat()

    first, again, other = tuned(13), tuned(13), tuned(14)
    assert first[0] == again[0] != other[0]
    assert all(torch.equal(first[1][name], again[1][name]) for name in first[1])


def test_bfloat16_and_float32_in_one_process() -> None:
    made = tuner(tiny.backbone("bert"), settings=settings(precision="bfloat16"))
    made.member(Member("half", made.targets(), "p", 13))
    made.settings = settings()
    made.member(Member("m", made.targets(), "p", 13))
    half, whole = losses(made, "half"), losses(made)
    assert half != whole and half == pytest.approx(whole, rel=0.05, abs=0.1)


# --- members in a run's folder -------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["p", None])
def test_members_in_a_folder_leave_their_weights_there(pattern: str | None, tmp_path: Path) -> None:
    texts = plain.rows(20, 26)
    members = [Member(name, [], pattern, seed) for name, seed in (("one", 13), ("two", 14))]
    kept, held = (
        tuner(tiny.backbone("bert"), settings=settings(), folder=folder)
        for folder in (tmp_path / "run", None)
    )
    made, plainly = (
        one.members([replace(m, targets=one.targets()) for m in members]) for one in (kept, held)
    )
    for name, model in made.items():
        assert np.array_equal(model.predict_proba(texts), plainly[name].predict_proba(texts))
        file = tmp_path / "run" / "members" / name / "weights.safetensors"
        if (maps := Path("/proc/self/maps")).exists():  # Linux says which files are in memory
            assert str(file) in maps.read_text(encoding="utf-8")
    if os.name != "nt":
        before = made["one"].predict_proba(texts)
        shutil.rmtree(tmp_path / "run")
        made["two"].predict_proba(texts)
        assert np.array_equal(made["one"].predict_proba(texts), before)


def test_samples_change_what_is_predicted_and_not_what_is_trained(tmp_path: Path) -> None:
    shown = Task.inline(
        [Template("{% for demo in demos %}{{ demo.text }} {% endfor %}{{ text }} It was {{ mask }}", name="p")],
        labels=tuner(tiny.backbone("bert")).task.labels,
    )  # fmt: skip

    def asked(samples: int, folder: Path | None) -> Any:
        made = tuner(
            tiny.backbone("bert"), task=shown, settings=settings(), samples=samples, folder=folder,
            demonstrations=build("demonstrations", "random", seed=3),
        )  # fmt: skip
        fit_selector(made.demonstrations, made.train, list(made.labels), columns=["text"])
        return made.member(Member("m", made.targets(), "p", 13))

    texts = plain.rows(20, 26)
    one, three = asked(1, tmp_path), asked(3, None).predict_proba(texts)
    found = asked(3, tmp_path)  # the finished member
    assert abs(one.predict_proba(texts) - three).max() > 1e-6
    assert found.samples == 3 and np.allclose(found.predict_proba(texts), three, atol=1e-6)


# --- memory --------------------------------------------------------------------------------


def test_full_attention_with_dropout_on_long_rows_warns_of_its_matrices() -> None:
    """Bytes by hand: 3 matrices x 4 bytes x layers x rows x heads x tokens x tokens."""
    backbone = tiny.fresh("bert")
    config = backbone.model.config
    told: list[str] = []
    report = Reporter()
    report.warn = told.append  # type: ignore[method-assign]
    settings = Settings(steps=1, batch_size=4)
    a_token = 12 * config.num_hidden_layers * 4 * config.num_attention_heads
    most = int((FREE / a_token) ** 0.5)

    warn_matrices(backbone, [5, most - 1], settings, report)
    warn_matrices(backbone, [4 * most], settings.model_copy(update={"dropout": False}), report)
    warn_matrices(backbone, [most + 9], settings.model_copy(update={"accumulate": 4}), report)
    config.attention_probs_dropout_prob = 0.0
    warn_matrices(backbone, [4 * most], settings, report)
    assert told == []

    config.attention_probs_dropout_prob = 0.1
    warn_matrices(backbone, [5, 2 * most], settings, report)
    assert len(told) == 1
    assert f"up to {2 * most:,} tokens" in told[0]
    assert "about 17 GB" in told[0]
    assert "settings.dropout=false" in told[0]


@pytest.mark.parametrize("verbalizer, reads", [("manual", False), ("knowledgeable", True)])
def test_a_member_is_another_where_other_rows_calibrate_it(verbalizer: str, reads: bool) -> None:
    """A run does not go on with a member whose verbalizer learned from other unlabelled rows."""
    made = tuner(tiny.backbone("bert"), verbalizer=build("verbalizer", verbalizer))
    member = Member("m", made.targets(), "p", seed=13)
    some, others = ([{"text": f"{who} film {i}"} for i in range(4)] for who in ("a", "the"))
    first, second = (made.with_(unlabeled=rows).identity(member) for rows in (some, others))
    assert (first != second) == reads
    assert made.with_(unlabeled=[]).identity(member) == made.identity(member)
