"""Objectives: which labels each of them learns from, and what each label costs.

An objective turns the rewards of a batch into terms: a loss for each comparison, response or example, and how much
each of these counts. A row of comparisons counts as one however many comparisons it holds (InstructGPT's
normalisation), so that the loss of pairs is the mean over pairs; a rating or a label counts as one.

To add an objective, write its loss in :mod:`plaudit.losses` and a class here, and name it in `ObjectiveName` and
`OBJECTIVES`: settings, help, checks of the data, metrics and the model card read what the class declares.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn.functional import softplus

from plaudit import losses
from plaudit.errors import ConfigError
from plaudit.schema import Batch, Label, RowKind

# In the order in which `choose_objective` prefers them.
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
ROW_KIND_NAMES: dict[RowKind, str] = {
    "pairs": "pairs (`chosen`, `rejected`)",
    "scores": "scored responses (`responses`, `scores`)",
    "ranks": "ranked responses (`responses`, `ranks`)",
    "ratings": "rated responses (`response`, `scores`)",
    "labels": "labelled responses (`response`, `label`)",
}


class Objective(ABC):
    """What a reward model is trained for. Subclasses declare what they read and compute `losses`.

    Attributes:
        name: Its name in the settings.
        card: What the model card says of the training.
        meaning: What the model card says of the height of a reward.
        row_kinds: The kinds of rows that it learns from.
        columns: Those of ``margin``, ``preference_prob`` and ``tie`` that it reads.
        needs: Those of `columns` that pairs must have.
        compares: Whether it learns from comparing responses to one prompt.
        learns_ties: Whether it learns a parameter for ties.
        pointwise: What the scores of single responses are to it, ``"ratings"`` or ``"labels"``; None: they only rank.
    """

    name: ClassVar[ObjectiveName]
    card: ClassVar[str]
    meaning: ClassVar[str] = "Rewards compare responses to the same prompt; their absolute height means nothing."
    row_kinds: ClassVar[frozenset[RowKind]] = frozenset(("pairs", "scores", "ranks"))
    columns: ClassVar[frozenset[str]] = frozenset()
    needs: ClassVar[frozenset[str]] = frozenset()
    compares: ClassVar[bool] = True
    learns_ties: ClassVar[bool] = False
    pointwise: ClassVar[Literal["ratings", "labels"] | None] = None

    def units(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns what each unit counts for, and the example it belongs to, both of shape (U,)."""
        example_P = batch["example_of_response"][batch["better"]]
        real_P = batch["example_weight"][example_P]
        return (real_P * batch["comparison_share"] if "comparison_share" in batch else real_P), example_P

    @abstractmethod
    def losses(self, rewards_N: Tensor, batch: Batch, tie_parameter: Tensor | None) -> Tensor:
        """Returns the loss of each unit, shape (U,); the parameter for ties, shape (1,), is None where not learned."""

    def problem(self, label: Label) -> tuple[str, str, str] | None:
        """Returns why a label of a kind that the objective reads cannot be learned from: field, message and fix."""
        return None

    def tie_width(self, tie_parameter: Tensor) -> Tensor:
        """Returns the difference of rewards below which a tie is the likeliest outcome; at most 0 where it never is."""
        raise NotImplementedError(f"{self.name} does not model ties")


def _pair_rewards(rewards_N: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    return rewards_N[batch["better"]], rewards_N[batch["worse"]]


def _margin(batch: Batch, default: float) -> Tensor | None:
    """Returns the margins, with a default for rows of a mixed set that have none."""
    margin_P = batch.get("margin")
    return None if margin_P is None else torch.where(margin_P.isnan(), default, margin_P)


@dataclass(frozen=True)
class BradleyTerry(Objective):
    """Logistic loss of reward differences; see `plaudit.losses.bradley_terry_loss`."""

    name = "bradley_terry"
    card = "Trained on comparisons with the Bradley-Terry loss."
    columns = frozenset(("margin", "preference_prob"))
    label_smoothing: float = 0.0

    def losses(self, rewards_N: Tensor, batch: Batch, tie_parameter: Tensor | None) -> Tensor:
        """Comparisons are the units."""
        return losses.bradley_terry_loss(
            *_pair_rewards(rewards_N, batch),
            _margin(batch, 0.0),
            preference_prob_P=batch.get("preference_prob"),
            label_smoothing=self.label_smoothing,
        )


@dataclass(frozen=True)
class ScaledBradleyTerry(Objective):
    """Bradley-Terry loss times the margin; of scored responses, times the difference of their scores."""

    name = "scaled_bradley_terry"
    card = "Trained on comparisons with the Bradley-Terry loss, each scaled by its margin."
    columns = frozenset(("margin",))
    needs = frozenset(("margin",))

    def problem(self, label: Label) -> tuple[str, str, str] | None:
        """Times a negative margin the loss would have no lower bound."""
        if label.margin is None or label.margin >= 0:
            return None
        message = f"is {label.margin:g}, and {self.name} multiplies by it"
        return "margin", message, "Use 0 or more; to reverse a preference, swap `chosen` and `rejected`."

    def losses(self, rewards_N: Tensor, batch: Batch, tie_parameter: Tensor | None) -> Tensor:
        """See `plaudit.losses.scaled_bradley_terry_loss`."""
        margin_P = batch["scores"][batch["better"]] - batch["scores"][batch["worse"]]
        if "margin" in batch:
            margin_P = torch.where(batch["margin"].isnan(), margin_P, batch["margin"])
        return losses.scaled_bradley_terry_loss(*_pair_rewards(rewards_N, batch), margin_P)


@dataclass(frozen=True)
class RaoKupper(Objective):
    """Bradley-Terry with ties: rewards closer than a learned threshold look alike."""

    name = "rao_kupper"
    card = "Trained on comparisons and ties with the Rao-Kupper loss."
    columns = frozenset(("preference_prob", "tie"))
    learns_ties = True

    def losses(self, rewards_N: Tensor, batch: Batch, tie_parameter: Tensor | None) -> Tensor:
        """See `plaudit.losses.rao_kupper_loss`; the threshold is the softplus of the parameter."""
        assert tie_parameter is not None
        return losses.rao_kupper_loss(
            *_pair_rewards(rewards_N, batch), softplus(tie_parameter), batch.get("preference_prob")
        )

    def tie_width(self, tie_parameter: Tensor) -> Tensor:
        """Solves P(tie) = P(win) for the difference of rewards."""
        eta = softplus(tie_parameter)
        return torch.log((eta.exp() - 2 * (-eta).exp()).clamp_min(1e-30))


@dataclass(frozen=True)
class Davidson(Objective):
    """Bradley-Terry with ties as a third outcome of learned weight."""

    name = "davidson"
    card = "Trained on comparisons and ties with the Davidson loss."
    columns = frozenset(("preference_prob", "tie"))
    learns_ties = True

    def losses(self, rewards_N: Tensor, batch: Batch, tie_parameter: Tensor | None) -> Tensor:
        """See `plaudit.losses.davidson_loss`; the parameter is the logarithm of the tie's weight."""
        assert tie_parameter is not None
        return losses.davidson_loss(*_pair_rewards(rewards_N, batch), tie_parameter, batch.get("preference_prob"))

    def tie_width(self, tie_parameter: Tensor) -> Tensor:
        """Solves P(tie) = P(win) for the difference of rewards."""
        return 2 * tie_parameter


@dataclass(frozen=True)
class Hinge(Objective):
    """Zero once the better response leads by its margin (1 unless given), linear below."""

    name = "hinge"
    card = "Trained on comparisons with the hinge loss."
    columns = frozenset(("margin",))

    def losses(self, rewards_N: Tensor, batch: Batch, tie_parameter: Tensor | None) -> Tensor:
        """See `plaudit.losses.hinge_loss`."""
        return losses.hinge_loss(*_pair_rewards(rewards_N, batch), _margin(batch, 1.0))


@dataclass(frozen=True)
class PlackettLuce(Objective):
    """Likelihood of whole rankings, or of their first k places; each row counts as one."""

    name = "plackett_luce"
    card = "Trained on rankings with the Plackett-Luce loss."
    top_k: int | None = None

    def units(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Examples with a comparison are the units."""
        weight_G = batch["example_weight"]
        examples_G = torch.arange(len(weight_G), device=weight_G.device)
        compared_G = torch.zeros_like(weight_G)
        compared_G[batch["example_of_response"][batch["better"]]] = 1.0
        return weight_G * compared_G, examples_G

    def losses(self, rewards_N: Tensor, batch: Batch, tie_parameter: Tensor | None) -> Tensor:
        """See `plaudit.losses.plackett_luce_loss`, summed over the responses of an example."""
        example_N = batch["example_of_response"]
        loss_N = losses.plackett_luce_loss(rewards_N, batch["scores"], example_N, self.top_k)
        zeros_G = torch.zeros(len(batch["example_weight"]), device=loss_N.device, dtype=loss_N.dtype)
        return zeros_G.index_add(0, example_N, loss_N)


class _Pointwise(Objective):
    compares = False

    def units(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Responses are the units."""
        example_N = batch["example_of_response"]
        return batch["example_weight"][example_N], example_N


@dataclass(frozen=True)
class Regression(_Pointwise):
    """Squared error of rewards as estimates of ratings."""

    name = "regression"
    card = "Trained on rated responses with the squared error: the reward estimates the rating."
    meaning = "Rewards are estimates of ratings, on the scale of the ratings."
    row_kinds = frozenset(("ratings", "scores"))
    pointwise = "ratings"

    def losses(self, rewards_N: Tensor, batch: Batch, tie_parameter: Tensor | None) -> Tensor:
        """See `plaudit.losses.regression_loss`."""
        return losses.regression_loss(rewards_N, batch["scores"])


@dataclass(frozen=True)
class BinaryCrossEntropy(_Pointwise):
    """Labels (good or bad), with the reward as the logit of good."""

    name = "binary_cross_entropy"
    card = (
        "Trained on responses labelled good or bad with the binary cross-entropy: "
        "the sigmoid of the reward estimates the probability of good."
    )
    meaning = "Above 0 a response is more likely good than bad."
    row_kinds = frozenset(("labels",))
    pointwise = "labels"
    label_smoothing: float = 0.0

    def problem(self, label: Label) -> tuple[str, str, str] | None:
        """Tokenised rows give labels as scores, which may be any numbers."""
        wrong = [score for score in label.ratings if not 0 <= score <= 1]
        if not wrong:
            return None
        return "scores", f"holds {wrong[0]:g}, and {self.name} reads probabilities", "Use 1 for good and 0 for bad."

    def losses(self, rewards_N: Tensor, batch: Batch, tie_parameter: Tensor | None) -> Tensor:
        """See `plaudit.losses.binary_cross_entropy_loss`."""
        return losses.binary_cross_entropy_loss(rewards_N, batch["scores"], label_smoothing=self.label_smoothing)


_ALL = (BradleyTerry, ScaledBradleyTerry, RaoKupper, Davidson, Hinge, PlackettLuce, Regression, BinaryCrossEntropy)
OBJECTIVES: dict[str, type[Any]] = {objective.name: objective for objective in _ALL}
assert tuple(OBJECTIVES) == get_args(ObjectiveName)


def make_objective(name: str, *, label_smoothing: float = 0.0, top_k: int | None = None) -> Objective:
    """Makes the objective of a name; raises `ConfigError` where there is none, or it does not have an option."""
    if name not in OBJECTIVES:
        fix = f"Use auto or one of {', '.join(OBJECTIVES)}."
        raise ConfigError(f"there is no objective {name!r}", field="objective", fix=fix)
    given = {option: value for option, value in (("label_smoothing", label_smoothing), ("top_k", top_k)) if value}
    options_of = {known: {field.name for field in fields(objective)} for known, objective in OBJECTIVES.items()}
    for option in given:
        if option not in options_of[name]:
            able = [known for known, options in options_of.items() if option in options]
            setting = {"label_smoothing": "label_smoothing_factor", "top_k": "plackett_luce_top_k"}[option]
            message = f"`{setting}` is set, which the objective {name} does not have"
            raise ConfigError(message, field=setting, fix=f"Remove `{setting}`, or use {' or '.join(able)}.")
    objective: Objective = OBJECTIVES[name](**given)
    return objective


def objectives_for(row_kinds: Collection[RowKind], columns: Iterable[str]) -> list[str]:
    """Returns the names of the objectives that learn from all of these kinds of rows and columns of `PAIR_COLUMNS`.

    >>> objectives_for(["pairs", "ranks"], ["tie"])
    ['rao_kupper', 'davidson']
    """
    return [
        name
        for name, objective in OBJECTIVES.items()
        if objective.row_kinds >= set(row_kinds) and objective.columns >= set(columns)
    ]


def choose_objective(row_kinds: Collection[RowKind], columns: Collection[str]) -> tuple[str, str]:
    """Returns the name of the objective for a data set, and why; raises `ConfigError` where none reads all rows.

    >>> choose_objective(["pairs"], ["margin"])[0], choose_objective(["pairs"], ["tie"])[0]
    ('bradley_terry', 'rao_kupper')
    """
    fitting = objectives_for(row_kinds, columns)
    if not fitting:
        fix = "Train on them one after the other, or remove some of them."
        raise ConfigError(_nothing_fits(row_kinds, columns), fix=fix)
    found = " and ".join([*sorted(row_kinds), *(f"`{column}`" for column in sorted(columns))])
    return fitting[0], f"the data has {found}" if found else "the data is tokenised"


def check_objective(name: str, row_kinds: Collection[RowKind], columns: Collection[str], dataset_name: str) -> None:
    """Raises `ConfigError` where an objective cannot learn from all rows of a data set."""
    objective = OBJECTIVES[name]
    if "pairs" in row_kinds and (missing := sorted(objective.needs - set(columns))):
        message = f"the objective {name} needs `{missing[0]}`, and the pairs of the {dataset_name} data have none"
        raise ConfigError(message, field=missing[0], fix=f"Add a column `{missing[0]}`, or use bradley_terry.")
    unread = [ROW_KIND_NAMES[row_kind] for row_kind in sorted(set(row_kinds) - objective.row_kinds)]
    unread += [f"the column `{column}`" for column in sorted(set(columns) - objective.columns)]
    if unread:
        fitting = objectives_for(row_kinds, columns)
        fix = f"Use {' or '.join(fitting)}" if fitting else _nothing_fits(row_kinds, columns)
        message = f"the objective {name} cannot learn from {' and '.join(unread)} of the {dataset_name} data"
        raise ConfigError(message, fix=fix + (f", or remove {unread[0]}." if columns else "."))


def _nothing_fits(row_kinds: Collection[RowKind], columns: Collection[str]) -> str:
    parts = [f"{ROW_KIND_NAMES[kind]}: {', '.join(objectives_for([kind], []))}" for kind in sorted(row_kinds)]
    parts += [f"`{column}`: {', '.join(objectives_for([], [column]))}" for column in sorted(columns)]
    return "No objective can learn from all of it: " + "; ".join(parts)
