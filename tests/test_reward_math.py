"""Reward ``math``: math-verify's own verdicts, in any thread, whatever the text."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import math_verify
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.rewards import checker
from gradalign.rewards.checker import NoVerdictError, check
from gradalign.rewards.find import find_reward
from gradalign.rewards.mathematics import Math

BOMBS = ["10**10**10", "\\boxed{10^{10^{10^{10}}}}", "$\\int_0^1 e^{-x^{x^x}} dx$"]


def pay(reward: Math, responses: list[str], gold: str) -> list[float]:
    return reward(responses, [gold] * len(responses), ["k"] * len(responses))


def _gold(rng: random.Random) -> tuple[str, list[str]]:
    """A gold answer and responses' answers, right and wrong ones."""
    a, b, c = rng.randint(2, 40), rng.randint(2, 40), rng.randint(2, 9)
    return rng.choice([
        (str(a), [f"{a}.0", f"{a + 1}", f"\\frac{{{a * c}}}{{{c}}}", f"-{a}", f"{a}\\%"]),
        (f"-{a}", [f"-{a}", str(a), f"{b}-{a + b}"]),
        (f"{a}.5", [f"\\frac{{{2 * a + 1}}}{{2}}", f"{a}.50", f"{a}.51", f"{a},5"]),
        (f"\\frac{{{a}}}{{{b}}}", [f"{a}/{b}", f"\\dfrac{{{a * c}}}{{{b * c}}}", f"{b}/{a}", f"{a / b:.4f}"]),
        (f"{a}\\sqrt{{{c}}}", [f"\\sqrt{{{a * a * c}}}", f"{a}\\sqrt{{{c + 1}}}", f"{a}*{c}^{{1/2}}"]),
        (f"{a},{b:03d}", [f"{a}{b:03d}", f"{a},{b:03d}", f"{a}"]),
        (f"{a}%", [f"{a}\\%", f"{a / 100}", str(a)]),
        (f"{a}, {b}", [f"{b}, {a}", f"\\{{{a}, {b}\\}}", str(a), f"({a},{b})"]),
        (f"[{a},{a + b})", [f"[{a}, {a + b})", f"({a},{a + b})", f"{a} \\le x < {a + b}"]),
        (f"x^{c}+{a}", [f"{a}+x^{c}", f"x^{c}-{a}", f"x^{{{c}}} + {a}"]),
        (f"x = {a}", [str(a), f"x={a}", f"y = {a}", f"x = {b}"]),
        (f"{a}\\pi", [f"\\pi \\cdot {a}", f"{a * 3.14159265:.6f}", f"{a}"]),
    ])  # fmt: skip


def test_verdicts_are_math_verifys() -> None:
    rng = random.Random(0)
    targets = [math_verify.LatexExtractionConfig(boxed_match_priority=0), math_verify.ExprExtractionConfig()]
    reward, paid = Math(), 0
    for _ in range(250):
        gold, answers = _gold(rng)
        forms = ["The answer is ${}$.", "so \\boxed{{{}}}", "{}", "first $1$, then \\boxed{{{}}} and so on to 5",
                 "Final answer: {}. I hope it is correct.", "x = \\[ {} \\]"]  # fmt: skip
        responses = [rng.choice(forms).format(rng.choice(answers)) for _ in range(3)]
        responses.append(rng.choice(["", "I cannot say.", "\\boxed{}", "\\boxed{\\frac{1}{", gold * 2, "the " + gold]))
        parsed = math_verify.parse(f"\\boxed{{{gold}}}", targets)
        expected = [float(math_verify.verify(parsed, math_verify.parse(text, targets))) for text in responses]
        assert pay(reward, responses, gold) == expected, (gold, responses)
        paid += int(sum(expected))
    assert 250 < paid < 700  # both verdicts are frequent among the 1,000


def test_a_gold_answer_may_mark_its_mathematics() -> None:
    for gold in ("$5$", "\\boxed{5}", "so \\(5\\)", "\\$5", "5"):
        assert pay(Math(), ["\\boxed{5}", "5", "6"], gold) == [1.0, 1.0, 0.0], gold


@pytest.mark.parametrize("gold", ["", "\\frac{1}{", "{", "$"])
def test_a_gold_answer_that_is_no_mathematics_is_named(gold: str) -> None:
    with pytest.raises(GradAlignError, match=r"problem 'k': the answer .* cannot be read as mathematics; mend it"):
        pay(Math(), ["5"], gold)


@given(
    st.one_of(
        st.text(),
        st.text(alphabet="\\{}()[]$^_0123456789boxed frac,+-*/=!%\u0661\u0967\u00bd", max_size=400),
        st.builds(lambda text, n: text * n, st.sampled_from(["{", "(", "\\boxed{", "\\frac{", "$", "1,", "9", "a "]),
                  st.integers(1, 5000)),
    )
)  # fmt: skip
@example("\\boxed{" + "x" * 100_000)
@example("1" * 100_000)
@example("(" * 50_000 + "1" + ")" * 50_000)
@settings(max_examples=150)
def test_no_text_crashes_it_and_junk_is_not_paid(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradalign.rewards.mathematics.warn", lambda message: None)
        assert pay(Math(timeout=2.0), [text], "918273645.5463728") == [0.0]


@pytest.mark.parametrize("thread", [False, True])
def test_what_takes_too_long_is_paid_nothing_and_counted_in_any_thread(thread: bool) -> None:
    reward = Math(timeout=0.4)
    pay(reward, ["1"], "7")  # its start is not what is timed

    def run() -> list[float]:
        with pytest.warns(GradAlignWarning, match="problem 'k': [12] of 5 responses could not be checked within 0.4 s"):
            return pay(reward, [*BOMBS[:2], "\\boxed{7}", "7.0", "8"], "7")

    start = time.monotonic()
    if thread:
        with ThreadPoolExecutor() as pool:
            paid = pool.submit(run).result()
    else:
        paid = run()
    assert paid == [0.0, 0.0, 1.0, 1.0, 0.0]
    assert time.monotonic() - start < 15
    assert signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, signal.default_int_handler, None)


def test_threads_have_processes_of_their_own_and_a_batch_has_one() -> None:
    reward = Math()
    pids: set[int] = set()
    for _ in range(3):
        pay(reward, ["1", "2"] * 8, "1")
        pids |= {one.process.pid for one in checker._idle}
    assert len(pids) == len(checker._idle)  # none was replaced
    barrier = threading.Barrier(3)

    def run(gold: int) -> list[float]:
        barrier.wait()
        return pay(reward, [str(i) for i in range(40)], str(gold))

    with ThreadPoolExecutor(3) as pool:
        for gold, paid in enumerate(pool.map(run, range(3))):
            assert paid == [float(i == gold) for i in range(40)]


def test_a_check_that_ends_its_process_is_no_verdict_and_the_next_one_is() -> None:
    with pytest.raises(NoVerdictError, match="ended its process"):
        check("tests.test_reward_math:die", seconds=20)
    assert check("tests.test_reward_math:double", [1, "\ud83d"], seconds=20) == [1, "\ud83d", 1, "\ud83d"]
    for idle in checker._idle:  # as the system does when memory runs out
        idle.process.kill()
        idle.process.wait()
    assert check("tests.test_reward_math:double", [2], seconds=20) == [2, 2]
    with pytest.raises(GradAlignError, match=r"cannot be started .the check ended its process"):
        check("tests.test_rewards:f", seconds=20)  # a module without prepare
    with pytest.raises(GradAlignError, match=r"cannot import what it needs .No module named 'nothing_like_it'"):
        check("nothing_like_it:f", seconds=20)


def test_a_check_cannot_write_nor_start_anything(tmp_path: Any) -> None:
    for what in (f"open({str(tmp_path / 'x')!r}, 'w')", "__import__('os').system('true')",
                 "__import__('subprocess').run(['true'])", "__import__('socket').socket()"):  # fmt: skip
        assert check("tests.test_reward_math:evaluate", what, seconds=20) == "PermissionError"
    assert list(tmp_path.iterdir()) == []


def test_a_check_whose_caller_is_gone_ends() -> None:
    made = checker.Checker("tests.test_reward_math")
    with pytest.raises(NoVerdictError):
        made.ask("spin", (), 0.3)
    assert made.process.wait(30) == -signal.SIGALRM  # by itself: nobody stopped it
    made.stop()


def test_its_parameters_are_held_to_what_they_can_be() -> None:
    assert find_reward("math(timeout=2)") == Math(timeout=2.0)
    for spec, message in {
        "math(timeout=0)": "reward 'math': timeout: should be greater than 0",
        "math(limit=2)": "unknown parameter 'limit'",
        "math(2)": "write name or name.parameter=value",
    }.items():
        with pytest.raises(GradAlignError, match=message):
            find_reward(spec)


def prepare() -> None:
    """Nothing to import for the checks below."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def double(items: list[Any]) -> list[Any]:
    return items * 2


def spin() -> None:
    while True:
        pass


def evaluate(text: str) -> str:
    try:
        eval(text)
    except Exception as error:
        return type(error).__name__
    return "done"
