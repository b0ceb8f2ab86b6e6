"""Run a command and draw its terminal as an SVG: the picture in the README.

python tools/record_terminal.py docs/search-verbalizer.svg promptforge search-verbalizer ...
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 100


def main() -> None:
    """Write the picture of one command: the command line, its notes, its result."""
    target, *command = sys.argv[1:]
    env = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    # Of the progress lines only the last of each kind is worth a place.
    notes = {line.split(":")[0]: line for line in done.stderr.splitlines()}
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115, PTH123
    console.print(Text("$ " + " ".join(command), style="bold"))
    for line in notes.values():
        console.print(Text(line, style="dim"))
    console.print()
    console.print(Text.from_ansi(done.stdout.rstrip()))
    # Fonts come from the reader's machine: a picture asks no network for anything.
    svg = re.sub(
        r"@font-face \{.*?\}\s*", "", console.export_svg(title="promptforge"), flags=re.DOTALL
    )
    svg = svg.replace("Fira Code, monospace", "Fira Code, Menlo, DejaVu Sans Mono, monospace")
    Path(target).write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
