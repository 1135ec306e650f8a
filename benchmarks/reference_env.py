"""The reference library's own virtual environment: made once, with pinned versions, and reused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PINS = {
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "accelerate": "1.15.0",
    "datasets": "5.2.0",
    "peft": "0.21.2",
    "trl": "1.16.0",
}
ENV_VARIABLE = "PLAUDIT_BENCH_REFERENCE_PYTHON"
FOLDER = Path(__file__).resolve().parent / ".envs" / f"trl-{PINS['trl']}"

_ASK_VERSIONS = """
import importlib.metadata, json, sys
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


def reference_python(given: str | None) -> Path:
    """The Python that has the reference library in the pinned versions; its environment is made if need be.

    Args:
        given: A Python to use instead of one of our own; it is checked, never changed.

    Raises:
        SystemExit: If the given one has other versions, or the environment cannot be made.
    """
    if given is not None:
        python = Path(given)
        if wrong := wrong_versions(python):
            raise SystemExit(f"{given} does not have the pinned versions: {wrong}")
        return python
    python = FOLDER / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if wrong_versions(python):
        _make(python)
    if wrong := wrong_versions(python):
        raise SystemExit(f"the environment {FOLDER} was made, but has other versions: {wrong}")
    return python


def wrong_versions(python: Path) -> str:
    """Which pinned packages a Python lacks or has in another version, in words; empty if all is well."""
    if not python.exists():
        return f"there is no {python}"
    found = subprocess.run(
        [python, "-c", _ASK_VERSIONS, *PINS], capture_output=True, text=True, timeout=60, check=False
    )
    if found.returncode != 0:
        return f"it does not run: {found.stderr.strip()[-200:]}"
    return differences(json.loads(found.stdout))


def differences(found: dict[str, str | None]) -> str:
    """Compare found versions with the pins; the build of a version (``+cpu``) does not matter.

    >>> differences({**PINS, "torch": "2.13.0+cpu"})
    ''
    >>> differences({**PINS, "torch": "2.12.0", "trl": None})
    'torch 2.12.0 instead of 2.13.0, trl not installed instead of 1.16.0'
    """
    return ", ".join(
        f"{name} {found[name] or 'not installed'} instead of {pin}"
        for name, pin in PINS.items()
        if (found[name] or "").split("+")[0] != pin
    )


def _make(python: Path) -> None:
    print(f"Making the reference library's environment in {FOLDER} (once, some minutes)", flush=True)
    requirements = [f"{name}=={pin}" for name, pin in PINS.items()]
    try:
        subprocess.run([sys.executable, "-m", "venv", FOLDER], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run(install + requirements, check=True)
    except subprocess.CalledProcessError as error:
        raise SystemExit(
            f"the environment could not be made ({error}). Make one yourself with {' '.join(requirements)} "
            f"and name its Python in {ENV_VARIABLE}."
        ) from error
