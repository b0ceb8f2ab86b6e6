"""Scores equal the plain reference: full logits row by row, log-softmax, indexing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from promptforge.backbone import causal
from promptforge.backbone.causal import CausalBackbone
from promptforge.backbone.seq2seq import Seq2SeqBackbone
from promptforge.encode import Encoded
from promptforge.errors import UserError
from promptforge.model import PromptModel
from promptforge.plugins import build
from promptforge.readout import Readout
from promptforge.task import Task
from promptforge.template import Template
from tests import reference, tiny

each = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
TEXTS = [
    "Great fun.",
    "a film that's neither as funny nor as charming as it thinks it is",
    "dull",
    "It's secondary to American Psycho but still has claws",
    "Great fun.",
    "",
]
SOURCE = "{{ text }} It was {{ mask }}{{ tail('.') }}"


def encode(backbone: Any, source: str = SOURCE, texts: Sequence[str] = TEXTS) -> list[Encoded]:
    template = Template(source)
    found: list[Encoded] = backbone.encode([template.render({"text": t}) for t in texts], reserve=3)
    return found


def readout(backbone: Any, source: str = SOURCE, texts: Sequence[str] = TEXTS) -> Readout:
    encoded = encode(backbone, source, texts)
    return Readout(backbone, encoded, backbone.states(encoded))


def verbalizer(backbone: Any, words: dict[str, list[str]], **options: Any) -> Any:
    made = build("verbalizer", "manual", **options)
    made.bind(list(words), words, backbone, space_before=True)
    return made


def close(a: Tensor, b: Tensor | list[Any], tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(
        a.double(), torch.as_tensor(b).double(), atol=tolerance, rtol=tolerance
    )


# --- class posteriors ----------------------------------------------------------------------

AGGREGATES: dict[str, tuple[dict[str, Any], Any]] = {
    "mean": ({}, lambda s, w: sum(s) / len(s)),
    "max": ({}, lambda s, w: max(s)),
    "first": ({}, lambda s, w: s[0]),
    "sum": ({}, lambda s, w: math.log(sum(math.exp(x) for x in s))),
    "weighted": (
        {"weights": {"a": [0.2, 0.8], "b": [1.0], "c": [0.5, 0.25, 0.25]}},
        lambda s, w: sum(x * y for x, y in zip(s, w, strict=True)),
    ),
    "weighted, not to one": (
        {"weights": {"a": [0.2, 0.5], "b": [2.0], "c": [0.5, 0.5, 0.5]}},
        lambda s, w: sum(x * y for x, y in zip(s, w, strict=True)),
    ),
}


@each
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_class_posteriors(architecture: str, aggregate: str) -> None:
    backbone = tiny.backbone(architecture)
    options, rule = AGGREGATES[aggregate]
    a, b, c, d, e, f = reference.some_words(backbone, 6)
    words = {"a": [a, b], "b": [c], "c": [d, e, f]}
    made = verbalizer(backbone, words, aggregate=aggregate.partition(",")[0], **options)
    found = made.class_scores(readout(backbone)).softmax(-1)
    expected = []
    for encoded in encode(backbone):
        log_p = reference.full_logits(backbone, encoded)[encoded.reads[0]].log_softmax(-1)
        scores = [
            rule([float(log_p[s[0]]) for s in made.sequences[label]], options.get("weights", {}).get(label))
            for label in words
        ]  # fmt: skip
        expected.append(torch.tensor(scores, dtype=torch.float64).softmax(-1).tolist())
    close(found, expected)


@each
def test_words_of_one_and_three_tokens(architecture: str) -> None:
    backbone = tiny.backbone(architecture)
    words = {"a": reference.some_words(backbone, 2), "b": [reference.long_word(backbone, 3)]}
    made = verbalizer(backbone, words)
    found = made.class_scores(readout(backbone))
    close(found.softmax(-1), _by_hand(backbone, made, raw=False))
    assert (found.softmax(-1) - torch.tensor(_by_hand(backbone, made, raw=True))).abs().max() > 1e-2


def _by_hand(backbone: Any, made: Any, *, raw: bool) -> list[list[float]]:
    softmax = torch.Tensor.log_softmax
    out = []
    with pytest.MonkeyPatch.context() as patch:
        if raw:  # the answer if logits were taken for log-probabilities
            patch.setattr(torch.Tensor, "log_softmax", lambda self, *_: self)
        for encoded in encode(backbone):
            scores = [
                sum(reference.word_score(backbone, encoded, s) for s in sequences) / len(sequences)
                for sequences in made.sequences.values()
            ]
            out.append(softmax(torch.tensor(scores), -1).exp().tolist())
    return out


@each
@torch.inference_mode()
def test_log_z_and_every_log_probability(architecture: str) -> None:
    backbone = tiny.backbone(architecture)
    read = readout(backbone)
    full = torch.stack([reference.full_logits(backbone, e)[e.reads[0]] for e in read.encoded])
    close(read.log_z(), full.logsumexp(-1))
    close(backbone.logits(read.at()), full)
    words = torch.tensor([5, 7, 7, len(backbone.tokenizer) - 1])
    close(read.logits(words), full[:, words])
    close(read.log_probs(words), full.log_softmax(-1)[:, words])
    close(backbone.log_probs(read.at(), words), full.log_softmax(-1)[:, words])


@each
def test_fill_is_the_top_of_the_full_softmax(architecture: str) -> None:
    backbone = tiny.backbone(architecture)
    task = Task.inline([Template(SOURCE, name="p")], labels={"a": [], "b": []})
    (places,) = PromptModel(backbone, task).fill({"text": TEXTS[0]}, top=5).values()
    encoded = encode(backbone)[0]
    best = reference.full_logits(backbone, encoded)[encoded.reads[0]].softmax(-1).topk(5)
    assert [f.token for f in places[0]] == best.indices.tolist()
    close(torch.tensor([f.probability for f in places[0]]), best.values)
    assert places[0][0].word == backbone.tokenizer.decode([places[0][0].token])


@pytest.mark.parametrize("architecture", [*tiny.MASKED, "t5", "bart"])
def test_each_mask_is_read_where_it_stands(architecture: str) -> None:
    backbone = tiny.backbone(architecture)
    read = readout(backbone, "{{ mask(2) }} film: {{ text }} It was {{ mask }}.")
    for slot in (0, 1):
        first = slot * 2 if backbone.family == "masked" else slot
        full = torch.stack(
            [reference.full_logits(backbone, e)[e.reads[first]] for e in read.encoded]
        )
        close(read.log_z(slot), full.logsumexp(-1))
        assert read.space_before(slot) == (slot == 1 or backbone.text.prefix_space)
    with pytest.raises(UserError, match="has 2 mask"):
        read.at(2)


@pytest.mark.parametrize("architecture", tiny.MASKED)
def test_a_word_is_read_at_as_many_masks_as_it_has_tokens(architecture: str) -> None:
    backbone = tiny.backbone(architecture)
    a, b = reference.some_words(backbone, 2)
    longer = {"a": [a], "b": [b], "c": [reference.long_word(backbone, 2)]}
    ratios = []
    for masks in ("{{ mask }}", "{{ mask(2) }}"):
        for labels in ({"a": [a], "b": [b]}, longer):
            task = Task.inline([Template("{{ text }} It was " + masks, name="p")], labels=labels)
            made = PromptModel(backbone, task).predict_proba([{"text": t} for t in TEXTS])
            ratios.append(torch.tensor(made[:, 0] / made[:, 1]))
    for other in ratios[1:]:
        close(other, ratios[0])


@pytest.mark.parametrize("architecture", tiny.MASKED)
def test_the_verbalizer_reads_the_mask_it_is_told(architecture: str) -> None:
    backbone = tiny.backbone(architecture)
    words = {"a": reference.some_words(backbone, 1), "b": [reference.long_word(backbone, 2)]}
    made = verbalizer(backbone, words, slot=1, scorer="parallel")
    read = readout(backbone, "{{ mask }}: {{ text }} It was {{ mask }}.")
    found = made.class_scores(read)
    mask = backbone.tokenizer.mask_token_id
    for r, encoded in enumerate(read.encoded):
        start = encoded.slots[1].start
        for column, sequence in enumerate(s for ss in made.sequences.values() for s in ss):
            placed = reference.with_ids(encoded, 1, [mask] * len(sequence))
            log_p = reference.full_logits(backbone, placed).log_softmax(-1)
            total = sum(float(log_p[start + j, t]) for j, t in enumerate(sequence))
            assert float(found[r, column]) == pytest.approx(total, abs=1e-5)


# --- scorers -------------------------------------------------------------------------------

SCORERS = [
    *(("parallel", a) for a in tiny.MASKED),
    *(("confident-first", a) for a in tiny.MASKED),
    *(("autoregressive", a) for a in (*tiny.CAUSAL, *tiny.SEQ2SEQ)),
]


@pytest.mark.parametrize(("name", "architecture"), SCORERS)
@pytest.mark.parametrize("length_normalised", [False, True])
def test_scorers(name: str, architecture: str, length_normalised: bool) -> None:
    backbone = tiny.backbone(architecture)
    words = [*reference.some_words(backbone, 2)]
    words += [reference.long_word(backbone, n) for n in (2, 3, 4)]
    sequences = [backbone.text.word(w, space_before=True) for w in words]
    read = readout(backbone)
    scorer = build("scorer", name, length_normalised=length_normalised)
    found = read.score(sequences, scorer=scorer)
    rule = getattr(reference, name.replace("-", "_"))
    per_token = [len(s) if length_normalised else 1 for s in sequences]
    expected = [[rule(backbone, e, s) for s in sequences] for e in read.encoded]
    expected = [[s / n for s, n in zip(row, per_token, strict=True)] for row in expected]
    close(found, expected)
    if name == "confident-first" and not length_normalised:
        other = read.score(sequences, scorer=build("scorer", "parallel"))
        assert (found - other).abs().max() > 1e-3


def test_a_scorer_of_another_family_is_refused() -> None:
    for name, architecture in [("parallel", "gpt2"), ("autoregressive", "bert")]:
        backbone = tiny.backbone(architecture)
        made = verbalizer(
            backbone, {"a": ["good"], "b": [reference.long_word(backbone, 2)]}, scorer=name
        )
        with pytest.raises(UserError, match=f"scorer '{name}' is for .*{backbone.default_scorer}"):
            made.class_scores(readout(backbone))


# --- batches -------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("batch_tokens", [1, 40, 100_000])
def test_states_do_not_depend_on_the_batch(
    architecture: str, batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = tiny.backbone(architecture)
    monkeypatch.setattr(backbone, "batch_tokens", batch_tokens)
    encoded = encode(backbone)
    together = backbone.states(encoded)
    alone = torch.cat([backbone.states([e]) for e in encoded])
    close(together, alone)
    close(backbone.states(encoded[::-1]), together.flip(0))
    sizes = [len(b.indices) for b in backbone.batches(encoded)]
    assert sum(sizes) == len(encoded)
    assert (max(sizes) == 1) == (batch_tokens == 1)
    assert (len(sizes) == 1) == (batch_tokens == 100_000)


@each
def test_equal_prompts_are_read_once(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny.backbone(architecture)
    rows = []
    hidden = backbone.hidden
    monkeypatch.setattr(backbone, "hidden", lambda b: rows.extend(b.indices) or hidden(b))
    states = backbone.states(encode(backbone, texts=["a film", "b", "a film", "b", "a film"]))
    assert len(rows) == 2
    close(states[0], states[4], 0)
    close(states[1], states[3], 0)


@pytest.mark.parametrize("architecture", tiny.CAUSAL)
def test_a_shared_beginning_is_read_once(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = tiny.backbone(architecture)
    source = "Is the review of the film below good or bad? Answer. {{ text }} It was {{ mask }}"
    encoded = encode(backbone, source, [t[:20] for t in TEXTS])
    shared = len(encode(backbone, source.replace("{{ text }} It was ", ""), [""])[0].ids)
    read: list[int] = []
    forward = backbone.body.forward

    def counting(*args: Any, **kwargs: Any) -> Any:
        read.append(kwargs["input_ids"].numel())
        return forward(*args, **kwargs)

    monkeypatch.setattr(backbone.body, "forward", counting)
    with_sharing, cost = backbone.states(encoded), sum(read)
    read.clear()
    monkeypatch.setattr(causal, "_LEAST_PREFIX", 10_000)
    without, full_cost = backbone.states(encoded), sum(read)
    close(with_sharing, without)
    close(without, torch.cat([backbone.states([e]) for e in encoded]))
    distinct = len({e.ids for e in encoded})
    assert full_cost - cost >= (distinct - 1) * (shared - 1)
    assert backbone._prefix is None


# --- ways of asking, and heads with a scale ------------------------------------------------


@pytest.mark.parametrize(("architecture", "ask"), [
    ("t5", "sentinel"), ("t5", "prefix"), ("bart", "mask"), ("bart", "prefix"),
])  # fmt: skip
def test_ways_of_asking_an_encoder_decoder(architecture: str, ask: str) -> None:
    made = tiny.backbone(architecture)
    backbone = Seq2SeqBackbone(made.model, made.tokenizer, ask=ask)
    words = {"a": reference.some_words(backbone, 1), "b": [reference.long_word(backbone, 2)]}
    bound = verbalizer(backbone, words)
    found = bound.class_scores(readout(backbone))
    for r, encoded in enumerate(encode(backbone)):
        source = list(backbone.tokenizer(f"{TEXTS[r]} It was".strip())["input_ids"])
        after = backbone.text.ids(["."])[0]
        end = len(source) - 1
        filler = {"prefix": [], "sentinel": [1200], "mask": [4]}[ask]
        assert list(encoded.ids) == [*source[:end], *filler, *after, *source[end:]]
        head = {"prefix": [], "sentinel": [1200], "mask": source[:end]}[ask]
        start = backbone.model.config.decoder_start_token_id
        for column, (sequence,) in enumerate(bound.sequences.values()):
            decoder = [start, *head, *sequence]
            logits = reference.full_logits(backbone, encoded, decoder).log_softmax(-1)
            total = sum(float(logits[len(head) + j, t]) for j, t in enumerate(sequence))
            assert float(found[r, column]) == pytest.approx(total, abs=1e-5)


def test_ways_of_asking_that_the_tokenizer_does_not_have() -> None:
    made = tiny.backbone("t5")
    with pytest.raises(UserError, match="allows sentinel, prefix"):
        Seq2SeqBackbone(made.model, made.tokenizer, ask="mask")


def _causal(kind: str) -> CausalBackbone:
    tokenizer = tiny.tokenizer("llama")
    common = {
        "vocab_size": len(tokenizer), **tiny.SIZE, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    config: Any = {
        "gemma2": lambda: transformers.Gemma2Config(
            **common,
            head_dim=8,
            final_logit_softcapping=1.5,
            sliding_window=8,
            query_pre_attn_scalar=8,
        ),
        "granite": lambda: transformers.GraniteConfig(**common, logits_scaling=7.0),
        "cohere": lambda: transformers.CohereConfig(**common, logit_scale=0.3),
    }[kind]()
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    return CausalBackbone(model, tokenizer, name=kind)


@pytest.mark.parametrize("kind", ["gemma2", "granite", "cohere"])
def test_caps_and_scales_of_the_head_hold(kind: str) -> None:
    backbone = _causal(kind)
    read = readout(backbone)
    full = torch.stack([reference.full_logits(backbone, e)[-1] for e in read.encoded])
    words = torch.tensor([5, 100, 900])
    close(read.logits(words), full[:, words])
    close(read.log_z(), full.logsumexp(-1))
    sequences = [
        backbone.text.word(reference.long_word(backbone, n), space_before=True) for n in (2, 4)
    ]
    expected = [[reference.autoregressive(backbone, e, s) for s in sequences] for e in read.encoded]
    close(read.score(sequences), expected)
