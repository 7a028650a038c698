"""Training whose rollouts for scoring come from a server: it is given the policy's weights every round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import LoraConfig

from gradalign.errors import GradAlignError
from gradalign.policy.load import EMBEDDED, load_policy
from gradalign.rollouts.table import read_rollouts
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
