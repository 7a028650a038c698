"""Fills a feature store, for tests that kill it or refuse it space: ``python -m tests.store_run FOLDER ROWS [BYTES]``.

With BYTES, no file may grow beyond as many until an append was refused. Starts without torch, in no time.
"""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradalign.alignment.store import FeatureStore, digest
from gradalign.errors import GradAlignError
from gradalign.policy.group import Group, Rollout

IDENTITY = {
    "policy": "0123456789abcdef", "objective": {"advantage": "mean", "temperature": 0.1 + 0.2}, "layers": ("a", "b"),
    "projection": "two-sided", "seed": 1, "dimension": 5,
}  # fmt: skip


def features(group: Group) -> NDArray[np.float64]:
    """Five numbers that depend on the group."""
    return np.random.default_rng(int(digest(group)[:8], 16)).standard_normal(5)


def many(count: int) -> list[Group]:
    """Small groups."""
    return [
        Group(f"k{i}", np.arange(i % 7), [Rollout(np.arange(1, 3), 0.0), Rollout(np.arange(2), 1.0)])
        for i in range(count)
    ]


def fill(folder: Path, groups: Sequence[Group]) -> None:
    """As an engine does: what is there is not computed again."""
    with FeatureStore.open(folder, IDENTITY) as store:
        for group in groups:
            if digest(group) not in store:
                store.append(group, features(group))


if __name__ == "__main__":
    folder, groups = Path(sys.argv[1]), many(int(sys.argv[2]))
    print("ready", flush=True)
    if len(sys.argv) == 3:
        fill(folder, groups)
        sys.exit()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), unlimited[1]))
    with FeatureStore.open(folder, IDENTITY) as store:
        for group in groups:
            try:
                store.append(group, features(group))
            except GradAlignError as error:
                print(error)
                resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
                store.append(group, features(group))
