"""`RewardConfig`: the settings of a training run, each documented in its ``help``."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import torch
from transformers import TrainingArguments

from plaudit.data.report import Overlong
from plaudit.errors import ConfigError
from plaudit.model.load import liger_settings
from plaudit.model.varlen import AttentionBackend
from plaudit.objectives import ObjectiveName

BatchLayout: TypeAlias = Literal["auto", "padded", "shared_prefix"]
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
"""The settings of `RewardConfig` that say what is learned."""


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

    learning_rate: float = field(default=1e-4, metadata={"help": "Initial learning rate of AdamW."})
    logging_steps: float = field(
        default=10, metadata={"help": "Steps between two logs; below 1, a share of all training steps."}
    )
    gradient_checkpointing: bool | str = field(  # type: ignore[assignment]
        default=True,
        metadata={
            "help": "Recompute activations in the backward pass: less memory, slower by a third. auto: only where an "
            "estimate says that memory would not do without; the log says which."
        },
    )
    bf16: bool | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Mixed precision in bfloat16. Default: on where the accelerator has it and fp16 is off."},
    )

    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Arguments of `from_pretrained`, used when the model is given by name (as JSON on the command "
            "line). `revision` also applies to the tokenizer. Weights load in float32 unless `dtype` says otherwise."
        },
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Allow models and tokenizers that bring Python code of their own."}
    )
    chat_template_path: str | None = field(
        default=None,
        metadata={
            "help": "Another chat template: a .jinja or .j2 file, or a tokenizer (folder or model id), whose added "
            "tokens come with it."
        },
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "Turn off the model's dropout. Adapters' dropout is left alone."}
    )
    eos_token: str | None = field(
        default=None, metadata={"help": "Token that ends a text. Default: the tokenizer's own."}
    )
    pad_token: str | None = field(
        default=None,
        metadata={"help": "Deprecated: set `tokenizer.pad_token` and pass the tokenizer as `processing_class`."},
    )
    dataset_num_proc: int | None = field(
        default=None,
        metadata={
            "help": "Processes that prepare the data, at most one for 2,000 rows. Default: the main process alone."
        },
    )
    max_length: int | None = field(
        default=1024,
        metadata={"help": "Most tokens a response may have, prompt included; None for no limit. See `overlong`."},
    )
    overlong: Overlong = field(
        default="drop",
        metadata={
            "help": "What to do with rows beyond `max_length`: drop the row (counted in the log), truncate_left (all "
            "responses of the row alike), truncate_right, or error.",
        },
    )
    pad_to_multiple_of: int | None = field(
        default=None,
        metadata={
            "help": "Pad the rectangles of the padded layout to a multiple of this width. The shared_prefix layout has "
            "no padding: there it does nothing, and the log says so."
        },
    )
    batch_layout: BatchLayout = field(
        default="auto",
        metadata={
            "help": "padded: a rectangle, one row a response. shared_prefix: one row without padding, each prompt "
            "computed once; same rewards, several times faster. auto: shared_prefix where the model allows it.",
        },
    )
    attention_backend: AttentionBackend = field(
        default="auto",
        metadata={
            "help": "What computes attention in the shared_prefix layout. varlen (of torch), flash_attn, flash_attn_3 "
            "and kernels (flash-attn2 of the Hub, which is downloaded): one call a layer, on CUDA in half precision. "
            "flex: FlexAttention, one call a layer on CUDA, which auto takes for models with soft-capping or attention "
            "sinks. sdpa: a loop over responses, anywhere. auto: the first that can, kernels left out."
        },
    )
    group_by_prompt: bool = field(
        default=False,
        metadata={
            "help": "Bring rows of one prompt into the same batch, where the shared_prefix layout computes it once. It "
            "changes the order of the rows."
        },
    )
    max_tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": "Fill micro-batches up to this many tokens (as computed: padding included, shared prompts once) in "
            "place of `per_device_train_batch_size` rows."
        },
    )
    activation_offloading: bool = field(
        default=False,
        metadata={"help": "Keep activations in the host's memory between forward and backward (accelerators only)."},
    )
    objective: Literal["auto", ObjectiveName] = field(
        default="auto",
        metadata={"help": "What is learned from the data; auto picks what fits its columns, and says so."},
    )
    label_smoothing_factor: float = field(
        default=0.0,
        metadata={"help": "Probability that a label is wrong (bradley_terry and binary_cross_entropy)."},
    )
    plackett_luce_top_k: int | None = field(
        default=None, metadata={"help": "Learn only the first k places of each ranking (plackett_luce)."}
    )
    length_penalty_coefficient: float | None = field(
        default=None,
        metadata={"help": "Weight of the correlation between reward and length within a micro-batch."},
    )
    length_head_coefficient: float | None = field(
        default=None,
        metadata={
            "help": "Train a second head that takes what length explains, and leave it out of the reward (ODIN); 1.0 "
            "is a good value."
        },
    )
    lm_loss_coefficient: float | None = field(
        default=None,
        metadata={
            "help": "Weight of predicting the tokens of the better response with the language-model head (GRM); 0.01 "
            "is a good value."
        },
    )
    center_rewards_coefficient: float | None = field(
        default=None,
        metadata={"help": "Weight of the penalty that keeps rewards centred at zero; 0.01 is a good value."},
    )
    ensemble_size: int = field(
        default=0,
        metadata={
            "help": "Train this many heads around the reward head (0: none), whose spread `uncertainty=True` reports; "
            "the page on uncertainty says what it is worth. The reward stays what it is without them."
        },
    )
    golden_rows: int = field(
        default=8,
        metadata={
            "help": "How many responses of your data are saved with the model, as text and token ids with their "
            "rewards, for `plaudit verify`; whoever gets the checkpoint can read them. 0: none."
        },
    )

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available():
            self.use_cpu = True  # otherwise processes started by torchrun would not find each other
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not self.use_cpu and hardware_has_bfloat16()
        if self.gradient_checkpointing not in (True, False, "auto"):
            raise ConfigError(
                f"`gradient_checkpointing` is {self.gradient_checkpointing!r}", fix="Use True, False or 'auto'."
            )
        checkpointing = self.gradient_checkpointing
        # Newer transformers call it activation checkpointing, and warn about the name that the reference uses.
        if getattr(self, "activation_checkpointing", False) is None:
            self.activation_checkpointing = self.gradient_checkpointing is True
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # it would only warn
        super().__post_init__()
        if checkpointing == "auto":
            self.gradient_checkpointing = checkpointing  # which they have replaced by the other name's value
        if self.pad_token is not None:
            warnings.warn(
                "`pad_token` is deprecated: set `tokenizer.pad_token` and pass the tokenizer as `processing_class`.",
                FutureWarning,
                stacklevel=3,
            )
        for name, choices in (
            ("batch_layout", get_args(BatchLayout)),
            ("overlong", get_args(Overlong)),
            ("attention_backend", get_args(AttentionBackend)),
            ("objective", ("auto", *get_args(ObjectiveName))),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(f"`{name}` is {getattr(self, name)!r}", fix=f"Use one of {', '.join(choices)}.")
        if self.max_length is not None and self.max_length < 1:
            raise ConfigError(f"`max_length` is {self.max_length}", fix="Use a positive number, or None for no limit.")
        if self.group_by_prompt and self.train_sampling_strategy != "random":
            raise ConfigError(
                f"`group_by_prompt` and `train_sampling_strategy` {self.train_sampling_strategy} both order the rows",
                fix="Leave out one of them.",
            )
        if self.max_tokens_per_batch is not None:
            self._check_token_batches(self.max_tokens_per_batch)
        self._check_objective_settings()
        if self.use_liger_kernel:
            self.liger_kernel_config = liger_settings(self.liger_kernel_config)
        if self.golden_rows < 0:
            raise ConfigError(f"`golden_rows` is {self.golden_rows}", fix="Use a number of responses, or 0 for none.")
        accelerator_config: Any = self.accelerator_config
        if accelerator_config.split_batches:
            raise ConfigError("`split_batches` would cut examples in two", fix="Set the per-device batch size instead.")
        # The dispatching loader slices a batch by its first dimension, which is 1 in the shared-prefix layout.
        accelerator_config.dispatch_batches = False

    def _check_objective_settings(self) -> None:
        if not 0 <= self.label_smoothing_factor < 0.5:
            raise ConfigError(
                f"`label_smoothing_factor` is {self.label_smoothing_factor}", fix="Use 0 or more, and less than 0.5."
            )
        if self.plackett_luce_top_k is not None and self.plackett_luce_top_k < 1:
            raise ConfigError(f"`plackett_luce_top_k` is {self.plackett_luce_top_k}", fix="Use 1 or more, or None.")
        if self.ensemble_size < 0 or self.ensemble_size == 1:
            raise ConfigError(
                f"`ensemble_size` is {self.ensemble_size}", fix="Use 2 or more, or 0 for a single reward head."
            )

    def _check_token_batches(self, tokens: int) -> None:
        if tokens < 1:
            raise ConfigError(f"`max_tokens_per_batch` is {tokens}", fix="Use a positive number, or None.")
        problems = {
            "`auto_find_batch_size` looks for a number of rows": self.auto_find_batch_size,
            "`dataloader_drop_last` drops rows that do not fill a batch": self.dataloader_drop_last,
            "`train_sampling_strategy` group_by_length orders rows itself": self.train_sampling_strategy
            == "group_by_length",
        }
        for problem, given in problems.items():
            if given:
                raise ConfigError(
                    f"`max_tokens_per_batch` decides which rows go together, and {problem}",
                    fix="Leave out one of them.",
                )


def hardware_has_bfloat16() -> bool:
    """Whether there is an accelerator that computes in bfloat16 itself, rather than emulating it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.xpu.is_available():
        return torch.xpu.is_bf16_supported(including_emulation=False)
    return False
