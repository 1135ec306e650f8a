"""The entry point: finds the command, runs it, and turns an error into one message without a traceback."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plaudit.errors import PlauditError, nearest
from plaudit.version import __version__

if TYPE_CHECKING:
    from plaudit.cli.arguments import Command

COMMANDS = {  # no description is wider than 80 columns allow
    "check": "Find faults, leaks and shortcuts in preference data.",
    "train": "Train a reward model. With --dry-run, show what would happen.",
    "eval": "Evaluate and compare reward models on benchmarks or your own data.",
    "report": "Write one page about a run: training, evaluations and data.",
    "export": "Write a model for other servers: merged, rescaled and checked.",
    "verify": "Check that servers and exports give the rewards saved with a model.",
    "serve": "Serve a reward model over HTTP.",
    "score": "Score a file or data set of any size. Interrupted runs resume.",
    "best-of-n": "Keep the best of several responses to each prompt.",
    "filter": "Keep pairs and responses whose margin or reward is within bounds.",
    "demo": "Train a small reward model on bundled data in a few minutes.",
}
_MODULES = {"report": "eval", "verify": "export", "best-of-n": "score", "filter": "score"}
"""Modules of commands that share one; every other command has a module of its own name."""
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns its exit code: 0, 1 for findings, 2 for an error, 130 when interrupted.

    With the environment variable ``PLAUDIT_DEBUG=1`` errors keep their traceback, and libraries their messages.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS)) + 2
        lines = "\n".join(f"  {command:{width}}{text}" for command, text in COMMANDS.items())
        return _print(
            "Plaudit: train, evaluate and use reward models.\n\nUsage: plaudit COMMAND [SETTINGS]\n\n"
            f"Commands:\n{lines}\n\n"
            "`plaudit COMMAND --help` explains a command.\n`plaudit --version` prints the version."
        )
    if name in ("-V", "--version"):
        return _print(f"plaudit {__version__}")
    if name not in COMMANDS:
        hint = nearest(name, COMMANDS, "`plaudit --help` lists the commands.", "plaudit ")
        print(f"plaudit: there is no command {name!r}. {hint}", file=sys.stderr)
        return EXIT_ERROR
    if argv is None and os.environ.get("PLAUDIT_DEBUG") != "1":
        from plaudit.cli.console import quiet_libraries

        quiet_libraries()
    try:
        command, run = command_of(name)
        return 0 if command.helped(arguments[1:]) else run(arguments[1:])
    except Exception as error:
        if os.environ.get("PLAUDIT_DEBUG") == "1":
            raise
        message = str(error)
        if not isinstance(error, PlauditError):
            path, line, *_ = traceback.extract_tb(error.__traceback__)[-1]
            message = f"{type(error).__name__}: {message.strip()} ({Path(path).name}, line {line})"
            message += "\n  Fix: No fix is known. PLAUDIT_DEBUG=1 shows where it comes from."
        print(f"plaudit {name}: {message}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED


def command_of(name: str) -> tuple[Command, Callable[[Sequence[str]], int]]:
    """Returns the declaration of a command, and the function that runs it: such as ``FILTER`` and ``run_filter``."""
    # Imported here: most commands need torch, and `plaudit --help` should not wait for it.
    module = importlib.import_module(f"plaudit.cli.{_MODULES.get(name, name)}")
    name = name.replace("-", "_")
    return getattr(module, name.upper()), getattr(module, f"run_{name}")


def _print(text: str) -> int:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # A reader such as `head` has closed the pipe. Python flushes standard output once more before it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
