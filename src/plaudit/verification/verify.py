"""`verify`: the golden rows of a model through every way of running it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from transformers import PreTrainedTokenizerBase

from plaudit.data.load import load_preference_dataset
from plaudit.errors import ConfigError
from plaudit.export.export import plain_rewards
from plaudit.inference.reward_model import RewardModel
from plaudit.model.calibration import load_calibration
from plaudit.model.golden import FORMAT, GoldenRow, GoldenRows, chat_template_hash, load_golden_rows, read_golden_rows
from plaudit.model.load import Source, context_length, default_device, load_reward_model, load_tokenizer_of
from plaudit.model.peft import base_model_of
from plaudit.training.artifacts import choose_golden_rows, computed_in
from plaudit.verification.diagnosis import Finding, Suspect, diagnose, suspects_of
from plaudit.verification.local_paths import (
    ERRORS,
    LocalModel,
    export_path,
    scorer_paths,
    token_ids,
    transformers_paths,
)
from plaudit.verification.observations import Observation, tolerance_for
from plaudit.verification.servers import Conversation, Server, ServerKind, kind_of_server, server_paths
from plaudit.version import installed_versions

Verdict: TypeAlias = Literal["same", "differs", "failed", "skipped"]
"""``failed``: there are no rewards to compare; ``skipped``: it does not apply here."""


@dataclass(frozen=True)
class PathResult:
    """One way of running the model.

    Attributes:
        path: The way, in words.
        verdict: Whether its rewards are those of the golden rows.
        rows: How many golden rows were sent.
        largest: Largest difference, in reward units (None: there are no rewards).
        mean: Mean of the absolute differences.
        tolerance: Most that was allowed.
        finding: What a difference looks like.
        note: Why it failed or was skipped, or how many rows have other token ids.
    """

    path: str
    verdict: Verdict
    rows: int = 0
    largest: float | None = None
    mean: float | None = None
    tolerance: float | None = None
    finding: Finding | None = None
    note: str = ""


@dataclass(frozen=True)
class Verification:
    """What a verification found.

    Attributes:
        model: What was verified.
        golden: Its golden rows.
        results: One for each way of running it.
    """

    model: str
    golden: GoldenRows
    results: tuple[PathResult, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Whether every way that applies gives the golden rewards, and at least one of them was tried."""
        verdicts = {one.verdict for one in self.results}
        return "same" in verdicts and not verdicts & {"differs", "failed"}

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the differences look like, each kind once."""
        return tuple(dict.fromkeys(one.finding for one in self.results if one.finding is not None))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "model": self.model,
            "passed": self.passed,
            "rows": len(self.golden.rows),
            "dtype": self.golden.dtype,
            "results": [
                {
                    **{name: value for name, value in vars(one).items() if name != "finding"},
                    "trap": None if one.finding is None else one.finding.trap,
                    "message": None if one.finding is None else one.finding.message,
                }
                for one in self.results
            ],
        }

    def __str__(self) -> str:
        return "\n".join(lines_of(self))


def judged(golden: GoldenRows, seen: Observation, suspects: Sequence[Suspect], tolerance: float | None) -> PathResult:
    """The verdict on one way of running the model.

    Args:
        golden: The golden rows.
        seen: What came out.
        suspects: What would come out if known mistakes were made.
        tolerance: Most that a reward may differ (None: what its dtype allows).
    """
    if seen.skipped:
        return PathResult(seen.path, "skipped", note=seen.skipped)
    if seen.problem:
        return PathResult(seen.path, "failed", len(seen.rows), note=seen.problem)
    allowed = tolerance_for(golden, seen) if tolerance is None else tolerance
    finding = diagnose(golden, seen, suspects, tolerance=allowed)
    differences = (
        []
        if seen.rewards is None
        else [abs(got - wanted) for got, wanted in zip(seen.rewards, seen.wanted(golden), strict=True)]
    )
    note = ""
    if seen.ids is not None:
        other = sum(got != wanted for got, wanted in zip(seen.ids, seen.wanted_ids(golden), strict=True))
        note = f"other token ids in {other} of {len(seen.rows)} rows" if other else ""
    within = all(one <= allowed for one in differences)  # NaN is not
    return PathResult(
        seen.path,
        "same" if within and not note else "differs",
        len(seen.rows),
        max(differences, key=lambda one: float("inf") if one != one else one) if differences else None,
        sum(differences) / len(differences) if differences else None,
        allowed,
        finding,
        note,
    )


def number(value: float | None) -> str:
    """A difference for people.

    Args:
        value: It, in reward units (None: there is none).

    >>> number(0.00012), number(0.0), number(None)
    ('1.2e-04', '0', '')
    """
    return "" if value is None else "0" if value == 0 else f"{value:.1e}"


def sayings(verification: Verification) -> list[tuple[list[str], str]]:
    """What is to be said about ways that are not the same: their names, and it; alike ones together.

    Args:
        verification: What was found.
    """
    found: dict[str, list[str]] = {}
    for one in verification.results:
        note = f"{one.note.rstrip('.')}." if one.note else ""
        said = " ".join(part for part in (note, one.finding.message if one.finding else "") if part)
        if said and one.verdict != "same":
            found.setdefault(said, []).append(one.path)
    return [(paths, said) for said, paths in found.items()]


def lines_of(verification: Verification) -> list[str]:
    """A verification as lines of text.

    Args:
        verification: It.
    """
    width = max((len(one.path) for one in verification.results), default=3)
    lines = [f"{'way':{width}}  rows  largest     mean  allowed  verdict"]
    for one in verification.results:
        numbers = "  ".join(f"{number(value):>7}" for value in (one.largest, one.mean, one.tolerance))
        lines.append(f"{one.path:{width}}  {one.rows or '':>4}  {numbers}  {one.verdict}")
    for paths, said in sayings(verification):
        lines += ["", f"{', '.join(paths)}: {said}"]
    return lines


logger = logging.getLogger("plaudit")
_ROWS = 8
_STORED = {"tf32": "float32", "quantized": "auto"}


def verify(
    model: str | Path,
    *,
    rows: GoldenRows | str | Path | Iterable[Any] | None = None,
    save: bool = False,
    url: str | None = None,
    server: ServerKind = "auto",
    api_key: str | None = None,
    tolerance: float | None = None,
    dtype: str | None = None,
    device: torch.device | str | None = None,
    local: bool = True,
    export: bool = True,
    max_tokens_per_batch: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Verification:
    """Hold every way of running a reward model to the rewards that were saved with it.

    The golden rows beside the model go through plain transformers (one by one, and as a padded batch), its pipeline,
    our scorer (both layouts, one by one and together), the merged export, and a running server.

    Args:
        model: A folder, or a model id on the Hub: a whole model, or an adapter.
        rows: Golden rows, or a file of them, in place of those beside the model; or preferences (as for
            `load_preference_dataset`, or rows in memory) of which some become golden rows, with the rewards that plain
            transformers gives them one by one.
        save: Write the golden rows into the folder of the model.
        url: A running server of the model, such as ``"http://127.0.0.1:8000"``.
        server: What the server is; ``"auto"`` asks it.
        api_key: Its key.
        tolerance: Most that a reward may differ; by default 1e-4 in float32, 0.01 in float16 and 0.05 in bfloat16,
            times the largest reward where that is above 1.
        dtype: What the weights are stored in here, by default what the golden rewards were computed in.
        device: Where it is run; by default the accelerator, or the CPU.
        local: Run the model here, too; without it only the server is asked.
        export: Export the model into a temporary folder, too, which takes as much space again.
        max_tokens_per_batch: Tokens of the scorer's larger batches; see `RewardModel`.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Allow model and tokenizer code from the Hub.

    Returns:
        The differences, and what they look like.

    Raises:
        ConfigError: There are no golden rows, or there is no such model or server.
    """
    source = Source(str(model), revision, trust_remote_code)
    place = default_device() if device is None else torch.device(device)
    asked = None if url is None else Server(url, server, api_key)
    if asked is None and not local:
        raise ConfigError("there is nothing to verify", fix="Give the `url` of a server, or leave `local` on.")
    if save and not Path(source.name).is_dir():
        raise ConfigError(f"{source.name!r} is no folder to save golden rows in", fix="Name the model's folder.")
    golden = _golden_rows(source, rows, place, dtype)
    if save:
        logger.info("Wrote %d golden rows: %s.", len(golden.rows), golden.save(source.name))
    stored = dtype or _STORED.get(golden.dtype, golden.dtype)
    here = LocalModel(source, golden, place, stored, max_tokens_per_batch)
    tokenizer = load_tokenizer_of(source)
    seen: list[Observation] = []
    suspects: list[Suspect] = []
    if local:
        seen += _local(here, tokenizer, suspects, export=export)
    if asked is not None:
        found = Server(asked.url, kind_of_server(asked), api_key)
        seen += server_paths(Conversation(found, golden, tokenizer, load_calibration(source.name, revision)))
    return Verification(source.name, golden, tuple(judged(golden, one, suspects, tolerance) for one in seen))


def _local(
    here: LocalModel, tokenizer: PreTrainedTokenizerBase, suspects: list[Suspect], *, export: bool
) -> list[Observation]:
    """Run the model here in all ways; `suspects` is filled with what known mistakes would give."""
    seen = [token_ids(here, tokenizer)]
    try:
        model = here.load()
    except ERRORS as error:
        return [*seen, Observation("loading the model", here.rows, problem=str(error))]
    seen += transformers_paths(here, model, tokenizer)
    seen += scorer_paths(here, model, tokenizer)
    suspects += _suspects(here, model, tokenizer)
    del model
    if export:
        seen.append(export_path(here))
    return seen


def _suspects(here: LocalModel, model: Any, tokenizer: PreTrainedTokenizerBase) -> list[Suspect]:
    try:
        scorer = RewardModel(model, tokenizer, batch_layout="padded")

        def score(ids: list[list[int]]) -> list[float]:
            return [reward for row in scorer.score([{"response_ids": [one]} for one in ids]) for reward in row]

        return suspects_of(here.golden, tokenizer, score)
    except ERRORS as error:
        logger.debug("No comparison with known mistakes: %s", error)
        return []


def _golden_rows(source: Source, rows: Any, device: torch.device, dtype: str | None) -> GoldenRows:
    if rows is None:
        found = load_golden_rows(source.name, source.revision)
        if found is not None:
            return found
        raise ConfigError(
            f"{source.name!r} has no golden rows: it was not trained by Plaudit, or with golden_rows=0",
            fix="Make them of any preferences: `plaudit verify MODEL --rows FILE --save` computes their rewards with "
            "plain transformers, and keeps them beside the model.",
        )
    if isinstance(rows, GoldenRows):
        return rows
    if isinstance(rows, str | Path):
        if _holds_golden_rows(Path(rows)):
            return read_golden_rows(rows)
        dataset: Any = load_preference_dataset(rows)
    else:
        from datasets import Dataset, IterableDataset

        dataset = rows if isinstance(rows, Dataset | IterableDataset) else Dataset.from_list(list(rows))
    return make_golden_rows(source, dataset, device=device, dtype=dtype or "float32")


def _holds_golden_rows(path: Path) -> bool:
    if path.suffix != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        return FORMAT.encode() in file.read(200)


def make_golden_rows(source: Source, dataset: Any, *, device: torch.device, dtype: str) -> GoldenRows:
    """Golden rows of a model that has none: rewards of plain transformers, one response at a time.

    Args:
        source: Where the model comes from.
        dataset: Raw preferences.
        device: Where it is computed.
        dtype: What the weights are stored in.

    Raises:
        ConfigError: No row can be read, or there is no such model.
    """
    tokenizer = load_tokenizer_of(source)
    model = load_reward_model(source, device=device, dtype=dtype)
    base_model = base_model_of(model)
    limit = context_length(base_model, tokenizer, decoder=True)
    rows: tuple[GoldenRow, ...] = choose_golden_rows(tokenizer, (dataset,), _ROWS, max_length=limit)
    if not rows:
        raise ConfigError(
            "no row can be a golden row: none can be read as a preference, or all are too long",
            fix="Give rows in one of the data formats, with few enough tokens for the model.",
        )
    golden = GoldenRows(
        rows,
        chat_template=chat_template_hash(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        how="rewards of plain transformers, one response at a time",
        versions=installed_versions(),
    )
    return golden.with_rewards(plain_rewards(model, [row.ids for row in rows]), computed_in(base_model))
