"""The feature store: one vector a group on disk, appended to as groups finish, read as one memory-mapped matrix.

A folder with ``store.json`` (format and identity: all that the vectors depend on besides the groups),
``features.f32`` (float32 rows, little-endian, nothing else) and ``rows.jsonl`` (whose they are, a line a row, with a
checksum over line and vector). A vector is on disk before its line is, and both before `FeatureStore.append` returns:
of what a kill or a power cut interrupts, at most one row is in flight. That one is cut off when the store is opened
again; anything else that does not fit is damage, and refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from gradalign.errors import GradAlignError
from gradalign.files import read_json, write_json, writing
from gradalign.policy.group import Group

STORE, FEATURES, ROWS, LOCK = "store.json", "features.f32", "rows.jsonl", ".lock"
GRAMS = {False: "gram.npy", True: "cosines.npy"}
"""Normalised or not -> file of the rows' inner products; see `gradalign.alignment.gram`."""
FORMAT = 1


def digest(group: Group) -> str:
    """32 hexadecimal digits that depend on a group's key and on all of its rollouts that a gradient depends on.

    That is the prompt, the responses, their masks, rewards and order, and which of them were cut by their length.
    """
    made = hashlib.blake2b(digest_size=16)

    def add(part: bytes) -> None:
        made.update(len(part).to_bytes(8, "little") + part)

    add(group.key.encode("utf-8", "surrogatepass"))
    add(np.asarray(group.prompt_ids, "<i8").tobytes())
    for rollout in group.rollouts:
        add(np.asarray(rollout.response_ids, "<i8").tobytes())
        add(rollout.mask.tobytes())
        add(np.array([rollout.reward, rollout.finish_reason == "length"], "<f8").tobytes())
    return made.hexdigest()


@dataclass(frozen=True, slots=True)
class Row:
    """Whose a row of features is.

    Attributes:
        key: of the problem.
        source: of the problem.
        pass_rate: mean reward of the rollouts.
        n_rollouts: how many they are.
        digest: of the group, see `digest`; the same key with other rollouts is another row.
    """

    key: str
    source: str
    pass_rate: float
    n_rollouts: int
    digest: str

    def line(self, features: bytes) -> bytes:
        """The row's line, its checksum over ``features`` included."""
        values = dataclasses.asdict(self)
        values["crc32"] = f"{zlib.crc32(features, zlib.crc32(json.dumps(values).encode())):08x}"
        return json.dumps(values).encode() + b"\n"


class FeatureStore:
    """See the module's text; made by `open`, held by one process until `close` (or the end of a ``with`` block).

    Attributes:
        folder: where it is.
        identity: as `open` was given it.
        dimension: numbers a row.
        rows: whose the rows are, in the order of `features`.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], lock: FileLock) -> None:
        self.folder = folder
        self.identity: dict[str, Any] = json.loads(json.dumps(identity, allow_nan=False))
        self.dimension: int = identity["dimension"]
        self.rows: list[Row] = []
        self._lock = lock
        self._index: dict[str, int] = {}
        self._end = 0  # bytes of rows.jsonl

    @classmethod
    def open(cls, folder: Path, identity: Mapping[str, Any]) -> FeatureStore:
        """Start a store in ``folder``, or go on with the one that is there.

        Args:
            folder: new, empty, or a store's.
            identity: all that features depend on besides their group, as JSON values; ``dimension`` is their length.

        Raises:
            GradAlignError: the store there has another identity, is damaged, or is in use; the folder holds something
                else, or cannot be written to.
        """
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / LOCK)
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                raise GradAlignError(
                    f"{folder}: another process is at work on this feature store; wait, or name another folder"
                ) from error
        store = cls(folder, identity, lock)
        try:
            store._start()
            with writing(folder):
                store._read()
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Let other processes have it."""
        self._lock.release()

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, group_digest: str) -> bool:
        return group_digest in self._index

    def append(self, group: Group, features: NDArray[Any]) -> None:
        """Add a group's (dimension,) features; they are on disk when this returns.

        Raises:
            GradAlignError: they are not finite, or the place cannot be written to; what was appended before stands.
        """
        with np.errstate(over="ignore"):  # refused below
            own = np.ascontiguousarray(features, "<f4")
        if own.shape != (self.dimension,):
            raise ValueError(f"features of shape {own.shape} in a store of dimension {self.dimension}")
        row = Row(group.key, group.source, float(group.rewards.mean()), len(group.rollouts), digest(group))
        if row.digest in self._index:
            raise ValueError(f"group {group.key!r} is in the store already")
        if not np.isfinite(own).all():
            raise GradAlignError(
                f"candidates: problem {group.key!r}: its features are not finite (NaN or infinity in the model's "
                "outputs or gradient); check the weights, or score in float32"
            )
        data = own.tobytes()
        line = row.line(data)
        with writing(self.folder):
            for name in GRAMS.values():  # of fewer rows
                (self.folder / name).unlink(missing_ok=True)
        self._write(FEATURES, len(self.rows) * len(data), data)
        self._write(ROWS, self._end, line)
        self._end += len(line)
        self._index[row.digest] = len(self.rows)
        self.rows.append(row)

    def features(self, digests: Sequence[str] | None = None) -> NDArray[np.float32]:
        """(rows, dimension) features: all of them, memory-mapped for reading; or a copy of those of ``digests``."""
        shape = len(self.rows), self.dimension
        held = np.memmap(self.folder / FEATURES, "<f4", "r", shape=shape) if self.rows else np.empty(shape, "<f4")
        return held if digests is None else np.array(held[[self._index[name] for name in digests]])

    def _write(self, name: str, place: int, data: bytes) -> None:
        """Put ``data`` at byte ``place`` of a file, which ends there; what a failed call left behind it goes."""
        path = self.folder / name
        with writing(path), path.open("r+b") as file:
            file.truncate(place)
            file.seek(place)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _start(self) -> None:
        """Make the files where there are none; refuse a folder of something else, and a store of another identity."""
        paths = [self.folder / name for name in (FEATURES, ROWS)]
        marker = self.folder / STORE
        if not marker.exists():
            others = [p.name for p in self.folder.iterdir() if p not in paths and not p.name.startswith(".")]
            if others or any(path.exists() and path.stat().st_size for path in paths):
                raise GradAlignError(
                    f"{self.folder}: is not empty and no feature store (no {STORE}); name another folder"
                )
            with writing(self.folder):
                for path in paths:
                    path.touch()
            write_json(marker, {"format": FORMAT, "identity": self.identity})
        try:
            found = read_json(marker)
        except (GradAlignError, RecursionError) as error:
            raise self._unusable(str(error)) from error
        if not isinstance(found, dict) or not isinstance(found.get("identity"), dict):
            raise self._unusable(f"{marker}: no identity in it")
        if found.get("format") != FORMAT:
            raise self._unusable(f"{marker}: is of format {found.get('format')!r}, this program's is {FORMAT}")
        own, other = (
            {name: _canonical(value) for name, value in d.items()} for d in (self.identity, found["identity"])
        )
        differ = sorted(name for name in own.keys() | other.keys() if own.get(name) != other.get(name))
        if differ:
            raise GradAlignError(
                f"{self.folder}: holds other features (made with another {', '.join(differ)}); give what they were "
                "made with, or name another folder"
            )
        for path in paths:
            if not path.is_file():
                raise self._unusable(f"{path}: missing")

    def _read(self) -> None:
        """Read all rows, check them, and cut off one that was in flight."""
        size = 4 * self.dimension
        data, listed = self.folder / FEATURES, self.folder / ROWS
        lines = listed.read_bytes().split(b"\n")
        del lines[-1]  # what follows the last line's end: nothing, or a line cut short
        held = data.stat().st_size
        if not len(lines) * size <= held <= (len(lines) + 1) * size:
            raise self._unusable(
                f"{data}: has {held:,} bytes, and the {len(lines)} rows of {ROWS} take {len(lines) * size:,}"
            )
        with data.open("rb") as file:
            for number, line in enumerate(lines, 1):
                row = _parsed(line, file.read(size))
                if row is None:
                    raise self._unusable(f"{listed}:{number}: it or row {number} of {FEATURES} fails the checksum")
                self._index[row.digest] = len(self.rows)
                self.rows.append(row)
        self._end = sum(len(line) + 1 for line in lines)
        os.truncate(data, len(lines) * size)
        os.truncate(listed, self._end)

    def _unusable(self, what: str) -> GradAlignError:
        return GradAlignError(f"{what}; delete {self.folder} to compute the features again")


def _canonical(value: Any) -> str:
    """One text for each JSON value; 1, 1.0 and true are three."""
    return json.dumps(value, sort_keys=True)


def _parsed(line: bytes, features: bytes) -> Row | None:
    """The row of a line; None where it is not, byte for byte, the line written with these features."""
    try:
        values = json.loads(line)
        values.pop("crc32")
        row = Row(**values)
        return row if row.line(features) == line + b"\n" else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
