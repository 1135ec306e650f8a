"""The first thing to read: the numbers that count, and what they mean."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from plaudit.errors import ConfigError
from plaudit.report.figures import (
    Line,
    Share,
    draw_best_of_n,
    draw_histogram,
    draw_lines,
    draw_points,
    draw_reliability,
    draw_shares,
    draw_steps,
)

EVALUATION = "evaluation.json"
_FORMAT, _VERSION = "plaudit evaluation", 1
_AGAIN = "Write it again with `plaudit eval`, or leave it out."


@dataclass(frozen=True)
class Evaluation:
    """One folder with an evaluation.

    Attributes:
        folder: The folder.
        content: What its `evaluation.json` says.
    """

    folder: Path
    content: Mapping[str, Any]

    @property
    def models(self) -> Sequence[Mapping[str, Any]]:
        """The models that were evaluated; the first is the one that the evaluation is of."""
        return self.content["models"]


@dataclass(frozen=True)
class SuiteOfModel:
    """What one evaluation says of one model on one suite.

    Attributes:
        evaluation: The evaluation.
        model: Its entry for the model.
        suite: The model's entry for the suite.
        others: Entries of the same suite for other models, with the models' names.
    """

    evaluation: Evaluation
    model: Mapping[str, Any]
    suite: Mapping[str, Any]
    others: tuple[tuple[str, Mapping[str, Any]], ...] = ()

    @property
    def title(self) -> str:
        """Name of the suite, for people."""
        name, title = str(self.suite.get("name") or ""), str(self.suite.get("title") or "")
        if not title or self.suite.get("suite") == "preferences":
            return name
        return title if name in ("", self.suite.get("suite")) else f"{title} ({name})"


def read_evaluation(folder: str | Path) -> Evaluation:
    """Read an evaluation.

    Args:
        folder: A folder with `evaluation.json`, or that file.

    Raises:
        ConfigError: It is not there, is broken, or is of another version.
    """
    path = Path(folder)
    path = path / EVALUATION if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(f"there is no evaluation in {str(folder)!r}", fix="Name a folder that `plaudit eval` wrote.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read ({error})", fix=_AGAIN) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ConfigError(f"{str(path)!r} is no evaluation", fix="Name a folder that `plaudit eval` wrote.")
    if content.get("version") != _VERSION:
        raise ConfigError(
            f"{str(path)!r} is an evaluation of version {content.get('version')!r}, not {_VERSION}", fix=_AGAIN
        )
    models = content.get("models")
    if not isinstance(models, list) or not all(isinstance(one, dict) and "suites" in one for one in models):
        raise ConfigError(f"{str(path)!r} names no models", fix=_AGAIN)
    return Evaluation(path.parent, content)


def find_evaluations(run_folder: Path) -> list[Path]:
    """Folders with evaluations in a run folder, checkpoints left out, in the order of their names.

    Args:
        run_folder: The run folder.
    """
    nested = (path for pattern in (f"*/{EVALUATION}", f"*/*/{EVALUATION}") for path in run_folder.glob(pattern))
    found = [run_folder / EVALUATION, *sorted(nested)]
    return [
        path.parent
        for path in found
        if path.is_file()
        and not any(part.startswith("checkpoint-") for part in path.relative_to(run_folder).parts[:-1])
    ]


def suites_of(evaluations: Iterable[Evaluation], run_folder: Path) -> list[SuiteOfModel]:
    """What the evaluations say of the run's model: of the one with its name, or else of the first.

    Args:
        evaluations: The evaluations.
        run_folder: The run's folder.
    """
    found = []
    for evaluation in evaluations:
        if not evaluation.models:
            continue
        model = next((one for one in evaluation.models if _is_in(one, run_folder)), evaluation.models[0])
        for suite in model["suites"]:
            others = tuple(
                (str(other.get("name")), same)
                for other in evaluation.models
                if other is not model
                for same in other["suites"]
                if same.get("name") == suite.get("name")
            )
            found.append(SuiteOfModel(evaluation, model, suite, others))
    return found


def _is_in(model: Mapping[str, Any], run_folder: Path) -> bool:
    name = str(model.get("name") or "")
    return bool(name) and Path(name).resolve() == run_folder.resolve()


# As in `plaudit.training.artifacts`, which would import torch.
RUN_RECORD = "plaudit_run.json"
TRAINER_STATE = "trainer_state.json"
_SIGNS = (RUN_RECORD, TRAINER_STATE, "config.json", "adapter_config.json", EVALUATION)


@dataclass(frozen=True)
class Run:
    """A run, as its folder tells it.

    Attributes:
        folder: The folder.
        record: What the trainer wrote about the run; empty where there is nothing.
        logs: Training and evaluation logs, in the order of the steps.
        logs_from: Where they were found; empty where there are none.
        config: The model's configuration.
        adapter: The adapter's configuration.
        calibration: The calibration of rewards that stands beside the model.
        problems: Files that could not be read.
    """

    folder: Path
    record: Mapping[str, Any] = field(default_factory=dict)
    logs: tuple[Mapping[str, Any], ...] = ()
    logs_from: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    adapter: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the folder, with the one above it for a checkpoint."""
        folder = self.folder.resolve()
        return f"{folder.parent.name}/{folder.name}" if folder.name.startswith("checkpoint-") else folder.name

    @property
    def base_model(self) -> str | None:
        """What the model was trained from, without the folders above it."""
        name = self.record.get("base_model") or self.adapter.get("base_model_name_or_path")
        if not isinstance(name, str) or not name:
            return None
        return Path(name).name if name.startswith(("/", ".", "~")) or "\\" in name else name

    @property
    def architecture(self) -> str | None:
        """Name of the model's class."""
        return self.record.get("architecture") or next(iter(self.config.get("architectures") or []), None)


def read_run(folder: str | Path) -> Run:
    """Read what a run folder knows about its training.

    Args:
        folder: The folder that training wrote to, or one of its checkpoints.

    Raises:
        ConfigError: There is no such folder, or nothing in it is of a run.
    """
    path = Path(folder)
    if not path.is_dir():
        fix = "Name the `output_dir` of a training run." if not path.exists() else "Name its folder."
        raise ConfigError(f"{str(folder)!r} is {'no folder' if path.exists() else 'not there'}", fix=fix)
    checkpoints = checkpoints_of(path)
    places = [path, *checkpoints]
    known = any((place / sign).exists() for place in places for sign in _SIGNS)
    if not known and not find_evaluations(path):
        raise ConfigError(
            f"{str(folder)!r} is no run folder: it has none of {', '.join(_SIGNS)}, and no checkpoints",
            fix="Name the `output_dir` of a training run, or one of its checkpoints.",
        )
    reader = _Reader()
    record = _first(reader(place / RUN_RECORD) for place in places)
    logs, source = _logs(places, reader)
    return Run(
        folder=path,
        record=record,
        logs=tuple(logs),
        logs_from=source,
        config=_first(reader(place / "config.json") for place in places),
        adapter=_first(reader(place / "adapter_config.json") for place in places),
        calibration=reader(path / "reward_calibration.json"),
        problems=tuple(reader.problems),
    )


def checkpoints_of(folder: Path) -> list[Path]:
    """Checkpoints in a run folder, the newest first.

    Args:
        folder: The run folder.
    """
    found = [
        (int(match[1]), path)
        for path in folder.iterdir()
        if path.is_dir() and (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]


class _Reader:
    """Reads JSON objects; what is broken is remembered rather than raised: a report shows what there is."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def __call__(self, path: Path) -> Mapping[str, Any]:
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self._note(f"`{path.name}` in `{path.parent.name}` cannot be read ({error}): what it says is missing here.")
            return {}
        if not isinstance(value, dict):
            self._note(f"`{path.name}` in `{path.parent.name}` is no JSON object: what it says is missing here.")
            return {}
        return value

    def _note(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


def _first(values: Any) -> Mapping[str, Any]:
    return next((value for value in values if value), {})


def _logs(places: list[Path], reader: _Reader) -> tuple[list[Mapping[str, Any]], str]:
    """The logs that reach furthest: a run may have gone on after its weights were saved."""
    best: tuple[float, list[Mapping[str, Any]], str] = (-1, [], "")
    for place in places:
        for name in (RUN_RECORD, TRAINER_STATE):
            logs = reader(place / name).get("log_history")
            found: list[Mapping[str, Any]] = (
                [log for log in logs if isinstance(log, dict)] if isinstance(logs, list) else []
            )
            reached = max(
                (float(log["step"]) for log in found if isinstance(log.get("step"), int | float)), default=-1.0
            )
            if found and reached > best[0]:
                best = (reached, found, name if place is places[0] else f"{place.name}/{name}")
    return best[1], best[2]


Kind = Literal[
    "text", "count", "amount", "duration", "change", "number", "signed", "share", "interval", "share interval", "json"
]
"""How a value is written: intervals are two values, shares are percentages."""
NOTHING = "–"  # noqa: RUF001
_MINUS = "−"  # noqa: RUF001


def written(value: Any, kind: Kind) -> str:
    """Write a value.

    Args:
        value: A number, two for an interval, text, or None.
        kind: How to write it.

    >>> written(0.7123, "share"), written(-1.5, "signed"), written(12345, "count"), written(None, "number")
    ('71.2%', '−1.500', '12,345', '–')
    >>> written((0.5, 0.625), "share interval"), written((-1.0, 2.5), "interval")
    ('50.0% to 62.5%', '−1.000 to 2.500')
    """
    if value is None:
        return NOTHING
    if kind in ("interval", "share interval"):
        low, high = value
        return f"{written(low, _of_interval(kind))} to {written(high, _of_interval(kind))}"
    if kind == "text":
        return str(value)
    if kind == "json":
        return _plain(value)
    if not math.isfinite(value):
        return str(value)
    text = {
        "count": _count,
        "amount": _amount,
        "duration": _duration,
        "change": _change,
        "number": _number,
        "signed": _signed,
        "share": _share,
    }[kind](value)
    return text.replace("-", _MINUS) if not text.startswith("1e") else text


def _of_interval(kind: Kind) -> Kind:
    return "share" if kind == "share interval" else "number"


def _count(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else _number(value)


def _amount(value: float) -> str:
    for size, name in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.1f} {name}"
    return _count(value)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _change(value: float) -> str:
    return f"+{_count(value)}" if value > 0 else _count(value)


def _number(value: float) -> str:
    size = abs(value)
    if value == 0:
        return "0"
    if size < 0.001 or size >= 1e6:
        return f"{value:.2e}"
    return f"{value:,.1f}" if size >= 100 else f"{value:.2f}" if size >= 10 else f"{value:.3f}"


def _signed(value: float) -> str:
    return f"+{_number(value)}" if value > 0 else _number(value)


def _share(value: float) -> str:
    return f"{value:.1%}"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_plain(one)}" for name, one in value.items()) or "{}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "[]"
    return str(value)


def count_of(amount: int, thing: str, things: str | None = None) -> str:
    """Write a number of things.

    >>> count_of(1, "row"), count_of(1200, "row"), count_of(2, "entry", "entries")
    ('1 row', '1,200 rows', '2 entries')
    """
    return f"{amount:,} {thing if amount == 1 else things or thing + 's'}"


def row_names(rows: list[int], count: int) -> str:
    """Name the first rows of some kind.

    Args:
        rows: The first of them.
        count: How many there are.

    >>> row_names([3, 18], 2), row_names([0, 1], 9)
    ('3, 18', '0, 1, ...')
    """
    return ", ".join(map(str, rows)) + (", ..." if count > len(rows) > 0 else "")


def list_of(names: list[str]) -> str:
    """Join names.

    >>> list_of(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


Tone = Literal["empty", "note", "warning", "good"]


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of running text; what stands in `backticks` is code."""

    text: str
    tone: Tone | None = None

    def to_dict(self) -> dict[str, Any]:
        """The paragraph as plain values."""
        return {"type": "paragraph", "tone": self.tone, "text": self.text}


@dataclass(frozen=True)
class Column:
    """A column of a table: its title, and how its values are written."""

    title: str
    kind: Kind = "text"


@dataclass(frozen=True)
class Table:
    """A table of raw values, written only when it is shown.

    Attributes:
        name: Name in the JSON file, unique in its section.
        title: What stands above it.
        columns: Titles and kinds.
        rows: A value for each column.
        folded: Whether it is shown only on request.
        most_shown: Rows to show; of more, some are left out evenly, but not in the JSON file.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: Sequence[Sequence[Any]]
    folded: bool = False
    most_shown: int = 400

    def cells(self) -> list[list[str]]:
        """The values that are shown, as text; the last row is always among them."""
        rows = list(self.rows)
        if len(rows) > self.most_shown:
            rows = [*(rows[place * len(rows) // self.most_shown] for place in range(self.most_shown - 1)), rows[-1]]
        return [[written(value, column.kind) for value, column in zip(row, self.columns, strict=True)] for row in rows]

    @property
    def shortened(self) -> str:
        """Says that rows are left out; empty where none are."""
        left_out = len(self.rows) > self.most_shown
        return f"{self.most_shown} of {len(self.rows):,} rows; the JSON file has all." if left_out else ""

    def to_dict(self) -> dict[str, Any]:
        """The table as plain values."""
        titles = [column.title for column in self.columns]
        return {
            "type": "table",
            "name": self.name,
            "title": self.title,
            "columns": titles,
            "rows": [list(row) for row in self.rows],
        }


@dataclass(frozen=True)
class Number:
    """One number that stands out.

    Attributes:
        label: What it is.
        value: The number.
        kind: How it is written.
        interval: Its 95% interval.
        detail: What to hold it against.
    """

    label: str
    value: float | None
    kind: Kind = "share"
    interval: tuple[float, float] | None = None
    detail: str = ""

    @property
    def interval_text(self) -> str:
        """The interval, written; empty where there is none."""
        if self.interval is None:
            return ""
        return f"95% interval {written(self.interval, 'share interval' if self.kind == 'share' else 'interval')}"

    def to_dict(self) -> dict[str, Any]:
        """The number as plain values."""
        interval = None if self.interval is None else list(self.interval)
        return {"label": self.label, "value": self.value, "interval": interval, "detail": self.detail}


@dataclass(frozen=True)
class Numbers:
    """Numbers that stand out, side by side."""

    name: str
    numbers: Sequence[Number]

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain values."""
        return {"type": "numbers", "name": self.name, "numbers": [one.to_dict() for one in self.numbers]}


@dataclass(frozen=True)
class Figure:
    """A picture, what to see in it, and its numbers.

    Attributes:
        title: What stands above it.
        caption: What it shows, and what to look for.
        alternative: What it says to those who cannot see it.
        svg: The picture.
        table: Its numbers.
    """

    title: str
    caption: str
    alternative: str
    svg: str = field(repr=False)
    table: Table

    @property
    def name(self) -> str:
        """Name in the JSON file."""
        return self.table.name

    def to_dict(self) -> dict[str, Any]:
        """The figure as plain values: its numbers, not the picture."""
        return {**self.table.to_dict(), "type": "figure", "title": self.title, "caption": self.caption}


@dataclass(frozen=True)
class Answer:
    """One of the texts of a mistake."""

    label: str
    text: str | None
    reward: float | None
    tokens: int | None


@dataclass(frozen=True)
class Mistake:
    """A row that the model is sure about, and wrong.

    Attributes:
        title: Where it stands.
        confidence: Probability that the model gives to its opinion.
        margin: How far apart the rewards are, the wrong way.
        prompt: The prompt.
        answers: What was compared.
        columns: What else is known of the row.
    """

    title: str
    confidence: float | None
    margin: float | None
    prompt: str
    answers: tuple[Answer, ...]
    columns: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The mistake as plain values."""
        answers = [
            {"label": one.label, "text": one.text, "reward": one.reward, "tokens": one.tokens} for one in self.answers
        ]
        return {
            "title": self.title,
            "confidence": self.confidence,
            "margin": self.margin,
            "prompt": self.prompt,
            "answers": answers,
            "columns": dict(self.columns),
        }


@dataclass(frozen=True)
class Mistakes:
    """Mistakes with their texts, the most confident first."""

    name: str
    title: str
    mistakes: Sequence[Mistake]

    def to_dict(self) -> dict[str, Any]:
        """The mistakes as plain values."""
        return {
            "type": "mistakes",
            "name": self.name,
            "title": self.title,
            "mistakes": [one.to_dict() for one in self.mistakes],
        }


Block: TypeAlias = Paragraph | Table | Numbers | Figure | Mistakes


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        name: Name in links and in the JSON file, unique in the report.
        title: Its heading.
        blocks: What it holds.
        lead: What it is about, in a line under the heading.
    """

    name: str
    title: str
    blocks: Sequence[Block]
    lead: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The section as plain values."""
        return {
            "name": self.name,
            "title": self.title,
            "lead": self.lead,
            "blocks": [block.to_dict() for block in self.blocks],
        }


@dataclass(frozen=True)
class Document:
    """A whole report.

    Attributes:
        title: Its heading.
        about: Facts under the heading, in a few words each.
        sections: Its parts.
        made_by: The program and its version.
    """

    FORMAT: ClassVar[str] = "plaudit report"
    VERSION: ClassVar[int] = 1

    title: str
    about: Sequence[str]
    sections: Sequence[Section]
    made_by: str

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return {
            "format": self.FORMAT,
            "version": self.VERSION,
            "made_by": self.made_by,
            "title": self.title,
            "about": list(self.about),
            "sections": [section.to_dict() for section in self.sections],
        }


Suite = Mapping[str, Any]


def headline_numbers(suite: Suite) -> list[Number]:
    """The numbers that say how good a model is on a suite.

    Args:
        suite: What an evaluation says of it.
    """
    result, statistics = suite.get("result") or {}, suite.get("statistics") or {}
    pairs, rankings = statistics.get("pairs") or {}, statistics.get("rankings") or {}
    numbers = []
    accuracy = pairs.get("accuracy") or (statistics.get("labels") or {}).get("accuracy") or {}
    score, value = result.get("score"), accuracy.get("value")
    known = [one for one in (value, rankings.get("best_of_n")) if one is not None]
    if score is not None and all(abs(score - one) > 1e-9 for one in known):
        numbers.append(Number("Score", score, detail="by the rule of the suite"))
    if value is not None:
        longer = ((suite.get("length") or {}).get("longer_right") or {}).get("value")
        detail = count_of(accuracy["n"], "comparison" if pairs else "response")
        beaten = "" if longer is None else f"; always the longer one: {longer:.1%}"
        numbers.append(Number("Accuracy", value, interval=_pair(accuracy.get("interval")), detail=detail + beaten))
    if rankings:
        numbers.append(
            Number(
                "Best of N",
                rankings["best_of_n"],
                interval=_pair(rankings.get("best_of_n_interval")),
                detail=f"{count_of(rankings['rankings'], 'ranking')}; chance {rankings['best_of_n_chance']:.1%}",
            )
        )
        tau = _pair(rankings.get("kendall_tau_interval"))
        numbers.append(Number("Kendall's tau", rankings["kendall_tau"], "signed", tau, "agreement of rankings"))
    if pairs.get("margin") is not None:
        interval = _pair(pairs.get("margin_interval"))
        numbers.append(Number("Margin", pairs["margin"], "signed", interval, "mean reward, better less worse"))
    scores = (suite.get("calibration") or {}).get("scores") or {}
    if scores.get("ece") is not None:
        numbers.append(Number("Calibration error", scores["ece"], detail="expected, of the stated confidence"))
    return numbers + _pointwise_numbers(statistics)


def _pointwise_numbers(statistics: Mapping[str, Any]) -> list[Number]:
    labels, ratings = statistics.get("labels") or {}, statistics.get("ratings") or {}
    detail = count_of(int(ratings.get("responses") or 0), "rated response")
    wanted: list[tuple[str, Any, Any, str]] = [
        ("AUC", labels.get("auc"), "number", "good above bad; chance 0.5"),
        ("Correlation", ratings.get("pearson"), "signed", detail),
        ("Rank correlation", ratings.get("spearman"), "signed", detail),
        ("Mean squared error", ratings.get("mse"), "number", detail),
    ]
    return [Number(label, value, kind, detail=said) for label, value, kind, said in wanted if value is not None]


def _pair(interval: Any) -> tuple[float, float] | None:
    return None if interval is None else (interval[0], interval[1])


def accuracy_of(statistics: Mapping[str, Any]) -> Mapping[str, Any]:
    """The accuracy over comparisons, or else over labels; empty where there is none.

    Args:
        statistics: Those of a suite or a slice.
    """
    pairs, labels = statistics.get("pairs") or {}, statistics.get("labels") or {}
    return pairs.get("accuracy") or labels.get("accuracy") or {}


def reward_blocks(suite: Suite) -> list[Block]:
    """Histogram of the rewards of better and worse responses.

    Args:
        suite: What an evaluation says of it.
    """
    found = suite.get("histogram")
    if not found:
        return []
    edges, better, worse = found["edges"], found["better"], found["worse"]
    names = ("better (chosen)", "worse (rejected)")
    rows = [[low, high, *counts] for low, high, *counts in zip(edges[:-1], edges[1:], better, worse, strict=True)]
    columns = (Column("from", "signed"), Column("to", "signed"), *(Column(name, "count") for name in names))
    means = [written(_mean(edges, counts), "signed") for counts in (better, worse)]
    return [
        Figure(
            title="Rewards",
            caption="The further apart the two hills, the better. Only differences within one prompt are compared, so "
            "that they may overlap widely and the accuracy still be high.",
            alternative=f"Histogram of rewards. The mean is about {means[0]} for better responses and {means[1]} for "
            "worse ones.",
            svg=draw_histogram(edges, [(names[0], better), (names[1], worse)], x_label="reward"),
            table=Table("rewards", "Rewards", columns, rows),
        )
    ]


def _mean(edges: Sequence[float], counts: Sequence[int]) -> float | None:
    total = sum(counts)
    middles = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
    return sum(middle * count for middle, count in zip(middles, counts, strict=True)) / total if total else None


def margin_blocks(suite: Suite) -> list[Block]:
    """Histogram of the margins.

    Args:
        suite: What an evaluation says of it.
    """
    found = suite.get("margins")
    if not found:
        return []
    edges, counts = found["edges"], found["counts"]
    rows = [[low, high, count] for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)]
    columns = (Column("from", "signed"), Column("to", "signed"), Column("comparisons", "count"))
    pairs = (suite.get("statistics") or {}).get("pairs") or {}
    mean, median = (written(pairs.get(name), "signed") for name in ("margin", "margin_median"))
    return [
        Figure(
            title="Margins",
            caption="Reward of the better response less that of the worse one. What is left of the dashed line is "
            "wrong; a long tail there is worth reading (see the mistakes below).",
            alternative=f"Histogram of margins, with mean {mean} and median {median}.",
            svg=draw_histogram(edges, [("margin", counts)], x_label="reward of better less worse"),
            table=Table("margins", "Margins", columns, rows),
        )
    ]


def reliability_blocks(suite: Suite) -> list[Block]:
    """Reliability diagram, and calibration in numbers.

    Args:
        suite: What an evaluation says of it.
    """
    found = suite.get("calibration")
    if not found or not found.get("scores"):
        return []
    before, after = found.get("before"), found.get("after")
    curves = [("as it is", found["scores"])] if not (before and after) else [("as it is", before), ("rescaled", after)]
    rows = [
        [name, one["low"], one["high"], one["n"], one["confidence"], one["accuracy"], one["interval"]]
        for name, scores in curves
        for one in scores["curve"]
        if one.get("n")
    ]
    columns = (
        Column("curve"),
        Column("from", "share"),
        Column("to", "share"),
        Column("comparisons", "count"),
        Column("confidence", "share"),
        Column("right", "share"),
        Column("95% interval", "share interval"),
    )
    said = calibration_words(found)
    return [
        Figure(
            title="Reliability",
            caption="On the dashed line the model is right as often as it is sure. Below it is overconfident, above it "
            f"underconfident. {said}",
            alternative=f"Reliability diagram. {said}",
            svg=draw_reliability([(name, scores["curve"]) for name, scores in curves]),
            table=Table("reliability", "Reliability", columns, rows),
        ),
        _calibration_table(found),
    ]


def calibration_words(found: Mapping[str, Any]) -> str:
    """What the calibration comes to, in a sentence or two.

    Args:
        found: The calibration of a suite.
    """
    words = f"The expected calibration error is {found['scores']['ece']:.1%} over all comparisons."
    before, after, temperature = found.get("before"), found.get("after"), found.get("temperature")
    if not (before and after and temperature):
        return f"{words} There is too little data to fit a temperature."
    direction = "overconfident" if temperature > 1 else "underconfident"
    words += (
        f" A temperature of {temperature:.2f}, fitted on one half of the prompts, takes it from {before['ece']:.1%} to "
        f"{after['ece']:.1%} on the other half, which is what is drawn: the model is {direction}."
    )
    return words + " The fit ran into its bound: do not rely on it." * bool(found.get("at_bound"))


def _calibration_table(found: Mapping[str, Any]) -> Table:
    kinds = [
        ("all, as it is", found["scores"]),
        ("half, as it is", found.get("before")),
        ("half, rescaled", found.get("after")),
    ]
    names = ("n", "temperature", "ece", "ece_mass", "brier", "log_loss")
    columns = (
        Column("comparisons"),
        Column("number", "count"),
        Column("temperature", "number"),
        Column("ECE", "share"),
        Column("ECE, equal mass", "share"),
        Column("Brier score", "number"),
        Column("log loss", "number"),
    )
    rows = [[kind, *(scores.get(name) for name in names)] for kind, scores in kinds if scores]
    return Table("calibration", "Calibration in numbers", columns, rows)


def mistake_blocks(suite: Suite) -> list[Block]:
    """The most confident mistakes with their texts.

    Args:
        suite: What an evaluation says of it.
    """
    found = suite.get("mistakes") or []
    if not found:
        value = accuracy_of(suite.get("statistics") or {}).get("value")
        if value is None:
            return []
        said = ("There is no mistake.", "good") if value == 1 else ("The evaluation kept no mistakes to show.", "note")
        return [Paragraph(*said)]  # type: ignore[arg-type]
    return [Mistakes("mistakes", "Most confident mistakes", [_mistake(one) for one in found])]


def _mistake(one: Mapping[str, Any]) -> Mistake:
    label = one.get("kind") == "label"
    names = ("good", "bad") if label else ("better", "worse")
    answers = tuple(
        Answer(name, one.get(key), one.get(f"{key}_reward"), one.get(f"{key}_tokens"))
        for name, key in zip(names, ("better", "worse"), strict=True)
        if one.get(key) is not None or one.get(f"{key}_reward") is not None
    )
    title = f"Row {one.get('row')}"
    if one.get("id") not in (None, "", str(one.get("row"))):
        title += f" ({one['id']})"
    columns = tuple((str(name), str(value)) for name, value in (one.get("columns") or {}).items())
    return Mistake(title, one.get("confidence"), one.get("margin"), str(one.get("prompt") or ""), answers, columns)


def dropped_blocks(suite: Suite) -> list[Block]:
    """Rows that were not scored, and why.

    Args:
        suite: What an evaluation says of it.
    """
    dropped = suite.get("dropped") or []
    rows = [
        [one["reason"], one["count"], row_names(one.get("rows") or [], one["count"]), one.get("example")]
        for one in dropped
    ]
    if left_out := suite.get("rows_left_out"):
        rows.append(["left out, as `max_rows` asks for a sample", left_out, None, None])
    if not rows:
        return []
    columns = (Column("not scored"), Column("rows", "count"), Column("first row numbers"), Column("example"))
    read = suite.get("rows_in_source")
    title = "Rows that were not scored" + (f", of {read:,} read" if read else "")
    return [Table("dropped", title, columns, rows)]


_MOST_SLICES = 30


def rule_slice_blocks(suite: Suite) -> list[Block]:
    """Slices and further scores of the suite's own rule.

    Args:
        suite: What an evaluation says of it.
    """
    result = suite.get("result") or {}
    slices = [one for one in result.get("slices") or () if one.get("score") is not None and one["name"] != "all"]
    if suite.get("suite") == "preferences":
        slices = []  # the slices that were asked for, which follow
    blocks: list[Block] = []
    if len(slices) > 1:
        rows = [
            [one["name"], one.get("group") or None, one["n"], one["score"], one.get("interval"), one.get("margin")]
            for one in slices
        ]
        columns = (
            Column("slice"),
            Column("part of"),
            Column("rows", "count"),
            Column("score", "share"),
            Column("95% interval", "share interval"),
            Column("margin", "signed"),
        )
        shares = [Share(one["name"], one["score"], *(one.get("interval") or (None, None))) for one in slices]
        blocks.append(
            _slices_figure(
                "slices",
                "Score by slice",
                shares,
                Table("slices", "Score by slice", columns, rows),
                None,
                result.get("score"),
            )
        )
    if scores := result.get("scores"):
        rows = [[name, value] for name, value in scores.items()]
        blocks.append(Table("scores", "Scores of the suite", (Column("score"), Column("value", "share")), rows))
    return blocks


def column_slice_blocks(suite: Suite) -> list[Block]:
    """Accuracy by the values of each column that was asked for.

    Args:
        suite: What an evaluation says of it.
    """
    blocks: list[Block] = []
    average = accuracy_of(suite.get("statistics") or {}).get("value")
    for column, values in (suite.get("slices") or {}).items():
        rows, shares = [], []
        for value, statistics in values.items():
            accuracy = accuracy_of(statistics)
            margin = (statistics.get("pairs") or {}).get("margin")
            rows.append(
                [
                    value,
                    accuracy.get("n") or 0,
                    accuracy.get("value"),
                    accuracy.get("interval") if accuracy.get("n") else None,
                    margin,
                ]
            )
            if accuracy.get("value") is not None:
                shares.append(Share(str(value), accuracy["value"], *accuracy["interval"]))
        columns = (
            Column(column),
            Column("number", "count"),
            Column("accuracy", "share"),
            Column("95% interval", "share interval"),
            Column("margin", "signed"),
        )
        title = f"Accuracy by {column}"
        table = Table(f"slices_{column}", title, columns, rows)
        blocks.append(_slices_figure(f"slices_{column}", title, shares, table, 0.5, average) if shares else table)
    return blocks


def _slices_figure(
    name: str, title: str, shares: Sequence[Share], table: Table, chance: float | None, average: float | None
) -> Figure:
    drawn = list(shares[:_MOST_SLICES])
    worst, best = min(drawn, key=lambda one: one.value), max(drawn, key=lambda one: one.value)
    caption = "Each dot with its 95% interval. Where that reaches the line of all, chance may explain the difference."
    if len(shares) > len(drawn):
        caption += f" The first {len(drawn)} of {len(shares)} are drawn; the table has all."
    return Figure(
        title=title,
        caption=caption,
        alternative=f"{title}: from {worst.value:.1%} for {worst.name} to {best.value:.1%} for {best.name}.",
        svg=draw_shares(drawn, chance=chance, average=average),
        table=table,
    )


def length_blocks(suite: Suite) -> list[Block]:
    """Rewards against length, accuracy by difference of length, and what length explains.

    Args:
        suite: What an evaluation says of it.
    """
    found, points = suite.get("length"), [tuple(one) for one in suite.get("points") or () if one[0] is not None]
    unit = (found or {}).get("unit") or "tokens"
    blocks: list[Block] = []
    if points:
        rows = [[x, y, kind] for x, y, kind in points]
        columns = (Column(unit, "count"), Column("reward", "signed"), Column("response"))
        said = ""
        if found and (within := found["correlation"].get("within")) is not None:
            said = f" Within one prompt the correlation of reward and length is {written(within, 'signed')}."
        blocks.append(
            Figure(
                title="Reward against length",
                caption="A slope says that rewards follow length. One that better and worse responses share is "
                f"bias.{said}",
                alternative=f"Scatter plot of rewards over lengths in {unit} for {len(points):,} responses.{said}",
                svg=draw_points(points, x_label=f"length in {unit}", y_label="reward"),
                table=Table("points", "Reward against length", columns, rows, most_shown=20),
            )
        )
    if found and len(found.get("bins") or ()) > 1:
        blocks.append(_length_bins(found, unit))
    if found:
        blocks.append(_length_table(found))
    return blocks


def _length_bins(found: Mapping[str, Any], unit: str) -> Figure:
    known = [one for one in found["bins"] if one["accuracy"]["value"] is not None]
    bins = [
        (
            f"{written(round(one['low']), 'change')} to {written(round(one['high']), 'change')}",
            _share_of(one["accuracy"]),
        )
        for one in known
    ]
    rows = [
        [one["low"], one["high"], one["accuracy"]["n"], one["accuracy"]["value"], one["accuracy"]["interval"]]
        for one in known
    ]
    columns = (
        Column("longer by", "change"),
        Column("up to", "change"),
        Column("comparisons", "count"),
        Column("accuracy", "share"),
        Column("95% interval", "share interval"),
    )
    title = "Accuracy by difference of length"
    return Figure(
        title=title,
        caption="On the left the better response is the shorter one. A model without a taste for length has a "
        "flat line.",
        alternative=f"{title}: {bins[0][1].value:.1%} where the better response is shortest compared to the worse one, "
        f"{bins[-1][1].value:.1%} where it is longest.",
        svg=draw_steps(bins, x_label=f"{unit} by which the better response is longer"),
        table=Table("length_bins", title, columns, rows),
    )


def _share_of(proportion: Mapping[str, Any]) -> Share:
    return Share("", proportion["value"], *(proportion.get("interval") or (None, None)))


def _length_table(found: Mapping[str, Any]) -> Table:
    named = {
        "the longer response is the better one": found.get("longer_right"),
        "the longer response has the higher reward": found.get("longer_preferred"),
        "accuracy where the longer response is better": found.get("accuracy_longer_right"),
        "accuracy where the longer response is worse": found.get("accuracy_longer_wrong"),
    }
    rows = [[name, one["value"], one["interval"] if one["n"] else None, one["n"]] for name, one in named.items() if one]
    if found.get("balanced_accuracy") is not None:
        rows.append(["mean of these two (always the longer: 50%)", found["balanced_accuracy"], None, None])
    if controlled := found.get("controlled"):
        rows.append(["length-controlled accuracy", controlled["accuracy"], controlled["interval"], controlled["n"]])
    columns = (
        Column("length"),
        Column("share", "share"),
        Column("95% interval", "share interval"),
        Column("number", "count"),
    )
    return Table("length", "Length", columns, rows)


def format_blocks(suite: Suite) -> list[Block]:
    """How rewards follow markdown.

    Args:
        suite: What an evaluation says of it.
    """
    found = suite.get("format") or []
    rows = [
        [
            one["feature"],
            one["share"],
            one["correlation"].get("within"),
            one["correlation"].get("within_interval"),
            one["more_right"]["value"],
            one["more_preferred"]["value"],
            one["more_preferred"]["n"],
        ]
        for one in found
        if one.get("share")
    ]
    if not rows:
        return []
    columns = (
        Column("markdown"),
        Column("responses with it", "share"),
        Column("correlation within prompts", "signed"),
        Column("95% interval", "interval"),
        Column("more is better", "share"),
        Column("more is preferred", "share"),
        Column("comparisons", "count"),
    )
    return [
        Table("format", "Formatting: preferred far above better means that the model likes the looks", columns, rows)
    ]


def best_of_n_blocks(suite: Suite) -> list[Block]:
    """Gold score of what is picked among n.

    Args:
        suite: What an evaluation says of it.
    """
    found = suite.get("best_of_n")
    points = (found or {}).get("points") or []
    if not found or len(points) < 2:
        return []
    names = ("n", "picked", "interval", "oracle", "random")
    columns = (
        Column("n", "count"),
        Column("picked", "number"),
        Column("95% interval", "interval"),
        Column("oracle", "number"),
        Column("random", "number"),
    )
    last = points[-1]
    span = last["oracle"] - last["random"]
    reached = (
        f" At n = {last['n']} the model gains {(last['picked'] - last['random']) / span:.0%} of what is possible."
        if span
        else ""
    )
    without = [
        f"{count_of(found[key], 'row')} {words}"
        for key, words in (("rows_too_short", "with fewer responses"), ("rows_without_gold", "without a gold score"))
        if found.get(key)
    ]
    left_out = f" Left out: {', '.join(without)}." if without else ""
    return [
        Figure(
            title="Best of N",
            caption="Mean gold score of the response with the highest reward among n, over "
            f"{count_of(found['rows'], 'row')}. The oracle picks by the gold score itself.{reached} A curve that falls "
            f"again is over-optimised.{left_out}",
            alternative=f"Best-of-N curve up to n = {last['n']}: picked {written(last['picked'], 'number')}, oracle "
            f"{written(last['oracle'], 'number')}, random {written(last['random'], 'number')}.",
            svg=draw_best_of_n(points),
            table=Table("best_of_n", "Best of N", columns, [[one[name] for name in names] for one in points]),
        )
    ]


_PARTS = (
    reward_blocks,
    margin_blocks,
    reliability_blocks,
    rule_slice_blocks,
    column_slice_blocks,
    length_blocks,
    format_blocks,
    best_of_n_blocks,
    mistake_blocks,
    dropped_blocks,
)


def suite_section(found: SuiteOfModel, name: str, *, headline: bool = True) -> Section:
    """The section of a suite.

    Args:
        found: What the evaluation says.
        name: Name of the section.
        headline: Whether to begin with the numbers that stand out.
    """
    suite = found.suite
    blocks: list[Block] = [*_warnings(found)]
    if headline and (numbers := headline_numbers(suite)):
        blocks.append(Numbers("numbers", numbers))
    parts = [block for part in _PARTS for block in part(suite)]
    # Pictures side by side first, texts next, tables to look things up last.
    blocks += [block for block in parts if isinstance(block, Figure)]
    blocks += [block for block in parts if not isinstance(block, Figure | Table)]
    blocks += [block for block in parts if isinstance(block, Table)]
    if rule := (suite.get("result") or {}).get("rule"):
        blocks.append(Paragraph(f"How it is scored: {rule}"))
    sources = ", ".join(f"`{one}`" for one in suite.get("sources") or ())
    said = count_of(int(suite.get("rows") or 0), "row") + (f" of {sources}" if sources else "")
    return Section(name, found.title, blocks, lead=f"{said}.")


def _warnings(found: SuiteOfModel) -> list[Block]:
    blocks: list[Block] = []
    if found.evaluation.content.get("complete") is False:
        blocks.append(Paragraph("This evaluation was not finished: what follows is what there is of it.", "warning"))
    calibration = found.model.get("calibration")
    if calibration:
        said = ", ".join(
            f"{name} {written(calibration.get(name), 'number')}" for name in ("scale", "shift", "temperature")
        )
        blocks.append(Paragraph(f"Rewards were calibrated when they were read: {said}.", "note"))
    blocks += [
        Paragraph(f"Check *{one['name']}* failed: {one['message']}", "warning") for one in failed_checks(found.suite)
    ]
    blocks += [Paragraph(str(note), "note") for note in found.suite.get("notes") or ()]
    return blocks


def failed_checks(suite: Suite) -> list[Mapping[str, Any]]:
    """The sanity checks that a suite did not pass.

    Args:
        suite: What an evaluation says of it.
    """
    return [one for one in suite.get("checks") or () if not one.get("passed")]


_CURVES: dict[str, tuple[str, str]] = {
    "loss": ("Loss", "It should fall. Where the loss on held-out data rises again, training went on for too long."),
    "accuracy": (
        "Accuracy",
        "Share of comparisons whose better response has the higher reward. Training far above held-out is overfitting.",
    ),
    "margin": (
        "Margin",
        "Mean reward of the better response less that of the worse one. It grows as the model gets surer.",
    ),
    "best_of_n_accuracy": ("Best-of-N accuracy", "How often the highest reward goes to one of the best responses."),
    "tie_accuracy": ("Tie accuracy", "Share of labels right, ties among them."),
    "kendall_tau": ("Kendall's tau", "Agreement of the rankings, from −1 to 1."),  # noqa: RUF001
    "mse": ("Mean squared error", "Of rewards as estimates of ratings. It should fall."),
    "correlation": ("Correlation", "Of rewards with ratings."),
    "learning_rate": ("Learning rate", "As scheduled."),
    "grad_norm": ("Gradient norm", "Before clipping. Single peaks are usual; steady growth is not."),
}
_MOST_ROWS = 40


def training_section(run: Run) -> Section:
    """Training curves, or where they could have come from.

    Args:
        run: The run.
    """
    if not run.logs:
        empty = "No training logs: there is no `trainer_state.json` and no `plaudit_run.json` with logs in this folder."
        return Section("training", "Training", [Paragraph(empty, "empty")])
    best = _best_step(run)
    blocks: list[Block] = [*_summary(run)]
    figures = [
        figure
        for name, (title, caption) in _CURVES.items()
        if (figure := _figure(run.logs, name, title, caption, best)) is not None
    ]
    if figures:
        blocks += figures
    else:
        blocks.append(Paragraph("The logs hold no numbers over steps: see `logging_steps`.", "empty"))
    return Section("training", "Training", blocks, lead=f"From the logs in `{run.logs_from}`.")


def _summary(run: Run) -> list[Block]:
    last: Mapping[str, Any] = next((log for log in reversed(run.logs) if "train_runtime" in log), {})
    state = run.record.get("state") or {}
    steps = max((log["step"] for log in run.logs if finite(log.get("step"))), default=None)
    epochs = state.get("epoch") or max((log["epoch"] for log in run.logs if finite(log.get("epoch"))), default=None)
    tokens = max((log["num_tokens"] for log in run.logs if finite(log.get("num_tokens"))), default=None)
    wanted: list[tuple[str, Any, Kind, str]] = [
        ("Steps", steps, "count", f"{written(epochs, 'number')} epochs" if epochs else ""),
        ("Tokens", tokens, "amount", ""),
        ("Mean training loss", last.get("train_loss"), "number", ""),
        ("Training time", last.get("train_runtime"), "duration", ""),
    ]
    numbers = [Number(label, value, kind, detail=detail) for label, value, kind, detail in wanted if finite(value)]
    return [Numbers("summary", numbers)] if numbers else []


def curves_of(logs: Sequence[Mapping[str, Any]], name: str) -> list[Line]:
    """Lines of one metric: of training first, then of each evaluation set.

    Args:
        logs: Logs with ``step``.
        name: The metric, without a prefix.
    """
    keys = [name] if any(_is_training(log) and name in log for log in logs) else []
    for log in logs:
        for key in log:
            if key.startswith("eval_") and _metric(key) == name and key not in keys:
                keys.append(key)
    lines = []
    for key in keys:
        points = {
            log["step"]: log[key]
            for log in logs
            if finite(log.get("step")) and finite(log.get(key)) and (key != name or _is_training(log))
        }
        steps = sorted(points)
        if steps:
            lines.append(Line(_called(key, name), steps, [points[step] for step in steps]))
    return lines


def _is_training(log: Mapping[str, Any]) -> bool:
    return not any(key.startswith("eval_") for key in log) and "train_runtime" not in log


def _metric(key: str) -> str:
    """The metric that a key of an evaluation log ends with: the longest, as some end alike."""
    ends = [name for name in _CURVES if key == f"eval_{name}" or key.endswith(f"_{name}")]
    return max(ends, key=len, default="")


def _called(key: str, name: str) -> str:
    if key == name:
        return "training"
    middle = key.removeprefix("eval_").removesuffix(name).strip("_")
    return f"held-out: {middle}" if middle else "held-out"


def finite(value: Any) -> bool:
    """Whether a value is a number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _best_step(run: Run) -> tuple[float, str] | None:
    step = (run.record.get("state") or {}).get("best_global_step")
    settings = run.record.get("settings") or {}
    return (step, "best checkpoint") if finite(step) and step and settings.get("load_best_model_at_end") else None


def _figure(
    logs: Sequence[Mapping[str, Any]], name: str, title: str, caption: str, best: tuple[float, str] | None
) -> Figure | None:
    lines = curves_of(logs, name)
    if not lines:
        return None
    if name in ("learning_rate", "grad_norm") or not any(line.name != "training" for line in lines):
        best = None
    said = [f"{line.name} from {written(line.y[0], 'number')} to {written(line.y[-1], 'number')}" for line in lines]
    return Figure(
        title=title,
        caption=caption,
        alternative=f"{title} over steps: {list_of(said)}.",
        svg=draw_lines(lines, x_label="step", mark=best),
        table=curve_table(name, title, lines),
    )


def curve_table(name: str, title: str, lines: Sequence[Line]) -> Table:
    """The numbers of a curve; of very many steps, all are in the JSON file and some are shown.

    Args:
        name: Name of the table.
        title: What it is of.
        lines: The lines.
    """
    steps = sorted({step for line in lines for step in line.x})
    by_line = [dict(zip(line.x, line.y, strict=True)) for line in lines]
    rows = [[step, *(values.get(step) for values in by_line)] for step in steps]
    return Table(
        name,
        title,
        (Column("step", "count"), *(Column(line.name, "number") for line in lines)),
        rows,
        most_shown=_MOST_ROWS,
    )


_REASONS = {
    "overlong": "over-long",
    "identical": "identical responses",
    "empty_response": "an empty response",
    "last_message_not_assistant": "the last message is not the assistant's",
    "same_rendering": "different responses become the same tokens",
    "nothing_to_compare": "no two responses with different scores",
}
_UNKNOWN_DATA = (
    "What was read and dropped is not known: there is no `plaudit_run.json` in this folder. Runs of this version write "
    "it when they save; for an older one, `plaudit check` counts again."
)


# --- comparisons and checks --------------------------------------------------------------------------------------


def comparison_section(evaluations: Sequence[Evaluation]) -> Section | None:
    """Models against each other and against baselines on the same rows; None where only one was evaluated.

    Args:
        evaluations: The evaluations.
    """
    blocks: list[Block] = []
    rows, slices, left_out = [], [], 0
    for evaluation in evaluations:
        for found in evaluation.content.get("comparisons") or ():
            rows.append(_difference([found.get("suite")], found["overall"]))
            left_out += found.get("left_out") or 0
            for column, values in (found.get("slices") or {}).items():
                slices += [_difference([found.get("suite"), f"{column}: {name}"], one) for name, one in values.items()]
            blocks.append(Paragraph(f"{found.get('suite')}: {found['overall']['verdict']}.", _tone(found["overall"])))
    if not rows:
        return None
    columns = (
        Column("first"),
        Column("second"),
        Column("comparisons", "count"),
        Column("score of first", "share"),
        Column("score of second", "share"),
        Column("difference", "share"),
        Column("95% interval", "share interval"),
        Column("p", "number"),
    )
    blocks.append(Table("comparisons", "Differences", (Column("suite"), *columns), rows))
    if slices:
        title = "Differences by slice (p-values corrected after Holm)"
        blocks.append(Table("slices", title, (Column("suite"), Column("slice"), *columns), slices, folded=True))
    if left_out:
        blocks.append(Paragraph(f"{count_of(left_out, 'row')} that not all models scored do not count.", "note"))
    lead = (
        "The same rows, scored by both. A difference is real only where p is below 0.05 and its interval leaves out 0."
    )
    return Section("comparisons", "Against others", blocks, lead=lead)


def _difference(names: list[Any], one: Mapping[str, Any]) -> list[Any]:
    first, second = one["names"]
    numbers = [one["n"], *one["scores"], one["difference"], one["interval"], one["p_adjusted"]]
    return [*names, first, second, *numbers]


def _tone(one: Mapping[str, Any]) -> Any:
    return "note" if not one.get("real") else "good" if one["difference"] > 0 else "warning"


def checks_section(suites: Sequence[SuiteOfModel]) -> Section | None:
    """Sanity checks of the model and of the code that ran it; None where none was made.

    Args:
        suites: What evaluations say of the run's model.
    """
    rows = [
        ["passed" if check.get("passed") else "FAILED", check["name"], one.title, check.get("message")]
        for one in suites
        for check in one.suite.get("checks") or ()
    ]
    if not rows:
        return None
    columns = (Column("outcome"), Column("check"), Column("suite"), Column("what was found"))
    lead = "Rewards computed twice, and labels swapped: a model that sees only the texts passes all of them."
    return Section("checks", "Sanity checks", [Table("checks", "Checks", columns, rows)], lead=lead)


# --- data --------------------------------------------------------------------------------------------------------


def data_section(run: Run) -> Section:
    """What was read, dropped and found suspicious in each data set of the training.

    Args:
        run: The run.
    """
    reports = run.record.get("data")
    if not isinstance(reports, dict) or not reports:
        return Section("data", "Data", [Paragraph(_UNKNOWN_DATA, "empty")])
    rows = []
    for name, report in reports.items():
        lengths = report.get("lengths") or {}
        dropped = sum(one["count"] for one in (report.get("dropped") or {}).values())
        rows.append(
            [
                name,
                report.get("rows_read"),
                report.get("rows_kept"),
                dropped,
                lengths.get("mean"),
                lengths.get("longest"),
                report.get("max_length"),
            ]
        )
    columns = (
        Column("data set"),
        Column("rows read", "count"),
        Column("kept", "count"),
        Column("dropped", "count"),
        Column("mean tokens", "number"),
        Column("longest", "count"),
        Column("limit", "count"),
    )
    blocks: list[Block] = [Table("rows", "Rows", columns, rows), _reasons(reports)]
    if any(report.get("streaming") for report in reports.values()):
        blocks.append(Paragraph("A stream is counted as far as it was read.", "note"))
    return Section("data", "Data", blocks, lead="What training read, and what it left out.")


def _reasons(reports: Mapping[str, Any]) -> Block:
    rows = [
        [
            name,
            outcome,
            _REASONS.get(kind, kind),
            count["count"],
            row_names(count.get("first_rows") or [], count["count"]),
        ]
        for name, report in reports.items()
        for outcome, key in (("dropped", "dropped"), ("kept, but suspicious", "flagged"))
        for kind, count in (report.get(key) or {}).items()
    ]
    if not rows:
        return Paragraph("Nothing was dropped, and no row looked suspicious.", "good")
    columns = (
        Column("data set"),
        Column("outcome"),
        Column("why"),
        Column("rows", "count"),
        Column("first row numbers"),
    )
    return Table("dropped", "What was dropped, and why", columns, rows)


# --- settings ----------------------------------------------------------------------------------------------------


def settings_section(run: Run, evaluations: Sequence[Evaluation]) -> Section:
    """The model, how it was trained, and with what.

    Args:
        run: The run.
        evaluations: Its evaluations, made with versions of their own.
    """
    record = run.record
    blocks: list[Block] = [Table("model", "Model", (Column("model"), Column("", "json")), _model_rows(run))]
    settings = record.get("settings")
    if isinstance(settings, dict) and settings:
        changed = [name for name in record.get("changed_settings") or () if name in settings]
        columns = (Column("setting"), Column("value", "json"))
        if changed:
            title = "Settings that are not at their defaults"
            blocks.append(Table("changed_settings", title, columns, [[name, settings[name]] for name in changed]))
        rows = [[name, value] for name, value in sorted(settings.items())]
        blocks.append(Table("settings", "All settings", columns, rows, folded=True, most_shown=1000))
    else:
        blocks.append(Paragraph("The settings are not known: there is no `plaudit_run.json` in this folder.", "empty"))
    if run.calibration:
        rows = [[name, value] for name, value in run.calibration.items()]
        blocks.append(
            Table("calibration", "Calibration saved with the model", (Column("name"), Column("value", "json")), rows)
        )
    blocks += _versions(record, evaluations)
    return Section("settings", "Settings and versions", blocks)


def _model_rows(run: Run) -> list[list[Any]]:
    record = run.record
    rows: list[list[Any]] = [
        ["trained from", run.base_model],
        ["architecture", run.architecture],
        ["adapter", True if record.get("adapter") or run.adapter else None],
        ["parameters", f"{record['parameters']:,}" if record.get("parameters") else None],
        ["of them trained", f"{record['trainable_parameters']:,}" if record.get("trainable_parameters") else None],
        ["objective", record.get("objective")],
        ["batch layout", record.get("batch_layout")],
        ["because", record.get("batch_layout_reason")],
        ["device", record.get("device")],
        ["processes", record.get("processes")],
        ["saved", record.get("saved")],
    ]
    return [row for row in rows if row[1] is not None]


def _versions(record: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> list[Block]:
    columns = {"training": record.get("versions") or {}}
    for evaluation in evaluations:
        columns[f"evaluation in {evaluation.folder.name}"] = evaluation.content.get("versions") or {}
    columns = {title: versions for title, versions in columns.items() if versions}
    names = list(dict.fromkeys(name for versions in columns.values() for name in versions))
    if not names:
        return [Paragraph("The versions are not known.", "empty")]
    rows = [[name, *(versions.get(name) for versions in columns.values())] for name in names]
    return [Table("versions", "Versions", (Column("package"), *(Column(title) for title in columns)), rows)]


_FEW = 100
_MUCH_CALIBRATION_ERROR = 0.05
_CLEARLY_LESS = 0.8
_MUCH_LENGTH = 0.1


def overview_section(run: Run, suites: Sequence[SuiteOfModel], problems: Sequence[str], command: str) -> Section:
    """Headline numbers and what they mean.

    Args:
        run: The run.
        suites: What evaluations say of its model.
        problems: What could not be read.
        command: The command that makes an evaluation.
    """
    blocks: list[Block] = [Paragraph(problem, "warning") for problem in problems]
    if suites:
        first = suites[0]
        blocks.append(Numbers("headline", headline_numbers(first.suite)))
        if len(suites) > 1:
            blocks.append(_suites_table(suites))
        blocks += [Paragraph(text, tone) for one in suites for text, tone in findings(one, named=len(suites) > 1)]
        return Section("overview", "At a glance", blocks, lead=f"On {first.title}." if len(suites) == 1 else "")
    numbers = _from_logs(run)
    if numbers:
        blocks.append(Numbers("headline", numbers))
    blocks.append(
        Paragraph(
            "No evaluation yet: there are no intervals, no slices, no calibration and no mistakes to read. Run "
            f"`{command}`, then `plaudit report` again.",
            "empty",
        )
    )
    return Section("overview", "At a glance", blocks)


def _from_logs(run: Run) -> list[Number]:
    numbers = []
    for name, kind in (("accuracy", "share"), ("margin", "signed"), ("loss", "number")):
        lines = curves_of(run.logs, name)
        held_out = [line for line in lines if line.name != "training"]
        for line in held_out or lines[:1]:
            where = f"last log, {line.name}, step {line.x[-1]:,}"
            if line.name == "training":
                where += ": not held out, it says little"
            numbers.append(Number(name.capitalize(), line.y[-1], kind, detail=where))  # type: ignore[arg-type]
    return numbers


def _suites_table(suites: Sequence[SuiteOfModel]) -> Table:
    rows = []
    for one in suites:
        accuracy = accuracy_of(one.suite.get("statistics") or {})
        score = (one.suite.get("result") or {}).get("score")
        calibration = ((one.suite.get("calibration") or {}).get("scores") or {}).get("ece")
        rows.append(
            [one.title, one.suite.get("rows"), score, accuracy.get("value"), accuracy.get("interval"), calibration]
        )
    columns = (
        Column("suite"),
        Column("rows", "count"),
        Column("score", "share"),
        Column("accuracy", "share"),
        Column("95% interval", "share interval"),
        Column("calibration error", "share"),
    )
    return Table("suites", "All evaluations", columns, rows)


# --- what the numbers mean -----------------------------------------------------------------------------------------


def findings(found: SuiteOfModel, *, named: bool = False) -> list[tuple[str, Any]]:
    """What the numbers of a suite mean, one sentence each, with its tone.

    Args:
        found: What an evaluation says.
        named: Whether to begin with the name of the suite.
    """
    suite = found.suite
    said = [*_accuracy_finding(suite), *_baseline_findings(found), *_few_rows(suite)]
    said += [*_calibration_finding(suite), *_length_finding(suite)]
    said += [(f"Check failed: {one['message']}", "warning") for one in failed_checks(suite)]
    if found.evaluation.content.get("complete") is False:
        said.append(("The evaluation was not finished.", "warning"))
    dropped = sum(one["count"] for one in suite.get("dropped") or ())
    if dropped:
        said.append((f"{count_of(dropped, 'row was', 'rows were')} not scored.", "note"))
    return [(f"{found.title}: {text[0].lower()}{text[1:]}" if named else text, tone) for text, tone in said]


def _accuracy_finding(suite: Mapping[str, Any]) -> list[tuple[str, Any]]:
    accuracy = accuracy_of(suite.get("statistics") or {})
    longer = (suite.get("length") or {}).get("longer_right") or {}
    if accuracy.get("value") is None or not (suite.get("statistics") or {}).get("pairs"):
        return []
    low, high = accuracy["interval"]
    rules = [
        (0.5, "guessing"),
        *([(longer["value"], "always taking the longer response")] if longer.get("value") else []),
    ]
    level, rule = max(rules)
    said = f"{rule} ({level:.1%})"
    value = written(accuracy["value"], "share")
    if low > level:
        return [(f"Accuracy {value} is better than {said}.", "good")]
    if high < level:
        return [(f"Accuracy {value} is worse than {said}.", "warning")]
    return [(f"Accuracy {value} is not shown to be better than {said}: its interval reaches it.", "warning")]


def _baseline_findings(found: SuiteOfModel) -> list[tuple[str, Any]]:
    said: list[tuple[str, Any]] = []
    for one in found.evaluation.content.get("comparisons") or ():
        if not one.get("baseline") or one["suite"] != found.suite["name"] or one["models"][0] != found.model["name"]:
            continue
        overall = one["overall"]
        own, other = (written(score, "share") for score in overall["scores"])
        outcome = "which is not shown to be better than"
        if overall["real"]:
            outcome = "better than" if overall["difference"] > 0 else "worse than"
        tone = "good" if overall["real"] and overall["difference"] > 0 else "warning"
        said.append((f"Over all rows {own} are right, {outcome} a {one['models'][1]}: {other}.", tone))
    return said


def _few_rows(suite: Mapping[str, Any]) -> list[tuple[str, Any]]:
    accuracy = accuracy_of(suite.get("statistics") or {})
    if not accuracy.get("n") or accuracy["n"] >= _FEW:
        return []
    low, high = accuracy["interval"]
    width = 100 * (high - low)
    return [(f"There are only {accuracy['n']} labels: the interval is {width:.0f} points wide.", "note")]


def _calibration_finding(suite: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found = suite.get("calibration") or {}
    before, after, temperature = found.get("before"), found.get("after"), found.get("temperature")
    if not (before and after and temperature) or found.get("at_bound"):
        return []
    if before["ece"] < _MUCH_CALIBRATION_ERROR or after["ece"] > _CLEARLY_LESS * before["ece"]:
        return []
    way = "too sure of itself" if temperature > 1 else "surer than it says"
    text = f"The model is {way}: a temperature of {temperature:.2f} takes its calibration error"
    return [(f"{text} from {before['ece']:.1%} to {after['ece']:.1%}, on the half that it was not fitted on.", "note")]


def _length_finding(suite: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found = suite.get("length") or {}
    right, wrong = found.get("accuracy_longer_right") or {}, found.get("accuracy_longer_wrong") or {}
    if right.get("value") is None or wrong.get("value") is None:
        return []
    gap = right["value"] - wrong["value"]
    apart = right["interval"][0] > wrong["interval"][1] or wrong["interval"][0] > right["interval"][1]
    if abs(gap) < _MUCH_LENGTH or not apart:
        return []
    way = "longer" if gap > 0 else "shorter"
    return [
        (
            f"Rewards follow length: the model leans to {way} responses. It is right in {right['value']:.1%} where the "
            f"better response is longer, and in {wrong['value']:.1%} where it is shorter.",
            "warning",
        )
    ]
