"""What tuning changes in a model, kept apart from the model: small, and put in and out in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from promptforge.backbone.addition import Addition


@dataclass
class Weights:
    """Changed values of a model's parameters.

    Attributes:
        tensors: parameter name -> its value.
        rows: parameter name -> (row numbers [n], their values [n, d]): a table of word
            embeddings of which only some rows changed.
        added: what a method added to the model.
        each: what was added for each of several tasks whose rows are read together, by the numbers
            in `Encoded.task`; in place of `added`.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    added: Addition | None = None
    each: Sequence[Addition] = ()

    def flat(self) -> dict[str, Tensor]:
        """The changed values for a file; rows are two entries, `NAME:rows` and `NAME:values`."""
        out = dict(self.tensors)
        for name, (rows, values) in self.rows.items():
            out[f"{name}:rows"], out[f"{name}:values"] = rows, values
        return out

    @classmethod
    def of_flat(cls, flat: dict[str, Tensor]) -> Weights:
        """The reverse of `flat`."""
        made = cls()
        for name, value in flat.items():
            base, _, part = name.rpartition(":")
            if part == "rows":
                made.rows[base] = (value, flat[f"{base}:values"])
            elif part != "values":
                made.tensors[name] = value
        return made

    def write_to(self, parameters: dict[str, nn.Parameter]) -> Weights:
        """Put the values into a model's parameters; returns what undoes it.

        Raises:
            KeyError: the model has no parameter of a name; nothing is written then.
        """
        undo = self.undo(parameters)
        with torch.no_grad():
            for name, value in self.tensors.items():
                parameters[name].copy_(value)
            for name, (rows, values) in self.rows.items():
                table = parameters[name]
                table[rows.to(table.device)] = values.to(table)
        return undo

    def undo(self, parameters: dict[str, nn.Parameter]) -> Weights:
        """What takes these values out again, before they are written; errors as `write_to`."""
        undo = Weights({name: parameters[name].detach().clone() for name in self.tensors})
        for name, (rows, _) in self.rows.items():
            rows = rows.to(parameters[name].device)
            undo.rows[name] = (rows, parameters[name].detach()[rows].clone())
        return undo


class CompactVocabulary:
    """The word embeddings (and the output matrix) cut down to the tokens that a training uses.

    A training on a few hundred rows meets a few hundred tokens; the gradients of all other rows
    are zero, and an optimizer without weight decay on them would never move them. Leaving them
    out gives the same result without the work, which for small models is most of the work.

    Args:
        model: the transformers model.
        ids: every token id that the training feeds or scores.
    """

    def __init__(self, model: Any, ids: Collection[int]) -> None:
        self.model = model
        table = model.get_input_embeddings().weight
        padding = [m.padding_idx for m in model.modules() if isinstance(m, nn.Embedding)]
        used = {*ids, 0, *(i for i in padding if i is not None and i < len(table))}
        self.ids = torch.tensor(sorted(used), device=table.device)
        self.index = torch.zeros(len(table), dtype=torch.long, device=table.device)
        self.index[self.ids] = torch.arange(len(self.ids), device=table.device)
        names = {id(p): name for name, p in model.named_parameters()}
        head = model.get_output_embeddings()
        tables = {id(table): table}
        if isinstance(head, nn.Linear) and head.weight.shape[0] == len(table):
            tables[id(head.weight)] = head.weight
        self._full = {names[key]: value for key, value in tables.items()}
        #: parameter name -> the rows in use, [ids, d]
        self.parameters = {
            name: nn.Parameter(value.detach()[self.ids].clone())
            for name, value in self._full.items()
        }
        self._before = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._modules = [
            (module, names[id(module.weight)])
            for module in model.modules()
            if isinstance(module, nn.Embedding | nn.Linear) and id(module.weight) in tables
        ]
        self._padding = [getattr(module, "padding_idx", None) for module, _ in self._modules]

    @contextmanager
    def used(self) -> Iterator[None]:
        """While this lasts the model's tables are the cut ones; ids are mapped on the way in."""
        handles = []
        for module, name in self._modules:
            module.weight = self.parameters[name]
            if isinstance(module, nn.Embedding):
                if module.padding_idx is not None:
                    module.padding_idx = int(self.index[module.padding_idx])
                handles.append(
                    module.register_forward_pre_hook(lambda _, args: (self.index[args[0]],))
                )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for (module, name), padding in zip(self._modules, self._padding, strict=True):
                module.weight = self._full[name]
                if isinstance(module, nn.Embedding):
                    module.padding_idx = padding

    def commit(self) -> None:
        """Write the rows into the model's own tables, for reading with the whole vocabulary."""
        with torch.no_grad():
            for name, rows in self.parameters.items():
                self._full[name][self.ids] = rows

    def rows(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The rows as `Weights` have them."""
        return {name: (self.ids.clone(), p.detach().clone()) for name, p in self.parameters.items()}

    def reset(self) -> None:
        """Put the model's own tables back as they were."""
        with torch.no_grad():
            for name, rows in self._before.items():
                self._full[name][self.ids] = rows


class Tunable:
    """A model while it is tuned: which parameters are, and what they were before.

    Args:
        model: the transformers model, with its own weights in it.
        parameters: the ones to train, by name.
        compact: the tokens in use, where the rest of the vocabulary can be left out.
    """

    def __init__(
        self, model: Any, parameters: dict[str, nn.Parameter], compact: CompactVocabulary | None
    ) -> None:
        self.model, self.compact = model, compact
        cut = set(compact.parameters) & set(parameters) if compact else set()
        self._whole = {name: p for name, p in parameters.items() if name not in cut}
        self._cut = {name: compact.parameters[name] for name in cut} if compact else {}
        self._before = {name: p.detach().clone() for name, p in self._whole.items()}
        self._flags = {p: p.requires_grad for p in model.parameters()}
        trained = {id(p) for p in self._whole.values()}
        for p in model.parameters():
            p.requires_grad_(id(p) in trained)
        if compact:
            for name, p in compact.parameters.items():
                p.requires_grad_(name in cut)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {**self._whole, **self._cut}

    def put(self, weights: Weights) -> None:
        """Start from these values; rows of a table must be in use."""
        with torch.no_grad():
            for name, value in weights.tensors.items():
                self.parameters[name].copy_(value)
            for name, (rows, values) in weights.rows.items():
                table = self.parameters[name]
                if self.compact and name in self._cut:
                    rows = self.compact.index[rows.to(table.device)]
                table[rows.to(table.device)] = values.to(table)

    def weights(self) -> Weights:
        """The values as they are now."""
        made = Weights({name: p.detach().clone() for name, p in self._whole.items()})
        if self.compact:
            made.rows = {n: v for n, v in self.compact.rows().items() if n in self._cut}
        return made

    def close(self) -> None:
        """Put the model back as it was."""
        Weights(self._before).write_to(self._whole)
        if self.compact:
            self.compact.reset()
        for p, flag in self._flags.items():
            p.requires_grad_(flag)
            p.grad = None
