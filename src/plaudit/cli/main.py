"""The entry point: finds the command, runs it, and turns errors into one clean message."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from plaudit.errors import PlauditError
from plaudit.version import __version__

COMMANDS = {
    "check": "Check preference data: broken rows, contradictions, leaks, shortcuts a reward model must beat.",
    "train": "Train a reward model on preferences (with --dry-run: only show what would happen).",
    "eval": "Judge reward models on benchmarks or any preferences, alone or against each other.",
    "report": "Write one page about a run: training, evaluations, mistakes, data and settings.",
    "export": "Write a reward model as a folder that every server reads: merged, rescaled, and checked.",
    "verify": "Check that servers, the pipeline and an export give the rewards that were saved with a model.",
    "serve": "Serve a reward model over HTTP: its rewards, rankings, and the forms that other tools call.",
    "score": "Score a file or data set of any size with a reward model; goes on where it was interrupted.",
    "best-of-n": "Keep the best of several responses to each prompt.",
    "filter": "Keep the pairs or responses of a scored file whose margin or reward is within bounds.",
    "demo": "Watch a small reward model learn, from the first step to its first verdict, in a few minutes.",
}
"""Each command is a module beside this one (with ``_`` for ``-``) with a function ``run(arguments) -> exit code``."""
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0, 2 for an error of the user's, 130 when interrupted.

    Args:
        argv: Arguments without the program's name; by default those of the process.

    With the environment variable ``PLAUDIT_DEBUG=1`` errors keep their traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"plaudit {__version__}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean `plaudit {close[0]}`?" if close else "`plaudit --help` lists the commands."
        print(f"plaudit: there is no command {name!r}. {hint}", file=sys.stderr)
        return EXIT_ERROR
    try:
        # Imported only now: a command needs torch, and --help should not wait for it.
        return importlib.import_module(f"plaudit.cli.{name.replace('-', '_')}").run(arguments[1:])
    except PlauditError as error:
        if os.environ.get("PLAUDIT_DEBUG") == "1":
            raise
        print(f"plaudit {name}: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "Plaudit: train, judge and use reward models.",
            "",
            "Usage: plaudit COMMAND [SETTINGS]",
            "",
            "Commands:",
            *lines,
            "",
            "`plaudit COMMAND --help` explains a command; `plaudit --version` prints the version.",
        ]
    )
