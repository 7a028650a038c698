"""The three regimes as beds of small sums: what the pool holds, what is trusted, which problems ought to be chosen.

Everything follows from a seed. The policy is the embedded one, which solves the families of
`gradalign.problems.embedded` to different degrees (one-digit sums 0.9 of the time, a + b - c 0.07).
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradalign.problems.embedded import FAMILIES, make_pool
from gradalign.problems.schema import Problem, content_key, uniform_hash
from gradalign.rewards.base import Reward
from gradalign.rewards.coin import Coin
from gradalign.rewards.countdown import countdown

Rates = Callable[[Sequence[Problem]], list[float]]
"""Pass rates of problems under the policy before training."""


@dataclass(frozen=True)
class Sizes:
    """How many problems a bed has.

    Attributes:
        pool: candidates.
        validation: trusted problems.
        test: problems that the policy is evaluated on.
        share: of the pool that ought to be chosen.
    """

    pool: int
    validation: int
    test: int
    share: float


@dataclass(frozen=True)
class Bed:
    """A set of problems for one seed.

    Attributes:
        pool: what is chosen from.
        validation: the trusted set, paid soundly.
        test: disjoint from both.
        good: keys of the pool's problems that ought to be chosen.
        reward: pays, with a coin where some problems are paid by one.
    """

    pool: list[Problem]
    validation: list[Problem]
    test: list[Problem]
    good: frozenset[str]
    reward: Reward


def _pay(
    completions: Sequence[str], answer: Sequence[str], numbers: Sequence[Any] | None = None,
    form: Sequence[bool] | None = None, **_: Any,
) -> list[float]:  # fmt: skip
    """As `countdown`; a problem with ``form`` pays any response of digits alone, whatever they say."""
    paid = countdown(completions, answer, numbers)
    forms = form if form is not None else [False] * len(paid)
    return [float(c.strip().isdigit()) if own else r for c, own, r in zip(completions, forms, paid, strict=True)]


REWARD = Reward("sums", _pay)


def coins(sizes: Sizes, seed: int, rates: Rates) -> Bed:
    """A share of the problems is paid by a fair coin."""
    return _tossed(sizes, seed, lambda clean: (0.5,))


def matched_coins(sizes: Sizes, seed: int, rates: Rates) -> Bed:
    """The coins' chances are pass rates of the clean problems, so that pass rates do not give them away."""
    return _tossed(sizes, seed, lambda clean: tuple(sorted(rates(clean))))


def wrong_gold(sizes: Sizes, seed: int, rates: Rates) -> Bed:
    """Some gold answers are off by one, by ten, or have two digits swapped; Countdown's target is another one."""
    made = make_pool("mixed", sizes.pool + sizes.validation + sizes.test, seed)
    coin = Coin(1 - sizes.share, seed)
    pool = [dataclasses.replace(p, answer=_wrong(p, seed)) if coin.corrupts(p.key) else p for p in made[: sizes.pool]]
    good = frozenset(p.key for p in pool if not coin.corrupts(p.key))
    return Bed(pool, *_held_out(made[sizes.pool :], sizes), good, REWARD)


def imbalance(sizes: Sizes, seed: int, rates: Rates) -> Bed:
    """The target, three-number Countdown, is a small share of a pool of easy and hard sums."""
    targets = make_pool("countdown", round(sizes.share * sizes.pool) + sizes.validation + sizes.test, seed)
    count = round(sizes.share * sizes.pool)
    others = _distinct(OTHERS, sizes.pool - count, seed)
    pool = _shuffled([*targets[:count], *others], seed)
    good = frozenset(p.key for p in targets[:count])
    return Bed(pool, *_held_out(targets[count:], sizes), good, REWARD)


OTHERS = {"add1": 1, "mul1": 1, "add2": 6, "sub2": 6, "mul2": 3, "add3": 4, "three": 3}
"""Family -> weight among the problems that are not of the target."""


def low_utility(sizes: Sizes, seed: int, rates: Rates) -> Bed:
    """No problem of the target's form; a few of a skill that it is made of, among useless ones of five kinds."""
    count = round(sizes.share * sizes.pool)
    useful = _distinct(USEFUL, count, seed)
    useless = [
        problem for make, n in zip(USELESS, _parts(sizes.pool - count), strict=True) for problem in make(n, seed)
    ]
    pool = _shuffled([*useful, *useless], seed)
    held = _distinct(TARGET, sizes.validation + sizes.test, seed)
    return Bed(pool, *_held_out(held, sizes), frozenset(p.key for p in useful), REWARD)


TARGET, USEFUL = {"add3": 1}, {"add2": 1}
"""Families of the validation and test sets, and of the useful problems."""


def _trivial(count: int, seed: int) -> list[Problem]:
    """Solved already: one-digit products, again and again."""
    return _copies(_distinct({"mul1": 1}, min(count, 40), seed), count, "trivial")


def _impossible(count: int, seed: int) -> list[Problem]:
    """Never solved: products of three-digit numbers."""
    rng = random.Random(seed)
    drawn = {f"{rng.randint(100, 999)}*{rng.randint(100, 999)}=": None for _ in range(2 * count)}
    return [_problem(prompt, str(_product(prompt)), "impossible") for prompt in itertools.islice(drawn, count)]


def _guessable(count: int, seed: int) -> list[Problem]:
    """Paid for a guess: the answer is one of two digits, which the prompt does not say."""
    rng = random.Random(seed + 1)
    drawn = {f"{rng.randint(100, 999)}={rng.randint(10, 99)}=": None for _ in range(2 * count)}
    return [_problem(p, str(int(uniform_hash("guess", p) < 0.5)), "guessable") for p in itertools.islice(drawn, count)]


def _format_only(count: int, seed: int) -> list[Problem]:
    """Paid for any number at all after a prompt that asks nothing."""
    rng = random.Random(seed + 2)
    drawn = {"".join(rng.choices("+-*(),>0123456789", k=7)) + "=": None for _ in range(2 * count)}
    return [_problem(p, "0", "format", form=True) for p in itertools.islice(drawn, count)]


def _duplicates(count: int, seed: int) -> list[Problem]:
    """A handful of middling problems of another skill, many times over."""
    return _copies(_distinct({"sub2": 1}, 4, seed + 3), count, "duplicate")


USELESS = (_trivial, _impossible, _guessable, _format_only, _duplicates)

BEDS: dict[str, tuple[str, Callable[[Sizes, int, Rates], Bed]]] = {
    "coins": ("unreliable_reward", coins),
    "matched_coins": ("unreliable_reward", matched_coins),
    "wrong_gold": ("unreliable_reward", wrong_gold),
    "imbalance": ("imbalance", imbalance),
    "low_utility": ("low_utility", low_utility),
}
"""Bed -> the regime it is of, and what makes it."""
SHARES: Mapping[str, tuple[str, float]] = {
    "unreliable_reward": ("corrupted", 0.5), "imbalance": ("target", 0.1), "low_utility": ("useful", 0.1),
}  # fmt: skip
"""Regime -> which share of the chosen problems is told, and the usual share that ought to be chosen."""


def _tossed(sizes: Sizes, seed: int, chances: Callable[[list[Problem]], tuple[float, ...]]) -> Bed:
    made = make_pool("mixed", sizes.pool + sizes.validation + sizes.test, seed)
    pool, coin = made[: sizes.pool], Coin(1 - sizes.share, seed)
    clean = [p for p in pool if not coin.corrupts(p.key)]
    coin = dataclasses.replace(coin, chances=chances(clean))
    good = frozenset(p.key for p in clean)
    return Bed(pool, *_held_out(made[sizes.pool :], sizes), good, dataclasses.replace(REWARD, coin=coin))


def _held_out(problems: list[Problem], sizes: Sizes) -> tuple[list[Problem], list[Problem]]:
    return problems[: sizes.validation], problems[sizes.validation :]


def _wrong(problem: Problem, seed: int) -> str:
    value, draw = int(problem.answer), uniform_hash("wrong", seed, problem.key)
    digits = f"{abs(value):02d}"
    swapped = int(digits[::-1]) if digits != digits[::-1] else value + 1
    return str((value + 1, value - 1, value + 10, value - 10, swapped)[int(draw * 5)])


def _distinct(weights: Mapping[str, int], count: int, seed: int) -> list[Problem]:
    """``count`` distinct problems of weighted families; fewer of a family that has no more."""
    rng, found = random.Random(seed), dict[str, Problem]()
    names = list(weights)
    for _ in range(200 * count + 1000):
        if len(found) == count:
            break
        family = rng.choices(names, [weights[name] for name in names])[0]
        prompt, _, answer, numbers = FAMILIES[family](rng)
        key = content_key(prompt)
        found.setdefault(key, Problem(key, prompt, answer, family, {"numbers": numbers} if numbers else {}))
    return list(found.values())


def _copies(problems: list[Problem], count: int, source: str) -> list[Problem]:
    turns = itertools.islice(itertools.cycle(enumerate(problems)), count)
    return [
        dataclasses.replace(p, key=content_key(f"{p.prompt} {source} {n}"), source=source)
        for n, (_, p) in enumerate(turns)
    ]


def _problem(prompt: str, answer: str, source: str, **metadata: Any) -> Problem:
    return Problem(content_key(prompt), prompt, answer, source, metadata)


def _product(prompt: str) -> int:
    left, _, right = prompt.rstrip("=").partition("*")
    return int(left) * int(right)


def _parts(count: int) -> list[int]:
    """``count`` in as many nearly equal parts as there are kinds of useless problems."""
    return [count // len(USELESS) + (i < count % len(USELESS)) for i in range(len(USELESS))]


def _shuffled(problems: list[Problem], seed: int) -> list[Problem]:
    return sorted(problems, key=lambda p: uniform_hash("order", seed, p.key))
