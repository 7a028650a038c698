from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from gradalign.alignment.direction import Direction
from gradalign.alignment.record import Numbers
from gradalign.alignment.reference import Reference
from gradalign.bench import machine, speed_arms
from gradalign.bench.counts import Lengths
from gradalign.bench.speed_arms import ARMS, Setup
from gradalign.bench.speed_table import summary
from gradalign.bench.workloads import MODELS, WORKLOADS, Workload, build, random_groups
from gradalign.cli import bench as command
from gradalign.policy.group import Group
from gradalign.policy.objective import Objective
from tests.conftest import CONFIGS, Ran

SPEED = ("bench", "speed", "--model", "small", "--workloads", "small", "--device", "cpu", "--repeats", "2")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model and workload beside the others, and a small product."""
    monkeypatch.setitem(MODELS, "small", CONFIGS["llama-tied"])
    monkeypatch.setitem(WORKLOADS, "small", Workload(3, Lengths(prompt=5, rollouts=4, response=6)))
    monkeypatch.setitem(machine.PRODUCT, "cpu", 32)


def _read(out: Path) -> dict[str, Any]:
    return json.loads(out.read_text())


def test_arms_take_turns_and_agree(gradalign: Callable[..., Ran], tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    ran = gradalign(*SPEED, "--out", out)
    assert ran.status == 0, ran.err
    found = _read(out)
    assert found["command"] == "bench speed"
    assert found["options"]["seed"] == 0
    assert {"versions", "commit", "machine"} <= found.keys()
    record = found["measured"]["small"]
    assert record["tokens"] == 5 + 4 * 6
    assert len(record["product"]["seconds"]) == machine.PRODUCTS * 2 * len(ARMS)
    for arm in ARMS:
        own, summed = record["arms"][arm], found["summary"]["small"]["arms"][arm]
        assert len(own["seconds"]) == len(own["peak_bytes"]) == 2
        assert summed["least"] <= summed["seconds"] <= summed["most"]
        assert len(own["dots"]) == 3
        if not ARMS[arm].sketched:
            assert summed["error"] < (0.05 if ARMS[arm].differences else 1e-4)
        assert f"| {arm} |" in ran.out
    assert out.with_suffix(".md").read_text().startswith("# gradalign bench speed\n")


@pytest.mark.parametrize("arm", [name for name, arm in ARMS.items() if not arm.sketched])
def test_arms_give_the_dots_of_the_reference(arm: str) -> None:
    policy = build("small", "float32", "cpu", 0)
    *groups, held_out = random_groups(WORKLOADS["small"], 3, policy.config.vocab_size, 0)
    referee = Reference(policy, Objective())
    gradient = referee.gradient(held_out)
    norm = sum(float((g**2).sum()) for g in gradient) ** 0.5
    direction = Direction([g / norm for g in gradient], norm, 1, 0, 0, None, None)
    found = ARMS[arm].make(Setup(policy, Objective(), 64, direction), groups)(groups)
    truth = list(referee.measure(groups, direction))
    largest = max(abs(n.dot or 0.0) for n in truth)
    tolerance = (0.05 if ARMS[arm].differences else 1e-4) * largest
    assert [n.dot for n in found] == pytest.approx([n.dot for n in truth], abs=tolerance)
    if arm == "plain":
        assert [n.norm for n in found] == pytest.approx([n.norm for n in truth], rel=1e-4)
        assert [n.cosine for n in found] == pytest.approx([n.cosine for n in truth], abs=1e-5)
    assert all(p.grad is None for p in policy.parameters)


def test_a_killed_run_goes_on(gradalign: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, calls = tmp_path / "s.json", 0
    plain = ARMS["plain"]

    def make(setup: Setup, groups: Sequence[Group]) -> speed_arms.Run:
        run = plain.make(setup, groups)

        def dies(some: Sequence[Group]) -> list[Numbers]:
            nonlocal calls
            calls += 1
            if calls == 3:  # the warm-up, the first repeat, and here
                raise KeyboardInterrupt
            return run(some)

        return dies

    monkeypatch.setitem(ARMS, "plain", dataclasses.replace(plain, make=make))
    assert gradalign(*SPEED, "--out", out).status == 130
    before = _read(out)["measured"]["small"]["arms"]
    assert {arm: len(own["seconds"]) for arm, own in before.items()} == dict.fromkeys(ARMS, 1)
    assert gradalign(*SPEED, "--out", out).status == 0
    after = _read(out)["measured"]["small"]["arms"]
    for arm, own in after.items():
        assert len(own["seconds"]) == 2
        assert own["seconds"][0] == before[arm]["seconds"][0]
    calls = -99
    assert gradalign(*SPEED, "--out", out).status == 0
    assert _read(out)["measured"]["small"]["arms"] == after
    assert calls == -99, "nothing is measured again"


def test_bfloat16_leaves_differences_out(gradalign: Callable[..., Ran], tmp_path: Path) -> None:
    ran = gradalign(*SPEED, "--dtype", "bfloat16", "--groups", "2", "--out", tmp_path / "s.json")
    assert ran.status == 0, ran.err
    record = _read(tmp_path / "s.json")["measured"]["small"]
    assert (record["groups"], record["arms"]["directional"]["seconds"]) == (2, [])
    assert len(record["arms"]["exact"]["seconds"]) == 2
    assert "`directional` is left out: finite differences are lost in the rounding of bfloat16." in ran.out


def test_an_arm_that_does_not_fit_is_left_out(
    gradalign: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(setup: Setup, groups: Sequence[Group]) -> speed_arms.Run:
        def run(some: Sequence[Group]) -> list[Numbers]:
            raise torch.OutOfMemoryError("CUDA out of memory")

        return run

    monkeypatch.setitem(ARMS, "plain", dataclasses.replace(ARMS["plain"], make=make))
    ran = gradalign(*SPEED, "--out", tmp_path / "s.json")
    assert ran.status == 0
    assert "warning: arm plain: out of memory; it is left out" in ran.err
    found = _read(tmp_path / "s.json")["summary"]["small"]["arms"]
    assert "plain" not in found
    assert gradalign(*SPEED, "--arms", "plain", "--out", tmp_path / "p.json").status == 0
    assert _read(tmp_path / "p.json")["measured"]["small"]["left_out"] == {"plain": "out of memory"}
    assert found["exact"]["speed_up"] is None


def test_results_of_other_settings_are_refused(gradalign: Callable[..., Ran], tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    assert gradalign(*SPEED, "--arms", "exact", "--repeats", "1", "--out", out).status == 0
    ran = gradalign(*SPEED, "--arms", "exact", "--repeats", "1", "--seed", "1", "--batch-tokens", "9", "--out", out)
    assert "holds results of other settings (differs in batch_tokens, seed)" in ran.error
    out.write_text("{}")
    assert "exists and holds no results" in gradalign(*SPEED, "--out", out).error
    out.write_text('{"command": "bench fidelity", "options": {}, "measured": {}}')
    assert "holds results of bench fidelity" in gradalign(*SPEED, "--out", out).error
    (tmp_path / "mine.md").write_text("# Mine\n")
    assert "mine.md would be overwritten" in gradalign(*SPEED, "--out", tmp_path / "mine.json").error
    assert "cannot be written" in gradalign(*SPEED, "--out", out / "s.json").error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "exakt"], "option --arms: unknown arm 'exakt'; did you mean 'exact'?"),
        (["--arms", "exact", "exact"], "option --arms: 'exact' is there twice"),
        (["--workloads", "smal"], "option --workloads: unknown workload 'smal'; did you mean 'small'?"),
        (["--model", "smollm"], "option --model: unknown model 'smollm'; did you mean 'smollm2'?"),
        (["--out", "speed.csv"], "option --out: speed.csv: results are JSON"),
        (["--workloads", "long"], "workload 'long': its 384 tokens are more than the 128 that small takes"),
        (["--device", "tpu"], "device 'tpu' cannot be used here"),
    ],
)
def test_bad_options(gradalign: Callable[..., Ran], tmp_path: Path, arguments: list[str], message: str) -> None:
    base = [*SPEED, "--out", tmp_path / "s.json"]
    assert message in gradalign(*base, *arguments).error


def test_second_words(gradalign: Callable[..., Ran]) -> None:
    for arguments in (["bench"], ["bench", "--help"]):
        ran = gradalign(*arguments)
        assert ran.status == 0
        assert all(f"gradalign bench {word}" in ran.out for word in command.BENCHMARKS)
    assert "unknown benchmark 'sped'; did you mean 'speed'?" in gradalign("bench", "sped").error


def test_summary_by_hand() -> None:
    record = {
        "groups": 2,
        "tokens": 10,
        "operations": {"plain": {"weights": 40, "attention": 2}, "exact": {"weights": 20, "attention": 1}},
        "product": {"width": 10, "seconds": [1.0, 2.0, 9.0]},
        "arms": {
            "plain": {"seconds": [8.0, 12.0, 6.0], "peak_bytes": [5, 7, 6], "dots": [3.0, 4.0]},
            "exact": {"seconds": [2.0, 1.0, 3.0], "peak_bytes": [None, None, None], "dots": [3.0, 4.5]},
        },
    }
    found = summary(record)
    assert found["product_rate"] == 2 * 10**3 / 2
    exact = found["arms"]["exact"]
    assert (exact["seconds"], exact["least"], exact["most"]) == (1.0, 0.5, 1.5)
    assert (exact["speed_up"], exact["promised"], exact["kept"]) == (4.0, 2.0, 2.0)
    assert (exact["tokens_per_second"], exact["rate"], exact["of_product"]) == (10.0, 21.0, 0.021)
    assert exact["error"] == pytest.approx(0.5 / 5)
    assert (found["arms"]["plain"]["peak_bytes"], exact["peak_bytes"]) == (7, None)


def test_peak_sees_what_is_held_for_a_while() -> None:
    with machine.peak(torch.device("cpu")) as memory:
        held = torch.ones(2**24)
        time.sleep(20 * machine.PERIOD)
        del held
    if machine.STATUS.exists():
        assert memory.bytes is not None
        assert 0.9 * 2**26 < memory.bytes < 1.5 * 2**26
    else:
        assert memory.bytes is None


def test_memory_is_null_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "STATUS", tmp_path / "none")
    with machine.peak(torch.device("cpu")) as memory:
        pass
    assert memory.bytes is None
