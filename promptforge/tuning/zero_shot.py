"""What a model's untrained prompts say of rows: the runs of a comparison share it, each reads it once."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from weakref import WeakKeyDictionary

from promptforge.backbone.base import Backbone
from promptforge.classifier import Probabilities
from promptforge.tuning.tuner import Tuner

#: Sets of rows that are remembered of a model, and numbers that one may have; more are read again.
SETS, NUMBERS = 16, 1_000_000

_said: WeakKeyDictionary[Backbone, OrderedDict[str, dict[str, Probabilities]]] = WeakKeyDictionary()


def share(backbone: Backbone) -> None:
    """Remember what a model's untrained prompts say from now on, until `forget`.

    Not always, for whoever has the model may change it between two trainings.
    """
    _said.setdefault(backbone, OrderedDict())


def forget(backbone: Backbone) -> None:
    """Remember nothing more of a model."""
    _said.pop(backbone, None)


def key(tuner: Tuner, digests: Mapping[str, str], split: str) -> str:
    """What decides the answers of a tuner's untrained prompts to the rows of a split.

    Args:
        digests: split -> a digest of its rows.
    """
    verbalizer = tuner.verbalizer
    told = [
        tuner.task.to_json(), verbalizer.name, verbalizer.model_dump(mode="json"),
        digests["unlabeled"] if verbalizer.fits_rows and tuner.unlabeled else "",
        tuner.backbone.encoder.max_length, digests[split],
    ]  # fmt: skip
    return json.dumps(told, default=str)


def recall(backbone: Backbone, key: str) -> dict[str, Probabilities] | None:
    """Part -> class probabilities, [rows, labels], as `keep` put them; None where nobody did."""
    return _said.get(backbone, OrderedDict()).get(key)


def keep(backbone: Backbone, key: str, said: Mapping[str, Probabilities]) -> None:
    """Remember what was said where it is shared, in place of the oldest where that is too much."""
    known = _said.get(backbone)
    if known is None or sum(p.size for p in said.values()) > NUMBERS:
        return
    known[key] = dict(said)
    while len(known) > SETS:
        known.popitem(last=False)
