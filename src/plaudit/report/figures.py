"""The figures of a report, drawn with matplotlib as SVG that takes its colours and fonts from the page."""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from plaudit.evaluation.results import BestOfNPoint, Interval, ReliabilityBin

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
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "plaudit",
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "axes.labelsize": 12,
    "axes.titlesize": 12,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "legend.fontsize": 12,
    "text.color": _COLOURS["ink"],
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _MUTED,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "axes.linewidth": 0.8,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _COLOURS["grid"],
    "grid.linewidth": 0.8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "legend.borderaxespad": 0.2,
    "legend.handlelength": 1.4,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "text.parse_math": False,
    "path.simplify": True,
    "path.simplify_threshold": 0.4,
}


@dataclass(frozen=True)
class Line:
    """A line of a plot: its name, and its points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Share:
    """A named share with its 95% interval."""

    name: str
    value: float
    interval: Interval | None


@contextmanager
def canvas(height: int) -> Iterator[tuple[Any, Any]]:
    """Context manager that yields a figure and its axes, drawn in the style of the page while it lasts."""
    # Imported only now: it takes a second, and most commands draw nothing.
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with rc_context(_STYLE):
        layout = ConstrainedLayoutEngine(w_pad=2 / 72, h_pad=3 / 72)
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout=layout)
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        yield figure, axes


def as_svg(figure: Any) -> str:
    """Returns a figure as SVG for the page, without colours, fonts, styles, links or names of its own."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    for unwanted in (r"<metadata>.*?</metadata>", r"<style\b.*?</style>", r"<!--.*?-->", r"<defs>\s*</defs>"):
        svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
    view = re.search(r'viewBox="([^"]+)"', svg)
    if view is None:  # matplotlib always writes one
        raise ValueError("the figure has no viewBox")
    box = " ".join(f"{float(number):g}" for number in view[1].split())
    svg = re.sub(r"<svg\b[^>]*>", f'<svg viewBox="{box}" focusable="false" aria-hidden="true">', svg, count=1)
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
    with canvas(216 + 14 * _legend_rows(names)) as (figure, axes):
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
        _few_ticks(axes)
        _whole(axes.xaxis)
        axes.margins(x=0.03, y=0.08)
        steps = {step for line in lines for step in line.x}
        if len(steps) == 1:
            axes.set_xlim(min(steps) - 1, max(steps) + 1)
        if len(names) > 1:
            _legend_above(axes, names)
        return as_svg(figure)


def draw_histogram(edges: Sequence[float], groups: Sequence[tuple[str, Sequence[int]]], *, x_label: str) -> str:
    """Draws the counts of one or two named groups between edges, one group over the other."""
    with canvas(230) as (figure, axes):
        for index, (name, counts) in enumerate(groups):
            axes.stairs(counts, edges, fill=True, color=_SERIES[index], alpha=0.3, linewidth=0)
            axes.stairs(counts, edges, color=_SERIES[index], linewidth=1.6, linestyle=_DASHES[index], label=name)
        axes.set_xlabel(x_label)
        axes.set_ylim(bottom=0)
        axes.margins(x=0.02)
        _few_ticks(axes)
        _whole(axes.yaxis)
        if len(groups) > 1:
            _legend_above(axes, [name for name, _ in groups])
        else:
            axes.axvline(0, color=_MUTED, linewidth=1, linestyle=_DOTTED)
        return as_svg(figure)


def draw_reliability(curves: Sequence[tuple[str, Sequence[ReliabilityBin]]]) -> str:
    """Draws how often a model is right by how sure it is, beside the line where both are equal."""
    with canvas(330) as (figure, axes):
        axes.plot([0.5, 1], [0.5, 1], color=_MUTED, linewidth=1, linestyle=_DOTTED, label="perfect")
        for index, (name, bins) in enumerate(curves):
            # Side by side, where both curves have a point at the same confidence.
            apart = (index - (len(curves) - 1) / 2) * 0.004
            known = [part for part in bins if part.confidence is not None and part.accuracy is not None]
            x = [part.confidence + apart for part in known if part.confidence is not None]
            for at, part in zip(x, known, strict=True):
                axes.plot([at, at], part.interval, color=_SERIES[index], linewidth=1.2, alpha=0.7)
            style = {"marker": "os"[index % 2], "markersize": 5, "linestyle": _DASHES[index]}
            axes.plot(x, [part.accuracy for part in known], color=_SERIES[index], label=name, **style)
        axes.set_xlabel("confidence of the model")
        axes.set_ylabel("share right")
        axes.set_xlim(0.49, 1.01)
        axes.set_xticks([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
        lows = [part.interval.low for _, bins in curves for part in bins if part.n]
        axes.set_ylim(math.floor(min([0.5, *lows]) * 10) / 10 - 0.02, 1.02)
        _percent(axes.xaxis)
        _percent(axes.yaxis)
        _legend_above(axes, ["perfect", *(name for name, _ in curves)])
        return as_svg(figure)


def draw_shares(shares: Sequence[Share], *, chance: float | None, average: float | None) -> str:
    """Draws shares with their intervals, one below the other, beside those of chance and of all."""
    heights = list(range(len(shares)))[::-1]
    with canvas(72 + 24 * len(shares)) as (figure, axes):
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
        lows = [share.interval[0] if share.interval is not None else share.value for share in shares]
        lowest = min([*lows, *(at for at, _, _ in named), 0.9])
        axes.set_xlim(max(0.0, math.floor(lowest * 10) / 10 - 0.02), 1.02)
        _percent(axes.xaxis)
        axes.xaxis.get_major_locator().set_params(nbins=5)
        if named:
            _legend_above(axes, [name for _, name, _ in named])
        return as_svg(figure)


def draw_points(points: Sequence[tuple[float, float, str]], *, x_label: str, y_label: str) -> str:
    """Draws responses as points (x, y, quality); of very many only some."""
    count = min(len(points), _MOST_POINTS)
    drawn = [points[index * len(points) // count] for index in range(count)]
    with canvas(300) as (figure, axes):
        names = []
        # Those in between first: they are many, and the others lie on top of them.
        for quality, marker, colour in (("other", "s", _MUTED), ("better", "o", _BETTER), ("worse", "^", _SERIES[1])):
            x = [x for x, _, of in drawn if of == quality]
            y = [y for _, y, of in drawn if of == quality]
            if x:
                names.append(quality)
                axes.plot(x, y, marker, color=colour, markersize=3.2, markeredgewidth=0, alpha=0.55, label=quality)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        low, high = min(x for x, _, _ in drawn), max(x for x, _, _ in drawn)
        if low > 0 and high > 30 * low:
            _logarithmic(axes.xaxis, low, high)
        else:
            _few_ticks(axes)
        axes.margins(x=0.03, y=0.05)
        _legend_above(axes, names, markerscale=2)
        return as_svg(figure)


def draw_steps(bins: Sequence[Share], *, x_label: str) -> str:
    """Draws shares with their intervals, side by side."""
    places = range(len(bins))
    with canvas(300) as (figure, axes):
        for place, share in zip(places, bins, strict=True):
            if share.interval is not None:
                axes.plot([place, place], share.interval, color=_BETTER, linewidth=2.4, alpha=0.55)
        axes.plot(places, [share.value for share in bins], color=_BETTER, marker="o", markersize=5.5)
        axes.axhline(0.5, color=_MUTED, linewidth=1, linestyle=_DOTTED, label="chance")
        axes.set_xticks(places, [share.name for share in bins], rotation=35, ha="right", rotation_mode="anchor")
        axes.set_xlabel(x_label)
        axes.set_ylim(-0.02, 1.02)
        _percent(axes.yaxis)
        axes.margins(x=0.05)
        return as_svg(figure)


def draw_best_of_n(points: Sequence[BestOfNPoint]) -> str:
    """Draws the gold score of what is picked among n, between that of the best and that of any."""
    n = [point.n for point in points]
    with canvas(280) as (figure, axes):
        low, high = zip(*(point.interval or (point.picked, point.picked) for point in points), strict=True)
        axes.fill_between(n, low, high, color=_BETTER, alpha=0.2, linewidth=0)
        axes.plot(n, [point.oracle for point in points], color=_SERIES[2], linestyle=_DASHES[1], label="oracle")
        axes.plot(n, [point.picked for point in points], color=_BETTER, marker="o", markersize=4.5, label="picked")
        axes.plot(n, [point.random for point in points], color=_MUTED, linestyle=_DASHES[2], label="random")
        axes.set_xlabel("responses to choose from")
        axes.set_ylabel("gold score")
        _few_ticks(axes)
        _whole(axes.xaxis)
        _legend_above(axes, ["oracle", "picked", "random"])
        return as_svg(figure)


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


def _legend_rows(names: Sequence[str]) -> int:
    return -(-len(names) // _legend_columns(names)) if len(names) > 1 else 0


def _legend_above(axes: Any, names: Sequence[str], markerscale: float = 1) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=_legend_columns(names), markerscale=markerscale)


def _few_ticks(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5))
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


def _whole(axis: Any) -> None:
    axis.get_major_locator().set_params(integer=True, nbins=4)


def _percent(axis: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol="%"))


def _logarithmic(axis: Any, low: float, high: float) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.axes.set_xscale("log")
    ticks = [base * 10**power for power in range(-1, 8) for base in (1, 3)]
    inside = [tick for tick in ticks if low <= tick <= high]
    axis.set_major_locator(FixedLocator(inside))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
