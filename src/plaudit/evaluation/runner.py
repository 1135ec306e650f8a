"""`evaluate`: reward models on suites, suite by suite, what is reached always on disk."""

from __future__ import annotations

import contextlib
import datetime
import gc
import logging
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from plaudit.errors import ConfigError
from plaudit.evaluation.baselines import BagOfWordsBaseline
from plaudit.evaluation.borrowing import as_it_was
from plaudit.evaluation.results import Evaluation, ModelComparison, ModelEvaluation, SuiteEvaluation
from plaudit.evaluation.row_scoring import OnBroken, Overlong, ScoringSettings
from plaudit.evaluation.storage import RESULTS, Previous, fingerprint_of
from plaudit.evaluation.suite_evaluation import (
    EvaluationSettings,
    compare_models,
    compare_with_baseline,
    evaluate_suite,
    rebuilt,
    say_dropped,
)
from plaudit.evaluation.suite_sources import LoadedSuite, Rows, Suites, SuiteSource, resolve_suites
from plaudit.model.adapters import base_model_of, is_peft_model
from plaudit.scoring.reward_model import RewardModel
from plaudit.version import __version__

logger = logging.getLogger("plaudit")

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
            return rebuilt(known, suite)
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
            self._comparisons.append(compare_models(names, source, first[source.label], found, self._settings))
        if self._baseline is not None:
            held = compare_with_baseline(own.name, self._baseline, source, suite, found, self._settings)
            self._comparisons.append(held)
        if self._folder is not None:
            self._evaluation(complete=False).save(self._folder)

    def finish(self) -> Evaluation:
        """The whole result, written where that was asked for."""
        evaluation = self._evaluation(complete=True)
        if self._folder is not None:
            evaluation.save(self._folder)
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
