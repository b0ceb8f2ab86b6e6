"""The settings of a training, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from promptforge.errors import UserError, did_you_mean, listed
from promptforge.progress import Reporter


class Settings(BaseModel):
    """How a model is trained: the same names on the command line, in `forge.toml` and in Python.

    `learning_rate` and `batch_size` take several values: each pair is tried, and the
    development rows decide.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(250, ge=1, description="Updates of the weights.")
    batch_size: int | list[int] = Field(8, description="Rows per update.")
    learning_rate: float | list[float] | None = Field(
        None,
        description="Highest learning rate; by default what suits the method (3e-5 for all weights).",
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="How the learning rate falls after the warm-up."
    )
    warmup: float = Field(0.06, ge=0, lt=1, description="Share of the steps with a rising rate.")
    weight_decay: float = Field(
        0.01, ge=0, description="Of matrices; never of biases, norms and word embeddings."
    )
    accumulate: int = Field(1, ge=1, description="Parts that a batch is computed in.")
    clip: float = Field(1.0, ge=0, description="Largest gradient norm; 0: any.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="bfloat16 on GPUs and processors that are faster in it; else float32."
    )
    dropout: bool = Field(
        True, description="Use the model's dropout, and the method's, while training."
    )
    checkpointing: bool = Field(
        False,
        description="Compute layers again in the backward pass: less memory, more time.",
    )
    eval_every: int = Field(
        0, ge=0, description="Steps between looks at the development rows; 0: ten looks in all."
    )
    patience: int = Field(
        0, ge=0, description="Looks without gain before a training stops; 0: never stops early."
    )
    keep: Literal["best", "last"] = Field(
        "best", description="Which weights stay: those best on the development rows, or the last."
    )
    save_every: int = Field(
        0, ge=0, description="Steps between checkpoints; 0: about once a minute."
    )

    def __init__(self, **values: Any) -> None:
        """Settings with `values`; a `UserError` names the one that is wrong."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            known = list(type(self).model_fields)
            lines = []
            for problem in error.errors():
                key = str(problem["loc"][0])
                lines.append(
                    f"There is no setting {key!r}.{did_you_mean(key, known)} There are: {listed(known, 30)}."
                    if problem["type"] == "extra_forbidden"
                    else f"setting {key}: {problem['msg']} (given: {problem['input']!r})."
                )
            raise UserError("\n".join(dict.fromkeys(lines))) from None

    @classmethod
    def of(cls, **values: Any) -> Settings:
        """Settings with `values` that fit together; a `UserError` names those that do not."""
        made = cls(**values)
        if made.patience and made.keep == "last":
            raise UserError(
                "patience stops where the best weights are behind, and keep=last keeps the last: "
                "leave one of them out."
            )
        for one in made.grid(default=1.0):
            if not (one.rate > 0 and one.rows >= 1):
                raise UserError("learning_rate and batch_size must be above zero.")
            if one.rows % made.accumulate:
                raise UserError(
                    f"batch_size {one.rows} cannot be split into accumulate={made.accumulate} equal parts."
                )
        return made

    def warn_looks(self, report: Reporter, *dev: Sequence[object]) -> None:
        """Warn where looks at development rows are asked for, and there are none.

        Args:
            report: takes the warnings.
            dev: the development rows of each task.
        """
        for name in ("patience", "eval_every"):
            if (value := getattr(self, name)) and not any(map(len, dev)):
                report.warn(
                    f"{name}={value} is about looks at development rows, and there are none: it does nothing. "
                    "Give --dev (in Python: dev=rows)."
                )

    def grid(self, default: float = 3e-5) -> list[Settings]:
        """One settings per pair of learning rate and batch size; `default` where no rate is given."""
        given = default if self.learning_rate is None else self.learning_rate
        rates = given if isinstance(given, list) else [given]
        sizes = self.batch_size if isinstance(self.batch_size, list) else [self.batch_size]
        return [
            self.model_copy(update={"learning_rate": rate, "batch_size": size})
            for rate, size in product(rates, sizes)
        ]

    @property
    def rate(self) -> float:
        """The learning rate; the first where there are several."""
        return self.grid()[0].learning_rate  # type: ignore[return-value]

    @property
    def rows(self) -> int:
        """The batch size; the first where there are several."""
        size = self.batch_size
        return size[0] if isinstance(size, list) else size

    @property
    def looks(self) -> int:
        """Steps between two looks at the development rows."""
        return self.eval_every or max(1, self.steps // 10)
