"""Engine ``vllm`` without vLLM: a module of its name stands in, whose engine computes with the real model."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gradalign.errors import GradAlignError
from gradalign.policy.load import Policy, load_policy
from gradalign.policy.where import EMBEDDED
from gradalign.problems.embedded import make_pool
from gradalign.rollouts.engine import verified
from gradalign.rollouts.sample import Sampling
from gradalign.rollouts.sampler import prompts_of
from gradalign.rollouts.table import read_rollouts
from gradalign.rollouts.vllm import VllmEngine, start
from tests.conftest import Ran
from tests.model_server import ModelServer
from tests.test_server_sampler import moved, own_logprobs, stored

ROLLOUT = ["rollout", "--model", "embedded", "--problems", "embedded:mixed?size=6&seed=0", "--reward", "countdown",
           "-n", 4, "--max-new-tokens", 8, "--sampler", "vllm"]  # fmt: skip


@dataclass
class Logprob:
    logprob: float


class StandIn(types.ModuleType):
    """As much of the module ``vllm`` as is used; notes what it was asked."""

    __version__ = "0.32.0"

    def __init__(self) -> None:
        super().__init__("vllm")
        self.arguments: dict[str, Any] = {}
        self.asked: list[dict[str, Any]] = []
        self.calls: list[Any] = []
        self.refuses = False

    def SamplingParams(self, **named: Any) -> dict[str, Any]:
        return named

    def LLM(self, **arguments: Any) -> StandIn:
        if "nonsense" in arguments:
            raise ValueError("unexpected argument 'nonsense'\nand much more")
        self.arguments = arguments
        self.served = ModelServer(Path(arguments["model"]), processed=True)
        self.served.load(arguments["model"])
        self.llm_engine = types.SimpleNamespace(model_config=types.SimpleNamespace(max_model_len=256))
        return self

    def generate(self, prompts: list[dict[str, Any]], parameters: list[dict[str, Any]], use_tqdm: bool) -> list[Any]:
        outputs = []
        for prompt, asked in zip(prompts, parameters, strict=True):
            self.asked.append(asked)
            ids, logprobs, text, reason = self.served.sample(
                prompt["prompt_token_ids"], asked, asked["seed"], asked["max_tokens"]
            )
            said = [{token: Logprob(value), 0: Logprob(-9.0)} for token, value in zip(ids, logprobs, strict=True)]
            output = types.SimpleNamespace(token_ids=tuple(ids), logprobs=said, text=text, finish_reason=reason)
            outputs.append(types.SimpleNamespace(outputs=[output]))
        return outputs

    def collective_rpc(self, method: str, kwargs: dict[str, str]) -> None:
        self.calls.append(method)
        if self.refuses:
            raise RuntimeError("Worker failed")
        self.served.load(kwargs["weights_path"])

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset_prefix_cache")


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    monkeypatch.setitem(sys.modules, "vllm", made)
    return made


def checked(policy: Policy, engine: VllmEngine) -> float:
    problems = make_pool("mixed", 4, 0)
    keys, prompts = [p.key for p in problems], prompts_of(policy, problems, 8)
    return verified(engine, policy, keys, prompts, Sampling(max_new_tokens=8)).agreement.difference


def test_rollouts_are_the_policys_own(
    vllm: StandIn, embedded: Policy, gradalign: Callable[..., Ran], tmp_path: Path
) -> None:
    out = tmp_path / "r.parquet"
    more = ["--temperature", 0.5, "--vllm-args", "gpu_memory_utilization=0.4", "enforce_eager=true"]
    ran = gradalign(*ROLLOUT, *more, "--out", out)
    assert ran.status == 0, ran.err
    assert "vllm samples this policy" in ran.out
    groups = read_rollouts(out)
    assert [len(group.rollouts) for group in groups] == [4] * 6
    assert abs(stored(groups) - own_logprobs(embedded, groups, 0.5)).max() < 1e-4
    assert vllm.arguments == {
        "model": str(EMBEDDED), "dtype": "float32", "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm", "gpu_memory_utilization": 0.4, "enforce_eager": True,
    }  # fmt: skip
    asked = vllm.asked[-1]
    assert {name: asked[name] for name in ("n", "top_p", "top_k", "min_p", "logprobs", "max_tokens")} == {
        "n": 1, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "logprobs": 0, "max_tokens": 8,
    }  # fmt: skip
    assert len({one["seed"] for one in vllm.asked[-24:]}) == 24


def test_new_weights_are_loaded_and_stale_ones_said(vllm: StandIn, embedded: Policy, tmp_path: Path) -> None:
    folder = moved(embedded, tmp_path / "next", 0.05)
    later = load_policy(str(folder), device="cpu")
    engine = start(embedded, {})
    checked(embedded, engine)
    with pytest.raises(GradAlignError, match="vllm: is not the policy"):
        checked(later, engine)
    engine.load(folder)
    assert vllm.calls == ["reload_weights", "reset_prefix_cache"]
    assert checked(later, engine) < 1e-4
    vllm.refuses = True
    with pytest.raises(GradAlignError, match=r"vllm: its policy is stale, .*\(Worker failed\)"):
        engine.load(folder)


def test_what_it_cannot_do_is_one_line(
    vllm: StandIn, gradalign: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*ROLLOUT, "--out", tmp_path / "r.parquet"]
    said = gradalign(*command, "--vllm-args", "nonsense=1").error
    assert "vllm: does not start on embedded (unexpected argument 'nonsense'); its arguments are given by" in said
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert "the package 'vllm' is not installed: pip install 'gradalign[vllm]'" in gradalign(*command).error
