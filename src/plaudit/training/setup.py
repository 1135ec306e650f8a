"""What happens before the Trainer is built: checks, loading, and getting model and tokenizer ready."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from torch import nn

from plaudit.data.parse import most_responses, survey
from plaudit.data.prepare import as_table, prepare_dataset
from plaudit.data.report import DataReport, Purpose
from plaudit.errors import ConfigError
from plaudit.model.aux_heads import (
    ATTRIBUTE,
    TrainingHeads,
    install_training_heads,
    language_model_weight,
    remove_training_heads,
)
from plaudit.model.head import install_reward_forward
from plaudit.model.load import (
    apply_liger,
    disable_dropout,
    load_model,
    load_tokenizer,
    require_reward_model,
    set_chat_template,
    set_pad_token,
    set_serving_config,
)
from plaudit.model.peft import (
    base_model_of,
    is_peft_model,
    is_prompt_learning,
    require_sequence_classification,
    store_trained_head_in_float32,
    warn_if_head_is_frozen,
    wrap_with_adapter,
)
from plaudit.model.shared_prefix import choose_layout, enable_shared_prefix
from plaudit.objectives import Objective, check_objective, choose_objective, make_objective
from plaudit.training.config import RewardConfig
from plaudit.training.loss import RewardLoss

logger = logging.getLogger("plaudit")
OWN_LEARNING_RATES = {"tie_parameter": 0.01, "ensemble.weight": 1e-3}
"""Steps of training heads which the model's learning rates would hardly move, unless those are larger."""


def settle_loss(args: RewardConfig, dataset: Dataset | IterableDataset) -> RewardLoss:
    """The loss that was asked for, or the one that fits the training data, which is said in one line.

    Args:
        args: The settings.
        dataset: The training data, raw or tokenised.

    Raises:
        ConfigError: The objective cannot learn from the data, or none can.
    """
    row_kinds, columns = survey(dataset)
    name, reason = str(args.objective), "as asked for"
    if name == "auto":
        name, reason = choose_objective(row_kinds, columns)
        if name == "bradley_terry" and columns <= {"margin"} and row_kinds == {"pairs"}:
            reason = "the data has pairs"
    objective = make_objective(name, label_smoothing=args.label_smoothing_factor, top_k=args.plackett_luce_top_k)
    check_objective(name, row_kinds, columns, "train")
    logger.info("Objective: %s (%s).", name, reason)
    return RewardLoss(
        objective,
        center_rewards=args.center_rewards_coefficient or 0.0,
        length_penalty=args.length_penalty_coefficient or 0.0,
        length_head=args.length_head_coefficient or 0.0,
        lm_loss=args.lm_loss_coefficient or 0.0,
        ensemble_size=args.ensemble_size,
        seed=args.seed,
    )


def check_eval_data(objective: Objective, dataset: Any, name: str) -> None:
    """Refuse data for evaluation whose loss the objective cannot compute.

    Args:
        objective: The objective.
        dataset: The data, raw or tokenised.
        name: Which data set it is.

    Raises:
        ConfigError: It cannot be evaluated with this objective.
    """
    if isinstance(dataset, Dataset | IterableDataset):
        check_objective(objective.name, *survey(dataset), name)


def check_collator(collator: Any, loss: RewardLoss, dataset: Dataset | IterableDataset) -> None:
    """Refuse a collator of the caller's own where it could not know what the loss needs.

    Args:
        collator: The collator; None for ours.
        loss: What is going to be computed.
        dataset: The prepared training data.

    Raises:
        ConfigError: The data has more than pairs, or the loss looks at the text.
    """
    if collator is None:
        return
    if "response_ids" in (dataset.column_names or ()):
        problem = "reads pairs, and the training data has rows of any number of responses"
    elif loss.lm_loss:
        problem = "does not say where the text is that `lm_loss_coefficient` asks to predict"
    elif loss.length_head or loss.length_penalty:
        problem = "does not say how long the responses are without their prompts"
    else:
        return
    raise ConfigError(f"a `data_collator` of your own {problem}", fix="Leave it out.")


def add_training_heads(ready: ReadyModel, loss: RewardLoss) -> None:
    """Give a reward model the heads that the loss needs, if any, fresh ones.

    Args:
        ready: The model, with its adapter put on; changed in place.
        loss: What is going to be computed.

    Raises:
        ConfigError: The model cannot have such heads.
    """
    base_model = ready.base_model
    remove_training_heads(base_model)
    needed = {
        f"the objective {loss.objective.name}": loss.objective.learns_ties,
        "`length_head_coefficient`": bool(loss.length_head),
        "`lm_loss_coefficient`": bool(loss.lm_loss),
        "`ensemble_size`": bool(loss.ensemble_size),
    }
    wanted = [what for what, asked in needed.items() if asked]
    if not wanted:
        return
    if not ready.reads_positions:
        raise ConfigError(
            f"{' and '.join(wanted)} needs a decoder with a linear `score` head, and {type(base_model).__name__} "
            "is none",
            fix="Use another model, or leave it out.",
        )
    if loss.lm_loss and is_prompt_learning(ready.model):
        raise ConfigError(
            "`lm_loss_coefficient` cannot find the text behind an adapter's virtual tokens",
            fix="Use another kind of adapter, or leave `lm_loss_coefficient` out.",
        )
    heads = TrainingHeads(
        base_model.config.get_text_config().hidden_size,
        ties=loss.objective.learns_ties,
        length=bool(loss.length_head),
        ensemble_size=loss.ensemble_size,
        seed=loss.seed,
        language_model_weight=language_model_weight(base_model) if loss.lm_loss else None,
    )
    install_training_heads(base_model, heads)


def learn_heads_faster(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Move the parameters of `OWN_LEARNING_RATES`, where there are such, into groups of their own, without decay.

    Args:
        model: The model that is trained.
        optimizer: Its optimizer, changed in place.
    """
    for ending, learning_rate in OWN_LEARNING_RATES.items():
        ending = f"{ATTRIBUTE}.{ending}"
        parameter = next((one for name, one in model.named_parameters() if name.endswith(ending)), None)
        if parameter is None:
            continue
        for group in optimizer.param_groups:
            group["params"] = [one for one in group["params"] if one is not parameter]
        learning_rate = max(learning_rate, float(optimizer.defaults.get("lr", 0.0)))
        optimizer.add_param_group({"params": [parameter], "lr": learning_rate, "weight_decay": 0.0})


class DataPreparation:
    """Reads, checks and tokenises the data sets of one trainer.

    Args:
        args: The settings.
        tokenizer: Tokenises the responses; not changed.
        objective: What the model is trained for.

    Attributes:
        reports: What was read, dropped and found suspicious, by the name of the data set.
        most_responses: Most responses of a row in any table so far: the width that predictions have, in all batches
            and on all processes.
    """

    def __init__(self, args: RewardConfig, tokenizer: Any, objective: Objective) -> None:
        self._args, self._tokenizer, self._objective = args, tokenizer, objective
        self.reports: dict[str, DataReport] = {}
        self.most_responses = 2

    def __call__(self, dataset: Any, name: str, purpose: Purpose) -> Any:
        """Prepare one data set.

        Args:
            dataset: Raw or prepared rows.
            name: What it is called in messages.
            purpose: What it is for.

        Raises:
            ConfigError: It does not suit the objective.
            DataError: It cannot be read.
        """
        args = self._args
        if purpose != "train":
            check_eval_data(self._objective, dataset, name)
        with args.main_process_first(desc="preparing data", local=True):
            prepared, self.reports[name] = prepare_dataset(
                dataset,
                self._tokenizer,
                max_length=args.max_length,
                overlong=args.overlong,
                dataset_name=name,
                purpose=purpose,
                num_proc=args.dataset_num_proc,
                keep_columns=not args.remove_unused_columns,
                objective=self._objective,
            )
        # A row that was not scored can be told only from a table; and accelerate would fill up the last batch of a
        # stream with rows that count.
        if isinstance(prepared, IterableDataset) and (
            purpose == "predict" or (purpose == "eval" and args.world_size > 1)
        ):
            prepared = as_table(prepared)
        if isinstance(prepared, Dataset):
            self.most_responses = max(self.most_responses, most_responses(prepared))
        return prepared

    def of_evaluation(self, dataset: Any) -> Any:
        """Prepare what is evaluated during training: one data set, several by name, or none."""
        if dataset is None:
            return None
        if isinstance(dataset, Mapping):
            return {name: self(part, str(name), "eval") for name, part in dataset.items()}
        return self(dataset, "eval", "eval")


def check_grouping(args: RewardConfig, report: DataReport) -> None:
    """Refuse to group a stream by prompts, and say where prompts repeat so often that grouping would pay.

    Args:
        args: The settings.
        report: That of the training data.

    Raises:
        ConfigError: The rows of a stream are to be grouped.
    """
    asked = {"group_by_prompt": args.group_by_prompt, "max_tokens_per_batch": args.max_tokens_per_batch is not None}
    for name in [name for name, wanted in asked.items() if wanted and report.streaming]:
        raise ConfigError(
            f"`{name}` needs to know all rows, and a stream shows them one by one",
            fix="Leave it out, or do not stream.",
        )
    if report.prompts is None or args.group_by_prompt or args.train_sampling_strategy != "random":
        return
    rows, prompts = len(report.prompts), len(np.unique(report.prompts))
    if rows >= 1.5 * prompts:
        logger.info(
            "The %s rows to train on have %s prompts: with `group_by_prompt` the rows of one come into the same batch, "
            "where it is computed once (this changes the order of the rows).",
            f"{rows:,}",
            f"{prompts:,}",
        )


def default_config(model: Any) -> RewardConfig:
    """Default settings, writing to ``<model name>-Reward``."""
    name = model if isinstance(model, str) else getattr(model.config, "name_or_path", "") or "model"
    return RewardConfig(output_dir=f"{Path(name).name}-Reward")


def require_train_dataset(dataset: Any, max_steps: int | None = None) -> None:
    """Refuse anything but one data set or stream, and a stream without an end.

    Args:
        dataset: What is to be trained on.
        max_steps: How many steps to train; 0 or less where nothing was said. None skips the check.
    """
    if dataset is None:
        raise ConfigError("`train_dataset` is required", fix="Pass a `datasets.Dataset` of preferences.")
    if isinstance(dataset, DatasetDict | IterableDatasetDict | dict):
        raise ConfigError(
            f"`train_dataset` holds several splits ({', '.join(map(str, dataset))})",
            fix=f"Pass one of them, for example `train_dataset=dataset[{next(iter(dataset), 'train')!r}]`.",
        )
    if not isinstance(dataset, Dataset | IterableDataset):
        raise ConfigError(
            f"`train_dataset` must be a `datasets.Dataset` or `IterableDataset`, got {type(dataset).__name__}",
            fix="For a list of rows: `datasets.Dataset.from_list(rows)`.",
        )
    if isinstance(dataset, IterableDataset) and max_steps is not None and max_steps <= 0:
        raise ConfigError(
            "a streamed `train_dataset` has no length, so training would have no end",
            fix="Say how many steps to train: `max_steps=1000`.",
        )


def require_writable(folder: str | os.PathLike[str] | None) -> None:
    """Refuse an output folder that could not be made or written to; makes nothing itself."""
    if folder is None:
        return
    existing = Path(folder).absolute()
    while not existing.exists() and not existing.is_symlink():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        problem = "cannot be written to" if existing.is_dir() else "is not a folder"
        raise ConfigError(
            f"the output folder {str(folder)!r} cannot be written: {str(existing)!r} {problem}",
            fix="Choose another `output_dir`.",
        )


@dataclass(frozen=True)
class LoadedModel:
    """A reward model and a tokenizer of our own, before they are made ready.

    Attributes:
        model: The reward model, maybe wrapped in an adapter already.
        tokenizer: A copy of the caller's, or the one that belongs to the model.
        added_tokens: Ids of tokens that came with a chat template.
    """

    model: Any
    tokenizer: Any
    added_tokens: list[int]


def load_model_and_tokenizer(
    model: Any, args: RewardConfig, tokenizer: Any, quantization_config: Any = None
) -> LoadedModel:
    """Load what is given by name, check what is given ready, and set the tokens and template that were asked for."""
    if isinstance(args.model_init_kwargs, str):
        raise ConfigError(
            f"`model_init_kwargs` is text that is no JSON object: {args.model_init_kwargs!r}",
            fix='Pass a dict, or JSON such as \'{"dtype": "bfloat16"}\'.',
        )
    init_kwargs = dict(args.model_init_kwargs or {})
    revision: str | None = None
    if quantization_config is not None:
        if "quantization_config" in init_kwargs:
            raise ConfigError(
                "`quantization_config` was passed to the trainer and in `model_init_kwargs`",
                fix="Leave out one of them.",
            )
        init_kwargs["quantization_config"] = quantization_config
    name: str = ""
    if isinstance(model, str):
        name, revision = model, init_kwargs.get("revision")
        model = load_model(name, init_kwargs, trust_remote_code=args.trust_remote_code, seed=args.seed)
    else:
        if init_kwargs:
            logger.warning("%s: ignored, as the model is already instantiated.", ", ".join(map(repr, init_kwargs)))
        require_sequence_classification(model)
        require_reward_model(model)
        name = getattr(model.config, "name_or_path", None) or ""
    if tokenizer is None:
        tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=args.trust_remote_code)
    tokenizer = copy.deepcopy(tokenizer)
    if args.eos_token is not None:
        if args.eos_token not in tokenizer.get_vocab():
            raise ConfigError(
                f"the `eos_token` {args.eos_token!r} is not in the tokenizer's vocabulary",
                fix="Name one that is.",
            )
        tokenizer.eos_token = args.eos_token
        model.config.get_text_config().eos_token_id = tokenizer.eos_token_id
    added = []
    if args.chat_template_path is not None:
        added = set_chat_template(model, tokenizer, args.chat_template_path, trust_remote_code=args.trust_remote_code)
    return LoadedModel(model, tokenizer, added)


@dataclass(frozen=True)
class ReadyModel:
    """A model ready to be trained.

    Attributes:
        model: What the Trainer trains: the reward model, maybe wrapped in an adapter.
        base_model: The reward model itself.
        tokenizer: With its padding token set.
        batch_layout: ``"padded"`` or ``"shared_prefix"``.
        batch_layout_reason: Why that one.
        reads_positions: Whether the model reads rewards at given positions (decoders), rather than pooling itself.
    """

    model: Any
    base_model: Any
    tokenizer: Any
    batch_layout: str
    batch_layout_reason: str
    reads_positions: bool


def make_ready(loaded: LoadedModel, args: RewardConfig, collator: Any, peft_config: Any) -> ReadyModel:
    """Set padding, serving configuration, dropout, head, adapter and layout, in that order."""
    model, tokenizer = loaded.model, loaded.tokenizer
    base_model = base_model_of(model)
    may_resize = peft_config is None and not is_peft_model(model) and not getattr(model, "is_quantized", False)
    tokenizer = set_pad_token(base_model, tokenizer, args.pad_token, may_resize=may_resize)
    set_serving_config(base_model)
    if args.disable_dropout:
        disable_dropout(model)
    reads_positions = install_reward_forward(base_model)
    if peft_config is not None:
        model = wrap_with_adapter(model, peft_config, trained_tokens=loaded.added_tokens)
        if reads_positions:
            store_trained_head_in_float32(model)
    elif is_peft_model(model):
        warn_if_head_is_frozen(model)
    if is_peft_model(model) and args.gradient_checkpointing:
        model.enable_input_require_grads()
    if args.use_liger_kernel:
        apply_liger(model, args.liger_kernel_config, use_cpu=args.use_cpu)
    layout, reason = choose_layout(
        model, args.batch_layout, own_collator=collator is not None, neftune=bool(args.neftune_noise_alpha)
    )
    if layout == "shared_prefix":
        enable_shared_prefix(base_model, args.attention_backend)
        if args.pad_to_multiple_of is not None:
            logger.warning("`pad_to_multiple_of` does nothing in the shared_prefix layout: it has no padding.")
    logger.info("Batch layout: %s (%s).", layout, reason)
    return ReadyModel(model, base_model, tokenizer, layout, reason, reads_positions)


def keep_outputs_exact(fsdp_plugin: Any) -> None:
    """Stop FSDP2 from rounding what the model returns to the precision that it computes in.

    Args:
        fsdp_plugin: accelerate's plugin, changed in place; None where FSDP is off.
    """
    policy = getattr(fsdp_plugin, "mixed_precision_policy", None)
    if getattr(fsdp_plugin, "fsdp_version", 1) == 2 and policy is not None:
        # The head computes in float32, below the module whose output FSDP2 casts.
        fsdp_plugin.mixed_precision_policy = dataclasses.replace(policy, output_dtype=None)
