"""The generation verbalizer: a label is any text, also one made from the row's own columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from promptforge import Template, UserError, Verbalizer
from promptforge.backbone import Backbone
from promptforge.encode import Encoded
from promptforge.plugins import build
from promptforge.progress import Reporter
from promptforge.readout import Readout
from promptforge.scoring import Scorer
from promptforge.template import Text


class GenerationVerbalizer(Verbalizer):
    """Scores texts of any length in the mask, or has the model write and compares.

    The words of a label are texts, or Jinja snippets over the row's columns, such as
    "{{ option_a }}": each row then has label texts of its own (multiple choice, as in Sanh et
    al. 2022, section 5.2: the choice with the highest log-likelihood).

    - `method=score`: the log-probability of the text at the mask, by the family's scorer (exact
      and left to right in causal and encoder-decoder models); the mean over a label's texts.
    - `method=generate`: the model writes greedily, as many tokens as the row's longest label
      text has; a label's score is `sharpness` times the likeness of its text to as many
      characters of what was written (difflib's ratio, case ignored; the longer text of two that
      fit equally). Training is by the scores.
    """

    name: ClassVar[str] = "generation"

    method: Literal["score", "generate"] = Field(
        "score", description="Score the label texts, or write and compare."
    )
    length_normalised: bool = Field(
        False, description="Divide a text's log-probability by its number of tokens."
    )
    reserve: int = Field(
        16, ge=0, description="Tokens a prompt leaves free for label texts made from columns."
    )
    sharpness: float = Field(10.0, gt=0, description="For method=generate; see there.")

    _templates: dict[str, list[Template | str]] = PrivateAttr(default_factory=dict)

    @property
    def room(self) -> int:
        """Tokens that prompts leave free."""
        return self.reserve

    def prepare(self, backbone: Backbone, *, space_before: bool, report: Reporter) -> None:
        """Compile the snippets; label texts without any are checked as words are.

        Raises:
            UserError: a mistake in a snippet, method=generate with a masked model.
        """
        if self.method == "generate" and backbone.family == "masked":
            raise UserError(
                f"method='generate': {backbone.name} is a masked language model and does not write. "
                "Use method='score', or a causal or encoder-decoder model."
            )
        self._templates = {
            label: [self._source(label, text) for text in texts]
            for label, texts in self.words.items()
        }
        snippets = [t for ts in self._templates.values() for t in ts if isinstance(t, Template)]
        if not snippets:
            super().prepare(backbone, space_before=space_before, report=report)
            return
        for label, sources in self._templates.items():
            for text in sources:
                if isinstance(text, str):
                    ids = backbone.text.word(text, space_before=space_before)
                    self._check_known(ids, backbone, f"The text {text!r} of the label {label!r}")
        for template in snippets:
            _ = template.compiled  # raises for a mistake

    def shown(self, label: str, words: Sequence[str], row: Mapping[str, Any]) -> list[str]:
        """The label's first text, of the demonstration's row where it is made from columns."""
        return [self._text(self._source(label, text), row, None, {}) for text in words[:1]]

    @staticmethod
    def _source(label: str, text: str) -> Template | str:
        is_snippet = "{{" in text or "{%" in text
        return _snippet(label, text) if is_snippet else text

    @staticmethod
    def _check_known(ids: Sequence[int], backbone: Backbone, what: str) -> None:
        if not ids or backbone.text.unknown_id in ids:
            raise UserError(
                f"{what} has words that the tokenizer of {backbone.name} does not know. Choose another text."
            )

    @property
    def one_pass(self) -> bool:
        """Where texts of one token are scored."""
        return self.method == "score" and super().one_pass

    # --- scores ---------------------------------------------------------------------------

    def class_scores(self, readout: Readout) -> Tensor:
        """Class scores in log space, [prompts, labels]."""
        texts = self._texts(readout)
        if self.method == "score":
            return self._scored(readout, texts, training=False)
        return self._compared(readout, texts).to(readout.states.device)

    def loss(self, readout: Readout, shares: Tensor, temperature: Tensor) -> Tensor:
        """Cross-entropy of the posteriors from the log-probabilities, [prompts]."""
        scores = self._scored(readout, self._texts(readout), training=True)
        log_q = torch.log_softmax(scores / temperature[:, None], -1)
        return -(shares * log_q).sum(-1) * temperature.square()

    def _scored(self, readout: Readout, texts: list[list[list[str]]], *, training: bool) -> Tensor:
        scorer = self._scorer(readout.backbone)
        groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for i, by_label in enumerate(texts):
            groups.setdefault(self._sequences_of(readout, i, by_label), []).append(i)
        sizes = [len(ts) for ts in self._templates.values()]
        parts = []
        for sequences, members in groups.items():
            part = Readout(
                readout.backbone, [readout.encoded[i] for i in members], readout.states[members]
            )
            if training and any(len(s) > 1 for s in sequences):
                scorer.check(part.backbone)
                by_word = scorer.training_scores(part, sequences, self.slot)
            else:
                by_word = part.score(sequences, self.slot, scorer=scorer)
            split = torch.split(by_word, sizes, dim=1)
            parts.append(torch.stack([p.mean(1) for p in split], dim=1))
        order = [i for members in groups.values() for i in members]
        places = torch.tensor(order).argsort()
        return torch.cat(parts)[places.to(parts[0].device)]

    def _scorer(self, backbone: Backbone) -> Scorer:
        name = backbone.default_scorer if self.scorer == "auto" else self.scorer
        options = {"length_normalised": self.length_normalised, **self.scorer_options}
        made: Scorer = build("scorer", name, **options)
        return made

    def _compared(self, readout: Readout, texts: list[list[list[str]]]) -> Tensor:
        longest = [
            max(map(len, self._sequences_of(readout, i, by_label)))
            for i, by_label in enumerate(texts)
        ]
        written = _written(readout.backbone, readout.encoded, self.slot, longest)
        return torch.tensor(
            [
                [self.sharpness * max(likeness(out, text) for text in ts) for ts in by_label]
                for out, by_label in zip(written, texts, strict=True)
            ]
        )

    # --- texts ----------------------------------------------------------------------------

    def _texts(self, readout: Readout) -> list[list[list[str]]]:
        """prompt -> label -> texts."""
        if not any(isinstance(t, Template) for ts in self._templates.values() for t in ts):
            return [list(self.words.values())] * len(readout)
        if readout.rows is None:
            raise UserError(
                "The label texts are made from a row's columns, and no rows are known here. "
                "Calibrations and tuning need label texts without columns."
            )
        scope = {"labels": self.labels, "words": {k: tuple(v) for k, v in self.words.items()}}
        return [
            [[self._text(t, row, i, scope) for t in ts] for ts in self._templates.values()]
            for i, row in enumerate(readout.rows)
        ]

    def _text(
        self, source: Template | str, row: Mapping[str, Any], i: int | None, scope: dict[str, Any]
    ) -> str:
        if isinstance(source, str):
            return source
        parts = source.compiled.render({**row, **scope, "demos": [], "row": row})
        text = "".join(part.text for part in parts if isinstance(part, Text)).strip()
        if not text or not all(isinstance(part, Text) for part in parts):
            what = "is empty" if not text else "holds more than text"
            where = "a demonstration" if i is None else f"row {i + 1}"
            raise UserError(f"{source.origin} {what} in {where}: {source.source!r}.")
        return text

    def _sequences_of(
        self, readout: Readout, i: int, by_label: list[list[str]]
    ) -> tuple[tuple[int, ...], ...]:
        """The token ids of prompt i's label texts; a `UserError` where they do not fit."""
        backbone, space = readout.backbone, readout.space_before(self.slot)
        texts = [f" {text}" if space else text for ts in by_label for text in ts]
        sequences = tuple(map(tuple, backbone.text.ids(texts)))
        for text, ids in zip(texts, sequences, strict=True):
            self._check_known(ids, backbone, f"Row {i + 1}: the label text {text.strip()!r}")
        longest = max(sequences, key=len)
        placed = backbone.place(readout.encoded[i], self.slot, longest)
        needed, most = max(len(placed.ids), len(placed.decoder_ids)), backbone.encoder.max_length
        if needed > most:
            raise UserError(
                f"Row {i + 1} with its longest label text has {needed} tokens, and {backbone.name} takes "
                f"{most}. Leave more room for label texts: reserve={self.reserve + needed - most} or more."
            )
        return sequences


@lru_cache(256)
def _snippet(label: str, text: str) -> Template:
    return Template(text, name=f"the text of label {label}")


def likeness(written: str, text: str) -> float:
    """How well the beginning of what was written fits `text`, 0 to 1, and a trifle for length."""
    written, text = (" ".join(t.casefold().split()) for t in (written, text))
    ratio = SequenceMatcher(None, written[: len(text)], text, autojunk=False).ratio()
    return ratio + 1e-6 * len(text)


def _written(
    backbone: Backbone, encoded: Sequence[Encoded], slot: int, most: Sequence[int]
) -> list[str]:
    """What the model writes greedily in the slot, at most so many tokens in each prompt."""
    out: list[list[int]] = [[] for _ in encoded]
    active = list(range(len(encoded)))
    ends = {backbone.tokenizer.eos_token_id}
    while active:
        placed = [backbone.place(encoded[i], slot, [*out[i], None]) for i in active]
        states = backbone.states(placed)[:, -1]
        tokens = torch.cat(
            [backbone.logits(s).argmax(-1) for s in torch.split(states, 256)]
        ).tolist()
        going = []
        for i, token in zip(active, tokens, strict=True):
            if token in ends:
                continue
            out[i].append(token)
            if len(out[i]) < most[i]:
                going.append(i)
        active = going
    return [backbone.tokenizer.decode(ids, skip_special_tokens=True) for ids in out]
