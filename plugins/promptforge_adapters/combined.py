"""Several methods at once; MAM is one such combination."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field, field_validator
from torch import nn

from promptforge import TuningMethod, UserError
from promptforge.backbone import Addition, Backbone
from promptforge.backbone.addition import Computed, Joined
from promptforge.encode import Encoded
from promptforge.plugins import build
from promptforge.verbalizer import Words


class Combined(TuningMethod):
    """Methods that add to the model, side by side: `-o methods='{"prefix": {"length": 30}, ...}'`."""

    name: ClassVar[str] = "combined"
    learning_rate: ClassVar[float] = 1e-3

    methods: dict[str, dict[str, Any]] = Field({}, description="Name of a method -> its options.")

    def _parts(self) -> dict[str, TuningMethod]:
        if len(self.methods) < 2:
            raise UserError(
                f"method {self.name!r}: give two methods or more in the option methods."
            )
        return {name: build("method", name, **options) for name, options in self.methods.items()}

    @property
    def model_share(self) -> float:
        """The least that one of them has for the model's own parameters."""
        parts = self._parts().values()
        return min(p.learning_rate * p.model_share for p in parts) / self.learning_rate

    def prepare(self, backbone: Backbone) -> dict[str, nn.Parameter]:
        found: dict[str, nn.Parameter] = {}
        for part in self._parts().values():
            found |= part.prepare(backbone)
        return found

    def add(self, backbone: Backbone, prompts: Sequence[Encoded], words: Words) -> Addition:
        """All that they add.

        Raises:
            UserError: one of them adds nothing, puts modules of its own into the model, or adds to
                what another adds to.
        """
        made: dict[str, Computed] = {}
        for name, part in self._parts().items():
            added = part.add(backbone, prompts, words)
            if not isinstance(added, Computed):
                raise UserError(
                    f"method {self.name!r}: {name!r} adds nothing that can be combined."
                )
            made[name] = added
        joined = Joined(made)
        try:
            for found in (joined.soft, joined.prefixes, joined.deltas):
                found()
        except ValueError as error:
            raise UserError(f"method {self.name!r}: {error}.") from None
        return joined


_MAM: dict[str, dict[str, Any]] = {"prefix": {"length": 10}, "scaled-parallel": {"size": 48}}


class MAM(Combined):
    """A prefix in attention and a scaled parallel adapter beside the feed-forward part.

    Mix-and-match adapter (He et al. 2022, section 4.7), with sizes for small models by default (the
    paper: a prefix of 30 and a bottleneck of 512).
    """

    name: ClassVar[str] = "mam"

    methods: dict[str, dict[str, Any]] = Field(
        _MAM, description="Name of a method -> its options; of the two one can be set alone."
    )

    @field_validator("methods")
    @classmethod
    def _both(cls, given: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return _MAM | given if given.keys() <= _MAM.keys() else given
