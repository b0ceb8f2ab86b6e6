"""What goes wrong, said to the person: every error the command line prints without a traceback."""

from __future__ import annotations


class PromptForgeError(Exception):
    """Something failed that is not the user's mistake. The command line exits with 1."""

    exit_code = 1


class UserError(PromptForgeError, ValueError):
    """The user can mend this: a file, a column, an option, a template. Exit code 2.

    The message says what is wrong, where, and what to do next.
    """

    exit_code = 2


def nearest(word: str, known: list[str]) -> str:
    """The one of `known` that `word` is a mistyping of; an empty string where none is near."""
    import difflib

    # A table's columns may be called by numbers.
    near = difflib.get_close_matches(word, [str(name) for name in known], n=1)
    return near[0] if near else ""


def did_you_mean(word: str, known: list[str]) -> str:
    """`" Did you mean 'x'?"` for the nearest of `known`, else an empty string."""
    near = nearest(word, known)
    return f" Did you mean {near!r}?" if near else ""


def listed(names: list[str], most: int = 12) -> str:
    """The names for a message, comma-separated and cut after `most`."""
    shown = ", ".join(repr(n) for n in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
