"""The project's two ways of speaking up: an error the user can mend, and a warning."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable


class GradAlignError(Exception):
    """A mistake in the input or the set-up: one clear line that names the place and the mend (exit status 2)."""


class GradAlignWarning(UserWarning):
    """Something worth knowing that does not stop the run."""


def warn(message: str) -> None:
    """Issue a `GradAlignWarning`."""
    warnings.warn(message, GradAlignWarning, stacklevel=2)


def nearest(name: str, known: Iterable[str]) -> str:
    """Text to end an "unknown name" error with: the nearest known name where there is one, and all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known: {', '.join(known)})"


def missing_extra(package: str, extra: str) -> GradAlignError:
    """The error for an optional package that is not installed."""
    return GradAlignError(f"the package {package!r} is not installed: pip install 'gradalign[{extra}]'")
