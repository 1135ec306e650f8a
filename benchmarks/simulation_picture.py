"""The picture of a simulation: how well the order is recovered, and how far held-out likelihood is from the best."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

OURS, PLAIN, GREY = "#0b5fa5", "#d9711a", "#666666"
ORDER_TICKS = (0.6, 0.8, 0.9, 0.95, 0.98, 0.99)
STEP = 0.24  # between the sides of one case, in rows


def draw_picture(result: Mapping[str, Any], path: Path) -> None:
    """Draw the picture of a result.

    Args:
        result: What `simulate_objectives` writes as JSON.
        path: Where to; its ending says in which format.
    """
    cases = result["cases"]
    figure = Figure(figsize=(11, 0.9 + 0.62 * len(cases)), layout="constrained", facecolor="white")
    order, likelihood = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.25))
    for row, case in enumerate(cases):
        for axes in (order, likelihood):
            if row % 2 == 0:
                axes.axhspan(row - 0.5, row + 0.5, color="#f3f3f3", zorder=0)
        _draw_case(order, likelihood, row, case)
    _label_order(order, cases)
    _label_likelihood(likelihood)
    handles, labels = likelihood.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    settings = result["arguments"]
    figure.suptitle(
        "Rewards fitted to simulated labels, by objective\n"
        f"(means over {settings['seeds']} draws of {settings['items']} items each; bars: one standard deviation)",
        fontsize=11.5,
    )
    # Ids in an SVG are random unless salted: the same result should give the same file.
    with mpl.rc_context({"svg.hashsalt": "plaudit"}):
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw_case(order: Axes, likelihood: Axes, row: int, case: Mapping[str, Any]) -> None:
    shown = [(name, fit) for name, fit in case["fits"].items() if fit["role"] != "also"]
    shown.sort(key=lambda one: one[1]["role"])  # The objective comes before the plain ones.
    for place, (name, fit) in enumerate(shown):
        y = row + STEP * (place - (len(shown) - 1) / 2)
        ours = fit["role"] == "objective"
        style: dict[str, Any] = {
            "fmt": "o" if ours else "D",
            "color": OURS if ours else PLAIN,
            "markerfacecolor": OURS if ours else "white",
            "markersize": 6.5 if ours else 5,
            "capsize": 2,
            "label": "the objective named on the left" if ours else "plain Bradley-Terry on the same data",
        }
        mean, deviation = fit["spearman"]["mean"], fit["spearman"]["deviation"]
        order.errorbar(1 - mean, y, xerr=[[min(deviation, 0.8 * (1 - mean))], [deviation]], **style)
        mean, deviation = fit["excess_nll"]["mean"], fit["excess_nll"]["deviation"]
        likelihood.errorbar(mean, y, xerr=[[min(deviation, 0.8 * mean)], [deviation]], **style)
        if not ours and ", " in name:
            likelihood.annotate(
                name.split(", ", 1)[1],
                (mean - min(deviation, 0.8 * mean), y),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                color=GREY,
            )


def _label_order(axes: Axes, cases: list[Mapping[str, Any]]) -> None:
    names = [next(name for name, fit in case["fits"].items() if fit["role"] == "objective") for case in cases]
    axes.set_yticks(range(len(cases)), [f"{case['title']}\n{name}" for case, name in zip(cases, names, strict=True)])
    axes.tick_params(axis="y", labelsize=8.5, length=0)
    axes.set_ylim(len(cases) - 0.5, -0.5)
    # Close to 1 a rank correlation is told apart by its distance from it.
    axes.set_xscale("log")
    axes.set_xticks([1 - tick for tick in ORDER_TICKS], [f"{tick:g}" for tick in ORDER_TICKS])
    axes.minorticks_off()
    axes.set_xlim(0.5, 0.005)
    axes.axvline(0.05, color=GREY, linewidth=1, linestyle=":")
    axes.set_xlabel("Spearman's correlation with the true rewards\n(right is better; dotted: 0.95)", fontsize=9.5)
    axes.set_title("The order", fontsize=11)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _label_likelihood(axes: Axes) -> None:
    axes.set_xscale("log")
    ticks = (0.3, 0.1, 0.03, 0.01, 0.003)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(0.6, 0.0005)
    axes.set_xlabel(
        "held-out negative log-likelihood above that of the true rewards, nats\n(right is better)", fontsize=9.5
    )
    axes.set_title("The probabilities", fontsize=11)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
