"""``math(timeout=5)``: math-verify says whether a response's final answer equals the gold answer.

The verdict is math-verify's own: ``verify(parse(gold), parse(response))``, LaTeX and plain expressions read, a boxed
answer before any other. A gold answer is read as it stands where it marks its mathematics (``$``, ``\\(``, ``\\[``,
``\\boxed``) and is readable so, else as if it were boxed. math-verify's time limits are signals, which work in the main
thread alone and stop no C code; here every check runs in a process that is killed (`gradalign.rewards.checker`).
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from gradalign.errors import GradAlignError, missing_extra, warn
from gradalign.rewards.checker import NoVerdictError, check

_MARKED = ("$", "\\(", "\\[", "\\boxed")


@dataclass(frozen=True)
class Math:
    """1.0 for a response whose answer equals the gold answer, else 0.0.

    A response whose check takes too long, or ends its process, is paid 0.0 and counted in a warning.

    Attributes:
        timeout: seconds that the check of one response may take.
    """

    limits_itself: ClassVar[bool] = True

    timeout: Annotated[float, Field(gt=0, le=86400)] = 5.0

    def __post_init__(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise missing_extra("math-verify", "rewards")

    def __call__(
        self, completions: Sequence[str], answer: Sequence[str], key: Sequence[str] | None = None, **_: Any
    ) -> list[float]:
        """Rewards of responses.

        Raises:
            GradAlignError: a gold answer is not mathematics.
        """
        keys = ["?"] * len(answer) if key is None else key
        for gold, name in dict(zip(answer, keys, strict=True)).items():
            self._check_gold(gold, name)
        rewards, missing = [], 0
        for text, gold in zip(completions, answer, strict=True):
            try:
                rewards.append(float(check(f"{__name__}:verdict", gold, text, seconds=self.timeout)))
            except NoVerdictError:
                rewards.append(0.0)
                missing += 1
        if missing:
            warn(
                f"reward 'math' on problem {keys[0]!r}: {missing} of {len(rewards)} responses could not be checked "
                f"within {self.timeout:g} s and are paid 0"
            )
        return rewards

    def _check_gold(self, gold: str, key: str) -> None:
        try:
            readable = check(f"{__name__}:is_readable", gold, seconds=self.timeout)
        except NoVerdictError:
            readable = False
        if not readable:
            raise GradAlignError(
                f"reward 'math' on problem {key!r}: the answer {gold!r:.80} cannot be read as mathematics; mend it, or "
                "use reward 'exact'"
            )


def prepare() -> None:
    """Import what checks need, in a checking process."""
    import math_verify  # noqa: F401


def is_readable(gold: str) -> bool:
    """Whether math-verify finds mathematics in a gold answer."""
    return any(not isinstance(one, str) for one in _gold(gold))


def verdict(gold: str, response: str) -> bool:
    """math-verify's verdict, without its time limits."""
    from math_verify import verify

    return verify(_gold(gold), _parsed(response), timeout_seconds=None)


@functools.lru_cache(maxsize=64)
def _gold(gold: str) -> Any:
    ways = [gold] if any(mark in gold for mark in _MARKED) else []
    found: Any = []
    for text in (*ways, f"\\boxed{{{gold}}}"):
        found = _parsed(text)
        if any(not isinstance(one, str) for one in found):
            break
    return found


def _parsed(text: str) -> Any:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    targets = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    return parse(text, targets, parsing_timeout=None)
