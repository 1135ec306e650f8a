"""Prepare preference data in one process and in several, with and without the tokenizer's own threads."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe_commit, describe_machine, load_average
from summary import spread
from tokenisation import ask, start

FOLDER = Path(__file__).resolve().parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--data", required=True, metavar="PATH", help="preferences as JSONL or JSONL.gz")
    add("--max-length", type=int, default=1024, metavar="N", help="longer rows are left out (default: %(default)s)")
    add("--num-proc", type=int, nargs="+", default=[1, 2], metavar="N", help="worker processes (default: 1 2)")
    add("--cores", type=int, nargs="+", default=[1, 2], metavar="N", help="cores that may be used (default: 1 2)")
    add("--passes", type=int, default=3, metavar="N", help="counted passes of each (default: %(default)s)")
    add("--name", help="of the result <name>.json (default: tokenisation_scaling_ and the name of the data)")
    return parser.parse_args()


def main() -> None:
    settings = parse_arguments()
    data = Path(settings.data).resolve()
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": describe_machine(),
        "commit": describe_commit(),
        "settings": {"data": data.name, "max_length": settings.max_length, "passes": settings.passes},
        "load_average": {"before": load_average()},
    }
    with tempfile.TemporaryDirectory(prefix="plaudit-bench-") as folder:
        result |= measure(settings, data, Path(folder))
    result["load_average"]["after"] = load_average()
    path = FOLDER / "results" / f"{settings.name or 'tokenisation_scaling_' + data.name.split('.')[0]}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, one in result["variants"].items():
        rate, processor = one["rows_per_second"]["median"], one["processor_seconds_per_1000_rows"]["median"]
        print(f"{name}: {rate:,.0f} rows/s, {processor:.3f} processor seconds for 1,000 rows")
    print(f"Token ids equal: {result['token_ids_equal']}. Written to {os.path.relpath(path)}")


def measure(settings: argparse.Namespace, data: Path, folder: Path) -> dict[str, Any]:
    """Let processes with other cores and threads prepare the data in turn."""
    from plaudit.demo import embedded_model_path

    sides, cores_of = {}, {}
    for cores in settings.cores:
        for threads in (True, False):
            name = f"cores_{cores}_threads_{'on' if threads else 'off'}"
            own = folder / name
            own.mkdir()
            spec = {"data": str(data), "tokenizer": str(embedded_model_path()), "max_length": settings.max_length}
            spec |= {"folder": str(own / "rows"), "cores": cores}
            variables = {"TOKENIZERS_PARALLELISM": str(threads).lower()}
            cores_of[name] = cores
            sides[name] = start("plaudit", Path(sys.executable), spec, own, variables)
    done: dict[str, list[dict[str, Any]]] = {}
    # The first round is a warm-up.
    for number in range(settings.passes + 1):
        for name, process in sides.items():
            # More processes than cores show nothing.
            for count in [one for one in settings.num_proc if one <= cores_of[name]]:
                found = ask(process, count)
                print(f"{'warm-up' if number == 0 else f'pass {number}':<8} {name} {count} {found['seconds']:.3f} s")
                done.setdefault(f"{name}_num_proc_{count}", []).append(found)
    versions = ask(next(iter(sides.values())), 0)
    for process in sides.values():
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=60)
    return {"versions": versions, **summarise(done)}


def summarise(done: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Rates, and what they cost in processor time, which work beside the run does not change much."""
    digests = {one["token_ids_sha256"] for passes in done.values() for one in passes}
    variants = {
        name: {
            "rows_per_second": spread([one["rows"] / one["seconds"] for one in passes[1:]]),
            "processor_seconds_per_1000_rows": spread(
                [1000 * one["processor_seconds"] / one["rows"] for one in passes[1:]]
            ),
            "seconds": [one["seconds"] for one in passes],
        }
        for name, passes in done.items()
    }
    return {"token_ids_equal": len(digests) == 1, "token_ids_sha256": sorted(digests), "variants": variants}


if __name__ == "__main__":
    main()
