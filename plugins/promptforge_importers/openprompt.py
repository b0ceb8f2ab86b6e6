"""OpenPrompt (Ding et al. 2022, arXiv:2111.01998): `{"placeholder": "text_a"} It was {"mask"}.`

A file holds one template a line: text, and Python dictionaries in braces, which are read as syntax
trees. Any number of spaces between two of them is one. Label words stand in files beside it: a
line a class with commas between its words and a blank line between sets, or JSON.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from promptforge.importing import Remark, slug
from promptforge.task import Pattern, Task
from promptforge.template import Template
from promptforge.verbalizer import Words
from promptforge_importers.files import beginning, files_in, read_text
from promptforge_importers.labels import WordsImporter, checked_words
from promptforge_importers.python_source import Pieces, Reader, pieces
from promptforge_importers.writing import (
    Break,
    Piece,
    Slot,
    SoftText,
    Unconvertible,
    Value,
    slots,
    template,
)

#: What a template here may have of one soft token.
MOST_SOFT = 512

_TOKEN = re.compile(r"""\{\s*["'](?:placeholder|mask|meta|soft|soft_id|special|text)["']""")
_MASK = re.compile(r"""\{\s*["']mask["']""")
_WORD_FILES = re.compile(r"verbali[sz]er|label_words", re.IGNORECASE)


class OpenPromptImporter(WordsImporter):
    """Template files of OpenPrompt, one template a line, with verbalizer files beside them."""

    name: ClassVar[str] = "openprompt"

    target: str | None = Field(
        None, description="The column of the texts, for templates that text is generated with."
    )

    def accepts(self, source: Path) -> bool:
        """A text file with `{"mask"}`, or a folder with one."""
        return any(self._is_template(path) for path in files_in(source, (".txt",)))

    @staticmethod
    def _is_template(path: Path) -> bool:
        return _MASK.search(beginning(path)) is not None

    def read(self, source: Path) -> Iterator[Task | Remark]:
        """One task for each folder that holds templates."""
        folders: dict[Path, list[Path]] = {}
        for path in files_in(source, (".txt",)):
            if path == source or self._is_template(path):
                folders.setdefault(path.parent, []).append(path)
        root = source if source.is_dir() else source.parent
        for folder, paths in folders.items():
            yield from self._folder(folder, paths, root)

    def _folder(self, folder: Path, paths: list[Path], root: Path) -> Iterator[Task | Remark]:
        words: Words = {}
        lacking = (
            "there are no label words for its templates: put a verbalizer file beside it, or give -o words=FILE, "
            "or -o labels={0 = ['bad'], 1 = ['great']}; where text is to be written, -o target=COLUMN."
        )
        for found in self._words(folder):
            if isinstance(found, Remark):
                yield found
            else:
                words = found
        if not words and not self.target:
            for path in paths:
                yield Remark(str(path), "", lacking)
            return
        patterns: dict[str, Pattern] = {}
        for path in paths:
            stem = slug(path.stem)
            try:
                lines = [line for line in read_text(path).splitlines() if line.strip()]
            except Unconvertible as reason:
                yield Remark(str(path), "", str(reason))
                continue
            for number, line in enumerate(lines, start=1):
                name = f"{stem}-{number}" if len(lines) > 1 else stem
                try:
                    parts = self._parse(line.rstrip(), name)
                except Unconvertible as reason:
                    yield Remark(str(path), name, str(reason))
                    continue
                made = Template(template(parts), name=name, origin=str(path))
                patterns[name] = Pattern(name, made, description=f"{path.name}, line {number}.")
        if patterns:
            name = slug(
                "-".join(folder.resolve().relative_to(root.resolve()).parts)
                or folder.resolve().name
            )
            yield Task(
                name, words if not self.target else {}, patterns, (),
                label_column=self.target or self.label_column, generates=self.target is not None,
                description="Prompts in the format of OpenPrompt.",
            )  # fmt: skip

    # --- templates ------------------------------------------------------------------------

    def _parse(self, text: str, name: str) -> list[Piece]:
        """The pieces of one line."""
        out: list[Piece] = []
        soft: dict[int, list[SoftText]] = {}
        i = 0
        while i < len(text):
            start = i
            while i < len(text) and text[i] == " ":
                i += 1
            if i == len(text):
                break
            if i > start or (i > 0 and text[i - 1] == " "):
                out.append(" ")
            if text[i] == "{":
                end = _closing(text, i)
                out += self._token(text[i : end + 1], soft, name)
                i = end + 1
            else:
                end = text.find("{", i + 1)
                end = len(text) if end < 0 else end
                out.append(text[i:end].rstrip(" "))
                # The spaces before the next token are looked at again.
                i += len(text[i:end].rstrip(" "))
        count = slots(out)
        if count != 1:
            raise Unconvertible(
                "it has no mask."
                if not count
                else f"it has {count} masks that are read together; a pattern here has one answer."
            )
        return out

    def _token(self, source: str, soft: dict[int, list[SoftText]], name: str) -> list[Piece]:
        """What one token in braces stands for."""
        given = _dictionary(source)
        if "placeholder" in given or "meta" in given:
            key = "placeholder" if "placeholder" in given else "meta"
            if not isinstance(given[key], str):
                raise Unconvertible(f"{source}: the name of a column was expected.")
            if given[key] in ("label", "tgt_text"):
                raise Unconvertible(f"{source} is what is to be found.")
            value = pieces(_processed(Pieces((self.column(given[key]),)), given))
            kept = not given.get("shortenable", key == "placeholder")
            return [Value(p.source, kept) if isinstance(p, Value) else p for p in value]
        if "soft" in given or "soft_id" in given:
            return list(_soft(given, soft, name))
        if "mask" in given:
            return [Slot()]
        if "special" in given:
            if given["special"] not in ("<sep>", "<eos>"):
                raise Unconvertible(f"{source}: the only special token here is the separator.")
            return [Break()]
        if "text" in given and isinstance(given["text"], str):
            return list(pieces(_processed(given["text"], given)))
        raise Unconvertible(f"{source} is no token of OpenPrompt that is known here.")

    # --- label words ----------------------------------------------------------------------

    def _words(self, folder: Path) -> Iterator[Words | Remark]:
        """The label words for the templates in a folder: one set, and remarks for all others."""
        if self.labels:
            yield self.labels
            return
        if self.target:
            return
        paths = [self.words] if self.words else _word_files(folder)
        chosen = False
        for path in paths:
            try:
                sets = _word_sets(path)
                if not sets:
                    raise Unconvertible("it has no label words.")
                words = [checked_words(found) for found in sets]
            except Unconvertible as reason:
                yield Remark(str(path), "", str(reason))
                continue
            if not chosen:
                yield words.pop(0)
            chosen = True
            if words:
                yield Remark(
                    str(path), "",
                    f"label words left out, {len(words)} more: a task has one set. Choose a file with -o words=FILE.",
                )  # fmt: skip


def _closing(text: str, start: int) -> int:
    """Where the token that begins at `start` ends."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return i
    raise Unconvertible(f"the brace at character {start + 1} is not closed.")


def _dictionary(source: str) -> dict[str, Any]:
    """A token's keys and values; a function among them stays a syntax tree."""
    try:
        tree = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise Unconvertible(f"{source} is no dictionary of Python.") from None
    if isinstance(tree, ast.Set):
        return {str(Reader({}).read(key)): None for key in tree.elts}
    if not isinstance(tree, ast.Dict) or None in tree.keys:
        raise Unconvertible(f"{source} is no dictionary of Python.")
    read = Reader({}).read
    return {
        str(read(key)): value if isinstance(value, ast.Lambda) else read(value)
        for key, value in zip(tree.keys, tree.values, strict=True)
        if key is not None
    }


def _processed(value: str | Pieces, given: dict[str, Any]) -> Any:
    """`value` after the token's `post_processing`, a function that is read and not called."""
    function = given.get("post_processing")
    if isinstance(function, str):
        try:
            function = ast.parse(function, mode="eval").body
        except (SyntaxError, ValueError, RecursionError):
            raise Unconvertible(f"post_processing: {function!r} is no function.") from None
    if function is None:
        return value
    if not isinstance(function, ast.Lambda) or len(function.args.args) != 1:
        raise Unconvertible("post_processing: a lambda of one argument was expected.")
    return Reader({function.args.args[0].arg: value}).read(function.body)


def _soft(given: dict[str, Any], known: dict[int, list[SoftText]], name: str) -> list[SoftText]:
    """Trainable tokens; `soft_id` repeats those of the token that had it first."""
    number = given.get("soft_id")
    if not (number is None or isinstance(number, int)):
        raise Unconvertible("the soft_id of a soft token is a number.")
    if number is not None and number in known:
        return known[number]
    text, times = given.get("soft"), given.get("duplicate", 1)
    if not (text is None or isinstance(text, str)) or not isinstance(times, int) or times < 1:
        raise Unconvertible("a soft token has a text, or a number as its duplicate.")
    if times > MOST_SOFT:
        raise Unconvertible(f"a soft token is there at most {MOST_SOFT} times.")
    shared = None if number is None else f"{name}-{number}"
    if text:
        made = [SoftText(text, id=shared)]
    elif given.get("same") and times > 1:
        made = [SoftText(n=1, id=shared or f"{name}-same-{len(known)}")] * times
    else:
        made = [SoftText(n=times, id=shared)]
    if number is not None:
        known[number] = made
    return made


def _word_files(folder: Path) -> list[Path]:
    """Files of label words in a folder, those that are meant for classification first."""
    found = [p for p in files_in(folder, (".txt", ".csv", ".json", ".jsonl")) if p.parent == folder]
    named = [p for p in found if _WORD_FILES.search(p.name)]
    return sorted(named, key=lambda p: ("manual" not in p.name, "generation" in p.name, p.name))


def _word_sets(path: Path) -> list[dict[str, list[str]]]:
    """The sets of label words in a file; without names, the classes are 0, 1, ..."""
    text = read_text(path)
    if path.suffix in (".json", ".jsonl"):
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Unconvertible(f"no valid JSON: {error}") from None
        sets = (
            data
            if isinstance(data, list) and data and isinstance(data[0], (dict, list))
            else [data]
        )
        return [_named(one) for one in sets]
    groups = re.split(r"\n\s*\n", text.strip())
    return [
        _named([_line(line) for line in group.splitlines()]) for group in groups if group.strip()
    ]


def _line(line: str) -> list[str]:
    """The words of one class; `{"text": "yes"}` is a word too."""
    if not _TOKEN.search(line):
        return line.split(",")
    given = _dictionary(line.strip())
    if not isinstance(given.get("text"), str):
        raise Unconvertible(f"{line.strip()}: the words differ from row to row.")
    return [given["text"]]


def _named(data: Any) -> dict[str, list[str]]:
    """One set of label words: label -> words."""
    if isinstance(data, list):
        data = {str(i): words for i, words in enumerate(data)}
    if not isinstance(data, dict):
        raise Unconvertible("label words are a list, or names with lists.")
    made: dict[str, list[str]] = {}
    for label, words in data.items():
        words = [words] if isinstance(words, str) else words
        if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
            raise Unconvertible(f"the words of {label!r} are no list of texts.")
        made[str(label)] = words
    return made
