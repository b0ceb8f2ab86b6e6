"""Templates: a row becomes a `Prompt`, which is a list of parts and never a string with markers.

Because a prompt is a list of parts, text from the data can hold "[MASK]", "</s>" or "{{" and
stays text. A template language is a `TemplateRenderer` that a plugin provides; Jinja is the
built-in one (`promptforge_jinja`).
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol

from promptforge.components import Component
from promptforge.errors import PromptForgeError, UserError, did_you_mean, listed
from promptforge.plugins import manager

#: Names a template can use beside the row's columns. A column of the same name is `row["..."]`.
RESERVED = ("mask", "soft", "sep", "tail", "labels", "words", "demos", "row")

#: Words that Jinja reads as its own.
_KEYWORDS = {
    "and", "caller", "dict", "elif", "else", "endif", "false", "for", "if", "import", "in", "include",
    "is", "loop", "namespace", "none", "not", "or", "range", "recursive", "self", "super", "true",
}  # fmt: skip

#: How early a text is cut when a prompt is too long: never, last, by length, first.
KEEP, LAST, COLUMN, FIRST = 0, 1, 2, 3


def of_column(name: str) -> str:
    """The expression that reads a column: `text`, or `row["a name"]` where the name means something else."""
    plain = name.isascii() and name.isidentifier()
    if plain and name not in RESERVED and name.lower() not in _KEYWORDS:
        return name
    return f"row[{json.dumps(name, ensure_ascii=False)}]"


class TemplateError(UserError):
    """A mistake in a template; the message holds file, line and a hint."""


class TemplateValueError(TemplateError):
    """A template does not fit the values of one row; with other values it may."""


class _Part:
    """Base of the parts that are not text: they cannot be glued to a string."""

    def _refuse(self, *_: Any) -> NoReturn:
        kind = type(self).__name__.lower()
        raise TemplateError(
            f"{kind} is not a string and cannot be joined, filtered or formatted. "
            f'Write {{{{ "a" }}}}{{{{ {kind} }}}} instead of {{{{ "a" ~ {kind} }}}}.'
        )

    __str__ = __add__ = __radd__ = __mod__ = __mul__ = __rmul__ = __len__ = __iter__ = (
        __format__
    ) = _refuse

    def __bool__(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text.

    Attributes:
        text: the characters.
        source: "" for the template's own words, a column's name, or "expression".
        cut: one of `KEEP`, `LAST`, `COLUMN`, `FIRST`.
        side: which end is cut, "right" or "left".
        tail: stands after the mask only where the model reads what follows it.
    """

    text: str
    source: str = ""
    cut: int = KEEP
    side: str = "right"
    tail: bool = False

    def _refuse(self, *_: Any) -> NoReturn:
        raise TemplateError(
            "keep, truncate_here and tail mark a text and come last: "
            "write {{ text | upper | keep }} instead of {{ text | keep | upper }}."
        )

    __str__ = __add__ = __radd__ = __mod__ = __mul__ = __rmul__ = __len__ = __iter__ = (
        __format__
    ) = _refuse

    def __bool__(self) -> bool:
        return bool(self.text)


@dataclass(frozen=True, slots=True, eq=True)
class Mask(_Part):
    """A slot the model fills; `length` is how many tokens it has where a word does not say."""

    length: int = 1
    __str__ = __len__ = __iter__ = __format__ = _Part._refuse

    def __call__(self, length: int = 1) -> Mask:
        """`mask(3)`: a slot of three tokens."""
        if not isinstance(length, int) or isinstance(length, bool) or not 1 <= length <= 64:
            raise TemplateError(f"mask({length!r}): the length is a whole number from 1 to 64.")
        return Mask(length)


#: The id of the soft tokens that stand before every prompt of prompt tuning.
OPENING = "opening"


@dataclass(frozen=True, slots=True)
class Soft(_Part):
    """Trainable tokens: as many as `text` has, or `n`; those with one `id` share vectors."""

    text: str | None = None
    n: int | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Sep(_Part):
    """The model's separator between two segments; a line break where it has none."""


Part = Text | Mask | Soft | Sep


@dataclass(frozen=True)
class Prompt:
    """What a template makes of a row."""

    parts: tuple[Part, ...]

    @property
    def masks(self) -> list[Mask]:
        """The slots, in order."""
        return [part for part in self.parts if isinstance(part, Mask)]

    def with_mask(self, mask: Mask) -> Prompt:
        """The same with this slot in place of each."""
        return Prompt(tuple(mask if isinstance(part, Mask) else part for part in self.parts))

    def up_to_mask(self, origin: str) -> tuple[Part, ...]:
        """The parts that a causal model reads: tails and white space after the mask are dropped.

        Raises:
            TemplateError: something else follows the mask, or there are several masks.
        """
        if len(self.masks) > 1:
            raise TemplateError(
                f"{origin} has {len(self.masks)} masks; a causal model reads one, at the end."
            )
        end = next(i for i, part in enumerate(self.parts) if isinstance(part, Mask)) + 1
        after = [
            part
            for part in self.parts[end:]
            if not (isinstance(part, Text) and (part.tail or not part.text.strip()))
        ]
        if after:
            text = "".join(part.text for part in after if isinstance(part, Text)).strip()
            raise TemplateError(
                f"{origin}: the mask must come last, because a causal model reads only what stands "
                f"before it. After the mask stands {text[:40]!r}: move it before the mask, or write "
                f"{{{{ tail({text[:20]!r}) }}}} to leave it out for causal models."
            )
        return self.parts[:end]

    def filled(self, words: Sequence[str]) -> Prompt:
        """The prompt with words in its slots, tails as ordinary text: a demonstration.

        Args:
            words: one for each slot; a single one is for all.
        """
        parts: list[Part] = []
        slot = 0
        for part in self.parts:
            if isinstance(part, Mask):
                parts.append(Text(words[min(slot, len(words) - 1)]))
                slot += 1
            elif isinstance(part, Text) and part.tail:
                parts.append(replace(part, tail=False))
            else:
                parts.append(part)
        return Prompt(tuple(parts))

    def __str__(self) -> str:
        shown = {Mask: "▁▁▁", Sep: " ⏐ "}
        return "".join(
            part.text if isinstance(part, Text) else shown.get(type(part), "⟨soft⟩")
            for part in self.parts
        )


class Block(Prompt):
    """Parts that a template holds in a variable; they join to a string if all are plain text."""

    def __str__(self) -> str:
        for part in self.parts:
            if not isinstance(part, Text):
                str(part)  # raises, with what to write instead
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    def __bool__(self) -> bool:
        return bool(self.parts)


@dataclass(frozen=True)
class Demo:
    """A demonstration in a template: the columns of its row, `label`, `word` and `prompt`."""

    row: Mapping[str, Any]
    label: str
    # Underscores keep these out of a template's reach.
    _shown: Sequence[str]
    _template: Template
    _scope: Mapping[str, Any] = field(repr=False)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.row[name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def word(self) -> str:
        """Its label's word; where several masks have one each, the first."""
        return self._shown[0]

    @property
    def prompt(self) -> Block:
        """The same template on this row, its label's words in the masks."""
        made = self._template.render(self.row, **{**self._scope, "demos": ()})
        return Block(made.filled(self._shown).parts)

    def __str__(self) -> NoReturn:
        raise TemplateError(
            "a demonstration is not a string: write {{ demo.prompt }}, {{ demo.word }} or a column of it."
        )


class Compiled(Protocol):
    """A template ready to render.

    One whose language lets a template name columns as `row["..."]` has `of_row` too: their names.
    """

    @property
    def variables(self) -> Mapping[str, int]:
        """The names it uses and does not define -> the first line that uses them."""

    def render(self, scope: Mapping[str, Any]) -> list[Part]:
        """The parts for these variables; a `TemplateError` says file, line and what to do."""


class TemplateRenderer(Component):
    """A template language. `suffixes` are the file endings it takes."""

    role: ClassVar[str] = "renderer"
    suffixes: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def compile(self, source: str, origin: str) -> Compiled:
        """Read `source`; `origin` (a path or a name) goes into messages.

        Raises:
            TemplateError: the source is not a template of this language.
        """


class Template:
    """A template's source, compiled by the renderer for its language.

    >>> Template("{{ text }} It was {{ mask }}.").render({"text": "Great fun."})
    """

    def __init__(
        self,
        source: str,
        *,
        name: str = "template",
        origin: str | None = None,
        renderer: str = "jinja",
    ) -> None:
        self.source = source
        self.name = name
        self.origin = origin or f"<{name}>"
        self.renderer = renderer

    @classmethod
    def from_file(cls, path: str | Path, *, name: str | None = None) -> Template:
        """Read a template; the file's ending chooses the language.

        Raises:
            UserError: no such file, or it is not UTF-8.
        """
        path = Path(path)
        try:
            source = path.read_text(encoding="utf-8-sig").rstrip()
        except FileNotFoundError:
            raise UserError(f"There is no template file {path}.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"The template {path} cannot be read as UTF-8 text: {error}") from None
        return cls(source, name=name or path.stem, origin=str(path), renderer=_renderer_for(path))

    @cached_property
    def compiled(self) -> Compiled:
        """The compiled template; the first access raises `TemplateError` for a mistake in it."""
        renderer: TemplateRenderer = manager().registry("renderer").build(self.renderer)
        return renderer.compile(self.source, self.origin)

    @property
    def columns(self) -> list[str]:
        """The columns it uses, by their own names or as `row["..."]`, each once."""
        names = [name for name in self.compiled.variables if name not in RESERVED]
        # Not every template language has a `row`.
        return list(dict.fromkeys([*names, *getattr(self.compiled, "of_row", ())]))

    def __getstate__(self) -> dict[str, Any]:
        """All but the compiled template, which cannot be sent: another process makes its own."""
        return {name: value for name, value in vars(self).items() if name != "compiled"}

    def check(
        self,
        columns: Sequence[str],
        *,
        example: Mapping[str, Any] | None = None,
        family: str | None = None,
        **scope: Any,
    ) -> None:
        """Find mistakes before any model is loaded.

        Args:
            columns: the columns that rows will have.
            example: a row to render on trial; without one, a row of made-up texts is, and what
                may be due to its values is no mistake.
            family: the model's family, where it is known.
            scope: `labels`, `words` and `demos` as for `render`.

        Raises:
            TemplateError: syntax, a variable that is no column, no mask, text after the mask of
                a causal model.
        """
        for name, line in self.compiled.variables.items():
            if name not in columns and name not in RESERVED:
                near = did_you_mean(name, [*columns, *RESERVED])
                raise TemplateError(
                    f"{self.origin}, line {line}: {name!r} is neither a column nor a name of the template "
                    f"language.{near} Columns: {listed(list(columns))}. Names: {', '.join(RESERVED)}."
                )
        try:
            prompt = self.render(example or dict.fromkeys(columns, "text"), **scope)
        except TemplateValueError:
            if example is not None:
                raise
            return
        if not prompt.masks and (example is not None or "mask" not in self.source):
            raise TemplateError(
                f"{self.origin} has no mask: write {{{{ mask }}}} where the label word belongs, "
                "for example: {{ text }} It was {{ mask }}"
            )
        if prompt.masks and family == "causal":
            prompt.up_to_mask(self.origin)

    def render(
        self,
        row: Mapping[str, Any],
        *,
        labels: Sequence[str] = (),
        words: Mapping[str, Sequence[str]] | None = None,
        demos: Sequence[tuple[Mapping[str, Any], str]] = (),
        shown: Sequence[Sequence[str]] = (),
    ) -> Prompt:
        """The prompt for `row`.

        Args:
            row: column -> value.
            labels: the task's labels, in scope as `labels`.
            words: label -> words, in scope as `words`.
            demos: (row, label) pairs, in scope as `demos`. Where the template does not use that name
                their prompts stand before it, one a line.
            shown: of each demonstration what stands in its masks: a word for each, or one for all; by
                default its label's first word.

        Raises:
            TemplateError: with file, line and a hint.
        """
        words = words or {}
        scope: dict[str, Any] = {
            "labels": tuple(labels),
            "words": {k: tuple(v) for k, v in words.items()},
        }
        made = []
        for (demo_row, label), given in zip_longest(demos, shown):
            if not (filling := given or words.get(label)):
                raise TemplateError(
                    f"{self.origin}: a demonstration has the label {label!r}, which has no words."
                )
            filling = filling if given else filling[:1]
            made.append(Demo(demo_row, label, filling, self, {"labels": labels, "words": words}))
        scope["demos"] = made
        parts = self.compiled.render({**row, **scope, "row": row})
        if made and "demos" not in self.compiled.variables:
            parts = [p for demo in made for p in (*demo.prompt.parts, Text("\n"))] + parts
        prompt = Prompt(tuple(parts))
        event = "promptforge_prompt_rendered"
        if not manager().listens(event):
            return prompt
        changed = getattr(manager().pm.hook, event)(prompt=prompt, row=row)
        if changed is None:
            return prompt
        if not isinstance(changed, Prompt) or not all(isinstance(p, Part) for p in changed.parts):
            raise PromptForgeError(f"A plugin's {event} returned something else than a Prompt.")
        return changed

    def __repr__(self) -> str:
        return f"Template({self.source!r}, name={self.name!r})"


def _renderer_for(path: Path) -> str:
    registry = manager().registry("renderer")
    endings: list[str] = []
    for name in registry.names():
        suffixes = getattr(registry.get(name), "suffixes", ())
        if path.suffix in suffixes:
            return name
        endings.extend(suffixes)
    raise UserError(
        f"{path}: no template language takes files ending in {path.suffix!r}. There are: {listed(endings)}."
    )
