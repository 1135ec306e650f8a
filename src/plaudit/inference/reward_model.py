"""`RewardModel`: a trained reward model that scores, ranks and compares responses."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm  # type: ignore[import-untyped]
from transformers import PreTrainedTokenizerBase

from plaudit.data.parse import is_one_row, kind_of
from plaudit.data.prepare import PreparedRow, RowPreparer
from plaudit.data.report import DataReport, ScoringOverlong
from plaudit.data.schemas import rows_to_score
from plaudit.errors import ConfigError, DataError
from plaudit.inference.engine import ScoringEngine, UncertainReward, std_of
from plaudit.model import aux_heads, find_file, load
from plaudit.model.calibration import FILE_NAME as CALIBRATION_FILE
from plaudit.model.calibration import RewardCalibration, load_calibration
from plaudit.model.head import install_reward_forward
from plaudit.model.peft import base_model_of, require_sequence_classification
from plaudit.model.shared_prefix import BatchLayout, make_forward
from plaudit.schema import Text

logger = logging.getLogger("plaudit")
OnError: TypeAlias = Literal["raise", "nan"]
"""What happens to a row that cannot be scored: an error, or NaN in its place."""
_TOKENS_ON_CPU, _TOKENS_ELSEWHERE = 2048, 32768


class RankedResponse(NamedTuple):
    """One of several responses to a prompt."""

    response: Any  # as it was passed in
    reward: float
    position: int  # index among the responses that were passed in


class UncertainResponse(NamedTuple):
    """One of several responses to a prompt, with the uncertainty of its reward relative to the others."""

    response: Any  # as it was passed in
    reward: float
    position: int  # index among the responses that were passed in
    std: float  # over the members of the ensemble, of its reward minus the mean of all responses
    lower_bound: float  # reward - k * std, by which responses are ranked


class RewardModel:
    """A trained reward model: `from_pretrained` loads one, the methods score, rank and compare responses.

    Call the class itself to wrap a model that is already loaded.

    Args:
        model: A sequence-classification model with one output, or a PEFT model around one. It is changed in place:
            it is put into evaluation mode, reads rewards in float32, and takes the batch layout.
        processing_class: Its tokenizer; it is copied, not changed.
        batch_layout: ``"shared_prefix"`` computes each prompt once, ``"padded"`` pads; ``"auto"`` shares prompts where
            the model allows it.
        max_tokens_per_batch: Most tokens of a batch, as computed: padding included, shared prompts once. The default
            is 2,048 on a CPU and 32,768 elsewhere.
        max_length: Most tokens of a response with its prompt; by default the context length of the model.
        overlong: What happens to a longer row: ``"error"``, ``"truncate_left"`` (each response keeps its last
            `max_length` tokens, as if it stood alone), ``"truncate_right"`` (its first; an error where nothing of a
            response is left), or ``"nan"``. The log counts the last three.
        calibration: Maps the head's rewards to those reported; None reports them as they are.
        schema: Public schema by which rows are read: ``"auto"`` finds it by columns and first rows, ``"none"`` reads
            them as they are.
        name: Name of the model in messages.

    The arguments are attributes too, with the values in use: `processing_class` is the copy with its padding token,
    `max_length` the limit in tokens (None: no limit). `device` is the device of the model.

    Raises:
        ConfigError: The model is not a reward model, or a setting does not suit it.
    """

    def __init__(
        self,
        model: nn.Module,
        processing_class: PreTrainedTokenizerBase,
        *,
        batch_layout: BatchLayout = "auto",
        max_tokens_per_batch: int | None = None,
        max_length: int | None = None,
        overlong: ScoringOverlong = "error",
        calibration: RewardCalibration | None = None,
        schema: str = "auto",
        name: str = "",
    ) -> None:
        check_settings(batch_layout, max_tokens_per_batch, max_length, overlong)
        require_sequence_classification(model)
        self.model: Any = model.eval()
        base_model = base_model_of(model)
        load.require_reward_model(base_model)
        config = base_model.config.get_text_config()
        if config.pad_token_id in load.eos_token_ids(processing_class, config):
            logger.warning(
                "This checkpoint pads with its eos token. Plaudit reads rewards at the last token of each response, as "
                "vLLM and SGLang do; transformers reads the token before a trailing eos, and returns another reward."
            )
        self.processing_class = load.set_pad_token(base_model, processing_class, may_resize=False)
        reads_positions = install_reward_forward(base_model)
        forward = make_forward(model, batch_layout, reads_positions=reads_positions)
        self.device: torch.device = base_model.device
        if max_length is None:
            max_length = load.context_length(base_model, self.processing_class, decoder=reads_positions)
        self.max_length, self.overlong, self.calibration, self.schema = max_length, overlong, calibration, schema
        tokens = max_tokens_per_batch or (_TOKENS_ON_CPU if self.device.type == "cpu" else _TOKENS_ELSEWHERE)
        pad_token_id: Any = self.processing_class.pad_token_id
        self._engine = ScoringEngine(self.model, forward, pad_token_id, tokens, calibration)
        self._preparer = RowPreparer(self.processing_class, max_length, overlong)
        embeddings = base_model.get_input_embeddings()
        self._vocabulary: int = getattr(embeddings, "num_embeddings", 0) or load.embedding_rows(base_model)
        self._known_suspicions: set[str] = set()
        self.name = name or str(getattr(base_model.config, "name_or_path", "") or "reward_model")
        # Trainers that take reward functions, such as TRL's, ask for their names.
        self.__name__ = Path(self.name).name

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
        schema: str = "auto",
        merge_adapter: bool = False,
        processing_class: PreTrainedTokenizerBase | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> RewardModel:
        """Loads a reward model: any sequence-classification checkpoint with one output, or an adapter of one.

        Args:
            name_or_path: A folder, or a model id on the Hub.
            device: Device to load it on; by default the accelerator, if there is one.
            dtype: Type of the stored weights; ``"auto"`` is that of the checkpoint. The default is float32 on a CPU
                and ``"auto"`` elsewhere. Rewards are read in float32 in any case.
            quantization_config: Quantises the model, for example with bitsandbytes.
            batch_layout: See `RewardModel`, as for `max_tokens_per_batch`, `max_length` and `overlong`.
            calibration: ``"stored"`` applies the `reward_calibration.json` beside the model, if there is one, and
                logs it; None ignores the file.
            schema: See `RewardModel`.
            merge_adapter: Merge an adapter into the weights, which is faster, and rounds in half precision.
            processing_class: The tokenizer; by default the one beside the model, or beside an adapter's base model.
            revision: Branch, tag or commit on the Hub.
            trust_remote_code: Allow model and tokenizer code from the Hub.

        Raises:
            ConfigError: There is no reward model: a language model, a classifier of several labels, or a checkpoint
                without its head.
        """
        check_settings(batch_layout, max_tokens_per_batch, max_length, overlong)
        source = load.Source(str(name_or_path), revision, trust_remote_code)
        device = load.choose_device(device)
        model = load.load_reward_model(
            source, device=device, dtype=dtype, quantization_config=quantization_config, merge_adapter=merge_adapter
        )
        _load_ensemble(model, source.name, revision)
        if processing_class is None:
            processing_class = load.load_tokenizer_of(source)
        if calibration == "stored":
            calibration = load_calibration(source.name, revision)
            if calibration is not None:
                changed = f"rewards are {calibration.scale:g} times the model's plus {calibration.shift:g}, "
                logger.log(
                    logging.WARNING if calibration.changes_rewards else logging.INFO,
                    "%s is applied: %stemperature %g (%s).",
                    CALIBRATION_FILE,
                    changed if calibration.changes_rewards else "",
                    calibration.temperature,
                    calibration.how or "it does not say how it was found",
                )
        return cls(
            model,
            processing_class,
            batch_layout=batch_layout,
            max_tokens_per_batch=max_tokens_per_batch,
            max_length=max_length,
            overlong=overlong,
            calibration=calibration,
            schema=schema,
            name=source.name,
        )

    @property
    def batch_layout(self) -> str:
        """The layout that batches are computed in: ``"padded"`` or ``"shared_prefix"``."""
        return self._engine.forward.layout

    @property
    def batch_layout_reason(self) -> str:
        """Why batches are computed in that layout."""
        return self._engine.forward.reason

    @property
    def max_tokens_per_batch(self) -> int:
        """Most tokens of a batch; less than the setting after the device ran out of memory."""
        return self._engine.max_tokens

    @property
    def dtype(self) -> torch.dtype:
        """Type that the model computes in below its head."""
        dtype: torch.dtype = base_model_of(self.model).dtype
        return dtype

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, device={str(self.device)!r}, batch_layout={self.batch_layout!r})"

    # --- rewards ------------------------------------------------------------------------------------------------

    def score(
        self,
        rows: Any,
        *,
        progress: bool = False,
        errors: OnError = "raise",
        uncertainty: bool = False,
        k: float = 1.0,
    ) -> Any:
        """Returns the rewards of rows, in their order and shaped like them.

        Args:
            rows: Rows, or a single one. A row is a text, a conversation (a list of messages), or a mapping with the
                columns of the data formats. One response gives a number, ``responses`` give a list of numbers,
                ``chosen`` and ``rejected`` give a tuple of two; several rows give a list of these.
            progress: Show a progress bar.
            errors: ``"raise"`` raises for the first row that cannot be scored, before any is computed; ``"nan"`` puts
                NaN in its place, and the log counts such rows.
            uncertainty: Return an :class:`~plaudit.inference.engine.UncertainReward` instead, whose ``mean``,
                ``std`` and ``lower_bound`` are each shaped like the rows. The model must have an ensemble.
            k: Number of standard deviations between the mean and ``lower_bound``.

        Raises:
            DataError: A row cannot be scored; the error names the row and the field.
            ConfigError: The model has no ensemble.
        """
        several, single = _several(rows, "rows")
        scores = self._score(rows_to_score(several, self.schema), progress, errors, k if uncertainty else None)
        if single:
            return scores[0]
        return UncertainReward.together(scores) if uncertainty else scores

    def _score(self, rows: Iterable[Any], progress: bool, errors: OnError, k: float | None) -> list[Any]:
        self._check(errors, k)
        windows = list(self._windows(rows, errors))  # every row is read before any reward is computed
        total = sum(row.responses for window in windows for row in window if row.ids is not None)
        return list(self._rewards(windows, k, progress, total))

    def _rewards(
        self, windows: Iterable[list[PreparedRow]], k: float | None, progress: bool, total: int | None = None
    ) -> Iterator[Any]:
        report = DataReport("rows", self.max_length, self.overlong, "score")
        with tqdm(total=total, unit=" responses", desc="Scoring", disable=not progress) as bar:
            for window in windows:
                for row in window:
                    report.add(row.index, row.flags, row.error)
                yield from self._engine.score(window, k, bar.update)
        report.log_unless_known(self._known_suspicions)

    def score_stream(
        self,
        rows: Iterable[Any],
        *,
        progress: bool = False,
        errors: OnError = "raise",
        window: int | None = None,
        uncertainty: bool = False,
        k: float = 1.0,
    ) -> Iterator[Any]:
        """Yields the rewards of any number of rows, in bounded memory.

        Args:
            rows: Any iterable of rows; it is read no further than the next window needs.
            progress: Show a progress bar.
            errors: As for `score`; a row that cannot be scored raises when its window is reached.
            window: Rows that are read, sorted by length and computed at a time; by default as many as have about a
                thousand responses, fewer where texts are very long.
            uncertainty: As for `score`: yield an `UncertainReward` for each row.
            k: As for `score`.

        Raises:
            DataError: A row cannot be scored.
            ConfigError: The model has no ensemble, and `uncertainty` is set.
        """
        rows, single = _several(rows, "rows")
        if single:
            raise ConfigError("`rows` is a single row", field="rows", fix="Pass an iterable of rows, or use `score`.")
        if window is not None and window < 1:
            raise ConfigError(f"`window` is {window}", field="window", fix="Use a positive number of rows, or None.")
        caution = k if uncertainty else None
        self._check(errors, caution)  # here, because a generator would raise at its first item only
        return self._rewards(self._windows(rows_to_score(rows, self.schema), errors, window), caution, progress)

    def score_prepared(
        self, rows: Iterable[Any], *, errors: OnError = "raise", k: float | None = None, **source: Any
    ) -> Iterator[tuple[PreparedRow, Any]]:
        """Yields each prepared row with its rewards, and logs nothing.

        `source` may hold ``first_row``, the number of the first row in messages, and ``features``, the column types
        that `datasets` declares. With a `k` the rewards are an `UncertainReward`.
        """
        self._check(errors, k)
        for window in self._windows(rows, errors, **source):
            yield from zip(window, self._engine.score(window, k), strict=True)

    def _windows(
        self, rows: Iterable[Any], errors: OnError, size: int | None = None, **source: Any
    ) -> Iterator[list[PreparedRow]]:
        for window in self._preparer.windows(rows, size, **source):
            for row in window:
                unknown = [index for index, ids in enumerate(row.ids or ()) if max(ids) >= self._vocabulary]
                if row.ids is not None and unknown:
                    message = f"has token id {max(row.ids[unknown[0]])}; the model has {self._vocabulary} tokens"
                    fix = "Use this model's tokenizer, or pass texts."
                    row.error = DataError(message, row=row.index, field=row.fields[unknown[0]], fix=fix)
                    row.ids, row.flags = None, 0
                if row.error is not None and errors == "raise" and not (row.overlong and self.overlong == "nan"):
                    raise row.error
            yield window

    def _check(self, errors: str, k: float | None) -> None:
        if errors not in get_args(OnError):
            raise ConfigError(f"`errors` is {errors!r}", field="errors", fix="Use 'raise' or 'nan'.")
        if k is not None:
            self.require_ensemble(k)

    def require_ensemble(self, k: float) -> None:
        """Raises `ConfigError` if the model has no ensemble, or `k` is not a number of standard deviations."""
        if isinstance(k, bool) or not isinstance(k, int | float) or not 0 <= k < math.inf:
            raise ConfigError(f"`k` is {k!r}", field="k", fix="Use a number of standard deviations, 0 or more.")
        heads = aux_heads.heads_of(base_model_of(self.model))
        if heads is None or heads.ensemble is None:
            fix = (
                "Train the model with `RewardConfig(ensemble_size=8)` (`plaudit train --ensemble_size 8`), and load "
                f"the folder that holds {aux_heads.FILE_NAME}: the model alone has one reward head."
            )
            raise ConfigError(f"{self.name!r} has no ensemble, and so no std", field="uncertainty", fix=fix)

    # --- choices ------------------------------------------------------------------------------------------------

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
        """Sorts responses to one prompt, the best first; equal ones stay in the order given.

        Args:
            prompt: Text, or a list of messages; None where the responses hold whole conversations.
            responses: Texts, or lists of messages. After a prompt of messages, a text is the assistant's message.
            tools: JSON schemas of the tools that the conversation may call.
            chat_template_kwargs: Extra variables for the chat template.
            uncertainty: Rank by a lower bound of the reward; the model must have an ensemble.
            k: Number of standard deviations between the reward and its lower bound.

        Returns:
            A `RankedResponse` for each response; with `uncertainty` an `UncertainResponse`.

        Raises:
            DataError: A response cannot be scored.
            ConfigError: The model has no ensemble, and `uncertainty` is set.
        """
        if isinstance(responses, str | Mapping) or not isinstance(responses, Iterable):
            raise DataError(f"is {kind_of(responses)}, not a list of responses", field="responses", fix="Pass a list.")
        given = list(responses)
        if not given:
            return []
        row = _row_of(prompt, {"tools": tools, "chat_template_kwargs": chat_template_kwargs})
        row["responses"] = [_as_reply(prompt, response) for response in given]
        scores = self._score([row], False, "raise", k if uncertainty else None)[0]
        ranked: list[Any] = []
        if uncertainty:
            # What a member adds to all responses of a prompt says nothing about their order.
            scored_N = ~np.isnan(scores.members).any(axis=1)
            common_K = scores.members[scored_N].mean(axis=0) if scored_N.any() else 0.0
            std_N = std_of(scores.members - common_K)
            for position, (response, reward, std) in enumerate(zip(given, scores.mean, std_N, strict=True)):
                ranked.append(UncertainResponse(response, reward, position, std, reward - k * std))
        else:
            for position, (response, reward) in enumerate(zip(given, scores, strict=True)):
                ranked.append(RankedResponse(response, reward, position))

        field = "lower_bound" if uncertainty else "reward"
        # NaN compares with nothing: it comes last.
        return sorted(ranked, key=lambda response: (math.isnan(getattr(response, field)), -getattr(response, field)))

    def best_of_n(self, prompt: Text | None, responses: Sequence[Any], **options: Any) -> Any:
        """Returns the best response to a prompt; of equal ones the first.

        Args:
            prompt: As for `rank`.
            responses: As for `rank`.
            options: The other arguments of `rank`.

        Raises:
            DataError: There is no response, or none could be scored.
        """
        ranked = self.rank(prompt, responses, **options)
        if not ranked or math.isnan(ranked[0].reward):
            problem = "holds nothing that could be scored" if ranked else "is empty"
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
        """Returns the reward of ``chosen`` minus that of ``rejected``.

        Args:
            pairs: Rows with ``chosen`` and ``rejected``, or a single one.
            progress: Show a progress bar.
            errors: As for `score`.
            uncertainty: Return an :class:`~plaudit.inference.engine.UncertainReward` of the margins: how far the
                members disagree about the difference, not about either reward. The model must have an ensemble.
            k: Number of standard deviations between the mean and ``lower_bound``.

        Returns:
            One number per pair; for a single pair, a number.

        Raises:
            DataError: A row is not a pair, or cannot be scored.
            ConfigError: The model has no ensemble, and `uncertainty` is set.
        """
        several, single = _several(pairs, "pairs")
        rows = list(rows_to_score(several, self.schema))
        for index, row in enumerate(rows):
            if isinstance(row, DataError):
                continue  # its schema cannot read it: told as any other row that cannot be read
            columns = ("chosen", "rejected", "chosen_ids")
            if not isinstance(row, Mapping) or all(row.get(name) is None for name in columns):
                raise DataError("is not a pair", row=index, fix="Give each row `chosen` and `rejected`.")
        scores = self._score(rows, progress, errors, k if uncertainty else None)
        margins = [score.margin(k) if uncertainty else score[0] - score[1] for score in scores]
        if single:
            return margins[0]
        return UncertainReward.together(margins) if uncertainty else margins

    def probability(self, pairs: Any, *, progress: bool = False, errors: OnError = "raise") -> Any:
        r"""Returns the probability that ``chosen`` is better than ``rejected``.

        .. math:: P = \sigma((r_\text{chosen} - r_\text{rejected}) / t)

        with the temperature t of the calibration, or 1 without one, as in the Bradley-Terry loss.

        Args:
            pairs: As for `margin`.
            progress: Show a progress bar.
            errors: As for `score`.

        Raises:
            DataError: A row is not a pair, or cannot be scored.
        """
        calibration = self.calibration or RewardCalibration()
        margins = self.margin(pairs, progress=progress, errors=errors)
        if isinstance(margins, list):
            return [calibration.probability(margin) for margin in margins]
        return calibration.probability(margins)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """Returns the rewards of completions, as trainers such as TRL's GRPO call a reward function.

        Args:
            prompts: Texts, or lists of messages.
            completions: One per prompt: texts, or lists of messages.
            columns: Other columns of the data: lists of ``tools`` or ``chat_template_kwargs`` are read, others are not.
        """
        prompts, completions = list(prompts), list(completions)
        if len(prompts) != len(completions):
            raise DataError(
                f"{len(completions)} completions for {len(prompts)} prompts", fix="Pass one prompt for each completion."
            )
        read = {
            name: values
            for name in ("tools", "chat_template_kwargs")
            if isinstance(values := columns.get(name), list | tuple) and len(values) == len(prompts)
        }
        rows = []
        for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            row = _row_of(prompt, {name: values[index] for name, values in read.items()})
            rows.append({**row, "completion": _as_reply(prompt, completion)})
        rewards: list[float] = self._score(rows, False, "raise", None)
        return rewards


def check_settings(batch_layout: str, max_tokens: int | None, max_length: int | None, overlong: str) -> None:
    """Raises `ConfigError` for a setting of `RewardModel` that no model could use."""
    for name, value, choices in (
        ("batch_layout", batch_layout, get_args(BatchLayout)),
        ("overlong", overlong, get_args(ScoringOverlong)),
    ):
        if value not in choices:
            raise ConfigError(f"`{name}` is {value!r}", field=name, fix=f"Use one of {', '.join(choices)}.")
    for name, number in (("max_tokens_per_batch", max_tokens), ("max_length", max_length)):
        if number is not None and number < 1:
            raise ConfigError(f"`{name}` is {number}", field=name, fix="Use a positive number, or None.")


def _load_ensemble(model: Any, name: str, revision: str | None) -> None:
    """Installs the ensemble that is stored beside a model, if there is one."""
    path = find_file(name, aux_heads.FILE_NAME, revision)
    heads = None if path is None else aux_heads.ensemble_in(Path(path))
    if heads is None or heads.ensemble is None:
        return
    base_model = base_model_of(model)
    width = base_model.config.get_text_config().hidden_size
    if heads.ensemble.in_features != width:
        raise ConfigError(
            f"{path} is for states of width {heads.ensemble.in_features}, and those of {name!r} have {width}",
            fix="Keep the file beside the model that it was trained with, or delete it.",
        )
    if hasattr(base_model, "score"):
        aux_heads.install_training_heads(base_model, heads.eval().requires_grad_(False))


def _several(rows: Any, name: str) -> tuple[Iterable[Any], bool]:
    """Returns several rows, and whether they are a single one; raises `DataError` for what is neither."""
    if is_one_row(rows):
        return [rows], True
    if hasattr(rows, "columns") or not (hasattr(rows, "__iter__") or hasattr(rows, "__getitem__")):
        fix = (
            "Pass a text, a list of messages, a mapping with the columns of the data formats, or an iterable of such "
            "rows; turn a data frame into a `datasets.Dataset`."
        )
        raise DataError(f"is {kind_of(rows)}, and holds no rows", field=name, fix=fix)
    return rows, False


def _row_of(prompt: Text | None, columns: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: value for name, value in columns.items() if value is not None}
    return row if prompt is None else {"prompt": prompt, **row}


def _as_reply(prompt: Text | None, response: Any) -> Any:
    """Turns a text after a prompt of messages into the assistant's message."""
    if isinstance(response, str) and isinstance(prompt, list | tuple):
        return [{"role": "assistant", "content": response}]
    return response
