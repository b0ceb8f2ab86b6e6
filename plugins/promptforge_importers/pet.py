"""PET (Schick & Schütze 2021): classes with `VERBALIZER` and `get_parts`, read and never run.

`get_parts` returns two lists of texts for each `self.pattern_id`: the two segments. PET encodes
every text of a list with a space before it; a text in `self.shortenable` may be cut. Both this
method and `verbalize` are worked out from the syntax tree, for every number that a condition on
`self.pattern_id` names and the one after the last.
"""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from promptforge.importing import Remark, slug
from promptforge.task import Pattern, Task
from promptforge.template import Template
from promptforge.verbalizer import Words
from promptforge_importers.files import beginning, files_in, read_text
from promptforge_importers.labels import NamedImporter, checked_words
from promptforge_importers.pet_classes import Module
from promptforge_importers.python_source import Pieces, Reader, pieces
from promptforge_importers.writing import (
    Break,
    Piece,
    Slot,
    Unconvertible,
    Value,
    slots,
    template,
)


class PetImporter(NamedImporter):
    """Python files with pattern-verbalizer pairs of PET."""

    name: ClassVar[str] = "pet"

    def accepts(self, source: Path) -> bool:
        """A Python file with `get_parts` and `self.mask`, or a folder with one."""
        return any(self._has_pairs(path) for path in files_in(source, (".py",)))

    @staticmethod
    def _has_pairs(path: Path) -> bool:
        text = beginning(path, 2**20)
        return "def get_parts" in text and "self.mask" in text

    def read(self, source: Path) -> Iterator[Task | Remark]:
        """One task for each class."""
        for path in files_in(source, (".py",)):
            if path != source and not self._has_pairs(path):
                continue
            try:
                module = Module(read_text(path))
                if not module.classes:
                    raise Unconvertible("it has no class with get_parts.")
                for name in module.pairs():
                    yield from self._pair(module, name, str(path))
            except Unconvertible as reason:
                yield Remark(str(path), "", str(reason))
            except RecursionError:
                yield Remark(str(path), "", "an expression is nested too deeply.")

    def _pair(self, module: Module, name: str, path: str) -> Iterator[Task | Remark]:
        """The task of one class."""
        patterns: dict[str, Pattern] = {}
        words: Words = {}
        seen: list[tuple[str, Words]] = []
        try:
            numbers = module.pattern_ids(name)
        except Unconvertible as reason:
            yield Remark(path, name, str(reason))
            return
        for number in numbers:
            key = f"pattern-{number}"
            try:
                returned = _Method(module, name, number, self).result("get_parts")
                if returned is None:
                    continue  # no branch is for this number
                parts = _prompt(returned)
                own = self._words(module, name, number)
            except Unconvertible as reason:
                yield Remark(path, f"{name}, pattern {number}", str(reason))
                continue
            source = template(parts)
            if (source, own) in seen:
                continue  # an `else`, once more
            seen.append((source, own))
            words = words or own
            made = Template(source, name=key, origin=path)
            patterns[key] = Pattern(
                key, made, own if own != words else None, None, f"{name}, pattern {number}."
            )
        if patterns:
            yield Task(
                slug(module.registered.get(name) or re.sub(r"PVP$", "", name)), words, patterns, (),
                label_column=self.label_column, description=f"Pattern-verbalizer pairs of PET: {name}.",
            )  # fmt: skip

    def _words(self, module: Module, name: str, number: int) -> Words:
        """Label -> words of one pattern."""
        found: dict[str, list[str]] = {}
        for label in module.labels(name):
            said = _Method(module, name, number, self).result("verbalize", label)
            if not isinstance(said, (list, tuple)) or not all(isinstance(w, str) for w in said):
                raise Unconvertible(f"the words of the label {label!r} are not told by its class.")
            found[label] = list(said)
        if not found:
            raise Unconvertible("its answers differ from row to row: it has no VERBALIZER.")
        return checked_words(found)


class _Return(Exception):
    """A method has come to its `return`."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Method(Reader):
    """Works out a method for one pattern: assignments, conditions on the number, `return`."""

    def __init__(self, module: Module, name: str, number: int, importer: NamedImporter) -> None:
        super().__init__(module.constants)
        self.module, self.cls, self.number, self.importer = module, name, number, importer
        self.values = module.values(name)
        self.owner = name

    def result(self, method: str, *given: Any, after: str | None = None) -> Any:
        """What the method returns; None where it returns nothing or raises."""
        found = self.module.method(self.cls, method, after=after)
        if found is None:
            raise Unconvertible(f"its class has no {method} in this file.")
        self.owner, node = found
        parameters = [argument.arg for argument in node.args.args][1:]
        self.example = parameters[0] if method == "get_parts" and parameters else ""
        self.names = {**self.module.constants, **dict(zip(parameters, given, strict=False))}
        try:
            self._run(node.body)
        except _Return as returned:
            return returned.value
        except RecursionError:
            raise Unconvertible("its methods call each other without end.") from None
        return None

    def _run(self, body: list[ast.stmt]) -> None:
        for node in body:
            match node:
                case ast.Return():
                    raise _Return(self.read(node.value) if node.value else None)
                case ast.If():
                    self._run(node.body if self.truth(node.test) else node.orelse)
                case (
                    ast.Assign(targets=[ast.Name(id=name)])
                    | ast.AnnAssign(target=ast.Name(id=name))
                ) if node.value:
                    try:
                        self.names[name] = self.read(node.value)
                    except Unconvertible as reason:  # unless a pattern uses it, it does not matter
                        self.names[name] = reason
                case ast.Raise():
                    raise _Return(None)
                case ast.Expr(value=ast.Constant()) | ast.Pass() | ast.Assert():
                    pass
                case _:
                    shown = " ".join(ast.unparse(node).split())
                    raise Unconvertible(f"`{shown[:60]}` is code, which is not run.")

    def visit_Name(self, node: ast.Name) -> Any:
        value = super().visit_Name(node)
        if isinstance(value, Unconvertible):
            raise value
        return value

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        base = node.value
        if isinstance(base, ast.Name) and base.id == "self":
            if node.attr == "mask":
                return Pieces((Slot(),))
            if node.attr == "pattern_id":
                return self.number
        if isinstance(base, ast.Name) and base.id == self.example:
            if node.attr in ("text_a", "text_b"):
                return Pieces((self.importer.column(node.attr),))
            raise Unconvertible(f"it uses example.{node.attr}, which is not a text of the row.")
        if isinstance(base, ast.Name) and base.id in ("self", "cls", *self.module.classes):
            values = self.values if base.id in ("self", "cls") else self.module.values(base.id)
            if node.attr in values:
                return values[node.attr]
        return super().visit_Attribute(node)

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        if ast.unparse(node.value) == f"{self.example}.meta":
            return self._meta(node.slice)
        return super().visit_Subscript(node)

    def _meta(self, key: ast.expr) -> Pieces:
        if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
            raise Unconvertible("which column it uses depends on the row.")
        return Pieces((self.importer.column(key.value),))

    def visit_Call(self, node: ast.Call) -> Any:
        called = ast.unparse(node.func)
        if called == f"{self.example}.meta.get" and len(node.args) == 1:
            return self._meta(node.args[0])
        name = called.rpartition(".")[2]
        if called.startswith("super()") and name == "get_parts":
            above = _Method(self.module, self.cls, self.number, self.importer)
            return above.result("get_parts", after=self.owner)
        of_class = called.rpartition(".")[0] in ("self", "PVP", *self.module.classes)
        if of_class and len(node.args) == 1 and not node.keywords:
            match name:
                case "shortenable":
                    return self.visit(node.args[0]), True
                case "remove_final_punc":
                    return self._stripped(node, self.visit(node.args[0]))
                case "lowercase_first":
                    return self._lowered(node, self.visit(node.args[0]))
        return super().visit_Call(node)

    def _stripped(self, node: ast.Call, text: Any) -> Any:
        """PET's `remove_final_punc`."""
        if isinstance(text, tuple) and not isinstance(text, Pieces):
            return self._stripped(node, text[0]), text[1]
        if isinstance(text, str):
            return text.rstrip(string.punctuation)
        return self.of_row(node, pieces(text), f".rstrip({_PUNCTUATION})")

    def _lowered(self, node: ast.Call, text: Any) -> Any:
        """PET's `lowercase_first`."""
        if isinstance(text, tuple) and not isinstance(text, Pieces):
            return self._lowered(node, text[0]), text[1]
        if isinstance(text, str):
            return text[:1].lower() + text[1:]
        first = self.of_row(node, pieces(text), "[:1].lower()")
        return Pieces((*first, *self.of_row(node, pieces(text), "[1:]")))


_PUNCTUATION = '"' + string.punctuation.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _prompt(returned: Any) -> list[Piece]:
    """What `get_parts` returns as one prompt: texts with a space between, a break between the lists."""
    if not (isinstance(returned, tuple) and len(returned) == 2):
        raise Unconvertible("get_parts returns two lists; this is something else.")
    segments: list[list[Piece]] = []
    for listed in returned:
        if not isinstance(listed, list):
            raise Unconvertible("get_parts returns two lists; this is something else.")
        out: list[Piece] = []
        for item in listed:
            given = (
                item if isinstance(item, tuple) and not isinstance(item, Pieces) else (item, False)
            )
            if len(given) != 2:
                raise Unconvertible("get_parts returns texts; this is something else.")
            text, cut = given
            found = [Value(p.source, not cut) if isinstance(p, Value) else p for p in pieces(text)]
            # A space at an end is the one that comes between two texts anyway.
            if found and isinstance(found[0], str):
                found[0] = found[0].lstrip()
            if found and isinstance(found[-1], str):
                found[-1] = found[-1].rstrip()
            out += [" ", *found] if out and found else found
        segments.append(out)
    parts = [*segments[0], *([Break(), *segments[1]] if segments[1] else [])]
    if (count := slots(parts)) != 1:
        raise Unconvertible(
            f"it has {count} masks; a pattern here has one." if count else "it has no mask."
        )
    return parts
