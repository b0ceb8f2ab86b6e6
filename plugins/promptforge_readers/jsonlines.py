"""JSON lines, read one object at a time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

from promptforge.data import Reader, Row
from promptforge.errors import UserError, listed
from promptforge_readers.files import check_columns, has_suffix, not_utf8, nul_byte, open_text_file


class JsonLinesReader(Reader):
    """One JSON object a line, in UTF-8 (.jsonl, .ndjson, also .gz)."""

    name: ClassVar[str] = "jsonl"

    def accepts(self, source: str) -> bool:
        return has_suffix(source, ".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")

    def rows(self, source: str, skip: int = 0) -> Iterator[Row]:
        # Objects may differ in their keys, so the file is read twice.
        columns: dict[str, None] = {}
        number = 0
        for number, row in enumerate(_objects(source), start=1):
            if row.keys() != columns.keys():
                if row.keys() - columns.keys():
                    check_columns(list(row), f"{source}, row {number}")
                columns.update(dict.fromkeys(row))
        if not number:
            raise UserError(f"{source} is empty: it has nothing but blank lines.")
        names = list(columns)
        for index, row in enumerate(_objects(source)):
            if index >= skip:
                yield row if list(row) == names else {name: row.get(name) for name in names}


def _once(pairs: list[tuple[str, Any]]) -> Row:
    """An object; JSON lets a key stand twice, and Python would take the last without a word."""
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise UserError(f"one object has more than one key {listed(twice)}. Rename or delete one.")
    return made


#: Made once: `json.loads` with a hook makes a decoder for every line.
_DECODER = json.JSONDecoder(object_pairs_hook=_once)


def _objects(source: str) -> Iterator[Row]:
    with open_text_file(source) as handle:
        # Lines of bytes end at \n alone, so that U+2028 and the like stay inside of cells.
        for number, line in enumerate(handle, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise not_utf8(source) from None
            if text.isspace() or not text:
                continue
            yield _parse(text, source, number)


def _parse(text: str, source: str, number: int) -> Row:
    where = f"{source}, line {number}"
    try:
        value: Any = _DECODER.decode(text)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deeply.") from None
    except ValueError as error:
        if "\0" in text:
            raise nul_byte(source, number) from None
        at = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        what = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        whole = (
            " If the whole file is one JSON value, write one object a line: jq -c '.[]'."
            if number == 1 and text.lstrip()[:1] in ("[", "{")
            else ""
        )
        raise UserError(f"{where}{at}: not JSON: {what}.{whole}") from None
    if not isinstance(value, dict):
        kind = {list: "array", str: "string", type(None): "null"}.get(type(value), "number")
        kind = "boolean" if isinstance(value, bool) else kind
        much = " Write one object a line: jq -c '.[]'." if kind == "array" else ""
        raise UserError(
            f'{where}: a JSON {kind}; an object such as {{"text": "..."}} is expected.{much}'
        )
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(
                f"{where}: half of a surrogate pair (\\ud800 to \\udfff), which is no character. "
                f"Delete it."
            ) from None
    return value
