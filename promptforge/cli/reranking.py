"""--run and --resume of the searches that tune what they find (--rerank): no candidate is tuned twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from promptforge.cli.train import kept, refuse
from promptforge.errors import UserError
from promptforge.remote import exists, place, shared

if TYPE_CHECKING:
    from promptforge.components import Component
    from promptforge.tuning.run import RunFolder
    from promptforge.tuning.tuner import Tuner

F = TypeVar("F", bound=Callable[..., Any])


def rerank_options(function: F) -> F:
    """Where the tunings of --rerank are kept."""
    function = click.option(
        "--resume", is_flag=True, help="Go on with the tunings of --rerank in that folder."
    )(function)
    return click.option(
        "--run", "run_",
        help="Folder or URL (s3://...) that the tunings of --rerank are kept in. [default: runs/TASK-COMMAND-SEED]",
    )(function)  # fmt: skip


@dataclass
class RerankRun:
    """Where the candidates of a search are tuned.

    Attributes:
        command: the search, as it is typed.
        place: folder or URL.
        resume: whether what was begun there goes on.
    """

    command: str
    place: str | Path
    resume: bool

    @classmethod
    def of(cls, params: Mapping[str, Any], command: str, task: str) -> RerankRun | None:
        """What the options say; None without --rerank.

        Raises:
            UserError: options of --rerank without it, a run that was begun and no --resume.
        """
        if not params["rerank"]:
            for name in ("run_", "resume"):
                if params[name]:
                    flag = name.rstrip("_")
                    raise UserError(
                        f"--{flag} is for the tunings of --rerank: give that too, or leave out --{flag}."
                    )
            return None
        where = place(params["run_"] or Path("runs") / f"{task}-{command}-{params['seed']}")
        refuse(where, params["resume"])
        return cls(command, where, params["resume"])

    @property
    def goes_on(self) -> bool:
        """Whether it was begun before."""
        return self.resume and exists(self.place, "config.json")

    @contextmanager
    def opened(self, tuner: Tuner, search: Component, **more: Any) -> Iterator[RunFolder]:
        """Tune in the folder; Ctrl-C says how to go on.

        How many candidates are tuned is no part of what was asked: going on with more of them
        tunes the new ones.

        Raises:
            UserError: what `RunFolder.opened` raises.
        """
        from promptforge.tuning.run import RunFolder

        config = {
            "command": self.command,
            "task": tuner.task.to_json(),
            "model": tuner.backbone.source,
            "search": {"name": search.name, **search.model_dump(mode="json")},
            "verbalizer": {"name": tuner.verbalizer.name, **tuner.verbalizer.model_dump(mode="json")},
            "settings": tuner.settings.model_dump(),
            "rows": {"train": len(tuner.train), "dev": len(tuner.dev)},
            "seed": tuner.seed,
            **more,
        }  # fmt: skip
        with kept(self.place, tuner.report), shared(self.place) as home:
            folder = RunFolder(home)
            with folder.opened(config, resume=self.resume):
                tuner.folder = home
                yield folder
