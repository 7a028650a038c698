"""Prompts as the policy is asked them: a template around each, a system message, worked examples before it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gradalign.errors import GradAlignError
from gradalign.problems.schema import Message, Problem, prompt_text

SHOT = "{prompt}{response}\n\n"
"""A worked example in a plain-text prompt."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How problems are asked; called with one, gives it with its prompt so. Keys stay.

    Attributes:
        template: text around a plain-text prompt, which takes the place of ``{prompt}``.
        chat: make plain-text prompts user messages; prompts that are messages already stay so in any case.
        system: system message, or in plain text what stands before everything; a prompt's own system message stays.
        shots: (problem, response) worked examples: turns of a chat, or in plain text ``shot`` filled in.
        shot: of a plain-text example; ``{prompt}`` is its prompt within the template.
    """

    template: str = "{prompt}"
    chat: bool = False
    system: str | None = None
    shots: tuple[tuple[Problem, str], ...] = ()
    shot: str = SHOT

    def __call__(self, problem: Problem) -> Problem:
        """The problem as the policy is asked it."""
        if isinstance(problem.prompt, str) and not self.chat:
            examples = "".join(_filled(self.shot, {"{prompt}": self._text(p), "{response}": r}) for p, r in self.shots)
            system = "" if self.system is None else f"{self.system}\n\n"
            return dataclasses.replace(problem, prompt=f"{system}{examples}{self._text(problem)}")
        messages = self._messages(problem)
        first = messages[:1] if messages[0]["role"] == "system" else []
        own = messages[len(first) :]
        if not first and self.system is not None:
            first = [{"role": "system", "content": self.system}]
        turns = [
            message
            for example, response in self.shots
            for message in [*self._messages(example), {"role": "assistant", "content": response}]
        ]
        return dataclasses.replace(problem, prompt=[*first, *turns, *own])

    def _messages(self, problem: Problem) -> list[Message]:
        if isinstance(problem.prompt, str):
            return [{"role": "user", "content": self._text(problem)}]
        return problem.prompt

    def _text(self, problem: Problem) -> str:
        return self.template.replace("{prompt}", prompt_text(problem.prompt))


def _filled(text: str, places: Mapping[str, str]) -> str:
    """The text with its places filled in at once, so that what fills one is no place itself."""
    return re.sub("|".join(map(re.escape, places)), lambda place: places[place[0]], text)


def worked(examples: Sequence[Problem], field: str | None) -> tuple[tuple[Problem, str], ...]:
    """Problems with the responses that show how to solve them.

    Args:
        examples: the problems.
        field: metadata field of the response, or ``answer``; None for ``solution`` where there is one, else the answer.

    Raises:
        GradAlignError: a problem lacks the field.
    """
    found = []
    for problem in examples:
        known = {**problem.metadata, "answer": problem.answer}
        name = field or ("solution" if isinstance(known.get("solution"), str) else "answer")
        if not isinstance(known.get(name), str):
            raise GradAlignError(
                f"worked example {problem.key!r} has no text in field {name!r} (fields: {', '.join(known)}); name the "
                "field of its response by --shot-field"
            )
        found.append((problem, known[name]))
    return tuple(found)
