"""Typed results of an evaluation, and the folder that holds them; free of torch."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from plaudit.data.parse import kind_of
from plaudit.data.report import KindCount
from plaudit.errors import ConfigError
from plaudit.evaluation.table import by_row, read_tables, write_tables
from plaudit.files import write_atomically
from plaudit.model.calibration import RewardCalibration

FORMAT, VERSION = "plaudit evaluation", 1
RESULTS, TABLE, PAGE = "evaluation.json", "rewards.parquet", "evaluation.md"
LEVEL = 0.05
"""A difference with a larger p-value is not called real."""

IntervalMethod: TypeAlias = Literal["wilson", "bootstrap"]
PValueMethod: TypeAlias = Literal["mcnemar-exact", "sign-flip-exact", "sign-flip"]
LengthUnit: TypeAlias = Literal["tokens", "characters"]
# Type in a dataclass -> type in JSON; others are dataclasses, or tuples with names.
_PLAIN: dict[Any, type] = {Mapping: dict, dict: dict, tuple: list, list: list, Any: object, Literal: str}
_PLAIN |= {kind: kind for kind in (str, bool, int, float)}


class Interval(NamedTuple):
    """A 95% confidence interval."""

    low: float
    high: float


# ---- statistics --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Proportion:
    """A share from 0 to 1 with its 95% interval; of nothing the value is None and the interval (0, 1)."""

    value: float | None
    n: int
    interval: Interval
    method: IntervalMethod = "wilson"  # the bootstrap over prompts where a prompt counts more than once


@dataclass(frozen=True)
class PairStatistics:
    """Accuracy and margins over all comparisons: pairs of responses of a row that the data does not call equal."""

    comparisons: int
    prompts: int
    accuracy: Proportion  # equal rewards are not right, as in training and in RewardBench
    tie_rate: float | None  # share of comparisons with equal rewards
    accuracy_ties_half: float | None
    margin: float | None  # mean reward of the better response minus that of the worse one
    margin_interval: Interval | None
    margin_median: float | None
    data_ties: int  # pairs of responses that the data calls equal; they count nowhere above


@dataclass(frozen=True)
class RankingStatistics:
    """Agreement with rows that rank several responses, at least two of them differently."""

    rankings: int
    best_of_n: float  # mean chance that the response with the highest reward is one of the best
    best_of_n_chance: float  # the same for random rewards
    best_of_n_interval: Interval | None
    kendall_tau: float  # mean tau-b of the rows; 0 for a row of equal rewards
    kendall_tau_interval: Interval | None
    spearman: float  # mean correlation of the rows; 0 for a row of equal rewards
    spearman_interval: Interval | None


@dataclass(frozen=True)
class PointwiseStatistics:
    """Agreement with labels (accuracy, auc) or ratings (correlations, mse) of single responses."""

    responses: int
    accuracy: Proportion | None = None  # share of rewards on the right side of zero, as in training
    auc: float | None = None
    pearson: float | None = None
    spearman: float | None = None
    mse: float | None = None


@dataclass(frozen=True)
class Statistics:
    """Statistics of a set of rows; None for kinds of rows that it does not have."""

    rows: int
    pairs: PairStatistics | None = None
    rankings: RankingStatistics | None = None
    labels: PointwiseStatistics | None = None
    ratings: PointwiseStatistics | None = None

    @property
    def accuracy(self) -> Proportion | None:
        """Share of comparisons (or else of labels) that the model is right about; None where there are none."""
        if self.pairs is not None:
            return self.pairs.accuracy
        return None if self.labels is None else self.labels.accuracy


@dataclass(frozen=True)
class BestOfNPoint:
    """Mean gold score of one response among n: picked by reward, by the gold score itself, or at random."""

    n: int
    picked: float
    interval: Interval | None  # of `picked`
    oracle: float
    random: float


@dataclass(frozen=True)
class BestOfNCurve:
    """Gain from picking the best of n responses, over the same rows at every n."""

    points: tuple[BestOfNPoint, ...]
    rows: int
    rows_too_short: int  # rows with a gold score, but fewer responses than the largest n
    rows_without_gold: int


@dataclass(frozen=True)
class ReliabilityBin:
    """Accuracy of the comparisons with a confidence in (low, high]."""

    low: float
    high: float
    n: int
    confidence: float | None  # mean of the bin
    accuracy: float | None
    interval: Interval


@dataclass(frozen=True)
class CalibrationScores:
    """Quality of P(better) = sigmoid(margin / temperature)."""

    n: int
    temperature: float
    ece: float  # expected calibration error in bins of equal width
    ece_mass: float  # the same in bins of equal mass
    brier: float  # 0.25 for always predicting one half
    log_loss: float  # in nats; 0.693 for always predicting one half
    curve: tuple[ReliabilityBin, ...]
    curve_mass: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class Calibration:
    """Calibration of all comparisons, and of one half of the prompts before and after a temperature is applied."""

    scores: CalibrationScores
    temperature: float | None = None  # fitted on the other half; None with too few prompts or margins that are all 0
    at_bound: bool = False  # no temperature fits: the margins are all right, or no better than none
    before: CalibrationScores | None = None
    after: CalibrationScores | None = None


# ---- biases ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Correlation:
    """Correlation of rewards with another number of the responses."""

    pearson: float | None
    pearson_interval: Interval | None
    spearman: float | None
    within: float | None  # Pearson's, after the mean over the responses to the same prompt is subtracted
    within_interval: Interval | None


@dataclass(frozen=True)
class LengthControlled:
    """Accuracy predicted for comparisons of equally long responses."""

    accuracy: float
    interval: Interval | None
    length_effect: float  # above 0: right more often where the better response is longer
    n: int


@dataclass(frozen=True)
class LengthBin:
    """Accuracy of comparisons with a length difference (better minus worse) in (low, high]."""

    low: float
    high: float
    accuracy: Proportion


@dataclass(frozen=True)
class LengthBias:
    """How rewards follow the length of responses."""

    unit: LengthUnit
    correlation: Correlation
    longer_right: Proportion  # the longer response is the better one: what always picking it would reach
    longer_preferred: Proportion  # the longer response has the higher reward
    accuracy_longer_right: Proportion
    accuracy_longer_wrong: Proportion
    balanced_accuracy: float | None  # mean of these two; 0.5 for always picking the longer response
    controlled: LengthControlled | None
    bins: tuple[LengthBin, ...]


@dataclass(frozen=True)
class FormatBias:
    """How rewards follow one feature of Markdown, among comparisons whose responses differ in it."""

    feature: str
    share: float  # of the responses that have any of it
    correlation: Correlation
    more_right: Proportion  # the response with more of it is the better one
    more_preferred: Proportion  # the response with more of it has the higher reward


# ---- suites ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """Outcome of one sanity check."""

    name: str
    passed: bool
    message: str
    value: float | None = None  # what was measured
    tolerance: float | None = None
    rows: tuple[int, ...] = ()  # the first rows that fail it


@dataclass(frozen=True)
class Mistake:
    """A row on which a model is wrong. Of a single response, only `better` or `worse` is set."""

    row: int  # number in its source
    id: str
    source: str
    kind: str  # "comparison" or "label"
    margin: float  # below 0; of a single response how far its reward is on the wrong side of zero
    confidence: float  # probability that the model gives to its wrong opinion
    prompt: str
    better: str | None
    worse: str | None
    better_reward: float | None
    worse_reward: float | None
    better_tokens: int | None = None
    worse_tokens: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


def shortened(text: str, longest: int = 4000) -> str:
    """Returns a text without its middle if it is longer than `longest` characters.

    >>> shortened("abcdefghijklmnop", 11)
    'abc […] nop'
    """
    if len(text) <= longest:
        return text
    half = (longest - len(" […] ")) // 2
    return text[:half] + " […] " + text[len(text) - half :]


@dataclass(frozen=True)
class Histogram:
    """Counts of rewards of better and of worse responses between edges."""

    edges: tuple[float, ...]
    better: tuple[int, ...]
    worse: tuple[int, ...]


@dataclass(frozen=True)
class Margins:
    """Counts of margins between edges."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class SliceResult:
    """Score of one slice of a suite, by the suite's rule."""

    name: str
    n: int
    score: float
    interval: Interval | None
    margin: float | None
    group: str = ""  # the larger part of the suite that it counts in


@dataclass(frozen=True)
class SuiteResult:
    """Score of a suite by its own rule, from 0 to 1."""

    suite: str
    score: float
    rows: int
    slices: tuple[SliceResult, ...]
    scores: Mapping[str, float]  # between slices and headline, such as sections
    rule: str
    reference: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SuiteEvaluation:
    """One model on one suite."""

    SAVED_PROPERTIES: ClassVar = ("responses_per_second",)

    name: str
    suite: str  # whose rule is applied
    title: str
    sources: tuple[str, ...]
    rows_in_source: int
    rows_left_out: int  # not drawn, with `max_rows`
    rows: int  # scored
    responses: int
    dropped: Mapping[str, KindCount]  # by kind, as in `plaudit.data.report`
    seconds: float  # of scoring, without checks
    result: SuiteResult
    statistics: Statistics
    slices: Mapping[str, Mapping[str, Statistics]] = field(default_factory=dict)  # column -> value -> statistics
    calibration: Calibration | None = None
    length: LengthBias | None = None
    format: tuple[FormatBias, ...] = ()
    checks: tuple[Check, ...] = ()
    best_of_n: BestOfNCurve | None = None
    mistakes: tuple[Mistake, ...] = ()  # the most confident ones
    histogram: Histogram | None = None
    margins: Margins | None = None
    points: tuple[tuple[int, float, str], ...] = ()  # length, reward and quality of some responses
    notes: tuple[str, ...] = ()
    fingerprint: str = ""  # of model, rows and settings; empty for a model in memory
    table: pa.Table | None = field(default=None, repr=False, compare=False)  # the scored responses

    @property
    def score(self) -> float:
        """The suite's headline number, from 0 to 1."""
        return self.result.score

    @property
    def accuracy(self) -> Proportion | None:
        """Share of comparisons (or else of labels) that the model is right about; None where there are none."""
        return self.statistics.accuracy

    @property
    def rewards(self) -> dict[tuple[str, int], tuple[float, ...]]:
        """Rewards of the responses of each scored row, by its source and its number there."""
        return {} if self.table is None else by_row(self.table)

    @property
    def responses_per_second(self) -> float | None:
        """Speed of scoring, without checks."""
        return self.responses / self.seconds if self.seconds else None


@dataclass(frozen=True)
class ModelEvaluation:
    """One model on all suites."""

    name: str  # its folder or id; no two models have the same
    architecture: str
    parameters: int
    dtype: str
    device: str
    batch_layout: str
    batch_layout_reason: str
    max_length: int | None
    adapter: bool
    calibration: RewardCalibration | None = None  # applied to its rewards
    suites: tuple[SuiteEvaluation, ...] = ()

    def __getitem__(self, suite: str) -> SuiteEvaluation:
        """Results on a suite, by its name here; `KeyError` names the suites that there are."""
        for evaluated in self.suites:
            if evaluated.name == suite:
                return evaluated
        raise KeyError(f"{suite}: the suites are {', '.join(evaluated.name for evaluated in self.suites)}")


# ---- comparisons -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Two models on the same comparisons (or rows)."""

    SAVED_PROPERTIES: ClassVar = ("real", "verdict")

    names: tuple[str, str]
    n: int
    prompts: int
    scores: tuple[float, float]  # mean outcome of each model, such as its accuracy
    difference: float  # the first minus the second
    interval: Interval | None  # 95% bootstrap over prompts; None with fewer than two
    p_value: float
    p_adjusted: float  # after Holm's correction over slices; equal to `p_value` for a single test
    method: PValueMethod
    only_first: int  # only the first model is right
    only_second: int

    @property
    def real(self) -> bool:
        """Whether the difference is called real: p below :data:`LEVEL`, and an interval without 0."""
        apart = self.interval is not None and (self.interval.low > 0 or self.interval.high < 0)
        return apart and self.p_adjusted < LEVEL

    @property
    def verdict(self) -> str:
        """The outcome in one sentence."""
        first, second = self.names
        sign = -1 if self.real and self.difference < 0 else 1
        low, high = sorted(100 * sign * bound for bound in self.interval) if self.interval else (None, None)
        bounds = "" if low is None or high is None else f" (95% {low:.1f} to {high:.1f})"
        size, p = 100 * sign * self.difference, self.p_adjusted
        chance = "p < 0.0001" if p < 0.0001 else f"p = {p:.4f}".rstrip("0") if p < 0.001 else f"p = {p:.2g}"
        if not self.real:
            return f"no difference shown: {first} minus {second} is {size:+.1f} points{bounds}, {chance}"
        better, worse = (second, first) if sign < 0 else (first, second)
        return f"{better} is better than {worse} by {size:.1f} points{bounds}, {chance}"


@dataclass(frozen=True)
class ModelComparison:
    """Two models on one suite, row by row."""

    models: tuple[str, str]
    suite: str
    rows: int  # scored by both
    left_out: int  # scored by only one of them
    overall: Difference
    slices: Mapping[str, Mapping[str, Difference]]  # column -> value -> difference
    baseline: bool = False  # the second is not a model, but a bag of words

    @property
    def verdict(self) -> str:
        """The outcome in one sentence."""
        return self.overall.verdict

    @property
    def real(self) -> bool:
        """Whether the difference is called real."""
        return self.overall.real


# ---- everything, and its folder ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """Results of `plaudit.evaluate`. Indexed by the name of a suite, it gives the results of the first model."""

    models: tuple[ModelEvaluation, ...]
    comparisons: tuple[ModelComparison, ...] = ()  # of the first model with each other one
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""  # in UTC
    seconds: float = 0.0
    complete: bool = True  # whether all suites are there

    @property
    def suites(self) -> tuple[SuiteEvaluation, ...]:
        """Results of the first model."""
        return self.models[0].suites

    def __getitem__(self, suite: str) -> SuiteEvaluation:
        return self.models[0][suite]

    def to_dict(self) -> dict[str, Any]:
        """Returns the results as plain values, for JSON; without single rows."""
        return {"format": FORMAT, "version": VERSION, **to_plain(self)}

    def save(self, folder: str | Path) -> Path:
        """Writes `evaluation.json` and `rewards.parquet`, each whole or not at all, into a folder, and returns it."""
        folder = Path(folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        # The table first: whoever finds results finds their rewards.
        write_tables(
            folder / TABLE, {(model.name, suite.name): suite.table for model in self.models for suite in model.suites}
        )
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(folder / RESULTS, text + "\n")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Evaluation:
        """Read the results that `save` wrote.

        Args:
            folder: The folder, or the file `evaluation.json` in it.

        Raises:
            ConfigError: There is no evaluation, it cannot be read, or it is of another version.
        """
        path = Path(folder).expanduser()
        path = path if path.suffix == ".json" else path / RESULTS
        fix = "Pass a folder that `plaudit eval --output FOLDER` wrote."
        again = "Write it again with `plaudit eval --overwrite`."
        if not path.is_file():
            raise ConfigError(f"there is no evaluation in {str(folder)!r}", fix=fix)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            tables = read_tables(path.with_name(TABLE))
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise ConfigError(f"{str(path)!r} cannot be read ({type(error).__name__}: {error})", fix=fix) from error
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ConfigError(f"{str(path)!r} is not an evaluation", fix=fix)
        if values.get("version") != VERSION:
            message = f"{str(path)!r} is an evaluation of version {values.get('version')!r}, not {VERSION}"
            raise ConfigError(message, fix=again)
        try:
            evaluation: Evaluation = from_plain(cls, values)
        except ConfigError as error:
            message = f"`{error.field}` {error.message}, in {str(path)!r}"
            raise ConfigError(message, field=error.field, fix=again) from error
        models = []
        for model in evaluation.models:
            suites = (replace(suite, table=tables.get((model.name, suite.name))) for suite in model.suites)
            models.append(replace(model, suites=tuple(suites)))
        return replace(evaluation, models=tuple(models))


def to_plain(value: Any) -> Any:
    """Turns dataclasses, tuples and NumPy numbers into values for JSON; numbers that are not finite become None.

    Of a dataclass, fields without repr are left out, and the properties in its `SAVED_PROPERTIES` added.

    >>> to_plain({"a": (1, np.float64(0.5), float("nan"))})
    {'a': [1, 0.5, None]}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [
            *(entry.name for entry in dataclasses.fields(value) if entry.repr),
            *getattr(value, "SAVED_PROPERTIES", ()),
        ]
        return {name: to_plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(name): to_plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return to_plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def from_plain(hint: Any, values: Any, path: str = "") -> Any:
    """Rebuilds a value of a type from plain values; keys that a dataclass does not know are ignored.

    A missing key, or a value of another type, raises `ConfigError` that names the field; `path` is that of the value.

    >>> from_plain(Check, {"name": "padding", "passed": True, "message": "Yes.", "rows": [1], "later": 0}).rows
    (1,)
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        choice = next(choice for choice in arguments if choice is not type(None))
        return None if values is None else from_plain(choice, values, path)
    plain = _PLAIN.get(origin or hint, dict if dataclasses.is_dataclass(hint) else list)
    if plain is object or (plain is float and values is None):  # a number that is not finite is null
        return values
    accepted: Any = (int, float) if plain is float else plain
    if not isinstance(values, accepted):
        wanted = {int: "a whole number", float: "a number"}.get(plain) or kind_of(plain())
        raise ConfigError(f"is {kind_of(values)}, not {wanted}", field=path)
    if dataclasses.is_dataclass(hint):
        hints, arguments_by_name = typing.get_type_hints(hint), {}
        for entry in dataclasses.fields(hint):
            inside = f"{path}.{entry.name}" if path else entry.name
            if entry.name in values:
                arguments_by_name[entry.name] = from_plain(hints[entry.name], values[entry.name], inside)
            elif entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
                raise ConfigError("is missing", field=inside)
        return hint(**arguments_by_name)  # type: ignore[operator]
    if plain is dict:
        return {name: from_plain(arguments[1], value, f"{path}.{name}") for name, value in values.items()}
    if plain is not list:
        return values
    hints_of = arguments or tuple(typing.get_type_hints(hint).values())  # of a tuple, or of one with names
    if origin is list or hints_of[1:] == (...,):
        hints_of = hints_of[:1] * len(values)
    if len(hints_of) != len(values):
        raise ConfigError(f"has {len(values)} values, not {len(hints_of)}", field=path)
    items = zip(hints_of, values, strict=True)
    made = [from_plain(item, value, f"{path}[{index}]") for index, (item, value) in enumerate(items)]
    return made if origin is list else tuple(made) if origin is tuple else hint(*made)
