"""How a text is chosen among all that a model could write."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from promptforge.errors import UserError, did_you_mean, listed


class Decoding(BaseModel):
    """Greedy by default; beams, or samples.

    A sampled text depends on the seed and on the rows and `batch_tokens` it was drawn with; the
    others depend on the row alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    beams: int = Field(1, ge=1, description="Texts that are followed at the same time.")
    length_penalty: float = Field(1.0, description="With beams: above 0 favours long texts.")
    max_new_tokens: int | None = Field(
        None, ge=1, description="Most tokens of a text; by default what suits the training's texts."
    )
    sample: bool = Field(False, description="Draw each token instead of taking the likeliest.")
    temperature: float = Field(1.0, gt=0, description="Of the draws; lower is closer to greedy.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Draw among the likeliest tokens of this share (nucleus)."
    )
    seed: int = Field(13, ge=0, description="Of the draws.")
    cache: bool = Field(
        True, description="Keep keys and values between tokens; false gives the same, slowly."
    )

    @classmethod
    def of(cls, **values: Any) -> Decoding:
        """With `values`; a `UserError` names the one that is wrong."""
        try:
            made = cls(**values)
        except ValidationError as error:
            known = list(cls.model_fields)
            lines = []
            for problem in error.errors():
                key = str(problem["loc"][0])
                lines.append(
                    f"There is no option {key!r} of decoding.{did_you_mean(key, known)} There are: {listed(known, 30)}."
                    if problem["type"] == "extra_forbidden"
                    else f"decoding.{key}: {problem['msg']} (given: {problem['input']!r})."
                )
            raise UserError("\n".join(lines)) from None
        if made.sample and made.beams > 1:
            raise UserError("Texts are sampled or searched with beams: choose one of the two.")
        drawn = {"temperature", "top_p"} & made.model_fields_set
        if drawn and not made.sample:
            raise UserError(f"{min(drawn)} is for samples: add sample (--sample).")
        if "length_penalty" in made.model_fields_set and made.beams == 1:
            raise UserError("length_penalty is for beams: add two or more (--beams 4).")
        return made

    def config(self, room: int) -> dict[str, Any]:
        """Arguments of `transformers.GenerationConfig`, for texts of at most `room` tokens."""
        made: dict[str, Any] = {
            "max_new_tokens": room, "num_beams": self.beams, "do_sample": self.sample,
            "use_cache": self.cache,
        }  # fmt: skip
        if self.beams > 1:
            made["length_penalty"] = self.length_penalty
        if self.sample:
            made |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return made
