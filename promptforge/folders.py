"""Folders and files that are written whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from promptforge.errors import PromptForgeError, UserError


def check_new(folder: Path) -> None:
    """Raise a `UserError` unless `folder` can be made: it does not exist, or is empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already. Name another folder.")


def write_text(path: Path, text: str) -> None:
    """Write a file as UTF-8, its line ends as they are in `text`, whole or not at all.

    One that is there is replaced and keeps its permissions.

    Raises:
        PromptForgeError: no space, no permission.
    """
    draft = path.with_name(f"{path.name}.partial")
    try:
        draft.write_text(text, encoding="utf-8", newline="")
        if path.exists():
            shutil.copymode(path, draft)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise PromptForgeError(f"{path} could not be written: {error.strerror or error}.") from None


@contextmanager
def whole(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """A draft to write into, which takes the place of `folder` when nothing went wrong.

    Args:
        folder: an absolute path; must not exist, or be empty.
        replace: what lies there goes when the draft is complete.

    Raises:
        PromptForgeError: no space, no permission.
    """
    draft = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        yield draft
        if folder.exists():
            if replace:
                shutil.rmtree(folder)
            else:
                folder.rmdir()
        draft.replace(folder)
    except OSError as error:
        raise PromptForgeError(
            f"{folder} could not be written: {error.strerror or error}."
        ) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
