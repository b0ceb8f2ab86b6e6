"""Jinja to parts: native code generation with our own `concat`, in an immutable sandbox.

A constant of the template reaches `concat` as a plain string; the value of an expression
passes `_finalize` first and becomes a part. That is how the two are told apart without any
marker. Loops, calls and output are counted, so a template cannot run for ever.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from functools import wraps
from typing import Any, ClassVar

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.nativetypes import NativeCodeGenerator
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from promptforge.errors import UserError
from promptforge.plugins import manager
from promptforge.template import (
    COLUMN,
    LAST,
    RESERVED,
    Block,
    Demo,
    Mask,
    Part,
    Prompt,
    Sep,
    Soft,
    TemplateError,
    TemplateRenderer,
    TemplateValueError,
    Text,
)
from promptforge_jinja.language import Column

MAX_STEPS = 200_000
MAX_CHARACTERS = 64_000_000
MAX_REPEAT = 1_000_000
#: Filters that make their text as long as a number says.
_PADDING = ("center", "indent", "batch", "slice", "wordwrap")
#: The filter that makes a part of what a filter block made; no name that can be written.
_MADE = "made part"
_PARTS = (Text, Mask, Soft, Sep, Prompt, Demo)
#: Steps done for the row at hand; a demonstration counts for the row that shows it.
_steps: ContextVar[int | None] = ContextVar("steps", default=None)


def _count(n: int = 1) -> None:
    done = (_steps.get() or 0) + n
    _steps.set(done)
    if done > MAX_STEPS:
        raise TemplateError(
            f"it took more than {MAX_STEPS:,} steps for one row: a loop or macro does not end. "
            "Loop over a short list, and let no macro call itself without end."
        )


def _limited(values: Iterable[Any]) -> None:
    """Refuse a width, a count or an exponent that only makes memory run out."""
    for value in values:
        if type(value) is int and abs(value) > MAX_REPEAT:
            raise TemplateError(f"a number above {MAX_REPEAT:,} is too large here.")


def _formats(pattern: str, values: Iterable[Any]) -> None:
    """Refuse a format with a width of seven digits, written out or given as a value."""
    if re.search(r"[%:.{][^a-zA-Z]*\d{7}", pattern):
        raise TemplateError("a width in a format is too large.")
    if re.search(r"%[^a-zA-Z%]*\*|\{[^{}]*\{", pattern):
        _limited(values)


def _sized(value: Any) -> Any:
    """`value`, unless it has grown beyond what a prompt can use."""
    if isinstance(value, (str, list, tuple)) and len(value) > MAX_CHARACTERS:
        raise TemplateError(f"it made a text of more than {MAX_CHARACTERS:,} characters.")
    if type(value) is int and value.bit_length() > 4096:
        raise TemplateError("a number grew beyond 4,096 bits.")
    return value


def _joined(*values: Any) -> Any:
    """`a ~ b`, limited."""
    _count()
    return _sized("".join(map(str, values)))


def _counted(values: Any) -> Any:
    if isinstance(values, (Mask, Soft, Sep, Text)):
        raise TemplateError(f"{type(values).__name__.lower()} cannot be looped over.")
    return _Counted(values)


class _Counted:
    """An iterable that counts its steps; `loop.length` still works."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __iter__(self) -> Iterator[Any]:
        for value in self.values:
            _count()
            yield value

    def __len__(self) -> int:
        return len(self.values)


@jinja2.pass_context
def _finalize(_: Context, value: Any) -> Any:
    # With `pass_context` Jinja does not fold constants, so template text alone stays `str`.
    if isinstance(value, (Text, Mask, Soft, Sep, Prompt)):
        return value
    if isinstance(value, Column):
        return Text(str(value), value.source, COLUMN)
    if isinstance(value, jinja2.Undefined):
        # StrictUndefined raises; {{ "a" if condition }} without an else is nothing, as ever in Jinja.
        return Text(str(value))
    if value is None:
        raise TemplateValueError(
            "a value is missing (None). Fill the column, or write {{ column or '' }}."
        )
    if isinstance(value, bytes | bytearray | memoryview):
        raise TemplateValueError(
            "a value is bytes and no text: have the column written as text, in Parquet as a string."
        )
    if callable(value):
        name = getattr(value, "__name__", str(value)).removeprefix("safe_")
        raise TemplateError(
            f"{name!r} is a function: call it with (). A column of that name is {{{{ row[{name!r}] }}}}."
        )
    if isinstance(value, (list, tuple, set)) and any(isinstance(v, _PARTS) for v in value):
        raise TemplateError(
            "a list that holds parts is not text: loop over it and write each part."
        )
    return Text(str(value), "expression", LAST)


def _concat(values: Iterable[Any]) -> Block:
    parts: list[Part] = []
    size = 0
    for value in values:
        if isinstance(value, Prompt):
            _count(len(value.parts))
            parts.extend(value.parts)
            continue
        part = Text(value) if isinstance(value, str) else value
        if isinstance(part, Text):
            size += len(part.text)
            if size > MAX_CHARACTERS:
                raise TemplateError(f"it made more than {MAX_CHARACTERS:,} characters for one row.")
            if not part.text:
                continue
        parts.append(part)
    return Block(tuple(parts))


def _keeps_source(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, its text still known to come from the column it was given."""

    @wraps(filter_)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if name in _PADDING:
            _limited((*args[1:], *kwargs.values()))
        elif name == "format":
            _formats(str(args[0]), (*args[1:], *kwargs.values()))
        result = _sized(filter_(*args, **kwargs))
        if type(result) is str:
            for value in args[:2]:  # the first may be the environment or context
                if isinstance(value, Column):
                    return Column(result, value.source)
        return result

    return wrapped


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = NativeCodeGenerator
    concat = staticmethod(_concat)  # type: ignore[assignment]
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        for loop in source.find_all(nodes.For):
            loop.iter = nodes.Call(
                nodes.EnvironmentAttribute("counted", lineno=loop.lineno),
                [loop.iter],
                [],
                None,
                None,
                lineno=loop.lineno,
            )
        source = _Rewritten().visit(source)
        return super()._generate(source, *args, **kwargs)

    counted = staticmethod(_counted)
    joined = staticmethod(_joined)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _count()
        if isinstance(getattr(__obj, "__self__", None), str):
            _limited((*args, *kwargs.values()))
        result = _sized(super().call(__context, __obj, *args, **kwargs))
        owner = getattr(__obj, "__self__", None)
        if type(result) is str and isinstance(owner, Column):
            return Column(result, owner.source)
        return result

    def getitem(self, obj: Any, argument: Any) -> Any:
        return self._column(obj, argument, super().getitem(obj, argument))

    def getattr(self, obj: Any, attribute: str) -> Any:
        return self._column(obj, attribute, super().getattr(obj, attribute))

    def _column(self, obj: Any, name: Any, value: Any) -> Any:
        if isinstance(obj, _Row) and isinstance(value, jinja2.Undefined):
            return self.undefined(f"the row has no column {name!r}")
        return _cell(value, str(name)) if isinstance(obj, _Row) else value

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _count()
        if operator == "*" and not isinstance(left, (int, float)):
            left, right = right, left  # the text or list stands on the right
        if operator == "*" and isinstance(left, int) and isinstance(right, (str, list, tuple)):
            size = len(right) * left
            if size > MAX_REPEAT:
                raise TemplateError(f"a text or list is repeated to more than {MAX_REPEAT:,}.")
        if operator == "**" and isinstance(right, int) and abs(right) > 64:
            raise TemplateError("a power above 64 is not computed.")
        if operator == "%" and isinstance(left, str):
            _formats(left, right if isinstance(right, tuple) else (right,))
        return _sized(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def limited(*args: Any, **kwargs: Any) -> str:
            _formats(value.__self__, (*args, *kwargs.values()))
            return wrapped(*args, **kwargs)

        return limited


class _Rewritten(NodeTransformer):
    """`a ~ b` goes through `_joined`, and what a filter block makes through `_finalize`."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        self.generic_visit(node)
        joined = nodes.EnvironmentAttribute("joined", lineno=node.lineno)
        return nodes.Call(joined, node.nodes, [], None, None, lineno=node.lineno)

    def visit_FilterBlock(self, node: nodes.FilterBlock) -> nodes.FilterBlock:
        self.generic_visit(node)
        # Jinja writes it as it writes the template's own words, which are never cut.
        node.filter = nodes.Filter(node.filter, _MADE, [], [], None, None, lineno=node.lineno)
        return node


def _cell(value: Any, column: str) -> Any:
    return Column(value, column) if type(value) is str else value


class _Row(dict[str, Any]):
    """The whole row, for columns that are called like a word of the language."""


def _of_row(tree: nodes.Template) -> Iterator[str]:
    """The columns that a template names by itself: as `row["..."]` or `row.name`."""
    called = {id(call.node) for call in tree.find_all(nodes.Call)}  # row.get(...)
    uses: list[nodes.Getitem | nodes.Getattr] = [
        *tree.find_all(nodes.Getitem),
        *tree.find_all(nodes.Getattr),
    ]
    for use in uses:
        if not isinstance(use.node, nodes.Name) or use.node.name != "row" or id(use) in called:
            continue
        name = use.attr if isinstance(use, nodes.Getattr) else getattr(use.arg, "value", None)
        if isinstance(name, str):
            yield name


class JinjaTemplate:
    """A compiled Jinja template."""

    def __init__(self, environment: _Environment, source: str, origin: str) -> None:
        self.origin = origin
        try:
            tree = environment.parse(source)
            code = environment.compile(source, filename=origin)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"{origin}, line {error.lineno}: {(error.message or '').rstrip('.')}."
                f"{_syntax_hint(error)}"
            ) from None
        for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
            raise TemplateError(
                f"{origin}, line {node.lineno}: a template is one file and reads no other: "
                "write what it should hold here."
            )
        self._template = jinja2.Template.from_code(environment, code, environment.globals)
        free = meta.find_undeclared_variables(tree)
        self.variables: dict[str, int] = {}
        for name in tree.find_all(nodes.Name):
            if name.ctx == "load" and name.name in free and name.name not in environment.globals:
                self.variables.setdefault(name.name, name.lineno)
        self.of_row = list(dict.fromkeys(_of_row(tree)))

    def render(self, scope: Mapping[str, Any]) -> list[Part]:
        """The parts; every mistake becomes a `TemplateError` with file and line."""
        outer = _steps.get()
        token = _steps.set(outer or 0)
        # A NaN is how pandas writes an empty cell.
        row = {k: None if isinstance(v, float) and v != v else v for k, v in scope["row"].items()}
        values = {
            k: v if k not in row or k in RESERVED else _cell(row[k], k) for k, v in scope.items()
        }
        values["row"] = _Row(row)
        for name in RESERVED[:4]:
            values.pop(name, None)
        try:
            context = self._template.new_context(values)
            return list(_concat(self._template.root_render_func(context)).parts)
        except TemplateError as error:
            raise type(error)(self._at(error, str(error))) from None
        except jinja2.UndefinedError as error:
            hint = f" The row has: {', '.join(map(str, row))}.{_begins(row)}"
            raise TemplateValueError(self._at(error, f"{error.message}.{hint}")) from None
        except SecurityError as error:
            raise TemplateError(
                self._at(error, f"not allowed in a template: {str(error).rstrip('.')}.")
            ) from None
        except RecursionError as error:
            raise TemplateError(self._at(error, "a macro calls itself without end.")) from None
        except UserError:
            raise
        except Exception as error:
            of_values = isinstance(error, (TypeError, ValueError, LookupError, ZeroDivisionError))
            kind = TemplateValueError if of_values else TemplateError
            told = f"{type(error).__name__}: {error}.{_begins(row)}"
            raise kind(self._at(error, told)) from None
        finally:
            done = _steps.get()
            _steps.reset(token)
            if outer is not None:
                _steps.set(done)

    def _at(self, error: BaseException, message: str) -> str:
        if message.startswith(f"{self.origin}, line"):
            return message
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == self.origin]
        # Frames of compiled templates count lines of generated code; Jinja maps them back.
        line = self._template.get_corresponding_lineno(frames[-1].lineno or 1) if frames else 1
        return f"{self.origin}, line {line}: {message}"


def _begins(row: Mapping[str, Any], most: int = 60) -> str:
    """How a row begins, for whoever has to find it in a large table."""
    values = (str(value) for value in row.values() if value is not None)
    text = next((" ".join(value.split()) for value in values if value.strip()), "")
    return (
        f" It begins: {text if len(text) <= most else f'{text[: most - 3]}...'!r}." if text else ""
    )


def _syntax_hint(error: jinja2.TemplateSyntaxError) -> str:
    message = error.message or ""
    if "No filter named" in message:
        return " Filters come with Jinja or from plugins: see 'promptforge plugins'."
    if "unexpected '}'" in message or "unexpected end" in message.lower():
        return " Is a '{{ ... }}' or '{% ... %}' not closed?"
    return ""


class JinjaRenderer(TemplateRenderer):
    """Jinja templates in an immutable sandbox, rendered to parts."""

    name: ClassVar[str] = "jinja"
    suffixes: ClassVar[tuple[str, ...]] = (".jinja", ".jinja2", ".j2")

    def compile(self, source: str, origin: str) -> JinjaTemplate:
        """Compile `source` with the filters and globals of every plugin."""
        environment = _Environment(
            undefined=jinja2.StrictUndefined, finalize=_finalize, cache_size=0
        )
        # Nothing that loads other files: a template is one file.
        for name in ("lipsum", "cycler", "joiner"):
            environment.globals.pop(name, None)
        environment.filters.update(manager().named_values("promptforge_template_filters"))
        environment.filters = {
            name: _keeps_source(name, f) for name, f in environment.filters.items()
        }
        environment.filters[_MADE] = _finalize
        environment.globals.update(manager().named_values("promptforge_template_globals"))
        return JinjaTemplate(environment, source, origin)
