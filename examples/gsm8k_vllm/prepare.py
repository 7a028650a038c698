"""Cut GSM8K into a pool, a validation and a test set.

    python prepare.py OUT_FOLDER [GSM8K_FOLDER]

Without a folder of ``train.jsonl`` and ``test.jsonl`` (``{"question", "answer"}`` lines), the data set is fetched
from the hub (openai/gsm8k). A seeded shuffle of the training problems puts 256 into validation.jsonl, the others into
pool.jsonl; the test problems are test.jsonl.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def main(out: Path, folder: Path | None = None) -> None:
    train, test = _rows("train", folder), _rows("test", folder)
    random.Random(0).shuffle(train)
    out.mkdir(parents=True, exist_ok=True)
    for name, part in (("validation", train[:256]), ("pool", train[256:]), ("test", test)):
        lines = [json.dumps({"question": row["question"], "answer": row["answer"]}) + "\n" for row in part]
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{name}.jsonl: {len(part)} problems")


def _rows(split: str, folder: Path | None) -> Rows:
    if folder is not None:
        return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
    from datasets import load_dataset

    return list(load_dataset("openai/gsm8k", "main", split=split))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
