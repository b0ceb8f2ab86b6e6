"""Sentence embeddings from any encoder. Torch is imported when the first text is embedded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from promptforge.errors import PromptForgeError, UserError
from promptforge.models import locate
from promptforge.progress import Reporter

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_ENCODER = "minilm"


class SentenceEncoder:
    """Texts to unit vectors: the mean of the last hidden states over a text's tokens.

    Sentence-BERT's pooling (Reimers and Gurevych 2019): the mean runs over all tokens, special
    ones included, and is scaled to length 1, so that dot products are cosines. Each distinct
    text goes through the model once. Text that spells a special token is read as plain text.

    Nothing is loaded before the first call of `encode`.

    Args:
        name: a packaged model (`promptforge models list`), a folder or a Hugging Face id. Of an
            encoder-decoder model the encoder is taken; a language-model head is left out.
        device: as torch names it.
        max_length: most tokens of a text, longer ones lose their end; by default the model's
            own maximum.
        batch_tokens: tokens in a batch; texts of like length go together.
        remember: vectors that are kept; the oldest are dropped first.
        report: where progress goes.
    """

    def __init__(
        self,
        name: str = DEFAULT_ENCODER,
        *,
        device: str = "cpu",
        max_length: int | None = None,
        batch_tokens: int = 4096,
        remember: int = 65_536,
        report: Reporter | None = None,
    ) -> None:
        self.name = name
        self.device = device
        self.max_length = max_length
        self.batch_tokens = batch_tokens
        self.remember = remember
        self.report = report or Reporter()
        self._known: dict[str, NDArray[np.float32]] = {}
        self._loaded: _Loaded | None = None

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of `texts`, [texts, d], each of length 1.

        Raises:
            UserError: no texts, or no such model.
            PromptForgeError: the model cannot be fetched or loaded.
        """
        if not texts:
            raise UserError("There are no texts to embed.")
        found = {text: self._known[text] for text in texts if text in self._known}
        new = [text for text in dict.fromkeys(texts) if text not in found]
        if new:
            found.update(zip(new, self._embed(new), strict=True))
        self._known.update(found)
        while len(self._known) > self.remember:
            del self._known[next(iter(self._known))]
        return np.stack([found[text] for text in texts])

    def _embed(self, texts: list[str]) -> NDArray[np.float32]:
        if self._loaded is None:
            self._loaded = _Loaded(self.name, self.device, self.max_length, self.report)
        ids = self._loaded.ids(texts)
        batches = list(_batches([len(i) for i in ids], self.batch_tokens))
        # One batch, such as a single row, is over before a meter could say anything.
        report = self.report if len(batches) > 1 else Reporter()
        vectors = []
        with report.meter("Embedding", len(texts), "texts") as meter:
            for batch in batches:
                vectors.append(self._loaded.vectors([ids[i] for i in batch]).cpu().numpy())
                meter.advance(len(batch))
        order = [i for batch in batches for i in batch]
        return np.concatenate(vectors)[np.argsort(order)]

    def __getstate__(self) -> dict[str, Any]:
        # Another process loads the weights for itself.
        return {**self.__dict__, "_loaded": None}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class _Loaded:
    """The model and its tokenizer."""

    def __init__(self, name: str, device: str, max_length: int | None, report: Reporter) -> None:
        from promptforge.backbone.probe import most_tokens, probe_frame
        from promptforge.text_encoder import TextEncoder

        self.model, tokenizer = _load(name, device, report)
        self.text = TextEncoder(tokenizer)
        self.prefix, _, self.suffix = probe_frame(tokenizer)
        self.pad: int = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        limit = most_tokens(self.model, tokenizer)
        self.room = min(max_length or limit, limit) - len(self.prefix) - len(self.suffix)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text in the model's frame, cut to the most tokens it takes."""
        spaced = [f" {t}" if self.text.prefix_space else t for t in texts]
        bare = self.text.ids(spaced)
        framed = [[*self.prefix, *ids[: self.room], *self.suffix] for ids in bare]
        # A model without special tokens cannot read an empty text.
        return [ids or [self.pad] for ids in framed]

    def vectors(self, ids: Sequence[list[int]]) -> Tensor:
        """Mean of the last hidden states over each row's tokens, of length 1, [rows, d]."""
        import torch

        longest = max(map(len, ids))
        padded = torch.tensor([[*row, *[self.pad] * (longest - len(row))] for row in ids])
        lengths = torch.tensor([[len(row)] for row in ids])
        mask = (torch.arange(longest) < lengths).long().to(self.model.device)
        with torch.inference_mode():
            output = self.model(input_ids=padded.to(self.model.device), attention_mask=mask)
            total = (output.last_hidden_state.float() * mask[:, :, None]).sum(1)
            # The length of a sum and of a mean differ by a factor that scaling to 1 removes.
            return torch.nn.functional.normalize(total, dim=-1)


def _load(name: str, device: str, report: Reporter) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    from promptforge.backbone.load import quiet_loading

    path = locate(name, report)
    try:
        # A pooler that the files lack is drawn at random; no run may depend on it.
        with quiet_loading(), torch.random.fork_rng(devices=[]):
            tokenizer = AutoTokenizer.from_pretrained(path)
            model, info = AutoModel.from_pretrained(
                path, dtype=torch.float32, output_loading_info=True
            )
        model = model.get_encoder() if model.config.is_encoder_decoder else model
        model = model.eval().to(device)
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PromptForgeError(
            f"The sentence encoder {name!r} cannot be loaded: {first} Give a packaged model "
            f"({DEFAULT_ENCODER!r}), a folder or a Hugging Face id."
        ) from error
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if missing:
        raise UserError(
            f"The sentence encoder {name!r} lacks {len(missing)} weights, such as {missing[0]!r}."
        )
    return model, tokenizer


def _batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices by falling length, in batches of at most `tokens` when padded."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        size = max(1, tokens // lengths[order[start]])
        yield order[start : start + size]
        start += size
