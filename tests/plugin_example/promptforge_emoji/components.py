"""A verbalizer and a search, written with the public API only."""

from __future__ import annotations

from pydantic import Field

from promptforge import FoundWords, Verbalizer, VerbalizerSearch


class Loudest(Verbalizer):
    """A label is as probable as its most probable word."""

    name = "loudest"

    sharpness: float = Field(1.0, gt=0, description="Above 1, the winner takes more.")

    def class_scores(self, readout):
        """Class scores, [prompts, labels]."""
        import torch

        scores = self.word_scores(readout)
        return self.sharpness * torch.stack([scores[y].amax(1) for y in self.labels], dim=1)


class Likeliest(VerbalizerSearch):
    """The words that are likeliest in a label's rows and not in another's."""

    name = "likeliest"

    def search(self, evidence):
        """The best words per label."""
        sums = [0.0] * len(evidence.labels)
        for targets, log_probs in evidence.blocks():
            for i in range(len(sums)):
                sums[i] = sums[i] + log_probs[targets == i].sum(0) - log_probs[targets != i].sum(0)
        found = {}
        for label, total in zip(evidence.labels, sums, strict=True):
            best = total.topk(self.words_per_label).indices.tolist()
            found[label] = [(evidence.words[i], float(total[i])) for i in best]
        return FoundWords(found)
