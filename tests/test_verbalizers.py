"""Soft, prototypical and rules verbalizers against plain references."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn.functional import cosine_similarity

from promptforge.backbone.causal import CausalBackbone
from promptforge.data import Example
from promptforge.errors import UserError
from promptforge.model import PromptModel
from promptforge.plugins import build
from promptforge.readout import Readout
from promptforge.selection import fit_selector
from promptforge.task import Task
from promptforge.template import Template, TemplateError
from tests import reference, tiny
from tests.verbalizing import (
    ROWS,
    SOURCE,
    again,
    bound,
    close,
    each,
    model,
    readout,
    scores,
    some_words,
    targets,
    tuned,
)

# --- soft ----------------------------------------------------------------------------------


@each
def test_soft_starts_as_the_manual_verbalizer(architecture: str) -> None:
    backbone = tiny.backbone(architecture)
    words = some_words(backbone)
    read = readout(backbone)
    made = bound("soft", backbone, words)
    expected = []
    for encoded in read.encoded:
        logits = reference.full_logits(backbone, encoded)[encoded.reads[0]]
        ids = made.sequences.values()
        expected.append([sum(float(logits[s[0]]) for s in ss) / len(ss) for ss in ids])
    close(scores(made, read), expected)
    close(scores(made, read), scores(bound("manual", backbone, words), read))
    assert made.parameters()["vectors"].shape == (3, 32) and made.tokens_read() == []


@pytest.mark.parametrize("kind", ["gemma2", "granite"])
def test_soft_keeps_the_caps_and_scales_of_the_head(kind: str) -> None:
    tokenizer = tiny.tokenizer("llama")
    common: Any = {
        **tiny.SIZE, "vocab_size": len(tokenizer), "num_key_value_heads": 2, "initializer_range": 0.2,
        "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    config: Any = (
        transformers.Gemma2Config(
            **common, head_dim=8, final_logit_softcapping=1.5, query_pre_attn_scalar=8
        )
        if kind == "gemma2"
        else transformers.GraniteConfig(**common, logits_scaling=7.0)
    )
    torch.manual_seed(0)
    causal = transformers.AutoModelForCausalLM.from_config(config)
    backbone = CausalBackbone(causal, tokenizer, name=kind)
    words = {k: ws[:1] for k, ws in some_words(backbone).items()}
    read = readout(backbone)
    made = bound("soft", backbone, words)
    close(scores(made, read), scores(bound("manual", backbone, words), read))


def test_soft_of_long_words_starts_from_the_mean_of_their_rows() -> None:
    backbone = tiny.backbone("gpt2")
    words = {"a": [reference.long_word(backbone, 3)], "b": ["good"]}
    made = bound("soft", backbone, words)
    table = backbone.model.get_output_embeddings().weight.detach()
    (ids,) = made.sequences["a"]
    assert len(ids) == 3
    close(made.parameters()["vectors"][0], sum(table[t] for t in ids) / 3)


def test_soft_gradients_reach_the_vectors_and_the_head_before_them() -> None:
    backbone = tiny.backbone("bert")
    made = bound("soft", backbone, some_words(backbone))
    shares, ones = targets(0, 1, 2, 0)
    found = made.loss(readout(backbone, gradients=True), shares, ones)
    try:
        found.sum().backward()
        posterior = scores(made, readout(backbone)).softmax(-1)
        close(made.parameters()["bias"].grad, (posterior - shares).sum(0))
        assert made.parameters()["vectors"].grad.abs().sum() > 0
        assert backbone.model.cls.predictions.transform.dense.weight.grad.abs().sum() > 0
        assert backbone.model.cls.predictions.bias.grad is None
    finally:
        backbone.model.zero_grad(set_to_none=True)


def test_soft_is_tuned_and_comes_back_from_its_artifact(tmp_path: Path) -> None:
    backbone = tiny.backbone("bert")
    words = some_words(backbone)
    task = Task.inline([Template(SOURCE, name="p")], labels=words)
    before = bound("soft", backbone, words).parameters()["vectors"]
    made = tuned(backbone, task, build("verbalizer", "soft"))
    after = made.tuned["p"]["vectors"]
    assert after.shape == before.shape and (after - before).abs().max() > 1e-3
    loaded = again(made, tmp_path, ROWS)
    close(loaded.tuned["p"]["vectors"], after, 0)
    # The model's own weights are what another verbalizer starts from.
    made.predict(ROWS)
    fresh = PromptModel(backbone, task, verbalizer="soft", weights=made.weights)
    fresh.predict(ROWS)
    verbalizer = fresh.verbalizer("p", readout(backbone).encoded[0])
    close(verbalizer.parameters()["vectors"], before, 0)


# --- prototypical --------------------------------------------------------------------------


def by_hand(verbalizer: Any, read: Readout) -> tuple[list[Tensor], list[Tensor]]:
    parameters = {n: p.detach() for n, p in verbalizer.parameters().items()}
    vectors = [parameters["projection"] @ state for state in read.at().detach()]
    return vectors, list(parameters["prototypes"])


@each
def test_prototypical_scores_are_cosines(architecture: str) -> None:
    backbone = tiny.backbone(architecture)
    read = readout(backbone)
    made = bound("prototypical", backbone, some_words(backbone), temperature=0.5, dimension=8)
    vectors, prototypes = by_hand(made, read)
    expected = [[float(cosine_similarity(v, c, dim=0)) / 0.5 for c in prototypes] for v in vectors]
    close(scores(made, read), expected)
    both = bound(
        "prototypical",
        backbone,
        some_words(backbone),
        temperature=0.5,
        dimension=8,
        manual_weight=2,
    )
    words = scores(bound("manual", backbone, some_words(backbone)), read).log_softmax(-1)
    close(scores(both, read), torch.tensor(expected) + 2 * words)
    assert made.tokens_read() == [] and len(both.tokens_read() or ()) == 6


def test_prototypical_loss_is_the_papers_two_contrasts() -> None:
    backbone = tiny.backbone("roberta")
    read = readout(backbone, gradients=True)
    made = bound("prototypical", backbone, some_words(backbone), dimension=8, temperature=0.7)
    labels, vectors_and_prototypes = [0, 1, 0, 2], by_hand(made, read)
    vectors, prototypes = vectors_and_prototypes

    def s(a: Tensor, b: Tensor) -> float:
        return float(cosine_similarity(a, b, dim=0)) / 0.7

    expected = []
    for v, y in zip(vectors, labels, strict=True):
        bottom = sum(math.exp(s(v, other)) for other in vectors)
        same = [w for w, z in zip(vectors, labels, strict=True) if z == y]
        pairs = [-math.log(math.exp(s(v, w)) / bottom) for w in same]
        to_labels = sum(math.exp(s(v, c)) for c in prototypes)
        expected.append(
            sum(pairs) / len(pairs) - math.log(math.exp(s(v, prototypes[y])) / to_labels)
        )
    shares, ones = targets(*labels)
    found = made.loss(read, shares, ones)
    close(found, expected)
    both = bound("prototypical", backbone, some_words(backbone), dimension=8, temperature=0.7,
                 manual_weight=0.5)  # fmt: skip
    manual = bound("manual", backbone, some_words(backbone)).loss(read, shares, ones)
    close(both.loss(read, shares, ones), found + 0.5 * manual)


def test_prototypical_is_tuned_and_comes_back(tmp_path: Path) -> None:
    backbone = tiny.backbone("gpt2")
    task = Task.inline([Template(SOURCE, name="p")], labels=some_words(backbone))
    made = tuned(backbone, task, build("verbalizer", "prototypical", dimension=16), steps=30)
    assert made.predict(ROWS) == list("abca")
    again(made, tmp_path, ROWS)


# --- rules ---------------------------------------------------------------------------------

TWO = "{{ mask }} film: {{ text }} It was {{ mask }}."


@pytest.mark.parametrize("architecture", [*tiny.MASKED, "t5", "bart"])
def test_rules_are_products_over_masks(architecture: str) -> None:
    backbone = tiny.backbone(architecture)
    a, b, c, d = reference.some_words(backbone, 4)
    space = backbone.text.prefix_space
    first = reference.some_words(backbone, 2, space_before=space)
    rules = {"x": [first[0], a], "y": [first[0], b], "z": [first[1], b]}
    read = readout(backbone, TWO)
    made = bound("rules", backbone, {"x": [c], "y": [d], "z": [a]}, rules=rules)
    expected = []
    for encoded in read.encoded:
        full = reference.full_logits(backbone, encoded)
        row = []
        for rule in rules.values():
            p = 1.0
            for j, word in enumerate(rule):
                spaced = encoded.slots[j].space_before
                own = {
                    w: backbone.text.word(w, space_before=spaced)[0] for w in [r[j] for r in rules.values()]
                }  # fmt: skip
                logits = full[encoded.reads[j]]
                p *= math.exp(logits[own[word]]) / sum(math.exp(logits[t]) for t in own.values())
            row.append(p)
        expected.append(row)
    close(scores(made, read).exp(), expected)
    shares, ones = targets(0, 1, 2, 0)
    found = made.loss(readout(backbone, TWO, gradients=True), shares, ones)
    truth = [expected[i][y] for i, y in enumerate([0, 1, 2, 0])]
    close(found, [-math.log(p) for p in truth])
    read_ids = set(made.tokens_read())
    assert {backbone.text.word(a, space_before=True)[0]} <= read_ids


def test_rules_come_from_the_task_and_come_back(tmp_path: Path) -> None:
    backbone = tiny.backbone("roberta")
    a, b = reference.some_words(backbone, 2)
    first = reference.some_words(backbone, 2, space_before=False)
    words = {"x": [first[0], a], "y": [first[1], b]}
    made = model(backbone, words, "rules", TWO)
    other = model(backbone, {"x": [a], "y": [b]}, "rules", TWO, rules=words)
    close(torch.tensor(made.predict_proba(ROWS)), other.predict_proba(ROWS), 1e-7)
    again(other, tmp_path, ROWS)


def test_rules_that_do_not_fit_are_refused() -> None:
    backbone = tiny.backbone("bert")
    a, b, c = reference.some_words(backbone, 3)
    words = {"x": [a, b], "y": [b, a]}
    with pytest.raises(UserError, match=r"2 words per label and the template 1 mask"):
        model(backbone, words, "rules").predict(ROWS)
    with pytest.raises(UserError, match="Mask 1 takes 2 tokens"):
        model(backbone, words, "rules", "{{ mask(2) }} {{ text }} {{ mask }}").predict(ROWS)
    for rules, message in [
        ({"x": [a, b], "y": [c]}, "has 2 words and that of 'y' 1"),
        ({"x": [a, b], "y": [a, b]}, "have the same words"),
        ({"x": [a, b], "y": [a.upper(), b]}, "are the same tokens at every mask"),
        ({"x": [a, b]}, "lack the label 'y'"),
        ({**words, "z": [a, b]}, "name 'z', no label"),
        ({"x": [a, reference.long_word(backbone, 2)], "y": [a, b]}, "is 2 tokens for"),
    ]:
        with pytest.raises(UserError, match=message):
            model(backbone, words, "rules", TWO, rules=rules).predict(ROWS)
    with pytest.raises(TemplateError, match="a causal model reads one"):
        model(tiny.backbone("gpt2"), words, "rules", "{{ mask }} {{ text }} {{ mask }}").predict(
            ROWS
        )


# --- demonstrations ------------------------------------------------------------------------


def shown(made: PromptModel) -> str:
    made.demonstrations = build("demonstrations", "fixed")
    fit_selector(
        made.demonstrations,
        [Example({"text": "one", "o": "gold"}, "x", 1), Example({"text": "two", "o": "tin"}, "y", 2)],
        ["x", "y"], columns=["text"],
    )  # fmt: skip
    return str(made.prompt("p", {"text": "three", "o": "lead"}))


def test_a_demonstration_shows_a_rule_word_by_word() -> None:
    backbone = tiny.backbone("bert")
    a, b, c = reference.some_words(backbone, 3)
    words = {"x": [a, b], "y": [b, c]}
    expected = f"{a} one {b}\n{b} two {c}\n▁▁▁ three ▁▁▁"
    source = "{{ mask }} {{ text }} {{ mask }}"
    assert shown(model(backbone, words, "rules", source)) == expected
    assert shown(model(backbone, {"x": [], "y": []}, "rules", source, rules=words)) == expected
    # A label's other words are no other masks'.
    assert shown(model(backbone, words, "manual", source)).startswith(f"{a} one {a}\n")


def test_a_demonstration_shows_the_text_of_its_own_row() -> None:
    words = {"x": ["{{ o }}"], "y": ["the {{ o }}"]}
    made = model(tiny.backbone("gpt2"), words, "generation", "{{ text }} is {{ mask }}")
    assert shown(made) == "one is gold\ntwo is the tin\nthree is ▁▁▁"


# --- words that cannot be right ------------------------------------------------------------


def test_words_are_read_without_the_spaces_around_them() -> None:
    backbone = tiny.backbone("gpt2")
    a, b = reference.some_words(backbone, 2)
    plain = model(backbone, {"x": [a], "y": [b]}, "manual").predict_proba(ROWS)
    spaced = model(backbone, {"x": [f" {a} "], "y": [b]}, "manual").predict_proba(ROWS)
    assert plain == pytest.approx(spaced)
    with pytest.raises(UserError, match="A word of the label 'x' is empty"):
        model(backbone, {"x": [" "], "y": [b]}, "manual").predict(ROWS)


def test_a_word_that_counts_twice_is_told() -> None:
    backbone = tiny.backbone("bert")
    a, b = reference.some_words(backbone, 2)
    with pytest.warns(UserWarning, match=rf"same tokens .* twice: '{a.upper()} \(x\)'"):
        model(backbone, {"x": [a, a.upper()], "y": [b]}, "manual").predict(ROWS)


def test_texts_beside_snippets_are_known_too() -> None:
    backbone = tiny.backbone("bert")
    with pytest.raises(UserError, match="text '好' of the label 'y' has words that the tokenizer"):
        model(backbone, {"x": ["{{ text }}"], "y": ["好"]}, "generation").predict(ROWS)
    with pytest.raises(UserError, match="Row 2: the label text '日' has words"):
        model(backbone, {"x": ["{{ text }}"], "y": ["dull"]}, "generation").predict(
            [{"text": "great"}, {"text": "日"}]
        )


def test_a_mask_that_is_not_there() -> None:
    a, b = reference.some_words(tiny.backbone("bert"), 2)
    with pytest.raises(UserError, match=r"slot=1: the template has 1 mask"):
        model(tiny.backbone("bert"), {"x": [a], "y": [b]}, "manual", slot=1).predict(ROWS)


def test_a_space_before_the_mask_that_some_rows_lack() -> None:
    backbone = tiny.backbone("roberta")
    a, b = reference.some_words(backbone, 2)
    made = model(backbone, {"x": [a], "y": [b]}, "manual", "{% if t %}{{ t }} {% endif %}{{ mask }} {{ text }}")  # fmt: skip
    rows = [{"t": "", "text": "dull"}, {"t": "so", "text": "dull"}]
    with pytest.warns(UserWarning, match="Pattern p: row 2 has a space before the mask and others"):
        made.predict(rows)
