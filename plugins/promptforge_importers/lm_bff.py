"""LM-BFF (Gao, Fisch & Chen 2021): `*cls**sent_0*_It_was*mask*.*sep+*` and `{'0':'bad','1':'great'}`.

Between asterisks stand variables, elsewhere words, with `_` for a space. `*sent_0*` is a sentence,
`*+sent_0*` one with a space before it, `sentl` and `sentu` change the first letter, `sent-` leaves
out the last character. A label word always has a space before it, so the mask gets one. Files
hold a template or a mapping a line, with a score before it or, after a tab, a mapping behind it;
the script of the experiments has them as `TEMPLATE=` and `MAPPING=`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from promptforge.importing import Remark, slug
from promptforge.task import Pattern, Task
from promptforge.template import Template
from promptforge.verbalizer import Words
from promptforge_importers.files import beginning, files_in, read_text
from promptforge_importers.labels import WordsImporter, checked_words
from promptforge_importers.writing import (
    Break,
    Piece,
    Slot,
    Unconvertible,
    Value,
    slots,
    template,
)

_TEMPLATE = re.compile(r"\*cls\*|\*mask\*")
_SENTENCE = re.compile(r"(\+?)sent([lu]?)(-?)_(\d{1,9})")
_CASE = re.compile(r"^\s*[\"']?([\w.-]+)[\"']?\)\s*$")
_ASSIGNED = re.compile(r"^\s*(TEMPLATE|MAPPING)=(.*?)\s*$")
_SCORE = re.compile(r"^-?\d+(?:\.\d+)?\s+(?=[*{])")
#: What the sentences of an example are called in the files of LM-BFF.
_COLUMNS = ("text_a", "text_b")


@dataclass(frozen=True)
class _Line:
    """A template of a file, with the mapping that stands beside it."""

    name: str
    text: str
    mapping: str | None = None


class LmBffImporter(WordsImporter):
    """Template files of LM-BFF, one template a line, or its script with TEMPLATE= and MAPPING=."""

    name: ClassVar[str] = "lm-bff"

    def accepts(self, source: Path) -> bool:
        """A text file or script with `*cls*` and `*mask*`, or a folder with one."""
        return any(self._is_template(path) for path in files_in(source, (".txt", ".tsv", ".sh")))

    @staticmethod
    def _is_template(path: Path) -> bool:
        text = beginning(path)
        return "*mask*" in text and "*cls*" in text

    def read(self, source: Path) -> Iterator[Task | Remark]:
        """One task for each file, and for each case of a script."""
        for path in files_in(source, (".txt", ".tsv", ".sh")):
            if path != source and not self._is_template(path):
                continue
            try:
                text = read_text(path)
                if path.suffix == ".sh":
                    for case, line in _cases(text):
                        yield from self._task(case, [line], path)
                else:
                    parts = (
                        path.relative_to(source).with_suffix("").parts
                        if path != source
                        else (path.stem,)
                    )
                    yield from self._task("-".join(parts), list(_lines(text)), path)
            except Unconvertible as reason:
                yield Remark(str(path), "", str(reason))

    def _task(self, name: str, lines: list[_Line], path: Path) -> Iterator[Task | Remark]:
        """The task that the templates of one file make."""
        words: Words = {}
        for found in self._words(path):
            if isinstance(found, Remark):
                yield found
            else:
                words = found
        patterns: dict[str, Pattern] = {}
        if not words and not any(line.mapping for line in lines):
            yield Remark(
                str(path), "",
                "there are no label words for its templates: give -o words=FILE (a file of mappings), or "
                "-o labels={0 = ['bad'], 1 = ['great']}.",
            )  # fmt: skip
            return
        for_all = words
        for line in lines:
            try:
                own = _mapping(line.mapping) if line.mapping else for_all
                if not own:
                    raise Unconvertible("it has no mapping beside it, as others have.")
                words = words or own
                if own.keys() != words.keys():
                    raise Unconvertible("its mapping is for other labels than the first one's.")
                parts = self._parse(line.text)
            except Unconvertible as reason:
                yield Remark(str(path), line.name, str(reason))
                continue
            key = slug(line.name)
            made = Template(template(parts), name=key, origin=str(path))
            in_order = {label: own[label] for label in words}
            patterns[key] = Pattern(key, made, in_order if own != words else None, None, line.text)
        if patterns:
            yield Task(
                slug(name), words, patterns, (), label_column=self.label_column,
                description="Prompts in the format of LM-BFF.",
            )  # fmt: skip

    def _words(self, path: Path) -> Iterator[Words | Remark]:
        """The label words for the templates of a file, where they have none beside them."""
        if self.labels:
            yield self.labels
            return
        if self.words is not None:
            files = [self.words]
        elif path.suffix == ".sh":
            files = []
        else:
            others = (
                p for p in files_in(path.parent, (".txt", ".json")) if p.parent == path.parent
            )
            files = [
                p for p in others if p != path and re.match(r"\s*(?:-?[\d.]+\s+)?\{", beginning(p))
            ]
        for file in files:
            try:
                lines = [line for line in read_text(file).splitlines() if line.strip()]
                first = _mapping(_SCORE.sub("", lines[0].strip())) if lines else {}
            except Unconvertible as reason:
                if self.words is not None:
                    raise Unconvertible(f"words={file}: {reason}") from None
                yield Remark(str(file), "", str(reason))
                continue
            if not first:
                continue
            yield first
            if len(lines) > 1:
                yield Remark(
                    str(file), "",
                    f"mappings left out, {len(lines) - 1} after the first: a task has one set of label words.",
                )  # fmt: skip
            return

    def _parse(self, text: str) -> list[Piece]:
        """The pieces of one template."""
        parts = [part for part in text.split("*") if part]
        out: list[Piece] = []
        for i, part in enumerate(parts):
            if part == "cls":
                if i:
                    raise Unconvertible("*cls* stands first, where the model puts it itself.")
            elif part in ("sep", "sep+"):
                if i + 1 < len(parts):  # the last one is the model's own
                    out.append(Break())
            elif part == "mask":
                if out and not (isinstance(out[-1], str) and out[-1].endswith(" ")):
                    out.append(" ")
                out.append(Slot())
            elif match := _SENTENCE.fullmatch(part):
                out += self._sentence(match)
            elif re.match(r"labelx?_\d+$|\+?sent", part):
                raise Unconvertible(
                    f"*{part}* is for demonstrations; here they are chosen with --demonstrations."
                    if part.startswith("label")
                    else f"*{part}* is no variable of LM-BFF that is known here."
                )
            else:
                out.append(part.replace("_", " "))
        if (count := slots(out)) != 1:
            raise Unconvertible(
                f"it has {count} masks; LM-BFF reads one." if count else "it has no mask."
            )
        return out

    def _sentence(self, match: re.Match[str]) -> list[Piece]:
        """One sentence; its first letter and its last character apart."""
        space, letter, shorter, number = match.groups()
        if int(number) >= len(_COLUMNS):
            raise Unconvertible(
                f"*{match[0]}* is sentence {int(number) + 1}: those after the second are demonstrations."
            )
        text = self.column(_COLUMNS[int(number)])
        before: list[Piece] = [" "] if space else []
        if not letter:
            return [*before, text.then("[:-1]") if shorter else text]
        first = text.then("[:-1]").then("[:1]") if shorter else text.then("[:1]")
        cased: Value = first.then(".lower()" if letter == "l" else ".upper()")
        return [*before, cased, text.then("[1:-1]" if shorter else "[1:]")]


def _lines(text: str) -> Iterator[_Line]:
    """The templates of a file, one a line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    digits = len(str(len(lines)))
    for number, line in enumerate(lines, start=1):
        made, _, mapping = _SCORE.sub("", line).partition("\t")
        yield _Line(f"line-{number:0{digits}}", made.strip(), mapping.strip() or None)


def _cases(text: str) -> Iterator[tuple[str, _Line]]:
    """Name and template of each case of a script; a case without a mapping has none."""
    name, told = "", dict[str, str]()
    for line in [*text.splitlines(), ";;"]:
        if match := _CASE.match(line):
            name, told = match[1], {}
        elif match := _ASSIGNED.match(line):
            told[match[1]] = (
                match[2].strip("\"'") if match[1] == "TEMPLATE" else match[2].strip('"')
            )
        elif line.strip() == ";;" and _TEMPLATE.search(told.get("TEMPLATE", "")):
            yield name, _Line("prompt", told["TEMPLATE"], told.get("MAPPING"))
            told = {}


def _mapping(text: str) -> Words:
    """Label words, written as a dictionary of Python or JSON."""
    try:
        data = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        raise Unconvertible(f"{text[:60]!r} is no mapping of labels to words.") from None
    if not isinstance(data, dict) or not all(isinstance(word, str) for word in data.values()):
        raise Unconvertible(f"{text[:60]!r} is no mapping of labels to words.")
    return checked_words({str(label): [word] for label, word in data.items()})
