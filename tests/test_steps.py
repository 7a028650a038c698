"""The rule for the finite-difference step, on errors that are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradalign.alignment import steps
from gradalign.alignment.steps import Step, optimum, search


def valley(a: float, b: float, order: int) -> Callable[[float], float]:
    """The error of a step: rounding and truncation."""
    return lambda h: math.hypot(a / h, b * h**order)


def best(error: Callable[[float], float]) -> Step:
    """The best step of a fine grid."""
    grid = np.geomspace(steps.SHORTEST, steps.LONGEST, 5000)
    errors = [error(h) for h in grid]
    return Step(float(grid[np.argmin(errors)]), min(errors))


@given(
    lowest=st.floats(1e-5, 3.0), least=st.floats(1e-5, 0.9), order=st.sampled_from([1, 2]),
)  # fmt: skip
def test_the_search_finds_the_valley(lowest: float, least: float, order: int) -> None:
    """Valleys anywhere and of any depth: ``lowest`` is where, ``least`` how deep."""
    # at h*: rounding is sqrt(p) times the truncation, so the depth is truncation * sqrt(1 + p)
    truncation = least / math.sqrt(1 + order)
    error = valley(truncation * math.sqrt(order) * lowest, truncation / lowest**order, order)
    bottom = best(error)
    assert bottom.length == pytest.approx(lowest, rel=0.01)
    found = search(error, order)
    assert found.error == error(found.length)
    if found.error > steps.GOOD:  # else no further step is tried
        assert 0.5 < found.length / bottom.length < 2
        assert found.error <= 1.5 * bottom.error


@given(
    a=st.floats(1e-8, 1e-2), b=st.floats(1e-3, 1e3), order=st.sampled_from([1, 2]), short=st.floats(0.01, 0.9),
    long=st.floats(1.1, 100),
)  # fmt: skip
def test_the_rule_is_exact_on_two_points_of_the_model(
    a: float, b: float, order: int, short: float, long: float
) -> None:
    error = valley(a, b, order)
    lowest = (a / (b * math.sqrt(order))) ** (1 / (order + 1))
    assert error(lowest) <= min(error(0.999 * lowest), error(1.001 * lowest))
    one, other = (Step(factor * lowest, error(factor * lowest)) for factor in (short, long))
    found = optimum(one, other, order)
    assert found is not None
    assert found == pytest.approx(lowest, rel=1e-3)


def test_errors_that_are_no_valley_have_no_rule() -> None:
    assert optimum(Step(0.01, 1.0), Step(0.1, 1.0), 2) is not None
    assert optimum(Step(0.01, 1.0), Step(0.1, 0.01), 2) is None  # falls faster than rounding does
    assert optimum(Step(0.01, 0.001), Step(0.1, 1.0), 2) is None  # rises faster than truncation does
    assert optimum(Step(0.01, 1.0), Step(0.1, math.inf), 2) is None


def test_steps_that_cannot_be_measured_are_left() -> None:
    """Infinite beyond some length: the search goes to shorter ones, and ends."""
    found = search(lambda h: math.inf if h > 1e-4 else 0.01 + 1e-7 / h, 2)
    assert found.length <= 1e-4
    assert found.error <= 0.012 + 0.01
    assert search(lambda h: math.inf, 1).error == math.inf
    assert search(lambda h: 1.0, 2).error == 1.0


@given(start=st.floats(1e-4, 1e-3), order=st.sampled_from([1, 2]))
def test_a_valley_outside_of_the_linear_range_is_left(start: float, order: int) -> None:
    """Beyond some step errors go up and down without meaning, and the rule cannot help: a factor of two."""
    inner = valley(1e-3 * start, 1e-2 * start**-order, order)

    def error(h: float) -> float:
        return inner(h) if h < start else 0.5 + 0.4 * math.sin(5 * math.log(h))

    assert search(error, order).error <= 2.5 * best(inner).error


def test_no_step_is_measured_twice_and_a_good_one_ends_the_search() -> None:
    tried: list[float] = []

    def error(h: float) -> float:
        tried.append(h)
        return valley(1e-6, 1e4, 2)(h)

    search(error, 2)
    assert len(tried) == len(set(tried))
    tried.clear()
    assert search(lambda h: tried.append(h) or 1e-4, 2) == Step(steps.START, 1e-4)  # type: ignore[func-returns-value]
    assert tried == [steps.START]
