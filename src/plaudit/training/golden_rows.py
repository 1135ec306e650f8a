"""Golden rows of a run: a few responses chosen once, with the rewards of the model each time it is saved."""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from plaudit.data.collate import PaddedCollator
from plaudit.data.columns import LEGACY_COLUMNS, is_tokenized
from plaudit.data.encode import ConversationEncoder, TextEncoder
from plaudit.data.formats import read_example, read_tokenized_example
from plaudit.data.template_sketches import RENDER_ERRORS
from plaudit.errors import ConfigError, DataError
from plaudit.model.golden_rows import FILE_NAME, GoldenRow, GoldenRows, chat_template_hash
from plaudit.model.rewards import RewardForward
from plaudit.training.model_card import installed_versions

if TYPE_CHECKING:
    from plaudit.training.trainer import RewardTrainer

logger = logging.getLogger("plaudit")

MOST_TOKENS = 512
"""Tokens of the longest golden row, where shorter ones can be found: what bounds their cost at each save."""

_CANDIDATES, _CANDIDATES_OF_STREAMS = 64, 16


@dataclass(frozen=True)
class _Candidate:
    """One or two responses to one prompt that may become golden rows, with a reward that is not known yet."""

    rows: tuple[GoldenRow, ...]
    turns: int

    @property
    def tokens(self) -> int:
        return max(len(row.ids) for row in self.rows)


def choose_golden_rows(
    tokenizer: PreTrainedTokenizerBase | None, datasets: Sequence[Any], count: int, *, max_length: int | None
) -> tuple[GoldenRow, ...]:
    """Choose a few responses: the shortest, the longest within bounds, many turns, two to each prompt.

    Args:
        tokenizer: Tokenises the responses; not changed. Rows of token ids need none.
        datasets: Raw data sets, or mappings of such; the first that has a row that fits is taken.
        count: How many responses.
        max_length: Limit for one response with its prompt, in tokens (None: no limit).

    Returns:
        The responses, with reward 0; none where no row fits. Rows that cannot be read are passed over.
    """
    if count < 1:
        return ()
    for dataset in datasets:
        for part in dataset.values() if isinstance(dataset, Mapping) else (dataset,):
            if isinstance(part, Dataset | IterableDataset):
                candidates = [
                    one
                    for one in _candidates(tokenizer, part, single=count == 1)
                    if max_length is None or one.tokens <= max_length
                ]
                if candidates:
                    return _spread(candidates, count)
    return ()


def _candidates(tokenizer: Any, dataset: Dataset | IterableDataset, *, single: bool) -> Iterator[_Candidate]:
    """Up to 64 examples from all over a table, or the first 16 of a stream."""
    plain = dataset.with_format(None)
    encoders: dict[bool, Any] = {}
    rows: Iterable[tuple[int, Any]]
    if isinstance(plain, Dataset):
        places: Sequence[int] = range(0, len(plain), max(1, -(-len(plain) // _CANDIDATES)))
        rows = zip(places, plain.select(places), strict=True)
    else:
        rows = enumerate(plain.take(_CANDIDATES_OF_STREAMS))
    for number, row in rows:
        renamed = {LEGACY_COLUMNS.get(name, name): value for name, value in row.items()}
        try:
            candidate = _candidate(renamed, number, plain.features, tokenizer, encoders)
        except (DataError, ConfigError, *RENDER_ERRORS) as error:
            # Whoever prepares the data has said already what is wrong with such rows.
            logger.debug("Row %d is no golden row: %s", number, error)
            continue
        yield replace(candidate, rows=candidate.rows[:1]) if single else candidate


def _candidate(
    row: Mapping[str, Any], number: int, features: Any, tokenizer: Any, encoders: dict[bool, Any]
) -> _Candidate:
    """The first and the last response of a row.

    Raises:
        DataError: It cannot be read.
        RENDER_ERRORS: The chat template refuses it, or it cannot be written as JSON.
    """
    if is_tokenized(row):
        given = read_tokenized_example(row, row_number=number).response_ids
        ids = [tuple(one) for one in (given[0], given[-1])]
        return _Candidate(tuple(GoldenRow(one, 0.0, number) for one in dict.fromkeys(ids)), turns=1)
    example = read_example(row, row_number=number, features=features)
    ends = example.responses[:1] if len(example.responses) == 1 else (example.responses[0], example.responses[-1])
    example = replace(example, responses=ends)
    if example.conversational not in encoders:
        kind = ConversationEncoder if example.conversational else TextEncoder
        encoders[example.conversational] = kind(tokenizer)
    encoder = encoders[example.conversational]
    texts = encoder.render([example])[0]
    rows: dict[tuple[int, ...], GoldenRow] = {}
    for response, text, ids_of_text in zip(ends, texts, encoder.tokenize(texts), strict=True):
        # As it will be read again: what JSON cannot hold is refused here, and the row passed over.
        messages = None if isinstance(response, str) else json.loads(json.dumps(response))
        rows[tuple(ids_of_text)] = GoldenRow(
            tuple(ids_of_text),
            0.0,
            number,
            text,
            messages,
            None if messages is None or example.tools is None else json.loads(json.dumps(example.tools)),
            {} if messages is None else json.loads(json.dumps(dict(example.chat_template_kwargs))),
        )
    turns = 1 if isinstance(ends[0], str) else len(ends[0])
    return _Candidate(tuple(rows.values()), turns)


def _spread(candidates: Sequence[_Candidate], count: int) -> tuple[GoldenRow, ...]:
    """As many rows as asked for, of examples as different as there are."""
    by_length = sorted(candidates, key=lambda one: one.tokens)
    short = [one for one in by_length if one.tokens <= MOST_TOKENS]
    if not short:
        return by_length[0].rows[:count]
    wanted = list(dict.fromkeys((0, len(short) - 1, max(range(len(short)), key=lambda n: short[n].turns))))
    # The rest evenly between the shortest and the longest.
    wanted += [round(n * (len(short) - 1) / (count + 1)) for n in range(1, count + 1)]
    wanted += range(len(short))
    chosen: list[GoldenRow] = []
    for place in dict.fromkeys(wanted):
        chosen += short[place].rows
        if len(chosen) >= count:
            break
    return tuple(chosen[:count])


# ---- rewards at a save ----------------------------------------------------------------------------------------


def write_golden_rows(trainer: RewardTrainer, folder: str | Path | None = None) -> None:
    """Write the golden rows beside the weights that were just saved; does nothing on processes that do not save.

    Rewards are computed one response at a time, as the saved weights give them: in evaluation mode and without mixed
    precision. Neither modes nor random states are changed. Where the weights lie in shards on several processes there
    are none, and the log says so.

    Args:
        trainer: The trainer.
        folder: Where the weights are (None: the output folder).
    """
    if not trainer.args.should_save:
        return
    rows = trainer._golden_rows
    path = Path(str(trainer.args.output_dir) if folder is None else folder) / FILE_NAME
    if not trainer.args.golden_rows:
        path.unlink(missing_ok=True)  # those of an earlier run into this folder belong to other weights
        return
    rewards, problem = _rewards_or_why_not(trainer, rows)
    if problem is not None:
        logger.warning(
            "No %s beside this checkpoint: %s. `plaudit verify MODEL --rows FILE --save` writes it afterwards.",
            FILE_NAME,
            problem,
        )
        path.unlink(missing_ok=True)
        return
    tokenizer: Any = trainer.processing_class
    golden = GoldenRows(
        rows,
        chat_template=chat_template_hash(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        how=f"rows of the run's data, rewards of its trainer at step {trainer.state.global_step}",
        versions=installed_versions(),
    )
    golden.with_rewards(rewards, computed_in(trainer._base_model)).save(path.parent)
    _say_whose_rows(str(trainer.args.output_dir), len(rows), trainer.args.push_to_hub)


@functools.cache  # once a run is enough
def _say_whose_rows(output_dir: str, rows: int, public: bool) -> None:
    logger.log(
        logging.WARNING if public else logging.INFO,
        "%s in %s holds %d responses of your data in clear%s. `golden_rows=0` leaves them out.",
        FILE_NAME,
        output_dir,
        rows,
        ", and goes to the Hub with the model" if public else "",
    )


def _rewards_or_why_not(trainer: RewardTrainer, rows: Sequence[GoldenRow]) -> tuple[list[float], str | None]:
    problem = _why_not(trainer) if rows else "no row of the data can be read as one, or all are too long"
    if problem is not None:
        return [], problem
    try:
        rewards = _rewards(trainer, rows)
    except RuntimeError as error:  # no memory left, or a model that only works in mixed precision
        return [], f"the model could not be called by itself ({error})"
    return rewards, None if all(map(math.isfinite, rewards)) else "a reward is no finite number"


def computed_in(base_model: Any) -> str:
    """What a model computes in below its head, as `GoldenRows` writes it.

    Args:
        base_model: The reward model, without wrapping.
    """
    if getattr(base_model, "is_quantized", False):
        return "quantized"
    dtype = str(base_model.dtype).removeprefix("torch.")
    on_tensor_cores = base_model.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if dtype == "float32" and on_tensor_cores else dtype


def _why_not(trainer: RewardTrainer) -> str | None:
    """Why this process cannot compute rewards by itself; None where it can."""
    if trainer.is_fsdp_enabled:
        return "with FSDP the weights lie in shards on all processes"
    for parameter in trainer.model.parameters():
        if hasattr(parameter, "ds_id"):
            return "with DeepSpeed ZeRO-3 the weights lie in shards on all processes"
        if hasattr(parameter, "device_mesh"):
            return "the weights lie in shards on all processes"
    return None


def _rewards(trainer: RewardTrainer, rows: Sequence[GoldenRow]) -> list[float]:
    model, base_model = trainer.model, trainer._base_model
    pad_token_id: Any = trainer.processing_class.pad_token_id  # type: ignore[union-attr]
    collate = PaddedCollator(pad_token_id)
    reads_positions = trainer._forward._reads_positions
    forward = RewardForward(base_model, "padded", "one response at a time", reads_positions=reads_positions)
    device = base_model.device
    rewards = []
    with _as_it_is_saved(model, device), torch.no_grad():
        for row in rows:
            batch = collate([{"response_ids": [list(row.ids)], "scores": [0.0]}])
            moved = {
                name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()
            }
            rewards.append(forward(model, moved).rewards_N.float().item())
    return rewards


@contextmanager
def _as_it_is_saved(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode and no mixed precision for a while; everything is as before afterwards."""
    training = [module for module in model.modules() if module.training]
    with ExitStack() as restored:
        restored.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        for module in training:
            restored.callback(setattr, module, "training", True)
        # accelerate keeps the forward that it has wrapped in autocast.
        original = getattr(model, "_original_forward", None)
        if original is not None:
            restored.callback(setattr, model, "forward", model.forward)
            model.forward = original
        model.eval()
        yield
