"""What a run folder keeps about its training: data counts, settings, versions and logs, as JSON beside the weights."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import json
import logging
import math
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from plaudit.data.collate import PaddedCollator
from plaudit.data.encode import ConversationEncoder, TextEncoder
from plaudit.data.fast_encode import RENDER_ERRORS
from plaudit.data.parse import read_example
from plaudit.data.report import DataReport
from plaudit.errors import ConfigError, DataError
from plaudit.model.golden import FILE_NAME, GoldenRow, GoldenRows, chat_template_hash
from plaudit.model.peft import is_peft_model
from plaudit.model.shared_prefix import RewardForward
from plaudit.objectives import ObjectiveName
from plaudit.schema import LEGACY_COLUMNS
from plaudit.training.config import OBJECTIVE_SETTINGS, RewardConfig
from plaudit.version import __version__

if TYPE_CHECKING:
    from plaudit.training.trainer import RewardTrainer


_SETTINGS = (
    "learning_rate",
    "lr_scheduler_type",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "overlong",
    *OBJECTIVE_SETTINGS,
    "bf16",
    "fp16",
    "optim",
    "weight_decay",
    "seed",
)
_TRAINED: dict[ObjectiveName, str] = {
    "bradley_terry": "Trained on comparisons with the Bradley-Terry loss.",
    "scaled_bradley_terry": "Trained on comparisons with the Bradley-Terry loss, each scaled by its margin.",
    "rao_kupper": "Trained on comparisons and ties with the Rao-Kupper loss.",
    "davidson": "Trained on comparisons and ties with the Davidson loss.",
    "hinge": "Trained on comparisons with the hinge loss.",
    "plackett_luce": "Trained on rankings with the Plackett-Luce loss.",
    "regression": "Trained on rated answers with the squared error: the reward estimates the rating.",
    "binary_cross_entropy": (
        "Trained on answers labelled good or bad with the binary cross-entropy: "
        "the sigmoid of the reward estimates the probability of good."
    ),
}
_HEIGHT: dict[ObjectiveName, str] = {
    "regression": "Rewards are estimates of ratings, on the scale of the ratings.",
    "binary_cross_entropy": "Above 0 an answer is more likely good than bad.",
}
_NO_HEIGHT = "Rewards compare answers to the same prompt; their absolute height means nothing."


@dataclass(frozen=True)
class ModelCard:
    """What the card says.

    Attributes:
        name: Name of the model.
        location: What it is loaded by: its name on the Hub, or its folder.
        base_model: Name of the model it was trained from.
        reports: What was read and dropped of each data set.
        settings: Settings by name.
        evaluation: Metrics of the last evaluation.
        training: Metrics of the last training log.
        batch_layout: Layout of the batches, and why.
        objective: What the model was trained for.
        adapter: Whether the folder holds an adapter rather than a whole model.
        datasets: Names of data sets on the Hub.
        tags: Tags of the model.
        language: Languages of the data, as the Hub writes them.
        license: License of the weights, as the Hub writes it.
        tasks: The Hub's names of what the model does, the first of them shown there.
        dataset_args: Further words on the data sets.
    """

    name: str
    location: str
    base_model: str | None
    reports: Mapping[str, DataReport]
    settings: Mapping[str, Any]
    evaluation: Mapping[str, float]
    training: Mapping[str, float]
    batch_layout: str
    objective: ObjectiveName = "bradley_terry"
    adapter: bool = False
    datasets: Sequence[str] = ()
    tags: Sequence[str] = field(default_factory=lambda: ("plaudit", "reward-trainer"))
    language: str | Sequence[str] | None = None
    license: str | None = None
    tasks: Sequence[str] = ()
    dataset_args: Sequence[str] = ()

    @classmethod
    def of_run(cls, logs: Sequence[Mapping[str, float]], **about: Any) -> ModelCard:
        """The card of a training run.

        Args:
            logs: ``log_history`` of the run, from which the last metrics are taken.
            about: The other attributes.
        """
        evaluations = [log for log in logs if any(key.startswith("eval_") for key in log)]
        # Each of several evaluation sets has a log of its own.
        last = [log for log in evaluations if log.get("step") == evaluations[-1].get("step")]
        return cls(
            evaluation={name: value for log in last for name, value in log.items()},
            training=next((log for log in reversed(logs) if "loss" in log), {}),
            **about,
        )

    def render(self) -> str:
        """The card as Markdown with its YAML header."""
        header: dict[str, Any] = {
            "library_name": "peft" if self.adapter else "transformers",
            "pipeline_tag": next(iter(self.tasks), "text-classification"),
            "tags": sorted({*self.tags}),
        }
        for key in ("language", "license"):
            if value := getattr(self, key):
                header[key] = value if isinstance(value, str) else list(value)
        if self.base_model and not self.base_model.startswith(("/", ".")):
            header["base_model"] = self.base_model
        if self.datasets:
            header["datasets"] = list(self.datasets)
        parts = [
            f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
            f"# {self.name}",
            "A reward model: it puts one number on a conversation, higher where the answer is preferred. "
            f"{_TRAINED[self.objective]}",
            *self._use(),
            *self._serve(),
            *self._section("Evaluation", _table(self.evaluation, skip=("runtime", "per_second", "epoch"))),
            *self._section("Last training log", _table(self.training)),
            *self._section("Data", "\n".join(f"- {line}" for line in self._data())),
            *self._section("Settings", _table(self._settings())),
            f"Batch layout: {self.batch_layout}.",
            *self._section("Versions", _table(installed_versions())),
        ]
        return "\n\n".join(parts) + "\n"

    def _settings(self) -> dict[str, Any]:
        """The settings that matter, with the objective that was really used in place of ``auto``."""
        found = {key: self.settings[key] for key in _SETTINGS if key in self.settings}
        if not found.get("label_smoothing_factor"):
            found.pop("label_smoothing_factor", None)
        return found | {"objective": self.objective}

    def _use(self) -> list[str]:
        if self.adapter:
            load = (
                "from peft import AutoPeftModelForSequenceClassification as Model\n"
                "from transformers import AutoTokenizer"
            )
        else:
            load = "from transformers import AutoModelForSequenceClassification as Model, AutoTokenizer"
        labels = ", num_labels=1" if self.adapter else ""
        return [
            "## Load and score",
            f'```python\n{load}\n\nmodel = Model.from_pretrained("{self.location}"{labels})\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{self.location}")\n'
            'messages = [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]\n'
            'inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)\n'
            "reward = model(**inputs).logits.item()\n```",
            f"{_HEIGHT.get(self.objective, _NO_HEIGHT)} Text rendered with the "
            "chat template is tokenised without further special tokens. In batches, pad on the right.",
        ]

    def _serve(self) -> list[str]:
        folder, merge = self.location, []
        if self.adapter:
            folder = "merged"
            merge = [
                "Servers want whole models: merge the adapter first, and write down how it is to be served.",
                "```python\nmerged = model.merge_and_unload()\nmerged.config.update(\n"
                '    {"id2label": {0: "reward"}, "label2id": {"reward": 0}, "problem_type": "regression",\n'
                '     "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"},\n'
                '     "pad_token_id": tokenizer.pad_token_id}\n)\n'
                'merged.save_pretrained("merged")\ntokenizer.save_pretrained("merged")\n```',
            ]
        return [
            "## Serve",
            *merge,
            "vLLM serves it with its pooling runner, through `classify` (its `reward()` is meant for other models):",
            f"```bash\nvllm serve {folder} --runner pooling\n```",
            f'```python\nimport requests\n\nbody = {{"model": "{folder}", "input": inputs["input_ids"].tolist(), '
            '"use_activation": False}\n'
            'served = requests.post("http://localhost:8000/classify", json=body).json()["data"][0]["probs"][0]\n```',
            "`served` must be `reward`, up to the server's precision: the raw number, without a sigmoid, as the "
            "configuration asks (`problem_type: regression`, and the activation of `sentence_transformers`). Servers "
            "change and nobody has tried yours with this model: compare the two once before you rely on it.",
        ]

    def _data(self) -> list[str]:
        return [*self.dataset_args, *(report.summary() for report in self.reports.values())]

    @staticmethod
    def _section(title: str, body: str) -> list[str]:
        return [f"## {title}", body] if body else []


def as_list(value: str | Sequence[str] | None) -> list[str]:
    """What was given as one word, several or none, as a list.

    >>> as_list("one"), as_list(None)
    (['one'], [])
    """
    return [value] if isinstance(value, str) else list(value or ())


def _table(values: Mapping[str, Any], skip: Sequence[str] = ()) -> str:
    rows = [
        f"| {name} | {value:.4g} |" if isinstance(value, float) else f"| {name} | {value} |"
        for name, value in values.items()
        if value is not None and not any(name.endswith(ending) for ending in skip)
    ]
    return "\n".join(["| | |", "|---|---|", *rows]) if rows else ""


def installed_versions() -> dict[str, str]:
    """Versions of Plaudit, of Python, and of the libraries that decide a result, of those that are installed."""
    names = ("transformers", "torch", "accelerate", "datasets", "peft")
    installed = {}
    for name in names:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"plaudit": __version__, "python": platform.python_version(), **installed}


logger = logging.getLogger("plaudit")
MOST_TOKENS = 512
"""Tokens of the longest golden row, where shorter ones can be found: what bounds their cost at each save."""
_CANDIDATES, _CANDIDATES_OF_STREAMS = 64, 16


@dataclass(frozen=True)
class _Candidate:
    """One or two responses to one prompt that may become golden rows, with a reward that is not known yet."""

    rows: tuple[GoldenRow, ...]
    turns: int

    @property
    def tokens(self) -> int:
        return max(len(row.ids) for row in self.rows)


def choose_golden_rows(
    tokenizer: PreTrainedTokenizerBase | None, datasets: Sequence[Any], count: int, *, max_length: int | None
) -> tuple[GoldenRow, ...]:
    """Choose a few responses: the shortest, the longest within bounds, many turns, two to each prompt.

    Args:
        tokenizer: Tokenises the responses; not changed. Rows of token ids need none.
        datasets: Raw data sets, or mappings of such; the first that has a row that fits is taken.
        count: How many responses.
        max_length: Limit for one response with its prompt, in tokens (None: no limit).

    Returns:
        The responses, with reward 0; none where no row fits. Rows that cannot be read are passed over.
    """
    if count < 1:
        return ()
    for dataset in datasets:
        for part in dataset.values() if isinstance(dataset, Mapping) else (dataset,):
            if isinstance(part, Dataset | IterableDataset):
                candidates = [
                    one
                    for one in _candidates(tokenizer, part, single=count == 1)
                    if max_length is None or one.tokens <= max_length
                ]
                if candidates:
                    return _spread(candidates, count)
    return ()


def _candidates(tokenizer: Any, dataset: Dataset | IterableDataset, *, single: bool) -> Iterator[_Candidate]:
    """Up to 64 examples from all over a table, or the first 16 of a stream."""
    plain = dataset.with_format(None)
    encoders: dict[bool, Any] = {}
    rows: Iterable[tuple[int, Any]]
    if isinstance(plain, Dataset):
        places: Sequence[int] = range(0, len(plain), max(1, -(-len(plain) // _CANDIDATES)))
        rows = zip(places, plain.select(places), strict=True)
    else:
        rows = enumerate(plain.take(_CANDIDATES_OF_STREAMS))
    for number, row in rows:
        renamed = {LEGACY_COLUMNS.get(name, name): value for name, value in row.items()}
        try:
            candidate = _candidate(renamed, number, plain.features, tokenizer, encoders)
        except (DataError, ConfigError, *RENDER_ERRORS) as error:
            # Whoever prepares the data has said already what is wrong with such rows.
            logger.debug("Row %d is no golden row: %s", number, error)
            continue
        yield replace(candidate, rows=candidate.rows[:1]) if single else candidate


def _candidate(
    row: Mapping[str, Any], number: int, features: Any, tokenizer: Any, encoders: dict[bool, Any]
) -> _Candidate:
    """The first and the last response of a row.

    Raises:
        DataError: It cannot be read.
        RENDER_ERRORS: The chat template refuses it, or it cannot be written as JSON.
    """
    example = read_example(row, row_number=number, features=features)
    if example.response_ids is not None:
        ids = [tuple(one) for one in (example.response_ids[0], example.response_ids[-1])]
        return _Candidate(tuple(GoldenRow(one, 0.0, number) for one in dict.fromkeys(ids)), turns=1)
    ends = example.responses[:1] if len(example.responses) == 1 else (example.responses[0], example.responses[-1])
    example = replace(example, responses=ends)
    if example.conversational not in encoders:
        kind = ConversationEncoder if example.conversational else TextEncoder
        encoders[example.conversational] = kind(tokenizer)
    encoder = encoders[example.conversational]
    texts = encoder.render([example])[0]
    rows: dict[tuple[int, ...], GoldenRow] = {}
    for response, text, ids_of_text in zip(ends, texts, encoder.tokenize(texts), strict=True):
        # As it will be read again: what JSON cannot hold is refused here, and the row passed over.
        messages = None if isinstance(response, str) else json.loads(json.dumps(response))
        rows[tuple(ids_of_text)] = GoldenRow(
            tuple(ids_of_text),
            0.0,
            number,
            text,
            messages,
            None if messages is None or example.tools is None else json.loads(json.dumps(example.tools)),
            {} if messages is None else json.loads(json.dumps(dict(example.chat_template_kwargs))),
        )
    turns = 1 if isinstance(ends[0], str) else len(ends[0])
    return _Candidate(tuple(rows.values()), turns)


def _spread(candidates: Sequence[_Candidate], count: int) -> tuple[GoldenRow, ...]:
    """As many rows as asked for, of examples as different as there are."""
    by_length = sorted(candidates, key=lambda one: one.tokens)
    short = [one for one in by_length if one.tokens <= MOST_TOKENS]
    if not short:
        return by_length[0].rows[:count]
    wanted = list(dict.fromkeys((0, len(short) - 1, max(range(len(short)), key=lambda n: short[n].turns))))
    # The rest evenly between the shortest and the longest.
    wanted += [round(n * (len(short) - 1) / (count + 1)) for n in range(1, count + 1)]
    wanted += range(len(short))
    chosen: list[GoldenRow] = []
    for place in dict.fromkeys(wanted):
        chosen += short[place].rows
        if len(chosen) >= count:
            break
    return tuple(chosen[:count])


# ---- rewards at a save ----------------------------------------------------------------------------------------


def write_golden_rows(trainer: RewardTrainer, folder: str | Path | None = None) -> None:
    """Write the golden rows beside the weights that were just saved; does nothing on processes that do not save.

    Rewards are computed one response at a time, as the saved weights give them: in evaluation mode and without mixed
    precision. Neither modes nor random states are changed. Where the weights lie in shards on several processes there
    are none, and the log says so.

    Args:
        trainer: The trainer.
        folder: Where the weights are (None: the output folder).
    """
    if not trainer.args.should_save:
        return
    rows = trainer._golden_rows
    path = Path(str(trainer.args.output_dir) if folder is None else folder) / FILE_NAME
    if not trainer.args.golden_rows:
        path.unlink(missing_ok=True)  # those of an earlier run into this folder belong to other weights
        return
    rewards, problem = _rewards_or_why_not(trainer, rows)
    if problem is not None:
        logger.warning(
            "No %s beside this checkpoint: %s. `plaudit verify MODEL --rows FILE --save` writes it afterwards.",
            FILE_NAME,
            problem,
        )
        path.unlink(missing_ok=True)
        return
    tokenizer: Any = trainer.processing_class
    golden = GoldenRows(
        rows,
        chat_template=chat_template_hash(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        how=f"rows of the run's data, rewards of its trainer at step {trainer.state.global_step}",
        versions=installed_versions(),
    )
    golden.with_rewards(rewards, computed_in(trainer._base_model)).save(path.parent)
    _say_whose_rows(str(trainer.args.output_dir), len(rows), trainer.args.push_to_hub)


@functools.cache  # once a run is enough
def _say_whose_rows(output_dir: str, rows: int, public: bool) -> None:
    logger.log(
        logging.WARNING if public else logging.INFO,
        "%s in %s holds %d responses of your data in clear%s. `golden_rows=0` leaves them out.",
        FILE_NAME,
        output_dir,
        rows,
        ", and goes to the Hub with the model" if public else "",
    )


def _rewards_or_why_not(trainer: RewardTrainer, rows: Sequence[GoldenRow]) -> tuple[list[float], str | None]:
    problem = _why_not(trainer) if rows else "no row of the data can be read as one, or all are too long"
    if problem is not None:
        return [], problem
    try:
        rewards = _rewards(trainer, rows)
    except RuntimeError as error:  # no memory left, or a model that only works in mixed precision
        return [], f"the model could not be called by itself ({error})"
    return rewards, None if all(map(math.isfinite, rewards)) else "a reward is no finite number"


def computed_in(base_model: Any) -> str:
    """What a model computes in below its head, as `GoldenRows` writes it.

    Args:
        base_model: The reward model, without wrapping.
    """
    if getattr(base_model, "is_quantized", False):
        return "quantized"
    dtype = str(base_model.dtype).removeprefix("torch.")
    on_tensor_cores = base_model.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if dtype == "float32" and on_tensor_cores else dtype


def _why_not(trainer: RewardTrainer) -> str | None:
    """Why this process cannot compute rewards by itself; None where it can."""
    if trainer.is_fsdp_enabled:
        return "with FSDP the weights lie in shards on all processes"
    for parameter in trainer.model.parameters():
        if hasattr(parameter, "ds_id"):
            return "with DeepSpeed ZeRO-3 the weights lie in shards on all processes"
        if hasattr(parameter, "device_mesh"):
            return "the weights lie in shards on all processes"
    return None


def _rewards(trainer: RewardTrainer, rows: Sequence[GoldenRow]) -> list[float]:
    model, base_model = trainer.model, trainer._base_model
    pad_token_id: Any = trainer.processing_class.pad_token_id  # type: ignore[union-attr]
    collate = PaddedCollator(pad_token_id)
    reads_positions = trainer._forward._reads_positions
    forward = RewardForward(base_model, "padded", "one response at a time", reads_positions=reads_positions)
    device = base_model.device
    rewards = []
    with _as_it_is_saved(model, device), torch.no_grad():
        for row in rows:
            batch = collate([{"response_ids": [list(row.ids)], "scores": [0.0]}])
            moved = {
                name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()
            }
            rewards.append(forward(model, moved).rewards_N.float().item())
    return rewards


@contextmanager
def _as_it_is_saved(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode and no mixed precision for a while; everything is as before afterwards."""
    training = [module for module in model.modules() if module.training]
    with ExitStack() as restored:
        restored.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        for module in training:
            restored.callback(setattr, module, "training", True)
        # accelerate keeps the forward that it has wrapped in autocast.
        original = getattr(model, "_original_forward", None)
        if original is not None:
            restored.callback(setattr, model, "forward", model.forward)
            model.forward = original
        model.eval()
        yield


RUN_RECORD = "plaudit_run.json"
"""Name of the file in the folder of a run, and in each of its checkpoints."""
FORMAT, VERSION = "plaudit run", 1
_STATE = ("global_step", "epoch", "max_steps", "num_train_epochs", "best_metric", "best_global_step", "total_flos")


def write_run_record(trainer: RewardTrainer, folder: str | os.PathLike[str] | None = None) -> None:
    """Write the record of a run beside its weights; does nothing on processes that do not save.

    The record of a checkpoint leaves out the logs, which stand in the checkpoint's ``trainer_state.json``.

    Args:
        trainer: The trainer, at any time after it was made.
        folder: Where the weights were saved (None: the output folder).
    """
    if not trainer.args.should_save:
        return
    path = Path(str(trainer.args.output_dir) if folder is None else folder) / RUN_RECORD
    record = run_record(trainer)
    if path.parent.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-"):
        del record["log_history"]
    path.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when it is whole: a process may be killed at any time.
    unfinished = path.with_suffix(".json.part")
    unfinished.write_text(json.dumps(record, indent=1, default=str, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


def run_record(trainer: RewardTrainer) -> dict[str, Any]:
    """What there is to know about a run without its data set, as plain values.

    Args:
        trainer: The trainer.
    """
    settings = trainer.args.to_dict()
    base_model, state = trainer._base_model, trainer.state
    return {
        "format": FORMAT,
        "version": VERSION,
        "saved": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "base_model": getattr(base_model.config, "name_or_path", "") or None,
        "architecture": type(base_model).__name__,
        "adapter": is_peft_model(trainer.model),
        **_parameters(trainer),
        "objective": trainer.training_objective.name,
        "batch_layout": trainer.batch_layout,
        "batch_layout_reason": trainer.batch_layout_reason,
        "device": torch.cuda.get_device_name(trainer.args.device)
        if trainer.args.device.type == "cuda"
        else trainer.args.device.type,
        "processes": trainer.args.world_size,
        "data": {name: report_as_dict(report) for name, report in trainer.data_reports.items()},
        "settings": settings,
        "changed_settings": changed_settings(settings),
        "versions": installed_versions(),
        "state": {name: getattr(state, name, None) for name in _STATE},
        "log_history": state.log_history,
    }


def report_as_dict(report: DataReport) -> dict[str, Any]:
    """What was read, dropped and found suspicious in a data set, as plain values.

    Args:
        report: The report; its `prompts`, one number a row, are left out.

    >>> report = DataReport("train", 1024, "drop", "train")
    >>> report.add(0, 1), report_as_dict(report)["dropped"]
    (False, {'overlong': {'count': 1, 'first_rows': [0]}})
    """
    values = dataclasses.asdict(dataclasses.replace(report, prompts=None, first_error=None))
    del values["prompts"], values["first_error"]
    return {**values, "lengths": {**values["lengths"], "mean": report.lengths.mean}, "summary": report.summary()}


def changed_settings(settings: Mapping[str, Any]) -> list[str]:
    """Names of the settings that are not at their defaults, sorted.

    Args:
        settings: Those of a run, as plain values.

    >>> changed_settings({"learning_rate": 3e-6, "seed": 42})
    ['learning_rate']
    """
    changed = []
    for setting in dataclasses.fields(RewardConfig):
        factory = setting.default_factory
        default = setting.default if factory is dataclasses.MISSING else factory()
        plain = default.value if isinstance(default, enum.Enum) else default
        if setting.name in settings and setting.init and settings[setting.name] != plain:
            changed.append(setting.name)
    return sorted(changed)


def _parameters(trainer: RewardTrainer) -> dict[str, int | None]:
    """How many parameters there are; None where this process holds only some of them."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return {"parameters": None, "trainable_parameters": None}
    model = trainer._base_model
    return {
        "parameters": model.num_parameters(),
        "trainable_parameters": model.num_parameters(only_trainable=True),
    }
