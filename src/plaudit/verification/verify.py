"""`verify` runs the golden rows of a model in every way it can be run, and compares the rewards."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from datasets import Dataset, IterableDataset

from plaudit.data.load import load_preference_dataset, read_preferences
from plaudit.errors import ConfigError
from plaudit.export.export import plain_rewards
from plaudit.inference.reward_model import RewardModel
from plaudit.model.golden import FORMAT, GoldenRow, GoldenRows, chat_template_hash, load_golden_rows, read_golden_rows
from plaudit.model.load import Source, choose_device, context_length, load_reward_model, load_tokenizer_of
from plaudit.model.peft import base_model_of
from plaudit.training.artifacts import choose_golden_rows, computed_in
from plaudit.verification.diagnosis import Finding, Observation, Suspect, diagnose, suspects_of, tolerance_for
from plaudit.verification.local_paths import ERRORS, Subject, export_path, scorer_paths, token_ids, transformers_paths
from plaudit.verification.servers import Server, ServerKind, kind_of_server, server_paths
from plaudit.version import installed_versions

logger = logging.getLogger("plaudit")
Verdict: TypeAlias = Literal["same", "differs", "failed", "skipped"]
"""``failed``: there are no rewards to compare; ``skipped``: the way does not apply."""
_ROWS = 8
_STORED = {"tf32": "float32", "quantized": "auto"}


@dataclass(frozen=True)
class PathResult:
    """The result of one way of running the model."""

    path: str  # the way, in words
    verdict: Verdict
    rows: int = 0  # golden rows that were sent
    largest: float | None = None  # largest difference, in reward units; None: there are no rewards
    mean: float | None = None  # mean absolute difference
    tolerance: float | None = None  # largest allowed difference
    finding: Finding | None = None  # the cause of a difference
    note: str = ""  # why it failed or was skipped, or how many rows have other token ids


@dataclass(frozen=True)
class Verification:
    """The result of `verify`: one entry per way of running the model."""

    model: str
    golden: GoldenRows
    results: tuple[PathResult, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every way that applies gives the golden rewards, and at least one does."""
        verdicts = {result.verdict for result in self.results}
        return "same" in verdicts and not verdicts & {"differs", "failed"}

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The causes of the differences, each once."""
        return tuple(dict.fromkeys(result.finding for result in self.results if result.finding is not None))

    @property
    def explanations(self) -> dict[str, list[str]]:
        """Each explanation of a difference, failure or skip, with the ways that it is about."""
        paths: dict[str, list[str]] = {}
        for result in self.results:
            note = f"{result.note.rstrip('.')}." if result.note else ""
            text = " ".join(part for part in (note, result.finding.message if result.finding else "") if part)
            if text and result.verdict != "same":
                paths.setdefault(text, []).append(result.path)
        return paths

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain values, which JSON can hold."""
        results = []
        for result in self.results:
            values = {**vars(result), "trap": None, "message": None}
            finding = values.pop("finding")
            results.append(values if finding is None else {**values, "trap": finding.trap, "message": finding.message})
        about = {"model": self.model, "passed": self.passed, "rows": len(self.golden.rows), "dtype": self.golden.dtype}
        return {**about, "results": results}

    def __str__(self) -> str:
        width = max((len(result.path) for result in self.results), default=3)
        lines = [f"{'way':{width}}  rows  largest     mean  allowed  verdict"]
        for result in self.results:
            numbers = "  ".join(f"{number(value):>7}" for value in (result.largest, result.mean, result.tolerance))
            lines.append(f"{result.path:{width}}  {result.rows or '':>4}  {numbers}  {result.verdict}")
        return "\n".join(lines + [f"\n{', '.join(paths)}: {text}" for text, paths in self.explanations.items()])


def number(value: float | None) -> str:
    """Formats a difference in reward units.

    >>> number(0.00012), number(0.0), number(None)
    ('1.2e-04', '0', '')
    """
    return "" if value is None else "0" if value == 0 else f"{value:.1e}"


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
    """Compare the rewards of every way of running a reward model with those that were saved with it.

    The golden rows beside the model go through plain transformers (one by one, and as a padded batch), its pipeline,
    our scorer (both layouts, one by one and together), the merged export, and a running server.

    Args:
        model: A folder, or a model id on the Hub: a whole model, or an adapter.
        rows: Golden rows, or a file of them, in place of those beside the model; or preferences (as for
            `load_preference_dataset`, or rows in memory) of which some become golden rows, with the rewards that plain
            transformers gives them one by one.
        save: Write the golden rows into the folder of the model.
        url: A running server of the model, such as ``"http://127.0.0.1:8000"``.
        server: Kind of the server; ``"auto"`` detects it from the server's routes.
        api_key: API key of the server.
        tolerance: Largest allowed difference of a reward; by default 1e-4 in float32, 0.01 in float16 and 0.05 in
            bfloat16, times the largest reward where that is above 1.
        dtype: What the weights are stored in here, by default what the golden rewards were computed in.
        device: Where it is run; by default the accelerator, or the CPU.
        local: Run the model on this machine, too; otherwise only on the server.
        export: Also export the model into a temporary folder, which takes as much space as the model.
        max_tokens_per_batch: Tokens of the scorer's larger batches; see `RewardModel`.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Allow model and tokenizer code from the Hub.

    Returns:
        The differences, and their causes where they are known.

    Raises:
        ConfigError: There are no golden rows, or there is no such model or server.
    """
    source = Source(str(model), revision, trust_remote_code)
    device = choose_device(device)
    target = None if url is None else Server(url, server, api_key)
    if target is None and not local:
        raise ConfigError("there is nothing to verify", fix="Pass the `url` of a server, or leave `local` on.")
    if save and not Path(source.name).is_dir():
        raise ConfigError(f"{source.name!r} is no folder to save golden rows in", fix="Pass the model's folder.")
    golden = _golden_rows(source, rows, device, dtype)
    if save:
        logger.info("Wrote %d golden rows: %s.", len(golden.rows), golden.save(source.name))
    tokenizer, stored = load_tokenizer_of(source), dtype or _STORED.get(golden.dtype, golden.dtype)
    subject = Subject(source, golden, tokenizer, device, stored, max_tokens_per_batch)
    seen, suspects = _run_locally(subject, export=export) if local else ([], [])
    if target is not None:
        seen += server_paths(Server(target.url, kind_of_server(target), api_key), subject)
    return Verification(source.name, golden, tuple(_judge(golden, way, suspects, tolerance) for way in seen))


def _run_locally(subject: Subject, *, export: bool) -> tuple[list[Observation], list[Suspect]]:
    """Runs the model here in all ways; also returns the rewards that known mistakes would give."""
    seen = [token_ids(subject)]
    suspects: list[Suspect] = []
    scorer: Any = None
    try:
        model: Any = load_reward_model(subject.source, device=subject.device, dtype=subject.dtype)
    except ERRORS as error:
        return [*seen, Observation("loading the model", subject.rows, problem=str(error))], suspects
    seen += [*transformers_paths(subject, model), *scorer_paths(subject, model)]
    try:
        scorer = RewardModel(model, subject.tokenizer, batch_layout="padded")

        def score(ids: list[list[int]]) -> list[float]:
            return [rewards[0] for rewards in scorer.score([{"response_ids": [row_ids]} for row_ids in ids])]

        suspects = suspects_of(subject.golden, subject.tokenizer, score)
    except ERRORS as error:
        logger.debug("No comparison with known mistakes: %s", error)
    if export:
        del model, scorer  # the export loads the model once more
        seen.append(export_path(subject))
    return seen, suspects


def _judge(golden: GoldenRows, seen: Observation, suspects: Sequence[Suspect], tolerance: float | None) -> PathResult:
    """Compares one way with the golden rows."""
    if seen.skipped:
        return PathResult(seen.path, "skipped", note=seen.skipped)
    if seen.problem:
        return PathResult(seen.path, "failed", len(seen.rows), note=seen.problem)
    allowed = tolerance_for(golden, seen) if tolerance is None else tolerance
    differences = np.abs(np.subtract(seen.rewards or (), seen.expected_rewards(golden) if seen.rewards else ()))
    note = ""
    if seen.ids is not None:
        changed = sum(ids != expected for ids, expected in zip(seen.ids, seen.expected_ids(golden), strict=True))
        note = f"other token ids in {changed} of {len(seen.rows)} rows" if changed else ""
    within = bool((differences <= allowed).all())  # NaN is not
    return PathResult(
        seen.path,
        "same" if within and not note else "differs",
        len(seen.rows),
        float(differences.max()) if len(differences) else None,
        float(differences.mean()) if len(differences) else None,
        allowed,
        diagnose(golden, seen, suspects, tolerance=allowed),
        note,
    )


def _golden_rows(source: Source, rows: Any, device: torch.device, dtype: str | None) -> GoldenRows:
    """Returns the golden rows beside the model, those that were passed, or new ones made of preferences.

    Those of preferences get the rewards of plain transformers.
    """
    if rows is None:
        golden = load_golden_rows(source.name, source.revision)
        if golden is None:
            raise ConfigError(
                f"{source.name!r} has no golden rows: it was not trained by Plaudit, or with golden_rows=0",
                fix="Make them of any preferences: `plaudit verify MODEL --rows FILE --save` computes their rewards "
                "with plain transformers, and keeps them beside the model.",
            )
        return golden
    if isinstance(rows, GoldenRows):
        return rows
    if isinstance(rows, str | Path):
        path = Path(rows)
        if path.suffix == ".json" and path.is_file():
            with path.open("rb") as file:
                if FORMAT.encode() in file.read(200):
                    return read_golden_rows(rows)
        dataset: Any = load_preference_dataset(rows)
    else:
        dataset = rows if isinstance(rows, Dataset | IterableDataset) else Dataset.from_list(list(rows))
    dataset, tokenizer = read_preferences(dataset, name="golden"), load_tokenizer_of(source)
    model = load_reward_model(source, device=device, dtype=dtype or "float32")
    base_model = base_model_of(model)
    limit = context_length(base_model, tokenizer, decoder=True)
    chosen: tuple[GoldenRow, ...] = choose_golden_rows(tokenizer, (dataset,), _ROWS, max_length=limit)
    if not chosen:
        raise ConfigError(
            "no row can be a golden row: none can be read as a preference, or all are too long",
            fix="Pass rows in one of the data formats, with few enough tokens for the model.",
        )
    made = GoldenRows(
        chosen,
        chat_template=chat_template_hash(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        how="rewards of plain transformers, one response at a time",
        versions=installed_versions(),
    )
    return made.with_rewards(plain_rewards(model, [row.ids for row in chosen]), computed_in(base_model))
