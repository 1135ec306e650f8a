"""Builds the report of a run from its folder and its evaluations, and writes it as HTML, JSON and Markdown."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from markupsafe import Markup, escape

from plaudit.data.report import DataReport
from plaudit.errors import ConfigError
from plaudit.evaluation import page, results
from plaudit.evaluation.page import Block, Figure, Number, Numbers, Paragraph, Section, Table, heads, written
from plaudit.evaluation.results import RESULTS, Evaluation, ModelEvaluation, SuiteEvaluation
from plaudit.report.figures import Line, draw_lines
from plaudit.report.suite import dropped_cells, headline_numbers, suite_section
from plaudit.version import __version__

FILE_NAME = "report.html"
# By these, which the templates write, an earlier report is recognised: it may be replaced.
_SIGNS = '<meta name="generator" content="Plaudit">', '"format": "plaudit report"', "<!-- Plaudit report -->"
_ROWS_IN_MARKDOWN = 40
_WIDE_CELL = 24  # characters; wider ones make their column wide on a phone too
# As in `plaudit.training.artifacts`, which would import torch.
RUN_RECORD, TRAINER_STATE = "plaudit_run.json", "trainer_state.json"
_RUN_FILES = (RUN_RECORD, TRAINER_STATE, "config.json", "adapter_config.json", RESULTS)
Evaluated: TypeAlias = tuple[Evaluation, ModelEvaluation, SuiteEvaluation]
"""A suite on which the run's model was evaluated, and where the results are from."""


@dataclass(frozen=True)
class Document:
    """A report."""

    title: str
    about: Sequence[str]  # facts under the title, in a few words each
    sections: Sequence[Section]
    made_by: str  # the program and its version

    def to_dict(self) -> dict[str, Any]:
        """Returns the document as plain values, for JSON."""
        return {"format": "plaudit report", "version": 1, **results.to_plain(self)}


class Report(NamedTuple):
    """The files of a report, and the document that they show."""

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

    Evaluations in the run folder are found by themselves. The files of an earlier report are replaced; any other file
    is left alone.

    Args:
        run_folder: The folder that training wrote to, or one of its checkpoints.
        output: The HTML file (None: `report.html` in the run folder).
        evaluations: Folders of further evaluations, written by `plaudit eval`.

    Raises:
        ConfigError: There is no such run or evaluation, or a file in the way is not a report.
    """
    document = build_report(Path(run_folder), [Path(folder) for folder in evaluations])
    html = Path(output) if output is not None else Path(run_folder) / FILE_NAME
    html = html / FILE_NAME if html.is_dir() else html
    if html.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{str(html)!r} is not the name of a page", fix=f"Name it {html.name}.html.")
    texts = (
        page.render("report/templates/report.html.j2", (column_classes, marked), document=document),
        json.dumps(document.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        page.render("report/templates/report.md.j2", (), document=document, most_rows=_ROWS_IN_MARKDOWN),
    )
    report = Report(html, html.with_suffix(".json"), html.with_suffix(".md"), document)
    for path, sign in zip(report[:3], _SIGNS, strict=True):
        if path.exists() and sign not in path.read_text(encoding="utf-8", errors="replace")[:2000]:
            raise ConfigError(f"{str(path)!r} exists and is not a report", fix="Choose another file with `--output`.")
    try:
        html.parent.mkdir(parents=True, exist_ok=True)
        for path, text in zip(report[:3], texts, strict=True):
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        message = f"the report cannot be written ({error})"
        raise ConfigError(message, fix="Choose another file with `--output`.") from error
    return report


def build_report(run_folder: Path, named: Sequence[Path] = ()) -> Document:
    """Builds the report of a run from its folder, the evaluations in it, and those in other folders named.

    Raises `ConfigError` where there is no run, or an evaluation that was named cannot be read.
    """
    run = read_run(run_folder)
    evaluations = {(path.parent if path.is_file() else path): Evaluation.load(path) for path in named}
    known = {folder.resolve() for folder in evaluations}
    for folder in find_evaluations(run.folder):
        if folder.resolve() not in known:
            try:
                evaluations[folder] = Evaluation.load(folder)
            except ConfigError as error:  # nobody named it: no reason to write no report
                run.problems.append(f"An evaluation was left out: {error.summary}.")
    suites: list[Evaluated] = []
    folder = run.folder.resolve()
    for evaluation in evaluations.values():
        # The model in this folder, or else the first one.
        own = [model for model in evaluation.models if model.name and Path(model.name).resolve() == folder]
        for model in (own or list(evaluation.models))[:1]:
            suites += [(evaluation, model, suite) for suite in model.suites]
    sections = [
        overview_section(run, suites),
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
    about = [
        f"trained from `{run.base_model}`" if run.base_model else "",
        f"objective: {str(run.record['objective']).replace('_', ' ')}" if run.record.get("objective") else "",
        "adapter" if run.record.get("adapter") or run.adapter else "",
        f"saved {str(run.record['saved'])[:10]}" if run.record.get("saved") else "",
    ]
    return Document(
        title=f"{folder.parent.name}/{folder.name}" if folder.name.startswith("checkpoint-") else folder.name,
        about=[fact for fact in about if fact],
        sections=[section for section in sections if section is not None],
        made_by=f"Plaudit {__version__}",
    )


# ---- the run folder and its evaluations --------------------------------------------------------------------------


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
    problems: list[str]  # files that could not be read

    @property
    def base_model(self) -> str | None:
        """Id of the model that was trained, or the last part of its path."""
        name = self.record.get("base_model") or self.adapter.get("base_model_name_or_path")
        if not isinstance(name, str) or not name:
            return None
        return Path(name).name if name.startswith(("/", ".", "~")) or "\\" in name else name


def read_run(folder: Path) -> Run:
    """Reads the folder of a training run, or one of its checkpoints; raises `ConfigError` where it is neither."""
    fix = "Pass the `output_dir` of a training run, or one of its checkpoints."
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise ConfigError(f"{str(folder)!r} {problem}", fix=fix)
    steps = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.iterdir() if path.is_dir()}
    checkpoints = sorted((int(step[1]), path) for path, step in steps.items() if step)
    folders = [folder, *(path for _, path in reversed(checkpoints))]  # the newest first
    known = any((path / name).exists() for path in folders for name in _RUN_FILES)
    if not known and not find_evaluations(folder):
        names = ", ".join(_RUN_FILES)
        raise ConfigError(f"{str(folder)!r} is not a run folder: it has no checkpoints and none of {names}", fix=fix)
    problems: list[str] = []

    def newest(name: str) -> Mapping[str, Any]:
        return next((values for path in folders if (values := _read_json(path / name, problems))), {})

    record = newest(RUN_RECORD)
    data: dict[str, DataReport] = {}
    try:
        data = {name: results.from_plain(DataReport, values) for name, values in (record.get("data") or {}).items()}
    except (ConfigError, AttributeError) as error:
        problems.append(f"The data reports in `{RUN_RECORD}` cannot be read ({getattr(error, 'summary', error)}).")
    return Run(
        folder,
        record,
        data,
        *_furthest_logs(folders, problems),
        config=newest("config.json"),
        adapter=newest("adapter_config.json"),
        calibration=_read_json(folder / "reward_calibration.json", problems),
        problems=problems,
    )


def find_evaluations(run_folder: Path) -> list[Path]:
    """Returns the folders with evaluations in a run folder, except in checkpoints, by name."""
    paths = [run_folder / RESULTS, *sorted([*run_folder.glob(f"*/{RESULTS}"), *run_folder.glob(f"*/*/{RESULTS}")])]
    in_checkpoint = re.compile(r"(.*/)?checkpoint-")
    outside = [path for path in paths if not in_checkpoint.match(path.relative_to(run_folder).as_posix())]
    return [path.parent for path in outside if path.is_file()]


def _read_json(path: Path, problems: list[str]) -> Mapping[str, Any]:
    """Reads a JSON object; a broken file is noted, not raised: a report shows what there is."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict):
            return values
        problem = "is not a JSON object"
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        problem = f"cannot be read ({error})"
    text = f"`{path.name}` in `{path.parent.name}` {problem}: its values are missing here."
    if text not in problems:
        problems.append(text)
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


# ---- at a glance, comparisons and checks -------------------------------------------------------------------------


def overview_section(run: Run, suites: Sequence[Evaluated]) -> Section:
    """Shows the headline numbers, and says what they mean."""
    blocks: list[Block] = [Paragraph(problem, "warning") for problem in run.problems]
    if not suites:
        if numbers := _numbers_of_logs(run):
            blocks.append(Numbers("headline", numbers))
        command = f"plaudit eval {run.folder} --suite SUITE --output {run.folder / 'evaluation'}"
        missing = "No evaluation yet: there are no intervals, no slices, no calibration and no mistakes to read."
        blocks.append(Paragraph(f"{missing} Run `{command}`, then `plaudit report` again.", "empty"))
        return Section("overview", "At a glance", blocks)
    several = len(suites) > 1
    blocks.append(Numbers("headline", headline_numbers(suites[0][2])))
    if several:
        rows = []
        for _, _, suite in suites:
            accuracy, ece = page.score_of("", suite.statistics), suite.calibration and suite.calibration.scores.ece
            rows.append([page.suite_title(suite), suite.rows, suite.score, accuracy.value, accuracy.interval, ece])
        columns = "suite | rows: count | score: share | accuracy: share | 95% interval: share interval"
        blocks.append(Table("suites", "All evaluations", heads(f"{columns} | calibration error: share"), rows))
    if not all(evaluation.complete for evaluation, _, _ in suites):
        blocks.append(Paragraph("The evaluation was not finished.", "warning"))
    for evaluation, model, suite in suites:
        findings = [finding for finding in page.findings(suite) if finding.tone and finding.title != "Note"]
        for comparison in evaluation.comparisons:
            if comparison.baseline and (comparison.models[0], comparison.suite) == (model.name, suite.name):
                findings.append(page.verdicts(comparison)[0]._replace(title="Bag of words"))
        if dropped := sum(count.count for count in suite.dropped.values()):
            findings.append(page.Finding("Not scored", page.count_of(dropped, "row"), "note"))
        on = f" on {page.suite_title(suite)}" if several else ""
        blocks += [Paragraph(f"{title}{on}: {text.removesuffix('.')}.", tone) for title, text, tone in findings]
    return Section("overview", "At a glance", blocks, "" if several else f"On {page.suite_title(suites[0][2])}.")


def _numbers_of_logs(run: Run) -> list[Number]:
    kinds: dict[str, page.Kind] = {"accuracy": "share", "margin": "signed", "loss": "number"}
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


def comparison_section(evaluations: Iterable[Evaluation]) -> Section | None:
    """Compares models with each other and with baselines on the same rows; None where only one was evaluated."""
    blocks: list[Block] = []
    rows: list[list[Any]] = []
    slices: list[list[Any]] = []

    def cells(part: results.Difference) -> list[Any]:
        return [*part.names, part.n, *part.scores, part.difference, part.interval, part.p_adjusted]

    for comparison in (comparison for evaluation in evaluations for comparison in evaluation.comparisons):
        suite, text, tone = page.verdicts(comparison)[0]
        blocks.append(Paragraph(f"{suite}: {text}.", tone))
        rows.append([suite, *cells(comparison.overall)])
        for column, parts in comparison.slices.items():
            slices += [[suite, f"{column}: {name}", *cells(part)] for name, part in parts.items()]
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
    lead = (
        "The same rows, scored by both. A difference is real only where p is below 0.05 and its interval leaves out 0."
    )
    return Section("comparisons", "Against others", blocks, lead)


def checks_section(suites: Sequence[SuiteEvaluation]) -> Section | None:
    """Lists the sanity checks of the model and of the code that ran it; None where there are none."""
    rows = [
        ["passed" if check.passed else "FAILED", check.name, page.suite_title(suite), check.message]
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

    def furthest(name: str) -> float | None:
        return max((log[name] for log in run.logs if is_finite(log.get(name))), default=None)

    last: Mapping[str, Any] = next((log for log in reversed(run.logs) if "train_runtime" in log), {})
    state, settings = run.record.get("state") or {}, run.record.get("settings") or {}
    epochs = state.get("epoch") or furthest("epoch")
    numbers = [
        Number("Steps", furthest("step"), "count", detail=f"{written(epochs, 'number')} epochs" if epochs else ""),
        Number("Tokens", furthest("num_tokens"), "amount"),
        Number("Mean training loss", last.get("train_loss"), "number"),
        Number("Training time", last.get("train_runtime"), "duration"),
    ]
    numbers = [number for number in numbers if is_finite(number.value)]
    blocks: list[Block] = [Numbers("summary", numbers)] if numbers else []
    best = state.get("best_global_step") if settings.get("load_best_model_at_end") else None
    figures = [
        _curve_figure(name, lines, best if is_finite(best) and best else None)
        for name in _CURVES
        if (lines := curves_of(run.logs, name))
    ]
    blocks += figures or [Paragraph("The logs hold no numbers over steps: see `logging_steps`.", "empty")]
    return Section("training", "Training", blocks, f"From the logs in `{run.logs_from}`.")


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
        if not report.uncounted
    ]
    columns = "data set | rows read: count | kept: count | dropped: count | mean tokens: number | longest: count"
    blocks: list[Block] = [Table("rows", "Rows", heads(f"{columns} | limit: count"), rows)]
    reasons = [
        [name, outcome, *dropped_cells(kind, count)]
        for name, report in run.data.items()
        for outcome, counts in (("dropped", report.dropped), ("kept, but suspicious", report.flagged))
        for kind, count in counts.items()
    ]
    if reasons:
        columns = "data set | outcome | why | rows: count | first row numbers"
        blocks.append(Table("dropped", "What was dropped, and why", heads(columns), reasons))
    elif rows:
        blocks.append(Paragraph("Nothing was dropped, and no row looked suspicious.", "good"))
    blocks += [Paragraph(f"{report.summary()}.", "note") for report in run.data.values() if report.uncounted]
    if any(report.streaming and not report.uncounted for report in run.data.values()):
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


# ---- filters of the template for HTML ----------------------------------------------------------------------------


def marked(text: str) -> Markup:
    """Escapes text for HTML, except for `code` and *emphasis*.

    >>> marked("*so* `a < b` <b>")
    Markup('<em>so</em> <code>a &lt; b</code> &lt;b&gt;')
    """
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"(?<![\w*])\*([^*<>`\s][^*<>`]*)\*(?![\w*])", r"<em>\1</em>", escaped))


def column_classes(table: Table, rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the class of each column in HTML: `n` of numbers, `w` of long texts."""
    return [
        "n" if kind not in ("text", "json") else "w" if any(len(row[index]) > _WIDE_CELL for row in rows) else ""
        for index, (_, kind) in enumerate(table.heads)
    ]
