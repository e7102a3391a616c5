"""The house rules that can be read off the syntax trees: who imports whom, file sizes, first lines."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(p for package in ("sweeps", "trainer", "analysis") for p in (ROOT / package).rglob("*.py"))
FORBIDDEN = {
    "trainer": {"sweeps", "analysis", "mlflow", "optuna", "submitit"},
    "analysis": {"sweeps", "torch", "mlflow", "optuna", "submitit"}
    | {"typer", "click", "rich", "pydantic", "tokenizers"},
    "sweeps": {"analysis", "torch"},
}
ONE_HOME = ("mlflow", "optuna", "submitit")
TORCH_FREE = [
    f"trainer.{name}"
    for name in (
        "errors messages hints commandline config curriculum presets flops rundir execution corpora "
        "batches provenance models.structures models.config"
    ).split()
]


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_each_module_keeps_the_rules(path: Path) -> None:
    source = path.read_text()
    tree = ast.parse(source)
    package = path.relative_to(ROOT).parts[0]
    roots = {name.split(".")[0] for name in imported(tree)}
    assert not roots & FORBIDDEN[package]
    if package == "sweeps" and path.name not in ("worker.py", "gang.py"):
        rest = {name for name in imported(tree) if name.startswith("trainer.")}
        free = {name for name in rest for room in TORCH_FREE if name == room or name.startswith(room + ".")}
        assert rest == free, rest - free
    assert ast.get_docstring(tree), "no first line that says what the room is for"
    assert source.count("\n") <= 420
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno <= 70, node.name


@pytest.mark.parametrize("library", ONE_HOME)
def test_a_foreign_system_has_one_home(library: str) -> None:
    homes = [
        p for p in MODULES if library in {name.split(".")[0] for name in imported(ast.parse(p.read_text()))}
    ]
    assert len(homes) <= 1, homes
