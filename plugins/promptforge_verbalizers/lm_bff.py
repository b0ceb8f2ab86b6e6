"""LM-BFF's automatic label words (Gao, Fisch and Chen 2021, section 5.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from promptforge import UserError, VerbalizerSearch
from promptforge.search import Evidence, FoundWords
from promptforge_verbalizers.petal import label_sums

#: Numbers worked on at once: small enough for the cache and for torch not to start threads,
#: whose waiting costs more than they save.
_CHUNK = 2**15
#: The most combinations that are scored one and all.
_EXHAUSTIVE = 2_000_000


class LmBffSearch(VerbalizerSearch):
    """LM-BFF: one word per label, chosen together by zero-shot training accuracy.

    Per label the `top` words by log-probability summed over its rows; then the `assignments`
    best combinations of distinct words over all labels by zero-shot training accuracy. Ties go
    to the larger mean margin (own label's word over the best other), then to vocabulary order.

    Up to two million combinations are all scored. Beyond that a beam over the labels keeps the
    `beam` best partial combinations, and the survivors are improved by exchanging one word at a
    time until nothing improves: C = 6, k = 100 takes seconds, where k^C would be 10^12, and 77 labels
    of eight rows take about a minute.
    """

    name: ClassVar[str] = "lm-bff"

    words_per_label: int = Field(1, ge=1, le=1, description="An assignment has one word per label.")
    top: int = Field(100, ge=1, description="Words per label to combine (k).")
    assignments: int = Field(100, ge=1, description="Ranked combinations to return (n).")
    beam: int = Field(
        1000, ge=1, description="Partial combinations kept where not all can be scored."
    )

    def search(self, evidence: Evidence) -> FoundWords:
        """The best assignment, and the ranking."""
        pools = self._pools(evidence)
        used = sorted({w for pool in pools for w in pool})
        column = {w: i for i, w in enumerate(used)}
        # Over several patterns a word's log-probability is the sum over them.
        log_probs = torch.stack(list(evidence.columns(torch.tensor(used)))).double().sum(0).cpu()
        ranking = _Ranking(
            log_probs, evidence.targets, [[column[w] for w in pool] for pool in pools]
        )
        best, accuracy, _ = ranking.best(self.assignments, self.beam)
        if not len(best):
            raise UserError(
                f"There are too few candidate words for {len(evidence.labels)} labels with a word each."
            )
        named = [[evidence.words[used[c]] for c in row] for row in best.tolist()]
        labels = evidence.labels
        # An assignment's score: its training accuracy.
        alternatives = [
            ({label: [w] for label, w in zip(labels, words, strict=True)}, float(a))
            for words, a in zip(named, accuracy, strict=True)
        ]
        first = {
            label: [(word, float(accuracy[0]))]
            for label, word in zip(labels, named[0], strict=True)
        }
        return FoundWords(first, alternatives)

    def _pools(self, evidence: Evidence) -> list[list[int]]:
        """Per label, indices of its `top` words."""
        sums = label_sums(evidence)
        keep = min(self.candidates or self.top, self.top)
        order = torch.sort(sums, dim=1, descending=True, stable=True).indices[:, :keep]
        return [sorted(row) for row in order.tolist()]


class _Ranking:
    """Scores assignments of columns of `log_probs` [rows, columns] to labels.

    Columns are in vocabulary order, so comparing assignments compares their words' order.
    """

    def __init__(self, log_probs: Tensor, targets: Tensor, pools: list[list[int]]) -> None:
        # Rows sorted by label are slices, and a word's scores lie side by side.
        order = torch.sort(targets, stable=True).indices
        self.scores = log_probs[order].T.contiguous()
        self.ends = torch.bincount(targets, minlength=len(pools)).cumsum(0).tolist()
        self.pools = pools

    def best(self, n: int, beam: int) -> tuple[Tensor, Tensor, Tensor]:
        """The `n` best assignments [n, labels], their accuracies and margins."""
        size = 1
        for pool in self.pools:
            size *= len(pool)
        found = torch.zeros(1, 0, dtype=torch.long)
        if size <= _EXHAUSTIVE:
            for label in range(len(self.pools)):
                found = self._extended(found, label)[0]
            return _top(found, *self._scores(found), n)
        own, other = self.scores.new_zeros(1, 0), self.scores.new_zeros(1, 0)
        for label in range(len(self.pools)):
            found, own, other = self._grow(found, own, other, label, max(n, beam))
        return self._improve(found, n)

    def _extended(self, found: Tensor, label: int) -> tuple[Tensor, Tensor]:
        """Every partial assignment with every word of the next label that it does not hold; and the
        number of the assignment that each is made from."""
        pool = torch.tensor(self.pools[label])
        parents = torch.arange(len(found)).repeat_interleave(len(pool))
        made = torch.cat([found[parents], pool.repeat(len(found))[:, None]], 1)
        fresh = (made[:, :-1] != made[:, -1:]).all(1)
        return made[fresh], parents[fresh]

    def _block(self, label: int) -> slice:
        """The rows of a label."""
        return slice(self.ends[label - 1] if label else 0, self.ends[label])

    def _scores(self, found: Tensor) -> tuple[Tensor, Tensor]:
        """Accuracy and mean margin of assignments of the first labels, over those labels' rows."""
        labels = found.shape[1]
        rows = self.ends[labels - 1]
        words = self.scores[:, :rows].contiguous()
        made = []
        for part in _parts(found, rows):
            own = torch.empty(len(part), rows, dtype=self.scores.dtype)
            other = torch.full_like(own, -torch.inf)
            for label in range(labels):
                block = self._block(label)
                scores = words.index_select(0, part[:, label])
                own[:, block] = scores[:, block]
                for rest in (slice(0, block.start), slice(block.stop, rows)):
                    torch.maximum(other[:, rest], scores[:, rest], out=other[:, rest])
            made.append(_judged(own, other, labels))
        return _joined(made)

    def _grow(
        self, found: Tensor, own: Tensor, other: Tensor, label: int, n: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The `n` best of the partial assignments [m, labels] with a word more.

        own, other: of each assignment, the scores of the own label's word and of the best other one,
        [m, rows of the first labels]; they come back with the next label's rows. So a word more costs
        no look at the words before.
        """
        made, parents = self._extended(found, label)
        block = self._block(label)
        # The words that they hold, on the next label's rows.
        held = own.new_full((len(found), block.stop - block.start), -torch.inf)
        for word in found.T:
            torch.maximum(held, self.scores[:, block].index_select(0, word), out=held)
        words = self.scores[:, : block.stop].contiguous()

        def added(chosen: Tensor) -> tuple[Tensor, Tensor]:
            parent, scores = parents[chosen], words.index_select(0, made[chosen, label])
            before, rest = scores[:, : block.start], scores[:, block]
            return (
                torch.cat([own.index_select(0, parent), rest], 1),
                torch.cat([torch.maximum(other.index_select(0, parent), before), held[parent]], 1),
            )

        judged = [
            _judged(*added(part), label + 1) for part in _parts(torch.arange(len(made)), block.stop)
        ]
        order = _order(made, *_joined(judged), n)
        return made[order], *added(order)

    def _exchanged(self, one: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Assignments that differ from `one` [labels] in a word, their accuracies and margins."""
        labels, rows = len(one), self.ends[-1]
        scores = self.scores.index_select(0, one)
        own = torch.cat([scores[label, self._block(label)] for label in range(labels)])
        for label in range(labels):  # its own word is no other of a label's rows
            scores[label, self._block(label)] = -torch.inf
        best, second = torch.topk(scores, 2, dim=0)[0]
        made, judged = [], []
        for label, pool in enumerate(self.pools):
            block, words = self._block(label), torch.tensor(pool)
            words = words[(words[:, None] != torch.cat([one[:label], one[label + 1 :]])).all(1)]
            changed = one.repeat(len(words), 1)
            changed[:, label] = words
            made.append(changed)
            # The best of the others without this label's word, which is the second where it was the best.
            rest = torch.where(scores[label] == best, second, best)
            for part in _parts(words, rows):
                new = self.scores.index_select(0, part)
                mine, other = own.repeat(len(part), 1), torch.maximum(new, rest)
                mine[:, block], other[:, block] = new[:, block], best[block]
                judged.append(_judged(mine, other, labels))
        return torch.cat(made), *_joined(judged)

    def _improve(self, found: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Exchange one word at a time in the best assignments while the list changes."""
        best, accuracy, margin = _top(found, *self._scores(found), n)
        for _ in range(10):
            near = [(best, accuracy, margin), *map(self._exchanged, best[: max(1, n // 4)])]
            every, accuracy, margin = (torch.cat(parts) for parts in zip(*near, strict=True))
            once, where = torch.unique(every, dim=0, return_inverse=True)
            first = torch.empty(len(once), dtype=torch.long)
            first[where] = torch.arange(len(every))
            new, accuracy, margin = _top(once, accuracy[first], margin[first], n)
            if torch.equal(new, best):
                break
            best = new
        return best, accuracy, margin


def _parts(items: Tensor, rows: int) -> Sequence[Tensor]:
    return torch.split(items, max(1, _CHUNK // max(1, rows)))


def _judged(own: Tensor, other: Tensor, labels: int) -> tuple[Tensor, Tensor]:
    """Accuracy and mean margin from scores of the own and the best other word, [assignments, rows].

    A row whose best word is not alone is counted as a miss. A single label's margin is its word's score.
    """
    if labels == 1:
        return own.new_ones(len(own)), own.mean(1)
    return (own > other).double().mean(1), (own - other).mean(1)


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Accuracies and margins of all parts.

    Margins are rounded to 1e-9, so that equal ones tie in whatever order they are summed.
    """
    if not parts:
        return torch.empty(0), torch.empty(0)
    hits, margins = (torch.cat(some) for some in zip(*parts, strict=True))
    return hits, margins.mul(1e9).round()


def _order(found: Tensor, accuracy: Tensor, margin: Tensor, n: int) -> Tensor:
    """Numbers of the `n` best: by accuracy, then margin, then vocabulary order."""
    order = torch.arange(len(found))
    if len(found) > 4 * n:
        # Sorting by three keys is only needed among those that can be in the first n.
        order = (accuracy >= torch.topk(accuracy, n).values[-1]).nonzero()[:, 0]
    for column in reversed(range(found.shape[1])):
        order = order[torch.sort(found[order, column], stable=True).indices]
    order = order[torch.sort(margin[order], descending=True, stable=True).indices]
    return order[torch.sort(accuracy[order], descending=True, stable=True).indices][:n]


def _top(found: Tensor, accuracy: Tensor, margin: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    order = _order(found, accuracy, margin, n)
    return found[order], accuracy[order], margin[order]
