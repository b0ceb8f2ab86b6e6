"""The rules verbalizer: a label is a word at every mask (PTR, Han et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from promptforge import UserError, Verbalizer
from promptforge.backbone import Backbone
from promptforge.progress import Reporter
from promptforge.readout import Readout


class RulesVerbalizer(Verbalizer):
    """Labels as conjunctions: each mask of the template answers one question about them.

    PTR (Han et al. 2022, section 3.3): with `w_j(y)` the word of a label at mask j, and V_j all
    labels' words there,

        p(y) = product over masks j of  exp logit_j(w_j(y)) / sum over V_j of exp logit_j(w)

    so two labels that share the answer to a question share its evidence. The loss is
    `-log p(y)` (section 3.4), which is the sum of the masks' cross-entropies; the posterior
    normalises p over the labels that there are.

    The template needs one mask for each word of a rule, one token each, so it is for masked
    models, and for encoder-decoders that read several masks.
    """

    name: ClassVar[str] = "rules"

    rules: dict[str, list[str]] = Field(
        default_factory=dict,
        description="label -> one word per mask, in order; by default the label's words in the task.",
    )

    _backbone: Backbone | None = PrivateAttr(None)
    _slots: list[tuple[list[int], list[int]]] | None = PrivateAttr(None)

    def bind(
        self,
        labels: Sequence[str],
        words: Mapping[str, Sequence[str]],
        backbone: Backbone,
        *,
        space_before: bool,
        report: Reporter | None = None,
    ) -> None:
        """Take the rules in place of the words, where there are any.

        Raises:
            UserError: besides those of `Verbalizer.bind`: rules for other labels.
        """
        rules = self.rules or words
        lacking = [label for label in labels if not rules.get(label)]
        unknown = [label for label in rules if label not in labels]
        if lacking or unknown:
            what = f"lack the label {lacking[0]!r}" if lacking else f"name {unknown[0]!r}, no label"
            raise UserError(f"The rules {what}. Every label of the task needs one, word by word.")
        super().bind(labels, rules, backbone, space_before=space_before, report=report)

    def prepare(self, backbone: Backbone, *, space_before: bool, report: Reporter) -> None:
        """Check the words, which are made tokens when the first prompt shows its masks.

        Raises:
            UserError: rules of different lengths, a word that is not one token.
        """
        sizes = {label: len(rule) for label, rule in self._words.items()}
        first = self._labels[0]
        for label, size in sizes.items():
            if size != sizes[first]:
                raise UserError(
                    f"The rule of {first!r} has {sizes[first]} words and that of {label!r} {size}: "
                    "every label needs one word per mask of the template."
                )
        self._backbone, self._slots = backbone, None
        for label, rule in self._words.items():
            for word in rule:
                if not self._spellings(word):
                    self._token(word, label, space_before)  # raises

    def shown(self, label: str, words: Sequence[str], row: Mapping[str, Any]) -> list[str]:
        """The label's rule, a word for each mask."""
        return list(self.rules.get(label, words))

    def class_scores(self, readout: Readout) -> Tensor:
        """log p(y), [prompts, labels]."""
        return torch.stack(self._by_mask(readout)).sum(0)

    def loss(self, readout: Readout, shares: Tensor, temperature: Tensor) -> Tensor:
        """`-log p(y)` of each prompt, [prompts]; at a temperature each mask's softmax has it."""
        log_p = torch.stack(self._by_mask(readout, temperature[:, None])).sum(0)
        return -(shares * log_p).sum(-1) * temperature.square()

    def tokens_read(self) -> list[int]:
        """The words' tokens, with and without a space before."""
        return sorted({t for rule in self.words.values() for w in rule for t in self._spellings(w)})

    def _by_mask(self, readout: Readout, temperature: Tensor | float = 1.0) -> list[Tensor]:
        """log of each mask's factor, a list of [prompts, labels]."""
        if self._slots is None:
            self._slots = self._resolved(readout)
        factors = []
        for slot, (tokens, columns) in enumerate(self._slots):
            logits = readout.logits(torch.tensor(tokens), slot) / temperature
            factors.append(torch.log_softmax(logits, -1)[:, columns])
        return factors

    def _resolved(self, readout: Readout) -> list[tuple[list[int], list[int]]]:
        """Per mask: its own words' tokens, and which of them each label has."""
        slots = readout.encoded[0].slots
        needed = len(self.words[self.labels[0]])
        if len(slots) != needed:
            raise UserError(
                f"The rules have {needed} words per label and the template {len(slots)} mask(s). "
                "Write one {{ mask }} for each word of a rule, or give rules with as many words."
            )
        out = []
        for j, slot in enumerate(slots):
            if slot.length > 1:
                raise UserError(
                    f"Mask {j + 1} takes {slot.length} tokens; a rule's words have one. "
                    "Write one {{ mask }} per word."
                )
            tokens = [self._token(self.words[y][j], y, slot.space_before) for y in self.labels]
            own = list(dict.fromkeys(tokens))
            out.append((own, [own.index(t) for t in tokens]))
        seen: dict[tuple[int, ...], str] = {}
        for label, answers in zip(self.labels, zip(*(c for _, c in out), strict=True), strict=True):
            if (other := seen.setdefault(answers, label)) != label:
                raise UserError(
                    f"The rules of {other!r} and {label!r} are the same tokens at every mask, so the model "
                    "cannot tell them apart: give one of them another word."
                )
        return out

    def _spellings(self, word: str) -> list[int]:
        """The word with and without a space before, where that is one known token."""
        assert self._backbone is not None, "bind comes first"
        text = self._backbone.text
        ids = [text.word(word, space_before=space) for space in (True, False)]
        return [i[0] for i in ids if len(i) == 1 and i[0] != text.unknown_id]

    def _token(self, word: str, label: str, space_before: bool) -> int:
        assert self._backbone is not None, "bind comes first"
        text, name = self._backbone.text, self._backbone.name
        ids = text.word(word, space_before=space_before)
        if len(ids) != 1 or ids[0] == text.unknown_id:
            what = "unknown to" if text.unknown_id in ids or not ids else f"{len(ids)} tokens for"
            raise UserError(
                f"The word {word!r} in the rule of {label!r} is {what} the tokenizer of {name}. "
                "A rule needs words of one token: choose another, or spread it over several masks."
            )
        return ids[0]
