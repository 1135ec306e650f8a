"""``plaudit export``: a reward model as a folder that other servers read, with the rewards that it should have."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from rich.console import Console
from rich.text import Text

from plaudit.cli.arguments import DTYPES, Command, ComputeArguments, Word, about
from plaudit.cli.console import log_lines, make_console
from plaudit.errors import ConfigError

if TYPE_CHECKING:
    from plaudit.export.export import ExportResult


@dataclass
class OutputArguments:
    """What is written, and where to."""

    title: ClassVar[str] = "Export"

    output: str = field(metadata=about("Folder to write; it gets its name when all is well.", aliases=["-o"]))
    merge: bool = field(
        default=True, metadata=about("Merge an adapter into the weights under it, as servers want it; false keeps it.")
    )
    overwrite: bool = field(default=False, metadata=about("Replace a model that is in that folder."))
    tolerance: float | None = field(
        default=None,
        metadata=about(
            "Most that rewards may differ from what they should be. Default: 1e-4 for float32, 0.01 for float16, 0.05 "
            "for bfloat16."
        ),
    )


@dataclass
class RewardArguments:
    """What becomes of the rewards. Without any of these, a calibration beside the model is folded into it."""

    title: ClassVar[str] = "Rewards"

    normalize: str | None = field(
        default=None, metadata=about("Data on whose responses exported rewards have mean 0 and deviation 1.")
    )
    temperature: str | None = field(
        default=None,
        metadata=about(
            "Divide rewards by it, so that the sigmoid of a difference is the probability of being better: a number, "
            "`stored` for that of the calibration beside the model, or data to fit it on."
        ),
    )
    raw: bool = field(default=False, metadata=about("Leave rewards as they are; a calibration is only copied."))
    dataset_config: str | None = field(default=None, metadata=about("Configuration of a data set on the Hub."))
    dataset_split: str = field(
        default="train", metadata=about("Split of the data, also with a slice: train[:1000].", aliases=["--split"])
    )


@dataclass
class SourceArguments(ComputeArguments):
    """How the model is loaded, always in float32, and what it is stored in."""

    dtype: str | None = field(
        default=None,
        metadata=about(
            "What the exported weights are stored in; the head always in float32. Default: what the model has.",
            choices=DTYPES,
        ),
    )
    model_revision: str | None = field(
        default=None, metadata=about("Branch, tag or commit of a model on the Hub.", aliases=["--revision"])
    )


COMMAND = Command(
    "export",
    usage="MODEL --output FOLDER [--NAME VALUE ...]",
    about="Write a reward model as a folder that vLLM, SGLang and plain transformers read: an adapter merged, rewards "
    "rescaled, and held to the rewards of its source before it gets its name.",
    examples=(
        "plaudit export runs/first --output exported",
        "plaudit export runs/first --output exported --dtype bfloat16 --normalize pairs.jsonl",
        "plaudit export runs/first --output exported --temperature test.jsonl",
    ),
    notes=("MODEL is a folder, or an id on the Hub. DATA is what `plaudit score` reads.",),
    words=(
        Word("model", missing="Write: plaudit export MODEL --output FOLDER", extra="Export them one after the other."),
    ),
    kinds=(OutputArguments, RewardArguments, SourceArguments),
)


def run(arguments: Sequence[str]) -> int:
    """Export with the given command-line arguments; returns the exit code.

    Raises:
        PlauditError: Whatever is wrong with settings, data, model or folder.
    """
    if COMMAND.helped(arguments):
        return 0
    (model,), output, rewards, source = COMMAND.parse(arguments)
    from plaudit.cli.console import bars_where_seen  # it imports torch, which --help need not wait for

    with log_lines(logging.WARNING), bars_where_seen():
        result = export(model, output, rewards, source)
    print_export(result, output.output, make_console())
    return 0


def export(model: str, output: OutputArguments, rewards: RewardArguments, source: SourceArguments) -> ExportResult:
    """Export a model.

    Args:
        model: Folder or id.
        output: Settings of the folder.
        rewards: Settings of rewards.
        source: Settings of the model.

    Raises:
        PlauditError: As `plaudit.export.export_model`.
    """
    from plaudit.export.export import export_model

    return export_model(
        model,
        output.output,
        merge=output.merge,
        dtype=source.dtype,
        normalize=rewards.normalize,
        temperature=read_temperature(rewards.temperature),
        raw=rewards.raw,
        overwrite=output.overwrite,
        dataset_config=rewards.dataset_config,
        dataset_split=rewards.dataset_split,
        tolerance=output.tolerance,
        device=source.device,
        batch_layout=cast(Any, source.batch_layout),
        max_length=source.max_length,
        max_tokens_per_batch=source.max_tokens_per_batch,
        revision=source.model_revision,
        trust_remote_code=source.trust_remote_code,
    )


def read_temperature(text: str | None) -> float | str | None:
    """A number where it is one, otherwise what it says: `stored`, or the name of data.

    Args:
        text: What was given.

    Raises:
        ConfigError: It is empty.

    >>> read_temperature("1.5"), read_temperature("stored"), read_temperature("pairs.jsonl")
    (1.5, 'stored', 'pairs.jsonl')
    """
    if text is None:
        return None
    if not text.strip():
        raise ConfigError("`--temperature` is empty", fix="Give a number, `stored`, or a file.")
    try:
        return float(text)
    except ValueError:
        return text


def print_export(result: ExportResult, folder: str, console: Console) -> None:
    """Print what was done, and what can be done next.

    Args:
        result: It.
        folder: The folder as the user wrote it.
        console: Where to print.
    """
    console.print(Text(f"Exported to {folder}", style="bold"), soft_wrap=True)
    width = max(len(title) for title, _ in result.lines()) + 2
    for title, text in result.lines():
        console.print(Text(f"{title:{width}}", style="dim").append(text, style="not dim"), soft_wrap=True)
    place = shlex.quote(folder)
    lines = [f"plaudit verify {place}", f"hf upload USER/{shlex.quote(Path(folder).resolve().name)} {place}"]
    if result.adapter != "kept":
        lines.insert(1, f"vllm serve {place} --runner pooling")
    for line in lines:
        console.print(Text(f"  {line}", style="cyan"), soft_wrap=True)
