"""GradAlignTrainer: TRL's trainer on chosen problems."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback

from gradalign.alignment.exact import Exact
from gradalign.alignment.table import read_alignments
from gradalign.errors import GradAlignError, GradAlignWarning
from gradalign.policy.group import Group, Rollout
from gradalign.rewards.countdown import countdown
from gradalign.rollouts.table import read_rollouts
from gradalign.trainers.trl import GradAlignConfig, GradAlignTrainer
from gradalign.trainers.trl.checkpoints import last_complete
from gradalign.trainers.trl.run import export
from tests.trl_run import datasets, stock, trainer, weights


def losses(made: Any) -> list[tuple[float, float, float]]:
    return [(h["loss"], h["reward"], h["grad_norm"]) for h in made.state.log_history if "loss" in h]


def logged(made: Any, name: str) -> list[float]:
    return [h[f"gradalign/{name}"] for h in made.state.log_history if f"gradalign/{name}" in h]


class Watched(GradAlignTrainer):
    """Notes what each generation batch is made of."""

    batches: list[tuple[int, list[str], list[list[int]], torch.Tensor]]

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self.model.training:
            row = self.state.global_step, [i["key"] for i in inputs], completion_ids_list, rewards
            self.__dict__.setdefault("batches", []).append(row)
        return rewards


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


def test_off_goes_on_in_a_later_epoch(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "a", strategy="off", num_train_epochs=3)
    whole.train()
    resumed = trainer(tmp_path / "a", strategy="off", num_train_epochs=3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-12"))
    assert losses(resumed) == losses(whole)
    assert weights(resumed.model) == weights(whole.model)


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
    gradient = Exact(made.policy(), made.curriculum.plan.objective, 4096, True).gradient(group)
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


def test_the_best_checkpoint_is_exported_as_a_plain_folder(tmp_path: Path) -> None:
    made = trainer(
        tmp_path, max_steps=6, evaluate=True, load_best_model_at_end=True, metric_for_best_model="eval_reward",
        greater_is_better=True,
    )  # fmt: skip
    made.train()
    scores = {h["step"]: h["eval_reward"] for h in made.state.log_history if "eval_reward" in h}
    assert sorted(scores) == [2, 4, 6]
    assert made.state.best_metric == max(scores.values())
    export(made, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    best = AutoModelForCausalLM.from_pretrained(str(made.state.best_model_checkpoint))
    assert weights(loaded) == weights(best)


def test_lora(tmp_path: Path) -> None:
    from peft import LoraConfig

    made: Any = None
    for _ in range(2):  # the second goes on in the middle of the first's run
        made = trainer(
            tmp_path / "lora", max_steps=4, learning_rate=1e-3, lora=LoraConfig(r=4, target_modules="all-linear")
        )
        found = last_complete(tmp_path / "lora")
        made.train(resume_from_checkpoint=None if found is None else str(tmp_path / "lora" / "checkpoint-2"))
    names = made.policy().names
    assert names
    assert all("lora" in name for name in names)
    ids = torch.arange(3, 11)[None]
    with torch.no_grad():
        adapted, base = made.model.eval()(ids).logits, trainer(tmp_path).model.eval()(ids).logits
    assert (adapted - base).abs().max() > 1e-3
    export(made, tmp_path / "model")
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, adapted, atol=1e-4, rtol=1e-4)


def test_training_stops_when_the_direction_is_noise(tmp_path: Path) -> None:
    def noise(completions: list[str], **_: Any) -> list[float]:
        generator = np.random.default_rng(len(str(completions)))
        return generator.integers(0, 2, len(completions)).astype(float).tolist()

    made = trainer(tmp_path, noise, max_steps=40, noise_patience=3)
    with pytest.warns(
        GradAlignWarning, match=r"training stops before round \d+: the validation direction could not be told"
    ):
        made.train()
    assert 4 <= made.state.global_step < 40
    assert last_complete(tmp_path) == tmp_path / f"checkpoint-{made.state.global_step}"


def test_training_stops_when_the_validation_set_is_solved(tmp_path: Path) -> None:
    def solved(completions: list[str], trainer_state: Any, **_: Any) -> list[float]:
        return [1.0 if trainer_state.global_step >= 4 else float(i % 2) for i in range(len(completions))]

    made = trainer(tmp_path, solved, max_steps=40)
    with pytest.warns(GradAlignWarning, match="training stops before round 2: validation: none of the 32 problems"):
        made.train()
    assert made.state.global_step == 4


def test_a_gradient_that_is_not_finite_stops_before_the_weights(tmp_path: Path) -> None:
    made: Any = trainer(tmp_path, max_steps=8)
    compute = made._compute_loss
    made._compute_loss = lambda model, inputs: compute(model, inputs) * (float("nan") if made._step == 5 else 1.0)
    with pytest.raises(GradAlignError, match=r"step 6: the loss or its gradient is not finite.*checkpoint-4"):
        made.train()
    assert all(torch.isfinite(p).all() for p in made.model.parameters())
    assert last_complete(tmp_path) == tmp_path / "checkpoint-4"


def test_a_reward_that_dies_leaves_a_round_to_go_on_with(tmp_path: Path) -> None:
    calls: list[int] = []

    def mortal(completions: list[str], **columns: Any) -> list[float]:
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("the judge is down")
        return countdown(completions, **columns)

    with pytest.raises(GradAlignError, match="reward 'mortal': raised RuntimeError: the judge is down"):
        trainer(tmp_path, mortal, max_steps=4, batch_rollouts=64).train()
    assert (tmp_path / "round-0000" / "candidates.parquet.part").exists()
    before = len(calls)
    made = trainer(tmp_path, mortal, max_steps=4, batch_rollouts=64)
    made.train()
    whole = trainer(tmp_path / "whole", max_steps=4, batch_rollouts=64)
    whole.train()
    assert weights(made.model) == weights(whole.model)
    assert len(calls) > before


def test_fewer_chosen_than_a_batch_takes_come_twice(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_steps=2, chunk=4, rollouts=2)
    with pytest.warns(GradAlignWarning, match="fewer than the 4 of one generation batch: some repeat"):
        made.train()
    assert made.state.global_step == 2


@pytest.mark.filterwarnings("ignore:.*half-written or damaged")
def test_half_a_checkpoint_is_passed_over(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_steps=4)
    made.train()
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text('{"epoch": 2.0, "glob')
    assert last_complete(tmp_path) == tmp_path / "checkpoint-2"
    resumed = trainer(tmp_path, max_steps=4)
    with pytest.raises(GradAlignError, match="checkpoint-4: is no complete checkpoint"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    resumed.train(resume_from_checkpoint=True)
    assert weights(resumed.model) == weights(made.model)


@pytest.mark.parametrize(
    ("changed", "differs"),
    [
        ({"strategy": "dot"}, "strategy"),
        ({"seed": 7}, "seed"),
        ({"chunk": 20}, "candidates"),
        ({"pool": 40}, "train_dat"),
    ],
)
def test_another_runs_checkpoint_is_refused(tmp_path: Path, changed: dict[str, Any], differs: str) -> None:
    trainer(tmp_path, max_steps=2).train()
    with pytest.raises(GradAlignError, match=rf"checkpoint-2: is of another run \(differs in {differs}"):
        trainer(tmp_path, max_steps=4, **changed).train(resume_from_checkpoint=True)


def test_bad_data_sets_are_told_in_one_line(tmp_path: Path) -> None:
    policy = trainer(tmp_path, strategy="off")
    chosen, validation, test = datasets()

    def make(pool: Any = chosen, trusted: Any = validation, held_out: Any = None, **arguments: Any) -> None:
        config: dict[str, Any] = {
            "per_device_train_batch_size": 16,
            "num_generations": 4,
            "report_to": [],
            "use_cpu": True,
        }
        GradAlignTrainer(policy.model, countdown, GradAlignConfig(str(tmp_path), **config | arguments), pool, held_out,
                         validation_dataset=trusted, processing_class=policy.processing_class)  # fmt: skip

    both = Dataset.from_list([*chosen, validation[3]])
    with pytest.raises(GradAlignError, match="train_dataset: row 48 is also in validation_dataset"):
        make(both)
    with pytest.raises(GradAlignError, match="eval_dataset: row 16 is also in validation_dataset"):
        make(held_out=Dataset.from_list([*test, validation[3]]))
    with pytest.raises(GradAlignError, match="validation_dataset: is missing, and strategy 'gradalign' follows"):
        make(trusted=None)
    with pytest.raises(GradAlignError, match="rows 0 and 48 are the same problem"):
        make(Dataset.from_list([*chosen, chosen[0]]))
    with pytest.raises(GradAlignError, match="has no column 'prompt'"):
        make(chosen.rename_column("prompt", "question"))
    with pytest.raises(GradAlignError, match="train_dataset: is IterableDataset"):
        make(chosen.to_iterable_dataset())
    with pytest.raises(GradAlignError, match="has 3 problems, and one generation batch needs 4"):
        make(chosen.select(range(3)))
    with pytest.raises(GradAlignError, match="strategy 'tscore' needs t"):
        make(strategy="tscore")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "gradalgn"}, "strategy: unknown 'gradalgn'; did you mean 'gradalign'"),
        ({"top": 2}, "top .2. is less than the 4 problems of one generation batch"),
        ({"top": 4, "fraction": 0.5}, "top and fraction exclude each other"),
        ({"rollouts": 1}, "rollouts is 1"),
        ({"mode": "batch", "chunk": 9}, "chunk belongs to mode round"),
        ({"loss_type": "vespo"}, "loss_type 'vespo' weighs rollouts"),
        ({"steps_per_round": 1, "steps_per_generation": 2}, "must be a multiple of the 2 passes"),
        ({"direction_average": 1.0}, "direction_average is 1.0"),
        ({"engine": "exakt"}, "engine: unknown 'exakt'"),
        ({"num_generations": 3}, "generation_batch_size .16. must be divisible by num_generations"),
    ],
)
def test_bad_configurations_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    known: dict[str, Any] = {"per_device_train_batch_size": 16, "num_generations": 4, "use_cpu": True}
    with pytest.raises(ValueError, match=message):
        GradAlignConfig(str(tmp_path), **known | arguments)


def test_checkpoints_within_a_generation_batch_are_warned_of(tmp_path: Path) -> None:
    with pytest.warns(GradAlignWarning, match="save_steps .3. does not end with a generation batch"):
        GradAlignConfig(str(tmp_path), use_cpu=True, steps_per_round=4, steps_per_generation=2, save_steps=3,
                        save_strategy="steps", per_device_train_batch_size=16, num_generations=4)  # fmt: skip


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("mode", ["round", "batch"])
def test_several_generation_batches_a_step(tmp_path: Path, mode: str) -> None:
    """Generation in the middle of gradient accumulation: other problems each time, gradients left alone."""
    arguments: dict[str, Any] = {"gradient_accumulation_steps": 2, "steps_per_generation": 1, "max_steps": 4}
    if mode == "batch":
        arguments |= {"mode": "batch", "engine": "exact", "strategy": "gradalign"}
    made: Any = trainer(tmp_path, **arguments)
    norms: list[float] = []
    still = made._still

    def watch() -> Any:
        norms.append(sum(float(p.grad.norm()) for p in made.model.parameters() if p.grad is not None))
        return still()

    made._still = watch
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


@pytest.mark.usefixtures("watched")
def test_a_checkpoint_within_a_generation_batch_costs_that_batch_alone(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"per_device_train_batch_size": 8, "steps_per_generation": 4, "steps_per_round": 4}
    arguments |= {"max_steps": 8, "save_strategy": "steps", "save_steps": 2}
    with pytest.warns(GradAlignWarning, match="does not end with a generation batch"):
        trainer(tmp_path, **arguments).train()
    with pytest.warns(GradAlignWarning, match="does not end with a generation batch"):
        made: Any = trainer(tmp_path, **arguments)
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [step for step, *_ in made.batches] == [2, 4]  # the torn one is sampled anew, the next comes in its place
    assert set(made.batches[1][1]) <= set(made.curriculum.state.history[1])


@pytest.mark.usefixtures("watched")
def test_training_twice_begins_anew(tmp_path: Path) -> None:
    made: Any = trainer(
        tmp_path, per_device_train_batch_size=8, steps_per_generation=2, max_steps=3, save_strategy="no"
    )
    made.train()
    first = [(step, keys) for step, keys, _, _ in made.batches]
    made.batches.clear()
    made.train()
    assert [step for step, *_ in made.batches] == [step for step, _ in first]


def test_another_reward_of_the_same_name_is_another_round(tmp_path: Path) -> None:
    def first() -> Any:
        def paid(completions: list[str], **_: Any) -> list[float]:
            return [float(len(c) % 2) for c in completions]

        return paid

    def second() -> Any:
        def paid(completions: list[str], **_: Any) -> list[float]:
            return [-float(len(c) % 2) for c in completions]

        return paid

    trainer(tmp_path, first(), max_steps=2).train()
    again = trainer(tmp_path, second(), max_steps=2)
    with pytest.raises(GradAlignError, match=r"of another run \(differs in rewards\)"):
        again.train(resume_from_checkpoint=True)
    with pytest.warns(GradAlignWarning, match="is of an earlier run; this one starts anew"):
        again.train()
    groups = read_rollouts(tmp_path / "round-0000" / "candidates.parquet")
    assert {r.reward for g in groups for r in g.rollouts} <= {0.0, -1.0}


@pytest.mark.parametrize("damaged", ["candidates.parquet", "alignments.parquet", "metrics.json"])
def test_a_damaged_round_is_done_again(tmp_path: Path, damaged: str) -> None:
    whole = trainer(tmp_path / "whole", max_steps=4)
    whole.train()
    trainer(tmp_path / "own", max_steps=2).train()
    (tmp_path / "own" / "round-0000" / damaged).write_bytes(b"{ not what it was")
    made = trainer(tmp_path / "own", max_steps=4)
    with pytest.warns(GradAlignWarning, match=f"{damaged}.*; the round is done again"):
        made.train()
    assert made.curriculum is not None
    assert whole.curriculum is not None
    assert made.curriculum.state.history[0] == whole.curriculum.state.history[0]


@pytest.mark.parametrize("damaged", ["model.safetensors", "optimizer.pt", "gradalign.json"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damaged: str) -> None:
    made = trainer(tmp_path, max_steps=4)
    made.train()
    path = tmp_path / "checkpoint-4" / damaged
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(GradAlignWarning, match="checkpoint-4: is half-written or damaged, and passed over"):
        assert last_complete(tmp_path) == tmp_path / "checkpoint-2"


def test_keys_may_be_numbers_and_columns_dropped(tmp_path: Path) -> None:
    policy = trainer(tmp_path / "off", strategy="off")
    chosen, validation, _ = datasets()
    numbered = chosen.remove_columns("key").add_column("key", list(range(48)))

    def pay(completions: list[str], **_: Any) -> list[float]:
        return [float(sum(map(ord, c)) % 2) for c in completions]

    args = GradAlignConfig(
        str(tmp_path / "run"), max_steps=2, steps_per_round=2, chunk=16, per_device_train_batch_size=16,
        num_generations=4, max_completion_length=8, use_cpu=True, report_to=[], remove_unused_columns=True,
    )  # fmt: skip
    made = GradAlignTrainer(policy.model, pay, args, numbered, validation_dataset=validation,
                            processing_class=policy.processing_class)  # fmt: skip
    made.train()
    assert made.curriculum is not None
    assert all(int(key) < 48 for key in made.curriculum.chosen)
