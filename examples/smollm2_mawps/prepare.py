"""Make a pool, a validation and a test set of word problems that SmolLM2-135M can sometimes solve.

    python prepare.py MAWPS_FOLDER OUT_FOLDER [TEST_PROBLEMS]

Takes the problems of MAWPS (``{"input", "target"}`` lines) that have at most three numbers, all whole and at most 20;
problems that differ in punctuation alone are one. A seeded shuffle puts 80 of them into validation.jsonl, as many as
asked for (none) into test.jsonl, the others into pool.jsonl.
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path


def main(mawps: Path, out: Path, test: int = 0) -> None:
    problems: dict[str, dict[str, str]] = {}
    for name in ("singleop", "addsub", "singleeq"):
        for line in (mawps / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            numbers = [float(token) for token in re.findall(r"\d+(?:\.\d+)?", row["input"])]
            answer = float(row["target"])
            if 0 < len(numbers) <= 3 and all(n.is_integer() and n <= 20 for n in [*numbers, answer]):
                text = re.sub(r"[^a-z0-9]+", "", row["input"].lower())
                problems.setdefault(text, {"prompt": row["input"].strip(), "answer": f"{answer:g}", "source": name})
    rows = list(problems.values())
    random.Random(0).shuffle(rows)
    out.mkdir(parents=True, exist_ok=True)
    for name, part in (("validation", rows[:80]), ("test", rows[80 : 80 + test]), ("pool", rows[80 + test :])):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
        print(f"{name}.jsonl: {len(part)} problems")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
