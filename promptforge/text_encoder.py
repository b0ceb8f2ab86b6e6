"""Plain text to token ids: no special token ever comes from data."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

from promptforge.errors import UserError

_SURROGATE = re.compile("[\ud800-\udfff]")


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
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(
                f"{type(tokenizer).__name__} is not a fast tokenizer. Convert the model's tokenizer to "
                "tokenizer.json (transformers does this where the package 'tokenizers' supports it)."
            )
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(tokenizer.all_special_ids) | {
            i for i, token in added.items() if token.special
        }
        self.unknown_id: int | None = tokenizer.unk_token_id
        self._forbidden = self.special_ids - {self.unknown_id}
        spaces = {t.content for t in added.values() if not t.special and not t.content.strip()}
        self._backend, self.prefix_space = _plain(backend, spaces)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        out = [
            encoding.ids
            for encoding in self._backend.encode_batch_fast(
                [_whole(text) for text in texts], add_special_tokens=False
            )
        ]
        for i, ids in enumerate(out):
            if not self._forbidden.isdisjoint(ids):
                out[i] = self.spans(texts[i])[0]
        return out

    def spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of one text, and the characters [start, end) each came from."""
        encoding = self._backend.encode(_whole(text), add_special_tokens=False)
        found = list(zip(encoding.ids, encoding.offsets, strict=True))
        # Encoded in two pieces, the characters cannot form the special token again.
        cuts = [a + 1 for token, (a, b) in found if token in self._forbidden and b - a > 1]
        if cuts:
            ids: list[int] = []
            spans: list[tuple[int, int]] = []
            for start, end in pairwise([0, *cuts, len(text)]):
                more, inner = self.spans(text[start:end])
                ids += more
                spans += [(a + start, b + start) for a, b in inner]
            return ids, spans
        kept = [(t, s) for t, s in found if t not in self._forbidden]
        return [t for t, _ in kept], [s for _, s in kept]

    def word(self, word: str, *, space_before: bool) -> list[int]:
        """Token ids of a label word as it stands in a mask."""
        return self.ids([f" {word}" if space_before else word])[0]


def _whole(text: str) -> str:
    """`text` with halves of surrogate pairs, which broken JSON can hold, as U+FFFD."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def _plain(backend: Any, spaces: Collection[str]) -> tuple[Any, bool]:
    """A `tokenizers.Tokenizer` with the backend's vocabulary, without added tokens but `spaces`, anything
    that is put around a text or a space before it; and whether there was such a space."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    if spaces:
        state = json.loads(backend.to_str())
        state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in spaces]
        state["truncation"] = state["padding"] = state["post_processor"] = None
        plain = Tokenizer.from_str(json.dumps(state))
    else:
        plain = Tokenizer(backend.model)  # The vocabulary is shared: there may be 250,000 words.
    # What is changed is told as JSON, beside a vocabulary of no words.
    parts = Tokenizer(WordLevel({}, ""))
    parts.normalizer, parts.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    state = json.loads(parts.to_str())
    found = _without_prefix_space(state)
    parts = Tokenizer.from_str(json.dumps(state))
    plain.normalizer, plain.pre_tokenizer = parts.normalizer, parts.pre_tokenizer
    return plain, found


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
