"""Parts to token ids: no special token ever comes from data, and nothing is cut in silence.

`PromptEncoder` lays out a whole prompt in the frame that a model's family gives it (`Frame`),
has it cut by the template's rules, and records where the masks and soft tokens are.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from promptforge.errors import UserError
from promptforge.template import OPENING, Mask, Prompt, Sep, Soft, TemplateError, Text
from promptforge.text_encoder import TextEncoder
from promptforge.truncation import CHARACTERS_PER_TOKEN, Run, strip, truncate


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
    """Where a soft prompt is: positions [start, start + length), shared by `key`.

    Attributes:
        offset: of its vectors among those of `key`, where the beginning was read before.
    """

    start: int
    length: int
    key: str
    offset: int = 0


_Place = TypeVar("_Place", Slot, SoftSlot)


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
        decoder_soft: the soft prompts that stand in it too.
        reads: positions whose hidden state predicts the slots' tokens, in order (in the decoder
            for encoder-decoder models).
        task: its number, where prompts of several tasks are read together.
        always: for each token whether it is global under an attention pattern (`Seen.always`); empty
            where nobody asks.
    """

    ids: tuple[int, ...]
    types: tuple[int, ...]
    slots: tuple[Slot, ...]
    soft: tuple[SoftSlot, ...] = ()
    cut: dict[str, int] = field(default_factory=dict)
    decoder_ids: tuple[int, ...] = ()
    reads: tuple[int, ...] = ()
    task: int = 0
    always: tuple[bool, ...] = ()
    decoder_soft: tuple[SoftSlot, ...] = ()

    @property
    def key(self) -> tuple[object, ...]:
        """What decides the hidden states at its reads: prompts with one key are read once."""
        return (
            self.ids, self.types, self.decoder_ids, self.reads, self.soft, self.decoder_soft,
            self.task, self.always,
        )  # fmt: skip

    def after(self, n: int) -> Encoded:
        """What is left to read when the first `n` tokens have been read."""
        soft = []
        for s in self.soft:
            done = min(max(n - s.start, 0), s.length)
            if done < s.length:
                start = max(s.start - n, 0)
                soft.append(replace(s, start=start, length=s.length - done, offset=s.offset + done))
        return replace(
            self, ids=self.ids[n:], types=self.types[n:], soft=tuple(soft),
            reads=tuple(r - n for r in self.reads), always=self.always[n:],
        )  # fmt: skip

    def spliced(self, slot: int, ids: Sequence[int]) -> Encoded:
        """The prompt with `ids` in a slot; later slots and soft tokens move along."""
        old, types = self.slots[slot], self.types
        end, shift = old.start + old.length, len(ids) - old.length

        def moved(thing: _Place) -> _Place:
            return replace(thing, start=thing.start + shift) if thing.start >= end else thing

        kind = types[min(old.start, len(types) - 1)] if types else 0
        return replace(
            self,
            ids=self.ids[: old.start] + tuple(ids) + self.ids[end:],
            types=types[: old.start] + (kind,) * len(ids) + types[end:],
            slots=tuple(replace(s, length=len(ids)) if s is old else moved(s) for s in self.slots),
            soft=tuple(moved(s) for s in self.soft),
            always=self.always
            and self.always[: old.start] + (True,) * len(ids) + self.always[end:],
        )


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


_Item = Run | tuple[Mask | Soft, bool] | Sep


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
                f"--max-length {max_length}: the model takes at most {frame.max_length} tokens. "
                "Many take more with --positions copy, interpolate or rope (positions=... in Python)."
            )
        self.max_length = max_length or frame.max_length
        #: which tokens are global: "template" (all that does not come from the row), "masks", "none"
        self.globals = "none"

    def encode(
        self,
        prompts: Sequence[Prompt],
        *,
        reserve: int = 0,
        origin: str = "the template",
        masked: bool = True,
    ) -> list[Encoded]:
        """Encode `prompts` together.

        Args:
            prompts: what the template made.
            reserve: tokens to leave free for words longer than their mask.
            origin: the template's name, for messages.
            masked: False for whole texts, which have no mask.

        Raises:
            TemplateError: no mask; text after the mask of a causal model.
            UserError: the parts that must not be cut are too long.
        """
        layouts = [self._layout(prompt, origin, masked) for prompt in prompts]
        runs = [item for layout in layouts for item in layout if isinstance(item, Run)]
        limit = self.max_length * CHARACTERS_PER_TOKEN
        for run, ids in zip(runs, self.text.ids([run.string[:limit] for run in runs]), strict=True):
            run.ids = ids
        return [self._assemble(layout, reserve, origin) for layout in layouts]

    def _layout(self, prompt: Prompt, origin: str, masked: bool) -> list[_Item]:
        """Group texts into runs; move the space before a slot into the slot."""
        if masked and not prompt.masks:
            raise TemplateError(
                f"{origin} has no mask: write {{{{ mask }}}} where the label word belongs."
            )
        whole = self.frame.reads_right or not masked
        parts = prompt.parts if whole else prompt.up_to_mask(origin)
        items: list[_Item] = []
        run: Run | None = None
        for part in parts:
            if isinstance(part, Sep) and not self.frame.separator:
                part = Text("\n")
            if isinstance(part, Text):
                if run is None:
                    run = Run([])
                    items.append(run)
                run.texts.append(part)
                continue
            run = None
            items.append(part if isinstance(part, Sep) else (part, False))
        return self._spaces(items)

    def _spaces(self, items: list[_Item]) -> list[_Item]:
        out: list[_Item] = []
        space = False  # a space is owed to the next slot
        fresh = True  # at the start of a text, where some tokenizers want a space
        for i, item in enumerate(items):
            if isinstance(item, Run):
                texts = [t for t in item.texts if t.text]
                spaced = bool(texts) and texts[-1].text.endswith(" ")
                if fresh:
                    texts = strip(texts, left=True)
                before_slot = i + 1 < len(items) and isinstance(items[i + 1], tuple)
                space = before_slot and (spaced or (fresh and not texts and self.text.prefix_space))
                if before_slot or i + 1 == len(items):
                    texts = strip(texts, left=False)
                if texts:
                    lead = (
                        " "
                        if fresh and self.text.prefix_space and not texts[0].text.startswith(" ")
                        else ""
                    )
                    out.append(Run(texts, lead, fresh))
                    fresh = False
            elif isinstance(item, Sep):
                out.append(item)
                fresh, space = True, False
            else:
                out.append((item[0], space or (fresh and self.text.prefix_space)))
                # What a tuning method puts before a prompt changes nothing of its words.
                fresh = fresh and isinstance(item[0], Soft) and item[0].id == OPENING
                space = False
        return out

    def _assemble(self, items: list[_Item], reserve: int, origin: str) -> Encoded:
        frame = self.frame
        fixed = len(frame.prefix) + len(frame.suffix) + reserve
        blocks: list[list[int]] = []
        slots = 0
        shared: dict[Soft, list[int]] = {}
        for item in items:
            if isinstance(item, Run):
                blocks.append(item.ids)
                continue
            if isinstance(item, Sep):
                blocks.append(list(frame.separator))
            elif isinstance(item[0], Mask):
                blocks.append(frame.slot(slots, item[0].length))
                slots += 1
            else:
                # What shares vectors is equally long, though " It" may have other tokens than "It".
                start = self._soft_ids(item[0], item[1])
                blocks.append(shared.setdefault(item[0], start) if item[0].id else start)
            fixed += len(blocks[-1])
        runs = [item for item in items if isinstance(item, Run)]
        cut: dict[str, int] = {}
        budget = self.max_length - fixed
        limit = self.max_length * CHARACTERS_PER_TOKEN
        soft_tokens = sum(
            len(block) for item, block in zip(items, blocks, strict=True)
            if isinstance(item, tuple) and isinstance(item[0], Soft)
        )  # fmt: skip
        if budget < 0 and soft_tokens:
            raise UserError(
                f"{origin}: with {soft_tokens} soft tokens a prompt has {fixed} tokens before any word of the "
                f"text, and the model takes {self.max_length}. Use fewer soft tokens."
            )
        if any(run.size > limit for run in runs) or sum(len(run.ids) for run in runs) > budget:
            cut = truncate(self.text, runs, budget, limit, origin)
            blocks = [
                item.ids if isinstance(item, Run) else block
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
                unnamed = sum(s.key.startswith("soft ") for s in soft)
                key = item[0].id or f"soft {unnamed}"
                soft.append(SoftSlot(len(ids), len(block), key))
            ids += block
            types += [segment] * len(block)
            if isinstance(item, Sep) and frame.segments:
                segment = 1
        ids += frame.suffix
        types += [segment] * len(frame.suffix)
        always = self._always(items, blocks)
        return Encoded(tuple(ids), tuple(types), tuple(found), tuple(soft), cut, always=always)

    def _always(self, items: list[_Item], blocks: list[list[int]]) -> tuple[bool, ...]:
        """Which tokens are global. One that holds characters of both is the text's it ends in."""
        if self.globals == "none":
            return ()
        own = self.globals == "template"
        out = [own] * len(self.frame.prefix)
        for item, block in zip(items, blocks, strict=True):
            if isinstance(item, Run) and own and any(t.source for t in item.texts):
                out += item.of_template(self.text)
            else:
                mask = isinstance(item, tuple) and isinstance(item[0], Mask)
                out += [own or mask] * len(block)
        return (*out, *[own] * len(self.frame.suffix))

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
