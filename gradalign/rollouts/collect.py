"""From problems to groups: prompts to tokens, responses sampled, rewards given; kept batch by batch as they finish."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradalign.errors import GradAlignError
from gradalign.files import writing
from gradalign.policy.group import Group, Rollout
from gradalign.policy.load import Policy
from gradalign.problems.schema import Problem, fingerprint
from gradalign.rewards.base import Reward
from gradalign.rollouts.sample import Sampling, plan, sample_batch
from gradalign.rollouts.table import gather, read_rollouts, to_rows, write_rollouts, writer_of
from gradalign.rows import Row


def prompt_tokens(policy: Policy, problem: Problem) -> list[int]:
    """A problem's prompt as token ids: a text as it stands, chat messages through the tokenizer's chat template.

    Raises:
        GradAlignError: the tokenizer has no chat template, or the prompt comes out empty.
    """
    tokenizer, prompt = policy.tokenizer, problem.prompt
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt)
    elif tokenizer.chat_template is None:
        raise GradAlignError(
            f"model {policy.path}: its tokenizer has no chat template, which problem {problem.key!r} needs; write the "
            "prompt as plain text, or take an instruction-tuned model"
        )
    else:
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False)
    if not ids:
        raise GradAlignError(f"problem {problem.key!r}: its prompt has no token")
    return [int(token) for token in ids]


def collect(
    policy: Policy,
    problems: Sequence[Problem],
    reward: Reward,
    sampling: Sampling,
    out: Path,
    done: Callable[[int], None] = lambda rollouts: None,
) -> list[Group]:
    """Sample and reward every problem's responses into the table ``out``; go on where an interrupted call stopped.

    Finished batches are kept in ``out``.part until the last one is in. With the same arguments the table is the same,
    interrupted or not.

    Args:
        policy: samples the responses.
        problems: distinct keys.
        reward: pays them.
        sampling: how many, how long, at which temperature.
        out: ``.parquet`` or ``.jsonl``.
        done: called with the number of rollouts of each batch as it is in.

    Raises:
        GradAlignError: a prompt that leaves no room for a response; a reward that fails; ``out``.part is another
            run's; the place cannot be written to.
    """
    writer_of(out)
    if out.exists():
        groups = read_rollouts(out)
        done(sum(len(group.rollouts) for group in groups))
        return groups
    prompts = [np.array(prompt_tokens(policy, problem), np.int64) for problem in problems]
    for problem, prompt in zip(problems, prompts, strict=True):
        length = len(prompt) + sampling.max_new_tokens
        if policy.max_length is not None and length > policy.max_length:
            raise GradAlignError(
                f"problem {problem.key!r}: its prompt of {len(prompt)} tokens and {sampling.max_new_tokens} new ones "
                f"are more than the {policy.max_length} the policy takes; lower --max-new-tokens or leave it out"
            )
    part = out.with_name(out.name + ".part")
    settings = _settings(policy, problems, reward, sampling)
    with writing(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        kept = _kept(part, settings)
    for number, batch in enumerate(plan(prompts, sampling)):
        if number == len(kept):
            groups = _batch(policy, [problems[i] for i in batch], [prompts[i] for i in batch], reward, sampling)
            kept.append([row for group in groups for row in to_rows(group)])
            with writing(part), part.open("a", encoding="utf-8") as file:
                file.write(json.dumps(kept[-1]) + "\n")
        done(len(kept[number]))
    rows = [row for batch_rows in kept for row in batch_rows]
    by_key = {group.key: group for group in gather(enumerate(rows, 1), part)}
    ordered = [by_key[problem.key] for problem in problems]
    write_rollouts(out, ordered)
    part.unlink()
    return ordered


def _batch(
    policy: Policy,
    problems: Sequence[Problem],
    prompts: Sequence[NDArray[np.int64]],
    reward: Reward,
    sampling: Sampling,
) -> list[Group]:
    sampled = sample_batch(policy, [problem.key for problem in problems], prompts, sampling)
    groups = []
    for problem, prompt, responses in zip(problems, prompts, sampled, strict=True):
        rewards = reward(problem, [r.text for r in responses], [r.ids for r in responses])
        rollouts = [
            Rollout(
                np.array(r.ids, np.int64), value, logprobs=np.array(r.logprobs, np.float32),
                finish_reason=r.finish_reason, response=r.text,
            )
            for r, value in zip(responses, rewards, strict=True)
        ]  # fmt: skip
        groups.append(Group(problem.key, prompt, rollouts, problem.source, policy.fingerprint))
    return groups


def _settings(policy: Policy, problems: Sequence[Problem], reward: Reward, sampling: Sampling) -> dict[str, Any]:
    """All that the rollouts depend on; the first line of a ``.part`` file."""
    return {
        "policy": policy.fingerprint,
        "problems": fingerprint(problems),
        "reward": reward.name,
        "coin": asdict(reward.coin) if reward.coin else None,
        "sampling": json.loads(json.dumps(asdict(sampling))),
    }


def _kept(part: Path, settings: dict[str, Any]) -> list[list[Row]]:
    """Batches that an interrupted run left in ``part``, up to the first torn line, which is cut off with all after it.

    Starts the file where there is none.
    """
    size, lines = 0, []
    for line in part.read_bytes().splitlines(keepends=True) if part.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
        if not line.endswith(b"\n"):
            lines.pop()
            break
        size += len(line)
    if not lines:
        part.write_text(json.dumps(settings) + "\n", encoding="utf-8")
        return []
    if lines[0] != settings:
        found = lines[0] if isinstance(lines[0], dict) else {}
        differ = ", ".join(name for name in settings if found.get(name) != settings[name])
        raise GradAlignError(
            f"{part}: holds an unfinished run with another {differ}; finish that one, delete the file, or name another "
            "place"
        )
    with part.open("r+b") as file:
        file.truncate(size)
    return lines[1:]
