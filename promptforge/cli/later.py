"""Commands whose module is imported when they are used, so that `promptforge --help` is fast."""

from __future__ import annotations

from importlib import import_module

import rich_click as click

from promptforge.errors import PromptForgeError


class LaterCommand(click.RichCommand):
    """Stands for a command in `promptforge --help` until somebody uses it.

    Args:
        name: as it is typed.
        target: where the command is, `package.module:attribute`.
        help: the first paragraph of its help.
    """

    def __init__(self, name: str, target: str, help: str) -> None:
        super().__init__(name=name, help=help)
        self.target = target

    def load(self) -> click.Command:
        """The command.

        Raises:
            PromptForgeError: it is not at `target`.
        """
        module, _, attribute = self.target.partition(":")
        try:
            found = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise PromptForgeError(
                f"The command {self.name!r} should be at {self.target}: {error}. Install its plugin anew."
            ) from error
        if not isinstance(found, click.Command):
            raise PromptForgeError(f"{self.target} is {found!r}, which is not a command.")
        return found
