"""`RewardModel`: a trained reward model, ready to be used."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from plaudit.data.parse import is_one_row, kind_of
from plaudit.data.report import ScoringOverlong
from plaudit.errors import DataError
from plaudit.inference.engine import (
    OnError,
    Scorer,
    UncertainReward,
    check_settings,
    compared,
    load_ensemble,
    std_of,
)
from plaudit.model.calibration import FILE_NAME as CALIBRATION_FILE
from plaudit.model.calibration import RewardCalibration, load_calibration
from plaudit.model.load import Source, default_device, load_reward_model, load_tokenizer_of
from plaudit.model.shared_prefix import BatchLayout
from plaudit.schema import Text

logger = logging.getLogger("plaudit")


class RankedResponse(NamedTuple):
    """One of several responses to a prompt, with its place among those that were passed in.

    Attributes:
        response: As it was passed in.
        reward: Its reward.
        position: Its place, counted from 0.
    """

    response: Any
    reward: float
    position: int


class UncertainResponse(NamedTuple):
    """One of several responses to a prompt, with how sure its reward is among those of the others.

    Attributes:
        response: As it was passed in.
        reward: Its reward.
        position: Its place, counted from 0.
        std: Standard deviation, over the members of the ensemble, of its reward less the mean of all responses'.
        lower_bound: ``reward - k * std``, by which responses are ranked.
    """

    response: Any
    reward: float
    position: int
    std: float
    lower_bound: float


class RewardModel(Scorer):
    """A trained reward model, ready to be used: `from_pretrained` loads one, the methods score, rank and compare.

    To wrap a model that is loaded already, call the class as :class:`~plaudit.inference.engine.Scorer` says.
    """

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        quantization_config: Any = None,
        batch_layout: BatchLayout = "auto",
        max_tokens_per_batch: int | None = None,
        max_length: int | None = None,
        overlong: ScoringOverlong = "error",
        calibration: RewardCalibration | Literal["stored"] | None = "stored",
        merge_adapter: bool = False,
        processing_class: PreTrainedTokenizerBase | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> RewardModel:
        """Load a reward model: any sequence-classification checkpoint with one output, or an adapter of one.

        Args:
            name_or_path: A folder, or a model id on the Hub.
            device: Where it goes; by default the accelerator, if there is one.
            dtype: What its weights are stored in; ``"auto"`` is that of the checkpoint. By default float32 on a CPU,
                and ``"auto"`` elsewhere. Rewards are read in float32 in any case.
            quantization_config: Load it quantised, for example with bitsandbytes.
            batch_layout: See `Scorer`.
            max_tokens_per_batch: See `Scorer`.
            max_length: See `Scorer`.
            overlong: See `Scorer`.
            calibration: ``"stored"`` applies the `reward_calibration.json` beside the model, if there is one, and
                says so in the log; None leaves it alone.
            merge_adapter: Merge an adapter into the weights under it, which is faster, and rounds in half precision.
            processing_class: The tokenizer; by default the one beside the model, or beside an adapter's base model.
            revision: Branch, tag or commit on the Hub.
            trust_remote_code: Allow model and tokenizer code from the Hub.

        Raises:
            ConfigError: There is no reward model there: a language model, a classifier of several labels, or a
                checkpoint that lacks its head.
        """
        check_settings(batch_layout, max_tokens_per_batch, max_length, overlong)
        source = Source(str(name_or_path), revision, trust_remote_code)
        model = load_reward_model(
            source,
            device=default_device() if device is None else torch.device(device),
            dtype=dtype,
            quantization_config=quantization_config,
            merge_adapter=merge_adapter,
        )
        load_ensemble(model, source.name, revision)
        if processing_class is None:
            processing_class = load_tokenizer_of(source)
        if calibration == "stored":
            calibration = load_calibration(source.name, revision)
            if calibration is not None:
                _say_calibration(calibration)
        return cls(
            model,
            processing_class,
            batch_layout=batch_layout,
            max_tokens_per_batch=max_tokens_per_batch,
            max_length=max_length,
            overlong=overlong,
            calibration=calibration,
            name=source.name,
        )

    def rank(
        self,
        prompt: Text | None,
        responses: Sequence[Any],
        *,
        tools: Sequence[Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        uncertainty: bool = False,
        k: float = 1.0,
    ) -> list[Any]:
        """Some responses to one prompt, the best first; equal ones in the order given.

        Args:
            prompt: Text, or a list of messages; None where the responses hold whole conversations.
            responses: Texts, or lists of messages; to a prompt of messages, a text is what the assistant says.
            tools: JSON schemas of the tools that the conversation may call.
            chat_template_kwargs: Further variables for the chat template.
            uncertainty: Rank by a lower bound of the reward; the model must have an ensemble.
            k: How many standard deviations below the reward that is.

        Returns:
            A `RankedResponse` for each; with `uncertainty` an `UncertainResponse`.

        Raises:
            DataError: A response cannot be scored.
            ConfigError: The model has no ensemble, and `uncertainty` was asked for.
        """
        if isinstance(responses, str | Mapping):
            raise DataError(f"is {kind_of(responses)}, not a list of responses", field="responses", fix="Pass a list.")
        said = list(responses)
        if not said:
            return []
        row = _row_of(prompt, {"tools": tools, "chat_template_kwargs": chat_template_kwargs})
        row["responses"] = [_reply(prompt, one) for one in said]
        if not uncertainty:
            rewarded = zip(said, self.score(row), range(len(said)), strict=True)
            return _sorted([RankedResponse(*one) for one in rewarded], "reward")
        found = self.score(row, uncertainty=True, k=k)
        of_response = zip(said, found.mean, range(len(said)), std_of(compared(found.members)), strict=True)
        return _sorted([UncertainResponse(*one, one[1] - k * one[3]) for one in of_response], "lower_bound")

    def best_of_n(self, prompt: Text | None, responses: Sequence[Any], **options: Any) -> Any:
        """The best of some responses to one prompt; of equal ones the first.

        Args:
            prompt: As for `rank`.
            responses: As for `rank`.
            options: As for `rank`.

        Raises:
            DataError: There is no response, or none could be scored.
        """
        ranked = self.rank(prompt, responses, **options)
        if not ranked or math.isnan(ranked[0].reward):
            problem = "is empty" if not ranked else "holds nothing that could be scored"
            raise DataError(problem, field="responses", fix="Pass at least one response within `max_length`.")
        return ranked[0]

    def margin(
        self,
        pairs: Any,
        *,
        progress: bool = False,
        errors: OnError = "raise",
        uncertainty: bool = False,
        k: float = 1.0,
    ) -> Any:
        """How much more reward ``chosen`` gets than ``rejected``.

        Args:
            pairs: Rows with ``chosen`` and ``rejected``, or a single one.
            progress: Show a progress bar.
            errors: As for `score`.
            uncertainty: Give an :class:`~plaudit.inference.engine.UncertainReward` of the margins: how far members
                disagree about the difference, not about either reward. The model must have an ensemble.
            k: How many standard deviations below the mean its ``lower_bound`` is.

        Returns:
            A number for each pair; for a single one, a number.

        Raises:
            DataError: A row is no pair, or cannot be scored.
            ConfigError: The model has no ensemble, and `uncertainty` was asked for.
        """
        alone = is_one_row(pairs)
        margins = self._margins([pairs] if alone else pairs, progress, errors, k if uncertainty else None)
        if alone:
            return margins[0]
        return UncertainReward.together(margins) if uncertainty else margins

    def _margins(self, pairs: Any, progress: bool, errors: OnError, k: float | None) -> list[Any]:
        pairs = pairs if hasattr(pairs, "__len__") else list(pairs)
        for number, row in enumerate(pairs):
            if not isinstance(row, Mapping) or not _is_pair(row):
                raise DataError("is no pair", row=number, fix="Give each row `chosen` and `rejected`.")
        scores = self._scores(pairs, progress, errors, k)
        if k is not None:
            return [one.margin(k) for one in scores]
        return [chosen - rejected for chosen, rejected in scores]

    def probability(self, pairs: Any, *, progress: bool = False, errors: OnError = "raise") -> Any:
        r"""Probability that ``chosen`` is better than ``rejected``.

        .. math:: P = \sigma((r_\text{chosen} - r_\text{rejected}) / t)

        with the temperature t of the calibration, 1 where there is none: what the Bradley-Terry loss learns.

        Args:
            pairs: As for `margin`.
            progress: Show a progress bar.
            errors: As for `score`.

        Raises:
            DataError: A row is no pair, or cannot be scored.
        """
        calibration = self.calibration or RewardCalibration()
        margins = self.margin(pairs, progress=progress, errors=errors)
        if isinstance(margins, list):
            return [calibration.probability(one) for one in margins]
        return calibration.probability(margins)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """Rewards of completions, called as trainers such as TRL's GRPO call a reward function.

        Args:
            prompts: Texts, or lists of messages.
            completions: One for each prompt: texts, or lists of messages.
            columns: Other columns of the data: lists of ``tools`` or ``chat_template_kwargs`` are read, the rest not.
        """
        prompts, completions = list(prompts), list(completions)
        if len(prompts) != len(completions):
            raise DataError(
                f"{len(completions)} completions for {len(prompts)} prompts", fix="Pass one prompt for each completion."
            )
        beside = {
            name: values
            for name in ("tools", "chat_template_kwargs")
            if isinstance(values := columns.get(name), list | tuple) and len(values) == len(prompts)
        }
        rows = [
            {
                **_row_of(prompt, {name: values[index] for name, values in beside.items()}),
                "completion": _reply(prompt, completion),
            }
            for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]
        rewards: list[float] = self.score(rows)
        return rewards


def _sorted(responses: list[Any], by: str) -> list[Any]:
    """The best first. NaN is neither above nor below anything: last."""

    def key(one: Any) -> tuple[bool, float]:
        value = getattr(one, by)
        return math.isnan(value), 0.0 if math.isnan(value) else -value

    return sorted(responses, key=key)


def _row_of(prompt: Text | None, beside: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: value for name, value in beside.items() if value is not None}
    return row if prompt is None else {"prompt": prompt, **row}


def _reply(prompt: Text | None, response: Any) -> Any:
    """A response in the form of its prompt: a text after messages is what the assistant says."""
    if isinstance(response, str) and isinstance(prompt, list | tuple):
        return [{"role": "assistant", "content": response}]
    return response


def _is_pair(row: Mapping[str, Any]) -> bool:
    return any(row.get(name) is not None for name in ("chosen", "rejected", "chosen_ids"))


def _say_calibration(calibration: RewardCalibration) -> None:
    changed = (
        f"rewards are {calibration.scale:g} times the model's plus {calibration.shift:g}, "
        if calibration.changes_rewards
        else ""
    )
    logger.log(
        logging.WARNING if changed else logging.INFO,
        "%s is applied: %stemperature %g (%s).",
        CALIBRATION_FILE,
        changed,
        calibration.temperature,
        calibration.how or "it does not say how it was found",
    )
