"""`evaluate`: reward models on suites, suite by suite, what is reached always on disk."""

from __future__ import annotations

import contextlib
import datetime
import gc
import hashlib
import json
import logging
import platform
import random
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from torch import nn
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from plaudit.doctor.shortcuts import BagOfWords
from plaudit.errors import ConfigError, DataError
from plaudit.evaluation.bias import format_bias, length_bias
from plaudit.evaluation.checks import sanity_checks
from plaudit.evaluation.compare import compare
from plaudit.evaluation.judge import confident_mistakes, length_points, margin_histogram, reward_histogram
from plaudit.evaluation.results import (
    PAGE,
    RESULTS,
    Calibration,
    Difference,
    Evaluation,
    ModelComparison,
    ModelEvaluation,
    SuiteEvaluation,
    SuiteResult,
)
from plaudit.evaluation.row_scoring import OnBroken, Overlong, Scoring, ScoringSettings, as_it_was, score_rows
from plaudit.evaluation.stats import best_of_n_curve, by_slice, calibrate, statistics_of
from plaudit.evaluation.suites.base import Suite, compare_results
from plaudit.evaluation.suites.preferences import Preferences
from plaudit.evaluation.suites.registry import LoadedSuite, Rows, Suites, SuiteSource, resolve_suites
from plaudit.evaluation.table import SCHEMA, ScoredSet, rewards_by_row
from plaudit.inference.reward_model import RewardModel
from plaudit.model.calibration import FILE_NAME as CALIBRATION_FILE
from plaudit.model.peft import base_model_of, is_peft_model
from plaudit.report.render import evaluation_page
from plaudit.schema import comparisons_of
from plaudit.version import __version__

MOST_COMPARISONS = 50_000
_MOST_OF_A_ROW = 8


class BagOfWordsBaseline:
    """A bag of words, fitted once and held against models on suites.

    Args:
        data: Preferences to fit it on: a file, a folder, a data set on the Hub (its split ``train``), or rows.
        seed: Decides what is drawn where there are very many comparisons.

    Raises:
        DataError: The data cannot be read, or are too few.
        ConfigError: There are no such data.
    """

    def __init__(self, data: str | PathLike[str] | Rows, *, seed: int = 0) -> None:
        source = resolve_suites([data])[0]
        better, worse, groups = _comparisons(source.load(), seed)
        try:
            self._model = BagOfWords.fit(better, worse, groups, seed=seed)
        except ValueError as error:
            raise DataError(
                f"is too little to fit a bag of words on ({error})",
                dataset=source.label,
                fix="Give it the preferences that the model was trained on.",
            ) from error
        self.name = f"bag of words ({source.label}, {self._model.comparisons:,} comparisons)"

    def scored(self, suite: LoadedSuite, places: Container[int]) -> ScoredSet:
        """Some rows of a suite with the rewards that the bag of words gives.

        Args:
            suite: The rows.
            places: Numbers of those that count.
        """
        rows = (row for row in suite.rows if row.row in places)
        return ScoredSet(row.scored(self._model.rewards(row.texts()).tolist()) for row in rows)


def _comparisons(suite: LoadedSuite, seed: int) -> tuple[list[str], list[str], list[int]]:
    """Better and worse texts and the number of the prompt of each comparison; some of them where there are many."""
    draw = random.Random(seed)
    found: list[tuple[str, str, str]] = []
    for row in suite.rows:
        texts = row.texts()
        scored = row.scored([0.0] * len(texts))
        pairs = comparisons_of(scored.ratings)
        for one, other in pairs if len(pairs) <= _MOST_OF_A_ROW else draw.sample(pairs, _MOST_OF_A_ROW):
            found.append((texts[one], texts[other], scored.cluster))
    if len(found) > MOST_COMPARISONS:
        found = draw.sample(found, MOST_COMPARISONS)
    groups = np.unique([cluster for *_, cluster in found], return_inverse=True)[1].tolist() if found else []
    return [one for one, *_ in found], [other for _, other, _ in found], groups


logger = logging.getLogger("plaudit")


@dataclass(frozen=True)
class EvaluationSettings:
    """How suites are evaluated.

    Attributes:
        scoring: How rows are scored.
        slices: Columns to slice by, where a suite has them.
        max_rows: Most rows of a suite, drawn at random (None: all).
        seed: Decides what is drawn.
        sanity_rows: Rows that are scored again to check that rewards depend on the texts only.
        mistakes: Most mistakes to keep.
    """

    scoring: ScoringSettings
    slices: tuple[str, ...] = ()
    max_rows: int | None = None
    seed: int = 0
    sanity_rows: int = 16
    mistakes: int = 10

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        own = {
            "slices": list(self.slices),
            "max_rows": self.max_rows,
            "seed": self.seed,
            "sanity_rows": self.sanity_rows,
            "mistakes": self.mistakes,
        }
        scoring = self.scoring
        return {**own, "max_length": scoring.max_length, "overlong": scoring.overlong, "errors": scoring.errors}


def evaluate_suite(
    model: RewardModel,
    source: SuiteSource,
    suite: LoadedSuite,
    settings: EvaluationSettings,
    *,
    fingerprint: str = "",
    done: Callable[[int], object] = lambda count: None,
) -> SuiteEvaluation:
    """Score a suite with a model, and say all there is to say.

    Args:
        model: The reward model.
        source: The suite.
        suite: Its rows.
        settings: How.
        fingerprint: Stands for model, rows and settings.
        done: Told how many rows are through, time and again.

    Raises:
        DataError: A row cannot be scored, or nothing is left to be judged.
    """
    start = time.perf_counter()
    scoring = score_rows(model, suite, settings.scoring, done=done)
    seconds = time.perf_counter() - start
    scored = ScoredSet(scoring.rows)
    if not len(scored):
        reasons = ", ".join(f"{one.count} {one.reason}" for one in scoring.dropped)
        fix = "Raise `max_length`, or cut long rows with `overlong`."
        raise DataError(f"has no row that could be scored ({reasons})", dataset=source.label, fix=fix)
    columns = suite.columns(settings.slices)
    temperature = model.calibration.temperature if model.calibration is not None else 1.0
    result = rule_of(source.suite, columns).score(scored)
    compared = len(scored.margin_P) > 0
    return SuiteEvaluation(
        name=source.label,
        suite=source.suite.name,
        title=source.suite.title,
        sources=tuple(suite.starts),
        rows_in_source=suite.total,
        rows_left_out=suite.total - len(suite.rows),
        rows=len(scored),
        responses=len(scored.rewards_N),
        dropped=scoring.dropped,
        seconds=seconds,
        result=result,
        statistics=statistics_of(scored, seed=settings.seed),
        slices=by_slice(scored, columns, seed=settings.seed),
        calibration=_calibration(scored, temperature, settings.seed),
        length=length_bias(scored, seed=settings.seed) if compared else None,
        format=format_bias(scored, seed=settings.seed) if compared else (),
        checks=sanity_checks(model, suite, scored, settings.scoring, rows=settings.sanity_rows, seed=settings.seed),
        best_of_n=best_of_n_curve(scored, seed=settings.seed),
        mistakes=confident_mistakes(scored, suite, most=settings.mistakes, temperature=temperature),
        histogram=reward_histogram(scored),
        margins=margin_histogram(scored),
        points=length_points(scored, seed=settings.seed),
        notes=_notes(scoring, suite, result, [name for name in settings.slices if name not in columns]),
        fingerprint=fingerprint,
        table=table_of(scored, suite),
    )


def say_dropped(found: SuiteEvaluation) -> None:
    """Log which rows were left out.

    Args:
        found: The results.
    """
    for one in found.dropped:
        first = ", ".join(map(str, one.rows)) + (", ..." if one.count > len(one.rows) else "")
        logger.warning("%s: %d rows are left out: %s (rows %s).", found.name, one.count, one.reason, first)


def rule_of(suite: Suite, columns: Sequence[str]) -> Suite:
    """The suite, which slices by some columns if it has no slices of its own.

    Args:
        suite: It.
        columns: The columns.
    """
    return Preferences(columns) if isinstance(suite, Preferences) else suite


def table_of(scored: ScoredSet, suite: LoadedSuite) -> pa.Table:
    """Returns the scored responses as a table."""
    rows = {row.row: row for row in suite.rows}
    lines: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for row in scored:
        read, tokens = rows[row.row], row.tokens or [None] * len(row.rewards)
        for index, (reward, count) in enumerate(zip(row.rewards, tokens, strict=True)):
            line = (read.source, suite.number_in_source(read), row.id, index, reward, count, "", 0, None)
            for name, value in zip(SCHEMA.names, line, strict=True):
                lines[name].append(value)
    return pa.table(lines, schema=SCHEMA)


def joined(suite: LoadedSuite, table: pa.Table) -> ScoredSet:
    """Joins the rows of a suite with a table of their rewards."""
    rewards = rewards_by_row(table)
    keys = ((row, (row.source, suite.number_in_source(row))) for row in suite.rows)
    return ScoredSet(replace(row.scored(rewards[key]), texts=None) for row, key in keys if key in rewards)


def compare_models(
    names: tuple[str, str],
    source: SuiteSource,
    suite: LoadedSuite,
    first: SuiteEvaluation,
    second: SuiteEvaluation,
    settings: EvaluationSettings,
) -> ModelComparison:
    """Compare two models on the rows of a suite that both have scored.

    Args:
        names: Of the models.
        source: The suite.
        first: Results of the first model.
        second: Results of the second.
        settings: How they were evaluated.
    """
    one, other = (joined(suite, found.table) for found in (first, second))
    common = {row.row for row in one} & {row.row for row in other}
    left_out = len({row.row for row in one} | {row.row for row in other}) - len(common)
    one, other = (part.where(lambda row: row.row in common) for part in (one, other))
    columns = [name for name in settings.slices if name in first.slices]
    overall, slices = _differences(names, source.suite, one, other, columns, settings.seed)
    return ModelComparison(names, source.label, len(common), left_out, overall, slices)


def compare_with_baseline(
    name: str,
    baseline: BagOfWordsBaseline,
    source: SuiteSource,
    suite: LoadedSuite,
    found: SuiteEvaluation,
    settings: EvaluationSettings,
) -> ModelComparison:
    """Hold a model against a bag of words on the rows of a suite that the model has scored.

    Args:
        name: Of the model.
        baseline: The bag of words.
        source: The suite.
        suite: Its rows.
        found: Results of the model.
        settings: How it was evaluated.
    """
    own = joined(suite, found.table)
    other = baseline.scored(suite, {row.row for row in own})
    names = (name, baseline.name)
    columns = [column for column in settings.slices if column in found.slices]
    overall, slices = _differences(names, source.suite, own, other, columns, settings.seed)
    return ModelComparison(names, source.label, len(own), 0, overall, slices, baseline=True)


def _differences(
    names: tuple[str, str], suite: Suite, one: ScoredSet, other: ScoredSet, columns: Sequence[str], seed: int
) -> tuple[Difference, dict[str, Mapping[str, Difference]]]:
    """Over all rows by the rule of the suite, and by slice."""
    rule = rule_of(suite, ())
    found = compare_results(rule.score(one), rule.score(other), names=names)
    slices = dict(found.slices) if not isinstance(rule, Preferences) else {}
    if columns and len(one.margin_P):
        slices |= dict(compare(one, other, names=names, columns=columns, seed=seed).slices)
    return found.overall, slices


def _calibration(scored: ScoredSet, temperature: float, seed: int) -> Calibration | None:
    if temperature == 1.0:
        return calibrate(scored, seed=seed)
    scaled = (replace(row, rewards=tuple(reward / temperature for reward in row.rewards)) for row in scored)
    return calibrate(ScoredSet(scaled), seed=seed)


def _notes(scoring: Scoring, suite: LoadedSuite, result: SuiteResult, missing: Sequence[str]) -> tuple[str, ...]:
    notes = [f"{one.count} rows are left out: {one.reason}." for one in scoring.dropped]
    if suite.total > len(suite.rows):
        notes.append(
            f"{len(suite.rows)} of {suite.total} rows, drawn at random: not the published score, and less certain."
        )
    notes += [f"No column `{name}` to slice by." for name in missing]
    return (*notes, *scoring.notes, *result.notes)


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
        found = Evaluation.load(folder)
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
                    return found if found.table is not None and len(found.rewards) == found.rows else None
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


ModelLike: TypeAlias = RewardModel | nn.Module | str | PathLike[str]
"""A loaded reward model, its folder, or its id on the Hub."""


def evaluate(
    model: ModelLike,
    suites: Suites,
    *,
    slices: Sequence[str] | str = (),
    compare_with: ModelLike | Sequence[ModelLike] | None = None,
    bag_of_words: str | PathLike[str] | Rows | None = None,
    max_rows: int | None = None,
    seed: int = 0,
    output: str | PathLike[str] | None = None,
    overwrite: bool = False,
    max_length: int | None = None,
    overlong: Overlong = "drop",
    errors: OnBroken = "raise",
    split: str | None = None,
    sanity_rows: int = 16,
    mistakes: int = 10,
    progress: bool = False,
    **loading: Any,
) -> Evaluation:
    """Judge a reward model on benchmarks, or on any preferences.

    Args:
        model: A folder or an id on the Hub; a `RewardModel`; or a sequence-classification model with one output, whose
            tokenizer is then passed as `processing_class`. What is loaded already is not changed.
        suites: Names (``"rewardbench"``), names with their file (``"llmbar=FILE"``), files, data sets on the Hub, a
            `datasets.Dataset`, or a list of rows; several of them as a list, or by names of your own as a mapping.
        slices: Columns by whose values results are split, in the suites that have them.
        compare_with: Another model, or several, to hold the first one against, row by row.
        bag_of_words: The preferences that the model was trained on, as a file, a data set or rows: a bag of words is
            fitted on them, and each model held against it, row by row. A reward model that is no better has learned
            nothing that counting words would not tell.
        max_rows: Most rows of each suite, drawn at random.
        seed: Decides what is drawn.
        output: Folder to write results into: after each suite, so that nothing is lost when a later one fails. Called
            again with the same folder, suites that are there already are not scored again.
        overwrite: Forget what is in that folder.
        max_length: Most tokens of a response with its prompt; by default what the model was made to read.
        overlong: What happens to a row that has more: ``"drop"`` leaves it out and counts it; or ``"truncate_left"``,
            ``"truncate_right"``, ``"error"``.
        errors: ``"raise"`` at the first row that cannot be scored, or ``"drop"`` such rows, and count them.
        split: Split of files and data sets that are no suite of their own.
        sanity_rows: Rows of each suite that are scored three times more, to check that rewards depend on the texts
            only; 0 for none.
        mistakes: How many of the most confident mistakes to keep.
        progress: Show progress bars.
        loading: How models given by name are loaded, as for `RewardModel.from_pretrained`: ``device``, ``dtype``,
            ``batch_layout``, ``max_tokens_per_batch``, ``trust_remote_code`` and so on.

    Raises:
        ConfigError: There is no such suite, model or column.
        DataError: A suite cannot be read, or a row not be scored; the message names file and row.

    Results of suites before the one that fails are in `output`.
    """
    settings = EvaluationSettings(
        scoring=ScoringSettings(max_length, overlong, errors),
        slices=(slices,) if isinstance(slices, str) else tuple(slices),
        max_rows=max_rows,
        seed=seed,
        sanity_rows=sanity_rows,
        mistakes=mistakes,
    )
    if max_rows is not None and max_rows < 1:
        raise ConfigError(f"`max_rows` is {max_rows}", fix="Use at least 1, or None for all rows.")
    sources = resolve_suites(suites, split=split)
    models = _named_models([model, *_as_list(compare_with)])
    folder = None if output is None else Path(output)
    labels = [one.label for one in sources]
    previous = Previous.in_folder(folder, models=[name for name, _ in models], suites=labels, overwrite=overwrite)
    baseline = None if bag_of_words is None else BagOfWordsBaseline(bag_of_words, seed=seed)
    run = _Run(settings, sources, folder, previous, baseline, progress)
    for name, given in models:
        run.judge(name, given, loading)
    return run.finish()


def _as_list(models: Any) -> list[Any]:
    if models is None:
        return []
    return list(models) if isinstance(models, list | tuple) else [models]


def _named_models(models: Sequence[ModelLike]) -> list[tuple[str, ModelLike]]:
    """Models by names of which no two are alike."""
    named: dict[str, ModelLike] = {}
    for one in models:
        name = _name_of(one)
        taken, count = name, 1
        while taken in named:
            count += 1
            taken = f"{name} ({count})"
        named[taken] = one
    return list(named.items())


def _name_of(model: ModelLike) -> str:
    if isinstance(model, RewardModel):
        return model.name
    if isinstance(model, nn.Module):
        return str(getattr(base_model_of(model).config, "name_or_path", "") or type(model).__name__)
    name = str(model)
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        # Said before the models in front of it have been evaluated.
        raise ConfigError(f"there is no folder {name!r}", fix="Name the folder of a reward model, or its id.")
    return name


def _loaded(given: ModelLike, loading: Mapping[str, Any]) -> RewardModel:
    if isinstance(given, RewardModel):
        return given
    if not isinstance(given, nn.Module):
        return RewardModel.from_pretrained(str(given), **loading)
    options = dict(loading)
    tokenizer = options.pop("processing_class", None)
    if tokenizer is None:
        raise ConfigError(
            "the tokenizer of the model is not known", fix="Pass `processing_class`, or RewardModel(model, tokenizer)."
        )
    known = {name: value for name, value in options.items() if name in ("batch_layout", "max_tokens_per_batch")}
    return RewardModel(given, tokenizer, **known)


class _Run:
    """One call of :func:`evaluate`."""

    def __init__(
        self,
        settings: EvaluationSettings,
        sources: Sequence[SuiteSource],
        folder: Path | None,
        previous: Previous,
        baseline: BagOfWordsBaseline | None,
        progress: bool,
    ) -> None:
        self._settings, self._sources, self._folder = settings, sources, folder
        self._previous, self._baseline, self._progress = previous, baseline, progress
        self._started = time.perf_counter()
        self._created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._models: list[ModelEvaluation] = []
        self._comparisons: list[ModelComparison] = []

    def judge(self, name: str, given: ModelLike, loading: dict[str, Any]) -> None:
        """Take one model through all suites.

        Args:
            name: What it is called.
            given: The model, or where it is.
            loading: How it is loaded.
        """
        by_name = not isinstance(given, RewardModel | nn.Module)
        with contextlib.ExitStack() as stack:
            if isinstance(given, nn.Module):
                stack.enter_context(as_it_was(given))
            finished = False
            try:
                self._through_suites(name, _loaded(given, loading), by_name)
                finished = True
            finally:
                if not finished and self._folder is not None and self._models and self._models[0].suites:
                    logger.warning("Stopped early; what was reached is in %s.", self._folder / RESULTS)
        gc.collect()  # the next model should find the memory free

    def _through_suites(self, name: str, model: RewardModel, by_name: bool) -> None:
        self._models.append(_described(name, model))
        for source in self._sources:
            suite = self._load(source)
            more = {"settings": self._settings.to_dict(), "plaudit": __version__}
            print_ = fingerprint_of(model, suite, self._settings.scoring, more) if by_name else ""
            found = self._evaluated(name, model, source, suite, print_)
            # Described anew: the first batch may have shown that the model needs another layout.
            self._models[-1] = replace(_described(name, model), suites=self._models[-1].suites)
            self._add(source, suite, found)

    def _load(self, source: SuiteSource) -> LoadedSuite:
        suite = source.load()
        columns = suite.columns(self._settings.slices)
        missing = [name for name in self._settings.slices if name not in columns]
        if missing and len(self._sources) == 1:
            known = sorted({name for row in suite.rows for name in row.columns})
            raise ConfigError(
                f"{source.label} has no column `{missing[0]}` to slice by",
                fix=f"Slice by one of: {', '.join(known)}." if known else "There is no column to slice by.",
            )
        return suite.at_most(self._settings.max_rows, self._settings.seed)

    def _evaluated(
        self, name: str, model: RewardModel, source: SuiteSource, suite: LoadedSuite, fingerprint: str
    ) -> SuiteEvaluation:
        known = self._previous.find(name, source.label, fingerprint)
        if known is not None:
            logger.info("%s on %s: taken from %s, nothing has changed.", name, source.label, self._folder)
            return known
        about = f"{source.label}: {Path(name).name}"
        with tqdm(total=len(suite.rows), unit=" rows", desc=about, disable=not self._progress) as bar:
            found = evaluate_suite(model, source, suite, self._settings, fingerprint=fingerprint, done=bar.update)
        say_dropped(found)
        return found

    def _add(self, source: SuiteSource, suite: LoadedSuite, found: SuiteEvaluation) -> None:
        """Keep a result, hold it against the baseline and the first model, and write all there is."""
        own = self._models[-1]
        first = self._models[0]
        self._models[-1] = replace(own, suites=(*own.suites, found))
        if own is not first:
            names = (first.name, own.name)
            self._comparisons.append(compare_models(names, source, suite, first[source.label], found, self._settings))
        if self._baseline is not None:
            held = compare_with_baseline(own.name, self._baseline, source, suite, found, self._settings)
            self._comparisons.append(held)
        if self._folder is not None:
            _save(self._evaluation(complete=False), self._folder)

    def finish(self) -> Evaluation:
        """The whole result, written where that was asked for."""
        evaluation = self._evaluation(complete=True)
        if self._folder is not None:
            _save(evaluation, self._folder)
        return evaluation

    def _evaluation(self, *, complete: bool) -> Evaluation:
        return Evaluation(
            models=tuple(self._models),
            comparisons=tuple(self._comparisons),
            settings=self._settings.to_dict(),
            versions=dict(_versions()),
            created=self._created,
            seconds=time.perf_counter() - self._started,
            complete=complete,
        )


def _save(evaluation: Evaluation, folder: Path) -> None:
    folder = evaluation.save(folder)
    unfinished = folder / (PAGE + ".part")
    unfinished.write_text(evaluation_page(evaluation), encoding="utf-8")
    unfinished.replace(folder / PAGE)


def _described(name: str, model: RewardModel) -> ModelEvaluation:
    return ModelEvaluation(
        name=name,
        architecture=type(base_model_of(model.model)).__name__,
        parameters=sum(one.numel() for one in model.model.parameters()),
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        batch_layout=model.batch_layout,
        batch_layout_reason=model.batch_layout_reason,
        max_length=model.max_length,
        adapter=is_peft_model(model.model),
        calibration=model.calibration,
    )


def _versions() -> Iterator[tuple[str, str]]:
    yield "plaudit", __version__
    yield "python", platform.python_version()
    for package in ("torch", "transformers", "datasets", "numpy"):
        yield package, version(package)
