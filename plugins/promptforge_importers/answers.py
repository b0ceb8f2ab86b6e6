"""Jinja targets: which value of which column means which answer.

A foreign template writes its answer with an expression, such as `answer_choices[label]` or
`"yes" if label else "no"`. Where it depends on one column, and the answers are the same for all
rows, the values that this column can have are found by rendering the target (in the sandbox that
all templates run in) for each value that could be meant, until every answer has one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes

from promptforge.data import label_text
from promptforge.errors import UserError
from promptforge.template import RESERVED, Template, Text
from promptforge_importers.writing import Unconvertible, quoted

#: The variable that holds the answers, in PromptSource.
CHOICES = "answer_choices"


class _Choices(tuple[str, ...]):
    """Answers that are not counted from the end: -1 is no label."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int) and index < 0:
            raise IndexError(index)
        return super().__getitem__(index)


@dataclass(frozen=True)
class Answers:
    """What a target says.

    Attributes:
        column: the column of the answer.
        labels: label -> its answer, in the order of the answers; empty where the text in the
            column is what is to be written.
        values: value in the data -> label, where values of other kinds mean the same.
    """

    column: str
    labels: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)


#: Only for syntax trees; nothing is rendered with it.
_SYNTAX = jinja2.Environment()


class _Names(meta.TrackingCodeGenerator):
    """Finds the names in a template and computes nothing.

    Jinja works out what is constant before it is asked for anything: `9 ** (9 ** 9)` would never end.
    """

    def __init__(self) -> None:
        super().__init__(_SYNTAX)
        self.optimizer = None

    def _output_child_to_const(self, *_: Any) -> NoReturn:
        raise nodes.Impossible


@lru_cache(maxsize=1024)
def _parsed(source: str) -> tuple[nodes.Template, frozenset[str]]:
    """The syntax tree of a foreign template, and the names that it uses and does not define.

    Raises:
        Unconvertible: it is no Jinja, or wants what is not in a template of ours.
    """
    try:
        tree = _SYNTAX.parse(source)
        for name in ("random", "choice"):
            if any(f.name == name for f in tree.find_all(nodes.Filter)):
                raise Unconvertible(f"it draws something at random ({name}).")
        names = _Names()
        names.visit(tree)
    except (jinja2.TemplateSyntaxError, RecursionError, ValueError) as error:
        raise Unconvertible(f"no Jinja that templates here can be: {error}") from None
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name in names.undeclared_identifiers:
            raise Unconvertible(f"it calls {call.node.name}(), which templates here do not have.")
    return tree, frozenset(names.undeclared_identifiers)


def parse(source: str) -> nodes.Template:
    """The syntax tree of a foreign template; errors as `_parsed`."""
    return _parsed(source)[0]


def variables(source: str) -> frozenset[str]:
    """The names that a foreign template uses and does not define; errors as `_parsed`."""
    return _parsed(source)[1]


def bare_column(source: str) -> str | None:
    """The column's name where a target is `{{ name }}` and nothing else."""
    body = [
        node
        for output in parse(source.strip()).body
        for node in (output.nodes if isinstance(output, nodes.Output) else [output])
        if not (isinstance(node, nodes.TemplateData) and not node.data.strip())
    ]
    if len(body) == 1 and isinstance(body[0], nodes.Name):
        return body[0].name
    return None


def constant_list(source: str) -> list[str] | None:
    """The texts of a list where a template is one of plain texts: `{{ ["a", "b"] }}`."""
    try:
        tree = parse(source.strip())
        expression = tree.body[0].nodes[0] if len(tree.body) == 1 else None  # type: ignore[attr-defined]
    except (Unconvertible, AttributeError, IndexError):
        return None
    return _texts(expression) if isinstance(expression, nodes.List) else None


def _texts(found: nodes.List) -> list[str] | None:
    """The texts in a list; None where one of them is worked out."""
    texts = [str(item.value) for item in found.items if isinstance(item, nodes.Const)]
    return texts if len(texts) == len(found.items) else None


def answers_of(target: str, choices: Sequence[str] | None) -> Answers:
    """What `target` says about the column of the answer.

    Args:
        target: a foreign template; may use `answer_choices`.
        choices: the answers, where they are the same for all rows.

    Raises:
        Unconvertible: the answer is worked out from several columns, or nothing says which
            values its column has.
    """
    target = target.strip()
    used = variables(target) - {CHOICES}
    if len(used) != 1:
        names = ", ".join(sorted(used))
        raise Unconvertible(
            f"the answer is worked out from several columns ({names})."
            if used
            else "the answer is the same for every row."
        )
    (name,) = used
    if name in RESERVED:
        raise Unconvertible(f"the answer's column is called {name!r}, a word of our templates.")
    if bare_column(target) == name and not choices:
        return Answers(name)
    choices = choices or _indexed_list(target)
    if not choices:
        raise Unconvertible(
            f"the text to be written is worked out ({_short(target)}); here it is a column as it stands."
        )
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise Unconvertible(
            f"the answers are not two or more different ones: {_short(str(choices))}."
        )
    read = _Reading(target, name, _Choices(choices), Template(target, name="target"))
    for candidates in read.candidates():
        if labels := read.labels(candidates):
            return Answers(name, labels, read.other_values(labels))
    raise Unconvertible(
        f"nothing says which values of {name!r} stand for the answers ({_short(target)})."
    )


def _indexed_list(target: str) -> list[str] | None:
    """The texts of `["a", "b"]` where a target is `{{ ["a", "b"][column] }}`."""
    for node in parse(target).find_all(nodes.Getitem):
        if isinstance(node.node, nodes.List):
            return _texts(node.node)
    return None


def with_choices(source: str, choices: Sequence[str]) -> str:
    """A template that also knows the answers, where it shows them."""
    if CHOICES not in variables(source):
        return source
    listed = ", ".join(quoted(choice) for choice in choices)
    return f"{{% set {CHOICES} = [{listed}] %}}{source}"


@dataclass(frozen=True)
class _Reading:
    """One target, tried on values of its column."""

    target: str
    column: str
    choices: _Choices
    template: Template

    def candidates(self) -> Iterable[Sequence[Any]]:
        """Values that the column may have: counted from 0 or 1, named in the target, the answers."""
        count = len(self.choices)
        tree = parse(self.target)
        counted: list[Sequence[Any]] = [range(count), range(1, count + 1)]
        if any(True for _ in tree.find_all((nodes.Sub, nodes.Neg))):
            counted.reverse()  # `label - 1`: an index of -1 would look right for 0
        texts = [c.value for c in tree.find_all(nodes.Const) if isinstance(c.value, str)]
        yield from counted
        yield list(dict.fromkeys(texts))
        yield (True, False)
        if bare_column(self.target):
            yield self.choices

    def answer(self, value: Any) -> str | None:
        """The answer for one value of the column; None where it is no answer."""
        try:
            prompt = self.template.render({self.column: value, CHOICES: self.choices})
        except UserError:
            return None
        text = "".join(part.text for part in prompt.parts if isinstance(part, Text)).strip()
        return text if text in self.choices else None

    def labels(self, candidates: Sequence[Any]) -> dict[str, str] | None:
        """Label -> answer, if each answer has just one of the candidates."""
        found: dict[str, Any] = {}
        for value in candidates:
            answer = self.answer(value)
            if answer is not None and answer in found:
                return None
            if answer is not None:
                found[answer] = value
        if len(found) < len(self.choices):
            return None
        labels = {str(label_text(found[choice])): choice for choice in self.choices}
        return labels if len(labels) == len(self.choices) and "" not in labels else None

    def other_values(self, labels: dict[str, str]) -> dict[str, str]:
        """True and False in the data, where 1 and 0 are the labels."""
        if set(labels) != {"0", "1"}:
            return {}
        same = self.answer(False) == labels["0"] and self.answer(True) == labels["1"]
        return {"false": "0", "true": "1"} if same else {}


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 70 else f"{text[:67]}..."
