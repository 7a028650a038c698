"""Near-duplicates: problems whose words are nearly those of another.

The similarity is Jaccard's, |A n B| / |A u B|, of the sets of three words in a row (numbers and signs count as words,
case does not). Candidates come from MinHash with locality-sensitive hashing (Broder, 1997; package ``datasketch``),
tuned to miss few; each is then compared exactly, so that nothing below the threshold is ever taken for a duplicate.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradalign.errors import missing_extra
from gradalign.problems.schema import Prompt, normalised

WORDS = 3
PERMUTATIONS = 128
WORD = re.compile(r"\w+|[^\w\s]")


def shingles(prompt: Prompt) -> NDArray[np.uint64]:
    """(distinct,) hashes of the runs of `WORDS` words, sorted; of a shorter prompt the one of all its words."""
    words = WORD.findall(normalised(prompt))
    runs = {" ".join(words[i : i + WORDS]) for i in range(max(1, len(words) - WORDS + 1))}
    return np.sort(np.array([_hash(run) for run in runs], np.uint64))


def similarity(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    """Jaccard's similarity of two sets that `shingles` gave."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class NearIndex:
    """Prompts that were added, to be asked for the one most like another; about 3 kB of memory each.

    Args:
        threshold: least similarity, in (0, 1].

    Raises:
        GradAlignError: package ``datasketch`` is not installed.
    """

    def __init__(self, threshold: float) -> None:
        try:
            from datasketch import MinHashLSH
        except ImportError as error:
            raise missing_extra("datasketch", "dedup") from error
        self.threshold = threshold
        self._index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=(0.05, 0.95))
        self._sets: dict[str, NDArray[np.uint64]] = {}

    def add(self, name: str, prompt: Prompt) -> None:
        """Add a prompt under a name that is not there yet."""
        self._sets[name] = shingles(prompt)
        self._index.insert(name, _minhash(self._sets[name]), check_duplication=False)

    def find(self, prompt: Prompt) -> str | None:
        """The name of the prompt most like this one, if any reaches the threshold; of equals the first by name."""
        own = shingles(prompt)
        found = [(-similarity(own, self._sets[name]), name) for name in self._index.query(_minhash(own))]
        nearest = min(found, default=(0.0, ""))
        return nearest[1] if -nearest[0] >= self.threshold else None


def _minhash(hashes: NDArray[np.uint64]) -> Any:
    from datasketch import MinHash

    made = MinHash(num_perm=PERMUTATIONS, hashfunc=int)
    made.update_batch(hashes & np.uint64(0xFFFFFFFF))
    return made
