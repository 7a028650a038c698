"""The shape of the code: data flows one way, the core needs little."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gradalign"
ORDER = [
    "errors", "endpoint", "parts", "processes", "files", "rows", "problems", "rewards", "policy", "executors",
    "rollouts", "alignment", "selection", "curriculum", "trainers", "report", "bench", "plan", "config", "cli",
    "__main__",
]  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        module = node.module if isinstance(node, ast.ImportFrom) else None
        if module and module.startswith("gradalign."):
            imported = module.split(".")[1]
            assert ORDER.index(imported) <= ORDER.index(own), f"{path.name} imports {module}"


def test_files_read_in_one_sitting() -> None:
    assert {path.name: n for path in FILES if (n := len(path.read_text().splitlines())) > 300} == {}


def test_policy_and_alignment_need_torch_transformers_and_pyarrow_alone() -> None:
    code = """
import sys
for name in ("rich", "pydantic", "peft", "gguf", "trl", "datasets", "accelerate", "ray"):
    sys.modules[name] = None
import gradalign.alignment.spread, gradalign.alignment.table, gradalign.policy.load
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from gradalign.cli.main import main; main([]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False).returncode == 0
