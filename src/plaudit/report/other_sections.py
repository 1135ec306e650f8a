"""What stands behind the numbers: comparisons with other models, sanity checks, data, settings and versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plaudit.report.document import Block, Column, Paragraph, Section, Table
from plaudit.report.evaluations import Evaluation, SuiteOfModel
from plaudit.report.numbers import count_of, row_names
from plaudit.report.run import Run

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
