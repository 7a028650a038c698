"""A running server held against a policy: log-probabilities, repeatability, other weights, loading.

    python benchmarks/servers.py MODEL ENDPOINT NAME [--pool SPEC] [--out benchmarks/servers.json]

ENDPOINT serves MODEL, and may load weights (vLLM with VLLM_SERVER_DEV_MODE=1). What is found is added to the file under
NAME. The server has MODEL's own weights again at the end.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from gradalign.bench.machine import machine
from gradalign.errors import GradAlignError
from gradalign.policy.load import Policy, load_policy
from gradalign.problems.pool import Pool
from gradalign.problems.read import read_problems
from gradalign.rollouts.engine import EngineSampling, verified
from gradalign.rollouts.sample import Sampling
from gradalign.rollouts.sampler import prompts_of
from gradalign.rollouts.server import ServerEngine, connect

SAMPLING = Sampling(rollouts=8, max_new_tokens=32)
MOVED = 0.02
"""Standard deviation of the change of every weight, in its parameter's own standard deviations."""


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "endpoint", "name"):
        parser.add_argument(name)
    parser.add_argument("--pool", default="embedded:mixed?size=16&seed=0")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/servers.json"))
    given = parser.parse_args()
    policy = load_policy(given.model, device="cpu", dtype="float32")
    pool = read_problems(given.pool)
    engine = connect([given.endpoint], 64, 600.0)
    found = {"server": engine.identity["servers"], "dtype": engine.fleet.servers[0].dtype}
    found |= compared(policy, engine, pool)
    found |= loaded(policy, engine, pool)
    results = json.loads(given.out.read_text()) if given.out.exists() else {}
    results[given.name] = found
    results["machine"] = machine(policy.device)
    given.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def held(policy: Policy, engine: ServerEngine, pool: Pool, temperature: float) -> EngineSampling:
    """The engine, held against the policy on the pool's first prompts."""
    sampling = Sampling(max_new_tokens=SAMPLING.max_new_tokens, temperature=temperature)
    return verified(engine, policy, pool.keys[:4], prompts_of(policy, pool[:4], sampling.max_new_tokens), sampling)


def compared(policy: Policy, engine: ServerEngine, pool: Pool) -> dict[str, Any]:
    """Log-probabilities at two temperatures, whether the same is sampled twice."""
    found: dict[str, Any] = {}
    for temperature in (1.0, 0.7):
        agreement = held(policy, engine, pool, temperature).agreement
        found[f"T={temperature}"] = {
            "mean_difference": agreement.difference, "tokens": agreement.tokens, "tolerance": agreement.tolerance,
            "raw": agreement.raw,
        }  # fmt: skip
    prompts = prompts_of(policy, pool, SAMPLING.max_new_tokens)
    by = held(policy, engine, pool, 1.0)
    first = by.responses(policy, pool.keys, prompts, SAMPLING)
    second = by.responses(policy, pool.keys, prompts, SAMPLING)
    same = [a.ids == b.ids for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True)]
    return found | {"responses": len(same), "same_when_asked_twice": sum(same)}


def loaded(policy: Policy, engine: ServerEngine, pool: Pool) -> dict[str, Any]:
    """Whether moved weights are told apart, and sampled with after they were loaded."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        before, after = Path(place) / "before", Path(place) / "after"
        save(policy, before)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in policy.parameters:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * MOVED * parameter.std())
        save(policy, after)
        found["moved_weights"] = refused(policy, engine, pool)
        engine.load(after)
        found["moved_weights_loaded"] = refused(policy, engine, pool)
        engine.load(before)
    return found


def save(policy: Policy, folder: Path) -> None:
    """As a plain model folder."""
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)


def refused(policy: Policy, engine: ServerEngine, pool: Pool) -> str:
    """Why the engine is not this policy, without its address; or by how little it differs."""
    try:
        return f"accepted, differs by {held(policy, engine, pool, 1.0).agreement.difference:.2g}"
    except GradAlignError as error:
        return "refused, differs by " + str(error).split("differ by ")[-1].split(" a token")[0]


if __name__ == "__main__":
    main()
