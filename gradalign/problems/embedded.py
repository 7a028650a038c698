"""Problems of the embedded default: small arithmetic and Countdown, made on the spot from a seed.

A pool spec ``embedded:NAME?size=256&seed=0`` names them (NAME: ``arithmetic``, ``countdown`` or ``mixed``).
Prompts are what the embedded character-level policy was trained on: ``12+7=`` and, for Countdown,
``3,5,7>22=`` (reach 22 from 3, 5 and 7, each used once, with ``+ - *`` and brackets).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from gradalign.problems.schema import Problem, content_key

Made = tuple[str, str, str, list[int] | None]  # prompt, one correct response, answer, Countdown numbers


def _operation(symbol: str, low: tuple[int, int], high: tuple[int, int]) -> Callable[[random.Random], Made]:
    def make(rng: random.Random) -> Made:
        a, b = rng.randint(*low), rng.randint(*high)
        if symbol == "-" and b > a:
            a, b = b, a
        value = {"+": a + b, "-": a - b, "*": a * b}[symbol]
        return f"{a}{symbol}{b}=", str(value), str(value), None

    return make


def _three_terms(rng: random.Random) -> Made:
    a, b, c = (rng.randint(1, 50) for _ in range(3))
    value = a + b - c
    return f"{a}+{b}-{c}=", str(value), str(value), None


def _countdown(rng: random.Random) -> Made:
    """Three numbers and a target that some expression over them reaches."""
    while True:
        numbers = [rng.randint(1, 20) for _ in range(3)]
        x, y, z = rng.sample(numbers, 3)
        first, second = rng.choice("+-*"), rng.choice("+-*")
        inner = {"+": x + y, "-": x - y, "*": x * y}[first]
        target = {"+": inner + z, "-": inner - z, "*": inner * z}[second]
        if 1 <= target <= 99:
            left = f"({x}{first}{y})" if second == "*" and first != "*" else f"{x}{first}{y}"
            prompt = ",".join(map(str, sorted(numbers))) + f">{target}="
            return prompt, f"{left}{second}{z}", str(target), numbers


FAMILIES: dict[str, Callable[[random.Random], Made]] = {
    "add1": _operation("+", (0, 9), (0, 9)),
    "add2": _operation("+", (10, 99), (10, 99)),
    "add3": _operation("+", (100, 999), (100, 999)),
    "sub2": _operation("-", (10, 99), (10, 99)),
    "mul1": _operation("*", (2, 9), (2, 9)),
    "mul2": _operation("*", (11, 99), (2, 9)),
    "three": _three_terms,
    "countdown": _countdown,
}
"""Family name (a problem's ``source``) -> maker of one problem from a random generator."""

POOLS: dict[str, dict[str, int]] = {
    "arithmetic": {"add2": 2, "add3": 2, "sub2": 2, "mul1": 1, "mul2": 2, "three": 2},
    "countdown": {"countdown": 1},
    "mixed": {"add2": 2, "add3": 2, "sub2": 2, "mul1": 1, "mul2": 2, "three": 2, "countdown": 3},
}
"""Pool name -> weight of each family in it."""


def stream(weights: dict[str, int], seed: int) -> Iterator[tuple[str, Made]]:
    """Endless (family, problem) pairs, families drawn by weight; repeats are possible."""
    rng = random.Random(seed)
    names = list(weights)
    while True:
        family = rng.choices(names, [weights[name] for name in names])[0]
        yield family, FAMILIES[family](rng)


def make_pool(name: str, size: int, seed: int) -> list[Problem]:
    """``size`` distinct problems of pool ``name``; a problem's ``numbers`` are in its metadata.

    Raises:
        ValueError: the pool has fewer than ``size`` distinct problems.
    """
    problems: dict[str, Problem] = {}
    for drawn, (family, (prompt, _, answer, numbers)) in enumerate(stream(POOLS[name], seed)):
        if len(problems) == size:
            break
        if drawn > 50 * size + 10_000:
            raise ValueError(f"pool {name!r} has only about {len(problems)} distinct problems; ask for a smaller size")
        key = content_key(prompt)
        problems.setdefault(key, Problem(key, prompt, answer, family, {"numbers": numbers} if numbers else {}))
    return list(problems.values())
