"""LM-BFF's automatic label words (Gao, Fisch and Chen 2021, section 5.1)."""

from __future__ import annotations

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
    time until nothing improves: C = 6, k = 100 takes seconds, where k^C would be 10^12.
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
        if size <= _EXHAUSTIVE:
            found = torch.zeros(1, 0, dtype=torch.long)
            for label in range(len(self.pools)):
                found = self._extend(found, label)
            return self._top(found, n)
        found = torch.zeros(1, 0, dtype=torch.long)
        for label in range(len(self.pools)):
            found = self._top(self._extend(found, label), max(n, beam))[0]
        return self._improve(found, n)

    def _extend(self, found: Tensor, label: int) -> Tensor:
        """Every partial assignment with every word of the next label that it does not hold."""
        pool = torch.tensor(self.pools[label])
        left = found.repeat_interleave(len(pool), 0)
        right = pool.repeat(len(found))[:, None]
        fresh = (left != right).all(1) if left.shape[1] else torch.ones(len(left), dtype=torch.bool)
        return torch.cat([left, right], 1)[fresh]

    def _scores(self, found: Tensor) -> tuple[Tensor, Tensor]:
        """Accuracy and mean margin of assignments of the first labels, over those labels' rows.

        Margins are rounded to 1e-9, so that equal ones tie in whatever order they are summed.
        """
        labels = found.shape[1]
        rows = self.ends[labels - 1]
        words = self.scores[:, :rows].contiguous()
        hits, margins = [], []
        for part in torch.split(found, max(1, _CHUNK // max(1, rows))):
            own = torch.empty(len(part), rows, dtype=self.scores.dtype)
            other = torch.full_like(own, 0.0 if labels == 1 else -torch.inf)
            start = 0
            for label, end in enumerate(self.ends[:labels]):
                scores = words.index_select(0, part[:, label])
                own[:, start:end] = scores[:, start:end]
                for rest in (slice(0, start), slice(end, rows)):
                    torch.maximum(other[:, rest], scores[:, rest], out=other[:, rest])
                start = end
            # A row whose best word is not alone is counted as a miss.
            hits.append((own > other).double().mean(1) if labels > 1 else own.new_ones(len(part)))
            margins.append((own - other).mean(1))
        return torch.cat(hits), torch.cat(margins).mul(1e9).round()

    def _top(self, found: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
        accuracy, margin = self._scores(found)
        if len(found) > 4 * n:
            # Sorting by three keys is only needed among those that can be in the first n.
            least = torch.topk(accuracy, n).values[-1]
            kept = (accuracy >= least).nonzero()[:, 0]
            found, accuracy, margin = found[kept], accuracy[kept], margin[kept]
        order = torch.arange(len(found))
        for column in reversed(range(found.shape[1])):
            order = order[torch.sort(found[order, column], stable=True).indices]
        order = order[torch.sort(margin[order], descending=True, stable=True).indices]
        order = order[torch.sort(accuracy[order], descending=True, stable=True).indices][:n]
        return found[order], accuracy[order], margin[order]

    def _improve(self, found: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Exchange one word at a time in the best assignments while the list changes."""
        best, accuracy, margin = self._top(found, n)
        for _ in range(10):
            neighbours = [best]
            for label, pool in enumerate(self.pools):
                words = torch.tensor(pool)
                changed = best[: max(1, n // 4)].repeat_interleave(len(words), 0).clone()
                changed[:, label] = words.repeat(len(changed) // len(words))
                distinct = torch.sort(changed, 1).values.diff(dim=1).ne(0).all(1)
                neighbours.append(changed[distinct])
            new, accuracy, margin = self._top(torch.unique(torch.cat(neighbours), dim=0), n)
            if torch.equal(new, best):
                break
            best = new
        return best, accuracy, margin
