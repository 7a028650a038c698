"""A run's folder: the resolved configuration, and a folder for each round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradalign.errors import GradAlignError
from gradalign.files import read_json, write_json, writing

CONFIG = "config.json"


def open_run(folder: Path, config: dict[str, Any]) -> None:
    """Make ``folder`` this run's, or find that it already is.

    Args:
        folder: of the run; made where it does not exist.
        config: what `gradalign.config.resolved` gives; runs are the same when all of it but ``versions``, ``commit``
            and the option ``out`` is.

    Raises:
        GradAlignError: the folder holds another run or other things, or cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise GradAlignError(f"{folder}: is a file; name a folder")
    saved = folder / CONFIG
    if saved.exists():
        differ = _differences(read_json(saved), config)
        if differ:
            raise GradAlignError(
                f"{folder}: holds another run (differs in {', '.join(differ)}); name another folder, or give "
                f"the options saved in {saved}"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise GradAlignError(f"{folder}: is not empty and holds no run; name another folder")
    else:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_json(saved, config)


def same_run(saved: Path, config: dict[str, Any]) -> bool:
    """Whether the configuration saved at ``saved`` is there and of the same run as ``config``."""
    return saved.exists() and not _differences(read_json(saved), config)


def _differences(saved: Any, config: dict[str, Any]) -> list[str]:
    """Names in which two configurations of a run differ."""
    if not isinstance(saved, dict):
        return [CONFIG]
    flat = [
        {**{k: v for k, v in c.items() if k not in ("options", "versions", "commit")}, **c.get("options", {}), "out": 0}
        for c in (saved, config)
    ]
    return sorted(name for name in flat[0].keys() | flat[1].keys() if flat[0].get(name) != flat[1].get(name))


def round_folder(folder: Path, number: int) -> Path:
    """Where a round's files are."""
    return folder / f"round-{number:04d}"
