"""Scores of LM-BFF templates equal brute force, worked out by plain calls of transformers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from promptforge_lm_bff.beam import joint_beam
from promptforge_lm_bff.spelling import Spelling

from promptforge import Example, search_template
from tests import tiny
from tests.test_template_search import MARKS, PIECES, WORDS, examples, task

Sequences = dict[str, float]
SPELLED = [" the", " film", ",", "s"]


@pytest.fixture
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[int]]:
    """Restricts what an architecture may write to four tokens."""

    def restrict(architecture: str) -> list[int]:
        tiny.backbone(architecture).apply(None)  # tests that tune leave their weights in it
        tokenizer = tiny.tokenizer(architecture)
        ids: list[int] = tokenizer.convert_tokens_to_ids(PIECES[MARKS[architecture]])
        assert len(set(ids)) == 4 and tokenizer.unk_token_id not in ids
        inside = torch.zeros(tiny.backbone(architecture).vocabulary, dtype=torch.bool)
        inside[ids] = True
        first = inside.clone()
        first[ids[3]] = False
        monkeypatch.setattr(Spelling, "_masks", property(lambda _: (inside, first)))
        return ids

    return restrict


def spans(ids: Sequence[int], most: int, *, glued: bool = True) -> list[tuple[int, ...]]:
    every = [s for n in range(most + 1) for s in itertools.product(ids, repeat=n)]
    return [s for s in every if not (glued and s and s[0] == ids[3])]


def spell(ids: Sequence[int], span: Sequence[int]) -> str:
    return "".join(SPELLED[ids.index(t)] for t in span)


def plain_ids(architecture: str, text: str) -> list[int]:
    found: list[int] = tiny.tokenizer(architecture)(text, add_special_tokens=False)["input_ids"]
    return found


def keep_best(found: Sequences, source: str, score: float) -> None:
    found[source] = max(score, found.get(source, -float("inf")))


def check(expected: Sequences, architecture: str, rows: list[Example], words: Any = None) -> None:
    """A beam that holds everything finds all and their scores; a narrow one, true scores."""
    backbone = tiny.backbone(architecture)
    for beam in (5000, 2):
        found = search_template(
            backbone, task(words), rows, keep=5000, beam=beam, candidates=5000, left=2, right=1
        )
        if beam == 5000:
            assert {f.source for f in found} == set(expected)
        assert found
        for f in found:
            assert f.score == pytest.approx(expected[f.source], rel=1e-4), f.source


@torch.inference_mode()
def test_t5_equals_brute_force(few_tokens: Callable[[str], list[int]]) -> None:
    ids, rows, model = few_tokens("t5"), examples(3), tiny.backbone("t5").model
    one, two, three = tiny.tokenizer("t5").convert_tokens_to_ids(
        ["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"]
    )
    expected: Sequences = {}
    for text_first in (False, True):
        for x, y in itertools.product(spans(ids, 2, glued=text_first), spans(ids, 1)):
            if not x and not y:
                continue
            written = [one, *x, two, *y, three]
            score = 0.0
            for e in rows:
                text = plain_ids("t5", e.row["text"])
                word = plain_ids("t5", WORDS[e.label][0])
                given_ = [one, *word, two]
                inputs = [*text, *given_, 1] if text_first else [*given_, *text, 1]
                logits = model(
                    input_ids=torch.tensor([inputs]),
                    decoder_input_ids=torch.tensor([[0, *written[:-1]]]),
                ).logits[0]
                log_p = logits.log_softmax(-1)
                score += sum(float(log_p[i, t]) for i, t in enumerate(written) if i > 0)
            x_text, y_text = spell(ids, x), spell(ids, y)
            if text_first:
                keep_best(expected, f"{{{{ text }}}}{x_text} {{{{ mask }}}}{y_text}", score)
            else:
                source = f"{x_text} {{{{ mask }}}}{y_text} {{{{ text }}}}".strip()
                keep_best(expected, source, score)
    check(expected, "t5", rows)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@torch.inference_mode()
def test_a_causal_model_equals_brute_force(
    few_tokens: Callable[[str], list[int]], architecture: str
) -> None:
    """The label word ends the span and counts; one of these has several tokens."""
    ids, rows, model = few_tokens(architecture), examples(), tiny.backbone(architecture).model
    words = {"neg": ["bad"], "pos": ["zestfulness"]}
    prefix = [1] if architecture == "llama" else []
    text_of = tiny.backbone(architecture).text
    assert len(text_of.word("zestfulness", space_before=True)) > 1
    expected: Sequences = {}
    for x in spans(ids, 2)[1:]:
        score = 0.0
        for e in rows:
            # `word` spells what stands in mid-text; that is checked in test_encode.
            word = text_of.word(words[e.label][0], space_before=True)
            start = [*prefix, *plain_ids(architecture, e.row["text"])]
            whole = [*start, *x, *word]
            log_p = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
            score += sum(float(log_p[i - 1, whole[i]]) for i in range(len(start), len(whole)))
        expected[f"{{{{ text }}}}{spell(ids, x)} {{{{ mask }}}}"] = score
    check(expected, architecture, rows, words)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
@torch.inference_mode()
def test_a_masked_model_equals_brute_force(
    few_tokens: Callable[[str], list[int]], architecture: str
) -> None:
    ids, rows, model = few_tokens(architecture), examples(2), tiny.backbone(architecture).model
    tokenizer = tiny.tokenizer(architecture)
    begin, end, mask = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id
    space = "" if architecture == "bert" else " "

    def log_p(left: tuple[int, ...], right: tuple[int, ...], e: Example, text_first: bool) -> float:
        text = e.row["text"]
        word = plain_ids(architecture, space + WORDS[e.label][0] if left or text_first else WORDS[e.label][0])  # fmt: skip
        before = plain_ids(architecture, text) if text_first else []
        after = [] if text_first else plain_ids(architecture, space + text)
        ids_ = [begin, *before, *[mask] * len(left), *word, *[mask] * len(right), *after, end]
        places = [i for i, t in enumerate(ids_) if t == mask]
        total = 0.0
        for place, token in zip(places, left + right, strict=True):
            total += float(model(input_ids=torch.tensor([ids_])).logits[0, place].log_softmax(-1)[token])  # fmt: skip
            ids_[place] = token
        return total

    expected: Sequences = {}
    for text_first in (False, True):
        for x, y in itertools.product(spans(ids, 2, glued=text_first), spans(ids, 1)):
            if not x and not y:
                continue
            score = sum(log_p(x, y, e, text_first) for e in rows)
            source = f"{spell(ids, x)} {{{{ mask }}}}{spell(ids, y)}"
            source = f"{{{{ text }}}}{source}" if text_first else f"{source} {{{{ text }}}}"
            keep_best(expected, source.strip(), score)
    check(expected, architecture, rows)


def test_a_beam_ends_and_goes_on() -> None:
    """Against all sequences of up to three of four tokens; those ended take no place."""
    table = torch.randn(4, 4, 4, 5, generator=torch.Generator().manual_seed(0)).double()

    def step(beams: list[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [table[(*b, 0, 0, 0)[:3]] if len(b) < 3 else torch.zeros(5) for b in beams]
        grow = torch.stack([r[:4].double() for r in rows])
        if len(beams[0]) == 3:
            grow[:] = -torch.inf
        return grow, torch.stack([r[4] for r in rows]).double()

    def score(tokens: tuple[int, ...]) -> float:
        total = 0.0
        for n in range(len(tokens) + 1):
            row = step([tokens[:n]])
            total += float(row[1][0] if n == len(tokens) else row[0][0, tokens[n]])
        return total

    every = [t for n in range(4) for t in itertools.product(range(4), repeat=n)]
    best = sorted(every, key=lambda t: -score(t))
    found = joint_beam(step, 1000)
    assert [t for t, _ in found] == best
    assert [s for _, s in found] == pytest.approx([score(t) for t in best])
    narrow = joint_beam(step, 1)
    greedy: list[tuple[int, ...]] = [()]
    for _ in range(3):
        greedy.append((*greedy[-1], int(step([greedy[-1]])[0][0].argmax())))
    assert [t for t, _ in narrow] == [max(greedy, key=score)]
