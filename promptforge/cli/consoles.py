"""A console on which tables stay readable where they do not fit."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_FREE = 1_000_000


class Whole(Console):
    """Prints tables that are too wide with wrapped cells, and as records where even those are too wide.

    rich would cut long words short, and leave columns out.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        """As `rich.console.Console.print`."""
        made = [self._fitted(thing) if isinstance(thing, Table) else thing for thing in objects]
        super().print(*made, **options)

    def _fitted(self, table: Table) -> Table | Group:
        free = self.options.update(max_width=_FREE)
        if Measurement.get(self, free, table).maximum <= self.width:
            return table
        for column in table.columns:
            column.overflow, column.no_wrap = "fold", False
        fits = Measurement.get(self, free, table).minimum <= self.width
        return table if fits else self._records(table)

    def _records(self, table: Table) -> Group:
        """Each row as lines of "column: value", a blank line between two."""
        out: list[Any] = [Text.from_markup(str(table.title), style="italic")] if table.title else []
        rows = zip(*(list(column.cells) for column in table.columns), strict=True)
        for i, cells in enumerate(rows):
            if i or out:
                out.append("")
            for column, cell in zip(table.columns, cells, strict=True):
                line = Text(overflow="fold")
                if str(column.header):
                    line.append_text(Text.from_markup(f"{column.header}: ", style="dim"))
                if not isinstance(cell, str | Text):
                    out += [line, Padding(cell, (0, 0, 0, 2))] if line else [cell]
                    continue
                value = Text.from_markup(cell) if isinstance(cell, str) else cell.copy()
                value.stylize_before(column.style)
                out.append(line.append_text(value))
        return Group(*out)
