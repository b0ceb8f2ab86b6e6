"""Attention patterns in models: exact where they are full attention, whatever the architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny
import torch
from pydantic import Field
from test_sites import made
from torch import Tensor, nn

from promptforge import AttentionPattern, UserError, plugins
from promptforge.attention import Seen, Shape
from promptforge.backbone.patterned import place
from promptforge.hookspecs import hookimpl
from promptforge.template import Mask, Prompt, Text

Folder = Callable[[str], Path]
#: What each pattern was told, call by call.
CALLS: list[Seen] = []


class Whole(AttentionPattern):
    """Full attention in terms of what a pattern is told; with a window, only so far."""

    name: ClassVar[str] = "whole"
    window: int = Field(0, ge=0)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, seen: Seen, weights: nn.Module | None
    ) -> Tensor:
        CALLS.append(seen)
        assert seen.real is None or seen.real.shape == (len(key), key.shape[2])
        keys = torch.arange(key.shape[2])
        away = (torch.arange(query.shape[2]) + seen.offset)[:, None] - keys
        shown = torch.ones_like(away, dtype=torch.bool)[None]
        if self.window:
            shown = (away.abs() <= self.window)[None]
            if seen.always is not None:
                asks = seen.always[:, seen.offset :]
                shown = shown | asks[:, :, None] | seen.always[:, None]
        if seen.causal:
            shown = shown & (away >= 0)
        if seen.real is not None:
            shown = shown & seen.real[:, None] | (away == 0)
        scores = query @ key.mT * seen.scale
        return scores.masked_fill(~shown[:, None], -torch.inf).softmax(-1) @ value


class Mean(AttentionPattern):
    """Each token gets the mean of all; of their hidden states."""

    name: ClassVar[str] = "mean"
    sees_future: ClassVar[str] = "its mean is over the whole text."
    mixes: ClassVar[bool] = True

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, seen: Seen, weights: nn.Module | None
    ) -> Tensor:
        CALLS.append(seen)
        real = torch.ones(len(value), value.shape[2]) if seen.real is None else seen.real
        share = real.to(value) / real.sum(1, keepdim=True)
        return (share[:, None, None] @ value).expand_as(value)


class Bare(Mean):
    """As `Mean`, without the model's output matrix behind it, and for rows of one length."""

    name: ClassVar[str] = "bare"
    keeps_output: ClassVar[bool] = False
    ignores_padding: ClassVar[bool] = True


class Learned(Whole):
    """Full attention, its result turned by a matrix that has to be learned."""

    name: ClassVar[str] = "learned"
    needs_training: ClassVar[bool] = True
    fixed_length: ClassVar[bool] = True

    def weights(self, shape: Shape) -> nn.Module:
        return nn.Linear(shape.head_size, shape.head_size)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, seen: Seen, weights: Any) -> Tensor:
        out: Tensor = weights(super().attend(query, key, value, seen, None))
        return out


class Plugin:
    """Provides them, as a stranger's would."""

    @hookimpl
    def promptforge_attention_patterns(self) -> list[type[AttentionPattern]]:
        return [Whole, Mean, Bare, Learned]


@pytest.fixture(autouse=True)
def patterns() -> Iterator[None]:
    CALLS.clear()
    plugins.manager().register(Plugin(), "test-patterns")
    yield
    plugins.manager.cache_clear()


def fresh(architecture: str, pattern: AttentionPattern | None = None) -> Any:
    """A tiny backbone of the test's own, in double precision, with a pattern in it."""
    if architecture in tiny.ARCHITECTURES:
        backbone = tiny.fresh(architecture)
        backbone.model.double()
    else:
        backbone = made(architecture)
    if pattern is not None:
        place(backbone, pattern)
    return backbone


def prompts(backbone: Any, most: int = 40) -> list[Any]:
    """Prompts of several lengths; the template's own text stands before and after the row's."""
    texts = [t[: 20 + 30 * i] for i, t in enumerate(tiny.corpus()[:4])]
    made = [
        Prompt((Text("Review: "), Text(t, "text", cut=1), Text(" It was "), Mask())) for t in texts
    ]
    return list(backbone.encode(made))


ATTENDING = ["bert", "roberta", "modernbert", "gpt2", "llama", "bart", "albert", "electra",
             "distilbert", "opt", "qwen2"]  # fmt: skip
ENCODERS = ["bert", "roberta", "modernbert", "bart", "albert", "electra", "distilbert"]


@pytest.mark.parametrize("architecture", ATTENDING)
def test_full_attention_as_a_pattern_is_the_model_itself(architecture: str) -> None:
    plain, patterned = fresh(architecture), fresh(architecture, Whole())
    expected = plain.states(prompts(plain))
    assert torch.allclose(patterned.states(prompts(patterned)), expected, atol=1e-9)
    assert CALLS
    assert all(seen.causal == (plain.family == "causal") for seen in CALLS)


@pytest.mark.parametrize("architecture", ATTENDING)
def test_padding_on_either_side_changes_nothing(architecture: str) -> None:
    backbone = fresh(architecture, Whole(window=3))
    encoded = prompts(backbone)
    alone = [backbone.states([e]) for e in encoded]
    assert torch.allclose(backbone.read(encoded).detach(), torch.cat(alone), atol=1e-9)
    if architecture == "bart":
        return  # its positions cannot be given, so padding on the left moves its tokens
    backbone.current = None
    backbone.encoder.globals = "none"
    short, long = prompts(backbone)[0], prompts(backbone)[3]
    shift = len(long.ids) - len(short.ids)
    pad = backbone.tokenizer.pad_token_id or 0
    ids = torch.tensor([[pad] * shift + list(short.ids), list(long.ids)])
    mask = torch.ones_like(ids)
    mask[0, :shift] = 0
    places = (mask.cumsum(-1) - 1).clamp(0)
    if architecture == "roberta":
        places = torch.where(mask == 1, places + 2, 1)
    told = {} if architecture == "opt" else {"position_ids": places}
    if architecture == "modernbert":
        told = {"position_ids": places}
    out = backbone.body(input_ids=ids, attention_mask=mask, **told).last_hidden_state
    for row, e in enumerate((short, long)):
        own = backbone.body(
            input_ids=torch.tensor([e.ids]), attention_mask=torch.ones(1, len(e.ids)).long()
        ).last_hidden_state[0]
        assert torch.allclose(out[row, -len(e.ids) :], own, atol=1e-9)


@pytest.mark.parametrize("architecture", ENCODERS)
def test_a_mixing_pattern_takes_the_place_of_attention(architecture: str) -> None:
    """The value matrix is skipped, so hidden states themselves are mixed, whatever wraps them."""
    backbone = fresh(architecture, Mean())
    site = next(s for s in backbone.sites if s.kind == "attention" and not s.window)
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        return lambda module, args: seen.__setitem__(name, args[0].detach())

    backbone.model.get_submodule(site.inputs[-1]).register_forward_pre_hook(note("taken"))
    backbone.model.get_submodule(site.output).register_forward_pre_hook(note("mixed"))
    encoded = prompts(backbone)[0]
    backbone.read([encoded])
    assert torch.allclose(
        seen["mixed"], seen["taken"].mean(1, keepdim=True).expand_as(seen["mixed"])
    )
    alone = [backbone.states([e]) for e in prompts(backbone)]
    assert torch.allclose(backbone.read(prompts(backbone)).detach(), torch.cat(alone), atol=1e-9)


def test_the_models_output_matrix_can_be_left_out() -> None:
    """In BERT the sub-layer is then exactly LayerNorm(h + mean(h))."""
    backbone = fresh("bert", Bare())
    layer = backbone.model.bert.encoder.layer[0].attention
    seen: dict[str, Any] = {}
    layer.register_forward_hook(lambda m, args, out: seen.update(taken=args[0], given=out[0]))
    backbone.read(prompts(backbone)[:1])
    h = seen["taken"]
    expected = layer.output.LayerNorm(h + h.mean(1, keepdim=True))
    assert torch.allclose(seen["given"], expected)


@pytest.mark.parametrize("architecture", ["bert", "bart"])
def test_rows_of_other_lengths_are_read_apart_where_padding_would_change_them(
    architecture: str,
) -> None:
    backbone = fresh(architecture, Bare())
    encoded = prompts(backbone)
    assert len({len(e.ids) for e in encoded}) > 2
    alone = torch.cat([backbone.states([e]) for e in encoded])
    CALLS.clear()
    together = backbone.read(encoded)
    assert torch.allclose(together, alone, atol=1e-9)
    assert all(seen.real is None for seen in CALLS)
    together[..., 0].sum().backward()
    words = backbone.embedding.weight.grad
    assert words is not None and words[list(encoded[2].ids)].abs().sum() > 0


@pytest.mark.parametrize("architecture", ATTENDING)
def test_no_mask_of_l_by_l_is_made(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for the pattern, and not for the layers that stay as they are."""
    from promptforge.backbone import patterned

    monkeypatch.setattr(patterned, "_CHUNK", 8)
    backbone = fresh(architecture, Whole())
    told: list[Tensor | None] = []
    masks: list[Tensor] = []
    own, sdpa = patterned.restricted, torch.nn.functional.scaled_dot_product_attention

    def note(query: Tensor, key: Tensor, value: Tensor, mask: Any, *more: Any) -> Tensor:
        told.append(mask)
        return own(query, key, value, mask, *more)

    def noted(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, **more: Any) -> Tensor:
        if attn_mask is not None:
            masks.append(attn_mask)
        return sdpa(q, k, v, attn_mask, **more)

    monkeypatch.setattr(patterned, "restricted", note)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    encoded = prompts(backbone)
    expected = fresh(architecture).states(prompts(fresh(architecture)))
    told.clear(), masks.clear()
    assert torch.allclose(backbone.states(encoded), expected, atol=1e-9)
    longest = max(len(e.ids) for e in encoded)
    assert all(mask is None or mask.ndim == 2 for mask in told)
    assert bool(told) == (architecture in ("modernbert", "bart"))
    assert all(mask.shape[-2] <= 8 < longest for mask in masks)


def test_a_causal_model_stays_causal() -> None:
    """What comes later changes nothing before it: through all layers, with global tokens."""
    for architecture in ("gpt2", "llama"):
        backbone = fresh(architecture, Whole(window=2))
        first = prompts(backbone)[3]
        n = len(first.ids) // 2
        other = [*first.ids[:n], *reversed(first.ids[n:])]
        from dataclasses import replace

        reads = tuple(range(n))
        pair = [replace(first, reads=reads), replace(first, ids=tuple(other), reads=reads)]
        a, b = backbone.read(pair)
        assert torch.allclose(a, b, atol=1e-12)
        later = [replace(e, reads=(len(e.ids) - 1,)) for e in pair]
        a, b = backbone.read(later)
        assert not torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_words_of_several_tokens_and_shared_beginnings(architecture: str) -> None:
    """The ways of causal models around reading a prompt twice are exact, or not taken."""
    plain, patterned = fresh(architecture), fresh(architecture, Whole())
    words = [[5, 9, 3], [5, 9, 7], [11]]
    expected = plain.continuations(prompts(plain), 0, words)
    assert torch.allclose(
        patterned.continuations(prompts(patterned), 0, words), expected, atol=1e-8
    )


DATA, OWN = "the film that everyone talks about", "Review:"


def marked(backbone: Any, parts: tuple[Any, ...], **more: Any) -> tuple[list[str], list[str]]:
    """The tokens of a prompt that are global, and the others."""
    encoded = backbone.encode([Prompt(parts)], **more)[0]
    tokens = backbone.tokenizer.convert_ids_to_tokens(list(encoded.ids))
    assert len(encoded.always) == len(tokens)
    pairs = list(zip(tokens, encoded.always, strict=True))
    return [t for t, own in pairs if own], [t for t, own in pairs if not own]


def words(backbone: Any, text: str) -> list[str]:
    tokens: list[str] = backbone.tokenizer.convert_ids_to_tokens(backbone.text.ids([text])[0])
    return tokens


@pytest.mark.parametrize("cut", [False, True])
def test_masks_and_the_templates_own_text_are_global(cut: bool) -> None:
    """Also where the row's text was cut, and where the row says what the template says."""
    backbone = fresh("bert", Whole(window=1))
    text = f"{DATA} {OWN} [MASK] " * (20 if cut else 1)
    own, others = marked(
        backbone, (Text(OWN + " "), Text(text, "text", cut=1), Text(" It was "), Mask(2), Text("."))
    )
    assert own == ["[CLS]", *words(backbone, OWN), "it", "was", "[MASK]", "[MASK]", ".", "[SEP]"]
    whole = words(backbone, text)
    assert others == whole[: len(others)]
    assert (len(others) < len(whole)) == cut


def test_only_masks_or_nothing_is_global_where_that_is_asked() -> None:
    parts = (Text(OWN + " "), Text(DATA, "text", cut=1), Text(" It was "), Mask())
    assert marked(fresh("bert", Whole(globals="masks")), parts)[0] == ["[MASK]"]
    backbone = fresh("bert", Whole(window=1, globals="none"))
    encoded = backbone.encode([Prompt(parts)])
    assert encoded[0].always == ()
    backbone.read(encoded)
    assert all(seen.always is None for seen in CALLS)
    # The mask of a causal model has no token: it is read at the last one.
    causal = fresh("gpt2", Whole(globals="masks"))
    assert marked(causal, parts)[0] == [
        causal.tokenizer.convert_ids_to_tokens(causal.encode([Prompt(parts)])[0].ids[-1])
    ]


def test_shown_rows_are_no_text_of_the_template() -> None:
    backbone = fresh("bert", Whole(window=1))
    shown = "a dull one"
    own, others = marked(
        backbone,
        (
            Text(OWN + " "),
            Text(shown, "text"),
            Text(" It was bad. " + OWN + " "),
            Text(DATA, "text"),
            Text(" It was "),
            Mask(),
        ),
    )
    assert others == [*words(backbone, shown), *words(backbone, DATA)]
    assert own.count("was") == 2


def test_words_put_into_a_mask_are_global_too() -> None:
    backbone = fresh("bert", Whole(window=1))
    first = backbone.encode([Prompt((Text(DATA, "text"), Text(" so "), Mask(), Text(" ok")))])[0]
    placed = backbone.place(first, 0, [7, None, 9])
    start = placed.slots[0].start
    assert len(placed.always) == len(placed.ids)
    assert all(placed.always[start : start + 3])
    assert placed.always[: start - 1] == first.always[: start - 1]
    assert placed.always[start + 3 :] == first.always[start + 1 :]


@pytest.mark.parametrize("architecture", ["bert", "llama", "bart"])
def test_the_pattern_gets_the_global_tokens_of_each_row(architecture: str) -> None:
    """A window of nothing but oneself, and masks that see all: as it is computed by hand."""
    backbone = fresh(architecture, Whole(window=2))
    encoded = prompts(backbone)
    CALLS.clear()
    backbone.read(encoded)
    longest = max(len(e.ids) for e in encoded)
    for seen in CALLS:
        assert seen.always is not None
        assert seen.always.tolist() == [
            [*e.always, *[False] * (longest - len(e.always))] for e in encoded
        ]


def test_a_whole_text_under_a_head_has_its_special_tokens_global() -> None:
    backbone = fresh("bert", Whole(window=1))
    encoded = backbone.encoder.encode([Prompt((Text(DATA, "text"),))], masked=False)[0]
    n = len(words(backbone, DATA))
    assert encoded.always == (True, *[False] * n, True)


def test_equal_tokens_of_other_origin_are_other_prompts() -> None:
    backbone = fresh("bert", Whole(window=1))
    given = Prompt((Text("so it was ", "text"), Mask()))
    own = Prompt((Text("so it was "), Mask()))
    one, other = backbone.encode([given, own])
    assert one.ids == other.ids
    assert one.key != other.key
    together = backbone.states([one, other])
    assert torch.allclose(together[1], backbone.states([other])[0])
    # Four tokens are further apart than the window, so it matters who sees all.
    assert not torch.allclose(together[0], together[1], atol=1e-6)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_writing_goes_on_as_without_a_cache(architecture: str) -> None:
    """Rows padded on the left, global tokens moved along, beams: the cache changes no token."""
    from promptforge.backbone.writing import writer

    backbone = fresh(architecture, Whole(window=3))
    write = writer(backbone)
    made = [Prompt((Text("Review: "), Text(t[:60], "text", cut=1), Text(" So "), Mask()))
            for t in tiny.corpus()[:3]]  # fmt: skip
    sources = write.sources(made, 8, "it")
    for beams in (1, 2):
        config = {"max_new_tokens": 6, "num_beams": beams}
        slow = write.write(sources, {**config, "use_cache": False})
        CALLS.clear()
        assert write.write(sources, {**config, "use_cache": True}) == slow
        assert any(seen.offset for seen in CALLS)
        assert [write.write([s], config)[0] for s in sources] == slow


def test_a_prefix_has_no_place_in_a_pattern() -> None:
    from promptforge.plugins import build

    backbone = fresh("bert", Whole())
    for options in ({}, {"init": "random"}):
        method = build("method", "prefix", length=2, **options)
        with pytest.raises(UserError, match="keys that are no tokens"):
            method.add(backbone, prompts(backbone), {})  # before a training changes the model


def test_what_a_method_adds_works_under_a_pattern() -> None:
    """LoRA and soft tokens under full attention as a pattern: the same as without it."""
    from promptforge.plugins import build

    for name in ("lora", "prompt-tuning", "houlsby"):
        states = []
        for pattern in (None, Whole()):
            backbone = fresh("bert", pattern)
            torch.manual_seed(1)
            addition = build("method", name).add(backbone, prompts(backbone), {})
            for p in addition.trained().values():
                torch.manual_seed(p.numel())
                torch.nn.init.normal_(p, std=0.3)
            attached = backbone.attach([addition])
            opening = Prompt((*addition.opening, Text("a film so "), Mask()))
            states.append(backbone.states(backbone.encode([opening])))
            attached.close()
        assert torch.allclose(*states, atol=1e-9), name


def test_models_that_cannot_have_a_pattern_say_why() -> None:
    with pytest.raises(UserError, match=r"does not attend through .* Models that do: BERT"):
        fresh("deberta", Whole())
    with pytest.raises(UserError, match="adds a bias of its own to every pair"):
        fresh("t5", Whole())
    with pytest.raises(UserError, match="caps the scores"):
        fresh("gemma2", Whole())
    with pytest.raises(UserError, match="sees the future: its mean is over the whole text"):
        fresh("llama", Mean())
    with pytest.raises(UserError, match="has 'whole' already"):
        place(fresh("bert", Whole()), Mean())


def test_layers_with_a_window_of_their_own_keep_it() -> None:
    """ModernBERT's local layers: the pattern is asked in the global ones alone."""
    backbone = fresh("modernbert", Whole())
    windows = [s.window for s in backbone.sites if s.kind == "attention"]
    assert sorted(windows) == [0, 9]
    CALLS.clear()
    backbone.read(prompts(backbone)[:1])
    assert len(CALLS) == 1


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("padded", ["", "left", "right"])
def test_attention_in_parts_is_attention(causal: bool, window: int, padded: str) -> None:
    """What stays the model's own, against a softmax over the whole matrix."""
    from promptforge.backbone import patterned

    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 1100, 4, dtype=torch.float64)
    mask = torch.ones(2, 1100, dtype=torch.bool)
    if padded:
        mask[0, slice(700, None) if padded == "right" else slice(0, 400)] = False
    away = torch.arange(1100)[:, None] - torch.arange(1100)
    shown = mask[:, None, None] & torch.ones_like(away, dtype=torch.bool)
    shown = shown & (away >= 0) if causal else shown
    shown = shown & (away.abs() < window) if window else shown
    expected = (q @ k.mT / 2).masked_fill(~shown, -1e30).softmax(-1) @ v
    found = patterned.restricted(q, k, v, mask if padded else None, causal, window, 0.5)
    assert torch.allclose(
        found[mask[:, None].expand(2, 3, -1)], expected[mask[:, None].expand(2, 3, -1)]
    )
    assert torch.isfinite(found).all()
    # The last queries alone, as when a cache holds what stands before them.
    last = patterned.restricted(q[:, :, -7:], k, v, mask if padded else None, causal, window, 0.5)
    if padded != "right":
        assert torch.allclose(last, expected[:, :, -7:])


def test_writing_from_rows_that_must_not_be_padded() -> None:
    from promptforge.backbone.writing import writer

    write = writer(fresh("bart", Bare()))
    made = [Prompt((Text(t[:n], "text", cut=1), Text(" So "), Mask()))
            for t, n in zip(tiny.corpus(), (20, 70, 20, 50), strict=False)]  # fmt: skip
    sources = write.sources(made, 8, "it")
    together = write.write(sources, {"max_new_tokens": 5})
    assert together == [write.write([s], {"max_new_tokens": 5})[0] for s in sources]
