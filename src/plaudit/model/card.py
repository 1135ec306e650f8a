"""Renders model cards, for training and for export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2
import yaml


def render_card(template: str, header: Mapping[str, Any], **values: Any) -> str:
    """Returns a card from a template of the package, as Markdown with a YAML header without its empty entries."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("plaudit", "."),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    entries = yaml.safe_dump({name: value for name, value in header.items() if value}, sort_keys=False)
    return environment.get_template(template).render(header=entries, **values)
