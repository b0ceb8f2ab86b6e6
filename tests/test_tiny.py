"""The tiny models of the tests are the same in every process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PRINT = """
import tiny
for name in tiny.ARCHITECTURES:
    print(name, tiny.tokenizer(name).backend_tokenizer.to_str())
"""


def test_tokenizers_do_not_depend_on_the_process() -> None:
    def printed() -> str:
        return subprocess.run(
            [sys.executable, "-c", PRINT],
            check=True, capture_output=True, text=True, encoding="utf-8", cwd=Path(__file__).parent,
        ).stdout  # fmt: skip

    first = printed()
    assert len(first) > 10_000
    assert printed() == first
