"""Renders model cards, for training and for export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2
import yaml


def render_card(template: str, header: Mapping[str, Any], **values: Any) -> str:
    """Returns a model card as Markdown with a YAML header, whose empty entries are left out.

    `template` is the path of a template in the package; its values are `values` and the header.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("plaudit", "."),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    entries = yaml.safe_dump({name: value for name, value in header.items() if value}, sort_keys=False)
    return environment.get_template(template).render(header=entries, **values)
