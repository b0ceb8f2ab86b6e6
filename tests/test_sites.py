"""Sub-layers found in architectures that nothing was written for; and the ones that hide theirs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from plain_tuning import encoded
from test_prefix import attached, states
from test_soft_prompts import moved, refused, tuner
from transformers import DynamicCache

from promptforge.backbone.causal import CausalBackbone
from promptforge.backbone.masked import MaskedBackbone
from promptforge.plugins import build

PATTERN = "{{ text }} so {{ mask }}"
PLACES = {"max_position_embeddings": 64}
BERT = {**tiny.SIZE, **PLACES, "embedding_size": 16}
SMALL = {"dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 64, **PLACES}
OPT = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "ffn_dim": 64, **PLACES}
GROUPED = {**tiny.SIZE, **PLACES, "num_key_value_heads": 2}
#: name -> config, tokenizer, a layer's name, its query, attention output, and feed-forward matrices
ARCHITECTURES: dict[str, Any] = {
    "albert": ("Albert", BERT, "bert", "albert.encoder.albert_layer_groups.0.albert_layers.0",
               ["attention.query", "attention.dense", "ffn", "ffn_output"]),
    "electra": ("Electra", BERT, "bert", "electra.encoder.layer.{}",
                ["attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"]),
    "distilbert": ("DistilBert", SMALL, "bert", "distilbert.transformer.layer.{}",
                   ["attention.q_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2"]),
    "opt": ("OPT", {**OPT, "word_embed_proj_dim": 32}, "gpt2", "model.decoder.layers.{}",
            ["self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2"]),
    "opt-projected": ("OPT", {**OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}, "gpt2",
                      "model.decoder.layers.{}", ["self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2"]),
    "qwen2": ("Qwen2", GROUPED, "llama", "model.layers.{}",
              ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"]),
    # Its own code caps the scores of attention: a model that attends by another is off by far.
    "gemma2": ("Gemma2", {**GROUPED, "head_dim": 8, "sliding_window": 32, "attn_logit_softcapping": 0.5},
               "llama", "model.layers.{}",
               ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"]),
}  # fmt: skip


def made(name: str) -> Any:
    """A backbone of an architecture with random weights, in double precision."""
    kind, config, tokenizer = ARCHITECTURES[name][:3] if name in ARCHITECTURES else (
        "DebertaV2", {**tiny.SIZE, **PLACES}, "bert")  # fmt: skip
    family, head = (
        (MaskedBackbone, "MaskedLM") if tokenizer == "bert" else (CausalBackbone, "CausalLM")
    )
    words = tiny.tokenizer(tokenizer)
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(words), initializer_range=0.2,
                                                    init_std=0.2, **config)  # fmt: skip
    model = getattr(transformers, f"{kind}For{head}")(config).double()
    return family(model, words, name=f"tiny-{name}")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_layer_is_found(name: str) -> None:
    backbone = made(name)
    *_, layer, (query, output, entering, leaving) = ARCHITECTURES[name]
    attention, feed_forward = (
        [s for s in backbone.sites if s.kind == kind] for kind in ("attention", "feed-forward")
    )
    assert len(attention) == len(feed_forward) == 2
    assert len({s.name for s in backbone.sites}) == len(backbone.sites) == 4
    for number, (first, second) in enumerate(zip(attention, feed_forward, strict=True)):
        here = layer.format(number)
        assert (first.layer, second.layer) == (number, number)
        assert first.inputs[0] == f"{here}.{query}"
        assert len(first.inputs) == 3
        assert first.output == f"{here}.{output}"
        assert second.inputs[0] == f"{here}.{entering}"
        assert second.output == f"{here}.{leaving}"
        assert (first.heads, first.head_size) == (2 if name in ("qwen2", "gemma2") else 4, 8)
        assert first.call == second.call == (number if name == "albert" else 0)
    assert {m for s in backbone.sites for m in (*s.inputs, s.output)} <= set(backbone.matrices)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_prefix_is_used_at_every_site_and_padding_is_not(name: str) -> None:
    backbone = made(name)
    prompts = encoded(tuner(backbone, PATTERN))
    addition = build("method", "prefix", length=4).add(backbone, prompts, {})
    assert len(addition.prefixes()) == 2
    with attached(backbone, addition):
        found = backbone.read(prompts)
        backbone.logits(found.flatten(0, 1)).log_softmax(-1)[:, 5].sum().backward()
    for parameter in addition.trained().values():
        assert float(parameter.grad.abs().amax((1, 2, 3)).min()) > 1e-9
    alone = torch.cat([states(backbone, addition, [prompt]) for prompt in prompts])
    torch.testing.assert_close(found.detach(), alone, rtol=0, atol=1e-6)
    # Shared layers (ALBERT) have a prefix at each of their calls.
    first, second = addition.trained().values()
    assert not torch.equal(first.grad, second.grad)


@pytest.mark.parametrize("name", ["opt", "opt-projected", "qwen2", "gemma2"])
def test_a_causal_prefix_is_a_cache_that_holds_it(name: str) -> None:
    backbone = made(name)
    prompts = encoded(tuner(backbone, PATTERN))[:4]
    addition = moved(build("method", "prefix", length=4, init="random").add(backbone, prompts, {}))
    for prompt in prompts:
        ids, cache = torch.tensor([prompt.ids]), DynamicCache()
        for layer, (keys, values) in enumerate(addition.prefixes().values()):
            cache.update(keys[None].detach(), values[None].detach(), layer)
        with torch.no_grad():
            wanted = backbone.model(
                input_ids=ids, past_key_values=cache, position_ids=torch.arange(ids.shape[1])[None],
                attention_mask=torch.ones(1, 4 + ids.shape[1], dtype=torch.long),
            ).logits[0, -1]  # fmt: skip
            found = backbone.logits(states(backbone, addition, [prompt])[:, 0])[0]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_a_model_that_projects_its_last_states_predicts() -> None:
    plan = tuner(made("opt-projected"), PATTERN)
    rows = [e.row for e in plan.train]
    model = plan.untrained(remember=False)
    alone = [model.predict_proba([row])[0] for row in rows]
    np.testing.assert_allclose(model.predict_proba(rows), alone, atol=1e-6)


@pytest.mark.parametrize("method", ["houlsby", "scaled-parallel", "mam", "prompt-tuning"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_methods_find_their_places(name: str, method: str) -> None:
    """Each method's parameters get gradients, in a padded batch as row by row."""
    backbone = made(name)
    plan = tuner(backbone, PATTERN)
    prompts = encoded(plan)
    addition = build("method", method).add(backbone, prompts, plan.task.words_for("p"))
    model = plan.untrained()
    model.opening = addition.opening
    prompts = model.encode("p", [model.prompt("p", e.row) for e in plan.train])
    moved(addition, 0.1)
    addition.double()
    with attached(backbone, addition):
        found = backbone.read(prompts)
        found.square().sum().backward()
    without = [n for n, p in addition.trained().items() if p.grad is None or not p.grad.any()]
    assert not without
    alone = torch.cat([states(backbone, addition, [prompt]) for prompt in prompts])
    torch.testing.assert_close(found.detach(), alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["prefix", "houlsby"])
def test_a_model_that_hides_its_attention_is_refused(method: str) -> None:
    backbone = made("deberta")
    assert backbone.sites == []
    prompts = encoded(tuner(backbone, PATTERN))
    refused(lambda: build("method", method).add(backbone, prompts, {}),
            method, "tiny-deberta", "deberta-v2", "attention interface", "ModernBERT")  # fmt: skip
    # Soft tokens need no layers: that method serves it.
    assert build("method", "prompt-tuning", tokens=3).add(backbone, prompts, {}).soft()
