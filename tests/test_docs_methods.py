"""The commands and snippets of the methods' pages; see test_docs_commands.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.doc_pages import pages
from tests.doc_reader import run_page


@pytest.mark.parametrize("page", [p for p in pages() if p.startswith("docs/methods/")])
def test_a_page(
    page: str,
    packaged_models: Path,
    command: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All that a page shows runs, in its order."""
    run_page(page, tmp_path, command, monkeypatch)
