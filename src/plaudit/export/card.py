"""The model card of an export: how to use it, what was done to it, and what the card of its source says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from plaudit.export.result import ExportResult
from plaudit.model.calibration import FILE_NAME as CALIBRATION_FILE

_KEPT = ("language", "license", "license_name", "license_link", "base_model", "datasets", "tags")
_REPLACED = ("Load and score", "Serve", "Export")
_BLANK = "[More Information Needed]"  # a section of the Hub's form that nobody has filled in


def render_card(result: ExportResult, source_card: str | None) -> str:
    """The card as Markdown with its YAML header.

    Args:
        result: What was done.
        source_card: Card of the source, if it has one: its sections on loading and serving are replaced.
    """
    header, body = _split(source_card or "")
    kept = {name: header[name] for name in _KEPT if header.get(name)}
    if str(kept.get("base_model", "")).startswith(("/", ".", "~")):
        del kept["base_model"]  # a path on somebody's machine
    tags = kept.get("tags", [])
    tags = {str(tag) for tag in (tags if isinstance(tags, list) else [tags])}
    if result.adapter != "kept":
        tags = {tag for tag in tags if tag != "lora" and not tag.startswith("base_model:adapter")}
    kept["tags"] = sorted({"plaudit", "reward-model", *tags})
    about = {
        "library_name": "peft" if result.adapter == "kept" else "transformers",
        "pipeline_tag": "text-classification",
    }
    name = result.folder.name
    parts = [
        f"---\n{yaml.safe_dump({**about, **kept}, sort_keys=False)}---",
        f"# {name}",
        "A reward model: it puts one number on a conversation, higher where the answer is preferred.",
        *_use(result, name),
        "## Export",
        f"Written by `plaudit export` from {result.source}.",
        "\n".join(["| | |", "|---|---|", *(f"| {title} | {text} |" for title, text in result.lines())]),
        *(f"**Note.** {note}" for note in result.notes),
    ]
    rest = _sections(body)
    if rest:
        parts.append(f"What the card of {result.source} says:")
    return "\n\n".join([*parts, *rest]) + "\n"


def _use(result: ExportResult, name: str) -> list[str]:
    load = "from transformers import AutoModelForSequenceClassification as Model, AutoTokenizer"
    serve = [
        "## Serve",
        f'```bash\nvllm serve {name} --runner pooling   # then POST /classify with "use_activation": false\n'
        f"plaudit serve {name}\n```",
    ]
    if result.adapter == "kept":
        load = (
            "from peft import AutoPeftModelForSequenceClassification as Model\nfrom transformers import AutoTokenizer"
        )
        serve = ["## Serve", f"```bash\nplaudit serve {name}\n```", "Other servers need it merged: `plaudit export`."]
    labels = ", num_labels=1" if result.adapter == "kept" else ""
    beside = []
    if result.calibration is not None and result.calibration.changes_rewards:
        beside = [f"Only Plaudit applies `{CALIBRATION_FILE}`; the code above gives rewards without it."]
    return [
        "## Load and score",
        f'```python\n{load}\n\nmodel = Model.from_pretrained("{name}"{labels})\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
        'messages = [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]\n'
        'inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)\n'
        "reward = model(**inputs).logits.item()\n```",
        "Text rendered with the chat template is tokenised without further special tokens. "
        "In batches, pad on the right.",
        *beside,
        *serve,
    ]


def _split(card: str) -> tuple[dict[str, Any], str]:
    """The YAML header of a card, and the rest."""
    found = re.match(r"---\n(.*?)\n---\n?(.*)", card, flags=re.DOTALL)
    if found is None:
        return {}, card
    try:
        header = yaml.safe_load(found[1])
    except yaml.YAMLError:
        header = None
    return (header if isinstance(header, dict) else {}), found[2]


def _sections(body: str) -> list[str]:
    """The sections of a card that are still true, without the title."""
    sections = re.split(r"(?m)^(?=## )", body)
    kept = []
    for section in sections:
        title = section.partition("\n")[0].removeprefix("## ").strip()
        text = re.sub(r"(?m)\A# .*\n", "", section.strip() + "\n").strip()
        # A title with nothing below it but what the form says to fill in there is as good as none.
        said = re.sub(r"<!--.*?-->|^## .*?$", "", text, flags=re.DOTALL | re.MULTILINE).strip()
        replaced = section.startswith("## ") and title in _REPLACED
        if said and not replaced and _BLANK not in text:
            kept.append(text)
    return kept


def write_card(result: ExportResult, folder: Path, source_card: Path | None) -> None:
    """Write `README.md`.

    Args:
        result: What was done.
        folder: Where to.
        source_card: Card of the source, if it has one.
    """
    text = None if source_card is None else source_card.read_text(encoding="utf-8", errors="replace")
    (folder / "README.md").write_text(render_card(result, text), encoding="utf-8")
