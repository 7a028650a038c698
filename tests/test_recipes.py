"""Recipes: GSM8K and AMC23 on the real rows, the others on rows in exactly the form of their data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.problems.read import read_problems
from gradalign.problems.recipes import RECIPES
from gradalign.problems.recipes.base import boxed
from gradalign.rewards.countdown import countdown
from gradalign.rewards.text import number

USER = 'Solve the following math problem step by step. The last line of your response should be of the form Answer: \
$Answer (without quotes) where $Answer is the answer to the problem.\n\n{}\n\nRemember to put your answer on its own \
line after "Answer:".'
AMC_URL = "https://artofproblemsolving.com/wiki/index.php/{}_AMC_12A_Problems/Problem_1"
AIME_URL = "https://artofproblemsolving.com/wiki/index.php/2024_AIME_I_Problems/Problem_1"
GPQA = {
    "uuid": "u1", "question": "Which?", "options": ["iron", "gold", "tin", "lead"], "answer": "tin",
    "answer_letter": "C", "discipline": "Science", "field": "Chemistry", "subfield": "Inorganic", "difficulty": "easy",
    "is_calculation": False,
}  # fmt: skip

ROWS: dict[str, tuple[dict[str, Any], str, str, dict[str, Any]]] = {
    "dapo-math": (
        {"data_source": "math_dapo", "prompt": [{"content": USER.format("Let $x=2$.\n\nFind $x$."), "role": "user"}],
         "ability": "MATH", "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
         "extra_info": {"index": "9a9b6eb4"}},
        "Let $x=2$.\n\nFind $x$.", "34",
        {"reward_model": {"style": "rule-lighteval/MATH_v2"}, "data_source": "math_dapo", "ability": "MATH",
         "extra_info": {"index": "9a9b6eb4"}},
    ),
    "webinstruct": (
        {"id": 7, "question": "q?", "answer": "1/2", "answer_type": "Fraction", "category": "Physics",
         "difficulty": "University"},
        "q?", "1/2", {"id": 7, "answer_type": "Fraction", "category": "Physics", "difficulty": "University"},
    ),
    "webinstruct-unfiltered": (
        {"task_id": "t", "original_question": "q?", "short_answer": "12 m"}, "q?", "12 m", {"task_id": "t"},
    ),
    "gsm8k": (
        {"question": "q?", "answer": "1+1=2\n#### 1,002"}, "q?", "1,002", {"solution": "1+1=2\n#### 1,002"},
    ),
    "math": (
        {"problem": "p", "level": "Level 5", "type": "Algebra", "solution": r"so $\boxed{\frac{1}{2}}$."},
        "p", r"\frac{1}{2}", {"level": "Level 5", "type": "Algebra", "solution": r"so $\boxed{\frac{1}{2}}$."},
    ),
    "math500": (
        {"problem": "p", "solution": "s", "answer": r"\left( 3, \frac{\pi}{2} \right)", "subject": "Precalculus",
         "level": 2, "unique_id": "test/precalculus/807.json"},
        "p", r"\left( 3, \frac{\pi}{2} \right)",
        {"solution": "s", "subject": "Precalculus", "level": 2, "unique_id": "test/precalculus/807.json"},
    ),
    "amc": (
        {"id": 0, "problem": "p", "answer": 142.0, "url": AMC_URL.format(2022)},
        "p", "142", {"id": 0, "url": AMC_URL.format(2022)},
    ),
    "amc22": (
        {"id": 0, "problem": "p", "answer": 0.5, "url": AMC_URL.format(2022)},
        "p", "0.5", {"id": 0, "url": AMC_URL.format(2022)},
    ),
    "amc23": (
        {"id": 0, "question": "p", "answer": 27.0, "url": AMC_URL.format(2023)},
        "p", "27", {"id": 0, "url": AMC_URL.format(2023)},
    ),
    "aime": (
        {"id": 0, "problem": "p", "solution": "s", "answer": "025", "url": AIME_URL},
        "p", "25", {"id": 0, "solution": "s", "url": AIME_URL},
    ),
    "aime24": (
        {"id": 60, "problem": "p", "solution": "s", "answer": "204", "url": AIME_URL, "year": "2024"},
        "p", "204", {"id": 60, "solution": "s", "url": AIME_URL, "year": "2024"},
    ),
    "aime25": ({"problem": "p", "answer": "70", "id": "0"}, "p", "70", {"id": "0"}),
    "mmlu-pro": (
        {"question_id": 70, "question": "Which?", "options": ["a", "b", "c"], "answer": "B", "answer_index": 1,
         "cot_content": "", "category": "business", "src": "ori_mmlu"},
        "Which?\n\nA. a\nB. b\nC. c", "B",
        {"question_id": 70, "options": ["a", "b", "c"], "answer_index": 1, "cot_content": "", "category": "business",
         "src": "ori_mmlu"},
    ),
    "supergpqa": (
        GPQA, "Which?\n\nA. iron\nB. gold\nC. tin\nD. lead", "C",
        {"answer_text": "tin", **{n: v for n, v in GPQA.items() if n not in ("question", "answer", "answer_letter")}},
    ),
    "theoremqa": (
        {"Question": "q?", "Answer": "[2, 4]", "Answer_type": "list of integer", "Picture": None},
        "q?", "[2, 4]", {"Answer_type": "list of integer"},
    ),
    "strategyqa": (
        {"qid": "x", "term": "t", "description": "d", "question": "q?", "answer": False, "facts": "f"},
        "q?", "no", {"options": ["yes", "no"], "qid": "x", "term": "t", "description": "d", "facts": "f"},
    ),
    "deepscaler": ({"problem": "p", "answer": "-2/3", "solution": "s"}, "p", "-2/3", {"solution": "s"}),
    "countdown": (
        {"target": 98, "nums": [44, 19, 35]},
        "Use each of the numbers 44, 19, 35 exactly once, with +, -, *, / and brackets, to make 98. Write the "
        "expression and nothing else.", "98", {"numbers": [44, 19, 35]},
    ),
}  # fmt: skip


def written(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_recipe_has_rows_here() -> None:
    assert ROWS.keys() == RECIPES.keys()


@pytest.mark.parametrize("name", ROWS)
def test_rows_become_problems(name: str, tmp_path: Path) -> None:
    row, prompt, answer, metadata = ROWS[name]
    (problem,) = read_problems(f"recipe:{name}?path={written(tmp_path, row)}")
    assert (problem.prompt, problem.answer, problem.source) == (prompt, answer, name)
    assert problem.metadata == metadata
    datasets.Dataset.from_list([row]).save_to_disk(tmp_path / "saved")  # the same rows through Arrow
    assert list(read_problems(f"recipe:{name}?path={tmp_path / 'saved'}")) == [problem]


def test_gsm8k_for_real(shared: Path) -> None:
    for split, count in (("train", 7473), ("test", 1319)):
        path = shared / "data" / "gsm8k" / f"{split}.jsonl"
        pool, plain = read_problems(f"recipe:gsm8k?path={path}"), read_problems(str(path))
        assert len(pool) == count
        assert {problem.source for problem in pool} == {"gsm8k"}
        assert [(p.key, p.answer, p.metadata) for p in pool] == [(p.key, p.answer, p.metadata) for p in plain]
        solutions = [problem.metadata["solution"] for problem in pool]
        assert number(solutions, [problem.answer for problem in pool]) == [1.0] * count


def test_amc23_for_real(shared: Path) -> None:
    path = shared / "data" / "amc23" / "test.jsonl"
    pool = read_problems(f"recipe:amc23?path={path}")
    assert [problem.answer for problem in pool] == [
        str(int(json.loads(line)["answer"])) for line in path.read_text().splitlines()
    ]
    with pytest.raises(GradAlignError, match="none of 40 rows is one of its problems"):
        read_problems(f"recipe:amc22?path={path}")


def test_a_year_is_taken_from_the_address(tmp_path: Path) -> None:
    rows = [{"problem": f"p{year}", "answer": 1.0, "url": AMC_URL.format(year)} for year in (2022, 2023)]
    path = written(tmp_path, *rows)
    assert [p.prompt for p in read_problems(f"recipe:amc22?path={path}")] == ["p2022"]
    assert len(read_problems(f"recipe:amc?path={path}")) == 2


def test_splits_and_configurations_of_a_folder(tmp_path: Path) -> None:
    row = ROWS["mmlu-pro"][0]
    test, other = datasets.Dataset.from_list([row]), datasets.Dataset.from_list([row | {"question": "Other?"}])
    datasets.DatasetDict(validation=other, test=test).save_to_disk(tmp_path / "d")
    assert str(read_problems(f"recipe:mmlu-pro?path={tmp_path / 'd'}")[0].prompt).startswith("Which?")
    (problem,) = read_problems(f"recipe:mmlu-pro?path={tmp_path / 'd'}&split=validation")
    assert str(problem.prompt).startswith("Other?")


def test_what_its_reward_pays(tmp_path: Path) -> None:
    (problem,) = read_problems(f"recipe:countdown?path={written(tmp_path, ROWS['countdown'][0])}")
    asked = ["44+19+35", "(44+19)+35", "98", "44+19"]
    paid = countdown(asked, [problem.answer] * 4, [problem.metadata["numbers"]] * 4)
    assert paid == [1.0, 1.0, 0.0, 0.0]
    assert RECIPES["countdown"].reward == "countdown"


def test_problems_with_a_picture_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [ROWS["theoremqa"][0] | {"Question": f"q{i}", "Picture": {"path": "a.png"} if i else None} for i in range(3)]
    with pytest.warns(GradAlignWarning, match="2 of 3 rows show a picture and are left out"):
        assert len(read_problems(f"recipe:theoremqa?path={written(tmp_path, *rows)}")) == 1


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("gsm8k", {"answer": "2"}, "field 'answer' has no ####"),
        ("gsm8k", {"question": None}, "no field 'question'"),
        ("math", {"solution": "so 2"}, r"has no \\boxed"),
        ("mmlu-pro", {"answer": "D"}, "'D', not the letter of one of 3 options"),
        ("mmlu-pro", {"options": "a, b"}, "not a list of 2 to 26 texts"),
        ("supergpqa", {"answer_letter": 2}, "int 2, not a text"),
        ("strategyqa", {"answer": "maybe"}, "not true or false"),
        ("countdown", {"nums": [1, "2"]}, "not a list of whole numbers"),
        ("countdown", {"target": 1.5}, "not a whole number"),
        ("dapo-math", {"prompt": "p"}, "not a list of one message"),
        ("dapo-math", {"prompt": ["p"]}, "not a list of one message"),
        ("dapo-math", {"reward_model": {}}, "without a ground_truth"),
        ("amc22", {"url": None}, "no field 'url'"),
    ],
)
def test_rows_of_another_form_are_named(name: str, change: dict[str, Any], said: str, tmp_path: Path) -> None:
    good, bad = ROWS[name][0], ROWS[name][0] | change
    path = written(tmp_path, good, bad)
    with pytest.raises(GradAlignError, match=f"^recipe:{name}:2: .*{said}") as raised:
        read_problems(f"recipe:{name}?path={path}")
    assert "\n" not in str(raised.value)
    with pytest.warns(GradAlignWarning, match="1 of 2 rows cannot be used"):
        assert len(read_problems(f"recipe:{name}?path={path}", skip=True)) == 1


def test_names_and_settings_that_are_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, ROWS["gsm8k"][0])
    for spec, said in (
        ("recipe:gsm9k", "did you mean 'gsm8k'"),
        ("recipe:gsm8k?spilt=test", "did you mean 'split'"),
        (f"recipe:gsm8k?path={path}&split=test", "without ?split="),
        ("recipe:gsm8k?path=none.jsonl", "none.jsonl: no such file"),
        ("recipe:gsm8k", "hf download openai/gsm8k --repo-type dataset --local-dir gsm8k"),
    ):
        with pytest.raises(GradAlignError) as raised:
            read_problems(spec)
        assert said in str(raised.value), raised.value


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} and \boxed{\frac{a}{b}}.", r"\frac{a}{b}"),
        (r"\boxed {x}", "x"),
        (r"$\boxed 5$", "5"),
        (r"\fbox{7}", "7"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{1", None),
        (r"\boxed{}", None),
        ("none", None),
    ],
)
def test_boxed(text: str, answer: str | None) -> None:
    assert boxed(text) == answer
