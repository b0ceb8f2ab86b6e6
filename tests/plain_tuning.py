"""A plain training loop to hold the real one against: one row at a time, all logits, all weights.

Nothing of `promptforge.tuning` but the order of the rows is used here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import tiny
import torch
from reference import long_word, some_words, with_ids
from torch import Tensor

from promptforge import Example, Settings, Task, Template
from promptforge.encode import Encoded
from promptforge.tuning.schedule import order
from promptforge.tuning.tuner import Tuner

LABELS = ("neg", "pos", "odd")
PATTERN = "{{ text }} It was {{ mask }}"
RowLoss = Callable[[int, Tensor], Tensor]


def rows(first: int, last: int) -> list[dict[str, Any]]:
    """Texts of four to nine words."""
    return [
        {"text": " ".join(t.split()[: 4 + i % 6])} for i, t in enumerate(tiny.corpus()[first:last])
    ]


def fresh(architecture: str) -> Any:
    """A backbone of its own in double precision: no rounding hides or feigns a difference."""
    made = tiny.fresh(architecture)
    made.model.double()
    return made


def tuner(backbone: Any, *, tokens: int = 1, labelled: int = 9, **more: Any) -> Tuner:
    """Three labels; the first one's word has `tokens` tokens, and the second label two words."""
    first, second, third, fourth = some_words(backbone, 4)
    words = {"neg": [first], "pos": [second, third], "odd": [fourth]}
    if tokens > 1:
        words["neg"] = [long_word(backbone, tokens)]
    train = [Example(row, LABELS[i * i % 3], i + 1) for i, row in enumerate(rows(0, labelled))]
    settings = Settings(
        steps=4, batch_size=4, precision="float32", learning_rate=1e-3, dropout=False
    )
    task = Task.inline([Template(PATTERN, name="p")], labels=words)
    return Tuner(backbone, **{"task": task, "train": train, "settings": settings, **more})


def of_every_label(tuner: Tuner) -> Tuner:
    """The tuner with rows of every label, for what a user calls."""
    tuner.train = [replace(e, label=LABELS[i % 3]) for i, e in enumerate(tuner.train)]
    return tuner


def encoded(tuner: Tuner) -> list[Encoded]:
    """The tuner's rows in its pattern."""
    model = tuner.untrained()
    return model.encode("p", [model.prompt("p", e.row) for e in tuner.train])


def logits(backbone: Any, model: Any, ids: Encoded, decoder: Sequence[int] = ()) -> Tensor:
    """`model(...)` on one prompt: logits at every position."""
    inputs = {"input_ids": torch.tensor([ids.ids])}
    if backbone.family == "seq2seq":
        inputs["decoder_input_ids"] = torch.tensor([[*ids.decoder_ids, *decoder]])
    elif "token_type_ids" in backbone.tokenizer.model_input_names:
        inputs["token_type_ids"] = torch.tensor([ids.types])
    out: Tensor = model(**inputs).logits[0]
    return out


def word_scores(
    backbone: Any, model: Any, ids: Encoded, words: Sequence[Sequence[int]]
) -> list[Tensor]:
    """log P of each word at the mask; all masks at once, or token by token."""
    if backbone.family == "masked":
        masks = [backbone.tokenizer.mask_token_id] * max(map(len, words))
        log_p = logits(backbone, model, with_ids(ids, 0, masks)).log_softmax(-1)
        start = ids.slots[0].start
        return [log_p[range(start, start + len(w)), list(w)].sum() for w in words]
    out = []
    for word in words:
        total = torch.zeros(())
        for i, token in enumerate(word):
            if backbone.family == "causal":
                last = logits(backbone, model, Encoded((*ids.ids, *word[:i]), (), ()))[-1]
            else:
                last = logits(backbone, model, ids, word[:i])[-1]
            total = total + last.log_softmax(-1)[token]
        out.append(total)
    return out


def class_scores(tuner: Tuner, model: Any, ids: Encoded) -> Tensor:
    """The mean log-probability of each label's words."""
    text = tuner.backbone.text
    words = [
        [text.word(w, space_before=True) for w in tuner.task.words_for("p")[label]]
        for label in tuner.labels
    ]
    found = iter(word_scores(tuner.backbone, model, ids, [w for ws in words for w in ws]))
    return torch.stack([torch.stack([next(found) for _ in ws]).mean() for ws in words])


def train(
    tuner: Tuner, lengths: Sequence[int], shares_of_rate: Sequence[float], row_loss: Any,
    extra: Sequence[torch.nn.Parameter] = (),
) -> tuple[Any, list[float]]:  # fmt: skip
    """As `train_batches`, with the mean of `row_loss(model, row number)` over a batch."""

    def batch_loss(model: Any, batch: Sequence[int], _: int) -> Any:
        return sum(row_loss(model, i) for i in batch) / len(batch)

    return train_batches(tuner, lengths, shares_of_rate, batch_loss, extra)


def train_batches(
    tuner: Tuner, lengths: Sequence[int], shares_of_rate: Sequence[float], batch_loss: Any,
    extra: Sequence[torch.nn.Parameter] = (),
) -> tuple[Any, list[float]]:  # fmt: skip
    """Tune a copy of the model with torch's AdamW; `batch_loss(model, row numbers, step)` is minimised.

    Args:
        shares_of_rate: the share of the learning rate at each step.
        extra: trained parameters that are not the model's.

    Returns:
        the tuned model and the loss at each step.
    """
    settings, model = tuner.settings, copy.deepcopy(tuner.backbone.model)
    tables = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    weights = [*model.parameters(), *extra]
    plain = [p for p in weights if p.ndim < 2 or id(p) in tables]
    decayed = [p for p in weights if p.ndim >= 2 and id(p) not in tables]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay},
              {"params": plain, "weight_decay": 0.0}]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=settings.rate)
    per_epoch = -(-len(lengths) // settings.rows)
    losses = []
    for step, share in enumerate(shares_of_rate):
        batch = order(lengths, settings.rows, tuner.seed, step // per_epoch)[step % per_epoch]
        optimizer.zero_grad()
        loss = batch_loss(model, batch, step)
        loss.backward()
        if settings.clip:
            torch.nn.utils.clip_grad_norm_(weights, settings.clip)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * share
        optimizer.step()
        losses.append(float(loss.detach()))
    return model, losses
