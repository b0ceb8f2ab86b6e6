"""Plots as inline SVG: matplotlib draws, and the page's style gives the colours, light and dark."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import count
from typing import Any

from promptforge_report.figures import Bin, Figure
from promptforge_report.records import Curve, Training

#: colour in matplotlib -> the page's variable that takes its place
_INKS = {
    "#010101": "ink", "#020202": "muted", "#030303": "line", "#040404": "accent",
    "#050505": "series-1", "#060606": "series-2", "#070707": "series-3", "#080808": "series-4",
}  # fmt: skip
INK, MUTED, LINE, ACCENT, *SERIES = _INKS
#: Ticks are made as late as when a figure is saved, so this holds for both.
_STYLE: Any = {
    "font.size": 10, "axes.edgecolor": MUTED, "axes.labelcolor": MUTED, "text.color": INK,
    "xtick.color": MUTED, "ytick.color": MUTED, "axes.spines.top": False,
    "axes.spines.right": False, "axes.axisbelow": True, "axes.linewidth": 0.8,
    "xtick.major.size": 3, "ytick.major.size": 3, "svg.fonttype": "none",
    "svg.hashsalt": "promptforge", "text.parse_math": False,
}  # fmt: skip
#: Trainings that a plot can hold.
TRAININGS = 1 + len(SERIES)
_MARKS = ("o", "s", "^", "D", "v", "P")


def drawable() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


class Plots:
    """Draws one plot after another, with ids that do not meet in one page."""

    def __init__(self) -> None:
        self._number = count(1)

    def intervals(self, figures: Sequence[Figure]) -> str:
        """Headlines and their confidence intervals below one another."""
        shown = [f for f in figures if f.value is not None]
        longest = max(len(f.name) for f in shown)
        left = 0.25 + 0.078 * longest  # inches of a letter of this size
        figure, axes = _figure(left + 4.1, 0.62 + 0.34 * len(shown), left=left)
        share = 1 if shown[0].kind in ("pearson", "bleu") else 100
        for place, one in enumerate(reversed(shown)):
            assert one.value is not None
            colour = ACCENT if one.final else MUTED
            if one.low is not None and one.high is not None:
                axes.plot(
                    [share * one.low, share * one.high],
                    [place, place],
                    color=colour,
                    lw=2.2,
                    solid_capstyle="round",
                )
            axes.plot([share * one.value], [place], "o", color=colour, ms=7 if one.final else 5.5)
        axes.set_yticks(range(len(shown)), [f.name for f in reversed(shown)])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=LINE, lw=0.7)
        axes.set_xlabel(f"{shown[0].label}{', %' if share == 100 else ''}, with 95 % intervals")
        return self._svg(
            figure,
            f"{shown[0].label} of {len(shown)} classifiers with intervals; the table has the numbers",
        )

    def losses(self, trainings: Mapping[str, Training]) -> str:
        """Loss by step, a line for each training."""
        figure, axes = _figure(4.5, 2.7)
        for number, (name, one) in enumerate(list(trainings.items())[:TRAININGS]):
            steps, losses = [e["step"] for e in one.curve], [e["loss"] for e in one.curve]
            if (reach := len(losses) // 20) > 1:
                axes.plot(steps, losses, color=_series(number), lw=0.6, alpha=0.35)
                losses = _smooth(losses, reach)
            axes.plot(steps, losses, color=_series(number), lw=1.8, label=name)
        _steps(axes, "loss")
        if len(trainings) > 1:
            _legend(axes)
        return self._svg(figure, "Loss by step")

    def scores(self, trainings: Mapping[str, Training]) -> str:
        """Score on the dev rows by step; a ring marks the best."""
        figure, axes = _figure(4.5, 2.7)
        for number, (name, one) in enumerate(list(trainings.items())[:TRAININGS]):
            looks = [e for e in one.curve if "score" in e]
            if not looks:
                continue
            axes.plot(
                [e["step"] for e in looks], [e["score"] for e in looks], color=_series(number), lw=1.6,
                marker=_MARKS[number % len(_MARKS)], ms=4, label=name,
            )  # fmt: skip
            if one.best is not None:
                ring = {"mfc": "none", "mec": _series(number), "mew": 1.3}
                axes.plot([one.best_step], [one.best], "o", ms=9, **ring)
        _steps(axes, "score on dev")
        if len(trainings) > 1:
            _legend(axes)
        return self._svg(figure, "Score on the dev rows by step; the table has the best")

    def reliability(self, tuned: Sequence[Bin], before: Sequence[Bin]) -> str:
        """Accuracy against confidence; on the diagonal they are equal."""
        figure, (axes, bars) = _figure(3.9, 4.4, rows=2, height_ratios=(4, 1), sharex=True)
        axes.plot([0, 100], [0, 100], color=MUTED, lw=1, ls=(0, (4, 3)))
        for bins, colour, name in ((before, MUTED, "zero-shot"), (tuned, ACCENT, "tuned")):
            if bins:
                axes.plot(
                    [100 * b.confidence for b in bins], [100 * b.right for b in bins], color=colour,
                    lw=1.8, marker="o", ms=4.5, label=name,
                )  # fmt: skip
        bars.bar(
            [50 * (b.low + b.high) for b in tuned], [b.rows for b in tuned],
            width=[100 * (b.high - b.low) - 1.2 for b in tuned], color=ACCENT, alpha=0.55, lw=0,
        )  # fmt: skip
        axes.set(ylabel="right, %", ylim=(-3, 103), xlim=(0, 100))
        bars.set(xlabel="confidence, %", ylabel="rows")
        axes.grid(color=LINE, lw=0.7)
        if before:
            _legend(axes)
        return self._svg(
            figure,
            "Share of right answers against confidence, and how many rows had it; the table has the numbers",
        )

    def against(self, truth: Sequence[float], said: Sequence[float]) -> str:
        """Predicted numbers against true ones."""
        figure, axes = _figure(3.9, 3.6)
        ends = [min(truth), max(truth)]
        axes.plot(ends, ends, color=MUTED, lw=1, ls=(0, (4, 3)))
        axes.plot(truth, said, "o", color=ACCENT, ms=4, alpha=0.5, mew=0)
        axes.set(xlabel="true number", ylabel="predicted number")
        axes.grid(color=LINE, lw=0.7)
        return self._svg(
            figure, "Predicted numbers against true ones; on the dashed line they are equal"
        )

    def exits(self, curve: Curve) -> str:
        """Score against layers, a line for each policy."""
        figure, axes = _figure(5.6, 3.2)
        axes.axhline(100 * curve.score - curve.max_drop, color=MUTED, lw=1, ls=(0, (2, 3)))
        for number, name in enumerate(dict.fromkeys(p.policy for p in curve.points)):
            own = sorted((p for p in curve.points if p.policy == name), key=lambda p: p.mean_layers)
            axes.plot(
                [p.mean_layers for p in own], [100 * p.score for p in own], color=_series(number),
                marker=_MARKS[number % len(_MARKS)], ms=3.5, lw=1.5, label=name,
            )  # fmt: skip
        axes.plot([curve.layers], [100 * curve.score], "*", color=INK, ms=12, label="plain model")
        axes.set(xlabel="mean layers used", ylabel="score × 100")
        axes.grid(axis="y", color=LINE, lw=0.7)
        _legend(axes)
        return self._svg(
            figure,
            "Score against the layers that a row uses, for each exit policy; the table has the best",
        )

    def _svg(self, figure: Any, alt: str) -> str:
        """The figure as SVG to stand in a page: its own ids, the page's colours and letters."""
        import matplotlib
        from matplotlib.text import Text

        buffer = io.StringIO()
        for label in figure.findobj(Text):
            label.set_parse_math(False)  # a run may be called a$x^$
        with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
            # The browser has letters that matplotlib's font lacks: text stays text.
            warnings.filterwarnings("ignore", "Glyph", UserWarning)
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        svg = buffer.getvalue()
        text = svg[svg.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
        text = text.replace("xlink:href", "href")
        plot = f"plot-{next(self._number)}"
        text = re.sub(r'\bid="', f'id="{plot}-', text)
        text = re.sub(r'(href="|url\()#', rf"\g<1>#{plot}-", text)
        for colour, name in _INKS.items():
            text = text.replace(colour, f"var(--{name})")
        text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--sans)", text)
        width = re.search(r'width="([\d.]+)pt"', text)
        wide = f"{float(width[1]) * 4 / 3:.0f}px" if width else "100%"
        text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
        return text.replace("<svg", f'<svg role="img" aria-label="{alt}" style="width:{wide}"', 1)


def _series(number: int) -> str:
    return (ACCENT, *SERIES)[number % (1 + len(SERIES))]


def _smooth(values: Sequence[float], reach: int) -> list[float]:
    """Means of the `reach` values on either side."""
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(w) / len(w) for w in windows]


def _figure(
    width: float, height: float, *, left: float = 0.62, rows: int = 1, **options: Any
) -> tuple[Any, Any]:
    """A figure in the page's style; sizes and the left margin in inches.

    The margins are given, because matplotlib's own layouts draw each figure twice.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Drawing

    with rc_context(_STYLE):
        figure = Drawing(figsize=(width, height))
        made = figure.subplots(rows, 1, **options)
        figure.subplots_adjust(
            left / width, 0.48 / height, 1 - 0.14 / width, 1 - 0.1 / height, hspace=0.08
        )
        return figure, made


def _steps(axes: Any, what: str) -> None:
    axes.set(xlabel="step", ylabel=what)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", color=LINE, lw=0.7)


def _legend(axes: Any) -> None:
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
