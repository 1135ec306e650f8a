"""Runs the golden rows in this process: plain transformers, its pipeline, the scorer, and the merged export."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase, pipeline

from plaudit.data.encode import ConversationEncoder, TextEncoder
from plaudit.data.fast_encode import RENDER_ERRORS
from plaudit.errors import ConfigError, PlauditError
from plaudit.export.export import export_model, plain_rewards
from plaudit.inference.reward_model import RewardModel
from plaudit.model.golden import GoldenRow, GoldenRows, chat_template_hash
from plaudit.model.load import Source, load_reward_model
from plaudit.model.peft import base_model_of
from plaudit.schema import Example
from plaudit.training.artifacts import computed_in
from plaudit.verification.diagnosis import Observation

ERRORS = (PlauditError, *RENDER_ERRORS, RuntimeError, OSError, ImportError, NotImplementedError)
"""Errors of one way of running the model, which are reported while the other ways are tried."""
NO_TEXT = "the golden rows are token ids without their text"
_LAYOUTS: tuple[Literal["padded", "shared_prefix"], ...] = ("padded", "shared_prefix")


@dataclass(frozen=True)
class Subject:
    """A model with its golden rows, and how it is run here."""

    source: Source
    golden: GoldenRows
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: str  # of the stored weights
    max_tokens_per_batch: int | None = None  # of the scorer's larger batches; None: its default

    @property
    def rows(self) -> tuple[int, ...]:
        """Indices of all golden rows."""
        return tuple(range(len(self.golden.rows)))

    @property
    def rows_with_text(self) -> tuple[int, ...]:
        """Indices of the golden rows whose text is known."""
        return tuple(row for row in self.rows if self.golden.rows[row].text is not None)


def attempt(path: str, rows: Sequence[int], run: Callable[[], Observation]) -> Observation:
    """Returns the observation of one way, or why it fails."""
    try:
        return run()
    except ERRORS as error:
        if isinstance(error, ConfigError) and error.field == "batch_layout":
            # A model that does not qualify for a layout is no fault of the checkpoint.
            return Observation(path, tuple(rows), skipped=error.summary)
        problem = str(error) if isinstance(error, PlauditError) else f"{type(error).__name__}: {error}"
        return Observation(path, tuple(rows), problem=problem)


def token_ids(subject: Subject) -> Observation:
    """Encodes the golden rows with the current tokenizer and chat template."""
    path, rows, tokenizer = "chat template and tokenizer", subject.rows_with_text, subject.tokenizer
    if not rows:
        return Observation(path, skipped=NO_TEXT)

    def run() -> Observation:
        ids = []
        for row in (subject.golden.rows[index] for index in rows):
            if row.messages is None:
                example = Example(responses=(row.text or "",))
            else:
                variables = dict(row.chat_template_kwargs)
                example = Example((list(row.messages),), tools=row.tools, chat_template_kwargs=variables)
            encoder = (ConversationEncoder if example.conversational else TextEncoder)(tokenizer)
            ids.append(tuple(encoder.tokenize(encoder.render([example])[0])[0]))
        return Observation(path, rows, ids=tuple(ids), chat_template=chat_template_hash(tokenizer))

    return attempt(path, rows, run)


def needs_special_tokens(row: GoldenRow, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer must add special tokens to the text of a golden row to get its token ids."""
    usual = row.messages is None
    return next((added for added in (usual, not usual) if text_ids(row, tokenizer, added) == row.ids), usual)


def text_ids(row: GoldenRow, tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool) -> tuple[int, ...]:
    """Returns the token ids of a golden row's text."""
    ids: Any = tokenizer(row.text or "", add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
    return tuple(ids)


def transformers_paths(subject: Subject, model: Any) -> Iterator[Observation]:
    """Runs plain transformers one by one, as a padded batch, and as a pipeline."""
    base_model, rows, tokenizer = base_model_of(model), subject.rows, subject.tokenizer
    dtype = computed_in(base_model)
    ids = [row.ids for row in subject.golden.rows]
    single, batched = "transformers, one by one", "transformers, padded batch"
    from_text = "transformers pipeline, from text"

    def padded_batch() -> Observation:
        if tokenizer.pad_token_id is None:
            return Observation(batched, skipped="the tokenizer has no padding token")
        batch = tokenizer.pad({"input_ids": [list(row_ids) for row_ids in ids]}, return_tensors="pt")
        with torch.inference_mode():
            logits = model(**{name: value.to(subject.device) for name, value in batch.items()}).logits
        return Observation(batched, rows, tuple(logits.float().flatten().tolist()), dtype=dtype)

    def from_pipeline() -> Observation:
        if not subject.rows_with_text:
            return Observation(from_text, skipped=NO_TEXT)
        if not hasattr(base_model, "can_generate"):
            return Observation(from_text, skipped=f"there is no pipeline for a {type(base_model).__name__}")
        make: Any = pipeline  # its signature knows only concrete tokenizers
        classify = make("text-classification", model=base_model, tokenizer=tokenizer)
        rewards, encoded = [], []
        for row in (subject.golden.rows[index] for index in subject.rows_with_text):
            special = needs_special_tokens(row, tokenizer)
            encoded.append(text_ids(row, tokenizer, special))
            output = classify(row.text, function_to_apply="none", add_special_tokens=special)
            rewards.append(float(output[0]["score"]))
        return Observation(from_text, subject.rows_with_text, tuple(rewards), tuple(encoded), dtype=dtype)

    yield attempt(single, rows, lambda: Observation(single, rows, tuple(plain_rewards(model, ids)), dtype=dtype))
    yield attempt(batched, rows, padded_batch)
    yield attempt(from_text, subject.rows_with_text, from_pipeline)


def scorer_paths(subject: Subject, model: Any) -> Iterator[Observation]:
    """Runs the scorer in both layouts, one response at a time and all together, and from text.

    The model takes the scorer's layouts: do not run it with plain transformers afterwards.
    """
    dtype = computed_in(base_model_of(model))
    groups: dict[int, list[int]] = {}
    for index, row in enumerate(subject.golden.rows):
        groups.setdefault(row.example, []).append(index)
    rows = [{"response_ids": [list(subject.golden.rows[index].ids) for index in group]} for group in groups.values()]
    order = [index for group in groups.values() for index in group]
    for layout in _LAYOUTS:
        for name, tokens in (("one by one", 1), ("together", subject.max_tokens_per_batch)):
            path = f"scorer, {layout}, {name}"

            def run(layout: Any = layout, tokens: int | None = tokens, path: str = path) -> Observation:
                scorer = RewardModel(model, subject.tokenizer, batch_layout=layout, max_tokens_per_batch=tokens)
                rewards = [reward for row in scorer.score(rows) for reward in row]
                return Observation(path, tuple(order), tuple(rewards), dtype=dtype)

            yield attempt(path, order, run)
    if subject.rows_with_text:
        path = "scorer, from messages or text"

        def from_text() -> Observation:
            rows = [row_to_score(subject.golden.rows[index]) for index in subject.rows_with_text]
            rewards = RewardModel(model, subject.tokenizer).score(rows)
            return Observation(path, subject.rows_with_text, tuple(rewards), dtype=dtype)

        yield attempt(path, subject.rows_with_text, from_text)


def row_to_score(row: GoldenRow) -> dict[str, Any]:
    """Returns a golden row whose text is known as a row that can be scored."""
    if row.messages is None:
        return {"response": row.text}
    beside = {"tools": row.tools, "chat_template_kwargs": dict(row.chat_template_kwargs)}
    return {"messages": list(row.messages), **{name: value for name, value in beside.items() if value}}


def export_path(subject: Subject) -> Observation:
    """Exports the model, merged, and runs the result with plain transformers."""
    path = "merged export, reloaded" if subject.source.is_adapter else "export, reloaded"
    if subject.golden.dtype == "quantized":
        return Observation(path, skipped="the golden rewards are those of a quantised model")

    def run() -> Observation:
        with tempfile.TemporaryDirectory(prefix="plaudit-verify-") as folder:
            exported = Path(folder) / "export"
            export_model(
                subject.source.name,
                exported,
                merge=True,
                raw=True,
                dtype="float32",  # rounding to the stored dtype is no difference between the ways
                device=subject.device,
                revision=subject.source.revision,
                trust_remote_code=subject.source.trust_remote_code,
            )
            source = Source(str(exported), None, subject.source.trust_remote_code)
            model = load_reward_model(source, device=subject.device, dtype=subject.dtype)
            rewards = plain_rewards(model, [row.ids for row in subject.golden.rows])
        return Observation(path, subject.rows, tuple(rewards), dtype=computed_in(base_model_of(model)))

    return attempt(path, subject.rows, run)
