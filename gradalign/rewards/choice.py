"""``choice``: multiple choice, A to J. 1.0 where the response ends on the right letter, else 0.0.

The response's answer is, of these, the first kind that it has:

1. a box, ``\\boxed{C}``, or answer tags, ``<answer>C</answer>``; one that holds anything but a letter (``C``, ``(C)``,
   ``C. text``) or an option's text is no answer, whatever else the response says;
2. a sentence: "the answer is (C)", "Answer: **C**", "the correct option is C";
3. a last line that is a letter, the line above it being none (that is a list);
4. the whole response, where it is one line: a letter, ``C) text`` or an option's text.

Of several of a kind the last one counts, since people correct themselves; three different ones, or "A or B", are no
answer. Letters are capital, except in brackets and boxes and where they are all there is.

The gold answer is a letter (``C``, ``(C)``, ``C.``), one of the options' labels, an option's text, or an index from 0.
Options are the problem's field ``options`` or ``choices``: a list of texts, ``{"A": text, ...}``, or ``{"text": [...],
"label": [...]}``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradalign.errors import GradAlignError
from gradalign.rewards.answers import boxed, tagged

LETTERS = "ABCDEFGHIJ"
# Possessive quantifiers (``*+``): a response that goes on with blanks for ever is given up in one pass over it.
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathsf|rm|bf)\s*\{([^{}]*)\}")
_ALONE = re.compile(r"[\s*_`$#>(\[{]*([A-Ja-j])[\s*_`$)\]}.:,]*")
_LABELLED = re.compile(r"(?<![\s*_`(\[])[\s*_`(\[]*+([A-Ja-j])(?:[*_`\])]*[.:)\]]|\)|\])[*_`]*\s+(\S.*)", re.DOTALL)
_SAID = re.compile(
    r"(?:\banswer|\bchoice|\boption)\**+\s*+(?:is|:|=|\bwould be|\bshould be|\bmust be)[\s:*_`$\"']*+"
    r"(?:(?i:option|choice|letter)\s++|\\(?:text|textbf|mathrm|mathbf)\s*+\{|\\boxed\s*+\{)*+[\s*_`$\"']*+"
    r"(?P<open>[(\[]?+)\s*+(?P<letter>(?-i:[A-J])|(?<=[(\[])[a-j])\b(?=(?P<after>.{0,24}))",
    re.IGNORECASE | re.DOTALL,
)
_OTHERS = re.compile(r"[)\]*_`.\s]*(?:,|/|&|\||\bor\b|\band\b|\bto\b|-)\s*[(\[*_`]*(?:(?:or|and)\s+)?[(\[*_`]*[A-J]\b")
_WORD = re.compile(r"\s+(?!because\b|since\b|as\b|for\b|so\b)[a-z]")


@dataclass(frozen=True)
class _Options:
    """Texts, and labels where they are not the letters; both empty where the problem brings none."""

    texts: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def letters(self) -> str:
        return LETTERS[: len(self.texts)] if self.texts else LETTERS

    def of_text(self, text: str) -> str | None:
        """The letter of the one option with that text."""
        own = [i for i, option in enumerate(self.texts) if _plain(option) == _plain(text)]
        return LETTERS[own[0]] if len(own) == 1 and _plain(text) else None


def choice(
    completions: Sequence[str],
    answer: Sequence[str],
    key: Sequence[str] | None = None,
    options: Sequence[Any] | None = None,
    choices: Sequence[Any] | None = None,
    **_: Any,
) -> list[float]:
    """1.0 where the response ends on the right letter, else 0.0; see the module's text.

    Raises:
        GradAlignError: options that are none or more than ten; a gold answer that is none of them, or two.
    """
    nothing = [None] * len(completions)
    rewards = []
    for text, gold, name, *given in zip(
        completions, answer, key or nothing, options or nothing, choices or nothing, strict=True
    ):
        where = f"reward 'choice' on problem {name!r}"
        known = _options(next((one for one in given if one is not None), None), where)
        rewards.append(float(chosen(text, known.texts) == _gold(gold, known, where)))
    return rewards


def chosen(response: str, options: Sequence[str] = ()) -> str | None:
    """The letter that a response ends on; None where it ends on none."""
    known = _Options(tuple(options))
    for found in (boxed(response), tagged(response)):
        if found:
            return _agreed([_letter(one, known) for one in found])
    sentences = [_in_sentence(match, known) for match in _SAID.finditer(response)]
    if any(sentences):
        return _agreed(sentences)
    lines = [line for line in response.splitlines() if line.strip()]
    alone = [_ALONE.fullmatch(line) for line in lines]
    if len(lines) == 1:
        return _letter(response, known)
    last = alone[-1] if alone else None
    return None if last is None or alone[-2] is not None else _known(last[1], known, bare=True)


def _agreed(letters: Sequence[str | None]) -> str | None:
    return letters[-1] if len(set(letters) - {None}) <= 2 else None


def _known(letter: str, options: _Options, bare: bool = False) -> str | None:
    return letter.upper() if letter.upper() in options.letters and not (bare and letter.islower()) else None


def _letter(text: str, options: _Options) -> str | None:
    """The letter of a text that is to be an answer and nothing else."""
    by_text = options.of_text(text)
    if by_text is not None:
        return by_text
    text = _WRAPPED.sub(r"\1", text)
    alone = _ALONE.fullmatch(text)
    if alone is not None:
        return _known(alone[1], options)
    labelled = _LABELLED.fullmatch(text)
    if labelled is None or _LABELLED.search(labelled[2]) or re.match(r"\W*[A-Ja-j]\W*$", labelled[2]):
        return options.of_text(text)
    right = options.of_text(labelled[2])
    return None if right not in (None, labelled[1].upper()) else _known(labelled[1], options)


def _in_sentence(match: re.Match[str], options: _Options) -> str | None:
    after = match["after"]
    if _OTHERS.match(after) or (not match["open"] and match["letter"] in "AI" and _WORD.match(after)):
        return None
    return _known(match["letter"], options)


def _plain(text: str) -> str:
    return " ".join(_WRAPPED.sub(r"\1", text).strip("$ .\t\n").casefold().split())


def _options(given: Any, where: str) -> _Options:
    labels: Sequence[Any] = ()
    if isinstance(given, dict):
        texts = given.get("text") if isinstance(given.get("text"), list | tuple) else list(given.values())
        labels = given.get("label") or () if texts is given.get("text") else list(given)
    else:
        texts = given if given is not None else ()
    if not isinstance(texts, list | tuple) or not isinstance(labels, list | tuple) or len(texts) > len(LETTERS):
        raise GradAlignError(f"{where}: its options are {given!r:.60}; write a list of up to {len(LETTERS)} texts")
    if labels and len(labels) != len(texts):
        raise GradAlignError(f"{where}: has {len(labels)} labels for {len(texts)} options; write one for each")
    return _Options(tuple(map(str, texts)), tuple(map(str, labels)))


def _gold(gold: str, options: _Options, where: str) -> str:
    text = gold.strip()
    readings = set()
    alone = _ALONE.fullmatch(text)
    if text in options.labels:
        return LETTERS[options.labels.index(text)]
    if alone is not None and _known(alone[1], options):
        return alone[1].upper()
    by_text = options.of_text(text)
    if by_text is not None:
        readings.add(by_text)
    if text.isascii() and text.isdigit() and int(text) < len(options.letters):
        readings.add(options.letters[int(text)])
    if not readings:
        labelled = _letter(text, options)
        readings |= {labelled} if labelled is not None else set()
    if len(readings) == 1:
        return readings.pop()
    known = f"one of its {len(options.texts)} options" if options.texts else f"a letter up to {LETTERS[-1]}"
    what = f"is both the text of one option and the index of another ({', '.join(sorted(readings))})"
    raise GradAlignError(
        f"{where}: the answer {gold!r:.60} {what if readings else f'is not {known}'}; write the right option's letter"
    )
