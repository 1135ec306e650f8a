"""What happens before the Trainer is built: checks, loading, and the preparation of data and model."""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from torch import nn
from transformers import Trainer
from transformers.integrations import integration_utils

from plaudit.data.load import read_preferences
from plaudit.data.parse import survey
from plaudit.data.prepare import as_table, prepare_dataset
from plaudit.data.report import DataReport, Purpose
from plaudit.data.schemas import SCHEMAS
from plaudit.errors import ConfigError, DataError, nearest
from plaudit.metrics import BETTER, better_values
from plaudit.model import aux_heads, load, peft, shared_prefix
from plaudit.model.head import install_reward_forward, score_heads_of
from plaudit.objectives import Objective, check_objective
from plaudit.schema import TOKENIZED_COLUMNS, TOKENIZED_LIST_COLUMNS
from plaudit.training import memory
from plaudit.training.config import RewardConfig
from plaudit.training.loss import RewardLoss

logger = logging.getLogger("plaudit")
HEAD_LEARNING_RATES = {"tie_parameter": 0.01, "ensemble.weight": 1e-3}
"""Learning rates of heads that the model's learning rates would hardly move, unless those are larger."""


# ---- settings -------------------------------------------------------------------------------------------------


def check_settings(args: Any, eval_dataset: Any) -> None:
    """Raises for settings of another class, packages that are missing, and a best metric of no evaluation set."""
    if not isinstance(args, RewardConfig):
        message = f"is a `{type(args).__name__}`, not a `RewardConfig`"
        raise ConfigError(message, field="args", fix="Use `plaudit.RewardConfig`, which takes the same arguments.")
    loggers = integration_utils.INTEGRATION_TO_CALLBACK
    # The packages of the last two do not tell.
    installed = {*integration_utils.get_available_reporting_integrations(), "azure_ml", "flyte"}
    for name in args.report_to or ():
        if name not in loggers:
            fix = nearest(name, loggers, f"Use some of {', '.join(loggers)}, or none.")
            raise ConfigError(f"there is no logger {name!r}", field="report_to", fix=fix)
        if name not in installed:
            fix = f"Run: pip install {name.replace('_', '-')}, or set `report_to` to none."
            raise ConfigError(f"the package of the logger {name!r} is not installed", field="report_to", fix=fix)
    _check_best_metric(args, list(eval_dataset) if isinstance(eval_dataset, Mapping) else [])


def _check_best_metric(args: RewardConfig, sets: Sequence[str]) -> None:
    name = args.metric_for_best_model
    if name is None or args.eval_strategy == "no":
        return
    better, plain = better_values(name), name.removeprefix("eval_")
    if better is not None and (better == "neither" or bool(args.greater_is_better) != (better == "higher")):
        text = "Better values of %r are %s, and `greater_is_better=%s` asks for others: the best checkpoint is lost."
        logger.warning(text, name, "neither high nor low" if better == "neither" else better, args.greater_is_better)
    if sets and plain in BETTER and not any(plain.startswith(f"{key}_") for key in sets):
        message = f"several data sets are evaluated, and {name!r} does not say of which"
        fix = f"Name one of them, as in `metric_for_best_model='eval_{sets[0]}_{plain}'`."
        raise ConfigError(message, field="metric_for_best_model", fix=fix)


def check_train_dataset(dataset: Any, max_steps: int | None = None) -> None:
    """Raises unless there is one data set or stream, and a stream has a number of steps (None skips that check)."""
    field, fix = "train_dataset", "For a list of rows, use `datasets.Dataset.from_list(rows)`."
    if isinstance(dataset, IterableDataset) and max_steps is not None and max_steps <= 0:
        problem = "a streamed `train_dataset` has no length, so training would have no end"
        field, fix = "max_steps", "Set the number of training steps: `max_steps=1000`."
    elif isinstance(dataset, Dataset | IterableDataset):
        return
    elif dataset is None:
        problem, fix = "is missing", "Pass a `datasets.Dataset` of preferences."
    elif isinstance(dataset, DatasetDict | IterableDatasetDict | dict):
        problem = f"holds several splits ({', '.join(map(str, dataset))})"
        fix = f"Pass one of them, for example `train_dataset=dataset[{next(iter(dataset), 'train')!r}]`."
    else:
        problem = f"must be a `datasets.Dataset` or `IterableDataset`, got {type(dataset).__name__}"
    raise ConfigError(problem, field=field, fix=fix)


def check_optimizer(args: RewardConfig, model: Any) -> None:
    """Raises if the optimizer of the settings needs a package that is missing."""
    try:
        Trainer.get_optimizer_cls_and_kwargs(args, model)
    except (ImportError, ValueError, RuntimeError) as error:
        fix = "Install the package, or use another optimizer, such as adamw_torch."
        raise ConfigError(f"{str(args.optim)!r} cannot be used: {error}", field="optim", fix=fix) from error


def check_writable(folder: str | os.PathLike[str] | None) -> None:
    """Raises if an output folder cannot be made or written to; makes nothing itself."""
    if folder is None:
        return
    existing = Path(folder).absolute()
    while not existing.exists() and not existing.is_symlink():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        problem = "cannot be written to" if existing.is_dir() else "is not a folder"
        message = f"the output folder {str(folder)!r} cannot be written: {str(existing)!r} {problem}"
        raise ConfigError(message, field="output_dir", fix="Choose another `output_dir`.")


def check_collator(collator: Any, loss: RewardLoss, dataset: Dataset | IterableDataset) -> None:
    """Raises if a collator of the caller's own cannot provide what the prepared data or the loss needs."""
    if collator is None:
        return
    if "response_ids" in (dataset.column_names or ()):
        problem = "reads pairs, and the training data has rows of any number of responses"
    elif loss.lm_loss:
        problem = "does not provide the positions of the text that `lm_loss_coefficient` predicts"
    elif loss.length_head or loss.length_penalty:
        problem = "does not provide the lengths of the responses without their prompts"
    else:
        return
    raise ConfigError(problem, field="data_collator", fix="Remove `data_collator`.")


def check_grouping(args: RewardConfig, report: DataReport) -> None:
    """Raises if rows of a stream are to be grouped, or rows fill no batch; logs where grouping by prompt would pay."""
    batch = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and not report.streaming and report.rows_kept < batch:
        message = f"would drop all {report.rows_kept:,} rows, which do not fill a batch of {batch:,}"
        fix = "Turn it off, or lower `per_device_train_batch_size`."
        raise ConfigError(message, field="dataloader_drop_last", fix=fix)
    needs_all_rows = {
        "group_by_prompt": args.group_by_prompt,
        "max_tokens_per_batch": args.max_tokens_per_batch is not None,
    }
    for name, wanted in needs_all_rows.items():
        if wanted and report.streaming:
            message = "needs to know all rows, and a stream shows them one by one"
            raise ConfigError(message, field=name, fix=f"Remove `{name}`, or turn streaming off.")
    if report.prompts is None or args.group_by_prompt or args.train_sampling_strategy != "random":
        return
    num_rows, num_prompts = len(report.prompts), len(np.unique(report.prompts))
    if num_rows >= 1.5 * num_prompts:
        logger.info(
            "The %s training rows have %s prompts: `group_by_prompt` puts rows with the same prompt into the same "
            "batch, where the prompt is computed once (this changes the order of the rows).",
            f"{num_rows:,}",
            f"{num_prompts:,}",
        )


# ---- data -----------------------------------------------------------------------------------------------------


def read_data(dataset: Any, schema: str, name: str) -> Any:
    """Returns rows, or mappings of such, in the columns that Plaudit reads; only `train` must be of a named schema."""
    if isinstance(dataset, Mapping):
        return {key: read_data(rows, schema, str(key)) for key, rows in dataset.items()}
    needed = SCHEMAS[schema].columns.split() if schema in SCHEMAS else []
    other = name != "train" and not {*needed} <= {*(getattr(dataset, "column_names", None) or needed)}
    return read_preferences(dataset, name=name, schema="auto" if other else schema)


def prepare_data(
    dataset: Any, tokenizer: Any, objective: Objective, args: RewardConfig, name: str, purpose: Purpose, vocabulary: int
) -> tuple[Any, DataReport]:
    """Reads, checks and tokenises raw or prepared rows that suit the objective, and reports on them."""
    if purpose != "train" and isinstance(dataset, Dataset | IterableDataset):
        check_objective(objective.name, *survey(dataset), name)
    with args.main_process_first(desc="preparing data", local=True):
        prepared, report = prepare_dataset(
            dataset,
            tokenizer,
            max_length=args.max_length,
            overlong=args.overlong,
            dataset_name=name,
            purpose=purpose,
            num_proc=args.dataset_num_proc,
            keep_columns=not args.remove_unused_columns,
            objective=objective,
        )
    check = functools.partial(check_token_ids, tokenizer=tokenizer, vocabulary=vocabulary, name=name)
    if isinstance(prepared, Dataset):
        for table in prepared.with_format("arrow").iter(10_000):
            check(table)
    elif len(tokenizer) > vocabulary:  # a stream is checked as it is read
        prepared = prepared.map(check, features=prepared.features)
    # Only a table tells which rows were not scored; and accelerate would fill up the last batch of a stream with rows
    # that count.
    needs_table = purpose == "predict" or (purpose == "eval" and args.world_size > 1)
    if not isinstance(prepared, IterableDataset):
        return prepared, report
    if needs_table:
        return as_table(prepared), report
    report.note_readers(args.dataloader_num_workers, args.world_size, prepared.num_shards)
    return prepared, report


def check_one_form(reports: Mapping[str, DataReport], name: str) -> None:
    """Warns where one data set is plain text and the training data is conversations, or the other way round."""
    forms = [reports[key].conversational for key in ("train", name) if key in reports]
    if None in forms or len(set(forms)) < 2:
        return
    logger.warning(
        "The training data is %s, but the %s data is %s: its rewards and metrics are those of a form that the model "
        "was not trained on. Give both in one form.",
        *("conversations" if forms[0] else "plain text", name, "conversations" if forms[1] else "plain text"),
    )


def check_token_ids(row_or_table: Any, tokenizer: Any, vocabulary: int, name: str) -> Any:
    """Returns a prepared row or an Arrow table of rows; raises if its token ids go beyond those that a model knows."""
    for column in (*TOKENIZED_COLUMNS, *TOKENIZED_LIST_COLUMNS):
        try:
            ids = row_or_table[column]
        except KeyError:
            continue
        ids = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else pa.array(ids)
        while isinstance(ids, pa.ListArray | pa.LargeListArray):
            ids = pc.list_flatten(ids)
        largest = pc.max(ids).as_py()
        if largest is not None and largest >= vocabulary:
            token = tokenizer.convert_ids_to_tokens(largest)
            fix = "Resize the embeddings after adding tokens (`model.resize_token_embeddings(len(tokenizer))`), or use "
            raise DataError(
                f"the token {token!r} has the id {largest}, and the model has embeddings for {vocabulary} tokens",
                dataset=name,
                fix=f"{fix}the model's own tokenizer.",
            )
    return row_or_table


# ---- model ----------------------------------------------------------------------------------------------------


def load_model_and_tokenizer(
    model: Any, args: RewardConfig, tokenizer: Any, quantization_config: Any = None
) -> tuple[Any, Any, list[int]]:
    """Loads a model given by name, checks one given as an object, and applies the tokens and template of the settings.

    Returns the reward model (maybe in an adapter), a copy of the tokenizer, and ids of tokens that came with the
    template.
    """
    if isinstance(args.model_init_kwargs, str):
        message = f"not a JSON object: {args.model_init_kwargs!r}"
        fix = 'Pass a dict, or JSON such as \'{"dtype": "bfloat16"}\'.'
        raise ConfigError(message, field="model_init_kwargs", fix=fix)
    init_kwargs = dict(args.model_init_kwargs or {})
    if quantization_config is not None:
        if "quantization_config" in init_kwargs:
            message = "was passed to the trainer and in `model_init_kwargs`"
            raise ConfigError(message, field="quantization_config", fix="Remove one of them.")
        init_kwargs["quantization_config"] = quantization_config
    revision: str | None = None
    if isinstance(model, str):
        name, revision = model, init_kwargs.get("revision")
        model = load.load_model(name, init_kwargs, trust_remote_code=args.trust_remote_code, seed=args.seed)
    else:
        if init_kwargs:
            logger.warning("%s: ignored, as the model is already instantiated.", ", ".join(map(repr, init_kwargs)))
        peft.require_sequence_classification(model)
        load.require_reward_model(model)
        name = getattr(model.config, "name_or_path", None) or ""
    if tokenizer is None:
        tokenizer = load.load_tokenizer_of(load.Source(name, revision, args.trust_remote_code))
    tokenizer = copy.deepcopy(tokenizer)
    if args.eos_token is not None:
        if args.eos_token not in tokenizer.get_vocab():
            message = f"{args.eos_token!r} is not in the tokenizer's vocabulary"
            raise ConfigError(message, field="eos_token", fix="Use a token of the vocabulary.")
        tokenizer.eos_token = args.eos_token
        model.config.get_text_config().eos_token_id = tokenizer.eos_token_id
    added_tokens = []
    if (path := args.chat_template_path) is not None:
        added_tokens = load.set_chat_template(model, tokenizer, path, trust_remote_code=args.trust_remote_code)
    return model, tokenizer, added_tokens


def fit_to_model(base_model: Any, tokenizer: Any, args: RewardConfig) -> RewardConfig:
    """Returns the settings with `max_length` within the model's positions, and without recomputing where it cannot."""
    limit = load.position_limit(base_model)
    if not score_heads_of(base_model):
        limit = load.context_length(base_model, tokenizer, decoder=False)
    if limit is not None and (args.max_length is None or args.max_length > limit):
        logger.warning("`max_length` is %d instead of %s: the model reads no more tokens.", limit, args.max_length)
        args = copy.copy(args)
        args.max_length = limit
    can_recompute = getattr(base_model, "supports_gradient_checkpointing", False) and any(
        hasattr(module, "gradient_checkpointing") for module in base_model.modules()
    )
    if args.gradient_checkpointing and not can_recompute:
        logger.warning("Gradient checkpointing is off: %s cannot recompute activations.", type(base_model).__name__)
        args = memory.with_checkpointing(args, False)
    return args


def prepare_model(
    model: Any,
    tokenizer: Any,
    args: RewardConfig,
    peft_config: Any,
    *,
    trained_tokens: Sequence[int],
    own_collator: bool,
) -> tuple[Any, Any, shared_prefix.RewardForward]:
    """Sets padding, serving configuration, dropout, head, adapter and batch layout, in that order.

    Returns the model (maybe in an adapter), a copy of the tokenizer with its padding token, and what calls the model.
    """
    base_model = peft.base_model_of(model)
    may_resize = peft_config is None and not peft.is_peft_model(model) and not getattr(model, "is_quantized", False)
    tokenizer = load.set_pad_token(base_model, tokenizer, args.pad_token, may_resize=may_resize)
    load.set_serving_config(base_model)
    if args.disable_dropout:
        load.disable_dropout(model)
    reads_positions = install_reward_forward(base_model)
    if peft_config is not None:
        model = peft.wrap_with_adapter(model, peft_config, trained_tokens=trained_tokens)
        if reads_positions:
            peft.store_trained_head_in_float32(model)
    elif peft.is_peft_model(model):
        peft.warn_if_head_is_frozen(model)
    peft.require_trainable(model)
    if peft.is_peft_model(model) and args.gradient_checkpointing:
        model.enable_input_require_grads()
    if args.use_liger_kernel:
        load.apply_liger(model, args.liger_kernel_config, use_cpu=args.use_cpu)
    forward = shared_prefix.make_forward(
        model,
        args.batch_layout,
        reads_positions=reads_positions,
        own_collator=own_collator,
        neftune=bool(args.neftune_noise_alpha),
        backend=args.attention_backend,
    )
    if forward.layout == "shared_prefix" and args.pad_to_multiple_of is not None:
        logger.warning("`pad_to_multiple_of` has no effect in the shared_prefix layout, which has no padding.")
    logger.info("Batch layout: %s (%s).", forward.layout, forward.reason)
    return model, tokenizer, forward


def add_training_heads(model: Any, loss: RewardLoss, *, reads_positions: bool) -> None:
    """Gives a reward model the fresh heads that the loss needs, if any."""
    base_model = peft.base_model_of(model)
    if aux_heads.heads_of(base_model) is not None:  # those that another trainer added
        delattr(base_model, aux_heads.ATTRIBUTE)
    settings = {
        "objective": loss.objective.learns_ties,
        "length_head_coefficient": loss.length_head,
        "lm_loss_coefficient": loss.lm_loss,
        "ensemble_size": loss.ensemble_size,
    }
    setting = next((name for name, needs_head in settings.items() if needs_head), None)
    if setting is None:
        return
    if not reads_positions:
        name = f"the objective {loss.objective.name}" if setting == "objective" else f"`{setting}`"
        message = f"{name} needs a decoder with a linear `score` head, which {type(base_model).__name__} is not"
        raise ConfigError(message, field=setting, fix=f"Use another model, or remove `{setting}`.")
    if loss.lm_loss and peft.is_prompt_learning(model):
        message = "the text behind an adapter's virtual tokens cannot be found"
        fix = "Use another kind of adapter, or remove `lm_loss_coefficient`."
        raise ConfigError(message, field="lm_loss_coefficient", fix=fix)
    heads = aux_heads.TrainingHeads(
        base_model.config.get_text_config().hidden_size,
        ties=loss.objective.learns_ties,
        length=bool(loss.length_head),
        ensemble_size=loss.ensemble_size,
        seed=loss.seed,
        language_model_weight=aux_heads.language_model_weight(base_model) if loss.lm_loss else None,
    )
    aux_heads.install_training_heads(base_model, heads)


def set_head_learning_rates(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Moves the parameters of `HEAD_LEARNING_RATES` that a model has into groups of their own, without decay."""
    for head, learning_rate in HEAD_LEARNING_RATES.items():
        name = f"{aux_heads.ATTRIBUTE}.{head}"
        parameter = next((value for key, value in model.named_parameters() if key.endswith(name)), None)
        if parameter is None:
            continue
        for group in optimizer.param_groups:
            group["params"] = [value for value in group["params"] if value is not parameter]
        learning_rate = max(learning_rate, float(optimizer.defaults.get("lr", 0.0)))
        optimizer.add_param_group({"params": [parameter], "lr": learning_rate, "weight_decay": 0.0})


def has_gradient(model: nn.Module, *, sharded: bool) -> bool:
    """Returns whether a gradient of this process is other than zero; True where sharding shows it none."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    local = (getattr(gradient, "to_local", lambda gradient=gradient: gradient)() for gradient in gradients)
    return (sharded and not gradients) or any(bool(torch.count_nonzero(gradient)) for gradient in local)


def keep_outputs_exact(fsdp_plugin: Any) -> None:
    """Stops FSDP2 from rounding outputs to the type that the model computes in; changes accelerate's plugin, if any."""
    policy = getattr(fsdp_plugin, "mixed_precision_policy", None)
    if getattr(fsdp_plugin, "fsdp_version", 1) == 2 and policy is not None:
        # The head computes in float32, below the module whose output FSDP2 casts.
        fsdp_plugin.mixed_precision_policy = dataclasses.replace(policy, output_dtype=None)
