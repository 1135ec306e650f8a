"""The structure of the package: imports point downward, and nothing heavy happens before it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import plaudit

SOURCE = Path(plaudit.__file__).parent
# Lowest first; parts on one line do not import each other.
LAYERS = [
    {"version", "errors", "intervals"},
    {"files"},
    {"schema"},
    {"prefix_tree", "losses", "metrics"},
    {"objectives"},
    {"data"},
    {"model"},
    {"doctor"},
    {"training", "inference"},
    {"evaluation", "serve", "export"},
    {"verification"},
    {"report"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
HEIGHT = {part: height for height, layer in enumerate(LAYERS) for part in layer}
FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imported_parts(path: Path) -> set[str]:
    """Parts of plaudit that a file imports, at the top or inside functions."""
    modules = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            modules += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in modules if name.startswith("plaudit.")}


def test_imports_point_downward():
    assert {part_of(path) for path in FILES} <= HEIGHT.keys(), "name the layer of each in this test"
    upward = [
        f"{path.relative_to(SOURCE)} imports plaudit.{other}, which is above it"
        for path in FILES
        for other in imported_parts(path) - {part_of(path)}
        if HEIGHT[other] >= HEIGHT[part_of(path)]
    ]
    assert upward == []


def test_the_public_names_are_these_and_load():
    assert plaudit.__all__ == [
        "ConfigError",
        "DataCheck",
        "DataCollatorForPreference",
        "DataError",
        "PlauditError",
        "RewardConfig",
        "RewardModel",
        "RewardTrainer",
        "__version__",
        "check_dataset",
        "evaluate",
        "export_model",
        "verify",
    ]
    for name in plaudit.__all__:
        assert getattr(plaudit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Rewardtrainer'"):
        _ = plaudit.Rewardtrainer


def test_importing_plaudit_imports_no_torch():
    code = "import sys, plaudit; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
