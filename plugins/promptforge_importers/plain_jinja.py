"""Patterns as plain Jinja: text templates that any Jinja renders with the columns and `mask`.

The source is rewritten token by token, so that everything else in it stays as it is written:
`mask` becomes a variable or a given text, `soft("It was")` its words and a soft token without
words nothing, `sep` a line break, `tail(".")` its text; `keep` and `truncate_here` are left out;
loops over `demos` go, because other toolkits show demonstrations in their own way; `labels` and
`words` become literals. What was written is rendered and compared with the pattern.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field

from promptforge.errors import UserError
from promptforge.exporting import TemplateExporter
from promptforge.importing import Remark
from promptforge.task import Pattern, Task
from promptforge.template import Mask, Prompt, Sep, Soft, Text
from promptforge_importers.writing import Unconvertible, literal, quoted


class _Plain(ImmutableSandboxedEnvironment):
    # Of an operator that is intercepted nothing is worked out before the template is rendered.
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)


_PLAIN = _Plain(undefined=jinja2.StrictUndefined)
_MARKS = ("keep", "truncate_here")
_TRIAL = "A text, for trial; of two parts."


class JinjaExporter(TemplateExporter):
    """One `.jinja` file a pattern, and `words.json` with the label words of each."""

    name: ClassVar[str] = "jinja"

    mask: str | None = Field(
        None,
        description="What stands for the mask, such as '[MASK]'; without it, the variable mask.",
    )
    separator: str = Field("\n", description="What stands between two segments.")

    def files(self, task: Task) -> tuple[dict[str, str], list[Remark]]:
        """The templates and their words."""
        made: dict[str, str] = {}
        words: dict[str, dict[str, list[str]]] = {}
        remarks: list[Remark] = []
        for name, pattern in task.patterns.items():
            origin = pattern.template.origin
            try:
                if pattern.template.renderer != "jinja":
                    raise Unconvertible(
                        f"it is written in {pattern.template.renderer}, not in Jinja."
                    )
                source, notes = self.plain(task, pattern)
            except Unconvertible as reason:
                remarks.append(Remark(origin, name, str(reason)))
                continue
            made[f"{name}.jinja"] = source + "\n"
            words[name] = task.words_for(name)
            remarks += [Remark(origin, name, note, imported=True) for note in notes]
        if made and not task.generates:
            made["words.json"] = json.dumps(words, indent=2, ensure_ascii=False) + "\n"
        return made, remarks

    def plain(self, task: Task, pattern: Pattern) -> tuple[str, list[str]]:
        """A pattern's template as plain Jinja, and what was left out of it.

        Raises:
            Unconvertible: it says what plain Jinja does not.
        """
        rewriting = _Rewriting(task, pattern, self.mask, self.separator)
        source, notes = rewriting.source(), rewriting.notes
        try:
            compiled = _PLAIN.from_string(source)
            free = meta.find_undeclared_variables(_PLAIN.parse(source))
        except (jinja2.TemplateError, RecursionError) as error:
            raise Unconvertible(f"plain Jinja does not have all that it uses: {error}") from None
        unknown = sorted(free - {"mask", *task.binary.inputs} - _PLAIN.globals.keys())
        if unknown:
            raise Unconvertible(f"it uses {unknown[0]!r}, which only templates here have.")
        row = dict.fromkeys(task.binary.inputs, _TRIAL)
        try:
            prompt = pattern.template.render(
                row, labels=list(task.labels), words=task.words_for(pattern.name)
            )
        except UserError:
            return source, notes  # values of another kind are wanted: nothing to compare
        expected = self._text(prompt)
        try:
            found = compiled.render(**row, mask="mask")
        except Exception as error:  # what a template does with `mask`, a text, may be anything
            raise Unconvertible(f"plain Jinja cannot render it: {error}") from None
        if found != expected:
            raise Unconvertible(f"as plain Jinja it would say {found!r}, not {expected!r}.")
        return source, notes

    def _text(self, prompt: Prompt) -> str:
        """What the plain template must make of a row."""
        out = ""
        for part in prompt.parts:
            match part:
                case Text():
                    out += part.text
                case Mask():
                    out += ("mask" if self.mask is None else self.mask) * part.length
                case Soft():
                    out += part.text or ""
                case Sep():
                    out += self.separator
        return out


@dataclass(frozen=True)
class _Token:
    """A token of Jinja, with the white space that is in it."""

    kind: str
    text: str


class _Rewriting:
    """One template on its way from our Jinja to plain Jinja."""

    def __init__(self, task: Task, pattern: Pattern, mask: str | None, separator: str) -> None:
        self.task, self.pattern, self.mask, self.separator = task, pattern, mask, separator
        self.notes: list[str] = []
        try:
            lexed = list(_PLAIN.lex(pattern.template.source.rstrip()))
        except jinja2.TemplateSyntaxError as error:
            raise Unconvertible(str(error)) from None
        self.tokens = self._without_demos([_Token(kind, text) for _, kind, text in lexed])

    def _without_demos(self, tokens: list[_Token]) -> list[_Token]:
        """The tokens without `{% for ... in demos %} ... {% endfor %}`."""
        blocks = list(_blocks(tokens))
        gone: set[int] = set()
        for i, (start, _, words) in enumerate(blocks):
            if words[:1] != ["for"] or words[-2:] != ["in", "demos"] or start in gone:
                continue
            depth = 0
            for _, last, inner in blocks[i:]:
                depth += (inner[:1] == ["for"]) - (inner[:1] == ["endfor"])
                if depth == 1 and inner[:1] == ["else"]:
                    raise Unconvertible("it says what to write where there are no demonstrations.")
                if depth == 0:
                    gone.update(range(start, last + 1))
                    break
        if gone:
            self.notes.append(
                "demonstrations are left out: other toolkits show them in their own way."
            )
        return [token for i, token in enumerate(tokens) if i not in gone]

    def source(self) -> str:
        """The template as plain Jinja."""
        out: list[str] = []
        i = 0
        while i < len(self.tokens):
            token = self.tokens[i]
            if token.kind == "variable_begin":
                end = self._closing(i, "variable_end")
                inside = self.tokens[i + 1 : end]
                written = self._expression(inside)
                said = _said(written)
                changed = written != "".join(t.text for t in inside)
                if said is not None and changed:  # a constant is the template's own words
                    out.append(literal(said))
                else:
                    out.append(token.text + written + self.tokens[end].text)
                i = end + 1
            elif token.kind == "block_begin":
                end = self._closing(i, "block_end")
                out.append(
                    token.text + self._expression(self.tokens[i + 1 : end]) + self.tokens[end].text
                )
                i = end + 1
            else:
                out.append(token.text)
                i += 1
        return "".join(out)

    def _closing(self, start: int, end: str) -> int:
        for i in range(start + 1, len(self.tokens)):
            if self.tokens[i].kind == end:
                return i
        raise Unconvertible("a '{{ ... }}' or '{% ... %}' is not closed.")

    def _expression(self, tokens: list[_Token]) -> str:
        """The tokens of one expression or statement, our words replaced."""
        out = ""
        i = 0
        before = ""  # the last token that is no white space
        while i < len(tokens):
            token = tokens[i]
            if token.text == "|" and (name := _next(tokens, i)) and tokens[name].text in _MARKS:
                after = _next(tokens, name)
                i = (
                    _call_end(tokens, after) + 1
                    if after and tokens[after].text == "("
                    else name + 1
                )
                out = out.rstrip()
                continue
            after = _next(tokens, i)
            keyword = bool(after) and tokens[after or 0].text == "=" and before in ("(", ",")
            if token.kind == "name" and before != "." and not keyword and token.text in _WORDS:
                called = after if after and tokens[after].text == "(" else None
                end = _call_end(tokens, called) if called else i
                given = _arguments(tokens[called + 1 : end]) if called else None
                if token.text == "row" and after and tokens[after].text in (".", "["):
                    written, end = self._column(tokens, after)
                else:
                    written = self._word(token.text, given)
                out += written
                i, before = end + 1, "x"
                continue
            out += token.text
            before = token.text if token.kind != "whitespace" else before
            i += 1
        return out

    def _word(self, word: str, given: dict[str, str] | None) -> str:
        """One of our words as an expression of plain Jinja."""
        match word:
            case "mask":
                times = (given or {}).get("0", (given or {}).get("length", "1"))
                if not re.fullmatch(r"\d{1,2}", times):
                    times = f"({times})"  # worked out in the template
                elif self.mask is not None:
                    return quoted(self.mask * int(times))
                mask = "mask" if self.mask is None else quoted(self.mask)
                return mask if times == "1" else f"({mask} * {times})"
            case "sep":
                return quoted(self.separator)
            case "tail":
                return (given or {}).get("0", '""')
            case "soft":
                text = (given or {}).get("0", (given or {}).get("text", '""'))
                if re.fullmatch(r"\d+", text):
                    text = '""'
                self.notes.append(
                    "soft tokens without words are left out."
                    if text == '""'
                    else "soft tokens are written as their words."
                )
                self.notes = list(dict.fromkeys(self.notes))
                return text
            case "labels":
                return json.dumps(list(self.task.labels), ensure_ascii=False)
            case "words":
                return json.dumps(self.task.words_for(self.pattern.name), ensure_ascii=False)
            case "demos":
                return "[]"
        return word

    def _column(self, tokens: list[_Token], after: int) -> tuple[str, int]:
        """`row.name` or `row["name"]` as the variable `name`, and where it ends."""
        name = _next(tokens, after)
        if name is not None and tokens[after].text == "." and tokens[name].kind == "name":
            return tokens[name].text, name
        if name is not None and tokens[name].kind == "string":
            column = tokens[name].text[1:-1]
            end = _next(tokens, name)
            if end is not None and tokens[end].text == "]" and column.isidentifier():
                return column, end
        raise Unconvertible("it reads a column whose name is no variable of Jinja.")


_WORDS = ("mask", "soft", "sep", "tail", "labels", "words", "demos", "row")


def _said(expression: str) -> str | None:
    """The text that an expression is, where it is one in double quotes as JSON writes it."""
    if not re.fullmatch(r'\s*"(?:[^"\\]|\\.)*"\s*', expression):
        return None
    try:
        return str(json.loads(expression))
    except ValueError:  # "\x41", which Jinja reads
        return None


def _blocks(tokens: list[_Token]) -> Iterator[tuple[int, int, list[str]]]:
    """Start, end and words of each `{% ... %}`."""
    start = None
    for i, token in enumerate(tokens):
        if token.kind == "block_begin":
            start = i
        elif token.kind == "block_end" and start is not None:
            words = [t.text for t in tokens[start + 1 : i] if t.kind != "whitespace"]
            yield start, i, words
            start = None


def _next(tokens: list[_Token], i: int) -> int | None:
    """The place of the next token that is no white space."""
    return next((j for j in range(i + 1, len(tokens)) if tokens[j].kind != "whitespace"), None)


def _call_end(tokens: list[_Token], start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for i in range(start, len(tokens)):
        depth += (tokens[i].text in ("(", "[", "{")) - (tokens[i].text in (")", "]", "}"))
        if depth == 0:
            return i
    raise Unconvertible("a parenthesis is not closed.")


def _arguments(tokens: list[_Token]) -> dict[str, str]:
    """The arguments of a call, by place ("0", "1", ...) or name, as they are written."""
    found: list[list[_Token]] = [[]]
    depth = 0
    for token in tokens:
        depth += (token.text in ("(", "[", "{")) - (token.text in (")", "]", "}"))
        if token.text == "," and depth == 0:
            found.append([])
        else:
            found[-1].append(token)
    out: dict[str, str] = {}
    for i, argument in enumerate(found):
        if not (shown := [t for t in argument if t.kind != "whitespace"]):
            continue
        named = len(shown) > 2 and shown[0].kind == "name" and shown[1].text == "="
        text = "".join(t.text for t in argument).strip()
        name, value = (shown[0].text, text.partition("=")[2].strip()) if named else (str(i), text)
        if re.fullmatch(r"'[^'\"\\]*'", value):
            value = quoted(value[1:-1])
        out[name] = value
    return out
