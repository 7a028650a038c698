"""The curriculum: a choice each round as the policy moves, its state, and when to stop following the direction.

Knows no trainer: an adapter calls `Curriculum.begin` at each round's start with the policy as it is then, trains on
`Curriculum.chosen`, and saves and loads the state with its own checkpoints. Every round's files are on disk, so a
round that was chosen before a crash is not chosen again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradalign.alignment.align import Progress, silent
from gradalign.alignment.direction import Direction, NoGradientError
from gradalign.alignment.record import Alignment
from gradalign.alignment.saved import load_direction, origin_of, save_direction
from gradalign.curriculum.chunks import Chunks
from gradalign.curriculum.files import open_round, read_groups, read_round
from gradalign.curriculum.folder import round_folder
from gradalign.curriculum.numbers import counted, spent, summary
from gradalign.curriculum.round import RoundPlan, run_round, write_choice
from gradalign.curriculum.state import DIRECTION, State
from gradalign.errors import GradAlignError
from gradalign.policy.group import Group
from gradalign.policy.load import Policy
from gradalign.problems.schema import Problem, fingerprint, uniform_hash
from gradalign.processes import ALONE, Processes
from gradalign.rollouts.sampler import Sampler
from gradalign.selection.budgets.prior import seen, together


class Curriculum:
    """See the module's text.

    Args:
        pool: all candidates.
        keys: theirs, in the pool's order; looked up by ``index``.
        validation: the trusted set, disjoint from the pool.
        plan: how a round chooses.
        chunk: problems looked at in one round, at most; None for all.
        folder: gets a folder for each round.
        identity: of the run; checkpoints of another are refused.
        average: weight in [0, 1) of the earlier rounds' direction in the one that is followed.
        patience: rounds over which the direction's halves must agree beyond noise; 0 goes on whatever they say.
        processes: share the work.
    """

    def __init__(
        self,
        pool: Sequence[Problem],
        keys: Sequence[str],
        validation: Sequence[Problem],
        plan: RoundPlan,
        chunk: int | None,
        folder: Path,
        identity: dict[str, Any],
        average: float = 0.0,
        patience: int = 0,
        processes: Processes = ALONE,
    ) -> None:
        self.pool = pool
        self.validation = validation
        self.plan = plan
        self.folder = folder
        self.average = average
        self.patience = patience
        self.processes = processes
        self.keys = keys
        whole = plan.strategy.once or plan.strategy.stale
        self.chunks = Chunks(keys, None if whole else chunk, plan.seed)
        self.state = State(identity)
        self.groups: dict[str, Group] = {}
        """Rollouts of the chosen problems by the policy that chose them; the adapter empties it when that has moved."""
        self.used: Counter[str] = Counter()
        """Key -> how many of its `groups`' rollouts were trained on."""
        self.ended: str | None = None
        """Why there is nothing more to choose, once that is so."""
        self.followed: Direction | None = None
        """The direction of the last round, where a later one needs it."""
        self.origin = ""
        """Fingerprint of the weights at which `followed` was taken."""

    @property
    def chosen(self) -> list[str]:
        """Keys of the round's choice, best first."""
        return self.state.history.last

    def slots(self, count: int) -> list[int]:
        """Pool indices of the ``count`` places of a round: the choice in seeded order, again and again as needed."""
        number, keys, places = self.state.round, self.chosen, list[int]()
        turn = 0
        while len(places) < count and keys:
            order = sorted(keys, key=lambda key: uniform_hash("slot", self.plan.seed, number, turn, key))
            places += [self.keys.index(key) for key in order]
            turn += 1
        return places[:count]

    def serve(self, places: Sequence[int], count: int) -> list[tuple[Group, int]]:
        """Rollouts that were sampled for scoring, to be trained on while the policy is the one that sampled them.

        Args:
            places: pool indices of the problems wanted; one that comes again gets its next rollouts.
            count: rollouts for each.

        Returns:
            Each place's group and the first of its ``count`` rollouts; nothing where one place has too few unused.
        """
        used, served = self.used.copy(), []
        for key in (self.keys[place] for place in places):
            group, first = self.groups.get(key), used[key]
            if group is None or first + count > len(group.rollouts):
                return []
            served.append((group, first))
            used[key] += count
        self.used = used
        self.state.reused += len(served) * count
        return served

    def begin(
        self, number: int, policy: Policy, samplers: tuple[Sampler, Sampler], progress: Progress = silent
    ) -> dict[str, float]:
        """Choose for round ``number``, or find on disk that it was chosen.

        Returns:
            Numbers to log, without prefix. `ended` is set where nothing could be chosen.

        Raises:
            GradAlignError: the first round has no direction or nothing to choose; sampling or scoring fails.
        """
        asked = self.plan.strategy.warmup
        if self.plan.strategy.once and number > asked:
            self.state.history.cut(number)
            self.state.history.append(self.state.history[asked])
            self.state.round = number
            return {}
        chunk = [self.pool[i] for i in self.chunks[number]]
        folder = round_folder(self.folder, number)
        before = self.chosen
        try:
            alignments, facts = self._choose(number, policy, chunk, samplers, folder, progress)
        except NoGradientError as error:
            if number == 0:
                raise
            self.ended = str(error)
            return {}
        chosen = [a.key for a in sorted((a for a in alignments if a.selected), key=lambda a: a.rank or 0)]
        if not chosen:
            why = f"round {number}: none of {len(chunk)} problems could be chosen ({counted(alignments)})"
            if number == 0:
                raise GradAlignError(
                    f"{why}; take more of them (chunk), more rollouts, or problems of other difficulty"
                )
            self.ended = why
            return {}
        self.note(number, chosen, facts)
        if self.plan.budget.staged:
            self.state.rates[number:] = [seen(alignments)]
        return {
            **summary(alignments, set(chosen), set(before)),
            **spent(facts),
            "rollouts_total": float(self.state.sampled),
        }

    def note(self, number: int, chosen: list[str], facts: dict[str, Any]) -> None:
        """Put a round into the state; ends the curriculum where the direction has become noise."""
        direction, state = facts["direction"] or {}, self.state
        state.round = number
        state.history.cut(number)
        del state.agreements[number:]
        state.history.append(chosen)
        state.agreements.append((direction.get("reliability"), direction.get("reliability_se")))
        state.sampled += facts["rollouts"]
        if self.within_noise():
            self.ended = (
                f"the validation direction could not be told from noise over the last {self.patience} rounds: more "
                "validation problems or rollouts make it reliable; noise_patience=0 goes on all the same"
            )

    def within_noise(self) -> bool:
        """Whether the halves' agreement over the last ``patience`` rounds together is within two standard errors."""
        asked = self.state.agreements[self.plan.strategy.warmup :]
        recent = asked[-self.patience :] if self.patience else []
        if not self.plan.strategy.needs_engine or not recent or len(recent) < self.patience:
            return False
        known = [(agreement, se) for agreement, se in recent if agreement is not None and se is not None]
        error = math.sqrt(sum(se**2 for _, se in known))
        return sum(agreement for agreement, _ in known) <= 1.96 * error

    def _choose(
        self,
        number: int,
        policy: Policy,
        chunk: list[Problem],
        samplers: tuple[Sampler, Sampler],
        folder: Path,
        progress: Progress,
    ) -> tuple[list[Alignment], dict[str, Any]]:
        """The round's alignments and its ``metrics.json``."""
        plan = self.plan.of_round(number)
        identity = self.identity(number, policy, chunk, samplers)
        needed = [DIRECTION] if self.average and plan.strategy.needs_engine else []
        found = None
        if open_round(folder, identity, needed, self.processes):
            found = read_round(folder, self.processes)
            if found is not None and needed:
                self.recall(folder, policy)
        if found is None:
            result = run_round(
                policy, chunk, self.validation, samplers, plan, folder, progress, self.processes,
                lambda direction: self.follow(direction, policy, folder) if self.average else direction,
                together(self.state.rates[:number]), self.collected(number),
            )  # fmt: skip
            found = result.alignments, result.metrics(), result.groups
        alignments, facts, groups = found
        if self.processes.first:
            write_choice(folder, chunk, alignments, ["trl"])
        chosen = {a.key for a in alignments if a.selected}
        self.groups = {group.key: group for group in groups if group.key in chosen}
        self.used.clear()
        return alignments, facts

    def identity(
        self, number: int, policy: Policy, chunk: Sequence[Problem], samplers: Sequence[Sampler]
    ) -> dict[str, Any]:
        """All that a round's files depend on."""
        return {
            "round": number,
            "policy": policy.fingerprint,
            "problems": fingerprint([*chunk, *self.validation]),
            "samplers": [sampler.identity for sampler in samplers],
            "plan": self.plan.of_round(number).identity | {"average": self.average},
            **({"rates": together(self.state.rates[:number])} if self.plan.budget.staged else {}),
        }

    def collected(self, number: int) -> list[Group]:
        """Groups that an earlier round has sampled and this one scores again; empty where it samples its own."""
        strategy = self.plan.strategy
        if not strategy.stale or number <= strategy.warmup:
            return []
        return read_groups(round_folder(self.folder, strategy.warmup), self.keys)

    def follow(self, direction: Direction, policy: Policy, folder: Path) -> Direction:
        """The direction to follow from a round's own; kept in ``folder`` and for the next round."""
        if self.average and self.followed is not None:
            direction = direction.averaged(self.followed, self.average)
        self.followed, self.origin = direction, policy.fingerprint
        if self.processes.first:
            self.keep(folder, policy, direction)
            for older in self.folder.glob(f"round-*/{DIRECTION}"):  # as large as the policy; checkpoints have their own
                if older.parent != folder:
                    older.unlink()
        return direction

    def keep(self, folder: Path, policy: Policy, direction: Direction) -> None:
        """Write the direction that is followed into ``folder``."""
        save_direction(folder / DIRECTION, policy, self.plan.objective, direction, self.origin)

    def recall(self, folder: Path, policy: Policy) -> None:
        """Follow the direction that `keep` wrote there; the policy may have moved since.

        Raises:
            GradAlignError: see `load_direction`.
        """
        self.followed = load_direction(folder / DIRECTION, policy, self.plan.objective)
        self.origin = origin_of(folder / DIRECTION)

    def restart(self) -> None:
        """Forget every round; what is on disk of the same rounds is still found."""
        self.state = State(self.state.identity)
        self.groups, self.ended, self.followed = {}, None, None

    def save(self, checkpoint: Path, policy: Policy) -> None:
        """Write the state into a checkpoint's folder."""
        checkpoint.mkdir(parents=True, exist_ok=True)
        if self.followed is not None:
            self.keep(checkpoint, policy, self.followed)
        self.state.save(checkpoint)

    def load(self, checkpoint: Path, policy: Policy) -> None:
        """Go on from a checkpoint.

        Raises:
            GradAlignError: it carries no state, or another run's.
        """
        self.state = self.state.load(checkpoint)
        if (checkpoint / DIRECTION).exists():
            self.recall(checkpoint, policy)
