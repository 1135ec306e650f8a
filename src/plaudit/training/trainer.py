"""`RewardTrainer`: transformers' Trainer, taught preferences, layouts and exact metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from datasets import Dataset, IterableDataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, set_seed
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.trainer_utils import EvalPrediction, TrainOutput

from plaudit.data.collate import ForeignCollator, PaddedCollator, SharedPrefixCollator
from plaudit.data.columns import TOKENIZED_COLUMNS, TOKENIZED_LIST_COLUMNS
from plaudit.data.report import DataReport
from plaudit.errors import ConfigError
from plaudit.metrics import RewardMetrics, Scored
from plaudit.model.adapters import is_peft_model
from plaudit.model.rewards import RewardForward
from plaudit.model.shared_prefix import MODEL_KEYS
from plaudit.model.training_heads import heads_of, load_heads, save_heads
from plaudit.objectives import Objective
from plaudit.training.allocation import freed_memory_kept
from plaudit.training.checkpointing import decides_itself, with_checkpointing
from plaudit.training.checkpoints import mark_incomplete, newest_complete_checkpoint
from plaudit.training.config import RewardConfig
from plaudit.training.example_loader import example_loader
from plaudit.training.golden_rows import choose_golden_rows, write_golden_rows
from plaudit.training.interval import LoggingInterval
from plaudit.training.loss import at_least_a_little
from plaudit.training.model_card import ModelCard, as_list
from plaudit.training.objective import add_training_heads, check_collator, learn_heads_faster, settle_loss
from plaudit.training.offloading import warn_if_useless
from plaudit.training.preparation import DataPreparation, check_grouping
from plaudit.training.run_record import write_run_record
from plaudit.training.setup import (
    default_config,
    keep_outputs_exact,
    load_model_and_tokenizer,
    make_ready,
    require_train_dataset,
    require_writable,
)
from plaudit.training.stepping import SteppingTrainer
from plaudit.types import Batch

logger = logging.getLogger("plaudit")

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
            "text": bool(self._loss.text_generation),
            "content": bool(self._loss.ensemble_size),
        }
        if self.batch_layout == "shared_prefix":
            return SharedPrefixCollator(**options)
        return PaddedCollator(tokenizer.pad_token_id, args.pad_to_multiple_of, **options)

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            columns: Any = [*TOKENIZED_COLUMNS, *TOKENIZED_LIST_COLUMNS, "margin", "strength", "weight"]
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
