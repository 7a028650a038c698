"""Where a response says its final answer: a box, or answer tags."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def boxed(text: str) -> list[str]:
    """The contents of all closed ``\\boxed{...}``, brackets balanced; a box in a box is part of the outer."""
    found: list[str] = []
    end = 0
    for match in _BOX.finditer(text):
        if match.start() < end:
            continue
        close = _closing(text, match.end())
        if close is None:
            break  # what follows lies within an open box
        found.append(text[match.end() : close].strip())
        end = close
    return found


def tagged(text: str) -> list[str]:
    """The contents of all ``<answer>...</answer>``."""
    ended = text.split("</answer>")[:-1]
    return [piece.partition("<answer>")[2].strip() for piece in ended if "<answer>" in piece]


def _closing(text: str, start: int) -> int | None:
    depth, escaped = 1, False
    for index in range(start, len(text)):
        character = text[index]
        if escaped or character == "\\":
            escaped = not escaped
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return index
    return None
