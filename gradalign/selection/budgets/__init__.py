"""Budgets by name: how many rollouts each candidate gets."""

from __future__ import annotations

from gradalign.selection.budgets.fixed import Fixed
from gradalign.selection.budgets.race import Budget
from gradalign.selection.budgets.racing import Racing

BUDGETS: dict[str, type[Budget]] = {"fixed": Fixed, "racing": Racing}
"""Budget name -> class."""
