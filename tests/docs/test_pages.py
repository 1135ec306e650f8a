"""The pages that are generated are up to date, and links between pages lead somewhere."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_settings_page_is_what_the_settings_say():
    spec = importlib.util.spec_from_file_location("settings_page", ROOT / "docs" / "settings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "settings.md").read_text() == module.page(), "run `make docs`"


def test_links_lead_somewhere():
    links = [(page, target) for page in PAGES for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())]
    assert [f"{page.name}: {target}" for page, target in links if not (page.parent / target).exists()] == []


def test_commands_of_make_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"\bmake ([a-z-]+)", page.read_text()):
            assert target in targets, f"{page.name}: make {target}"
