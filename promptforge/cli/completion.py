"""`promptforge completion`: the script that completes commands and options in a shell."""

from __future__ import annotations

import rich_click as click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands and options in a shell.

    For bash: eval "$(promptforge completion bash)"
    """
    from click.shell_completion import get_completion_class

    from promptforge.cli import cli

    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(cli, {}, "promptforge", "_PROMPTFORGE_COMPLETE").source())
