"""The pictures of a report, drawn with matplotlib."""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

WIDTH = 360
"""Width of a picture in its own units. A phone shows it about as wide, a screen somewhat larger."""
_PLACEHOLDERS = {
    "ink": "#010101",
    "muted": "#020202",
    "grid": "#030303",
    "surface": "#040404",
    "better": "#050505",
    "worse": "#060606",
    "third": "#070707",
    "fourth": "#080808",
    "fifth": "#090909",
}
"""What matplotlib is told; none of these is drawn, each becomes a variable of the page's style sheet."""
SERIES = ("better", "worse", "third", "fourth", "fifth")
"""Colours of lines, in their order; people with any colour vision can tell them apart."""


def colour(name: str) -> str:
    """The colour to give to matplotlib for a variable of the style sheet.

    Args:
        name: One of those that the style sheet knows.
    """
    return _PLACEHOLDERS[name]


@contextmanager
def canvas(height: int) -> Iterator[tuple[Any, Any]]:
    """A figure with axes, drawn in the manner of the page while the context lasts.

    Args:
        height: Of the picture, in its own units.

    Yields:
        The figure and its axes.
    """
    # Imported only now: it takes a second, and most commands draw nothing.
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with rc_context(_style()):
        layout = ConstrainedLayoutEngine(w_pad=2 / 72, h_pad=3 / 72)
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout=layout)
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        yield figure, axes


def _style() -> dict[str, Any]:
    ink, muted, grid = colour("ink"), colour("muted"), colour("grid")
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "plaudit",
        "font.family": "DejaVu Sans",
        "font.size": 12,
        "axes.labelsize": 12,
        "axes.titlesize": 12,
        "xtick.labelsize": 12,
        "ytick.labelsize": 12,
        "legend.fontsize": 12,
        "text.color": ink,
        "axes.labelcolor": muted,
        "axes.edgecolor": muted,
        "xtick.color": muted,
        "ytick.color": muted,
        "axes.linewidth": 0.8,
        "xtick.major.size": 3,
        "ytick.major.size": 0,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": grid,
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


def as_svg(figure: Any) -> str:
    """A figure as SVG that takes its colours and fonts from the page.

    Args:
        figure: A figure from :func:`canvas`, within its context.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return themed(stream.getvalue())


def themed(svg: str) -> str:
    """Make a picture part of a page: no colours, fonts, styles, links or names of its own.

    Args:
        svg: A file as matplotlib writes it.
    """
    svg = svg[svg.index("<svg") :]
    for unwanted in (r"<metadata>.*?</metadata>", r"<style\b.*?</style>", r"<!--.*?-->", r"<defs>\s*</defs>"):
        svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
    view = re.search(r'viewBox="([^"]+)"', svg)
    if view is None:  # matplotlib always writes one
        raise ValueError("the picture has no viewBox")
    box = " ".join(f"{float(one):g}" for one in view[1].split())
    svg = re.sub(r"<svg\b[^>]*>", f'<svg viewBox="{box}" focusable="false" aria-hidden="true">', svg, count=1)
    # Only within tags: what stands between them is text.
    svg = re.sub(r"<[^>]+>", lambda match: _themed_tag(match[0]), svg)
    return _own_names(re.sub(r"\s*\n\s*", "\n", svg))


def _themed_tag(tag: str) -> str:
    tag = tag.replace("xlink:href", "href")
    for name, placeholder in _PLACEHOLDERS.items():
        tag = tag.replace(placeholder, f"var(--{name})")
    # Sizes of text are those of the style sheet, which knows how large the picture is shown.
    tag = re.sub(r"font: (?:(\d+) )?[\d.]+px [^;\"]*(; )?", _weight, tag)  # before matplotlib 3.11
    tag = re.sub(r"font-(size|family): [^;\"]*(; ?)?", "", tag)
    tag = re.sub(r' transform="rotate\(-?0 [^"]*"', "", tag)
    tag = re.sub(r"-?\d+\.\d{3,}", _rounded, tag)
    return re.sub(r"\s+", " ", tag).replace(' style=""', "")


def _weight(match: re.Match[str]) -> str:
    return f"font-weight: {match[1]}; " if match[1] else ""


def _rounded(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")


def _own_names(svg: str) -> str:
    """Keep the names that are referred to, made unique by what the picture shows."""
    used = set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg))
    prefix = "f" + hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r' id="([^"]*)"', lambda match: f' id="{prefix}{match[1]}"' if match[1] in used else "", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}\1"', svg)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}\1)", svg)


_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1.5)))
_MANY_POINTS = 800


@dataclass(frozen=True)
class Line:
    """A line of a plot: its name, and its points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Share:
    """A share with its interval, of something with a name."""

    name: str
    value: float
    low: float | None
    high: float | None


def draw_lines(lines: Sequence[Line], *, x_label: str, mark: tuple[float, str] | None = None) -> str:
    """Lines over steps; the first is drawn through, the others also differ by their dashes.

    Args:
        lines: The lines.
        x_label: What x is.
        mark: A place on x, and what is there.
    """
    names = [*(line.name for line in lines), *([mark[1]] if mark else [])]
    with canvas(216 + 14 * _legend_rows(names)) as (figure, axes):
        for place, line in enumerate(lines):
            marker = "o" if len(line.x) < 25 else None
            axes.plot(
                line.x,
                line.y,
                color=colour(SERIES[place % len(SERIES)]),
                linestyle=_DASHES[(place + place // len(SERIES)) % len(_DASHES)],
                marker=marker,
                markersize=3.5,
                label=short(line.name, 26),
            )
        if mark is not None:
            axes.axvline(mark[0], color=colour("muted"), linewidth=1, linestyle=(0, (2, 2)), label=mark[1])
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
    """Counts in bins, one group over the other.

    Args:
        edges: Edges of the bins, one more than there are bins.
        groups: Names and counts of one or two groups.
        x_label: What is counted by.
    """
    with canvas(230) as (figure, axes):
        for place, (name, counts) in enumerate(groups):
            tone = colour(SERIES[place])
            axes.stairs(counts, edges, fill=True, color=tone, alpha=0.3, linewidth=0)
            axes.stairs(counts, edges, color=tone, linewidth=1.6, linestyle=_DASHES[place], label=name)
        axes.set_xlabel(x_label)
        axes.set_ylim(bottom=0)
        axes.margins(x=0.02)
        _few_ticks(axes)
        _whole(axes.yaxis)
        if len(groups) > 1:
            _legend_above(axes, [name for name, _ in groups])
        else:
            axes.axvline(0, color=colour("muted"), linewidth=1, linestyle=(0, (2, 2)))
        return as_svg(figure)


def draw_reliability(curves: Sequence[tuple[str, Sequence[dict[str, Any]]]]) -> str:
    """How often a model is right by how sure it is, with intervals, beside the line where both are equal.

    Args:
        curves: Names, and bins with ``confidence``, ``accuracy`` and ``interval``.
    """
    with canvas(330) as (figure, axes):
        axes.plot([0.5, 1], [0.5, 1], color=colour("muted"), linewidth=1, linestyle=(0, (2, 2)), label="perfect")
        for place, (name, bins) in enumerate(curves):
            points = [one for one in bins if one.get("confidence") is not None and one.get("accuracy") is not None]
            tone = colour(SERIES[place])
            x, y = [one["confidence"] for one in points], [one["accuracy"] for one in points]
            # Side by side, where both curves have a point at the same confidence.
            apart = [one + (place - (len(curves) - 1) / 2) * 0.004 for one in x]
            for at, one in zip(apart, points, strict=True):
                axes.plot([at, at], one["interval"], color=tone, linewidth=1.2, alpha=0.7)
            axes.plot(apart, y, color=tone, marker="os"[place % 2], markersize=5, linestyle=_DASHES[place], label=name)
        axes.set_xlabel("confidence of the model")
        axes.set_ylabel("share right")
        axes.set_xlim(0.49, 1.01)
        axes.set_xticks([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
        lows = [one["interval"][0] for _, bins in curves for one in bins if one.get("n") and one.get("interval")]
        axes.set_ylim(math.floor(min([0.5, *lows]) * 10) / 10 - 0.02, 1.02)
        _percent(axes.xaxis)
        _percent(axes.yaxis)
        _legend_above(axes, ["perfect", *(name for name, _ in curves)])
        return as_svg(figure)


def draw_shares(shares: Sequence[Share], *, chance: float | None, average: float | None) -> str:
    """Shares with their intervals, one below the other.

    Args:
        shares: From top to bottom.
        chance: What guessing would reach.
        average: The share over all.
    """
    places = list(range(len(shares)))[::-1]
    with canvas(72 + 24 * len(shares)) as (figure, axes):
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        for place, share in zip(places, shares, strict=True):
            if share.low is not None and share.high is not None:
                axes.plot([share.low, share.high], [place, place], color=colour("better"), linewidth=2.4, alpha=0.55)
            axes.plot([share.value], [place], color=colour("better"), marker="o", markersize=6, linestyle="none")
        lines = [(chance, "chance", (0, (2, 2))), (average, "all", "-")]
        named = [(at, name, dashes) for at, name, dashes in lines if at is not None]
        for at, name, dashes in named:
            axes.axvline(at, color=colour("muted"), linewidth=1, linestyle=dashes, label=name, zorder=0.5)
        axes.set_yticks(places, [short(share.name, 22) for share in shares])
        axes.tick_params(axis="y", labelcolor=colour("ink"))
        axes.set_ylim(-0.6, len(shares) - 0.4)
        lowest = min([one.low if one.low is not None else one.value for one in shares] + [one[0] for one in named])
        axes.set_xlim(max(0.0, math.floor(min(lowest, 0.9) * 10) / 10 - 0.02), 1.02)
        _percent(axes.xaxis)
        axes.xaxis.get_major_locator().set_params(nbins=5)
        if named:
            _legend_above(axes, [name for _, name, _ in named])
        return as_svg(figure)


def draw_points(points: Sequence[tuple[float, float, str]], *, x_label: str, y_label: str) -> str:
    """Responses as points, by what they are.

    Args:
        points: x, y and group of each; of very many only some are drawn.
        x_label: What x is.
        y_label: What y is.
    """
    drawn = thinned(points, _MANY_POINTS)
    with canvas(300) as (figure, axes):
        names = []
        # Those in between first: they are many, and the others lie on top of them.
        for group, marker, tone in (("other", "s", "muted"), ("better", "o", "better"), ("worse", "^", "worse")):
            own = [(x, y) for x, y, kind in drawn if kind == group]
            if not own:
                continue
            names.append(group)
            x, y = zip(*own, strict=True)
            axes.plot(x, y, marker, color=colour(tone), markersize=3.2, markeredgewidth=0, alpha=0.55, label=group)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        x_all = [x for x, _, _ in drawn]
        if min(x_all) > 0 and max(x_all) > 30 * min(x_all):
            _logarithmic(axes.xaxis, min(x_all), max(x_all))
        else:
            _few_ticks(axes)
        axes.margins(x=0.03, y=0.05)
        _legend_above(axes, names, markerscale=2)
        return as_svg(figure)


def draw_steps(bins: Sequence[tuple[str, Share]], *, x_label: str) -> str:
    """Shares with their intervals, side by side.

    Args:
        bins: Label and share of each.
        x_label: What the labels are.
    """
    with canvas(300) as (figure, axes):
        for place, (_, share) in enumerate(bins):
            if share.low is not None and share.high is not None:
                axes.plot([place, place], [share.low, share.high], color=colour("better"), linewidth=2.4, alpha=0.55)
        axes.plot(
            range(len(bins)), [share.value for _, share in bins], color=colour("better"), marker="o", markersize=5.5
        )
        axes.axhline(0.5, color=colour("muted"), linewidth=1, linestyle=(0, (2, 2)), label="chance")
        axes.set_xticks(range(len(bins)), [label for label, _ in bins], rotation=35, ha="right", rotation_mode="anchor")
        axes.set_xlabel(x_label)
        axes.set_ylim(-0.02, 1.02)
        _percent(axes.yaxis)
        axes.margins(x=0.05)
        return as_svg(figure)


def draw_best_of_n(points: Sequence[dict[str, Any]]) -> str:
    """Gold score of what is picked among n, between that of the best and that of any.

    Args:
        points: ``n``, ``picked``, ``interval``, ``oracle`` and ``random``.
    """
    n = [one["n"] for one in points]
    with canvas(280) as (figure, axes):
        spread = [one["interval"] or (one["picked"], one["picked"]) for one in points]
        low, high = zip(*spread, strict=True)
        axes.fill_between(n, low, high, color=colour("better"), alpha=0.2, linewidth=0)
        axes.plot(n, [one["oracle"] for one in points], color=colour("third"), linestyle=_DASHES[1], label="oracle")
        axes.plot(
            n, [one["picked"] for one in points], color=colour("better"), marker="o", markersize=4.5, label="picked"
        )
        axes.plot(n, [one["random"] for one in points], color=colour("muted"), linestyle=_DASHES[2], label="random")
        axes.set_xlabel("responses to choose from")
        axes.set_ylabel("gold score")
        _few_ticks(axes)
        _whole(axes.xaxis)
        _legend_above(axes, ["oracle", "picked", "random"])
        return as_svg(figure)


# --- parts of plots ----------------------------------------------------------------------------------------------


def short(text: str, most: int) -> str:
    """Cut a name that is too long for its place.

    >>> short("a-very-long-name", 8)
    'a-very-…'
    """
    return text if len(text) <= most else text[: most - 1] + "…"


def thinned(values: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the values, evenly from all places.

    >>> thinned([0, 1, 2, 3, 4, 5], 3)
    [0, 2, 4]
    """
    if len(values) <= most:
        return list(values)
    return [values[place * len(values) // most] for place in range(most)]


def _legend_columns(names: Sequence[str]) -> int:
    width = max(len(short(name, 26)) for name in names)
    return max(1, min(len(names), 40 // (width + 4)))


def _legend_rows(names: Sequence[str]) -> int:
    return -(-len(names) // _legend_columns(names)) if len(names) > 1 else 0


def _legend_above(axes: Any, names: Sequence[str], markerscale: float = 1) -> None:
    columns = _legend_columns(names)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, markerscale=markerscale)


def _few_ticks(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5))
        # Each tick in full: a common factor would stand where the legend is.
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))


def tick_text(value: float) -> str:
    """Write a number beside a tick.

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
