"""The model source `packaged`: models that come inside Python packages."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from promptforge.errors import UserError, did_you_mean
from promptforge.models import ModelEntry, ModelSource
from promptforge.progress import Reporter
from promptforge_local_models import store
from promptforge_local_models.pins import MINILM, MINILM_MLM, MODELS, SMOLLM2, Packaged


class PackagedModels(ModelSource):
    """Models inside Python packages: fetched with pip, checked, converted once, then offline."""

    name: ClassVar[str] = "packaged"

    def entries(self) -> list[ModelEntry]:
        """The models with where they lie; looks at sizes only, so it takes no time."""
        return [_entry(model) for model in MODELS.values()]

    def fetch(self, name: str, report: Reporter, *, force: bool = False) -> Path:
        """Download, check, convert and keep `name`; what is whole already is only checked."""
        model = _model(name)
        with store.explained(model), store.locked(model, report):
            if not force:
                state = store.inspect(model, full=True)
                if state.kind == "whole":
                    return store.folder(model)
                if state.problem:
                    report.note(f"{name}: {state.problem}; fetching it again.")
            if model is MINILM_MLM:
                # It is made from `minilm`, which is useful by itself: one download for both.
                self.fetch(MINILM.name, report)
            with store.staging(model) as aside:
                built = aside / "model"
                built.mkdir()
                _build(model, aside, built, report)
                store.write_manifest(model, built)
                return store.publish(model, built)

    def verify(self, name: str) -> str | None:
        """Hash every file of `name`; what is wrong, or None."""
        return store.inspect(_model(name), full=True).problem or None

    def remove(self, name: str) -> bool:
        """Delete the folder of `name`."""
        model = _model(name)
        if not store.folder(model).exists():
            return False
        with store.explained(model), store.locked(model, Reporter()):
            return store.delete(model)


def _build(model: Packaged, aside: Path, built: Path, report: Reporter) -> None:
    """Write the files of `model` into `built`; `aside` is for what is needed on the way."""
    if model is MINILM_MLM:
        from promptforge_local_models.minilm import merge

        report.note(f"Merging {model.name}'s head into {MINILM.name}")
        merge(store.folder(MINILM), built)
        return
    from promptforge_local_models.download import unpacked

    parts = unpacked(model.wheel, aside, report)
    report.note(f"Converting {model.name} (about {model.seconds} s)")
    if model is SMOLLM2:
        from promptforge_local_models.smollm2 import convert

        convert(parts, built)
    else:
        from promptforge_local_models.minilm import copy

        copy(parts, built)


def _model(name: str) -> Packaged:
    if name not in MODELS:
        known = list(MODELS)
        raise UserError(
            f"No packaged model is called {name!r}.{did_you_mean(name, known)} "
            f"There are: {', '.join(known)}."
        )
    return MODELS[name]


def _entry(model: Packaged) -> ModelEntry:
    state = store.inspect(model)
    return ModelEntry(
        name=model.name,
        description=model.description,
        family=model.family,
        licence=model.licence,
        download=model.wheel.size,
        path=store.folder(model) if state.kind == "whole" else None,
        package=model.wheel.requirement,
        # A folder of an older version is no damage: it is fetched again without a word to the user.
        problem=state.problem if state.kind == "damaged" else None,
        disk=state.size,
    )
