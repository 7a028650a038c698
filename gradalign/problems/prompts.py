"""Prompts as the policy is asked them."""

from __future__ import annotations

import dataclasses

from gradalign.problems.schema import Problem


def as_asked(problem: Problem, template: str = "{prompt}", chat: bool = False) -> Problem:
    """The problem with its plain-text prompt put into ``template`` and, with ``chat``, made one user message.

    Chat prompts stay as they are; so does the key.
    """
    if not isinstance(problem.prompt, str):
        return problem
    text = template.replace("{prompt}", problem.prompt)
    return dataclasses.replace(problem, prompt=[{"role": "user", "content": text}] if chat else text)
