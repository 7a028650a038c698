"""GradAlignTrainer: TRL's trainer on chosen problems."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from gradalign.alignment.exact import Exact
from gradalign.alignment.table import read_alignments
from gradalign.curriculum.history import saved_history
from gradalign.curriculum.state import HISTORY
from gradalign.errors import GradAlignWarning
from gradalign.policy.group import Group, Rollout
from gradalign.rewards.countdown import countdown
from gradalign.rollouts.table import read_rollouts
from gradalign.trainers.trl import trainer as module
from gradalign.trainers.trl.model import policy_of, still
from tests.trl_run import Watched, datasets, logged, losses, stock, trainer, weights

pytestmark = pytest.mark.filterwarnings("ignore:.*some repeat")  # a choice may come out small


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.trl_run.GradAlignTrainer", Watched)


def test_off_is_stock_trl_step_for_step(tmp_path: Path) -> None:
    theirs = stock(tmp_path / "a", num_train_epochs=2)  # making one seeds the global generator
    theirs.train()
    ours = trainer(tmp_path / "b", strategy="off", num_train_epochs=2)
    ours.train()
    assert losses(theirs) == losses(ours)
    assert len(losses(ours)) == 24
    assert weights(theirs.model) == weights(ours.model)


@pytest.mark.usefixtures("watched")
def test_exactly_the_chosen_problems_are_trained_on(tmp_path: Path) -> None:
    made: Any = trainer(tmp_path, max_steps=6, top=8)
    made.train()
    history = made.curriculum.state.history
    assert len(history) == 3
    for number, chosen in enumerate(history):
        table = read_alignments(tmp_path / f"round-{number:04d}" / "alignments.parquet")
        ranked = sorted((a for a in table if a.selected), key=lambda a: a.rank or 0)
        assert [a.key for a in ranked] == chosen
        rows = (tmp_path / f"round-{number:04d}" / "chosen.jsonl").read_text().splitlines()
        assert [json.loads(row)["key"] for row in rows] == chosen
        trained = [key for step, keys, _, _ in made.batches for key in keys if step // 2 == number]
        assert set(trained) == set(chosen)
        turns = -(-8 // len(chosen))  # each once, and again from the front where there are fewer than places
        assert {trained.count(key) // 4 for key in chosen} <= {turns, turns - 1 or 1}


@pytest.mark.usefixtures("watched")
def test_rollouts_of_the_same_policy_are_trained_on_once_they_are_there(tmp_path: Path) -> None:
    made: Any = trainer(tmp_path, max_steps=4)
    generated: list[int] = []
    generate = made._generate_single_turn

    def watch(*args: Any) -> Any:
        generated.append(made.state.global_step)
        return generate(*args)

    made._generate_single_turn = watch
    made.train()
    assert generated == [1, 3]  # of each round's two steps, the first is served
    for step, keys, ids, rewards in made.batches:
        if step % 2:
            continue
        groups = {g.key: g for g in read_rollouts(tmp_path / f"round-{step // 2:04d}" / "candidates.parquet")}
        for position, (key, own) in enumerate(zip(keys, ids, strict=True)):
            rollout = groups[key].rollouts[position % 4]
            assert rollout.response_ids.tolist() == own
            assert rewards[position].tolist() == [rollout.reward]
    assert logged(made, "rollouts_reused_total") == [16, 32]
    fresh: Any = trainer(tmp_path / "fresh", max_steps=4, recycle=False)
    generate = fresh._generate_single_turn
    fresh._generate_single_turn = watch
    fresh.train()
    assert len(generated) == 2 + 4
    assert not logged(fresh, "rollouts_reused_total")


def test_recycled_rollouts_are_on_policy(tmp_path: Path) -> None:
    made: Any = trainer(tmp_path, max_steps=4)
    seen = []
    compute = made._compute_loss

    def watch(model: Any, inputs: Any) -> torch.Tensor:
        if made.state.global_step % 2 == 0:
            ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
            mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
            with torch.no_grad():
                kept = inputs["completion_ids"].shape[1]
                logps, _, _ = made._get_per_token_logps_and_entropies(model, ids, mask, kept)
            seen.append({tuple(c[m.bool()].tolist()): p[m.bool()].tolist() for c, m, p in zip(
                inputs["completion_ids"], inputs["completion_mask"], logps, strict=True)})  # fmt: skip
        return compute(model, inputs)

    made._compute_loss = watch
    made.train()
    assert len(seen) == 2
    for number, own in enumerate(seen):
        groups = read_rollouts(tmp_path / f"round-{number:04d}" / "candidates.parquet")
        stored: dict[tuple[int, ...], list[list[float]]] = {}
        for rollout in (r for g in groups for r in g.rollouts):
            assert rollout.logprobs is not None
            stored.setdefault(tuple(rollout.response_ids.tolist()), []).append(rollout.logprobs.tolist())
        for ids, logprobs in own.items():
            assert min(np.abs(np.array(s) - logprobs).max() for s in stored[ids]) < 1e-4


@pytest.mark.usefixtures("watched")
def test_batch_mode_trains_on_what_it_scored_and_adds_forward_passes_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Any = trainer(tmp_path, max_steps=4, mode="batch", oversample=3)
    kept: list[list[Group]] = []
    backwards: list[int] = []
    filtering, backward = made.curriculum.filter, torch.Tensor.backward

    def watch(*args: Any) -> Any:
        before = len(backwards)
        groups, numbers = filtering(*args)
        assert len(backwards) == before
        kept.append(groups)
        return groups, numbers

    made.curriculum.filter = watch

    def counted(*args: Any, **named: Any) -> None:
        backwards.append(1)
        backward(*args, **named)

    monkeypatch.setattr(torch.Tensor, "backward", counted)
    made.train()
    assert backwards
    assert len(kept) == 4
    for (_, keys, ids, _), groups in zip(made.batches, kept, strict=True):
        assert keys == [g.key for g in groups for _ in range(4)]
        assert ids == [r.response_ids.tolist() for g in groups for r in g.rollouts]
    table = read_alignments(tmp_path / "round-0000" / "batch-00000.alignments.parquet")
    assert len(table) == 12
    assert {a.key for a in table if (a.rank or 99) <= 4} == {g.key for g in kept[0]}
    assert made.curriculum.state.reused == 4 * 16
    assert made.curriculum.state.sampled == 4 * 48 + 2 * 32 * 4


def test_what_a_gate_refused_fills_a_batch_last(tmp_path: Path) -> None:
    gate = "band(low=0.4, high=0.6)"
    trainer(tmp_path, max_steps=2, mode="batch", oversample=3, gates=[gate]).train()
    (history,) = saved_history(tmp_path / "checkpoint-2" / HISTORY)
    for number in range(2):
        table = read_alignments(tmp_path / "round-0000" / f"batch-{number:05d}.alignments.parquet")
        trained = history[4 * number : 4 * number + 4]
        selected = {a.key for a in table if a.selected}
        assert len(selected) < 4
        assert selected <= {*trained} <= selected | {a.key for a in table if a.status == "zero_variance"}


@pytest.mark.parametrize("scale", ["group", "none", "batch"])
@pytest.mark.parametrize("loss", ["grpo", "dapo", "bnpo", "dr_grpo", "cispo", "luspo", "sapo"])
def test_the_score_differentiates_what_the_trainer_optimises(tmp_path: Path, loss: str, scale: str) -> None:
    made = trainer(
        tmp_path, loss_type=loss, scale_rewards=scale, per_device_train_batch_size=8, num_generations=8,
        temperature=0.8, max_steps=2, max_completion_length=4, mask_truncated_completions=loss == "dapo",
    )  # fmt: skip
    rows: Any = next(row for row in datasets()[0] if row["source"] == "three")
    made.model.train()
    made.state.global_step = 0
    inputs = None
    for seed in range(20):  # until rewards vary
        torch.manual_seed(seed)
        inputs = made._generate_and_score_completions([dict(rows)] * 8)
        if inputs["advantages"].abs().max() > 0:
            break
    assert inputs is not None
    made._step = 0
    made.current_gradient_accumulation_steps = 1
    made.model.zero_grad()
    made._compute_loss(made.model, inputs).backward()
    theirs = torch.cat([p.grad.reshape(-1) for p in made.model.parameters() if p.grad is not None]).double()
    made.model.zero_grad()
    rollouts = []
    logs: Any = made._logs
    rewards = next(iter(logs["rewards"].values()))
    for ids, mask, reward in zip(inputs["completion_ids"], inputs["completion_mask"], list(rewards)[-8:], strict=True):
        cut = loss == "dapo" and not mask.any()
        kept = ids if cut else ids[mask.bool()]
        rollouts.append(Rollout(kept.numpy(), float(reward), finish_reason="length" if cut else "stop"))
    prompt = inputs["prompt_ids"][0][inputs["prompt_mask"][0].bool()].numpy()
    group = Group("g", prompt, rollouts)
    assert made.curriculum is not None
    gradient = Exact(policy_of(made), made.curriculum.plan.objective, 4096, True).gradient(group)
    ours = torch.cat([g.reshape(-1) for g in gradient]).double()
    assert torch.dot(ours, theirs) / ours.norm() / theirs.norm() == pytest.approx(-1, abs=1e-5)


def test_metrics_reach_the_trainers_log(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_steps=4, validation_rollouts=4)
    made.train()
    names = {name for h in made.state.log_history for name in h if name.startswith("gradalign/")}
    for name in ("round", "chosen", "scored_share", "zero_variance_share", "overlap", "score/min", "score/median",
                 "score/max", "direction/reliability", "rollouts", "rollouts_total", "rollouts_reused_total", "seconds",
                 "overhead_seconds", "time_share"):  # fmt: skip
        assert f"gradalign/{name}" in names, name
    assert logged(made, "rollouts") == [16 * 8 + 32 * 4] * 2
    shares = {n: h[n] for h in made.state.log_history[:1] for n in h if n.startswith("gradalign/source/")}
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.usefixtures("watched")
def test_a_static_choice_is_made_once_over_the_whole_pool(tmp_path: Path) -> None:
    made: Any = trainer(tmp_path, max_steps=6, strategy="static", top=8)
    made.train()
    history = made.curriculum.state.history
    assert history[0] == history[1] == history[2]
    assert len(read_alignments(tmp_path / "round-0000" / "alignments.parquet")) == 48
    assert not (tmp_path / "round-0001").exists()


@pytest.mark.parametrize("strategy", ["dot", "tscore", "corr", "accgreedy", "random"])
def test_every_strategy_runs_in_the_loop(tmp_path: Path, strategy: str) -> None:
    made = trainer(tmp_path, max_steps=2, strategy=strategy, contributions=True)
    made.train()
    assert made.state.global_step == 2
    assert made.curriculum is not None
    assert made.curriculum.chosen


def test_small_pools_and_several_looks(tmp_path: Path) -> None:
    made = trainer(tmp_path, pool=10, num_train_epochs=3)  # one chunk holds the pool
    made.train()
    assert made.state.global_step == 6
    looked = [len(read_alignments(path)) for path in sorted(tmp_path.glob("round-*/alignments.parquet"))]
    assert looked == [10, 10, 10]


def test_rounds_leave_nothing_behind_in_memory(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_steps=16, steps_per_round=1, chunk=8, direction_average=0.5, save_strategy="no")
    alive: list[int] = []

    class Count(TrainerCallback):
        def on_epoch_end(self, *args: Any, **named: Any) -> None:
            gc.collect()
            alive.append(sum(isinstance(o, torch.Tensor | Group | Rollout) for o in gc.get_objects()))

    made.add_callback(Count())
    made.train()
    assert len(alive) == 16
    assert max(alive[8:]) <= max(alive[2:8]) + 4, alive


def test_the_trainers_own_generation_serves_truncated_sampling(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    ends = []
    for name in ("a", "b"):
        made: Any = trainer(tmp_path / name, max_steps=2, top_p=0.9)
        state = torch.random.get_rng_state()
        made.begin_round()
        assert torch.equal(state, torch.random.get_rng_state())  # choosing leaves the trainer's draws alone
        made.train()
        ends.append(made.curriculum.state.history)
    assert ends[0] == ends[1]
    torch.random.set_rng_state(before)


def test_several_rewards_are_summed_and_kept_apart(tmp_path: Path) -> None:
    def brief(completions: list[str], **_: Any) -> list[float | None]:
        return [None if len(c) > 3 else 0.5 for c in completions]

    made: Any = trainer(tmp_path, [countdown, brief], max_steps=2, reward_weights=[1.0, 2.0])
    made.train()
    groups = read_rollouts(tmp_path / "round-0000" / "candidates.parquet")
    for rollout in (r for g in groups for r in g.rollouts):
        assert rollout.rewards is not None
        assert rollout.reward == pytest.approx(rollout.rewards[0] + np.nan_to_num(2 * rollout.rewards[1]))
        assert np.isnan(rollout.rewards[1]) == (len(rollout.response or "") > 3)


def test_fewer_chosen_than_a_batch_takes_come_twice(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_steps=2, chunk=4, rollouts=2)
    with pytest.warns(GradAlignWarning, match="fewer than the 4 of one generation batch: some repeat"):
        made.train()
    assert made.state.global_step == 2


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("mode", ["round", "batch"])
def test_several_generation_batches_a_step(tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generation in the middle of gradient accumulation: other problems each time, gradients left alone."""
    arguments: dict[str, Any] = {"gradient_accumulation_steps": 2, "steps_per_generation": 1, "max_steps": 4}
    if mode == "batch":
        arguments |= {"mode": "batch", "engine": "exact", "strategy": "gradalign"}
    made: Any = trainer(tmp_path, **arguments)
    norms: list[float] = []

    def watch(trained: Any) -> Any:
        norms.append(sum(float(p.grad.norm()) for p in made.model.parameters() if p.grad is not None))
        return still(trained)

    monkeypatch.setattr(module, "still", watch)
    made.train()
    batches: dict[int, list[list[str]]] = {}
    for step, keys, _, _ in made.batches:
        batches.setdefault(step, []).append(keys)
    assert [len(own) for own in batches.values()] == [2] * 4
    assert all(first != second for first, second in batches.values())
    if mode == "batch":
        assert sum(norm > 0 for norm in norms) == 4  # the second batch of each step
        for h in made.state.log_history[:4]:
            assert h["grad_norm"] > 0
        return
    assert logged(made, "rollouts_reused_total")[-1] == 2 * 2 * 16  # both batches of a round's first step
    for number in (0, 1):
        groups = {g.key: g for g in read_rollouts(tmp_path / f"round-{number:04d}" / "candidates.parquet")}
        taken: dict[str, int] = {}
        for keys, ids in [(k, i) for step, k, i, _ in made.batches if step == 2 * number]:
            for position, key in enumerate(keys):
                index = taken.setdefault(key, 0)
                taken[key] += 1
                assert groups[key].rollouts[index].response_ids.tolist() == ids[position]  # none twice


def test_gradients_do_not_depend_on_scoring_in_between(tmp_path: Path) -> None:
    """What an engine leaves in `grad` would tell: `exact` works there, `reference` beside it."""
    ends = []
    for engine in ("exact", "reference"):
        made = trainer(
            tmp_path / engine, mode="batch", engine=engine, strategy="gradalign", gradient_accumulation_steps=2,
            steps_per_generation=1, max_steps=2,
        )  # fmt: skip
        made.train()
        ends.append(torch.cat([p.detach().reshape(-1) for p in made.model.parameters()]))
    start = torch.cat([p.detach().reshape(-1) for p in trainer(tmp_path / "start").model.parameters()])
    assert (ends[0] - ends[1]).norm() < 0.02 * (ends[0] - start).norm()


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize(("accumulate", "generate", "iterations"), [(2, 2, 1), (1, 2, 1), (1, 1, 2)])
def test_rounds_hold_whatever_the_batches_are_cut_into(
    tmp_path: Path, accumulate: int, generate: int, iterations: int
) -> None:
    arguments: dict[str, Any] = {
        "gradient_accumulation_steps": accumulate, "steps_per_generation": generate, "num_iterations": iterations,
        "per_device_train_batch_size": 8, "max_steps": 8, "steps_per_round": 4, "chunk": 24,
    }  # fmt: skip
    made: Any = trainer(tmp_path, **arguments)
    made.train()
    for step, keys, _, _ in made.batches:
        assert set(keys) <= set(made.curriculum.state.history[step // 4])
    assert len(made.batches) == 8 * accumulate // (generate * iterations)
