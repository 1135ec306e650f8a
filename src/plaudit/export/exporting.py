"""`export_model`: a reward model as a folder that any server reads, the same rewards or rescaled ones, and checked."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from plaudit.errors import ConfigError
from plaudit.export.card import write_card
from plaudit.export.checking import TOLERANCE, SampleRows, built_in_ids, compare, plain_rewards, sample_rows
from plaudit.export.folder import carry_files, file_of, left_behind, new_folder, require_place
from plaudit.export.heads import PlainHead, plain_head, score_ids
from plaudit.export.merging import merge as merge_adapter
from plaudit.export.merging import round_weights, stored_dtype
from plaudit.export.notes import notes_on_ensemble, notes_on_golden_rows, notes_on_padding, notes_on_rewards
from plaudit.export.rescaling import Rows, Wishes, wanted_rewards
from plaudit.export.result import Adapter, ExportCheck, ExportResult
from plaudit.model.adapters import base_model_of, is_peft_model
from plaudit.model.calibration import RewardCalibration, load_calibration
from plaudit.model.golden_rows import GoldenRows, load_golden_rows
from plaudit.model.layout import BatchLayout
from plaudit.model.loading import set_pad_token, set_serving_config
from plaudit.model.training_heads import FILE_NAME as TRAINING_HEADS
from plaudit.scoring.loading import Source, default_device, load_reward_model, load_tokenizer_of
from plaudit.scoring.scorer import Scorer, check_settings

logger = logging.getLogger("plaudit")

_PRECISION = ("float32", "tf32", "float16", "bfloat16", "quantized")  # the most exact first


@dataclass(frozen=True)
class _Order:
    """What is to be exported, and how."""

    source: Source
    merge: bool
    dtype: str
    wishes: Wishes
    device: torch.device
    scorer_settings: Mapping[str, Any]
    tolerance: float | None
    stored: RewardCalibration | None
    golden: GoldenRows | None


@dataclass(frozen=True)
class _Written:
    """What is known of a model once its weights and its tokenizer are written; the model itself is free again."""

    architecture: str
    parameters: int
    adapter: Adapter
    sample: SampleRows
    before: list[float]
    rewards: RewardCalibration
    head: str | None
    head_weight: torch.Tensor | None
    scale: float
    shift: float
    calibration: RewardCalibration | None
    tokenizer: PreTrainedTokenizerBase
    rounded: bool
    notes: tuple[str, ...]


def export_model(
    model: str | Path,
    output: str | Path,
    *,
    merge: bool = True,
    dtype: str | None = None,
    normalize: Rows | None = None,
    temperature: float | Rows | None = None,
    raw: bool = False,
    overwrite: bool = False,
    dataset_config: str | None = None,
    dataset_split: str = "train",
    tolerance: float | None = None,
    device: torch.device | str | None = None,
    batch_layout: BatchLayout = "auto",
    max_length: int | None = None,
    max_tokens_per_batch: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> ExportResult:
    """Write a reward model as a folder that servers and plain transformers read, and hold it to its source.

    A `reward_calibration.json` beside the source is folded into the weights, as far as they allow it, unless `raw`.

    Args:
        model: A folder, or a model id on the Hub: a whole model, or an adapter.
        output: Folder to write. It gets its name when the model in it has given the rewards that it should.
        merge: Merge an adapter into the weights under it; False exports it as an adapter.
        dtype: What the weights are stored in: ``"float32"``, ``"bfloat16"`` or ``"float16"``; by default what those of
            the source are. The head is stored in float32 in any case.
        normalize: Data (as for `load_preference_dataset`, or rows in memory): exported rewards have mean 0 and
            deviation 1 over all its responses.
        temperature: Rewards are divided by it, so that the sigmoid of a difference is the probability of being better:
            ``"stored"`` for that of the calibration, a number, or data with comparisons to fit it on.
        raw: Leave rewards as they are; a calibration is copied beside the model, unchanged.
        overwrite: Replace a model that is in the output folder.
        dataset_config: Configuration of a data set on the Hub.
        dataset_split: Split of the data, also with a slice.
        tolerance: Most that rewards may differ from what they should be, in units of the source's rewards where these
            are below 1 and as a part of the largest of them where not. By default 1e-4 for float32, 0.01 for float16
            and 0.05 for bfloat16.
        device: Where it is computed; by default the accelerator, or the CPU. The model is loaded in float32.
        batch_layout: See `RewardModel`.
        max_length: See `RewardModel`; longer rows of the data are left out, and counted.
        max_tokens_per_batch: See `RewardModel`.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Allow model and tokenizer code from the Hub.

    Returns:
        What was done.

    Raises:
        ConfigError: There is no reward model there, the settings exclude each other, the output folder would destroy
            something, or the exported model gives other rewards than it should; nothing is left then.
        DataError: A row of the data cannot be scored.
    """
    target = Path(output).expanduser().resolve()
    source = Source(str(model), revision, trust_remote_code)
    wishes = Wishes(normalize, temperature, raw, dataset_config, dataset_split)
    check_settings(batch_layout, max_tokens_per_batch, max_length, "nan")
    require_place(target, source, overwrite=overwrite)
    precision = stored_dtype(source, dtype)
    if source.is_adapter and not merge:
        if dtype is not None:
            raise ConfigError("`dtype` is for whole models, and the adapter is not merged", fix="Leave it out.")
        precision = "float32"
    order = _Order(
        source,
        merge,
        precision,
        wishes,
        default_device() if device is None else torch.device(device),
        {"batch_layout": batch_layout, "max_length": max_length, "max_tokens_per_batch": max_tokens_per_batch},
        tolerance,
        load_calibration(source.name, revision),
        load_golden_rows(source.name, revision),
    )
    with new_folder(target, overwrite=overwrite) as folder:
        written = _write(order, folder)
        gc.collect()  # models refer to themselves: two of them would be in memory
        check = _check_folder(order, written, folder)
        result = _write_beside(order, written, check, folder, target)
    for note in result.notes:
        logger.warning("%s", note)
    return result


@dataclass(frozen=True)
class _Loaded:
    """A model that is ready to be rescaled, and what its source gave."""

    scorer: Scorer
    adapter: Adapter
    source_tokenizer: PreTrainedTokenizerBase
    sample: SampleRows
    before: list[float]


def _load(order: _Order) -> _Loaded:
    """Load the source, score the sample, and merge the adapter if there is one to be merged."""
    model: Any = load_reward_model(order.source, device=order.device, dtype=torch.float32)
    tokenizer = load_tokenizer_of(order.source)
    scorer = _scorer(order, model, tokenizer)
    sample = sample_rows(scorer.processing_class, scorer.max_length, order.golden)
    before = score_ids(scorer, sample.ids)
    adapter: Adapter = "kept" if is_peft_model(model) else "none"
    if adapter == "kept" and order.merge:
        scorer, adapter = _scorer(order, merge_adapter(model), scorer.processing_class), "merged"
    return _Loaded(scorer, adapter, tokenizer, sample, before)


def _write(order: _Order, folder: Path) -> _Written:
    """Merge, rescale, and write weights and tokenizer."""
    loaded = _load(order)
    scorer, sample, before = loaded.scorer, loaded.sample, loaded.before
    rewards = wanted_rewards(scorer, order.stored, order.wishes)
    head = plain_head(scorer, sample.ids)
    if loaded.adapter == "kept" and head is not None and "modules_to_save" not in head.name:
        head = None  # it belongs to the model under the adapter, which is not exported
    scale, shift, beside = _shared_out(rewards, head, raw=order.wishes.raw)
    if head is not None and (scale, shift) != (1.0, 0.0):
        head.fold(scale, shift)
    now = score_ids(scorer, sample.ids)
    what = "This is a fault of the merge or of the head's arithmetic: try `merge=False`, `raw=True` or a `tolerance`."
    exact = max(TOLERANCE["float32"], order.tolerance or 0.0)
    compare(before, now, scale=scale, shift=shift, tolerance=exact, what=what)
    base = base_model_of(scorer.model)
    tokenizer = _ready_to_serve(base, scorer.processing_class, may_resize=loaded.adapter != "kept")
    rounded = loaded.adapter != "kept" and round_weights(
        base, order.dtype, () if head is None else head.layer.parameters()
    )
    scorer.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return _Written(
        architecture=type(base).__name__,
        parameters=base.num_parameters(),
        adapter=loaded.adapter,
        sample=sample,
        before=before,
        rewards=rewards,
        head=None if head is None else head.name,
        head_weight=None if head is None else head.layer.weight.detach().cpu().clone(),
        scale=scale,
        shift=shift,
        calibration=beside,
        tokenizer=tokenizer,
        rounded=rounded,
        notes=(
            *notes_on_rewards(rewards, scale, shift, beside, raw=order.wishes.raw),
            *notes_on_padding(loaded.source_tokenizer, tokenizer, base),
            *notes_on_golden_rows(order.golden, sample, before),
            *notes_on_ensemble(file_of(order.source, TRAINING_HEADS)),
        ),
    )


def _scorer(order: _Order, model: Any, tokenizer: PreTrainedTokenizerBase) -> Scorer:
    return Scorer(model, tokenizer, overlong="nan", **order.scorer_settings)


def _shared_out(
    rewards: RewardCalibration, head: PlainHead | None, *, raw: bool
) -> tuple[float, float, RewardCalibration | None]:
    """What of a change of rewards goes into the weights (scale and shift), and what lies beside them."""
    folds = head is not None and rewards.changes_rewards and not raw
    scale = rewards.scale if folds else 1.0
    shift = rewards.shift if folds and head is not None and head.has_bias else 0.0
    rest = RewardCalibration(rewards.scale / scale, rewards.shift - shift, rewards.temperature, rewards.how)
    return scale, shift, rest if rest.changes_rewards or rest.temperature != 1 else None


def _ready_to_serve(base: Any, tokenizer: PreTrainedTokenizerBase, *, may_resize: bool) -> PreTrainedTokenizerBase:
    """Write into configuration and tokenizer what servers need; returns a copy of the tokenizer."""
    tokenizer = set_pad_token(base, tokenizer, may_resize=may_resize)
    # Learned positions count padding on the left, so that rewards would depend on the batch.
    tokenizer.padding_side = "right"
    set_serving_config(base)
    return tokenizer


def _check_folder(order: _Order, written: _Written, folder: Path) -> ExportCheck:
    """Load what was written as anybody would, and hold it to the source."""
    source = replace(order.source, name=str(folder), revision=None)
    model: Any = load_reward_model(source, device=order.device, dtype=torch.float32)
    tokenizer = load_tokenizer_of(source)
    if built_in_ids(tokenizer, None) != built_in_ids(written.tokenizer, None):
        raise ConfigError(
            "the exported tokenizer renders conversations otherwise than that of the source: it was not saved whole",
            fix="Report this with the name of the model; `plaudit serve` serves the source itself.",
        )
    if written.head is not None and written.head_weight is not None:
        weight: Any = base_model_of(model).get_submodule(written.head).weight
        if not torch.equal(weight.detach().cpu(), written.head_weight):
            raise ConfigError("the reward head was not saved as it was", fix="Report this with the name of the model.")
    ids = written.sample.ids
    after = score_ids(_scorer(order, model, tokenizer), ids) if is_peft_model(model) else plain_rewards(model, ids)
    return compare(
        written.before,
        after,
        scale=written.scale,
        shift=written.shift,
        tolerance=TOLERANCE[order.dtype] if order.tolerance is None else order.tolerance,
        golden=len(written.sample.golden),
        what="Store the weights in a higher precision, such as `dtype='float32'`."
        if order.dtype != "float32"
        else "Report this with the name of the model; `plaudit serve` serves the source itself.",
    )


def _write_beside(order: _Order, written: _Written, check: ExportCheck, folder: Path, target: Path) -> ExportResult:
    """Write what lies beside the weights, and say what was done."""
    if written.calibration is not None:
        written.calibration.save(folder)
    if order.golden is not None:
        _golden_rows_of(order.golden, order.dtype, written).save(folder)
    result = ExportResult(
        folder=target,
        source=_public_name(order.source),
        architecture=written.architecture,
        parameters=written.parameters,
        adapter=written.adapter,
        dtype=order.dtype,
        head=written.head,
        rewards=written.rewards,
        scale=written.scale,
        shift=written.shift,
        calibration=written.calibration,
        check=check,
        golden_rows=0 if order.golden is None else len(order.golden.rows),
        carried=carry_files(order.source, folder),
        left_behind=left_behind(order.source),
        notes=written.notes,
    )
    result.save_record(folder)
    write_card(result, folder, file_of(order.source, "README.md"))
    return result


def _golden_rows_of(golden: GoldenRows, dtype: str, written: _Written) -> GoldenRows:
    """The golden rows with the rewards of the export, to be held to them as exactly as its weights allow."""
    golden = golden.rescaled(written.scale, written.shift)
    known = [one in _PRECISION for one in (golden.dtype, dtype)]
    if written.rounded and all(known):
        golden = replace(golden, dtype=max(golden.dtype, dtype, key=_PRECISION.index))
    return replace(golden, pad_token_id=written.tokenizer.pad_token_id)


def _public_name(source: Source) -> str:
    """A model id, or the name of a folder without the path to it: exports are shared."""
    path = Path(source.name).expanduser()
    return path.resolve().name if path.exists() else source.name
