"""What Plaudit does, written down, so that a refactoring can be shown to change nothing.

    python benchmarks/behaviour.py record before.json
    python benchmarks/behaviour.py record after.json
    python benchmarks/behaviour.py compare before.json after.json --renames renames.json

`record` trains tiny models in many ways, and scores, evaluates, reports, exports, verifies and serves them, in one
thread. It uses the public API and the command line only. `compare` prints what differs, without times, versions and
the like. Texts that differ in their words but not in their numbers are counted, and listed with `--wording`.

`renames.json` maps old names to new ones: of keys, settings and columns. `{"strength": "preference_prob"}` holds
everywhere, `{"evaluation/*/spread": "std"}` only where the path of the key matches the pattern.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import fnmatch
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PARTS = ["training", "train", "help", "scores", "files", "check", "evaluation", "report", "export", "verify", "server"]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
QUIET = {"TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
WORD = re.compile(r"[A-Za-z_]\w*")
IGNORED_KEYS = re.compile(
    r".*(seconds|runtime|_per_second|_time)|versions?|(transformers|plaudit)_version|saved|created|made_by|commit"
    r"|machine|platform|total_flos|fingerprint"
)


def record(path: Path, parts: list[str]) -> None:
    """Record the parts named, in a temporary folder, and write them to a file."""
    with tempfile.TemporaryDirectory(prefix="behaviour-") as folder, contextlib.chdir(folder):
        caches = dict.fromkeys(("HF_DATASETS_CACHE", "PLAUDIT_CACHE"), f"{folder}/cache")
        os.environ |= ONE_THREAD | QUIET | caches  # before torch is imported
        import behaviour_parts
        import behaviour_server

        result: dict[str, Any] = {}
        behaviour_parts.write_inputs()
        for name in parts:
            started = time.perf_counter()
            part = behaviour_server.record if name == "server" else getattr(behaviour_parts, f"record_{name}")
            result[name] = part()
            print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def renamed(value: Any, renames: dict[str, str], path: str = "") -> Any:
    """An old record with new names: of keys, and in texts without white space, which name settings and columns."""
    anywhere = {old: new for old, new in renames.items() if "/" not in old}

    def new_key(key: str) -> str:
        here = f"{path}/{key}".strip("/")
        placed = (new for old, new in renames.items() if "/" in old and fnmatch.fnmatch(here, old))
        return next(placed, anywhere.get(key) or WORD.sub(lambda word: anywhere.get(word[0], word[0]), key))

    if isinstance(value, dict):
        return {new_key(key): renamed(entry, renames, f"{path}/{key}") for key, entry in value.items()}
    if isinstance(value, list):
        return [renamed(entry, renames, path) for entry in value]
    if isinstance(value, str) and not re.search(r"\s", value):
        return WORD.sub(lambda word: anywhere.get(word[0], word[0]), value)
    return value


Difference = tuple[str, Any, Any]
MISSING = "(missing)"


def differences(old: Any, new: Any, rtol: float, path: str = "") -> Iterator[Difference]:
    """Where two records differ: path, old value, new value."""
    if isinstance(old, dict) and isinstance(new, dict):
        is_time = re.search(r"\btime\b", str(old.get("label")))  # a number of a report
        for key in [*old, *(key for key in new if key not in old)]:
            if not IGNORED_KEYS.fullmatch(key) and not (is_time and key == "value"):
                before, after = old.get(key, MISSING), new.get(key, MISSING)
                if key == "target_modules" and isinstance(before, list) and isinstance(after, list):
                    before, after = sorted(before), sorted(after)  # PEFT saves a set
                yield from differences(before, after, rtol, f"{path}/{key}")
    elif isinstance(old, list) and isinstance(new, list):
        yield from _list_differences(old, new, rtol, path)
    elif (
        isinstance(old, int | float) and isinstance(new, int | float) and isinstance(old, bool) == isinstance(new, bool)
    ):
        if not (old == new or math.isclose(old, new, rel_tol=rtol) or (math.isnan(old) and math.isnan(new))):
            yield path, old, new
    elif old != new:
        yield path, old, new


def _list_differences(old: list[Any], new: list[Any], rtol: float, path: str) -> Iterator[Difference]:
    if len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from differences(before, after, rtol, f"{path}/{index}")
        return
    before, after = ([json.dumps(entry, sort_keys=True) for entry in entries] for entries in (old, new))
    for kind, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind != "equal":
            yield f"{path}/{a}", old[a:b] or MISSING, new[c:d] or MISSING


def is_wording(old: Any, new: Any) -> bool:
    """Whether two texts differ in words alone."""
    if not (isinstance(old, str) and isinstance(new, str)) or MISSING in (old, new):
        return False
    sentence = " " in old.strip() or " " in new.strip()
    return sentence and NUMBER.findall(old) == NUMBER.findall(new)


def compare(settings: argparse.Namespace) -> int:
    """Print what differs between two records; 1 where something does."""
    old, new = (json.loads(path.read_text(encoding="utf-8")) for path in (settings.old, settings.new))
    renames = json.loads(settings.renames.read_text(encoding="utf-8")) if settings.renames else {}
    found = [
        one
        for one in differences(renamed(old, renames), new, settings.rtol)
        if not any(fnmatch.fnmatch(one[0].strip("/"), pattern) for pattern in settings.ignore)
    ]
    wording = [one for one in found if is_wording(one[1], one[2])]
    shown = found if settings.wording else [one for one in found if one not in wording]
    for path, before, after in shown:
        print(f"{path.strip('/')}\n  - {before!r:.500}\n  + {after!r:.500}")
    print(f"{len(found) - len(wording)} differences, and {len(wording)} texts whose words differ")
    return int(len(found) > len(wording))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    recording = commands.add_parser("record", help="write a record")
    recording.add_argument("output", type=Path)
    recording.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="(default: all)")
    comparing = commands.add_parser("compare", help="compare two records")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    comparing.add_argument("--renames", type=Path, metavar="FILE", help="JSON: old names to new ones")
    comparing.add_argument("--rtol", type=float, default=0.0, help="relative tolerance of numbers (default: exact)")
    comparing.add_argument("--ignore", nargs="+", default=[], metavar="PATTERN", help="paths that may differ")
    comparing.add_argument("--wording", action="store_true", help="list texts that differ in words alone, too")
    settings = parser.parse_args()
    if settings.command == "compare":
        return compare(settings)
    record(settings.output.absolute(), settings.parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
