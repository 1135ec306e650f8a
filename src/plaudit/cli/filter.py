"""``plaudit filter``: keeps what is good enough of a scored file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from plaudit.cli.arguments import Command, Word, about
from plaudit.cli.console import log_lines, say
from plaudit.cli.score import INPUT, OutputArguments, selection_lines
from plaudit.inference.select import Bounds, filter_file


@dataclass
class BoundArguments:
    """What is kept. Of rows with several responses, each is kept or dropped by itself."""

    title: ClassVar[str] = "Bounds"

    min_margin: float | None = field(
        default=None, metadata=about("Pairs whose chosen response has at least so much more reward.")
    )
    max_margin: float | None = field(default=None, metadata=about("Pairs whose margin is at most this."))
    min_reward: float | None = field(default=None, metadata=about("Least reward; of a pair that of `chosen`."))
    max_reward: float | None = field(default=None, metadata=about("Most reward; of a pair that of `chosen`."))
    quantile: float | None = field(
        default=None,
        metadata=about(
            "Keep this share of what is within the other bounds: of pairs by margin, else by reward. Takes 8 bytes of "
            "memory for each pair or response."
        ),
    )
    keep: str = field(default="highest", metadata=about("Which share --quantile keeps.", choices=("highest", "lowest")))
    dropped: str | None = field(default=None, metadata=about("Write what is not kept to this file."))
    reward_column: str = field(
        default="reward", metadata=about("Column of the rewards; pairs have chosen_NAME and rejected_NAME.")
    )
    responses_column: str = field(default="responses", metadata=about("Column of the responses of rows with several."))


COMMAND = Command(
    "filter",
    usage="INPUT --output FILE [--NAME VALUE ...]",
    about="Keep the pairs, rows and responses of a scored file that are within bounds.",
    examples=("plaudit filter scored.jsonl --output clear.jsonl --min-margin 0.5 --dropped unclear.jsonl",),
    notes=(INPUT,),
    words=(Word("input"),),
    kinds=(OutputArguments, BoundArguments),
)


def run(arguments: Sequence[str]) -> int:
    """Filter with the given command-line arguments; returns the exit code.

    Raises:
        PlauditError: Whatever is wrong with settings or data.
    """
    if COMMAND.helped(arguments):
        return 0
    (source,), output, said = COMMAND.parse(arguments)
    bounds = Bounds(
        said.min_margin, said.max_margin, said.min_reward, said.max_reward, said.quantile, cast(Any, said.keep)
    )
    with log_lines():
        result = filter_file(
            source,
            output.output,
            bounds,
            dropped=said.dropped,
            reward_column=said.reward_column,
            responses_column=said.responses_column,
            overwrite=output.overwrite,
            config=output.dataset_config,
            split=output.dataset_split,
        )
    for line in selection_lines(result):
        say(line)
    if said.dropped is not None:
        say(f"Wrote the others to {said.dropped}.")
    return 0
