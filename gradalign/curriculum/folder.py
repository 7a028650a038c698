"""A run's folder: the resolved configuration, and a folder for each round."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from gradalign.errors import GradAlignError
from gradalign.files import read_json, write_json, writing

CONFIG = "config.json"
APART = (
    "out", "endpoints", "concurrency", "request_timeout", "executor", "workers", "ray_address", "worker_cpus",
    "worker_gpus",
)  # fmt: skip
"""Options in which two commands of the same run may differ: where it is written, and who works on it, where."""


def open_run(folder: Path, config: dict[str, Any], free: Collection[str] = ()) -> None:
    """Make ``folder`` this run's, or find that it already is; see `check_run`."""
    if check_run(folder, config, free):
        begin_run(folder, config)


def begin_run(folder: Path, config: dict[str, Any]) -> None:
    """Make ``folder``, where it does not exist, and save the run's configuration there."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, config)


def check_run(folder: Path, config: dict[str, Any], free: Collection[str] = ()) -> bool:
    """Find out whether ``folder`` is, or can be made, this run's.

    Args:
        folder: of the run.
        config: what `gradalign.config.resolved` gives; runs are the same when all of it but ``versions``, ``commit``
            and the options of `APART` is.
        free: further options that may differ from one start to the next; the last ones are kept.

    Returns:
        Whether the configuration is still to be saved.

    Raises:
        GradAlignError: the folder holds another run or other things, or cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise GradAlignError(f"{folder}: is a file; name a folder")
    saved = folder / CONFIG
    if saved.exists():
        differ = _differences(read_json(saved), config)
        own = [name for name in differ if name not in free]
        if own and not _unstarted(folder):
            raise GradAlignError(
                f"{folder}: holds another run (differs in {', '.join(own)}); name another folder, or give "
                f"the options saved in {saved}"
            )
        return bool(differ)
    if folder.exists() and any(folder.iterdir()):
        raise GradAlignError(f"{folder}: is not empty and holds no run; name another folder")
    return True


def same_run(saved: Path, config: dict[str, Any]) -> bool:
    """Whether the configuration saved at ``saved`` is there and of the same run as ``config``."""
    return saved.exists() and not _differences(read_json(saved), config)


def _differences(saved: Any, config: dict[str, Any]) -> list[str]:
    """Names in which two configurations of a run differ: options by name, facts likewise."""
    if not isinstance(saved, dict) or not isinstance(saved.get("options"), dict):
        return [CONFIG]
    differ = set()
    for old, new in ((saved, config), (saved["options"], config["options"])):
        differ |= {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
    return sorted(differ - {"options", "versions", "commit", *APART})


def _unstarted(folder: Path) -> bool:
    """Whether the run in ``folder`` has finished nothing yet: no file but its configuration and empty leftovers."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in (CONFIG, "round.json")]
    return all(path.suffix == ".part" and path.read_bytes().count(b"\n") <= 1 for path in files)


def claim(config: Path, command: str, out: Path) -> None:
    """Refuse a configuration's place that holds something else than ``out``'s configuration.

    Raises:
        GradAlignError: it is another command's, another table's, or no configuration at all.
    """
    if not config.exists():
        return
    saved = read_json(config)
    options = saved.get("options") if isinstance(saved, dict) else None
    theirs = options.get("out") if isinstance(options, dict) else None
    if not isinstance(theirs, str) or saved.get("command") != command or Path(theirs).name != out.name:
        raise GradAlignError(f"{config}: would be overwritten, and is not that of {out.name}; choose another --out")


def round_folder(folder: Path, number: int) -> Path:
    """Where a round's files are."""
    return folder / f"round-{number:04d}"
