"""Parts to token ids: no special token ever comes from data, and nothing is cut in silence.

`TextEncoder` turns plain text into ids. `PromptEncoder` lays out a whole prompt in the frame
that a model's family gives it (`Frame`), truncates by the template's rules, and records where
the masks and soft tokens are.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from promptforge.errors import UserError
from promptforge.template import (
    COLUMN,
    FIRST,
    KEEP,
    LAST,
    Mask,
    Prompt,
    Sep,
    Soft,
    TemplateError,
    Text,
)

#: No token of ordinary text is longer, so longer texts are cut to this many characters a token
#: before they are tokenized: a 10 MB cell costs no more than a long one.
_CHARACTERS_PER_TOKEN = 64


class TextEncoder:
    """Plain text to ids, with a tokenizer that knows no special tokens.

    Every part is encoded as what it is, a piece from the middle of a text: the space that some
    tokenizers put before each text is added at the start of a prompt and nowhere else.

    Args:
        tokenizer: a fast `transformers` tokenizer.

    Raises:
        UserError: the tokenizer is not a fast one.
    """

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers import Tokenizer

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(
                f"{type(tokenizer).__name__} is not a fast tokenizer. Convert the model's tokenizer to "
                "tokenizer.json (transformers does this where the package 'tokenizers' supports it)."
            )
        state = json.loads(backend.to_str())
        self.special_ids = frozenset(tokenizer.all_special_ids) | {
            token["id"] for token in state["added_tokens"] if token["special"]
        }
        self.unknown_id: int | None = tokenizer.unk_token_id
        self._forbidden = self.special_ids - {self.unknown_id}
        state["added_tokens"] = [
            t for t in state["added_tokens"] if not t["special"] and not t["content"].strip()
        ]
        state["truncation"] = state["padding"] = state["post_processor"] = None
        self.prefix_space = _without_prefix_space(state)
        self._backend = Tokenizer.from_str(json.dumps(state))

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        out = [
            encoding.ids
            for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        ]
        for i, ids in enumerate(out):
            if not self._forbidden.isdisjoint(ids):
                out[i] = self.spans(texts[i])[0]
        return out

    def spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of one text, and the characters [start, end) each came from."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        ids, spans = list(encoding.ids), list(encoding.offsets)
        for token, (start, end) in zip(ids, spans, strict=True):
            if token in self._forbidden and end - start > 1:
                # Encoded in two pieces, the characters cannot form the special token again.
                left_ids, left = self.spans(text[: start + 1])
                right_ids, right = self.spans(text[start + 1 :])
                moved = [(a + start + 1, b + start + 1) for a, b in right]
                return left_ids + right_ids, left + moved
        kept = [(t, s) for t, s in zip(ids, spans, strict=True) if t not in self._forbidden]
        return [t for t, _ in kept], [s for _, s in kept]

    def word(self, word: str, *, space_before: bool) -> list[int]:
        """Token ids of a label word as it stands in a mask."""
        return self.ids([f" {word}" if space_before else word])[0]


def _without_prefix_space(state: dict[str, Any]) -> bool:
    """Switch off the space that the tokenizer puts before a text; True if there was one."""
    found = False

    def visit(node: Any) -> Any:
        nonlocal found
        if isinstance(node, list):
            return [visited for item in node if (visited := visit(item)) is not None]
        if not isinstance(node, dict):
            return node
        if node.get("type") == "Prepend":
            found = True
            return None
        if node.get("type") == "Metaspace":
            found |= node.get("prepend_scheme", "always") != "never"
            return {**node, "prepend_scheme": "never"}
        if node.get("type") == "ByteLevel" and node.get("add_prefix_space"):
            found = True
            return {**node, "add_prefix_space": False}
        return {key: visit(value) for key, value in node.items()}

    for part in ("normalizer", "pre_tokenizer"):
        state[part] = visit(state[part])
    return found


@dataclass(frozen=True)
class Slot:
    """Where a mask is.

    Attributes:
        start: position of its first token in `Encoded.ids` (where the word would begin).
        length: how many tokens of `Encoded.ids` it takes (0 for a causal model).
        space_before: whether its word takes a leading space.
    """

    start: int
    length: int
    space_before: bool


@dataclass(frozen=True)
class SoftSlot:
    """Where a soft prompt is: positions [start, start + length), shared by `key`."""

    start: int
    length: int
    key: str


@dataclass(frozen=True)
class Encoded:
    """A prompt as a model takes it.

    Attributes:
        ids: token ids; soft tokens hold the ids they are initialised from.
        types: segment of each token.
        slots: the masks, in order.
        soft: the soft prompts, in order.
        cut: source -> tokens cut from it to fit.
        decoder_ids: what the decoder reads, for encoder-decoder models.
        reads: positions whose hidden state predicts the slots' tokens, in order (in the decoder
            for encoder-decoder models); every slot has its `reads_per_slot`.
    """

    ids: tuple[int, ...]
    types: tuple[int, ...]
    slots: tuple[Slot, ...]
    soft: tuple[SoftSlot, ...] = ()
    cut: dict[str, int] = field(default_factory=dict)
    decoder_ids: tuple[int, ...] = ()
    reads: tuple[int, ...] = ()


@dataclass(frozen=True)
class Frame:
    """What a model puts around and between texts.

    Attributes:
        prefix, suffix: special tokens at the ends.
        separator: special tokens between two segments; empty: a line break is used.
        slot: (index, length) -> the ids that stand for a mask.
        reads_right: False for a causal model, which cannot see what follows the mask.
        segments: whether the model tells two segments apart by token type.
        max_length: most tokens the model takes.
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    separator: tuple[int, ...]
    slot: Callable[[int, int], list[int]]
    reads_right: bool
    segments: bool
    max_length: int
    vocabulary: int


@dataclass
class _Run:
    """Texts that stand next to each other, encoded as one."""

    texts: list[Text]
    lead: str = ""  # characters before the first text: the space some tokenizers want
    ids: list[int] = field(default_factory=list)

    @property
    def string(self) -> str:
        return self.lead + "".join(text.text for text in self.texts)


_Item = _Run | tuple[Mask | Soft, bool] | Sep


class PromptEncoder:
    """Lays prompts out as token ids.

    Args:
        text: the plain-text encoder of the model's tokenizer.
        frame: the model's frame.
        max_length: most tokens a prompt may have, at most the frame's.
    """

    def __init__(self, text: TextEncoder, frame: Frame, max_length: int | None = None) -> None:
        self.text = text
        self.frame = frame
        if max_length is not None and max_length > frame.max_length:
            raise UserError(
                f"--max-length {max_length}: the model takes at most {frame.max_length} tokens."
            )
        self.max_length = max_length or frame.max_length

    def encode(
        self, prompts: Sequence[Prompt], *, reserve: int = 0, origin: str = "the template"
    ) -> list[Encoded]:
        """Encode `prompts` together.

        Args:
            prompts: what the template made.
            reserve: tokens to leave free for words longer than their mask.
            origin: the template's name, for messages.

        Raises:
            TemplateError: no mask; text after the mask of a causal model.
            UserError: the parts that must not be cut are too long.
        """
        layouts = [self._layout(prompt, origin) for prompt in prompts]
        runs = [item for layout in layouts for item in layout if isinstance(item, _Run)]
        limit = self.max_length * _CHARACTERS_PER_TOKEN
        for run, ids in zip(runs, self.text.ids([run.string[:limit] for run in runs]), strict=True):
            run.ids = ids
        return [self._assemble(layout, reserve, origin) for layout in layouts]

    def _layout(self, prompt: Prompt, origin: str) -> list[_Item]:
        """Group texts into runs; move the space before a slot into the slot."""
        parts = prompt.parts
        masks = [i for i, part in enumerate(parts) if isinstance(part, Mask)]
        if not masks:
            raise TemplateError(
                f"{origin} has no mask: write {{{{ mask }}}} where the label word belongs."
            )
        if not self.frame.reads_right:
            parts = self._causal(parts, masks, origin)
        items: list[_Item] = []
        run: _Run | None = None
        for part in parts:
            if isinstance(part, Sep) and not self.frame.separator:
                part = Text("\n")
            if isinstance(part, Text):
                if run is None:
                    run = _Run([])
                    items.append(run)
                run.texts.append(part)
                continue
            run = None
            items.append(part if isinstance(part, Sep) else (part, False))
        return self._spaces(items)

    def _causal(self, parts: tuple[Any, ...], masks: list[int], origin: str) -> tuple[Any, ...]:
        if len(masks) > 1:
            raise TemplateError(
                f"{origin} has {len(masks)} masks; a causal model reads one, at the end."
            )
        after = [
            p
            for p in parts[masks[0] + 1 :]
            if not (isinstance(p, Text) and (p.tail or not p.text.strip()))
        ]
        if after:
            text = "".join(p.text for p in after if isinstance(p, Text)).strip()
            raise TemplateError(
                f"{origin}: the mask must come last, because a causal model reads only what stands before it. "
                f"After the mask stands {text[:40]!r}: move it before the mask, or write "
                f"{{{{ tail({text[:20]!r}) }}}} to leave it out for causal models."
            )
        return parts[: masks[0] + 1]

    def _spaces(self, items: list[_Item]) -> list[_Item]:
        out: list[_Item] = []
        space = False  # a space is owed to the next slot
        fresh = True  # at the start of a text, where some tokenizers want a space
        for i, item in enumerate(items):
            if isinstance(item, _Run):
                texts = [t for t in item.texts if t.text]
                string = "".join(t.text for t in texts)
                if fresh:
                    texts = _strip(texts, left=True)
                before_slot = i + 1 < len(items) and isinstance(items[i + 1], tuple)
                space = before_slot and (
                    string.endswith(" ") or (fresh and not texts and self.text.prefix_space)
                )
                if before_slot or i + 1 == len(items):
                    texts = _strip(texts, left=False)
                if texts:
                    lead = (
                        " "
                        if fresh and self.text.prefix_space and not texts[0].text.startswith(" ")
                        else ""
                    )
                    out.append(_Run(texts, lead))
                    fresh = False
            elif isinstance(item, Sep):
                out.append(item)
                fresh, space = True, False
            else:
                out.append((item[0], space or (fresh and self.text.prefix_space)))
                fresh = space = False
        return out

    def _assemble(self, items: list[_Item], reserve: int, origin: str) -> Encoded:
        frame = self.frame
        fixed = len(frame.prefix) + len(frame.suffix) + reserve
        blocks: list[list[int]] = []
        slots = 0
        for item in items:
            if isinstance(item, _Run):
                blocks.append(item.ids)
                continue
            if isinstance(item, Sep):
                blocks.append(list(frame.separator))
            elif isinstance(item[0], Mask):
                blocks.append(frame.slot(slots, item[0].length))
                slots += 1
            else:
                blocks.append(self._soft_ids(item[0], item[1]))
            fixed += len(blocks[-1])
        runs = [item for item in items if isinstance(item, _Run)]
        cut: dict[str, int] = {}
        budget = self.max_length - fixed
        long_text = any(len(run.string) > self.max_length * _CHARACTERS_PER_TOKEN for run in runs)
        if long_text or sum(len(run.ids) for run in runs) > budget:
            cut = self._truncate(runs, budget, origin)
            blocks = [
                item.ids if isinstance(item, _Run) else block
                for item, block in zip(items, blocks, strict=True)
            ]
        ids: list[int] = list(frame.prefix)
        types: list[int] = [0] * len(ids)
        found: list[Slot] = []
        soft: list[SoftSlot] = []
        segment = 0
        for item, block in zip(items, blocks, strict=True):
            if isinstance(item, tuple) and isinstance(item[0], Mask):
                found.append(Slot(len(ids), len(block), item[1]))
            elif isinstance(item, tuple) and isinstance(item[0], Soft):
                key = item[0].id or f"soft-{len(soft)}"
                soft.append(SoftSlot(len(ids), len(block), key))
            ids += block
            types += [segment] * len(block)
            if isinstance(item, Sep) and frame.segments:
                segment = 1
        ids += frame.suffix
        types += [segment] * len(frame.suffix)
        return Encoded(tuple(ids), tuple(types), tuple(found), tuple(soft), cut)

    def _soft_ids(self, soft: Soft, space: bool) -> list[int]:
        if soft.text is not None:
            return self.text.word(soft.text.strip(), space_before=space)
        # Untrained soft tokens start from words drawn by their id: the same in every run.
        import random

        draw = random.Random(zlib.crc32((soft.id or "soft").encode()))
        ids: list[int] = []
        while len(ids) < (soft.n or 0):
            token = draw.randrange(self.frame.vocabulary)
            if token not in self.text.special_ids:
                ids.append(token)
        return ids

    def _truncate(self, runs: list[_Run], budget: int, origin: str) -> dict[str, int]:
        """Cut texts, the ones marked first, until the runs have at most `budget` tokens."""
        limit = self.max_length * _CHARACTERS_PER_TOKEN
        cut: dict[str, int] = {}
        for run in runs:
            for i, text in enumerate(run.texts):
                if text.cut != KEEP and len(text.text) > limit:
                    kept = text.text[:limit] if text.side == "right" else text.text[-limit:]
                    run.texts[i] = replace(text, text=kept)
                    cut[text.source] = cut.get(text.source, 0) + (len(text.text) - limit) // 4
        for _ in range(32):
            spans = {}
            for n, run in enumerate(runs):
                run.ids, spans[n] = self.text.spans(run.string)
            over = sum(len(run.ids) for run in runs) - budget
            if over <= 0:
                return cut
            pieces = _pieces(runs, spans)
            for priority in (FIRST, COLUMN, LAST):
                some = [p for p in pieces if p.text.cut == priority and p.tokens]
                if some:
                    for piece, tokens in _longest_first(some, over):
                        _cut(runs, piece, tokens)
                        cut[piece.text.source] = cut.get(piece.text.source, 0) + tokens
                    break
            else:
                break
        size = sum(len(run.ids) for run in runs)
        raise UserError(
            f"{origin}: what must be kept needs {size} tokens, and the model has room for {budget}. "
            "Shorten the template, show fewer demonstrations, or remove 'keep' from a column."
        )


@dataclass
class _Piece:
    """A text in a run with the spans of its tokens, relative to the text."""

    run: int
    index: int
    text: Text
    tokens: list[tuple[int, int]]


def _pieces(runs: list[_Run], spans: dict[int, list[tuple[int, int]]]) -> list[_Piece]:
    out = []
    for n, run in enumerate(runs):
        start = len(run.lead)
        for i, text in enumerate(run.texts):
            end = start + len(text.text)
            tokens = [
                (max(a - start, 0), b - start) for a, b in spans[n] if start <= max(a, b - 1) < end
            ]
            out.append(_Piece(n, i, text, tokens))
            start = end
    return out


def _longest_first(pieces: list[_Piece], over: int) -> list[tuple[_Piece, int]]:
    """How many tokens to cut from each: the longest loses until it is no longer than the next."""
    lengths = [len(p.tokens) for p in pieces]
    goal = max(sum(lengths) - over, 0)
    low, high = 0, max(lengths)
    while low < high:  # the largest common limit under which they fit
        middle = (low + high + 1) // 2
        if sum(min(n, middle) for n in lengths) <= goal:
            low = middle
        else:
            high = middle - 1
    spare = goal - sum(min(n, low) for n in lengths)
    out = []
    for piece, n in zip(pieces, lengths, strict=True):
        keep = min(n, low)
        if keep < n and spare:
            keep, spare = keep + 1, spare - 1
        if keep < n:
            out.append((piece, n - keep))
    return out


def _cut(runs: list[_Run], piece: _Piece, tokens: int) -> None:
    kept = len(piece.tokens) - tokens
    string = piece.text.text
    if not kept:
        string = ""
    elif piece.text.side == "right":
        string = string[: piece.tokens[kept - 1][1]]
    else:
        string = string[piece.tokens[tokens][0] :]
    runs[piece.run].texts[piece.index] = replace(piece.text, text=string)


def _strip(texts: list[Text], *, left: bool) -> list[Text]:
    """Drop spaces (at the start: all white space) from one end of a run."""
    texts = list(texts)
    while texts:
        i = 0 if left else -1
        text = texts[i].text
        stripped = text.lstrip() if left else text.rstrip(" ")
        if stripped:
            texts[i] = replace(texts[i], text=stripped)
            break
        texts.pop(i)
    return texts
