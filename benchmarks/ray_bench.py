"""Workers on Ray: what a second one is worth, what handing work out costs, and whether losing some changes a table.

    python benchmarks/ray_bench.py [speed] [kills]

Speed: tiny groups scored by this process, by one worker and by two, one thread each, taking turns. Kills: ten runs,
each of which loses a worker or a machine (of a cluster of two, all processes of this one) at a random moment. Writes
ray.json, ray.md and ray_kills.json beside this file.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, here and by workers

import json
import logging
import platform
import random
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from ray.cluster_utils import Cluster

from gradalign.alignment.align import Scorer
from gradalign.alignment.direction import Direction
from gradalign.alignment.spread import SpreadScorer
from gradalign.alignment.table import write_alignments
from gradalign.errors import GradAlignError
from gradalign.executors.base import PolicySpec
from gradalign.executors.cluster import Needs
from gradalign.executors.ray import RayExecutor, ray_executor
from gradalign.policy.group import Group
from gradalign.policy.load import Policy, load_policy
from gradalign.policy.objective import Objective
from gradalign.problems.embedded import make_pool
from gradalign.rewards.base import Reward
from gradalign.rewards.countdown import countdown
from gradalign.rollouts.collect import collect
from gradalign.rollouts.sample import Sampling
from gradalign.rollouts.sampler import PolicySampler, sampled
from gradalign.rollouts.spread import SpreadSampler

HERE = Path(__file__).parent
SPEC = PolicySpec("embedded", device="cpu")
REWARD = Reward("countdown", countdown)
PROBLEMS, COPIES, REPEATS = 256, 8, 5
KILLS = 10
CALM = {"memory_monitor_refresh_ms": 0}
"""Other programs' memory is no reason for Ray to kill these workers."""
MACHINE: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 200 * 2**20}


def main(parts: list[str]) -> None:
    """Run the parts that are named, or both."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    policy = load_policy("embedded", device="cpu")
    if not parts or "speed" in parts:
        _write("ray", speed(policy))
        _table(json.loads((HERE / "ray.json").read_text(encoding="utf-8")))
    if not parts or "kills" in parts:
        _write("ray_kills", kills(policy))


def speed(policy: Policy) -> dict[str, Any]:
    """Seconds of scoring by who scores."""
    some = sampled(PolicySampler(policy, REWARD, Sampling(16, 16, seed=0)), make_pool("mixed", PROBLEMS, 0))
    groups = [replace(group, key=f"{group.key} {copy}") for copy in range(COPIES) for group in some]
    scored = sum(group.status == "scored" for group in groups)
    validation = sampled(PolicySampler(policy, REWARD, Sampling(16, 16, seed=1)), make_pool("mixed", 64, 9))
    direction = Scorer(policy, Objective()).direction(validation)
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
             _system_config=CALM)  # fmt: skip
    with ray_executor(SPEC, Needs(), workers=1) as one, ray_executor(SPEC, Needs(), workers=2) as two:
        arms: dict[str, Callable[[], Scorer]] = {
            "local": lambda: Scorer(policy, Objective()),
            "ray, 1 worker": lambda: SpreadScorer(policy, Objective(), executor=one),
            "ray, 2 workers": lambda: SpreadScorer(policy, Objective(), executor=two),
        }
        seconds = _in_turn(arms, groups, direction)
    ray.shutdown()
    medians = {arm: statistics.median(values) for arm, values in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["ray, 1 worker"], seconds["ray, 2 workers"], strict=True)]
    overhead = (medians["ray, 1 worker"] - medians["local"]) / scored * 1000
    return {
        "groups": len(groups), "scored": scored, "repeats": REPEATS, "load_average": os.getloadavg()[0],
        "seconds": {arm: [round(value, 3) for value in values] for arm, values in seconds.items()},
        "two_over_one": round(medians["ray, 1 worker"] / medians["ray, 2 workers"], 3),
        "two_over_one_by_turn": [round(value, 3) for value in ratios],
        "overhead_ms_per_scored_group": round(overhead, 4),
    }  # fmt: skip


def _in_turn(
    arms: dict[str, Callable[[], Scorer]], groups: list[Group], direction: Direction
) -> dict[str, list[float]]:
    """Seconds of each arm by turn, after one turn that is not counted; checks that all say the same."""
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    known: list[float | None] = []
    for turn in range(-1, REPEATS):
        for arm, make in arms.items():
            start = time.perf_counter()
            made = make().measure(groups, direction)
            took = time.perf_counter() - start
            dots = [alignment.numbers.dot for alignment in made.alignments]
            known = known or dots
            if dots != known:
                raise GradAlignError(f"{arm} gives other numbers")
            if turn >= 0:
                seconds[arm].append(took)
    return seconds


def kills(policy: Policy) -> dict[str, Any]:
    """Runs that lose a worker or a machine, and whether their tables are those of a run that loses none."""
    rng = random.Random(0)
    cluster = Cluster(initialize_head=True, head_node_args={**MACHINE, "_system_config": CALM})
    cluster.add_node(**MACHINE)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as made, ray_executor(SPEC, Needs(), workers=2) as executor:
        folder = Path(made)
        local = _run(policy, None, folder / "local")
        start = time.perf_counter()
        same = _run(policy, executor, folder / "undisturbed") == local
        whole = time.perf_counter() - start
        for number in count():
            if len(rows) == KILLS:
                break
            what, share = ("worker", "machine")[len(rows) % 2], rng.uniform(0.05, 0.85)
            lost: list[str] = []

            def harm(what: str = what, lost: list[str] = lost) -> None:
                if what == "machine":
                    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
                else:
                    rng.choice(_workers()).kill()
                lost.append(what)

            timer = threading.Timer(share * whole, harm)
            timer.start()
            tables = _run(policy, executor, folder / str(number))
            timer.cancel()
            if not lost:  # it ended before
                continue
            rows.append({"lost": what, "after_seconds": round(share * whole, 2), "same_rollouts": tables[0] == local[0],
                         "same_alignments": tables[1] == local[1]})  # fmt: skip
            print(rows[-1], flush=True)
            if lost == ["machine"]:
                cluster.add_node(**MACHINE)
    ray.shutdown()
    cluster.shutdown()
    return {"undisturbed_same_as_local": same, "undisturbed_seconds": round(whole, 2), "rows": rows}


def _run(policy: Policy, executor: RayExecutor | None, folder: Path) -> tuple[bytes, bytes]:
    """The bytes of a rollout table and of an alignment table."""
    sampling, pool, trusted = Sampling(8, 16, seed=0, batch_rollouts=64), make_pool("mixed", 256, 0), 64
    sampler, scorer = PolicySampler(policy, REWARD, sampling), Scorer(policy, Objective(), batch_tokens=256)
    if executor is not None:
        sampler = SpreadSampler(policy, REWARD, sampling, executor=executor)
        scorer = SpreadScorer(policy, Objective(), batch_tokens=256, executor=executor)
    folder.mkdir()
    candidates = collect(sampler, pool, folder / "candidates.parquet")
    validation = collect(sampler, make_pool("mixed", trusted, 9), folder / "validation.parquet")
    scored = scorer.measure(candidates, scorer.direction(validation))
    write_alignments(folder / "alignments.parquet", scored.alignments)
    return (folder / "candidates.parquet").read_bytes(), (folder / "alignments.parquet").read_bytes()


def _workers() -> list[psutil.Process]:
    """This process's workers that are alive."""
    return [p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::Worker")]


def _write(name: str, facts: dict[str, Any]) -> None:
    versions = {"python": platform.python_version(), "torch": torch.__version__, "ray": ray.__version__}
    machine = f"{platform.machine()} CPU, {os.cpu_count()} cores, float32, one thread a worker"
    text = json.dumps({"machine": machine, "versions": versions, **facts}, indent=1)
    (HERE / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _table(facts: dict[str, Any]) -> None:
    lines = ["| who scores | seconds, median | from | to |", "|---|---|---|---|"]
    for arm, values in facts["seconds"].items():
        lines.append(f"| {arm} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |")
    turns = facts["two_over_one_by_turn"]
    lines += [
        "",
        f"{facts['groups']:,} groups of the embedded policy, {facts['scored']:,} of them scored by engine exact; "
        f"{facts['repeats']} turns; load average at the end: {facts['load_average']:.1f}.",
        f"Two workers are {facts['two_over_one']:.2f} times as fast as one ({min(turns):.2f} to {max(turns):.2f} by "
        f"turn); handing a group out costs {1000 * facts['overhead_ms_per_scored_group']:.0f} microseconds.",
    ]
    (HERE / "ray.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
