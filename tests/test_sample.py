from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.policy.group import Group
from gradalign.policy.load import Policy, cover
from gradalign.problems.embedded import make_pool
from gradalign.problems.schema import Problem
from gradalign.rewards.base import Reward
from gradalign.rewards.countdown import countdown
from gradalign.rewards.find import find_reward
from gradalign.rewards.text import exact
from gradalign.rollouts.collect import collect
from gradalign.rollouts.sample import Sampling, plan, sample_batch
from gradalign.rollouts.sampler import PolicySampler, prompt_tokens
from gradalign.rollouts.table import to_rows, write_rollouts
from tests.conftest import make_policy

SAMPLING = Sampling(rollouts=4, max_new_tokens=10, batch_rollouts=16)
REWARD = Reward("countdown", countdown)


def recomputed(policy: Policy, prompt: np.ndarray, response: np.ndarray, temperature: float) -> np.ndarray:
    ids = torch.from_numpy(np.concatenate([prompt, response]))[None]
    with torch.no_grad():
        logits = policy.model(ids).logits[0, len(prompt) - 1 : -1] / temperature
    return torch.log_softmax(logits, -1).gather(1, ids[0, len(prompt) :, None])[:, 0].numpy()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_the_sampling_policy(
    embedded: Policy, tmp_path: Path, temperature: float
) -> None:
    problems = make_pool("mixed", 12, 0)
    sampling = dataclasses.replace(SAMPLING, temperature=temperature)
    for group in collect(PolicySampler(embedded, REWARD, sampling), problems, tmp_path / "r.parquet"):
        for rollout in group.rollouts:
            assert rollout.logprobs is not None
            expected = recomputed(embedded, group.prompt_ids, rollout.response_ids, temperature)
            np.testing.assert_allclose(rollout.logprobs, expected, atol=1e-4)


def test_responses_end_by_end_token_or_length(embedded: Policy, tmp_path: Path) -> None:
    sampling = dataclasses.replace(SAMPLING, max_new_tokens=3)
    groups = collect(PolicySampler(embedded, REWARD, sampling), make_pool("mixed", 24, 0), tmp_path / "r.parquet")
    end = embedded.tokenizer.eos_token_id
    seen = set()
    for rollout in (r for g in groups for r in g.rollouts):
        seen.add(rollout.finish_reason)
        if rollout.finish_reason == "stop":
            assert rollout.response_ids[-1] == end
            assert end not in rollout.response_ids[:-1]
        else:
            assert len(rollout.response_ids) == 3
            assert end not in rollout.response_ids
    assert seen == {"stop", "length"}


def test_stop_texts_end_a_response_and_stay_out_of_its_text(embedded: Policy) -> None:
    ids = np.array(prompt_tokens(embedded, make_pool("countdown", 1, 0)[0]), np.int64)
    sampling = dataclasses.replace(SAMPLING, rollouts=32, stop=("+", "*"))
    (responses,) = sample_batch(embedded, ["k"], [ids], sampling)
    stopped = [r for r in responses if embedded.decode(r.ids)[-1:] in ("+", "*")]
    assert stopped
    for response in stopped:
        assert response.finish_reason == "stop"
        assert response.text == embedded.decode(response.ids)[:-1]
    assert not any(sign in str(r.text) for r in responses for sign in "+*")
    (responses,) = sample_batch(embedded, ["k"], [ids], dataclasses.replace(sampling, stop=tuple("0123456789(")))
    assert {r.text for r in responses if r.finish_reason == "stop" and len(r.ids) == 1} == {""}


def test_samples_follow_the_distribution(embedded: Policy) -> None:
    """First tokens of 4,000 rollouts against the policy's own probabilities, within five standard errors."""
    ids = np.array(prompt_tokens(embedded, Problem("k", "57+68=", "125")), np.int64)
    sampling = Sampling(rollouts=4000, max_new_tokens=1)
    (responses,) = sample_batch(embedded, ["k"], [ids], sampling)
    with torch.no_grad():
        probabilities = torch.softmax(embedded.model(torch.from_numpy(ids)[None]).logits[0, -1], -1).numpy()
    shares = np.bincount([r.ids[0] for r in responses], minlength=len(probabilities)) / 4000
    error = np.sqrt(probabilities * (1 - probabilities) / 4000)
    assert (np.abs(shares - probabilities) <= 5 * error + 1e-3).all()


def test_a_problem_draws_the_same_stream_in_any_company(embedded: Policy, tmp_path: Path) -> None:
    problems = make_pool("mixed", 20, 0)
    together = {g.key: g for g in collect(PolicySampler(embedded, REWARD, SAMPLING), problems, tmp_path / "a.parquet")}
    alone = collect(PolicySampler(embedded, REWARD, SAMPLING), problems[7:8], tmp_path / "b.parquet")[0]
    for one, other in zip(alone.rollouts, together[alone.key].rollouts, strict=True):
        assert one.response_ids.tolist() == other.response_ids.tolist()
    other_seed = dataclasses.replace(SAMPLING, seed=1)
    different = collect(PolicySampler(embedded, REWARD, other_seed), problems[7:8], tmp_path / "c.parquet")[0]
    assert [r.response_ids.tolist() for r in different.rollouts] != [r.response_ids.tolist() for r in alone.rollouts]


def test_the_prompt_is_computed_once_for_all_rollouts(embedded: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    forward = embedded.model.forward

    @functools.wraps(forward)
    def watched(*args: Any, **options: Any) -> Any:
        shapes.append(tuple(options["input_ids"].shape))
        return forward(*args, **options)

    monkeypatch.setattr(embedded.model, "forward", watched)
    prompts = [np.array(prompt_tokens(embedded, p), np.int64) for p in make_pool("countdown", 2, 0)]
    sample_batch(embedded, ["a", "b"], prompts, SAMPLING)
    assert shapes[0] == (2, max(map(len, prompts)))
    assert all(width == 1 for _, width in shapes[1:])
    assert shapes[1][0] == 8
    assert shapes[-1][0] < 8  # ended rows have left


def rows(groups: list[Group]) -> list[dict[str, Any]]:
    return [row for group in groups for row in to_rows(group)]


def test_an_interrupted_run_goes_on_and_ends_the_same(
    embedded: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = make_pool("mixed", 22, 0)
    whole = collect(PolicySampler(embedded, REWARD, SAMPLING), problems, tmp_path / "whole.parquet")
    assert [g.key for g in whole] == [p.key for p in problems]
    batches = len(plan([g.prompt_ids for g in whole], SAMPLING))
    assert batches == 6
    sampled: list[int] = []

    def dying(*args: Any) -> Any:
        if len(sampled) == stop_at:
            raise KeyboardInterrupt
        sampled.append(1)
        return sample_batch(*args)

    monkeypatch.setattr("gradalign.rollouts.sampler.sample_batch", dying)
    for stop_at in (2, 3):  # dies after two batches, then after one more
        sampled.clear() if stop_at == 2 else None
        with pytest.raises(KeyboardInterrupt):
            collect(PolicySampler(embedded, REWARD, SAMPLING), problems, tmp_path / "r.parquet")
    part = tmp_path / "r.parquet.part"
    part.write_bytes(part.read_bytes()[:-40])  # a torn last line
    stop_at = 99
    sampled.clear()
    ended = collect(PolicySampler(embedded, REWARD, SAMPLING), problems, tmp_path / "r.parquet")
    assert len(sampled) == batches - 2
    assert rows(ended) == rows(whole)
    assert (tmp_path / "r.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not part.exists()


def test_what_an_interrupted_run_leaves_is_guarded(
    embedded: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = make_pool("mixed", 12, 0)
    calls: list[int] = []

    def failing(**columns: Any) -> list[float]:
        calls.append(1)
        if len(calls) > fine:
            raise ValueError("judge is down")
        return [0.0] * len(columns["completions"])

    def run(reward: Callable[..., Any], **sampling: Any) -> list[Group]:
        settings = dataclasses.replace(SAMPLING, **sampling)
        return collect(PolicySampler(embedded, Reward("countdown", reward), settings), problems, tmp_path / "r.parquet")

    part = tmp_path / "r.parquet.part"
    fine = 0
    with pytest.raises(GradAlignError, match="judge is down"):
        run(failing)
    calls.clear()
    fine = 8  # nothing was finished: another run may take the place
    with pytest.raises(GradAlignError, match="judge is down"):
        run(failing, seed=5)
    assert part.read_bytes().count(b"\n") == 3
    with pytest.raises(GradAlignError, match=r"r\.parquet\.part: holds an unfinished run \(it differs in: sampling\)"):
        run(failing)
    lines = part.read_bytes().splitlines(keepends=True)
    for damage in (b"junk\n", b"[]\n", b'{"rows": [null]}\n', b'{"batch": 0, "rows": []}\n', b"\n"):
        part.write_bytes(lines[0] + damage + lines[2])
        calls.clear()
        with (
            pytest.warns(GradAlignWarning, match="its line 2 is damaged"),
            pytest.raises(GradAlignError, match="down"),
        ):
            run(failing, seed=5)
        assert part.read_bytes() == b"".join(lines)
    for foreign in (b"my notes\n", b"\xff\xfe\n", b"[1]\n"):
        part.write_bytes(foreign)
        with pytest.raises(GradAlignError, match="is in the way and no leftover of this program"):
            run(failing, seed=5)
        assert part.read_bytes() == foreign


def test_an_edited_reward_is_another_run(embedded: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "edited_reward.py"
    module.write_text("def pay(completions, **_): return [0.0] * len(completions)\n")
    before = Reward("python:edited_reward:pay", find_reward("python:edited_reward:pay")).identity
    module.write_text("def pay(completions, **_): return [1.0] * len(completions)\n")
    after = Reward("python:edited_reward:pay", find_reward("python:edited_reward:pay")).identity
    assert before != after


def test_two_processes_cannot_share_a_table(embedded: Policy, tmp_path: Path) -> None:
    problems = make_pool("mixed", 4, 0)

    def meanwhile(**columns: Any) -> list[float]:
        collect(PolicySampler(embedded, REWARD, SAMPLING), problems, tmp_path / "r.parquet")
        return [0.0] * len(columns["completions"])

    with pytest.raises(GradAlignError, match="another process is at work on it"):
        collect(PolicySampler(embedded, Reward("countdown", meanwhile), SAMPLING), problems, tmp_path / "r.parquet")
    assert len(collect(PolicySampler(embedded, REWARD, SAMPLING), problems, tmp_path / "r.parquet")) == 4


def test_a_table_that_lost_rows_is_refused(embedded: Policy, tmp_path: Path) -> None:
    problems = make_pool("mixed", 4, 0)
    groups = collect(PolicySampler(embedded, REWARD, SAMPLING), problems, tmp_path / "r.parquet")
    write_rollouts(tmp_path / "r.parquet", groups[:2])
    with pytest.raises(GradAlignError, match="does not hold this run's problems and rollouts"):
        collect(PolicySampler(embedded, REWARD, SAMPLING), problems, tmp_path / "r.parquet")


class Spelling:
    """A tokenizer of one character a token, for models that have none."""

    eos_token_id = 1

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(chr(64 + i) for i in ids)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "qwen2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_padded_prompts_of_any_architecture(name: str, dtype: torch.dtype) -> None:
    """Learnt positions and sliding windows would show a wrong left padding, which rotary positions forgive."""
    policy = make_policy(name, dtype)
    policy.__dict__["tokenizer"] = Spelling()
    prompts = [np.arange(2, 2 + n) for n in (3, 9, 6)]
    sampled = sample_batch(policy, ["a", "b", "c"], prompts, dataclasses.replace(SAMPLING, max_new_tokens=8))
    for prompt, responses in zip(prompts, sampled, strict=True):
        for response in responses:
            expected = recomputed(policy, prompt, np.array(response.ids), 1.0)
            np.testing.assert_allclose(np.array(response.logprobs), expected, atol=1e-4)


def test_a_recurrent_model_is_refused_in_one_line() -> None:
    torch.manual_seed(0)
    config = transformers.MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2, state_size=4, eos_token_id=1)
    policy = cover(transformers.MambaForCausalLM(config).eval(), "mamba")
    policy.__dict__["tokenizer"] = Spelling()
    with pytest.raises(GradAlignError, match="keeps a recurrent state; sample with your own engine"):
        sample_batch(policy, ["a"], [np.arange(2, 6)], SAMPLING)


def test_a_distribution_that_is_not_finite_names_the_problem(embedded: Policy) -> None:
    ids = np.array(prompt_tokens(embedded, make_pool("countdown", 1, 0)[0]), np.int64)
    with pytest.raises(GradAlignError, match="problem 'k': the policy's distribution is not finite"):
        sample_batch(embedded, ["k"], [ids], dataclasses.replace(SAMPLING, temperature=1e-40))


def test_prompts_that_cannot_be_asked(embedded: Policy, tmp_path: Path) -> None:
    chat = Problem("c", [{"role": "user", "content": "1+1="}], "2")
    with pytest.raises(GradAlignError, match="has no chat template, which problem 'c' needs"):
        collect(PolicySampler(embedded, REWARD, SAMPLING), [chat], tmp_path / "r.parquet")
    long = Problem("l", "1+" * 200, "2")
    with pytest.raises(GradAlignError, match="'l': its prompt of 400 tokens and 10 new ones are more than the 256"):
        collect(PolicySampler(embedded, Reward("exact", exact), SAMPLING), [long], tmp_path / "r.parquet")
