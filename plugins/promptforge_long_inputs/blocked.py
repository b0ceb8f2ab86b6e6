"""Blocked sparse attention: sliding windows, dilated windows, random blocks and global tokens, combined.

Longformer (Beltagy et al. 2020, section 3) and BigBird (Zaheer et al. 2020, section 2) are two sets
of defaults of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from promptforge import AttentionPattern, UserError
from promptforge.attention import Seen, Shape
from promptforge_long_inputs.rows import (
    from_left,
    full,
    in_blocks,
    masked,
    moved,
    parted,
    take,
    unseen,
)

#: Bytes of keys, values and masks that are laid out for the blocks at once; in training, where less
#: would mean to compute it twice.
_BYTES, _TRAINED = 2**24, 2**29


class Blocked(AttentionPattern):
    """Each token sees a window around it, random blocks of its row, and the global tokens.

    All that a token sees is in one softmax, and nothing is in it twice. Global tokens see all
    tokens and are seen by all. Keys are laid out block by block, so that time and memory grow with
    length x (window + random blocks + global tokens).

    With dilation d the row is read as d interleaved rows of every d-th token: a window is of tokens
    d apart, and so is a block.
    """

    window: int = Field(
        512,
        description="Tokens that a token sees on both sides together: half of them before it and half "
        "after it, itself not counted. A causal model sees the half before.",
    )
    dilation: int = Field(1, ge=1, description="Distance of the tokens in a window.")
    random_blocks: int = Field(
        0, ge=0, description="Random blocks that the tokens of a block see besides."
    )
    block: int = Field(64, ge=1, description="Tokens of a random block.")
    seed: int = Field(0, description="Seed of the random blocks.")
    backend: Literal["auto", "blocked", "flex"] = Field(
        "auto",
        description="What computes it: blocked works everywhere; flex is torch's compiled flex attention "
        "and needs a GPU. auto is blocked: flex has not been measured against it.",
    )

    @field_validator("window")
    @classmethod
    def _even(cls, window: int) -> int:
        if window < 2 or window % 2:
            near = max(2, window + 1)
            raise UserError(
                f"window={window}: half of it lies before a token and half after it, so it must be even and "
                f"at least 2. Write window={near}."
            )
        return window

    def check(self, shape: Shape, causal: bool) -> None:
        """Raise a `UserError` where the longest input has fewer blocks than `random_blocks`."""
        blocks = -(-shape.length // (self.block * self.dilation)) * self.dilation
        if self.random_blocks > blocks - 1:
            what = f" of tokens {self.dilation} apart" if self.dilation > 1 else ""
            raise UserError(
                f"attention {self.name!r}: random_blocks={self.random_blocks}, and inputs of {shape.length} "
                f"tokens have {blocks - 1} other blocks of {self.block}{what} to choose from. Set fewer "
                "random_blocks or a smaller block."
            )

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, seen: Seen, weights: nn.Module | None
    ) -> Tensor:
        """Softmax attention to the window, the random blocks and the global tokens."""
        queries, length = query.shape[2], key.shape[2]
        if self._covers(length):
            return full(query, key, value, seen)
        start = None
        if self.random_blocks:  # blocks count from a row's first token
            key, value, seen, start = from_left(key, value, seen)
        if queries < length:  # a cache holds the tokens before
            places = torch.arange(seen.offset, seen.offset + queries, device=key.device)[None]
            if start is not None:
                places = places - start[:, None]
            return masked(query, key, value, seen, self._relation(seen, len(key), length), places)
        query = moved(query, start)
        index, given = _globals(seen)
        if index.shape[1] + self._span(seen.causal) >= length:  # nothing would be saved
            out = masked(query, key, value, seen, self._relation(seen, len(key), length))
        elif self.backend == "flex":
            out = _flex(query, key, value, seen, self._relation(seen, len(key), length))
        else:
            out = self._blocks(query, key, value, seen, index, given)
            if index.shape[1]:
                out = _global_queries(out, query, key, value, seen, index, given)
        return moved(out, start, back=True)

    def _covers(self, length: int) -> bool:
        return self.dilation == 1 and self.window // 2 >= length - 1

    @property
    def _tile(self) -> int:
        """Queries of a block: a random block, else what sdpa was fastest with."""
        if self.random_blocks:
            return self.block
        return max(64, min(256, 1 << (self.window // 2).bit_length() - 1))

    def _span(self, causal: bool) -> int:
        """Keys of a block but the global ones."""
        sides = 1 if causal else 2
        return self._tile * (1 + self.random_blocks) + sides * (self.window // 2)

    def _plan(self, seen: Seen, length: int, device: torch.device) -> Tensor:
        """The random blocks of each block, [rows or 1, blocks in a row, dilation, random_blocks].

        A row's blocks depend on its own length alone, and in a causal model on nothing that follows.
        """
        step = self._tile * self.dilation
        count = -(-length // step)
        counts = [count]
        if seen.real is not None and not seen.causal:
            counts = [-(-n // step) for n in seen.real.sum(1).tolist()]
        near = -(-(self.window // 2) // self._tile)
        plans = [
            _drawn(n, self.dilation, near, self.random_blocks, self.seed, seen.causal)
            for n in counts
        ]
        filled = [F.pad(p, (0, 0, 0, 0, 0, count - len(p)), value=-1) for p in plans]
        return torch.stack(filled).to(device)

    def _relation(
        self, seen: Seen, rows: int, length: int
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Whether the token at place `one` of a row sees the one at `other`, as a function of indices."""
        step, dilation, reach = self._tile * self.dilation, self.dilation, self.window // 2
        pairs = None
        if self.random_blocks:
            device = torch.device("cpu") if seen.real is None else seen.real.device
            plan = self._plan(seen, length, device).flatten(1, 2)
            pairs = plan.new_zeros(*plan.shape[:2], plan.shape[1] + 1, dtype=torch.bool)
            pairs = pairs.scatter(
                2, plan % (plan.shape[1] + 1), True
            )  # -1 falls in the last column
            pairs = pairs.expand(rows, -1, -1)

        def block(place: Tensor) -> Tensor:
            return place // step * dilation + place % dilation

        def sees(row: Tensor, one: Tensor, other: Tensor) -> Tensor:
            apart = one - other
            shown = (apart.abs() <= reach * dilation) & (apart % dilation == 0)
            if pairs is not None:
                shown = shown | pairs.to(one.device)[row, block(one), block(other)]
            if seen.always is not None:
                shown = shown | seen.always[row, one] | seen.always[row, other]
            return shown & (apart >= 0) if seen.causal else shown

        return sees

    def _blocks(
        self, query: Tensor, key: Tensor, value: Tensor, seen: Seen, index: Tensor, given: Tensor
    ) -> Tensor:
        """What every token gets as one that is not global.

        The row is folded to `dilation` rows, and cut into blocks of `tile` queries. The keys of a
        block are the global ones, those of its own place with half a window on either side, and
        its random blocks: one sdpa over all blocks as if they were rows of a batch.
        """
        rows, heads, length, size = query.shape
        tile, dilation, half = self._tile, self.dilation, self.window // 2
        count = -(-length // (tile * dilation))
        width = count * tile * dilation - length

        def fold(x: Tensor) -> Tensor:
            """[rows, heads, length, size] to [rows x dilation, heads, tokens, size]."""
            x = F.pad(x, (0, 0, 0, width)) if width else x
            x = parted(x, 2, -1, dilation).permute(0, 3, 1, 2, 4)
            return x.flatten(0, 1)

        q, k, v = fold(query), fold(key), fold(value)
        low = unseen(query.dtype)
        usable = query.new_zeros(rows, length)
        for hide in (None if seen.real is None else ~seen.real, seen.always):
            if hide is not None:  # global keys have a place of their own
                usable = usable.masked_fill(hide, low)
        usable = F.pad(usable, (0, width), value=low)
        usable = parted(usable, 1, -1, dilation).transpose(1, 2).flatten(0, 1)

        after = 0 if seen.causal else half
        span = half + tile + after
        near_k, near_v = (
            F.pad(x, (0, 0, half, after)).unfold(2, span, tile).permute(0, 2, 1, 4, 3)
            for x in (k, v)
        )
        near_usable = F.pad(usable, (half, after), value=low).unfold(1, span, tile)
        apart = torch.arange(span, device=q.device) - torch.arange(tile, device=q.device)[:, None]
        band = q.new_zeros(tile, span).masked_fill((apart < 0) | (apart > half + after), low)

        many = index.shape[1]
        if many:
            kept = [take(x, index)[:, None].expand(-1, dilation, -1, -1, -1) for x in (key, value)]
            global_k, global_v = (x.flatten(0, 1)[:, None] for x in kept)
            place = torch.arange(count * tile * dilation, device=q.device)
            place = parted(place, 0, count, tile, dilation).permute(2, 0, 1)  # d, count, tile
            shown = given[:, None, None, None].expand(-1, dilation, count, tile, -1)
            if seen.causal:
                shown = shown & (index[:, None, None, None] <= place[None, ..., None])
            global_shown = shown.flatten(0, 1)
        if self.random_blocks:
            plan = self._plan(seen, length, q.device).expand(rows, -1, -1, -1)
            row = torch.arange(rows, device=q.device)[:, None, None, None]
            # In the order of the plan: [rows, count x dilation, heads, tile, size].
            pool_k, pool_v = (
                parted(parted(x, 0, rows, dilation), 3, count, tile)
                .permute(0, 3, 1, 2, 4, 5).flatten(1, 2)
                for x in (k, v)
            )  # fmt: skip
            pool_usable = usable.view(rows, dilation, count, tile).transpose(1, 2).flatten(1, 2)

            def picked(pool: Tensor, here: Tensor) -> Tensor:
                """Random blocks of some blocks: [rows x dilation, blocks, heads, keys, size]."""
                found = pool[row, here].permute(0, 2, 1, 4, 3, 5, 6)
                return found.flatten(0, 1).flatten(3, 4)

        def part(start: int, stop: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            here = stop - start
            keys, values = [k], [v]
            masks = [band + near_usable[:, start:stop, None]]
            if many:
                keys.append(global_k.expand(-1, here, -1, -1, -1))
                values.append(global_v.expand(-1, here, -1, -1, -1))
                masks.append(q.new_zeros(()).where(global_shown[:, start:stop], low))
            if self.random_blocks:
                # Gathered here, so that no more of them is laid out than of the windows.
                some = plan[:, start:stop]
                keys.append(picked(pool_k, some))
                values.append(picked(pool_v, some))
                shut = pool_usable[row, some].masked_fill((some < 0)[..., None], low)
                shut = shut.transpose(1, 2).flatten(0, 1).flatten(2)
                masks.append(shut[:, :, None].expand(-1, -1, tile, -1))
            k, v = (x[0] if len(x) == 1 else torch.cat(x, 3) for x in (keys, values))
            mask = masks[0] if len(masks) == 1 else torch.cat(masks, 3)
            out = F.scaled_dot_product_attention(
                q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), mask.flatten(0, 1)[:, None],
                scale=seen.scale,
            )  # fmt: skip
            return parted(out, 0, -1, here)

        cut = [parted(q, 2, count, tile).transpose(1, 2), near_k, near_v]
        one = len(q) * (self._span(seen.causal) + many) * (2 * heads * size + tile)
        most = _TRAINED if torch.is_grad_enabled() else _BYTES
        group = max(1, most // (one * q.element_size()))
        out = in_blocks(part, count, group, 1, *cut)  # rows x d, count, heads, tile, size
        out = parted(out.transpose(2, 3).flatten(1, 2), 0, rows, dilation)
        return out.permute(0, 3, 2, 1, 4).flatten(2, 3)[:, :, :length]


class Longformer(Blocked):
    """Sliding window, dilated if asked for, and global tokens (Beltagy et al. 2020).

    Global tokens use the same matrices of queries, keys and values as the others.
    """

    name: ClassVar[str] = "longformer"


class BigBird(Blocked):
    """Sliding window, random blocks and global tokens (Zaheer et al. 2020).

    The window slides by tokens, where the paper's slides by blocks; all heads and layers have the
    same random blocks. A row with fewer blocks than asked for has all it has.
    """

    name: ClassVar[str] = "bigbird"

    window: int = Field(
        192,
        description="Tokens that a token sees on both sides together: half of them before it and half "
        "after it, itself not counted. A causal model sees the half before.",
    )
    random_blocks: int = Field(
        3, ge=0, description="Random blocks that the tokens of a block see besides."
    )


@lru_cache(256)
@torch.inference_mode(False)  # what is kept may be trained with later
def _drawn(count: int, dilation: int, near: int, many: int, seed: int, causal: bool) -> Tensor:
    """Random blocks for rows of `count` blocks: [count, dilation, many] of place x dilation + residue.

    A block's own window is not drawn from, nor in a causal model what does not lie before it; where
    there are fewer than `many`, -1 fills up.
    """
    plan = torch.full((count, dilation, many), -1)
    for place in range(count):
        for residue in range(dilation):
            others = [
                other * dilation + r
                for other in range(place if causal else count)
                for r in range(dilation)
                if r != residue or abs(other - place) > near
            ]
            draw = random.Random(f"{seed} {place} {residue}")
            chosen = draw.sample(others, min(many, len(others)))
            plan[place, residue, : len(chosen)] = torch.tensor(chosen)
    return plan


def _globals(seen: Seen) -> tuple[Tensor, Tensor]:
    """Places of the global tokens, [rows, most of any row], and which of them are."""
    if seen.always is None:
        none = torch.zeros(1, 0, dtype=torch.long)
        return none, none.bool()
    always = seen.always if seen.real is None else seen.always & seen.real
    most = int(always.sum(1).max())
    index = always.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    return index, always.gather(1, index)


def _global_queries(
    out: Tensor, query: Tensor, key: Tensor, value: Tensor, seen: Seen, index: Tensor, given: Tensor
) -> Tensor:  # fmt: skip
    """`out` with what the global tokens get, which see all."""
    few = take(query, index)
    if seen.causal:
        got = masked(few, key, value, seen, lambda _, one, other: other <= one, index)
    else:
        got = full(few, key, value, seen)
    row, slot = given.nonzero(as_tuple=True)
    places = (row, index[row, slot])
    return out.transpose(1, 2).index_put(places, got.transpose(1, 2)[row, slot]).transpose(1, 2)


def _flex(
    query: Tensor, key: Tensor, value: Tensor, seen: Seen,
    sees: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """The same by torch's flex attention, compiled; on a GPU only. Not run where this was written."""
    if not query.is_cuda:
        raise UserError("backend=flex needs a GPU: torch's flex attention has no backward pass on a CPU. Leave it out.")  # fmt: skip
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def shown(row: Tensor, _: Tensor, one: Tensor, other: Tensor) -> Tensor:
        yes = sees(row, one, other)
        return (yes if seen.real is None else yes & seen.real[row, other]) | (one == other)

    rows, _, length, _ = query.shape
    mask = torch.compile(create_block_mask)(shown, rows, None, length, length, device=query.device)
    out: Tensor = torch.compile(flex_attention)(
        query, key, value, block_mask=mask, scale=seen.scale
    )
    return out
