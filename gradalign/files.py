"""Files on disk: written under a temporary name and renamed, so that no reader ever sees half of one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradalign.errors import GradAlignError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name beside ``path`` to write to; it becomes ``path`` when the block ends well, else it is removed.

    Raises:
        GradAlignError: the place cannot be written to, or the disk is full; an older ``path`` is left as it was.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            with part.open("rb") as written:
                os.fsync(written.fileno())
            part.replace(path)
        finally:
            with contextlib.suppress(OSError):
                part.unlink()


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """As `replacing`, for a folder that the block makes at the name it is given."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    old = part.with_suffix(".old")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            if path.exists():
                path.replace(old)
            part.replace(path)
        finally:
            for left in (part, old):
                shutil.rmtree(left, ignore_errors=True)


def cache_folder(name: str) -> Path:
    """``~/.cache/gradalign/NAME``, for what can be made again; the environment's GRADALIGN_CACHE names another root."""
    root = os.environ.get("GRADALIGN_CACHE")
    return (Path(root).expanduser() if root else Path.home() / ".cache" / "gradalign") / name


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals while writing ``path`` into one clear line."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        mend = (
            "free space, then run the same command again: what was finished is kept" if full else "name another place"
        )
        raise GradAlignError(f"{path}: cannot be written ({reason}); {mend}") from error


def check_writable(path: Path) -> None:
    """Find out before the work, not after it, that ``path`` cannot be written.

    Raises:
        GradAlignError: it cannot.
    """
    if path.is_dir():
        raise GradAlignError(f"{path}: is a folder; name a file")
    probe = path.with_name(f".{path.name}.{os.getpid()}.probe")  # other processes may try at the same moment
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON (NaN refused)."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        GradAlignError: it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GradAlignError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise GradAlignError(f"{path}: not JSON ({error}); restore it, or name another") from error
