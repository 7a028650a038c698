"""What a problem is: one row of a pool, and the key it keeps for ever."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, str]
Prompt = str | list[Message]


@dataclass(frozen=True, slots=True)
class Problem:
    """One row of a pool.

    Attributes:
        key: stable name; where the row brings none, a hash of the prompt.
        prompt: plain text, or chat messages ``[{"role", "content"}, ...]``.
        answer: the gold answer as text, handed to reward functions as column ``answer``.
        source: where the row is from (its ``source`` field, else the file's stem).
        metadata: every other field of the row; reward functions see these as columns too.
    """

    key: str
    prompt: Prompt
    answer: str
    source: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


def prompt_text(prompt: Prompt) -> str:
    """The prompt as one string: message contents joined by newlines for a chat."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(message["content"] for message in prompt)


def normalised(prompt: Prompt) -> str:
    """The prompt's text up to case, Unicode form and white space, for finding overlap."""
    return " ".join(unicodedata.normalize("NFKC", prompt_text(prompt)).casefold().split())


def identity(prompt: Prompt) -> str:
    """The prompt's text up to canonical Unicode form and white space: what makes two rows one problem."""
    return " ".join(unicodedata.normalize("NFC", prompt_text(prompt)).split())


def content_key(prompt: Prompt) -> str:
    """A 16-digit hexadecimal key from the prompt's `identity`; the same in every process and version."""
    return hashlib.sha256(identity(prompt).encode()).hexdigest()[:16]


def fingerprint(problems: Iterable[Problem]) -> str:
    """16 hexadecimal digits that depend on every problem, metadata included, and their order; read one at a time."""
    made = hashlib.sha256(b"[")
    for place, p in enumerate(problems):
        row = [p.key, p.prompt, p.answer, p.source, dict(p.metadata)]
        made.update(b", " * (place > 0) + json.dumps(row, default=str).encode())
    made.update(b"]")
    return made.hexdigest()[:16]


def uniform_hash(*parts: Any) -> float:
    """A number in [0, 1) that depends on ``parts`` alone: the project's only source of seeded ties and coins."""
    digest = hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
