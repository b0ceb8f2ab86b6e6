"""Plain text to token ids: no special token ever comes from data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from promptforge.errors import UserError


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
