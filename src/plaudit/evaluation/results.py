"""What an evaluation says: of each model on each suite, and of models against each other."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar, get_args

import numpy as np

from plaudit.errors import ConfigError
from plaudit.evaluation.bias import FormatBias, LengthBias
from plaudit.evaluation.compare import Difference
from plaudit.evaluation.stats import BestOfNCurve, Calibration, Interval, Proportion, Statistics
from plaudit.evaluation.suites.base import SuiteResult
from plaudit.evaluation.suites.registry import LoadedSuite
from plaudit.evaluation.table import ScoredSet
from plaudit.inference.reward_model import RewardModel
from plaudit.model.calibration import FILE_NAME as CALIBRATION_FILE
from plaudit.model.calibration import RewardCalibration

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Turn dataclasses, tuples and NumPy numbers into what JSON knows; numbers that are not finite become None.

    Args:
        value: Any nesting of them.

    >>> to_plain({"a": (1, np.float64(0.5), float("nan"))})
    {'a': [1, 0.5, None]}
    """
    if hasattr(value, "to_dict") and not isinstance(value, type):
        return to_plain(value.to_dict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: to_plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): to_plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(one) for one in value]
    if isinstance(value, np.generic):
        return to_plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def from_plain(kind: type[T], value: Any) -> T:
    """Rebuild a dataclass from plain values; what the class does not know is left out.

    Args:
        kind: The class.
        value: What :func:`to_plain` made of one.

    >>> from_plain(Check, {"name": "padding", "passed": True, "message": "Yes.", "rows": [1], "later": 0}).rows
    (1,)
    """
    built: T = _rebuilt(kind, value)
    return built


def _rebuilt(hint: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if value is None or hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _rebuilt(next(one for one in arguments if one is not type(None)), value)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        known = {
            one.name: _rebuilt(hints[one.name], value[one.name])
            for one in dataclasses.fields(hint)
            if one.name in value
        }
        return hint(**known)  # type: ignore[operator]
    if origin is tuple:
        one_kind = arguments[1:] == (...,)
        return tuple(_rebuilt(arguments[0 if one_kind else place], one) for place, one in enumerate(value))
    if isinstance(hint, type) and issubclass(hint, tuple):
        return hint(*value)
    if isinstance(value, Mapping) and len(arguments) == 2:
        return {_key(arguments[0], name): _rebuilt(arguments[1], one) for name, one in value.items()}
    return value


def _key(hint: Any, name: str) -> Any:
    return int(name) if hint is int else name


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        name: Which check.
        passed: Whether it passed.
        message: One sentence.
        value: What was measured.
        tolerance: What was allowed.
        rows: The first rows that speak against it.
    """

    name: str
    passed: bool
    message: str
    value: float | None = None
    tolerance: float | None = None
    rows: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


Overlong: TypeAlias = Literal["drop", "truncate_left", "truncate_right", "error"]
"""What happens to a row with a response of more than ``max_length`` tokens."""
OnBroken: TypeAlias = Literal["raise", "drop"]
"""What happens to a row that cannot be scored, such as one that the chat template refuses."""


@dataclass(frozen=True)
class Dropped:
    """Rows that were left out.

    Attributes:
        reason: Why.
        count: How many.
        rows: Numbers of the first.
        example: What was said about the first.
    """

    reason: str
    count: int
    rows: tuple[int, ...] = ()
    example: str | None = None


@dataclass(frozen=True)
class ScoringSettings:
    """How rows are scored.

    Attributes:
        max_length: Most tokens of a response with its prompt (None: what the model was made to read).
        overlong: What happens to a row that has more.
        errors: What happens to a row that cannot be scored.
    """

    max_length: int | None = None
    overlong: Overlong = "drop"
    errors: OnBroken = "raise"

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("overlong", self.overlong, get_args(Overlong)),
            ("errors", self.errors, get_args(OnBroken)),
        ):
            if value not in choices:
                raise ConfigError(f"`{name}` is {value!r}", fix=f"Use one of: {', '.join(choices)}.")
        if self.max_length is not None and self.max_length < 1:
            raise ConfigError(f"`max_length` is {self.max_length}", fix="Use at least 1 token, or None.")

    def limit(self, model: RewardModel) -> int | None:
        """Most tokens of a response under a model.

        Args:
            model: It.
        """
        limits = [one for one in (self.max_length, model.max_length) if one is not None]
        return min(limits, default=None)


_LONGEST_OF_MISTAKES = 4000
_CUT = " […] "


@dataclass(frozen=True)
class Mistake:
    """A row that a model is wrong about.

    Attributes:
        row: Its number in its source, counted from 0.
        id: Its name in the source.
        source: Where it comes from.
        kind: Whether responses are compared, or one is good or bad.
        margin: Reward of the better response less that of the worse one; of a single response how far its reward is
            on the wrong side of zero. Below zero.
        confidence: Probability that the model gives to its opinion.
        prompt: What was asked.
        better: The better response; of a single one it, if it is good.
        worse: The worse response; of a single one it, if it is bad.
        better_reward: Its reward.
        worse_reward: Its reward.
        better_tokens: Its length.
        worse_tokens: Its length.
        columns: Short values of other columns.
    """

    row: int
    id: str
    source: str
    kind: str
    margin: float
    confidence: float
    prompt: str
    better: str | None
    worse: str | None
    better_reward: float | None
    worse_reward: float | None
    better_tokens: int | None = None
    worse_tokens: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Histogram:
    """Counts of rewards, or of margins, between edges.

    Attributes:
        edges: Where bins begin and end.
        better: Rewards of better responses in each bin.
        worse: Rewards of worse ones.
    """

    edges: tuple[float, ...]
    better: tuple[int, ...]
    worse: tuple[int, ...]


@dataclass(frozen=True)
class Margins:
    """Counts of margins between edges.

    Attributes:
        edges: Where bins begin and end.
        counts: Comparisons in each bin.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


def shortened(text: str, longest: int = _LONGEST_OF_MISTAKES) -> str:
    """A text, its middle cut out if it is very long.

    Args:
        text: The text.
        longest: Most characters.

    >>> shortened("abcdefghijklmnop", 11)
    'abc […] nop'
    """
    if len(text) <= longest:
        return text
    half = (longest - len(_CUT)) // 2
    return text[:half] + _CUT + text[len(text) - half :]


FORMAT, VERSION = "plaudit evaluation", 1


@dataclass(frozen=True)
class RowRewards:
    """Rewards of the responses of one row.

    Attributes:
        row: Its number in its source, counted from 0.
        id: Its name in the source.
        source: Where it comes from.
        form: In which form it says what is better.
        rewards: Reward of each response.
        ratings: How good each is by the data, higher is better.
        tokens: Tokens of each, without prompt and template.
        columns: Values of the columns that were sliced by.
    """

    row: int
    id: str
    source: str
    row_kind: str
    rewards: tuple[float, ...]
    ratings: tuple[float, ...]
    tokens: tuple[int, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SuiteEvaluation:
    """One model on one suite.

    Attributes:
        name: What the suite is called here.
        suite: Whose rule was applied.
        title: As that suite calls itself.
        sources: Where its rows come from.
        rows_in_source: Rows that were read.
        rows_left_out: Rows that were not drawn where only some were to be scored.
        rows: Rows that were scored.
        responses: Their responses.
        dropped: Rows that could not be scored, by reason.
        seconds: Time to score them, without checks.
        result: By the suite's own rule.
        statistics: Over all rows.
        slices: Column -> value -> statistics.
        calibration: Whether margins mean what they say; None without comparisons.
        length: How rewards follow length; None without comparisons.
        format: How rewards follow markdown.
        checks: Whether rewards depend on the texts only.
        best_of_n: What picking the best of n gains; None without gold scores.
        mistakes: The most confident ones.
        histogram: How rewards are spread.
        margins: How margins are spread.
        points: Length, reward and quality of some responses.
        notes: What the reader must know.
        fingerprint: Stands for model, rows and settings; empty where the model is only in memory.
        rewards: Of each row.
        scored: The rows without their texts; None of results that were loaded.
    """

    name: str
    suite: str
    title: str
    sources: tuple[str, ...]
    rows_in_source: int
    rows_left_out: int
    rows: int
    responses: int
    dropped: tuple[Dropped, ...]
    seconds: float
    result: SuiteResult
    statistics: Statistics
    slices: Mapping[str, Mapping[str, Statistics]] = field(default_factory=dict)
    calibration: Calibration | None = None
    length: LengthBias | None = None
    format: tuple[FormatBias, ...] = ()
    checks: tuple[Check, ...] = ()
    best_of_n: BestOfNCurve | None = None
    mistakes: tuple[Mistake, ...] = ()
    histogram: Histogram | None = None
    margins: Margins | None = None
    points: tuple[tuple[int, float, str], ...] = ()
    notes: tuple[str, ...] = ()
    fingerprint: str = ""
    rewards: tuple[RowRewards, ...] = field(default=(), repr=False)
    scored: ScoredSet | None = field(default=None, repr=False, compare=False)

    @property
    def score(self) -> float:
        """The suite's headline number, from 0 to 1."""
        return self.result.score

    @property
    def accuracy(self) -> Proportion | None:
        """Share of comparisons (or else of labels) that the model is right about; None where there are none."""
        if self.statistics.pairs is not None:
            return self.statistics.pairs.accuracy
        return None if self.statistics.labels is None else self.statistics.labels.accuracy

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON; without the rewards of single rows."""
        own = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("rewards", "scored")}
        pace = self.responses / self.seconds if self.seconds else None
        plain: dict[str, Any] = to_plain({**own, "responses_per_second": pace})
        return plain


@dataclass(frozen=True)
class ModelEvaluation:
    """One model.

    Attributes:
        name: Its folder or id; no two are called the same.
        architecture: Its class.
        parameters: How many it has.
        dtype: What it computes in below its head.
        device: Where.
        batch_layout: How batches were laid out.
        batch_layout_reason: Why so.
        max_length: Most tokens of a response with its prompt.
        adapter: Whether it is an adapter around another model.
        calibration: What was applied to its rewards.
        suites: Its results.
    """

    name: str
    architecture: str
    parameters: int
    dtype: str
    device: str
    batch_layout: str
    batch_layout_reason: str
    max_length: int | None
    adapter: bool
    calibration: RewardCalibration | None = None
    suites: tuple[SuiteEvaluation, ...] = ()

    def __getitem__(self, suite: str) -> SuiteEvaluation:
        return _named(self.suites, suite)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        plain: dict[str, Any] = to_plain(own)
        return plain


@dataclass(frozen=True)
class ModelComparison:
    """Two models on one suite, row by row.

    Attributes:
        models: Their names.
        suite: What the suite is called here.
        rows: Rows that both have scored.
        left_out: Rows that only one of them has.
        overall: The difference over these rows.
        slices: Column -> value -> difference.
        baseline: Whether the second is no model but what the first one must beat.
    """

    models: tuple[str, str]
    suite: str
    rows: int
    left_out: int
    overall: Difference
    slices: Mapping[str, Mapping[str, Difference]]
    baseline: bool = False

    @property
    def verdict(self) -> str:
        """The outcome in one sentence."""
        return self.overall.verdict

    @property
    def real(self) -> bool:
        """Whether the difference is called real."""
        return self.overall.real

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        plain: dict[str, Any] = to_plain({one.name: getattr(self, one.name) for one in fields(self)})
        return plain


@dataclass(frozen=True)
class Evaluation:
    """What `plaudit.evaluate` found.

    Indexed by the name of a suite, it gives the results of the first model.

    Attributes:
        models: The models, the first of which the others are compared with.
        comparisons: The comparisons.
        settings: How it was done.
        versions: Of the software.
        created: When, in UTC.
        seconds: How long it took.
        complete: Whether all suites are there.
    """

    models: tuple[ModelEvaluation, ...]
    comparisons: tuple[ModelComparison, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    seconds: float = 0.0
    complete: bool = True

    @property
    def suites(self) -> tuple[SuiteEvaluation, ...]:
        """Results of the first model."""
        return self.models[0].suites

    def __getitem__(self, suite: str) -> SuiteEvaluation:
        return self.models[0][suite]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON; without the rewards of single rows."""
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        plain: dict[str, Any] = to_plain({"format": FORMAT, "version": VERSION, **own})
        return plain

    def to_markdown(self) -> str:
        """A page for people."""

        return markdown_page(self)

    def save(self, folder: str | Path) -> Path:
        """Write `evaluation.json`, `evaluation.md` and `rewards.jsonl`, each whole or not at all.

        Args:
            folder: Where; made if it is not there.

        Returns:
            The folder.
        """

        return save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Evaluation:
        """Read what `save` wrote.

        Args:
            folder: The folder, or the file `evaluation.json` in it.

        Raises:
            ConfigError: There is no evaluation there, or it cannot be read.
        """

        return load(Path(folder))


def evaluation_from(values: Mapping[str, Any], rewards: Mapping[tuple[str, str], Sequence[RowRewards]]) -> Evaluation:
    """Rebuild an evaluation from plain values.

    Args:
        values: What `to_dict` gave.
        rewards: Model and suite -> rewards of its rows.
    """
    models = []
    for model in values["models"]:
        built = from_plain(ModelEvaluation, model)
        suites = (replace(one, rewards=tuple(rewards.get((built.name, one.name), ()))) for one in built.suites)
        models.append(replace(built, suites=tuple(suites)))
    comparisons = tuple(from_plain(ModelComparison, one) for one in values["comparisons"])
    rest = {name: values[name] for name in ("settings", "versions", "created", "seconds", "complete")}
    return Evaluation(tuple(models), comparisons, **rest)


def rewards_of(
    scored: ScoredSet, numbers: Mapping[int, tuple[int, str]], columns: Sequence[str]
) -> tuple[RowRewards, ...]:
    """Rewards of each row, to be written.

    Args:
        scored: The rows.
        numbers: Number of a row -> its number in its source, and the source.
        columns: Columns whose values are kept.
    """
    return tuple(
        RowRewards(
            row=numbers[row.row][0],
            id=row.id,
            source=numbers[row.row][1],
            row_kind=row.row_kind,
            rewards=row.rewards,
            ratings=row.ratings,
            tokens=row.tokens or (),
            columns={name: row.columns.get(name) for name in columns},
        )
        for row in scored
    )


def _named(suites: Sequence[SuiteEvaluation], name: str) -> SuiteEvaluation:
    found = next((one for one in suites if one.name == name), None)
    if found is None:
        raise KeyError(f"{name}: the suites are {', '.join(one.name for one in suites)}")
    return found


RESULTS, PAGE, REWARDS = "evaluation.json", "evaluation.md", "rewards.jsonl"


def save(evaluation: Evaluation, folder: Path) -> Path:
    """Write an evaluation, each file whole or not at all.

    Args:
        evaluation: It.
        folder: Where; made if it is not there.
    """
    folder = folder.expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    # The rewards first: whoever finds results finds their rewards.
    _write(folder / REWARDS, (json.dumps(line, ensure_ascii=False) + "\n" for line in _lines_of_storage(evaluation)))
    _write(folder / RESULTS, [json.dumps(evaluation.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"])
    _write(folder / PAGE, [evaluation.to_markdown()])
    return folder


def _lines_of_storage(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    for model in evaluation.models:
        for suite in model.suites:
            for row in suite.rewards:
                yield {"model": model.name, "suite": suite.name, **to_plain(asdict(row))}


def _write(path: Path, parts: Iterable[str]) -> None:
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("w", encoding="utf-8") as file:
        file.writelines(parts)
    unfinished.replace(path)


def load(folder: Path) -> Evaluation:
    """Read an evaluation.

    Args:
        folder: The folder, or the file `evaluation.json` in it.

    Raises:
        ConfigError: There is none, or it cannot be read.
    """
    path = folder.expanduser()
    path = path if path.suffix == ".json" else path / RESULTS
    fix = "Name a folder that `plaudit eval --output FOLDER` wrote."
    if not path.is_file():
        raise ConfigError(f"there is no evaluation in {str(folder)!r}", fix=fix)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or (values.get("format"), values.get("version")) != (FORMAT, VERSION):
            raise ConfigError(f"{path} is no evaluation of version {VERSION}", fix=fix)
        return evaluation_from(values, _read_rewards(path.with_name(REWARDS)))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}: {error})", fix=fix) from error


def _read_rewards(path: Path) -> dict[tuple[str, str], list[RowRewards]]:
    found: dict[tuple[str, str], list[RowRewards]] = {}
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            for line in file:
                values = json.loads(line)
                found.setdefault((values["model"], values["suite"]), []).append(from_plain(RowRewards, values))
    return found


class Previous:
    """What an earlier evaluation left in the same folder.

    Args:
        evaluation: It (None: there is none).
    """

    def __init__(self, evaluation: Evaluation | None = None) -> None:
        self._evaluation = evaluation

    @classmethod
    def in_folder(
        cls, folder: Path | None, *, models: Sequence[str], suites: Sequence[str], overwrite: bool
    ) -> Previous:
        """Look into a folder.

        Args:
            folder: It; None for none.
            models: Names of the models that will be evaluated.
            suites: Names of the suites.
            overwrite: Whether other results may be lost.

        Raises:
            ConfigError: The folder holds results that would be lost.
        """
        if folder is None or overwrite or not (folder.expanduser() / RESULTS).is_file():
            return cls()
        found = load(folder)
        lost = [
            f"{model.name} on {one.name}"
            for model in found.models
            for one in model.suites
            if model.name not in models or one.name not in suites
        ]
        if lost:
            raise ConfigError(
                f"{str(folder)!r} holds other results, which would be lost: {', '.join(lost[:3])}",
                fix="Name another folder, or allow it with `overwrite`.",
            )
        return cls(found)

    def find(self, model: str, suite: str, fingerprint: str) -> SuiteEvaluation | None:
        """Results that still hold; None if there are none.

        Args:
            model: Name of the model.
            suite: Name of the suite.
            fingerprint: Stands for model, rows and settings.
        """
        for one in self._evaluation.models if self._evaluation and fingerprint else ():
            for found in one.suites:
                if (one.name, found.name, found.fingerprint) == (model, suite, fingerprint):
                    return found if len(found.rewards) == found.rows else None
        return None


def fingerprint_of(model: RewardModel, suite: LoadedSuite, settings: ScoringSettings, more: Mapping[str, Any]) -> str:
    """A name for all that decides the results of a model on a suite; empty where that cannot be told.

    Args:
        model: The model, as it was loaded from its name.
        suite: The rows.
        settings: How they are scored.
        more: Further settings.
    """
    identity = _identity_of(model)
    if identity is None:
        return ""
    digest = hashlib.sha256()
    about = [identity, asdict(settings), settings.limit(model), model.calibration, str(model.dtype), more]
    digest.update(json.dumps(about, default=str, sort_keys=True).encode())
    for row in suite.rows:
        digest.update(json.dumps([row.row, row.source, row.raw, row.columns], default=str, sort_keys=True).encode())
    return digest.hexdigest()[:32]


def _identity_of(model: RewardModel) -> Any:
    """Files of a model's folder, or its commit on the Hub."""
    folder = Path(model.name).expanduser()
    if folder.is_dir():
        files = sorted(one for one in folder.iterdir() if one.is_file() and one.name != CALIBRATION_FILE)
        return [model.name, [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in files]]
    commit = getattr(model.model.config, "_commit_hash", None) if hasattr(model.model, "config") else None
    return [model.name, commit] if commit else None


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


def heading(suite: SuiteEvaluation) -> str:
    """What was evaluated, in one line.

    Args:
        suite: The results.
    """
    title = suite.name if suite.suite == "preferences" else f"{suite.name} ({suite.title})"
    of = f" of {suite.rows_in_source:,}" if suite.rows != suite.rows_in_source else ""
    return f"{title}: {suite.rows:,}{of} rows, {suite.responses:,} responses"


def table(suite: SuiteEvaluation) -> list[Cells]:
    """Score and accuracy, over all and by slice.

    Args:
        suite: The results.
    """
    result, pairs = suite.result, suite.statistics.pairs
    generic = suite.suite == "preferences"
    margin = None if pairs is None else pairs.margin
    whole = next((one.interval for one in result.slices if one.name == "all"), None)
    lines = [_cells("score", result.rows, result.score, whole, margin)]
    if pairs is not None and (not generic or suite.statistics.rankings is not None):
        lines.append(_of_proportion("accuracy over all pairs", pairs.accuracy, margin))
    if not generic:
        for name, value in result.scores.items():
            if name.lower() != "accuracy over all pairs":
                lines.append(_cells(name, None, value, None, None))
    for one in result.slices:
        if one.name != "all":
            lines.append(_cells(f"  {one.name}", one.n, one.score, one.interval, one.margin))
    for column, parts in suite.slices.items() if not generic else ():
        lines += [_of_statistics(f"  {column}={name}", part) for name, part in parts.items()]
    return lines


def _cells(name: str, n: int | None, score: float | None, interval: Interval | None, margin: float | None) -> Cells:
    return Cells(
        name,
        "" if n is None else f"{n:,}",
        "-" if score is None else f"{score:.1%}",
        "" if interval is None else f"{interval.low:.1%} to {interval.high:.1%}",
        "" if margin is None else f"{margin:+.2f}",
    )


def _of_proportion(name: str, share: Proportion, margin: float | None) -> Cells:
    return _cells(name, share.n, share.value, share.interval if share.n else None, margin)


def _of_statistics(name: str, found: Statistics) -> Cells:
    if found.pairs is not None:
        return _of_proportion(name, found.pairs.accuracy, found.pairs.margin)
    if found.labels is not None and found.labels.accuracy is not None:
        return _of_proportion(name, found.labels.accuracy, None)
    return _cells(name, found.rows, None, None, None)


def lines(suite: SuiteEvaluation) -> list[tuple[str, str]]:
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
    about = f"{model.architecture}{' with an adapter' if model.adapter else ''}, {model.parameters:,} parameters"
    layout = f"{model.batch_layout} layout ({model.batch_layout_reason})"
    return f"{about}, {model.dtype} on {model.device}, {layout}"


def verdicts(evaluation: Evaluation) -> list[tuple[str, str]]:
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


def markdown_page(evaluation: Evaluation) -> str:
    """Write the page.

    Args:
        evaluation: The results.
    """
    return "\n".join(_lines(evaluation)) + "\n"


def _lines(evaluation: Evaluation) -> Iterator[str]:
    yield "# Evaluation"
    if not evaluation.complete:
        yield from ("", "**Not complete: a later suite failed, or was interrupted.**")
    if evaluation.comparisons:
        yield from ("", "## Comparison", "")
        for name, verdict in verdicts(evaluation):
            indent = "  " if name.startswith(" ") else ""
            yield f"{indent}- {_plain(name.strip())}: {_plain(verdict)}"
    for model in evaluation.models:
        yield from ("", f"## {_plain(model.name)}", "", _plain(model_line(model)) + ".")
        if model.calibration is not None:
            one = model.calibration
            yield f"Rewards are calibrated: scale {one.scale:g}, shift {one.shift:g}, temperature {one.temperature:g}."
        for suite in model.suites:
            yield from _suite(suite)
    yield from ("", "## How", "")
    settings = ", ".join(f"{name} {value}" for name, value in evaluation.settings.items() if value not in (None, []))
    yield f"- Settings: {_plain(settings)}"
    yield "- Versions: " + ", ".join(f"{name} {value}" for name, value in evaluation.versions.items())
    yield f"- {evaluation.created}, {evaluation.seconds:.1f} s"


def _suite(suite: SuiteEvaluation) -> Iterator[str]:
    yield from ("", f"### {_plain(heading(suite))}", "", f"From {_plain(', '.join(suite.sources))}.", "")
    yield _row(HEADINGS)
    yield "|---|---:|---:|---|---:|"
    for cells in table(suite):
        yield _row(cells)
    yield ""
    for title, text in lines(suite):
        yield f"- {title}: {_plain(text)}"
    yield from ("", f"Score: {_plain(suite.result.rule)} Source: {_plain(suite.result.reference)}.")
    if suite.mistakes:
        yield from ("", "#### Most confident mistakes")
        for one in suite.mistakes[:_MISTAKES]:
            yield from _mistake(one)


def _row(cells: Cells) -> str:
    return "| " + " | ".join(_plain(cell.strip()).replace("|", "\\|") for cell in cells) + " |"


def _mistake(one: Mistake) -> Iterator[str]:
    yield from ("", f"Row {one.row} of {_plain(one.source)}: margin {one.margin:+.2f}, sure by {one.confidence:.0%}")
    for name, text in (("Prompt", one.prompt), ("Better", one.better), ("Worse", one.worse)):
        if text:
            fence = "`" * max(3, 1 + max((len(part) for part in _ticks(text)), default=0))
            yield from ("", f"{name}:", "", fence + "text", shortened(text, _LONGEST), fence)


def _ticks(text: str) -> list[str]:
    return "".join(letter if letter == "`" else " " for letter in text).split()


def _plain(text: str) -> str:
    """Text that Markdown shows as it is.

    >>> _plain("a_b *c* <d>")
    'a\\\\_b \\\\*c\\\\* &lt;d>'
    """
    for letter in "\\`*_[]":
        text = text.replace(letter, "\\" + letter)
    return text.replace("<", "&lt;")
