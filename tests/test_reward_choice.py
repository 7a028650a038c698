"""Reward ``choice``: which letter a response ends on, and what a gold answer may be."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradalign.errors import GradAlignError
from gradalign.rewards.choice import choice, chosen

OPTIONS = ["a cat", "the dog", "An owl", "12"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("C", "C"), ("c", "C"), ("(C)", "C"), ("C.", "C"), ("**C**", "C"), ("  [b] \n", "B"), ("$\\boxed{C}$", "C"),
        ("\\boxed{\\text{C}}", "C"), ("\\boxed{(c)}", "C"), ("\\boxed{C. An owl}", "C"), ("\\boxed{an owl}", "C"),
        ("<answer>C</answer>", "C"), ("<answer> (C) An owl </answer>", "C"), ("so the answer is (C).", "C"),
        ("The answer is C", "C"), ("Answer: C", "C"), ("**Answer: C**", "C"), ("**Answer:** C", "C"),
        ("the correct option is **C**, since owls fly", "C"), ("The answer is option C.", "C"),
        ("the answer is \\textbf{(C)}", "C"), ("The answer is $C$.", "C"), ("The best choice is D because of it.", "D"),
        ("Owls fly.\n\nC", "C"), ("Owls fly.\n(C)\n", "C"), ("C) An owl", "C"), ("An owl", "C"), ("an OWL.", "C"),
        ("The answer is A. No, wait: the answer is B.", "B"), ("\\boxed{A} or rather \\boxed{B}", "B"),
        ("A is wrong, B is wrong.\nThe answer is: C", "C"), ("The answer is A because cats purr.", "A"),
        ("The answer is (a) as cats purr", "A"), ("Answer: A) a cat", "A"),
    ],
)  # fmt: skip
def test_a_letter_is_found(text: str, letter: str) -> None:
    assert chosen(text, OPTIONS) == letter


@pytest.mark.parametrize(
    "text",
    [
        "", "A B C", "A, B, C, D", "A\nB\nC\nD", "(A)\n(B)\n(C)", "ABCD", "A) a cat\nB) the dog\nC) An owl", "A/B/C/D",
        "The answer is A or B.", "The answer is A, B, C or D", "The answer is (A) and (B)", "the answer is A/C",
        "\\boxed{A, B, C, D}", "\\boxed{ABCD}", "\\boxed{A}\\boxed{B}\\boxed{C}", "\\boxed{42} so C", "\\boxed{C",
        "The answer is A. The answer is B. The answer is C.", "The answer is I think unclear", "The answer is a cat",
        "The answer is A dog.", "<answer>A or C</answer>", "E", "The answer is (J).", "I", "Cats are nice.", "C major",
        "\\boxed{A. the dog}", "A) B) C)", "a\nlong story\nb c", "The answer is A-D", "C. A",
        "The answer is both A and C", "\u0421", "\\boxed{\\text{A or B}}", "the option is C, D",
    ],
)  # fmt: skip
def test_junk_is_no_answer(text: str) -> None:
    assert chosen(text, OPTIONS) is None


def pay(text: str, gold: str, **columns: Any) -> float:
    return choice([text], [gold], ["k"], **{name: [value] for name, value in columns.items()})[0]


@pytest.mark.parametrize(
    ("gold", "columns"),
    [
        ("C", {}), ("(C)", {}), ("c.", {}), ("2", {}), ("C", {"options": OPTIONS}), ("2", {"choices": OPTIONS}),
        ("An owl", {"options": OPTIONS}), ("an owl", {"choices": dict(zip("ABCD", OPTIONS, strict=True))}),
        ("3", {"choices": {"text": OPTIONS, "label": ["1", "2", "3", "4"]}}), ("C) An owl", {"options": OPTIONS}),
        ("C", {"choices": {"text": OPTIONS, "label": ["A", "B", "C", "D"]}}), ("C", {"options": None}),
    ],
)  # fmt: skip
def test_gold_answers(gold: str, columns: dict[str, Any]) -> None:
    assert [pay(text, gold, **columns) for text in ("C", "the answer is (C)", "B", "")] == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("gold", "columns", "message"),
    [
        ("K", {}, "the answer 'K' is not a letter up to J"),
        ("E", {"options": OPTIONS}, "the answer 'E' is not one of its 4 options"),
        ("a bat", {"options": OPTIONS}, "is not one of its 4 options; write the right option's letter"),
        ("2", {"options": ["1", "2", "3"]}, r"is both the text of one option and the index of another \(B, C\)"),
        ("A", {"options": "cat"}, "its options are 'cat'; write a list of up to 10 texts"),
        ("A", {"options": list("abcdefghijk")}, "write a list of up to 10 texts"),
        ("A", {"choices": {"text": ["x", "y"], "label": ["1"]}}, "has 1 labels for 2 options"),
        ("A or B", {}, "is not a letter up to J"),
    ],
)
def test_gold_answers_that_are_none(gold: str, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(GradAlignError, match=f"reward 'choice' on problem 'k': .*{message}"):
        pay("A", gold, **columns)


@pytest.mark.parametrize("again", [" ", "\n", "*", "(", "$", "option ", "answer is ", "\\boxed{", "C) "])
def test_a_response_that_never_ends_is_given_up_at_once(again: str) -> None:
    for response in (f"the answer is {again * 20_000}", f"C) x {again * 20_000}", f"<answer>{again * 20_000}"):
        start = time.process_time()
        chosen(response, ["x", "y", "z"])
        assert time.process_time() - start < 5  # backtracking takes hours; one pass milliseconds


@given(st.text(), st.lists(st.text(min_size=1), min_size=2, max_size=10))
def test_no_text_crashes_it(text: str, options: list[str]) -> None:
    for response in (text, f"\\boxed{{{text}", f"the answer is {text}", text * 500):
        letter = chosen(response, options)
        assert letter is None or letter in "ABCDEFGHIJ"[: len(options)]


@given(st.text(alphabet="ABCDEFGHIJ ,\n()[]/.;|&", min_size=8))
def test_letters_galore_are_no_answer(text: str) -> None:
    if sum(character.isalpha() for character in text) > 1 and len({*text} & {*"ABCDEFGHIJ"}) > 3:
        lines = [line for line in text.splitlines() if any(map(str.isalpha, line))]
        if all(sum(map(str.isalpha, line)) != 1 for line in lines[-1:]):
            assert chosen(text) is None
