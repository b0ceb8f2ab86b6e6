"""Training exits: the losses by hand, a backbone left as it was, and the commands as typed."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plain_tuning as plain
import pytest
import tiny
import torch
from conftest import Ran
from labelling import some
from labelling import task as label_sets

from promptforge import (
    Example,
    LabelWords,
    MultiLabelModel,
    PromptClassifier,
    Scale,
    Settings,
    Task,
    Template,
    UserError,
    artifact,
    exit_curve,
    train,
)
from promptforge.exits.curve import played
from promptforge.exits.model import ExitModel, layers_used, set_policy
from promptforge.exits.train import TwoStage
from promptforge.plugins import build
from promptforge.tuning.objectives import PromptObjective
from promptforge.tuning.texts import Head, HeadObjective, Texts

FAST = Settings(steps=4, batch_size=4, precision="float32", learning_rate=1e-3)
BRIEF = TwoStage(steps=20)


def logits_of_layers(backbone: Any, encoded: Any) -> list[torch.Tensor]:
    """The model's own forward pass with all hidden states; the logits of each layer but the last
    are those of its head on that layer's state."""
    ids = torch.tensor([encoded.ids])
    made = backbone.model(input_ids=ids, output_hidden_states=True)
    head = backbone.model.cls
    return [head(h)[0, encoded.reads[0]] for h in made.hidden_states[1:]]


def test_joint_loss_is_the_weighted_sum_over_layers() -> None:
    """sum_i i L_i / sum_i i, and its gradient, from the model's own hidden states."""
    backbone = plain.fresh("bert")
    tuner = plain.tuner(backbone, class_weight={"pos": 3.0})
    targets = tuner.targets()
    objective = PromptObjective(
        tuner.untrained(), "p", tuner.method, targets, settings=FAST, exits=1.0
    ).double()
    objective.eval()
    loss = objective(targets, 0)
    loss.sum().backward()
    sequences = objective.verbalizer.sequences
    gradients = {
        n: p.grad.clone() for n, p in objective.tunable._whole.items() if p.grad is not None
    }
    transform: Any = objective.exits.each[0]  # type: ignore[union-attr]
    slope = transform.dense.bias.grad.clone()
    objective.commit()
    backbone.model.zero_grad()
    expected = []
    for target, encoded in zip(targets, plain.encoded(tuner), strict=True):
        losses = []
        for logits in logits_of_layers(backbone, encoded):
            log_p = logits.log_softmax(-1)
            scores = torch.stack(
                [log_p[[s[0] for s in sequences[label]]].mean() for label in plain.LABELS]
            )
            truth = target.shares.index(1.0)
            losses.append(-scores.log_softmax(0)[truth])
        expected.append(target.weight * (1 * losses[0] + 2 * losses[1]) / 3)
    assert torch.allclose(loss.double(), torch.stack(expected), atol=1e-5)
    torch.stack(expected).sum().backward()
    name = next(n for n in gradients if "layer.0" in n and n.endswith("query.weight"))
    assert torch.allclose(gradients[name], backbone.parameters[name].grad, atol=1e-6)
    assert slope.abs().sum() > 0
    objective.close()


def test_joint_loss_of_heads() -> None:
    backbone = plain.fresh("bert")
    tuner = plain.tuner(backbone)
    targets = tuner.targets()
    head = Head(backbone.width, 3, 0.0).double()
    texts = Texts(backbone, tuner.task.inputs, "mean")
    objective = HeadObjective(texts, head, tuner.method, targets, exits=1.0).double()
    with torch.no_grad():
        objective.exits.each[0].out.weight.mul_(-2)  # type: ignore[union-attr, operator, index]
    objective.eval()
    loss = objective(targets, 0)
    heads: Any = [objective.exits.each[0], head]  # type: ignore[union-attr]
    expected = []
    for target, encoded in zip(targets, texts.encode([t.row for t in targets]), strict=True):
        states = backbone.model(
            input_ids=torch.tensor([encoded.ids]), output_hidden_states=True
        ).hidden_states[1:]
        each = [
            -h(s.mean(1)).log_softmax(-1)[0, target.shares.index(1.0)]
            for h, s in zip(heads, states, strict=True)
        ]
        expected.append((each[0] + 2 * each[1]) / 3)
    assert torch.allclose(loss.double(), torch.stack(expected), atol=1e-5)
    objective.close()


@pytest.mark.parametrize("strategy", ["prompt", "finetune", "pet"])
def test_two_stages_leave_the_model_as_it_is(strategy: str) -> None:
    """The plain model says the same to the last bit, and the exits have learned."""
    backbone = plain.fresh("bert")
    backbone.model.float()
    before = {n: p.clone() for n, p in backbone.model.named_parameters()}
    tuner = plain.of_every_label(plain.tuner(backbone, labelled=24))
    rows = plain.rows(30, 40)
    fewer = {"repetitions": 1, "final_steps": 20} if strategy == "pet" else {}
    options: dict[str, Any] = {
        "backbone": backbone, "strategy": build("strategy", strategy, **fewer), "settings": FAST, "unlabeled": rows,
        "compare_untrained": False,
    }  # fmt: skip
    one = train(tuner.task, tuner.train, **options).classifier
    expected = one.predict_proba(rows)
    run = train(tuner.task, tuner.train, exits=TwoStage(steps=150, learning_rate=1e-2), **options)
    made: Any = run.classifier
    assert isinstance(made, ExitModel)
    assert np.array_equal(made.predict_proba(rows), expected)
    set_policy(made, "layer", {"layer": 2})
    assert np.abs(made.predict_proba(rows) - expected).max() < 1e-6
    backbone.apply(None)
    assert all(torch.equal(before[n], p) for n, p in backbone.model.named_parameters())
    assert all(p.requires_grad for p in backbone.model.parameters())
    losses = [entry["loss"] for entry in run.trained["exits"].curve]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])


def test_a_killed_training_of_exits_goes_on(tmp_path: Path) -> None:
    """Stopped between two checkpoints, --resume gives the exits of an unbroken training."""
    backbone = plain.fresh("bert")
    backbone.model.float()
    tuner = plain.of_every_label(plain.tuner(backbone, labelled=24))

    class Stop(Exception):
        pass

    def go(folder: str, stop: int = 0, resume: bool = False) -> Any:
        from promptforge.tuning import loop

        kept = loop.Training._update
        calls = 0

        def update(self: Any, *args: Any) -> float:
            nonlocal calls
            calls += 1
            if stop and calls == stop:
                raise Stop
            if self.settings.steps == 12:
                self._save()
            return kept(self, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop.Training, "_update", update)
            return train(
                tuner.task, tuner.train, backbone=backbone, settings=FAST, run=tmp_path / folder,
                exits=TwoStage(steps=12), resume=resume, compare_untrained=False,
            ).classifier  # fmt: skip

    whole = go("a")
    with pytest.raises(Stop):
        go("b", stop=4 + 8)
    again = go("b", resume=True)
    for one, other in zip(whole.exits.parameters(), again.exits.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("exits", ["joint", BRIEF], ids=["joint", "two-stage"])
@pytest.mark.parametrize("strategy", ["prompt", "finetune"])
def test_numbers_leave_when_layers_agree(exits: Any, strategy: str) -> None:
    backbone = plain.fresh("bert")
    backbone.model.float()
    first, second = plain.some_words(backbone, 2)
    labels = {"low": [first], "high": [second]}
    task = replace(
        Task.inline([Template(plain.PATTERN, name="p")], labels=labels), scale=Scale(0, 10)
    )
    rows = plain.rows(0, 12)
    examples = [Example(r, "low", i + 1, value=float(i % 11)) for i, r in enumerate(rows)]
    made: Any = train(
        task, examples, backbone=backbone, strategy=strategy, settings=FAST, exits=exits
    ).classifier
    said = made.every_layer(made.encoded(rows)[0])
    numbers = 10 * said[:, :, 1]
    gap = np.sort(abs(numbers[1] - numbers[0]))
    with pytest.raises(UserError, match="difference=NUMBER"):
        set_policy(made, "patience", {"patience": 1})
    with pytest.raises(UserError, match="predicts numbers"):
        set_policy(made, "confidence")
    found, used = played(
        made,
        build("exit-policy", "patience", patience=1, difference=float(gap[5] + gap[6]) / 2),
        said,
    )
    assert (used == 2).all() and np.array_equal(
        found, said[1]
    )  # two layers: the last is the answer
    set_policy(made, "layer", {"layer": 1})
    assert np.abs(np.array(made.predict(rows)) - numbers[0]).max() < 1e-4
    curve = exit_curve(made, examples, timed_rows=4, repeats=1, batch_sizes=[2])
    assert {p.policy for p in curve.points} == {"layer", "patience"}


@pytest.mark.parametrize("exits", ["joint", BRIEF], ids=["joint", "two-stage"])
@pytest.mark.parametrize("strategy", ["prompt", "finetune"])
def test_questions_about_labels_leave_alone(exits: Any, strategy: str, tmp_path: Path) -> None:
    """Each question about a row leaves at a layer of its own; the row's is their mean."""
    rows, backbone = some(8), plain.fresh("bert")
    backbone.model.float()
    made: Any = train(
        label_sets(), rows, backbone=backbone, strategy=strategy, settings=FAST, exits=exits,
        dev=rows, run=tmp_path / "run",
    ).classifier  # fmt: skip
    assert isinstance(made, MultiLabelModel)
    asked = made.multi_label.asked([e.row for e in rows])
    alone: Any = made.binary
    every = alone.every_layer(alone.encoded(asked)[0])
    top = np.sort(every[0].max(-1))
    set_policy(made, "confidence", {"threshold": float(top[11] + top[12]) / 2})
    left = every[0].max(-1) > alone.policy.threshold
    expected = np.where(left[:, None], every[0], every[1])[:, 1].reshape(8, 3)
    again: Any = artifact.load(tmp_path / "run", backbone=backbone)
    set_policy(again, "confidence", {"threshold": alone.policy.threshold})
    for model in (made, again):
        assert np.abs(model.predict_proba([e.row for e in rows]) - expected).max() < 1e-5
        assert np.allclose(layers_used(model, 8), np.where(left, 1, 2).reshape(8, 3).mean(1))
    curve = exit_curve(made, rows, timed_rows=4, repeats=1, batch_sizes=[2])
    assert {p.policy for p in curve.points} == {"layer", "confidence", "entropy", "patience"}


def test_groups_and_steps_on_the_way_are_refused() -> None:
    backbone = plain.fresh("bert")
    tuner = plain.of_every_label(plain.tuner(backbone))
    for strategy, exits, told in (
        ("pet", "joint", "two-stage"), ("prompt", "early", "choose one of"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=told):
            train(
                tuner.task,
                tuner.train,
                backbone=backbone,
                strategy=strategy,
                exits=exits,
                unlabeled=plain.rows(30, 34),
            )
    with pytest.raises(UserError, match="labelled rows"):
        train(tuner.task, [], backbone=backbone, strategy="zero-shot", exits="two-stage")
    long = plain.of_every_label(plain.tuner(backbone, tokens=2))
    with pytest.raises(UserError, match="one token"):
        train(long.task, long.train, backbone=backbone, exits="joint", settings=FAST)


@pytest.mark.parametrize(
    ("strategy", "told"),
    [("prompt", "one token"), ("pet", "one token"), ("ensemble", "makes a group of them"), ("finetune", "")],
)  # fmt: skip
def test_what_can_have_no_exits_is_refused_before_it_is_trained(
    strategy: str, told: str, tmp_path: Path
) -> None:
    long = plain.of_every_label(plain.tuner(plain.fresh("bert"), tokens=2))
    made = build("strategy", strategy, **({"final": "prompt"} if strategy == "pet" else {}))
    options: dict[str, Any] = {
        "backbone": long.backbone, "strategy": made, "exits": BRIEF, "run": tmp_path / "run",
        "settings": FAST, "unlabeled": plain.rows(30, 34), "compare_untrained": False,
    }  # fmt: skip
    if not told:  # a head reads no words
        assert isinstance(train(long.task, long.train, **options).classifier, ExitModel)
        return
    with pytest.raises(UserError, match=told):
        train(long.task, long.train, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["lora", "pfeiffer"])
def test_dropout_of_the_method_in_a_training_without_any(method: str) -> None:
    some = plain.of_every_label(plain.tuner(plain.fresh("bert")))
    dropping = build("method", method, dropout=0.5)
    with pytest.raises(UserError, match=rf"dropout=false .* method '{method}' asks"):
        train(
            some.task,
            some.train,
            backbone=some.backbone,
            method=dropping,
            settings=Settings(dropout=False),
        )


# --- as typed -------------------------------------------------------------------------------


@pytest.fixture
def trained(
    command: Callable[..., Ran], tiny_model: Callable[[str], Path], reviews: Path
) -> tuple[Callable[..., Ran], Path]:
    first, second = plain.some_words(tiny.backbone("bert"), 2)
    words = LabelWords(["negative", "positive"], {"*": {"negative": [first], "positive": [second]}})
    words.save(reviews / "words.json")
    ran = command(
        "train", reviews, "--model", tiny_model("bert"), "--pattern", "it-was", "--exits", "two-stage",
        "--steps", 3, "--verbalizer", reviews / "words.json", "-o", "exits.steps=5", "--run", "run",
        "--no-compare-untrained", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert json.loads(Path("run/config.json").read_text())["exits"]["steps"] == 5
    return command, reviews


def test_commands(trained: tuple[Callable[..., Ran], Path]) -> None:
    command, reviews = trained
    data = reviews / "test.csv"
    plain_json = command("evaluate", "run", "--data", data, "--json").json
    never = command(
        "evaluate", "run", "--data", data, "--exit-policy", "layer", "-o", "layer=2", "--json"
    ).json
    (name,) = plain_json
    exits = never[name].pop("exits")
    assert exits["mean_layers"] == 2 and exits["share"] == 1 and exits["layers"] == 2
    assert never[name]["accuracy"] == plain_json[name]["accuracy"]
    first = command("evaluate", "run", "--data", data, "--exit-policy", "layer", "-o", "layer=1")
    assert "1.00 of 2 layers" in first.out
    command("predict", "run", "--data", data, "--exit-policy", "confidence",
            "-o", "exit-policy.threshold=0.36", "-O", "out.csv")  # fmt: skip
    with Path("out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["exit_layer"] for row in rows} <= {"1", "2"} and len(rows) == 40
    found = command("exit-curve", "run", "--data", data, "--batch-size", 1, "--batch-size", 4,
                    "--timed-rows", 4, "--repeats", 1, "--plot", "curve.svg", "--max-drop", 100, "--json").json  # fmt: skip
    assert Path("curve.svg").read_text().lstrip().startswith("<?xml")
    assert set(found["best"]) == {"layer", "confidence", "entropy", "patience"}
    for best in found["best"].values():
        assert set(best["speedup"]) == {"1", "4"} and best["line"].startswith("--exit-policy")
    # What it counted is what evaluate measures with the line it prints.
    best = found["best"]["confidence"]
    ran = command("evaluate", "run", "--data", data, *best["line"].split(), "--json").json[name]
    assert ran["accuracy"] == pytest.approx(best["score"])
    assert ran["exits"]["mean_layers"] == pytest.approx(best["mean_layers"])
    table = command("exit-curve", "run", "--data", data, "--policies", "layer", "--timed-rows", 2,
                    "--repeats", 1, "--batch-size", 2)  # fmt: skip
    assert table.code == 0 and "promptforge predict run" in table.out


def test_mistakes(
    trained: tuple[Callable[..., Ran], Path], tiny_model: Callable[[str], Path]
) -> None:
    command, reviews = trained
    data = reviews / "test.csv"
    for args, told in (
        (("evaluate", "run", "--data", data, "--exit-policy", "entropy", "-o", "threshold=0.7"), "0.6931"),
        (("evaluate", "run", "--data", data, "--exit-policy", "layer"), "needs the option 'layer'"),
        (("evaluate", "run", "--data", data, "-o", "threshold=0.7"), "threshold"),
        (("evaluate", reviews, "--exit-policy", "layer"), "--exits joint"),
        (("exit-curve", "nothing", "--data", data), "no trained model"),
        (("exit-curve", "run", "--data", data, "--policies", "sure"), "no exit-policy called"),
        (("exit-curve", "run", "--data", "absent.csv", "--plot", "nodir/x.svg"), "no folder nodir"),
        (("exit-curve", "run", "--data", "absent.csv", "--plot", "x.doc"), "from the ending"),
        (("train", reviews, "--strategy", "pet", "--exits", "joint", "--model", tiny_model("bert"),
          "--unlabeled", data, "--run", "other"), "two-stage"),
    ):  # fmt: skip
        ran = command(*args)
        assert ran.code != 0 and told in ran.err, (args, ran.err)
    assert command("train", reviews, "--model", tiny_model("bert"), "--steps", 2, "--run", "bare", "--pattern", "it-was",
                   "--no-compare-untrained").code == 0  # fmt: skip
    for name in ("evaluate", "predict"):
        ran = command(name, "bare", "--data", data, "--exit-policy", "patience")
        assert ran.code != 0 and "--exits joint" in ran.err


def test_the_estimator_has_exits(tiny_model: Callable[[str], Path]) -> None:
    """Chosen by name, kept in a pickle, and refused without exits."""
    first, second = plain.some_words(tiny.backbone("bert"), 2)
    texts = [row["text"] for row in plain.rows(0, 12)]
    made = PromptClassifier(
        words=[first, second], model=str(tiny_model("bert")), steps=2, exits="joint",
        exit_policy="layer", options={"exit-policy.layer": 1, "exits.learning_rate": 0.01},
    )  # fmt: skip
    made.fit(texts, [0, 1] * 6)
    expected = made.predict_proba(texts)
    again = pickle.loads(pickle.dumps(made))
    assert np.abs(again.predict_proba(texts) - expected).max() < 1e-6
    assert again.classifier_.exit_layers.tolist() == [1] * 12
    with pytest.raises(UserError, match="exits='joint'"):
        made.set_params(exits=None, options=None).fit(texts, [0, 1] * 6)
