"""Servers that sample for scoring: given the policy's weights at every round's beginning, and held against it then."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gradalign.errors import GradAlignError
from gradalign.files import replacing_folder
from gradalign.policy.load import Policy
from gradalign.processes import Processes
from gradalign.rollouts.agreement import Agreement
from gradalign.rollouts.engine import PROBES, EngineSampling, verified
from gradalign.rollouts.server import ServerEngine, connect

if TYPE_CHECKING:
    from gradalign.trainers.trl.sampler import TrainerSampler
    from gradalign.trainers.trl.trainer import GradAlignTrainer

WEIGHTS = "weights"
"""Folder, in a run's, of the weights that the servers were last given."""
TIMEOUT = 600.0
"""Seconds that one response, or the loading of weights, may take."""


def follow(trainer: GradAlignTrainer, policy: Policy, samplers: Sequence[TrainerSampler]) -> None:
    """Let servers sample for ``samplers``, where the configuration says so: with the weights as they are now.

    The first process writes them and has the servers load them; then each process asks for itself, and none but servers
    that have loaded them.

    Raises:
        GradAlignError: nobody is there; a server does not load the weights, or is another policy all the same; the
            policy has an adapter, which servers have no weights for.
    """
    args = trainer.args
    assert trainer.curriculum is not None
    if args.sampler != "server" or not trainer.curriculum.plan.strategy.needs:
        return
    if hasattr(policy.model, "peft_config"):
        raise GradAlignError(
            "sampler server: servers load whole models, and this policy has an adapter; train all weights, or take "
            "sampler policy"
        )
    processes, folder = Processes.current(), Path(args.output_dir or ".") / WEIGHTS
    own: list[ServerEngine] = []

    def given() -> tuple[list[str], Agreement] | None:
        if not processes.first:
            return None
        engine = connect(args.endpoints or [], args.concurrency, TIMEOUT)
        with replacing_folder(folder) as part:
            policy.model.save_pretrained(part)
            policy.tokenizer.save_pretrained(part)
        engine.load(folder)
        own.append(engine)
        problems = trainer.pool[:PROBES]
        keys, prompts = [problem.key for problem in problems], samplers[0].prompts(problems)
        try:
            agreement = verified(engine, policy, keys, prompts, samplers[0].sampling).agreement
        except GradAlignError as error:
            raise GradAlignError(f"{error} (it says that it has loaded {folder})") from error
        return [server.root for server in engine.fleet.servers if not server.dead], agreement

    told = processes.together(given)[0]
    assert told is not None
    fit, agreement = told
    processes.together(lambda: None if own else own.append(connect(fit, args.concurrency, TIMEOUT)))
    for sampler in samplers:
        sampler.engine = EngineSampling(own[0], agreement)
