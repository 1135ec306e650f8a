"""Prepare preference data with Plaudit and with the reference library, in turn, and compare time and token ids."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
PACKAGES = ("trl", "transformers", "tokenizers", "datasets", "pyarrow", "jinja2")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--data", required=True, metavar="PATH", help="preferences as JSONL or JSONL.gz")
    add("--max-length", type=int, default=1024, metavar="N", help="longer rows are left out (default: %(default)s)")
    add("--num-proc", type=int, nargs="+", default=[1, 2], metavar="N", help="worker processes (default: 1 2)")
    add("--passes", type=int, default=7, metavar="N", help="counted passes of each (default: %(default)s)")
    add("--reference-python", metavar="PATH", help="Python with the reference library (default: one made here)")
    add("--name", help="of the result <name>.json (default: tokenisation_ and the name of the data)")
    return parser.parse_args()


def main() -> None:
    from machine import describe_commit, describe_machine, load_average
    from reference_env import python_of

    settings = parse_arguments()
    reference = python_of("reference", settings.reference_python)
    data = Path(settings.data).resolve()
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": describe_machine(),
        "commit": describe_commit(),
        "settings": {"data": data.name, "max_length": settings.max_length, "passes": settings.passes},
        "load_average": {"before": load_average()},
    }
    with tempfile.TemporaryDirectory(prefix="plaudit-bench-") as folder:
        result |= measure(settings, data, reference, Path(folder))
    result["load_average"]["after"] = load_average()
    path = FOLDER / "results" / f"{settings.name or 'tokenisation_' + data.name.split('.')[0]}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, ratio in result["times_rows_per_second_of_reference"].items():
        speeds = {side: one["rows_per_second"]["median"] for side, one in result["variants"][name].items()}
        rates = ", ".join(f"{side} {speed:,.0f} rows/s" for side, speed in speeds.items())
        print(f"{name}: {rates}; {ratio['median']:.2f} times ({ratio['min']:.2f} to {ratio['max']:.2f})")
    print(f"Token ids equal: {result['token_ids_equal']}. Written to {os.path.relpath(path)}")


def measure(settings: argparse.Namespace, data: Path, reference: Path, folder: Path) -> dict[str, Any]:
    """Let both sides prepare the data in turn."""
    from plaudit.demo import embedded_model_path

    spec = {"data": str(data), "tokenizer": str(embedded_model_path()), "max_length": settings.max_length}
    pythons = {"plaudit": Path(sys.executable), "reference": reference}
    sides = {
        side: start(side, python, {**spec, "folder": str(folder / side)}, folder) for side, python in pythons.items()
    }
    names = {f"num_proc_{count}": count for count in settings.num_proc}
    passes: dict[str, dict[str, list[dict[str, Any]]]] = {name: {side: [] for side in sides} for name in names}
    # The first round is a warm-up.
    for number in range(settings.passes + 1):
        for name, count in names.items():
            for side, process in sides.items():
                done = ask(process, count)
                print(f"{'warm-up' if number == 0 else f'pass {number}':<8} {name} {side:<10} {done['seconds']:.3f} s")
                passes[name][side].append(done)
    versions = {side: ask(process, 0) for side, process in sides.items()}
    for process in sides.values():
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=60)
    return {"versions": versions, **summarise(passes)}


def summarise(passes: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, Any]:
    from summary import spread

    variants: dict[str, Any] = {}
    ratios: dict[str, Any] = {}
    for name, sides in passes.items():
        variants[name] = {
            side: {
                "rows_per_second": spread([one["rows"] / one["seconds"] for one in done[1:]]),
                "seconds": [one["seconds"] for one in done],
                "processor_seconds": [one["processor_seconds"] for one in done],
            }
            for side, done in sides.items()
        }
        pairs = zip(sides["reference"][1:], sides["plaudit"][1:], strict=True)
        ratios[name] = spread([slow["seconds"] / fast["seconds"] for slow, fast in pairs])
    digests = {one["token_ids_sha256"] for sides in passes.values() for done in sides.values() for one in done}
    kept = {one["kept"] for sides in passes.values() for done in sides.values() for one in done}
    return {
        "times_rows_per_second_of_reference": ratios,
        "token_ids_equal": len(digests) == 1 and len(kept) == 1,
        "token_ids_sha256": sorted(digests),
        "rows_kept": sorted(kept),
        "variants": variants,
    }


def start(
    side: str, python: Path, spec: dict[str, Any], folder: Path, variables: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """A process that prepares the data each time that it is asked; ``cores`` in its specification are all it gets."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **(variables or {})}
    if side == "reference":
        # Its environment must not see packages of ours.
        environment.pop("PYTHONPATH", None)
    command = [str(python), str(Path(__file__).resolve()), "--side", side, json.dumps(spec)]
    with (folder / f"{side}.log").open("w") as log:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, cwd=folder
        )


def ask(process: subprocess.Popen[str], count: int) -> dict[str, Any]:
    """One pass with so many worker processes; 0 asks for versions."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{count}\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise SystemExit(f"a side has ended with code {process.wait()}")


def serve(side: str, spec: dict[str, Any]) -> None:
    """A side: prepares the data once for each line that it reads, which says with how many processes."""
    import datasets
    from transformers import AutoTokenizer

    if cores := spec.get("cores"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    datasets.disable_progress_bars()
    with gzip.open(spec["data"], "rt") if spec["data"].endswith(".gz") else open(spec["data"]) as file:
        rows = [json.loads(line) for line in file]
    names = [name for name in ("prompt", "chosen", "rejected") if name in rows[0]]
    datasets.Dataset.from_list([{name: row[name] for name in names} for row in rows]).save_to_disk(spec["folder"])
    count = len(rows)
    del rows
    tokenizer = AutoTokenizer.from_pretrained(spec["tokenizer"])
    prepare = _plaudit_prepare if side == "plaudit" else _reference_prepare
    for line in sys.stdin:
        processes = int(line)
        if processes == 0:
            found = {name: _version(name) for name in PACKAGES}
            print(json.dumps(found), flush=True)
            continue
        # Opened anew, and nothing in the cache: rows are read, tokenised and written.
        dataset = datasets.load_from_disk(spec["folder"])
        dataset.cleanup_cache_files()

        times, started = os.times(), time.perf_counter()
        prepared = prepare(dataset, tokenizer, spec["max_length"], processes)
        seconds, ended = time.perf_counter() - started, os.times()
        answer = {
            "rows": count,
            "kept": len(prepared),
            "seconds": seconds,
            "processor_seconds": sum(ended[:4]) - sum(times[:4]),
            "token_ids_sha256": _digest(prepared),
        }
        print(json.dumps(answer), flush=True)


def _digest(prepared: Any) -> str:
    """Equal token ids have equal ones, whatever their type and the pieces in which they were written."""
    digest = hashlib.sha256()
    for name in ("chosen_ids", "rejected_ids"):
        lists = prepared.with_format("arrow")[:][name].combine_chunks()
        for numbers in (lists.value_lengths(), lists.flatten()):
            digest.update(numbers.to_numpy().astype("int64").tobytes())
    return digest.hexdigest()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _plaudit_prepare(dataset: Any, tokenizer: Any, max_length: int, processes: int) -> Any:
    from plaudit.data.prepare import prepare_dataset

    count = processes if processes > 1 else None
    return prepare_dataset(dataset, tokenizer, max_length=max_length, num_proc=count)[0]


def _reference_prepare(dataset: Any, tokenizer: Any, max_length: int, processes: int) -> Any:
    from trl import RewardTrainer

    settings = argparse.Namespace(max_length=max_length, dataset_num_proc=processes if processes > 1 else None)
    # What its constructor calls for the training data; it reads nothing of the trainer itself.
    return RewardTrainer._prepare_dataset(None, dataset, tokenizer, settings, "train")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        serve(sys.argv[2], json.loads(sys.argv[3]))
    else:
        main()
