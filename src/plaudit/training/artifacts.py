"""What a run folder holds beside the weights: complete checkpoints, the run record, golden rows and the model card."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from plaudit.data.collate import PaddedCollator
from plaudit.data.encode import ConversationEncoder, TextEncoder
from plaudit.data.fast_encode import RENDER_ERRORS
from plaudit.data.parse import read_example
from plaudit.data.report import DataReport
from plaudit.errors import ConfigError, DataError
from plaudit.files import write_atomically
from plaudit.model.card import render_card
from plaudit.model.golden import FILE_NAME, GoldenRow, GoldenRows, chat_template_hash
from plaudit.model.head import evaluating
from plaudit.model.shared_prefix import RewardForward
from plaudit.objectives import OBJECTIVES
from plaudit.schema import LEGACY_COLUMNS, Example
from plaudit.training.config import OBJECTIVE_SETTINGS, RewardConfig
from plaudit.version import installed_versions

logger = logging.getLogger("plaudit")

# ---- complete checkpoints -------------------------------------------------------------------------------------

# Names differ between plain, adapter, FSDP and DeepSpeed checkpoints; DeepSpeed keeps everything in global_step*.
_WEIGHTS = ("*model*.safetensors", "*model*.bin", "pytorch_model_fsdp_*", "global_step*")
_NEEDED_TO_RESUME = (("*optimizer*", "global_step*"), ("scheduler.pt", "global_step*"), ("rng_state*",))


def is_complete(checkpoint: Path) -> bool:
    """Returns whether a ``checkpoint-<step>`` folder was written to its end, and is not half deleted."""
    try:
        # The Trainer's state is the last file written. Others may be missing all the same, where a process was killed
        # while it deleted an old checkpoint.
        written = "global_step" in json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        index = checkpoint / SAFE_WEIGHTS_INDEX_NAME
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index.exists() else {}
    except (OSError, ValueError):
        return False
    shards_exist = all((checkpoint / name).exists() for name in set(weight_map.values()))
    weights, *to_resume = (
        any(any(checkpoint.glob(pattern)) for pattern in patterns) for patterns in (_WEIGHTS, *_NEEDED_TO_RESUME)
    )
    # A checkpoint of the model alone (`save_only_model`) has nothing of what is needed to resume, any other all of it.
    return written and weights and shards_exist and len(set(to_resume)) == 1


def newest_complete_checkpoint(run_folder: str | os.PathLike[str]) -> Path:
    """Returns the checkpoint to resume a run from: the newest complete ``checkpoint-<step>`` folder."""
    folder = Path(run_folder)
    checkpoints = sorted(
        (int(match[1]), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.is_dir() and (match := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name))
    )
    for _, checkpoint in reversed(checkpoints):
        if is_complete(checkpoint):
            return checkpoint
        logger.warning("Skipping %s: it was not written to its end, or is half deleted.", checkpoint)
    message = f"there is no complete checkpoint in {str(folder)!r}"
    fix = "Name a checkpoint folder in `resume_from_checkpoint`, or start from the beginning."
    raise ConfigError(message, field="resume_from_checkpoint", fix=fix)


def checkpoint_to_resume(given: str | os.PathLike[str] | bool | None, run_folder: str | os.PathLike[str]) -> str | None:
    """Returns the folder to resume from (True: the newest complete one); None where training starts anew.

    Raises `ConfigError` for a folder that is no checkpoint, and for one without the state of the optimizer.
    """
    if given is None or given is False:
        return None
    checkpoint = newest_complete_checkpoint(run_folder) if given is True else Path(given)
    if not (checkpoint / TRAINER_STATE_NAME).is_file():
        problem = f"has no {TRAINER_STATE_NAME}" if checkpoint.is_dir() else "does not exist"
        message = f"{str(checkpoint)!r} is not a checkpoint: it {problem}"
        fix = f"Name a {PREFIX_CHECKPOINT_DIR}-* folder of a run, or use true for the newest in `output_dir`."
        raise ConfigError(message, field="resume_from_checkpoint", fix=fix)
    if not any(any(checkpoint.glob(pattern)) for pattern in _NEEDED_TO_RESUME[0]):
        message = f"{str(checkpoint)!r} has no state of the optimizer (see `save_only_model`)"
        fix = "Resume from a checkpoint that has it, or start a new run with this folder as the model."
        raise ConfigError(message, field="resume_from_checkpoint", fix=fix)
    return str(checkpoint)


# ---- run record -----------------------------------------------------------------------------------------------

RUN_RECORD = "plaudit_run.json"
FORMAT, VERSION = "plaudit run", 1
_STATE = ("global_step", "epoch", "max_steps", "num_train_epochs", "best_metric", "best_global_step", "total_flos")


def run_record(
    args: RewardConfig, state: TrainerState, reports: Mapping[str, DataReport], about_model: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what can be known about a run without its data set, as plain values."""
    settings, device = args.to_dict(), args.device
    return {
        "format": FORMAT,
        "version": VERSION,
        "saved": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **about_model,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": args.world_size,
        "data": {name: _report_as_dict(report) for name, report in reports.items()},
        "settings": settings,
        "changed_settings": changed_settings(settings),
        "versions": installed_versions(),
        "state": {name: getattr(state, name, None) for name in _STATE},
        "log_history": state.log_history,
    }


def _report_as_dict(report: DataReport) -> dict[str, Any]:
    # The prompts are one number per row.
    values = dataclasses.asdict(dataclasses.replace(report, prompts=None, first_error=None))
    del values["prompts"], values["first_error"]
    return {**values, "lengths": {**values["lengths"], "mean": report.lengths.mean}, "summary": report.summary()}


def write_run_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes the record beside the weights; that of a checkpoint leaves the logs to its ``trainer_state.json``."""
    if folder.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-"):
        record = {key: value for key, value in record.items() if key != "log_history"}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / RUN_RECORD, json.dumps(record, indent=1, default=str, ensure_ascii=False) + "\n")


def changed_settings(settings: Mapping[str, Any]) -> list[str]:
    """Returns the sorted names of the settings (plain values) that are not at their defaults."""
    changed = []
    for setting in dataclasses.fields(RewardConfig):
        factory = setting.default_factory
        default = setting.default if factory is dataclasses.MISSING else factory()
        plain = default.value if isinstance(default, enum.Enum) else default
        if setting.name in settings and setting.init and settings[setting.name] != plain:
            changed.append(setting.name)
    return sorted(changed)


# ---- golden rows: which ---------------------------------------------------------------------------------------

MOST_TOKENS = 512
"""Tokens of the longest golden row, if there are shorter ones: bounds the cost of each save."""
_CANDIDATES, _CANDIDATES_OF_STREAMS = 64, 16


def choose_golden_rows(
    tokenizer: PreTrainedTokenizerBase | None, datasets: Sequence[Any], count: int, *, max_length: int | None
) -> tuple[GoldenRow, ...]:
    """Chooses `count` responses: the shortest, the longest within bounds, many turns, two per prompt.

    They come from the first of the raw data sets (or mappings of such) that has a row that fits, and have reward 0.
    Rows that cannot be read are skipped; without a row that fits there are no golden rows.
    """
    for dataset in datasets if count else ():
        for rows in dataset.values() if isinstance(dataset, Mapping) else (dataset,):
            if isinstance(rows, Dataset | IterableDataset):
                candidates = [responses[:count] for responses in _responses_of_some_rows(tokenizer, rows)]
                fitting = [row for row in candidates if max_length is None or _tokens(row) <= max_length]
                if fitting:
                    return _spread(fitting, count)
    return ()


def _tokens(responses: Sequence[GoldenRow]) -> int:
    return max(len(response.ids) for response in responses)


def _responses_of_some_rows(tokenizer: Any, dataset: Dataset | IterableDataset) -> Iterator[tuple[GoldenRow, ...]]:
    """Yields one or two responses of up to 64 rows from all over a table, or of the first 16 of a stream."""
    plain = dataset.with_format(None)
    encoder_of = functools.cache(lambda conversational: (TextEncoder, ConversationEncoder)[conversational](tokenizer))
    numbered: Iterable[tuple[int, Any]]
    if isinstance(plain, Dataset):
        numbers = range(0, len(plain), max(1, -(-len(plain) // _CANDIDATES)))
        numbered = zip(numbers, plain.select(numbers), strict=True)
    else:
        numbered = enumerate(plain.take(_CANDIDATES_OF_STREAMS))
    for number, row in numbered:
        renamed = {LEGACY_COLUMNS.get(name, name): value for name, value in row.items()}
        try:
            yield _first_and_last(read_example(renamed, row_number=number, features=plain.features), number, encoder_of)
        except (DataError, ConfigError, *RENDER_ERRORS) as error:
            # The preparation of the data reports what is wrong with such rows.
            logger.debug("Row %d cannot be a golden row: %s", number, error)


def _first_and_last(example: Example, number: int, encoder_of: Callable[[bool], Any]) -> tuple[GoldenRow, ...]:
    """Returns the first and the last response of a row, or one response where both are the same."""
    if example.response_ids is not None:
        distinct = dict.fromkeys((tuple(example.response_ids[0]), tuple(example.response_ids[-1])))
        return tuple(GoldenRow(ids, 0.0, number) for ids in distinct)
    ends = example.responses[:1] if len(example.responses) == 1 else (example.responses[0], example.responses[-1])
    encoder = encoder_of(example.conversational)
    texts = encoder.render([dataclasses.replace(example, responses=ends)])[0]
    golden: dict[tuple[int, ...], GoldenRow] = {}
    for response, text, ids in zip(ends, texts, encoder.tokenize(texts), strict=True):
        given: tuple[Any, ...] = ()
        if not isinstance(response, str):
            given = (response, example.tools, dict(example.chat_template_kwargs))
        # As JSON reads it again: what JSON cannot hold raises here, and the row is skipped.
        golden[tuple(ids)] = GoldenRow(tuple(ids), 0.0, number, text, *json.loads(json.dumps(given)))
    return tuple(golden.values())


def _spread(candidates: Sequence[tuple[GoldenRow, ...]], count: int) -> tuple[GoldenRow, ...]:
    """Returns `count` responses, if there are as many, of rows as different as possible."""
    by_length = sorted(candidates, key=_tokens)
    short = [responses for responses in by_length if _tokens(responses) <= MOST_TOKENS]
    if not short:
        return by_length[0][:count]
    last = len(short) - 1
    most_turns = max(range(len(short)), key=lambda index: len(short[index][0].messages or " "))
    # The rest evenly between the shortest and the longest.
    between = [round(n * last / (count + 1)) for n in range(1, count + 1)]
    indices = dict.fromkeys((0, last, most_turns, *between, *range(len(short))))
    return tuple(response for index in indices for response in short[index])[:count]


# ---- golden rows: their rewards at a save ---------------------------------------------------------------------


def write_golden_rows(
    folder: Path,
    rows: tuple[GoldenRow, ...],
    args: RewardConfig,
    *,
    model: nn.Module,
    forward: RewardForward,
    tokenizer: Any,
    fsdp: bool,
    step: int,
) -> None:
    """Writes the golden rows beside the weights that were just saved; where none can be written the log says why."""
    path = folder / FILE_NAME
    path.unlink(missing_ok=True)  # those of an earlier step, or run into this folder, belong to other weights
    if not args.golden_rows:
        return
    weights = list(model.parameters())
    problems = {
        "no row of the data can be read as a golden row, or all are too long": not rows,
        "with FSDP the weights lie in shards on all processes": fsdp,
        "with DeepSpeed ZeRO-3 the weights lie in shards on all processes": any(hasattr(w, "ds_id") for w in weights),
        "the weights lie in shards on all processes": any(hasattr(w, "device_mesh") for w in weights),
    }
    problem = next((text for text, applies in problems.items() if applies), None)
    rewards: list[float] = []
    if problem is None:
        try:
            rewards = _golden_rewards(rows, model, forward, tokenizer.pad_token_id)
            problem = None if all(map(math.isfinite, rewards)) else "a reward is not a finite number"
        except RuntimeError as error:  # out of memory, or a model that only works in mixed precision
            problem = f"the model cannot be called without mixed precision ({error})"
    if problem is not None:
        advice = "`plaudit verify MODEL --rows FILE --save` writes it afterwards."
        logger.warning("No %s beside this checkpoint: %s. %s", FILE_NAME, problem, advice)
        return
    golden = GoldenRows(
        rows,
        chat_template=chat_template_hash(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        how=f"rows of the run's data, rewards of its trainer at step {step}",
        versions=installed_versions(),
    )
    golden.with_rewards(rewards, computed_in(forward.base_model)).save(folder)
    _log_golden_rows(str(args.output_dir), len(rows), args.push_to_hub)


@functools.cache  # once per run
def _log_golden_rows(output_dir: str, count: int, public: bool) -> None:
    logger.log(
        logging.WARNING if public else logging.INFO,
        "%s in %s holds %d responses of your data as readable text%s. `golden_rows=0` leaves them out.",
        FILE_NAME,
        output_dir,
        count,
        ", and goes to the Hub with the model" if public else "",
    )


def _golden_rewards(
    rows: Sequence[GoldenRow], model: nn.Module, forward: RewardForward, pad_token_id: int
) -> list[float]:
    """Computes rewards one response at a time, as the saved weights give them: without dropout and mixed precision."""
    collate, device, rewards = PaddedCollator(pad_token_id), forward.base_model.device, []
    forward = RewardForward(forward.base_model, "padded", "alone", reads_positions=forward.reads_positions)
    with evaluating(model, device), torch.no_grad(), ExitStack() as restored:
        # accelerate keeps the forward that it has wrapped in autocast.
        if (original := getattr(model, "_original_forward", None)) is not None:
            restored.callback(setattr, model, "forward", model.forward)
            model.forward = original
        for row in rows:
            batch = collate([{"response_ids": [list(row.ids)], "scores": [0.0]}])
            tensors = {key: value.to(device) for key, value in batch.items() if isinstance(value, Tensor)}
            rewards.append(forward(model, batch | tensors).rewards_N.float().item())
    return rewards


def computed_in(base_model: Any) -> str:
    """Returns what a reward model computes in below its head, as `GoldenRows` names it."""
    if getattr(base_model, "is_quantized", False):
        return "quantized"
    dtype = str(base_model.dtype).removeprefix("torch.")
    on_tensor_cores = base_model.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if dtype == "float32" and on_tensor_cores else dtype


# ---- model card -----------------------------------------------------------------------------------------------

_SETTINGS_ON_CARD = (
    "learning_rate",
    "lr_scheduler_type",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "overlong",
    *OBJECTIVE_SETTINGS,
    "bf16",
    "fp16",
    "optim",
    "weight_decay",
    "seed",
)


def render_model_card(
    record: Mapping[str, Any], header: Mapping[str, Any], sources: Sequence[str] = (), *, name: str, location: str
) -> str:
    """Returns the card of a run as Markdown with a YAML header; `location` is the folder or Hub id to load from."""
    base_model = header.get("base_model") or ""
    header = {
        "library_name": "peft" if record["adapter"] else "transformers",
        **header,
        # The name of a folder would mean nothing to others.
        "base_model": None if base_model.startswith(("/", ".")) else base_model,
    }
    logs, objective = record["log_history"], record["objective"]
    evaluations = [log for log in logs if any(key.startswith("eval_") for key in log)]
    # Each of several evaluation sets has a log of its own.
    last = [log for log in evaluations if log.get("step") == evaluations[-1].get("step")]
    settings = {key: record["settings"][key] for key in _SETTINGS_ON_CARD if key in record["settings"]}
    if not settings.get("label_smoothing_factor"):
        settings.pop("label_smoothing_factor", None)
    return render_card(
        "training/model_card.md.j2",
        header,
        name=name,
        location=location,
        record=record,
        text=record["data"].get("train", {}).get("conversational") is False,
        trained=OBJECTIVES[objective].card,
        meaning=OBJECTIVES[objective].meaning,
        evaluation=_table({key: value for log in last for key, value in log.items()}, "runtime", "per_second", "epoch"),
        training=_table(next((log for log in reversed(logs) if "loss" in log), {})),
        data=[*sources, *(report["summary"] for report in record["data"].values())],
        settings=_table(settings | {"objective": objective}),
        versions=_table(record["versions"]),
    )


def _table(values: Mapping[str, Any], *skipped_endings: str) -> str:
    rows = [
        f"| {name} | {value:.4g} |" if isinstance(value, float) else f"| {name} | {value} |"
        for name, value in values.items()
        if value is not None and not name.endswith(skipped_endings)
    ]
    return "\n".join(["| | |", "|---|---|", *rows]) if rows else ""


def as_list(value: str | Sequence[str] | None) -> list[str]:
    """Returns one word, several or none as a list."""
    return [value] if isinstance(value, str) else list(value or ())
