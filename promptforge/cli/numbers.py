"""The table of figures of predicted numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from promptforge.cli.common import plain

if TYPE_CHECKING:
    from promptforge.evaluation import RegressionEvaluation


def numbers_table(title: str, figures: Mapping[str, RegressionEvaluation]) -> Any:
    """Correlations and errors, a line for each name; the last is the one that counts."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_edge=False)
    for head in ("", "Pearson", "95 % interval", "Spearman", "MAE", "RMSE"):
        table.add_column(head, justify="right" if head else "left")
    *_, last = figures.values()
    table.add_row("always the mean", "", "", "", "", f"{last.mean_rmse:.3g}", style="dim")
    for name, one in figures.items():
        interval = one.interval
        table.add_row(
            plain(name), _correlation(one.pearson),
            f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "",
            _correlation(one.spearman), f"{one.mae:.3g}", f"{one.rmse:.3g}",
            style="bold green" if one is last else None,
        )  # fmt: skip
    return table


def _correlation(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
