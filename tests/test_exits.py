"""Early exit: the same answers as a plain reference, and layers that really are not run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import plain_tuning as plain
import pytest
import tiny
import torch
from transformers import Cache

from promptforge import Settings, Task, Template, UserError, artifact, train
from promptforge.backbone.patterned import place
from promptforge.exits.exits import end_of
from promptforge.exits.model import ExitModel, set_policy
from promptforge.model import PromptModel
from promptforge.plugins import build
from promptforge.readout import Readout

ROWS = plain.rows(20, 44)
FAST = Settings(steps=2, batch_size=4, precision="float32", learning_rate=1e-3, dropout=False)


def deep(architecture: str, layers: int = 5, **more: Any) -> Any:
    """A tiny backbone with more layers than the others have."""
    made = tiny.fresh(architecture)
    config = made.model.config
    for name in (
        "num_hidden_layers",
        "n_layer",
        "num_layers",
        "decoder_layers",
        "num_decoder_layers",
    ):
        if hasattr(config, name):
            setattr(config, name, layers)
    if hasattr(config, "layer_types") and architecture != "modernbert":
        config.layer_types = None
    config = type(config).from_dict(
        {k: v for k, v in config.to_dict().items() if k != "layer_types"} | more
    )
    torch.manual_seed(1)
    model = type(made.model)(config)
    if architecture in ("t5", "modernbert"):  # their own initialisation gives nearly equal layers
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3)
    return type(made)(model, made.tokenizer, name=f"deep-{architecture}")


def albert() -> Any:
    from transformers import AlbertConfig, AlbertForMaskedLM

    from promptforge.backbone.masked import MaskedBackbone

    tokenizer = tiny.tokenizer("bert")
    config = AlbertConfig(
        vocab_size=len(tokenizer), hidden_size=32, embedding_size=16, num_attention_heads=4,
        num_hidden_layers=5, intermediate_size=64, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(1)
    return MaskedBackbone(AlbertForMaskedLM(config), tokenizer, name="deep-albert")


def make(backbone: Any, kind: str = "prompt", weights: Any = None, words: int = 1) -> ExitModel:
    """An untrained model with exits that are no copies of one another."""
    tuner = plain.of_every_label(plain.tuner(backbone))
    model: Any
    if kind == "prompt":
        model = tuner.untrained(remember=False)
        model.weights = weights
    else:
        model = train(
            tuner.task, tuner.train, backbone=backbone, strategy="finetune", settings=FAST
        ).classifier
    exits = end_of(model).make()
    torch.manual_seed(2)
    with torch.no_grad():
        for p in exits.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return ExitModel(model, exits)


Answers = list[np.ndarray[Any, Any]]


def alone(model: ExitModel) -> list[Answers]:
    """What each layer says of each row: all hidden states of one pass of the row alone."""
    backbone = model.backbone
    backbone.apply(model.plain.weights)
    said = []
    for (encoded,) in [[e] for e in model.encoded(ROWS)[0]]:
        batch = backbone.collate([encoded], [0])
        states: list[torch.Tensor] = []

        def note(_: Any, __: Any, out: Any, states: list[torch.Tensor] = states) -> None:
            states.append(out[0] if isinstance(out, tuple) else out)

        handles = [m.register_forward_hook(note) for m in backbone.layers.modules]
        with torch.no_grad():
            last = backbone.hidden(batch)
        for handle in handles:
            handle.remove()
        answers: Answers = []
        for number, h in enumerate(states):
            with torch.no_grad():
                s = h[batch.rows, batch.columns]
                for module in backbone.layers.norm:
                    s = module(s)
                if number == len(states) - 1:
                    assert torch.allclose(s, last, atol=1e-5)
                answers.append(_classified(model, number, s))
        said.append(answers)
    return said


def by_hand(
    model: ExitModel, policy: str, value: Any, said: list[Answers] | None = None
) -> tuple[Answers, list[int]]:
    """The policy's rule in plain Python, with what `alone` found."""
    found, used = [], []
    for answers in said or alone(model):
        counter = 0
        for layer, p in enumerate(answers, start=1):
            if layer > 1 and p.argmax() == answers[layer - 2].argmax():
                counter += 1
            else:
                counter = 0
            entropy = -sum(x * math.log(x) for x in p if x > 0)
            leaves = {
                "layer": layer == value, "confidence": p.max() > value, "entropy": entropy < value,
                "patience": counter == value,
            }[policy]  # fmt: skip
            if leaves or layer == len(answers):
                found.append(p)
                used.append(layer)
                break
    return found, used


def _classified(model: ExitModel, number: int, states: torch.Tensor) -> np.ndarray[Any, Any]:
    end: Any = model.end
    module = [*model.exits.each, None][number]
    if isinstance(model.plain, PromptModel):
        x = (
            states
            if module is None
            else states + states @ module.dense.weight.T + module.dense.bias
        )
        readout = Readout(model.backbone, [end.sample], x[None])
        scores = end.verbalizer.class_scores(readout)
    else:
        scores = (module or model.plain.head)(states.mean(0, keepdim=True))
    return scores.detach().double().softmax(-1)[0].numpy()


def middle(model: ExitModel, policy: str, at: float = 0.75) -> Any:
    """A threshold at which some rows leave and some stay, half-way between two values.

    Args:
        at: about which share of the confidences lie below it.
    """
    every = model.every_layer(model.encoded(ROWS)[0])[:-1]
    if policy == "patience":
        return 2
    if policy == "confidence":
        values = np.sort(every.max(-1), axis=None)
    else:
        values = np.sort(-(every * np.log(np.maximum(every, 1e-300))).sum(-1), axis=None)
        at = 1 - at
    k = int(at * len(values))
    best = max(range(k - 6, k + 6), key=lambda i: values[i + 1] - values[i])
    return float(values[best] + values[best + 1]) / 2


@pytest.mark.parametrize("kind", ["prompt", "head"])
@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, "albert"])
def test_rows_leave_as_each_would_alone(architecture: str, kind: str) -> None:
    """Layer and scores are those of a plain loop over one row, whatever the batch."""
    model = make(albert() if architecture == "albert" else deep(architecture), kind)
    assert model.layers == 5
    model.every_layer(model.encoded(ROWS)[0])  # binds the exits to the prompt
    said = alone(model)
    for policy in ("confidence", "entropy", "patience", "layer"):
        value = 3 if policy == "layer" else middle(model, policy)
        if policy == "confidence":  # one layer may be surer of every row than the others
            tried = [middle(model, policy, at) for at in (0.75, 0.85, 0.6, 0.9, 0.5, 0.4)]
            value = next(
                (v for v in tried if len(set(by_hand(model, policy, v, said)[1])) > 1), value
            )
        name = {"confidence": "threshold", "entropy": "threshold"}.get(policy, policy)
        set_policy(model, policy, {name: value})
        expected, layers = by_hand(model, policy, value, said)
        found = model.predict_proba(ROWS)
        assert model.exit_layers.tolist() == layers
        assert np.abs(found - np.array(expected)).max() < 1e-5
        if policy == "confidence":
            assert len(set(layers)) > 1  # rows did leave a batch that went on
            back = model.predict_proba(ROWS[::-1])[::-1]
            assert np.abs(back - found).max() < 1e-5 and model.exit_layers[::-1].tolist() == layers
            ones = np.concatenate([model.predict_proba([row]) for row in ROWS])
            assert np.abs(ones - found).max() < 1e-5


@pytest.mark.parametrize("kind", ["prompt", "head"])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_policy_that_never_leaves_is_the_plain_model(architecture: str, kind: str) -> None:
    model = make(tiny.backbone(architecture), kind)
    expected = model.plain.predict_proba(ROWS)
    assert np.array_equal(model.predict_proba(ROWS), expected)  # without a policy
    for policy, options in (
        ("layer", {"layer": 2}), ("confidence", {"threshold": 1}), ("entropy", {"threshold": 0}),
        ("patience", {"patience": 1}),
    ):  # fmt: skip
        set_policy(model, policy, options)
        assert np.abs(model.predict_proba(ROWS) - expected).max() < 1e-6
        assert (model.exit_layers == 2).all()


@pytest.mark.parametrize("architecture", ["bert", "llama", "t5", "albert"])
def test_layers_are_not_run_for_rows_that_left(architecture: str) -> None:
    model = make(albert() if architecture == "albert" else deep(architecture))
    set_policy(model, "confidence", {"threshold": middle(model, "confidence")})
    seen: list[int] = []
    handles = [
        m.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
        for m in model.backbone.layers.modules
    ]
    model.backbone.batch_tokens = 10_000  # one batch
    model.predict_proba(ROWS)
    for handle in handles:
        handle.remove()
    # A shared beginning is read once, by every layer, as one row.
    shared = seen[:5] if seen[0] == 1 else []
    left = [int((model.exit_layers > layer).sum()) for layer in range(5)]
    assert seen[len(shared) :] == [n for n in left if n]
    assert sum(left) < 5 * len(ROWS)


@pytest.mark.parametrize("method", ["prefix", "lora", "prompt-tuning", "adapter"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "bart"])
def test_what_is_put_into_the_model_stays_with_its_rows(architecture: str, method: str) -> None:
    """Prefixes, low-rank updates and soft tokens, with rows leaving on the way."""
    backbone = deep(architecture, 4)
    tuner = plain.of_every_label(plain.tuner(backbone))
    fast = FAST.model_copy(update={"learning_rate": 0.05, "steps": 3})
    tuned = train(
        tuner.task, tuner.train, backbone=backbone, method=method, settings=fast
    ).classifier
    model = make(backbone, weights=tuned.weights)  # type: ignore[attr-defined]
    set_policy(model, "confidence", {"threshold": middle(model, "confidence")})
    expected, layers = by_hand(model, "confidence", model.policy.threshold)  # type: ignore[union-attr]
    found = model.predict_proba(ROWS)
    assert model.exit_layers.tolist() == layers and len(set(layers)) > 1
    assert np.abs(found - np.array(expected)).max() < 1e-5


@pytest.mark.parametrize(
    "pattern, options",
    [("longformer", {"window": 8}), ("bigbird", {"window": 4, "block": 2, "random_blocks": 1}), ("linear", {})],
)  # fmt: skip
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_a_pattern_sees_the_rows_that_are_left(
    architecture: str, pattern: str, options: dict[str, Any]
) -> None:
    """What is global, and what is padding, is cut out with the rows that leave."""
    backbone = deep(architecture, 4)
    place(backbone, build("attention", pattern, **options))
    model = make(backbone)
    expected = model.plain.predict_proba(ROWS)
    set_policy(model, "confidence", {"threshold": 1})
    assert np.abs(model.predict_proba(ROWS) - expected).max() < 1e-6
    set_policy(model, "confidence", {"threshold": middle(model, "confidence")})
    expected, layers = by_hand(model, "confidence", model.policy.threshold)  # type: ignore[union-attr]
    found = model.predict_proba(ROWS)
    assert model.exit_layers.tolist() == layers and len(set(layers)) > 1
    assert np.abs(found - np.array(expected)).max() < 1e-5


@pytest.mark.parametrize("architecture", tiny.CAUSAL)
def test_a_shared_beginning_is_cut_with_the_rows(architecture: str) -> None:
    """Keys and values that all rows share stay right when rows leave."""
    backbone = deep(architecture)
    first, second, third = (w for w in plain.some_words(backbone, 3))
    template = "a long film that was seen by many and was made for all of them . {{ text }} It was {{ mask }}"
    task = Task.inline(
        [Template(template, name="p")], labels={"neg": [first], "pos": [second], "odd": [third]}
    )
    base = PromptModel(backbone, task, remember=False)
    exits = end_of(base).make()
    with torch.no_grad():
        for p in exits.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    model = ExitModel(base, exits)
    set_policy(model, "confidence", {"threshold": middle(model, "confidence")})
    used_cache = []
    handle = backbone.layers.modules[-1].register_forward_pre_hook(
        lambda _, args, kwargs: used_cache.extend(isinstance(v, Cache) for v in (*args, *kwargs.values())),
        with_kwargs=True,
    )  # fmt: skip
    found = model.predict_proba(ROWS)
    handle.remove()
    assert any(used_cache)
    expected, layers = by_hand(model, "confidence", model.policy.threshold)  # type: ignore[union-attr]
    assert model.exit_layers.tolist() == layers and len(set(layers)) > 1
    assert np.abs(found - np.array(expected)).max() < 1e-5


def test_the_quick_way_is_taken_only_where_it_is_right() -> None:
    """One product for the class scores where they are linear; else the verbalizer itself."""
    backbone = deep("bert", 3)
    first, second, third, fourth = plain.some_words(backbone, 4)
    words = {"neg": [first, second], "pos": [third, fourth]}
    for options, linear in (
        ({}, True),
        ({"aggregate": "max"}, False),
        ({"aggregate": "sum"}, False),
    ):
        task = Task.inline([Template(plain.PATTERN, name="p")], labels=words)
        base = PromptModel(backbone, task, options=options, remember=False)
        end: Any = end_of(base)
        end.ready(base.encode_rows("p", ROWS[:1])[0])
        exit_ = end.make().each[0]
        torch.nn.init.normal_(exit_.dense.weight, std=0.2)
        seen = torch.randn(6, 1, 32)
        with torch.inference_mode():
            quick = end.quick(exit_)(seen).log_softmax(-1)
            assert torch.allclose(quick, end.scores(seen, exit_).log_softmax(-1), atol=1e-5)
        assert (end._straight() is not None) == linear


def test_policies_by_hand() -> None:
    p = torch.tensor([[0.7, 0.3], [0.2, 0.8], [0.55, 0.45]])
    confidence = build("exit-policy", "confidence", threshold=0.7)
    assert confidence.leaves(0, p, {}).tolist() == [False, True, False]  # exceeds, not reaches
    entropy = build("exit-policy", "entropy", threshold=0.62)
    assert entropy.leaves(0, p, {}).tolist() == [True, True, False]
    patience, memory = build("exit-policy", "patience", patience=2), dict[str, torch.Tensor]()
    answers = [[0, 1], [0, 0], [0, 0], [1, 0]]  # two rows through four layers
    left = [
        patience.leaves(i, torch.eye(2)[torch.tensor(a)], memory).tolist()
        for i, a in enumerate(answers)
    ]
    assert left == [[False, False], [False, False], [True, False], [False, True]]
    numbers, memory = build("exit-policy", "patience", patience=1, difference=0.5), {}
    for value, leaves in ((1.0, False), (1.5, False), (1.9, True)):
        assert numbers.leaves(0, torch.tensor([[value]]), memory).tolist() == [leaves]


@pytest.mark.parametrize(
    ("policy", "options", "told"),
    [
        ("confidence", {"threshold": 0}, "threshold"), ("confidence", {"threshold": 1.2}, "threshold"),
        ("entropy", {"threshold": -0.1}, "threshold"), ("entropy", {"threshold": 1.2}, "0 to 1.0986"),
        ("patience", {"patience": 5}, "1 to 4"), ("patience", {"difference": 0.1}, "leave it out"),
        ("layer", {"layer": 6}, "1 to 5"), ("layer", {"layer": 0}, "layer"), ("layer", {}, "needs the option"),
        ("never", {}, "no exit-policy called"),
    ],
)  # fmt: skip
def test_thresholds_out_of_range(policy: str, options: dict[str, Any], told: str) -> None:
    model = make(deep("bert"))
    with pytest.raises(UserError, match=told):
        set_policy(model, policy, options)


def test_a_model_without_exits_says_how_to_train_them() -> None:
    with pytest.raises(UserError, match="--exits joint"):
        set_policy(plain.tuner(tiny.backbone("bert")).untrained(), "patience")


@pytest.mark.parametrize("kind", ["prompt", "head"])
def test_an_artifact_has_the_exits(tmp_path: Any, kind: str) -> None:
    backbone = deep("bert", 3)
    model = make(backbone, kind)
    set_policy(model, "confidence", {"threshold": middle(model, "confidence")})
    expected, layers = model.predict_proba(ROWS), model.exit_layers
    artifact.save(model, tmp_path / "made", {})
    again: Any = artifact.load(tmp_path / "made", backbone=backbone)
    assert again.policy is None
    again.policy = model.policy
    assert np.abs(again.predict_proba(ROWS) - expected).max() < 1e-6
    assert np.array_equal(again.exit_layers, layers)
    broken = tmp_path / "made" / "weights.safetensors"
    broken.write_bytes(broken.read_bytes()[:-8] + b"12345678")
    with pytest.raises(Exception, match="damaged"):
        artifact.load(tmp_path / "made", backbone=backbone)
