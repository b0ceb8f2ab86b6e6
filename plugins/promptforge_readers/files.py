"""What the readers of files share: opening, encodings, and checks of column names."""

from __future__ import annotations

import gzip
import io
import shlex
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from promptforge.data import existing_file
from promptforge.errors import UserError, listed


def has_suffix(source: str, *suffixes: str) -> bool:
    """True when the file name ends in one of `suffixes`, whatever their case."""
    return source.lower().endswith(suffixes)


def regular_file(source: str) -> Path:
    """The path of a file that can be read more than once, as commands do.

    Raises:
        UserError: no such file, or a pipe.
    """
    path = existing_file(source)
    if not path.is_file():
        raise UserError(
            f"{source} is not a regular file, and its rows are read more than once. Save them to a file first."
        )
    return path


@contextmanager
def open_text_file(source: str) -> Iterator[BinaryIO]:
    """The bytes of a text file, unpacked if they are gzip's.

    Raises:
        UserError: no such file, a pipe, an empty file, UTF-16, or damaged gzip data.
    """
    path = regular_file(source)
    try:
        with path.open("rb") as raw:
            stream = raw
            if raw.peek(2)[:2] == b"\x1f\x8b":
                # The buffer over GzipFile makes reading lines several times as quick.
                unpacked = cast(io.RawIOBase, gzip.GzipFile(fileobj=raw))
                stream = io.BufferedReader(unpacked, 1 << 20)
            start = stream.peek(4)[:4]
            if not start:
                raise UserError(f"{source} is empty.")
            if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise UserError(
                    f"{source} is UTF-16; UTF-8 is expected. {_convert(path, 'UTF-16')}"
                )
            yield cast(BinaryIO, stream)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{source}: the gzip data are damaged or cut off ({error}). Copy the file again."
        ) from None
    except PermissionError:
        raise UserError(f"{source} may not be read: permission denied.") from None


def not_utf8(source: str) -> UserError:
    """The error for a file that is not UTF-8, with the first line and byte that show it."""
    with open_text_file(source) as handle:
        for number, line in enumerate(handle, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return UserError(
                    f"{source}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x}, "
                    f"number {error.start + 1} of the line). If the file is Windows-1252: "
                    f"{_convert(Path(source), 'WINDOWS-1252')}"
                )
    return UserError(f"{source} is not UTF-8.")


def nul_byte(source: str, line: int) -> UserError:
    """The error for a NUL byte."""
    return UserError(
        f"{source}, line {line}: a NUL byte. The file is UTF-16 without a mark, not a text, or "
        f"damaged. UTF-8 is expected: {_convert(Path(source), 'UTF-16')}"
    )


def _convert(path: Path, encoding: str) -> str:
    target = path.with_name(f"utf8-{path.name}")
    return (
        f"Convert it: iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} "
        f"> {shlex.quote(str(target))}"
    )


def check_columns(names: Sequence[str], where: str) -> None:
    """Every column has a name of its own.

    Raises:
        UserError: a column without a name, or two with the same.
    """
    for index, name in enumerate(names, start=1):
        if not name or name.isspace():
            raise UserError(
                f"{where}: column {index} has no name. Give it one in the header "
                f"(a nameless first column is often an index: pandas' to_csv(..., index=False))."
            )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(
            f"{where}: more than one column is called {listed(twice)}. Rename or delete one."
        )
