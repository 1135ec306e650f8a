"""`RewardConfig`: the settings of a training run, each documented in its ``help``."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from transformers import TrainingArguments

from plaudit.data.report import Overlong
from plaudit.errors import ConfigError
from plaudit.metrics import better_values
from plaudit.model.load import liger_settings
from plaudit.model.shared_prefix import BatchLayout
from plaudit.model.varlen import AttentionBackend
from plaudit.objectives import ObjectiveName

OBJECTIVE_SETTINGS = (
    "objective",
    "label_smoothing_factor",
    "plackett_luce_top_k",
    "center_rewards_coefficient",
    "length_penalty_coefficient",
    "length_head_coefficient",
    "lm_loss_coefficient",
    "ensemble_size",
)
"""The settings of `RewardConfig` that choose the loss."""

_AT_LEAST_ONE = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class RewardConfig(TrainingArguments):
    """Settings of a `RewardTrainer`: those of `transformers.TrainingArguments` and the ones below.

    Four defaults differ: ``logging_steps=10``, ``gradient_checkpointing=True``, ``learning_rate=1e-4``, and ``bf16``,
    which is on where the accelerator computes in bfloat16 and ``fp16`` is off; on a CPU it stays off.

    Raises:
        ConfigError: If a setting has a value that cannot work.

    >>> config = RewardConfig(output_dir="out", report_to=[])
    >>> config.learning_rate, config.logging_steps, config.max_length, config.batch_layout
    (0.0001, 10, 1024, 'auto')
    """

    _VALID_DICT_FIELDS = [*vars(TrainingArguments)["_VALID_DICT_FIELDS"], "model_init_kwargs"]  # noqa: RUF012 (not a field)

    learning_rate: float = _setting(1e-4, "Initial learning rate of AdamW.")
    logging_steps: float = _setting(10, "Steps between two logs; below 1, a share of all training steps.")
    gradient_checkpointing: bool | str = _setting(  # type: ignore[assignment]
        True,
        "Recompute activations in the backward pass: less memory, a third slower. auto: only where an estimate "
        "exceeds the free memory; the log says which.",
    )
    bf16: bool | None = _setting(  # type: ignore[assignment]
        None, "Mixed precision in bfloat16. Default: on where the accelerator supports it and fp16 is off."
    )

    model_init_kwargs: dict[str, Any] | str | None = _setting(
        None,
        "Arguments of `from_pretrained`, used when the model is given by name (as JSON on the command line). "
        "`revision` also applies to the tokenizer. Weights load in float32 unless `dtype` says otherwise.",
    )
    trust_remote_code: bool = _setting(False, "Allow models and tokenizers that run Python code of their own.")
    chat_template_path: str | None = _setting(
        None,
        "Another chat template: a .jinja or .j2 file, or a tokenizer (folder or model id), whose added tokens come "
        "with it.",
    )
    disable_dropout: bool = _setting(True, "Turn off the model's dropout. Adapters keep their dropout.")
    eos_token: str | None = _setting(None, "Token that ends a text. Default: the tokenizer's own.")
    pad_token: str | None = _setting(
        None, "Deprecated: set `tokenizer.pad_token` and pass the tokenizer as `processing_class`."
    )
    schema: str = _setting(
        "auto",
        "How public data is read: auto finds the schema by columns and first rows, and logs it; a name of the table in "
        "the documentation of data takes that one; none reads the columns as they are.",
    )
    dataset_num_proc: int | None = _setting(
        None, "Processes that prepare the data, at most one per 2,000 rows. Default: the main process alone."
    )
    max_length: int | None = _setting(
        1024,
        "Maximum tokens of a response, prompt included; None for no limit. Lowered to the positions of a model with "
        "fewer. See `overlong`.",
    )
    overlong: Overlong = _setting(
        "drop",
        "What to do with rows beyond `max_length`: drop the row (counted in the log), truncate_left (each response "
        "keeps its last tokens), truncate_right (its first tokens; a row with a response of which nothing is left is "
        "dropped), or error.",
    )
    pad_to_multiple_of: int | None = _setting(
        None,
        "Pad the rectangles of the padded layout to a multiple of this width. Has no effect in the shared_prefix "
        "layout, which has no padding; the log says so.",
    )
    batch_layout: BatchLayout = _setting(
        "auto",
        "padded: a rectangle, one row per response. shared_prefix: one row without padding, each prompt computed "
        "once; same rewards, several times faster. auto: shared_prefix where the model allows it.",
    )
    attention_backend: AttentionBackend = _setting(
        "auto",
        "What computes attention in the shared_prefix layout. varlen (of torch), flash_attn, flash_attn_3 and kernels "
        "(flash-attn2 of the Hub, which is downloaded): one call per layer, on CUDA in half precision. flex: "
        "FlexAttention, one call per layer on CUDA, which auto uses for models with soft-capping or attention sinks. "
        "sdpa: a loop over responses, on any device. auto: the first that works, kernels excluded.",
    )
    group_by_prompt: bool = _setting(
        False,
        "Put rows with the same prompt into the same batch, where the shared_prefix layout computes it once. Changes "
        "the order of the rows.",
    )
    max_tokens_per_batch: int | None = _setting(
        None,
        "Fill micro-batches up to this many tokens (as computed: padding included, shared prompts once) instead of "
        "`per_device_train_batch_size` rows.",
    )
    activation_offloading: bool = _setting(
        False, "Keep activations in the host's memory between forward and backward pass (accelerators only)."
    )
    objective: Literal["auto", ObjectiveName] = _setting(
        "auto", "The loss on the labels; auto chooses the one that fits the columns of the data, and logs it."
    )
    label_smoothing_factor: float = _setting(
        0.0, "Probability that a label is wrong (bradley_terry and binary_cross_entropy)."
    )
    plackett_luce_top_k: int | None = _setting(
        None, "Learn only the first k positions of each ranking (plackett_luce)."
    )
    length_penalty_coefficient: float | None = _setting(
        None, "Weight of the correlation between reward and length within a micro-batch."
    )
    length_head_coefficient: float | None = _setting(
        None,
        "Train a second head that learns what length explains, and leave it out of the reward (ODIN); 1.0 is a good "
        "value.",
    )
    lm_loss_coefficient: float | None = _setting(
        None,
        "Weight of predicting the tokens of the better response with the language-model head (GRM); 0.01 is a good "
        "value.",
    )
    center_rewards_coefficient: float | None = _setting(
        None, "Weight of the penalty that keeps rewards centred at zero; 0.01 is a good value."
    )
    ensemble_size: int = _setting(
        0,
        "Train this many heads around the reward head (0: none); `uncertainty=True` reports their standard deviation. "
        "The documentation of uncertainty says how much it tells. The reward does not change.",
    )
    golden_rows: int = _setting(
        8,
        "Number of responses of your data that are saved with the model, as text and token ids with their rewards, "
        "for `plaudit verify`; anyone with the checkpoint can read them. 0: none.",
    )

    def __post_init__(self) -> None:
        if self.gradient_checkpointing not in (True, False, "auto"):
            message = f"got {self.gradient_checkpointing!r}"
            raise ConfigError(message, field="gradient_checkpointing", fix="Use True, False or 'auto'.")
        if self.greater_is_better is None and (better := better_values(self.metric_for_best_model or "")) is not None:
            if better == "neither":
                message = f"neither high nor low values of {self.metric_for_best_model!r} mean a good model"
                fix = "Use a metric such as `eval_loss` or `eval_accuracy`."
                raise ConfigError(message, field="metric_for_best_model", fix=fix)
            self.greater_is_better = better == "higher"  # of transformers' choice only losses are better when lower
        if not torch.accelerator.is_available():
            self.use_cpu = True  # otherwise processes started by torchrun would not find each other
            self.dataloader_pin_memory = False  # it would only warn
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not self.use_cpu and hardware_has_bfloat16()
        checkpointing = self.gradient_checkpointing
        # Newer transformers call it activation checkpointing, and warn about the name that the reference uses.
        if getattr(self, "activation_checkpointing", False) is None:
            self.activation_checkpointing = checkpointing is True
        super().__post_init__()
        if checkpointing == "auto":
            self.gradient_checkpointing = checkpointing  # replaced above by the value of the other name
        if self.pad_token is not None:
            warnings.warn(
                "`pad_token` is deprecated: set `tokenizer.pad_token` and pass the tokenizer as `processing_class`.",
                FutureWarning,
                stacklevel=3,
            )
        self._check_values()
        self._check_combinations()
        if self.use_liger_kernel:
            self.liger_kernel_config = liger_settings(self.liger_kernel_config)
        # The dispatching loader slices a batch by its first dimension, which is 1 in the shared-prefix layout.
        accelerator_config: Any = self.accelerator_config
        accelerator_config.dispatch_batches = False

    def _check_values(self) -> None:
        problems = {
            name: f"Use one of {', '.join(choices)}."
            for name, choices in (
                ("batch_layout", get_args(BatchLayout)),
                ("overlong", get_args(Overlong)),
                ("attention_backend", get_args(AttentionBackend)),
                ("objective", ("auto", *get_args(ObjectiveName))),
            )
            if getattr(self, name) not in choices
        }
        optional = ("max_length", "max_tokens_per_batch", "plackett_luce_top_k", "pad_to_multiple_of")
        for name in (*optional, *_AT_LEAST_ONE):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems[name] = "Use a positive number, or None." if name in optional else "Use 1 or more."
        if not 0 <= self.label_smoothing_factor < 0.5:
            problems["label_smoothing_factor"] = "Use 0 or more, and less than 0.5."
        if self.ensemble_size < 0 or self.ensemble_size == 1:
            problems["ensemble_size"] = "Use 2 or more, or 0 for a single reward head."
        if self.golden_rows < 0:
            problems["golden_rows"] = "Use a number of responses, or 0 for none."
        for name, fix in problems.items():
            raise ConfigError(f"got {getattr(self, name)!r}", field=name, fix=fix)

    def _check_combinations(self) -> None:
        accelerator_config: Any = self.accelerator_config
        if accelerator_config.split_batches:
            message = "splits would cut examples in two"
            raise ConfigError(message, field="split_batches", fix="Set the per-device batch size instead.")
        strategy = self.train_sampling_strategy
        by_tokens = self.max_tokens_per_batch is not None
        for first, second, conflict in (
            ("group_by_prompt", "train_sampling_strategy", self.group_by_prompt and strategy != "random"),
            ("max_tokens_per_batch", "auto_find_batch_size", by_tokens and self.auto_find_batch_size),
            ("max_tokens_per_batch", "dataloader_drop_last", by_tokens and self.dataloader_drop_last),
            ("max_tokens_per_batch", "train_sampling_strategy", by_tokens and strategy == "group_by_length"),
        ):
            if conflict:
                message = f"`{second}` also decides which rows share a batch"
                raise ConfigError(message, field=first, fix=f"Remove `{first}` or `{second}`.")


def hardware_has_bfloat16() -> bool:
    """Returns whether there is an accelerator that computes in bfloat16 itself, rather than emulating it."""
    for accelerator in (torch.cuda, torch.xpu):
        if accelerator.is_available():
            return accelerator.is_bf16_supported(including_emulation=False)
    return False
