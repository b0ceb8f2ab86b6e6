"""CSV and TSV, read one row at a time."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field, field_validator

from promptforge.data import Reader, Row
from promptforge.errors import UserError, listed
from promptforge_readers.files import (
    check_columns,
    has_suffix,
    not_utf8,
    nul_byte,
    open_text_file,
)

#: The csv module's limit of 128 KiB is too small for long texts. An unclosed quote makes the
#: rest of the file one cell, so there has to be some limit.
LARGEST_CELL = 1 << 28

_NAMES = {",": "a comma", ";": "';'", "\t": "a tab", "|": "'|'"}


class CsvReader(Reader):
    """Comma-separated values in UTF-8 with a header (.csv, .csv.gz)."""

    name: ClassVar[str] = "csv"
    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".csv.gz")

    delimiter: str = Field(",", description="the character between cells; \\t or tab for a tab")
    quote: str = Field('"', description="the character around cells; empty: quotes are plain text")

    @field_validator("delimiter", mode="before")
    @classmethod
    def _delimiter(cls, value: Any) -> Any:
        value = "\t" if value in ("tab", "\\t") else value
        if not isinstance(value, str) or len(value) != 1 or value in '"\r\n':
            raise ValueError("it must be one character, other than a quote or a line end")
        return value

    @field_validator("quote")
    @classmethod
    def _quote(cls, value: str) -> str:
        if len(value) > 1 or value in ("\r", "\n"):
            raise ValueError("it must be one character or empty")
        return value

    def accepts(self, source: str) -> bool:
        return has_suffix(source, *self.suffixes)

    def rows(self, source: str, skip: int = 0) -> Iterator[Row]:
        number = line = 0
        if csv.field_size_limit() < LARGEST_CELL:
            csv.field_size_limit(LARGEST_CELL)
        with open_text_file(source) as handle:
            # newline="": only \n, \r and \r\n end a line, and those inside quotes are kept.
            text = io.TextIOWrapper(handle, encoding="utf-8-sig", newline="")
            table = csv.reader(_without_nul(text, source), strict=True, **self._dialect())
            try:
                header = next((cells for cells in table if cells), None)
                self._check_header(header, source)
                assert header is not None
                width, line = len(header), table.line_num
                for cells in table:
                    if len(cells) == width:
                        number += 1
                        line = table.line_num
                        if number > skip:
                            yield dict(zip(header, cells))  # noqa: B905 (half as quick)
                    elif cells:
                        raise self._uneven(source, number + 1, line + 1, cells, header)
                    else:  # a blank line
                        line = table.line_num
            except csv.Error as error:
                raise self._broken(source, number + 1, line + 1, str(error)) from None
            except UnicodeDecodeError:
                raise not_utf8(source) from None
        if not number:
            raise UserError(f"{source} has a header but no rows.")

    def _dialect(self) -> dict[str, Any]:
        if not self.quote:
            return {"delimiter": self.delimiter, "quoting": csv.QUOTE_NONE}
        return {"delimiter": self.delimiter, "quotechar": self.quote}

    def _check_header(self, header: list[str] | None, source: str) -> None:
        if header is None:
            raise UserError(f"{source} is empty: it has nothing but blank lines.")
        if len(header) == 1 and "delimiter" not in self.model_fields_set:
            others = [c for c in _NAMES if c != self.delimiter and c in header[0]]
            if others:
                best = max(others, key=header[0].count)
                option = "tab" if best == "\t" else best
                raise UserError(
                    f"{source}: the header is one column, {header[0]!r}, that holds "
                    f"{_NAMES[best]}: the wrong delimiter? Say which one the file has: "
                    f"-o reader.delimiter='{option}' (or '{self.delimiter}' if it is right)."
                )
        check_columns(header, f"{source}, header")

    def _uneven(
        self, source: str, row: int, line: int, cells: list[str], header: list[str]
    ) -> UserError:
        more = len(cells) > len(header)
        between = _NAMES.get(self.delimiter, repr(self.delimiter))
        do = f"Put quotes around a cell that holds {between}." if more else "Add the missing cells."
        return UserError(
            f"{source}: row {row} (line {line}) has {len(cells)} cells, but the header has "
            f"{len(header)} columns: {listed(header)}. {do}"
        )

    def _broken(self, source: str, row: int, line: int, problem: str) -> UserError:
        where = f"{source}: row {row} (it begins on line {line})"
        if "unexpected end" in problem:
            what = "a quote is opened and never closed"
        elif "expected after" in problem:
            what = (
                "text after a closing quote: an earlier quote is not closed, or a quote inside a "
                'quoted cell is not doubled ("")'
            )
        elif "field limit" in problem:
            what = f"a cell of more than {LARGEST_CELL >> 20} MiB: is a quote not closed?"
        else:
            what = problem
        return UserError(
            f"{where}: {what}. Mend the line, or, if quotes are plain text in this file, "
            f"add -o reader.quote=''."
        )


class TsvReader(CsvReader):
    """Tab-separated values in UTF-8 with a header (.tsv, .tsv.gz)."""

    name: ClassVar[str] = "tsv"
    suffixes: ClassVar[tuple[str, ...]] = (".tsv", ".tsv.gz", ".tab")

    delimiter: str = Field("\t", description="the character between cells; \\t or tab for a tab")


def _without_nul(lines: io.TextIOWrapper, source: str) -> Iterator[str]:
    # The csv module lets NUL bytes through, and they end up in cells.
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            raise nul_byte(source, number)
        yield line
