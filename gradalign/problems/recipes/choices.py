"""Multiple choice: MMLU-Pro and SuperGPQA, their options as lettered lines of the prompt; StrategyQA, yes or no.

The options stay in metadata ``options``, where reward ``choice`` reads them; an answer's text and index stay, too.
"""

from __future__ import annotations

from gradalign.errors import GradAlignError
from gradalign.problems.recipes.base import Recipe, letter_of, lettered, take, take_text
from gradalign.rows import Row


def _mmlu_pro(row: Row) -> Row:
    """question_id, question, options (up to ten), answer (a letter), answer_index, cot_content, category, src."""
    prompt = lettered(take_text(row, "question"), row.get("options"))
    return {"prompt": prompt, "answer": letter_of(row, "answer", row["options"]), **row}


def _supergpqa(row: Row) -> Row:
    """uuid, question, options (four to ten), answer (a text), answer_letter, discipline, field, subfield, difficulty,
    is_calculation; the answer's text becomes ``answer_text``."""
    prompt = lettered(take_text(row, "question"), row.get("options"))
    letter = letter_of(row, "answer_letter", row["options"])
    return {"prompt": prompt, "answer_text": row.pop("answer", None), "answer": letter, **row}


def _strategyqa(row: Row) -> Row:
    """qid, term, description, question, answer (a boolean), facts."""
    answer = take(row, "answer")
    if not isinstance(answer, bool):
        raise GradAlignError(f"field 'answer' is {answer!r:.40}, not true or false")
    return {
        "prompt": take_text(row, "question"), "answer": "yes" if answer else "no", "options": ["yes", "no"], **row
    }  # fmt: skip


MMLU_PRO = Recipe("TIGER-Lab/MMLU-Pro", _mmlu_pro, "choice", split="test", licence="MIT")
SUPERGPQA = Recipe("m-a-p/SuperGPQA", _supergpqa, "choice", licence="ODC-BY")
STRATEGYQA = Recipe("ChilleD/StrategyQA", _strategyqa, "choice")
