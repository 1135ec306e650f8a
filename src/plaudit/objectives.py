"""Objectives: which labels each of them learns from, and what each label costs.

An objective turns the rewards of a batch into terms: a loss for each comparison, response or example, and how much
each of these counts. A row of comparisons counts as one however many comparisons it holds (InstructGPT's
normalisation), so that the loss of pairs is the mean over pairs; a rating or a label counts as one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, get_args

import torch
from torch.nn.functional import softplus

from plaudit.errors import ConfigError
from plaudit.losses import (
    binary_cross_entropy_loss,
    bradley_terry_loss,
    davidson_loss,
    hinge_loss,
    plackett_luce_loss,
    rao_kupper_loss,
    regression_loss,
    scaled_bradley_terry_loss,
)
from plaudit.schema import Batch, Label, RowKind

ObjectiveName: TypeAlias = Literal[
    "bradley_terry",
    "scaled_bradley_terry",
    "rao_kupper",
    "davidson",
    "hinge",
    "plackett_luce",
    "regression",
    "binary_cross_entropy",
]


@dataclass(frozen=True)
class Terms:
    """What an objective says about a batch, one entry for each of the units U that it learns from.

    Attributes:
        loss_U: Loss of each comparison, response or example.
        count_U: What each counts for in the mean; 0 for fillers.
        example_U: The example that each belongs to.
    """

    loss_U: torch.Tensor
    count_U: torch.Tensor
    example_U: torch.Tensor


class Objective(ABC):
    """What a reward model is trained for.

    Attributes:
        name: Its name in the settings.
        forms: The forms of rows that it learns from.
        columns: Those of ``margin``, ``preference_prob`` and ``tie`` that it reads.
        compares: Whether it learns from comparing responses to one prompt.
        learns_ties: Whether it has a parameter for ties, which is learned.
        pointwise: What the scores of single responses are to it, ``"ratings"`` or ``"labels"``; None: they only rank.
    """

    name: ClassVar[ObjectiveName]
    row_kinds: ClassVar[frozenset[RowKind]] = frozenset(("pairs", "scores", "ranks"))
    columns: ClassVar[frozenset[str]] = frozenset()
    compares: ClassVar[bool] = True
    learns_ties: ClassVar[bool] = False
    pointwise: ClassVar[Literal["ratings", "labels"] | None] = None

    def units(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """What each unit counts for, and the example it belongs to, both of shape (U,).

        Args:
            batch: A batch in either layout.
        """
        example_P = batch["example_of_response"][batch["better"]]
        real_P = batch["example_weight"][example_P]
        return (real_P * batch["comparison_share"] if "comparison_share" in batch else real_P), example_P

    @abstractmethod
    def losses(self, rewards_N: torch.Tensor, batch: Batch, tie_parameter: torch.Tensor | None) -> torch.Tensor:
        """The loss of each unit, shape (U,).

        Args:
            rewards_N: Rewards of the batch, shape (N,).
            batch: The batch.
            tie_parameter: The learned parameter for ties, shape (1,); None for objectives without one.
        """

    def problem(self, label: Label) -> tuple[str, str, str] | None:
        """What keeps the objective from learning from a label of a form that it reads; None if nothing does.

        Args:
            label: What is said about the responses of a row.

        Returns:
            The field, what is wrong with it, and what to do.
        """
        return None

    def terms(self, rewards_N: torch.Tensor, batch: Batch, tie_parameter: torch.Tensor | None = None) -> Terms:
        """Losses and counts of a batch; see `losses` for the arguments."""
        count_U, example_U = self.units(batch)
        return Terms(self.losses(rewards_N, batch, tie_parameter), count_U, example_U)

    def tie_width(self, tie_parameter: torch.Tensor) -> torch.Tensor:
        """Difference of rewards below which a tie is the likeliest outcome; at most 0 where it never is.

        Args:
            tie_parameter: The learned parameter, shape (1,).
        """
        raise NotImplementedError(f"{self.name} knows no ties")


def _pair_rewards(rewards_N: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    return rewards_N[batch["better"]], rewards_N[batch["worse"]]


def _margin(batch: Batch, default: float) -> torch.Tensor | None:
    """The margins, with a default for rows of a mixed set that have none."""
    margin_P = batch.get("margin")
    return None if margin_P is None else torch.where(margin_P.isnan(), default, margin_P)


@dataclass(frozen=True)
class BradleyTerry(Objective):
    """Logistic loss of reward differences, with margins, preference_probs and label smoothing."""

    name = "bradley_terry"
    columns = frozenset(("margin", "preference_prob"))
    label_smoothing: float = 0.0

    def losses(self, rewards_N: torch.Tensor, batch: Batch, tie_parameter: torch.Tensor | None) -> torch.Tensor:
        """See `plaudit.losses.bradley_terry_loss`."""
        return bradley_terry_loss(
            *_pair_rewards(rewards_N, batch),
            _margin(batch, 0.0),
            preference_prob_P=batch.get("preference_prob"),
            label_smoothing=self.label_smoothing,
        )


@dataclass(frozen=True)
class ScaledBradleyTerry(Objective):
    """Bradley-Terry loss times the margin; of scored responses, times the difference of their scores."""

    name = "scaled_bradley_terry"
    columns = frozenset(("margin",))

    def problem(self, label: Label) -> tuple[str, str, str] | None:
        """Times a negative margin the loss would have no lower bound; see `Objective.problem`."""
        if label.margin is None or label.margin >= 0:
            return None
        message = f"is {label.margin:g}, and {self.name} multiplies by it"
        return "margin", message, "Give 0 or more; to turn a preference round, swap `chosen` and `rejected`."

    def losses(self, rewards_N: torch.Tensor, batch: Batch, tie_parameter: torch.Tensor | None) -> torch.Tensor:
        """See `plaudit.losses.scaled_bradley_terry_loss`."""
        margin_P = batch["scores"][batch["better"]] - batch["scores"][batch["worse"]]
        if "margin" in batch:
            margin_P = torch.where(batch["margin"].isnan(), margin_P, batch["margin"])
        return scaled_bradley_terry_loss(*_pair_rewards(rewards_N, batch), margin_P)


@dataclass(frozen=True)
class RaoKupper(Objective):
    """Bradley-Terry with ties: rewards closer than a learned threshold look alike."""

    name = "rao_kupper"
    columns = frozenset(("preference_prob", "tie"))
    learns_ties = True

    def losses(self, rewards_N: torch.Tensor, batch: Batch, tie_parameter: torch.Tensor | None) -> torch.Tensor:
        """See `plaudit.losses.rao_kupper_loss`; the threshold is the softplus of the parameter."""
        assert tie_parameter is not None
        return rao_kupper_loss(*_pair_rewards(rewards_N, batch), softplus(tie_parameter), batch.get("preference_prob"))

    def tie_width(self, tie_parameter: torch.Tensor) -> torch.Tensor:
        """Solves P(tie) = P(win) for the difference of rewards."""
        eta = softplus(tie_parameter)
        return torch.log((eta.exp() - 2 * (-eta).exp()).clamp_min(1e-30))


@dataclass(frozen=True)
class Davidson(Objective):
    """Bradley-Terry with ties as a third outcome, of a learned weight."""

    name = "davidson"
    columns = frozenset(("preference_prob", "tie"))
    learns_ties = True

    def losses(self, rewards_N: torch.Tensor, batch: Batch, tie_parameter: torch.Tensor | None) -> torch.Tensor:
        """See `plaudit.losses.davidson_loss`; the parameter is the logarithm of the tie's weight."""
        assert tie_parameter is not None
        return davidson_loss(*_pair_rewards(rewards_N, batch), tie_parameter, batch.get("preference_prob"))

    def tie_width(self, tie_parameter: torch.Tensor) -> torch.Tensor:
        """Solves P(tie) = P(win) for the difference of rewards."""
        return 2 * tie_parameter


@dataclass(frozen=True)
class Hinge(Objective):
    """Nothing once the better response is ahead by its margin (1 unless given), linear below."""

    name = "hinge"
    columns = frozenset(("margin",))

    def losses(self, rewards_N: torch.Tensor, batch: Batch, tie_parameter: torch.Tensor | None) -> torch.Tensor:
        """See `plaudit.losses.hinge_loss`."""
        return hinge_loss(*_pair_rewards(rewards_N, batch), _margin(batch, 1.0))


@dataclass(frozen=True)
class PlackettLuce(Objective):
    """Likelihood of whole rankings, or of their first k places; each row counts as one."""

    name = "plackett_luce"
    top_k: int | None = None

    def units(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Examples are the units; see `Objective.units`."""
        weight_G = batch["example_weight"]
        examples_G = torch.arange(len(weight_G), device=weight_G.device)
        compared_G = torch.zeros_like(weight_G)
        compared_G[batch["example_of_response"][batch["better"]]] = 1.0
        return weight_G * compared_G, examples_G

    def losses(self, rewards_N: torch.Tensor, batch: Batch, tie_parameter: torch.Tensor | None) -> torch.Tensor:
        """See `plaudit.losses.plackett_luce_loss`, summed over the responses of an example."""
        example_N = batch["example_of_response"]
        loss_N = plackett_luce_loss(rewards_N, batch["scores"], example_N, self.top_k)
        nothing_G = torch.zeros(len(batch["example_weight"]), device=loss_N.device, dtype=loss_N.dtype)
        return nothing_G.index_add(0, example_N, loss_N)


class _Pointwise(Objective):
    compares = False

    def units(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Responses are the units; see `Objective.units`."""
        example_N = batch["example_of_response"]
        return batch["example_weight"][example_N], example_N


@dataclass(frozen=True)
class Regression(_Pointwise):
    """Squared error of rewards as estimates of ratings."""

    name = "regression"
    row_kinds = frozenset(("ratings", "scores"))
    pointwise = "ratings"

    def losses(self, rewards_N: torch.Tensor, batch: Batch, tie_parameter: torch.Tensor | None) -> torch.Tensor:
        """See `plaudit.losses.regression_loss`."""
        return regression_loss(rewards_N, batch["scores"])


@dataclass(frozen=True)
class BinaryCrossEntropy(_Pointwise):
    """Labels (good or bad), with the reward as the logit of good."""

    name = "binary_cross_entropy"
    row_kinds = frozenset(("labels",))
    pointwise = "labels"
    label_smoothing: float = 0.0

    def problem(self, label: Label) -> tuple[str, str, str] | None:
        """Tokenised rows say labels as scores, which may be any numbers; see `Objective.problem`."""
        wrong = [score for score in label.ratings if not 0 <= score <= 1]
        if not wrong:
            return None
        return "scores", f"holds {wrong[0]:g}, and {self.name} reads probabilities", "Give 1 for good and 0 for bad."

    def losses(self, rewards_N: torch.Tensor, batch: Batch, tie_parameter: torch.Tensor | None) -> torch.Tensor:
        """See `plaudit.losses.binary_cross_entropy_loss`."""
        return binary_cross_entropy_loss(rewards_N, batch["scores"], label_smoothing=self.label_smoothing)


OBJECTIVES: dict[str, type[Objective]] = {
    one.name: one
    for one in (
        BradleyTerry,
        ScaledBradleyTerry,
        RaoKupper,
        Davidson,
        Hinge,
        PlackettLuce,
        Regression,
        BinaryCrossEntropy,
    )
}


assert tuple(OBJECTIVES) == get_args(ObjectiveName)


def make_objective(name: str, *, label_smoothing: float = 0.0, top_k: int | None = None) -> Objective:
    """Make the objective of a name.

    Args:
        name: One of `ObjectiveName`.
        label_smoothing: Probability that a label is wrong.
        top_k: How many places of a ranking count; None for all.

    Raises:
        ConfigError: There is no such objective, or it has no such option.
    """
    if name not in OBJECTIVES:
        raise ConfigError(f"there is no objective {name!r}", fix=f"Use auto or one of {', '.join(OBJECTIVES)}.")
    options = {"label_smoothing": label_smoothing, "top_k": top_k}
    given = {option: value for option, value in options.items() if value}
    known = OBJECTIVES[name].__dataclass_fields__  # type: ignore[attr-defined]
    for option in given:
        if option not in known:
            able = [one for one, kind in OBJECTIVES.items() if option in kind.__dataclass_fields__]  # type: ignore[attr-defined]
            setting = {"label_smoothing": "label_smoothing_factor", "top_k": "plackett_luce_top_k"}[option]
            raise ConfigError(
                f"`{setting}` is set, which the objective {name} does not have",
                fix=f"Leave it out, or use {' or '.join(able)}.",
            )
    return OBJECTIVES[name](**given)


def objectives_for(row_kinds: Collection[RowKind], columns: Iterable[str]) -> list[str]:
    """Name the objectives that can learn from all rows of a data set.

    Args:
        forms: Forms of its rows.
        columns: Those of ``margin``, ``preference_prob`` and ``tie`` that say something.

    >>> objectives_for(["pairs", "ranks"], ["tie"])
    ['rao_kupper', 'davidson']
    """
    return [name for name, one in OBJECTIVES.items() if one.row_kinds >= set(row_kinds) and one.columns >= set(columns)]


def choose_objective(row_kinds: Collection[RowKind], columns: Collection[str]) -> tuple[str, str]:
    """Pick the objective for a data set.

    Args:
        forms: Forms of its rows.
        columns: Those of ``margin``, ``preference_prob`` and ``tie`` that say something.

    Returns:
        Its name, and why.

    Raises:
        ConfigError: None can learn from all rows.

    >>> choose_objective(["pairs"], ["margin"])[0], choose_objective(["pairs"], ["tie"])[0]
    ('bradley_terry', 'rao_kupper')
    """
    fitting = objectives_for(row_kinds, columns)
    if not fitting:
        raise ConfigError(_nothing_fits(row_kinds, columns), fix="Train on them one after the other, or drop some.")
    what = " and ".join([*sorted(row_kinds), *(f"`{column}`" for column in sorted(columns))])
    return fitting[0], f"the data has {what}" if what else "the data is tokenised"


def check_objective(name: str, row_kinds: Collection[RowKind], columns: Collection[str], dataset_name: str) -> None:
    """Refuse an objective that cannot learn from all rows of a data set.

    Args:
        name: Name of the objective.
        forms: Forms of the rows.
        columns: Those of ``margin``, ``preference_prob`` and ``tie`` that say something.
        dataset_name: Which data set it is.

    Raises:
        ConfigError: It cannot; the message names the column and the objectives that fit.
    """
    objective = OBJECTIVES[name]
    wrong = [ROW_KIND_NAMES[row_kind] for row_kind in sorted(set(row_kinds) - objective.row_kinds)]
    wrong += [f"the column `{column}`" for column in sorted(set(columns) - objective.columns)]
    if name == "scaled_bradley_terry" and "pairs" in row_kinds and "margin" not in columns:
        raise ConfigError(
            f"the objective {name} scales by a margin, and the pairs of the {dataset_name} data have none",
            fix="Add a column `margin`, or use bradley_terry.",
        )
    if not wrong:
        return
    fitting = objectives_for(row_kinds, columns)
    fix = f"Use {' or '.join(fitting)}" if fitting else _nothing_fits(row_kinds, columns)
    alone = f", or remove {wrong[0]}." if columns else "."
    raise ConfigError(
        f"the objective {name} cannot learn from {' and '.join(wrong)} of the {dataset_name} data", fix=fix + alone
    )


ROW_KIND_NAMES: dict[RowKind, str] = {
    "pairs": "pairs (`chosen`, `rejected`)",
    "scores": "scored responses (`responses`, `scores`)",
    "ranks": "ranked responses (`responses`, `ranks`)",
    "ratings": "rated responses (`response`, `scores`)",
    "labels": "labelled responses (`response`, `label`)",
}
"""The forms of rows in words."""


def _nothing_fits(row_kinds: Collection[RowKind], columns: Collection[str]) -> str:
    parts = [
        f"{ROW_KIND_NAMES[row_kind]}: {', '.join(objectives_for([row_kind], []))}" for row_kind in sorted(row_kinds)
    ]
    parts += [f"`{column}`: {', '.join(objectives_for([], [column]))}" for column in sorted(columns)]
    return "No objective can learn from all of it: " + "; ".join(parts)
