"""Print, as Markdown, how each strategy would have chosen from a run's alignments.

    python compare.py RUN_FOLDER

Reads alignments.parquet of the run's first round and, from config.json, which problems a coin paid.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gradalign.alignment.table import read_alignments
from gradalign.rewards.coin import Coin
from gradalign.selection import STRATEGIES, Size, choose


def main(run: Path) -> None:
    options = json.loads((run / "config.json").read_text(encoding="utf-8"))["options"]
    alignments = read_alignments(run / "round-0000" / "alignments.parquet")
    coin = Coin(options["corrupt"], options["corrupt_seed"])
    scored = [a for a in alignments if a.status == "scored"]
    print(f"{len(alignments)} candidates, {sum(coin.corrupts(a.key) for a in alignments)} paid by coin; ", end="")
    print(f"{len(scored)} scored, {sum(coin.corrupts(a.key) for a in scored)} of them paid by coin.\n")
    print("| strategy | corrupted among the best 1/8 | among the best 1/4 |\n|---|---|---|")
    for name, strategy in STRATEGIES.items():
        shares = []
        for part in (8, 4):
            choose(alignments, strategy, Size(fraction=1 / part), options["seed"])
            chosen = [a for a in alignments if a.selected]
            shares.append(f"{sum(coin.corrupts(a.key) for a in chosen) / len(chosen):.2f}")
        print(f"| {name} | {shares[0]} | {shares[1]} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
