"""What the selectors share: the examples by label, their texts, and which of them is the row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr, field_serializer, field_validator

from promptforge import DemonstrationSelector, Example
from promptforge.embeddings import DEFAULT_ENCODER, SentenceEncoder
from promptforge.models import lasting

if TYPE_CHECKING:
    from promptforge.progress import Reporter

Row = Mapping[str, Any]


class PoolSelector(DemonstrationSelector):
    """Chooses from the n examples of a pool; an example is known by its index in it."""

    _pool: list[Example] = PrivateAttr(default_factory=list)
    _columns: tuple[str, ...] = PrivateAttr(())
    _members: dict[str, list[int]] = PrivateAttr(default_factory=dict)
    _by_content: dict[tuple[str, ...], dict[tuple[str, ...], set[int]]] = PrivateAttr(
        default_factory=dict
    )

    def fit(
        self,
        examples: Sequence[Example],
        labels: Sequence[str],
        *,
        columns: Sequence[str] | None = None,
        report: Reporter | None = None,
    ) -> None:
        """Take the examples of `labels`; without `columns` their texts are found, see `text_columns`."""
        self._pool = [e for e in examples if e.label in labels]
        self._columns = text_columns(self._pool) if columns is None else tuple(columns)
        self._members = {
            label: [i for i, e in enumerate(self._pool) if e.label == label] for label in labels
        }
        self._by_content = {}
        self.learn(report)

    def learn(self, report: Reporter | None) -> None:
        """Work out what choosing needs from the pool; `fit` calls it. Here: nothing."""

    def text(self, row: Row) -> str:
        """The texts of a row, joined by spaces."""
        return " ".join(_texts(row, self._present(row)))

    def itself(self, row: Row) -> set[int]:
        """The examples that are `row`, or equal it in every text column that it has."""
        present = self._present(row)
        if not present:
            return set()
        if present not in self._by_content:
            index: dict[tuple[str, ...], set[int]] = {}
            for i, example in enumerate(self._pool):
                index.setdefault(_texts(example.row, present), set()).add(i)
            self._by_content[present] = index
        return self._by_content[present].get(_texts(row, present), set())

    def others(self, row: Row) -> dict[str, list[int]]:
        """Label -> its examples that are not `row` itself."""
        same = self.itself(row)
        return {label: [i for i in ids if i not in same] for label, ids in self._members.items()}

    def best(self, row: Row, scores: NDArray[np.floating[Any]]) -> dict[str, list[int]]:
        """`others`, highest score first; `scores` is [n], ties stay in the pool's order."""
        return {
            label: sorted(ids, key=lambda i: -scores[i]) for label, ids in self.others(row).items()
        }

    def examples(self, indices: Sequence[int]) -> list[Example]:
        """The examples with these indices."""
        return [self._pool[i] for i in indices]

    def _present(self, row: Row) -> tuple[str, ...]:
        return tuple(c for c in self._columns if row.get(c) is not None)


class PerLabel(PoolSelector):
    """Shows as many examples of each label, label by label in the task's order."""

    per_label: int = Field(1, ge=1, le=16, description="Demonstrations of each label.")


class EmbeddingSelector(PoolSelector):
    """Compares texts by the cosine of their sentence embeddings."""

    encoder: str | SentenceEncoder = Field(
        DEFAULT_ENCODER,
        description="Sentence encoder: a packaged model, a folder or a Hugging Face id.",
    )

    _encoder: SentenceEncoder | None = PrivateAttr(None)
    _vectors: NDArray[np.float32] | None = PrivateAttr(None)

    @field_validator("encoder", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, SentenceEncoder) or (isinstance(value, str) and value.strip()):
            return value
        raise ValueError("give the name of a model, its folder or a SentenceEncoder")

    @field_serializer("encoder")
    def _stored(self, value: str | SentenceEncoder) -> str:
        # What is tuned with it is read from other directories too.
        return lasting(value if isinstance(value, str) else value.name)

    @property
    def compares(self) -> bool:
        """False where the options make embeddings needless; then none are computed."""
        return True

    def learn(self, report: Reporter | None) -> None:
        """Embed the examples.

        Raises:
            UserError: there is no such encoder.
            PromptForgeError: the encoder cannot be fetched or loaded.
        """
        given = self.encoder
        if isinstance(given, SentenceEncoder):
            self._encoder = given
        elif self._encoder is None or self._encoder.name != given:  # fitted again: loaded once
            self._encoder = SentenceEncoder(given, report=report)
        self._vectors = None
        if self.compares and self._pool:
            self._vectors = self._encoder.encode([self.text(e.row) for e in self._pool])

    def prepare(self, rows: Sequence[Row]) -> None:
        """Embed the rows' texts in batches."""
        if self._vectors is not None and rows:
            assert self._encoder is not None
            self._encoder.encode([self.text(row) for row in rows])

    def vectors(self) -> NDArray[np.float32]:
        """The pool's embeddings, [n, d]."""
        assert self._vectors is not None, "fit comes first"
        return self._vectors

    def cosines(self, row: Row) -> NDArray[np.float32]:
        """The cosine of the row and each example, [n]."""
        if not self._pool:
            return np.zeros(0, np.float32)
        assert self._encoder is not None, "fit comes first"
        similar: NDArray[np.float32] = self.vectors() @ self._encoder.encode([self.text(row)])[0]
        return similar


def text_columns(examples: Sequence[Example]) -> tuple[str, ...]:
    """The columns of texts: all that hold strings but the label's, which always equals the label."""

    def is_text(column: str) -> bool:
        values = [e.row.get(column) for e in examples]
        return all(v is None or isinstance(v, str) for v in values) and any(
            v is not None and v.strip() != e.label for v, e in zip(values, examples, strict=True)
        )

    return tuple(c for c in (examples[0].row if examples else ()) if is_text(c))


def _texts(row: Row, columns: Sequence[str]) -> tuple[str, ...]:
    return tuple("" if row.get(c) is None else str(row[c]).strip() for c in columns)
