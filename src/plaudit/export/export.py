"""`export_model`: a reward model as a folder that any server reads, with the same rewards or rescaled ones, checked."""

from __future__ import annotations

import contextlib
import datetime
import fnmatch
import gc
import itertools
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_NAME

from plaudit.data.prepare import RowPreparer
from plaudit.errors import ConfigError
from plaudit.export.rescaling import Rescaling, Rows, rescaled_rewards
from plaudit.inference.reward_model import RewardModel, check_settings
from plaudit.model import find_file, load
from plaudit.model.aux_heads import FILE_NAME as TRAINING_HEADS
from plaudit.model.aux_heads import ensemble_in
from plaudit.model.calibration import FILE_NAME as CALIBRATION_FILE
from plaudit.model.calibration import RewardCalibration, load_calibration
from plaudit.model.card import render_card
from plaudit.model.golden import GoldenRows, load_golden_rows
from plaudit.model.peft import base_model_of, is_peft_model, is_prompt_learning
from plaudit.model.shared_prefix import BatchLayout
from plaudit.version import installed_versions

logger = logging.getLogger("plaudit")
_RECORD = "plaudit_export.json"
FORMAT, VERSION = "plaudit export", 1
DTYPES = ("float32", "bfloat16", "float16")
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""How far rewards may differ for rounding weights, in units of the source's rewards, or as a part of the largest."""
Adapter: TypeAlias = Literal["none", "merged", "kept"]
"""What became of the adapter: there was none, it was merged into the weights, or it is still one."""
_PRECISION = ("float32", "tf32", "float16", "bfloat16", "quantized")  # the most exact first
_REPORT = "Report this with the name of the model; `plaudit serve` serves the source itself."


@dataclass(frozen=True)
class ExportCheck:
    """Rewards of some responses before and after an export."""

    before: tuple[float, ...]  # of the source's head
    after: tuple[float, ...]  # of the exported model's head, loaded again from its folder
    largest_difference: float  # between `after` and the rewards that are wanted
    allowed: float
    golden: int = 0  # how many of the responses are golden rows of the source


@dataclass(frozen=True)
class ExportResult:
    r"""What was exported, and what was done to its rewards.

    .. math:: r' = a r + b = (a_\text{folded} r + b_\text{folded}) \cdot a_\text{beside} + b_\text{beside}
    """

    folder: Path
    source: str  # a model id, or the name of a folder: exports are shared, so without the path to it
    architecture: str
    parameters: int  # those of a kept adapter included
    adapter: Adapter
    dtype: str  # of the stored weights; the head is stored in float32
    head: str | None  # layer that scale and shift were folded into (None: the head is not a plain linear layer)
    rewards: RewardCalibration  # the whole change: scale a, shift b, and the temperature of the new rewards
    scale: float  # folded into the weights, so that every server applies it
    shift: float
    calibration: RewardCalibration | None  # beside the model, and applied by Plaudit only
    check: ExportCheck
    golden_rows: int = 0  # beside the model
    carried: tuple[str, ...] = ()  # files of the source that were copied
    left_behind: tuple[str, ...] = ()  # files and folders of the source that were not
    notes: tuple[str, ...] = ()  # what a user must know; logged as warnings

    def lines(self) -> list[tuple[str, str]]:
        """Returns what was done for people, as titles and texts."""
        weights = {
            "none": f"stored in {self.dtype}",
            "merged": f"adapter merged in float32, stored in {self.dtype}",
            "kept": f"an adapter, stored in {self.dtype}; it needs the model that it was trained on",
        }[self.adapter]
        kind, check = "adapter of " if self.adapter == "kept" else "", self.check
        changed, folded = self.rewards.changes_rewards, (self.scale, self.shift) != (1.0, 0.0)
        change = f"{formula(self.rewards.scale, self.rewards.shift)}, where `reward` is what the head said before"
        inside = "nothing folded: every server gives the rewards that the head gave before"
        if folded:
            inside = f"{formula(self.scale, self.shift)}, folded into `{self.head}`: what every server gives"
        golden = f", {check.golden} of them golden rows" if check.golden else ""
        lines = {
            "Model": f"{kind}{self.architecture}, {self.parameters:,} parameters, from {self.source}",
            "Weights": f"{weights}; the head in float32",
            "Rewards": change if changed else "as they were",
            "How": self.rewards.how,
            "In the weights": inside,
            "Beside them": "" if self.calibration is None else _beside(self.calibration),
            "Check": f"{len(check.after)} responses scored before and after{golden}: largest difference "
            f"{check.largest_difference:.2g} (allowed {check.allowed:.2g})",
            "Golden rows": f"{self.golden_rows} carried along" if self.golden_rows else "",
            "Carried along": ", ".join(self.carried),
            "Left behind": ", ".join(self.left_behind),
        }
        if self.golden_rows and folded:
            lines["Golden rows"] += " with their rewards as they are now"
        return [(title, text) for title, text in lines.items() if text]


def _beside(calibration: RewardCalibration) -> str:
    parts = []
    if calibration.changes_rewards:
        shift = f"a shift of {calibration.shift:+.6g}"
        change = f"the change to {formula(calibration.scale, calibration.shift)}"
        parts.append(shift if calibration.scale == 1 else change)
    if calibration.temperature != 1:
        parts.append(f"a temperature of {calibration.temperature:.6g} for probabilities")
    return f"{' and '.join(parts) or 'nothing that changes them'}, in {CALIBRATION_FILE}: only Plaudit applies it"


def formula(scale: float, shift: float) -> str:
    """Returns a scale and a shift as a formula.

    >>> formula(2.0, 0.0), formula(0.5, -1.25), formula(1.0, 3.0)
    ('2 * reward', '0.5 * reward - 1.25', 'reward + 3')
    """
    factor = "reward" if scale == 1 else f"{scale:.6g} * reward"
    return factor if shift == 0 else f"{factor} {'-' if shift < 0 else '+'} {abs(shift):.6g}"


# ---- the export, in the order in which it happens ----------------------------------------------------------------


@dataclass(frozen=True)
class _Written:
    """What is known once weights and tokenizer are written; the model itself is free again."""

    result: ExportResult  # so far
    ids: list[tuple[int, ...]]  # of the responses that were scored
    head_weight: torch.Tensor | None
    tokenizer: PreTrainedTokenizerBase
    rounded: bool


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
    """Export a reward model as a folder that servers and plain transformers load, and check its rewards.

    A `reward_calibration.json` beside the source is folded into the weights, as far as they allow it, unless `raw`.

    Args:
        model: A folder, or a model id on the Hub: a whole model, or an adapter.
        output: Folder to write. It gets its name when the model in it has given the rewards that it should.
        merge: Merge an adapter into the weights under it; False exports it as an adapter.
        dtype: Precision of the stored weights: ``"float32"``, ``"bfloat16"`` or ``"float16"``; by default that of the
            source. The head is stored in float32 in any case.
        normalize: Data (as for `load_preference_dataset`, or rows in memory): exported rewards have mean 0 and
            deviation 1 over all its responses.
        temperature: Divisor of rewards, so that the sigmoid of a difference is the probability of being better: a
            number, ``"stored"`` for that of the calibration, or data with comparisons to fit it on.
        raw: Leave rewards as they are; a calibration is copied beside the model, unchanged.
        overwrite: Replace a model that is in the output folder.
        dataset_config: Configuration of a data set on the Hub.
        dataset_split: Split of the data, also with a slice.
        tolerance: Largest allowed difference of a reward, in units of the source's rewards, times the largest of them
            where that is above 1. By default 1e-4 for float32, 0.01 for float16 and 0.05 for bfloat16.
        device: Where it is computed; by default the accelerator, or the CPU. The model is loaded in float32.
        batch_layout: See `RewardModel`.
        max_length: See `RewardModel`; longer rows of the data are left out, and counted.
        max_tokens_per_batch: See `RewardModel`.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Allow model and tokenizer code from the Hub.

    Raises:
        ConfigError: There is no reward model, settings exclude each other, the output folder would destroy something,
            or the exported model gives other rewards than it should; nothing is left then.
        DataError: A row of the data cannot be scored.
    """
    target = Path(output).expanduser().resolve()
    source = load.Source(str(model), revision, trust_remote_code)
    rescaling = Rescaling(normalize, temperature, raw, dataset_config, dataset_split)
    check_settings(batch_layout, max_tokens_per_batch, max_length, "nan")
    require_free(target, source, overwrite=overwrite)
    stored_dtype = choose_dtype(source, dtype)
    if source.is_adapter and not merge:
        if dtype is not None:
            message = "is for whole models, and the adapter is not merged"
            raise ConfigError(message, field="dtype", fix="Remove `dtype`, or merge the adapter.")
        stored_dtype = "float32"
    limits: dict[str, Any] = {"max_tokens_per_batch": max_tokens_per_batch, "max_length": max_length}
    wrap = partial(RewardModel, batch_layout=batch_layout, overlong="nan", **limits)
    device = load.choose_device(device)
    read = partial(load.load_reward_model, device=device, dtype=torch.float32)
    golden = load_golden_rows(source.name, revision)
    with new_folder(target, overwrite=overwrite) as folder:
        written = _write_model(source, folder, read, wrap, golden, rescaling, merge, stored_dtype, tolerance)
        gc.collect()  # models refer to themselves: two of them would be in memory
        check = check_folder(replace(source, name=str(folder), revision=None), read, wrap, written, tolerance)
        carried, left_behind = carry_files(source, folder)
        result = replace(written.result, folder=target, check=check, carried=carried, left_behind=left_behind)
        if result.calibration is not None:
            result.calibration.save(folder)
        if golden is not None:
            # They are replayed as exactly as the exported weights allow.
            rounded = written.rounded and golden.dtype in _PRECISION
            precision = max(golden.dtype, result.dtype, key=_PRECISION.index) if rounded else golden.dtype
            exported = golden.rescaled(result.scale, result.shift)
            replace(exported, dtype=precision, pad_token_id=written.tokenizer.pad_token_id).save(folder)
        values = asdict(result)
        del values["folder"]  # it may be moved
        versions = installed_versions(("transformers", "torch"))
        del versions["python"]
        saved = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        record = {"format": FORMAT, "version": VERSION, **values, "versions": versions, "saved": saved}
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / _RECORD).write_text(text + "\n", encoding="utf-8")
        is_text = golden is not None and all(row.text and not row.messages for row in golden.rows)
        write_card(result, folder, find_file(source.name, "README.md", revision), text_model=is_text)
    for note in result.notes:
        logger.warning("%s", note)
    return result


def _write_model(
    source: load.Source,
    folder: Path,
    read: Callable[[load.Source], Any],
    wrap: Callable[[Any, PreTrainedTokenizerBase], RewardModel],
    golden: GoldenRows | None,
    rescaling: Rescaling,
    merge: bool,
    dtype: str,
    tolerance: float | None,
) -> _Written:
    """Loads a model in float32, merges and rescales it, and writes weights and tokenizer into `folder`."""
    loaded, source_tokenizer = read(source), load.load_tokenizer_of(source)
    model = wrap(loaded, source_tokenizer)
    most = model.max_length
    saved = [row for row in golden.rows if most is None or len(row.ids) <= most] if golden else []
    ids = [*(row.ids for row in saved), *built_in_ids(model.processing_class, most)]
    before = score_ids(model, ids)
    adapter: Adapter = "kept" if is_peft_model(loaded) else "none"
    if adapter == "kept" and merge:
        model, adapter = wrap(merge_adapter(loaded), model.processing_class), "merged"
    rewards = rescaled_rewards(model, load_calibration(source.name, source.revision), rescaling)
    name, layer = find_head(model, ids) or (None, None)
    if adapter == "kept" and name is not None and "modules_to_save" not in name:
        name = layer = None  # it belongs to the model under the adapter, which is not exported
    scale, shift = 1.0, 0.0
    if layer is not None and rewards.changes_rewards and not rescaling.raw:
        scale, shift = rewards.scale, rewards.shift if layer.bias is not None else 0.0
        fold_into(layer, scale, shift)
    rest = RewardCalibration(rewards.scale / scale, rewards.shift - shift, rewards.temperature, rewards.how)
    beside = rest if rest.changes_rewards or rest.temperature != 1 else None
    exact = max(TOLERANCE["float32"], tolerance or 0.0)
    fix = "Use `merge=False`, `raw=True` or a `tolerance`: the merge or the arithmetic of the head is at fault."
    check = compare(before, score_ids(model, ids), scale, shift, len(saved), tolerance=exact, fix=fix)
    base = base_model_of(model.model)
    tokenizer = load.set_pad_token(base, model.processing_class, may_resize=adapter != "kept")
    # Learned positions count padding on the left, so that rewards would depend on the batch.
    tokenizer.padding_side = "right"
    load.set_serving_config(base)
    rounded = adapter != "kept" and round_weights(base, dtype, () if layer is None else layer.parameters())
    model.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = Path(source.name).expanduser()
    result = ExportResult(
        folder=folder,
        source=path.resolve().name if path.exists() else source.name,
        architecture=type(base).__name__,
        parameters=base.num_parameters(),
        adapter=adapter,
        dtype=dtype,
        head=name,
        rewards=rewards,
        scale=scale,
        shift=shift,
        calibration=beside,
        check=check,
        golden_rows=0 if golden is None else len(golden.rows),
        notes=(
            *_reward_notes(rewards, scale, beside, raw=rescaling.raw),
            *_padding_notes(source_tokenizer, tokenizer, base),
            *_source_notes(source, golden, [row.reward for row in saved], before),
        ),
    )
    weight = None if layer is None else layer.weight.detach().cpu().clone()
    return _Written(result, ids, weight, tokenizer, rounded)


def check_folder(
    source: load.Source,
    read: Callable[[load.Source], Any],
    wrap: Callable[[Any, PreTrainedTokenizerBase], RewardModel],
    written: _Written,
    tolerance: float | None,
) -> ExportCheck:
    """Loads what was written as anybody would, and compares its rewards with those of the source."""
    model, tokenizer, result = read(source), load.load_tokenizer_of(source), written.result
    if built_in_ids(tokenizer, None) != built_in_ids(written.tokenizer, None):
        message = "the exported tokenizer renders conversations differently from the source's: it was not saved whole"
        raise ConfigError(message, fix=_REPORT)
    if result.head is not None and written.head_weight is not None:
        weight: Any = base_model_of(model).get_submodule(result.head).weight
        if not torch.equal(weight.detach().cpu(), written.head_weight):
            raise ConfigError("the reward head was not saved unchanged", fix=_REPORT)
    kept = is_peft_model(model)
    after = score_ids(wrap(model, tokenizer), written.ids) if kept else plain_rewards(model, written.ids)
    fix = _REPORT if result.dtype == "float32" else "Use a higher precision, such as `dtype='float32'`."
    allowed = TOLERANCE[result.dtype] if tolerance is None else tolerance
    before, golden = result.check.before, result.check.golden
    return compare(before, after, result.scale, result.shift, golden, tolerance=allowed, fix=fix)


# ---- rewards before and after ------------------------------------------------------------------------------------

_TURNS = (
    ("What is 2 + 2?", "4"),
    ("What is 2 + 2?", "It is 5, as everybody knows."),
    ("Name three colors of the rainbow.", "Red, green and blue."),
    ("Name three colors of the rainbow.", "No."),
    ("Write one line about the sea.", "The sea keeps no road open behind a ship.", "Shorter!", "The sea forgets."),
    ("How do I boil an egg?", "Put it into boiling water for eight minutes, then into cold water."),
)


def built_in_ids(tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[tuple[int, ...]]:
    """Returns the token ids of a few short conversations, or of texts where there is no chat template."""
    texts: list[Any] = ["\n".join(turns) for turns in _TURNS]
    roles = itertools.cycle(("user", "assistant"))
    conversations = [[{"role": next(roles), "content": text} for text in turns] for turns in _TURNS]
    preparer = RowPreparer(tokenizer, max_length, "truncate_right")
    rows = preparer.prepare(conversations if tokenizer.chat_template else texts, range(len(texts)))
    if all(row.ids is None for row in rows):  # a template of its own kind
        rows = preparer.prepare(texts, range(len(texts)))
    return [tuple(ids) for row in rows if row.ids is not None for ids in row.ids]


def score_ids(model: RewardModel, ids: Sequence[Sequence[int]]) -> list[float]:
    """Returns the rewards of tokenised responses, prompts included."""
    rewards: list[float] = model.score([{"response_ids": [list(response) for response in ids]}])[0]
    return rewards


def plain_rewards(model: Any, ids: Sequence[Sequence[int]]) -> list[float]:
    """Returns the rewards that plain transformers gives to tokenised responses, one at a time."""
    rewards = []
    with torch.inference_mode():
        for response in ids:
            input_ids = torch.tensor([list(response)], device=model.device)
            outputs = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
            rewards.append(float(outputs.logits.flatten()[0]))
    return rewards


def compare(
    before: Sequence[float],
    after: Sequence[float],
    scale: float,
    shift: float,
    golden: int,
    *,
    tolerance: float,
    fix: str,
) -> ExportCheck:
    """Compares rewards with what they should be; raises `ConfigError` where they differ by more than is allowed."""
    allowed = tolerance * scale * max(1.0, *map(abs, before))
    expected = [scale * reward + shift for reward in before]
    differences = [abs(reward - target) for reward, target in zip(after, expected, strict=True)]
    wrong = [index for index, difference in enumerate(differences) if not difference <= allowed]  # also where it is NaN
    if wrong:
        index = max(wrong, key=lambda index: math.inf if math.isnan(differences[index]) else differences[index])
        raise ConfigError(
            f"the exported model gives other rewards than its source: {after[index]:.6g} instead of "
            f"{expected[index]:.6g} (response {index} of {len(before)}; {len(wrong)} differ by more than the "
            f"{allowed:.2g} that are allowed). Nothing was written",
            fix=fix,
        )
    return ExportCheck(tuple(before), tuple(after), max(differences), allowed, golden)


# ---- head, adapter and precision ---------------------------------------------------------------------------------


def find_head(model: RewardModel, ids: Sequence[Sequence[int]]) -> tuple[str, nn.Linear] | None:
    """Returns name and module of the linear layer whose output is the reward; None where something follows it.

    It is found by watching a forward pass: names differ (`score`, `classifier`, `out_proj`), and so does what comes
    after them. The model is in float32 and has no calibration.
    """
    outputs: dict[nn.Linear, list[torch.Tensor]] = {}
    layers = {
        layer: name
        for name, layer in base_model_of(model.model).named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == 1
    }

    def keep(layer: Any, inputs: Any, output: torch.Tensor) -> None:
        outputs.setdefault(layer, []).append(output.detach().float().flatten().cpu())

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        rewards_N = torch.tensor(score_ids(model, ids))
    finally:
        for handle in handles:
            handle.remove()
    heads = []
    for layer, values in outputs.items():
        distances_N = (torch.cat(values)[None, :] - rewards_N[:, None]).abs().min(dim=1).values
        if (distances_N <= 1e-5 * rewards_N.abs().clamp(min=1.0)).all():
            heads.append(layer)
    return (layers[heads[0]], heads[0]) if len(heads) == 1 else None


def fold_into(head: nn.Linear, scale: float, shift: float) -> None:
    """Makes rewards ``scale * reward + shift``, in place; without a bias the shift is 0."""
    with torch.no_grad():
        head.weight.copy_((head.weight.double() * scale).float())
        if head.bias is not None:
            head.bias.copy_((head.bias.double() * scale + shift).float())


def choose_dtype(source: load.Source, dtype: str | None) -> str:
    """Returns what the exported weights are stored in: `dtype`, or what the weights of the source are stored in.

    Of an adapter, these are the weights of the model under it. Raises `ConfigError` for an unknown dtype, where there
    is no model, and for quantised weights.
    """
    if dtype not in (None, "auto", *DTYPES):
        raise ConfigError(f"is {dtype!r}", field="dtype", fix=f"Use one of {', '.join(DTYPES)}, or remove it.")
    below = load.base_source_of(source) if source.is_adapter else source
    if not below.has("config.json"):
        raise ConfigError(
            f"there is no reward model in {below.name!r}: it has no config.json",
            fix="Pass a folder that `plaudit train` wrote (perhaps one of its checkpoint-* folders), or a model id.",
        )
    config: Any = AutoConfig.from_pretrained(
        below.name, revision=below.revision, trust_remote_code=below.trust_remote_code
    )
    if getattr(config, "quantization_config", None):
        raise ConfigError(
            f"the weights of {below.name!r} are stored quantised: an adapter merged into them, or another precision, "
            "would not give the rewards that it was trained to give",
            fix="Serve it as it is; or put the unquantised model into `base_model_name_or_path` of the adapter, and "
            "compare rewards with `plaudit verify`.",
        )
    if dtype not in (None, "auto"):
        return str(dtype)
    configured = str(getattr(config.get_text_config(), "dtype", None) or config.dtype or "").removeprefix("torch.")
    if configured in DTYPES:
        return configured
    path = find_file(below.name, SAFE_WEIGHTS_NAME, below.revision)
    if path is None:
        return "float32"
    with safe_open(path, framework="pt") as weights:
        kinds = [weights.get_slice(name).get_dtype() for name in weights.keys()]  # noqa: SIM118 (not a mapping)
    most = max(sorted(set(kinds)), key=kinds.count, default="")
    return {"BF16": "bfloat16", "F16": "float16"}.get(most, "float32")


def merge_adapter(model: Any) -> PreTrainedModel:
    """Merges an adapter into the weights under it, in place; raises `ConfigError` for a kind that cannot be merged."""
    kind = ", ".join(type(config).__name__ for config in model.peft_config.values())
    fix = "Export it as an adapter with `merge=False` (`--merge false`), or serve it with `plaudit serve`."
    if is_prompt_learning(model) or not hasattr(model, "merge_and_unload"):
        raise ConfigError(f"an adapter of this kind ({kind}) cannot be merged into weights", fix=fix)
    try:
        merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(f"the adapter ({kind}) cannot be merged: {error}", fix=fix) from error
    return merged


def round_weights(model: PreTrainedModel, dtype: str, keep: Iterable[nn.Parameter]) -> bool:
    """Rounds weights to the dtype that they are stored in, in place; tells whether any has changed.

    Parameters in `keep`, buffers, and what the architecture wants in float32 stay. Raises `ConfigError` where a weight
    is too large.
    """
    to = getattr(torch, dtype)
    kept = {id(parameter) for parameter in keep}
    # As transformers does on loading.
    names = set() if dtype == "float32" else {*(getattr(model, "_keep_in_fp32_modules_strict", None) or ())}
    names |= {*(getattr(model, "_keep_in_fp32_modules", None) or ())} if dtype == "float16" else set()
    in_float32 = re.compile("|".join(rf"(?:^|\.)(?:{name})(?:\.|$)" for name in sorted(names)) or "(?!)")
    changed = False
    for name, parameter in model.named_parameters():
        stays = id(parameter) in kept or not parameter.is_floating_point() or in_float32.search(name)
        if stays or parameter.dtype == to:
            continue
        rounded = parameter.data.to(to)
        if not torch.isfinite(rounded).all():
            raise ConfigError(
                f"the weights `{name}` do not fit into {dtype}: some would be infinite or not a number",
                field="dtype",
                fix="Use `dtype='bfloat16'` or 'float32'." if dtype == "float16" else "Check how it was trained.",
            )
        changed = changed or not torch.equal(rounded.to(parameter.dtype), parameter.data)
        parameter.data = rounded
    return changed


# ---- what a user must know ---------------------------------------------------------------------------------------


def _reward_notes(
    rewards: RewardCalibration, scale: float, beside: RewardCalibration | None, *, raw: bool
) -> Iterator[str]:
    """What of the change of rewards could not be folded into the weights, and what follows from that."""
    if beside is None or not beside.changes_rewards:
        return
    where = f"It lies in {CALIBRATION_FILE}, which only Plaudit applies"
    if raw:
        yield (
            f"Rewards are left as they are, and the calibration ({formula(beside.scale, beside.shift)}) with them. "
            f"{where}: other servers give the head's own rewards."
        )
    elif scale == rewards.scale and beside.scale == 1:
        direction = "lower" if beside.shift > 0 else "higher"
        yield (
            f"The head has no bias, so the shift of {beside.shift:+.6g} could not be folded into the weights. {where}: "
            f"other servers give rewards that are {direction} by {abs(beside.shift):.6g}, all of them alike. Rankings, "
            "margins and probabilities are the same there; only a fixed threshold has to be moved."
        )
    else:
        yield (
            "No plain linear layer that is exported gives the reward, so the change of rewards "
            f"({formula(rewards.scale, rewards.shift)}) could not be folded into the weights. {where}: other servers "
            "give the head's own rewards. Rankings are the same there; margins and thresholds are not."
        )


def _padding_notes(before: PreTrainedTokenizerBase, after: PreTrainedTokenizerBase, base_model: Any) -> Iterator[str]:
    if after.pad_token_id in load.eos_token_ids(after, base_model.config.get_text_config()):
        yield (
            f"The padding token {after.pad_token!r} is also an eos token, and an adapter cannot get a new one: "
            "software that looks for the last token that is not padding reads another reward. Merge the adapter to fix "
            "this."
        )
    elif before.pad_token != after.pad_token:
        yield (
            f"The padding token is now {after.pad_token!r} (it was {before.pad_token!r}), so that all servers read the "
            "reward at the same token."
        )


def _source_notes(
    source: load.Source, golden: GoldenRows | None, saved: Sequence[float], before: Sequence[float]
) -> Iterator[str]:
    """What the source loses: rewards that were saved with it, which come first in `before`, and its ensemble."""
    if golden is not None and saved:
        difference = max(abs(reward - now) for reward, now in zip(saved, before, strict=False))
        allowed = TOLERANCE.get(golden.dtype, TOLERANCE["bfloat16"]) * max(1.0, *map(abs, saved))
        if difference > allowed:
            yield (
                f"The source does not give the rewards that were saved with it: its golden rows differ by up to "
                f"{difference:.3g} ({allowed:.2g} would be rounding). It was changed since, or trained on quantised "
                "weights; the export gives what the source gives now. `plaudit verify` says more."
            )
    path = find_file(source.name, TRAINING_HEADS, source.revision)
    if path is not None and ensemble_in(Path(path)) is not None:
        yield (
            f"The ensemble that tells how sure rewards are stays behind ({TRAINING_HEADS}): the export has the one "
            "head that every server reads. Use the source for `uncertainty=True`."
        )


# ---- the folder --------------------------------------------------------------------------------------------------

CARRIED = ("plaudit_run.json", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.md", "NOTICE.txt")
"""Files that are copied as they are."""
_WRITTEN_ANEW = (
    *("config.json", "generation_config.json", "README.md", "golden_rows.json", "reward_calibration.json"),
    *("*model*.safetensors", "*model*.safetensors.index.json", "*model*.bin", "*model*.bin.index.json"),
    *("adapter_config.json", "plaudit_export.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab.*", "merges.txt"),
    *("*.model", "*.tiktoken", "*.py", ".*", "__pycache__"),
)


def require_free(output: Path, source: load.Source, *, overwrite: bool) -> None:
    """Raises `ConfigError` for an output folder whose contents an export would destroy."""
    source_folder = Path(source.name).expanduser()
    if source_folder.is_dir() and source_folder.resolve().is_relative_to(output):
        message = f"the output folder {str(output)!r} is that of the model itself, or holds it"
        fix = "Use another folder: a model is never exported over itself."
    elif output.exists() and not output.is_dir():
        message, fix = f"{str(output)!r} is a file", "Use a folder that does not exist yet."
    elif not output.exists() or not any(output.iterdir()):
        return
    elif not overwrite:
        message = f"the folder {str(output)!r} exists"
        fix = "Use another folder, or replace this one with `overwrite` (--overwrite)."
    elif not any((output / name).exists() for name in ("config.json", "adapter_config.json")):
        message = f"the folder {str(output)!r} holds something else than a model, which would be deleted"
        fix = "Use another folder, or empty this one yourself."
    else:
        return
    raise ConfigError(message, field="output", fix=fix)


@contextlib.contextmanager
def new_folder(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """Context manager that yields a folder, which gets its name when all went well, and is removed otherwise.

    With `overwrite`, what is there stays until the new folder is whole.
    """
    unfinished, old = (output.with_name(f".{output.name}.{os.getpid()}.{ending}") for ending in ("part", "old"))
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        replaces = overwrite and output.exists()
        if replaces:
            output.replace(old)
        try:
            unfinished.replace(output)  # fails if another process has written there meanwhile
        except OSError:
            if replaces:
                old.replace(output)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        message = f"the export cannot be written to {str(output)!r}: {error}"
        fix = "Use a folder on a disk with space, where you may write."
        raise ConfigError(message, field="output", fix=fix) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def carry_files(source: load.Source, folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Copies the files that go along with a model unchanged; returns their names, and what stays behind.

    Of a model on the Hub nothing stays behind.
    """
    paths = {name: find_file(source.name, name, source.revision) for name in CARRIED}
    for name, path in paths.items():
        if path is not None:
            shutil.copyfile(path, folder / name)
    source_folder = Path(source.name).expanduser()
    left_behind = tuple(
        path.name + ("/" if path.is_dir() else "")
        for path in (sorted(source_folder.iterdir()) if source_folder.is_dir() else ())
        if not any(fnmatch.fnmatchcase(path.name, pattern) for pattern in (*CARRIED, *_WRITTEN_ANEW))
    )
    return tuple(name for name, path in paths.items() if path is not None), left_behind


# ---- the model card ----------------------------------------------------------------------------------------------

_HEADER_KEPT = ("language", "license", "license_name", "license_link", "base_model", "datasets", "tags")
_SECTIONS_REPLACED = ("Load and score", "Serve", "Export")
_UNFILLED = "[More Information Needed]"  # in the sections of the Hub's template that nobody has filled in


def write_card(result: ExportResult, folder: Path, source_card: str | None, *, text_model: bool = False) -> None:
    """Writes `README.md`; of the source's card, it keeps what is still true."""
    text = Path(source_card).read_text(encoding="utf-8", errors="replace") if source_card is not None else ""
    match = re.match(r"---\n(.*?)\n---\n?(.*)", text, flags=re.DOTALL)
    try:
        header = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        header = None
    header = header if isinstance(header, dict) else {}
    header = {name: header[name] for name in _HEADER_KEPT if header.get(name)}
    if str(header.get("base_model", "")).startswith(("/", ".", "~")):
        del header["base_model"]  # a path on somebody's machine
    tags = header.get("tags", [])
    tags = {str(tag) for tag in (tags if isinstance(tags, list) else [tags])}
    if result.adapter != "kept":
        tags = {tag for tag in tags if tag != "lora" and not tag.startswith("base_model:adapter")}
    library = "peft" if result.adapter == "kept" else "transformers"
    about = {"library_name": library, "pipeline_tag": "text-classification"}
    card = render_card(
        "export/model_card.md.j2",
        {**about, **header, "tags": sorted({"plaudit", "reward-model", *tags})},
        name=result.folder.name,
        result=result,
        text=text_model,
        calibration_file=CALIBRATION_FILE,
        source_sections=_true_sections(match[2] if match else text),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _true_sections(body: str) -> list[str]:
    """The sections of the source's card that are still true, without its title."""
    sections = []
    for section in re.split(r"(?m)^(?=## )", body):
        title = section.partition("\n")[0].removeprefix("## ").strip()
        text = re.sub(r"(?m)\A# .*\n", "", section.strip() + "\n").strip()
        # A title with nothing below it but the instructions of the template is as good as none.
        content = re.sub(r"<!--.*?-->|^## .*?$", "", text, flags=re.DOTALL | re.MULTILINE).strip()
        replaced = section.startswith("## ") and title in _SECTIONS_REPLACED
        if content and not replaced and _UNFILLED not in text:
            sections.append(text)
    return sections
