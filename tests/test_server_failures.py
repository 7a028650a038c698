"""Engine ``server`` while servers fail, hang, refuse and die."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.policy.load import Policy
from gradalign.policy.where import EMBEDDED
from gradalign.rollouts.collect import collect
from gradalign.rollouts.sampler import prompts_of
from tests.conftest import Ran
from tests.model_server import Answer, ModelServer, served, spawned
from tests.server_tools import PROBLEMS, ROLLOUT, checked, sampler

pytestmark = pytest.mark.usefixtures("soon")


def test_failures_that_pass_cost_nothing_but_time(server: ModelServer, embedded: Policy, tmp_path: Path) -> None:
    engine = checked(embedded, server.url)
    calm = collect(sampler(embedded, engine), PROBLEMS, tmp_path / "calm.parquet")
    trouble: list[Answer] = [
        (503, {}, "busy"), (429, {"retry-after": "0"}, "slow down"), (200, {}, "<html>"), (500, {}, "oh"),
        (408, {}, "late"),
    ]  # fmt: skip
    begun = len(server.bodies)

    def now_and_then(number: int, body: dict[str, Any], answer: Answer) -> Answer:
        return answer if (number - begun) % 7 else trouble[(number - begun) // 7 % 5]

    server.spoil = now_and_then
    groups = collect(sampler(embedded, engine), PROBLEMS, tmp_path / "troubled.parquet")
    assert (tmp_path / "troubled.parquet").read_bytes() == (tmp_path / "calm.parquet").read_bytes()
    assert len(groups) == len(calm)


def test_a_server_that_takes_few_at_a_time_is_asked_until_all_is_done(
    server: ModelServer, embedded: Policy, tmp_path: Path
) -> None:
    engine = checked(embedded, server.url)
    calm = collect(sampler(embedded, engine), PROBLEMS, tmp_path / "calm.parquet")
    refused: list[int] = []

    def one_in_four(number: int, body: dict[str, Any], answer: Answer) -> Answer:
        refused.append(body["seed"])
        return answer if number % 4 == 0 else (429, {"retry-after": "0"}, "slow down")

    server.spoil = one_in_four
    groups = collect(sampler(embedded, engine), PROBLEMS, tmp_path / "busy.parquet")
    assert (tmp_path / "busy.parquet").read_bytes() == (tmp_path / "calm.parquet").read_bytes()
    assert len(groups) == len(calm)
    assert max(map(refused.count, refused)) > 7  # one request was sent away more often than a failing one would be


def test_a_response_that_the_server_never_gives_is_named(server: ModelServer, embedded: Policy, tmp_path: Path) -> None:
    engine = checked(embedded, server.url)
    poison = PROBLEMS[3]
    ids = prompts_of(embedded, [poison], 8)[0].tolist()
    server.spoil = lambda number, body, answer: (500, {}, "crash") if body["prompt"] == ids else answer
    with pytest.raises(GradAlignError, match=r"completions answered 500 \(crash\), tried \d+ times"):
        collect(sampler(embedded, engine), PROBLEMS[:4], tmp_path / "r.parquet")


def test_when_one_of_two_dies_the_other_does_its_work(embedded: Policy, tmp_path: Path) -> None:
    with spawned(EMBEDDED) as (process, first), served(ModelServer(EMBEDDED)) as second:
        engine = checked(embedded, first, second.url, concurrency=2)
        whole = sampler(embedded, engine)
        collect(whole, PROBLEMS, tmp_path / "whole.parquet")
        with pytest.warns(GradAlignWarning) as warned:
            collect(whole, PROBLEMS, tmp_path / "r.parquet", lambda rollouts: process.kill())
    said = [str(one.message) for one in warned]
    assert len(said) == 1
    assert said[0].startswith(f"{first}/v1/completions cannot be reached")
    assert said[0].endswith("tried 6 times: its requests go to the other servers")
    assert (tmp_path / "r.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_a_server_that_hangs_is_left_for_another(embedded: Policy, tmp_path: Path) -> None:
    held = threading.Event()

    def hang(number: int, body: dict[str, Any], answer: Answer) -> Answer:
        held.wait(60)
        return answer

    with served(ModelServer(EMBEDDED)) as good, served(ModelServer(EMBEDDED)) as hanging:
        engine = checked(embedded, hanging.url, good.url, timeout=3.0)
        whole = sampler(embedded, engine)
        collect(whole, PROBLEMS[:4], tmp_path / "whole.parquet")
        hanging.spoil = hang
        collect(whole, PROBLEMS[:4], tmp_path / "r.parquet")
        held.set()
    assert (tmp_path / "r.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_when_all_die_what_was_finished_is_kept_and_the_same_command_goes_on(
    server: ModelServer, embedded: Policy, gradalign: Callable[..., Ran], tmp_path: Path
) -> None:
    command = ["rollout", *ROLLOUT, "--endpoints", server.url, "--concurrency", 4]
    assert gradalign(*command, "--out", tmp_path / "whole.parquet").status == 0
    out, begun = tmp_path / "r.parquet", len(server.bodies)
    server.spoil = lambda number, body, answer: answer if number <= begun + 16 + 24 else (502, {}, "gone")
    ran = gradalign(*command, "--out", out)
    assert f"{server.url}/v1/completions answered 502 (gone), tried 6 times, and no other server is left" in ran.error
    assert "give the same command: finished rollouts are kept" in ran.error
    kept = (tmp_path / "r.parquet.part").read_bytes().count(b"\n") - 1
    assert kept == 1  # of three batches of sixteen responses
    server.spoil = lambda number, body, answer: answer
    begun = len(server.bodies)
    with served(ModelServer(EMBEDDED)) as elsewhere:
        assert gradalign("rollout", *ROLLOUT, "--endpoints", elsewhere.url, "--out", out).status == 0
        assert len(elsewhere.bodies) == 16 + 32
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_a_server_that_is_not_there(server: ModelServer, gradalign: Callable[..., Ran], tmp_path: Path) -> None:
    nobody = "http://127.0.0.1:9"
    command = ["rollout", *ROLLOUT, "--out", tmp_path / "r.parquet"]
    said = gradalign(*command, "--endpoints", nobody).error
    assert f"option --endpoints: {nobody}/v1/models cannot be reached" in said
    assert "start the server, and check the address and the key in the variable GRADALIGN_SERVER_KEY" in said
    ran = gradalign(*command, "--endpoints", nobody, server.url)
    assert ran.status == 0
    assert f"{nobody}/v1/models cannot be reached" in ran.err
    assert "going on without it" in ran.err
    assert (
        "'localhost:8000' is no address"
        in gradalign(*command[:-1], tmp_path / "n.parquet", "--endpoints", "localhost:8000").error
    )
