"""Soft prompts held against a plain `inputs_embeds`: outputs, gradients, training, what is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import plain_tuning as plain
import pytest
import tiny
import torch
from reference import long_word, some_words
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import log_softmax

from promptforge import Settings, Task, Template, artifact
from promptforge.encode import Encoded
from promptforge.errors import PromptForgeError, UserError
from promptforge.plugins import build
from promptforge.tuning.loop import Training
from promptforge.tuning.objectives import PromptObjective
from promptforge.tuning.starts import start_ids
from promptforge.tuning.tuner import Member, Tuner

PATTERN = '{{ soft("It was", id="a") }} {{ text }} {{ soft(n=3) }} and {{ soft("It was", id="a") }} {{ mask }}'
CLOSE = {"rtol": 0, "atol": 1e-6}


def tuner(backbone: Any, pattern: str = PATTERN, **more: Any) -> Tuner:
    """Nine rows, three labels, four steps in double precision."""
    words = dict(zip(plain.LABELS, ([w] for w in some_words(backbone, 3)), strict=True))
    settings = Settings.of(steps=4, batch_size=4, precision="float32", warmup=0, dropout=False,
                           **more.pop("settings", {}))  # fmt: skip
    return plain.tuner(
        backbone, task=Task.inline([Template(pattern, name="p")], labels=words), settings=settings, **more
    )  # fmt: skip


def added(made: Tuner, name: str = "prompt-tuning", **options: Any) -> tuple[Any, list[Encoded]]:
    """What a method adds for the tuner's rows, and the prompts with its opening."""
    model = made.untrained()
    method = build("method", name, **options)
    addition = method.add(made.backbone, plain.encoded(made), made.task.words_for("p"))
    model.opening = addition.opening
    return addition, model.encode("p", [model.prompt("p", e.row) for e in made.train])


class WithVectors:
    """A model that reads a prompt with vectors in place of its soft tokens: `inputs_embeds`.

    A decoder that writes the prompt again reads them too, one position later.
    """

    def __init__(self, backbone: Any, model: Any, prompt: Encoded, vectors: dict[str, Tensor]):
        encoder = model.get_encoder() if backbone.family == "seq2seq" else None
        table = getattr(encoder, "embed_tokens", None) or model.get_input_embeddings()
        self.model, self.table, self.prompt, self.vectors = model, table, prompt, vectors
        self.writes = encoder is not None and backbone.ask == "mask"

    def __call__(self, input_ids: Tensor, **more: Any) -> Any:
        if self.writes:
            ids = more.pop("decoder_input_ids")
            embeds = self.put(self.model.get_decoder().embed_tokens(ids)[0], 1)
            more["decoder_inputs_embeds"] = embeds[None]
        return self.model(inputs_embeds=self.put(self.table(input_ids)[0], 0)[None], **more)

    def put(self, embeds: Tensor, shift: int) -> Tensor:
        for slot in self.prompt.soft:
            own, start = self.vectors[slot.key], slot.start + shift
            embeds = torch.cat([embeds[:start], own, embeds[start + len(own) :]])
        return embeds


def scores(made: Tuner, model: Any, prompt: Encoded, vectors: dict[str, Tensor]) -> Tensor:
    """Log-probabilities of the classes of one prompt, from whole logits."""
    reader = WithVectors(made.backbone, model, prompt, vectors)
    return log_softmax(plain.class_scores(made, reader, prompt), -1)


def moved(addition: Any, size: float = 0.3) -> Any:
    """The addition with other values in all that is trained."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in addition.trained().values():
            parameter += size * torch.randn_like(parameter)
    return addition


def refused(what: Callable[[], Any], *parts: str, kind: type[PromptForgeError] = UserError) -> None:
    with pytest.raises(kind) as error:
        what()
    for part in parts:
        assert part in str(error.value), error.value


# --- exactness -----------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_outputs_and_gradients_are_those_of_inputs_embeds(architecture: str) -> None:
    backbone = plain.fresh(architecture)
    made = tuner(backbone)
    addition, prompts = added(made, tokens=4)
    assert {s.key for e in prompts for s in e.soft} == {"opening", "a", "soft 0"}
    assert len({len(e.ids) for e in prompts}) > 2  # rows are padded
    moved(addition)
    leaves = {key: v.detach().clone().requires_grad_() for key, v in addition.soft().items()}
    for parameter in backbone.model.parameters():
        parameter.requires_grad_(False)
    attached = backbone.attach([addition])
    states = backbone.read(prompts)
    logits = backbone.logits(states.flatten(0, 1)).view(len(prompts), -1, backbone.vocabulary)
    log_softmax(logits, -1)[:, :, 7].sum().backward()
    attached.close()
    expected = torch.zeros(())
    for prompt, mine in zip(prompts, logits, strict=True):
        reader = WithVectors(backbone, backbone.model, prompt, leaves)
        whole = plain.logits(backbone, reader, prompt)[list(prompt.reads)]
        torch.testing.assert_close(mine, whole, **CLOSE)
        expected = expected + log_softmax(whole, -1)[:, 7].sum()
    expected.backward()
    found = dict(zip(leaves, (p.grad for p in addition.trained().values()), strict=True))
    for key, leaf in leaves.items():
        assert float(leaf.grad.abs().max()) > 1e-4
        torch.testing.assert_close(found[key], leaf.grad, **CLOSE)
    # The gradient stops at the soft tokens: nothing else has one.
    assert all(p.grad is None for p in backbone.model.parameters())


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_training_is_that_of_a_plain_loop_over_the_vectors(architecture: str) -> None:
    backbone = plain.fresh(architecture)
    made = tuner(backbone, settings={"learning_rate": 0.05})
    made.method = build("method", "prompt-tuning", tokens=3)
    addition, prompts = added(made, tokens=3)
    vectors = {key: torch.nn.Parameter(v.detach().clone()) for key, v in addition.soft().items()}
    before = {n: p.detach().clone() for n, p in backbone.parameters.items()}
    for parameter in backbone.model.parameters():
        parameter.requires_grad_(False)

    def row_loss(model: Any, i: int) -> Tensor:
        return -scores(made, model, prompts[i], vectors)[made.labels.index(made.train[i].label)]

    lengths = [len(e.ids) + len(e.decoder_ids) for e in prompts]
    _, losses = plain.train(made, lengths, (1, 0.75, 0.5, 0.25), row_loss, list(vectors.values()))
    for parameter in backbone.model.parameters():
        parameter.requires_grad_(True)
    classifier = made.member(Member("m", made.targets(), "p", made.seed))
    assert [e["loss"] for e in made.trained["m"].curve] == pytest.approx(losses, abs=1e-6)
    for key, value in classifier.weights.added.soft().items():
        torch.testing.assert_close(value, vectors[key].detach(), **CLOSE)
        assert float((value - addition.soft()[key].detach()).abs().max()) > 0.01
    for name, value in before.items():
        assert torch.equal(backbone.parameters[name], value), name


def test_starts_are_the_models_own_vectors() -> None:
    backbone = plain.fresh("gpt2")
    made = tuner(backbone)
    table = backbone.model.get_input_embeddings().weight
    text, words = "a fine old film", made.task.words_for("p")

    def opening(**options: Any) -> Tensor:
        found: Tensor = added(made, tokens=9, **options)[0].soft()["opening"]
        return found

    ids = backbone.text.ids([text])[0]
    wanted = [ids[i % len(ids)] for i in range(9)]
    torch.testing.assert_close(opening(init="text", text=text), table[wanted])
    labels = [t for ws in words.values() for w in ws for t in backbone.text.ids([f" {w}"])[0]]
    assert len(labels) < 9
    # The rest is random words, as in Lester et al. 2021, section 3.2.
    of_labels = opening(init="labels")
    torch.testing.assert_close(of_labels[: len(labels)], table[labels])
    torch.testing.assert_close(of_labels[len(labels) :], opening()[: 9 - len(labels)])
    first, again, other = opening(), opening(seed=0), opening(seed=1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    rows = [(table == vector).all(1).nonzero()[0, 0].item() for vector in first]
    assert not set(rows) & set(backbone.text.special_ids)
    soft = added(made)[0].soft()
    written = backbone.text.word("It was", space_before=False)
    torch.testing.assert_close(soft["a"], table[written])


def test_every_label_has_a_slot_where_words_are_more_than_tokens() -> None:
    backbone = tiny.backbone("gpt2")
    single = some_words(backbone, 7)
    long = [
        w for w in ("extraordinarily", "unbelievably") if len(backbone.text.ids([f" {w}"])[0]) > 2
    ]

    def ids(*words: str) -> list[int]:
        return [token for part in backbone.text.ids([f" {w}" for w in words]) for token in part]

    def start(n: int, **words: list[str]) -> list[int]:
        return start_ids(backbone, n, "labels", "", words, 0, "who")

    a, b, c, d, e, f, g = single
    assert start(6, x=[a, b, c, d], y=[e, f], z=[g]) == ids(a, e, g, b, f, c)
    assert start(3, x=[a, b, c, d], y=[e, f], z=[g]) == ids(a, e, g)
    drawn = start_ids(backbone, 5, "vocabulary", "", {}, 0, "who")
    assert start(8, x=[a, b], y=[e]) == [*ids(a, e, b), *drawn]
    # Where not even a word of each label fits, each has its first tokens.
    assert len(long) == 2
    first, second = (ids(w) for w in long)
    assert start(2, x=[long[0]], y=[long[1]]) == [first[0], second[0]]
    assert start(len(first + second), x=[long[0], a], y=[long[1]]) == first + second


def test_what_shares_an_id_may_have_another_space_before_it() -> None:
    """ "It" and " It" have different tokens, even different numbers of them."""
    backbone = tiny.backbone("gpt2")
    text = next(
        w for w in ("Verily", "quixotic", "It", "Unbelievable", "wonderful", "zebra")
        if len(backbone.text.ids([w])[0]) != len(backbone.text.ids([f" {w}"])[0])
    )  # fmt: skip
    made = tuner(
        backbone,
        f'{{{{ soft("{text}", id="x") }}}} {{{{ text }}}} {{{{ soft("{text}", id="x") }}}} {{{{ mask }}}}',
    )
    addition, prompts = added(made)
    lengths = {s.length for e in prompts for s in e.soft}
    assert lengths == {len(addition.soft()["x"])}


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_tokens_before_the_prompt_change_none_of_its_own(architecture: str) -> None:
    made = tuner(tiny.backbone(architecture))
    before = plain.encoded(made)
    after = added(made, tokens=6)[1]
    start = len(made.backbone.frame.prefix)
    for a, b in zip(before, after, strict=True):
        assert b.ids[:start] + b.ids[start + 6 :] == a.ids
        assert [s.space_before for s in b.slots] == [s.space_before for s in a.slots]


@pytest.mark.parametrize("architecture", tiny.CAUSAL)
def test_a_shared_beginning_is_read_once_to_the_same_result(architecture: str) -> None:
    backbone = plain.fresh(architecture)
    made = tuner(backbone, "{{ soft(n=12, id='b') }} {{ text }} {{ soft(n=4) }} {{ mask }}")
    model = made.untrained()
    rows: list[dict[str, Any]] = [*(e.row for e in made.train), {"text": "a"}]
    for pattern in (
        made.task.patterns["p"].template.source,
        "{{ soft(n=12) }} {{ text }} {{ mask }}",  # an empty text: the cut goes through the soft prompt
        "{{ text }} {{ soft(n=12) }} {{ mask }}",
    ):
        model.task = Task.inline([Template(pattern, name="p")], labels=made.task.labels)
        prompts = model.encode("p", [model.prompt("p", row) for row in [*rows, {"text": ""}]])
        addition = moved(build("method", "prompt-tuning").add(backbone, prompts, {}))
        attached = backbone.attach([addition])
        with torch.no_grad():
            alone = torch.cat([backbone.read([prompt]) for prompt in prompts])
            torch.testing.assert_close(backbone.states(prompts), alone, **CLOSE)
        attached.close()


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix"])
@pytest.mark.parametrize("architecture", [*tiny.CAUSAL, *tiny.SEQ2SEQ])
def test_words_that_go_on_from_a_cache_are_read_as_in_whole_prompts(
    architecture: str, method: str
) -> None:
    backbone = plain.fresh(architecture)
    made = tuner(backbone)
    addition, prompts = added(made, method, **({"tokens": 5} if method != "prefix" else {}))
    moved(addition)
    words = [long_word(backbone, 3), *some_words(backbone, 2), long_word(backbone, 2)]
    ids = [backbone.text.word(word, space_before=True) for word in words]
    assert {len(i) for i in ids} >= {1, 2, 3}
    attached = backbone.attach([addition])
    found = backbone.continuations(prompts, 0, ids)
    vectors = addition.soft()
    for prompt, scored in zip(prompts, found, strict=True):
        backbone.current = None  # the plain reader puts its own vectors in
        if method == "prefix":
            backbone.current = backbone.collate([prompt], [0])
            vectors = {s.key: backbone.embedding(torch.tensor(prompt.ids[s.start : s.start + s.length]))
                       for s in prompt.soft}  # fmt: skip
        with torch.no_grad():
            reader = WithVectors(backbone, backbone.model, prompt, vectors)
            wanted = torch.stack(plain.word_scores(backbone, reader, prompt, ids))
        torch.testing.assert_close(scored.double(), wanted, rtol=0, atol=1e-5)
    attached.close()


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
def test_equal_ids_of_other_soft_prompts_are_other_prompts(architecture: str) -> None:
    backbone = plain.fresh(architecture)
    made = tuner(backbone, '{% if kind == "x" %}{{ soft("It was", id="x") }}{% else %}'
                 '{{ soft("It was", id="y") }}{% endif %} so {{ mask }}')  # fmt: skip
    model = made.untrained()
    prompts = model.encode("p", [model.prompt("p", {"kind": k}) for k in "xyx"])
    assert prompts[0].ids == prompts[1].ids
    addition = moved(build("method", "prompt-tuning").add(backbone, prompts, {}))
    attached = backbone.attach([addition])
    states = backbone.states(prompts)
    attached.close()
    assert torch.equal(states[0], states[2])
    assert float((states[0] - states[1]).abs().max()) > 1e-3


# --- parametrizations, what is trained and what is kept ------------------------------------


@pytest.mark.parametrize("parametrization", ["plain", "mlp", "low-rank", "lstm"])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_folding_and_an_artifact_keep_the_outputs(
    architecture: str, parametrization: str, tmp_path: Path
) -> None:
    backbone = tiny.backbone(architecture)
    backbone.apply(None)
    made = tuner(backbone, settings={"learning_rate": 0.01})
    options = {"rank": 2} if parametrization == "low-rank" else {"hidden": 8}
    method = build(
        "method", "prompt-tuning", tokens=4, parametrization=parametrization,
        parametrization_options={} if parametrization == "plain" else options,
    )  # fmt: skip
    addition, prompts = added(made, **method.model_dump())
    start = {key: value.detach().clone() for key, value in addition.soft().items()}
    moved(addition, 0.1)
    outputs = []
    for part in (addition, addition.folded()):
        attached = backbone.attach([part])
        with torch.no_grad():
            outputs.append(backbone.read(prompts))
        attached.close()
    torch.testing.assert_close(*outputs, **CLOSE)
    again = added(made, **method.model_dump())[0].soft()
    embedded = backbone.embedding(torch.tensor([prompts[0].ids]))[0]
    slot = next(s for s in prompts[0].soft if s.key == "a")
    torch.testing.assert_close(again["a"], embedded[slot.start : slot.start + slot.length])
    assert all(torch.equal(again[key], start[key]) for key in start)
    frozen = {n: p.detach().clone() for n, p in backbone.parameters.items()}
    made.method = method
    classifier = made.member(Member("m", made.targets(), "p", made.seed))
    rows = [e.row for e in made.train]
    expected = classifier.predict_proba(rows)
    artifact.save(classifier, tmp_path / "made")
    backbone.apply(None)
    loaded = artifact.load(tmp_path / "made", backbone=backbone)
    assert (loaded.predict_proba(rows) == expected).all()
    assert abs(expected - made.untrained().predict_proba(rows)).max() > 1e-4
    kept = load_file(tmp_path / "made" / "weights.safetensors")
    assert set(kept) == {f"added/soft/{key}" for key in ("opening", "a", "soft 0")}
    backbone.apply(None)
    assert all(torch.equal(backbone.parameters[n], value) for n, value in frozen.items())


@pytest.mark.parametrize("model", ["none", "all", "bitfit"])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_only_what_is_trained_moves_and_has_optimizer_state(architecture: str, model: str) -> None:
    backbone = plain.fresh(architecture)
    if model == "bitfit" and architecture in ("llama", "t5"):
        pytest.skip("it has no biases")
    made = tuner(backbone)
    method = build("method", "prompt-tuning", tokens=3, model=model)
    before = {n: p.detach().clone() for n, p in backbone.parameters.items()}
    objective = PromptObjective(made.untrained(), "p", method, made.targets())
    vectors = [p.detach().clone() for p in objective.addition.trained().values()]
    settings = made.settings.grid(method.learning_rate)[0]
    training = Training(objective, made.targets(), settings, seed=3)
    training.run()
    parts = {name.split("/")[0] for name in training.parameters}
    assert ("added" in parts) and (parts == {"added"}) == (model == "none")
    trained = {id(p) for p in training.parameters.values()}
    assert {id(p) for p in training.optimizer.state} == trained
    for was, now in zip(vectors, objective.addition.trained().values(), strict=True):
        assert not torch.equal(was, now)
    weights = objective.weights()
    changed = {n for n, p in backbone.parameters.items() if not torch.equal(p, before[n])}
    assert changed <= set(training.parameters)
    assert bool(changed) == (model != "none")
    assert bool(weights.tensors) == (model != "none")
    if model == "all":  # the model's own weights learn at the rate that suits them
        largest = max(
            float((backbone.parameters[n] - before[n]).detach().abs().max()) for n in changed
        )
        assert largest < 4 * 2 * 3e-5
    objective.close()
    for name, value in before.items():
        assert torch.equal(backbone.parameters[name], value), name


def test_a_model_that_was_trained_too_is_kept_with_the_vectors(tmp_path: Path) -> None:
    made = tuner(tiny.backbone("bert"))
    made.method = build("method", "p-tuning", model="all", parametrization_options={"hidden": 4})
    classifier = made.member(Member("m", made.targets(), "p", made.seed))
    assert classifier.weights.rows and classifier.weights.tensors and classifier.weights.added
    rows = [e.row for e in made.train]
    expected = classifier.predict_proba(rows)
    artifact.save(classifier, tmp_path / "made")
    made.backbone.apply(None)
    loaded = artifact.load(tmp_path / "made", backbone=made.backbone)
    assert (loaded.predict_proba(rows) == expected).all()
    made.backbone.apply(None)
