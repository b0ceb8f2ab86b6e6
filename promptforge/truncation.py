"""Cutting a prompt to length by its template's rules; what was cut is counted, never hidden."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING

from promptforge.errors import UserError
from promptforge.progress import Reporter
from promptforge.template import COLUMN, FIRST, KEEP, LAST, Text
from promptforge.text_encoder import TextEncoder

if TYPE_CHECKING:
    from promptforge.encode import Encoded

#: No token of ordinary text is longer, so longer texts are cut to this many characters a token
#: before they are tokenized: a 10 MB cell costs no more than a long one.
CHARACTERS_PER_TOKEN = 64
#: A text of so many characters in so few tokens is no text.
_MOST_CHARACTERS = 1_000_000


@dataclass
class Run:
    """Texts that stand next to each other, encoded as one."""

    texts: list[Text]
    lead: str = ""  # characters before the first text: the space some tokenizers want
    fresh: bool = False  # at the start of a text, where no white space stands
    ids: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Characters."""
        return len(self.lead) + sum(len(text.text) for text in self.texts)

    @property
    def string(self) -> str:
        """What is encoded."""
        return self.lead + "".join(text.text for text in self.texts)

    def of_template(self, encoder: TextEncoder) -> list[bool]:
        """For each of its tokens whether the text that it ends in is the template's own."""
        ends = list(accumulate((len(text.text) for text in self.texts), initial=len(self.lead)))[1:]
        return [
            not self.texts[min(bisect_right(ends, max(a, b - 1)), len(ends) - 1)].source
            for a, b in encoder.spans(self.string)[1]
        ]


def truncate(
    encoder: TextEncoder, runs: list[Run], budget: int, limit: int, origin: str
) -> dict[str, int]:
    """Cut texts, the ones marked first, until the runs have at most `budget` tokens.

    Args:
        encoder: encodes the runs anew after each cut.
        runs: changed in place.
        budget: tokens there is room for.
        limit: characters a text may have before it is tokenized.
        origin: the template's name, for messages.

    Returns:
        Source -> tokens cut from it (estimated for what was never tokenized).

    Raises:
        UserError: the parts that must not be cut are too long.
    """
    cut: dict[str, int] = {}
    for run in runs:
        for i, text in enumerate(run.texts):
            if text.cut != KEEP and len(text.text) > limit:
                kept = _beginning(encoder, text, budget, limit)
                dropped = len(text.text) - len(kept)
                run.texts[i] = replace(text, text=kept)
                if dropped:
                    cut[text.source] = cut.get(text.source, 0) + max(1, dropped // 4)
    for _ in range(32):
        spans = {}
        for n, run in enumerate(runs):
            run.ids, spans[n] = encoder.spans(run.string)
        over = sum(len(run.ids) for run in runs) - budget
        if over <= 0:
            return cut
        pieces = _pieces(runs, spans)
        for priority in (FIRST, COLUMN, LAST):
            some = [p for p in pieces if p.text.cut == priority and p.tokens]
            if some:
                for piece, tokens in _longest_first(some, over):
                    lost = _cut(runs, piece, tokens)
                    cut[piece.text.source] = cut.get(piece.text.source, 0) + lost
                for run in runs:
                    if run.fresh:
                        run.texts = strip(run.texts, left=True)
                break
        else:
            break
    if budget < 0:
        raise UserError(
            f"{origin}: the masks, with their words, and the model's own marks are {-budget} tokens more than a "
            "prompt may have, before any text. Use fewer masks or demonstrations, or raise --max-length."
        )
    size = sum(len(run.ids) for run in runs)
    raise UserError(
        f"{origin}: what must be kept needs {size} tokens, and the model has room for {budget}. "
        "Shorten the template, show fewer demonstrations, or remove 'keep' from a column."
    )


def strip(texts: list[Text], *, left: bool) -> list[Text]:
    """Drop spaces (at the start: all white space) from one end of a run."""
    texts = list(texts)
    while texts:
        i = 0 if left else -1
        text = texts[i].text
        stripped = text.lstrip() if left else text.rstrip(" ")
        if stripped:
            if len(stripped) < len(text):  # most need no copy
                texts[i] = replace(texts[i], text=stripped)
            break
        texts.pop(i)
    return texts


def _beginning(encoder: TextEncoder, text: Text, budget: int, limit: int) -> str:
    """The end of `text` that stays, as long as it takes to have more tokens than `budget`."""
    while limit < len(text.text):
        kept = text.text[:limit] if text.side == "right" else text.text[-limit:]
        if limit >= _MOST_CHARACTERS or len(encoder.spans(kept)[0]) > budget:
            return kept
        limit *= 4
    return text.text


@dataclass
class _Piece:
    """A text in a run with the spans of its tokens, relative to the text."""

    run: int
    index: int
    text: Text
    tokens: list[tuple[int, int]]


def _pieces(runs: list[Run], spans: dict[int, list[tuple[int, int]]]) -> list[_Piece]:
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


def _cut(runs: list[Run], piece: _Piece, tokens: int) -> int:
    """Cut at least `tokens` tokens from a piece; how many it lost.

    Several tokens can be bytes of one character, which is cut whole.
    """
    spans, text = piece.tokens, piece.text
    if text.side == "right":
        kept = len(spans) - tokens
        end = min(spans[kept - 1][1], spans[kept][0]) if kept else 0
        string, lost = text.text[:end], sum(b > end for _, b in spans)
    else:
        start = max(spans[tokens - 1][1], spans[tokens][0]) if tokens < len(spans) else None
        string = "" if start is None else text.text[start:]
        lost = len(spans) if start is None else sum(a < start for a, _ in spans)
    runs[piece.run].texts[piece.index] = replace(text, text=string)
    return lost


class CutCounter:
    """Counts what was cut from all that it reads, and says so.

    Attributes:
        cut: source -> tokens that were cut.
        cut_rows: pattern -> prompts that were cut; whole texts count under "".
        read_rows: pattern -> prompts that were read.
        cut_limit: tokens that they were cut to fit.
        warn_cuts: whether each reading in which something was cut warns.
    """

    def __init__(self) -> None:
        self.cut: Counter[str] = Counter()
        self.cut_rows: Counter[str] = Counter()
        self.read_rows: Counter[str] = Counter()
        self.cut_limit = 0
        self.warn_cuts = True

    def forget_cuts(self) -> None:
        """Count from the beginning."""
        for counts in (self.cut, self.cut_rows, self.read_rows):
            counts.clear()

    def count_cuts(
        self, encoded: Collection[Encoded], pattern: str, limit: int, report: Reporter, what: str
    ) -> None:
        """Count prompts of one reading, `what`; `limit`: tokens that the model takes."""
        self.cut_limit = limit
        self.read_rows[pattern] += len(encoded)
        for e in encoded:
            if e.cut:
                self.cut.update(e.cut)
                self.cut_rows[pattern] += 1
        if self.warn_cuts and (told := told_cuts(encoded, pattern, limit)):
            report.warn(f"{what}: {told}")


def told_cuts(encoded: Collection[Encoded], pattern: str, limit: int) -> str:
    """A sentence about what was cut from prompts of one pattern ("": whole texts), or ""."""
    tokens: Counter[str] = Counter()
    for e in encoded:
        tokens.update(e.cut)
    rows = sum(bool(e.cut) for e in encoded)
    where = ", ".join(f"{source} by {n} tokens" for source, n in tokens.items())
    where = f"pattern {pattern}: {where}" if pattern else where
    return (
        f"{rows} of {len(encoded)} rows were cut to fit {limit} tokens ({where})." if rows else ""
    )
