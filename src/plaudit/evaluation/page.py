"""Documents, and evaluations in them: one wording of results for their page, the terminal and the report."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import jinja2

from plaudit.evaluation import results
from plaudit.evaluation.results import Evaluation, Interval, ModelEvaluation, Proportion, Statistics, SuiteEvaluation

Kind = Literal[
    "text", "count", "amount", "duration", "change", "number", "signed", "share", "interval", "share interval", "json"
]
"""How a value is written: an interval is two values, a share is a percentage."""
Tone = Literal["empty", "note", "warning", "good"]
Heads: TypeAlias = tuple[tuple[str, Kind], ...]
"""Title of each column, and how its values are written."""
_UNFOLDED_TEXT = 600  # characters; longer texts are folded, or shortened on the page of an evaluation
_MINUS = "−"  # noqa: RUF001


def written(value: Any, kind: Kind) -> str:
    """Returns a value as text.

    >>> written(0.7123, "share"), written(-1.5, "signed"), written(12345, "count"), written(None, "number")
    ('71.2%', '−1.500', '12,345', '–')
    >>> written((0.5, 0.625), "share interval"), written((-1.0, 2.5), "interval")
    ('50.0% to 62.5%', '−1.000 to 2.500')
    >>> written(3.1e9, "amount"), written(75, "duration"), written(0.00002, "number"), written([1, True], "json")
    ('3.1 B', '1 min 15 s', '2.00e−05', '1, true')
    """
    if value is None:
        return "–"  # noqa: RUF001
    if kind in ("interval", "share interval"):
        return " to ".join(written(bound, "share" if kind == "share interval" else "number") for bound in value)
    if kind == "json":
        if isinstance(value, dict):
            return ", ".join(f"{name}: {written(entry, 'json')}" for name, entry in value.items()) or "{}"
        if isinstance(value, list | tuple):
            return ", ".join(written(entry, "json") for entry in value) or "[]"
        return str(value).lower() if isinstance(value, bool) else f"{value:{'g' if isinstance(value, float) else ''}}"
    if kind == "text" or not math.isfinite(value):
        return str(value)
    size = abs(value)
    if kind == "duration":
        minutes, rest = divmod(round(value), 60)
        long = f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
        return long if value >= 60 else f"{value:.1f} s"
    if kind == "share":
        text = f"{value:.1%}"
    elif kind == "amount" and size >= 1e6:
        unit, scale = ("M", 1e6) if size < 1e9 else ("B", 1e9) if size < 1e12 else ("T", 1e12)
        text = f"{value / scale:.1f} {unit}"
    elif kind in ("count", "amount", "change") and float(value).is_integer():
        text = f"{value:,.0f}"
    elif value == 0:
        text = "0"
    elif size < 0.001 or size >= 1e6:
        text = f"{value:.2e}"
    else:
        text = f"{value:,.{1 if size >= 100 else 2 if size >= 10 else 3}f}"
    return ("+" if kind in ("change", "signed") and value > 0 else "") + text.replace("-", _MINUS)


def count_of(amount: int, noun: str) -> str:
    """Returns a number with its noun.

    >>> count_of(1, "row"), count_of(1200, "row")
    ('1 row', '1,200 rows')
    """
    return f"{amount:,} {noun if amount == 1 else noun + 's'}"


def heads(text: str) -> Heads:
    """Parses the head of a table.

    >>> heads("suite | rows: count")
    (('suite', 'text'), ('rows', 'count'))
    """
    columns = (column.strip().partition(": ") for column in text.split("|"))
    return tuple((title, kind or "text") for title, _, kind in columns)  # type: ignore[misc]


# ---- blocks: fields without repr are for display only and are not in the JSON file -------------------------------


class Block:
    """A part of a section."""

    SAVED_PROPERTIES: ClassVar[tuple[str, ...]] = ("type",)

    @property
    def type(self) -> str:
        """The kind of block."""
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Paragraph(Block):
    """Running text; `backticks` mark code, *stars* emphasis."""

    text: str
    tone: Tone | None = None


@dataclass(frozen=True)
class Table(Block):
    """A table of raw values, which are written only where they are shown."""

    SAVED_PROPERTIES = ("type", "columns")

    name: str  # in the JSON file, unique in its section
    title: str
    heads: Heads = field(repr=False)
    rows: Sequence[Sequence[Any]]
    folded: bool = field(default=False, repr=False, kw_only=True)  # shown on request only
    most_shown: int = field(default=400, repr=False, kw_only=True)

    @property
    def columns(self) -> list[str]:
        """Titles of the columns."""
        return [title for title, _ in self.heads]

    def cells(self) -> list[list[str]]:
        """Returns the rows that are shown, as text; of too many some from all over, the last among them."""
        rows, most = list(self.rows), self.most_shown
        if len(rows) > most:
            rows = [*(rows[index * len(rows) // most] for index in range(most - 1)), rows[-1]]
        return [[written(value, kind) for value, (_, kind) in zip(row, self.heads, strict=True)] for row in rows]


@dataclass(frozen=True)
class Figure(Table):
    """A picture with its numbers in a table."""

    caption: str = field(kw_only=True)  # what it shows, and what to look for
    alternative: str = field(kw_only=True, repr=False)  # for readers who cannot see it
    svg: str = field(kw_only=True, repr=False)


@dataclass(frozen=True)
class Number:
    """A headline number."""

    label: str
    value: float | None
    kind: Kind = field(default="share", repr=False)
    interval: Interval | None = None  # 95%
    detail: str = ""  # what to compare it with

    @property
    def details(self) -> list[str]:
        """Interval and detail as text, where there are any."""
        kind: Kind = "share interval" if self.kind == "share" else "interval"
        interval = f"95% interval {written(self.interval, kind)}" if self.interval is not None else ""
        return [text for text in (interval, self.detail) if text]


@dataclass(frozen=True)
class Numbers(Block):
    """Headline numbers, side by side."""

    name: str
    numbers: Sequence[Number]


@dataclass(frozen=True)
class Response:
    """A response of a mistake."""

    label: str  # better or worse; good or bad
    text: str | None
    reward: float | None
    tokens: int | None


@dataclass(frozen=True)
class Mistake:
    """A row that the model is wrong about."""

    title: str
    confidence: float  # probability that the model gives to its wrong opinion
    margin: float
    prompt: str
    responses: tuple[Response, ...]
    columns: dict[str, str] = field(default_factory=dict)

    @property
    def facts(self) -> list[str]:
        """What is known of the row, in a few words each."""
        confidence, margin = written(self.confidence, "share"), written(self.margin, "signed")
        columns = [f"{name}: {value}" for name, value in self.columns.items()]
        return [self.title, f"{confidence} sure, and wrong", f"margin {margin}", *columns]


@dataclass(frozen=True)
class Mistakes(Block):
    """Mistakes with their texts, the most confident first."""

    name: str
    title: str
    mistakes: Sequence[Mistake]


@dataclass(frozen=True)
class Section:
    """A part of a document."""

    name: str  # in links and in the JSON file, unique in the document
    title: str
    blocks: Sequence[Block]
    lead: str = ""  # a line under the heading


# ---- an evaluation, in the words of its page, the terminal and the report ----------------------------------------

_FEW_LABELS = 100
_LARGE_CALIBRATION_ERROR = 0.05
_CLEARLY_LESS = 0.8  # of a calibration error
_LARGE_LENGTH_GAP = 0.1  # between accuracies
_ENOUGH_TO_NAME = 30  # comparisons whose responses differ in a feature of Markdown


class Finding(NamedTuple):
    """What is found of a suite: a tone says that it means something."""

    title: str
    text: str
    tone: Tone | None = None


class Score(NamedTuple):
    """Score of a part of a suite."""

    name: str
    n: int | None
    value: float | None
    interval: Interval | None = None
    margin: float | None = None
    part_of: str = ""


def model_line(model: ModelEvaluation) -> str:
    """Describes a model, and how its rewards were computed."""
    text = "rewards that another program wrote"
    if model.architecture:
        about = f"{model.architecture}{' with an adapter' if model.adapter else ''}, {model.parameters:,} parameters"
        reason = f" ({model.batch_layout_reason})" if model.batch_layout_reason else ""
        text = f"{about}, {model.dtype} on {model.device}, {model.batch_layout} layout{reason}"
    if (fit := model.calibration) is not None:
        text += f", calibrated: scale {fit.scale:g}, shift {fit.shift:g}, temperature {fit.temperature:g}"
    return text


def suite_title(suite: SuiteEvaluation) -> str:
    """Names a suite."""
    return suite.name if suite.suite == "preferences" or not suite.title else f"{suite.name} ({suite.title})"


def suite_size(suite: SuiteEvaluation) -> str:
    """Counts what was scored."""
    of = f" of {suite.rows_in_source:,}" if suite.rows != suite.rows_in_source else ""
    return f"{suite.rows:,}{of} rows, {suite.responses:,} responses"


def suite_scores(suite: SuiteEvaluation) -> tuple[list[Score], list[Score], dict[str, list[Score]]]:
    """Returns the scores of a suite: of the whole, of slices by its rule, and by the values of each column."""
    result, statistics = suite.result, suite.statistics
    generic = suite.suite == "preferences"
    margin = None if statistics.pairs is None else statistics.pairs.margin
    overall = next((part.interval for part in result.slices if part.name == "all"), None)
    whole = [Score("score", result.rows, result.score, overall, margin)]
    if statistics.pairs is not None and (not generic or statistics.rankings is not None):
        whole.append(score_of("accuracy over all pairs", statistics))
    if not generic:
        scores = {name: score for name, score in result.scores.items() if name.lower() != "accuracy over all pairs"}
        whole += [Score(name, None, score) for name, score in scores.items()]
    slices = [
        Score(part.name, part.n, part.score, part.interval, part.margin, part.group)
        for part in result.slices
        if part.name != "all"
    ]
    columns = {
        column: [score_of(value, part) for value, part in parts.items()] for column, parts in suite.slices.items()
    }
    return whole, slices, columns


def score_of(name: str, value: Proportion | Statistics) -> Score:
    """Returns a share, or the accuracy and the margin of some rows, by name."""
    if isinstance(value, Proportion):
        return Score(name, value.n, value.value, value.interval if value.n else None)
    score = Score(name, value.rows, None) if value.accuracy is None else score_of(name, value.accuracy)
    return score._replace(margin=value.pairs.margin if value.pairs else None)


def suite_table(suite: SuiteEvaluation) -> Table:
    """Returns the scores of a suite, over all and by slice."""
    whole, slices, columns = suite_scores(suite)
    # By the rule of `preferences` the values of columns are its slices.
    by_column = {} if suite.suite == "preferences" else columns
    values = [score._replace(name=f"{name}={score.name}") for name, scores in by_column.items() for score in scores]
    rows = [*whole, *(score._replace(name=f"  {score.name}") for score in slices + values)]
    columns_shown = heads(" | rows: count | score: share | 95% interval: share interval | margin: signed")
    return Table("scores", "Scores", columns_shown, [list(row[:5]) for row in rows])


def findings(suite: SuiteEvaluation) -> list[Finding]:
    """Says what the results of a suite are and mean, one line each."""
    lines = {
        **_statistics_lines(suite),
        "Calibration": _calibration_line(suite),
        "Length": _length_line(suite),
        "Markdown": (_markdown_line(suite), None),
        "Best of n": (_best_of_n_line(suite), None),
    }
    if failed := [check for check in suite.checks if not check.passed]:
        lines["Sanity"] = "FAILED: " + "; ".join(f"{check.name}: {check.message}" for check in failed), "warning"
    elif suite.checks:
        lines["Sanity"] = f"passed ({', '.join(check.name for check in suite.checks)})", None
    found = [Finding(title, text, tone) for title, (text, tone) in lines.items() if text]
    return found + [Finding("Note", note, "note") for note in suite.notes]


def _statistics_lines(suite: SuiteEvaluation) -> dict[str, tuple[str, Tone | None]]:
    statistics, accuracy = suite.statistics, suite.accuracy
    lines: dict[str, tuple[str, Tone | None]] = {}
    few = ""
    if accuracy is not None and 0 < accuracy.n < _FEW_LABELS:
        width = 100 * (accuracy.interval.high - accuracy.interval.low)
        few = f"; there are only {accuracy.n} labels: the interval is {width:.0f} points wide"
    if statistics.pairs is not None and accuracy is not None and accuracy.value is not None:
        levels = [(0.5, "guessing")]
        if suite.length is not None and suite.length.longer_right.value:
            levels.append((suite.length.longer_right.value, "always taking the longer response"))
        level, rule = max(levels)
        low, high = accuracy.interval
        verdict = "better than" if low > level else "worse than" if high < level else "not shown to be better than"
        text = f"{accuracy.value:.1%} is {verdict} {rule} ({level:.1%})"
        lines["Accuracy"] = text + few, "good" if low > level else "warning"
    if rankings := statistics.rankings:
        text = f"best of each row found in {rankings.best_of_n:.1%} (by chance {rankings.best_of_n_chance:.1%})"
        lines["Ranking"] = f"{text}, Kendall's tau {rankings.kendall_tau:.2f}, Spearman {rankings.spearman:.2f}", None
    labels, ratings = statistics.labels, statistics.ratings
    if labels and labels.accuracy and labels.accuracy.value is not None:
        text = f"{labels.accuracy.value:.1%} of {labels.responses:,} on the right side of zero"
        text += "" if labels.auc is None else f", area under the ROC curve {labels.auc:.2f}"
        few = few if statistics.pairs is None else ""
        lines["Labels"] = text + few, "note" if few else None
    if ratings and ratings.pearson is not None and ratings.spearman is not None:
        text = f"correlation {ratings.pearson:.2f}, rank correlation {ratings.spearman:.2f}"
        lines["Ratings"] = f"{text} over {ratings.responses:,} responses", None
    return lines


def _calibration_line(suite: SuiteEvaluation) -> tuple[str, Tone | None]:
    if suite.calibration is None:
        return "", None
    scores, temperature = suite.calibration.scores, suite.calibration.temperature
    before, after = suite.calibration.before, suite.calibration.after
    text = f"expected calibration error {scores.ece:.1%}, log loss {scores.log_loss:.3f}"
    if temperature is None or before is None or after is None:
        return f"{text}; there is too little data to fit a temperature", None
    if suite.calibration.at_bound:
        return f"{text}; no temperature could be fitted", None
    text += (
        f"; the model is {'overconfident' if temperature > 1 else 'underconfident'}: a temperature of "
        f"{temperature:.3g}, fitted on one half of the prompts, takes the error of the other half from "
        f"{before.ece:.1%} to {after.ece:.1%}, its log loss from {before.log_loss:.3f} to {after.log_loss:.3f}"
    )
    helps = before.ece >= _LARGE_CALIBRATION_ERROR and after.ece <= _CLEARLY_LESS * before.ece
    return text, "note" if helps else None


def _length_line(suite: SuiteEvaluation) -> tuple[str, Tone | None]:
    length = suite.length
    if length is None or length.longer_right.value is None or length.longer_preferred.value is None:
        return "", None
    preferred, right = length.longer_preferred.value, length.longer_right.value
    parts = [f"the longer response is preferred in {preferred:.1%}, right in {right:.1%}"]
    longer, shorter = length.accuracy_longer_right, length.accuracy_longer_wrong
    if shorter.value is not None:
        where = f"{written(longer.value, 'share')} where the better response is longer"
        parts.append(f"accuracy {where}, {shorter.value:.1%} (n {shorter.n:,}) where it is shorter")
    if length.controlled is not None:
        parts.append(f"length-controlled {length.controlled.accuracy:.1%}")
    if length.correlation.within is not None:
        parts.append(f"correlation within a prompt {written(length.correlation.within, 'signed')}")
    apart = longer.interval.low > shorter.interval.high or shorter.interval.low > longer.interval.high
    if (
        longer.value is None
        or shorter.value is None
        or abs(longer.value - shorter.value) < _LARGE_LENGTH_GAP
        or not apart
    ):
        return "; ".join(parts), None
    lean = f"the model leans to {'longer' if longer.value > shorter.value else 'shorter'} responses"
    return "; ".join([lean, *parts]), "warning"


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
    picked, random, oracle = (written(value, "number") for value in (last.picked, last.random, last.oracle))
    text = f"picking the best of {last.n} reaches {picked} of gold score (at random {random}, at best {oracle})"
    span = last.oracle - last.random
    return f"{text}: {(last.picked - last.random) / span:.0%} of what is possible" if span else text


def verdicts(comparison: results.ModelComparison) -> list[Finding]:
    """Returns the outcome of a comparison, and of the slices that really differ."""
    better, worse = comparison.real and comparison.overall.difference > 0, comparison.real or comparison.baseline
    left_out = comparison.left_out
    words = f"; {left_out:,} rows that only one of them has are left out" if left_out else ""
    text = f"{comparison.verdict}, {comparison.rows:,} rows{words}"
    found = [Finding(comparison.suite, text, "good" if better else "warning" if worse else "note")]
    for column, values in comparison.slices.items():
        found += [Finding(f"  {column}={value}", part.verdict) for value, part in values.items() if part.real]
    return found


def mistake_of(row: results.Mistake, suite: SuiteEvaluation) -> Mistake:
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


# ---- templates ---------------------------------------------------------------------------------------------------


def evaluation_page(evaluation: Evaluation) -> str:
    """Returns the page beside an evaluation, as Markdown."""
    settings = ", ".join(f"{name} {value}" for name, value in evaluation.settings.items() if value not in (None, []))
    functions = (findings, mistake_of, model_line, suite_size, suite_table, suite_title, verdicts)
    template = "evaluation/templates/evaluation.md.j2"
    return render(template, functions, evaluation=evaluation, settings=settings)


def render(template: str, filters: Sequence[Callable[..., Any]], **values: Any) -> str:
    """Renders a template of the package; filters are known in it by their names."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("plaudit", "."),  # a style sheet lies beside its module
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    known = (fenced, line, no_tags, results.shortened, written, *filters)
    environment.filters |= {function.__name__: function for function in known}
    return environment.get_template(template).render(most_text=_UNFOLDED_TEXT, **values).strip() + "\n"


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
