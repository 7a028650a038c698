"""Engine ``server`` against a server of the real model on the loopback: what it asks, checks, survives and reloads."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.policy.group import Group
from gradalign.policy.load import Policy, load_policy
from gradalign.policy.logprobs import token_logprobs
from gradalign.policy.packing import lay_out, rows_of
from gradalign.policy.trunk import Split
from gradalign.policy.where import EMBEDDED
from gradalign.problems.schema import Problem
from gradalign.rollouts.agreement import FLOAT32, HALF
from gradalign.rollouts.collect import collect
from gradalign.rollouts.engine import verified
from gradalign.rollouts.sample import Sampling
from gradalign.rollouts.sampler import PolicySampler, prompts_of
from gradalign.rollouts.server import ServerEngine, connect
from gradalign.rollouts.table import read_rollouts
from tests.conftest import Ran
from tests.model_server import Answer, ModelServer, served, spawned
from tests.server_tools import PROBLEMS, REWARD, ROLLOUT, SAMPLING, checked, sampler

pytestmark = pytest.mark.usefixtures("soon")


def own_logprobs(policy: Policy, groups: Sequence[Group], temperature: float = 1.0) -> np.ndarray:
    found = []
    for group in groups:
        rows = list(rows_of(group, 1, packed=False))
        with torch.no_grad():
            found.append(token_logprobs(Split(policy), lay_out(rows, False, policy.device), temperature).numpy())
    return np.concatenate(found)


def stored(groups: Sequence[Group]) -> np.ndarray:
    kept = [rollout.logprobs for group in groups for rollout in group.rollouts]
    assert all(one is not None for one in kept)
    return np.concatenate([one for one in kept if one is not None])


def moved(policy: Policy, folder: Path, size: float) -> Path:
    """A copy of the embedded model with its weights moved at random by ``size`` of their own spread."""
    model = copy.deepcopy(policy.model)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * size * parameter.std())
    model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return folder


def test_a_server_process_gives_the_policys_own_rollouts(
    embedded: Policy, gradalign: Callable[..., Ran], tmp_path: Path
) -> None:
    out = tmp_path / "r.parquet"
    with spawned(EMBEDDED, "--development") as (_, url):
        ran = gradalign("rollout", *ROLLOUT, "--endpoints", f"{url}/v1", "--out", out)
        assert ran.status == 0, ran.err
        assert f"{url} samples this policy" in ran.out
    groups = read_rollouts(out)
    assert [group.key for group in groups] == [problem.key for problem in PROBLEMS]
    assert {group.policy for group in groups} == {embedded.fingerprint}
    prompts = prompts_of(embedded, PROBLEMS, 8)
    for group, prompt, problem in zip(groups, prompts, PROBLEMS, strict=True):
        assert np.array_equal(group.prompt_ids, prompt)
        for rollout in group.rollouts:
            assert rollout.response == embedded.decode(rollout.response_ids.tolist())
            assert [rollout.reward] == REWARD(problem, [rollout.response], [[]])
    assert np.abs(stored(groups) - own_logprobs(embedded, groups)).max() < 1e-4
    assert len({tuple(r.response_ids.tolist()) for g in groups for r in g.rollouts}) > 12  # seeds differ
    assert gradalign("rollout", *ROLLOUT, "--endpoints", "http://127.0.0.1:9", "--out", out).status == 0  # is there


def test_sglang_gives_the_same_where_it_samples_the_same(server: ModelServer, embedded: Policy, tmp_path: Path) -> None:
    with served(ModelServer(EMBEDDED, "sglang")) as other:
        collect(sampler(embedded, checked(embedded, server.url)), PROBLEMS[:4], tmp_path / "v.parquet")
        collect(sampler(embedded, checked(embedded, other.url)), PROBLEMS[:4], tmp_path / "s.parquet")
        asked = other.bodies[-1]
    assert (tmp_path / "v.parquet").read_bytes() == (tmp_path / "s.parquet").read_bytes()
    assert asked["sampling_params"]["top_k"] == -1
    assert asked["sampling_params"]["sampling_seed"] in {body["seed"] for body in server.bodies}


def test_it_asks_for_the_whole_distribution_with_a_seed_for_each_rollout(
    server: ModelServer, embedded: Policy, tmp_path: Path
) -> None:
    made = sampler(embedded, checked(embedded, server.url))
    server.bodies.clear()
    collect(made, PROBLEMS[:2], tmp_path / "a.parquet")
    asked = {(tuple(body["prompt"]), body["seed"]) for body in server.bodies}
    assert len(asked) == len({seed for _, seed in asked}) == 8
    body = server.bodies[0]
    assert (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"], body["n"]) == (1, -1, 0, 1, 1)
    assert (body["temperature"], body["max_tokens"], body["stop_token_ids"]) == (1.0, 8, [1])
    server.bodies.clear()
    collect(made.part(1, 3), PROBLEMS[:2], tmp_path / "b.parquet")
    assert {(tuple(body["prompt"]), body["seed"]) for body in server.bodies} < asked
    assert len(server.bodies) == 6


def test_requests_run_side_by_side_but_not_more_than_asked(
    server: ModelServer, embedded: Policy, tmp_path: Path
) -> None:
    def slowly(number: int, body: dict[str, Any], answer: Answer) -> Answer:
        time.sleep(0.02)
        return answer

    engine = checked(embedded, server.url, concurrency=3)
    server.spoil, server.most = slowly, 0
    collect(sampler(embedded, engine), PROBLEMS[:4], tmp_path / "r.parquet")
    assert server.most == 3


def test_raw_logprobs_are_left_out_at_another_temperature(
    server: ModelServer, embedded: Policy, tmp_path: Path
) -> None:
    warm = Sampling(rollouts=4, max_new_tokens=8, temperature=0.5)
    with pytest.warns(GradAlignWarning, match="at temperature 1, not at 0.5; they are left out"):
        engine = checked(embedded, server.url, sampling=warm)
    groups = collect(sampler(embedded, engine, warm), PROBLEMS[:4], tmp_path / "a.parquet")
    assert {rollout.logprobs is None for group in groups for rollout in group.rollouts} == {True}
    server.processed = True
    groups = collect(sampler(embedded, checked(embedded, server.url, sampling=warm), warm), PROBLEMS[:4],
                     tmp_path / "b.parquet")  # fmt: skip
    assert np.abs(stored(groups) - own_logprobs(embedded, groups, 0.5)).max() < 1e-4
    assert np.abs(stored(groups) - own_logprobs(embedded, groups, 1.0)).max() > 0.01


def test_stop_texts_cut_the_response(server: ModelServer, embedded: Policy, tmp_path: Path) -> None:
    stopping = Sampling(rollouts=8, max_new_tokens=8, stop=("+", "*"))
    groups = collect(sampler(embedded, checked(embedded, server.url), stopping), PROBLEMS[:6], tmp_path / "r.parquet")
    cut = 0
    for rollout in (rollout for group in groups for rollout in group.rollouts):
        whole = embedded.decode(rollout.response_ids.tolist())
        assert rollout.response is not None
        assert not set("+*") & set(rollout.response)
        if rollout.response != whole:
            assert (whole[:-1], rollout.finish_reason) == (rollout.response, "stop")  # the stop's token is the last
            cut += 1
    assert cut > 0


def test_bfloat16_is_let_pass_where_it_may_be_there(embedded: Policy) -> None:
    with served(ModelServer(EMBEDDED, dtype="bfloat16")) as half:
        found = checked(embedded, half.url).agreement
        assert FLOAT32 < found.difference < HALF == found.tolerance
    with served(ModelServer(EMBEDDED, development=False)) as untold:
        assert checked(embedded, untold.url).agreement.tolerance == HALF


def test_other_weights_are_refused(embedded: Policy, tmp_path: Path, gradalign: Callable[..., Ran]) -> None:
    with served(ModelServer(moved(embedded, tmp_path / "slightly", 0.01))) as slightly:
        with pytest.raises(GradAlignError, match=r"is not the policy .*rounding explains 0\.001; serve this model"):
            checked(embedded, slightly.url)
        slightly.load(str(EMBEDDED))
        checked(embedded, slightly.url)
    with served(ModelServer(moved(embedded, tmp_path / "far", 0.3), development=False)) as far:
        ran = gradalign("rollout", *ROLLOUT, "--endpoints", far.url, "--out", tmp_path / "r.parquet")
        assert f"{far.url}: is not the policy embedded" in ran.error
        assert "rounding explains 0.1" in ran.error


def test_another_tokenizer_is_refused(server: ModelServer, embedded: Policy) -> None:
    def read_otherwise(number: int, body: dict[str, Any], answer: Answer) -> Answer:
        answer[2]["choices"][0]["text"] = answer[2]["choices"][0]["text"].translate(str.maketrans("0123", "abcd"))
        return answer

    server.spoil = read_otherwise
    with pytest.raises(GradAlignError, match="has another tokenizer: it reads tokens"):
        checked(embedded, server.url)


def without(*path: Any) -> Callable[[dict[str, Any]], None]:
    def spoilt(answer: dict[str, Any]) -> None:
        inner: Any = answer
        for name in path[:-1]:
            inner = inner[name]
        del inner[path[-1]]

    return spoilt


def strangely_ended(answer: dict[str, Any]) -> None:
    answer["choices"][0] |= {"finish_reason": "stop", "token_ids": [5], "text": "2"}
    answer["choices"][0]["logprobs"]["token_logprobs"] = [-1.0]


def no_ids(answer: dict[str, Any]) -> None:
    del answer["choices"][0]["token_ids"]
    answer["choices"][0]["logprobs"]["tokens"] = ["1", "2"]


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (no_ids, "gave no token ids; .*take vLLM"),
        (without("choices", 0, "logprobs"), "gave no log-probability for each"),
        (without("choices", 0, "logprobs", "token_logprobs"), "gave no log-probability for each"),
        (lambda answer: answer["choices"][0]["logprobs"].update(token_logprobs=[-1.0] * 99), "gave no log-probability"),
        (
            lambda answer: answer["choices"][0]["logprobs"].update(
                token_logprobs=[None] * len(answer["choices"][0]["token_ids"])
            ),
            "gave a log-probability that is no number",
        ),
        (lambda answer: answer.update(choices=answer["choices"] * 2), "gave 2 responses where one was asked for"),
        (without("choices"), "gave no 'choices'"),
        (lambda answer: answer["choices"][0].update(prompt_token_ids=[2]), "answered another prompt"),
        (strangely_ended, "ended a response at token 5, which does not end one for this policy"),
    ],
)
def test_answers_that_lack_something_are_refused_at_once(
    spoilt: Callable[[dict[str, Any]], None], message: str, server: ModelServer, embedded: Policy
) -> None:
    def spoil(number: int, body: dict[str, Any], answer: Answer) -> Answer:
        spoilt(answer[2])
        return answer

    server.spoil = spoil
    with pytest.raises(GradAlignError, match=f"{server.url}/v1/completions {message}"):
        checked(embedded, server.url)
    assert len(server.bodies) <= 16  # nothing was asked twice


def test_ids_are_also_read_where_they_are_written_as_tokens(server: ModelServer, embedded: Policy) -> None:
    def older(number: int, body: dict[str, Any], answer: Answer) -> Answer:
        del answer[2]["choices"][0]["token_ids"], answer[2]["choices"][0]["prompt_token_ids"]
        return answer

    server.spoil = older
    assert checked(embedded, server.url).agreement.difference < 1e-4


def test_sglangs_answers_without_logprobs_are_refused(embedded: Policy) -> None:
    def without_logprobs(number: int, body: dict[str, Any], answer: Answer) -> Answer:
        del answer[2]["meta_info"]["output_token_logprobs"]
        return answer

    with (
        served(ModelServer(EMBEDDED, "sglang", spoil=without_logprobs)) as made,
        pytest.raises(GradAlignError, match="/generate gave no log-probabilities"),
    ):
        checked(embedded, made.url)


def test_the_key_is_sent_and_a_wrong_one_is_said(
    server: ModelServer, embedded: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = "secret"
    with pytest.raises(GradAlignError, match=r"models answered 401 .*the key in the variable GRADALIGN_SERVER_KEY"):
        checked(embedded, server.url)
    monkeypatch.setenv("GRADALIGN_SERVER_KEY", "secret")
    assert "secret" not in repr(checked(embedded, server.url))


def test_the_model_must_be_one_that_is_served(server: ModelServer, embedded: Policy) -> None:
    with pytest.raises(GradAlignError, match=r"serves no 'polcy'; did you mean 'policy'"):
        connect([server.url], 8, 60, "polcy")
    engine = connect([server.url], 8, 60, "policy")
    server.name = "another"  # exchanged meanwhile
    prompts = prompts_of(embedded, PROBLEMS[:1], 8)
    with pytest.raises(GradAlignError, match=r"answered 404 .*does not exist.*check the address, what it serves"):
        verified(engine, embedded, [PROBLEMS[0].key], prompts, SAMPLING)


def test_prompts_that_the_server_has_no_room_for_are_found_first(server: ModelServer, embedded: Policy) -> None:
    engine = checked(embedded, server.url)
    assert isinstance(engine.engine, ServerEngine)
    engine.engine.fleet.servers[0].max_length = 16
    with pytest.raises(GradAlignError, match="are more than the 16 that the engine takes; start it with a larger"):
        sampler(embedded, engine).prompts([Problem("long", "1" * 20, "2")])


@pytest.mark.parametrize("protocol", ["vllm", "sglang"])
def test_weights_are_loaded_again_and_stale_ones_are_said(protocol: str, embedded: Policy, tmp_path: Path) -> None:
    folder = moved(embedded, tmp_path / "next", 0.05)
    later = load_policy(str(folder), device="cpu")
    with served(ModelServer(EMBEDDED, protocol)) as made:
        engine = checked(embedded, made.url).engine
        with pytest.raises(GradAlignError, match="is not the policy"):
            checked(later, made.url)
        engine.load(folder)
        assert checked(later, made.url).agreement.difference < 1e-4
        made.development = False
        with pytest.raises(GradAlignError, match=r"its policy is stale, and it does not load .*answered 404"):
            engine.load(folder)
        if protocol == "sglang":
            made.development = True
            with pytest.raises(GradAlignError, match=r"its policy is stale.*no such model"):
                engine.load(tmp_path / "nowhere")


def test_select_chooses_with_a_server(server: ModelServer, gradalign: Callable[..., Ran], tmp_path: Path) -> None:
    ran = gradalign(
        "select", "--model", "embedded", "--pool", "embedded:mixed?size=24&seed=1",
        "--validation", "embedded:mixed?size=12&seed=2", "--reward", "countdown", "--allow-overlap",
        "-n", 8, "--max-new-tokens", 8, "--fraction", 0.25, "--out", tmp_path / "run",
        "--sampler", "server", "--endpoints", server.url,
    )  # fmt: skip
    assert ran.status == 0, ran.err
    assert len((tmp_path / "run/round-0000/chosen.jsonl").read_text().splitlines()) == 6
    assert len(server.bodies) >= 8 * 24


def test_options_that_do_not_go_together(gradalign: Callable[..., Ran], tmp_path: Path) -> None:
    command = [*ROLLOUT[:-2], "--out", tmp_path / "r.parquet"]
    for options, message in {
        ("--sampler", "server"): "--sampler server needs --endpoints",
        ("--endpoints", "http://127.0.0.1:1"): "--endpoints is of --sampler server",
        ("--sampler", "vllm", "--served-model", "m"): "--served-model is of --sampler server",
        ("--vllm-args", "a=1"): "--vllm-args is of --sampler vllm",
        ("--sampler", "vllm", "--vllm-args", "a"): "'a' is no NAME=VALUE",
        ("--sampler", "vllm", "--adapter", "a"): "--sampler vllm loads no --adapter",
        ("--sampler", "vlm"): "did you mean 'vllm'",
    }.items():
        assert message in gradalign("rollout", *command, *options).error


def test_a_missing_client_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(GradAlignError, match=r"pip install 'gradalign\[server\]'"):
        connect(["http://127.0.0.1:1"], 1, 1)


def test_the_policys_own_sampler_pays_and_asks_as_before(embedded: Policy) -> None:
    made = PolicySampler(embedded, REWARD, SAMPLING)
    assert set(made.identity) == {"policy", "reward", "coin", "sampling", "ends"}
