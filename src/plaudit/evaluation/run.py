"""`evaluate`: reward models on suites, with what is reached always on disk."""

from __future__ import annotations

import contextlib
import datetime
import gc
import hashlib
import json
import logging
import platform
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from torch import nn

from plaudit.doctor.shortcuts import BagOfWords
from plaudit.errors import ConfigError, DataError
from plaudit.evaluation.judge import EvaluationSettings, OnBroken, Overlong, compare_models, judge
from plaudit.evaluation.page import evaluation_page
from plaudit.evaluation.results import PAGE, RESULTS, Evaluation, ModelComparison, ModelEvaluation, SuiteEvaluation
from plaudit.evaluation.rewards import read_rewards, without_rewards
from plaudit.evaluation.score import evaluate_suite, log_dropped, model_for, unchanged, warnings_once
from plaudit.evaluation.suites.registry import LoadedSuite, Rows, Suites, SuiteSource, resolve_suites
from plaudit.evaluation.table import ScoredSet
from plaudit.files import write_atomically
from plaudit.inference.reward_model import RewardModel
from plaudit.model.calibration import FILE_NAME as CALIBRATION_FILE
from plaudit.model.peft import base_model_of, is_peft_model
from plaudit.schema import comparisons_of
from plaudit.version import __version__

logger = logging.getLogger("plaudit")
MOST_COMPARISONS = 50_000
_MOST_OF_A_ROW = 8
_CHUNKS = "chunks"
ModelLike: TypeAlias = RewardModel | nn.Module | str | PathLike[str]
"""A loaded reward model, its folder, or its id on the Hub."""


@warnings_once()
def evaluate(
    model: ModelLike | None = None,
    suites: Suites | None = None,
    *,
    rewards: str | PathLike[str] | None = None,
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
    schema: str = "auto",
    sanity_rows: int = 16,
    mistakes: int = 10,
    progress: bool = False,
    **loading: Any,
) -> Evaluation:
    """Judge a reward model, or rewards in a file, on benchmarks or on any preferences.

    Args:
        model: A folder or an id on the Hub; a `RewardModel`; or a sequence-classification model with one output, whose
            tokenizer is then passed as `processing_class`. A loaded model is left as it was.
        suites: Names (``"rewardbench"``), names with their file (``"llmbar=FILE"``), files, data sets on the Hub, a
            `datasets.Dataset`, or a list of rows; several of them as a list, or by names of your own as a mapping.
        rewards: A file with rewards that another program wrote beside the rows of the suite, as `plaudit score` does,
            in place of a model. Without `suites` its own rows are the suite.
        slices: Columns by whose values results are split, in the suites that have them.
        compare_with: Another model, or several, to compare the first one with, row by row.
        bag_of_words: The preferences that the model was trained on, as a file, a data set or rows: a bag of words is
            fitted on them, and each model compared with it, row by row.
        max_rows: Maximum number of rows of each suite, drawn at random.
        seed: Seed of all random draws.
        output: Folder for results, written after each suite. The same call again resumes: what has not changed is
            not scored again.
        overwrite: Replace the results in that folder.
        max_length: Maximum number of tokens of a response with its prompt; by default the model's context length.
        overlong: Treatment of a longer row: ``"drop"`` it and count it, ``"truncate_left"``, ``"truncate_right"``, or
            ``"error"``.
        errors: ``"raise"`` at the first row that cannot be scored, or ``"drop"`` such rows, and count them.
        split: Split of files and data sets that are not benchmarks.
        schema: Public schema by which such rows are read; ``"auto"`` finds it, ``"none"`` reads them as they are.
        sanity_rows: Rows of each suite that are scored three times more, to check that rewards depend on the texts
            only; 0 for none.
        mistakes: How many of the most confident mistakes to keep.
        progress: Show progress bars.
        loading: Options of `RewardModel.from_pretrained` for models given by name: ``device``, ``dtype``,
            ``batch_layout``, ``max_tokens_per_batch``, ``trust_remote_code`` and so on.

    Raises:
        ConfigError: There is no such suite, model or column.
        DataError: A suite or a file of rewards cannot be read, or a row cannot be scored; it names file and row.

    Results of suites before the one that fails are in `output`.
    """
    columns = (slices,) if isinstance(slices, str) else tuple(slices)
    settings = EvaluationSettings(columns, max_rows, seed, sanity_rows, mistakes, max_length, overlong, errors)
    _check_sources(model, suites, rewards, compare_with, loading)
    named = str(rewards) if suites is None and rewards is not None else suites or ()
    sources = resolve_suites(named, split=split, schema=schema)
    others: Any = compare_with if isinstance(compare_with, list | tuple) else [compare_with]
    given = [other for other in (model, *others) if other is not None]
    models: Mapping[str, ModelLike] = {str(rewards): str(rewards)} if rewards is not None else _named_models(given)
    folder = None if output is None else Path(output).expanduser()
    labels = [source.label for source in sources]
    previous = {} if overwrite or folder is None else _previous_results(folder, list(models), labels)
    words = None if bag_of_words is None else _fit_bag_of_words(bag_of_words, seed)
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    run = _Run(settings, sources, folder, previous, words, progress, created)
    for name, given_model in models.items():
        if rewards is not None:
            run.judge_rewards(name, own=suites is None)
        else:
            run.judge_model(name, given_model, loading)
        gc.collect()  # the next model should find the memory free
    return run.save(complete=True)


def _check_sources(model: Any, suites: Any, rewards: Any, compare_with: Any, loading: Mapping[str, Any]) -> None:
    if rewards is not None and (model is not None or compare_with is not None):
        raise ConfigError("both a model and `rewards` are given", fix="Pass one of them.")
    if rewards is not None and loading:
        fix = "Remove it: nothing is computed."
        raise ConfigError(f"`{next(iter(loading))}` is a setting of a model, and `rewards` are given", fix=fix)
    if rewards is None and model is None:
        raise ConfigError("no model is named", fix="Pass a model folder or a Hub id, or a file of `rewards`.")
    if rewards is None and suites is None:
        raise ConfigError("no suite is named", fix="Pass at least one, such as `rewardbench` or a file of pairs.")


@dataclass
class _Run:
    """One call of :func:`evaluate`."""

    settings: EvaluationSettings
    sources: Sequence[SuiteSource]
    folder: Path | None
    previous: Mapping[tuple[str, str, str], SuiteEvaluation]  # by model, suite and fingerprint
    words: tuple[str, BagOfWords] | None
    progress: bool
    created: str
    started: float = field(default_factory=time.perf_counter)
    models: list[ModelEvaluation] = field(default_factory=list)
    comparisons: list[ModelComparison] = field(default_factory=list)

    def judge_model(self, name: str, given: ModelLike, loading: Mapping[str, Any]) -> None:
        """Evaluates one model on all suites."""
        by_name = not isinstance(given, RewardModel | nn.Module)
        finished = False
        with unchanged(given) if isinstance(given, nn.Module) else contextlib.nullcontext():
            try:
                model = _load_model(given, loading)
                view = model_for(model, self.settings)
                self.models.append(_description(name, model, view))
                for source in self.sources:
                    suite = self.load(source)
                    fingerprint = _fingerprint(model, suite, self.settings) if by_name else ""
                    evaluated = self.previous.get((name, suite.label, fingerprint)) if fingerprint else None
                    if evaluated is not None:
                        logger.info("%s on %s: taken from %s, nothing has changed.", name, suite.label, self.folder)
                    else:
                        # It names the chunks: only those of the same model, rows and settings are resumed.
                        chunks = self.folder / _CHUNKS / fingerprint if self.folder and fingerprint else None
                        evaluated = evaluate_suite(view, suite, self.settings, folder=chunks, progress=self.progress)
                        evaluated = replace(evaluated, fingerprint=fingerprint)
                        log_dropped(evaluated)
                    # Described anew: the first batch may have shown that the model needs another layout.
                    self.models[-1] = replace(_description(name, model, view), suites=self.models[-1].suites)
                    self.add(suite, evaluated)
                finished = True
            finally:
                if not finished and self.folder is not None and self.models and self.models[0].suites:
                    logger.warning("Stopped early; the results so far are in %s.", self.folder / RESULTS)

    def judge_rewards(self, file: str, *, own: bool) -> None:
        """Judges the rewards in a file, on its own rows or on those of the suite."""
        if len(self.sources) != 1:
            raise ConfigError(f"`rewards` are of one suite, and {len(self.sources)} are named", fix="Pass one suite.")
        suite = self.load(self.sources[0], own_rewards=own)
        table = read_rewards(file, suite, drop_missing=self.settings.errors == "drop")
        evaluated = judge(table, suite, self.settings)
        log_dropped(evaluated)
        self.models.append(ModelEvaluation(file, "", 0, "", "", "", "", None, False))
        self.add(suite, evaluated)

    def load(self, source: SuiteSource, *, own_rewards: bool = False) -> LoadedSuite:
        """Reads a suite, and checks the columns to slice by."""
        suite = without_rewards(source.load()) if own_rewards else source.load()
        columns = suite.columns(self.settings.slices)
        missing = [name for name in self.settings.slices if name not in columns]
        if missing and len(self.sources) == 1:
            known = sorted({name for row in suite.rows for name in row.columns})
            raise ConfigError(
                f"{source.label} has no column `{missing[0]}` to slice by",
                fix=f"Slice by one of: {', '.join(known)}." if known else "Remove `slices`: there are no columns.",
            )
        return suite.at_most(self.settings.max_rows, self.settings.seed)

    def add(self, suite: LoadedSuite, evaluated: SuiteEvaluation) -> None:
        """Keeps a result, compares it with the first model and the bag of words, and writes everything."""
        own, first, scored = self.models[-1], self.models[0], suite.joined(evaluated.table)
        self.models[-1] = replace(own, suites=(*own.suites, evaluated))
        if own is not first:
            by_first = suite.joined(first[suite.label].table)
            self.comparisons.append(compare_models((first.name, own.name), suite, by_first, scored, self.settings))
        if self.words is not None:
            name, words = self.words
            numbers = {row.row for row in scored}
            rows = (row for row in suite.rows if row.row in numbers)
            by_words = ScoredSet(row.scored(words.rewards(row.texts()).tolist()) for row in rows)
            self.comparisons.append(
                compare_models((own.name, name), suite, scored, by_words, self.settings, baseline=True)
            )
        self.save(complete=False)

    def save(self, *, complete: bool) -> Evaluation:
        """Returns the results so far, and writes them if there is a folder."""
        evaluation = Evaluation(
            models=tuple(self.models),
            comparisons=tuple(self.comparisons),
            settings={name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self.settings).items()},
            versions={
                "plaudit": __version__,
                "python": platform.python_version(),
                **{package: version(package) for package in ("torch", "transformers", "datasets", "numpy")},
            },
            created=self.created,
            seconds=time.perf_counter() - self.started,
            complete=complete,
        )
        if self.folder is not None:
            evaluation.save(self.folder)
            write_atomically(self.folder / PAGE, evaluation_page(evaluation))
            shutil.rmtree(self.folder / _CHUNKS, ignore_errors=True)
        return evaluation


# ---- models ------------------------------------------------------------------------------------------------------


def _named_models(models: Sequence[ModelLike]) -> dict[str, ModelLike]:
    """Names models so that no two have the same name, and checks that named folders exist."""
    named: dict[str, ModelLike] = {}
    for model in models:
        if isinstance(model, RewardModel):
            name = model.name
        elif isinstance(model, nn.Module):
            name = str(getattr(base_model_of(model).config, "name_or_path", "") or type(model).__name__)
        else:
            name = str(model)
            if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
                raise ConfigError(f"there is no folder {name!r}", fix="Pass a model folder or a Hub id.")
        unique, count = name, 1
        while unique in named:
            count += 1
            unique = f"{name} ({count})"
        named[unique] = model
    return named


def _load_model(given: ModelLike, loading: Mapping[str, Any]) -> RewardModel:
    if isinstance(given, RewardModel):
        return given
    if not isinstance(given, nn.Module):
        return RewardModel.from_pretrained(str(given), **loading)
    tokenizer = loading.get("processing_class")
    if tokenizer is None:
        fix = "Pass `processing_class`, or RewardModel(model, tokenizer)."
        raise ConfigError("the tokenizer of the model is not known", fix=fix)
    known = {name: loading[name] for name in ("batch_layout", "max_tokens_per_batch") if name in loading}
    return RewardModel(given, tokenizer, **known)


def _description(name: str, model: RewardModel, view: RewardModel) -> ModelEvaluation:
    layout = model if view.batch_layout == model.batch_layout else view
    return ModelEvaluation(
        name=name,
        architecture=type(base_model_of(model.model)).__name__,
        parameters=sum(parameter.numel() for parameter in model.model.parameters()),
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        batch_layout=layout.batch_layout,
        batch_layout_reason=layout.batch_layout_reason,
        max_length=model.max_length,
        adapter=is_peft_model(model.model),
        calibration=model.calibration,
    )


def _previous_results(
    folder: Path, models: Sequence[str], suites: Sequence[str]
) -> dict[tuple[str, str, str], SuiteEvaluation]:
    """Returns the whole results of an earlier run; raises `ConfigError` where some would be lost."""
    if not (folder / RESULTS).is_file():
        return {}
    known = [(model.name, suite) for model in Evaluation.load(folder).models for suite in model.suites]
    lost = [f"{name} on {suite.name}" for name, suite in known if name not in models or suite.name not in suites]
    if lost:
        raise ConfigError(
            f"{str(folder)!r} holds other results, which would be lost: {', '.join(lost[:3])}",
            fix="Use another folder, or pass `overwrite` to replace them.",
        )
    return {(name, suite.name, suite.fingerprint): suite for name, suite in known if len(suite.rewards) == suite.rows}


def _fingerprint(model: RewardModel, suite: LoadedSuite, settings: EvaluationSettings) -> str:
    """Returns a hash of everything that decides the results; empty where the identity of the model is not known."""
    folder = Path(model.name).expanduser()
    commit = getattr(getattr(model.model, "config", None), "_commit_hash", None)
    if folder.is_dir():
        files = sorted(file for file in folder.iterdir() if file.is_file() and file.name != CALIBRATION_FILE)
        identity: Any = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    elif commit:
        identity = commit
    else:
        return ""
    about = [model.name, identity, asdict(settings), model.max_length, model.calibration, str(model.dtype), __version__]
    digest = hashlib.sha256(json.dumps(about, default=str, sort_keys=True).encode())
    for row in suite.rows:
        digest.update(json.dumps([row.row, row.source, row.raw, row.columns], default=str, sort_keys=True).encode())
    return digest.hexdigest()[:32]


def _fit_bag_of_words(data: str | PathLike[str] | Rows, seed: int) -> tuple[str, BagOfWords]:
    """Fits a bag of words on preferences, and names it; of many comparisons some are drawn."""
    source = resolve_suites([data])[0]
    draw = random.Random(seed)
    comparisons: list[tuple[str, str, str]] = []
    for row in source.load().rows:
        texts = row.texts()
        scored = row.scored([0.0] * len(texts))
        pairs = comparisons_of(scored.ratings)
        for better, worse in pairs if len(pairs) <= _MOST_OF_A_ROW else draw.sample(pairs, _MOST_OF_A_ROW):
            comparisons.append((texts[better], texts[worse], scored.cluster))
    if len(comparisons) > MOST_COMPARISONS:
        comparisons = draw.sample(comparisons, MOST_COMPARISONS)
    better_texts, worse_texts, prompts = zip(*comparisons, strict=True) if comparisons else ((), (), ())
    try:
        groups = np.unique(prompts, return_inverse=True)[1].tolist()
        words = BagOfWords.fit(better_texts, worse_texts, groups, seed=seed)
    except ValueError as error:
        raise DataError(
            f"is too little to fit a bag of words on ({error})",
            dataset=source.label,
            fix="Pass the preferences that the model was trained on.",
        ) from error
    return f"bag of words ({source.label}, {words.comparisons:,} comparisons)", words
