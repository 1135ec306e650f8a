"""The section of a report about one suite: figures, tables and mistakes of a model's results."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from plaudit.data.report import KIND_WORDS
from plaudit.evaluation.results import (
    Calibration,
    Evaluation,
    LengthBias,
    ModelEvaluation,
    Proportion,
    Statistics,
    SuiteEvaluation,
)
from plaudit.evaluation.results import Mistake as WrongRow
from plaudit.report.document import (
    Block,
    Figure,
    Mistake,
    Mistakes,
    Number,
    Numbers,
    Paragraph,
    Response,
    Section,
    Table,
    count_of,
    first_rows,
    heads,
    written,
)
from plaudit.report.figures import (
    Share,
    draw_best_of_n,
    draw_histogram,
    draw_points,
    draw_reliability,
    draw_shares,
    draw_steps,
)

_SLICES_DRAWN = 30
_POINTS_SHOWN = 20


def suite_title(suite: SuiteEvaluation) -> str:
    """Returns the name of a suite for people."""
    if not suite.title or suite.suite == "preferences":
        return suite.name
    return suite.title if suite.name in ("", suite.suite) else f"{suite.title} ({suite.name})"


def suite_section(
    evaluation: Evaluation, model: ModelEvaluation, suite: SuiteEvaluation, *, name: str, headline: bool
) -> Section:
    """Shows the results of a model on a suite; with `headline`, the headline numbers first."""
    blocks: list[Block] = []
    if not evaluation.complete:
        blocks.append(Paragraph("This evaluation was not finished: what follows is what there is of it.", "warning"))
    if model.calibration is not None:
        values = ((key, getattr(model.calibration, key)) for key in ("scale", "shift", "temperature"))
        text = ", ".join(f"{key} {written(value, 'number')}" for key, value in values)
        blocks.append(Paragraph(f"Rewards were calibrated when they were read: {text}.", "note"))
    failed = [check for check in suite.checks if not check.passed]
    blocks += [Paragraph(f"Check *{check.name}* failed: {check.message}", "warning") for check in failed]
    blocks += [Paragraph(note, "note") for note in suite.notes]
    if headline and (numbers := headline_numbers(suite)):
        blocks.append(Numbers("numbers", numbers))
    parts: list[Block] = [
        *_reward_figures(suite),
        *_reliability_blocks(suite),
        *_rule_blocks(suite),
        *_slice_blocks(suite),
        *_length_blocks(suite),
        *_format_tables(suite),
        *_best_of_n_figures(suite),
        *_mistake_blocks(suite),
        *_dropped_tables(suite),
    ]
    # Pictures side by side first, texts next, tables to look things up last.
    blocks += sorted(parts, key=lambda block: {"figure": 0, "table": 2}.get(block.type, 1))
    if suite.result.rule:
        blocks.append(Paragraph(f"How it is scored: {suite.result.rule}"))
    sources = ", ".join(f"`{source}`" for source in suite.sources)
    lead = count_of(suite.rows, "row") + (f" of {sources}" if sources else "")
    return Section(name, suite_title(suite), blocks, f"{lead}.")


def headline_numbers(suite: SuiteEvaluation) -> list[Number]:
    """Returns the numbers that say how good a model is on a suite."""
    statistics, numbers = suite.statistics, []
    pairs, rankings = statistics.pairs, statistics.rankings
    labels, ratings = statistics.labels, statistics.ratings
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
    if pairs and pairs.margin is not None:
        numbers.append(
            Number("Margin", pairs.margin, "signed", pairs.margin_interval, "mean reward, better less worse")
        )
    if suite.calibration and suite.calibration.scores.ece is not None:
        detail = "expected, of the stated confidence"
        numbers.append(Number("Calibration error", suite.calibration.scores.ece, detail=detail))
    if labels and labels.auc is not None:
        numbers.append(Number("AUC", labels.auc, "number", detail="good above bad; chance 0.5"))
    if ratings:
        detail = count_of(ratings.responses, "rated response")
        values = [
            Number("Correlation", ratings.pearson, "signed", detail=detail),
            Number("Rank correlation", ratings.spearman, "signed", detail=detail),
            Number("Mean squared error", ratings.mse, "number", detail=detail),
        ]
        numbers += [number for number in values if number.value is not None]
    return numbers


# ---- rewards and calibration -------------------------------------------------------------------------------------


def _reward_figures(suite: SuiteEvaluation) -> list[Figure]:
    """Histograms of rewards and of margins."""
    figures = []
    if suite.histogram is not None:
        edges, better, worse = suite.histogram.edges, suite.histogram.better, suite.histogram.worse
        groups = [("better (chosen)", better), ("worse (rejected)", worse)]
        means = [written(_binned_mean(edges, counts), "signed") for counts in (better, worse)]
        figures.append(
            Figure(
                "rewards",
                "Rewards",
                heads("from: signed | to: signed | better (chosen): count | worse (rejected): count"),
                [list(row) for row in zip(edges[:-1], edges[1:], better, worse, strict=True)],
                caption="The further apart the two hills, the better. Only differences within one prompt are compared, "
                "so that they may overlap widely and the accuracy still be high.",
                alternative=f"Histogram of rewards. The mean is about {means[0]} for better responses and {means[1]} "
                "for worse ones.",
                svg=draw_histogram(edges, groups, x_label="reward"),
            )
        )
    if suite.margins is not None:
        edges, counts = suite.margins.edges, suite.margins.counts
        pairs = suite.statistics.pairs
        mean, median = (pairs.margin, pairs.margin_median) if pairs else (None, None)
        figures.append(
            Figure(
                "margins",
                "Margins",
                heads("from: signed | to: signed | comparisons: count"),
                [list(row) for row in zip(edges[:-1], edges[1:], counts, strict=True)],
                caption="Reward of the better response less that of the worse one. What is left of the dashed line is "
                "wrong; a long tail there is worth reading (see the mistakes below).",
                alternative=f"Histogram of margins, with mean {written(mean, 'signed')} and median "
                f"{written(median, 'signed')}.",
                svg=draw_histogram(edges, [("margin", counts)], x_label="reward of better less worse"),
            )
        )
    return figures


def _binned_mean(edges: Sequence[float], counts: Sequence[int]) -> float | None:
    middles = ((low + high) / 2 for low, high in itertools.pairwise(edges))
    total = sum(counts)
    return sum(middle * count for middle, count in zip(middles, counts, strict=True)) / total if total else None


def _reliability_blocks(suite: SuiteEvaluation) -> list[Block]:
    """Reliability diagram, and calibration in numbers."""
    calibration = suite.calibration
    if calibration is None:
        return []
    scores, before, after = calibration.scores, calibration.before, calibration.after
    curves = [("as it is", scores)] if not (before and after) else [("as it is", before), ("rescaled", after)]
    words = _calibration_words(calibration)
    figure = Figure(
        "reliability",
        "Reliability",
        heads(
            "curve | from: share | to: share | comparisons: count | confidence: share | right: share | "
            "95% interval: share interval"
        ),
        [
            [name, part.low, part.high, part.n, part.confidence, part.accuracy, part.interval]
            for name, half in curves
            for part in half.curve
            if part.n
        ],
        caption="On the dashed line the model is right as often as it is sure. Below it is overconfident, above it "
        f"underconfident. {words}",
        alternative=f"Reliability diagram. {words}",
        svg=draw_reliability([(name, half.curve) for name, half in curves]),
    )
    columns = heads(
        "comparisons | number: count | temperature: number | ECE: share | ECE, equal mass: share | "
        "Brier score: number | log loss: number"
    )
    rows = [
        [kind, half.n, half.temperature, half.ece, half.ece_mass, half.brier, half.log_loss]
        for kind, half in (("all, as it is", scores), ("half, as it is", before), ("half, rescaled", after))
        if half
    ]
    return [figure, Table("calibration", "Calibration in numbers", columns, rows)]


def _calibration_words(calibration: Calibration) -> str:
    words = f"The expected calibration error is {calibration.scores.ece:.1%} over all comparisons."
    before, after, temperature = calibration.before, calibration.after, calibration.temperature
    if not (before and after and temperature):
        return f"{words} There is too little data to fit a temperature."
    words += (
        f" A temperature of {temperature:.2f}, fitted on one half of the prompts, takes it from {before.ece:.1%} to "
        f"{after.ece:.1%} on the other half, which is what is drawn: the model is "
        f"{'overconfident' if temperature > 1 else 'underconfident'}."
    )
    return words + (" The fit ran into its bound: do not rely on it." if calibration.at_bound else "")


# ---- slices ------------------------------------------------------------------------------------------------------


def _rule_blocks(suite: SuiteEvaluation) -> list[Block]:
    """Slices and further scores by the suite's own rule; `preferences` has only the slices of columns, below."""
    result = suite.result
    slices = [part for part in result.slices if part.score is not None and part.name != "all"]
    blocks: list[Block] = []
    if len(slices) > 1 and suite.suite != "preferences":
        columns = "slice | part of | rows: count | score: share | 95% interval: share interval | margin: signed"
        rows = [[part.name, part.group or None, part.n, part.score, part.interval, part.margin] for part in slices]
        table = Table("slices", "Score by slice", heads(columns), rows)
        shares = [Share(part.name, part.score, part.interval) for part in slices]
        blocks.append(_slices_figure(table, shares, chance=None, average=suite.score))
    if result.scores:
        scores = [[name, value] for name, value in result.scores.items()]
        blocks.append(Table("scores", "Scores of the suite", heads("score | value: share"), scores))
    return blocks


def _slice_blocks(suite: SuiteEvaluation) -> list[Block]:
    """Accuracy by the values of each column that was asked for."""
    blocks: list[Block] = []
    average = suite.accuracy.value if suite.accuracy else None
    columns = heads("number: count | accuracy: share | 95% interval: share interval | margin: signed")
    for column, values in suite.slices.items():
        rows, shares = [], []
        for value, statistics in values.items():
            accuracy = accuracy_of(statistics)
            n, interval = (accuracy.n, accuracy.interval) if accuracy else (0, None)
            share = accuracy.value if accuracy else None
            margin = statistics.pairs.margin if statistics.pairs else None
            rows.append([value, n, share, interval if n else None, margin])
            if share is not None:
                shares.append(Share(value, share, interval))
        table = Table(f"slices_{column}", f"Accuracy by {column}", ((column, "text"), *columns), rows)
        blocks.append(_slices_figure(table, shares, chance=0.5, average=average) if shares else table)
    return blocks


def accuracy_of(statistics: Statistics) -> Proportion | None:
    """Returns the accuracy over comparisons, or else over labels."""
    if statistics.pairs is not None:
        return statistics.pairs.accuracy
    return statistics.labels.accuracy if statistics.labels is not None else None


def _slices_figure(table: Table, shares: Sequence[Share], *, chance: float | None, average: float | None) -> Figure:
    drawn = shares[:_SLICES_DRAWN]
    worst, best = min(drawn, key=lambda share: share.value), max(drawn, key=lambda share: share.value)
    caption = "Each dot with its 95% interval. Where that reaches the line of all, chance may explain the difference."
    if len(shares) > len(drawn):
        caption += f" The first {len(drawn)} of {len(shares)} are drawn; the table has all."
    return Figure(
        table.name,
        table.title,
        table.heads,
        table.rows,
        caption=caption,
        alternative=f"{table.title}: from {worst.value:.1%} for {worst.name} to {best.value:.1%} for {best.name}.",
        svg=draw_shares(drawn, chance=chance, average=average),
    )


# ---- length and formatting ---------------------------------------------------------------------------------------


def _length_blocks(suite: SuiteEvaluation) -> list[Block]:
    """Rewards against length, accuracy by difference of length, and what length explains."""
    length, unit = suite.length, suite.length.unit if suite.length else "tokens"
    points = [point for point in suite.points if point[0] is not None]
    blocks: list[Block] = []
    if points:
        within = length.correlation.within if length else None
        words = (
            ""
            if within is None
            else f" Within one prompt the correlation of reward and length is {written(within, 'signed')}."
        )
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
                svg=draw_points(points, x_label=f"length in {unit}", y_label="reward"),
            )
        )
    if length and len(length.bins) > 1:
        blocks.append(_length_bins(length))
    if length:
        named = {
            "the longer response is the better one": length.longer_right,
            "the longer response has the higher reward": length.longer_preferred,
            "accuracy where the longer response is better": length.accuracy_longer_right,
            "accuracy where the longer response is worse": length.accuracy_longer_wrong,
        }
        rows = [[name, share.value, share.interval if share.n else None, share.n] for name, share in named.items()]
        if length.balanced_accuracy is not None:
            rows.append(["mean of these two (always the longer: 50%)", length.balanced_accuracy, None, None])
        if controlled := length.controlled:
            rows.append(["length-controlled accuracy", controlled.accuracy, controlled.interval, controlled.n])
        columns = heads("length | share: share | 95% interval: share interval | number: count")
        blocks.append(Table("length", "Length", columns, rows))
    return blocks


def _length_bins(length: LengthBias) -> Figure:
    bins, shares = [], []
    for part in length.bins:
        if part.accuracy.value is not None:
            bins.append([part.low, part.high, part.accuracy.n, part.accuracy.value, part.accuracy.interval])
            name = f"{written(round(part.low), 'change')} to {written(round(part.high), 'change')}"
            shares.append(Share(name, part.accuracy.value, part.accuracy.interval))
    title = "Accuracy by difference of length"
    return Figure(
        "length_bins",
        title,
        heads(
            "longer by: change | up to: change | comparisons: count | accuracy: share | 95% interval: share interval"
        ),
        bins,
        caption="On the left the better response is the shorter one. A model without a taste for length has a "
        "flat line.",
        alternative=f"{title}: {shares[0].value:.1%} where the better response is shortest compared to the worse one, "
        f"{shares[-1].value:.1%} where it is longest.",
        svg=draw_steps(shares, x_label=f"{length.unit} by which the better response is longer"),
    )


def _format_tables(suite: SuiteEvaluation) -> list[Table]:
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
    return [Table("format", title, heads(columns), rows)] if rows else []


# ---- best of n, mistakes, rows not scored ------------------------------------------------------------------------


def _best_of_n_figures(suite: SuiteEvaluation) -> list[Figure]:
    """Gold score of the response picked among n."""
    curve = suite.best_of_n
    if curve is None or len(curve.points) < 2:
        return []
    last = curve.points[-1]
    span = last.oracle - last.random
    caption = (
        "Mean gold score of the response with the highest reward among n, over "
        f"{count_of(curve.rows, 'row')}. The oracle picks by the gold score itself."
    )
    if span:
        caption += f" At n = {last.n} the model gains {(last.picked - last.random) / span:.0%} of what is possible."
    caption += " A curve that falls again is over-optimised."
    left_out = [
        f"{count_of(count, 'row')} {words}"
        for count, words in (
            (curve.rows_too_short, "with fewer responses"),
            (curve.rows_without_gold, "without a gold score"),
        )
        if count
    ]
    if left_out:
        caption += f" Left out: {', '.join(left_out)}."
    picked, oracle, random = (written(value, "number") for value in (last.picked, last.oracle, last.random))
    return [
        Figure(
            "best_of_n",
            "Best of N",
            heads("n: count | picked: number | 95% interval: interval | oracle: number | random: number"),
            [[point.n, point.picked, point.interval, point.oracle, point.random] for point in curve.points],
            caption=caption,
            alternative=f"Best-of-N curve up to n = {last.n}: picked {picked}, oracle {oracle}, random {random}.",
            svg=draw_best_of_n(curve.points),
        )
    ]


def _mistake_blocks(suite: SuiteEvaluation) -> list[Block]:
    if suite.mistakes:
        return [Mistakes("mistakes", "Most confident mistakes", [mistake_of(row, suite) for row in suite.mistakes])]
    if suite.accuracy is None or suite.accuracy.value is None:
        return []
    if suite.accuracy.value == 1:
        return [Paragraph("There is no mistake.", "good")]
    return [Paragraph("The evaluation kept no mistakes to show.", "note")]


def mistake_of(row: WrongRow, suite: SuiteEvaluation) -> Mistake:
    """Returns a row that the model is wrong about, ready to be shown."""
    better, worse = ("good", "bad") if row.kind == "label" else ("better", "worse")
    responses = [
        Response(better, row.better, row.better_reward, row.better_tokens),
        Response(worse, row.worse, row.worse_reward, row.worse_tokens),
    ]
    responses = [response for response in responses if response.text is not None or response.reward is not None]
    title = f"Row {row.row}" + (f" ({row.id})" if row.id not in ("", str(row.row)) else "")
    if len(suite.sources) > 1:
        title += f" of {row.source}"
    return Mistake(title, row.confidence, row.margin, row.prompt, tuple(responses), dict(row.columns))


def _dropped_tables(suite: SuiteEvaluation) -> list[Table]:
    """Rows that were not scored, and why."""
    rows: list[list[Any]] = [
        [KIND_WORDS[kind], count.count, first_rows(count.first_rows, count.count)]
        for kind, count in suite.dropped.items()
    ]
    if suite.rows_left_out:
        rows.append(["left out, as `max_rows` asks for a sample", suite.rows_left_out, None])
    title = f"Rows that were not scored, of {suite.rows_in_source:,} read"
    columns = heads("not scored | rows: count | first row numbers")
    return [Table("dropped", title, columns, rows)] if rows else []
