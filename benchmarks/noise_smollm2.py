r"""Do the noise study's findings hold on a real model? Coins over rollouts of SmolLM2-135M-Instruct on word problems.

    gradalign score --model MODEL --candidates C.parquet --validation V.parquet --engine directional --out A.parquet
    python benchmarks/noise_smollm2.py --model MODEL --candidates C.parquet --validation V.parquet \
        --alignments A.parquet

C holds many rollouts of each problem, V those of the validation problems, A what scoring all of C gave. Half of the
problems are paid by a fair coin, another half for every seed; each strategy chooses a quarter of all problems from the
first 8, 16, 32 rollouts of each. Cosines need a backward pass for every seed's rewards, so fewer seeds have them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from gradalign.alignment.align import Scorer
from gradalign.alignment.exact import Exact
from gradalign.alignment.table import read_alignments
from gradalign.bench import corruptions
from gradalign.bench.noise import CHOICES
from gradalign.bench.noise_data import OBJECTIVE, Arm
from gradalign.bench.results import markdown_table
from gradalign.config import Options, resolved
from gradalign.files import replacing, write_json
from gradalign.policy.group import Group, Rollout
from gradalign.policy.load import load_policy
from gradalign.rollouts.table import Limits, read_rollouts
from gradalign.selection import Size, choose

ROLLOUTS = (8, 16, 32)
COSINES = (16,)
"""Numbers of rollouts at which cosines are computed."""


class StudyOptions(Options):
    """What the numbers depend on."""

    model: str
    candidates: str
    validation: str
    alignments: str
    seeds: int
    cosine_seeds: int


def main() -> None:
    """Run the study and write ``noise_smollm2.json`` and ``.md`` beside this file, or at --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "candidates", "validation", "alignments"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--cosine-seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    options = StudyOptions(**{name: value for name, value in vars(arguments).items() if name != "out"})
    rows = measured(options)
    facts = resolved("benchmarks/noise_smollm2.py", options)
    for name in ("model", "candidates", "validation", "alignments"):
        facts["options"][name] = Path(facts["options"][name]).name
    write_json(arguments.out, {**facts, "rows": rows})
    with replacing(arguments.out.with_suffix(".md")) as part:
        part.write_text(tables(rows), encoding="utf-8")


def measured(options: StudyOptions) -> list[dict[str, Any]]:
    """One row a seed, strategy and number of rollouts."""
    policy = load_policy(options.model, dtype="float32", device="cpu")
    groups = {g.key: g for g in read_rollouts(Path(options.candidates), Limits.of(policy))}
    table = read_alignments(Path(options.alignments))
    known = [a for a in table if a.evidence is not None and a.evidence.moves is not None]
    keys = [a.key for a in known]
    count = min(a.n_rollouts for a in known)
    evidence = [a.evidence for a in known if a.evidence is not None]
    engine = direction = None
    if options.cosine_seeds:
        validation = read_rollouts(Path(options.validation), Limits.of(policy))
        direction = Scorer(policy, OBJECTIVE, "exact", 2048).direction(validation)
        engine = Exact(policy, OBJECTIVE, 2048, packed=True)
    rows = []
    for seed in range(options.seeds):
        bad = corruptions.corrupted(keys, 0.5, seed)
        paid = [
            corruptions.coins(groups[key], seed)[:count] if own else e.rewards[:count]
            for key, own, e in zip(keys, bad, evidence, strict=True)
        ]
        norms = {}
        if engine is not None and direction is not None and seed < options.cosine_seeds:
            for n in COSINES:
                some = [_paid(groups[key], rewards, n) for key, rewards in zip(keys, paid, strict=True)]
                varied = [i for i, group in enumerate(some) if group.status == "scored"]
                norms[n] = np.zeros(len(some))
                found = engine.measure([some[i] for i in varied], direction)
                norms[n][varied] = [numbers.norm or 0.0 for numbers in found]
        arm = Arm(
            keys, [a.source for a in known], bad, np.stack(paid),
            np.array([[r.n_tokens for r in groups[key].rollouts[:count]] for key in keys]),
            np.stack([e.responses[:count] for e in evidence]),
            np.stack([e.logprobs[:count] for e in evidence if e.logprobs is not None]),
            np.stack([e.moves[:count] for e in evidence if e.moves is not None]), norms,
            np.where(bad, 0.0, [a.numbers.dot or 0.0 for a in known]),
        )  # fmt: skip
        rows += _choices(arm, seed)
    return rows


def _choices(arm: Arm, seed: int) -> list[dict[str, Any]]:
    places = len(arm.keys) // 4
    best = set(np.argsort(-arm.gain, kind="stable")[:places].tolist())
    rows = []
    for n in ROLLOUTS:
        alignments = arm.alignments(np.full(len(arm.keys), n))
        for name, strategy in CHOICES.items():
            if name == "gradalign" and n not in arm.norms:
                continue
            choose(alignments, strategy, Size(top=places), seed)
            chosen = [i for i, a in enumerate(alignments) if a.selected]
            rows.append({
                "strategy": name, "rollouts": n, "seed": seed, "chosen": len(chosen),
                "corrupted_share": float(arm.corrupted[chosen].mean()) if chosen else 0.0,
                "oracle_overlap": len(best & set(chosen)) / places,
            })  # fmt: skip
    return rows


def _paid(group: Group, rewards: np.ndarray, count: int) -> Group:
    pairs = zip(group.rollouts[:count], rewards[:count].tolist(), strict=True)
    return Group(group.key, group.prompt_ids, [Rollout(own.response_ids, value) for own, value in pairs])


def tables(rows: list[dict[str, Any]]) -> str:
    """The Markdown."""
    chosen = max(row["chosen"] for row in rows)
    parts = [
        "# Coins on SmolLM2-135M-Instruct\n",
        "MAWPS problems whose rewards vary; half of them are paid by a fair coin, another half for every seed, and "
        f"a quarter, {chosen}, are chosen. The oracle's choice is by dot over all rollouts, paid correctly.\n",
    ]
    for what in ("corrupted_share", "oracle_overlap"):
        lines = []
        for name in CHOICES:
            cells = [name]
            for n in ROLLOUTS:
                values = [row[what] for row in rows if row["strategy"] == name and row["rollouts"] == n]
                spread = f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f}; {len(values)})" if values else "-"
                cells.append(spread)
            lines.append(cells)
        parts += [f"## {what.replace('_', ' ')}: median (least-largest; seeds)\n"]
        parts += [markdown_table(["strategy", *(f"{n} rollouts" for n in ROLLOUTS)], lines) + "\n"]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
