"""`verify`: the golden rows of a model through every way of running it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from plaudit.data.sources import load_preference_dataset
from plaudit.errors import ConfigError
from plaudit.export.checking import plain_rewards
from plaudit.model.adapters import base_model_of
from plaudit.model.calibration import load_calibration
from plaudit.model.golden_rows import (
    FORMAT,
    GoldenRow,
    GoldenRows,
    chat_template_hash,
    load_golden_rows,
    read_golden_rows,
)
from plaudit.scoring.loading import Source, context_length, default_device, load_reward_model, load_tokenizer_of
from plaudit.scoring.reward_model import RewardModel
from plaudit.training.golden_rows import choose_golden_rows, computed_in
from plaudit.training.model_card import installed_versions
from plaudit.verification.diagnosis import Suspect
from plaudit.verification.local_paths import (
    ERRORS,
    LocalModel,
    export_path,
    scorer_paths,
    token_ids,
    transformers_paths,
)
from plaudit.verification.observations import Observation
from plaudit.verification.result import Verification, judged
from plaudit.verification.servers import Conversation, Server, ServerKind, kind_of_server, server_paths
from plaudit.verification.suspects import suspects_of

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
