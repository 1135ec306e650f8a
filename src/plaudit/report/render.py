"""Make a report: read what there is, put it in order, and write it as a page, as JSON and as Markdown."""

from __future__ import annotations

import html
import importlib.resources
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from plaudit.errors import ConfigError
from plaudit.evaluation.judge import shortened
from plaudit.evaluation.results import Evaluation as EvaluationResults
from plaudit.evaluation.results import Interval, ModelEvaluation, Proportion, Statistics, SuiteEvaluation
from plaudit.evaluation.results import Mistake as MistakeResult
from plaudit.report.build import (
    Answer,
    Block,
    Document,
    Evaluation,
    Figure,
    Mistake,
    Mistakes,
    Numbers,
    Paragraph,
    Run,
    Section,
    Table,
    checks_section,
    comparison_section,
    data_section,
    find_evaluations,
    overview_section,
    read_evaluation,
    read_run,
    settings_section,
    suite_section,
    suites_of,
    training_section,
    written,
)
from plaudit.version import __version__

MARKDOWN_GENERATOR = "<!-- Plaudit report -->"
"""By this a report is known for one that may be written again."""
_MOST_ROWS = 40
_TONES = {"warning": "**Warning:** ", "empty": "*Empty:* ", "note": "", "good": ""}


def as_markdown(document: Document) -> str:
    """The report as Markdown.

    Args:
        document: The report.
    """
    parts = [MARKDOWN_GENERATOR, f"# {_line(document.title)}", _without_tags(" · ".join(document.about))]
    for section in document.sections:
        parts += [f"## {_line(section.title)}", _without_tags(section.lead)]
        for block in section.blocks:
            parts += _block(block)
    parts += ["---", f"{document.made_by}. Intervals are 95% intervals."]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block) -> list[str]:
    if isinstance(block, Paragraph):
        return [_TONES.get(block.tone or "", "") + _without_tags(block.text)]
    if isinstance(block, Table):
        return [f"### {_line(block.title)}", _table(block)]
    if isinstance(block, Numbers):
        lines = []
        for one in block.numbers:
            details = "; ".join(text for text in (one.interval_text, one.detail) if text)
            lines.append(f"- {one.label}: **{written(one.value, one.kind)}**" + (f" ({details})" if details else ""))
        return ["\n".join(lines)]
    if isinstance(block, Figure):
        return [f"### {_line(block.title)}", _without_tags(block.alternative), _table(block.table)]
    return _mistakes(block)


def _without_tags(text: str) -> str:
    return html.escape(text, quote=False)


def _line(text: str) -> str:
    """Text of others as one line that cannot become markup."""
    text = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", text)


def _table(table: Table) -> str:
    cells = table.cells()
    left_out = ""
    if len(cells) > _MOST_ROWS or table.shortened:
        kept = cells[:: -(-len(cells) // _MOST_ROWS)]
        left_out = f"\n\n{len(kept)} of {len(table.rows):,} rows; the JSON file has all."
        cells = kept
    rules = ["---" if column.kind in ("text", "json") else "---:" for column in table.columns]
    lines = [
        [_line(column.title) for column in table.columns],
        rules,
        *([_line(cell) for cell in row] for row in cells),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + left_out


def _mistakes(block: Mistakes) -> list[str]:
    return [f"### {_line(block.title)}", *(part for one in block.mistakes for part in _mistake(one))]


def _mistake(one: Mistake) -> list[str]:
    facts = [_line(one.title)]
    if one.confidence is not None:
        facts.append(f"{written(one.confidence, 'share')} sure, and wrong")
    if one.margin is not None:
        facts.append(f"margin {written(one.margin, 'signed')}")
    facts += [f"{_line(name)}: {_line(value)}" for name, value in one.columns]
    parts = [f"**{' · '.join(facts)}**"]
    if one.prompt:
        parts += ["Prompt:", _fenced(one.prompt)]
    for answer in one.answers:
        reward = "" if answer.reward is None else f", reward {written(answer.reward, 'signed')}"
        parts += [f"{answer.label.capitalize()}{reward}:", _fenced(answer.text or "(no text)")]
    return parts


def _fenced(text: str) -> str:
    """Text as a block of code whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


HTML_GENERATOR = '<meta name="generator" content="Plaudit">'
"""By this a report is known for one that may be written again."""
_WIDE = 24
"""Cells with more letters get a column that is wide on a phone too."""
_MOST_TEXT = 600
"""Longer texts are folded."""
_NUMERIC = {"count", "amount", "duration", "change", "number", "signed", "share", "interval", "share interval"}


def as_html(document: Document) -> str:
    """The report as one HTML file.

    Args:
        document: The report.
    """
    title = html.escape(document.title)
    links = "".join(f'<a href="#{_name(one.name)}">{html.escape(one.title)}</a>' for one in document.sections)
    about = " · ".join(_inline(fact) for fact in document.about)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            HTML_GENERATOR,
            # Nothing may be loaded from anywhere, whatever a text says.
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
            "script-src 'unsafe-inline'; img-src data:\">",
            '<link rel="icon" href="data:,">',
            f"<title>{title}</title>",
            f"<style>\n{_resource('page.css')}</style>",
            f"<script>\n{_resource('theme.js')}</script>",
            "</head>",
            "<body>",
            '<header><div class="top"><p class="kind">Reward model report</p>'
            '<button type="button" id="theme" hidden>Dark</button></div>',
            f"<h1>{title}</h1>",
            f'<p class="about">{about}</p>' if about else "",
            f'<nav aria-label="Sections">{links}</nav>',
            "</header>",
            "<main>",
            *(_section(section) for section in document.sections),
            "</main>",
            f"<footer><p>{html.escape(document.made_by)}. Intervals are 95% intervals. The same results stand beside "
            "this file as JSON and as Markdown.</p></footer>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _resource(name: str) -> str:
    return importlib.resources.files("plaudit.report").joinpath(name).read_text(encoding="utf-8")


def _name(name: str) -> str:
    return html.escape(re.sub(r"[^\w-]+", "-", name))


def _inline(text: str) -> str:
    """Text with `code` and *emphasis*, everything else as it is."""
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
    return re.sub(r"(?<![\w*])\*([^*<>`\s][^*<>`]*)\*(?![\w*])", r"<em>\1</em>", escaped)


def _section(section: Section) -> str:
    parts = [f'<section id="{_name(section.name)}">', f"<h2>{html.escape(section.title)}</h2>"]
    if section.lead:
        parts.append(f'<p class="lead">{_inline(section.lead)}</p>')
    inside_grid = False
    for block in section.blocks:
        wanted = isinstance(block, Figure)
        if wanted != inside_grid:
            parts.append('<div class="figures">' if wanted else "</div>")
            inside_grid = wanted
        parts.append(_block_of_html(block))
    return "\n".join([*parts, *(["</div>"] if inside_grid else []), "</section>"])


def _block_of_html(block: Block) -> str:
    if isinstance(block, Paragraph):
        tone = f' class="{block.tone}"' if block.tone else ""
        return f"<p{tone}>{_inline(block.text)}</p>"
    if isinstance(block, Table):
        return (
            _folded(block.title, _table_of_html(block))
            if block.folded
            else f"<h3>{html.escape(block.title)}</h3>{_table_of_html(block)}"
        )
    if isinstance(block, Numbers):
        return _numbers(block)
    if isinstance(block, Figure):
        return _figure(block)
    return _mistakes_of_html(block)


def _folded(title: str, inside: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>{inside}</details>"


def _table_of_html(table: Table) -> str:
    rows = table.cells()
    classes = [
        "n" if column.kind in _NUMERIC else "w" if any(len(row[place]) > _WIDE for row in rows) else ""
        for place, column in enumerate(table.columns)
    ]
    head = "".join(
        f'<th scope="col"{_class(kind)}>{html.escape(column.title)}</th>'
        for column, kind in zip(table.columns, classes, strict=True)
    )
    body = "\n".join(f"<tr>{_cells(row, classes)}</tr>" for row in rows)
    # Focusable, so that a keyboard can scroll it.
    label = html.escape(table.title, quote=True)
    shown = f'<p class="shortened">{table.shortened}</p>' if table.shortened else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table></div>{shown}"
    )


def _cells(row: Sequence[str], classes: Sequence[str]) -> str:
    return "".join(f"<td{_class(kind)}>{html.escape(cell)}</td>" for cell, kind in zip(row, classes, strict=True))


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _numbers(block: Numbers) -> str:
    parts = []
    for one in block.numbers:
        details = "".join(f"<small>{html.escape(text)}</small>" for text in (one.interval_text, one.detail) if text)
        parts.append(
            f'<div class="number"><dt>{html.escape(one.label)}</dt>'
            f"<dd><strong>{html.escape(written(one.value, one.kind))}</strong>{details}</dd></div>"
        )
    return f'<dl class="numbers">{"".join(parts)}</dl>'


def _figure(figure: Figure) -> str:
    label = html.escape(figure.alternative, quote=True)
    return (
        f"<figure><figcaption><strong>{html.escape(figure.title)}</strong> {_inline(figure.caption)}</figcaption>"
        f'<div class="picture" role="img" aria-label="{label}">{figure.svg}</div>'
        f"{_folded('Numbers', _table_of_html(figure.table))}</figure>"
    )


# --- mistakes ----------------------------------------------------------------------------------------------------


def _mistakes_of_html(block: Mistakes) -> str:
    inside = "\n".join(_mistake_of_html(one) for one in block.mistakes)
    return f'<h3>{html.escape(block.title)}</h3><div class="mistakes">{inside}</div>'


def _mistake_of_html(one: Mistake) -> str:
    facts = [html.escape(one.title)]
    if one.confidence is not None:
        facts.append(f"{written(one.confidence, 'share')} sure, and wrong")
    if one.margin is not None:
        facts.append(f"margin {written(one.margin, 'signed')}")
    facts += [f"{html.escape(name)}: {html.escape(value)}" for name, value in one.columns]
    prompt = f'<div class="prompt"><h5>Prompt</h5>{_text(one.prompt)}</div>' if one.prompt else ""
    answers = "".join(_answer(answer) for answer in one.answers)
    return (
        f'<article class="mistake"><h4>{" · ".join(facts)}</h4>{prompt}<div class="answers">{answers}</div></article>'
    )


def _answer(answer: Answer) -> str:
    facts = [html.escape(answer.label)]
    if answer.reward is not None:
        facts.append(f"reward {written(answer.reward, 'signed')}")
    if answer.tokens is not None:
        facts.append(f"{answer.tokens:,} tokens")
    kind = "better" if answer.label in ("better", "good") else "worse"
    text = _text(answer.text) if answer.text else '<p class="shortened">(no text)</p>'
    return f'<div class="answer {kind}"><h5>{" · ".join(facts)}</h5>{text}</div>'


def _text(text: str) -> str:
    if len(text) <= _MOST_TEXT:
        return f'<p class="text">{html.escape(text)}</p>'
    beginning = text[:_MOST_TEXT].rsplit(" ", 1)[0] or text[:_MOST_TEXT]
    return (
        f'<details class="long"><summary><span class="text">{html.escape(beginning)} …</span> '
        f'<span class="more">all {len(text):,} characters</span></summary>'
        f'<p class="text">{html.escape(text)}</p></details>'
    )


FILE_NAME = "report.html"


@dataclass(frozen=True)
class Report:
    """The files of a report.

    Attributes:
        html: The page.
        json: The same results for programs.
        markdown: The same results as text.
        document: What they show.
    """

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

    Evaluations in the run folder are found by themselves. The files of an earlier report are replaced, any others are
    left alone.

    Args:
        run_folder: The folder that training wrote to, or one of its checkpoints.
        output: The HTML file (None: `report.html` in the run folder).
        evaluations: Folders of further evaluations, written by `plaudit eval`.

    Raises:
        ConfigError: There is no run or no evaluation where one was named, or a file in the way is no report.
    """
    run = read_run(Path(run_folder))
    paths = _paths(Path(output) if output is not None else run.folder / FILE_NAME)
    document = make_document(run, [Path(one) for one in evaluations])
    content = (
        as_html(document),
        json.dumps(_plain(document.to_dict()), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        as_markdown(document),
    )
    try:
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, content, strict=True):
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(
            f"the report cannot be written ({error})", fix="Choose another file with `--output`."
        ) from error
    return Report(*paths, document)


def make_document(run: Run, named: Sequence[Path] = ()) -> Document:
    """Put in order what a run folder and evaluations say.

    Args:
        run: The run.
        named: Folders of further evaluations.

    Raises:
        ConfigError: One of those cannot be read.
    """
    evaluations, problems = _evaluations(run, named)
    suites = suites_of(evaluations, run.folder)
    command = f"plaudit eval {run.folder} --suite SUITE --output {run.folder / 'evaluation'}"
    sections: list[Section | None] = [
        overview_section(run, suites, [*run.problems, *problems], command),
        *(suite_section(one, f"suite-{place + 1}", headline=len(suites) > 1) for place, one in enumerate(suites)),
        comparison_section(evaluations),
        checks_section(suites),
        training_section(run),
        data_section(run),
        settings_section(run, evaluations),
    ]
    return Document(
        title=run.name,
        about=_about(run),
        sections=[section for section in sections if section is not None],
        made_by=f"Plaudit {__version__}",
    )


def _about(run: Run) -> list[str]:
    objective = str(run.record.get("objective") or "").replace("_", " ")
    saved = str(run.record.get("saved") or "")[:10]
    facts = [
        f"trained from `{run.base_model}`" if run.base_model else "",
        f"objective: {objective}" if objective else "",
        "adapter" if run.record.get("adapter") or run.adapter else "",
        f"saved {saved}" if saved else "",
    ]
    return [fact for fact in facts if fact]


def _evaluations(run: Run, named: Sequence[Path]) -> tuple[list[Evaluation], list[str]]:
    """Evaluations that were named or found, each once, and what is wrong with found ones."""
    evaluations, problems = [read_evaluation(folder) for folder in named], []
    seen = {one.folder.resolve() for one in evaluations}
    for folder in find_evaluations(run.folder):
        if folder.resolve() in seen:
            continue
        try:
            evaluations.append(read_evaluation(folder))
        except ConfigError as error:  # not named by anybody: no reason to give no report
            problems.append(f"An evaluation was left out: {error.summary}.")
    return evaluations, problems


def _paths(output: Path) -> tuple[Path, Path, Path]:
    if output.is_dir():
        output = output / FILE_NAME
    if output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(
            f"{str(output)!r} is no name for a page", fix=f"Give it the ending .html: {output.name}.html."
        )
    paths = output, output.with_suffix(".json"), output.with_suffix(".md")
    signs = HTML_GENERATOR, f'"format": "{Document.FORMAT}"', MARKDOWN_GENERATOR
    for path, sign in zip(paths, signs, strict=True):
        if path.exists() and sign not in path.read_text(encoding="utf-8", errors="replace")[:2000]:
            raise ConfigError(f"{str(path)!r} exists and is no report", fix="Choose another file with `--output`.")
    return paths


def _plain(value: object) -> object:
    """JSON knows no NaN: what is not a number becomes null."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and (value != value or abs(value) == float("inf")) else value


class Cells(NamedTuple):
    """One line of the table of a suite."""

    name: str
    rows: str
    score: str
    interval: str
    margin: str


_ENOUGH = 30
"""Comparisons below which a feature of markdown is not spoken of."""
HEADINGS = Cells("", "rows", "score", "95% interval", "margin")


def suite_heading(suite: SuiteEvaluation) -> str:
    """What was evaluated, in one line.

    Args:
        suite: The results.
    """
    title = suite.name if suite.suite == "preferences" else f"{suite.name} ({suite.title})"
    of = f" of {suite.rows_in_source:,}" if suite.rows != suite.rows_in_source else ""
    return f"{title}: {suite.rows:,}{of} rows, {suite.responses:,} responses"


def suite_table(suite: SuiteEvaluation) -> list[Cells]:
    """Score and accuracy, over all and by slice.

    Args:
        suite: The results.
    """
    result, pairs = suite.result, suite.statistics.pairs
    generic = suite.suite == "preferences"
    margin = None if pairs is None else pairs.margin
    whole = next((one.interval for one in result.slices if one.name == "all"), None)
    lines = [_line_cells("score", result.rows, result.score, whole, margin)]
    if pairs is not None and (not generic or suite.statistics.rankings is not None):
        lines.append(_of_proportion("accuracy over all pairs", pairs.accuracy, margin))
    if not generic:
        for name, value in result.scores.items():
            if name.lower() != "accuracy over all pairs":
                lines.append(_line_cells(name, None, value, None, None))
    for one in result.slices:
        if one.name != "all":
            lines.append(_line_cells(f"  {one.name}", one.n, one.score, one.interval, one.margin))
    for column, parts in suite.slices.items() if not generic else ():
        lines += [_of_statistics(f"  {column}={name}", part) for name, part in parts.items()]
    return lines


def _line_cells(
    name: str, n: int | None, score: float | None, interval: Interval | None, margin: float | None
) -> Cells:
    return Cells(
        name,
        "" if n is None else f"{n:,}",
        "-" if score is None else f"{score:.1%}",
        "" if interval is None else f"{interval.low:.1%} to {interval.high:.1%}",
        "" if margin is None else f"{margin:+.2f}",
    )


def _of_proportion(name: str, share: Proportion, margin: float | None) -> Cells:
    return _line_cells(name, share.n, share.value, share.interval if share.n else None, margin)


def _of_statistics(name: str, found: Statistics) -> Cells:
    if found.pairs is not None:
        return _of_proportion(name, found.pairs.accuracy, found.pairs.margin)
    if found.labels is not None and found.labels.accuracy is not None:
        return _of_proportion(name, found.labels.accuracy, None)
    return _line_cells(name, found.rows, None, None, None)


def suite_lines(suite: SuiteEvaluation) -> list[tuple[str, str]]:
    """Title and text of what else there is to say, a line each.

    Args:
        suite: The results.
    """
    found = [
        ("Ranking", _ranking(suite)),
        ("Labels", _labels(suite)),
        ("Ratings", _ratings(suite)),
        ("Calibration", _calibration(suite)),
        ("Length", _length(suite)),
        ("Markdown", _markdown(suite)),
        ("Best of n", _best_of_n(suite)),
        ("Sanity", _sanity(suite)),
    ]
    return [(title, text) for title, text in found if text] + [("Note", note) for note in suite.notes]


def _ranking(suite: SuiteEvaluation) -> str:
    one = suite.statistics.rankings
    if one is None:
        return ""
    return (
        f"best of each row found in {one.best_of_n:.1%} (by chance {one.best_of_n_chance:.1%}), "
        f"Kendall's tau {one.kendall_tau:.2f}, Spearman {one.spearman:.2f}"
    )


def _labels(suite: SuiteEvaluation) -> str:
    one = suite.statistics.labels
    if one is None or one.accuracy is None or one.accuracy.value is None:
        return ""
    auc = "" if one.auc is None else f", area under the ROC curve {one.auc:.2f}"
    return f"{one.accuracy.value:.1%} of {one.responses:,} on the right side of zero{auc}"


def _ratings(suite: SuiteEvaluation) -> str:
    one = suite.statistics.ratings
    if one is None or one.pearson is None or one.spearman is None:
        return ""
    return f"correlation {one.pearson:.2f}, rank correlation {one.spearman:.2f} over {one.responses:,} responses"


def _calibration(suite: SuiteEvaluation) -> str:
    one = suite.calibration
    if one is None:
        return ""
    text = f"expected calibration error {one.scores.ece:.3f}, log loss {one.scores.log_loss:.3f}"
    if one.temperature is None or one.before is None or one.after is None:
        return text
    if one.at_bound:
        return f"{text}; no temperature could be fitted"
    return (
        f"{text}; temperature {one.temperature:.3g}, fitted on one half, on the other: error "
        f"{one.before.ece:.3f} -> {one.after.ece:.3f}, log loss {one.before.log_loss:.3f} -> {one.after.log_loss:.3f}"
    )


def _length(suite: SuiteEvaluation) -> str:
    one = suite.length
    if one is None or one.longer_right.value is None or one.longer_preferred.value is None:
        return ""
    text = (
        f"the longer response is preferred in {one.longer_preferred.value:.1%}, right in {one.longer_right.value:.1%}"
    )
    wrong = one.accuracy_longer_wrong
    if wrong.value is not None:
        text += f"; accuracy where it is wrong {wrong.value:.1%} (n {wrong.n:,})"
    if one.controlled is not None:
        text += f"; length-controlled {one.controlled.accuracy:.1%}"
    return text


def _markdown(suite: SuiteEvaluation) -> str:
    """The feature that the model likes most beyond what the data says."""
    known = [one for one in suite.format if one.more_preferred.n >= _ENOUGH]
    apart = [
        one
        for one in known
        if not one.more_preferred.interval.low <= (one.more_right.value or 0.0) <= one.more_preferred.interval.high
    ]
    parts = [
        f"more {one.feature} preferred in {one.more_preferred.value:.1%}, right in {one.more_right.value:.1%} "
        f"(n {one.more_preferred.n:,})"
        for one in sorted(apart, key=lambda one: -one.more_preferred.n)[:2]
    ]
    return "; ".join(parts)


def _best_of_n(suite: SuiteEvaluation) -> str:
    one = suite.best_of_n
    if one is None or len(one.points) < 2:
        return ""
    last = one.points[-1]
    return (
        f"picking the best of {last.n} reaches {last.picked:.3g} of gold score "
        f"(at random {last.random:.3g}, at best {last.oracle:.3g})"
    )


def _sanity(suite: SuiteEvaluation) -> str:
    failed = [one for one in suite.checks if not one.passed]
    if not failed:
        return f"passed ({', '.join(one.name for one in suite.checks)})" if suite.checks else ""
    return "FAILED: " + "; ".join(f"{one.name}: {one.message}" for one in failed)


def model_line(model: ModelEvaluation) -> str:
    """What a model is, in one line.

    Args:
        model: It.
    """
    if not model.architecture:
        return "rewards that another program wrote"
    about = f"{model.architecture}{' with an adapter' if model.adapter else ''}, {model.parameters:,} parameters"
    layout = f"{model.batch_layout} layout ({model.batch_layout_reason})"
    return f"{about}, {model.dtype} on {model.device}, {layout}"


def verdicts(evaluation: EvaluationResults) -> list[tuple[str, str]]:
    """Suite and verdict of each comparison, and of the slices that really differ.

    Args:
        evaluation: The results.
    """
    found = []
    for one in evaluation.comparisons:
        left_out = f"; {one.left_out} rows that only one of them has are left out" if one.left_out else ""
        found.append((one.suite, f"{one.verdict}, {one.rows:,} rows{left_out}"))
        for column, parts in one.slices.items():
            for name, part in parts.items():
                if part.real:
                    found.append((f"  {column}={name}", part.verdict))
    return found


_MISTAKES = 5
_LONGEST = 600


def evaluation_page(evaluation: EvaluationResults) -> str:
    """Write the page.

    Args:
        evaluation: The results.
    """
    return "\n".join(_page_lines(evaluation)) + "\n"


def _page_lines(evaluation: EvaluationResults) -> Iterator[str]:
    yield "# Evaluation"
    if not evaluation.complete:
        yield from ("", "**Not complete: a later suite failed, or was interrupted.**")
    if evaluation.comparisons:
        yield from ("", "## Comparison", "")
        for name, verdict in verdicts(evaluation):
            indent = "  " if name.startswith(" ") else ""
            yield f"{indent}- {_escaped(name.strip())}: {_escaped(verdict)}"
    for model in evaluation.models:
        yield from ("", f"## {_escaped(model.name)}", "", _escaped(model_line(model)) + ".")
        if model.calibration is not None:
            one = model.calibration
            yield f"Rewards are calibrated: scale {one.scale:g}, shift {one.shift:g}, temperature {one.temperature:g}."
        for suite in model.suites:
            yield from _suite_page(suite)
    yield from ("", "## How", "")
    settings = ", ".join(f"{name} {value}" for name, value in evaluation.settings.items() if value not in (None, []))
    yield f"- Settings: {_escaped(settings)}"
    yield "- Versions: " + ", ".join(f"{name} {value}" for name, value in evaluation.versions.items())
    yield f"- {evaluation.created}, {evaluation.seconds:.1f} s"


def _suite_page(suite: SuiteEvaluation) -> Iterator[str]:
    yield from ("", f"### {_escaped(suite_heading(suite))}", "", f"From {_escaped(', '.join(suite.sources))}.", "")
    yield _table_row(HEADINGS)
    yield "|---|---:|---:|---|---:|"
    for cells in suite_table(suite):
        yield _table_row(cells)
    yield ""
    for title, text in suite_lines(suite):
        yield f"- {title}: {_escaped(text)}"
    yield from ("", f"Score: {_escaped(suite.result.rule)} Source: {_escaped(suite.result.reference)}.")
    if suite.mistakes:
        yield from ("", "#### Most confident mistakes")
        for one in suite.mistakes[:_MISTAKES]:
            yield from _mistake_page(one)


def _table_row(cells: Cells) -> str:
    return "| " + " | ".join(_escaped(cell.strip()).replace("|", "\\|") for cell in cells) + " |"


def _mistake_page(one: MistakeResult) -> Iterator[str]:
    yield from ("", f"Row {one.row} of {_escaped(one.source)}: margin {one.margin:+.2f}, sure by {one.confidence:.0%}")
    for name, text in (("Prompt", one.prompt), ("Better", one.better), ("Worse", one.worse)):
        if text:
            fence = "`" * max(3, 1 + max((len(part) for part in _ticks(text)), default=0))
            yield from ("", f"{name}:", "", fence + "text", shortened(text, _LONGEST), fence)


def _ticks(text: str) -> list[str]:
    return "".join(letter if letter == "`" else " " for letter in text).split()


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is.

    >>> _escaped("a_b *c* <d>")
    'a\\\\_b \\\\*c\\\\* &lt;d>'
    """
    for letter in "\\`*_[]":
        text = text.replace(letter, "\\" + letter)
    return text.replace("<", "&lt;")
