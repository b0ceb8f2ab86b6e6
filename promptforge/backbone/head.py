"""The language-model head on hidden states alone, through the model's own `forward`.

So scales, biases and soft caps of every architecture hold, and where only some words are asked for
only their rows of the output matrix are multiplied.
"""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

if TYPE_CHECKING:
    from promptforge.backbone.base import Backbone

#: Rows of states whose whole-vocabulary logits are held at once.
_FULL_ROWS = 256


class LanguageHead:
    """What turns hidden states before the head into logits of words.

    Args:
        backbone: whose head it is.
    """

    def __init__(self, backbone: Backbone) -> None:
        backbone.need_head()
        self.backbone = backbone
        self._lock = threading.Lock()

    def __call__(self, states: Tensor, words: Tensor | None) -> Tensor:
        """Logits of `states` [n, d] for `words` [m] (token ids), or the whole vocabulary."""
        if words is not None:
            words = words.to(states.device)
        model, body = self.backbone.model, self.backbone.body
        head = model.get_output_embeddings()
        bias = getattr(model, "final_logits_bias", None)
        rows = states[:, None]
        # A slice of the output matrix is the head only where the head is that matrix.
        sliced = (
            words is not None
            and isinstance(head, nn.Linear)
            and head.out_features == model.get_input_embeddings().weight.shape[0]
        )
        with self._lock:
            try:
                body.forward = lambda *_, **__: BaseModelOutputWithPastAndCrossAttentions(
                    last_hidden_state=rows
                )
                if sliced and words is not None:
                    weight = self._rows(words)
                    part = None if head.bias is None else head.bias[words]
                    head.forward = lambda x: F.linear(x, weight, part)
                    if bias is not None:
                        model.final_logits_bias = bias[:, words]
                logits: Tensor = model(**self.backbone.head_inputs(rows)).logits[:, 0]
            finally:
                body.__dict__.pop("forward", None)
                head.__dict__.pop("forward", None)
                if bias is not None:
                    model.final_logits_bias = bias
        return logits if sliced or words is None else logits[:, words]

    def log_z(self, states: Tensor) -> Tensor:
        """log of the sum of exp(logit) over the vocabulary, [n]; a few rows at a time."""
        parts = torch.split(states, _FULL_ROWS)
        return torch.cat([torch.logsumexp(self(part, None).float(), -1) for part in parts])

    def log_probs(self, states: Tensor, words: Tensor | None) -> Tensor:
        """Log-probabilities over the whole vocabulary, of `words` where given, [n, m]."""
        out = []
        for part in torch.split(states, _FULL_ROWS):
            full = self(part, None).float()
            log_z = torch.logsumexp(full, -1, keepdim=True)
            out.append((full if words is None else full[:, words]) - log_z)
        return torch.cat(out)

    def _rows(self, words: Tensor) -> Tensor:
        """Rows of the output matrix; of the cut one while a training runs on it."""
        name, compact = self._name, self.backbone.compact
        if compact is not None and name in compact.parameters:
            return compact.parameters[name][compact.index[words]]
        weight: Tensor = self.backbone.model.get_output_embeddings().weight
        return weight[words]

    @cached_property
    def _name(self) -> str:
        """The name of the output matrix: the input embeddings' where the two are tied."""
        weight = self.backbone.model.get_output_embeddings().weight
        return next((name for name, p in self.backbone.parameters.items() if p is weight), "")
