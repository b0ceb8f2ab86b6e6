"""LM-BFF's automatic templates (Gao, Fisch and Chen 2021, section 5.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product, zip_longest
from typing import ClassVar

from pydantic import Field

from promptforge import FoundTemplate, Template, TemplateEvidence, TemplateSearch, UserError
from promptforge.encode import Encoded
from promptforge.progress import Reporter
from promptforge_lm_bff.beam import Tokens, joint_beam
from promptforge_lm_bff.fillers import FILLERS
from promptforge_lm_bff.spelling import Form, Spelling, forms, literal


@dataclass(frozen=True)
class _Job:
    """One beam search: an input form with the most (a masked model: exact) tokens of its spans."""

    form: Form
    left: int
    right: int

    @property
    def lengths(self) -> list[int]:
        """Those of the spans there are."""
        return [n for n in (self.left, self.right) if n]


class LmBffTemplates(TemplateSearch):
    """LM-BFF: a model writes the spans around the label word, for all training rows together.

    With M(y) the label word and <X>, <Y> the spans, the input forms of section 5.2 are
    `<X> M(y) <Y> <S1>` and `<S1> <X> M(y) <Y>`, for pairs `<S1> <X> M(y) <Y> <S2>`. Where a
    causal model writes or reads the template, it is `<S1> <S2> <X> M(y)`. One beam search serves
    all rows of all labels: a template's score is the sum over the rows of log P(next token | the
    row's input, the tokens so far).

    T5 writes both spans and decides their lengths, as in the paper; a masked model fills masks
    from left to right, once for each pair of lengths; a causal model writes the span before the
    label word, whose own log-probability counts as the span's end.
    """

    name: ClassVar[str] = "lm-bff"

    beam: int = Field(100, ge=1, description="Spans that go on after each token.")
    left: int = Field(4, ge=0, le=32, description="Most tokens before the label word.")
    right: int = Field(
        2, ge=0, le=32, description="Most tokens after it; a causal model has none there."
    )

    def search(self, evidence: TemplateEvidence, report: Reporter) -> list[FoundTemplate]:
        """The best templates of each form (and each pair of lengths) in turn.

        Raises:
            UserError: no tokens to write, an encoder-decoder model without sentinels, or a row
                that does not fit the generator.
        """
        generator = evidence.generator
        if generator.family == "seq2seq" and getattr(generator, "ask", "") != "sentinel":
            raise UserError(
                f"{generator.name} cannot write templates: its tokenizer has no sentinels, or it is not "
                "asked with them. Let a T5, a masked or a causal model write: --generator MODEL."
            )
        spelling = Spelling(generator)
        jobs = list(self._jobs(evidence))
        filler = FILLERS[generator.family]
        words = [tuple(generator.text.word(w, space_before=True)) for w in evidence.words]
        if not all(words):
            raise UserError(f"{generator.name} does not know the label words: choose others.")
        total = sum(filler.steps(job.lengths) for job in jobs) * len(words)
        report.note(f"{generator.name} writes templates around the label words")
        groups = []
        cut = 0
        with report.meter("Writing", total, "row passes") as meter:
            for job in jobs:
                encoded = _inputs(job, evidence, max(map(len, words)))
                cut = max(cut, sum(bool(e.cut) for e in encoded))
                step = filler(
                    spelling, encoded, words, job.lengths,
                    glued=bool(job.form.before) or not job.left, advance=meter.advance,
                )  # fmt: skip
                groups.append(_templates(job, joint_beam(step, self.beam), step.spans, spelling))
        if cut:
            report.warn(f"{cut} of {len(words)} rows were cut to fit {generator.name}.")
        return _in_turn(groups, self.candidates)

    def _jobs(self, evidence: TemplateEvidence) -> Iterator[_Job]:
        mask_last = "causal" in (evidence.generator.family, evidence.family)
        right = 0 if mask_last else self.right
        if not self.left and not right:
            raise UserError(
                f"template-search {self.name!r}: left is 0, and nothing is written after the label word: "
                "give left at least 1."
            )
        for form in forms(evidence.columns, mask_last=mask_last):
            if evidence.generator.family != "masked":
                yield _Job(form, self.left, right)
                continue
            for lengths in product(range(self.left + 1), range(right + 1)):
                if any(lengths):
                    yield _Job(form, *lengths)


def _inputs(job: _Job, evidence: TemplateEvidence, longest: int) -> list[Encoded]:
    """What the generator reads: the row, its label word, and masks where spans belong."""
    generator = evidence.generator
    masks = [f" {{{{ mask({n}) }}}}" if n else "" for n in (job.left, job.right)]
    # A causal model writes before it could see the label word.
    causal = generator.family == "causal"
    templates = {
        word: Template(
            job.form.source(masks[0], "" if causal else literal(word), masks[1]),
            name="form", origin="an input form of lm-bff",
        )
        for word in set(evidence.words)
    }  # fmt: skip
    prompts = [
        templates[word].render(row) for word, row in zip(evidence.words, evidence.rows, strict=True)
    ]
    reserve = job.left + longest if causal else 0
    return generator.encode(prompts, reserve=reserve, origin="an input form of lm-bff")


def _templates(
    job: _Job,
    beams: Sequence[tuple[Tokens, float]],
    split: Callable[[Tokens], list[Tokens]],
    spelling: Spelling,
) -> list[FoundTemplate]:
    """The beams as templates; those without a word of their own are dropped."""
    found = []
    for beam, score in beams:
        texts = iter(spelling.texts(split(beam)))
        left = next(texts) if job.left else ""
        right = next(texts) if job.right else ""
        if (left + right).strip():
            source = job.form.source(literal(left), "{{ mask }}", literal(right))
            found.append(FoundTemplate(source, score))
    return found


def _in_turn(groups: Sequence[list[FoundTemplate]], most: int) -> list[FoundTemplate]:
    """The best of each group, then the second best, ...: their scores do not compare.

    Different tokens can spell the same template: the best score counts.
    """
    found: dict[str, FoundTemplate] = {}
    for turn in zip_longest(*groups):
        for template in turn:
            if template is None:
                continue
            known = found.get(template.source)
            if known is None and len(found) == most:
                continue
            if known is None or known.score < template.score:
                found[template.source] = template
    return list(found.values())
