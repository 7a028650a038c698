"""What of verl runs without a GPU, run with verl itself: `make verl-check`, in an environment that has verl.

    python scripts/check_verl.py [--out benchmarks/verl.json]

Not run: verl's training loop, which needs a GPU and vLLM or SGLang. Everything up to its launch is.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer
from verl.trainer.ppo.core_algos import agg_loss, get_adv_estimator_fn
from verl.trainer.ppo.utils import create_rl_dataset, create_rl_sampler
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

from gradalign.errors import GradAlignError
from gradalign.policy.group import Group, Rollout
from gradalign.policy.objective import Objective
from gradalign.policy.where import EMBEDDED
from gradalign.problems.fields import FieldMap
from gradalign.problems.read import read_problems
from gradalign.problems.schema import Problem
from gradalign.problems.write import write_chosen
from gradalign.trainers.verl.checkpoints import TRACKER, export, last_step
from gradalign.trainers.verl.run import Plan
from gradalign.trainers.verl.settings import AGGREGATIONS, Settings, ask

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
GRPO = (
    "algorithm.adv_estimator=grpo", "data.train_batch_size=4", "data.max_prompt_length=64",
    "data.max_response_length=16",
    "data.filter_overlong_prompts=True", "data.filter_overlong_prompts_workers=1", "data.dataloader_num_workers=2",
    "trainer.n_gpus_per_node=1", "actor_rollout_ref.actor.ppo_mini_batch_size=4", "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4", "actor_rollout_ref.rollout.name=vllm",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.model.custom_chat_template='{{ messages[0].content }}'",
)  # fmt: skip
"""What a user says of a small run."""


def tokenizer() -> Any:
    """The embedded policy's, with a chat template."""
    made = AutoTokenizer.from_pretrained(EMBEDDED)
    made.chat_template = TEMPLATE
    return made


def problems(count: int, seed: int = 0) -> list[Problem]:
    """Of the embedded policy."""
    return list(read_problems(f"embedded:mixed?size={count}&seed={seed}"))


def planned(folder: Path, *overrides: str) -> Plan:
    """Two rounds of two steps of four problems."""
    return Plan(sys.executable, str(EMBEDDED), folder, folder / "checkpoints", 2, 2, (*GRPO, *overrides), frozenset())


def configured(plan: Plan, number: int, places: int) -> DictConfig:
    """verl's configuration, as its trainer composes it from what a round launches it with."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=plan.all_overrides(number, places))


def chosen_round(plan: Plan, number: int, chosen: list[Problem], places: int) -> tuple[Any, DictConfig]:
    """(verl's own data set of a round's choice, ``data`` of its configuration)."""
    write_chosen(plan.out / f"round-{number:04d}", chosen, "verl")
    data = configured(plan, number, places).data
    return create_rl_dataset(data.train_files, data, tokenizer(), None), data


def loader(dataset: Any, data: DictConfig) -> Any:
    """As verl's trainer makes it."""
    return StatefulDataLoader(
        dataset=dataset, batch_size=data.train_batch_size, num_workers=data.dataloader_num_workers, drop_last=True,
        collate_fn=collate_fn, sampler=create_rl_sampler(data, dataset),
    )  # fmt: skip


def keys(batch: Any) -> list[str]:
    """Of a batch's rows."""
    return [info["key"] for info in batch["extra_info"]]


def held(dataset: Any) -> list[str]:
    """Keys of a data set's rows."""
    return [dataset[i]["extra_info"]["key"] for i in range(len(dataset))]


def written_rows(folder: Path) -> dict[str, Any]:
    """verl's RLHFDataset reads what our writer has written, and its rows come out again."""
    rows: list[dict[str, Any]] = [
        {
            "data_source": "countdown", "prompt": [{"role": "user", "content": f"{n}+1="}], "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": {"target": n, "numbers": [n, 1]}},
            "extra_info": {"split": "train", "index": n, "question": f"q{n}"},
        }
        for n in range(3)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "theirs.parquet")
    fields = FieldMap(answer="reward_model.ground_truth.target")
    theirs = list(read_problems(str(folder / "theirs.parquet"), fields))
    data = configured(planned(folder), 0, 8).data
    for own, path in ((problems(20), folder / "own"), (theirs, folder / "again")):
        file = write_chosen(path, own, "verl")
        dataset = RLHFDataset([str(file)], tokenizer(), data)
        assert len(dataset) == len(own)
        for row, problem in zip((dataset[i] for i in range(len(dataset))), own, strict=True):
            content = problem.prompt if isinstance(problem.prompt, str) else problem.prompt[0]["content"]
            assert row["raw_prompt"] == [{"role": "user", "content": content}]
            assert row["data_source"] == problem.source
        assert list(read_problems(str(file))) == own
    again = RLHFDataset([str(folder / "again" / "chosen.verl.parquet")], tokenizer(), data)
    for row, original in zip((again[i] for i in range(3)), rows, strict=True):
        assert row["reward_model"] == original["reward_model"]
        assert row["ability"] == "math"
        assert row["index"] == original["extra_info"]["index"]
        assert row["extra_info"]["question"] == original["extra_info"]["question"]
    return {"rows": 23}


def selected(folder: Path) -> dict[str, Any]:
    """create_rl_dataset with our class over a user's own Parquet: the chosen rows, in order, placed; val untouched."""
    pool = problems(20)
    whole = write_chosen(folder / "pool", pool, "verl")
    held_out = write_chosen(folder / "val", problems(6, 9), "verl")
    order = [7, 3, 3, 11]
    (folder / "chosen.jsonl").write_text("".join(json.dumps({"key": pool[i].key}) + "\n" for i in order))
    overrides = [
        *GRPO, f"data.train_files={whole}", f"data.val_files={held_out}", "data.custom_cls.name=SelectedDataset",
        "data.custom_cls.path=pkg://gradalign.trainers.verl.dataset",
        f"+data.gradalign.selection={folder / 'chosen.jsonl'}", "+data.gradalign.places=6",
    ]  # fmt: skip
    with initialize_config_module("verl.trainer.config", version_base=None):
        data = compose("ppo_trainer", overrides=overrides).data
    dataset = create_rl_dataset(data.train_files, data, tokenizer(), None)
    assert held(dataset) == [pool[i].key for i in [*order, 7, 3]]
    assert len(create_rl_dataset(data.val_files, data, tokenizer(), None, is_train=False)) == 6
    (folder / "chosen.jsonl").write_text(json.dumps({"key": pool[5].key}) + "\n")
    dataset.resume_dataset_state()
    assert held(dataset) == [pool[5].key] * 6
    (folder / "chosen.jsonl").write_text(json.dumps({"key": "nobody's"}) + "\n")
    refused = ""
    try:
        dataset.resume_dataset_state()
    except GradAlignError as error:
        refused = str(error)
    assert "1 of its 1 problems are not in" in refused, refused
    return {"refuses": refused.replace(str(folder), "DIR")}


def epochs(folder: Path) -> dict[str, Any]:
    """A round is an epoch of verl's loader: every place once; mid-round it resumes, the next round begins afresh."""
    plan, pool = planned(folder), problems(20)
    first, data = chosen_round(plan, 0, pool[:8], 8)
    running = loader(first, data)
    batches = iter(running)
    one = keys(next(batches))
    state = running.state_dict()
    two = keys(next(batches))
    assert sorted(one + two) == sorted(problem.key for problem in pool[:8])
    resumed = loader(create_rl_dataset(data.train_files, data, tokenizer(), None), data)
    resumed.load_state_dict(state)
    assert keys(next(iter(resumed))) == two
    ended = running.state_dict()
    later, data = chosen_round(plan, 1, pool[8:12], 8)
    fresh = loader(later, data)
    seen = [key for batch in fresh for key in keys(batch)]
    assert sorted(seen) == sorted([problem.key for problem in pool[8:12]] * 2)
    carried = loader(later, data)
    carried.load_state_dict(ended)
    return {"batches_where_the_loader_state_of_the_last_round_is_kept": sum(1 for _ in carried)}


def configuration(folder: Path) -> dict[str, Any]:
    """verl composes and validates what a round launches it with, and refuses what it does not know in one line."""
    plan = planned(folder / "with space, and 'quotes'")
    settings = ask(plan.python, plan.all_overrides(1, 8))
    settings.check(plan.steps)
    assert (settings.advantage, settings.aggregation) == ("std", "sum")
    composed = configured(plan, 1, 8)
    assert composed.data.gradalign.selection == str(plan.out / "round-0001" / "chosen.verl.parquet")
    assert list(composed.data.train_files) == [composed.data.gradalign.selection]
    assert composed.trainer.default_local_dir == str(plan.checkpoints)
    refused = ""
    try:
        ask(plan.python, [*plan.all_overrides(0, 8), "trainer.nonsense=1"])
    except GradAlignError as error:
        refused = str(error)
    assert "nonsense" in refused
    assert "\n" not in refused
    return {"verl": settings.version, "refuses": refused}


def objectives(_: Path) -> dict[str, Any]:
    """The gradient of verl's own loss by the token log-probabilities is ours, up to one factor common to all groups."""
    rng, lengths, count = np.random.default_rng(0), [3, 5, 2, 6], 4
    rewards = [[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0]]
    mask = torch.zeros(2 * count, 6)
    groups = []
    for g in range(2):
        rollouts = []
        for k, length in enumerate(lengths):
            length = min(6, length + g)
            mask[g * count + k, :length] = 1
            rollouts.append(Rollout(rng.integers(0, 9, length), rewards[g][k]))
        groups.append(Group(f"g{g}", np.array([1]), rollouts))
    scores = torch.zeros_like(mask)
    scores[:, 0] = torch.tensor(rewards).flatten()
    index = np.array([0] * count + [1] * count)
    checked, worst = [], 0.0
    for estimator, by_std in (("grpo", True), ("grpo", False), ("grpo_vectorized", True), ("rloo", False)):
        known = {"norm_adv_by_std_in_grpo": by_std} if "grpo" in estimator else {}
        advantages = get_adv_estimator_fn(estimator)
        found, _ = advantages(token_level_rewards=scores.clone(), response_mask=mask, index=index, **known)
        for mode in AGGREGATIONS:
            logprobs = torch.zeros_like(mask, requires_grad=True)
            ratio = torch.exp(logprobs - logprobs.detach())
            agg_loss(-found * ratio, mask, mode).backward()
            assert logprobs.grad is not None
            settings = Settings("", {
                "algorithm.adv_estimator": estimator, "algorithm.norm_adv_by_std_in_grpo": by_std,
                "actor_rollout_ref.actor.policy_loss.loss_mode": "vanilla",
                "actor_rollout_ref.actor.loss_agg_mode": mode,
            })  # fmt: skip
            assert settings.advantage is not None
            assert settings.aggregation is not None
            objective = Objective(settings.advantage, settings.aggregation)
            ours = np.concatenate([objective.coefficients(group) for group in groups])
            theirs = -logprobs.grad[:, 0].numpy()
            assert torch.equal(logprobs.grad != 0, mask * found != 0)
            factor = float(ours @ theirs / (theirs @ theirs))
            worst = max(worst, float(np.abs(ours - factor * theirs).max() / np.abs(ours).max()))
            name = f"{estimator}{'' if by_std else ' without std'}, {mode}"
            checked.append(f"{name}: {objective.advantage}, {objective.aggregation}")
    assert worst < 1e-3, worst
    return {"largest_relative_difference": float(f"{worst:.1g}"), "settings": checked}


def exported(folder: Path) -> dict[str, Any]:
    """A checkpoint of verl's own manager (FSDP, one gloo process) is found, exported by verl's merger, and resumed."""
    checkpoints = folder / "checkpoints"
    code = Path(__file__).with_name("check_verl_checkpoint.py")
    done = subprocess.run(
        [sys.executable, str(code), str(EMBEDDED), str(checkpoints / "global_step_2" / "actor")],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (checkpoints / TRACKER).write_text("2")
    found = find_latest_ckpt_path(str(checkpoints))
    assert found == str(checkpoints / "global_step_2")
    assert last_step(checkpoints) == 2
    export(sys.executable, checkpoints, 2, folder / "policy")
    merged = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32).state_dict()
    moved = torch.load(checkpoints / "moved.pt")
    assert merged.keys() == moved.keys()
    assert all(torch.equal(merged[name], moved[name].bfloat16().float()) for name in moved)
    assert AutoTokenizer.from_pretrained(folder / "policy").encode("1+1=") == tokenizer().encode("1+1=")
    return {"tensors": len(moved), "weights_of_the_export": "bfloat16, as verl's merger writes them"}


def lean_imports(_: Path) -> dict[str, Any]:
    """What verl's process imports of ours needs none of the packages that verl does not bring."""
    code = """
import sys
for name in ("trl", "scipy", "pydantic", "rich", "plotly"):
    sys.modules[name] = None
import gradalign.trainers.verl.dataset
print(*sorted(name for name in sys.modules if name.startswith("gradalign")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return {"modules": done.stdout.split()}


CHECKS: tuple[Callable[[Path], dict[str, Any]], ...] = (
    written_rows, selected, epochs, configuration, objectives, exported, lean_imports
)  # fmt: skip


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what verl prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def main() -> int:
    """Run all checks; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON of what ran")
    out = parser.parse_args().out
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    packages = ("verl", "transformers", "torch", "datasets", "ray", "hydra-core", "tensordict", "torchdata", "pyarrow")
    facts: dict[str, Any] = {
        "command": "make verl-check",
        "versions": {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in packages},
        "machine": f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "not_run": "verl's training loop (a GPU, and vLLM or SGLang): launched with the validated configuration",
        "checks": {},
    }
    failed = 0
    for check in CHECKS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                with quiet():
                    found = check(Path(folder).resolve())
            except Exception:
                failed += 1
                print(f"FAILED {check.__name__}\n{traceback.format_exc()}")
                continue
        facts["checks"][check.__name__] = {"what": " ".join((check.__doc__ or "").split()), **found}
        print(f"ok {check.__name__}: {facts['checks'][check.__name__]['what']}")
    if out is not None and not failed:
        out.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
