"""`export_model`: a reward model as a folder that any server reads, the same rewards or rescaled ones, and checked."""

from __future__ import annotations

import contextlib
import datetime
import fnmatch
import gc
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import transformers
import yaml
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file

from plaudit.data.prepare import RowPreparer
from plaudit.errors import ConfigError
from plaudit.export.rescaling import Rows, Wishes, wanted_rewards
from plaudit.inference.reward_model import RewardModel, check_settings
from plaudit.model.aux_heads import FILE_NAME as TRAINING_HEADS
from plaudit.model.aux_heads import ensemble_in
from plaudit.model.calibration import FILE_NAME as CALIBRATION_FILE
from plaudit.model.calibration import RewardCalibration, load_calibration
from plaudit.model.golden import GoldenRows, load_golden_rows
from plaudit.model.load import (
    Source,
    base_source_of,
    default_device,
    eos_token_ids,
    load_reward_model,
    load_tokenizer_of,
    set_pad_token,
    set_serving_config,
)
from plaudit.model.peft import base_model_of, is_peft_model, is_prompt_learning
from plaudit.model.shared_prefix import BatchLayout
from plaudit.version import __version__


def notes_on_rewards(
    rewards: RewardCalibration, scale: float, shift: float, beside: RewardCalibration | None, *, raw: bool
) -> list[str]:
    """What of the change of rewards could not be folded into the weights, and what follows from that.

    Args:
        rewards: The whole change.
        scale: Factor that was folded.
        shift: Summand that was folded.
        beside: What lies beside the model.
        raw: Whether rewards were to be left as they are.
    """
    if beside is None or not beside.changes_rewards:
        return []
    where = f"It lies in {CALIBRATION_FILE}, which only Plaudit applies"
    if raw:
        return [
            f"Rewards are left as they are, and the calibration ({formula(beside.scale, beside.shift)}) with them. "
            f"{where}: other servers give the head's own rewards."
        ]
    if scale == rewards.scale and beside.scale == 1:
        direction = "lower" if beside.shift > 0 else "higher"
        return [
            f"The head has no bias, so the shift of {beside.shift:+.6g} could not be folded into the weights. {where}: "
            f"other servers give rewards that are {direction} by {abs(beside.shift):.6g}, all of them alike. Rankings, "
            "margins and probabilities are the same there; only a fixed threshold has to be moved."
        ]
    return [
        "No plain linear layer that is exported gives the reward, so the change of rewards "
        f"({formula(rewards.scale, rewards.shift)}) could not be folded into the weights. {where}: other servers give "
        "the head's own rewards. Rankings are the same there; margins and thresholds are not."
    ]


def notes_on_padding(before: PreTrainedTokenizerBase, after: PreTrainedTokenizerBase, base_model: Any) -> list[str]:
    """What changed about the padding token.

    Args:
        before: The tokenizer of the source.
        after: That of the export.
        base_model: The exported model.
    """
    config = base_model.config.get_text_config()
    if after.pad_token_id in eos_token_ids(after, config):
        return [
            f"The padding token {after.pad_token!r} is also an eos token, and an adapter cannot get a new one: "
            "software that looks for the last token that is not padding reads another reward. Merge the adapter to "
            "mend it."
        ]
    if before.pad_token == after.pad_token:
        return []
    return [
        f"The padding token is now {after.pad_token!r} (it was {before.pad_token!r}), so that all servers read the "
        "reward at the same token."
    ]


def notes_on_golden_rows(golden: GoldenRows | None, sample: SampleRows, before: list[float]) -> list[str]:
    """Whether the source still gives the rewards that were saved with it.

    Args:
        golden: Its golden rows, if it has any.
        sample: Responses that were scored, golden rows first.
        before: Their rewards now.
    """
    if golden is None or not sample.golden:
        return []
    difference = max(abs(one - other) for one, other in zip(sample.golden, before, strict=False))
    allowed = TOLERANCE.get(golden.dtype, TOLERANCE["bfloat16"]) * max(1.0, *map(abs, sample.golden))
    if difference <= allowed:
        return []
    return [
        f"The source does not give the rewards that were saved with it: its golden rows differ by up to "
        f"{difference:.3g} ({allowed:.2g} would be rounding). It was changed since, or trained on quantised weights; "
        "the export gives what the source gives now. `plaudit verify` says more."
    ]


def notes_on_ensemble(path: Path | None) -> list[str]:
    """Whether an ensemble stays behind.

    Args:
        path: File of the heads beside the source, if it has any.
    """
    if path is None or ensemble_in(path) is None:
        return []
    return [
        f"The ensemble that tells how sure rewards are stays behind ({path.name}): the export has the one head that "
        "every server reads. Use the source for `uncertainty=True`."
    ]


_CLOSE = 1e-5


@dataclass(frozen=True)
class PlainHead:
    """A linear layer whose output is the reward.

    Attributes:
        name: Its name in the model.
        layer: The layer.
    """

    name: str
    layer: nn.Linear

    @property
    def has_bias(self) -> bool:
        """Whether a shift can be folded into it."""
        return self.layer.bias is not None

    def fold(self, scale: float, shift: float) -> None:
        """Make rewards ``scale * reward + shift``, in place.

        Args:
            scale: The factor.
            shift: The summand; 0 where there is no bias.
        """
        with torch.no_grad():
            self.layer.weight.copy_((self.layer.weight.double() * scale).float())
            if self.layer.bias is not None:
                self.layer.bias.copy_((self.layer.bias.double() * scale + shift).float())


def score_ids(scorer: RewardModel, ids: Sequence[Sequence[int]]) -> list[float]:
    """Raw rewards of tokenised responses.

    Args:
        scorer: A reward model without a calibration.
        ids: Token ids of each response, prompt included.
    """
    rewards: list[float] = scorer.score([{"response_ids": [list(one) for one in ids]}])[0]
    return rewards


def plain_head(scorer: RewardModel, ids: Sequence[Sequence[int]]) -> PlainHead | None:
    """The linear layer that a model reads its rewards from, whatever it is called; None where something follows it.

    It is found by watching a forward pass: names differ (`score`, `classifier`, `out_proj`), and so does what comes
    after them.

    Args:
        scorer: A reward model in float32.
        ids: Token ids of some responses.
    """
    seen: dict[str, list[torch.Tensor]] = {}
    layers = {
        name: layer
        for name, layer in base_model_of(scorer.model).named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == 1
    }

    def watch(name: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            seen.setdefault(name, []).append(output.detach().float().flatten().cpu())

        return keep

    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        rewards_N = torch.tensor(score_ids(scorer, ids))
    finally:
        for handle in handles:
            handle.remove()
    fitting = [name for name, outputs in seen.items() if _holds_all(torch.cat(outputs), rewards_N)]
    return PlainHead(fitting[0], layers[fitting[0]]) if len(fitting) == 1 else None


def _holds_all(outputs: torch.Tensor, rewards_N: torch.Tensor) -> bool:
    distances_N = (outputs[None, :] - rewards_N[:, None]).abs().min(dim=1).values
    return bool((distances_N <= _CLOSE * rewards_N.abs().clamp(min=1.0)).all())


DTYPES = ("float32", "bfloat16", "float16")
_HEADER_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def stored_dtype(source: Source, asked: str | None) -> str:
    """What the exported weights are stored in: what was asked for, or what those of the source are.

    Args:
        source: The model; of an adapter, the weights are those of the model under it.
        asked: What was asked for; None or ``"auto"`` for what the source has.

    Raises:
        ConfigError: There is no such precision, or the weights of the source are quantised.
    """
    if asked not in (None, "auto", *DTYPES):
        raise ConfigError(f"`dtype` is {asked!r}", fix=f"Use one of {', '.join(DTYPES)}, or leave it out.")
    below = base_source_of(source) if source.is_adapter else source
    if not below.has("config.json"):
        raise ConfigError(
            f"there is no reward model in {below.name!r}: it has no config.json",
            fix="Name a folder that `plaudit train` wrote (perhaps one of its checkpoint-* folders), or a model id.",
        )
    config: Any = AutoConfig.from_pretrained(
        below.name, revision=below.revision, trust_remote_code=below.trust_remote_code
    )
    if getattr(config, "quantization_config", None):
        raise ConfigError(
            f"the weights of {below.name!r} are stored quantised: an adapter merged into them, or another precision, "
            "would not give the rewards that it was trained to give",
            fix="Serve it as it is; or name the unquantised model in `base_model_name_or_path` of the adapter, and "
            "hold rewards against each other with `plaudit verify`.",
        )
    if asked not in (None, "auto"):
        return str(asked)
    said = str(getattr(config.get_text_config(), "dtype", None) or config.dtype or "").removeprefix("torch.")
    return said if said in DTYPES else _dtype_in_header(below)


def _dtype_in_header(source: Source) -> str:
    """What most weights are stored in, where the configuration does not say; float32 where that is not known."""
    try:
        found = cached_file(
            source.name, SAFE_WEIGHTS_NAME, revision=source.revision, _raise_exceptions_for_missing_entries=False
        )
    except OSError:  # whoever loads the weights says so
        found = None
    if found is None:
        return "float32"
    with safe_open(found, framework="pt") as weights:
        kinds = [weights.get_slice(name).get_dtype() for name in weights.keys()]  # noqa: SIM118 (no mapping)
    return _HEADER_NAMES.get(max(sorted(set(kinds)), key=kinds.count), "float32") if kinds else "float32"


def merge_adapter(model: Any) -> PreTrainedModel:
    """Merge an adapter into the weights under it; a model without one stays as it is.

    Args:
        model: In float32; changed in place.

    Raises:
        ConfigError: The adapter is of a kind that cannot be merged.
    """
    if not is_peft_model(model):
        whole: PreTrainedModel = model
        return whole
    kind = ", ".join(type(config).__name__ for config in model.peft_config.values())
    fix = "Export it as an adapter with `merge=False` (`--merge false`), or serve it with `plaudit serve`."
    if is_prompt_learning(model) or not hasattr(model, "merge_and_unload"):
        raise ConfigError(f"an adapter of this kind ({kind}) cannot be merged into weights", fix=fix)
    try:
        merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(f"the adapter ({kind}) cannot be merged: {error}", fix=fix) from error
    return merged


def round_weights(model: PreTrainedModel, dtype: str, keep: Iterable[torch.nn.Parameter]) -> bool:
    """Round weights to the precision that they are stored in, and tell whether any has changed by it.

    Args:
        model: In float32; changed in place. Buffers stay, and so does what the architecture wants in float32.
        dtype: The precision.
        keep: Parameters that stay in float32.

    Raises:
        ConfigError: A weight is too large for it.
    """
    to = getattr(torch, dtype)
    kept = {id(one) for one in keep}
    patterns = _kept_in_float32(model, to)
    changed = False
    for name, parameter in model.named_parameters():
        stays = id(parameter) in kept or not parameter.is_floating_point() or (patterns and patterns.search(name))
        if stays or parameter.dtype == to:
            continue
        rounded = parameter.data.to(to)
        if not torch.isfinite(rounded).all():
            raise ConfigError(
                f"the weights `{name}` do not fit into {dtype}: some would be infinite or are no numbers",
                fix="Use `dtype='bfloat16'` or 'float32'." if dtype == "float16" else "Look at how it was trained.",
            )
        changed = changed or not torch.equal(rounded.to(parameter.dtype), parameter.data)
        parameter.data = rounded
    return changed


def _kept_in_float32(model: Any, dtype: torch.dtype) -> re.Pattern[str] | None:
    names = {*(getattr(model, "_keep_in_fp32_modules_strict", None) or ())} if dtype != torch.float32 else set()
    if dtype == torch.float16:
        names |= {*(getattr(model, "_keep_in_fp32_modules", None) or ())}
    return re.compile("|".join(rf"(?:^|\.)(?:{name})(?:\.|$)" for name in sorted(names))) if names else None


CARRIED = ("plaudit_run.json", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.md", "NOTICE.txt")
"""Files that are copied as they are."""
_WRITTEN_ANEW = (
    *("config.json", "generation_config.json", "README.md", "golden_rows.json", "reward_calibration.json"),
    *("*model*.safetensors", "*model*.safetensors.index.json", "*model*.bin", "*model*.bin.index.json"),
    *("adapter_config.json", "plaudit_export.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab.*", "merges.txt"),
    *("*.model", "*.tiktoken", "*.py", ".*", "__pycache__"),
)
_MODEL_FILES = ("config.json", "adapter_config.json")


def require_place(output: Path, source: Source, *, overwrite: bool) -> None:
    """Refuse an output folder that would destroy something.

    Args:
        output: Where the export is to be.
        source: What is exported.
        overwrite: Whether a model that is there may be replaced.

    Raises:
        ConfigError: It is the source or holds it, exists, or holds something that is no model.
    """
    from_folder = Path(source.name).expanduser()
    if from_folder.is_dir() and from_folder.resolve().is_relative_to(output):
        raise ConfigError(
            f"the output folder {str(output)!r} is that of the model itself, or holds it",
            fix="Name another folder: a model is never exported over itself.",
        )
    if not output.exists():
        return
    if not output.is_dir():
        raise ConfigError(f"{str(output)!r} is a file", fix="Name a folder that does not exist yet.")
    if not any(output.iterdir()):
        return
    if not overwrite:
        raise ConfigError(
            f"the folder {str(output)!r} exists", fix="Name another one, or replace it with `overwrite` (--overwrite)."
        )
    if not any((output / name).exists() for name in _MODEL_FILES):
        raise ConfigError(
            f"the folder {str(output)!r} holds something else than a model, which would be deleted",
            fix="Name another folder, or empty this one yourself.",
        )


@contextlib.contextmanager
def new_folder(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to write to, which gets its name when all went well, and is removed otherwise.

    Args:
        output: Where it is to be.
        overwrite: Whether what is there may be replaced; it stays until the new one is whole.
    """
    unfinished = output.with_name(f".{output.name}.{os.getpid()}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        _put_in_place(unfinished, output, overwrite)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"the export cannot be written to {str(output)!r}: {error}",
            fix="Name a folder on a disk with space, where you may write.",
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _put_in_place(folder: Path, output: Path, overwrite: bool) -> None:
    if not output.exists() or not any(output.iterdir()) or not overwrite:
        folder.replace(output)  # fails where somebody else has written there meanwhile
        return
    old = output.with_name(f".{output.name}.{os.getpid()}.old")
    output.replace(old)
    try:
        folder.replace(output)
    except OSError:
        old.replace(output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def carry_files(source: Source, folder: Path) -> tuple[str, ...]:
    """Copy what goes along with a model as it is.

    Args:
        source: The model.
        folder: Where to.

    Returns:
        Names of the files.
    """
    carried = []
    for name in CARRIED:
        found = file_of(source, name)
        if found is not None:
            shutil.copyfile(found, folder / name)
            carried.append(name)
    return tuple(carried)


def file_of(source: Source, name: str) -> Path | None:
    """A file beside a model; None where there is none.

    Args:
        source: The model.
        name: Name of the file.
    """
    if not source.has(name):
        return None
    found = cached_file(source.name, name, revision=source.revision)
    return None if found is None else Path(found)


def left_behind(source: Source) -> tuple[str, ...]:
    """What lies in the folder of the source and is neither copied nor written anew; of a model on the Hub nothing.

    Args:
        source: The model.
    """
    folder = Path(source.name).expanduser()
    if not folder.is_dir():
        return ()
    known = (*CARRIED, *_WRITTEN_ANEW)
    return tuple(
        path.name + ("/" if path.is_dir() else "")
        for path in sorted(folder.iterdir())
        if not any(fnmatch.fnmatchcase(path.name, pattern) for pattern in known)
    )


_KEPT = ("language", "license", "license_name", "license_link", "base_model", "datasets", "tags")
_REPLACED = ("Load and score", "Serve", "Export")
_BLANK = "[More Information Needed]"  # a section of the Hub's form that nobody has filled in


def render_card(result: ExportResult, source_card: str | None) -> str:
    """The card as Markdown with its YAML header.

    Args:
        result: What was done.
        source_card: Card of the source, if it has one: its sections on loading and serving are replaced.
    """
    header, body = _split(source_card or "")
    kept = {name: header[name] for name in _KEPT if header.get(name)}
    if str(kept.get("base_model", "")).startswith(("/", ".", "~")):
        del kept["base_model"]  # a path on somebody's machine
    tags = kept.get("tags", [])
    tags = {str(tag) for tag in (tags if isinstance(tags, list) else [tags])}
    if result.adapter != "kept":
        tags = {tag for tag in tags if tag != "lora" and not tag.startswith("base_model:adapter")}
    kept["tags"] = sorted({"plaudit", "reward-model", *tags})
    about = {
        "library_name": "peft" if result.adapter == "kept" else "transformers",
        "pipeline_tag": "text-classification",
    }
    name = result.folder.name
    parts = [
        f"---\n{yaml.safe_dump({**about, **kept}, sort_keys=False)}---",
        f"# {name}",
        "A reward model: it puts one number on a conversation, higher where the answer is preferred.",
        *_use(result, name),
        "## Export",
        f"Written by `plaudit export` from {result.source}.",
        "\n".join(["| | |", "|---|---|", *(f"| {title} | {text} |" for title, text in result.lines())]),
        *(f"**Note.** {note}" for note in result.notes),
    ]
    rest = _sections(body)
    if rest:
        parts.append(f"What the card of {result.source} says:")
    return "\n\n".join([*parts, *rest]) + "\n"


def _use(result: ExportResult, name: str) -> list[str]:
    load = "from transformers import AutoModelForSequenceClassification as Model, AutoTokenizer"
    serve = [
        "## Serve",
        f'```bash\nvllm serve {name} --runner pooling   # then POST /classify with "use_activation": false\n'
        f"plaudit serve {name}\n```",
    ]
    if result.adapter == "kept":
        load = (
            "from peft import AutoPeftModelForSequenceClassification as Model\nfrom transformers import AutoTokenizer"
        )
        serve = ["## Serve", f"```bash\nplaudit serve {name}\n```", "Other servers need it merged: `plaudit export`."]
    labels = ", num_labels=1" if result.adapter == "kept" else ""
    beside = []
    if result.calibration is not None and result.calibration.changes_rewards:
        beside = [f"Only Plaudit applies `{CALIBRATION_FILE}`; the code above gives rewards without it."]
    return [
        "## Load and score",
        f'```python\n{load}\n\nmodel = Model.from_pretrained("{name}"{labels})\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
        'messages = [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]\n'
        'inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)\n'
        "reward = model(**inputs).logits.item()\n```",
        "Text rendered with the chat template is tokenised without further special tokens. "
        "In batches, pad on the right.",
        *beside,
        *serve,
    ]


def _split(card: str) -> tuple[dict[str, Any], str]:
    """The YAML header of a card, and the rest."""
    found = re.match(r"---\n(.*?)\n---\n?(.*)", card, flags=re.DOTALL)
    if found is None:
        return {}, card
    try:
        header = yaml.safe_load(found[1])
    except yaml.YAMLError:
        header = None
    return (header if isinstance(header, dict) else {}), found[2]


def _sections(body: str) -> list[str]:
    """The sections of a card that are still true, without the title."""
    sections = re.split(r"(?m)^(?=## )", body)
    kept = []
    for section in sections:
        title = section.partition("\n")[0].removeprefix("## ").strip()
        text = re.sub(r"(?m)\A# .*\n", "", section.strip() + "\n").strip()
        # A title with nothing below it but what the form says to fill in there is as good as none.
        said = re.sub(r"<!--.*?-->|^## .*?$", "", text, flags=re.DOTALL | re.MULTILINE).strip()
        replaced = section.startswith("## ") and title in _REPLACED
        if said and not replaced and _BLANK not in text:
            kept.append(text)
    return kept


def write_card(result: ExportResult, folder: Path, source_card: Path | None) -> None:
    """Write `README.md`.

    Args:
        result: What was done.
        folder: Where to.
        source_card: Card of the source, if it has one.
    """
    text = None if source_card is None else source_card.read_text(encoding="utf-8", errors="replace")
    (folder / "README.md").write_text(render_card(result, text), encoding="utf-8")


EXPORT_RECORD = "plaudit_export.json"
"""Name of the file in an exported folder that says what was done."""
FORMAT, VERSION = "plaudit export", 1
Adapter: TypeAlias = Literal["none", "merged", "kept"]
"""What became of the adapter: there was none, it was merged into the weights, or it is still one."""


@dataclass(frozen=True)
class ExportCheck:
    """Rewards of some responses before and after.

    Attributes:
        before: What the head of the source says.
        after: What the head of the exported model says, loaded again from its folder.
        largest_difference: Largest distance between `after` and the rewards that are wanted.
        allowed: Most that it may be.
        golden: How many of the responses are golden rows of the source.
    """

    before: tuple[float, ...]
    after: tuple[float, ...]
    largest_difference: float
    allowed: float
    golden: int = 0


@dataclass(frozen=True)
class ExportResult:
    r"""What was exported, and what was done to its rewards.

    .. math:: r' = a r + b = (a_\text{folded} r + b_\text{folded}) \cdot a_\text{beside} + b_\text{beside}

    Attributes:
        folder: Where the model is.
        source: What it was made from: a model id, or the name of a folder.
        architecture: Name of the model's class.
        parameters: How many it has, those of a kept adapter among them.
        adapter: What became of the adapter.
        dtype: What the weights are stored in; the head is stored in float32.
        head: Name of the layer that scale and shift were folded into (None: the head is no plain linear layer).
        rewards: The whole change of rewards: scale a, shift b, and the temperature that goes with the new rewards.
        scale: Factor that is folded into the weights, which every server gives.
        shift: Summand that is folded into them.
        calibration: What lies beside the model, and only Plaudit applies (None: nothing).
        check: Rewards before and after.
        golden_rows: How many golden rows lie beside the model.
        carried: Files of the source that were copied.
        left_behind: Files and folders of the source that were not.
        notes: What a user must know; the log has said it as warnings.
    """

    folder: Path
    source: str
    architecture: str
    parameters: int
    adapter: Adapter
    dtype: str
    head: str | None
    rewards: RewardCalibration
    scale: float
    shift: float
    calibration: RewardCalibration | None
    check: ExportCheck
    golden_rows: int = 0
    carried: tuple[str, ...] = ()
    left_behind: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def lines(self) -> list[tuple[str, str]]:
        """What was done, for people: titles and texts."""
        weights = {
            "none": f"stored in {self.dtype}",
            "merged": f"adapter merged in float32, stored in {self.dtype}",
            "kept": f"an adapter, stored in {self.dtype}; it needs the model that it was trained on",
        }[self.adapter]
        kind = "adapter of " if self.adapter == "kept" else ""
        golden = f", {self.check.golden} of them golden rows" if self.check.golden else ""
        found = [
            ("Model", f"{kind}{self.architecture}, {self.parameters:,} parameters, from {self.source}"),
            ("Weights", f"{weights}; the head in float32"),
            ("Rewards", self._reward_line()),
            *([("How", self.rewards.how)] if self.rewards.how else []),
            ("In the weights", self._folded_line()),
            *([("Beside them", self._beside_line())] if self.calibration is not None else []),
            (
                "Check",
                f"{len(self.check.after)} responses scored before and after{golden}: largest difference "
                f"{self.check.largest_difference:.2g} (allowed {self.check.allowed:.2g})",
            ),
        ]
        if self.golden_rows:
            scaled = " with their rewards as they are now" if (self.scale, self.shift) != (1.0, 0.0) else ""
            found.append(("Golden rows", f"{self.golden_rows} carried along{scaled}"))
        if self.carried:
            found.append(("Carried along", ", ".join(self.carried)))
        if self.left_behind:
            found.append(("Left behind", ", ".join(self.left_behind)))
        return found

    def _reward_line(self) -> str:
        if not self.rewards.changes_rewards:
            return "as they were"
        return f"{formula(self.rewards.scale, self.rewards.shift)}, where `reward` is what the head said before"

    def _folded_line(self) -> str:
        if (self.scale, self.shift) == (1.0, 0.0):
            return "nothing folded: every server gives the rewards that the head gave before"
        return f"{formula(self.scale, self.shift)}, folded into `{self.head}`: what every server gives"

    def _beside_line(self) -> str:
        assert self.calibration is not None
        parts = []
        if self.calibration.changes_rewards:
            only_shift = self.calibration.scale == 1
            change = formula(self.calibration.scale, self.calibration.shift)
            parts.append(f"a shift of {self.calibration.shift:+.6g}" if only_shift else f"the change to {change}")
        if self.calibration.temperature != 1:
            parts.append(f"a temperature of {self.calibration.temperature:.6g} for probabilities")
        return f"{' and '.join(parts) or 'nothing that changes them'}, in {CALIBRATION_FILE}: only Plaudit applies it"

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON; without the folder, which may be moved."""
        values = asdict(self)
        del values["folder"]
        versions = {"plaudit": __version__, "transformers": transformers.__version__, "torch": torch.__version__}
        return {"format": FORMAT, "version": VERSION, **values, "versions": versions}

    def save_record(self, folder: Path) -> None:
        """Write `plaudit_export.json`.

        Args:
            folder: Where to.
        """
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        text = json.dumps({**self.to_dict(), "saved": now}, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / EXPORT_RECORD).write_text(text + "\n", encoding="utf-8")


def formula(scale: float, shift: float) -> str:
    """Write down a scale and a shift.

    Args:
        scale: The factor.
        shift: The summand.

    >>> formula(2.0, 0.0), formula(0.5, -1.25), formula(1.0, 3.0)
    ('2 * reward', '0.5 * reward - 1.25', 'reward + 3')
    """
    factor = "reward" if scale == 1 else f"{scale:.6g} * reward"
    return factor if shift == 0 else f"{factor} {'-' if shift < 0 else '+'} {abs(shift):.6g}"


TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Most that rewards may differ for rounding weights, in units of the source's rewards, or as a part of the largest."""
_TURNS = (
    (("What is 2 + 2?", "4"),),
    (("What is 2 + 2?", "It is 5, as everybody knows."),),
    (("Name three colors of the rainbow.", "Red, green and blue."),),
    (("Name three colors of the rainbow.", "No."),),
    (("Write one line about the sea.", "The sea keeps no road open behind a ship."), ("Shorter!", "The sea forgets.")),
    (("How do I boil an egg?", "Put it into boiling water for eight minutes, then into cold water."),),
)


@dataclass(frozen=True)
class SampleRows:
    """Responses that are scored before and after.

    Attributes:
        ids: Token ids of each, golden rows first.
        golden: Rewards that were saved for the first of them, the golden rows.
    """

    ids: tuple[tuple[int, ...], ...]
    golden: tuple[float, ...] = ()


def sample_rows(tokenizer: PreTrainedTokenizerBase, max_length: int | None, golden: GoldenRows | None) -> SampleRows:
    """The golden rows of a model, and a few short conversations (or texts, without a chat template).

    Args:
        tokenizer: Its tokenizer.
        max_length: Most tokens that it reads.
        golden: Its golden rows, if it has any.
    """
    saved = [row for row in golden.rows if len(row.ids) <= (max_length or len(row.ids))] if golden else []
    own = built_in_ids(tokenizer, max_length)
    return SampleRows((*(row.ids for row in saved), *own), tuple(row.reward for row in saved))


def built_in_ids(tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[tuple[int, ...]]:
    """Token ids of a few short conversations as a tokenizer renders them, or of texts where it has no chat template.

    Args:
        tokenizer: It.
        max_length: What is longer is cut.
    """
    texts: list[Any] = ["\n".join(f"{asked}\n{said}" for asked, said in turns) for turns in _TURNS]
    rows = texts
    if tokenizer.chat_template:
        rows = [
            [
                {"role": role, "content": text}
                for turn in turns
                for role, text in zip(("user", "assistant"), turn, strict=True)
            ]
            for turns in _TURNS
        ]
    preparation = RowPreparer(tokenizer, max_length, "truncate_right")
    prepared = [row for window in preparation.windows(rows) for row in window]
    if all(row.ids is None for row in prepared):  # a template of its own kind
        prepared = [row for window in preparation.windows(texts) for row in window]
    return [tuple(ids) for row in prepared if row.ids is not None for ids in row.ids]


def plain_rewards(model: Any, ids: Sequence[Sequence[int]]) -> list[float]:
    """Rewards as plain transformers gives them: the stock forward, one response at a time.

    Args:
        model: A sequence-classification model as `from_pretrained` returns it.
        ids: Token ids of each response.
    """
    rewards = []
    with torch.inference_mode():
        for one in ids:
            input_ids = torch.tensor([list(one)], device=model.device)
            outputs = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
            rewards.append(float(outputs.logits.flatten()[0]))
    return rewards


def compare(
    before: Sequence[float],
    after: Sequence[float],
    *,
    scale: float,
    shift: float,
    tolerance: float,
    golden: int = 0,
    what: str,
) -> ExportCheck:
    """Hold rewards to those that they should be.

    Args:
        before: Rewards of the source.
        after: Rewards to be judged.
        scale: Factor from one to the other.
        shift: Summand.
        tolerance: As in `TOLERANCE`.
        golden: How many of the responses are golden rows.
        what: What may be to blame, in words.

    Raises:
        ConfigError: They differ by more than is allowed, or are no numbers.
    """
    allowed = tolerance * scale * max(1.0, *(abs(one) for one in before))
    wanted = [scale * one + shift for one in before]
    differences = [abs(one - other) for one, other in zip(after, wanted, strict=True)]
    wrong = [index for index, one in enumerate(differences) if not one <= allowed]  # also where it is NaN
    if wrong:
        index = max(wrong, key=lambda place: math.inf if math.isnan(differences[place]) else differences[place])
        raise ConfigError(
            f"the exported model gives other rewards than its source: {after[index]:.6g} instead of "
            f"{wanted[index]:.6g} (response {index} of {len(before)}; {len(wrong)} differ by more than the "
            f"{allowed:.2g} that are allowed). Nothing was written",
            fix=what,
        )
    return ExportCheck(tuple(before), tuple(after), max(differences), allowed, golden)


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

    scorer: RewardModel
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


def _scorer(order: _Order, model: Any, tokenizer: PreTrainedTokenizerBase) -> RewardModel:
    return RewardModel(model, tokenizer, overlong="nan", **order.scorer_settings)


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
