"""Reports: one HTML file about a run or several, which opens with no network.

from promptforge_report.report import report
"""

from __future__ import annotations

from collections.abc import Sequence

import rich_click as click

from promptforge import hookimpl


@hookimpl
def promptforge_commands() -> Sequence[click.Command]:
    """`promptforge report`."""
    from promptforge.cli.later import LaterCommand

    says = "Write a report about runs of `promptforge train`: one HTML file that needs no network."
    return [LaterCommand("report", "promptforge_report.cli:report", says)]
