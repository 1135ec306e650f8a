"""The ways of running a model in this process: plain transformers, the pipeline, the scorer, and its merged export."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase, pipeline

from plaudit.data.encode import ConversationEncoder, TextEncoder
from plaudit.data.fast_encode import RENDER_ERRORS
from plaudit.errors import PlauditError
from plaudit.export.export import plain_rewards
from plaudit.inference.reward_model import RewardModel
from plaudit.model.golden import GoldenRow, GoldenRows, chat_template_hash
from plaudit.model.load import Source, load_reward_model, load_tokenizer_of
from plaudit.model.peft import base_model_of
from plaudit.schema import Example
from plaudit.training.artifacts import computed_in
from plaudit.verification.observations import Observation

ERRORS = (PlauditError, *RENDER_ERRORS, RuntimeError, OSError, ImportError, NotImplementedError)
"""What a way can fail with: it is reported, and the others are tried."""
_LAYOUTS: tuple[Literal["padded", "shared_prefix"], ...] = ("padded", "shared_prefix")


@dataclass(frozen=True)
class LocalModel:
    """What is run here, and how.

    Attributes:
        source: Where the model comes from.
        golden: Its golden rows.
        device: Where it goes.
        dtype: What its weights are stored in.
        max_tokens_per_batch: Tokens of the scorer's larger batches (None: its default).
    """

    source: Source
    golden: GoldenRows
    device: torch.device
    dtype: str
    max_tokens_per_batch: int | None = None

    @property
    def rows(self) -> tuple[int, ...]:
        """Places of all golden rows."""
        return tuple(range(len(self.golden.rows)))

    @property
    def rows_with_text(self) -> tuple[int, ...]:
        """Places of the golden rows whose text is known."""
        return tuple(row for row in self.rows if self.golden.rows[row].text is not None)

    def load(self, folder: str | Path | None = None) -> Any:
        """The model as transformers (and peft, for an adapter) loads it, without any change of ours to its forward.

        Args:
            folder: Another folder to load from.
        """
        source = self.source if folder is None else Source(str(folder), None, self.source.trust_remote_code)
        return load_reward_model(source, device=self.device, dtype=self.dtype)


def tried(path: str, rows: Sequence[int], run: Callable[[], Observation]) -> Observation:
    """What a way gives, or why it fails.

    Args:
        path: The way, in words.
        rows: The golden rows that are sent.
        run: Runs it.
    """
    try:
        return run()
    except ERRORS as error:
        text = str(error) if isinstance(error, PlauditError) else f"{type(error).__name__}: {error}"
        return Observation(path, tuple(rows), problem=text)


# ---- token ids ------------------------------------------------------------------------------------------------


def example_of(row: GoldenRow) -> Example:
    """A golden row as what is rendered.

    Args:
        row: A row whose text or messages are known.
    """
    if row.messages is None:
        return Example(responses=(row.text or "",))
    return Example(
        responses=(list(row.messages),), tools=row.tools, chat_template_kwargs=dict(row.chat_template_kwargs)
    )


def token_ids(local: LocalModel, tokenizer: PreTrainedTokenizerBase) -> Observation:
    """Token ids of the golden rows with the tokenizer and chat template that are there now.

    Args:
        local: What is verified.
        tokenizer: The model's tokenizer.
    """
    path, rows = "chat template and tokenizer", local.rows_with_text
    if not rows:
        return Observation(path, skipped="the golden rows are token ids without their text")

    def run() -> Observation:
        found = []
        for place in rows:
            example = example_of(local.golden.rows[place])
            encoder = (ConversationEncoder if example.conversational else TextEncoder)(tokenizer)
            found.append(tuple(encoder.tokenize(encoder.render([example])[0])[0]))
        return Observation(path, rows, ids=tuple(found), chat_template=chat_template_hash(tokenizer))

    return tried(path, rows, run)


def special_tokens_wanted(row: GoldenRow, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer has to add its special tokens to the text of a golden row, to get its token ids.

    Args:
        row: A row whose text is known.
        tokenizer: The tokenizer.
    """
    added = row.messages is None
    for wanted in (added, not added):
        if text_ids(row, tokenizer, add_special_tokens=wanted) == row.ids:
            return wanted
    return added


def text_ids(row: GoldenRow, tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool) -> tuple[int, ...]:
    """Token ids of a golden row's text.

    Args:
        row: A row whose text is known.
        tokenizer: The tokenizer.
        add_special_tokens: As the tokenizer takes it.
    """
    ids: Any = tokenizer(row.text or "", add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
    return tuple(ids)


# ---- rewards --------------------------------------------------------------------------------------------------


def transformers_paths(local: LocalModel, model: Any, tokenizer: PreTrainedTokenizerBase) -> Iterator[Observation]:
    """Plain transformers: one by one, as a padded batch, and the pipeline.

    Args:
        local: What is verified.
        model: The model as transformers loads it.
        tokenizer: Its tokenizer.
    """
    dtype, rows = computed_in(base_model_of(model)), local.rows
    ids = [row.ids for row in local.golden.rows]

    def one_by_one() -> Observation:
        rewards = plain_rewards(model, ids)
        return Observation("transformers, one by one", rows, tuple(rewards), dtype=dtype)

    def padded() -> Observation:
        path = "transformers, padded batch"
        if tokenizer.pad_token_id is None:
            return Observation(path, skipped="the tokenizer has no padding token")
        batch = tokenizer.pad({"input_ids": [list(one) for one in ids]}, return_tensors="pt")
        with torch.inference_mode():
            logits = model(**{name: value.to(local.device) for name, value in batch.items()}).logits
        return Observation(path, rows, tuple(logits.float().flatten().tolist()), dtype=dtype)

    yield tried("transformers, one by one", rows, one_by_one)
    yield tried("transformers, padded batch", rows, padded)
    yield tried(_PIPELINE, local.rows_with_text, lambda: _pipeline(local, base_model_of(model), tokenizer, dtype))


_PIPELINE = "transformers pipeline, from text"


def _pipeline(local: LocalModel, model: Any, tokenizer: PreTrainedTokenizerBase, dtype: str) -> Observation:
    rows = local.rows_with_text
    if not rows:
        return Observation(_PIPELINE, skipped="the golden rows are token ids without their text")
    if not hasattr(model, "can_generate"):
        return Observation(_PIPELINE, skipped=f"there is no pipeline for a {type(model).__name__}")
    make: Any = pipeline  # its signature knows only concrete tokenizers
    classify = make("text-classification", model=model, tokenizer=tokenizer)
    rewards, ids = [], []
    for place in rows:
        row = local.golden.rows[place]
        special = special_tokens_wanted(row, tokenizer)
        ids.append(text_ids(row, tokenizer, add_special_tokens=special))
        answer = classify(row.text, function_to_apply="none", add_special_tokens=special)
        rewards.append(float(answer[0]["score"]))
    return Observation(_PIPELINE, rows, tuple(rewards), tuple(ids), dtype=dtype)


def scorer_paths(local: LocalModel, model: Any, tokenizer: PreTrainedTokenizerBase) -> Iterator[Observation]:
    """The scorer: both layouts, one response at a time and all together, and from text.

    Args:
        local: What is verified.
        model: The model; it takes the scorer's layouts, and is of no use to others afterwards.
        tokenizer: Its tokenizer.
    """
    dtype = computed_in(base_model_of(model))
    groups: dict[int, list[int]] = {}
    for place, row in enumerate(local.golden.rows):
        groups.setdefault(row.example, []).append(place)
    asked = [{"response_ids": [list(local.golden.rows[place].ids) for place in places]} for places in groups.values()]
    order = [place for places in groups.values() for place in places]
    for layout in _LAYOUTS:
        for name, tokens in (("one by one", 1), ("together", local.max_tokens_per_batch)):
            path = f"scorer, {layout}, {name}"

            def run(layout: Any = layout, tokens: int | None = tokens, path: str = path) -> Observation:
                scorer = RewardModel(model, tokenizer, batch_layout=layout, max_tokens_per_batch=tokens)
                rewards = [reward for row in scorer.score(asked) for reward in row]
                return Observation(path, tuple(order), tuple(rewards), dtype=dtype)

            yield _unless_impossible(tried(path, order, run))
    rows = local.rows_with_text
    if rows:
        yield tried(_FROM_TEXT, rows, lambda: _scorer_from_text(local, model, tokenizer, dtype))


_FROM_TEXT = "scorer, from messages or text"


def _unless_impossible(seen: Observation) -> Observation:
    """A model that the shared layout was never meant for is no fault of the checkpoint."""
    if "batch_layout='shared_prefix' cannot be used" in seen.problem:
        return replace(seen, problem="", skipped=seen.problem.partition("\n")[0])
    return seen


def _scorer_from_text(local: LocalModel, model: Any, tokenizer: Any, dtype: str) -> Observation:
    rows = local.rows_with_text
    rewards = RewardModel(model, tokenizer).score([row_to_score(local.golden.rows[place]) for place in rows])
    return Observation(_FROM_TEXT, rows, tuple(rewards), dtype=dtype)


def row_to_score(row: GoldenRow) -> dict[str, Any]:
    """A golden row in the data format of a conversation or text.

    Args:
        row: A row whose text is known.
    """
    if row.messages is None:
        return {"response": row.text}
    beside = {"tools": row.tools, "chat_template_kwargs": dict(row.chat_template_kwargs)}
    return {"messages": list(row.messages), **{name: value for name, value in beside.items() if value}}


def export_path(local: LocalModel) -> Observation:
    """The merged export, loaded again by plain transformers.

    Args:
        local: What is verified.
    """
    path = "merged export, reloaded" if local.source.is_adapter else "export, reloaded"

    def run() -> Observation:
        from plaudit.export.export import export_model

        with tempfile.TemporaryDirectory(prefix="plaudit-verify-") as folder:
            exported = Path(folder) / "export"
            export_model(
                local.source.name,
                exported,
                merge=True,
                raw=True,
                dtype="float32",  # rounding to what the checkpoint is stored in is no difference between the ways
                device=local.device,
                revision=local.source.revision,
                trust_remote_code=local.source.trust_remote_code,
            )
            model = local.load(exported)
            rewards = plain_rewards(model, [row.ids for row in local.golden.rows])
        return Observation(path, local.rows, tuple(rewards), dtype=computed_in(base_model_of(model)))

    if local.golden.dtype == "quantized":
        return Observation(path, skipped="the golden rewards are those of a quantised model")
    return tried(path, local.rows, run)


def tokenizer_of(local: LocalModel) -> PreTrainedTokenizerBase:
    """The tokenizer beside the model.

    Args:
        local: What is verified.

    Raises:
        ConfigError: There is none.
    """
    return load_tokenizer_of(local.source)
