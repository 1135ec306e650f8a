"""``plaudit best-of-n``: keeps the best of several responses to each prompt."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from plaudit.cli.arguments import Command, Word, about
from plaudit.cli.console import log_lines, say
from plaudit.cli.score import (
    INPUT,
    ColumnArguments,
    ModelArguments,
    OutputArguments,
    RunArguments,
    score,
    selection_lines,
)
from plaudit.errors import ConfigError
from plaudit.inference.io import kind_of_output, refuse_existing
from plaudit.inference.select import Selection, best_of_n_file


@dataclass
class ChoiceArguments:
    """What is kept of each row."""

    title: ClassVar[str] = "Choice"

    model: str | None = field(
        default=None,
        metadata=about("Folder or id of a reward model that scores INPUT first. Default: INPUT holds rewards."),
    )
    top: int | None = field(
        default=None,
        metadata=about("Keep lists of this many responses, the best first. Default: the best one, not in a list."),
    )
    responses_column: str = field(default="responses", metadata=about("Column of the responses."))
    reward_column: str = field(default="reward", metadata=about("Column of their rewards."))
    response_column: str = field(default="response", metadata=about("Column that the best response goes to."))


COMMAND = Command(
    "best-of-n",
    usage="INPUT --output FILE [--model MODEL] [--NAME VALUE ...]",
    about="Keep the best of the responses of each row: of a scored file, or after scoring it.",
    examples=("plaudit best-of-n candidates.jsonl --model runs/first --output best.jsonl",),
    notes=(INPUT,),
    words=(Word("input"),),
    kinds=(OutputArguments, ChoiceArguments, ModelArguments, RunArguments),
)


def run(arguments: Sequence[str]) -> int:
    """Choose with the given command-line arguments; returns the exit code.

    Raises:
        PlauditError: Whatever is wrong with settings, data or model.
    """
    if COMMAND.helped(arguments):
        return 0
    (source,), output, choice, loading, running = COMMAND.parse(arguments)
    with log_lines():
        result = _choose(source, output, choice, loading, running)
    if result is not None:
        for line in selection_lines(result):
            say(line)
    return 0


def _choose(
    source: str, output: OutputArguments, choice: ChoiceArguments, loading: ModelArguments, running: RunArguments
) -> Selection | None:
    path = Path(output.output)
    kind = kind_of_output(path)
    refuse_existing(path, output.overwrite)
    if choice.top is not None and choice.top < 1:
        raise ConfigError(f"`top` is {choice.top}", fix="Keep at least 1 response of each row.")
    config, split, scored = output.dataset_config, output.dataset_split, None
    if choice.model is not None:
        if choice.responses_column != "responses":
            raise ConfigError("a model reads the column `responses` only", fix="Rename the column, or score it first.")
        scored = f"{path}.scored.{'parquet' if kind == 'parquet' else 'csv' if kind == 'csv' else 'jsonl'}"
        # What a run left that was killed while it chose is scored again: nothing says which model it came from.
        whole = OutputArguments(scored, True, config, split)
        columns = ColumnArguments(choice.reward_column)
        if score(choice.model, source, scored, whole, columns, loading, running) is None:
            return None
        source, config, split = scored, None, "train"
    try:
        result = best_of_n_file(
            source,
            path,
            top=choice.top,
            responses_column=choice.responses_column,
            reward_column=choice.reward_column,
            response_column=choice.response_column,
            overwrite=output.overwrite,
            config=config,
            split=split,
        )
    finally:
        if scored is not None and os.path.lexists(scored):
            Path(scored).unlink()
    return result
