"""What `behaviour.py` records: each part is a function of its own, run in a folder with the inputs."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import behaviour_inputs as inputs
import pyarrow.parquet
import torch
import yaml
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from plaudit import DataError, RewardConfig, RewardModel, RewardTrainer, check_dataset, evaluate, export_model

torch.set_num_threads(1)

NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
VARYING_TEXT = [
    (re.compile(r"\d{4}-\d\d-\d\d(T[\d:.+]+)?"), "DATE"),
    (re.compile(r"\d+\.\d+\.\d+(\.?dev\d+|\+cpu)?"), "VERSION"),
    (re.compile(r"[\d.,]+ (ms|s|min|h|tokens/s)\b"), "TIME"),
    (re.compile(r"[\d.,]+ [KMG]i?B\b"), "MEMORY"),
    (re.compile(r"classify-[0-9a-f]{32}"), "ID"),
]
COMMANDS = ["train", "check", "eval", "report", "export", "verify", "serve", "score", "best-of-n", "filter", "demo"]
TRAINING = {
    "max_steps": 8,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": [],
    "seed": 7,
}


def plain(value: Any) -> Any:
    """A value as JSON can hold it, without what differs from run to run."""
    if isinstance(value, str):
        text = value.replace(str(Path.cwd()), "WORK")
        for pattern, word in VARYING_TEXT:
            text = pattern.sub(word, text)
        return text
    if hasattr(value, "_asdict"):
        value = value._asdict()
    elif dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value if isinstance(value, int | float | bool | None) else plain(str(value))


def attempt(call: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """What a call returns, or the error that it raises."""
    try:
        return plain(call(*arguments, **settings))
    except Exception as error:  # noqa: BLE001, as any error is part of the behaviour
        fields = {name: plain(getattr(error, name, None)) for name in ("row", "field", "dataset")}
        has_fix = getattr(error, "fix", None) is not None
        return {"error": type(error).__name__, "text": plain(str(error)), "has_fix": has_fix, **fields}


def command(*arguments: str, output: bool = False) -> dict[str, Any]:
    """Run a command of Plaudit: its exit code, its output where asked for, and its errors where it fails."""
    done = subprocess.run([sys.executable, "-m", "plaudit", *arguments], capture_output=True, text=True)
    result: dict[str, Any] = {"code": done.returncode}
    if output:
        result["output"] = plain(done.stdout.splitlines())
    if done.returncode not in (0, 1):
        result["errors"] = plain(done.stderr.splitlines()[-1:])
    return result


def contents(path: str) -> Any:
    """What a file holds: JSON, rows of JSON lines, CSV or Parquet, or lines of text."""
    if path.endswith(".parquet"):
        return plain(pyarrow.parquet.read_table(path).to_pylist())
    text = Path(path).read_text(encoding="utf-8")
    if path.endswith(".csv"):
        return plain(list(csv.DictReader(text.splitlines())))
    if path.endswith(".jsonl"):
        return plain([json.loads(line) for line in text.splitlines()])
    return plain(json.loads(text) if path.endswith(".json") else [line for line in text.splitlines() if line.strip()])


def digest(value: Any) -> str:
    return hashlib.sha256(value if isinstance(value, bytes) else json.dumps(value).encode()).hexdigest()[:16]


def weights(folder: str) -> dict[str, Any]:
    """Digests of the tensors in each file of weights; of each tensor where there are few."""
    files: dict[str, Any] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        tensors = {
            name: digest(f"{tensor.dtype} {list(tensor.shape)}".encode() + tensor.float().numpy().tobytes())
            for name, tensor in sorted(load_file(path).items())
        }
        files[path.name] = tensors if len(tensors) <= 8 else digest(tensors)
    return files


def reads(**row: Any) -> bool:
    """Whether the data doctor finds no fault in a row."""
    try:
        return check_dataset([row]).ok
    except DataError:
        return False


def names_in_use() -> dict[str, str]:
    """Names that differ between versions, as the installed version has them."""
    pair = {"prompt": "2+2=", "chosen": "4", "rejected": "5"}
    settings = {field.name for field in dataclasses.fields(RewardConfig)}
    # Columns that are not known are ignored: a pair with a text in place of the number is then read.
    probability = "strength" if reads(**pair, preference_prob="much") else "preference_prob"
    several = reads(prompt="2+2=", responses=["4", "5"], ratings=[1.0, 2.0])
    single = reads(prompt="2+2=", response="4", rating=1.0)
    return {
        "probability": probability,
        "ratings": "ratings" if several else "scores",
        "rating": "rating" if single else "score",
        "lm_loss": "lm_loss_coefficient" if "lm_loss_coefficient" in settings else "text_generation_coefficient",
    }


def training_runs() -> dict[str, tuple[list[Any], dict[str, Any]]]:
    """Rows and settings of each run."""
    names, pairs = names_in_use(), inputs.preferences(0, 24)
    graded = inputs.rankings(pairs, names["ratings"], [(3.0, 1.0, 2.0), (0.5, 0.25), (1.0, 0.0, 1.0)])
    ranked = inputs.rankings(pairs, "ranks", [(1, 3, 2), (1, 2), (1, 1, 2)])
    margins = inputs.with_column(pairs, "margin", [0.5, 0.0, 1.5])
    tied = inputs.with_column(pairs, "tie", [False, True, False])
    tools = inputs.preferences(140, 24)
    return {
        "padded": (pairs, {"batch_layout": "padded"}),
        "shared_prefix": (pairs, {"batch_layout": "shared_prefix"}),
        "checkpointing": (tools, {"gradient_checkpointing": True}),
        "lora": (pairs, {}),
        "lora_padded": (pairs, {"batch_layout": "padded"}),
        "kwise": (graded, {}),
        "kwise_padded": (graded, {"batch_layout": "padded", "group_by_prompt": True}),
        "kwise_regression": (graded, {"objective": "regression"}),
        "ranks": (ranked, {}),
        "plackett_luce": (ranked, {"objective": "plackett_luce", "plackett_luce_top_k": 1}),
        "labels": (inputs.single(pairs, "label", [True, False]), {"label_smoothing_factor": 0.1}),
        "ratings": (inputs.single(pairs, names["rating"], [4.0, 1.5, 5]), {}),
        "margin": (margins, {}),
        "scaled": (margins, {"objective": "scaled_bradley_terry"}),
        "hinge": (margins, {"objective": "hinge"}),
        "probability": (inputs.with_column(pairs, names["probability"], [0.8, 0.5, 1.0]), {}),
        "rao_kupper": (tied, {}),
        "davidson": (tied, {"objective": "davidson"}),
        "weights": (inputs.with_column(pairs, "weight", [1.0, 0.0, 2.5]), {"label_smoothing_factor": 0.2}),
        "centered": (pairs, {"center_rewards_coefficient": 0.01}),
        "lm_loss": (pairs, {names["lm_loss"]: 0.01}),
        "length": (pairs, {"length_penalty_coefficient": 0.1, "length_head_coefficient": 1.0}),
        "ensemble": (pairs, {"ensemble_size": 3}),
        "grouped": (pairs, {"group_by_prompt": True, "gradient_accumulation_steps": 2}),
        "token_batches": (pairs, {"max_tokens_per_batch": 1200}),
        "dropped": (inputs.faulty_rows(pairs)[26:] + pairs, {"max_length": 400}),
        "truncated": (pairs, {"max_length": 150, "overlong": "truncate_left"}),
        "text": (inputs.as_text(pairs), {}),
        "implicit_prompt": (inputs.without_prompt(tools), {}),
        "resumed": (pairs, {"save_strategy": "steps", "save_steps": 4}),
    }


def run_training(name: str, rows: list[Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Train one of the runs; its tokens, logs, metrics, weights, and what is saved beside them."""

    def trainer() -> Any:
        adapter = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS") if "lora" in name else None
        data = Dataset.from_list(rows)
        return RewardTrainer(
            "base",
            RewardConfig(f"runs/{name}", **{**TRAINING, **settings}),
            train_dataset=data,
            eval_dataset=data.select(range(len(rows) - 8, len(rows))),
            peft_config=adapter,
        )

    run = trainer()
    run.train()
    if name == "resumed":
        run = trainer()
        run.train(resume_from_checkpoint=f"runs/{name}/checkpoint-4")
    metrics, predicted = run.evaluate(), run.predict(run.eval_dataset)
    run.save_model()
    tokens = {key: digest(list(run.train_dataset[key])) for key in run.train_dataset.column_names}
    tokenizer = ("tokenizer.json", "tokenizer_config.json")
    beside = {path.name: contents(str(path)) for path in sorted(Path(f"runs/{name}").glob("*.json"))}
    return {
        "tokens": tokens,
        "log": plain(run.state.log_history),
        "metrics": plain(metrics),
        "predictions": plain(predicted.predictions),
        "weights": weights(f"runs/{name}"),
        "files": {file: held for file, held in beside.items() if file not in tokenizer},
    }


def record_training() -> Any:
    return {name: attempt(run_training, name, *run) for name, run in training_runs().items()}


def record_train() -> Any:
    """`plaudit train`: a dry run, and a run with a preset and a file of settings."""
    settings = {key: value for key, value in TRAINING.items() if key not in ("report_to", "max_steps")}
    parts = [{"path": "pairs.jsonl", "rows": 10}, {"path": "tools.jsonl"}]
    settings |= {"model_name_or_path": "base", "datasets": parts, "eval_fraction": 0.2}
    Path("train.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    arguments = ["train", "--config", "train.yaml", "--preset", "quick", "--output_dir", "runs/command"]
    dry_run = command(*arguments, "--max_steps", "4", "--dry-run", output=True)
    done = command(*arguments, "--max-steps=4", "--lora_r", "2")
    wrong = command("train", "--learning_rat", "1")
    record = {"dry_run": dry_run, "run": done, "wrong": wrong, "weights": weights("runs/command")}
    return record | {"plaudit_run.json": contents("runs/command/plaudit_run.json")}


def record_help() -> Any:
    """Settings of each command with their defaults and choices, and the commands themselves."""
    settings: dict[str, Any] = {"commands": command("--help", output=True)}
    for name in COMMANDS:
        lines = [line.strip() for line in command(name, "--help", output=True)["output"]]
        found: dict[str, Any] = {}
        for part in re.split(r"\n(?=--)", "\n".join(lines))[1:]:
            part = re.split(r"\n\n", part)[0].replace("\n", " ")
            default, choices = re.search(r"\[(.*?)\]+$", part.strip()), re.search(r"Choices: ([^.]*)\.", part)
            found[part.split()[0].strip("-").replace("-", "_")] = {
                "default": default and default[1],
                "choices": choices and choices[1].split(", "),
            }
        settings[name] = found
    return settings


def record_scores() -> Any:
    """`RewardModel` on rows of every form, in both layouts, with uncertainty, and on rows that cannot be scored."""
    pairs, results = inputs.preferences(30, 6), {}
    rows, prompt = inputs.awkward_rows(pairs), pairs[0]["prompt"]
    broken = [{"prompt": "a"}, {"prompt": "a", "response": None}, {"messages": []}]
    replies = [inputs.text_of(pair["chosen"]) for pair in pairs]
    for layout in ("padded", "shared_prefix"):
        model = RewardModel.from_pretrained("runs/ensemble", batch_layout=layout, max_length=600)
        caution = {"k" if "k" in inspect.signature(model.rank).parameters else "caution": 2.0}
        results[layout] = {
            "score": attempt(model.score, rows),
            "stream": attempt(lambda model: list(model.score_stream(iter(rows))), model),
            "uncertain": [attempt(model.score, row, uncertainty=True, **caution) for row in rows],
            "margin": attempt(model.margin, pairs),
            "uncertain_margin": attempt(model.margin, pairs, uncertainty=True),
            "probability": attempt(model.probability, pairs),
            "rank": attempt(model.rank, prompt, replies),
            "uncertain_rank": attempt(model.rank, prompt, replies, uncertainty=True, **caution),
            "best_of_n": attempt(model.best_of_n, prompt, replies),
            "broken": [attempt(model.score, row) for row in [*broken, "long " * 200]],
            "nan": attempt(model.score, [*broken, *rows], errors="nan"),
        }
    for overlong in ("truncate_left", "truncate_right", "nan"):
        model = RewardModel.from_pretrained("runs/ensemble", max_length=60, overlong=overlong)
        results[overlong] = attempt(model.score, rows)
    adapted = RewardModel.from_pretrained("runs/lora", merge_adapter=True)
    return results | {"merged": attempt(adapted.score, rows)}


def record_files() -> Any:
    """`plaudit score`, `best-of-n` and `filter`: what they write."""
    chunk_size = "--chunk_size" if "--chunk_size" in str(command("score", "--help", output=True)) else "--window"
    scored = {
        "pairs": command("score", "runs/ensemble", "pairs.jsonl", "--output", "scored.jsonl", "--uncertainty"),
        "csv": command("score", "runs/text", "texts.csv", "--output", "scored.csv", "--column", "quality"),
        "parquet": command("score", "runs/kwise", "several.jsonl", "--output", "several.parquet", chunk_size, "7"),
        "broken": command("score", "runs/text", "faulty.jsonl", "--output", "broken.jsonl", "--errors", "nan"),
        "refused": command("score", "runs/text", "faulty.jsonl", "--output", "refused.jsonl"),
        "best": command("best-of-n", "several.parquet", "--output", "best.jsonl", "--top", "2", output=True),
        "one": command("best-of-n", "several.jsonl", "--model", "runs/kwise", "--output", "one.jsonl"),
    }
    bounds = ["--min-margin", "-0.2", "--quantile", "0.5", "--dropped", "dropped.jsonl"]
    scored["filter"] = command("filter", "scored.jsonl", "--output", "kept.jsonl", *bounds, output=True)
    names = "scored.jsonl scored.csv several.parquet broken.jsonl best.jsonl one.jsonl kept.jsonl dropped.jsonl"
    return scored | {"files": {name: attempt(contents, name) for name in names.split()}}


def record_check() -> Any:
    """`plaudit check` on faulty rows, pairs with a shortcut, several responses, and a file that breaks off."""
    results: dict[str, Any] = {}
    Path("breaks_off.jsonl").write_text('{"chosen": "a", "rejected": "b"}\n{"chosen": ', encoding="utf-8")
    fix = ["--fix", "clean.jsonl", "--model", "base", "--max_length", "400"]
    options = {"faulty": [*fix, "--eval", "eval.jsonl", "--benchmark", "questions.jsonl"], "shortcut": ["--strict"]}
    for name in ("faulty", "shortcut", "several", "breaks_off"):
        arguments = ["check", f"{name}.jsonl", "--json", f"{name}.check.json", *options.get(name, [])]
        results[name] = command(*arguments, output=True)
        results[name]["json"] = attempt(contents, f"{name}.check.json")
    for name in ("clean.jsonl", "clean.removed.jsonl"):
        results[name] = attempt(contents, name)
    return results


def record_evaluation() -> Any:
    """`plaudit eval` of two models against each other and a bag of words; `evaluate` on every kind of suite."""
    shutil.copytree("runs/padded", "calibrated")
    arguments = "eval calibrated runs/lora --suite pairs.jsonl llmbar=llmbar.jsonl --slice skill --bag_of_words"
    options = "--output runs/padded/evaluation --json eval.json --save-calibration --mistakes 5 --sanity_rows 6"
    done = command(*arguments.split(), "tools.jsonl", *options.split(), output=True)
    beside = Path("calibrated/reward_calibration.json")
    calibration = contents(str(beside)) if beside.exists() else None
    names = ("llmbar", "rewardbench", "rewardbench2", "rm-bench", "judgebench")
    suites = [f"{name}={name}.jsonl" for name in names] + [f"{name}.jsonl" for name in ("several", "labels", "faulty")]
    options = {"output": "evaluation", "sanity_rows": 4, "mistakes": 3, "max_rows": 20}
    errors = [
        # The last suite stops at a broken row; results of those before it are kept.
        attempt(lambda: bool(evaluate("runs/ensemble", suites, errors="drop", max_length=500, **options))),
        attempt(lambda: bool(evaluate("runs/ensemble", "faulty.jsonl"))),
    ]
    record = {"command": done, "json": contents("eval.json"), "calibration": calibration, "errors": errors}
    for folder in ("runs/padded/evaluation", "evaluation"):
        for name in ("evaluation.json", "evaluation.md"):
            record[f"{folder}/{name}".replace("/", ".")] = contents(f"{folder}/{name}")
        record[f"{folder}/rewards.jsonl".replace("/", ".")] = rewards_of_rows(f"{folder}/rewards.parquet")
    return record


def rewards_of_rows(path: str) -> list[dict[str, Any]]:
    """The rows of a table of rewards as they are, without variants: earlier versions wrote them as JSON lines."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in contents(path):
        if line["variant"] == "" and line["error"] is None:
            about = {name: line[name] for name in ("model", "suite", "row", "id", "source")}
            row = rows.setdefault(tuple(about.values()), {**about, "rewards": [], "tokens": []})
            row["rewards"].append(line["reward"])
            row["tokens"].append(line["tokens"])
    return list(rows.values())


def record_report() -> Any:
    """`plaudit report`: its JSON and Markdown, and the numbers on its page and in its figures."""
    done = command("report", "runs/padded", "--eval", "evaluation", "runs/padded/evaluation", output=True)
    html = Path("runs/padded/report.html").read_text(encoding="utf-8")
    figures = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    text = re.sub(r"<(svg|style|script).*?</\1>|<[^>]*>", "\n", html, flags=re.DOTALL)
    record = {name: contents(f"runs/padded/report.{name}") for name in ("json", "md")}
    paths = [digest(NUMBER.findall(" ".join(re.findall(r'\bd="([^"]*)"', figure)))) for figure in figures]
    return record | {"command": done, "html": NUMBER.findall(plain(text)), "figures": paths}


def record_export() -> Any:
    """`plaudit export` and `export_model`: settings, weights and checks of the exported folders."""
    record: dict[str, Any] = {}
    record["lora"] = command("export", "runs/lora", "--output", "exports/lora", "--dtype", "bfloat16", output=True)
    normalized = ["--output", "exports/normalized", "--normalize", "pairs.jsonl"]
    record["normalized"] = command("export", "runs/ensemble", *normalized)
    attempt(export_model, "calibrated", "exports/calibrated")
    attempt(export_model, "runs/padded", "exports/halved", temperature=2.0)
    record["refused"] = attempt(export_model, "base", "exports/base")
    for folder in sorted(Path("exports").iterdir()):
        beside = {path.name: contents(str(path)) for path in sorted(folder.glob("*.json"))}
        beside.pop("tokenizer.json")
        record[folder.name] = {"command": record.get(folder.name), "weights": weights(str(folder)), "files": beside}
    return record


def record_verify() -> Any:
    """`plaudit verify` of a model, an adapter and an export, of one whose weights were changed, and of other rows."""
    shutil.copytree("exports/halved", "changed")
    tensors = load_file("changed/model.safetensors")
    save_file({name: tensor * 1.1 for name, tensor in tensors.items()}, "changed/model.safetensors", {"format": "pt"})
    record = {}
    for name, folder in {"lora": "runs/lora", "export": "exports/halved", "changed": "changed"}.items():
        record[name] = command("verify", folder, "--json", f"{name}.verify.json", output=True)
        record[name]["json"] = attempt(contents, f"{name}.verify.json")
    return record | {"rows": command("verify", "runs/text", "--rows", "eval.jsonl", "--no_export", output=True)}


def write_inputs() -> None:
    """Write the model and the files that the commands read."""
    names, pairs, held_out = names_in_use(), inputs.preferences(0, 24), inputs.preferences(100, 30)
    inputs.write_model("base")
    inputs.write_rows("pairs.jsonl", held_out)
    inputs.write_rows("tools.jsonl", inputs.preferences(140, 30))
    inputs.write_rows("eval.jsonl", pairs[:3])
    inputs.write_rows("questions.jsonl", [{"question": inputs.text_of(pairs[5]["prompt"])}])
    inputs.write_rows("faulty.jsonl", inputs.faulty_rows(pairs))
    marks = [{"prompt": f"Add {n}", "chosen": f"{n}, good!", "rejected": f"As an AI, no {n}?"} for n in range(60)]
    inputs.write_rows("shortcut.jsonl", marks)
    grades = [(3.0, 1.0, 2.0), (0.5, 0.25), (1.0, 1.0)]
    inputs.write_rows("several.jsonl", inputs.rankings(held_out, names["ratings"], grades))
    inputs.write_rows("labels.jsonl", inputs.single(held_out, "label", [True, False]))
    for name, rows in inputs.benchmarks(held_out).items():
        inputs.write_rows(f"{name}.jsonl", rows)
    with Path("texts.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "chosen", "rejected"])
        writer.writeheader()
        writer.writerows(inputs.as_text(held_out))
