"""From settings and data to the objective, its regularisers, and the heads that they need."""

from __future__ import annotations

import logging
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import nn

from plaudit.data.forms import survey
from plaudit.errors import ConfigError
from plaudit.model.adapters import is_prompt_learning
from plaudit.model.training_heads import (
    ATTRIBUTE,
    TrainingHeads,
    install_training_heads,
    language_model_weight,
    remove_training_heads,
)
from plaudit.objective_choice import check_objective, choose_objective, make_objective
from plaudit.objectives import Objective
from plaudit.training.config import RewardConfig
from plaudit.training.loss import RewardLoss
from plaudit.training.setup import ReadyModel

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
    forms, columns = survey(dataset)
    name, reason = str(args.objective), "as asked for"
    if name == "auto":
        name, reason = choose_objective(forms, columns)
        if name == "bradley_terry" and columns <= {"margin"} and forms == {"pairs"}:
            reason = "the data has pairs"
    objective = make_objective(name, label_smoothing=args.label_smoothing_factor, top_k=args.plackett_luce_top_k)
    check_objective(name, forms, columns, "train")
    logger.info("Objective: %s (%s).", name, reason)
    return RewardLoss(
        objective,
        center_rewards=args.center_rewards_coefficient or 0.0,
        length_penalty=args.length_penalty_coefficient or 0.0,
        length_head=args.length_head_coefficient or 0.0,
        text_generation=args.text_generation_coefficient or 0.0,
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
    elif loss.text_generation:
        problem = "does not say where the text is that `text_generation_coefficient` asks to predict"
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
        "`text_generation_coefficient`": bool(loss.text_generation),
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
    if loss.text_generation and is_prompt_learning(ready.model):
        raise ConfigError(
            "`text_generation_coefficient` cannot find the text behind an adapter's virtual tokens",
            fix="Use another kind of adapter, or leave `text_generation_coefficient` out.",
        )
    heads = TrainingHeads(
        base_model.config.get_text_config().hidden_size,
        ties=loss.objective.learns_ties,
        length=bool(loss.length_head),
        ensemble_size=loss.ensemble_size,
        seed=loss.seed,
        language_model_weight=language_model_weight(base_model) if loss.text_generation else None,
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
