"""``plaudit verify``: whether every way of running a reward model gives the rewards that were saved with it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from plaudit.cli.arguments import DTYPES, Command, DeviceArguments, Word, about
from plaudit.cli.console import log_lines, make_console
from plaudit.cli.serve import API_KEY_VARIABLE

if TYPE_CHECKING:
    from plaudit.verification.verify import PathResult, Verification


_STYLES = {"same": "green", "differs": "bold red", "failed": "bold red", "skipped": "dim"}


@dataclass
class RowArguments:
    """What is sent everywhere."""

    title: ClassVar[str] = "Rows"

    rows: str | None = field(
        default=None,
        metadata=about(
            "Golden rows in another file; or preferences, as `plaudit train` reads them, of which eight responses "
            "become golden rows with the rewards that plain transformers gives them. Default: those beside the model."
        ),
    )
    save: bool = field(default=False, metadata=about("Keep the golden rows beside the model."))
    tolerance: float | None = field(
        default=None,
        metadata=about(
            "Most that a reward may differ. Default: 1e-4 in float32, 0.01 in float16 and 0.05 in bfloat16, times the "
            "largest reward where that is above 1."
        ),
    )
    json: str | None = field(default=None, metadata=about("Write what was found to this file, too."))


@dataclass
class PlaceArguments:
    """Where the rows are sent to."""

    title: ClassVar[str] = "Ways"

    url: str | None = field(default=None, metadata=about("A running server, such as http://127.0.0.1:8000."))
    server: str = field(
        default="auto",
        metadata=about("What it is; auto asks it.", choices=("auto", "plaudit", "vllm", "sglang", "openrlhf")),
    )
    api_key: str | None = field(
        default=None, metadata=about(f"Key of the server; also the environment variable {API_KEY_VARIABLE}.")
    )
    local: bool = field(
        default=True,
        metadata=about("Run the model here, too; `--no_local` leaves it out, and with it some of the diagnoses."),
    )
    export: bool = field(
        default=True, metadata=about("Export it into a temporary folder, too, which takes as much space again.")
    )


@dataclass
class ModelArguments(DeviceArguments):
    """How the model is run here."""

    dtype: str | None = field(
        default=None,
        metadata=about("Precision of its weights. Default: that of the golden rewards.", choices=DTYPES),
    )
    model_revision: str | None = field(
        default=None, metadata=about("Branch, tag or commit of a model on the Hub.", aliases=["--revision"])
    )


COMMAND = Command(
    "verify",
    usage="MODEL [--url URL] [--NAME VALUE ...]",
    about="Send the golden rows of a model through plain transformers, its pipeline, the scorer, the merged export and "
    "a running server, and compare the rewards with those that were saved. The exit code is 1 where one differs.",
    examples=(
        "plaudit verify runs/first",
        "plaudit verify runs/first --url http://127.0.0.1:8000 --server vllm",
        "plaudit verify someone/reward-model --rows pairs.jsonl",
    ),
    notes=(
        "MODEL is a folder, or an id on the Hub. Training saves golden rows with it; for other models `--rows FILE "
        "--save` computes them with plain transformers.",
    ),
    words=(Word("model", missing="Write: plaudit verify MODEL", extra="Verify them one after the other."),),
    kinds=(RowArguments, PlaceArguments, ModelArguments),
)


def run(arguments: Sequence[str]) -> int:
    """Verify with the given command-line arguments; returns 0, or 1 where a reward differs.

    Raises:
        PlauditError: There are no golden rows, or no such model or server.
    """
    if COMMAND.helped(arguments):
        return 0
    (model,), rows, places, loading = COMMAND.parse(arguments)
    from plaudit.cli.console import bars_where_seen  # it imports torch, which --help need not wait for
    from plaudit.verification.verify import verify

    # What the ways log about each other's traps is said below, once.
    with log_lines(logging.INFO if rows.save else logging.ERROR), bars_where_seen():
        found = verify(
            model,
            rows=rows.rows,
            save=rows.save,
            url=places.url,
            server=cast(Any, places.server),
            api_key=places.api_key or os.environ.get(API_KEY_VARIABLE),
            tolerance=rows.tolerance,
            dtype=loading.dtype,
            device=loading.device,
            local=places.local,
            export=places.export,
            max_tokens_per_batch=loading.max_tokens_per_batch,
            revision=loading.model_revision,
            trust_remote_code=loading.trust_remote_code,
        )
    if rows.json is not None:
        Path(rows.json).write_text(json.dumps(found.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print_verification(found, make_console())
    return 0 if found.passed else 1


def print_verification(found: Verification, console: Console) -> None:
    """Print a table of all ways, and what is wrong with those that differ.

    Args:
        found: What was found.
        console: Where to print.
    """
    from plaudit.verification.verify import number

    golden = found.golden
    console.print(
        Text(f"{found.model}: {len(golden.rows)} golden rows, in {golden.dtype}", style="bold"), soft_wrap=True
    )
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column("way", overflow="fold")
    for name in ("rows", "largest", "mean", "allowed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for one in found.results:
        table.add_row(one.path, *_cells(one, number), Text(one.verdict, style=_STYLES[one.verdict]))
    console.print(table)
    for text, paths in found.explanations.items():
        console.print(Text(f"\n{', '.join(paths)}", style="bold"), soft_wrap=True)
        console.print(Text(f"  {text}"), soft_wrap=True)
    verdict = "The rewards are the same everywhere." if found.passed else "The rewards are not the same everywhere."
    console.print(Text(f"\n{verdict}", style="green" if found.passed else "bold red"))


def _cells(one: PathResult, number: Any) -> list[str]:
    return [str(one.rows or ""), *(number(value) for value in (one.largest, one.mean, one.tolerance))]
