"""Python expressions of strangers, read as syntax trees and never run.

A template that is written in Python puts texts together: constants, columns, masks. `Reader`
works out such an expression: what is constant it computes itself, for the few operations below;
what comes from the row becomes a Jinja expression that does the same.
"""

from __future__ import annotations

import ast
import string
from collections.abc import Callable, Mapping
from typing import Any

from promptforge_importers.writing import Piece, Slot, Unconvertible, Value, quoted

#: Methods that make a text of a text, the same in Python and in Jinja's sandbox.
_METHODS = {
    "strip", "lstrip", "rstrip", "lower", "upper", "capitalize", "title", "swapcase", "replace",
    "removeprefix", "removesuffix",
}  # fmt: skip
MOST_REPEATS = 64
#: Characters of a constant, or parts of a list: no template comes near it.
MOST_PARTS = 10_000


class Pieces(tuple[Piece, ...]):
    """A text that is not all constant."""


def pieces(value: Any) -> Pieces:
    """A text, constant or not, as pieces.

    Raises:
        Unconvertible: it is no text.
    """
    if isinstance(value, Pieces):
        return value
    if isinstance(value, str):
        return Pieces((value,) if value else ())
    raise Unconvertible(f"a text was expected, not {type(value).__name__}.")


class Reader(ast.NodeVisitor):
    """Works out expressions; `names` are the variables known so far."""

    def __init__(self, names: Mapping[str, Any]) -> None:
        self.names = dict(names)

    def read(self, node: ast.expr) -> Any:
        """The value of an expression: a constant, `Pieces`, or a list or dict of such.

        Raises:
            Unconvertible: it does what is not known here.
        """
        try:
            return self.visit(node)
        except (TypeError, ValueError, LookupError, ArithmeticError, MemoryError) as error:
            raise Unconvertible(f"`{_shown(node)}` fails: {error}") from None
        except RecursionError:
            raise Unconvertible("an expression is nested too deeply.") from None

    def visit(self, node: ast.AST) -> Any:
        """One step; what it makes may not grow without end (`x = x + x`, again and again)."""
        value = super().visit(node)
        if isinstance(value, (str, list, tuple)) and len(value) > MOST_PARTS:
            raise Unconvertible(
                f"`{_shown(node)}` makes more than {MOST_PARTS:,} characters or parts."
            )
        return value

    def generic_visit(self, node: ast.AST) -> Any:
        """Everything that has no method of its own here."""
        raise Unconvertible(f"`{_shown(node)}` is code, which is not run.")

    def truth(self, node: ast.expr) -> bool:
        """Whether a condition holds.

        Raises:
            Unconvertible: that depends on the row.
        """
        value = self.read(node)
        if isinstance(value, Pieces):
            raise Unconvertible(f"it depends on the row: `{_shown(node)}`.")
        return bool(value)

    # --- constants and names --------------------------------------------------------------

    def visit_Constant(self, node: ast.Constant) -> Any:
        return node.value

    def visit_Name(self, node: ast.Name) -> Any:
        if node.id not in self.names:
            raise Unconvertible(f"`{node.id}` is worked out elsewhere.")
        return self.names[node.id]

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        if _shown(node) == "string.punctuation":
            return string.punctuation
        return self.generic_visit(node)

    def visit_Tuple(self, node: ast.Tuple) -> Any:
        return tuple(self.visit(element) for element in node.elts)

    def visit_List(self, node: ast.List) -> Any:
        return [self.visit(element) for element in node.elts]

    def visit_Set(self, node: ast.Set) -> Any:
        return {self.visit(element) for element in node.elts}

    def visit_Dict(self, node: ast.Dict) -> Any:
        if None in node.keys:
            return self.generic_visit(node)
        return {
            self.visit(key): self.visit(value)
            for key, value in zip(node.keys, node.values, strict=True)
            if key is not None
        }

    # --- conditions -----------------------------------------------------------------------

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        return self.visit(node.body if self.truth(node.test) else node.orelse)

    def visit_BoolOp(self, node: ast.BoolOp) -> bool:
        every = isinstance(node.op, ast.And)
        for value in node.values:
            if self.truth(value) is not every:
                return not every
        return every

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        if isinstance(node.op, ast.Not):
            return not self.truth(node.operand)
        value = self.visit(node.operand)
        if isinstance(node.op, ast.USub) and isinstance(value, int):
            return -value
        return self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> bool:
        left = self.visit(node.left)
        for operator, operand in zip(node.ops, node.comparators, strict=True):
            right = self.visit(operand)
            if any(isinstance(side, Pieces) for side in (left, right)):
                raise Unconvertible(f"it depends on the row: `{_shown(node)}`.")
            if not _COMPARE[type(operator)](left, right):
                return False
            left = right
        return True

    # --- texts ----------------------------------------------------------------------------

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        left, right = self.visit(node.left), self.visit(node.right)
        if isinstance(node.op, ast.Add):
            if isinstance(left, list) and isinstance(right, list):
                return left + right
            if isinstance(left, int) and isinstance(right, int):
                return left + right
            return _joined([left, right])
        if isinstance(node.op, ast.Mult):
            if isinstance(left, int):
                left, right = right, left
            if not isinstance(right, int) or isinstance(left, (list, tuple)) != isinstance(
                left, Pieces
            ):
                raise Unconvertible(f"how often `{_shown(node)}` repeats depends on the row.")
            if not 0 <= right <= MOST_REPEATS:
                raise Unconvertible(f"`{_shown(node)}` repeats more than {MOST_REPEATS} times.")
            if isinstance(left, Pieces) and len(left) == 1 and isinstance(left[0], Slot) and right:
                return Pieces((Slot(left[0].length * right),))
            return left * right if isinstance(left, int) else _joined([left] * right)
        if isinstance(node.op, ast.Sub) and isinstance(left, int) and isinstance(right, int):
            return left - right
        return self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> Any:
        return _joined([self.visit(value) for value in node.values])

    def visit_FormattedValue(self, node: ast.FormattedValue) -> Any:
        if node.format_spec is not None or node.conversion != -1:
            return self.generic_visit(node)
        value = self.visit(node.value)
        return str(value) if isinstance(value, int) else value

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        value = self.visit(node.value)
        if isinstance(node.slice, ast.Slice):
            if node.slice.step is not None:
                return self.generic_visit(node)
            ends = [
                None if e is None else self.visit(e) for e in (node.slice.lower, node.slice.upper)
            ]
            if not all(e is None or isinstance(e, int) for e in ends):
                return self.generic_visit(node)
            start, stop = ends
            if isinstance(value, Pieces):
                shown = ["" if e is None else str(e) for e in ends]
                return self.of_row(node, value, f"[{':'.join(shown)}]")
            return value[start:stop]
        index = self.visit(node.slice)
        if isinstance(value, Pieces):
            return (
                self.of_row(node, value, f"[{index!r}]")
                if isinstance(index, int)
                else self.generic_visit(node)
            )
        return value[index]

    def visit_Call(self, node: ast.Call) -> Any:
        if not isinstance(node.func, ast.Attribute) or node.keywords:
            return self.generic_visit(node)
        method = node.func.attr
        if method not in {*_METHODS, "get", "join"}:
            return self.generic_visit(node)
        value = self.visit(node.func.value)
        if isinstance(value, dict) and method == "get":
            return value.get(*map(self.visit, node.args))
        if method == "join" and isinstance(value, str) and len(node.args) == 1:
            return self._join(node, value, self.visit(node.args[0]))
        given = [self.visit(argument) for argument in node.args]
        if method in ("get", "join") or not all(isinstance(g, (str, int)) for g in given):
            return self.generic_visit(node)
        if isinstance(value, str):
            return getattr(value, method)(*given)
        shown = ", ".join(quoted(g) if isinstance(g, str) else str(g) for g in given)
        return self.of_row(node, pieces(value), f".{method}({shown})")

    def _join(self, node: ast.Call, between: str, values: Any) -> Any:
        if isinstance(values, (list, tuple)) and not isinstance(values, Pieces):
            out: list[Any] = []
            for value in values:
                out += [between, value] if out else [value]
            return _joined(out)
        if len(values) == 1 and isinstance(values[0], Value):
            return Pieces((Value(f"({values[0].source} | join({quoted(between)}))"),))
        return self.generic_visit(node)

    def of_row(self, node: ast.expr, value: Pieces, step: str) -> Pieces:
        """`value`, which comes from the row, with an index or a method after it."""
        if len(value) == 1 and isinstance(value[0], Value):
            return Pieces((value[0].then(step),))
        raise Unconvertible(f"`{_shown(node)}` changes a text that is put together.")


_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
    ast.Is: lambda a, b: a is b,
    ast.IsNot: lambda a, b: a is not b,
}


def _joined(values: list[Any]) -> str | Pieces:
    """Texts one after another; constant if all are."""
    if all(isinstance(value, str) for value in values):
        return "".join(values)
    return Pieces(piece for value in values for piece in pieces(value))


def _shown(node: ast.AST) -> str:
    try:
        text = " ".join(ast.unparse(node).split())
    except RecursionError:
        return "..."
    return text if len(text) <= 60 else f"{text[:57]}..."
