"""Patterns as they lie in a task folder, and saving them without losing what others wrote."""

from __future__ import annotations

import codecs
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from promptforge.errors import UserError
from promptforge.folders import whole, write_text
from promptforge.task import TASK_FILE, Task, task_folders
from promptforge.task_file import read_task, write_task
from promptforge.verbalizer import Words


class Conflict(UserError):
    """What is on the disk is not what the page started from."""


@dataclass(frozen=True)
class Saved:
    """A pattern as it lies on the disk.

    Attributes:
        words: label -> words, the pattern's own or the task's.
        own: whether they are the pattern's own.
        stamp: changes when the template or the words do.
    """

    file: Path
    source: str
    words: Words
    own: bool
    stamp: str


class Shelf:
    """Where the patterns of a task are saved.

    Args:
        task: read from a folder, or made from options.
        new: a task folder to be made by the first save, of a task that has none.

    Attributes:
        folder: the task folder; None where nothing can be saved.
        refusal: why nothing can be saved; empty where it can.
    """

    def __init__(self, task: Task, new: Path | None = None) -> None:
        self._task = task
        self.folder: Path | None = None
        self.refusal = ""
        if new is not None:
            if task.folder is not None:
                raise UserError(
                    f"--save-to {new}: {task.folder} is a task folder already. To keep it as it is, copy "
                    f"it first: 'promptforge templates copy {task.folder} {new}'."
                )
            if new.exists():
                raise UserError(
                    f"--save-to {new} exists already: name a folder that does not, or give it as TASK."
                )
            self.folder = new.absolute()
        elif task.folder is None:
            self.refusal = "There is no task folder to save to: start the playground with --save-to FOLDER, or with a TASK."
        elif task.folder.resolve() in {p.resolve() for p in task_folders().values()}:
            name = task.folder.name
            self.refusal = (
                f"{name} is a shipped task and is not changed. Copy it: 'promptforge templates copy {name} my-{name}', "
                f"then start 'promptforge playground my-{name}'."
            )
        elif not _is_of(task, task.folder):
            self.refusal = "The templates of --template are no patterns of the task: start the playground without it to save."
        else:
            self.folder = task.folder.absolute()

    def patterns(self) -> dict[str, Saved]:
        """The patterns as they lie on the disk now, by name; empty where there is no folder (yet).

        Raises:
            UserError: somebody broke the task folder.
        """
        if self.folder is None or not (self.folder / TASK_FILE).is_file():
            return {}
        task = read_task(self.folder)
        made: dict[str, Saved] = {}
        for name, found in task.patterns.items():
            source, words = found.template.source, task.words_for(name)
            stamp = hashlib.sha256(json.dumps([source, words]).encode()).hexdigest()
            file = Path(found.template.origin)
            made[name] = Saved(file, source, words, found.words is not None, stamp)
        return made

    def save(
        self, task: Task, pattern: str, stamp: str | None
    ) -> tuple[dict[str, Saved], dict[str, Saved]]:
        """Write a pattern of `task`: its template and, where they changed, its label words.

        Args:
            task: the task with the pattern as it should be; checked by the caller.
            stamp: of what the pattern was made from; None: of what was never saved.

        Returns:
            All patterns as they were before and as they are now: the first save writes them all,
            and label words may be those of several.

        Raises:
            Conflict: it changed on the disk meanwhile.
            UserError: nothing can be saved, and why.
            PromptForgeError: no space, no permission.
        """
        if self.folder is None:
            raise UserError(self.refusal)
        all_before = self.patterns()
        before = all_before.get(pattern)
        if (before and before.stamp) != stamp:
            raise Conflict(
                f"{before.file if before else self.folder} has changed on the disk since this page read it, "
                "so nothing was saved. Load it from the disk (your text stays in the undo history), or copy your text first."
            )
        if before is None:
            with whole(self.folder) as draft:
                draft.rmdir()
                write_task(replace(task, folder=None), draft)
        else:
            wanted = task.patterns[pattern]
            if task.words_for(pattern) != before.words:
                self._write_words(pattern, task.words_for(pattern), before.own)
            if wanted.template.source.rstrip() != before.source:
                _rewrite(before.file.resolve(), wanted.template.source.rstrip() + "\n")
        return all_before, self.patterns()

    def _write_words(self, pattern: str, words: Words, own: bool) -> None:
        """Change the words in `task.toml`, and nothing else in it."""
        import tomlkit

        assert self.folder is not None
        path = (self.folder / TASK_FILE).resolve()
        document: Any = tomlkit.parse(path.read_text(encoding="utf-8-sig"))
        table = document["patterns"][pattern]["words"] if own else document["labels"]
        for label, some in words.items():
            if list(table[label]) != some:
                table[label] = some
        _rewrite(path, tomlkit.dumps(document))


def _is_of(task: Task, folder: Path) -> bool:
    """Whether the patterns of a task are those of its folder, and none is from elsewhere."""
    known = read_task(folder).patterns
    return all(
        name in known and known[name].template.origin == pattern.template.origin
        for name, pattern in task.patterns.items()
    )


def _rewrite(path: Path, text: str) -> None:
    """Write a file anew, with the line ends and the byte order mark that it had."""
    before = path.read_bytes()
    if b"\r\n" in before:
        text = text.replace("\r\n", "\n").replace("\n", "\r\n")
    mark = "\ufeff" if before.startswith(codecs.BOM_UTF8) else ""
    write_text(path, mark + text)
