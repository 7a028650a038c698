"""Trusted responses: read from a table, or written after a problem's prompt as the policy would write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradalign.errors import GradAlignError, nearest
from gradalign.policy.group import Group, Rollout
from gradalign.policy.load import Policy
from gradalign.problems.schema import Problem
from gradalign.rollouts.sample import end_tokens
from gradalign.rollouts.sampler import Tokens
from gradalign.rollouts.table import Limits, OnBadRow, gather
from gradalign.rows import read_rows


def read_references(path: Path, limits: Limits, on_bad_row: OnBadRow = "stop") -> list[Group]:
    """Read a rollout table whose responses are trusted; rewards may be missing and are not looked at.

    Raises:
        GradAlignError: see `gradalign.rollouts.table.gather`.
    """
    rows = ((number, {**row, "reward": 1.0, "rewards": None}) for number, row in read_rows(path))
    return gather(rows, path, limits, on_bad_row)


def reference_groups(policy: Policy, problems: Sequence[Problem], prompts: Sequence[Tokens], field: str) -> list[Group]:
    """The trusted responses that problems carry in a field, as token ids; problems whose field is null have none.

    Args:
        policy: its tokenizer writes the responses, the end-of-sequence token last.
        problems: whose.
        prompts: (tokens,) the prompt of each.
        field: of the problems; ``answer`` is the gold answer.

    Raises:
        GradAlignError: no problem has the field, a value is no text, or prompt and response are too long.
    """
    groups = []
    for problem, prompt in zip(problems, prompts, strict=True):
        text = problem.answer if field == "answer" else problem.metadata.get(field)
        if text is None:
            continue
        where = f"validation: problem {problem.key!r}: field {field!r}"
        if not isinstance(text, str) or not text.strip():
            raise GradAlignError(f"{where} is {text!r:.40}; write the trusted response as text, or leave it out")
        response = written(policy, problem, prompt, text)
        length = len(prompt) + len(response)
        if policy.max_length is not None and length > policy.max_length:
            raise GradAlignError(
                f"{where}: prompt and response have {length} tokens, the policy takes {policy.max_length}; shorten it, "
                "or leave it out"
            )
        groups.append(Group(problem.key, prompt, [Rollout(response, 1.0, response=text)], problem.source))
    if not groups:
        known = dict.fromkeys(["answer", *(name for problem in problems for name in problem.metadata)])
        raise GradAlignError(f"validation: no problem has a trusted response in field {field!r}{nearest(field, known)}")
    return groups


def written(policy: Policy, problem: Problem, prompt: Tokens, text: str) -> Tokens:
    """(tokens,) ``text`` as a response to a problem, up to and with the token that ends it.

    Prompt and response are tokenised together, through the chat template where the prompt is a chat; where that does
    not begin with the prompt's own tokens, the response is tokenised by itself.
    """
    tokenizer, own = policy.tokenizer, prompt.tolist()
    whole: Any = []
    if isinstance(problem.prompt, str):
        whole = tokenizer.encode(problem.prompt + text)
    elif tokenizer.chat_template is not None:
        chat = [*problem.prompt, {"role": "assistant", "content": text}]
        whole = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
    ids = [int(token) for token in whole[len(own) :]]
    if list(whole[: len(own)]) != own or not ids:
        ids = tokenizer.encode(text, add_special_tokens=False)
    ends = end_tokens(policy)
    stop = next((place for place, token in enumerate(ids) if token in ends), None)
    if stop is not None:
        ids = ids[: stop + 1]
    elif ends:
        ids.append(min(ends) if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id))
    return np.array(ids, np.int64)
