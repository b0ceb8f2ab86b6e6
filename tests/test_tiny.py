"""The tiny models of the tests are the same in every process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests import tiny

PRINT = """
import json, tiny
print(json.dumps([tiny.tokenizer(name).backend_tokenizer.to_str() for name in tiny.ARCHITECTURES]))
"""


def test_tokenizers_do_not_depend_on_the_process() -> None:
    elsewhere = subprocess.run(
        [sys.executable, "-c", PRINT],
        check=True, capture_output=True, text=True, encoding="utf-8", cwd=Path(__file__).parent,
    ).stdout.splitlines()[-1]  # fmt: skip
    here = [tiny.tokenizer(name).backend_tokenizer.to_str() for name in tiny.ARCHITECTURES]
    assert json.loads(elsewhere) == here
