"""The figures of a report, drawn with matplotlib as SVG that takes its colours and fonts from the page."""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from plaudit.evaluation.page import Score
from plaudit.evaluation.results import BestOfNPoint, ReliabilityBin

WIDTH = 360
"""Width of a figure in its own units. A phone shows it about as wide, a screen somewhat larger."""
_NAMES = ("ink", "muted", "grid", "surface", "better", "worse", "third", "fourth", "fifth")
# Each colour is drawn under a placeholder, which becomes a variable of the page's style sheet.
_COLOURS = {name: f"#{number:02d}{number:02d}{number:02d}" for number, name in enumerate(_NAMES, 1)}
# Lines in this order; people with any colour vision can tell them apart.
_SERIES = tuple(_COLOURS[name] for name in ("better", "worse", "third", "fourth", "fifth"))
_BETTER, _MUTED = _COLOURS["better"], _COLOURS["muted"]
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1.5)))
_DOTTED = (0, (2, 2))
_MOST_POINTS = 800
_STYLE = Path(__file__).with_name("figures.mplstyle")


class Line(NamedTuple):
    """A line of a plot: its name, and its points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@contextmanager
def canvas(height: int) -> Iterator[Any]:
    """Context manager that yields the axes of a figure, drawn in the style of the page while it lasts."""
    # Imported only now: it takes a second, and most commands draw nothing.
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with rc_context(fname=_STYLE):
        layout = ConstrainedLayoutEngine(w_pad=2 / 72, h_pad=3 / 72)
        yield Figure(figsize=(WIDTH / 72, height / 72), layout=layout).add_subplot()


def as_svg(axes: Any, *, legend: bool = True, markerscale: float = 1) -> str:
    """Returns a figure as SVG for the page, without colours, fonts, styles, links or names of its own."""
    if legend:
        columns = _legend_columns(axes.get_legend_handles_labels()[1])
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, markerscale=markerscale)
    stream = io.StringIO()
    axes.figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    for unwanted in (r"<metadata>.*?</metadata>", r"<style\b.*?</style>", r"<!--.*?-->", r"<defs>\s*</defs>"):
        svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
    width, height = 72 * axes.figure.get_size_inches()
    head = f'<svg viewBox="0 0 {width:g} {height:g}" focusable="false" aria-hidden="true">'
    svg = re.sub(r"<svg\b[^>]*>", head, svg, count=1)
    # Only within tags: what stands between them is text.
    svg = re.sub(r"<[^>]+>", lambda match: _themed_tag(match[0]), svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    # Keep only the ids that are referred to, and make them unique on the page by what the figure shows.
    used = set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg))
    prefix = "f" + hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r' id="([^"]*)"', lambda match: f' id="{prefix}{match[1]}"' if match[1] in used else "", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}\1"', svg)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}\1)", svg)


def _themed_tag(tag: str) -> str:
    tag = tag.replace("xlink:href", "href")
    for name, placeholder in _COLOURS.items():
        tag = tag.replace(placeholder, f"var(--{name})")
    # The style sheet sets the sizes of text: it knows how large the figure is shown.
    tag = re.sub(  # before matplotlib 3.11
        r"font: (?:(\d+) )?[\d.]+px [^;\"]*(; )?", lambda match: f"font-weight: {match[1]}; " if match[1] else "", tag
    )
    tag = re.sub(r"font-(size|family): [^;\"]*(; ?)?", "", tag)
    tag = re.sub(r' transform="rotate\(-?0 [^"]*"', "", tag)
    tag = re.sub(r"-?\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), tag)
    return re.sub(r"\s+", " ", tag).replace(' style=""', "")


# ---- plots -------------------------------------------------------------------------------------------------------


def draw_lines(lines: Sequence[Line], *, x_label: str, mark: tuple[float, str] | None = None) -> str:
    """Draws lines over steps, the first one solid; `mark` is a place on x with its name."""
    names = [*(line.name for line in lines), *([mark[1]] if mark else [])]
    legend_rows = -(-len(names) // _legend_columns(names)) if len(names) > 1 else 0
    with canvas(216 + 14 * legend_rows) as axes:
        for index, line in enumerate(lines):
            axes.plot(
                line.x,
                line.y,
                color=_SERIES[index % len(_SERIES)],
                linestyle=_DASHES[(index + index // len(_SERIES)) % len(_DASHES)],
                marker="o" if len(line.x) < 25 else None,
                markersize=3.5,
                label=short(line.name, 26),
            )
        if mark is not None:
            axes.axvline(mark[0], color=_MUTED, linewidth=1, linestyle=_DOTTED, label=mark[1])
        axes.set_xlabel(x_label)
        _set_ticks(axes, x="whole")
        axes.margins(x=0.03, y=0.08)
        steps = {step for line in lines for step in line.x}
        if len(steps) == 1:
            axes.set_xlim(min(steps) - 1, max(steps) + 1)
        return as_svg(axes, legend=len(names) > 1)


def draw_histogram(edges: Sequence[float], groups: Mapping[str, Sequence[int]], *, x_label: str) -> str:
    """Draws the counts of one or two named groups between edges, one group over the other."""
    with canvas(230) as axes:
        for index, (name, counts) in enumerate(groups.items()):
            axes.stairs(counts, edges, fill=True, color=_SERIES[index], alpha=0.3, linewidth=0)
            axes.stairs(counts, edges, color=_SERIES[index], linewidth=1.6, linestyle=_DASHES[index], label=name)
        axes.set_xlabel(x_label)
        axes.set_ylim(bottom=0)
        axes.margins(x=0.02)
        _set_ticks(axes, y="whole")
        if len(groups) == 1:
            axes.axvline(0, color=_MUTED, linewidth=1, linestyle=_DOTTED)
        return as_svg(axes, legend=len(groups) > 1)


def draw_reliability(curves: Mapping[str, Sequence[ReliabilityBin]]) -> str:
    """Draws how often a model is right by how sure it is, beside the line where both are equal."""
    with canvas(330) as axes:
        axes.plot([0.5, 1], [0.5, 1], color=_MUTED, linewidth=1, linestyle=_DOTTED, label="perfect")
        for index, (name, bins) in enumerate(curves.items()):
            # Side by side, where both curves have a point at the same confidence.
            apart = (index - (len(curves) - 1) / 2) * 0.004
            known = [part for part in bins if part.confidence is not None and part.accuracy is not None]
            x = [part.confidence + apart for part in known if part.confidence is not None]
            for at, part in zip(x, known, strict=True):
                axes.plot([at, at], part.interval, color=_SERIES[index], linewidth=1.2, alpha=0.7)
            style = {"marker": "os"[index % 2], "markersize": 5, "linestyle": _DASHES[index]}
            axes.plot(x, [part.accuracy for part in known], color=_SERIES[index], label=name, **style)
        axes.set(xlabel="confidence of the model", ylabel="share right", xlim=(0.49, 1.01))
        axes.set_xticks([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
        lows = [part.interval.low for bins in curves.values() for part in bins if part.n]
        axes.set_ylim(math.floor(min([0.5, *lows]) * 10) / 10 - 0.02, 1.02)
        _set_ticks(axes, x="percent", y="percent")
        return as_svg(axes)


def draw_shares(shares: Sequence[Score], *, chance: float | None, average: float | None) -> str:
    """Draws shares with their intervals, one below the other, beside those of chance and of all."""
    heights = list(range(len(shares)))[::-1]
    with canvas(72 + 24 * len(shares)) as axes:
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        for height, share in zip(heights, shares, strict=True):
            if share.interval is not None:
                axes.plot(share.interval, [height, height], color=_BETTER, linewidth=2.4, alpha=0.55)
            axes.plot([share.value], [height], color=_BETTER, marker="o", markersize=6, linestyle="none")
        lines = [(chance, "chance", _DOTTED), (average, "all", "-")]
        named = [(at, name, dashes) for at, name, dashes in lines if at is not None]
        for at, name, dashes in named:
            axes.axvline(at, color=_MUTED, linewidth=1, linestyle=dashes, label=name, zorder=0.5)
        axes.set_yticks(heights, [short(share.name, 22) for share in shares])
        axes.tick_params(axis="y", labelcolor=_COLOURS["ink"])
        axes.set_ylim(-0.6, len(shares) - 0.4)
        lows = [share.interval.low if share.interval is not None else share.value for share in shares]
        lowest = min(low for low in (*lows, *(at for at, _, _ in named), 0.9) if low is not None)
        axes.set_xlim(max(0.0, math.floor(lowest * 10) / 10 - 0.02), 1.02)
        _set_ticks(axes, x="percent", y=None)
        axes.xaxis.get_major_locator().set_params(nbins=5)
        return as_svg(axes, legend=bool(named))


def draw_points(points: Sequence[tuple[float, float, str]], *, x_label: str, y_label: str) -> str:
    """Draws responses as points (x, y, quality); of very many only some."""
    count = min(len(points), _MOST_POINTS)
    drawn = [points[index * len(points) // count] for index in range(count)]
    with canvas(300) as axes:
        # Those in between first: they are many, and the others lie on top of them.
        for quality, marker, colour in (("other", "s", _MUTED), ("better", "o", _BETTER), ("worse", "^", _SERIES[1])):
            x = [x for x, _, of in drawn if of == quality]
            y = [y for _, y, of in drawn if of == quality]
            if x:
                axes.plot(x, y, marker, color=colour, markersize=3.2, markeredgewidth=0, alpha=0.55, label=quality)
        axes.set(xlabel=x_label, ylabel=y_label)
        low, high = min(x for x, _, _ in drawn), max(x for x, _, _ in drawn)
        _set_ticks(axes)
        if low > 0 and high > 30 * low:
            axes.set_xscale("log")
            ticks = [base * 10**power for power in range(-1, 8) for base in (1, 3)]
            axes.set_xticks([], minor=True)
            ticks = [tick for tick in ticks if low <= tick <= high]
            axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
        axes.margins(x=0.03, y=0.05)
        return as_svg(axes, markerscale=2)


def draw_steps(bins: Sequence[Score], *, x_label: str) -> str:
    """Draws shares with their intervals, side by side."""
    with canvas(300) as axes:
        for place, share in enumerate(bins):
            if share.interval is not None:
                axes.plot([place, place], share.interval, color=_BETTER, linewidth=2.4, alpha=0.55)
        axes.plot([share.value for share in bins], color=_BETTER, marker="o", markersize=5.5)
        axes.axhline(0.5, color=_MUTED, linewidth=1, linestyle=_DOTTED)
        names = [share.name for share in bins]
        axes.set_xticks(range(len(bins)), names, rotation=35, ha="right", rotation_mode="anchor")
        axes.set_xlabel(x_label)
        axes.set_ylim(-0.02, 1.02)
        _set_ticks(axes, y="percent", x=None)
        axes.margins(x=0.05)
        return as_svg(axes, legend=False)


def draw_best_of_n(points: Sequence[BestOfNPoint]) -> str:
    """Draws the gold score of what is picked among n, between that of the best and that of any."""
    n = [point.n for point in points]
    with canvas(280) as axes:
        low, high = zip(*(point.interval or (point.picked, point.picked) for point in points), strict=True)
        axes.fill_between(n, low, high, color=_BETTER, alpha=0.2, linewidth=0)
        axes.plot(n, [point.oracle for point in points], color=_SERIES[2], linestyle=_DASHES[1], label="oracle")
        axes.plot(n, [point.picked for point in points], color=_BETTER, marker="o", markersize=4.5, label="picked")
        axes.plot(n, [point.random for point in points], color=_MUTED, linestyle=_DASHES[2], label="random")
        axes.set(xlabel="responses to choose from", ylabel="gold score")
        _set_ticks(axes, x="whole")
        return as_svg(axes)


# ---- parts of plots ----------------------------------------------------------------------------------------------


def short(text: str, most: int) -> str:
    """Cuts a name to at most so many characters.

    >>> short("a-very-long-name", 8)
    'a-very-…'
    """
    return text if len(text) <= most else text[: most - 1] + "…"


def _legend_columns(names: Sequence[str]) -> int:
    width = max(len(short(name, 26)) for name in names)
    return max(1, min(len(names), 40 // (width + 4)))


def _set_ticks(axes: Any, x: str | None = "few", y: str | None = "few") -> None:
    """Sets the ticks of both axes: few, whole numbers, percent where they are, or (None) as they are."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

    for axis, kind in ((axes.xaxis, x), (axes.yaxis, y)):
        if kind == "percent":
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol="%"))
        elif kind is not None:
            axis.set_major_locator(MaxNLocator(nbins=4 if kind == "whole" else 5, integer=kind == "whole"))
            # Each tick in full: a common factor would stand where the legend is.
            axis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))


def tick_text(value: float) -> str:
    """Returns the text of a tick.

    >>> tick_text(-0.25), tick_text(1.5e-05), tick_text(2e6), tick_text(12000)
    ('−0.25', '1.5e−5', '2e6', '12,000')
    """
    text = f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:g}"
    mantissa, _, power = text.partition("e")
    return (f"{mantissa}e{int(power)}" if power else mantissa).replace("-", "−")  # noqa: RUF001
