"""A filter, a command, a verbalizer and a verbalizer search for PromptForge."""

from __future__ import annotations

import click

from promptforge import hookimpl

EMOJI = {":)": "smiling face", ":(": "sad face"}


@hookimpl
def promptforge_template_filters():
    """`{{ text | spell_emoji }}`."""
    return {"spell_emoji": spell_emoji}


def spell_emoji(text: str) -> str:
    """The text with its emoji as words."""
    for emoji, words in EMOJI.items():
        text = text.replace(emoji, words)
    return text


@click.command("emoji")
def emoji() -> None:
    """List the emoji that spell_emoji knows."""
    for sign, words in EMOJI.items():
        click.echo(f"{sign} {words}")


@hookimpl
def promptforge_commands():
    """`promptforge emoji`."""
    return [emoji]


@hookimpl
def promptforge_verbalizers():
    """Imported late: `promptforge --help` must not import torch."""
    from promptforge_emoji.components import Loudest

    return [Loudest]


@hookimpl
def promptforge_verbalizer_searches():
    """`promptforge search-verbalizer --search likeliest`."""
    from promptforge_emoji.components import Likeliest

    return [Likeliest]
