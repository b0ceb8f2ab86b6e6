"""Rows, tasks and tuned generators that the tests of text generation share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tiny
import torch

from promptforge import Decoding, Generator, Task, Template
from promptforge.backbone.weights import Weights
from promptforge.plugins import build

WRITERS = ("gpt2", "llama", "t5", "bart")
METHODS: dict[str, dict[str, Any]] = {
    "prefix": {"length": 3},
    "prompt-tuning": {"tokens": 4},
    "adapter": {"form": "parallel"},
    "lora": {},
}
#: Sources of different lengths, so that a batch is padded.
ROWS = [
    {"table": "time", "text": "It was a great film."},
    {"table": "much little and some more of it", "text": "I love this one"},
    {"table": "the music is good", "text": "A fine evening, and not too long."},
]


def task(source: str = "{{ table }} = {{ mask }}", **more: Any) -> Task:
    return Task.inline(
        [Template(source)], labels={}, label_column="text", generates=True, name="tables", **more
    )


def tuned(architecture: str, method: str, decoding: Decoding | None = None) -> Generator:
    """A generator whose additions are far from nothing: random, as no training would leave them."""
    backbone = tiny.backbone(architecture)
    backbone.apply(None)
    plain = Generator(backbone, task(), decoding=decoding)
    component = build("method", method, **METHODS[method])
    with torch.random.fork_rng():  # not what other tests have left
        torch.manual_seed(5)
        addition = component.add(backbone, plain.sources(ROWS), {})
    addition.made_by = {"name": method, "options": component.model_dump(mode="json")}
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in addition.trained().values():
            size = 0.1 if method in ("adapter", "lora") else 0.5
            parameter.add_(torch.randn(parameter.shape, generator=draw) * size)
    weights = Weights(added=addition.folded())
    return Generator(backbone, task(), weights=weights, decoding=decoding)


def logits(generator: Generator, row: dict[str, str], written: Sequence[int]) -> torch.Tensor:
    """Logits of the next token by one plain pass over everything, soft tokens put in by hand, [V].

    Prefixes and adapters are in the model, as `Backbone.apply` left it; this tests what generation
    adds to that. That they are right is for the tests of the methods.
    """
    backbone = generator.backbone
    tokenizer, model = backbone.tokenizer, backbone.model
    backbone.current = None  # nobody puts in soft tokens but this function
    added = generator.weights.added if generator.weights else None
    soft = next(iter(added.soft().values()), None) if added is not None else None
    ids = list(tokenizer(f"{row['table']} =")["input_ids"])
    ends = ids[-1:] if backbone.family == "seq2seq" else []
    ids = ids[: len(ids) - len(ends)]
    begins = len(backbone.frame.prefix)
    if backbone.family == "causal":
        ids = [*ids, *written]
    vectors = backbone.embedding(torch.tensor([[*ids, *ends]]))
    if soft is not None:
        vectors = torch.cat([vectors[:, :begins], soft[None], vectors[:, begins:]], 1)
    if backbone.family == "causal":
        return model(inputs_embeds=vectors, use_cache=False).logits[0, -1]
    start = [model.config.decoder_start_token_id, *backbone.frame.prefix]
    decoder = torch.tensor([[*start, *written]])
    return model(inputs_embeds=vectors, decoder_input_ids=decoder, use_cache=False).logits[0, -1]


@torch.no_grad()
def greedy(generator: Generator, row: dict[str, str], n: int) -> list[int]:
    generator.backbone.apply(generator.weights)
    ids: list[int] = []
    while len(ids) < n and generator.writer.end not in ids:
        ids.append(int(logits(generator, row, ids).argmax()))
    return ids
