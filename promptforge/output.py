"""Writing predictions so that nothing is lost: a partial file, its journal, one final rename.

Rows go to `PATH.partial`. After each chunk the journal `PATH.partial.json` records how many
rows and bytes are safely on disk, so that whatever kills the process, a later run cuts off what
came after and goes on. `PATH` itself appears, or changes, only when everything is written.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from promptforge.data import Row
from promptforge.errors import PromptForgeError, UserError, did_you_mean, listed
from promptforge.remote import expanded

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}


class RowWriter:
    """Writes rows to `path` chunk by chunk, and can go on where an earlier run stopped.

    `fingerprint` stands for everything that the rows depend on (input, model, options): rows of
    different fingerprints are never mixed in a file. `path=None` or `"-"` writes CSV, TSV or
    JSON lines (`format`) to standard output, without a journal.

        with RowWriter("out.csv", fingerprint, resume=True) as out:
            for chunk in chunks(iter_rows("in.csv", skip=out.done)):
                out.write(predict(chunk))

    Raises:
        UserError: an unknown format, a folder that is not there or may not be written to, or a
            partial file that is another run's or in use.
        PromptForgeError: the disk is full or fails.
    """

    def __init__(
        self,
        path: str | Path | None,
        fingerprint: str,
        resume: bool = False,
        format: str | None = None,
    ) -> None:
        self.path = None if path is None or str(path) == "-" else expanded(path)
        self.fingerprint = fingerprint
        self.resume = resume
        if self.path is not None:
            check_target(self.path)
        self.format = _format(self.path, format)
        self.columns: list[str] | None = None
        self.done = 0
        #: rows of an interrupted run that `resume` would have gone on from
        self.given_up = 0
        self.rows = 0
        self._bytes = 0
        self._file: IO[bytes] | None = None
        self._encode = _encoder(self.format)
        if self.path is None:
            if resume:
                raise UserError("Standard output cannot be resumed: name an output file.")
            return
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.journal = self.path.with_name(self.path.name + ".partial.json")
        if resume:
            self._recall()

    def __enter__(self) -> RowWriter:
        if self.path is None:
            sys.stdout.flush()
            self._file = sys.stdout.buffer
            return self
        with _explained(self.path, "nothing has been written"):
            # Not truncated before the lock is ours: another process may be writing to it.
            handle = os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o666)
            self._file = os.fdopen(handle, "r+b")
            try:
                _lock(self._file, self.partial)
                try:
                    if self.resume:
                        self._recall()
                    else:
                        self.given_up = self._left()
                    self._file.truncate(self._bytes)
                    self._file.seek(self._bytes)
                    self._record()
                except BaseException:
                    if not self.rows and not self.resume:
                        self._discard()
                    raise
            except BaseException:
                self._file.close()
                raise
        return self

    def write(self, rows: Sequence[Row]) -> None:
        """Append `rows`; when it returns they are on disk and in the journal.

        Raises:
            UserError: rows with other columns than the first row's, or a text that UTF-8 cannot
                hold.
            PromptForgeError: the disk is full or fails.
        """
        if self._file is None:
            raise PromptForgeError("RowWriter is a context manager: use it in a with statement.")
        if not rows:
            return
        header = self.columns is None
        if self.columns is None:
            self.columns = list(rows[0])
        known = set(self.columns)
        for number, row in enumerate(rows, start=self.rows + 1):
            if row.keys() != known:
                raise UserError(
                    f"Row {number} of the output has the columns {listed(list(row))}, but the "
                    f"first has {listed(self.columns)}. All rows need the same columns."
                )
        try:
            data = self._encode(rows, self.columns, header).encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(
                f"The rows {self.rows + 1} to {self.rows + len(rows)} of the output hold half of "
                f"a surrogate pair, which is no character. Delete it from the input."
            ) from None
        if self.path is None:
            with _explained(Path("standard output"), f"{self.rows} rows are written"):
                self._file.write(data)
                self._file.flush()
            self.rows += len(rows)
            return
        with _explained(self.path, f"{self.rows} rows are safe in {self.partial}"):
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
            self.rows += len(rows)
            self._bytes += len(data)
            self._record()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        file, self._file = self._file, None
        if self.path is None or file is None:
            return
        try:
            if kind is None:
                with _explained(self.path, f"{self.rows} rows are safe in {self.partial}"):
                    self._finish(file)
            elif not self.rows:  # There is nothing to go on from.
                self._discard()
        finally:
            # Closing tries to write what an error left in the buffer; that is no news.
            with suppress(OSError):
                file.close()

    def _finish(self, file: IO[bytes]) -> None:
        assert self.path is not None
        if self.format in ("parquet", "arrow"):
            from promptforge.staging import convert

            ready = self.path.with_name(self.path.name + ".partial.out")
            try:
                convert(self.partial, ready, self.format, self.columns or [])
                ready.replace(self.path)
            finally:
                ready.unlink(missing_ok=True)
            self._discard()
        else:
            if sys.platform == "win32":
                file.close()  # An open file cannot be renamed there.
            self.partial.replace(self.path)
            self.journal.unlink(missing_ok=True)
        _sync_folder(self.path.parent)

    def _discard(self) -> None:
        self.journal.unlink(missing_ok=True)
        with suppress(OSError):
            self.partial.unlink(missing_ok=True)

    def _record(self) -> None:
        """Put the state into the journal: the old one or the new one is there at any moment."""
        state = {
            "fingerprint": self.fingerprint,
            "rows": self.rows,
            "bytes": self._bytes,
            "format": self.format,
            "columns": self.columns,
        }
        fresh = self.journal.with_name(self.journal.name + ".new")
        try:
            with fresh.open("w", encoding="utf-8") as handle:
                json.dump(state, handle, ensure_ascii=True)
                handle.flush()
                os.fsync(handle.fileno())
            fresh.replace(self.journal)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise

    def _left(self) -> int:
        """How many rows an interrupted run of the same input and options has left."""
        with suppress(UserError):
            self._recall()
        left, self.done, self.rows, self._bytes, self.columns = self.done, 0, 0, 0, None
        return left

    def _recall(self) -> None:
        """Take up the state of an earlier run, if there is one."""
        self.done = self.rows = self._bytes = 0
        self.columns = None
        if not self.journal.exists() or not self.partial.exists():
            return
        again = f"Delete {self.partial} and {self.journal}, or leave out --resume, to start again."
        try:
            state = json.loads(self.journal.read_text(encoding="utf-8"))
            print_, kind = state["fingerprint"], state.get("format", self.format)
            rows, size, columns = int(state["rows"]), int(state["bytes"]), state.get("columns")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{self.journal} is damaged. {again}") from None
        if print_ != self.fingerprint or kind != self.format:
            raise UserError(
                f"{self.partial} belongs to a run with other input or options, so its "
                f"{rows} rows cannot be continued. {again}"
            )
        if self.partial.stat().st_size < size:
            raise UserError(f"{self.partial} is shorter than its journal says. {again}")
        self.done = self.rows = rows
        self._bytes = size
        self.columns = columns if rows else None


def _format(path: Path | None, format: str | None) -> str:
    known = sorted(set(FORMATS.values()))
    if format is not None:
        if format not in known:
            raise UserError(
                f"There is no output format {format!r}.{did_you_mean(format, known)} "
                f"Formats: {listed(known)}."
            )
    elif path is None:
        format = "csv"
    else:
        format = FORMATS.get(path.suffix.lower())
        if format is None:
            raise UserError(
                f"{path}: the output format is told from the suffix: {listed(list(FORMATS))}."
            )
    if path is None and format in ("parquet", "arrow"):
        raise UserError(f"{format} cannot be written to standard output: name an output file.")
    return format


def check_target(path: Path) -> None:
    """Raise a `UserError` unless a file can be written at `path`."""
    folder = path.parent
    if path.is_dir():
        raise UserError(f"{path} is a folder. Name a file for the output.")
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is a device or a pipe. Name a file, or - for standard output.")
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder} to write {path.name} to. Make it first.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{folder} may not be written to: permission denied.")


@contextmanager
def _explained(path: Path, state: str) -> Iterator[None]:
    """Turn the operating system's errors into ones for the person; `state` says what is safe."""
    try:
        yield
    except BrokenPipeError:  # `promptforge predict ... | head` is no error.
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise PromptForgeError(
                f"No space left to write {path}; {state}. Free some space, then run the command "
                f"again with --resume."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(f"{path} may not be written: {error.strerror}; {state}.") from error
        raise PromptForgeError(f"{path} could not be written: {error}; {state}.") from error


def _lock(file: IO[bytes], path: Path) -> None:
    """Keep a second process from writing the same partial file; freed when the process ends."""
    if sys.platform == "win32":
        return
    import fcntl

    busy = UserError(f"{path} is being written by another process. Wait for it.")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems have no locks; that is no reason to refuse to write.
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise busy from None
    # The other process may have finished, and renamed the file, since we opened it.
    if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
        raise busy


def _sync_folder(folder: Path) -> None:
    # Makes the rename itself survive a power failure, where the system has a way to say so.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _encoder(format: str) -> Callable[[Sequence[Row], list[str], bool], str]:
    from promptforge import staging

    if format in ("csv", "tsv"):
        delimiter = "," if format == "csv" else "\t"
        return lambda rows, columns, header: _delimited(rows, columns, header, delimiter)
    return staging.plain_lines if format == "jsonl" else staging.tagged_lines


def _delimited(rows: Sequence[Row], columns: list[str], header: bool, delimiter: str) -> str:
    from promptforge.staging import as_text

    out = io.StringIO(newline="")
    fitting = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    # Before Python 3.13 the writer leaves a lone \r unquoted, and it would end the line.
    quoting = csv.writer(out, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
    lines: Iterator[list[str]] = ([as_text(row[c]) for c in columns] for row in rows)
    if header:
        fitting.writerow([str(c) for c in columns])
    for cells in lines:
        (quoting if any("\r" in cell for cell in cells) else fitting).writerow(cells)
    return out.getvalue()
