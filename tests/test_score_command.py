"""``gradalign score`` from the outside: files in, table out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from gradalign.policy.load import load_policy
from gradalign.policy.objective import Objective
from gradalign.rollouts.table import to_rows, write_rollouts
from tests.conftest import Ran, make_groups, make_policy, spawn
from tests.engine_tools import flat
from tests.test_engines import written_out

Run = Callable[..., Ran]
pytestmark = pytest.mark.filterwarnings("ignore::gradalign.errors.GradAlignWarning", "ignore::FutureWarning")


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Candidates (one silent, one of equal responses) and validation, as JSON lines of the bare format."""
    candidates, validation = make_groups(8, 1), make_groups(12, 2, prefix="v")
    for rollout in candidates[3].rollouts:
        rollout.reward = 1.0
    for name, groups in (("c", candidates), ("v", validation)):
        rows = [row for group in groups for row in to_rows(group)]
        bare = [{k: row[k] for k in ("key", "prompt_ids", "response_ids", "reward")} for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
    return tmp_path / "c.jsonl", tmp_path / "v.jsonl"


def arguments(model: Any, files: tuple[Path, Path], out: Path, *more: Any) -> list[Any]:
    return ["score", "--model", model, "--candidates", files[0], "--validation", files[1], "--out", out, *more]


def table(path: Path) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in pq.read_table(path).to_pylist()}


@pytest.mark.parametrize("engine", ["exact", "reference", "directional"])
def test_the_table_agrees_with_the_formula_written_out(
    gradalign: Run, llama_folder: Path, files: tuple[Path, Path], tmp_path: Path, engine: str
) -> None:
    ran = gradalign(*arguments(llama_folder, files, tmp_path / "s.parquet", "--engine", engine, "--advantage", "mean",
                               "--aggregation", "token_mean", "--temperature", "1.0"))  # fmt: skip
    assert ran.status == 0, ran.err
    policy = load_policy(str(llama_folder), dtype="float64")
    objective = Objective()
    candidates, validation = make_groups(8, 1), make_groups(12, 2, prefix="v")
    direction = np.mean([flat(written_out(policy, g, objective)) for g in validation], axis=0)
    direction /= np.linalg.norm(direction)
    rows = table(tmp_path / "s.parquet")
    assert list(rows) == [g.key for g in candidates]
    scale = np.sqrt(np.mean([(row["dot"] or 0) ** 2 for row in rows.values()]))
    for group in candidates:
        row = rows[group.key]
        if group.key == "g3":
            assert (row["status"], row["rank"], row["pass_rate"]) == ("zero_variance", 8, 1.0)
            assert all(row[n] is None for n in ("dot", "norm", "cosine", "se", "t", "corr", "score"))
            continue
        gradient = flat(written_out(policy, group, objective))
        dot = gradient @ direction
        assert row["status"] == "scored"
        assert row["n_rollouts"] == 5
        assert row["n_tokens"] == group.n_tokens
        assert row["pass_rate"] == pytest.approx(group.rewards.mean())
        assert row["dot"] == pytest.approx(dot, abs=(0.02 if engine == "directional" else 1e-4) * scale)
        if engine == "directional":
            assert row["norm"] is None
            assert row["cosine"] is None
            assert row["t"] == pytest.approx(row["dot"] / row["se"])
        else:
            assert row["cosine"] == pytest.approx(dot / np.linalg.norm(gradient), abs=1e-4)
            assert row["norm"] == pytest.approx(np.linalg.norm(gradient), rel=1e-4)
    scores = "dot" if engine == "directional" else "cosine"
    best = sorted((r for r in rows.values() if r["status"] == "scored"), key=lambda r: -r[scores])
    assert [r["rank"] for r in best] == list(range(1, 8))
    assert {r["selected"] for r in rows.values()} == {None}


def test_twice_the_same_bytes_and_the_configuration_beside(
    llama_folder: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    more = ["--contributions", "--strategy", "tscore", "--fraction", "0.5", "--seed", "3"]
    for name in ("a", "b"):
        done = spawn(*arguments(llama_folder, files, tmp_path / f"{name}.parquet", *more))
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert sum(row["selected"] for row in table(tmp_path / "a.parquet").values()) == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a.config.json", "a.parquet", "b.config.json", "b.parquet", "c.jsonl", "v.jsonl"
    ]  # fmt: skip
    config = json.loads((tmp_path / "a.config.json").read_text())
    assert config["options"]["seed"] == 3
    assert config["strategy"] == "tscore"
    assert config["direction"]["problems"] == 12
    assert config["covered"] == 1.0


def test_what_it_prints(gradalign: Run, llama_folder: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    ran = gradalign(*arguments(llama_folder, files, tmp_path / "s.parquet", "--contributions", "--parameters", "*mlp*"))
    for words in ("12 problems", "agreement of its halves", "forward-only scores: step", "zero_variance", "covered:",
                  "contributions", str(tmp_path / "s.parquet")):  # fmt: skip
        assert words in ran.out, words
    assert "\r" not in ran.err  # quiet where it is not a terminal


def test_masks_temperature_and_parquet_from_end_to_end(gradalign: Run, llama_folder: Path, tmp_path: Path) -> None:
    candidates, validation = make_groups(4, 1, masks=True), make_groups(6, 2, masks=True, prefix="v")
    write_rollouts(tmp_path / "c.parquet", candidates)
    write_rollouts(tmp_path / "v.parquet", validation)
    files = tmp_path / "c.parquet", tmp_path / "v.parquet"
    more = ["--temperature", "0.7", "--advantage", "std", "--aggregation", "sequence_mean", "--batch-tokens", "16"]
    ran = gradalign(*arguments(llama_folder, files, tmp_path / "s.parquet", *more))
    assert ran.status == 0, ran.err
    policy, objective = load_policy(str(llama_folder), dtype="float64"), Objective("std", "sequence_mean", 0.7)
    direction = np.mean([flat(written_out(policy, g, objective)) for g in validation], axis=0)
    for group in candidates:
        gradient = flat(written_out(policy, group, objective))
        cosine = gradient @ direction / np.linalg.norm(gradient) / np.linalg.norm(direction)
        assert table(tmp_path / "s.parquet")[group.key]["cosine"] == pytest.approx(cosine, abs=1e-4)


def test_bad_rows_stop_before_any_work_or_are_marked(
    gradalign: Run, llama_folder: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    with files[0].open("a") as file:
        file.write('{"key": "empty", "prompt_ids": [4], "response_ids": [], "reward": 1}\n')
        file.write('{"key": "nan", "prompt_ids": [5], "response_ids": [7], "reward": NaN}\n')
    out = tmp_path / "s.parquet"
    error = gradalign(*arguments(llama_folder, files, out)).error
    assert error.startswith(f"gradalign score: error: {files[0]}:41: field 'response_ids': the response has no token")
    assert not out.exists()
    ran = gradalign(*arguments(llama_folder, files, out, "--on-bad-row", "mark", "--fraction", "1"))
    assert ran.status == 0, ran.err
    rows = table(out)
    assert (rows["empty"]["status"], rows["nan"]["status"]) == ("no_tokens", "failed")
    assert {rows[k]["rank"] for k in ("empty", "nan", "g3")} == {8, 9, 10}
    assert not any(rows[k]["selected"] for k in ("empty", "nan", "g3"))


def test_overlap_and_stale_rollouts_are_warned_of(
    gradalign: Run, llama_folder: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    stale = make_groups(3, 2, prefix="v")
    for group in stale:
        group.policy = "0" * 16
    write_rollouts(tmp_path / "stale.jsonl", stale)
    ran = gradalign(*arguments(llama_folder, (tmp_path / "stale.jsonl", files[1]), tmp_path / "s.parquet"))
    assert ran.status == 0
    assert "sampled by another policy (0000000000000000; this one is" in ran.err
    assert "3 candidates have the prompt of a validation problem (first: 'v0')" in ran.err


Bad = Callable[[Path, tuple[Path, Path]], tuple[list[Any], str]]


def _one_sided(tmp: Path, files: tuple[Path, Path]) -> tuple[list[Any], str]:
    rows = [json.loads(line) | {"reward": 0} for line in files[1].read_text().splitlines()]
    (tmp / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--validation", tmp / "one.jsonl"], "none of the 12 problems carries a gradient"


def _no_weights(tmp: Path, files: tuple[Path, Path]) -> tuple[list[Any], str]:
    (tmp / "hollow").mkdir()
    (tmp / "hollow" / "config.json").write_text("{}")
    return ["--model", tmp / "hollow"], r"hollow: no weights in the folder \(model.safetensors\)"


def _broken_weights(tmp: Path, files: tuple[Path, Path]) -> tuple[list[Any], str]:
    make_policy("llama").model.save_pretrained(tmp / "broken")
    (tmp / "broken" / "model.safetensors").write_bytes(b"short")
    return ["--model", tmp / "broken"], "broken: cannot be loaded"


def _not_a_model(tmp: Path, files: tuple[Path, Path]) -> tuple[list[Any], str]:
    (tmp / "empty").mkdir()
    return ["--model", tmp / "empty"], "the folder holds no config.json"


def _lacking(tmp: Path, files: tuple[Path, Path]) -> tuple[list[Any], str]:
    make_policy("llama").model.save_pretrained(tmp / "lacking")
    weights = safetensors.torch.load_file(tmp / "lacking" / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(weights, tmp / "lacking" / "model.safetensors", {"format": "pt"})
    return ["--model", tmp / "lacking"], r"the weights lack 1 tensors \(first: model.layers.1.mlp.up_proj.weight\)"


BAD: dict[str, Bad] = {
    "tensor missing": _lacking,
    "no candidates": lambda tmp, files: (["--candidates", tmp / "no.jsonl"], r"no\.jsonl: no such file"),
    "one-sided validation": _one_sided,
    "no weights": _no_weights,
    "broken weights": _broken_weights,
    "not a model": _not_a_model,
    "no folder": lambda tmp, files: (["--model", tmp / "gone"], "gone: no such folder"),
    "no gguf": lambda tmp, files: (["--model", tmp / "gone.gguf"], "no such GGUF file"),
    "not on the hub": lambda tmp, files: (["--model", "nobody/nothing-like-it"], "no such folder, and not in the"),
    "no device": lambda tmp, files: (["--device", "quantum"], "device 'quantum' cannot be used"),
    "cosine wanted": lambda tmp, files: (
        ["--engine", "directional", "--strategy", "gradalign"], "'gradalign' needs cosine, which engine 'directional'"
    ),
    "pattern": lambda tmp, files: (["--parameters", "*nothing*"], r"no trainable parameter matches \*nothing\*"),
    "out a folder": lambda tmp, files: (["--out", tmp], "the alignment table is Parquet"),
    "out an input": lambda tmp, files: (
        ["--out", tmp / "x.parquet", "--candidates", tmp / "x.parquet"], "is also an input"
    ),
    "out in a file": lambda tmp, files: (["--out", files[0] / "s.parquet"], "cannot be written"),
    "short type": lambda tmp, files: (
        ["--engine", "directional", "--dtype", "bfloat16", "--difference", "central"],
        "central differences need float32 weights",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(
    gradalign: Run, llama_folder: Path, files: tuple[Path, Path], tmp_path: Path, case: str
) -> None:
    more, message = BAD[case](tmp_path, files)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
    error = gradalign(*arguments(llama_folder, files, tmp_path / "s.parquet", *more)).error
    assert re.search(message, error), error
    assert before == {path: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
    assert not (tmp_path / "s.parquet").exists()


def test_sequences_longer_than_the_model_takes(
    gradalign: Run, llama_folder: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    with files[1].open("a") as file:
        file.write(json.dumps({"key": "w", "prompt_ids": [4] * 100, "response_ids": [5] * 29, "reward": 1}) + "\n")
    error = gradalign(*arguments(llama_folder, files, tmp_path / "s.parquet")).error
    assert f"{files[1]}:61: field 'response_ids': prompt and response have 129 tokens, the policy takes 128" in error


def test_a_full_disk_loses_nothing(llama_folder: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    """The system refuses every file beyond 2,000 bytes: one line, and the older table still stands."""
    out = tmp_path / "s.parquet"
    assert spawn(*arguments(llama_folder, files, out)).returncode == 0
    before = out.read_bytes()
    assert len(before) > 2000
    code = "from resource import *; setrlimit(RLIMIT_FSIZE, (2000, 2000)); import runpy; runpy.run_module('gradalign')"
    command = [sys.executable, "-c", code, *map(str, arguments(llama_folder, files, out, "--seed", "5"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert f"{out}: cannot be written (File too large)" in done.stderr
    assert "Traceback" not in done.stderr
    assert out.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_a_lora_adapter_covers_its_own_parameters(
    gradalign: Run, llama_folder: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    import peft

    torch.manual_seed(1)
    model = peft.get_peft_model(
        make_policy("llama").model,
        peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "embed_tokens"], init_lora_weights=False),
    )
    model.save_pretrained(str(tmp_path / "adapter"))
    results = {}
    for engine in ("exact", "reference", "directional"):
        out = tmp_path / f"{engine}.parquet"
        ran = gradalign(*arguments(llama_folder, files, out, "--engine", engine, "--adapter", tmp_path / "adapter"))
        assert ran.status == 0, ran.err
        results[engine] = table(out)
    for key, row in results["reference"].items():
        if row["status"] == "scored":
            assert results["exact"][key]["cosine"] == pytest.approx(row["cosine"], abs=1e-4)
            assert results["directional"][key]["corr"] == pytest.approx(row["corr"], abs=0.02)
    policy = load_policy(str(llama_folder), adapter=str(tmp_path / "adapter"))
    assert all("lora_" in name for name in policy.names)
    assert policy.covered == 1.0
    weights = safetensors.torch.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    renamed = {name.replace("layers.0", "layers.7"): tensor for name, tensor in weights.items()}
    safetensors.torch.save_file(renamed, tmp_path / "adapter" / "adapter_model.safetensors", {"format": "pt"})
    error = gradalign(*arguments(llama_folder, files, out, "--adapter", tmp_path / "adapter")).error
    assert "its tensors do not fit this model" in error
    shutil.rmtree(tmp_path / "adapter")
    assert "adapter" in gradalign(*arguments(llama_folder, files, out, "--adapter", tmp_path / "adapter")).error


def test_a_missing_extra_names_the_pip_command(
    gradalign: Run, llama_folder: Path, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    error = gradalign(*arguments(llama_folder, files, tmp_path / "s.parquet", "--adapter", "a")).error
    assert error.endswith("the package 'peft' is not installed: pip install 'gradalign[lora]'")
