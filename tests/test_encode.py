"""Prompts become the ids the tokenizer itself would make, and data never becomes a special token."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from promptforge.encode import Encoded, PromptEncoder
from promptforge.errors import UserError
from promptforge.template import Template
from promptforge.text_encoder import TextEncoder
from tests import tiny

BYTES = ("roberta", "modernbert", "gpt2", "bart")  # byte-level: nothing is lost
METASPACE = ("llama", "t5")
BENIGN = [
    "Great fun.",
    "a film that's neither as funny nor as charming as it thinks it is",
    "An 88-minute riot (in 2D), worth $5!",
    "x",
]
each = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
masked = pytest.mark.parametrize("architecture", tiny.MASKED)


def encode(
    architecture: str, source: str, row: dict[str, Any] | None = None, **options: Any
) -> Encoded:
    backbone = tiny.backbone(architecture)
    length = options.pop("max_length", None)
    prompt = Template(source, name="t").render(row or {})
    if length is None:
        found: list[Encoded] = backbone.encode([prompt], origin="t", **options)
    else:
        found = PromptEncoder(backbone.text, backbone.frame, length).encode([prompt], **options)
    return found[0]


def split(architecture: str, encoded: Encoded) -> tuple[list[int], list[int]]:
    """The ids before and after the first mask, without the frame's own."""
    frame, slot = tiny.backbone(architecture).frame, encoded.slots[0]
    ids = list(encoded.ids)
    assert tuple(ids[: len(frame.prefix)]) == frame.prefix
    after = ids[slot.start + slot.length : len(ids) - len(frame.suffix)]
    return ids[len(frame.prefix) : slot.start], after


def plain(architecture: str, text: str) -> list[int]:
    ids: list[int] = tiny.tokenizer(architecture)(text, add_special_tokens=False)["input_ids"]
    return ids


# --- (a) what the tokenizer itself does ----------------------------------------------------


@each
@pytest.mark.parametrize("text", BENIGN)
def test_benign_text_is_encoded_as_the_tokenizer_does(architecture: str, text: str) -> None:
    encoded = encode(architecture, "{{ text }} {{ mask }}", {"text": text})
    before, after = split(architecture, encoded)
    assert before == plain(architecture, text)
    assert after == []
    assert encoded.slots[0].space_before
    backbone, frame = tiny.backbone(architecture), tiny.backbone(architecture).frame
    whole = backbone.tokenizer(text)["input_ids"]
    mask = frame.slot(0, 1)
    end = len(whole) - len(frame.suffix)
    assert list(encoded.ids) == whole[:end] + mask + whole[end:]


@each
def test_columns_and_template_text_are_one_text(architecture: str) -> None:
    source = "{{ a }}{{ b }}, {{ c | keep }} {{ mask }}"
    encoded = encode(architecture, source, {"a": "won", "b": "derful", "c": "he said"})
    assert split(architecture, encoded)[0] == plain(architecture, "wonderful, he said")


@masked
@pytest.mark.parametrize(("words", "source"), [
    (("It was", "great", "."), "It was {{ mask }}."),
    (("The film (", "great", ") is over"), "The film ({{ mask }}) is over"),
    (("", "great", " fun"), "{{ mask }} fun"),
    (("Was it", "great", "? Yes"), "Was it {{ mask }}? Yes"),
])  # fmt: skip
def test_a_word_in_the_mask_gives_the_whole_sentence(
    architecture: str, words: tuple[str, str, str], source: str
) -> None:
    encoded = encode(architecture, source)
    before, after = split(architecture, encoded)
    space = encoded.slots[0].space_before
    word = tiny.backbone(architecture).text.word(words[1], space_before=space)
    left, word_text, right = words
    sentence = left + (" " if source.split("{{")[0].endswith(" ") else "") + word_text + right
    assert before + word + after == plain(architecture, sentence)


@pytest.mark.parametrize("architecture", METASPACE)
def test_metaspace_puts_its_space_at_the_start_only(architecture: str) -> None:
    text = tiny.backbone(architecture).text
    for source, sentence in [
        ("It was {{ mask }}", "It was great"),
        ("The film ({{ mask }}", "The film (great"),
        ("{{ mask }}", "great"),
        ("{{ sep }}It was {{ mask }}" if architecture == "t5" else "It was {{ mask }}", "It was great"),
    ]:  # fmt: skip
        encoded = encode(architecture, source)
        before, _ = split(architecture, encoded)
        before = [t for t in before if t not in tiny.backbone(architecture).frame.separator]
        word = text.word("great", space_before=encoded.slots[0].space_before)
        tokens = tiny.tokenizer(architecture).convert_ids_to_tokens(before + word)
        assert before + word == plain(architecture, sentence), tokens


def test_metaspace_after_a_mask() -> None:
    before, after = split("t5", encode("t5", "It was {{ mask }}. Yes"))
    tokens = tiny.tokenizer("t5").convert_ids_to_tokens(after)
    assert "".join(tokens) == ".▁Yes"
    assert before == plain("t5", "It was")


# --- (b) no special token from data --------------------------------------------------------


def specials() -> st.SearchStrategy[str]:
    names = sorted({t for a in tiny.ARCHITECTURES for t in tiny.tokenizer(a).all_special_tokens})
    return st.lists(st.one_of(st.text(max_size=8), st.sampled_from(names)), max_size=6).map("".join)


@each
@settings(deadline=None, max_examples=60)
@given(text=specials())
def test_no_special_id_comes_from_data(architecture: str, text: str) -> None:
    backbone = tiny.backbone(architecture)
    ids = backbone.text.ids([text])[0]
    special = {*backbone.tokenizer.all_special_ids, *backbone.text.special_ids}
    assert not (special - {backbone.tokenizer.unk_token_id}) & set(ids)
    assert ids == backbone.text.spans(text)[0]
    if architecture in BYTES:
        assert backbone.tokenizer.decode(ids) == text
    encoded = encode(architecture, "{{ text }} {{ mask }}", {"text": text})
    frame = [*backbone.frame.prefix, *backbone.frame.suffix, *backbone.frame.slot(0, 1)]
    found = [t for t in encoded.ids if t in special and t != backbone.tokenizer.unk_token_id]
    if encoded.ids != (backbone.tokenizer.bos_token_id,):  # an empty causal prompt
        assert sorted(found) == sorted(frame)


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "llama"])
def test_of_added_tokens_white_space_alone_comes_from_data(architecture: str) -> None:
    """As of code models, which have runs of spaces; and the tokenizer stays as it was."""
    tokenizer = copy.deepcopy(tiny.tokenizer(architecture))
    tokenizer.add_tokens([AddedToken("    ", normalized=False), AddedToken("awful")])
    tokenizer.add_tokens([AddedToken("<x>", special=True)], special_tokens=True)
    text = "so    awful <x>"
    before = tokenizer(text)["input_ids"]
    spaces, word, special = tokenizer.convert_tokens_to_ids(["    ", "awful", "<x>"])
    ids = TextEncoder(tokenizer).ids([text])[0]
    assert ids.count(spaces) == 1 and not {word, special} & set(ids)
    assert tokenizer(text)["input_ids"] == before and {spaces, word, special} <= set(before)


@each
def test_floods_of_special_strings_and_broken_text(architecture: str) -> None:
    for text in ["</s>" * 5000, "[MASK]" * 5000, "\ud83d broken \ude00", "\x00" * 3000]:
        encoded = encode(architecture, "{{ text }} It was {{ mask }}", {"text": text})
        assert len(encoded.ids) <= 64


# --- (d) truncation ------------------------------------------------------------------------

TEXT = st.one_of(
    st.text(max_size=80),
    st.sampled_from(["funny film ", "😀🎉", "\u200b", "ééé", "a" * 40, "word. "]).flatmap(
        lambda s: st.integers(0, 60).map(lambda n: s * n)
    ),
)


@each
@settings(deadline=None, max_examples=40)
@given(a=TEXT, b=TEXT, side=st.sampled_from(["left", "right"]), length=st.integers(24, 64))
def test_a_prompt_never_exceeds_its_length(
    architecture: str, a: str, b: str, side: str, length: int
) -> None:
    source = f"{{{{ a | truncate_here('{side}') }}}} and {{{{ b }}}} It was {{{{ mask }}}}"
    encoded = encode(architecture, source, {"a": a, "b": b}, max_length=length)
    assert len(encoded.ids) <= length
    before, _ = split(architecture, encoded)
    end = plain(architecture, "x It was")[-2:]
    assert before[-2:] == end or not a + b
    room = encode(architecture, source, {"a": a, "b": b}, max_length=64)
    assert bool(encoded.cut) == (len(encoded.ids) < len(room.ids) or bool(room.cut))


def words(n: int, word: str = "film") -> str:
    return " ".join([word] * n)


@each
def test_what_is_cut_and_in_which_order(architecture: str) -> None:
    source = (
        "One {{ a | truncate_here }} two {{ b }} three {{ c | keep }} four {{ b ~ '' }} {{ mask }}"
    )
    row = {"a": words(10, "funny"), "b": words(10, "film"), "c": words(5, "good")}
    text = tiny.backbone(architecture).text
    free = encode(architecture, source, row)
    assert free.cut == {}

    def counted(length: int) -> tuple[dict[str, int], dict[str, int]]:
        encoded = encode(architecture, source, row, max_length=length)
        assert len(encoded.ids) <= length
        ids = split(architecture, encoded)[0]
        count = {
            w: ids.count(text.word(w, space_before=True)[-1]) for w in ("funny", "film", "good")
        }
        for kept in ("two", "three", "four"):
            last = text.word(kept, space_before=True)
            assert any(ids[i : i + len(last)] == last for i in range(len(ids)))
        return count, encoded.cut

    size, one = len(free.ids), len(text.word("film", space_before=True))
    funny = len(text.word("funny", space_before=True))
    count, cut = counted(size - funny)
    assert (count, cut) == ({"funny": 9, "film": 20, "good": 5}, {"a": funny})
    count, cut = counted(size - 10 * funny - 4 * one)
    films = count["film"]  # where the first column was, two spaces can take a token more
    assert (films in (15, 16), count["funny"], count["good"]) == (True, 0, 5)
    assert cut == {"a": 10 * funny, "b": (20 - films) * one}
    _, cut = counted(size - 10 * funny - 10 * one - 3 * one)
    assert set(cut) == {"a", "b", "expression"}


@each
def test_of_two_columns_the_longer_is_cut(architecture: str) -> None:
    row = {"a": words(12), "b": words(6)}
    size = len(encode(architecture, "Say {{ a }} and {{ b }} {{ mask }}", row).ids)
    one = len(tiny.backbone(architecture).text.word("film", space_before=True))
    source = "Say {{ a }} and {{ b }} {{ mask }}"
    assert encode(architecture, source, row, max_length=size - 4 * one).cut == {"a": 4 * one}
    cut = encode(architecture, source, row, max_length=size - 10 * one).cut
    assert cut == {"a": 8 * one, "b": 2 * one}


@each
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_side_that_is_cut(architecture: str, side: str) -> None:
    row = {"text": "good " + words(60) + " wonderful"}
    source = f"It: {{{{ text | truncate_here(side='{side}') }}}} End {{{{ mask }}}}"
    ids = split(architecture, encode(architecture, source, row, max_length=30))[0]
    shown = tiny.tokenizer(architecture).decode(ids).lower()
    assert ("good" in shown) == (side == "right")
    assert ("wonderful" in shown) == (side == "left")
    end = tiny.backbone(architecture).text.word("End", space_before=True)
    assert ids[-len(end) :] == end


@each
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_text_that_was_cut_starts_like_a_text(architecture: str, side: str) -> None:
    source = f"{{{{ text | truncate_here(side='{side}') }}}} It was {{{{ mask }}}}"
    ids = split(architecture, encode(architecture, source, {"text": words(100)}, max_length=40))[0]
    assert ids == plain(architecture, tiny.tokenizer(architecture).decode(ids).strip())
    empty = encode(architecture, source, {"text": ""})
    gone = encode(architecture, source, {"text": words(100)}, max_length=len(empty.ids))
    assert gone.ids == empty.ids


@each
def test_ten_megabytes_in_a_cell(architecture: str) -> None:
    for text in ("funny film " * 900_000, "x" * 10_000_000):
        encoded = encode(architecture, "{{ text }} It was {{ mask }}", {"text": text})
        assert len(encoded.ids) <= 64
        assert encoded.cut["text"] > 1_000_000


@each
def test_what_must_be_kept_can_be_too_long(architecture: str) -> None:
    for source in ("{{ text | keep }} {{ mask }}", words(90) + " {{ text }} {{ mask }}"):
        with pytest.raises(UserError, match=r"must be kept needs \d+ tokens.*room for \d+"):
            encode(architecture, source, {"text": words(90)})


@each
def test_room_is_reserved_for_long_words(architecture: str) -> None:
    row = {"text": words(100)}
    short = encode(architecture, "{{ text }} {{ mask }}", row, reserve=7)
    assert len(short.ids) + 7 <= 64
    backbone = tiny.backbone(architecture)
    word = backbone.text.word("wonderful!", space_before=True)
    assert len(backbone.place(short, 0, word[:8]).ids) <= 64
    with pytest.raises(UserError, match="at most 64"):
        PromptEncoder(backbone.text, backbone.frame, 65)
