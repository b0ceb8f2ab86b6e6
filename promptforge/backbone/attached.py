"""Additions put into a model: hooks at its matrices and embeddings, and one attention function.

Several additions may be attached at once, one a task; `Batch.tasks` says which row is whose. All
rows go through one forward pass, and each meets its own task's tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from promptforge.backbone import rows as mixed
from promptforge.backbone.addition import Addition, Delta, Folded
from promptforge.backbone.sites import own_eager, set_attention
from promptforge.errors import UserError

if TYPE_CHECKING:
    from promptforge.backbone.base import Backbone
    from promptforge.backbone.batch import Batch, SoftTokens

#: Attention that looks for a prefix, over sdpa and over each model's own plain code.
SDPA, EAGER = "promptforge_prefix", "promptforge_prefix_eager"
_MARK = "promptforge_prefixes"


class Attached:
    """Additions while they are in a model.

    Args:
        backbone: the model.
        additions: one for each task, in the order of the numbers in `Batch.tasks`.

    Raises:
        UserError: a matrix or a site that the model does not have.
    """

    def __init__(self, backbone: Backbone, additions: Sequence[Addition]) -> None:
        self.backbone, self.additions = backbone, list(additions)
        self._undo: list[Callable[[], Any]] = []
        self._seen: list[dict[str, Any]] | None = None
        self._inputs: dict[str, Tensor] = {}
        try:
            self._put_in()
        except BaseException:
            self.close()
            raise

    def _put_in(self) -> None:
        backbone = self.backbone
        installs = [a for a in self.additions if type(a).install is not Addition.install]
        if installs and len(self.additions) > 1:
            raise UserError(
                f"Method {installs[0].made_by.get('name')!r} puts modules of its own into the model: rows of "
                "other tasks cannot share a pass with it."
            )
        for addition in installs:
            if undo := addition.install(backbone):
                self._undo.append(undo)
        with torch.no_grad():
            made = self._made()
        if backbone.placed is not None and any(one["prefixes"] for one in made):
            backbone.placed.refuse_keys("What was tuned")
        for one in made:
            check_names(backbone, one["prefixes"], one["deltas"])
        if not all(isinstance(a, Folded) for a in self.additions):
            self._watch_beginnings()
        if any(one["soft"] for one in made):
            self._watch_embeddings()
        if places := {name for one in made for name in one["prefixes"]}:
            self._watch_attention(places)
        self._watch_matrices([one["deltas"] for one in made])

    def close(self) -> None:
        """Take everything out of the model again."""
        while self._undo:
            self._undo.pop()()
        self._seen = None
        self._inputs.clear()

    # --- what the additions give, computed once for a pass ---------------------------------

    def _made(self) -> list[dict[str, Any]]:
        return [
            {"soft": a.soft(), "prefixes": a.prefixes(), "deltas": a.deltas()}
            for a in self.additions
        ]

    @property
    def _batch(self) -> Batch | None:
        return self.backbone.current

    def _watch_beginnings(self) -> None:
        """Ask the additions anew in every pass, at its beginning.

        Not where they are first needed: that may be in a checkpointed layer, which is read again on
        the way back and must then find as much to do as before.
        """

        def begin(*_: Any) -> None:
            self._seen = self._made()

        self._undo.append(self.backbone.embedding.register_forward_pre_hook(begin).remove)

    def _now(self) -> list[dict[str, Any]]:
        """The tensors of each addition in this pass."""
        if self._seen is None:
            self._seen = self._made()
        return self._seen

    def _tasks(self, rows: int) -> list[int] | None:
        """The task of each row; None where there is one task."""
        if len(self.additions) == 1:
            return None
        assert self._batch is not None
        tasks = self._batch.task_list
        copies = rows // len(tasks)  # beams
        return tasks if copies == 1 else [task for task in tasks for _ in range(copies)]

    @property
    def _rows(self) -> int:
        assert self._batch is not None
        return len(self._batch.task_list)

    # --- soft tokens ----------------------------------------------------------------------

    def _watch_embeddings(self) -> None:
        handle = self.backbone.embedding.register_forward_hook(self._put_soft)
        self._undo.append(handle.remove)
        if (decoder := self.backbone.decoder_embedding) is not None:
            self._undo.append(decoder.register_forward_hook(self._put_decoder_soft).remove)

    def _put_soft(self, module: nn.Module, args: Any, out: Tensor) -> Tensor:
        batch = self._batch
        if batch is None or out.shape[:2] != batch.inputs["input_ids"].shape:
            return out
        return self._with_soft(out, batch, batch.soft)

    def _put_decoder_soft(self, module: nn.Module, args: Any, out: Tensor) -> Tensor:
        batch = self._batch
        return out if batch is None else self._with_soft(out, batch, batch.decoder_soft)

    def _with_soft(self, out: Tensor, batch: Batch, soft: Sequence[SoftTokens]) -> Tensor:
        if not soft:
            return out
        made = self._now()
        rows: list[int] = []
        columns: list[int] = []
        vectors = []
        for row, start, stop, offset, key in soft:
            own = made[batch.task_list[row]]["soft"].get(key)
            if own is None:
                continue
            rows += [row] * (stop - start)
            columns += range(start, stop)
            vectors.append(own[offset : offset + stop - start])
        if not rows:
            return out
        place = (torch.tensor(rows, device=out.device), torch.tensor(columns, device=out.device))
        return out.index_put(place, torch.cat(vectors).to(out))

    # --- prefixes -------------------------------------------------------------------------

    def _watch_attention(self, names: set[str]) -> None:
        model = self.backbone.model
        by_module: dict[str, list[str]] = {}
        for site in self.backbone.sites:
            if site.module:
                by_module.setdefault(site.module, []).append(site.name)
        for module_name, calls in by_module.items():
            if names.isdisjoint(calls):
                continue
            module = model.get_submodule(module_name)
            setattr(module, _MARK, _Prefixed(self, calls))
            self._undo.append(partial(delattr, module, _MARK))
        plain = model.config._attn_implementation == "eager"
        self._undo.append(set_attention(model, EAGER if plain else SDPA))

    def prefix(self, name: str, rows: int) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """Keys and values of a site, [rows, heads, length, size], and which count, [rows, length]."""
        made = self._now()
        tasks = self._tasks(rows)
        if tasks is not None:
            return mixed.prefixes([one["prefixes"].get(name) for one in made], tasks)
        own = made[0]["prefixes"].get(name)
        return own and (
            own[0][None].expand(rows, -1, -1, -1),
            own[1][None].expand(rows, -1, -1, -1),
            None,
        )

    # --- matrices -------------------------------------------------------------------------

    def _watch_matrices(self, made: list[Any]) -> None:
        model = self.backbone.model
        at: dict[str, set[str]] = {}
        users: dict[str, set[str]] = {}
        for deltas in made:
            for name, delta in deltas.items():
                at.setdefault(name, set()).add(delta.at)
                if delta.source:
                    users.setdefault(delta.source, set()).add(name)

        def remember(name: str) -> Callable[..., None]:
            def hook(_: Any, args: Any) -> None:
                self._inputs[name] = args[0]

            return hook

        def forget(over: list[str]) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                for source in over:
                    self._inputs.pop(source, None)

            return hook

        # Checkpointing breaks off inside a module when it computes again, before `forget`.
        alone = {n for n, names in users.items() if names == {n} and at[n] == {"output"}}

        def change_output(name: str) -> Callable[..., Tensor]:
            def hook(module: Any, args: Any, out: Tensor) -> Tensor:
                if name in alone:
                    self._inputs[name] = args[0]
                try:
                    return self._changed(name, out, module.training, "output")
                finally:
                    if name in alone:
                        self._inputs.pop(name, None)

            return hook

        def change_input(name: str) -> Callable[..., Any]:
            return lambda module, args: (
                self._changed(name, args[0], module.training, "input"),
                *args[1:],
            )

        # Inputs are noted as they come, before anything changes them.
        for name in users.keys() - alone:
            handle = model.get_submodule(name).register_forward_pre_hook(remember(name))
            self._undo.append(handle.remove)
        for name, places in at.items():
            module = model.get_submodule(name)
            if "input" in places:
                self._undo.append(module.register_forward_pre_hook(change_input(name)).remove)
            if "output" in places:
                self._undo.append(module.register_forward_hook(change_output(name)).remove)
            # An input that stays holds the pass's graph, and what checkpointing computes again.
            over = [s for s, names in users.items() if names == {name} and s not in alone]
            if over:
                self._undo.append(module.register_forward_hook(forget(over)).remove)

    def _changed(self, name: str, h: Tensor, training: bool, at: str) -> Tensor:
        made = [one["deltas"].get(name) for one in self._now()]
        made = [d if d is not None and d.at == at else None for d in made]
        if len(self.additions) == 1:
            own = made[0]
            return h if own is None else own.apply(h, self._source(own, h), training)
        flat = h.ndim == 2
        rows = self._rows if flat else len(h)
        if flat:  # some models put all tokens of a batch in a row
            h = h.view(rows, -1, h.shape[-1])
        tasks = self._tasks(rows)
        assert tasks is not None

        def source(delta: Delta) -> Tensor:
            x = self._source(delta, h)
            return x.view(rows, -1, x.shape[-1])

        h = mixed.changed(made, tasks, h, source, training)
        return h.flatten(0, 1) if flat else h

    def _source(self, delta: Delta, h: Tensor) -> Tensor:
        return self._inputs[delta.source] if delta.source else h


def check_names(backbone: Backbone, prefixes: Iterable[str], deltas: Iterable[str]) -> None:
    """Raise a `UserError` where a name is none of the model's sites, or of its matrices."""
    sites = {site.name for site in backbone.sites} if prefixes else set()
    strange = [name for name in prefixes if name not in sites]
    strange += [name for name in deltas if name not in backbone.matrices]
    if strange:
        raise UserError(
            f"{backbone.name} has no part called {strange[0]!r}: this was tuned on another model."
        )


class _Prefixed:
    """The prefixes of one module's calls, in order; a shared module is called several times."""

    def __init__(self, attached: Attached, sites: list[str]) -> None:
        self.attached, self.sites = attached, sites
        self._batch: Any = None
        self._calls = 0

    def __call__(self, rows: int) -> tuple[Tensor, Tensor, Tensor | None] | None:
        if len(self.sites) == 1:
            return self.attached.prefix(self.sites[0], rows)
        batch = self.attached.backbone.current
        if batch is not self._batch:
            self._batch, self._calls = batch, 0
        site = self.sites[self._calls % len(self.sites)]
        self._calls += 1
        return self.attached.prefix(site, rows)


def _attend(base: Callable[..., Any] | None, floating: bool) -> Callable[..., Any]:
    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
        position_bias: Tensor | None = None, is_causal: bool | None = None, **more: Any,
    ) -> Any:  # fmt: skip
        prefixed = getattr(module, _MARK, None)
        own = prefixed(len(query)) if prefixed is not None else None
        if own is not None:
            keys, values, counts = own
            length, is_causal = keys.shape[2], False
            key = torch.cat([keys.to(key), key], 2)
            value = torch.cat([values.to(value), value], 2)
            attention_mask = _extended(attention_mask, query, key, length, counts, floating)
            if position_bias is not None:
                position_bias = F.pad(position_bias, (length, 0))
        if position_bias is not None:
            more["position_bias"] = position_bias
        function = base or own_eager(module)
        return function(module, query, key, value, attention_mask, is_causal=is_causal, **more)

    return attend


def _extended(
    mask: Tensor | None, query: Tensor, key: Tensor, length: int, counts: Tensor | None, floating: bool
) -> Tensor | None:  # fmt: skip
    """The attention's mask with the prefix in front: seen by all where it counts."""
    if mask is None and counts is None:
        return None
    if mask is None:
        shape = (len(query), 1, query.shape[2], key.shape[2] - length)
        mask = query.new_zeros(shape) if floating else query.new_ones(shape, dtype=torch.bool)
    front = mask.new_ones(()) if mask.dtype == torch.bool else mask.new_zeros(())
    if counts is None:
        return F.pad(mask, (length, 0), value=front.item())
    if mask.dtype == torch.bool:
        seen = counts
    else:
        seen = torch.zeros_like(counts, dtype=mask.dtype).masked_fill(
            ~counts, torch.finfo(mask.dtype).min
        )
    rows = max(len(mask), len(seen))
    seen = seen[:, None, None].expand(rows, mask.shape[1], mask.shape[2], -1)
    return torch.cat([seen, mask.expand(rows, -1, -1, -1)], -1)


AttentionInterface.register(SDPA, _attend(sdpa_attention_forward, False))
AttentionMaskInterface.register(
    SDPA, lambda **told: sdpa_mask(**{**told, "allow_is_causal_skip": False})
)
AttentionInterface.register(EAGER, _attend(None, True))
AttentionMaskInterface.register(EAGER, eager_mask)
