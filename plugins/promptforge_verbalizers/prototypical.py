"""The prototypical verbalizer: labels as prototypes (ProtoVerb, Cui et al. 2022)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn
from torch.nn import functional as F

from promptforge import Verbalizer
from promptforge.backbone import Backbone
from promptforge.progress import Reporter
from promptforge.readout import Readout
from promptforge_verbalizers.manual import ManualVerbalizer


class PrototypicalVerbalizer(Verbalizer):
    """Label prototypes learned by contrast between rows, and between rows and prototypes.

    ProtoVerb (Cui et al. 2022, sections 3.2 and 3.3): the mask's hidden state h is projected to
    v = W h; S is the cosine, divided by `temperature`. The loss of a row is the sum of

    - instance-instance: the mean over the rows j of its label in the batch, itself included, of
      `-log(exp S(v, v_j) / sum over all rows of the batch of exp S(v, v_k))`;
    - instance-prototype: `-log(exp S(v, c_y) / sum over labels of exp S(v, c_n))`.

    These are the paper's sums times the number of labels. Soft labels weigh the pairs by the
    probability that both rows have the same label. The score of a label is `S(v, c_y)`, plus
    `manual_weight` times the log-posterior of the manual verbalizer, whose loss is then added
    likewise.

    Prototypes and projection start at random, so the scores mean nothing before training, and a
    frozen model trains them alone. Rows see only their own batch: larger batches contrast more.

    Parameters: `projection` [dimension, d] and `prototypes` [labels, dimension].
    """

    name: ClassVar[str] = "prototypical"
    contrasts: ClassVar[bool] = True

    dimension: int = Field(64, ge=1, description="Size of the prototypes.")
    temperature: float = Field(
        1.0, gt=0, description="Cosines are divided by it; lower is sharper. The paper has 1."
    )
    manual_weight: float = Field(
        0.0, ge=0, description="Weight of the label words' log-posterior in the scores; 0: none."
    )
    seed: int = Field(13, description="Of the first projection and prototypes.")

    _manual: ManualVerbalizer = PrivateAttr(default_factory=ManualVerbalizer)

    def prepare(self, backbone: Backbone, *, space_before: bool, report: Reporter) -> None:
        """Tokenize the words and draw projection and prototypes."""
        super().prepare(backbone, space_before=space_before, report=report)
        shared = self.model_dump(include=set(Verbalizer.model_fields))
        self._manual = ManualVerbalizer(**shared)
        self._manual.bind(self.labels, self.words, backbone, space_before=space_before)
        draw = torch.Generator().manual_seed(self.seed)
        width, device = backbone.width, backbone.device
        projection = torch.randn(self.dimension, width, generator=draw) / width**0.5
        prototypes = torch.randn(len(self.labels), self.dimension, generator=draw)
        self._parameters = {
            "projection": nn.Parameter(projection.to(device)),
            "prototypes": nn.Parameter(prototypes.to(device)),
        }

    def class_scores(self, readout: Readout) -> Tensor:
        """Similarities to the prototypes, and the words' share, [prompts, labels]."""
        scores = self._similarities(self._instances(readout))
        if self.manual_weight:
            words = torch.log_softmax(self._manual.class_scores(readout), -1)
            scores = scores + self.manual_weight * words
        return scores

    def loss(self, readout: Readout, shares: Tensor, temperature: Tensor) -> Tensor:
        """Both contrasts of each prompt, [prompts]; the prompts are one another's negatives.

        The distillation `temperature` softens the contrast with the prototypes alone.
        """
        instances = self._instances(readout)
        same = shares @ shares.T
        same = same / same.sum(1, keepdim=True)
        pairs = instances @ instances.T / self.temperature
        loss = -(same * torch.log_softmax(pairs, -1)).sum(-1)
        to_prototypes = self._similarities(instances) / temperature[:, None]
        of_labels = -(shares * torch.log_softmax(to_prototypes, -1)).sum(-1)
        loss = loss + of_labels * temperature.square()
        if self.manual_weight:
            words = self._manual.loss(readout, shares, temperature)
            loss = loss + self.manual_weight * words
        return loss

    def tokens_read(self) -> list[int] | None:
        """The label words' tokens, or no token where the words do not count."""
        return self._manual.tokens_read() if self.manual_weight else []

    def _instances(self, readout: Readout) -> Tensor:
        """Projected mask states of length 1, [prompts, dimension]."""
        states = readout.at(self.slot).float()
        return F.normalize(F.linear(states, self._parameters["projection"]), dim=-1)

    def _similarities(self, instances: Tensor) -> Tensor:
        prototypes = F.normalize(self._parameters["prototypes"], dim=-1)
        return instances @ prototypes.T / self.temperature
