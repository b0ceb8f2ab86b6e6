"""Readers of tables: CSV, TSV, JSON lines, Parquet, Arrow, and data sets of the hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from promptforge.hookspecs import hookimpl

if TYPE_CHECKING:
    from promptforge.data import Reader


@hookimpl
def promptforge_data_readers() -> Sequence[type[Reader]]:
    """The built-in table formats."""
    from promptforge_readers.columnar import ArrowReader, ParquetReader
    from promptforge_readers.delimited import CsvReader, TsvReader
    from promptforge_readers.hub import HubReader
    from promptforge_readers.jsonlines import JsonLinesReader

    return [CsvReader, TsvReader, JsonLinesReader, ParquetReader, ArrowReader, HubReader]
