r"""Do the first two regimes look the same on a real model? SmolLM2-135M-Instruct with a LoRA adapter, on word problems.

    python examples/smollm2_mawps/prepare.py MAWPS_FOLDER DATA 64
    python benchmarks/regimes_smollm2.py --model MODEL --data DATA --bed coins

Bed ``coins``: MAWPS problems, half of the pool paid by a fair coin, another half for every seed. Bed ``imbalance``:
MAWPS is the validation and the test set and a tenth of the pool, sums of one to three numbers are the rest. Goes on
where it was interrupted, run by run; several processes share the work. What `gradalign bench regimes` measures, in its
form.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import trl.trainer.utils

from gradalign.bench.machine import machine
from gradalign.bench.regime_beds import SHARES, Bed, Rates, Sizes
from gradalign.bench.regime_rows import Rows
from gradalign.bench.regime_tables import finish_regimes
from gradalign.bench.regimes import RegimesPlan, Setting, Subject, identity, measure_regimes
from gradalign.config import Options, resolved
from gradalign.policy.load import Policy, load_policy
from gradalign.problems.embedded import FAMILIES, make_pool
from gradalign.problems.prompts import Asking
from gradalign.problems.read import read_problems
from gradalign.problems.schema import Problem, uniform_hash
from gradalign.rewards.base import Reward
from gradalign.rewards.coin import Coin
from gradalign.rewards.find import find_reward

TEMPLATE = """\
Question: Joan has 3 apples. She finds 2 more apples. How many apples does Joan have now?
Answer: 3 + 2 = 5

Question: {prompt}
Answer:"""
"""One of the worked examples of `examples/smollm2_mawps`, so that prompts are short: the model solves a fifth then."""
ARMS = ("random", "gradalign", "guarded", "oracle", "accgreedy", "nearest")
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
SETTINGS = {"max_completion_length": 16, "temperature": 0.7, "loss_type": "dapo", "beta": 0.0, "bf16": False}
SIZES = {
    "cpu": {"per_device_train_batch_size": 16, "per_device_eval_batch_size": 64, "batch_rollouts": 128},
    "cuda": {
        "per_device_train_batch_size": 32, "per_device_eval_batch_size": 256, "batch_rollouts": 256, "use_cpu": False,
    },
}  # fmt: skip
"""Device -> how much of the work is done at a time."""
SETTING = {
    "coins": Setting(Sizes(109, 32, 64, 0.5), 3, 4, 32, 8, 8, 8, 4, 32),
    "imbalance": Setting(Sizes(240, 32, 64, 0.1), 3, 4, 80, 4, 8, 8, 4, 32),
}
"""Bed -> sizes: three rounds of four steps. Fewer problems are chosen than a chunk has good ones whose rewards vary:
nine of 32 or so, and five of 80."""


class BenchOptions(Options):
    """What the numbers depend on."""

    bed: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    threads: int


def main() -> None:
    """Run what is missing and write ``smollm2-BED.json`` and ``.md`` beside the other regimes, or at --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bed", choices=list(SETTING), required=True)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--device", choices=list(SIZES), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    # TRL's loss on a CPU, too, then passes the LM head at responses' positions only.
    vars(trl.trainer.utils)["_use_triton"] = lambda device: True
    options = BenchOptions(bed=given.bed, arms=tuple(given.arms), seeds=tuple(given.seeds), threads=given.threads)
    known = resolved("benchmarks/regimes_smollm2.py", options)
    origin = {"commit": known["commit"], **known["versions"], **_machine(given.device)}
    setting = replace(SETTING[given.bed], learning_rate=given.learning_rate)
    settings = SETTINGS | SIZES[given.device]
    beds, load = _beds(given.data), partial(_policy, given.model, given.device)
    subject = Subject(load, beds, settings, LORA, equal_rollouts=False, own_tests=True)
    facts = {
        "regime": subject.beds[given.bed][0], "bed": given.bed, "setting": identity(setting),
        "policy": "SmolLM2-135M-Instruct in bfloat16", "lora": LORA, "trainer": SETTINGS,
    }  # fmt: skip
    out = given.out or Path(__file__).parent / "regimes" / f"smollm2-{given.bed}.json"
    rows = Rows(out, facts, origin, finish_regimes)
    measure_regimes(
        RegimesPlan(given.bed, options.arms, options.seeds, len(options.seeds), setting), rows, print, subject
    )
    rows.refresh()


def _machine(device: str) -> dict[str, str]:
    known = machine(torch.device(device))
    return {name: known[name] for name in ("cpu", "card") if known[name] is not None}


def _policy(model: str, device: str) -> Policy:
    """The model; a line break ends a response, too."""
    policy = load_policy(model, dtype="bfloat16", device=device)
    config, tokenizer = policy.model.generation_config, policy.tokenizer
    assert config is not None
    config.eos_token_id = [tokenizer.eos_token_id, *tokenizer.encode("\n", add_special_tokens=False)]
    return policy


def _beds(data: Path) -> dict[str, tuple[str, Callable[[Sizes, int, Rates], Bed]]]:
    asking = Asking(TEMPLATE)

    def asked(problems: Sequence[Problem]) -> list[Problem]:
        return [asking(problem) for problem in problems]

    pool, validation, test = (asked(read_problems(str(data / f"{n}.jsonl"))) for n in ("pool", "validation", "test"))
    reward = Reward("number", find_reward("number"))

    def coins(sizes: Sizes, seed: int, rates: Rates) -> Bed:
        coin = Coin(1 - sizes.share, seed)
        good = frozenset(p.key for p in pool if not coin.corrupts(p.key))
        paid = Reward(reward.name, reward.function, coin=coin)
        return Bed(pool[: sizes.pool], validation[: sizes.validation], test[: sizes.test], good, paid)

    def imbalance(sizes: Sizes, seed: int, rates: Rates) -> Bed:
        count = round(sizes.share * sizes.pool)
        target = sorted(pool, key=lambda p: uniform_hash("target", seed, p.key))[:count]
        sums = [p for p in make_pool("arithmetic", 2 * sizes.pool, seed) if p.source in FAMILIES]
        others = asked([_spoken(p) for p in sums[: sizes.pool - count]])
        mixed = sorted([*target, *others], key=lambda p: uniform_hash("order", seed, p.key))
        good = frozenset(p.key for p in target)
        return Bed(mixed, validation[: sizes.validation], test[: sizes.test], good, reward)

    regimes = list(SHARES)
    return {"coins": (regimes[0], coins), "imbalance": (regimes[1], imbalance)}


def _spoken(problem: Problem) -> Problem:
    """A sum as a question."""
    text = re.sub(r"([-+*])", r" \1 ", str(problem.prompt).rstrip("="))
    return Problem(problem.key, f"What is {text}?", problem.answer, problem.source)


if __name__ == "__main__":
    main()
