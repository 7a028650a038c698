r"""Mathematics, and other questions with a short answer that can be checked.

Run on real rows: GSM8K and AMC23. The others' fields are those of their cards and of published code that reads them.
TheoremQA's answers are numbers, lists of numbers, truth values and options in brackets, as field ``Answer_type`` says;
reward ``math`` compares their texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from gradalign.errors import GradAlignError
from gradalign.problems.recipes.base import LeftOutError, Recipe, take, take_boxed, take_text
from gradalign.rows import Row

_DAPO = re.compile(
    r"\s*Solve the following math problem step by step\..*?is the answer to the problem\.\s*\n(?P<problem>.*?)"
    r'\s*Remember to put your answer on its own line after "Answer:"\.\s*',
    re.DOTALL,
)


def _fields(prompt: str, answer: str) -> Callable[[Row], Row]:
    """Takes two fields as they are."""

    def make(row: Row) -> Row:
        return {"prompt": take_text(row, prompt), "answer": take(row, answer), **row}

    return make


def _dapo(row: Row) -> Row:
    """data_source, prompt (one user message), ability, reward_model {ground_truth, style}, extra_info {index}.

    The instruction that every prompt carries, to end on a line ``Answer: ...``, is taken off: it would speak against
    those of templates and of other data sets. The hub has every problem about a hundred times; the first stands.
    """
    messages, model = take(row, "prompt"), take(row, "reward_model")
    match messages:
        case [{"content": str(text)}]:
            pass
        case _:
            raise GradAlignError(f"field 'prompt' is {messages!r:.40}, not a list of one message")
    if not isinstance(model, dict) or model.get("ground_truth") is None:
        raise GradAlignError(f"field 'reward_model' is {model!r:.40}, without a ground_truth")
    wrapped = _DAPO.fullmatch(text)
    answer = model.pop("ground_truth")
    return {"prompt": wrapped["problem"].strip() if wrapped else text, "answer": answer, "reward_model": model, **row}


def _gsm8k(row: Row) -> Row:
    """question, answer (a solution, then ``#### answer``); the solution becomes ``solution``."""
    solution = take_text(row, "answer")
    if "####" not in solution:
        raise GradAlignError("field 'answer' has no ####")
    answer = solution.rsplit("####", 1)[1].strip()
    return {"prompt": take_text(row, "question"), "answer": answer, "solution": solution, **row}


def _math(row: Row) -> Row:
    """problem, level, type, solution, the answer boxed in it."""
    return {"prompt": take_text(row, "problem"), "answer": take_boxed(row, "solution"), **row}


def _aime24(row: Row) -> Row:
    """id, problem, solution, answer, url, year."""
    return {"prompt": take_text(row, "problem"), "answer": _plain(take(row, "answer")), **row}


def _amc(row: Row) -> Row:
    """id, problem, answer (a number with a decimal point), url; a row may say ``question`` in place of ``problem``."""
    return {"prompt": take_text(row, "problem", "question"), "answer": _plain(take(row, "answer")), **row}


def _theoremqa(row: Row) -> Row:
    """Question, Answer, Answer_type, Picture; rows with a picture are left out, since it cannot be shown."""
    if row.pop("Picture", None) is not None:
        raise LeftOutError("show a picture")
    return {"prompt": take_text(row, "Question"), "answer": take(row, "Answer"), **row}


def _plain(answer: Any) -> Any:
    """Leading zeros off (AIME's ``025``), so that texts can be compared."""
    return answer.strip().lstrip("0") or "0" if isinstance(answer, str) and answer.strip().isdecimal() else answer


def _year(year: int) -> Callable[[Row], bool]:
    def part(row: Row) -> bool:
        return f"{year}_AMC" in str(take(dict(row), "url"))

    return part


DAPO = Recipe("BytedTsinghua-SIA/DAPO-Math-17k", _dapo, "math", licence="Apache-2.0")
WEBINSTRUCT = Recipe("TIGER-Lab/WebInstruct-verified", _fields("question", "answer"), "math", licence="Apache-2.0")
"""id, question, answer, answer_type, category, difficulty. Answers of types such as String need a judge."""
WEBINSTRUCT_UNFILTERED = Recipe(
    "TIGER-Lab/WebInstruct-verified-unfiltered", _fields("original_question", "short_answer"), "math",
    licence="Apache-2.0",
)  # fmt: skip
"""task_id, original_question, short_answer, ...: the corpus that the paper's code takes."""
GSM8K = Recipe("openai/gsm8k", _gsm8k, "number", config="main", licence="MIT", seen=True)
MATH = Recipe("DigitalLearningGmbH/MATH-lighteval", _math, "math", licence="MIT")
MATH500 = Recipe("HuggingFaceH4/MATH-500", _fields("problem", "answer"), "math", split="test")
"""problem, solution, answer, subject, level, unique_id."""
AMC = Recipe("AI-MO/aimo-validation-amc", _amc, "math", licence="Apache-2.0")
AMC22 = Recipe("AI-MO/aimo-validation-amc", _amc, "math", part=_year(2022), licence="Apache-2.0")
AMC23 = Recipe("AI-MO/aimo-validation-amc", _amc, "math", part=_year(2023), licence="Apache-2.0", seen=True)
AIME = Recipe("AI-MO/aimo-validation-aime", _aime24, "math", licence="Apache-2.0")
"""2022 to 2024: id, problem, solution, answer, url."""
AIME24 = Recipe("HuggingFaceH4/aime_2024", _aime24, "math")
AIME25 = Recipe("math-ai/aime25", _aime24, "math", split="test", licence="Apache-2.0")
THEOREMQA = Recipe("TIGER-Lab/TheoremQA", _theoremqa, "math", split="test", licence="MIT")
DEEPSCALER = Recipe("agentica-org/DeepScaleR-Preview-Dataset", _fields("problem", "answer"), "math", licence="MIT")
"""problem, answer, solution."""
