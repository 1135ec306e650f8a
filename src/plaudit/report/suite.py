"""The section of a report about one suite: figures, tables and mistakes of a model's results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from plaudit.data.report import KIND_WORDS, KindCount, row_names
from plaudit.evaluation import page
from plaudit.evaluation.page import Figure, Number, Paragraph, Score, Table, count_of, heads, written
from plaudit.evaluation.results import Evaluation, ModelEvaluation, SuiteEvaluation
from plaudit.report import figures

_SLICES_DRAWN = 30
_POINTS_SHOWN = 20


def suite_section(
    evaluation: Evaluation, model: ModelEvaluation, suite: SuiteEvaluation, *, name: str, headline: bool
) -> page.Section:
    """Shows the results of a model on a suite; with `headline`, the headline numbers first."""
    blocks: list[page.Block] = []
    if not evaluation.complete:
        blocks.append(Paragraph("This evaluation was not finished: what follows is what there is of it.", "warning"))
    findings = page.findings(suite)
    told = [finding for finding in findings if finding.title in ("Sanity", "Note") and finding.tone]
    blocks += [Paragraph(f"{finding.title}: {finding.text}", finding.tone) for finding in told]
    if headline and (numbers := headline_numbers(suite)):
        blocks.append(page.Numbers("numbers", numbers))
    words = {finding.title: f" {finding.title}: {finding.text}." for finding in findings}
    parts: list[page.Block] = [
        *_reward_figures(suite),
        *_reliability_blocks(suite, words.get("Calibration", "")),
        *_slice_blocks(suite),
        *_length_blocks(suite, words.get("Length", "")),
        *_format_tables(suite, words.get("Markdown", "")),
        *_best_of_n_figures(suite, words.get("Best of n", "")),
        *_mistake_blocks(suite),
        *_dropped_tables(suite),
    ]
    # Pictures side by side first, texts next, tables to look things up last.
    blocks += sorted(parts, key=lambda block: {"figure": 0, "table": 2}.get(block.type, 1))
    blocks.append(Paragraph(f"How it was scored: {page.model_line(model)}. {suite.result.rule}"))
    sources = ", ".join(f"`{source}`" for source in suite.sources)
    lead = page.suite_size(suite) + (f" of {sources}" if sources else "")
    return page.Section(name, page.suite_title(suite), blocks, f"{lead}.")


def headline_numbers(suite: SuiteEvaluation) -> list[Number]:
    """Returns the numbers that say how good a model is on a suite."""
    statistics, numbers = suite.statistics, []
    pairs, rankings, labels, ratings = statistics.pairs, statistics.rankings, statistics.labels, statistics.ratings
    accuracy = suite.accuracy.value if suite.accuracy else None
    known = [value for value in (accuracy, rankings.best_of_n if rankings else None) if value is not None]
    if suite.score is not None and all(abs(suite.score - value) > 1e-9 for value in known):
        numbers.append(Number("Score", suite.score, detail="by the rule of the suite"))
    if suite.accuracy is not None and accuracy is not None:
        detail = count_of(suite.accuracy.n, "comparison" if pairs else "response")
        if suite.length is not None and suite.length.longer_right.value is not None:
            detail += f"; always the longer one: {suite.length.longer_right.value:.1%}"
        numbers.append(Number("Accuracy", accuracy, interval=suite.accuracy.interval, detail=detail))
    if rankings:
        detail = f"{count_of(rankings.rankings, 'ranking')}; chance {rankings.best_of_n_chance:.1%}"
        numbers.append(Number("Best of N", rankings.best_of_n, "share", rankings.best_of_n_interval, detail))
        tau, interval = rankings.kendall_tau, rankings.kendall_tau_interval
        numbers.append(Number("Kendall's tau", tau, "signed", interval, "agreement of rankings"))
    if pairs:
        detail = "mean reward, better less worse"
        numbers.append(Number("Margin", pairs.margin, "signed", pairs.margin_interval, detail))
    if suite.calibration:
        detail = "expected, of the stated confidence"
        numbers.append(Number("Calibration error", suite.calibration.scores.ece, detail=detail))
    if labels:
        numbers.append(Number("AUC", labels.auc, "number", detail="good above bad; chance 0.5"))
    if ratings:
        detail = count_of(ratings.responses, "rated response")
        numbers += [
            Number("Correlation", ratings.pearson, "signed", detail=detail),
            Number("Rank correlation", ratings.spearman, "signed", detail=detail),
            Number("Mean squared error", ratings.mse, "number", detail=detail),
        ]
    return [number for number in numbers if number.value is not None]


# ---- rewards and calibration -------------------------------------------------------------------------------------


def _reward_figures(suite: SuiteEvaluation) -> list[Figure]:
    """Histograms of rewards and of margins."""
    drawn = []
    if suite.histogram is not None:
        edges, groups = suite.histogram.edges, (suite.histogram.better, suite.histogram.worse)
        middles = (np.array(edges[1:]) + edges[:-1]) / 2
        better, worse = (written(np.average(middles, weights=n) if sum(n) else None, "signed") for n in groups)
        caption = (
            "The further apart the two hills, the better. Only differences within one prompt are compared, so that "
            "they may overlap widely and the accuracy still be high."
        )
        words = f"Histogram of rewards. The mean is about {better} for better responses and {worse} for worse ones."
        named = dict(zip(("better (chosen)", "worse (rejected)"), groups, strict=True))
        drawn.append(("rewards", "Rewards", "reward", edges, named, caption, words))
    if suite.margins is not None:
        pairs = suite.statistics.pairs
        middle = (pairs.margin, pairs.margin_median) if pairs else (None, None)
        words = "Histogram of margins, with mean {} and median {}.".format(*(written(at, "signed") for at in middle))
        caption = (
            "Reward of the better response less that of the worse one. What is left of the dashed line is wrong; a "
            "long tail there is worth reading (see the mistakes below)."
        )
        label, named = "reward of better less worse", {"comparisons": suite.margins.counts}
        drawn.append(("margins", "Margins", label, suite.margins.edges, named, caption, words))
    return [
        Figure(
            name,
            title,
            (*heads("from: signed | to: signed"), *((group, "count") for group in counts)),
            [list(row) for row in zip(edges[:-1], edges[1:], *counts.values(), strict=True)],
            caption=caption,
            alternative=words,
            svg=figures.draw_histogram(edges, counts, x_label=label),
        )
        for name, title, label, edges, counts, caption, words in drawn
    ]


def _reliability_blocks(suite: SuiteEvaluation, words: str) -> list[page.Block]:
    """Reliability diagram, and calibration in numbers."""
    calibration = suite.calibration
    if calibration is None:
        return []
    scores, before, after = calibration.scores, calibration.before, calibration.after
    halves = {"as it is": before, "rescaled": after} if before and after else {"as it is": scores}
    curves = {name: half.curve for name, half in halves.items() if half}
    columns = "curve | from: share | to: share | comparisons: count | confidence: share | right: share"
    figure = Figure(
        "reliability",
        "Reliability",
        heads(f"{columns} | 95% interval: share interval"),
        [
            [name, part.low, part.high, part.n, part.confidence, part.accuracy, part.interval]
            for name, curve in curves.items()
            for part in curve
            if part.n
        ],
        caption="On the dashed line the model is right as often as it is sure. Below it is overconfident, above it "
        f"underconfident.{' Drawn is the half that no temperature was fitted on.' if after else ''}{words}",
        alternative=f"Reliability diagram.{words}",
        svg=figures.draw_reliability(curves),
    )
    columns = "comparisons | number: count | temperature: number | ECE: share | ECE, equal mass: share"
    rows = [
        [kind, half.n, half.temperature, half.ece, half.ece_mass, half.brier, half.log_loss]
        for kind, half in (("all, as it is", scores), ("half, as it is", before), ("half, rescaled", after))
        if half
    ]
    columns += " | Brier score: number | log loss: number"
    return [figure, Table("calibration", "Calibration in numbers", heads(columns), rows)]


# ---- slices ------------------------------------------------------------------------------------------------------


def _slice_blocks(suite: SuiteEvaluation) -> list[page.Block]:
    """Scores of the whole, by slice, and by the values of each column that was asked for."""
    _, slices, by_column = page.suite_scores(suite)
    blocks: list[page.Block] = []
    if len(slices) > 1 and suite.suite != "preferences":  # whose slices are the values of columns
        columns = heads("slice | rows: count | score: share | 95% interval: share interval | margin: signed | part of")
        table = Table("slices", "Score by slice", columns, [[*score[:5], score.part_of or None] for score in slices])
        blocks.append(_slices_figure(table, slices, chance=None, average=suite.score))
    rest = heads("number: count | accuracy: share | 95% interval: share interval | margin: signed")
    for column, scores in by_column.items():
        rows = [list(score[:5]) for score in scores]
        table = Table(f"slices_{column}", f"Accuracy by {column}", ((column, "text"), *rest), rows)
        average = suite.accuracy.value if suite.accuracy else None
        blocks.append(_slices_figure(table, scores, chance=0.5, average=average))
    return [*blocks, page.suite_table(suite)]


def _slices_figure(table: Table, scores: Sequence[Score], *, chance: float | None, average: float | None) -> Table:
    known = {score.name: score.value for score in scores if score.value is not None}
    if not known:
        return table
    drawn = [score for score in scores if score.value is not None][:_SLICES_DRAWN]
    caption = "Each dot with its 95% interval. Where that reaches the line of all, chance may explain the difference."
    if len(known) > len(drawn):
        caption += f" The first {len(drawn)} of {len(known)} are drawn; the table has all."
    worst, best = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    return Figure(
        table.name,
        table.title,
        table.heads,
        table.rows,
        caption=caption,
        alternative=f"{table.title}: from {known[worst]:.1%} for {worst} to {known[best]:.1%} for {best}.",
        svg=figures.draw_shares(drawn, chance=chance, average=average),
    )


# ---- length and formatting ---------------------------------------------------------------------------------------


def _length_blocks(suite: SuiteEvaluation, words: str) -> list[page.Block]:
    """Rewards against length, accuracy by difference of length, and what length explains."""
    length, unit = suite.length, suite.length.unit if suite.length else "tokens"
    points = [point for point in suite.points if point[0] is not None]
    blocks: list[page.Block] = []
    if points:
        blocks.append(
            Figure(
                "points",
                "Reward against length",
                ((unit, "count"), *heads("reward: signed | response")),
                points,
                most_shown=_POINTS_SHOWN,
                caption="A slope says that rewards follow length. One that better and worse responses share is bias."
                + words,
                alternative=f"Scatter plot of rewards over lengths in {unit} for {len(points):,} responses.{words}",
                svg=figures.draw_points(points, x_label=f"length in {unit}", y_label="reward"),
            )
        )
    if length is None:
        return blocks
    if len(length.bins) > 1:
        bins = [part for part in length.bins if part.accuracy.value is not None]
        names = [" to ".join(written(round(edge), "change") for edge in (part.low, part.high)) for part in bins]
        shares = [page.score_of(name, part.accuracy) for name, part in zip(names, bins, strict=True)]
        first, last = (written(score.value, "share") for score in (shares[0], shares[-1]))
        columns = "longer by: change | up to: change | comparisons: count | accuracy: share"
        blocks.append(
            Figure(
                "length_bins",
                "Accuracy by difference of length",
                heads(f"{columns} | 95% interval: share interval"),
                [[part.low, part.high, *share[1:4]] for part, share in zip(bins, shares, strict=True)],
                caption="On the left the better response is the shorter one. A model without a taste for length has a "
                "flat line.",
                alternative=f"Accuracy by difference of length: {first} where the better response is shortest compared "
                f"to the worse one, {last} where it is longest.",
                svg=figures.draw_steps(shares, x_label=f"{length.unit} by which the better response is longer"),
            )
        )
    named = {
        "the longer response is the better one": length.longer_right,
        "the longer response has the higher reward": length.longer_preferred,
        "accuracy where the longer response is better": length.accuracy_longer_right,
        "accuracy where the longer response is worse": length.accuracy_longer_wrong,
    }
    rows = [page.score_of(name, share)[:4] for name, share in named.items()]
    if length.balanced_accuracy is not None:
        rows.append(("mean of these two (always the longer: 50%)", None, length.balanced_accuracy, None))
    if controlled := length.controlled:
        rows.append(("length-controlled accuracy", controlled.n, controlled.accuracy, controlled.interval))
    columns = "length | number: count | share: share | 95% interval: share interval"
    return [*blocks, Table("length", "Length", heads(columns), rows)]


def _format_tables(suite: SuiteEvaluation, words: str) -> list[page.Block]:
    """How rewards follow Markdown."""
    rows = [
        [
            bias.feature,
            bias.share,
            bias.correlation.within,
            bias.correlation.within_interval,
            bias.more_right.value,
            bias.more_preferred.value,
            bias.more_preferred.n,
        ]
        for bias in suite.format
        if bias.share
    ]
    columns = (
        "markdown | responses with it: share | correlation within prompts: signed | 95% interval: interval | "
        "more is better: share | more is preferred: share | comparisons: count"
    )
    title = "Formatting: preferred far above better means that the model likes the looks"
    tables = [Table("format", title, heads(columns), rows)] if rows else []
    return [*([Paragraph(words.strip())] if words else []), *tables]


# ---- best of n, mistakes, rows not scored ------------------------------------------------------------------------


def _best_of_n_figures(suite: SuiteEvaluation, words: str) -> list[Figure]:
    """Gold score of the response picked among n."""
    curve = suite.best_of_n
    if curve is None or not words:
        return []
    without = {"fewer responses": curve.rows_too_short, "no gold score": curve.rows_without_gold}
    left_out = ", ".join(f"{count_of(count, 'row')} with {what}" for what, count in without.items() if count)
    return [
        Figure(
            "best_of_n",
            "Best of N",
            heads("n: count | picked: number | 95% interval: interval | oracle: number | random: number"),
            [[point.n, point.picked, point.interval, point.oracle, point.random] for point in curve.points],
            caption="Mean gold score of the response with the highest reward among n, over "
            f"{count_of(curve.rows, 'row')}. The oracle picks by the gold score itself.{words} A curve that falls "
            f"again is over-optimised.{f' Left out: {left_out}.' if left_out else ''}",
            alternative=f"Best-of-N curve.{words}",
            svg=figures.draw_best_of_n(curve.points),
        )
    ]


def _mistake_blocks(suite: SuiteEvaluation) -> list[page.Block]:
    if suite.mistakes:
        mistakes = [page.mistake_of(row, suite) for row in suite.mistakes]
        return [page.Mistakes("mistakes", "Most confident mistakes", mistakes)]
    if suite.accuracy is None or suite.accuracy.value is None:
        return []
    if suite.accuracy.value == 1:
        return [Paragraph("There is no mistake.", "good")]
    return [Paragraph("The evaluation kept no mistakes to show.", "note")]


def _dropped_tables(suite: SuiteEvaluation) -> list[Table]:
    """Rows that were not scored, and why."""
    rows = [dropped_cells(kind, count) for kind, count in suite.dropped.items()]
    if suite.rows_left_out:
        rows.append(["left out, as `max_rows` asks for a sample", suite.rows_left_out, None])
    title = f"Rows that were not scored, of {suite.rows_in_source:,} read"
    columns = heads("not scored | rows: count | first row numbers")
    return [Table("dropped", title, columns, rows)] if rows else []


def dropped_cells(kind: str, count: KindCount) -> list[Any]:
    """Returns what is shown of rows of a kind: the kind, their number, and the numbers of the first ones.

    >>> dropped_cells("overlong", KindCount(9, [0, 1]))
    ['over-long', 9, '0, 1, ...']
    """
    return [KIND_WORDS.get(kind, kind), count.count, row_names(count.first_rows, count.count).partition(" ")[2]]
