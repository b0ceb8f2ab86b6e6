"""Prompt tuning and P-tuning: soft tokens are trained, in the template and before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from promptforge import Parametrization, TuningMethod, UserError
from promptforge.backbone import Addition, Backbone
from promptforge.backbone.addition import Computed
from promptforge.encode import Encoded
from promptforge.plugins import build
from promptforge.template import OPENING, Soft
from promptforge.tuning.starts import embedded, start_ids
from promptforge.verbalizer import Words

#: Soft tokens before a prompt whose template has none.
TOKENS = 20


class PromptTuning(TuningMethod):
    """Trained vectors for the template's soft tokens, and for tokens before the prompt.

    Lester, Al-Rfou & Constant 2021, "The power of scale for parameter-efficient prompt tuning".
    The model is frozen unless `model` says what else is trained.
    """

    name: ClassVar[str] = "prompt-tuning"
    aliases: ClassVar[tuple[str, ...]] = ("prompt",)
    learning_rate: ClassVar[float] = 1e-2

    tokens: int | None = Field(
        None, ge=0,
        description=f"Soft tokens before the prompt; by default {TOKENS}, or 0 where the template has "
        "soft tokens of its own.",
    )  # fmt: skip
    init: Literal["vocabulary", "text", "labels"] = Field(
        "vocabulary",
        description="What the tokens before the prompt start from: random words, `text`, or the label "
        "words and then random ones. The template's own start from what the template says.",
    )
    text: str = Field(
        "", description="The text to start from, with init=text; repeated or cut to `tokens`."
    )
    parametrization: str = Field(
        "plain",
        description="What the vectors are computed from while they are trained: plain, mlp, low-rank, "
        "lstm or a plugin's. Folded to plain vectors when saved.",
    )
    parametrization_options: dict[str, Any] = Field(
        {}, description="Options of it: -o parametrization_options.hidden=64."
    )
    model: str = Field(
        "none",
        description="What of the model is trained too, at that method's own share of the learning rate: "
        "all, bitfit, head. none: nothing.",
    )
    seed: int = Field(0, description="Seed of the random words.")

    @model_validator(mode="after")
    def _known(self) -> Self:
        """Names and options are checked before any model loads."""
        self._vectors_from()
        self._trained_too()
        return self

    def _vectors_from(self) -> Parametrization:
        made: Parametrization = build(
            "parametrization", self.parametrization, **self.parametrization_options
        )
        return made

    def _trained_too(self) -> TuningMethod | None:
        made: TuningMethod | None = None if self.model == "none" else build("method", self.model)
        return made

    @property
    def model_share(self) -> float:
        """A model's weights move far less than soft tokens, so they learn at a rate of their own."""
        of_model = self._trained_too()
        return of_model.learning_rate / self.learning_rate if of_model else 1.0

    def prepare(self, backbone: Backbone) -> dict[str, nn.Parameter]:
        """What `model` names.

        Raises:
            UserError: it trains nothing of the model.
        """
        of_model = self._trained_too()
        parameters = of_model.prepare(backbone) if of_model else {}
        if of_model and not parameters:
            raise UserError(
                f"method {self.name!r}: model={self.model} trains nothing of the model itself. Name a "
                "method that does (all, bitfit, head), or none."
            )
        return parameters

    def add(self, backbone: Backbone, prompts: Sequence[Encoded], words: Words) -> Addition:
        """The soft tokens of the template, by their ids, and those before it.

        Raises:
            UserError: no soft tokens at all, a start that the options do not give, or soft tokens of
                one id that are not equally many.
        """
        starts = template_tokens(prompts)
        tokens = self.tokens if self.tokens is not None else (0 if starts else TOKENS)
        if not starts and not tokens:
            raise UserError(
                f"method {self.name!r}: the template has no soft tokens and tokens=0: nothing is trained."
            )
        if not tokens and (self.init != "vocabulary" or self.text):
            raise UserError(
                f"method {self.name!r}: init and text are for tokens before the prompt, and there are none: the "
                'template has soft tokens of its own, which start from what it says ({{ soft("It was") }}). Give '
                "tokens (-o method.tokens=10) to have some before the prompt too."
            )
        opening: tuple[Soft, ...] = ()
        if tokens:
            starts[OPENING] = self._start(backbone, tokens, words)
            opening = (Soft(n=tokens, id=OPENING),)
        vectors = {key: embedded(backbone, ids) for key, ids in starts.items()}
        kind = self._vectors_from()
        return SoftPrompts({key: kind.module(start) for key, start in vectors.items()}, opening)

    def _start(self, backbone: Backbone, tokens: int, words: Words) -> list[int]:
        return start_ids(
            backbone, tokens, self.init, self.text, words, self.seed, f"method {self.name!r}"
        )


class PTuning(PromptTuning):
    """Soft tokens computed by a bidirectional LSTM (Liu et al. 2021, "GPT understands, too")."""

    name: ClassVar[str] = "p-tuning"
    learning_rate: ClassVar[float] = 1e-3

    parametrization: str = Field(
        "lstm",
        description="What the vectors are computed from while they are trained: lstm (as in the paper), "
        "plain, mlp, low-rank or a plugin's. Folded to plain vectors when saved.",
    )


class SoftPrompts(Computed):
    """Soft tokens by key: each has a module that computes its vectors."""

    def __init__(self, modules: Mapping[str, nn.Module], opening: tuple[Soft, ...]) -> None:
        super().__init__()
        self._keys = list(modules)  # a module's name must not hold a dot
        self.made = nn.ModuleList(modules.values())
        self.opening = opening

    def starts(self) -> Mapping[str, Tensor]:
        made = zip(self._keys, self.made, strict=True)
        found = {f"soft/{key}": getattr(module, "vectors", None) for key, module in made}
        return {name: vectors for name, vectors in found.items() if isinstance(vectors, Tensor)}

    def soft(self) -> Mapping[str, Tensor]:
        return {key: module() for key, module in zip(self._keys, self.made, strict=True)}


def template_tokens(prompts: Sequence[Encoded]) -> dict[str, list[int]]:
    """The ids that each of the template's soft prompts starts from, by key."""
    found: dict[str, list[int]] = {}
    for prompt in prompts:
        for slot in prompt.soft:
            ids = list(prompt.ids[slot.start : slot.start + slot.length])
            if not ids:
                raise UserError(
                    f"The soft prompt {slot.key!r} starts from a text of which the model has no token: give it "
                    "one with words, or a number of tokens."
                )
            if len(found.setdefault(slot.key, ids)) != len(ids):
                raise UserError(
                    f"The soft prompt {slot.key!r} has {len(found[slot.key])} tokens in one place and "
                    f"{len(ids)} in another: those that share an id must be equally long."
                )
    return {key: ids for key, ids in found.items() if key != OPENING}
