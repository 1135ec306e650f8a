"""`RewardTrainer`: transformers' Trainer, taught preferences, layouts and exact metrics."""

from __future__ import annotations

import json
import logging
import os
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, PredictionOutput, TrainOutput
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from plaudit.data.collate import ForeignCollator, PaddedCollator, SharedPrefixCollator
from plaudit.data.report import DataReport
from plaudit.errors import ConfigError
from plaudit.metrics import Gather, RewardMetrics, Scored
from plaudit.model.aux_heads import heads_of, load_heads, save_heads
from plaudit.model.peft import is_peft_model
from plaudit.model.shared_prefix import MODEL_KEYS, RewardForward
from plaudit.objectives import Objective
from plaudit.schema import TOKENIZED_COLUMNS, TOKENIZED_LIST_COLUMNS, Batch
from plaudit.training.artifacts import ModelCard, as_list, choose_golden_rows, write_golden_rows, write_run_record
from plaudit.training.config import RewardConfig
from plaudit.training.dataloader import by_similar_work, example_loader, sampler_of
from plaudit.training.loss import RewardLoss, at_least_a_little
from plaudit.training.memory import (
    decide,
    decides_itself,
    freed_memory_kept,
    offloading_or_nothing,
    turn_checkpointing_on,
    warn_if_useless,
    with_checkpointing,
)
from plaudit.training.setup import (
    DataPreparation,
    add_training_heads,
    check_collator,
    check_grouping,
    default_config,
    keep_outputs_exact,
    learn_heads_faster,
    load_model_and_tokenizer,
    make_ready,
    require_train_dataset,
    require_writable,
    settle_loss,
)


class LoggingInterval(TrainerCallback, ExportableState):
    """Sums since the last log, and token counts since the first step.

    The Trainer writes `state` into ``trainer_state.json``; `on_train_begin` reads it back from there, because the
    Trainer restores callbacks by itself only on request.
    """

    def __init__(self) -> None:
        self._metrics = RewardMetrics()
        self._num_tokens = 0
        self._num_tokens_computed = 0
        self._saved: list[float] | None = None

    def update(self, scored: Scored) -> None:
        """Add a training batch."""
        self._metrics.update(scored)

    def flush(self, gather: Gather | None = None) -> dict[str, float]:
        """Metrics of the interval, with the token counts since the first step; starts the next interval."""
        values = self._metrics.compute(gather)
        self._metrics.reset()
        if values:
            self._num_tokens += int(values["num_tokens"])
            self._num_tokens_computed += int(values["num_tokens_computed"])
            values.pop("comparisons")
            values.update(num_tokens=self._num_tokens, num_tokens_computed=self._num_tokens_computed)
        return values

    def collect(self, gather: Gather | None = None) -> None:
        """Take down the sums over all processes, for the checkpoint about to be written."""
        self._saved = self._metrics.totals(gather)

    def state(self) -> dict[str, Any]:
        """What the Trainer writes into ``trainer_state.json``."""
        return {
            "args": {},
            "attributes": {
                "_num_tokens": self._num_tokens,
                "_num_tokens_computed": self._num_tokens_computed,
                "_saved": self._saved,
            },
        }

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start from nothing, or from where the checkpoint left off."""
        # A fresh state lists callbacks, one read from a checkpoint holds what they saved under their names.
        saved: Any = state.stateful_callbacks if state.global_step > 0 else None
        attributes = saved.get(type(self).__name__, {}).get("attributes", {}) if isinstance(saved, dict) else {}
        self._num_tokens = attributes.get("_num_tokens", 0)
        self._num_tokens_computed = attributes.get("_num_tokens_computed", 0)
        # The sums are those of all processes: one of them carries on with them.
        totals = attributes.get("_saved") if state.is_world_process_zero else None
        self._metrics.restore(totals, device=args.device)


logger = logging.getLogger("plaudit")
# Names differ between plain, adapter, FSDP and DeepSpeed checkpoints; DeepSpeed keeps everything in global_step*.
_WEIGHTS = ("*model*.safetensors", "*model*.bin", "pytorch_model_fsdp_*", "global_step*")
_TO_GO_ON = (("*optimizer*", "global_step*"), ("scheduler.pt", "global_step*"), ("rng_state*",))


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end, and is not half deleted.

    Args:
        checkpoint: A ``checkpoint-<step>`` folder. The Trainer's state is the last file written into it. Files may
            be missing nevertheless, where a process was killed while it deleted an old checkpoint.
    """
    try:
        written = "global_step" in json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        shards = _shards(checkpoint)
    except (OSError, ValueError):
        return False
    # A checkpoint of the model alone (`save_only_model`) has nothing of what is needed to go on, any other all of it.
    to_go_on = {_holds(checkpoint, *patterns) for patterns in _TO_GO_ON}
    return written and _holds(checkpoint, *_WEIGHTS) and all(shard.exists() for shard in shards) and len(to_go_on) == 1


def _holds(folder: Path, *patterns: str) -> bool:
    return any(any(folder.glob(pattern)) for pattern in patterns)


def _shards(checkpoint: Path) -> list[Path]:
    """The files that the weights are spread over; empty where they are in one."""
    index = checkpoint / SAFE_WEIGHTS_INDEX_NAME
    if not index.exists():
        return []
    return [checkpoint / name for name in set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())]


def newest_complete_checkpoint(run_folder: str | os.PathLike[str]) -> Path:
    """The checkpoint to resume a run from.

    Args:
        run_folder: Folder with ``checkpoint-<step>`` folders.

    Raises:
        ConfigError: If there is none that is complete.
    """
    folder = Path(run_folder)
    found = sorted(
        (int(match[1]), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.is_dir() and (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    )
    for _, checkpoint in reversed(found):
        if is_complete(checkpoint):
            return checkpoint
        logger.warning("%s was not written to its end, or is half deleted: it is passed over.", checkpoint)
    raise ConfigError(
        f"there is no complete checkpoint in {str(folder)!r}",
        fix="Name a checkpoint folder in `resume_from_checkpoint`, or start from the beginning.",
    )


def mark_incomplete(checkpoint: str | os.PathLike[str]) -> None:
    """Take the mark of completeness from a checkpoint that is about to be written again."""
    (Path(checkpoint) / TRAINER_STATE_NAME).unlink(missing_ok=True)


class EvaluatingTrainer(Trainer):
    """A Trainer that evaluates rewards; `RewardTrainer` adds the training."""

    args: RewardConfig
    _prepare_data: DataPreparation
    _eval_metrics: RewardMetrics
    _loss: RewardLoss
    _forward: RewardForward
    _base_model: PreTrainedModel

    @abstractmethod
    def _score(self, model: nn.Module, batch: Batch) -> Scored:
        """Rewards of a batch on the model's device, and its loss."""

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate on raw or prepared preferences; see `transformers.Trainer.evaluate`."""
        if isinstance(eval_dataset, Mapping):
            metrics: dict[str, float] = {}
            for name, part in eval_dataset.items():
                metrics.update(self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}"))
            return metrics
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._prepare_data(eval_dataset, metric_key_prefix, "eval")
        return super().evaluate(eval_dataset, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix)

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Rewards (rows, 2), chosen first, of raw or prepared preferences; NaN for rows too long to score."""
        prepared = self._prepare_data(test_dataset, metric_key_prefix, "predict")
        output = super().predict(prepared, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix)
        rows = self._prepare_data.reports[metric_key_prefix].rows_read
        if len(prepared) == rows:
            return output
        logger.warning(
            "%d of %d rows are too long to score (more than %d tokens): their rewards are NaN.",
            rows - len(prepared),
            rows,
            self.args.max_length,
        )
        places = prepared["row"]
        labels = output.label_ids
        return output._replace(
            predictions=_at_rows(output.predictions, places, rows),
            label_ids=_at_rows(labels, places, rows) if isinstance(labels, np.ndarray) else labels,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The Trainer's loader, with rows of similar length together; `evaluation_loop` restores their order."""
        return self._with_order(super().get_eval_dataloader(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """The Trainer's loader, with rows of similar length together; `evaluation_loop` restores their order."""
        return self._with_order(super().get_test_dataloader(test_dataset))

    def _with_order(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        sampler = sampler_of(loader)
        if sampler is not None and self._order_is_free():
            rows: Any = loader.dataset
            order = by_similar_work(rows.rows, padded=self._forward.layout == "padded")
            sampler.order = lambda epoch: order
        return loader

    def _order_is_free(self) -> bool:
        """Whether nothing that is reported depends on which rows share a batch, or on the order of batches."""
        args = self.args
        if args.include_for_metrics or args.batch_eval_metrics or not args.eval_do_concat_batches:
            return False
        loads_balanced = getattr(self._base_model.config.get_text_config(), "output_router_logits", False)
        return not (loads_balanced or self._loss.length_penalty or self._loss.length_head)

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
        sampler = sampler_of(dataloader)
        order = None if sampler is None else sampler.order(0)
        own_metrics = self.compute_metrics
        if own_metrics is not None and not self.args.batch_eval_metrics:
            self.compute_metrics = lambda prediction: own_metrics(_in_order(prediction, order))
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        finally:
            self.compute_metrics = own_metrics
        output = output._replace(
            predictions=_restored(output.predictions, order), label_ids=_restored(output.label_ids, order)
        )
        metrics = self._eval_metrics.compute(self.accelerator.gather)
        metrics.pop("comparisons", None)
        prefixed = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return output._replace(metrics={**(output.metrics or {}), **prefixed})

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Batch,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, Any]:
        """Loss and rewards (examples, 2) of one batch."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            scored = self._score(model, inputs)
        self._eval_metrics.update(scored)
        loss = scored.loss / at_least_a_little(scored.count)
        if prediction_loss_only:
            return loss, None, None
        if not scored.listed:
            rewards = torch.stack((scored.rewards_N[scored.better_P], scored.rewards_N[scored.worse_P]), dim=1)
            # Empty labels, rather than none: without labels the Trainer would not call compute_metrics.
            return loss, rewards, ()
        width = self._prepare_data.most_responses
        return loss, _by_example(scored, scored.rewards_N, width), _by_example(scored, scored.scores_N, width)


def _in_order(prediction: EvalPrediction, order: Sequence[int] | None) -> EvalPrediction:
    return EvalPrediction(
        _restored(prediction.predictions, order),
        _restored(prediction.label_ids, order),
        prediction.inputs,
        prediction.losses,
    )


def _restored(values: Any, order: Sequence[int] | None) -> Any:
    """Values of rows that were taken in some order, in the order of the rows.

    Args:
        values: An array of shape (rows, ...), or any nesting of such.
        order: The rows in the order in which they were taken; None where that is their own.
    """
    if isinstance(values, Mapping):
        return {name: _restored(value, order) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(_restored(value, order) for value in values)
    if order is None or not isinstance(values, np.ndarray) or values.shape[:1] != (len(order),):
        return values
    restored = np.empty_like(values)
    restored[np.asarray(order, dtype=np.int64)] = values
    return restored


def _at_rows(values: Any, places: Sequence[int], rows: int) -> np.ndarray:
    """Values of some rows in a table of all rows, NaN in the others."""
    table = np.full((rows, *np.shape(values)[1:]), np.nan, dtype=np.float32)
    table[places] = values
    return table


def _by_example(scored: Scored, values_N: torch.Tensor, width: int) -> torch.Tensor:
    """Values of shape (examples, width), NaN where an example has fewer responses."""
    responses_G = torch.bincount(scored.example_N)
    if int(responses_G.max()) > width:
        raise ConfigError(
            "predictions of a stream whose rows hold any number of responses cannot be collected",
            fix="Evaluate on a `Dataset`, or without `compute_metrics`.",
        )
    table = values_N.new_full((len(responses_G), width), torch.nan)
    order_N = scored.example_N.argsort(stable=True)
    starts_G = responses_G.cumsum(0) - responses_G
    example_N = scored.example_N[order_N]
    place_N = torch.arange(len(order_N), device=order_N.device) - starts_G[example_N]
    table[example_N, place_N] = values_N[order_N]
    return table


class SteppingTrainer(EvaluatingTrainer):
    """The part of `RewardTrainer` that runs training steps."""

    model: Any
    _scored: Scored | None = None
    _decides_checkpointing: bool
    _may_turn_checkpointing_on = False

    @property
    def _interval(self) -> LoggingInterval:
        # Looked up each time: the Trainer replaces callbacks when it restores them from a checkpoint.
        return next(cb for cb in self.callback_handler.callbacks if isinstance(cb, LoggingInterval))

    def _settle_checkpointing(self) -> None:
        """Decide on gradient checkpointing where that was left to the trainer, once."""
        if not self._decides_checkpointing:
            return
        self._decides_checkpointing = False
        decision = decide(cast(Any, self))
        self.args = with_checkpointing(self.args, decision.on)
        if decision.on:
            turn_checkpointing_on(self.model, self.args)
        # A step that begins anew must not have added to gradients, nor talked to other processes.
        alone = self.accelerator.num_processes == 1 and self.args.gradient_accumulation_steps == 1
        self._may_turn_checkpointing_on = alone and not decision.on
        logger.info("Gradient checkpointing is %s: %s.", "on" if decision.on else "off", decision.reason)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A micro-batch forward and backward, with activations offloaded in between where that was asked for."""
        try:
            with offloading_or_nothing(self.model, self.args.activation_offloading):
                loss = super().training_step(*args, **kwargs)
        except torch.OutOfMemoryError:
            if not self._may_turn_checkpointing_on:
                raise
            loss = None
        if loss is None:  # only here the failed attempt has let go of its memory
            self._turn_checkpointing_on()
            return self.training_step(*args, **kwargs)
        if self._scored is not None:
            self._interval.update(self._scored)
            self._scored = None
        return loss

    def _turn_checkpointing_on(self) -> None:
        """After an estimate that was too low: once, and the step begins anew."""
        self._may_turn_checkpointing_on, self._scored = False, None
        logger.warning("Out of memory: gradient checkpointing is on from step %d.", self.state.global_step + 1)
        self.args = with_checkpointing(self.args, True)
        turn_checkpointing_on(self.model, self.args)
        self.model.zero_grad(set_to_none=True)
        if self.args.device.type == "cuda":
            torch.cuda.empty_cache()


EvalData: TypeAlias = Dataset | IterableDataset | Mapping[str, Dataset | IterableDataset]


class RewardTrainer(SteppingTrainer):
    """Train a reward model on preferences with the Bradley-Terry loss.

    Args:
        model: A folder or model id (loaded as sequence classification with one output, float32 by default), a
            sequence-classification model with ``num_labels=1``, or a PEFT model around one.
        args: Settings; by default those of `RewardConfig`, writing to ``<model name>-Reward``.
        data_collator: Your own collator of prepared rows into ``input_ids`` and ``attention_mask`` of shape (2G, T),
            chosen first. By default one of the two layouts, see ``RewardConfig.batch_layout``.
        train_dataset: Preferences in any form that the documentation of data formats lists.
        eval_dataset: The same for evaluation; several of them as a mapping.
        processing_class: The tokenizer; by default the one that belongs to the model. It is not changed.
        compute_metrics: Further metrics from predictions of shape (examples, 2), chosen first.
        callbacks: Added to the default ones.
        optimizers: An optimizer and a scheduler of your own.
        optimizer_cls_and_kwargs: A class of optimizer and its arguments.
        preprocess_logits_for_metrics: Applied to the rewards (examples, 2) of each evaluation batch.
        peft_config: Wrap the model in an adapter. The reward head is trained and saved with it in any case.
        quantization_config: Load a model given by name quantised, for example with bitsandbytes.

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
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        peft_config: Any | None = None,
        *,
        quantization_config: Any | None = None,
    ) -> None:
        args = args if args is not None else default_config(model)
        require_train_dataset(train_dataset, args.max_steps)
        require_writable(args.output_dir)
        if args.n_gpu > 1:
            raise ConfigError(
                "several GPUs are visible to one process, and `nn.DataParallel` is not supported",
                fix="Start with `accelerate launch` or `torchrun`, or set CUDA_VISIBLE_DEVICES to one GPU.",
            )
        warn_if_useless(args.activation_offloading)
        set_seed(args.seed)
        self._decides_checkpointing = decides_itself(args)
        args = with_checkpointing(args, False) if self._decides_checkpointing else args
        loaded = load_model_and_tokenizer(model, args, processing_class, quantization_config)
        self._loss = settle_loss(args, train_dataset)
        self._prepare_data = DataPreparation(args, loaded.tokenizer, self._loss.objective)
        given = (eval_dataset, train_dataset)
        self._golden_rows = choose_golden_rows(loaded.tokenizer, given, args.golden_rows, max_length=args.max_length)
        train_dataset = self._prepare_data(train_dataset, "train", "train")
        eval_dataset = self._prepare_data.of_evaluation(eval_dataset)
        check_collator(data_collator, self._loss, train_dataset)
        check_grouping(args, self.data_reports["train"])
        ready = make_ready(loaded, args, data_collator, peft_config)
        add_training_heads(ready, self._loss)
        self._base_model = ready.base_model
        self._forward = RewardForward(
            ready.base_model,
            ready.batch_layout,
            ready.batch_layout_reason,
            reads_positions=ready.reads_positions,
            required=args.batch_layout == "shared_prefix",
        )
        self._eval_metrics = RewardMetrics()
        self._kept_loaders: dict[str | None, tuple[Dataset, DataLoader[Any]]] = {}
        super().__init__(
            model=ready.model,
            args=args,
            data_collator=self._make_collator(data_collator, ready.tokenizer, args),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=ready.tokenizer,
            compute_metrics=compute_metrics,
            callbacks=[LoggingInterval(), *(callbacks or [])],
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        keep_outputs_exact(getattr(self.accelerator.state, "fsdp_plugin", None))
        # The loss is divided by the global number of comparisons, so the Trainer must not divide it again.
        self.model_accepts_loss_kwargs = True
        self.can_return_loss, self.label_names = True, []
        ready.base_model.add_model_tags(list(self._tag_names))

    @property
    def data_reports(self) -> dict[str, DataReport]:
        """What was read, dropped and found suspicious in each data set, by its name."""
        return self._prepare_data.reports

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
        """What the model is trained for."""
        return self._loss.objective

    # ---- data -------------------------------------------------------------------------------------------------

    def _make_collator(self, own: Any, tokenizer: Any, args: RewardConfig) -> Any:
        if own is not None:
            return ForeignCollator(own, content=bool(self._loss.ensemble_size))
        options = {
            "ties": self._loss.objective.learns_ties,
            "text": bool(self._loss.lm_loss),
            "content": bool(self._loss.ensemble_size),
        }
        if self.batch_layout == "shared_prefix":
            return SharedPrefixCollator(**options)
        return PaddedCollator(tokenizer.pad_token_id, args.pad_to_multiple_of, **options)

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            columns: Any = [*TOKENIZED_COLUMNS, *TOKENIZED_LIST_COLUMNS, "margin", "preference_prob", "weight"]
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
        """A loader with our own sampler, which knows ranks; the Trainer's for streams and samplers of your own."""
        own_sampler = type(self)._get_train_sampler if is_training else type(self)._get_eval_sampler
        stock_sampler = Trainer._get_train_sampler if is_training else Trainer._get_eval_sampler
        if not isinstance(dataset, Dataset) or own_sampler is not stock_sampler:
            return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)
        kept_for, kept = self._kept_loaders.get(dataloader_key, (None, None))
        if kept is not None and kept_for is dataset:
            return kept
        loader = example_loader(
            self._remove_unused_columns(dataset, description),
            self.args,
            batch_size,
            collator=self.data_collator,
            device=self.accelerator.device,
            is_training=is_training,
            padded=self.batch_layout == "padded",
            prompts=self._prompts(dataset) if is_training and self.args.group_by_prompt else None,
        )
        if dataloader_key is not None and self.args.dataloader_persistent_workers:
            self._kept_loaders[dataloader_key] = dataset, loader
        return loader

    def _prompts(self, dataset: Dataset) -> Sequence[int]:
        """For each training row a number that is equal for equal prompts."""
        prompts = self.data_reports["train"].prompts
        if prompts is None or len(prompts) != len(dataset):
            raise ConfigError(
                "`group_by_prompt` knows the rows of `train_dataset` as it was passed in, and they have changed",
                fix="Pass the data set to `RewardTrainer`, or leave `group_by_prompt` out.",
            )
        return prompts.tolist()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor]:
        """The micro-batches of one step, and what they count for over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = [self._loss.count(batch) for batch in batches]
        count = torch.stack(counts).sum().to(device) if counts else torch.zeros((), device=device)
        return batches, at_least_a_little(self.accelerator.reduce(count, reduction="sum"))

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        """Move a batch to the device; what the model does not read keeps its precision, which DeepSpeed would lower."""
        prepared: Batch = super()._prepare_inputs(inputs)
        for key, value in inputs.items():
            if key not in MODEL_KEYS and isinstance(value, torch.Tensor):
                prepared[key] = value.to(self.args.device)
        return prepared

    # ---- rewards and loss -------------------------------------------------------------------------------------

    def _score(self, model: nn.Module, batch: Batch) -> Scored:
        """Rewards of a batch on the model's device, and its loss."""
        computes_in = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)
        rewards = self._forward(model, batch, compute_dtype=computes_in, gather=self.accelerator.gather)
        return self._loss(rewards, batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Sum of the losses of a batch, divided by what the whole step counts for.

        Args:
            model: The model as the Trainer wrapped it.
            inputs: A batch in either layout.
            return_outputs: Also return ``{"rewards": (N,)}``.
            num_items_in_batch: What the step counts for over all processes (of pairs, their number); by default what
                this batch does.
        """
        scored = self._score(model, inputs)
        if model.training:
            self._scored = scored
        if num_items_in_batch is None:
            loss = scored.loss / at_least_a_little(scored.count)
        else:
            # Gradients are averaged over processes, hence the factor.
            loss = scored.loss * self.accelerator.num_processes / num_items_in_batch
        return (loss, {"rewards": scored.rewards_N}) if return_outputs else loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer, with steps of their own size for what only training needs."""
        given = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if not given:
            learn_heads_faster(self.model if model is None else model, optimizer)
        return optimizer

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train; ``resume_from_checkpoint=True`` goes on from the newest checkpoint that is complete."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = str(newest_complete_checkpoint(str(self.args.output_dir)))
        self._settle_checkpointing()
        with freed_memory_kept(self.args.device):
            return super().train(resume_from_checkpoint, *args, **kwargs)

    # ---- metrics ----------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the exact metrics of the interval added to training logs."""
        if "loss" in logs:
            logs.update(self._interval.flush(self.accelerator.gather))
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._interval.collect(self.accelerator.gather)
        if self.args.should_save:
            mark_incomplete(Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}")
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
        write_run_record(self, output_dir)
        write_golden_rows(self, output_dir)
        heads = heads_of(self._base_model)
        if heads is not None:
            folder = Path(output_dir if output_dir is not None else str(self.args.output_dir))
            save_heads(heads, folder, state_dict, self._loss.objective.name)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_heads(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_heads(str(self.state.best_model_checkpoint))

    def _load_heads(self, checkpoint: str) -> None:
        # FSDP and DeepSpeed keep them, sharded, in what they save themselves.
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            load_heads(heads_of(self._base_model), Path(checkpoint), self._loss.objective.name)

    # ---- sharing ----------------------------------------------------------------------------------------------

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
        name = model_name or Path(str(self.args.output_dir)).name
        card = ModelCard.of_run(
            self.state.log_history,
            name=name,
            location=self.hub_model_id or name,
            base_model=finetuned_from or getattr(self._base_model.config, "name_or_path", None),
            reports=self.data_reports,
            settings=self.args.to_dict(),
            batch_layout=f"{self.batch_layout} ({self.batch_layout_reason})",
            objective=self.training_objective.name,
            adapter=is_peft_model(self.model),
            datasets=as_list(dataset_tags or dataset),
            dataset_args=as_list(dataset_args),
            tags=[*self._tag_names, *as_list(tags)],
            language=language,
            license=license,
            tasks=as_list(tasks),
        )
        if self.is_world_process_zero():
            Path(str(self.args.output_dir)).mkdir(parents=True, exist_ok=True)
            Path(str(self.args.output_dir), "README.md").write_text(card.render(), encoding="utf-8")
