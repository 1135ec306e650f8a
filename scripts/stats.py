"""Measures the source tree: its size, its words, its functions, and which files import each other in a circle.

python scripts/stats.py             # the figures
python scripts/stats.py --check     # fail on a circle of files, or a function body past 80 lines
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

LONGEST_FUNCTION = 80
USUAL_FUNCTION = 35


def main(source: Path, *, check: bool) -> int:
    """Print the figures of the tree below `source`; with `check`, return 1 where it breaks a rule."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(source.rglob("*.py"))}
    imports = {path: set(imported_files(path, tree, source)) for path, tree in trees.items()}
    lengths = [(body_lines(node), path, node) for path, tree in trees.items() for node in functions(tree)]
    circles, too_long = find_circles(imports), [entry for entry in lengths if entry[0] > LONGEST_FUNCTION]
    if not check:
        print_figures(trees, imports, [length for length, _, _ in lengths])
    for circle in circles:
        print("circle:", ", ".join(str(path.relative_to(source)) for path in circle))
    for length, path, node in too_long:
        print(f"{length} lines: {path.relative_to(source)}:{node.lineno} {node.name}")
    return int(check and bool(circles or too_long))


def print_figures(trees: dict[Path, ast.Module], imports: dict[Path, set[Path]], lengths: list[int]) -> None:
    """Print one line per figure."""
    lines = sum((count_lines(path, tree) for path, tree in trees.items()), Counter())
    importers = Counter(target for targets in imports.values() for target in targets)
    usual = sum(length <= USUAL_FUNCTION for length in lengths) / len(lengths)
    classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    dataclasses = sum(any("dataclass" in ast.unparse(mark) for mark in node.decorator_list) for node in classes)
    print(f"files                        {len(trees)}")
    print(f"lines                        {lines.total()}")
    for kind in ("code", "docstring", "comment", "import", "blank"):
        print(f"  {kind:27}{lines[kind]}")
    print(f"code lines per file          {lines['code'] / len(trees):.0f}")
    print(f"files with one importer      {sum(count == 1 for count in importers.values())}")
    print(f"dataclasses                  {dataclasses}")
    shares = f"{usual:.1%} within {USUAL_FUNCTION} lines, longest {max(lengths)}"
    print(f"functions                    {len(lengths)}, {shares}")


def count_lines(path: Path, tree: ast.Module) -> Counter[str]:
    """Count the lines of a file by what they hold; a line of code with a comment is code."""
    text = path.read_text()
    kinds = dict.fromkeys(range(1, len(text.splitlines()) + 1), "code")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip():
            kinds[token.start[0]] = "comment"
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            kinds[number] = "blank"
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            kinds.update(dict.fromkeys(range(node.lineno, node.end_lineno + 1), "docstring"))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            kinds.update(dict.fromkeys(range(node.lineno, node.end_lineno + 1), "import"))
    return Counter(kinds.values())


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function and method."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the number of lines of a function's body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def imported_files(path: Path, tree: ast.Module, source: Path) -> Iterator[Path]:
    """Yield the files of the package that a file imports, anywhere in it; packages' `__init__` do not count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == source.name:
            base = source.parent.joinpath(*node.module.split("."))
            for target in (base, *(base / alias.name for alias in node.names)):
                file = target.with_suffix(".py")
                if file.is_file() and file != path:
                    yield file


def find_circles(imports: dict[Path, set[Path]]) -> list[list[Path]]:
    """Return the groups of files that reach each other by imports."""
    reached = {path: reachable(path, imports) for path in imports}
    groups = {frozenset(other for other in reached[path] if path in reached[other]) for path in imports}
    return [sorted(group) for group in groups if len(group) > 1]


def reachable(start: Path, imports: dict[Path, set[Path]]) -> set[Path]:
    """Return the files that a file imports, directly or through others."""
    seen: set[Path] = set()
    waiting = [start]
    while waiting:
        for target in imports[waiting.pop()] - seen:
            seen.add(target)
            waiting.append(target)
    return seen


if __name__ == "__main__":
    sys.exit(main(Path(__file__).parents[1] / "src" / "plaudit", check="--check" in sys.argv))
