"""Training whose rollouts for scoring come from a server: it is given the policy's weights every round."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from peft import LoraConfig

from gradalign.errors import GradAlignError
from gradalign.policy.load import load_policy
from gradalign.policy.where import EMBEDDED
from gradalign.processes import Processes
from gradalign.rollouts.agreement import Agreement
from gradalign.rollouts.table import read_rollouts
from gradalign.trainers.trl.servers import follow
from tests.model_server import ModelServer, served
from tests.test_server_sampler import own_logprobs, stored
from tests.trl_run import trainer

SMALL: dict[str, Any] = {"chunk": 8, "rollouts": 4, "max_steps": 4, "learning_rate": 1e-3}


def test_every_round_is_sampled_with_the_weights_as_they_are_then(tmp_path: Path) -> None:
    with served(ModelServer(EMBEDDED)) as server:
        made = trainer(tmp_path, sampler="server", endpoints=[server.url], concurrency=4, **SMALL)
        made.train()
        assert server.most == 4
    first, second = (read_rollouts(tmp_path / f"round-000{number}/candidates.parquet") for number in (0, 1))
    given = load_policy(str(tmp_path / "weights"), device="cpu")
    assert first[0].policy != second[0].policy == given.fingerprint
    assert np.abs(stored(second) - own_logprobs(given, second)).max() < 1e-4
    assert np.abs(stored(first) - own_logprobs(given, first)).mean() > 1e-3


def test_other_processes_ask_none_but_servers_that_the_first_has_given_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Second:
        """The second of two processes, whose first one says what ``says`` is."""

        first = False
        says: Any = None

        def together(self, work: Any) -> list[Any]:
            if isinstance(self.says, GradAlignError):
                work()
                raise self.says
            return [self.says, work()]

    second = Second()
    monkeypatch.setattr(Processes, "current", lambda: second)
    curriculum = SimpleNamespace(plan=SimpleNamespace(strategy=SimpleNamespace(needs=True)))
    sampler: Any = SimpleNamespace(engine=None)
    with served(ModelServer(EMBEDDED)) as stale, served(ModelServer(EMBEDDED)) as loaded:
        args = SimpleNamespace(
            sampler="server", endpoints=[stale.url, loaded.url], concurrency=4, output_dir=str(tmp_path)
        )
        made: Any = SimpleNamespace(args=args, curriculum=curriculum, pool=[])
        second.says = [loaded.url], Agreement(loaded.url, 0.0, 1, 0.1, False)
        follow(made, load_policy("embedded", device="cpu"), [sampler])
        assert [server.root for server in sampler.engine.engine.fleet.servers] == [loaded.url]
    second.says = GradAlignError("its policy is stale")  # no process may stop before all know
    with pytest.raises(GradAlignError, match="its policy is stale"):
        follow(made, load_policy("embedded", device="cpu"), [sampler])


def test_a_server_that_does_not_load_them_stops_the_run(tmp_path: Path) -> None:
    with served(ModelServer(EMBEDDED, development=False)) as server:
        made = trainer(tmp_path, sampler="server", endpoints=[server.url], **SMALL)
        with pytest.raises(GradAlignError, match=r"its policy is stale, .*start vLLM with the environment's VLLM_SERV"):
            made.train()


def test_what_does_not_go_with_servers_is_refused(tmp_path: Path) -> None:
    url = ["http://127.0.0.1:9"]
    for fields, message in (
        ({"sampler": "server"}, "sampler server and endpoints belong together"),
        ({"endpoints": url}, "sampler server and endpoints belong together"),
        ({"sampler": "sever", "endpoints": url}, "unknown 'sever'; did you mean 'server'"),
        ({"sampler": "server", "endpoints": url, "mode": "batch"}, "sampler server belongs to mode round"),
        ({"sampler": "server", "endpoints": url, "top_k": 5}, "top_k: servers sample the policy's whole distribution"),
        ({"sampler": "server", "endpoints": url, "top_p": 0.9}, "top_p: servers sample"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, **fields)
    made = trainer(tmp_path, sampler="server", endpoints=url, lora=LoraConfig(r=2), **SMALL)
    with pytest.raises(GradAlignError, match="servers load whole models, and this policy has an adapter"):
        made.train()
