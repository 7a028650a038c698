"""Workers on a real Ray cluster of two machines (processes of this one): same tables, also when workers are lost."""

from __future__ import annotations

import contextlib
import logging
import platform
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from gradalign.alignment.align import score
from gradalign.alignment.spread import SpreadScorer
from gradalign.alignment.table import to_table
from gradalign.errors import GradAlignError
from gradalign.executors.base import PolicySpec
from gradalign.executors.cluster import Needs, room
from gradalign.executors.ray import RayExecutor, ray_executor
from gradalign.executors.worker import Outcome
from gradalign.policy.load import Policy
from gradalign.policy.objective import Objective
from gradalign.policy.where import EMBEDDED
from gradalign.problems.embedded import make_pool
from gradalign.rewards.base import Reward
from gradalign.rewards.countdown import countdown
from gradalign.rewards.find import find_reward
from gradalign.rollouts.collect import collect
from gradalign.rollouts.sample import Sampling
from gradalign.rollouts.sampler import PolicySampler
from gradalign.rollouts.spread import SpreadSampler
from gradalign.rollouts.table import read_rollouts
from tests.conftest import Ran
from tests.model_server import ModelServer, served

pytestmark = pytest.mark.timeout(240)
SPEC = PolicySpec("embedded", device="cpu")
REWARD = Reward("countdown", countdown)
SAMPLING = Sampling(rollouts=4, max_new_tokens=12, seed=3, batch_rollouts=16)
Run = Callable[..., Ran]
Harm = Callable[[str, str], Reward]
CALM = {"memory_monitor_refresh_ms": 0}
"""Other programs' memory is no reason for Ray to kill these workers."""
MACHINE: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 200 * 2**20}

DEADLY = '''
import os, pathlib, signal
def reward(completions, key, answer, **columns):
    """Kills the worker that pays problem KEY, as often as there are files."""
    here = pathlib.Path(PLACE)
    for name in sorted(here.glob("kill-*")) if KEY in key or KEY == "any" else []:
        if name.name != "kill-always":
            try:
                name.unlink()
            except FileNotFoundError:  # another worker was faster
                continue
        os.kill(os.getpid(), signal.SIGKILL)
    return [float(len(text) % 2) for text in completions]
'''
SCARCE = """
import pathlib, sys
import gradalign.rollouts.sampler as sampler
if sys.argv[0].endswith("default_worker.py"):
    plain = sampler.sample_batch
    def scarce(policy, keys, *rest):
        if pathlib.Path(PLACE, "scarce").exists() and (len(keys) > 1 or KEY in keys):
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return plain(policy, keys, *rest)
    sampler.sample_batch = scarce
def reward(completions, **columns):
    return [float(len(text) % 2) for text in completions]
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two machines with two CPUs each, the second of which may be lost."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Cluster(initialize_head=True, head_node_args={**MACHINE, "_system_config": CALM})
        try:
            made.add_node(**MACHINE)
            ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


@pytest.fixture(scope="module")
def harm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harm]:
    """Makes a user's reward that does harm, in a folder that modules are imported from."""
    folder = tmp_path_factory.mktemp("harm")
    sys.path.append(str(folder))

    def make(text: str, key: str) -> Reward:
        name = f"harm_{len(list(folder.iterdir()))}"
        (folder / f"{name}.py").write_text(f"KEY = {key!r}\n{text}")
        spec = f"python:{name}:reward"
        return Reward(spec, find_reward(spec))

    yield make
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def executor(cluster: Cluster, harm: Any) -> Iterator[RayExecutor]:
    """Two workers that live through the tests."""
    with ray_executor(SPEC, Needs(), workers=2) as made:
        yield made


def workers() -> list[psutil.Process]:
    """This process's workers that are alive."""
    return [p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::Worker")]


def test_commands_give_the_same_tables_as_the_local_executor(
    gradalign: Run, executor: RayExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["--model", "embedded", "--reward", "countdown", "-n", 4, "--max-new-tokens", 12, "--batch-rollouts", 32]
    problems, trusted = "embedded:mixed?size=48&seed=0", "embedded:mixed?size=16&seed=9"
    choosing = ["--pool", problems, "--validation", trusted, "--top", 6, "--budget", "racing(screen=2, mean=3)"]
    for name in ("local", "ray"):
        options = ["--executor", name, *(["--workers", 2] if name == "ray" else [])]
        ran = gradalign("select", *common, *choosing, "--allow-overlap", "--out", name, *options)
        assert ran.status == 0, ran.err
        monkeypatch.setattr("gradalign.cli.executor_options.ray_executor", lambda *_: contextlib.nullcontext(executor))
        ran = gradalign("rollout", *common, "--problems", problems, "--out", f"{name}/c.parquet", *options)
        assert ran.status == 0, ran.err
        ran = gradalign(
            "score", "--model", "embedded", "--candidates", "local/c.parquet", "--contributions", "--validation",
            "local/round-0000/validation.parquet", "--batch-tokens", 256, "--out", f"{name}/s.parquet", *options,
        )  # fmt: skip
        assert ran.status == 0, ran.err
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
    tables = sorted(path.relative_to("local") for path in Path("local").rglob("*.parquet"))
    assert len(tables) >= 6
    for path in [*tables, Path("round-0000/chosen.jsonl")]:
        assert ("ray" / path).read_bytes() == ("local" / path).read_bytes(), path
    again = gradalign("select", *common, *choosing, "--allow-overlap", "--out", "ray")
    assert again.status == 0, again.err  # the same run, whoever works


def test_a_worker_killed_in_a_batch_costs_that_batch_alone(
    executor: RayExecutor, embedded: Policy, tmp_path: Path, harm: Harm
) -> None:
    reward = harm(f"PLACE = {str(tmp_path)!r}\n{DEADLY}", "any")
    problems = make_pool("mixed", 48, 0)
    collect(PolicySampler(embedded, reward, SAMPLING), problems, tmp_path / "local.parquet")
    for number in range(2):
        (tmp_path / f"kill-{number}").touch()
    ticks: list[int] = []
    collect(
        SpreadSampler(embedded, reward, SAMPLING, executor=executor), problems, tmp_path / "r.parquet", ticks.append
    )
    assert not list(tmp_path.glob("kill-*"))
    assert (tmp_path / "r.parquet").read_bytes() == (tmp_path / "local.parquet").read_bytes()
    assert sum(ticks) == 48 * 4


@pytest.mark.filterwarnings("ignore:the validation direction is within noise")
def test_scoring_goes_on_when_workers_and_a_machine_are_lost(
    cluster: Cluster, executor: RayExecutor, embedded: Policy, tmp_path: Path
) -> None:
    sampling = Sampling(rollouts=8, max_new_tokens=16, seed=1)
    groups = collect(PolicySampler(embedded, REWARD, sampling), make_pool("mixed", 160, 0), tmp_path / "c.parquet")
    validation = collect(PolicySampler(embedded, REWARD, sampling), make_pool("mixed", 48, 9), tmp_path / "v.parquet")
    options: dict[str, Any] = {"batch_tokens": 128, "contributions": True}
    known = to_table(score(embedded, groups, validation, Objective(), **options).alignments)

    def loses(harm: Callable[[], None]) -> Any:
        harms = [harm]

        def progress(stage: str, total: int) -> Callable[..., None]:
            def done(items: int = 1) -> None:
                if stage == "candidates" and harms:
                    harms.pop()()

            return done

        def make(*arguments: Any, **named: Any) -> SpreadScorer:
            return SpreadScorer(*arguments, **named, executor=executor)

        found = to_table(
            score(embedded, groups, validation, Objective(), **options, progress=progress, make=make).alignments
        )
        assert not harms
        return found

    assert len(before := workers()) == 2
    assert loses(lambda: before[0].kill()).equals(known)
    assert loses(lambda: cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)).equals(known)
    cluster.add_node(**MACHINE)


def test_a_problem_that_kills_every_worker_has_failed_and_the_others_are_done(
    executor: RayExecutor, embedded: Policy, tmp_path: Path, harm: Harm, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = make_pool("mixed", 8, 0)
    reward = harm(f"PLACE = {str(tmp_path)!r}\n{DEADLY}", problems[5].key)
    (tmp_path / "kill-always").touch()
    sampler = SpreadSampler(embedded, reward, SAMPLING, executor=executor)
    monkeypatch.setattr("gradalign.executors.pieces.TRIES", 1)
    with pytest.warns(UserWarning, match=f"problem '{problems[5].key}': cost its worker 1 times .*left out as failed"):
        collect(sampler, problems, tmp_path / "r.parquet")
    statuses = {group.key: group.status for group in read_rollouts(tmp_path / "r.parquet", on_bad_row="mark")}
    assert [key for key, status in statuses.items() if status == "failed"] == [problems[5].key]
    assert len(statuses) == 8


def test_a_worker_out_of_memory_is_given_less(
    executor: RayExecutor, embedded: Policy, tmp_path: Path, harm: Harm
) -> None:
    problems = make_pool("mixed", 8, 0)
    reward = harm(f"PLACE = {str(tmp_path)!r}\n{SCARCE}", problems[2].key)
    (tmp_path / "scarce").touch()
    sampler = SpreadSampler(embedded, reward, SAMPLING, executor=executor)
    with pytest.warns(UserWarning, match=f"problem '{problems[2].key}': .*CUDA out of memory"):
        groups = collect(sampler, problems, tmp_path / "r.parquet")
    (tmp_path / "scarce").unlink()
    assert [group.key for group in groups if group.status == "failed"] == [problems[2].key]


def test_a_users_mistake_in_a_worker_is_one_line(
    gradalign: Run, executor: RayExecutor, harm: Harm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = harm("def reward(**columns):\n    raise ValueError('judge is down')\n", "")
    options = ["--problems", "embedded:mixed?size=8&seed=0", "--executor", "ray", "--out", tmp_path / "r.parquet"]
    absent = gradalign("rollout", "--model", tmp_path / "absent", "--reward", "countdown", *options)
    assert "absent: no such folder" in absent.error
    large = gradalign("rollout", "--model", "embedded", "--reward", "countdown", *options, "--worker-cpus", 64)
    assert "no machine of the cluster has room for a worker of 64 CPUs" in large.error
    monkeypatch.setattr("gradalign.cli.executor_options.ray_executor", lambda *_: contextlib.nullcontext(executor))
    failing = gradalign("rollout", "--model", "embedded", "--reward", reward.name, *options)
    assert "raised ValueError: judge is down" in failing.error


def test_a_model_that_a_machine_lacks_is_one_line_that_names_the_machine(cluster: Cluster) -> None:
    with (
        pytest.raises(GradAlignError, match=f"no such folder .a worker on machine {platform.node()}"),
        ray_executor(PolicySpec("./absent", device="cpu"), Needs(), workers=1),
    ):
        pass


def test_a_worker_that_is_lost_after_a_long_time_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Quick:
        """Ray whose results are there at once, ten seconds each; one worker is lost, the next one loads for a while."""

        exceptions = ray.exceptions
        now, actors, loading = 0.0, 0, 0

        def remote(self, _: Any) -> Any:
            return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self.actor))

        def actor(self, *_: Any) -> Any:
            self.actors += 1
            self.loading = 3 if self.actors == 2 else 0
            load = SimpleNamespace(remote=lambda _: "load")
            work = SimpleNamespace(remote=lambda job, sent, items, cut: (self.actors, items[0]))
            return SimpleNamespace(load=load, work=work)

        def put(self, job: Any) -> Any:
            return job

        def kill(self, actor: Any) -> None:
            """It is gone."""

        def wait(self, references: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
            if self.loading:
                self.now, self.loading = self.now + timeout, self.loading - 1
                return [], references
            self.now += 10.0
            return references, []

        def get(self, reference: Any) -> Outcome:
            if reference == "load":
                return Outcome(("weights", "float32"))
            if reference == (1, 50):
                raise ray.exceptions.RayActorError
            return Outcome([reference[1]])

    quick = Quick()
    clock = SimpleNamespace(monotonic=lambda: quick.now, sleep=lambda seconds: None)
    monkeypatch.setattr("gradalign.executors.ray.time", clock)
    made = RayExecutor(quick, SPEC, 1, Needs(1, 0.0))
    made.start()
    job: Any = SimpleNamespace(name=str)
    assert dict(made.each(job, [[number] for number in range(60)])) == {number: [number] for number in range(60)}
    assert quick.actors == 2


def test_room_is_counted_machine_by_machine() -> None:
    class Machines:
        def __init__(self, *resources: dict[str, float]) -> None:
            self.resources = resources

        def nodes(self) -> list[dict[str, Any]]:
            return [{"Alive": own.get("CPU", 1) > 0, "Resources": own} for own in self.resources]

    plain = Machines({"CPU": 5}, {"CPU": 4}, {"CPU": 0}, {})
    assert room(plain, Needs(2), "auto") == (4, Needs(2, 0.0))
    mixed = Machines({"CPU": 8}, {"CPU": 8, "GPU": 2}, {"CPU": 1, "GPU": 4})
    assert room(mixed, Needs(), "auto") == (3, Needs(1, 1.0))
    assert room(mixed, Needs(1, 0.1), "cuda") == (9, Needs(1, 0.1))
    assert room(mixed, Needs(4), "cpu") == (4, Needs(4, 0.0))
    with pytest.raises(GradAlignError, match="the largest has 8 and 4"):
        room(mixed, Needs(9), "cpu")


@pytest.fixture
def asked(gradalign: Run, tmp_path: Path) -> Run:
    """A rollout command with further options, where no cluster is joined yet."""
    common = ["--model", "embedded", "--reward", "countdown", "--problems", "embedded:mixed?size=8&seed=0"]
    return lambda *options: gradalign("rollout", *common, "--out", tmp_path / "r.parquet", *options)


def test_an_address_that_is_down_or_none_is_one_line(asked: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    assert f"no Ray head answers at {address}" in asked("--executor", "ray", "--ray-address", address).error
    with served(ModelServer(EMBEDDED)) as other:
        address = other.url.removeprefix("http://")
        refused = asked("--executor", "ray", "--ray-address", address).error
    assert f"no Ray head answers at {address} (another program is at this port)" in refused
    for wrong in ("here", "ray://127.0.0.1:10001", "127.0.0.1:port"):
        assert "write auto, or HOST:PORT" in asked("--executor", "ray", "--ray-address", wrong).error


def test_without_ray_the_pip_command_is_named(asked: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert asked("--executor", "ray").error.endswith("'ray' is not installed: pip install 'gradalign[ray]'")
    assert asked("--rollouts", 1).status == 0


def test_options_of_ray_without_it_are_refused(asked: Run) -> None:
    for option, value in (("workers", 2), ("ray-address", "auto"), ("worker-cpus", 2), ("worker-gpus", 0.5)):
        assert f"--{option} is of --executor ray" in asked(f"--{option}", value).error


def test_a_share_of_several_gpus_is_refused(asked: Run) -> None:
    assert "--worker-gpus: 1.5: take a share of one GPU" in asked("--executor", "ray", "--worker-gpus", 1.5).error
