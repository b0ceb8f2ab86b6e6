"""The interface of a language model to everything else: prompts in, scores at the masks out.

The body runs once per distinct prompt and gives one hidden state per place to read. The head
runs on those states alone, and on chosen rows of the vocabulary where that is enough. Both go
through the model's own `forward`, so scales, biases and soft caps of every architecture hold.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from promptforge.backbone.addition import Addition
from promptforge.backbone.attached import Attached
from promptforge.backbone.batch import Batch
from promptforge.backbone.head import LanguageHead
from promptforge.backbone.last_layer import LastLayer
from promptforge.backbone.layers import Layers, all_layers, find_layers
from promptforge.backbone.patterned import Placed
from promptforge.backbone.sites import Site, find_sites, is_matrix
from promptforge.backbone.turns import Turn
from promptforge.backbone.weights import CompactVocabulary, Weights
from promptforge.encode import Encoded, Frame, PromptEncoder
from promptforge.errors import PromptForgeError, UserError
from promptforge.plugins import manager
from promptforge.progress import Reporter
from promptforge.template import Prompt
from promptforge.text_encoder import TextEncoder

#: In place of the weights that are applied while they are switched.
_HALF = Weights()


def different(encoded: Sequence[Encoded]) -> tuple[list[Encoded], list[int]]:
    """The prompts that differ, and which of them each of `encoded` is."""
    first: dict[Any, int] = {}
    where = [first.setdefault(e.key, len(first)) for e in encoded]
    unique: list[Encoded] = []
    for e, i in zip(encoded, where, strict=True):
        if i == len(unique):
            unique.append(e)
    return unique, where


class Backbone(ABC):
    """A loaded language model.

    Args:
        model: a transformers model with a language-model head.
        tokenizer: its fast tokenizer.
        name: what the user called it.
        max_length: most tokens a prompt may have; the model's own maximum by default.
        batch_tokens: tokens in a batch; rows of like length go together.
    """

    family: ClassVar[str]
    #: the scorer for words of several tokens where the user names none
    default_scorer: ClassVar[str]

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str = "model",
        max_length: int | None = None,
        batch_tokens: int = 2048,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.batch_tokens = batch_tokens
        self.text = TextEncoder(tokenizer)
        self.frame = self._frame()
        self.encoder = PromptEncoder(self.text, self.frame, max_length)
        #: what `load_model` was called with, where it was
        self.source: dict[str, Any] = {"name": name}
        #: why no words can be read from it: an encoder without a language-model head; else ""
        self.headless = ""
        #: set while a training runs on a cut vocabulary
        self.compact: CompactVocabulary | None = None
        #: the batch that the model reads; additions ask it for soft tokens and tasks
        self.current: Batch | None = None
        self._applied: Weights | None = None
        #: held by whoever reads or tunes the model: it has room for one set of weights and one batch
        self.busy = Turn()
        self._undo = Weights()
        self._attached: Attached | None = None
        #: the pattern that takes the place of full attention, where one does
        self.placed: Placed | None = None

    # --- what a family says ---------------------------------------------------------------

    @abstractmethod
    def _frame(self) -> Frame:
        """What the model puts around texts and into masks."""

    @abstractmethod
    def finish(self, encoded: Encoded) -> Encoded:
        """Add where to read (and the decoder's ids) to a prompt as its template has it."""

    @abstractmethod
    def place(self, encoded: Encoded, slot: int, tokens: Sequence[int | None]) -> Encoded:
        """Put `tokens` into a mask (None: still a mask) and read where each is predicted.

        The slot takes exactly `len(tokens)` tokens, whatever length the template gave it.
        """

    @abstractmethod
    def collate(self, encoded: Sequence[Encoded], indices: list[int]) -> Batch:
        """Tensors for these prompts."""

    @abstractmethod
    def _hidden(self, batch: Batch) -> Tensor:
        """Hidden states before the head at the batch's reads, [reads, d]; keeps gradients."""

    @abstractmethod
    def summary(self, encoded: Encoded) -> Encoded:
        """Read a whole text, for a classifier without a mask: where a summary of it stands."""

    def need_head(self) -> None:
        """Raise a `UserError` where the model has no language-model head."""
        if self.headless:
            raise UserError(self.headless)

    @property
    def body(self) -> nn.Module:
        """The module whose output the head takes, the one that `model.forward` calls."""
        body: nn.Module = (
            self.model.get_decoder() if self.model.can_generate() else self.model.base_model
        )
        return body

    @property
    def stacks(self) -> list[nn.Module]:
        """The parts of the model that have layers: the body, and the encoder that it reads."""
        return [self.body]

    # --- what all share -------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @cached_property
    def vocabulary(self) -> int:
        """How many tokens the head scores."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The model's parameters by name; tied ones once."""
        return dict(self.model.named_parameters())

    @cached_property
    def norms(self) -> dict[str, nn.Module]:
        """The norms of its stacks by name; the head's own are not among them."""
        inside = {id(module) for stack in self.stacks for module in stack.modules()}
        return {
            name: module
            for name, module in self.model.named_modules()
            if id(module) in inside and "norm" in type(module).__name__.lower()
        }

    @cached_property
    def sites(self) -> list[Site]:
        """The model's sub-layers in the order of their calls."""
        return find_sites(self)

    @cached_property
    def layers(self) -> Layers:
        """The layers of the body, in the order of their calls."""
        return find_layers(self)

    @cached_property
    def _last_layer(self) -> LastLayer:
        return LastLayer(self.model, self.body)

    @cached_property
    def matrices(self) -> dict[str, nn.Module]:
        """The modules that multiply by a matrix, by name; the output matrix is not among them."""
        head = self.model.get_output_embeddings()
        return {n: m for n, m in self.model.named_modules() if is_matrix(m) and m is not head}

    @property
    def embedding(self) -> nn.Module:
        """The module that turns a prompt's ids into vectors."""
        module: nn.Module = self.model.get_input_embeddings()
        return module

    @property
    def decoder_embedding(self) -> nn.Module | None:
        """The one that does so for a decoder that reads soft tokens too."""
        return None

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states before the head at the batch's reads, [reads, d]; keeps gradients."""
        if self.placed is not None and (parts := self.placed.parts(batch)):
            order = torch.cat([where for where, _ in parts])
            return torch.cat([self.hidden(part) for _, part in parts])[order.argsort()]
        self.current = batch
        with self._last_layer.only_at_reads(batch):
            return self._hidden(batch)

    def attach(self, additions: Sequence[Addition]) -> Attached:
        """Put additions into the model, one a task; `close` takes them out again.

        Raises:
            UserError: they name parts that the model does not have.
        """
        _ = self.parameters, self.matrices  # under the model's own names, before anything joins it
        return Attached(self, additions)

    def read(self, encoded: Sequence[Encoded]) -> Tensor:
        """Hidden states at the reads of prompts in one batch, [prompts, reads, d]; keeps gradients."""
        batch = self.collate(encoded, list(range(len(encoded))))
        with self.compact.used() if self.compact else nullcontext():
            return self.hidden(batch).view(len(encoded), len(encoded[0].reads), -1)

    def limit(self, length: int) -> None:
        """Have prompts cut to `length` tokens.

        Raises:
            UserError: the model takes fewer.
        """
        if length > self.frame.max_length:
            # The rules for positions are for a model before it is tuned or adapted.
            raise UserError(
                f"--max-length {length}: {self.name} takes at most {self.frame.max_length} tokens. Positions are "
                "extended before a model is tuned or adapted: make it anew from the model that it began with, "
                "with this --max-length and --positions."
            )
        shown = self.encoder.globals
        self.encoder = PromptEncoder(self.text, self.frame, length)
        self.encoder.globals = shown

    def read_layers(self, encoded: Sequence[Encoded]) -> Tensor:
        """As `read`, after each layer: [layers, prompts, reads, d]; keeps gradients."""
        batch = self.collate(encoded, list(range(len(encoded))))
        with self.compact.used() if self.compact else nullcontext():
            states = torch.stack(all_layers(self, batch))
        return states.view(len(states), len(encoded), len(encoded[0].reads), -1)

    def apply(self, weights: Weights | None) -> None:
        """Put tuned weights into the model in place of those that are in it; None: its own.

        A switch copies only what differs, in memory: nothing is read from disk again. Where it fails,
        the model is its own.

        Raises:
            UserError: they name parts that the model does not have.
        """
        if weights is self._applied:
            return
        self._applied = _HALF  # broken off from here on, the next call takes out what is in
        if self._attached is not None:
            self._attached.close()
            self._attached = None
        self._undo.write_to(self.parameters)
        self._undo = Weights()
        if weights is None:
            self._applied = None
            return
        self._undo = weights.undo(self.parameters)
        try:
            weights.write_to(self.parameters)
            if added := weights.each or ([weights.added] if weights.added else []):
                self._attached = self.attach([one.to_device(self.device) for one in added])
        except BaseException:
            self._undo.write_to(self.parameters)
            self._undo, self._applied = Weights(), None
            raise
        self._applied = weights

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of the model's own weights, whatever file they came from."""
        self.apply(None)
        digest = hashlib.sha256()
        for name, parameter in sorted(self.parameters.items()):
            digest.update(name.encode())
            value = parameter.detach().cpu().contiguous()
            digest.update(value.view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def encode(
        self, prompts: Sequence[Prompt], *, reserve: int = 0, origin: str = "the template"
    ) -> list[Encoded]:
        """Prompts as the model takes them; see `PromptEncoder.encode` for errors."""
        return [
            self.finish(e) for e in self.encoder.encode(prompts, reserve=reserve, origin=origin)
        ]

    def batches(self, encoded: Sequence[Encoded]) -> Iterator[Batch]:
        """Batches by length within the token budget; nothing is padded to a maximum."""
        order = sorted(
            range(len(encoded)), key=lambda i: len(encoded[i].ids) + len(encoded[i].decoder_ids)
        )
        alike = self.placed is not None and self.placed.pattern.ignores_padding
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order):
                longest = encoded[order[stop]]
                tokens = len(longest.ids) + len(longest.decoder_ids)
                if tokens * (stop - start + 1) > self.batch_tokens:
                    break
                if alike and len(longest.ids) != len(encoded[order[start]].ids):
                    break
                stop += 1
            # Rows of one task stand together: what it adds is computed for all of them at once.
            indices = sorted(order[start:stop], key=lambda i: encoded[i].task)
            batch = self.collate([encoded[i] for i in indices], indices)
            if manager().listens("promptforge_batch_encoded"):
                manager().pm.hook.promptforge_batch_encoded(batch=batch)
            yield batch
            start = stop

    @torch.inference_mode()
    def states(
        self, encoded: Sequence[Encoded], report: Reporter | None = None, label: str = "Reading"
    ) -> Tensor:
        """Hidden states at the reads of each prompt, [prompts, reads, d], without gradients.

        Equal prompts go through the model once.

        Raises:
            PromptForgeError: the prompts have different numbers of reads, or memory ran out.
        """
        if len({len(e.reads) for e in encoded}) > 1:
            raise UserError(
                "The template gives some rows more masks than others; every row needs as many."
            )
        flat, _, where = self._read_all(encoded, report or Reporter(), label)
        return flat.view(-1, len(encoded[0].reads), self.width)[where]

    @torch.inference_mode()
    def read_on(self, encoded: Encoded, kept: Any = None) -> tuple[Tensor, Any]:
        """Hidden states at the reads of one prompt, [1, reads, d], and what the next may go on from.

        Args:
            kept: what this returned for an earlier prompt, of the same weights. It belongs to the call:
                use what comes back in its place. Where nothing can be kept it is None.
        """
        return self.states([encoded]), None

    @torch.inference_mode()
    def states_each(
        self, encoded: Sequence[Encoded], report: Reporter | None = None, label: str = "Reading"
    ) -> list[Tensor]:
        """As `states`, where prompts have different numbers of reads: [reads, d] of each."""
        flat, counts, where = self._read_all(encoded, report or Reporter(), label)
        parts = torch.split(flat, counts)
        return [parts[i] for i in where]

    def _read_all(
        self, encoded: Sequence[Encoded], report: Reporter, label: str
    ) -> tuple[Tensor, list[int], list[int]]:
        """States of different prompts one after the other, [reads of all, d], how many each has,
        and which of them each of `encoded` is."""
        unique, where = different(encoded)
        counts = [len(e.reads) for e in unique]
        starts = [0, *accumulate(counts)]
        out = torch.empty(starts[-1], self.width, device=self.device, dtype=self.model.dtype)
        for batch in self.reading(unique, report, label):
            places = [p for i in batch.indices for p in range(starts[i], starts[i + 1])]
            try:
                out[places] = self.hidden(batch)
            except torch.OutOfMemoryError as error:
                raise PromptForgeError(
                    f"Out of memory at {self.batch_tokens} tokens a batch: lower it."
                ) from error
        return out, counts, where

    def reading(self, encoded: list[Encoded], report: Reporter, label: str) -> Iterator[Batch]:
        """The batches of prompts, under a meter; what all share at their beginning has been read."""
        with report.meter(label, len(encoded)) as meter, self._shared_prefix(encoded) as rest:
            for batch in self.batches(rest):
                yield batch
                meter.advance(len(batch.indices))

    @contextmanager
    def _shared_prefix(self, encoded: list[Encoded]) -> Iterator[list[Encoded]]:
        """What is left of the prompts when what they share has been read (causal models)."""
        yield encoded

    @cached_property
    def width(self) -> int:
        """The size of a last hidden state; some OPT models project it."""
        text_config = self.model.config.get_text_config(decoder=True)
        names = ("word_embed_proj_dim", "hidden_size", "d_model")
        return int(next(n for n in (getattr(text_config, name, None) for name in names) if n))

    @cached_property
    def head(self) -> LanguageHead:
        """The model's language-model head."""
        return LanguageHead(self)

    def logits(self, states: Tensor, words: Tensor | None = None) -> Tensor:
        """Logits of `states` [n, d] for `words` [m] (token ids) or the whole vocabulary.

        Only the chosen rows of the output matrix are multiplied where the head allows it.
        """
        return self.head(states, words)

    def log_z(self, states: Tensor) -> Tensor:
        """log of the sum of exp(logit) over the vocabulary, [n]; a few rows at a time."""
        return self.head.log_z(states)

    def log_probs(self, states: Tensor, words: Tensor | None = None) -> Tensor:
        """Log-probabilities over the whole vocabulary, of `words` where given, [n, m]."""
        return self.head.log_probs(states, words)

    @torch.inference_mode()
    def continuations(
        self, encoded: Sequence[Encoded], slot: int, words: Sequence[Sequence[int]]
    ) -> Tensor:
        """log P of token sequences in a slot, read from left to right, [prompts, words].

        Words that differ in their last token alone are read together; what a family keeps of the
        prompts in a batch's `extra` is there for all words.
        """
        beginnings: dict[tuple[int, ...], list[int]] = {}
        for i, word in enumerate(words):
            beginnings.setdefault(tuple(word[:-1]), []).append(i)
        out = torch.empty(len(encoded), len(words), device=self.device)
        for batch in self.batches(encoded):
            for beginning, members in beginnings.items():
                placed = [self.place(encoded[i], slot, [*beginning, None]) for i in batch.indices]
                part = self.collate(placed, batch.indices)
                part.extra = batch.extra
                states = self.hidden(part).view(len(placed), len(beginning) + 1, -1)
                last = torch.tensor([words[i][-1] for i in members], device=self.device)
                scores = self.log_probs(states[:, -1], last)
                for j, token in enumerate(beginning):
                    scores = scores + self.log_probs(states[:, j], torch.tensor([token]))
                out[torch.tensor(batch.indices)[:, None], torch.tensor(members)] = scores
        return out

    def head_inputs(self, rows: Tensor) -> dict[str, Any]:
        """Inputs that let `model.forward` pass with its body replaced."""
        return {"input_ids": torch.zeros(rows.shape[:2], dtype=torch.long, device=rows.device)}

    def padded(self, rows: Sequence[Sequence[int]], value: int) -> Tensor:
        """Rows of ids as one tensor, padded on the right."""
        length = max(len(row) for row in rows)
        return torch.tensor(
            [[*row, *[value] * (length - len(row))] for row in rows], device=self.device
        )

    def attention_mask(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """1 where a row has a token."""
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        return (
            torch.arange(int(lengths.max()), device=self.device)[None] < lengths[:, None]
        ).long()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.family}, max_length={self.encoder.max_length})"
