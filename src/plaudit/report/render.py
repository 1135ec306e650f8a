"""Renders reports and evaluations from templates, and writes the files of a report."""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup, escape

from plaudit.errors import ConfigError
from plaudit.evaluation.results import Evaluation, Interval, ModelEvaluation, Statistics, SuiteEvaluation, shortened
from plaudit.report.build import build_report
from plaudit.report.document import Block, Document, Table, written
from plaudit.report.suite import accuracy_of, mistake_of

FILE_NAME = "report.html"
# By these an earlier report is recognised, which may be replaced.
HTML_GENERATOR, MARKDOWN_GENERATOR = '<meta name="generator" content="Plaudit">', "<!-- Plaudit report -->"
_ROWS_IN_MARKDOWN = 40
_UNFOLDED_TEXT = 600  # characters; longer texts are folded, or cut on the page of an evaluation
_WIDE_CELL = 24  # characters; wider ones make their column wide on a phone too
_MISTAKES_ON_PAGE = 5


@dataclass(frozen=True)
class Report:
    """The files of a report, and the document that they show."""

    html: Path
    json: Path
    markdown: Path
    document: Document


def write_report(
    run_folder: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    evaluations: Sequence[str | os.PathLike[str]] = (),
) -> Report:
    """Write the report of a run: one HTML file that needs no network, with JSON and Markdown beside it.

    Evaluations in the run folder are found by themselves. The files of an earlier report are replaced; any other file
    is left alone.

    Args:
        run_folder: The folder that training wrote to, or one of its checkpoints.
        output: The HTML file (None: `report.html` in the run folder).
        evaluations: Folders of further evaluations, written by `plaudit eval`.

    Raises:
        ConfigError: There is no such run or evaluation, or a file in the way is not a report.
    """
    document = build_report(Path(run_folder), [Path(folder) for folder in evaluations])
    page = Path(output) if output is not None else Path(run_folder) / FILE_NAME
    page = page / FILE_NAME if page.is_dir() else page
    if page.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{str(page)!r} is not the name of a page", fix=f"Name it {page.name}.html.")
    paths = page, page.with_suffix(".json"), page.with_suffix(".md")
    signs = HTML_GENERATOR, f'"format": "{Document.FORMAT}"', MARKDOWN_GENERATOR
    for path, sign in zip(paths, signs, strict=True):
        if path.exists() and sign not in path.read_text(encoding="utf-8", errors="replace")[:2000]:
            raise ConfigError(f"{str(path)!r} exists and is not a report", fix="Choose another file with `--output`.")
    texts = (
        _render("report.html.j2", document=document, generator=HTML_GENERATOR, most_text=_UNFOLDED_TEXT),
        json.dumps(document.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        _render("report.md.j2", document=document, generator=MARKDOWN_GENERATOR, most_rows=_ROWS_IN_MARKDOWN),
    )
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        message = f"the report cannot be written ({error})"
        raise ConfigError(message, fix="Choose another file with `--output`.") from error
    return Report(*paths, document)


def evaluation_page(evaluation: Evaluation) -> str:
    """Returns the page beside an evaluation, as Markdown."""
    settings = ", ".join(f"{name} {value}" for name, value in evaluation.settings.items() if value not in (None, []))
    return _render(
        "evaluation.md.j2",
        evaluation=evaluation,
        headings=HEADINGS,
        model_line=model_line,
        most_mistakes=_MISTAKES_ON_PAGE,
        most_text=_UNFOLDED_TEXT,
        settings=settings,
        suite_heading=suite_heading,
        suite_lines=suite_lines,
        suite_table=suite_table,
        verdicts=verdicts,
    )


# ---- templates ---------------------------------------------------------------------------------------------------


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(f"templates/{template}").render(values).strip() + "\n"


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("plaudit.report", "."),  # the style sheet and the script lie beside this file
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    filters = (anchor, column_classes, fenced, line, marked, mistake_of, no_tags, runs_of_figures, shortened, written)
    environment.filters |= {function.__name__: function for function in filters}
    return environment


def anchor(name: str) -> str:
    """Returns a name as it may stand in a link.

    >>> anchor("slices of <b>")
    'slices-of-b-'
    """
    return re.sub(r"[^\w-]+", "-", name)


def marked(text: str) -> Markup:
    """Escapes text for HTML, except for `code` and *emphasis*.

    >>> marked("*so* `a < b` <b>")
    Markup('<em>so</em> <code>a &lt; b</code> &lt;b&gt;')
    """
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"(?<![\w*])\*([^*<>`\s][^*<>`]*)\*(?![\w*])", r"<em>\1</em>", escaped))


def no_tags(text: str) -> str:
    """Keeps tags and entities out of text that may hold the markup of Markdown."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def line(text: str) -> str:
    r"""Returns text as one line that Markdown shows as it is.

    >>> print(line("a_b *c*\n<d> | #"))
    a\_b \*c\* &lt;d> \| \#
    """
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", no_tags(" ".join(str(text).split())))


def fenced(text: str) -> str:
    """Returns text as a block of code, whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def column_classes(table: Table, rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the class of each column in HTML: `n` of numbers, `w` of long texts."""
    return [
        "n" if kind not in ("text", "json") else "w" if any(len(row[index]) > _WIDE_CELL for row in rows) else ""
        for index, (_, kind) in enumerate(table.heads)
    ]


def runs_of_figures(blocks: Sequence[Block]) -> list[tuple[bool, list[Block]]]:
    """Groups blocks into runs of figures, which stand side by side, and of others."""
    runs = itertools.groupby(blocks, key=lambda block: block.type == "figure")
    return [(is_figure, list(run)) for is_figure, run in runs]


# ---- an evaluation in lines, for its page and for the terminal ---------------------------------------------------


class Cells(NamedTuple):
    """A line of the table of a suite."""

    name: str
    rows: str
    score: str
    interval: str
    margin: str


HEADINGS = Cells("", "rows", "score", "95% interval", "margin")
_ENOUGH_TO_NAME = 30  # comparisons whose responses differ in a feature of Markdown


def model_line(model: ModelEvaluation) -> str:
    """Describes a model in one line."""
    if not model.architecture:
        return "rewards that another program wrote"
    about = f"{model.architecture}{' with an adapter' if model.adapter else ''}, {model.parameters:,} parameters"
    layout = f"{model.batch_layout} layout ({model.batch_layout_reason})"
    return f"{about}, {model.dtype} on {model.device}, {layout}"


def suite_heading(suite: SuiteEvaluation) -> str:
    """Names a suite, and counts what was scored."""
    title = suite.name if suite.suite == "preferences" else f"{suite.name} ({suite.title})"
    of = f" of {suite.rows_in_source:,}" if suite.rows != suite.rows_in_source else ""
    return f"{title}: {suite.rows:,}{of} rows, {suite.responses:,} responses"


def suite_table(suite: SuiteEvaluation) -> list[Cells]:
    """Returns score and accuracy, over all and by slice."""
    result, pairs = suite.result, suite.statistics.pairs
    generic = suite.suite == "preferences"
    margin = None if pairs is None else pairs.margin
    overall = next((part.interval for part in result.slices if part.name == "all"), None)
    lines = [_cells("score", result.rows, result.score, overall, margin)]
    if pairs is not None and (not generic or suite.statistics.rankings is not None):
        lines.append(_accuracy_cells("accuracy over all pairs", suite.statistics))
    if not generic:
        scores = {name: score for name, score in result.scores.items() if name.lower() != "accuracy over all pairs"}
        lines += [_cells(name, None, score, None, None) for name, score in scores.items()]
    for part in result.slices:
        if part.name != "all":
            lines.append(_cells(f"  {part.name}", part.n, part.score, part.interval, part.margin))
    for column, values in suite.slices.items() if not generic else ():
        lines += [_accuracy_cells(f"  {column}={value}", statistics) for value, statistics in values.items()]
    return lines


def _accuracy_cells(name: str, statistics: Statistics) -> Cells:
    accuracy, margin = accuracy_of(statistics), statistics.pairs.margin if statistics.pairs else None
    if accuracy is None:
        return _cells(name, statistics.rows, None, None, None)
    return _cells(name, accuracy.n, accuracy.value, accuracy.interval if accuracy.n else None, margin)


def _cells(name: str, n: int | None, score: float | None, interval: Interval | None, margin: float | None) -> Cells:
    return Cells(
        name,
        "" if n is None else f"{n:,}",
        "-" if score is None else f"{score:.1%}",
        "" if interval is None else f"{interval.low:.1%} to {interval.high:.1%}",
        "" if margin is None else f"{margin:+.2f}",
    )


def suite_lines(suite: SuiteEvaluation) -> list[tuple[str, str]]:
    """Returns the other results of a suite in lines, each with its title."""
    lines = {
        **_statistics_lines(suite.statistics),
        "Calibration": _calibration_line(suite),
        "Length": _length_line(suite),
        "Markdown": _markdown_line(suite),
        "Best of n": _best_of_n_line(suite),
    }
    if failed := [check for check in suite.checks if not check.passed]:
        lines["Sanity"] = "FAILED: " + "; ".join(f"{check.name}: {check.message}" for check in failed)
    elif suite.checks:
        lines["Sanity"] = f"passed ({', '.join(check.name for check in suite.checks)})"
    return [(title, text) for title, text in lines.items() if text] + [("Note", note) for note in suite.notes]


def _statistics_lines(statistics: Statistics) -> dict[str, str]:
    lines = {}
    if rankings := statistics.rankings:
        lines["Ranking"] = (
            f"best of each row found in {rankings.best_of_n:.1%} (by chance {rankings.best_of_n_chance:.1%}), "
            f"Kendall's tau {rankings.kendall_tau:.2f}, Spearman {rankings.spearman:.2f}"
        )
    labels, ratings = statistics.labels, statistics.ratings
    if labels and labels.accuracy and labels.accuracy.value is not None:
        auc = "" if labels.auc is None else f", area under the ROC curve {labels.auc:.2f}"
        share = f"{labels.accuracy.value:.1%} of {labels.responses:,}"
        lines["Labels"] = f"{share} on the right side of zero{auc}"
    if ratings and ratings.pearson is not None and ratings.spearman is not None:
        correlations = f"correlation {ratings.pearson:.2f}, rank correlation {ratings.spearman:.2f}"
        lines["Ratings"] = f"{correlations} over {ratings.responses:,} responses"
    return lines


def _calibration_line(suite: SuiteEvaluation) -> str:
    calibration = suite.calibration
    if calibration is None:
        return ""
    text = f"expected calibration error {calibration.scores.ece:.3f}, log loss {calibration.scores.log_loss:.3f}"
    before, after = calibration.before, calibration.after
    if calibration.temperature is None or before is None or after is None:
        return text
    if calibration.at_bound:
        return f"{text}; no temperature could be fitted"
    return (
        f"{text}; temperature {calibration.temperature:.3g}, fitted on one half, on the other: error "
        f"{before.ece:.3f} -> {after.ece:.3f}, log loss {before.log_loss:.3f} -> {after.log_loss:.3f}"
    )


def _length_line(suite: SuiteEvaluation) -> str:
    length = suite.length
    if length is None or length.longer_right.value is None or length.longer_preferred.value is None:
        return ""
    preferred, right = length.longer_preferred.value, length.longer_right.value
    text = f"the longer response is preferred in {preferred:.1%}, right in {right:.1%}"
    wrong = length.accuracy_longer_wrong
    if wrong.value is not None:
        text += f"; accuracy where it is wrong {wrong.value:.1%} (n {wrong.n:,})"
    if length.controlled is not None:
        text += f"; length-controlled {length.controlled.accuracy:.1%}"
    return text


def _markdown_line(suite: SuiteEvaluation) -> str:
    """Names the features that the model prefers clearly more or less often than the data does."""
    parts = []
    for bias in sorted(suite.format, key=lambda bias: -bias.more_preferred.n):
        preferred, right = bias.more_preferred, bias.more_right.value or 0.0
        if preferred.n >= _ENOUGH_TO_NAME and not preferred.interval.low <= right <= preferred.interval.high:
            shares = f"preferred in {preferred.value:.1%}, right in {bias.more_right.value:.1%}"
            parts.append(f"more {bias.feature} {shares} (n {preferred.n:,})")
    return "; ".join(parts[:2])


def _best_of_n_line(suite: SuiteEvaluation) -> str:
    if suite.best_of_n is None or len(suite.best_of_n.points) < 2:
        return ""
    last = suite.best_of_n.points[-1]
    return (
        f"picking the best of {last.n} reaches {last.picked:.3g} of gold score "
        f"(at random {last.random:.3g}, at best {last.oracle:.3g})"
    )


def verdicts(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Returns suite and verdict of each comparison, and of the slices that really differ."""
    lines = []
    for comparison in evaluation.comparisons:
        left_out = comparison.left_out
        words = f"; {left_out} rows that only one of them has are left out" if left_out else ""
        lines.append((comparison.suite, f"{comparison.verdict}, {comparison.rows:,} rows{words}"))
        for column, values in comparison.slices.items():
            lines += [(f"  {column}={value}", part.verdict) for value, part in values.items() if part.real]
    return lines
