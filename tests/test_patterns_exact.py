"""Each pattern without windows against its formula, written out over all pairs of tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from patterns import HEADS, ROWS, SIZE, close, made, padded, qkv, softmax_attention, visible
from promptforge_long_inputs.kernels import FEATURE_MAPS, orthogonal
from promptforge_long_inputs.reformer import rotations
from torch import Tensor
from torch.nn import functional as F

from promptforge import UserError, hookimpl
from promptforge.attention import Seen, Shape
from promptforge.plugins import build, manager

LENGTH = 150
both = pytest.mark.parametrize("causal", [False, True])
paddings = pytest.mark.parametrize("padding", [None, (9, 14)])


def seen_with(causal: bool, padding: tuple[int, int] | None, length: int = LENGTH) -> Seen:
    return Seen(padded(length, *padding) if padding else None, None, causal, 0.3)


def divided(products: Tensor, value: Tensor, shown: Tensor) -> Tensor:
    """Products of features as attention weights: [rows, heads, queries, keys] over their sums."""
    products = products * shown
    return products / products.sum(-1, keepdim=True) @ value


# --- kernels -------------------------------------------------------------------------------


@both
@paddings
@pytest.mark.parametrize("name", ["elu", "softplus"])
def test_linear_is_its_explicit_form(
    name: str, causal: bool, padding: tuple[int, int] | None
) -> None:
    seen = seen_with(causal, padding)
    query, key, value = qkv(LENGTH)
    phi = {"elu": lambda x: F.elu(x) + 1, "softplus": F.softplus}[name]
    expected = divided(phi(query) @ phi(key).transpose(-1, -2), value, visible(LENGTH, seen))
    pattern, _ = made("linear", causal, feature_map=name)
    close(pattern.attend(query, key, value, seen, None), expected, seen)


@both
@paddings
def test_performer_is_its_explicit_form(causal: bool, padding: tuple[int, int] | None) -> None:
    seen = seen_with(causal, padding)
    query, key, value = qkv(LENGTH)
    w = orthogonal(24, SIZE, 3)

    def phi(x: Tensor) -> Tensor:
        x = x.double() * 0.3**0.5
        return (x @ w.t() - x.square().sum(-1, keepdim=True) / 2).exp()

    expected = divided(phi(query) @ phi(key).mT, value.double(), visible(LENGTH, seen))
    pattern, _ = made("performer", causal, features=24, seed=3)
    close(pattern.attend(query, key, value, seen, None), expected.float(), seen)


@both
@paddings
def test_efficient_is_its_explicit_form(causal: bool, padding: tuple[int, int] | None) -> None:
    """Causal: the softmax over positions is over those up to the query."""
    seen = seen_with(causal, padding)
    query, key, value = qkv(LENGTH)
    shown = visible(LENGTH, seen)[..., None]  # rows, 1, queries, keys, features
    over_keys = key[:, :, None].masked_fill(~shown, -torch.inf).softmax(3)
    weights = (query.softmax(-1)[:, :, :, None] * over_keys).sum(-1)
    pattern, _ = made("efficient", causal)
    close(pattern.attend(query, key, value, seen, None), weights @ value, seen)


def test_performer_comes_near_softmax_attention_with_more_features() -> None:
    query, key, value = (x / 2 for x in qkv(64))
    expected = softmax_attention(query, key, value, visible(64, Seen()))
    errors = []
    for features in (8, 64, 512, 4096):
        runs = [build("attention", "performer", features=features, seed=s) for s in range(4)]
        found = [p.attend(query, key, value, Seen(scale=SIZE**-0.5), None) for p in runs]
        errors.append(sum(float((f - expected).square().mean()) for f in found) ** 0.5)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]


def test_the_features_of_performer_are_orthogonal_and_as_long_as_gaussian_ones() -> None:
    w = orthogonal(4000, SIZE, 0)
    for start in range(0, 4000, SIZE):
        group = F.normalize(w[start : start + SIZE], dim=1)
        close(group @ group.t(), torch.eye(SIZE, dtype=group.dtype))
    assert float(w.square().sum(1).mean()) == pytest.approx(SIZE, rel=0.05)
    assert float(w.mean()) == pytest.approx(0, abs=0.02)


@both
@pytest.mark.parametrize("name", ["performer", "efficient"])
def test_great_numbers_do_not_overflow(name: str, causal: bool) -> None:
    """Keys whose exponents would be infinite, or vanish beside those of others."""
    query, key, value = qkv(LENGTH)
    key = key * torch.linspace(1, 60, LENGTH)[:, None]
    out = build("attention", name).attend(
        query * 20, key, value, Seen(None, None, causal, 0.3), None
    )
    assert bool(out.isfinite().all())
    assert float(out.abs().max()) <= float(value.abs().max()) + 1e-4  # means of values


def test_a_plugin_brings_a_feature_map() -> None:
    class Plugin:
        @hookimpl
        def promptforge_feature_maps(self) -> dict[str, Any]:
            return {"squares": lambda x: torch.cat([x.square(), (x + 1).square()], -1)}

    manager().register(Plugin(), "squares")
    try:
        query, key, value = qkv(40)
        pattern = build("attention", "linear", feature_map="squares")
        phi = [torch.cat([x.square(), (x + 1).square()], -1) for x in (query, key)]
        for causal in (False, True):
            seen = Seen(causal=causal)
            expected = divided(phi[0] @ phi[1].mT, value, visible(40, seen))
            close(pattern.attend(query, key, value, seen, None), expected)
    finally:
        manager().unregister("squares")
    assert "squares" not in FEATURE_MAPS
    with pytest.raises(UserError, match=r"no feature map called 'eluu'\. Did you mean 'elu'"):
        build("attention", "linear", feature_map="eluu")


# --- Linformer -----------------------------------------------------------------------------


@paddings
@pytest.mark.parametrize("share", ["none", "heads", "key-value"])
def test_linformer_with_the_identity_is_full_attention(
    share: str, padding: tuple[int, int] | None
) -> None:
    seen = seen_with(False, padding)
    pattern, weights = made("linformer", False, LENGTH + 10, keys=LENGTH + 10, share=share)
    assert weights is not None
    with torch.no_grad():
        for parameter in weights.parameters():
            parameter.copy_(torch.eye(LENGTH + 10).expand_as(parameter))
    query, key, value = qkv(LENGTH)
    expected = softmax_attention(query, key, value, visible(LENGTH, seen), 0.3)
    close(pattern.attend(query, key, value, seen, weights), expected, seen)


@pytest.mark.parametrize("share, numbers", [("none", 4), ("heads", 2), ("key-value", 1)])
def test_linformer_is_its_formula_with_padding_zeroed(share: str, numbers: int) -> None:
    pattern, weights = made("linformer", False, LENGTH, keys=12, share=share)
    assert weights is not None
    named = dict(weights.named_parameters())
    assert sum(p.numel() for p in named.values()) == numbers * 12 * LENGTH
    query, key, value = qkv(LENGTH)
    real = padded(LENGTH, 0, 20)
    keep = real[:, None, :, None]
    e, f = named["key"], named.get("value", named["key"])
    scores = query @ (e @ (key * keep)).mT * 0.3
    expected = scores.softmax(-1) @ (f @ (value * keep))
    seen = Seen(real, None, False, 0.3)
    close(pattern.attend(query, key, value, seen, weights), expected, seen)


# --- Synthesizer ---------------------------------------------------------------------------


@both
@paddings
@pytest.mark.parametrize("kind", ["dense", "random", "fixed", "factorised", "factorised-dense"])
def test_synthesizer_is_softmax_of_r_times_v(
    kind: str, causal: bool, padding: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import promptforge_long_inputs.synthesizer as synthesizer

    monkeypatch.setattr(synthesizer, "SCORES", 5_000)  # in blocks of rows
    seen = seen_with(causal, (0, padding[1]) if padding else None)  # positions from 0
    pattern, weights = made("synthesizer", causal, 200, kind=kind, rank=3, seed=4)
    query, key, value = qkv(LENGTH)
    w = {} if weights is None else {n: p.detach() * 5 for n, p in weights.named_parameters()}
    if weights is not None:
        weights.load_state_dict(w)
    if kind == "dense":
        units = torch.relu(query @ w["first"] + w["first_bias"])
        units = torch.cat([units, torch.ones(*units.shape[:3], 1)], -1)
        r = units @ w["second"].mT[..., :LENGTH]
    elif kind == "random":
        r = w["scores"][:, :LENGTH, :LENGTH]
    elif kind == "factorised":
        r = (w["left"] @ w["right"].mT)[:, :LENGTH, :LENGTH]
    elif kind == "factorised-dense":
        short, long = query @ w["left"], query @ w["right"]
        place = torch.arange(LENGTH)
        n = short.shape[-1]
        assert n * long.shape[-1] >= 200
        r = long[..., place // n] * short[..., place % n]
    else:
        noise = synthesizer.fixed_noise(HEADS, 4)
        place = torch.arange(LENGTH)
        r = noise[:, (place[:, None] * 32771 + place) % noise.shape[1]]
    r = r.expand(ROWS, HEADS, LENGTH, LENGTH)
    expected = r.masked_fill(~visible(LENGTH, seen), -torch.inf).softmax(-1) @ value
    close(pattern.attend(query, key, value, seen, weights), expected, seen)


def test_fixed_scores_do_not_depend_on_the_input_and_hang_on_the_seed() -> None:
    one_hot = torch.eye(100).expand(1, HEADS, -1, -1)
    found = []
    for seed, draw in ((0, 1), (0, 2), (1, 1)):
        pattern = build("attention", "synthesizer", kind="fixed", seed=seed)
        noise = torch.randn(1, HEADS, 100, 100, generator=torch.Generator().manual_seed(draw))
        found.append(pattern.attend(noise, noise, one_hot, Seen(), None))
    close(found[0], found[1], None, 0)
    assert float((found[0] - found[2]).abs().max()) > 0.01
    scores = found[0].log() - found[0].log().mean(-1, keepdim=True)
    assert float(scores.std()) == pytest.approx(1, abs=0.05)
    between_rows = torch.corrcoef(scores[0, 0]) - torch.eye(100)
    assert float(between_rows.abs().max()) < 0.5  # 4950 pairs of 100 normal numbers


def test_synthesizer_refuses_what_does_not_fit() -> None:
    shape = Shape(12, 32, 384, 16384)
    with pytest.raises(UserError, match="12 GB in each layer"):
        build("attention", "synthesizer", kind="random").check(shape, False)
    with pytest.raises(UserError, match="rank=33"):
        build("attention", "synthesizer", kind="factorised", rank=33).check(shape, False)
    build("attention", "synthesizer", kind="factorised").check(shape, False)


# --- mixing --------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens, width", [(1, 1), (1, 6), (2, 5), (7, 8), (16, 9), (33, 16)])
def test_fnet_is_the_real_part_of_the_fourier_transform(tokens: int, width: int) -> None:
    hidden = torch.randn(2, tokens, width)
    found = build("attention", "fnet").mix(hidden, None)
    close(found, torch.fft.fft2(hidden).real, None, 1e-4)


@pytest.mark.parametrize("width", [8, 70, 9])
def test_the_gradient_of_fnet_is_that_of_the_plain_transform(width: int) -> None:
    mix = build("attention", "fnet").mix
    hidden = torch.randn(2, 11, width, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 11, width, dtype=torch.float64)
    (found,) = torch.autograd.grad((mix(hidden, None) * weight).sum(), hidden)
    plain = torch.fft.fft2(hidden, dim=(1, 2)).real
    (expected,) = torch.autograd.grad((plain * weight).sum(), hidden)
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradgradcheck(lambda x: mix(x, None).square(), (hidden[:1, :3],))


def test_mlp_mixer_is_two_layers_over_the_tokens() -> None:
    pattern, weights = made("mlp-mixer", False, 60, hidden=9)
    assert weights is not None and pattern.fixed_length
    first, first_bias, second, second_bias = weights.parameters()
    hidden = torch.randn(ROWS, 41, 16)
    units = F.gelu(torch.einsum("ht,btw->bhw", first[:, :41], hidden) + first_bias[:, None])
    expected = torch.einsum("th,bhw->btw", second[:41], units) + second_bias[:41, None]
    close(pattern.mix(hidden, weights), expected)


# --- Reformer ------------------------------------------------------------------------------


def self_masked(shown: Tensor) -> Tensor:
    """No token sees itself, but where it sees nothing else."""
    eye = torch.eye(shown.shape[-1], dtype=torch.bool)
    shown = shown & ~eye
    return shown | (eye & ~shown.any(-1, keepdim=True))


@both
@paddings
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("rounds", [1, 3])
def test_one_bucket_is_full_attention_of_the_same_kind(
    shared: bool, causal: bool, padding: tuple[int, int] | None, rounds: int
) -> None:
    seen = seen_with(causal, padding)
    query, key, value = qkv(LENGTH)
    pattern = build("attention", "reformer", buckets=1, shared=shared, rounds=rounds)
    shown = visible(LENGTH, seen)
    if shared:
        key, shown = F.normalize(query, dim=-1), self_masked(shown)
    expected = softmax_attention(query, key, value, shown, 0.3)
    close(pattern.attend(query, key, value, seen, None), expected, seen)


def met(query: Tensor, key: Tensor, seen: Seen, turns: Tensor, chunk: int) -> Tensor:
    """Who meets whom in any round, pair by pair, from the definition: [rows, heads, queries, keys]."""
    rows, heads, length, _ = query.shape
    shown = torch.zeros(rows, heads, length, length, dtype=torch.bool)
    for turn in turns:
        hashed = (torch.cat([x @ turn, -(x @ turn)], -1).argmax(-1) for x in (query, key))
        of_query, of_key = (buckets.tolist() for buckets in hashed)
        for row in range(rows):
            real = range(length) if seen.real is None else seen.real[row].nonzero()[:, 0].tolist()
            for head in range(heads):
                for i in real:
                    bucket = [j for j in real if of_key[row][head][j] == of_query[row][head][i]]
                    upto = [j for j in bucket if j <= i][-chunk:]
                    behind = [] if seen.causal else [j for j in bucket if j > i][:chunk]
                    shown[row, head, i, upto + behind] = True
    return shown


@both
@paddings
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("chunk", [3, 100])
def test_reformer_is_softmax_over_all_that_is_met(
    shared: bool, causal: bool, padding: tuple[int, int] | None, rounds: int, chunk: int
) -> None:
    length = 60
    seen = seen_with(causal, padding, length)
    query, key, value = qkv(length)
    if shared:
        key = F.normalize(query, dim=-1)
    shown = met(query, key, seen, rotations(rounds, SIZE, 3, 2), chunk)
    eye = torch.eye(length, dtype=torch.bool)
    shown = self_masked(shown) if shared else shown | (eye & ~shown.any(-1, keepdim=True))
    expected = softmax_attention(query, key, value, shown, 0.3)
    pattern = build(
        "attention", "reformer", buckets=6, chunk=chunk, rounds=rounds, shared=shared, seed=2
    )
    close(pattern.attend(query, key, value, seen, None), expected, seen)


def test_equal_vectors_meet_and_opposite_ones_do_not() -> None:
    """What the hash is for: near vectors share a bucket more often than far ones."""
    vectors = F.normalize(torch.randn(200, 1, 1, SIZE), dim=-1)
    near = F.normalize(vectors + 0.1 * torch.randn_like(vectors), dim=-1)
    far = torch.randn_like(vectors)

    def share(other: Tensor) -> float:
        pair = torch.cat([vectors, other], 2)
        values = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1).expand(200, 1, 2, SIZE)
        pattern = build("attention", "reformer", buckets=8, rounds=1)
        return float(
            (pattern.attend(pair, pair, values, Seen(), None)[:, 0, 0, 0] > 0).float().mean()
        )

    assert share(vectors) == 1.0
    assert share(near) > share(far) + 0.3
    assert share(-vectors) == 0.0


def test_buckets_are_even() -> None:
    with pytest.raises(UserError, match="buckets=8"):
        build("attention", "reformer", buckets=7)
    for option in ("chunk", "rounds", "buckets"):
        with pytest.raises(UserError, match=option):
            build("attention", "reformer", **{option: 0})
    with pytest.raises(UserError, match="features"):
        build("attention", "performer", features=0)
