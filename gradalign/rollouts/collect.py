"""From problems to groups: prompts to tokens, responses sampled, rewards given; kept batch by batch as they finish."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from gradalign.errors import GradAlignError, warn
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
    keys = [problem.key for problem in problems]
    if out.exists():
        groups = read_rollouts(out)
        if [(g.key, len(g.rollouts)) for g in groups] != [(key, sampling.rollouts) for key in keys]:
            raise GradAlignError(f"{out}: does not hold this run's problems and rollouts; delete it to sample again")
        done(len(keys) * sampling.rollouts)
        return groups
    prompts = prompts_of(policy, problems, sampling.max_new_tokens)
    batches = plan(prompts, sampling)
    part = out.with_name(out.name + ".part")
    with _alone(part):
        expected = [[keys[i] for i in batch for _ in range(sampling.rollouts)] for batch in batches]
        kept = _kept(part, _settings(policy, problems, reward, sampling), expected)
        for number, batch in enumerate(batches):
            if number == len(kept):
                groups = _batch(policy, [problems[i] for i in batch], [prompts[i] for i in batch], reward, sampling)
                kept.append([row for group in groups for row in to_rows(group)])
                with writing(part), part.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"rows": kept[-1]}) + "\n")
            done(len(kept[number]))
        rows = [row for batch_rows in kept for row in batch_rows]
        by_key = {group.key: group for group in gather(enumerate(rows, 1), part)}
        ordered = [by_key[key] for key in keys]
        write_rollouts(out, ordered)
        part.unlink()
    return ordered


def prompts_of(policy: Policy, problems: Sequence[Problem], max_new_tokens: int) -> list[NDArray[np.int64]]:
    """(tokens,) the prompt of each problem.

    Raises:
        GradAlignError: see `prompt_tokens`; a prompt leaves no room for a response.
    """
    prompts = [np.array(prompt_tokens(policy, problem), np.int64) for problem in problems]
    for problem, prompt in zip(problems, prompts, strict=True):
        if policy.max_length is not None and len(prompt) + max_new_tokens > policy.max_length:
            raise GradAlignError(
                f"problem {problem.key!r}: its prompt of {len(prompt)} tokens and {max_new_tokens} new ones are more "
                f"than the {policy.max_length} the policy takes; lower --max-new-tokens or leave it out"
            )
    return prompts


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Hold ``part`` for this process."""
    lock = part.with_name(f".{part.name}.lock")
    with writing(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock)
        try:
            held.acquire(timeout=0)
        except Timeout as error:
            raise GradAlignError(f"{part}: another process is at work on it; wait, or name another place") from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        held.release()


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
        rewards = reward(problem, [r.text or "" for r in responses], [r.ids for r in responses])
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
        "reward": reward.identity,
        "coin": asdict(reward.coin) if reward.coin else None,
        "sampling": json.loads(json.dumps(asdict(sampling))),
    }


def _kept(part: Path, settings: dict[str, Any], expected: list[list[str]]) -> list[list[Row]]:
    """Batches that an interrupted run left in ``part``, up to the first torn or foreign line, which is cut off.

    Starts the file where there is none, or where no batch was finished. ``expected``: the keys of each batch's rows.
    """
    lines = part.read_bytes().splitlines(keepends=True) if part.exists() else []
    header = json.dumps(settings).encode() + b"\n"
    ours = not lines or header.startswith(lines[0]) or _decoded(lines[0]).keys() == settings.keys()
    if not ours:
        raise GradAlignError(f"{part}: is in the way and no leftover of this program; move it")
    if lines[1:] and lines[0] != header:
        found = _decoded(lines[0])
        differ = ", ".join(name for name in settings if found.get(name) != settings[name])
        raise GradAlignError(
            f"{part}: holds an unfinished run (it differs in: {differ}); finish that one, delete the file, or name "
            "another place"
        )
    kept: list[list[Row]] = []
    for line, keys in zip(lines[1:], expected, strict=False):
        rows = _decoded(line).get("rows") if line.endswith(b"\n") else None
        if not isinstance(rows, list) or [_key(row) for row in rows] != keys:
            if line.endswith(b"\n"):
                warn(f"{part}: its batch {len(kept) + 1} is damaged; sampling goes on from there")
            break
        kept.append(rows)
    with writing(part):
        if kept:  # cut in place: a kill here must not cost what was finished
            os.truncate(part, sum(map(len, lines[: 1 + len(kept)])))
        else:
            part.write_bytes(header)
    return kept


def _key(row: Any) -> Any:
    return row.get("key") if isinstance(row, dict) else None


def _decoded(line: bytes) -> dict[str, Any]:
    """A line's JSON object; empty where it is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
