"""Print a run as Markdown: pass rates, direction, times, what each strategy would choose, first and last problems.

    python compare.py RUN_FOLDER

Reads alignments.parquet and metrics.json of the run's first round; config.json tells which problems a coin paid.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

from gradalign.alignment.engines import provides
from gradalign.alignment.record import Alignment
from gradalign.alignment.table import read_alignments
from gradalign.problems.read import read_problems
from gradalign.problems.schema import prompt_text
from gradalign.rewards.coin import Coin
from gradalign.selection import STRATEGIES, Size, choose
from gradalign.selection.parts import FROM_ROLLOUTS


def main(run: Path) -> None:
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    metrics = json.loads((run / "round-0000" / "metrics.json").read_text(encoding="utf-8"))
    options, versions = config["options"], config["versions"]
    alignments = read_alignments(run / "round-0000" / "alignments.parquet")
    coin = Coin(options["corrupt"], options["corrupt_seed"])
    scored = [a for a in alignments if a.status == "scored"]
    direction = metrics["direction"]
    seconds = ", ".join(f"{name} {value:.0f}" for name, value in metrics["seconds"].items())
    print(f"Commit {config['commit']}, torch {versions['torch']}, transformers {versions['transformers']},")
    print(f"seed {options['seed']}, coin seed {options['corrupt_seed']}.\n")
    print(f"- {len(alignments)} candidates, {paid(alignments, coin)} paid by coin; {len(scored)} scored, of which")
    print(f"  {paid(scored, coin)} paid by coin (a coin's rewards nearly always vary, a sound reward's need not).")
    print(f"- Validation direction: {direction['problems']} problems carry a gradient, {direction['zero_variance']} do")
    print(f"  not; agreement of its halves {direction['reliability']:.3f} ± {direction['reliability_se']:.3f}.")
    print(f"- Finite-difference step {metrics['step']:g}, error against exact dots {metrics['step_error']:.2%}.")
    print(f"- {metrics['rollouts']:,} rollouts. Seconds: {seconds}.\n")
    sound = [a.pass_rate or 0.0 for a in alignments if not coin.corrupts(a.key)]
    edges = [0.0, 0.001, 0.25, 0.5, 0.75, 0.999, 1.001]
    counts = [sum(low <= rate < high for rate in sound) for low, high in itertools.pairwise(edges)]
    print("| pass rate of sound problems | 0 | to 1/4 | to 1/2 | to 3/4 | below 1 | 1 |\n|---|---|---|---|---|---|---|")
    print(f"| problems | {' | '.join(map(str, counts))} |\n")

    print("| strategy | corrupted among the best 1/8 | among the best 1/4 |\n|---|---|---|")
    served = provides(options["engine"], options["contributions"]) | FROM_ROLLOUTS
    for name, strategy in STRATEGIES.items():
        if not strategy.needs <= served or name == "oracle":  # which would want a list of the sound problems
            continue
        shares = []
        for part in (8, 4):
            choose(alignments, strategy, Size(fraction=1 / part), options["seed"])
            chosen = [a for a in alignments if a.selected]
            shares.append(f"{paid(chosen, coin)} of {len(chosen)}")
        print(f"| {name} | {shares[0]} | {shares[1]} |")

    texts = {problem.key: prompt_text(problem.prompt) for problem in read_problems(options["pool"])}
    choose(alignments, STRATEGIES["gradalign"], Size(), options["seed"])
    ranked = sorted(scored, key=lambda a: a.rank or 0)
    print("\n| rank | coin | pass rate | cosine | dot | t | corr | problem |\n|---|---|---|---|---|---|---|---|")
    for a in [*ranked[:6], *ranked[-6:]]:
        n = a.numbers
        values = " | ".join("-" if v is None else f"{v:.3g}" for v in (a.pass_rate, n.cosine, n.dot, n.t, n.corr))
        print(f"| {a.rank} | {'coin' if coin.corrupts(a.key) else ''} | {values} | {texts[a.key]} |")


def paid(alignments: list[Alignment], coin: Coin) -> int:
    """How many of the problems a coin paid."""
    return sum(coin.corrupts(a.key) for a in alignments)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
