"""Exits: a classifier behind each layer but the last, in the model's own manner.

The last layer's exit is the plain model itself. Behind the others stand, for prompts, a transform
of the mask's state, then the model's own head and verbalizer; for a classification head, a head of
their own.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promptforge.backbone.layers import Calls
from promptforge.errors import UserError
from promptforge.readout import Readout

if TYPE_CHECKING:
    from promptforge.backbone.base import Backbone
    from promptforge.encode import Encoded
    from promptforge.model import PromptModel
    from promptforge.tuning.members import HeadModel
    from promptforge.tuning.texts import Head, LinearHead
    from promptforge.verbalizer import Verbalizer

Score = Callable[[Tensor], Tensor]


class Exits(nn.Module):
    """One module for each layer but the last.

    Args:
        each: from what is seen of a layer's states to what the model's own end takes in place of
            the last layer's (`PromptEnd`), or to class scores (`HeadEnd`).
    """

    def __init__(self, each: Sequence[nn.Module]) -> None:
        super().__init__()
        self.each = nn.ModuleList(each)


class Transform(nn.Module):
    """`h + W h + b` with W and b zero at first: an exit starts as what the model's head makes of the
    layer as it is.

    The state is normalised already: by the layer itself, or by the body's final norm. W and b are in
    single precision beside a model in half precision too, and the state keeps the model's.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        nn.init.zeros_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def forward(self, states: Tensor) -> Tensor:
        """[..., width] to the same."""
        changed: Tensor = self.dense(states.to(self.dense.weight.dtype))
        return (states + changed).to(states.dtype)

    def before(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """The product with `weight` [m, width] behind this one, both as one matrix and bias."""
        own = self.dense.weight.double()
        whole = own + torch.eye(len(own), device=own.device, dtype=own.dtype)
        shift = weight.double() @ self.dense.bias.double()
        made = shift if bias is None else shift + bias
        return (weight.double() @ whole).to(weight), made.to(weight)


class End(ABC):
    """What a classifier does behind the last layer, and how it is done behind another."""

    backbone: Backbone

    def ready(self, encoded: Encoded) -> None:  # noqa: B027 - most know all they need
        """Learn from a prompt what only a prompt can say; before it nothing but `make` may be called.

        Raises:
            UserError: the model cannot have exits.
        """

    @abstractmethod
    def make(self) -> Exits:
        """Exits that have not been trained."""

    @abstractmethod
    def seen(self, states: Tensor, places: Tensor, rows: int) -> Tensor:
        """What is looked at of a layer's states: the masks' [rows, reads, d], or a mean [rows, d].

        Args:
            states: at the reads, [reads of all rows, d].
            places: the row of each of them.
            rows: how many there are.
        """

    @abstractmethod
    def scores(self, seen: Tensor, exit_: nn.Module | None = None) -> Tensor:
        """Class scores in log space, [rows, labels], of an exit; None: of the last layer."""

    @abstractmethod
    def loss(
        self, seen: Tensor, shares: Tensor, temperature: Tensor, exit_: nn.Module | None = None
    ) -> Tensor:
        """The loss of each row, [rows], as the plain model has it."""

    def quick(self, exit_: nn.Module) -> Score:
        """`scores` of an exit made ready: from what is seen to [rows, labels]."""
        return lambda seen: self.scores(seen, exit_)

    def joint(self, exits: Exits, seen: Tensor, shares: Tensor, temperature: Tensor) -> Tensor:
        """`sum_i i L_i / sum_i i` over all layers, [rows] (Zhou et al. 2020, section 3.2).

        Args:
            seen: of every layer, [layers, rows, ...].
        """
        modules = [*exits.each, None]
        total = torch.zeros_like(shares[:, 0])
        for number, (module, one) in enumerate(zip(modules, seen, strict=True), start=1):
            total = total + number * self.loss(one, shares, temperature, module)
        return total / (len(modules) * (len(modules) + 1) / 2)


class PromptEnd(End):
    """Verbalizer and language-model head at the masks of one pattern.

    Args:
        backbone: the model.
        verbalizer: bound to its words.
        sample: any prompt of the pattern, for where its masks are.

    Raises:
        UserError: the verbalizer needs more of the model than one pass.
    """

    def __init__(self, backbone: Backbone, verbalizer: Verbalizer, sample: Encoded) -> None:
        self.backbone = backbone
        self._bind(verbalizer, sample)

    def _bind(self, verbalizer: Verbalizer, sample: Encoded) -> None:
        if not verbalizer.one_pass:
            raise UserError(
                "Exits read each layer once, and words of several tokens (or texts that are written) take "
                f"further passes with verbalizer {verbalizer.name!r}: give each label words of one token."
            )
        self.verbalizer, self.sample = verbalizer, sample

    def make(self) -> Exits:
        width, device = self.backbone.width, self.backbone.device
        return Exits([Transform(width) for _ in range(self.backbone.layers.count - 1)]).to(device)

    def seen(self, states: Tensor, places: Tensor, rows: int) -> Tensor:
        return states.view(rows, -1, states.shape[-1])

    def scores(self, seen: Tensor, exit_: nn.Module | None = None) -> Tensor:
        return self.verbalizer.class_scores(self._readout(seen, exit_))

    def loss(
        self, seen: Tensor, shares: Tensor, temperature: Tensor, exit_: nn.Module | None = None
    ) -> Tensor:
        return self.verbalizer.loss(self._readout(seen, exit_), shares, temperature)

    def _readout(self, seen: Tensor, exit_: nn.Module | None) -> Readout:
        states = seen if exit_ is None else exit_(seen)
        return Readout(self.backbone, [self.sample] * len(seen), states)

    @torch.inference_mode()
    def quick(self, exit_: nn.Module) -> Score:
        """As a few products where the class scores are linear in what the output matrix is given.

        So they are with one word a label, and with the mean over words. Whether they are is tried
        out, and where they are not the verbalizer works as ever.
        """
        found = self._straight()
        if found is None:
            return super().quick(exit_)
        chain, vectors, bias, at = found
        assert isinstance(exit_, Transform)
        if not chain:
            vectors, bias = exit_.before(vectors, bias)
            return lambda seen: F.linear(seen[:, at], vectors, bias)
        begin: Score = exit_
        if type(chain[0]) is nn.Linear:
            weight, shift = exit_.before(chain[0].weight, chain[0].bias)
            chain, begin = chain[1:], lambda x: F.linear(x, weight, shift)

        def score(seen: Tensor) -> Tensor:
            x = begin(seen[:, at])
            for module in chain:
                x = module(x)
            return F.linear(x, vectors, bias)

        return score

    _found: tuple[list[nn.Module], Tensor, Tensor, int] | None
    _tried = False

    def _straight(self) -> tuple[list[nn.Module], Tensor, Tensor, int] | None:
        """Modules before the output matrix, label vectors [labels, d], their bias, which read."""
        if not self._tried:
            self._found, self._tried = self._try_straight(), True
        return self._found

    def _try_straight(self) -> tuple[list[nn.Module], Tensor, Tensor, int] | None:
        if self.verbalizer.tokens_read() is None:
            return None
        backbone = self.backbone
        head = backbone.model.get_output_embeddings()
        width = head.weight.shape[1]
        states = torch.randn(
            8, len(self.sample.reads), backbone.width, device=backbone.device,
            dtype=head.weight.dtype, generator=torch.Generator(backbone.device).manual_seed(0),
        )  # fmt: skip
        given: list[Tensor] = []
        at = self._readout(states, None).at(self.verbalizer.slot)
        noted = head.register_forward_pre_hook(lambda _, args: given.append(args[0]))
        try:
            modules = [m for m in backbone.model.modules() if m is not backbone.model]
            with Calls(modules) as calls:
                backbone.logits(start := at.clone(), torch.arange(2, device=at.device))
        finally:
            noted.remove()
        chain = calls.path(start[:, None], given[0]) if given else None
        if chain is None:
            return None

        def injected(z: Tensor) -> Tensor:
            """Class scores where the output matrix is given `z`, [m, d]."""
            handle = head.register_forward_pre_hook(lambda _, args: (z[:, None],))
            try:
                return self.scores(states[:1].expand(len(z), -1, -1)).float()
            finally:
                handle.remove()

        eye = torch.eye(width, device=states.device, dtype=states.dtype)
        bias = injected(eye[:1] * 0)[0]
        vectors = (injected(eye) - bias).T.contiguous()
        read = next(i for i in range(states.shape[1]) if torch.equal(states[:, i], at))
        x = at
        for module in chain:
            x = module(x)
        made, true = F.linear(x.float(), vectors, bias), self.scores(states).float()
        off = (made - made[:, :1] - true + true[:, :1]).abs().max()
        fits = bool(off <= 1e-5 * (1 + true.abs().max()))
        return (chain, vectors.to(x), bias.to(x), read) if fits else None


class ModelEnd(PromptEnd):
    """The same of a prompt model of one pattern, which shows its masks in the first prompt that is read.

    Before that nobody knows a row that its template takes.
    """

    def __init__(self, model: PromptModel) -> None:
        self.backbone, self._model, self._bound = model.backbone, model, False
        (self._pattern,) = model.task.patterns

    def ready(self, encoded: Encoded) -> None:
        if not self._bound:
            self._bind(self._model.verbalizer(self._pattern, encoded), encoded)
            self._bound = True


class HeadEnd(End):
    """A classification head on a mean over tokens.

    Args:
        backbone: the model.
        head: behind the last layer; those of the others start as it is.
    """

    def __init__(self, backbone: Backbone, head: Head | LinearHead) -> None:
        self.backbone, self.head = backbone, head

    @classmethod
    def of(cls, model: HeadModel) -> HeadEnd:
        """The end of a model with a head; its weights are in the backbone afterwards."""
        model.backbone.apply(model.weights)
        return cls(model.backbone, model.head)

    def make(self) -> Exits:
        copies = [copy.deepcopy(self.head) for _ in range(self.backbone.layers.count - 1)]
        return Exits([one.requires_grad_() for one in copies])

    def seen(self, states: Tensor, places: Tensor, rows: int) -> Tensor:
        return mean_of_rows(states, places, rows)

    def scores(self, seen: Tensor, exit_: nn.Module | None = None) -> Tensor:
        made: Tensor = (exit_ or self.head)(seen)
        return made

    def loss(
        self, seen: Tensor, shares: Tensor, temperature: Tensor, exit_: nn.Module | None = None
    ) -> Tensor:
        scores = self.scores(seen, exit_).float() / temperature[:, None]
        return -(shares * torch.log_softmax(scores, -1)).sum(-1) * temperature.square()


def mean_of_rows(states: Tensor, places: Tensor, rows: int) -> Tensor:
    """The mean of the states of each row, [rows, d], in single precision at least; as `Texts.pooled`."""
    # Sums in half precision lose digits, and the heads behind it are in single precision.
    states = states.to(torch.promote_types(states.dtype, torch.float32))
    total = states.new_zeros(rows, states.shape[-1]).index_add(0, places, states)
    return total / torch.bincount(places, minlength=rows)[:, None]


def end_of(model: Any) -> End:
    """The end of a `PromptModel` of one pattern, or of a `HeadModel`; `ready` comes before it is used.

    Raises:
        UserError: another kind of classifier, or several patterns.
    """
    from promptforge.model import PromptModel
    from promptforge.tuning.members import HeadModel

    if isinstance(model, PromptModel):
        if len(model.task.patterns) > 1:
            raise UserError(
                "Exits are for a model of one pattern, and this one averages several: name one with "
                "--pattern."
            )
        return ModelEnd(model)
    if isinstance(model, HeadModel):
        return HeadEnd.of(model)
    raise UserError(
        "Exits are for one tuned model, and this strategy makes a group of them: use a strategy that "
        "ends in one (prompt, finetune, pet, ...)."
    )
