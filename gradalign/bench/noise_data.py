"""What the noise study knows of one seed: many rollouts of every problem, what each says, and rewards gone wrong.

Sampled and differentiated once; all strategies and budgets then choose from the same numbers. Arms:

- ``coins``: half of the problems are paid by a fair coin;
- ``matched_coins``: by a coin whose chance is some clean problem's pass rate, so that pass rates tell nothing;
- ``wrong_gold``: half of the problems have a wrong gold answer, one that the policy reaches or one that it does not;
- ``stale``: as ``coins``, but the candidates' rollouts are of the policy before it moved on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from gradalign.alignment.align import Progress, Scorer
from gradalign.alignment.direction import Direction
from gradalign.alignment.directional import Directional
from gradalign.alignment.exact import Exact
from gradalign.alignment.record import Alignment, Evidence, Floats, Numbers, from_contributions
from gradalign.bench import corruptions
from gradalign.errors import warn
from gradalign.files import replacing
from gradalign.policy.group import Group, Rollout
from gradalign.policy.load import Policy, load_policy
from gradalign.policy.logprobs import packs
from gradalign.policy.objective import Objective
from gradalign.problems.embedded import make_pool
from gradalign.problems.schema import Problem, uniform_hash
from gradalign.rewards.base import Reward
from gradalign.rewards.countdown import countdown
from gradalign.rollouts.sample import Sampling
from gradalign.rollouts.sampler import PolicySampler, sampled

ARMS = ("coins", "matched_coins", "wrong_gold", "stale")
OBJECTIVE = Objective()
BATCH_TOKENS = 8192
MOVES, MOVE = 16, 0.1
"""Steps, and length of each, between the policy that sampled stale rollouts and the one that is trained."""


@dataclass(frozen=True)
class Setting:
    """Sizes of the study.

    Attributes:
        problems: candidates.
        validation: trusted problems.
        validation_rollouts: responses for each of them.
        share: of the candidates that are corrupted.
        rollouts: that a strategy may have of each candidate.
        truth: rollouts of each candidate that the oracle sees; the first ones are those that strategies see.
    """

    problems: int = 512
    validation: int = 64
    validation_rollouts: int = 32
    share: float = 0.5
    rollouts: tuple[int, ...] = (8, 16, 32, 64)
    truth: int = 512


@dataclass
class Arm:
    """One arm of one seed, in arrays over (problems,) and (problems, rollouts).

    Attributes:
        keys: of the problems.
        sources: theirs.
        corrupted: which are.
        rewards: as paid.
        tokens: of each response.
        responses: which distinct response of its problem each is.
        logprobs: of each response, under the policy that sampled it.
        moves: c_k along the direction.
        norms: number of rollouts -> |g| of the first so many, 0 where their rewards do not vary; the largest number is
            the oracle's.
        gain: dot with clean rewards over all rollouts of the policy that is trained, 0 where corrupted: the truth.
    """

    keys: list[str]
    sources: list[str]
    corrupted: NDArray[np.bool_]
    rewards: Floats
    tokens: NDArray[np.int64]
    responses: NDArray[np.int64]
    logprobs: Floats
    moves: Floats
    norms: dict[int, Floats]
    gain: Floats

    def alignments(self, counts: NDArray[np.int64]) -> list[Alignment]:
        """The rows that scoring the first ``counts`` (problems,) rollouts of each problem gives.

        Cosines are there where `norms` has the count.
        """
        return [self._row(i, int(n)) for i, n in enumerate(counts)]

    def _row(self, i: int, n: int) -> Alignment:
        rewards, moves = self.rewards[i, :n], self.moves[i, :n]
        rollouts = [Rollout(np.zeros(t, np.int64), r) for t, r in zip(self.tokens[i, :n], rewards, strict=True)]
        group = Group(self.keys[i], np.zeros(1, np.int64), rollouts, self.sources[i])
        numbers = Numbers()
        if group.status == "scored":
            numbers = from_contributions(group, OBJECTIVE, moves)
            if n in self.norms and numbers.dot is not None:
                numbers.norm = float(self.norms[n][i])
                numbers.cosine = numbers.dot / numbers.norm if numbers.norm > 0 else 0.0
        evidence = Evidence(rewards, self.responses[i, :n], self.logprobs[i, :n], numbers.moves)
        mean, tokens = float(rewards.mean()), group.n_tokens
        return Alignment(group.key, group.source, group.status, mean, n, tokens, numbers, evidence)


class Seed:
    """All arms of one seed, from ``folder`` where they were measured before.

    Args:
        policy: embedded.
        seed: of problems, draws and corruptions.
        setting: sizes.
        folder: keeps a file for each seed.
        progress: told of every stage.
    """

    def __init__(self, policy: Policy, seed: int, setting: Setting, folder: Path, progress: Progress) -> None:
        self.policy, self.seed, self.setting, self.progress = policy, seed, setting, progress
        pool = make_pool("mixed", setting.problems + setting.validation, seed)
        self.pool, self.trusted = pool[: setting.problems], pool[setting.problems :]
        self.corrupted = corruptions.corrupted([p.key for p in self.pool], setting.share, seed)
        path = folder / f"seed-{seed}.safetensors"
        found = _read(path)
        if found is None:
            found = self._measured()
            with replacing(path) as part:
                save_file({name: np.ascontiguousarray(value) for name, value in found.items()}, part)
        self._arrays = found

    def arm(self, name: str) -> Arm:
        """One of `ARMS`."""
        where = "stale" if name == "stale" else "fresh"
        own = {key.split("/", 1)[1]: value for key, value in self._arrays.items() if key.startswith(f"{where}/")}
        prefix = f"{name}/norm/"
        norms = {int(k.removeprefix(prefix)): v for k, v in self._arrays.items() if k.startswith(prefix)}
        return Arm(
            [p.key for p in self.pool], [p.source for p in self.pool], self.corrupted,
            self._arrays[f"{name}/rewards"].astype(np.float64), own["tokens"].astype(np.int64),
            own["responses"].astype(np.int64), own["logprobs"].astype(np.float64), own["moves"], norms,
            np.where(self.corrupted, 0.0, self._arrays[f"{where}/gain"]),
        )  # fmt: skip

    def _measured(self) -> dict[str, NDArray]:
        found: dict[str, NDArray] = {}
        later = moved(self.seed, self._sampled)
        fresh = self._sampled(self.policy, self.pool, self.setting.truth, "candidates")
        for where, policy in (("fresh", self.policy), ("stale", later)):
            trusted = self._sampled(policy, self.trusted, self.setting.validation_rollouts, "validation")
            direction = Scorer(policy, OBJECTIVE, "exact", BATCH_TOKENS, seed=self.seed).direction(trusted)
            facts = direction.facts()
            found[f"{where}/reliability"] = np.array([facts["reliability"] or 0.0, facts["reliability_se"] or 0.0])
            found |= {f"{where}/{name}": value for name, value in self._moves(policy, fresh, direction).items()}
            own = fresh if policy is self.policy else self._sampled(policy, self.pool, self.setting.truth, "truth")
            found[f"{where}/gain"] = _exact(policy, own, direction)[0]
            for arm in ARMS:
                if (arm == "stale") == (where == "stale"):
                    paid = self._paid(arm, fresh)
                    found[f"{arm}/rewards"] = np.stack([g.rewards for g in paid]).astype(np.uint8)
                    for n in (*self.setting.rollouts, self.setting.truth):
                        some = [_first(g, n) for g in paid]
                        found[f"{arm}/norm/{n}"] = _exact(policy, some, direction)[1]
        return found

    def _sampled(self, policy: Policy, problems: Sequence[Problem], rollouts: int, stage: str) -> list[Group]:
        done = self.progress(f"seed {self.seed}: {stage}", len(problems))
        sampling = Sampling(rollouts, max_new_tokens=16, seed=self.seed, batch_rollouts=4096)
        return sampled(PolicySampler(policy, Reward("countdown", countdown), sampling), problems, done)

    def _paid(self, arm: str, groups: Sequence[Group]) -> list[Group]:
        """The groups, corrupted ones with the arm's rewards."""
        rates = [float(g.rewards.mean()) for g, bad in zip(groups, self.corrupted, strict=True) if not bad]
        paid = []
        for group, bad in zip(groups, self.corrupted, strict=True):
            rewards = group.rewards
            if bad and arm == "wrong_gold":
                rewards = corruptions.wrong_gold(group, self.seed)
            elif bad and arm == "matched_coins":
                rewards = corruptions.matched_coins(group, self.seed, rates)
            elif bad:
                rewards = corruptions.coins(group, self.seed)
            pairs = zip(group.rollouts, rewards.tolist(), strict=True)
            rollouts = [Rollout(own.response_ids, value) for own, value in pairs]
            paid.append(Group(group.key, group.prompt_ids, rollouts, group.source))
        return paid

    def _moves(self, policy: Policy, groups: Sequence[Group], direction: Direction) -> dict[str, NDArray]:
        engine = Directional(policy, OBJECTIVE, BATCH_TOKENS, packs(policy, groups, BATCH_TOKENS))
        engine.calibrate([g for g in groups if g.status == "scored"], direction)
        done = self.progress(f"seed {self.seed}: movements", len(groups))
        moves = []
        for start in range(0, len(groups), 64):
            some = groups[start : start + 64]
            moves += engine.derivatives(some, direction)
            done(len(some))
        evidence = [Evidence.of(group) for group in groups]
        return {
            "moves": np.stack(moves),
            "tokens": np.array([[r.n_tokens for r in group.rollouts] for group in groups], np.int16),
            "responses": np.stack([own.responses for own in evidence]).astype(np.int16),
            "logprobs": np.stack([own.logprobs for own in evidence if own.logprobs is not None]).astype(np.float32),
        }


def _exact(policy: Policy, groups: Sequence[Group], direction: Direction) -> tuple[Floats, Floats]:
    """(problems,) dots and norms by engine exact; 0 where rewards do not vary."""
    found = np.zeros((2, len(groups)))
    scored = [i for i, group in enumerate(groups) if group.status == "scored"]
    engine = Exact(policy, OBJECTIVE, BATCH_TOKENS, packs(policy, groups, BATCH_TOKENS))
    for i, numbers in zip(scored, engine.measure([groups[i] for i in scored], direction), strict=True):
        found[:, i] = numbers.dot or 0.0, numbers.norm or 0.0
    return found[0], found[1]


def moved(seed: int, sample: Callable[[Policy, Sequence[Problem], int, str], list[Group]]) -> Policy:
    """The embedded policy some gradient steps later: `MOVES` of length `MOVE`, each along the direction of 128 other
    problems with 16 rollouts of ``sample``."""
    later = load_policy("embedded", device="cpu")
    for step in range(MOVES):
        groups = sample(later, make_pool("mixed", 128, int(uniform_hash("moved", seed, step) * 2**31)), 16, "moving")
        direction = Scorer(later, OBJECTIVE, "exact", BATCH_TOKENS).direction(groups)
        with torch.no_grad():
            for parameter, along in zip(later.parameters, direction.unit, strict=True):
                parameter.add_(along.to(parameter), alpha=MOVE)
    vars(later).pop("fingerprint", None)
    return later


def _first(group: Group, count: int) -> Group:
    return Group(group.key, group.prompt_ids, group.rollouts[:count], group.source)


def _read(path: Path) -> dict[str, NDArray] | None:
    if not path.exists():
        return None
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        warn(f"{path}: cannot be read; it is measured again")
        return None
