"""Builds the report of a run: reads its folder and its evaluations, and puts what they hold into sections."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from plaudit.data.report import KIND_WORDS, DataReport
from plaudit.errors import ConfigError
from plaudit.evaluation.results import RESULTS, Difference, Evaluation, ModelEvaluation, SuiteEvaluation, from_plain
from plaudit.report.document import (
    Block,
    Document,
    Figure,
    Kind,
    Number,
    Numbers,
    Paragraph,
    Section,
    Table,
    Tone,
    count_of,
    first_rows,
    heads,
    written,
)
from plaudit.report.figures import Line, draw_lines
from plaudit.report.suite import headline_numbers, suite_section, suite_title
from plaudit.version import __version__

# As in `plaudit.training.artifacts`, which would import torch.
RUN_RECORD, TRAINER_STATE = "plaudit_run.json", "trainer_state.json"
_RUN_FILES = (RUN_RECORD, TRAINER_STATE, "config.json", "adapter_config.json", RESULTS)
Evaluated: TypeAlias = tuple[Evaluation, ModelEvaluation, SuiteEvaluation]
"""A suite on which the run's model was evaluated, and where the results are from."""


def build_report(run_folder: Path, named: Sequence[Path] = ()) -> Document:
    """Builds the report of a run from its folder, the evaluations in it, and those in other folders named.

    Raises `ConfigError` where there is no run, or an evaluation that was named cannot be read.
    """
    run = read_run(run_folder)
    evaluations = {(path.parent if path.is_file() else path): Evaluation.load(path) for path in named}
    problems = list(run.problems)
    known = {folder.resolve() for folder in evaluations}
    for folder in find_evaluations(run.folder):
        if folder.resolve() not in known:
            try:
                evaluations[folder] = Evaluation.load(folder)
            except ConfigError as error:  # nobody named it: no reason to write no report
                problems.append(f"An evaluation was left out: {error.summary}.")
    suites = suites_of(evaluations.values(), run.folder)
    sections = [
        overview_section(run, suites, problems),
        *(
            suite_section(*evaluated, name=f"suite-{number}", headline=len(suites) > 1)
            for number, evaluated in enumerate(suites, 1)
        ),
        comparison_section(evaluations.values()),
        checks_section([suite for _, _, suite in suites]),
        training_section(run),
        data_section(run),
        settings_section(run, evaluations),
    ]
    record = run.record
    about = [
        f"trained from `{run.base_model}`" if run.base_model else "",
        f"objective: {str(record['objective']).replace('_', ' ')}" if record.get("objective") else "",
        "adapter" if record.get("adapter") or run.adapter else "",
        f"saved {str(record['saved'])[:10]}" if record.get("saved") else "",
    ]
    return Document(
        title=run.name,
        about=[fact for fact in about if fact],
        sections=[section for section in sections if section is not None],
        made_by=f"Plaudit {__version__}",
    )


# ---- what there is: the run folder and its evaluations -----------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A run, read from its folder."""

    folder: Path
    record: Mapping[str, Any]  # what the trainer wrote; empty where there is nothing
    data: Mapping[str, DataReport]
    logs: Sequence[Mapping[str, Any]]  # in the order of the steps
    logs_from: str  # file of the logs
    config: Mapping[str, Any]
    adapter: Mapping[str, Any]
    calibration: Mapping[str, Any]
    problems: Sequence[str]  # files that could not be read

    @property
    def name(self) -> str:
        """Name of the folder; of a checkpoint, after that of the run."""
        folder = self.folder.resolve()
        return f"{folder.parent.name}/{folder.name}" if folder.name.startswith("checkpoint-") else folder.name

    @property
    def base_model(self) -> str | None:
        """Id of the model that was trained, or the last part of its path."""
        name = self.record.get("base_model") or self.adapter.get("base_model_name_or_path")
        if not isinstance(name, str) or not name:
            return None
        return Path(name).name if name.startswith(("/", ".", "~")) or "\\" in name else name


def read_run(folder: Path) -> Run:
    """Reads the folder of a training run, or one of its checkpoints; raises `ConfigError` where it is neither."""
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise ConfigError(f"{str(folder)!r} {problem}", fix="Pass the `output_dir` of a training run.")
    folders = [folder, *_checkpoints(folder)]
    known = any((path / name).exists() for path in folders for name in _RUN_FILES)
    if not known and not find_evaluations(folder):
        raise ConfigError(
            f"{str(folder)!r} is not a run folder: it has no checkpoints and none of {', '.join(_RUN_FILES)}",
            fix="Pass the `output_dir` of a training run, or one of its checkpoints.",
        )
    problems: list[str] = []

    def newest(name: str) -> Mapping[str, Any]:
        return next((values for path in folders if (values := _read_json(path / name, problems))), {})

    record = newest(RUN_RECORD)
    logs, logs_from = _furthest_logs(folders, problems)
    return Run(
        folder,
        record,
        _data_reports(record, problems),
        logs,
        logs_from,
        config=newest("config.json"),
        adapter=newest("adapter_config.json"),
        calibration=_read_json(folder / "reward_calibration.json", problems),
        problems=problems,
    )


def find_evaluations(run_folder: Path) -> list[Path]:
    """Returns the folders with evaluations in a run folder, except in checkpoints, by name."""
    nested = (path for pattern in (f"*/{RESULTS}", f"*/*/{RESULTS}") for path in run_folder.glob(pattern))
    paths = [path for path in (run_folder / RESULTS, *sorted(nested)) if path.is_file()]
    return [
        path.parent
        for path in paths
        if not any(part.startswith("checkpoint-") for part in path.parent.relative_to(run_folder).parts)
    ]


def suites_of(evaluations: Iterable[Evaluation], run_folder: Path) -> list[Evaluated]:
    """Returns the suites on which the run's model was evaluated: the model in this folder, or else the first one."""
    suites: list[Evaluated] = []
    for evaluation in evaluations:
        folder = run_folder.resolve()
        own = [model for model in evaluation.models if model.name and Path(model.name).resolve() == folder]
        for model in (own or list(evaluation.models))[:1]:
            suites += [(evaluation, model, suite) for suite in model.suites]
    return suites


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a run folder, the newest first."""
    steps = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.iterdir() if path.is_dir()}
    return sorted((path for path, step in steps.items() if step), key=lambda path: -int(path.name[11:]))


def _read_json(path: Path, problems: list[str]) -> Mapping[str, Any]:
    """Reads a JSON object; a broken file is noted, not raised: a report shows what there is."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        problem = "" if isinstance(values, dict) else "is not a JSON object"
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        values, problem = {}, f"cannot be read ({error})"
    if not problem:
        return values
    text = f"`{path.name}` in `{path.parent.name}` {problem}: its values are missing here."
    if text not in problems:
        problems.append(text)
    return {}


def _data_reports(record: Mapping[str, Any], problems: list[str]) -> dict[str, DataReport]:
    reports = record.get("data")
    try:
        return {name: from_plain(DataReport, values) for name, values in (reports or {}).items()}
    except (TypeError, AttributeError) as error:
        problems.append(f"The data reports in `{RUN_RECORD}` cannot be read ({error}).")
        return {}


def _furthest_logs(folders: Sequence[Path], problems: list[str]) -> tuple[list[Mapping[str, Any]], str]:
    """The logs that reach furthest, and their file: training may go on after the weights were saved."""
    furthest: tuple[float, list[Mapping[str, Any]], str] = (-1, [], "")
    for folder in folders:
        for name in (RUN_RECORD, TRAINER_STATE):
            logs = _read_json(folder / name, problems).get("log_history")
            logs = [log for log in logs if isinstance(log, dict)] if isinstance(logs, list) else []
            step = max((log["step"] for log in logs if is_finite(log.get("step"))), default=-1.0)
            if logs and step > furthest[0]:
                furthest = (step, logs, name if folder is folders[0] else f"{folder.name}/{name}")
    return furthest[1], furthest[2]


def is_finite(value: Any) -> bool:
    """Tells whether a value is a number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# ---- at a glance -------------------------------------------------------------------------------------------------

_FEW_LABELS = 100
_LARGE_CALIBRATION_ERROR = 0.05
_CLEARLY_LESS = 0.8  # of a calibration error
_LARGE_LENGTH_GAP = 0.1  # between accuracies


def overview_section(run: Run, suites: Sequence[Evaluated], problems: Sequence[str]) -> Section:
    """Shows the headline numbers, and says what they mean."""
    blocks: list[Block] = [Paragraph(problem, "warning") for problem in problems]
    lead = ""
    if suites:
        several = len(suites) > 1
        blocks.append(Numbers("headline", headline_numbers(suites[0][2])))
        if several:
            blocks.append(_suites_table([suite for _, _, suite in suites]))
        else:
            lead = f"On {suite_title(suites[0][2])}."
        for evaluation, model, suite in suites:
            for paragraph in findings(evaluation, model, suite):
                text = paragraph.text
                if several:
                    text = f"{suite_title(suite)}: {text[0].lower()}{text[1:]}"
                blocks.append(Paragraph(text, paragraph.tone))
    else:
        if numbers := _numbers_of_logs(run):
            blocks.append(Numbers("headline", numbers))
        command = f"plaudit eval {run.folder} --suite SUITE --output {run.folder / 'evaluation'}"
        missing = "No evaluation yet: there are no intervals, no slices, no calibration and no mistakes to read."
        blocks.append(Paragraph(f"{missing} Run `{command}`, then `plaudit report` again.", "empty"))
    return Section("overview", "At a glance", blocks, lead)


def _numbers_of_logs(run: Run) -> list[Number]:
    kinds: dict[str, Kind] = {"accuracy": "share", "margin": "signed", "loss": "number"}
    numbers = []
    for name, kind in kinds.items():
        lines = curves_of(run.logs, name)
        held_out = [line for line in lines if line.name != "training"]
        for line in held_out or lines[:1]:
            detail = f"last log, {line.name}, step {line.x[-1]:,}"
            if line.name == "training":
                detail += ": not held out, it says little"
            numbers.append(Number(name.capitalize(), line.y[-1], kind, detail=detail))
    return numbers


def _suites_table(suites: Sequence[SuiteEvaluation]) -> Table:
    rows = [
        [
            suite_title(suite),
            suite.rows,
            suite.score,
            suite.accuracy.value if suite.accuracy else None,
            suite.accuracy.interval if suite.accuracy else None,
            suite.calibration.scores.ece if suite.calibration else None,
        ]
        for suite in suites
    ]
    columns = "suite | rows: count | score: share | accuracy: share | 95% interval: share interval"
    return Table("suites", "All evaluations", heads(f"{columns} | calibration error: share"), rows)


def findings(evaluation: Evaluation, model: ModelEvaluation, suite: SuiteEvaluation) -> list[Paragraph]:
    """Says what the numbers of a suite mean, one sentence each."""
    paragraphs = _accuracy_findings(suite)
    for comparison in evaluation.comparisons:
        if not comparison.baseline or (comparison.models[0], comparison.suite) != (model.name, suite.name):
            continue
        overall = comparison.overall
        own, baseline = (written(score, "share") for score in overall.scores)
        better = overall.difference > 0
        outcome = (
            ("better than" if better else "worse than") if overall.real else "which is not shown to be better than"
        )
        text = f"Over all rows {own} are right, {outcome} a {comparison.models[1]}: {baseline}."
        paragraphs.append(Paragraph(text, "good" if overall.real and better else "warning"))
    if suite.accuracy and 0 < suite.accuracy.n < _FEW_LABELS:
        width = 100 * (suite.accuracy.interval.high - suite.accuracy.interval.low)
        text = f"There are only {suite.accuracy.n} labels: the interval is {width:.0f} points wide."
        paragraphs.append(Paragraph(text, "note"))
    paragraphs += [*_calibration_findings(suite), *_length_findings(suite)]
    paragraphs += [Paragraph(f"Check failed: {check.message}", "warning") for check in suite.checks if not check.passed]
    if not evaluation.complete:
        paragraphs.append(Paragraph("The evaluation was not finished.", "warning"))
    if dropped := sum(count.count for count in suite.dropped.values()):
        paragraphs.append(Paragraph(f"{count_of(dropped, 'row was', 'rows were')} not scored.", "note"))
    return paragraphs


def _accuracy_findings(suite: SuiteEvaluation) -> list[Paragraph]:
    pairs = suite.statistics.pairs
    if pairs is None or not pairs.comparisons or pairs.accuracy.value is None:
        return []
    rules = [(0.5, "guessing")]
    if suite.length is not None and suite.length.longer_right.value:
        rules.append((suite.length.longer_right.value, "always taking the longer response"))
    level, rule = max(rules)
    low, high = pairs.accuracy.interval
    accuracy, baseline = f"Accuracy {written(pairs.accuracy.value, 'share')}", f"{rule} ({level:.1%})"
    if low > level:
        return [Paragraph(f"{accuracy} is better than {baseline}.", "good")]
    if high < level:
        return [Paragraph(f"{accuracy} is worse than {baseline}.", "warning")]
    return [Paragraph(f"{accuracy} is not shown to be better than {baseline}: its interval reaches it.", "warning")]


def _calibration_findings(suite: SuiteEvaluation) -> list[Paragraph]:
    calibration = suite.calibration
    if calibration is None or not calibration.temperature or calibration.at_bound:
        return []
    before, after = calibration.before, calibration.after
    if before is None or after is None:
        return []
    if before.ece < _LARGE_CALIBRATION_ERROR or after.ece > _CLEARLY_LESS * before.ece:
        return []
    direction = "too sure of itself" if calibration.temperature > 1 else "surer than it says"
    text = (
        f"The model is {direction}: a temperature of {calibration.temperature:.2f} takes its calibration error "
        f"from {before.ece:.1%} to {after.ece:.1%}, on the half that it was not fitted on."
    )
    return [Paragraph(text, "note")]


def _length_findings(suite: SuiteEvaluation) -> list[Paragraph]:
    if suite.length is None:
        return []
    longer, shorter = suite.length.accuracy_longer_right, suite.length.accuracy_longer_wrong
    if longer.value is None or shorter.value is None:
        return []
    apart = longer.interval.low > shorter.interval.high or shorter.interval.low > longer.interval.high
    if abs(longer.value - shorter.value) < _LARGE_LENGTH_GAP or not apart:
        return []
    direction = "longer" if longer.value > shorter.value else "shorter"
    text = (
        f"Rewards follow length: the model leans to {direction} responses. It is right in {longer.value:.1%} where the "
        f"better response is longer, and in {shorter.value:.1%} where it is shorter."
    )
    return [Paragraph(text, "warning")]


# ---- comparisons and checks --------------------------------------------------------------------------------------


def comparison_section(evaluations: Iterable[Evaluation]) -> Section | None:
    """Compares models with each other and with baselines on the same rows; None where only one was evaluated."""
    blocks: list[Block] = []
    rows: list[list[Any]] = []
    slices: list[list[Any]] = []
    left_out = 0
    for comparison in (comparison for evaluation in evaluations for comparison in evaluation.comparisons):
        suite, overall = comparison.suite, comparison.overall
        tone: Tone = "note" if not overall.real else "good" if overall.difference > 0 else "warning"
        blocks.append(Paragraph(f"{suite}: {overall.verdict}.", tone))
        rows.append([suite, *_difference_cells(overall)])
        for column, differences in comparison.slices.items():
            slices += [[suite, f"{column}: {name}", *_difference_cells(part)] for name, part in differences.items()]
        left_out += comparison.left_out
    if not rows:
        return None
    columns = heads(
        "first | second | comparisons: count | score of first: share | score of second: share | difference: share | "
        "95% interval: share interval | p: number"
    )
    blocks.append(Table("comparisons", "Differences", heads("suite") + columns, rows))
    if slices:
        title = "Differences by slice (p-values corrected after Holm)"
        blocks.append(Table("slices", title, heads("suite | slice") + columns, slices, folded=True))
    if left_out:
        blocks.append(Paragraph(f"{count_of(left_out, 'row')} that not all models scored do not count.", "note"))
    lead = (
        "The same rows, scored by both. A difference is real only where p is below 0.05 and its interval leaves out 0."
    )
    return Section("comparisons", "Against others", blocks, lead)


def _difference_cells(result: Difference) -> list[Any]:
    return [*result.names, result.n, *result.scores, result.difference, result.interval, result.p_adjusted]


def checks_section(suites: Sequence[SuiteEvaluation]) -> Section | None:
    """Lists the sanity checks of the model and of the code that ran it; None where there are none."""
    rows = [
        ["passed" if check.passed else "FAILED", check.name, suite_title(suite), check.message]
        for suite in suites
        for check in suite.checks
    ]
    if not rows:
        return None
    table = Table("checks", "Checks", heads("outcome | check | suite | what was found"), rows)
    lead = "Rewards computed twice, and labels swapped: a model that sees only the texts passes all of them."
    return Section("checks", "Sanity checks", [table], lead)


# ---- training ----------------------------------------------------------------------------------------------------

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
    "tie_accuracy": ("Tie accuracy", "Share of labels that are right, ties included."),
    "kendall_tau": ("Kendall's tau", "Agreement of the rankings, from −1 to 1."),  # noqa: RUF001
    "mse": ("Mean squared error", "Of rewards as estimates of ratings. It should fall."),
    "correlation": ("Correlation", "Of rewards with ratings."),
    "learning_rate": ("Learning rate", "As scheduled."),
    "grad_norm": ("Gradient norm", "Before clipping. Single peaks are usual; steady growth is not."),
}
_STEPS_SHOWN = 40


def training_section(run: Run) -> Section:
    """Draws the training curves, or says where they would come from."""
    if not run.logs:
        missing = f"No training logs: there is no `{TRAINER_STATE}` and no `{RUN_RECORD}` with logs in this folder."
        return Section("training", "Training", [Paragraph(missing, "empty")])
    blocks: list[Block] = [*_training_numbers(run)]
    state, settings = run.record.get("state") or {}, run.record.get("settings") or {}
    best = state.get("best_global_step") if settings.get("load_best_model_at_end") else None
    figures = [
        _curve_figure(name, lines, best if is_finite(best) and best else None)
        for name in _CURVES
        if (lines := curves_of(run.logs, name))
    ]
    blocks += figures or [Paragraph("The logs hold no numbers over steps: see `logging_steps`.", "empty")]
    return Section("training", "Training", blocks, f"From the logs in `{run.logs_from}`.")


def _training_numbers(run: Run) -> list[Numbers]:
    def furthest(name: str) -> float | None:
        return max((log[name] for log in run.logs if is_finite(log.get(name))), default=None)

    last: Mapping[str, Any] = next((log for log in reversed(run.logs) if "train_runtime" in log), {})
    epochs = (run.record.get("state") or {}).get("epoch") or furthest("epoch")
    numbers = [
        Number("Steps", furthest("step"), "count", detail=f"{written(epochs, 'number')} epochs" if epochs else ""),
        Number("Tokens", furthest("num_tokens"), "amount"),
        Number("Mean training loss", last.get("train_loss"), "number"),
        Number("Training time", last.get("train_runtime"), "duration"),
    ]
    numbers = [number for number in numbers if is_finite(number.value)]
    return [Numbers("summary", numbers)] if numbers else []


def curves_of(logs: Sequence[Mapping[str, Any]], metric: str) -> list[Line]:
    """Returns the lines of one metric: that of training first, then one for each evaluation set."""
    trained = [log for log in logs if "train_runtime" not in log and not any(key.startswith("eval_") for key in log)]
    sources = {metric: trained}
    for log in logs:
        for key in log:
            # Some metrics end alike: the longest name is meant.
            ends = [name for name in _CURVES if key.startswith("eval_") and key.endswith(f"_{name}")]
            if max(ends, key=len, default="") == metric:
                sources[key] = list(logs)
    lines = []
    for key, source in sources.items():
        points = {log["step"]: log[key] for log in source if is_finite(log.get("step")) and is_finite(log.get(key))}
        evaluation_set = key.removeprefix("eval_").removesuffix(metric).strip("_")
        name = "training" if key == metric else f"held-out: {evaluation_set}" if evaluation_set else "held-out"
        if points:
            lines.append(Line(name, sorted(points), [points[step] for step in sorted(points)]))
    return lines


def _curve_figure(metric: str, lines: Sequence[Line], best_step: float | None) -> Figure:
    title, caption = _CURVES[metric]
    marked = best_step is not None and metric not in ("learning_rate", "grad_norm")
    marked = marked and any(line.name != "training" for line in lines)
    ends = [f"{line.name} from {written(line.y[0], 'number')} to {written(line.y[-1], 'number')}" for line in lines]
    values = [dict(zip(line.x, line.y, strict=True)) for line in lines]
    steps = sorted({step for line in lines for step in line.x})
    return Figure(
        metric,
        title,
        (("step", "count"), *((line.name, "number") for line in lines)),
        [[step, *(by_step.get(step) for by_step in values)] for step in steps],
        most_shown=_STEPS_SHOWN,
        caption=caption,
        alternative=f"{title} over steps: {' and '.join(filter(None, [', '.join(ends[:-1]), ends[-1]]))}.",
        svg=draw_lines(lines, x_label="step", mark=(best_step, "best checkpoint") if marked and best_step else None),
    )


# ---- data and settings -------------------------------------------------------------------------------------------


def data_section(run: Run) -> Section:
    """Counts what was read, dropped and found suspicious in each data set of the training."""
    if not run.data:
        missing = (
            f"What was read and dropped is not known: there is no `{RUN_RECORD}` in this folder. Runs of this version "
            "write it when they save; for an older one, `plaudit check` counts again."
        )
        return Section("data", "Data", [Paragraph(missing, "empty")])
    rows = [
        [
            name,
            report.rows_read,
            report.rows_kept,
            sum(count.count for count in report.dropped.values()),
            report.lengths.mean,
            report.lengths.longest,
            report.max_length,
        ]
        for name, report in run.data.items()
    ]
    columns = "data set | rows read: count | kept: count | dropped: count | mean tokens: number | longest: count"
    blocks: list[Block] = [Table("rows", "Rows", heads(f"{columns} | limit: count"), rows)]
    reasons = [
        [name, outcome, KIND_WORDS.get(kind, kind), count.count, first_rows(count.first_rows, count.count)]
        for name, report in run.data.items()
        for outcome, counts in (("dropped", report.dropped), ("kept, but suspicious", report.flagged))
        for kind, count in counts.items()
    ]
    if reasons:
        columns = "data set | outcome | why | rows: count | first row numbers"
        blocks.append(Table("dropped", "What was dropped, and why", heads(columns), reasons))
    else:
        blocks.append(Paragraph("Nothing was dropped, and no row looked suspicious.", "good"))
    if any(report.streaming for report in run.data.values()):
        blocks.append(Paragraph("A stream is counted as far as it was read.", "note"))
    return Section("data", "Data", blocks, "What training read, and what it dropped.")


def settings_section(run: Run, evaluations: Mapping[Path, Evaluation]) -> Section:
    """Lists the model, the settings of its training, and the versions that trained and evaluated it."""
    record = run.record
    blocks: list[Block] = [Table("model", "Model", heads("model | : json"), _model_rows(run))]
    settings = record.get("settings")
    columns = heads("setting | value: json")
    if isinstance(settings, dict) and settings:
        if changed := [[name, settings[name]] for name in record.get("changed_settings") or () if name in settings]:
            blocks.append(Table("changed_settings", "Settings that are not at their defaults", columns, changed))
        rows = [[name, value] for name, value in sorted(settings.items())]
        blocks.append(Table("settings", "All settings", columns, rows, folded=True, most_shown=1000))
    else:
        blocks.append(Paragraph(f"The settings are not known: there is no `{RUN_RECORD}` in this folder.", "empty"))
    if run.calibration:
        rows = [[name, value] for name, value in run.calibration.items()]
        blocks.append(Table("calibration", "Calibration saved with the model", heads("name | value: json"), rows))
    versions = {"training": record.get("versions") or {}}
    versions |= {f"evaluation in {folder.name}": evaluation.versions for folder, evaluation in evaluations.items()}
    versions = {title: packages for title, packages in versions.items() if packages}
    names = list(dict.fromkeys(name for packages in versions.values() for name in packages))
    if names:
        rows = [[name, *(packages.get(name) for packages in versions.values())] for name in names]
        columns = (("package", "text"), *((title, "text") for title in versions))
        blocks.append(Table("versions", "Versions", columns, rows))
    else:
        blocks.append(Paragraph("The versions are not known.", "empty"))
    return Section("settings", "Settings and versions", blocks)


def _model_rows(run: Run) -> list[list[Any]]:
    record = run.record
    architecture = record.get("architecture") or next(iter(run.config.get("architectures") or []), None)
    rows = {
        "trained from": run.base_model,
        "architecture": architecture,
        "adapter": True if record.get("adapter") or run.adapter else None,
        "parameters": f"{record['parameters']:,}" if record.get("parameters") else None,
        "of them trained": f"{record['trainable_parameters']:,}" if record.get("trainable_parameters") else None,
        "objective": record.get("objective"),
        "batch layout": record.get("batch_layout"),
        "because": record.get("batch_layout_reason"),
        "device": record.get("device"),
        "processes": record.get("processes"),
        "saved": record.get("saved"),
    }
    return [[name, value] for name, value in rows.items() if value is not None]
