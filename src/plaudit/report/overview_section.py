"""The first thing to read: the numbers that count, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plaudit.report.document import Block, Column, Number, Numbers, Paragraph, Section, Table
from plaudit.report.evaluations import SuiteOfModel
from plaudit.report.numbers import count_of, written
from plaudit.report.run import Run
from plaudit.report.suite_numbers import accuracy_of, headline_numbers
from plaudit.report.suite_section import failed_checks
from plaudit.report.training_section import curves_of

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
    return [(f"There are only {accuracy['n']} judgements: the interval is {width:.0f} points wide.", "note")]


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
