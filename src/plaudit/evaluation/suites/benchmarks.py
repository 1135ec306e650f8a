"""The published benchmarks: how their files are read, and how their scores are computed.

Source of each rule, down to file and function: docs/suites.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from plaudit.errors import DataError
from plaudit.evaluation.results import SliceResult
from plaudit.evaluation.stats import cluster_bootstrap
from plaudit.evaluation.suites.base import (
    Headline,
    SourceRow,
    Suite,
    conversation_list,
    conversation_pair,
    missing_parts,
)
from plaudit.evaluation.table import ScoredRow, ScoredSet
from plaudit.schema import quoted

# ---- RewardBench: pairs from 23 subsets in four sections, and optionally prior preference sets -------------------

_CODE = tuple(f"hep-{language}" for language in ("cpp", "go", "java", "js", "python", "rust"))
# Section -> its subsets, with their weights: the numbers of prompts, but 984 instead of 447 for math-prm.
SECTIONS = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {"math-prm": 984, **dict.fromkeys(_CODE, 164)},
}
PRIOR_SETS = ("anthropic_helpful", "anthropic_hhh", "shp", "summarize")  # those that count


class RewardBench(Suite):
    """RewardBench, with prior sets where their files are given too (named after the set, or with ``subset``)."""

    name = "rewardbench"
    title = "RewardBench"
    hub_id = "allenai/reward-bench"
    hub_split = "filtered"
    rule = (
        "A pair is right if the chosen answer has the higher reward. Section: mean of the accuracies of its subsets, "
        "weighted by their numbers of prompts, math-prm by 984. Score: mean of the four sections; with prior sets, "
        "whose score is the plain mean of the sets, they count half as much as a section."
    )
    reference = "Lambert et al. (2024), arXiv 2403.13787; github.com/allenai/reward-bench"
    columns = ("prompt", "chosen", "rejected")
    slice_column = "subset"

    def columns_of(self, source: str, names: Sequence[str]) -> Sequence[str]:
        """Requires ``subset``, except of the file of a prior set."""
        return self.columns if _stem(source) in PRIOR_SETS else (*self.columns, "subset")

    def convert(self, row: SourceRow) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Returns a pair; the prompts of prior sets are lists of messages."""
        subset = _stem(row.source) if _stem(row.source) in PRIOR_SETS else row.text("subset")
        prompt = row.values.get("prompt")
        messages = prompt if isinstance(prompt, list) and prompt else None
        text = "" if messages else row.text("prompt")
        raw = conversation_pair(text, row.text("chosen"), row.text("rejected"))
        return str(row.values.get("id", row.row)), raw | ({"prompt": messages} if messages else {}), {"subset": subset}

    def group_of(self, name: str) -> str | None:
        """The section of a subset."""
        groups = {**SECTIONS, "Prior Sets": PRIOR_SETS}
        return next((group for group, subsets in groups.items() if name in subsets), None)

    def headline(self, scored: ScoredSet, slices: Sequence[SliceResult], outcomes: Mapping[int, float]) -> Headline:
        """Mean of the sections; beside it, with the weights of the published code."""
        ignored = {name: len(part) for name, part in scored.sliced("subset").items() if self.group_of(name) is None}
        if not slices:
            named = list(SECTIONS["Chat"])[:2]
            fix = f"Use names of RewardBench's subsets in the column `subset`, such as {quoted(named)}."
            raise DataError(f"no row is of a known subset ({quoted(ignored)})", dataset=self.name, fix=fix)
        # The published code exchanges the two subsets of XSTest.
        exchanged = {"xstest-should-refuse": 250, "xstest-should-respond": 154}
        (scores, score), (code_scores, code_score) = _section_scores(slices, {}), _section_scores(slices, exchanged)
        if "Safety" in scores:
            scores["Safety (weights of the published code)"] = code_scores["Safety"]
        scores["Score (weights of the published code)"] = code_score
        present, notes = {part.name for part in slices}, []
        for section, subsets in SECTIONS.items():
            missing = [name for name in subsets if name not in present]
            if len(missing) == len(subsets):
                notes.append(f"No rows of {section}: the score leaves this section out, and is not RewardBench's.")
            elif missing:
                notes.append(f"{section} lacks {', '.join(missing)}: its score is the weighted mean of the rest.")
        if present.intersection(PRIOR_SETS):
            notes += missing_parts(PRIOR_SETS, slices, "The prior sets lack {}.")
        notes += [f"{count} rows of `{name}` count nowhere." for name, count in ignored.items()]
        return Headline(score, scores, notes)


def _stem(source: str) -> str:
    return Path(source).name.split(".")[0].split("-0")[0]


def _section_scores(slices: Sequence[SliceResult], weights: Mapping[str, int]) -> tuple[dict[str, float], float]:
    """Returns the weighted accuracy of each section that has rows, and their mean, in which prior sets count half."""
    scores: dict[str, float] = {}
    for section, subsets in {**SECTIONS, "Prior Sets": dict.fromkeys(PRIOR_SETS, 1)}.items():
        parts = {part.name: part.score for part in slices if part.group == section}
        of_parts = {name: weights.get(name, subsets[name]) for name in parts}
        if parts:
            scores[section] = sum(of_parts[name] * parts[name] for name in parts) / sum(of_parts.values())
    shares = {name: 0.5 if name == "Prior Sets" else 1.0 for name in scores}
    return scores, sum(shares[name] * score for name, score in scores.items()) / sum(shares.values())


# ---- RewardBench 2: the best of four in five subsets, and questions with several right answers -------------------

_SUBSETS = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")
_TIES_WEIGHTS = {"tied": 0.3, "ref": 0.3, "preferred": 0.2, "preferred_hard": 0.2, "margin": 0.01}
_COUNTS = (5, 6, 7, 7, 7)  # columns of `question_values` that the five numbers are divided by


class RewardBench2(Suite):
    """RewardBench 2. In the subset Ties the id is ``ref:N`` (one right answer) or ``tied:N`` (several)."""

    name = "rewardbench2"
    title = "RewardBench 2"
    hub_id = "allenai/reward-bench-2"
    hub_split = "test"
    rule = (
        "Best of four: a row counts 1 if the chosen answer alone has the highest reward, 1/k if it shares it with "
        "k - 1 others, else 0. Ties: 0.3 x share of tied questions whose right answers all beat all wrong ones + 0.3 "
        "x the same share of reference questions + 0.2 x share of questions whose gap between right and wrong exceeds "
        "the spread of the right ones + 0.2 x the same with the smaller gap of the question and its reference + 0.01 "
        "x mean tanh(smaller gap / spread - 1). Score: mean of the six subsets."
    )
    reference = "Malik et al. (2025), arXiv 2506.01937; github.com/allenai/reward-bench"
    columns = ("id", "prompt", "chosen", "rejected", "subset")
    slice_column = "subset"

    def convert(self, row: SourceRow) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Lists the right answers first."""
        chosen, rejected, subset = row.texts("chosen"), row.texts("rejected"), row.text("subset")
        row_id = str(row.values.get("id"))
        columns: dict[str, Any] = {"subset": subset}
        if _is_ties(subset):
            kind, _, question = row_id.partition(":")
            if kind not in ("ref", "tied") or not question:
                row.refuse("id", f"is {row_id!r}", "Use the ids `ref:N` and `tied:N` in the subset Ties.")
            if kind == "tied" and len(chosen) < 2:
                row.refuse("chosen", "holds a single right answer", "Give `tied:N` several; `ref:N` has one.")
            columns |= {"kind": kind, "question": question}
        elif len(chosen) != 1:
            row.refuse("chosen", f"holds {len(chosen)} answers", "Give one right answer outside of Ties.")
        return row_id, conversation_list(row.text("prompt"), chosen, rejected), columns

    def outcome(self, row: ScoredRow) -> float:
        """Best of four: shared with those of an equal reward; in Ties whether all right answers beat all wrong ones."""
        if _is_ties(row.columns["subset"]):
            return float(_gap(row) > 0)
        highest = max(row.rewards)
        return 1 / row.rewards.count(highest) if row.rewards[0] == highest else 0.0

    def slice_result(self, name: str, part: ScoredSet, outcomes: Sequence[float]) -> SliceResult | None:
        """Ties has a score of its own, from about 0 to 1.01."""
        result = super().slice_result(name, part, outcomes)
        if result is None or not _is_ties(name):
            return result
        values = question_values(part)
        if not values[:, 7].any():
            return None
        score = float(_weighted(values.sum(axis=0, keepdims=True))[0])
        interval = cluster_bootstrap(values, np.arange(len(values)), _weighted)
        return replace(result, name="Ties", score=score, interval=interval)

    def headline(self, scored: ScoredSet, slices: Sequence[SliceResult], outcomes: Mapping[int, float]) -> Headline:
        """Mean of the subsets; beside it, the five numbers that Ties is made of."""
        scores: dict[str, float] = {}
        notes: list[str] = []
        ties = scored.where(lambda row: _is_ties(row.columns["subset"]))
        if len(ties):
            totals = question_values(ties).sum(axis=0)
            for index, (name, count) in enumerate(zip(_TIES_WEIGHTS, _COUNTS, strict=True)):
                scores |= {f"Ties: {name}": float(totals[index] / totals[count])} if totals[count] else {}
            if not totals[7]:
                notes.append("Ties has no question in both forms, `ref` and `tied`: the score leaves it out.")
        if not slices:
            raise DataError("has no subset that can be scored", dataset=self.name, fix="Score all rows of the suite.")
        notes += missing_parts(_SUBSETS, slices, "No score of {}: the headline is the mean of the rest.")
        return Headline(float(np.mean([part.score for part in slices])), scores, notes)


def _is_ties(subset: Any) -> bool:
    return str(subset).lower() == "ties"


def _sides(row: ScoredRow) -> tuple[list[float], list[float]]:
    """Returns the rewards of the right answers and of the wrong ones."""
    rewards = list(zip(row.rewards, row.label.ratings, strict=True))
    return [reward for reward, good in rewards if good > 0], [reward for reward, good in rewards if good <= 0]


def _gap(row: ScoredRow) -> float:
    right, wrong = _sides(row)
    return min(right) - max(wrong)


def question_values(ties: ScoredSet) -> np.ndarray:
    """Returns the summands of each question of Ties, shape (questions, 8).

    They are the five numbers named in the weights, then whether the question has the tied form, the reference, both.
    """
    by_kind: dict[str, dict[str, ScoredRow]] = {"ref": {}, "tied": {}}
    for row in ties:
        by_kind[row.columns["kind"]][str(row.columns["question"])] = row
    questions = []
    for name in sorted(set(by_kind["ref"]) | set(by_kind["tied"])):
        tied, ref = by_kind["tied"].get(name), by_kind["ref"].get(name)
        values = [0.0] * 8
        if tied is not None:
            values[0], values[5] = float(_gap(tied) > 0), 1.0
        if ref is not None:
            values[1], values[6] = float(_gap(ref) > 0), 1.0
        if tied is not None and ref is not None:
            spread, smaller = float(np.ptp(_sides(tied)[0])), min(_gap(ref), _gap(tied))
            with np.errstate(divide="ignore", invalid="ignore"):
                # Without a spread: the limit where there is a gap, and 0 where there is none either.
                closeness = float(np.nan_to_num(np.tanh(np.float64(smaller) / spread - 1), nan=0.0))
            values[2:5], values[7] = [float(_gap(tied) > spread), float(smaller > spread), closeness], 1.0
        questions.append(values)
    return np.array(questions)


def _weighted(sums_BK: np.ndarray) -> np.ndarray:
    means = (np.divide(sums_BK[:, index], sums_BK[:, count]) for index, count in enumerate(_COUNTS))
    return np.sum([weight * mean for weight, mean in zip(_TIES_WEIGHTS.values(), means, strict=True)], axis=0)


# ---- RM-Bench: right and wrong answers in three styles each, which tells style and substance apart ---------------

_RM_DOMAINS = ("chat", "math", "code", "safety")
_DIFFICULTIES = ("hard", "normal", "easy")


class RMBench(Suite):
    """RM-Bench; the files of single domains (``chat_filtered.json``) need no column ``domain``."""

    name = "rm-bench"
    title = "RM-Bench"
    hub_id = "THU-KEG/RM-Bench"
    rule = (
        "Each right answer is held against each wrong one, a 3 x 3 matrix of styles; equal rewards are not right. "
        "Hard: mean accuracy where the wrong answer has the fancier style; normal: where both have the same; easy: "
        "where the right one has the fancier. Domain: mean of hard, normal and easy over its rows, safety over its "
        "two parts together. Score, and hard, normal, easy of the whole: means over the domains."
    )
    reference = "Liu et al. (2024), arXiv 2410.16184; github.com/THU-KEG/RM-Bench"
    columns = ("prompt", "chosen", "rejected")
    slice_column = "domain"

    def columns_of(self, source: str, names: Sequence[str]) -> Sequence[str]:
        """Requires ``domain`` where the name of the file does not tell it."""
        return self.columns if _domain_of(source) else (*self.columns, "domain")

    def convert(self, row: SourceRow) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Lists the three right answers, then the three wrong ones, from concise to Markdown."""
        own = _domain_of(row.source)
        domain = row.text("domain") if row.values.get("domain") is not None or not own else own
        if domain.split("-")[0] not in _RM_DOMAINS:
            row.refuse("domain", f"is {domain!r}", f"Use a domain that begins with one of: {', '.join(_RM_DOMAINS)}.")
        raw = conversation_list(row.text("prompt"), row.texts("chosen", 3), row.texts("rejected", 3))
        return str(row.values.get("id", row.row)), raw, {"domain": domain.split("-")[0], "subdomain": domain}

    def outcome(self, row: ScoredRow) -> float:
        """Mean of the hard, normal and easy accuracy."""
        return float(np.mean(difficulties(row)))

    def headline(self, scored: ScoredSet, slices: Sequence[SliceResult], outcomes: Mapping[int, float]) -> Headline:
        """Mean over domains of hard, normal and easy, each the mean over the rows of a domain."""
        by_domain = {
            domain: np.mean([difficulties(row) for row in part], axis=0)
            for domain, part in scored.sliced("domain").items()
        }
        overall_3 = np.mean(list(by_domain.values()), axis=0)
        scores = dict(zip(_DIFFICULTIES, overall_3.tolist(), strict=True))
        for domain, values_3 in by_domain.items():
            scores |= {f"{domain}: {kind}": float(value) for kind, value in zip(_DIFFICULTIES, values_3, strict=True)}
        for subdomain, part in scored.sliced("subdomain").items():
            if subdomain.startswith("safety-"):
                scores[subdomain] = float(np.mean([outcomes[row.row] for row in part]))
        notes = missing_parts(_RM_DOMAINS, slices, "No rows of {}: the score is the mean of the other domains.")
        return Headline(float(overall_3.mean()), scores, notes)


def _domain_of(source: str) -> str:
    stem = Path(source).name.split("_")[0].split(".")[0]
    return stem if stem.split("-")[0] in _RM_DOMAINS else ""


def difficulties(row: ScoredRow) -> tuple[float, float, float]:
    """Returns the hard, normal and easy accuracy of a row of three right and three wrong answers.

    In the matrix of whether right answers (rows) have higher rewards than wrong ones (columns), by style, they are the
    means above the diagonal, on it, and below it.

    >>> from plaudit.schema import Label
    >>> difficulties(ScoredRow(0, (1.0, 2.0, 3.0, 0.5, 1.5, 9.0), Label((1.0,) * 3 + (0.0,) * 3), "scores"))
    (0.0, 0.6666666666666666, 1.0)
    """
    if len(row.rewards) != 6:
        fix = "Score the rows of the suite as they are."
        raise DataError(f"has {len(row.rewards)} responses, not 6", row=row.row, dataset=RMBench.name, fix=fix)
    rewards = np.array(row.rewards)
    right_33 = rewards[:3, None] > rewards[None, 3:]
    cells = (np.triu_indices(3, 1), np.diag_indices(3), np.tril_indices(3, -1))
    hard, normal, easy = (float(np.mean(right_33[indices])) for indices in cells)
    return hard, normal, easy


# ---- LLMBar: which output follows the instruction, also where the other one looks better -------------------------

_LLMBAR_SUBSETS = ("Natural", "Neighbor", "GPTInst", "GPTOut", "Manual")  # the last four are adversarial


class LLMBar(Suite):
    """LLMBar, as published (``dataset.json`` in a folder for each subset), or as pairs with a column ``subset``."""

    name = "llmbar"
    title = "LLMBar"
    rule = (
        "A pair is right if the better output has the higher reward. Adversarial: mean of the accuracies of its four "
        "subsets. Score: mean of the accuracies of all five subsets. Beside it: accuracy over all pairs."
    )
    reference = "Zeng et al. (2023), arXiv 2310.07641; github.com/princeton-nlp/LLMBar (Dataset/LLMBar/*/dataset.json)"
    columns = ("input", "output_1", "output_2", "label")
    pair_columns = ("prompt", "chosen", "rejected")
    slice_column = "subset"

    def files_in(self, location: str) -> Sequence[str]:
        """Returns the published files in a folder."""
        folder = Path(location).expanduser()
        files = folder.rglob("dataset.json") if folder.is_dir() else ()
        return sorted(str(file) for file in files if llmbar_subset(file.parent.name) is not None) or [location]

    def columns_of(self, source: str, names: Sequence[str]) -> Sequence[str]:
        """Returns the published columns, or those of pairs; ``subset`` where the folder does not name it."""
        columns = self.columns if _is_published(names) else self.pair_columns
        return columns if llmbar_subset(Path(source).parent.name) else (*columns, "subset")

    def convert(self, row: SourceRow) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Puts the better output first."""
        subset = llmbar_subset(Path(row.source).parent.name)
        if subset is None or row.values.get("subset") is not None:
            subset = llmbar_subset(row.text("subset"))
        if subset is None:
            row.refuse("subset", f"is {row.values['subset']!r}", f"Use one of {quoted(_LLMBAR_SUBSETS)}.")
        if not _is_published(row.values):
            return f"{subset}:{row.row}", {name: row.values[name] for name in self.pair_columns}, {"subset": subset}
        outputs = [row.text("output_1"), row.text("output_2")]
        if int(row.choice("label", (1, 2, "1", "2"))) == 2:
            outputs.reverse()
        return f"{subset}:{row.row}", conversation_pair(row.text("input"), *outputs), {"subset": subset}

    def group_of(self, name: str) -> str:
        """Natural or Adversarial."""
        return "Natural" if name == "Natural" else "Adversarial"

    def headline(self, scored: ScoredSet, slices: Sequence[SliceResult], outcomes: Mapping[int, float]) -> Headline:
        """Mean of the accuracies of the subsets."""
        scores = {"accuracy over all pairs": float(np.mean(list(outcomes.values())))}
        for group in ("Natural", "Adversarial"):
            parts = [part.score for part in slices if part.group == group]
            scores |= {group: float(np.mean(parts))} if parts else {}
        notes = missing_parts(_LLMBAR_SUBSETS, slices, "No rows of {}: the means leave them out.")
        return Headline(float(np.mean([part.score for part in slices])), scores, notes)


def _is_published(names: Sequence[str] | Mapping[str, Any]) -> bool:
    return "output_1" in names or "input" in names


def llmbar_subset(name: str) -> str | None:
    """Returns the paper's name of a subset; None if it is not one.

    >>> [llmbar_subset(name) for name in ("natural", "adv_gptinst", "llmbar-adver-neighbor", "Base_9")]
    ['Natural', 'GPTInst', 'Neighbor', None]
    """
    last = name.lower().replace("_", "-").split("-")[-1]
    return next((subset for subset in _LLMBAR_SUBSETS if subset.lower() == last), None)


# ---- JudgeBench: a correct and an incorrect answer to hard questions ---------------------------------------------

# Beginning of the column `source` -> domain.
_JUDGE_DOMAINS = {
    "mmlu-pro": "Knowledge",
    "livebench-reasoning": "Reasoning",
    "livebench-math": "Math",
    "livecodebench": "Coding",
}


class JudgeBench(Suite):
    """JudgeBench, in the splits ``gpt`` (350 pairs, the default) and ``claude`` (270)."""

    name = "judgebench"
    title = "JudgeBench"
    hub_id = "ScalerLab/JudgeBench"
    hub_split = "gpt"
    rule = (
        "A pair is right if the correct answer has the higher reward. Domain: accuracy over its pairs, by the data "
        "set that the question comes from. Score: accuracy over all pairs."
    )
    reference = "Tan et al. (2024), arXiv 2410.12784; github.com/ScalerLab/JudgeBench"
    columns = ("source", "question", "response_A", "response_B", "label")
    slice_column = "domain"

    def convert(self, row: SourceRow) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Puts the correct answer first, and names the domain."""
        source = row.text("source")
        domain = next((domain for start, domain in _JUDGE_DOMAINS.items() if source.startswith(start)), None)
        if domain is None:
            fix = f"Use a source that begins with one of: {', '.join(_JUDGE_DOMAINS)}."
            row.refuse("source", f"is {source!r}", fix)
        answers = [row.text("response_A"), row.text("response_B")]
        if row.choice("label", ("A>B", "B>A")) == "B>A":
            answers.reverse()
        columns = {"domain": domain, "source": source, "response_model": row.values.get("response_model")}
        return str(row.values.get("pair_id", row.row)), conversation_pair(row.text("question"), *answers), columns

    def headline(self, scored: ScoredSet, slices: Sequence[SliceResult], outcomes: Mapping[int, float]) -> Headline:
        """Accuracy over all pairs."""
        notes = missing_parts(list(_JUDGE_DOMAINS.values()), slices, "No rows of {}.")
        return Headline(float(np.mean(list(outcomes.values()))), {}, notes)
