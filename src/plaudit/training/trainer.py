"""`RewardTrainer`: transformers' Trainer for preference data, with batch layouts and exact metrics."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, PredictionOutput, TrainOutput

from plaudit.data.collate import ForeignCollator, PaddedCollator, SharedPrefixCollator
from plaudit.data.parse import most_responses
from plaudit.data.report import DataReport, Purpose
from plaudit.data.samplers import ExampleBatchSampler
from plaudit.errors import ConfigError, nearest
from plaudit.metrics import Gather, RewardMetrics, Scored
from plaudit.model.aux_heads import heads_of, load_heads, save_heads
from plaudit.model.load import context_length, embedding_rows
from plaudit.model.peft import base_model_of, is_peft_model
from plaudit.model.shared_prefix import MODEL_KEYS
from plaudit.objectives import Objective
from plaudit.schema import TOKENIZED_COLUMNS, TOKENIZED_LIST_COLUMNS, Batch
from plaudit.training import artifacts, memory, setup
from plaudit.training.artifacts import as_list
from plaudit.training.config import RewardConfig
from plaudit.training.dataloader import example_loader, in_row_order
from plaudit.training.loss import divisor, make_loss

logger = logging.getLogger("plaudit")
EvalData: TypeAlias = Dataset | IterableDataset | Mapping[str, Dataset | IterableDataset]


class LoggingInterval(TrainerCallback, ExportableState):
    """Sums of metrics since the last log, and token counts since the first step.

    The Trainer writes `state` into ``trainer_state.json``. It restores callbacks only on request, so
    `on_train_begin` reads the state back.
    """

    def __init__(self) -> None:
        self.metrics = RewardMetrics()
        self._num_tokens = 0
        self._num_tokens_computed = 0
        self._saved: list[float] | None = None

    def flush(self, gather: Gather | None = None) -> dict[str, float]:
        """Returns the metrics of the interval with the token counts so far, and starts the next interval."""
        values = self.metrics.compute(gather)
        self.metrics.reset()
        if values:
            self._num_tokens += int(values["num_tokens"])
            self._num_tokens_computed += int(values["num_tokens_computed"])
            values.pop("comparisons")
            values.update(num_tokens=self._num_tokens, num_tokens_computed=self._num_tokens_computed)
        return values

    def collect(self, gather: Gather | None = None) -> None:
        """Stores the sums over all processes for the checkpoint that is written next."""
        self._saved = self.metrics.totals(gather)

    def state(self) -> dict[str, Any]:
        """Returns what the Trainer writes into ``trainer_state.json``."""
        names = ("_num_tokens", "_num_tokens_computed", "_saved")
        return {"args": {}, "attributes": {name: getattr(self, name) for name in names}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Resets the sums, or restores them from the checkpoint."""
        # A fresh state lists callbacks, one read from a checkpoint holds what they saved under their names.
        saved: Any = state.stateful_callbacks if state.global_step > 0 else None
        attributes = saved.get(type(self).__name__, {}).get("attributes", {}) if isinstance(saved, dict) else {}
        self._num_tokens = attributes.get("_num_tokens", 0)
        self._num_tokens_computed = attributes.get("_num_tokens_computed", 0)
        # The saved sums are those of all processes: only one process continues with them.
        totals = attributes.get("_saved") if state.is_world_process_zero else None
        self.metrics.restore(totals, device=args.device)


class RewardTrainer(Trainer):
    """Trains a reward model on preferences, by default with the Bradley-Terry loss.

    Args:
        model: A folder or model id (loaded as sequence classification with one output, float32 by default), also of an
            adapter; a sequence-classification model with ``num_labels=1``, or a trainable PEFT model around one.
        args: Settings; by default those of `RewardConfig`, writing to ``<model name>-Reward``.
        data_collator: Your own collator of prepared rows into ``input_ids`` and ``attention_mask`` of shape (2G, T),
            chosen first. By default one of the two layouts, see ``RewardConfig.batch_layout``.
        train_dataset: Preferences in any form that the documentation of data formats lists.
        eval_dataset: The same for evaluation; several data sets as a mapping.
        processing_class: The tokenizer; by default the one that belongs to the model. It is not changed.
        compute_metrics: Further metrics from predictions of shape (examples, 2), chosen first.
        callbacks: Added to the default ones.
        optimizers: An optimizer and a scheduler of your own.
        optimizer_cls_and_kwargs: A class of optimizer and its arguments.
        preprocess_logits_for_metrics: Applied to the rewards (examples, 2) of each evaluation batch.
        peft_config: Wraps the model in an adapter. The reward head is trained and saved with it in any case.
        quantization_config: Loads a model given by name quantised, for example with bitsandbytes.

    Attributes:
        data_reports: Rows read, dropped and found suspicious in each data set, by its name.

    Raises:
        ConfigError: If model, tokenizer and settings do not go together.
        DataError: If the data cannot be read as preferences; nothing has been trained or written then.
    """

    args: RewardConfig
    model: Any
    _tag_names = ("plaudit", "reward-trainer")

    def __init__(
        self,
        model: Any,
        args: RewardConfig | None = None,
        data_collator: Callable[[list[dict[str, Any]]], Batch] | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: EvalData | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
        peft_config: Any | None = None,
        *,
        quantization_config: Any | None = None,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else getattr(model.config, "name_or_path", "") or "model"
            args = RewardConfig(output_dir=f"{Path(name).name}-Reward")
        setup.check_settings(args, eval_dataset)
        setup.check_train_dataset(train_dataset, args.max_steps)
        setup.check_writable(args.output_dir)
        if args.n_gpu > 1:
            raise ConfigError(
                "several GPUs are visible to one process, and `nn.DataParallel` is not supported",
                fix="Start with `accelerate launch` or `torchrun`, or set CUDA_VISIBLE_DEVICES to one GPU.",
            )
        if args.activation_offloading and not torch.accelerator.is_available():
            logger.warning("`activation_offloading` has no effect here: there is no accelerator to offload from.")
        set_seed(args.seed)
        model, self._tokenizer, added_tokens = setup.load_model_and_tokenizer(
            model, args, processing_class, quantization_config
        )
        args = setup.fit_to_model(base_model_of(model), self._tokenizer, args)
        self._checkpointing_undecided = args.gradient_checkpointing == "auto"
        self._may_enable_checkpointing, self._gradients_unchecked = False, True
        # `_prepare_data` reads the settings before the Trainer sets them.
        self.args = args = memory.with_checkpointing(args, False) if self._checkpointing_undecided else args
        self._vocabulary = embedding_rows(base_model_of(model))
        self._context = context_length(base_model_of(model), self._tokenizer, decoder=True)
        with args.main_process_first(desc="reading data", local=True):
            train_dataset = setup.read_data(train_dataset, args.schema, "train")
            eval_dataset = setup.read_data(eval_dataset, args.schema, "eval")
        self._loss = make_loss(args, train_dataset)
        self._golden_rows = artifacts.choose_golden_rows(
            self._tokenizer, (eval_dataset, train_dataset), args.golden_rows, max_length=args.max_length
        )
        self.data_reports: dict[str, DataReport] = {}
        self._most_responses = 2
        train_dataset = self._prepare_data(train_dataset, "train", "train")
        if isinstance(eval_dataset, Mapping):
            eval_dataset = {name: self._prepare_data(rows, str(name), "eval") for name, rows in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = self._prepare_data(eval_dataset, "eval", "eval")
        setup.check_collator(data_collator, self._loss, train_dataset)
        setup.check_grouping(args, self.data_reports["train"])
        own_collator = data_collator is not None
        model, tokenizer, self._forward = setup.prepare_model(
            model, self._tokenizer, args, peft_config, trained_tokens=added_tokens, own_collator=own_collator
        )
        setup.add_training_heads(model, self._loss, reads_positions=self._forward.reads_positions)
        self._base_model: Any = self._forward.base_model
        self._eval_metrics = RewardMetrics()
        self._warned_not_finite = False
        self._scored: Scored | None = None  # of the micro-batch in progress
        self._kept_loaders: dict[str | None, tuple[Dataset, DataLoader[Any]]] = {}
        super().__init__(
            model=model,
            args=args,
            data_collator=self._make_collator(data_collator, tokenizer.pad_token_id),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            compute_metrics=compute_metrics,
            callbacks=[LoggingInterval(), *(callbacks or [])],
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        if self.optimizer is None and optimizer_cls_and_kwargs is None:
            setup.check_optimizer(args, model)
        setup.keep_outputs_exact(getattr(self.accelerator.state, "fsdp_plugin", None))
        # The loss is divided by the global number of comparisons, so the Trainer must not divide it again.
        self.model_accepts_loss_kwargs = True
        self.can_return_loss, self.label_names = True, []
        self._base_model.add_model_tags(list(self._tag_names))

    @property
    def batch_layout(self) -> str:
        """The layout that batches are computed in: ``"padded"`` or ``"shared_prefix"``."""
        return self._forward.layout

    @property
    def batch_layout_reason(self) -> str:
        """Why batches are computed in that layout."""
        return self._forward.reason

    @property
    def training_objective(self) -> Objective:
        """The objective that the model is trained with."""
        return self._loss.objective

    @property
    def _sharded(self) -> bool:
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    # ---- data -------------------------------------------------------------------------------------------------

    def _prepare_data(self, dataset: Any, name: str, purpose: Purpose) -> Any:
        prepared, self.data_reports[name] = setup.prepare_data(
            dataset, self._tokenizer, self._loss.objective, self.args, name, purpose, self._vocabulary
        )
        setup.check_one_form(self.data_reports, name)
        longest = min(self.data_reports[name].lengths.longest, self.args.max_length or math.inf)
        if self._context is not None and longest > self._context:
            text = "The %s data has responses of up to %s tokens, and the model was made for %s: lower `max_length`."
            logger.warning(text, name, f"{longest:,}", f"{self._context:,}")
        if isinstance(prepared, Dataset):
            # The width of predictions must be the same in all batches and on all processes.
            self._most_responses = max(self._most_responses, most_responses(prepared))
        return prepared

    def _make_collator(self, collator: Any, pad_token_id: int) -> Any:
        if collator is not None:
            return ForeignCollator(collator, content=bool(self._loss.ensemble_size))
        loss = self._loss
        options = {"ties": loss.objective.learns_ties, "text": bool(loss.lm_loss), "content": bool(loss.ensemble_size)}
        if self.batch_layout == "shared_prefix":
            return SharedPrefixCollator(**options)
        return PaddedCollator(pad_token_id, self.args.pad_to_multiple_of, **options)

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            optional = ("margin", "preference_prob", "weight", "own_starts")
            columns: Any = [*TOKENIZED_COLUMNS, *TOKENIZED_LIST_COLUMNS, *optional]
            self._signature_columns = columns

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Callable[..., Any] | None = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> DataLoader[Any]:
        """A loader with our rank-aware sampler; the Trainer's for streams and for samplers of a subclass.

        It puts rows of similar length of an evaluation together; `evaluation_loop` restores their order.
        """
        sampler_name = "_get_train_sampler" if is_training else "_get_eval_sampler"
        overridden = getattr(type(self), sampler_name) is not getattr(Trainer, sampler_name)
        if not isinstance(dataset, Dataset) or overridden:
            return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)
        kept_for, kept = self._kept_loaders.get(dataloader_key, (None, None))
        if kept is not None and kept_for is dataset:
            return kept
        prompts = None
        if is_training and self.args.group_by_prompt:
            prompts = self.data_reports["train"].prompts
            if prompts is None or len(prompts) != len(dataset):
                message = "`train_dataset` has other rows than when it was passed in"
                fix = "Pass the data set to `RewardTrainer`, or turn `group_by_prompt` off."
                raise ConfigError(message, field="group_by_prompt", fix=fix)
        loader = example_loader(
            self._remove_unused_columns(dataset, description),
            self.args,
            batch_size,
            collator=self.data_collator,
            device=self.accelerator.device,
            is_training=is_training,
            padded=self.batch_layout == "padded",
            prompts=None if prompts is None else prompts.tolist(),
            may_sort=self._eval_order_is_free(),
        )
        if dataloader_key is not None and self.args.dataloader_persistent_workers:
            self._kept_loaders[dataloader_key] = dataset, loader
        return loader

    def _eval_order_is_free(self) -> bool:
        """Whether nothing reported depends on which rows share a batch, or on the order of batches."""
        args, loss = self.args, self._loss
        by_batch = args.include_for_metrics or args.batch_eval_metrics or not args.eval_do_concat_batches
        loads_balanced = getattr(self._base_model.config.get_text_config(), "output_router_logits", False)
        return not (by_batch or loads_balanced or loss.length_penalty or loss.length_head)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """The micro-batches of one step, and the number of comparisons in them over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = [self._loss.count(batch) for batch in batches]
        count = torch.stack(counts).sum().to(device) if counts else torch.zeros((), device=device)
        return batches, divisor(self.accelerator.reduce(count, reduction="sum"))

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        prepared: Batch = super()._prepare_inputs(inputs)
        # DeepSpeed casts floats to its own type: what the loss reads keeps its precision.
        for key, value in inputs.items():
            if key not in MODEL_KEYS and isinstance(value, Tensor):
                prepared[key] = value.to(self.args.device)
        return prepared

    # ---- rewards and loss -------------------------------------------------------------------------------------

    def _score(self, model: nn.Module, batch: Batch) -> Scored:
        compute_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)
        rewards = self._forward(model, batch, compute_dtype=compute_dtype, gather=self.accelerator.gather)
        return self._loss(rewards, batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Sum of the losses of a batch in either layout, divided by the count of the whole step.

        `num_items_in_batch` is that count over all processes: pairs for pairs, responses for ratings and labels; by
        default that of this batch. `return_outputs` also returns ``{"rewards": (N,)}``.
        """
        scored = self._score(model, inputs)
        if model.training:
            self._scored = scored
        if num_items_in_batch is None:
            loss = scored.loss / divisor(scored.count)
        else:
            # Gradients are averaged over processes, hence the factor.
            loss = scored.loss * self.accelerator.num_processes / num_items_in_batch
        return (loss, {"rewards": scored.rewards_N}) if return_outputs else loss

    def loss_of_rows(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """Loss of rows of the prepared training data as one batch, in the precision of the training."""
        batch = self._prepare_inputs(self.data_collator([dict(row) for row in rows]))
        with self.accelerator.autocast():
            loss = self.compute_loss(self.model, batch)
        assert isinstance(loss, Tensor)
        return loss

    # ---- training ---------------------------------------------------------------------------------------------

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer, with learning rates of their own for the heads that only training needs."""
        given = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if not given:
            setup.set_head_learning_rates(self.model if model is None else model, optimizer)
        return optimizer

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train; ``resume_from_checkpoint=True`` resumes from the newest complete checkpoint."""
        resume_from_checkpoint = artifacts.checkpoint_to_resume(resume_from_checkpoint, str(self.args.output_dir))
        if self._checkpointing_undecided:
            self._checkpointing_undecided = False
            on, reason = True, "the memory of sharded training is not estimated"
            if not self._sharded:
                parts: dict[str, Any] = {"layout": self.batch_layout, "loss_of_rows": self.loss_of_rows}
                on, reason = memory.decide_checkpointing(self.model, self.args, self.train_dataset, **parts)
                # If one process is short of memory, all recompute.
                on = bool(self.accelerator.gather(torch.tensor([on], device=self.args.device)).any())
            self._set_checkpointing(on)
            # A step can be repeated only where it has not added to gradients nor talked to other processes.
            alone = self.accelerator.num_processes == 1 and self.args.gradient_accumulation_steps == 1
            self._may_enable_checkpointing = alone and not on
            logger.info("Gradient checkpointing is %s: %s.", "on" if on else "off", reason)
        with memory.keep_freed_memory(self.args.device):
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def _set_checkpointing(self, on: bool) -> None:
        self.args = memory.with_checkpointing(self.args, on)
        if on:
            memory.switch_checkpointing(self.model, self.args, on)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward pass of a micro-batch, with activations offloaded in between on request."""
        offloads = self.args.activation_offloading and next(self.model.parameters()).device.type != "cpu"
        try:
            with memory.offload_activations(self.model) if offloads else nullcontext():
                loss = super().training_step(*args, **kwargs)
        except torch.OutOfMemoryError:
            if not self._may_enable_checkpointing:
                raise
            loss = None
        if loss is None:  # only here has the failed attempt released its memory
            # The estimate was too low. Begin the step anew, once.
            self._may_enable_checkpointing, self._scored = False, None
            logger.warning("Out of memory: gradient checkpointing is on from step %d.", self.state.global_step + 1)
            self._set_checkpointing(True)
            self.model.zero_grad(set_to_none=True)
            if self.args.device.type == "cuda":
                torch.cuda.empty_cache()
            return self.training_step(*args, **kwargs)
        if self._scored is not None:
            self._interval.metrics.update(self._scored)
            self._scored = None
        # DeepSpeed has taken its step already, and tells the norm when it is logged.
        if self._gradients_unchecked and self.accelerator.sync_gradients and not self.is_deepspeed_enabled:
            learns = not loss or setup.has_gradient(self.model, sharded=self._sharded)  # a loss of zero teaches nothing
            self._require_gradient(self.accelerator.gather(torch.tensor([learns], device=self.args.device)).any())
        return loss

    def _require_gradient(self, learns: bool | Tensor) -> None:
        self._gradients_unchecked = False
        if not learns:
            message = "every gradient of the first step is exactly zero, so that nothing would be learned"
            fix = "Check which weights are trained and which adapter is active; try gradient_checkpointing=False."
            raise ConfigError(message, field="model", fix=fix)

    @property
    def _interval(self) -> LoggingInterval:
        # Looked up each time: the Trainer replaces callbacks when it restores them from a checkpoint.
        return next(cb for cb in self.callback_handler.callbacks if isinstance(cb, LoggingInterval))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the exact metrics of the interval added to training logs."""
        if self._gradients_unchecked and "grad_norm" in logs:
            self._require_gradient(bool(logs["grad_norm"]) or not logs.get("loss"))
        if "loss" in logs:
            logs.update(self._interval.flush(self.accelerator.gather))
        numbers = [name for name, value in logs.items() if isinstance(value, float) and not math.isfinite(value)]
        lost = [name for name in numbers if name.endswith(("loss", "_reward"))]
        if lost and not self._warned_not_finite:
            self._warned_not_finite = True
            text = "Step %d: %s not a finite number. A lower `learning_rate`, or bf16 instead of fp16, may help."
            names = f"{' and '.join(lost[:2])} {'is' if len(lost) == 1 else 'are'}"
            logger.warning(text, self.state.global_step, names)
        super().log(logs, start_time)

    # ---- evaluation -------------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate on raw or prepared preferences; see `transformers.Trainer.evaluate`."""
        if isinstance(eval_dataset, Mapping):
            metrics: dict[str, float] = {}
            for name, dataset in eval_dataset.items():
                metrics.update(self.evaluate(dataset, ignore_keys, f"{metric_key_prefix}_{name}"))
            return metrics
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = setup.read_data(eval_dataset, self.args.schema, metric_key_prefix)
            eval_dataset = self._prepare_data(eval_dataset, metric_key_prefix, "eval")
        return super().evaluate(eval_dataset, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix)

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Rewards (rows, 2), chosen first, of raw or prepared preferences; NaN for rows too long to score."""
        read = setup.read_data(test_dataset, self.args.schema, metric_key_prefix)
        prepared = self._prepare_data(read, metric_key_prefix, "predict")
        output = super().predict(prepared, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix)
        num_rows = self.data_reports[metric_key_prefix].rows_read
        if len(prepared) == num_rows:
            return output
        text = "%d of %d rows are too long to score (more than %d tokens): their rewards are NaN."
        logger.warning(text, num_rows - len(prepared), num_rows, self.args.max_length)

        def at_rows(values: Any) -> np.ndarray:
            table = np.full((num_rows, *np.shape(values)[1:]), np.nan, dtype=np.float32)
            table[prepared["row"]] = values
            return table

        labels = output.label_ids
        return output._replace(
            predictions=at_rows(output.predictions),
            label_ids=at_rows(labels) if isinstance(labels, np.ndarray) else labels,
        )

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The Trainer's loop, with metrics that are exact over examples, and results in the order of the rows."""
        self._eval_metrics.reset()
        sampler = getattr(getattr(dataloader, "dataset", None), "sampler", None)
        order = sampler.order(0) if isinstance(sampler, ExampleBatchSampler) else None
        ordered, compute_metrics = functools.partial(in_row_order, order=order), self.compute_metrics
        if compute_metrics is not None and not self.args.batch_eval_metrics:
            self.compute_metrics = lambda given: compute_metrics(
                EvalPrediction(ordered(given.predictions), ordered(given.label_ids), given.inputs, given.losses)
            )
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        finally:
            self.compute_metrics = compute_metrics
        metrics = self._eval_metrics.compute(self.accelerator.gather)
        metrics.pop("comparisons", None)
        prefixed = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return output._replace(
            predictions=ordered(output.predictions),
            label_ids=ordered(output.label_ids),
            metrics={**(output.metrics or {}), **prefixed},
        )

    def prediction_step(
        self, model: nn.Module, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, Tensor | None, Any]:
        """Loss and rewards (examples, 2) of one batch."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            scored = self._score(model, inputs)
        self._eval_metrics.update(scored)
        loss = scored.loss / divisor(scored.count)
        if prediction_loss_only:
            return loss, None, None
        if not scored.listed:
            rewards = torch.stack((scored.rewards_N[scored.better_P], scored.rewards_N[scored.worse_P]), dim=1)
            # Empty labels, rather than none: without labels the Trainer would not call compute_metrics.
            return loss, rewards, ()
        rewards, ratings = (
            _by_example(values_N, scored.example_N, self._most_responses)
            for values_N in (scored.rewards_N, scored.scores_N)
        )
        return loss, rewards, ratings

    # ---- checkpoints ------------------------------------------------------------------------------------------

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        try:
            return super()._determine_best_metric(metrics, trial)
        except KeyError as error:
            name = f"eval_{str(self.args.metric_for_best_model).removeprefix('eval_')}"
            fix = nearest(name, metrics, f"Use one of {', '.join(metrics)}.")
            message = f"no evaluation returns {name!r}"
            raise ConfigError(message, field="metric_for_best_model", fix=fix) from error

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Make the repository on the Hub, before anything is trained."""
        try:
            super().init_hf_repo(*args, **kwargs)
        except (OSError, ValueError, HfHubHTTPError) as error:
            reason = str(error).strip().partition("\n")[0]
            fix = "Log in (`hf auth login`) on a machine that is online, or turn `push_to_hub` off."
            message = f"the Hub cannot be written to ({type(error).__name__}: {reason})"
            raise ConfigError(message, field="push_to_hub", fix=fix) from error

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._interval.collect(self.accelerator.gather)
        if self.args.should_save:
            # Its last file would mark a checkpoint that is written again as complete.
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self.create_model_card()
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The main process declares the checkpoint complete next: by then every process must have written its part.
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        folder = Path(str(self.args.output_dir) if output_dir is None else output_dir)
        if self.args.should_save:
            artifacts.write_run_record(folder, self._run_record())
            artifacts.write_golden_rows(
                folder,
                self._golden_rows,
                self.args,
                model=self.model,
                forward=self._forward,
                tokenizer=self.processing_class,
                fsdp=self.is_fsdp_enabled,
                step=self.state.global_step,
            )
        if (heads := heads_of(self._base_model)) is not None:
            save_heads(heads, folder, state_dict, self._loss.objective.name)

    def _run_record(self) -> dict[str, Any]:
        model = self._base_model
        about_model = {
            "base_model": getattr(model.config, "name_or_path", "") or None,
            "architecture": type(model).__name__,
            "adapter": is_peft_model(self.model),
            # A process of sharded training holds only some parameters.
            "parameters": None if self._sharded else model.num_parameters(),
            "trainable_parameters": None if self._sharded else model.num_parameters(only_trainable=True),
            "objective": self.training_objective.name,
            "batch_layout": self.batch_layout,
            "batch_layout_reason": self.batch_layout_reason,
        }
        return artifacts.run_record(self.args, self.state, self.data_reports, about_model)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_heads(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_heads(str(self.state.best_model_checkpoint))

    def _load_heads(self, checkpoint: str) -> None:
        # FSDP and DeepSpeed keep them, sharded, in what they save themselves.
        if not self._sharded:
            load_heads(heads_of(self._base_model), Path(checkpoint), self._loss.objective.name)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write ``README.md`` into the output folder: data, settings, metrics, versions, and how to use the model."""
        folder = Path(str(self.args.output_dir))
        name = model_name or folder.name
        record, location = self._run_record(), self.hub_model_id or name
        header = {
            "pipeline_tag": next(iter(as_list(tasks)), "text-classification"),
            "tags": sorted({*self._tag_names, *as_list(tags)}),
            "language": language if isinstance(language, str) else list(language or ()),
            "license": license,
            "base_model": finetuned_from or record["base_model"],
            "datasets": as_list(dataset_tags or dataset),
        }
        card = artifacts.render_model_card(record, header, as_list(dataset_args), name=name, location=location)
        if self.is_world_process_zero():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "README.md").write_text(card, encoding="utf-8")


def _by_example(values_N: Tensor, example_N: Tensor, width: int) -> Tensor:
    """Values of shape (examples, width), NaN where an example has fewer responses."""
    responses = torch.bincount(example_N).tolist()
    if max(responses) > width:
        message = "predictions of a stream whose rows hold any number of responses cannot be collected"
        raise ConfigError(message, fix="Evaluate on a `Dataset`, or without `compute_metrics`.")
    rows = values_N[example_N.argsort(stable=True)].split(responses)
    table = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=torch.nan)
    return nn.functional.pad(table, (0, width - table.shape[1]), value=torch.nan)
