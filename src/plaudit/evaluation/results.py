"""What an evaluation says: of each model on each suite, and of models against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from plaudit.evaluation.best_of_n import BestOfNCurve
from plaudit.evaluation.bias import FormatBias, LengthBias
from plaudit.evaluation.calibration import Calibration
from plaudit.evaluation.compare import Difference
from plaudit.evaluation.mistakes import Histogram, Margins, Mistake
from plaudit.evaluation.plain import from_plain, to_plain
from plaudit.evaluation.row_scoring import Dropped
from plaudit.evaluation.sanity import Check
from plaudit.evaluation.scored import ScoredSet
from plaudit.evaluation.statistics import Proportion, Statistics
from plaudit.evaluation.suites.base import SuiteResult
from plaudit.model.calibration import RewardCalibration

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
        goodness: How good each is by the data, higher is better.
        tokens: Tokens of each, without prompt and template.
        columns: Values of the columns that were sliced by.
    """

    row: int
    id: str
    source: str
    form: str
    rewards: tuple[float, ...]
    goodness: tuple[float, ...]
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
        """Share of comparisons (or else of thumbs) that the model is right about; None where there are none."""
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
        from plaudit.evaluation.page import markdown_page

        return markdown_page(self)

    def save(self, folder: str | Path) -> Path:
        """Write `evaluation.json`, `evaluation.md` and `rewards.jsonl`, each whole or not at all.

        Args:
            folder: Where; made if it is not there.

        Returns:
            The folder.
        """
        from plaudit.evaluation.storage import save

        return save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Evaluation:
        """Read what `save` wrote.

        Args:
            folder: The folder, or the file `evaluation.json` in it.

        Raises:
            ConfigError: There is no evaluation there, or it cannot be read.
        """
        from plaudit.evaluation.storage import load

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
            form=row.form,
            rewards=row.rewards,
            goodness=row.goodness,
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
