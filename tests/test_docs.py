"""What the documents say is what the code does: the package of docs/plugins.md is built and its command run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pyarrow.parquet as pq

DOCS = Path(__file__).parents[1] / "docs"


def test_the_plugin_of_the_documents_works(tmp_path: Path) -> None:
    text = (DOCS / "plugins.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M))
    project, module, command = blocks["toml"], blocks["python"], blocks[""]
    groups = tomllib.loads(project)["project"]["entry-points"]
    (tmp_path / "my_parts.py").write_text(module)
    info = tmp_path / "my_parts-0.1.dist-info"  # what pip writes; installing would change the environment for all tests
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-parts\nVersion: 0.1\n")
    points = [f"[{group}]\n{name} = {value}\n" for group, own in groups.items() for name, value in own.items()]
    (info / "entry_points.txt").write_text("".join(points))
    arguments = shlex.split(command.replace("\\\n", " "))[1:]
    done = subprocess.run(
        [sys.executable, "-m", "gradalign", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{DOCS.parent}"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = pq.read_table(next(tmp_path.glob("runs/squares/*/alignments.parquet"))).to_pylist()
    chosen = [row for row in table if row["selected"]]
    assert len(table) == 40
    assert len(chosen) == 2
    assert min(row["score"] for row in chosen) > 0


def test_the_reference_is_what_the_docstrings_say() -> None:
    script = DOCS.parent / "scripts" / "make_reference.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_links_between_documents_lead_somewhere() -> None:
    root = DOCS.parent
    for page in [
        *root.glob("*.md"),
        *DOCS.rglob("*.md"),
        *root.glob("benchmarks/**/*.md"),
        *root.glob("examples/**/*.md"),
    ]:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if not link.startswith(("http://", "https://", "mailto:")):
                assert (page.parent / link).exists(), f"{page}: {link}"
