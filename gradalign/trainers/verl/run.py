"""Rounds with verl: export the policy, choose, let verl train on; what is done is read off the disk.

A round is an epoch of verl's, of a fixed number of places for problems, whatever was chosen: optimiser, learning rate
schedule and step count run on through verl's own checkpoints. verl is launched once a round, and ends with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gradalign.alignment.align import Progress
from gradalign.curriculum.curriculum import Curriculum
from gradalign.curriculum.folder import round_folder
from gradalign.errors import GradAlignError
from gradalign.policy.load import Policy
from gradalign.problems.write import FILES, write_chosen
from gradalign.rollouts.sampler import Sampler
from gradalign.trainers.verl.checkpoints import export, last_step, merge_command, recall, start_afresh, step_folder
from gradalign.trainers.verl.settings import BATCH, SAVE, Settings, quoted

Tell = Callable[[str], None]
Look = Callable[[str], tuple[Policy, tuple[Sampler, Sampler]]]
"""Loads a Hugging Face folder: the policy, and who samples candidates and validation problems with it."""


@dataclass(frozen=True)
class Plan:
    """What verl is told.

    Attributes:
        python: verl's.
        model: hub id or folder of the policy that training starts from.
        out: run folder.
        checkpoints: verl's folder of them.
        rounds: how many.
        steps: optimiser steps of a round.
        overrides: the user's.
        named: names of the settings in these.
    """

    python: str
    model: str
    out: Path
    checkpoints: Path
    rounds: int
    steps: int
    overrides: tuple[str, ...]
    named: frozenset[str]

    def log(self, number: int) -> Path:
        """What verl says while it trains round ``number``."""
        return self.out / "verl" / f"round-{number:04d}.log"

    def policy(self, number: int) -> Path:
        """The exported policy that chooses for round ``number``, not the first."""
        return self.out / f"policy-{number:04d}"

    def all_overrides(self, number: int, places: int) -> list[str]:
        """The user's and ours for round ``number``; ``places`` is what an epoch holds."""
        chosen = round_folder(self.out, number) / FILES["verl"]
        soft = {
            SAVE: str(self.steps),
            "trainer.val_before_train": "False" if number else None,  # the last round has ended with it
            "hydra.run.dir": quoted(str(self.log(number).with_suffix(""))),
        }
        return [
            *self.overrides,
            *(f"{name}={value}" for name, value in soft.items() if value is not None and name not in self.named),
            f"actor_rollout_ref.model.path={quoted(self.model)}",
            f"data.train_files=[{quoted(str(chosen))}]",
            "data.custom_cls.path=pkg://gradalign.trainers.verl.dataset",
            "data.custom_cls.name=SelectedDataset",
            f"+data.gradalign.selection={quoted(str(chosen))}",
            f"+data.gradalign.places={places}",
            f"trainer.default_local_dir={quoted(str(self.checkpoints))}",
            "trainer.resume_mode=auto",
            f"trainer.total_epochs={number + 1}",
            f"trainer.total_training_steps={self.rounds * self.steps}",
        ]

    def train_command(self, number: int, places: int) -> list[str]:
        """verl's trainer, to the end of round ``number``."""
        return [self.python, "-m", "verl.trainer.main_ppo", *self.all_overrides(number, places)]

    def lines(self, places: int) -> Iterator[str]:
        """All that would be launched, as a shell takes it."""
        for number in range(self.rounds):
            first, last = number * self.steps + 1, (number + 1) * self.steps
            yield f"# round {number}: choose, then steps {first} to {last}"
            if number:
                merge = merge_command(self.python, self.checkpoints, number * self.steps, self.policy(number))
                yield shlex.join(merge)
            yield shlex.join(self.train_command(number, places))


@dataclass
class VerlRun:
    """See the module's text.

    Attributes:
        plan: what verl is told.
        settings: what verl has made of it.
        curriculum: chooses.
        look: see `Look`.
        tell: told a line of everything that is done.
        progress: see `gradalign.alignment.align.Progress`.
    """

    plan: Plan
    settings: Settings
    curriculum: Curriculum
    look: Look
    tell: Tell
    progress: Progress

    @property
    def places(self) -> int:
        """Of problems in a round."""
        return self.plan.steps * int(self.settings[BATCH])

    def run(self) -> Path | None:
        """All rounds that are not done yet, and the trained policy's export.

        Returns:
            The policy's folder; None where nothing was trained.

        Raises:
            GradAlignError: checkpoints of another run, another process in this one's folder, verl failed, or nothing
                could be chosen in the first round.
        """
        plan, curriculum = self.plan, self.curriculum
        with alone(plan.out) as lock:
            curriculum.state = recall(plan.checkpoints, curriculum.state)
            self._check(last_step(plan.checkpoints))
            for number in range(plan.rounds):
                if last_step(plan.checkpoints) >= (number + 1) * plan.steps:
                    continue
                if number > curriculum.state.round and not self._choose(number):
                    self.tell(f"round {number}: nothing further to train on: {curriculum.ended}")
                    break
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()  # verl wants the memory
                self._train(number, lock)
            step = last_step(plan.checkpoints)
            if not step:
                return None
            export(plan.python, plan.checkpoints, step, plan.out / "model")
            return plan.out / "model"

    def _check(self, step: int) -> None:
        """Refuse checkpoints that this run cannot have written: it trains after it has chosen."""
        begun = (self.curriculum.state.round + 1) * self.plan.steps
        if not begun - self.plan.steps <= step <= begun:
            raise GradAlignError(
                f"{step_folder(self.plan.checkpoints, step)}: is of another run: this one has chosen for "
                f"{self.curriculum.state.round + 1} rounds of {self.plan.steps} steps; name another folder by "
                "--checkpoints"
            )

    def _choose(self, number: int) -> bool:
        """Choose for round ``number`` with the policy as it is then; whether there is anything to train on."""
        plan, curriculum = self.plan, self.curriculum
        exported = plan.policy(number)
        if number:
            export(plan.python, plan.checkpoints, number * plan.steps, exported)
        policy, samplers = self.look(str(exported) if number else plan.model)
        known = curriculum.begin(number, policy, samplers, self.progress)
        if curriculum.ended is not None:
            if number:
                shutil.rmtree(exported)
            return False
        plan.checkpoints.mkdir(parents=True, exist_ok=True)
        curriculum.save(plan.checkpoints, policy)  # from here on the round is chosen
        self.tell(f"round {number}: chose {len(curriculum.chosen)} problems{_said(known)}")
        return True

    def _train(self, number: int, lock: int) -> None:
        """Let verl train round ``number`` to its end.

        Raises:
            GradAlignError: it ended before.
        """
        plan, curriculum = self.plan, self.curriculum
        chosen = curriculum.state.history[number]
        folder, log = round_folder(plan.out, number), plan.log(number)
        write_chosen(folder, [curriculum.pool[curriculum.keys.index(key)] for key in chosen], "verl")
        if plan.policy(number).exists():
            shutil.rmtree(plan.policy(number))  # it has chosen, is large, and lies in the checkpoint
        begun, end = last_step(plan.checkpoints), (number + 1) * plan.steps
        if number and begun == number * plan.steps:
            start_afresh(plan.checkpoints, begun)
        self.tell(f"round {number}: verl trains steps {begun + 1} to {end}; it speaks to {log}")
        status = launch(plan.train_command(number, self.places), log, lock)
        step = last_step(plan.checkpoints)
        if status != 0 or step < end:
            raise GradAlignError(
                f"{log}: verl ended with status {status} after step {step} of {end} ({_last_line(log)}); mend the "
                "cause, then run the same command again: it goes on from the last checkpoint"
            )


def launch(command: Sequence[str], log: Path, lock: int) -> int:
    """Run verl's trainer to its end, what it prints added to ``log``; gives its status.

    It holds ``lock`` as well: should this process be killed, the run's folder stays taken until verl has ended.

    Raises:
        GradAlignError: it cannot be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        out.write(f"$ {shlex.join(command)}\n".encode())
        out.flush()
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, pass_fds=[lock],
                env={**os.environ, "HYDRA_FULL_ERROR": "1"},  # else hydra hides the cause
            )  # fmt: skip
        except OSError as error:
            raise GradAlignError(f"option --verl-python: {command[0]}: cannot be run ({error.strerror})") from error
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
            process.wait()
            raise


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[int]:
    """Hold the run's folder; gives the descriptor that holds it.

    Raises:
        GradAlignError: another process does.
    """
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise GradAlignError(
                f"{folder}: another process, or verl launched by one, works in it; wait until it has ended"
            ) from error
        yield lock
    finally:
        os.close(lock)


def _said(known: dict[str, float]) -> str:
    """What is worth a line of a round's numbers."""
    parts = []
    if known.get("rollouts"):
        parts.append(f"of {known['problems']:.0f} ({known['scored_share'] * known['problems']:.0f} whose rewards vary)")
    if "direction/reliability" in known:
        parts.append(f"direction agrees {known['direction/reliability']:.2f}")
    return ", ".join(["", *parts]) if parts else ""


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:200]
