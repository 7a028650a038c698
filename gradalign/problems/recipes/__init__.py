"""Recipes: data sets by short name, and what their fields become; read by ``recipe:NAME``.

Every recipe makes ``prompt`` and ``answer`` of a row and keeps its other fields as metadata; the source is the recipe's
name. No instruction how to answer is added (a template's work), but for Countdown, which is no question without one.
"""

from __future__ import annotations

from gradalign.parts import Registry
from gradalign.problems.recipes.base import Recipe
from gradalign.problems.recipes.choices import MMLU_PRO, STRATEGYQA, SUPERGPQA
from gradalign.problems.recipes.countdown import COUNTDOWN
from gradalign.problems.recipes.maths import (
    AIME,
    AIME24,
    AIME25,
    AMC,
    AMC22,
    AMC23,
    DAPO,
    DEEPSCALER,
    GSM8K,
    MATH,
    MATH500,
    THEOREMQA,
    WEBINSTRUCT,
    WEBINSTRUCT_UNFILTERED,
)

RECIPES: Registry[Recipe] = Registry(
    "gradalign.recipes",
    {
        "dapo-math": DAPO,
        "webinstruct": WEBINSTRUCT,
        "webinstruct-unfiltered": WEBINSTRUCT_UNFILTERED,
        "gsm8k": GSM8K,
        "math": MATH,
        "math500": MATH500,
        "amc": AMC,
        "amc22": AMC22,
        "amc23": AMC23,
        "aime": AIME,
        "aime24": AIME24,
        "aime25": AIME25,
        "mmlu-pro": MMLU_PRO,
        "supergpqa": SUPERGPQA,
        "theoremqa": THEOREMQA,
        "strategyqa": STRATEGYQA,
        "deepscaler": DEEPSCALER,
        "countdown": COUNTDOWN,
    },
    ("hub", "make", "reward"),
)
"""Recipe name -> recipe."""
