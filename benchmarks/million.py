"""Pools of ten thousand to a million rows: python benchmarks/million.py [ROWS ...] writes million.json and million.md.

Each line is a process of its own. Anonymous memory is what the process itself holds; its resident memory has the mapped
pages of files as well, which the system takes back when it needs them. What lies on disk is counted while it is there:
temporary files have no name.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

ROWS = (10_000, 100_000, 1_000_000)
ROUNDS = 4
Spent = tuple[float, float]
SELECT = ["--model", "embedded", "--reward", "number", "--chunk", "256", "--fraction", "0.1", "--seed", "0"]
TASKS: dict[str, list[str]] = {
    "open and order": [],
    "select random": ["select", *SELECT, "--strategy", "random"],
    "select accgreedy": ["select", *SELECT, "--strategy", "accgreedy", "--rollouts", "4", "--max-new-tokens", "4"],
    "train accgreedy": [
        "train", "--model", "embedded", "--reward", "number", "--chunk", "256", "--strategy", "accgreedy",
        "--max-steps", str(ROUNDS), "--steps-per-round", "1", "--per-device-train-batch-size", "16",
        "--num-generations", "4", "--max-completion-length", "4", "--use-cpu", "true",
        "--gradient-checkpointing", "false",
    ],
}  # fmt: skip
COLUMNS = {
    "rows": "rows", "task": "task", "file_mb": "file, MB", "seconds_to_open": "pool opened, s",
    "seconds": "whole task, s", "cpu_seconds": "of which processor",
    "order_cpu_seconds": "order of a pass, processor s", "chunk_cpu_ms": "a chunk of 256 of it, processor ms",
    "round_cpu_seconds": "rounds 0 to 3, processor s", "anonymous_mb": "anonymous memory, MB",
    "resident_mb": "resident memory, MB", "temporary_mb": "temporary files, MB", "written_mb": "run folder, MB",
}  # fmt: skip


def main(rows: list[int]) -> None:
    """Measure and write."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for count in rows:
            pool, trusted = Path(folder) / f"{count}.jsonl", Path(folder) / "trusted.jsonl"
            write_pool(pool, count)
            trusted.write_text('{"prompt": "1+2-3=", "answer": "0"}\n', encoding="utf-8")
            for task, arguments in TASKS.items():
                out = Path(folder) / f"{count} {task}"
                sets = ["--pool", str(pool), "--validation", str(trusted), "--out", str(out)] if arguments else []
                command = [sys.executable, __file__, "measure", str(pool), *arguments, *sets]
                done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=7200)
                if done.returncode:
                    sys.exit(done.stderr)
                facts = json.loads(done.stdout.splitlines()[-1])
                written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
                size = {"file_mb": round(pool.stat().st_size / 1e6, 1), "written_mb": round(written / 1e6, 2)}
                found.append({"rows": count, "task": task} | facts | size)
                print(found[-1], flush=True)
            pool.unlink()
    facts = {"python": platform.python_version(), "machine": f"{platform.machine()} CPU, {os.cpu_count()} cores"}
    here = Path(__file__)
    text = json.dumps(facts | {"measured": found}, indent=1)
    here.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    here.with_suffix(".md").write_text(table(found, facts), encoding="utf-8")


def write_pool(path: Path, count: int) -> None:
    """Problems that the embedded policy can read, with as much text beside them as real ones have."""
    with path.open("w", encoding="utf-8") as file:
        for n in range(count):
            a, b = divmod(n, 1000)
            row = {"prompt": f"{a}+{b}=", "answer": str(a + b), "level": n % 5, "solution": "words and more words " * 9}
            file.write(json.dumps(row) + "\n")


def measure(pool: str, arguments: list[str]) -> None:
    """One task, in this process; prints its numbers as a line of JSON."""
    from gradalign.cli.main import main as command
    from gradalign.problems import read as reading

    opened, rounds, ordered = list[Spent](), list[Spent](), dict[str, float]()
    if arguments[:1] == ["train"]:
        from gradalign.curriculum.curriculum import Curriculum

        Curriculum.begin = timed(Curriculum.begin, rounds)  # type: ignore[method-assign]
    reading.read_problems = timed(reading.read_problems, opened)
    with watched() as peaks:
        start = spent()
        if arguments:
            from gradalign.cli import problem_options

            problem_options.read_problems = reading.read_problems
            if command(arguments):
                sys.exit("the command failed")
        else:
            ordered = chunks(reading.read_problems(pool).keys)
        seconds, processor = (now - then for now, then in zip(spent(), start, strict=True))
    facts = {"seconds_to_open": opened[0][0], "seconds": seconds, "cpu_seconds": processor} | peaks | ordered
    rounded: dict[str, Any] = {name: round(value, 2) for name, value in facts.items()}
    for number, name in enumerate(("round_seconds", "round_cpu_seconds")):
        rounded[name] = [round(one[number], 2) for one in rounds]
    print(json.dumps(rounded))


def chunks(keys: Collection[str]) -> dict[str, float]:
    """What the order of a pass and a chunk of it cost."""
    from gradalign.curriculum.chunks import Chunks

    found, start = Chunks(keys, 256, 0), time.process_time()
    found[0]
    first = time.process_time()
    for number in range(1, 31):
        found[number]
    return {"order_cpu_seconds": first - start, "chunk_cpu_ms": (time.process_time() - first) / 30 * 1000}


def spent() -> Spent:
    """(wall clock, processor) seconds."""
    return time.perf_counter(), time.process_time()


def timed(function: Any, seconds: list[Spent]) -> Any:
    """The function, noting how long each call takes."""

    def call(*others: Any, **named: Any) -> Any:
        start = spent()
        try:
            return function(*others, **named)
        finally:
            end = spent()
            seconds.append((end[0] - start[0], end[1] - start[1]))

    return call


@contextlib.contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Largest memory and temporary files of this process while the block runs, in megabytes, looked at every 20 ms."""
    peaks, over = {"anonymous_mb": 0.0, "resident_mb": 0.0, "temporary_mb": 0.0}, threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
            status = {name: value.split() for name, value in (line.split(":", 1) for line in lines)}
            now = {"anonymous_mb": int(status["RssAnon"][0]) / 1024, "resident_mb": int(status["VmRSS"][0]) / 1024}
            now["temporary_mb"] = sum(unnamed()) / 1e6
            for name, value in now.items():
                peaks[name] = max(peaks[name], value)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield peaks
    finally:
        over.set()
        watcher.join()


def unnamed() -> Iterator[int]:
    """Bytes of each open file that has no name; one that is open twice counts once."""
    seen = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(link).endswith("(deleted)") and (found := link.stat()).st_ino not in seen:
                seen.add(found.st_ino)
                yield found.st_blocks * 512


def table(found: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        f"Python {facts['python']}, {facts['machine']} that others used at the same time: memory and files are steady, "
        "seconds are not. `python benchmarks/million.py`",
        "",
        f"| {' | '.join(COLUMNS.values())} |",
        f"|{'---|' * len(COLUMNS)}",
    ]
    for row in found:
        cells = []
        for name in COLUMNS:
            value = row.get(name, "–")
            if isinstance(value, list):
                cells.append(", ".join(f"{one:.1f}" for one in value) or "–")
            else:
                digits = ".2f" if name.endswith("_ms") else ",.1f"
                cells.append(
                    f"{value:{digits}}" if isinstance(value, float) else f"{value:,}" if name == "rows" else value
                )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2], sys.argv[3:])
    else:
        main([int(rows) for rows in sys.argv[1:]] or list(ROWS))
