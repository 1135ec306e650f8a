"""The help of ``plaudit train``: every setting, taken from the dataclasses that declare them."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from plaudit.cli.arguments import OWN, RunArguments
from plaudit.cli.presets import PRESETS, value_text
from plaudit.cli.settings_table import settings_table
from plaudit.training.config import OBJECTIVE_SETTINGS, RewardConfig


def print_help(console: Console) -> None:
    """Print every setting, Plaudit's own first, the inherited ones last."""
    console.print(
        "Usage: plaudit train [--preset NAME] [--config FILE.yaml] [--dry-run] [--NAME VALUE ...]\n", markup=False
    )
    console.print("Train a reward model on preferences. For example:\n")
    console.print("  plaudit train --model_name_or_path Qwen/Qwen3-0.6B --dataset_name pairs.jsonl \\", markup=False)
    console.print("      --eval_fraction 0.1 --output_dir runs/first\n", markup=False)
    console.print(
        "Settings may be written --with_underscores or --with-hyphens, or stand in a YAML file as "
        "`name: value`; flags win over the file. `--NAME false` turns a switch off, `none` empties a number."
    )
    own = [one for one in dataclasses.fields(RewardConfig) if one.name in RewardConfig.__annotations__ and one.init]
    by_name = {one.name: one for one in own}
    objective = [by_name[name] for name in OBJECTIVE_SETTINGS]
    inherited = [one for one in dataclasses.fields(RewardConfig) if one not in own and one.init]
    sections: list[tuple[str, str, list[dataclasses.Field[Any]], type]] = [
        (RunArguments.title, "", list(dataclasses.fields(RunArguments)), RunArguments),
        ("Reward training", "", [one for one in own if one not in objective], RewardConfig),
        ("Objective", "What is learned from the data, and what is added to its loss.", objective, RewardConfig),
    ]
    sections += [(cls.title, cls.__doc__ or "", list(dataclasses.fields(cls)), cls) for cls in OWN[1:]]
    sections.append(
        ("Training", "Inherited from transformers' TrainingArguments.", inherited, RewardConfig),
    )
    _print_presets(console)
    for title, text, fields, cls in sections:
        console.print(Text(f"\n{title}", style="bold"), Text(f"  {text}", style="dim") if text else "", sep="")
        console.print(settings_table(fields, typing.get_type_hints(cls)))


def _print_presets(console: Console) -> None:
    console.print(Text("\nPresets", style="bold"), Text("  Defaults, chosen by --preset.", style="dim"), sep="")
    table = Table(box=None, show_header=False, padding=(0, 0, 0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, preset in PRESETS.items():
        values = ", ".join(f"{setting} {value_text(value)}" for setting, value in preset.values.items())
        table.add_row(Text(name, style="cyan"), Text(f"{preset.about} Sets {values}."))
    console.print(table)
