"""A policy cut over two processes gives what one process gives, and neither of them ever holds it whole."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gradalign.alignment.passes import Budget, Weighted, over_batches
from gradalign.alignment.table import read_alignments
from gradalign.errors import GradAlignError
from gradalign.files import read_json
from gradalign.policy.group import Group
from gradalign.policy.packing import rows_of
from gradalign.trainers.trl.model import require_whole
from tests.conftest import Ran, _common, finish, make_groups, make_policy
from tests.fsdp_run import CASES, NAMES, command, everything, write_rows

BLOCKS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, an adapter, rollouts; what one process found (whole.json) and what two did (cut.json)."""
    folder = tmp_path_factory.mktemp("fsdp")
    for name in NAMES:
        make_policy(name).model.save_pretrained(folder / name)
    transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**_common(num_hidden_layers=BLOCKS, tie_word_embeddings=False))
    ).save_pretrained(folder / "deep")
    adapted = peft.get_peft_model(make_policy("llama").model, peft.LoraConfig(r=3, target_modules="all-linear"))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.3)
    adapted.save_pretrained(str(folder / "lora"))
    write_rows(folder)
    (folder / "whole.json").write_text(json.dumps(everything(folder, False)))
    launch = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = finish([*launch, "-m", "tests.fsdp_run", str(folder)])
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(folder / "whole.json")
    return found


@pytest.fixture(scope="module")
def both(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_json(folder / "cut.json")
    return found


def column(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], np.float64)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_numbers_of_one(one: dict[str, Any], both: list[dict[str, Any]], case: str) -> None:
    single = CASES[case][1].get("dtype") == "float32"
    tolerance, noise = (2e-5, 5e-3) if single else (1e-11, 1e-6)  # noise: of differences of forward passes
    mine = one["cases"][case]
    assert mine["status"].count("scored") == 6
    assert mine["status"].count("zero_variance") == 1
    for share in both:
        cut = share["cases"][case]
        assert cut["status"] == mine["status"]
        for name, values in mine["numbers"].items():
            expected, found = column(values), column(cut["numbers"][name])
            differenced = name in ("se", "t", "corr") or case == "central"
            largest = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
            allowed = (noise if differenced else tolerance) * largest
            np.testing.assert_allclose(found, expected, rtol=0, atol=allowed, equal_nan=True, err_msg=name)
        facts = cut["direction"]
        assert facts.keys() == mine["direction"].keys()
        for name, value in mine["direction"].items():
            assert facts[name] == (pytest.approx(value, rel=tolerance) if isinstance(value, float) else value), name


@pytest.mark.parametrize("case", CASES)
def test_a_cut_policy_has_its_own_fingerprint_before_and_after(
    one: dict[str, Any], both: list[dict[str, Any]], case: str
) -> None:
    assert one["cases"][case]["restored"]
    for share in both:
        assert share["cases"][case]["restored"]
        assert share["cases"][case]["fingerprint"] == one["cases"][case]["fingerprint"]


def test_a_direction_in_a_file_is_followed_by_either(one: dict[str, Any], both: list[dict[str, Any]]) -> None:
    for share in both:
        for expected, found in zip(one["followed"], share["followed"], strict=True):
            np.testing.assert_allclose(column(found), column(expected), rtol=0, atol=1e-12, equal_nan=True)


def test_no_process_holds_the_whole_of_anything(both: list[dict[str, Any]]) -> None:
    block, matrix = 4 * 32 * 24 + 3 * 32 * 64 + 2 * 32, 61 * 32  # attention's four add up to 3 * 32 * 32
    whole = BLOCKS * block + 2 * matrix + 32
    held = [share["held"] for share in both]
    assert sum(share["own"] for share in held) == whole
    for share in held:
        assert share["own"] < 0.51 * whole
        assert share["loading"] == block  # one unit at a time
        assert share["weights"] == block + matrix + 32  # a block; output layer and last norm
        assert share["direction"] == 32 * 64  # the largest matrix
        assert share["gradient"] <= matrix + 32 * 64  # the output layer's own, and another


def test_what_needs_a_whole_policy_is_refused_in_one_line(both: list[dict[str, Any]]) -> None:
    for share in both:
        reference, sketch, offload, processes = share["refused"]
        assert "engine reference takes a policy that is whole" in reference
        assert "engine sketch takes a policy that is whole" in sketch
        assert "leave --offload out" in offload
        assert "share passes out, not groups" in processes


def test_the_command_writes_the_same_table_and_direction(folder: Path, gradalign: Callable[..., Ran]) -> None:
    assert gradalign(*command(folder, "whole")).status == 0
    one, two = (read_alignments(folder / f"{name}.parquet") for name in ("whole", "cut"))
    assert [(a.key, a.status, a.rank) for a in one] == [(a.key, a.status, a.rank) for a in two]
    dots = [column([a.numbers.dot for a in table]) for table in (one, two)]
    np.testing.assert_allclose(dots[1], dots[0], rtol=1e-4, equal_nan=True)
    saved = [load_file(folder / f"{name}.safetensors") for name in ("whole", "cut")]
    assert saved[0].keys() == saved[1].keys()
    for name, tensor in saved[0].items():
        torch.testing.assert_close(saved[1][name], tensor, rtol=1e-4, atol=1e-7)
    config = read_json(folder / "cut.config.json")
    assert config["options"]["shard"] is True
    assert config["policy"] == read_json(folder / "whole.config.json")["policy"]


def test_a_direction_written_tensor_by_tensor_is_the_file_that_safetensors_writes(folder: Path) -> None:
    path, again = folder / "followed.safetensors", folder / "again.safetensors"
    with safe_open(path, framework="pt") as file:
        save_file(load_file(path), again, metadata=file.metadata())
    assert path.read_bytes() == again.read_bytes()


def test_shard_without_torchrun_says_how_to_start(folder: Path, gradalign: Callable[..., Ran]) -> None:
    assert "start with `torchrun --nproc-per-node N" in gradalign(*command(folder, "alone", "--shard")).error


def test_the_command_refuses_before_it_loads_anything(gradalign: Callable[..., Ran]) -> None:
    refused = gradalign(*command(Path("nowhere"), "alone", "--shard", "--engine", "sketch")).error
    assert "engine sketch takes a policy that is whole" in refused


def test_shard_leaves_the_number_of_the_device_open(
    folder: Path, gradalign: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    assert "write 'cuda'" in gradalign(*command(folder, "alone", "--shard", "--device", "cuda:1")).error


def test_memory_that_runs_out_while_others_wait_ends_the_run() -> None:
    def run() -> None:
        raise torch.OutOfMemoryError("out of memory")

    passes = [list(rows_of(make_groups(1, 0)[0], 999, True))]
    with pytest.raises(GradAlignError, match="lower --batch-tokens"):
        Budget(999, alone=False).attempt(run, passes, True)


@pytest.mark.parametrize("abreast", [1, 2, 3])
def test_passes_side_by_side_hold_every_group_once_and_split_only_one_that_is_alone(abreast: int) -> None:
    groups = [*make_groups(9, 3), *make_groups(2, 4, rollouts=20, prefix="large"), *make_groups(4, 5, prefix="h")]
    each = [Weighted(g, np.ones(len(g.rollouts)), 1.0, np.arange(len(g.rollouts))) for g in groups]
    calls: list[tuple[list[Group], list[list[Any]]]] = []

    def run(some: list[Weighted], passes: list[list[Any]]) -> bool:
        calls.append(([one.group for one in some], passes))
        return True

    list(over_batches(each, Budget(60), True, True, run, abreast))
    assert [group.key for some, _ in calls for group in some] == [group.key for group in groups]
    assert max(len(passes) for some, passes in calls if len(some) > 1) == abreast
    assert any(len(passes) > 1 for some, passes in calls if len(some) == 1)
    for some, passes in calls:
        held = [row.group.key for rows in passes for row in rows]
        assert sorted(set(held)) == sorted(group.key for group in some)
        assert len(some) == 1 or len(held) == len(some)
        assert all(sum(row.tokens for row in rows) <= 60 for rows in passes)


def test_choosing_in_a_trainer_that_cuts_its_model_is_refused() -> None:
    def trainer(fsdp: bool, stage: int | None) -> Any:
        plugin = None if stage is None else SimpleNamespace(zero_stage=stage)
        state = SimpleNamespace(deepspeed_plugin=plugin)
        return SimpleNamespace(
            is_fsdp_enabled=fsdp, is_deepspeed_enabled=stage is not None, accelerator=SimpleNamespace(state=state)
        )

    require_whole(trainer(False, 2))
    for cut in (trainer(True, None), trainer(False, 3)):
        with pytest.raises(GradAlignError, match="choosing needs the whole policy in every process"):
            require_whole(cut)
