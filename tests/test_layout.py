"""Where masks, soft tokens and segments stand in a prompt, and what a causal model refuses."""

from __future__ import annotations

import pytest

from promptforge.encode import Encoded
from promptforge.errors import UserError
from promptforge.model import PromptModel
from promptforge.task import Task
from promptforge.template import Template, TemplateError
from tests import tiny

each = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
PAIR = {"a": "A great film.", "b": "It was fun"}


def encode(architecture: str, source: str, **row: str) -> Encoded:
    prompt = Template(source, name="t").render(row)
    found: Encoded = tiny.backbone(architecture).encode([prompt], origin="t")[0]
    return found


@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert", "bart"])
def test_sentence_pairs_are_those_of_the_tokenizer(architecture: str) -> None:
    backbone = tiny.backbone(architecture)
    encoded = encode(architecture, "{{ a }}{{ sep }}{{ b }}{{ mask }}", **PAIR)
    pair = backbone.tokenizer(PAIR["a"], PAIR["b"])
    slot = encoded.slots[0]
    without = encoded.ids[: slot.start] + encoded.ids[slot.start + slot.length :]
    assert list(without) == pair["input_ids"]
    if architecture == "bert":
        types = encoded.types[: slot.start] + encoded.types[slot.start + slot.length :]
        assert list(types) == pair["token_type_ids"]
        assert set(types) == {0, 1}
        assert encoded.types[slot.start] == 1
    else:
        assert set(encoded.types) == {0}


@pytest.mark.parametrize("architecture", tiny.CAUSAL)
def test_without_a_separator_there_is_a_line_break(architecture: str) -> None:
    pair = encode(architecture, "{{ a }}{{ sep }}{{ b }} {{ mask }}", **PAIR)
    assert pair.ids == encode(architecture, "{{ a }}\n{{ b }} {{ mask }}", **PAIR).ids


# --- soft tokens ---------------------------------------------------------------------------


@each
def test_soft_tokens_start_from_their_text(architecture: str) -> None:
    text = tiny.backbone(architecture).text
    encoded = encode(architecture, '{{ a }} {{ soft("It was") }} {{ mask }}', **PAIR)
    plain = encode(architecture, "{{ a }} It was {{ mask }}", **PAIR)
    assert (encoded.ids, encoded.slots) == (plain.ids, plain.slots)
    (soft,) = encoded.soft
    assert list(encoded.ids[soft.start : soft.start + soft.length]) == text.word(
        "It was", space_before=True
    )


@each
def test_soft_tokens_by_number_and_shared_ids(architecture: str) -> None:
    source = "{{ soft(n=5, id='x') }} {{ a }} {{ soft(n=5, id='x') }}{{ soft(n=5, id='y') }}{{ soft(n=2) }} {{ mask }}"
    encoded = encode(architecture, source, **PAIR)
    ids = [encoded.ids[s.start : s.start + s.length] for s in encoded.soft]
    assert [len(i) for i in ids] == [5, 5, 5, 2]
    assert ids[0] == ids[1] != ids[2]
    keys = [s.key for s in encoded.soft]
    assert keys[:3] == ["x", "x", "y"] and keys[3] not in keys[:3]
    assert not set(sum(ids, ())) & tiny.backbone(architecture).text.special_ids
    assert encode(architecture, source, **PAIR) == encoded


@each
def test_soft_tokens_before_the_mask_and_first(architecture: str) -> None:
    backbone = tiny.backbone(architecture)
    encoded = encode(architecture, "{{ soft(n=3) }}{{ mask }}")
    (soft,), (slot,) = encoded.soft, encoded.slots
    assert soft.start == len(backbone.frame.prefix)
    assert (slot.start, slot.space_before) == (soft.start + 3, False)
    assert encode(architecture, "{{ soft(n=3) }} {{ mask }}").slots[0].space_before


@pytest.mark.parametrize("architecture", [*tiny.MASKED, *tiny.SEQ2SEQ])
def test_soft_tokens_after_the_mask_move_with_a_word(architecture: str) -> None:
    backbone = tiny.backbone(architecture)
    encoded = encode(architecture, "It was {{ mask }}{{ soft(n=3) }} end {{ mask }}")
    soft = encoded.soft[0]
    first, second = encoded.slots
    assert soft.start == first.start + first.length
    if architecture in tiny.MASKED:
        placed = backbone.place(encoded, 0, [7, None, 8])
        ids = placed.ids[placed.soft[0].start :][:3]
        assert ids == encoded.ids[soft.start :][:3]
        assert placed.ids[first.start : first.start + 3] == (7, backbone.tokenizer.mask_token_id, 8)
        assert placed.reads == tuple(range(first.start, first.start + 3))
        assert placed.slots[1].start == second.start + 2
        assert placed.ids[placed.slots[1].start] == backbone.tokenizer.mask_token_id


# --- masks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", tiny.MASKED)
def test_several_masks_are_read_in_order(architecture: str) -> None:
    encoded = encode(architecture, "{{ mask(2) }} and {{ a }} ({{ mask }})", **PAIR)
    mask = tiny.tokenizer(architecture).mask_token_id
    assert encoded.reads == tuple(i for i, t in enumerate(encoded.ids) if t == mask)
    assert [s.length for s in encoded.slots] == [2, 1]
    assert [s.space_before for s in encoded.slots] == [False, False]


def test_t5_gives_each_mask_a_sentinel() -> None:
    encoded = encode("t5", "{{ mask }} and {{ a }} {{ mask }}", **PAIR)
    first, second = tiny.tokenizer("t5").convert_tokens_to_ids(["<extra_id_0>", "<extra_id_1>"])
    assert [encoded.ids[s.start] for s in encoded.slots] == [first, second]
    assert encoded.decoder_ids == (0, first, second)
    assert encoded.reads == (1, 2)
    with pytest.raises(UserError, match="more masks than the model has sentinels"):
        encode("t5", "{{ mask }} a " * 11)


def test_bart_writes_the_text_up_to_the_mask() -> None:
    encoded = encode("bart", "It was {{ mask }} and {{ mask }}.")
    end = encoded.slots[1].start
    assert encoded.decoder_ids == (2, *encoded.ids[:end])
    assert encoded.reads == tuple(s.start for s in encoded.slots)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_rows_with_different_numbers_of_masks_are_refused(architecture: str) -> None:
    source = "{% if n %}Was it {{ mask }} or {% endif %}{{ mask }}"
    model = PromptModel(
        tiny.backbone(architecture),
        Task.inline([Template(source)], labels={"a": ["good"], "b": ["bad"]}),
    )
    with pytest.raises(UserError, match="masks"):
        model.predict([{"n": ""}, {"n": "x"}])
    with pytest.raises(TemplateError, match="t has no mask"):
        encode(architecture, "{{ a }}", **PAIR)


# --- causal models -------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", tiny.CAUSAL)
def test_a_causal_model_wants_the_mask_last(architecture: str) -> None:
    with pytest.raises(TemplateError) as caught:
        encode(architecture, "It was {{ mask }}, I think.")
    message = str(caught.value)
    assert message.startswith("t: the mask must come last")
    assert "', I think.'" in message and "{{ tail(', I think.') }}" in message
    with pytest.raises(TemplateError, match="2 masks; a causal model reads one"):
        encode(architecture, "{{ mask }} {{ mask }}")
    with pytest.raises(TemplateError, match="must come last"):
        encode(architecture, "It was {{ mask }}{{ soft(n=2) }}")


@pytest.mark.parametrize("architecture", tiny.CAUSAL)
def test_tails_and_white_space_after_the_mask_are_left_out(architecture: str) -> None:
    bare = encode(architecture, "It was {{ mask }}")
    assert encode(architecture, 'It was {{ mask }} {{ tail(".") }}\n').ids == bare.ids
    assert bare.reads == (len(bare.ids) - 1,)
    assert bare.slots[0].space_before


@pytest.mark.parametrize("architecture", [*tiny.MASKED, *tiny.SEQ2SEQ])
def test_tails_are_read_where_the_model_reads_them(architecture: str) -> None:
    with_tail = encode(architecture, 'It was {{ mask }}{{ tail(".") }}')
    assert with_tail.ids == encode(architecture, "It was {{ mask }}.").ids


@each
def test_a_prompt_that_is_only_a_mask(architecture: str) -> None:
    encoded = encode(architecture, "{{ mask }}")
    assert len(encoded.ids) >= 1
    assert len(encoded.reads) == 1
    states = tiny.backbone(architecture).states([encoded])
    assert states.shape == (1, 1, 32)
