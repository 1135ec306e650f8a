"""Every test starts from the same random seeds and leaves the process as it found it."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

# Their import sets environment variables and loggers, which no test is to be blamed for.
for library in ("datasets", "sklearn", "torch._dynamo", "transformers"):
    importlib.import_module(library)
# Tests run one process a core, and the pipelines of transformers set this for good where it is not set.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The same examples in each run, and no time limit for one: a busy machine is no error.
hypothesis.settings.register_profile("plaudit", derandomize=True, deadline=None)
hypothesis.settings.load_profile("plaudit")

LOGGERS = ("", "plaudit", "transformers", "datasets")
SEED = 1


def _torch(read: Callable[[Any], Any]) -> Callable[[], Any]:
    """Read a setting of torch, once something has imported it."""

    def read_if_imported() -> Any:
        torch = sys.modules.get("torch")
        return None if torch is None else read(torch)

    return read_if_imported


def _nn_init(torch: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(torch.nn.init).items() if callable(value)}


def _logger(name: str) -> Callable[[], Any]:
    logger = logging.getLogger(name)
    return lambda: (
        logger.level,
        logger.propagate,
        logger.disabled,
        *map(id, logger.handlers),
        *map(id, logger.filters),
    )


# Warning filters are not here: pytest restores them after each test by itself.
PROCESS_STATE: dict[str, Callable[[], Any]] = {
    # pytest sets the one, torch's compiler the other when it is first imported.
    "os.environ": lambda: {**os.environ, "PYTEST_CURRENT_TEST": None, "TORCHINDUCTOR_CACHE_DIR": None},
    "sys.argv": lambda: list(sys.argv),
    "sys.path": lambda: list(sys.path),
    "the working directory": Path.cwd,
    "torch.nn.init": _torch(_nn_init),
    "torch's default dtype": _torch(lambda torch: torch.get_default_dtype()),
    "torch's default device": _torch(lambda torch: str(torch.get_default_device())),
    "torch's thread count": _torch(lambda torch: torch.get_num_threads()),
    "torch's gradient mode": _torch(lambda torch: torch.is_grad_enabled()),
    "torch's deterministic mode": _torch(
        lambda torch: (
            torch.get_deterministic_debug_mode(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
        )
    ),
    "torch's float32 matmul precision": _torch(lambda torch: torch.get_float32_matmul_precision()),
    **{f"the logger {name or 'root'!r}": _logger(name) for name in LOGGERS},
}
"""What a test must leave as it found it: a name, and how to read it (all of them together in under 0.1 ms)."""


@contextmanager
def _unchanged_process(where: str) -> Iterator[None]:
    """Fail with the names of what differs afterwards."""
    before = {name: read() for name, read in PROCESS_STATE.items()}
    yield
    leaks = []
    for name, read in PROCESS_STATE.items():
        old, new = before[name], read()
        if old is None or old == new:  # None: torch was imported in the meantime
            continue
        if isinstance(old, dict):
            changes = [key for key in old.keys() | new.keys() if old.get(key) != new.get(key)]
            leaks.append(f"{name} ({', '.join(sorted(changes))})")
        else:
            leaks.append(f"{name} ({old} became {new})")
    if leaks:
        pytest.fail(f"{where} does not leave the process as it found it: {'; '.join(leaks)}", pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def _session_leaves_no_trace() -> Iterator[None]:
    with _unchanged_process("a fixture of the session"):
        yield


@pytest.fixture(scope="module", autouse=True)
def _module_leaves_no_trace(_session_leaves_no_trace: None) -> Iterator[None]:
    # Each training ends with a full garbage collection, which takes half a second over what has been imported by now:
    # longer than the training. What lives already is left out of it.
    gc.collect()
    gc.freeze()
    with _unchanged_process("a fixture of the module"):
        yield


@pytest.fixture(autouse=True)
def _test_leaves_no_trace(_module_leaves_no_trace: None) -> Iterator[None]:
    random.seed(SEED)
    np.random.seed(SEED)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(SEED)
    with _unchanged_process("the test"):
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    if exitstatus == pytest.ExitCode.TESTS_FAILED:
        terminalreporter.write_line(f"The same order again: pytest --randomly-seed={config.option.randomly_seed}")
