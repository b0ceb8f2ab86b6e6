"""How good written texts are: likelihood of the references, BLEU, ROUGE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from promptforge.errors import UserError


@dataclass(frozen=True)
class TextEvaluation:
    """Figures of one set of written texts.

    Attributes:
        rows: references; rows with one source are references of one text.
        texts: written texts, one for each source.
        tokens: tokens of the references, their ends counted.
        loss: mean of minus log-probability of a reference's token, in nats.
        perplexity: exp(loss); of this model's tokens.
        bleu: of the corpus, 0 to 100, by sacrebleu, as its `signature` says (Papineni et al. 2002;
            Post 2018). Each text has all references of its source.
        rouge1, rouge2, rougeL: mean F1, 0 to 100, of the reference that fits best (Lin 2004), by
            rouge-score without stemming; it counts words of the letters a to z and digits only.
        length: words written for one word of the references, by white space.
    """

    rows: int
    texts: int
    tokens: int
    loss: float
    perplexity: float
    bleu: float
    rouge1: float
    rouge2: float
    rougeL: float
    length: float
    signature: str

    @classmethod
    def of(
        cls, written: Sequence[str], references: Sequence[Sequence[str]], loss: float, tokens: int
    ) -> TextEvaluation:
        """Evaluate texts, each against its references.

        Args:
            loss: mean loss of the references' tokens, and `tokens` how many they are.

        Raises:
            UserError: sacrebleu or rouge-score is not installed.
        """
        need_metrics()
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu.metrics import BLEU

        most = max(len(known) for known in references)
        by_place = [[known[i] if i < len(known) else None for known in references] for i in range(most)]  # fmt: skip
        bleu = BLEU()
        score = bleu.corpus_score(list(written), by_place).score
        names = ("rouge1", "rouge2", "rougeL")
        scorer = RougeScorer(names)
        found = [
            scorer.score_multi(list(known), text)
            for text, known in zip(written, references, strict=True)
        ]
        rouge = {n: 100 * sum(f[n].fmeasure for f in found) / len(found) for n in names}
        words = sum(len(known.split()) / len(own) for own in references for known in own)
        return cls(
            rows=sum(map(len, references)), texts=len(written), tokens=tokens, loss=loss,
            perplexity=math.exp(min(loss, 700.0)), bleu=score,
            length=sum(len(t.split()) for t in written) / max(words, 1e-9),
            signature=str(bleu.get_signature()), **rouge,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return dict(vars(self))


def need_metrics() -> None:
    """Raise a `UserError` where the packages that measure texts are not installed."""
    try:
        import rouge_score  # noqa: F401
        import sacrebleu  # noqa: F401
    except ImportError:
        raise UserError(
            "BLEU and ROUGE need sacrebleu and rouge-score: pip install sacrebleu rouge-score."
        ) from None
