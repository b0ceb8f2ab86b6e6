"""The knowledgeable verbalizer: many words per label, refined (KPT, Hu et al. 2022)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from promptforge import UserError, Verbalizer
from promptforge.backbone import Backbone
from promptforge.candidates import whole_words
from promptforge.errors import listed
from promptforge.progress import Reporter
from promptforge.readout import Readout
from promptforge.verbalizer import Words


class KnowledgeableVerbalizer(Verbalizer):
    """Many words per label, from lists and from the neighbourhood of the label words.

    KPT (Hu et al. 2022). A label's words are the task's, then those of `words_file` or `more`,
    then the `neighbours` whole words whose embeddings are nearest to the mean of the task's.

    Refinement for zero-shot (section 3.3), learned by `PromptModel.calibrate(rows)` from rows
    without labels, with p(v|x) the probability over the whole vocabulary:

    - contextual prior: words whose mean p(v|x) over the rows is below `prior_cut` are dropped;
    - relevance: with r(v, y) the cosine between p(v|x) and p(first word of y|x) over the rows,
      words are dropped where `r(v, own) * (labels - 1) / sum over other labels of r(v, y)` is
      below 1;
    - contextualized calibration: p(v|x) is divided by the word's mean over the rows.

    The first word of a label is its name and never dropped. Refinement for few-shot: a trained
    weight per word, its softmax taken over the label's words.

    Scores (section 3.4): P(v|x) is p(v|x), calibrated or not, normalised over all words of all
    labels; with weights a_v that are equal before training,
    `sum of a_v log P(v|x)` or, for zero-shot, `log of the sum of a_v P(v|x)`; see `combine`.

    Parameters: `weights` (trained), `log_prior` and `kept` (learned from rows, not trained),
    each [words], label by label.
    """

    name: ClassVar[str] = "knowledgeable"
    fits_rows: ClassVar[bool] = True

    words_file: str | None = Field(
        None,
        description='Further words: JSON {"label": ["word", ...]}, or lines "label: word, word".',
    )
    more: dict[str, list[str]] = Field(
        default_factory=dict, description="Further words: label -> words; what words_file holds."
    )
    neighbours: int = Field(0, ge=0, description="Words per label added from its neighbourhood.")
    space: Literal["input", "output", "minilm"] = Field(
        "input",
        description="Embeddings of neighbours: the model's input or output matrix, or sentence embeddings.",
    )
    prior_cut: float | None = Field(
        None, ge=0, description="Lowest mean probability of a word; by default 1 / vocabulary."
    )
    relevance: bool = Field(True, description="Drop words that are nearer to other labels.")
    calibrate: bool = Field(True, description="Divide a word's probability by its mean.")
    combine: Literal["log-probabilities", "probabilities"] = Field(
        "log-probabilities",
        description="What is averaged over a label's words; 'probabilities' is the paper's for zero-shot.",
    )

    @model_validator(mode="before")
    @classmethod
    def _read_file(cls, values: Any) -> Any:
        # The words, not the path, become the option, so that an artifact needs no such file.
        if isinstance(values, dict) and isinstance(values.get("words_file"), str):
            found = _listed_words(Path(values["words_file"]))
            more = values.get("more", {})
            if isinstance(more, dict) and all(isinstance(words, list) for words in more.values()):
                more = {k: [*found.get(k, []), *more.get(k, [])] for k in {**found, **more}}
            return {**values, "words_file": None, "more": more}
        return values

    @property
    def kept_words(self) -> Words:
        """label -> the words that no refinement has dropped."""
        kept = self._by_label(self._parameters["kept"])
        return {
            label: [w for w, k in zip(self.words[label], keep.tolist(), strict=True) if k]
            for label, keep in zip(self.labels, kept, strict=True)
        }

    # --- words ----------------------------------------------------------------------------

    def bind(
        self,
        labels: Sequence[str],
        words: Mapping[str, Sequence[str]],
        backbone: Backbone,
        *,
        space_before: bool,
        report: Reporter | None = None,
    ) -> None:
        """Gather the words and tokenize them; see `Verbalizer.bind`.

        Of the further words only those of one token are taken; a note says how many were not.

        Raises:
            UserError: besides those of `Verbalizer.bind`: words for a label that is none.
        """
        unknown = [label for label in self.more if label not in labels]
        if unknown:
            raise UserError(
                f"There are further words for {unknown[0]!r}, which is no label. Labels: {listed(list(labels))}."
            )
        gathered = {label: list(words.get(label, ())) for label in labels}
        taken = {
            tuple(backbone.text.word(w, space_before=space_before))
            for own in gathered.values()
            for w in own
        }
        left: list[str] = []
        for label in labels:
            for word in self.more.get(label, ()):
                ids = tuple(backbone.text.word(word, space_before=space_before))
                if len(ids) != 1 or ids[0] == backbone.text.unknown_id:
                    left.append(word)
                elif ids not in taken:
                    taken.add(ids)
                    gathered[label].append(word)
        if left and report:
            report.note(
                f"Further words that are not one token, left out: {len(left)} ({listed(left, 6)})"
            )
        if self.neighbours and all(gathered.values()):
            near = self._near(labels, words, backbone, taken, space_before, report)
            gathered = {label: [*own, *near[label]] for label, own in gathered.items()}
        super().bind(labels, gathered, backbone, space_before=space_before, report=report)
        zeros = torch.zeros(sum(map(len, self.sequences.values())), device=backbone.device)
        self._parameters = {
            "weights": nn.Parameter(zeros.clone()),
            "log_prior": nn.Parameter(zeros.clone(), requires_grad=False),
            "kept": nn.Parameter(zeros + 1, requires_grad=False),
        }

    def _near(
        self,
        labels: Sequence[str],
        words: Mapping[str, Sequence[str]],
        backbone: Backbone,
        taken: set[tuple[int, ...]],
        space_before: bool,
        report: Reporter | None,
    ) -> Words:
        """The nearest whole words of each label; a word belongs to its nearest label alone."""
        pool = whole_words(backbone, space_before=space_before)
        free = [i for i, t in enumerate(pool.ids.tolist()) if (t,) not in taken]
        names = [pool.words[i] for i in free]
        own = [list(words[label]) for label in labels]
        if self.space == "minilm":
            from promptforge.embeddings import SentenceEncoder

            encoder = SentenceEncoder(report=report)
            vectors = torch.from_numpy(encoder.encode(names))
            centres = torch.stack([torch.from_numpy(encoder.encode(w)).mean(0) for w in own])
        else:
            model = backbone.model
            head = model.get_output_embeddings()
            table = (model.get_input_embeddings() if self.space == "input" else head).weight
            table = table.detach().float()

            def mean(word: str) -> Tensor:
                ids = backbone.text.word(word, space_before=space_before)
                return F.normalize(table[ids].mean(0), dim=-1)

            vectors = F.normalize(table[pool.ids[free].to(table.device)], dim=-1)
            centres = torch.stack([torch.stack([mean(w) for w in ws]).mean(0) for ws in own])
        near = (vectors @ F.normalize(centres, dim=-1).T).cpu()
        nearest = near.argmax(1)
        out: Words = {}
        for column, label in enumerate(labels):
            scores = near[:, column].masked_fill(nearest != column, -torch.inf)
            # Stable: among equals the order of the vocabulary.
            best = torch.sort(scores, descending=True, stable=True).indices[: self.neighbours]
            out[label] = [names[i] for i in best.tolist() if nearest[i] == column]
        return out

    # --- refinement and scores ------------------------------------------------------------

    def fit(self, readout: Readout) -> None:
        """Learn which words are kept, and their priors, from rows without labels."""
        log_p = torch.cat(list(self.word_scores(readout).values()), 1).double()
        log_prior = torch.logsumexp(log_p, 0) - torch.tensor(len(readout)).double().log()
        cut = 1 / readout.backbone.vocabulary if self.prior_cut is None else self.prior_cut
        kept = log_prior.exp() >= cut
        sizes = [len(s) for s in self.sequences.values()]
        starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        if self.relevance and len(sizes) > 1:
            p = F.normalize(log_p.exp(), dim=0)  # a column per word, of length 1
            near = p.T @ p[:, starts]  # [words, labels]
            label = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
            own = near.gather(1, label.to(near.device)[:, None])[:, 0]
            kept &= own * (len(sizes) - 1) >= near.sum(1) - own
        kept[starts] = True
        with torch.inference_mode(False), torch.no_grad():
            self._parameters["kept"].copy_(kept.float().clone())
            if self.calibrate:
                self._parameters["log_prior"].copy_(log_prior.float().clone())

    def class_scores(self, readout: Readout) -> Tensor:
        """Class scores in log space, [prompts, labels]."""
        by_word = self.word_scores(readout, normalised=self.longest > 1)
        return self._combined(torch.cat(list(by_word.values()), 1))

    def loss(self, readout: Readout, shares: Tensor, temperature: Tensor) -> Tensor:
        """Cross-entropy of the class posteriors, [prompts]."""
        if self.longest == 1:
            return super().loss(readout, shares, temperature)
        scorer = self.build_scorer(readout.backbone)
        scorer.check(readout.backbone)
        sequences = [s for label in self.labels for s in self.sequences[label]]
        by_word = scorer.training_scores(readout, sequences, self.slot)
        log_q = torch.log_softmax(self._combined(by_word) / temperature[:, None], -1)
        return -(shares * log_q).sum(-1) * temperature.square()

    def tokens_read(self) -> list[int] | None:
        """The words' tokens where each has one: log Z cancels between words."""
        if self.longest > 1:
            return None
        return [s[0] for sequences in self.sequences.values() for s in sequences]

    def _combined(self, scores: Tensor) -> Tensor:
        """Scores of words [prompts, words] to those of labels [prompts, labels]."""
        made = self._parameters
        kept = made["kept"] > 0
        log_p = (scores - made["log_prior"]).masked_fill(~kept, -torch.inf).log_softmax(-1)
        weights = made["weights"].masked_fill(~kept, -torch.inf)
        columns = []
        for part, own, keep in zip(
            self._by_label(log_p), self._by_label(weights), self._by_label(kept), strict=True
        ):
            part, own = part[:, keep], own[keep]
            if self.combine == "probabilities":
                columns.append(torch.logsumexp(part + own.log_softmax(0), 1))
            else:
                columns.append(part @ own.softmax(0))
        return torch.stack(columns, 1)

    def _by_label(self, values: Tensor) -> tuple[Tensor, ...]:
        return torch.split(values, [len(s) for s in self.sequences.values()], dim=-1)


def _listed_words(path: Path) -> Words:
    """Words from a file: JSON, or a line per label.

    Raises:
        UserError: no such file, or neither of the two.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The words file {path} cannot be read: {error}") from None
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"The words file {path} is not JSON: {error}") from None
        if not all(
            isinstance(words, list) and all(isinstance(w, str) for w in words)
            for words in found.values()
        ):
            raise UserError(f'The words file {path} should hold {{"label": ["word", ...], ...}}.')
        return {str(label): list(words) for label, words in found.items()}
    out: Words = {}
    for number, line in enumerate(text.splitlines(), 1):
        label, colon, words = line.partition(":")
        if not line.strip():
            continue
        if not colon:
            raise UserError(f'{path}, line {number}: write "label: word, word, ...".')
        out.setdefault(label.strip(), []).extend(w for w in map(str.strip, words.split(",")) if w)
    return out
