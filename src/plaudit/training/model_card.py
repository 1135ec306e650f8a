"""The model card: what a reward model was trained on, how well it does, and how to use it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import yaml

from plaudit.data.report import DataReport
from plaudit.objectives import ObjectiveName
from plaudit.training.config import OBJECTIVE_SETTINGS
from plaudit.version import __version__

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
    "regression": "Trained on graded answers with the squared error: the reward estimates the grade.",
    "binary_cross_entropy": (
        "Trained on answers labelled good or bad with the binary cross-entropy: "
        "the sigmoid of the reward estimates the probability of good."
    ),
}
_HEIGHT: dict[ObjectiveName, str] = {
    "regression": "Rewards are estimates of grades, on the scale of the grades.",
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
