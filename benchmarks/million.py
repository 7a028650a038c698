"""A pool of a million rows: python benchmarks/million.py writes million.json: seconds to open and to read, memory."""

from __future__ import annotations

import json
import platform
import resource
import tempfile
import time
from pathlib import Path

from gradalign.problems.read import read_problems

ROWS = 1_000_000


def main() -> None:
    """Make the file, open it, read it through."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pool.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for n in range(ROWS):
                text = f"Problem {n}: what is {n} + {n * 7 % 1000}? {'words and more words ' * 8}"
                file.write(json.dumps({"question": text, "answer": str(n + n * 7 % 1000), "level": n % 5}) + "\n")
        before, start = _peak(), time.perf_counter()
        pool = read_problems(str(path))
        opened, size = time.perf_counter() - start, path.stat().st_size
        start = time.perf_counter()
        count = sum(1 for _ in pool)
        facts = {
            "rows": count, "megabytes": round(size / 1e6), "seconds_to_open": round(opened, 1),
            "seconds_to_read_through": round(time.perf_counter() - start, 1),
            "memory_before_mb": round(before), "memory_after_mb": round(_peak()),
            "python": platform.python_version(), "machine": f"{platform.machine()} CPU, 2 cores",
        }  # fmt: skip
    Path(__file__).with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(facts)


def _peak() -> float:
    """Largest memory of this process so far, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
