"""``reasoning-gym(threshold=1)``: the reward of the reasoning-gym data set that a problem is from.

A pool ``reasoning-gym:NAME`` gives each problem the data set's name (``reasoning_gym``) and its whole entry as JSON
(``entry``); the library's ``score_answer`` of that data set scores the answer. It gives small amounts to junk (0.01,
0.05) and to near misses, so a score pays 1.0 from the threshold on, else 0.0. Where the library raises an exception at
an answer, that is worth nothing. ``game_of_life_halting`` takes any text for its "True": there the answer must also be
the entry's own.

The answer is the content of the last ``<answer>`` tags, else of the last ``\\boxed{}``, else the whole response,
without white space at its ends; ``extract`` insists on one of them. Scoring runs in a process of its own
(`gradalign.rewards.checker`): the library evaluates some answers as Python.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from gradalign.errors import GradAlignError, missing_extra, warn
from gradalign.rewards.answers import boxed, tagged
from gradalign.rewards.checker import NoVerdictError, check

ROUNDING = 1e-9
"""How far below the threshold a score may be."""
_TUPLES = ("arc_agi", "rearc")
"""Data sets that compare tuples, which JSON makes lists of."""
_LAX = ("game_of_life_halting",)


@dataclass(frozen=True)
class ReasoningGym:
    """See the module's text.

    Attributes:
        threshold: score that pays.
        extract: what the answer is: ``tags``, ``boxed``, ``whole``, or ``auto``, the first of them that there is.
        timeout: seconds that scoring one answer may take; longer is paid 0.0 and counted in a warning.
    """

    limits_itself: ClassVar[bool] = True

    threshold: Annotated[float, Field(gt=0, le=1)] = 1.0
    extract: Literal["auto", "tags", "boxed", "whole"] = "auto"
    timeout: Annotated[float, Field(gt=0, le=86400)] = 10.0

    def __post_init__(self) -> None:
        if importlib.util.find_spec("reasoning_gym") is None:
            raise missing_extra("reasoning-gym", "rewards")

    def __call__(
        self,
        completions: Sequence[str],
        key: Sequence[str] | None = None,
        reasoning_gym: Sequence[str | None] | None = None,
        entry: Sequence[str | None] | None = None,
        **_: Any,
    ) -> list[float]:
        """Rewards of responses.

        Raises:
            GradAlignError: a problem without ``reasoning_gym`` or ``entry``, an entry that is not JSON, an unknown data
                set.
        """
        nothing = [None] * len(completions)
        keys = ["?"] * len(completions) if key is None else key
        rewards, missing = [], 0
        for text, name, data_set, own in zip(
            completions, keys, reasoning_gym or nothing, entry or nothing, strict=True
        ):
            where = f"reward 'reasoning-gym' on problem {name!r}"
            for field, value in (("reasoning_gym", data_set), ("entry", own)):
                if not isinstance(value, str):
                    raise GradAlignError(f"{where}: has no text {field!r}; read the pool as reasoning-gym:NAME")
            answer = self._answer(text)
            try:
                score = 0.0 if answer is None else check(
                    f"{__name__}:score", data_set, own, answer, seconds=self.timeout
                )  # fmt: skip
            except NoVerdictError:
                score = 0.0
                missing += 1
            except GradAlignError as error:
                raise GradAlignError(f"{where}: {error}") from error
            rewards.append(float(score >= self.threshold - ROUNDING))
        if missing:
            warn(
                f"reward 'reasoning-gym' on problem {keys[0]!r}: {missing} of {len(rewards)} responses could not be "
                f"scored within {self.timeout:g} s and are paid 0"
            )
        return rewards

    def _answer(self, text: str) -> str | None:
        if self.extract == "whole":
            return text.strip()
        ways = {"tags": tagged, "boxed": boxed}
        for name in ways if self.extract == "auto" else (self.extract,):
            found = ways[name](text)
            if found:
                return found[-1]
        return text.strip() if self.extract == "auto" else None


def prepare() -> None:
    """Import what checks need, in a checking process."""
    import reasoning_gym  # noqa: F401


def score(data_set: str, entry: str, answer: str) -> float:
    """The library's score, 0.0 where it raises.

    Raises:
        GradAlignError: the entry is not one, or the library does not know the data set.
    """
    own = _entry(data_set, entry)
    if data_set in _LAX and answer != str(own["answer"]):
        return 0.0
    try:
        return float(_scorer(data_set)(answer, own))
    except GradAlignError:
        raise
    except Exception:
        return 0.0


def _entry(data_set: str, text: str) -> dict[str, Any]:
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GradAlignError(f"field 'entry' is not JSON ({error}); read the pool as reasoning-gym:NAME") from error
    if not isinstance(entry, dict) or not {"answer", "metadata"} <= entry.keys():
        raise GradAlignError("field 'entry' lacks answer and metadata; read the pool as reasoning-gym:NAME")
    if data_set in _TUPLES:
        entry["metadata"] = {name: _tuples(value) for name, value in entry["metadata"].items()}
    return entry


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@functools.lru_cache(maxsize=16)
def _scorer(data_set: str) -> Callable[[str, dict[str, Any]], float]:
    from reasoning_gym.factory import get_score_answer_fn

    try:
        return get_score_answer_fn(data_set)
    except Exception as error:
        raise GradAlignError(f"reasoning-gym has no data set {data_set!r} ({error}); install its version") from error
