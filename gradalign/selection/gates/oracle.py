"""``oracle(keys='clean.txt')``: the problem is known to be clean; for studies, where somebody knows.

The bound that strategies are held against: what choosing would be worth to someone who knew which rewards are sound,
which problems are of the target, which are of use. Clean are the problems whose keys a file lists, one a line; or, with
``oracle(corrupt=0.5, seed=0)``, those that the coin of these settings (``--corrupt``, ``--corrupt-seed``) does not pay.
Strategy ``oracle`` draws among them uniformly, so that it differs from ``random`` by what it knows and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from gradalign.alignment.record import Alignment
from gradalign.errors import GradAlignError, warn
from gradalign.rewards.coin import Coin
from gradalign.selection.parts import Needs


@dataclass(frozen=True)
class Oracle:
    """See the module's text.

    Attributes:
        keys: file of the clean problems' keys; not looked at where ``corrupt`` is given.
        corrupt: chance of a problem to be paid by coin, as the run has it.
        seed: of the coin.
    """

    needs: ClassVar[Needs] = frozenset()
    final: ClassVar[bool] = True

    keys: str = "clean.txt"
    corrupt: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: int = 0

    def check(self) -> None:
        """See `gradalign.selection.parts.Informed`."""
        if self.corrupt is None:
            self._listed()

    def passes(self, alignments: Sequence[Alignment], seed: int) -> list[bool]:
        """See `gradalign.selection.parts.Gate`."""
        if self.corrupt is not None:
            coin = Coin(self.corrupt, self.seed)
            return [not coin.corrupts(a.key) for a in alignments]
        listed = self._listed()
        found = [a.key in listed for a in alignments]
        if alignments and not any(found):
            warn(
                f"gate oracle: {self.keys} lists none of the {len(found)} problems (first there: {min(listed)!r}; "
                f"first here: {alignments[0].key!r}); are these keys of this pool?"
            )
        return found

    def _listed(self) -> set[str]:
        """Keys in the file.

        Raises:
            GradAlignError: it is missing, unreadable, or lists none.
        """
        mend = "write the keys of the clean problems, one a line, or name the file by --gates \"oracle(keys='FILE')\""
        try:
            lines = Path(self.keys).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "is not UTF-8"
            raise GradAlignError(f"gate oracle: {self.keys}: {why}; {mend}") from error
        found = {line.strip() for line in lines if line.strip()}
        if not found:
            raise GradAlignError(f"gate oracle: {self.keys}: lists no key; {mend}")
        return found
