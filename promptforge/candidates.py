"""Which words a search may choose: whole words that the model scores in one token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from promptforge.backbone.base import Backbone
from promptforge.errors import UserError


@dataclass(frozen=True)
class Candidates:
    """Candidate words and their token ids, [words], in vocabulary order."""

    words: tuple[str, ...]
    ids: Tensor

    def keep(self, indices: Iterable[int]) -> Candidates:
        """Those at `indices`, in vocabulary order."""
        chosen = sorted(indices)
        return Candidates(
            tuple(self.words[i] for i in chosen), self.ids[torch.tensor(chosen, dtype=torch.long)]
        )


_known: WeakKeyDictionary[Backbone, dict[bool, Candidates]] = WeakKeyDictionary()


def whole_words(backbone: Backbone, *, space_before: bool) -> Candidates:
    """Every whole word of two or more letters that is one token in the mask.

    A token counts when the word it spells is encoded to that very token: this holds for
    WordPiece, byte-level BPE and Unigram alike, without knowing how each marks a word's start. Worked out once per backbone.
    """
    known = _known.setdefault(backbone, {})
    if space_before not in known:
        known[space_before] = _whole_words(backbone, space_before)
    return known[space_before]


def _whole_words(backbone: Backbone, space_before: bool) -> Candidates:
    size = min(backbone.vocabulary, len(backbone.tokenizer))
    special = backbone.text.special_ids
    words: list[str] = []
    tokens: list[int] = []
    for token, text in enumerate(backbone.tokenizer.batch_decode([[i] for i in range(size)])):
        word = text.strip()
        # Words with an apostrophe or a hyphen count; two characters must be letters.
        if (
            token not in special
            and not any(c.isspace() for c in word)
            and sum(c.isalpha() for c in word) >= 2
        ):
            words.append(word)
            tokens.append(token)
    spelled = backbone.text.ids([f" {w}" if space_before else w for w in words])
    kept = [i for i, ids in enumerate(spelled) if ids == [tokens[i]]]
    return Candidates(
        tuple(words[i] for i in kept), torch.tensor([tokens[i] for i in kept], dtype=torch.long)
    )


def most_frequent(
    candidates: Candidates,
    backbone: Backbone,
    texts: Iterable[str],
    max_words: int,
    *,
    space_before: bool,
) -> Candidates:
    """The `max_words` candidates that occur most often in `texts` (ties: vocabulary order).

    Raises:
        UserError: the texts hold none of them.
    """
    counts: Counter[int] = Counter()
    chunk: list[str] = []

    def count(some: list[str]) -> None:
        for ids in backbone.text.ids(some):
            counts.update(ids)

    for text in texts:
        # A word at the start of a text has no space; in the mask it stands as in mid-text.
        chunk.append(f" {text}" if space_before else text)
        if len(chunk) == 512:
            count(chunk)
            chunk = []
    count(chunk)
    found = [(-counts[t], i) for i, t in enumerate(candidates.ids.tolist()) if counts[t]]
    if not found:
        raise UserError(
            "The unlabelled text holds none of the words the model could write. Is it in its language?"
        )
    return candidates.keep(i for _, i in sorted(found)[:max_words])


def texts_of(rows: Iterable[dict[str, Any]], columns: Iterable[str]) -> Iterable[str]:
    """The texts of these columns, one after another."""
    columns = tuple(columns)
    return (str(row[c]) for row in rows for c in columns if row.get(c) is not None)
