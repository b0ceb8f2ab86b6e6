"""Prefix tuning on real layers: the identity it rests on, padding, caches, kernels, what is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import plain_tuning as plain
import pytest
import tiny
import torch
from safetensors.torch import load_file
from test_soft_prompts import moved, refused, tuner
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from promptforge import artifact
from promptforge.backbone.sites import attending
from promptforge.encode import Encoded
from promptforge.plugins import build
from promptforge.tuning.starts import start_ids
from promptforge.tuning.tuner import Member

CLOSE = {"rtol": 0, "atol": 1e-6}
PATTERN = "{{ text }} so {{ mask }}"
ATTENTIONS = {"bert": 2, "roberta": 2, "modernbert": 2, "gpt2": 2, "llama": 2, "t5": 6, "bart": 6}


def prepared(
    architecture: str, backbone: Any = None, **options: Any
) -> tuple[Any, Any, list[Encoded]]:
    """A model in double precision, a prefix of six, and prompts of several lengths."""
    backbone = backbone or plain.fresh(architecture)
    made = tuner(backbone, PATTERN)
    prompts = plain.encoded(made)
    assert len({len(e.ids) for e in prompts}) > 2
    method = build("method", "prefix", **{"length": 6, **options})
    return backbone, method.add(backbone, prompts, made.task.words_for("p")), prompts


@contextmanager
def attached(backbone: Any, addition: Any) -> Iterator[None]:
    held = backbone.attach([addition])
    try:
        yield
    finally:
        held.close()


def states(backbone: Any, addition: Any, prompts: list[Encoded]) -> Tensor:
    with attached(backbone, addition), torch.no_grad():
        found: Tensor = backbone.read(prompts)
    return found


# --- exactness -----------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_attention_with_a_prefix_is_the_gated_sum_of_the_unified_view(architecture: str) -> None:
    """`(1-l) Attn(x W_q, K, V) + l softmax(x W_q P_k^T) P_v` (He et al. 2022, equation 7).

    `l` is the share of the exponentiated scores that falls to the prefix. At every attention of
    every layer, each with its own prefix alone, which does not change what it reads.
    """
    backbone, addition, prompts = prepared(architecture, init="random")
    seen: dict[str, Any] = {}
    names = {id(m): n for n, m in backbone.model.named_modules()}

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **more: Any) -> Any:  # fmt: skip
        groups = query.shape[1] // key.shape[1]
        seen[names[id(module)]] = (
            query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), mask, more,
        )  # fmt: skip
        return sdpa_attention_forward(module, query, key, value, mask, **more)

    AttentionInterface.register("test_seen", attend)
    AttentionMaskInterface.register(
        "test_seen", lambda **told: sdpa_mask(**{**told, "allow_is_causal_skip": False})
    )
    with attending(backbone.model, "test_seen"), torch.no_grad():
        backbone.read(prompts)
    sites = [site for site in backbone.sites if site.module]
    assert len(sites) == ATTENTIONS[architecture]
    assert {site.layer for site in sites} == {0, 1}
    pairs = addition.prefixes()
    for site in sites:
        outputs = []
        hook = backbone.matrices[site.output].register_forward_pre_hook(
            lambda _, args, outputs=outputs: outputs.append(args[0])
        )
        alone = addition.folded()
        alone._prefixes = {site.name: pairs[site.name]}
        states(backbone, alone, prompts)
        hook.remove()
        query, key, value, mask, more = seen[site.module]
        groups = query.shape[1] // site.heads
        keys, values = (t.detach().repeat_interleave(groups, 0)[None] for t in pairs[site.name])
        scale = more.get("scaling")
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        own = query @ key.transpose(-1, -2) * scale
        if more.get("position_bias") is not None:
            own = own + more["position_bias"]
        if mask is not None:
            own = own.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else own + mask
        new = query @ keys.transpose(-1, -2) * scale
        share = torch.sigmoid(new.logsumexp(-1) - own.logsumexp(-1))[..., None]
        wanted = (1 - share) * (own.softmax(-1) @ value) + share * (new.softmax(-1) @ values)
        got = outputs[0].view(*query.shape[:1], -1, query.shape[1], value.shape[-1]).transpose(1, 2)
        assert 0.01 < float(share.nan_to_num().mean()) < 0.99
        # Padding that sees no token at all, beyond a local window, has no attention of its own.
        decoder = backbone.family == "seq2seq" and "decoder" in site.name
        sizes = torch.tensor([len(e.decoder_ids if decoder else e.ids) for e in prompts])
        real = torch.arange(query.shape[2]) < sizes[:, None]
        assert int(real.sum()) == int(sizes.sum())
        blind = wanted.isnan().any(-1).any(1)
        assert not bool((blind & real).any())
        torch.testing.assert_close(
            got.transpose(1, 2)[~blind], wanted.transpose(1, 2)[~blind], **CLOSE
        )


@pytest.mark.parametrize("architecture", tiny.CAUSAL)
def test_a_causal_prefix_is_a_cache_that_holds_it(architecture: str) -> None:
    backbone, addition, prompts = prepared(architecture, init="random")
    sites = [site.name for site in backbone.sites if site.module]
    for prompt in prompts[:4]:
        ids = torch.tensor([prompt.ids])
        cache = DynamicCache(config=backbone.model.config)
        for layer, name in enumerate(sites):
            keys, values = addition.prefixes()[name]
            cache.update(keys[None].detach(), values[None].detach(), layer)
        with torch.no_grad():
            wanted = backbone.model(
                input_ids=ids, past_key_values=cache, position_ids=torch.arange(ids.shape[1])[None],
                attention_mask=torch.ones(1, 6 + ids.shape[1], dtype=torch.long),
            ).logits[0, -1]  # fmt: skip
            found = backbone.logits(states(backbone, addition, [prompt])[:, 0])[0]
        torch.testing.assert_close(found, wanted, **CLOSE)


@pytest.mark.parametrize("architecture", tiny.CAUSAL)
def test_cached_and_uncached_reading_agree(architecture: str) -> None:
    backbone, addition, prompts = prepared(architecture, init="random")
    ids = torch.tensor([max((p.ids for p in prompts), key=len)])
    with attached(backbone, addition), torch.no_grad():
        whole = backbone.model(input_ids=ids, use_cache=False).logits
        cache = DynamicCache(config=backbone.model.config)
        parts = [
            backbone.model(input_ids=part, past_key_values=cache, use_cache=True).logits
            for part in (ids[:, :3], ids[:, 3:4], ids[:, 4:])
        ]
    torch.testing.assert_close(torch.cat(parts, 1), whole, **CLOSE)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_every_site_has_a_prefix_that_is_used(architecture: str) -> None:
    backbone, addition, prompts = prepared(architecture)
    with attached(backbone, addition):
        found = backbone.read(prompts)
        backbone.logits(found.flatten(0, 1)).log_softmax(-1)[:, 5].sum().backward()
    gradients = [p.grad for p in addition.trained().values()]
    assert len(gradients) == ATTENTIONS[architecture] == len(addition.prefixes())
    for gradient in gradients:
        assert float(gradient[0].abs().max()) > 1e-9  # keys
        assert float(gradient[1].abs().max()) > 1e-6  # values
    kinds = {site.kind for site in backbone.sites if site.name in addition.prefixes()}
    assert kinds == {"attention"} | ({"cross-attention"} if architecture in tiny.SEQ2SEQ else set())
    prefixes = [site.name for site in backbone.sites if site.module]
    stacks = {name.split(".")[-4] for name in prefixes} if architecture in tiny.SEQ2SEQ else set()
    assert stacks <= {"encoder", "decoder"}
    assert len(stacks) == (2 if architecture in tiny.SEQ2SEQ else 0)


# --- padding, kernels, checkpointing -------------------------------------------------------


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_padded_row_is_the_row_alone(architecture: str) -> None:
    backbone, addition, prompts = prepared(architecture, init="random")
    together = states(backbone, addition, prompts)
    alone = torch.cat([states(backbone, addition, [prompt]) for prompt in prompts])
    torch.testing.assert_close(together, alone, **CLOSE)
    without = backbone.read(prompts).detach()
    assert float((together - without).abs().max()) > 1e-3


@pytest.mark.parametrize("architecture", [a for a in tiny.ARCHITECTURES if a != "bart"])
def test_padding_on_the_left(architecture: str) -> None:
    """BART takes no positions from outside, so left padding moves them with or without a prefix."""
    backbone, addition, prompts = prepared(architecture, init="random")
    rows = [torch.tensor(p.ids) for p in prompts]
    longest = max(map(len, rows))
    pad = backbone.tokenizer.pad_token_id or 0

    def left(row: Tensor, value: int) -> Tensor:
        return F.pad(row, (longest - len(row), 0), value=value)

    ids = torch.stack([left(row, pad) for row in rows])
    mask = torch.stack([left(torch.ones_like(row), 0) for row in rows])
    positions = (mask.cumsum(-1) - 1).clamp(0)
    if architecture == "roberta":
        positions = torch.where(mask.bool(), positions + 2, 1)
    more: dict[str, Any] = {} if architecture == "t5" else {"position_ids": positions}
    body = backbone.model.get_encoder() if architecture == "t5" else backbone.body
    with attached(backbone, addition), torch.no_grad():
        together = body(input_ids=ids, attention_mask=mask, **more).last_hidden_state
        for row, found in zip(rows, together, strict=True):
            alone = body(input_ids=row[None]).last_hidden_state[0]
            torch.testing.assert_close(found[-len(row) :], alone, **CLOSE)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_sdpa_and_the_models_own_attention_agree(architecture: str) -> None:
    backbone = tiny.fresh(architecture)  # single precision
    _, addition, prompts = prepared(architecture, backbone, init="random")
    by_sdpa = states(backbone, addition, prompts)
    names = [site.name for site in backbone.sites]
    backbone.model.set_attn_implementation("eager")
    del backbone.sites
    assert [site.name for site in backbone.sites] == names
    torch.testing.assert_close(states(backbone, addition, prompts), by_sdpa, rtol=0, atol=1e-5)
    # Afterwards every part attends as before.
    assert backbone.model.config._attn_implementation == "eager"


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_gradient_checkpointing_changes_no_gradient(architecture: str) -> None:
    backbone, addition, prompts = prepared(architecture, mlp=True, hidden=8)
    moved(addition, 0.1)
    for parameter in backbone.model.parameters():
        parameter.requires_grad_(False)
    for module in backbone.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for module in backbone.model.modules():
        for name in ("dropout", "attention_dropout", "activation_dropout", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)

    def gradients() -> list[Tensor]:
        addition.zero_grad()
        backbone.model.train()
        with attached(backbone, addition):
            backbone.read(prompts).square().sum().backward()
        backbone.model.eval()
        return [p.grad.clone() for p in addition.trained().values()]

    plainly = gradients()
    backbone.model.activation_checkpointing_enable()
    calls = []

    def count(*_: Any) -> None:
        calls.append(1)

    site = next(s for s in backbone.sites if s.module)
    hook = backbone.model.get_submodule(site.module).register_forward_pre_hook(count)
    checkpointed = gradients()
    hook.remove()
    backbone.model.activation_checkpointing_disable()
    assert len(calls) == 2  # read again on the way back
    for a, b in zip(plainly, checkpointed, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


# --- starts, folding, artifacts ------------------------------------------------------------


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_starts_are_the_models_own_keys_and_values(architecture: str) -> None:
    text = "a fine old film"
    backbone = plain.fresh(architecture)
    written = backbone.text.ids([text])[0]
    ids = [written[i % len(written)] for i in range(6)]
    _, addition, _ = prepared(architecture, backbone, init="text", text=text)
    check_keys(backbone, addition, ids)
    words = tuner(backbone, PATTERN).task.words_for("p")
    labels = [t for ws in words.values() for w in ws for t in backbone.text.ids([f" {w}"])[0]]
    _, addition, _ = prepared(architecture, backbone, init="labels")
    drawn = start_ids(backbone, 6, "vocabulary", "", {}, 0, "who")
    check_keys(backbone, addition, [*labels, *drawn][:6])


def check_keys(backbone: Any, addition: Any, ids: list[int]) -> None:
    """The prefix is what the model's key and value matrices, or its caches, make of `ids`."""
    tokens = torch.tensor([ids])
    pairs = addition.prefixes()
    made: dict[str, Tensor] = {}
    hooks = [
        m.register_forward_hook(lambda _, __, out, n=n: made.setdefault(n, out))
        for n, m in backbone.matrices.items()
    ]
    inputs = {"decoder_input_ids": tokens} if backbone.family == "seq2seq" else {}
    with torch.no_grad():
        out = backbone.model(input_ids=tokens, **inputs)
    for hook in hooks:
        hook.remove()
    cache = getattr(out, "past_key_values", None)
    checked = 0
    for site in (s for s in backbone.sites if s.module):
        keys, values = pairs[site.name]
        assert keys.shape == values.shape == (site.heads, 6, site.head_size)
        if backbone.family == "causal":
            layer = cache.layers[site.layer]
            torch.testing.assert_close(keys, layer.keys[0], **CLOSE)
            torch.testing.assert_close(values, layer.values[0], **CLOSE)
        elif (
            len(site.inputs) == 1
        ):  # ModernBERT: queries, keys and values from one matrix; keys turn
            own = made[site.inputs[0]][0].view(6, 3, site.heads, site.head_size)
            torch.testing.assert_close(values, own[:, 2].transpose(0, 1), **CLOSE)
            turned = own[:, 1].transpose(0, 1)
            torch.testing.assert_close(keys.norm(dim=-1), turned.norm(dim=-1), **CLOSE)
        else:
            at = {n.rsplit(".", 1)[1][0]: made[n][0] for n in site.inputs}
            for part, letter in ((keys, "k"), (values, "v")):
                own = at[letter].view(6, site.heads, site.head_size).transpose(0, 1)
                torch.testing.assert_close(part, own, **CLOSE)
        checked += 1
    assert checked == len(pairs)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_folding_the_network_keeps_the_outputs(architecture: str) -> None:
    backbone, addition, prompts = prepared(architecture, mlp=True, hidden=8)
    _, start, _ = prepared(architecture, backbone)
    for name, (keys, values) in start.prefixes().items():  # training begins at the start
        torch.testing.assert_close(addition.prefixes()[name][0], keys)
        torch.testing.assert_close(addition.prefixes()[name][1], values)
    moved(addition, 0.1)
    network = states(backbone, addition, prompts)
    torch.testing.assert_close(states(backbone, addition.folded(), prompts), network, **CLOSE)
    assert float((network - states(backbone, start, prompts)).abs().max()) > 1e-3
    assert len(addition.trained()) < 3 * 5 + 1
    assert set(addition.tensors()) == set(start.tensors())


@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_tuned_prefix_is_kept_alone(architecture: str, mlp: bool, tmp_path: Path) -> None:
    backbone = tiny.backbone(architecture)
    before = {n: p.detach().clone() for n, p in backbone.parameters.items()}
    made = tuner(backbone, PATTERN, settings={"learning_rate": 0.01})
    made.method = build("method", "prefix", length=3, mlp=mlp, **({"hidden": 8} if mlp else {}))
    classifier = made.member(Member("m", made.targets(), "p", made.seed))
    rows = [e.row for e in made.train]
    expected = classifier.predict_proba(rows)
    assert abs(expected - made.untrained().predict_proba(rows)).max() > 1e-4
    artifact.save(classifier, tmp_path / "made")
    backbone.apply(None)
    loaded = artifact.load(tmp_path / "made", backbone=backbone)
    assert (loaded.predict_proba(rows) == expected).all()
    backbone.apply(None)
    kept = load_file(tmp_path / "made" / "weights.safetensors")
    assert len(kept) == 2 * ATTENTIONS[architecture]
    assert all(name.startswith("added/prefix/") and len(t[0]) == 3 for name, t in kept.items())
    assert all(torch.equal(backbone.parameters[n], value) for n, value in before.items())


def test_a_model_in_half_precision_has_a_prefix_in_single_precision() -> None:
    backbone = tiny.fresh("bert")
    backbone.model.bfloat16()
    for name in ("prefix", "prompt-tuning"):
        made = tuner(backbone, PATTERN)
        prompts = plain.encoded(made)
        addition = build("method", name).add(backbone, prompts, {})
        assert {p.dtype for p in addition.trained().values()} == {torch.float32}
        assert states(backbone, addition, prompts).dtype == torch.bfloat16


# --- bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"length": 64}, ["length=64", "64 tokens"]),
        ({"init": "text"}, ["init=text", "option text"]),
        ({"init": "labels"}, ["init=labels", "label words"]),
    ],
)
@pytest.mark.parametrize("init", ["random", "vocabulary"])
def test_prefixes_that_cannot_be(init: str, options: dict[str, Any], parts: list[str]) -> None:
    backbone = tiny.backbone("bert")
    prompts = plain.encoded(tuner(backbone, PATTERN))
    method = build("method", "prefix", **{"init": init, **options})
    refused(lambda: method.add(backbone, prompts, {}), *parts)


def test_a_prefix_of_another_model_is_refused() -> None:
    _, addition, _ = prepared("roberta", tiny.backbone("roberta"))
    attach: Callable[[], Any] = lambda: tiny.backbone("bert").attach([addition])  # noqa: E731
    refused(attach, "no part called 'roberta", "another model")
