"""Stands for verl's Python in tests: takes verl's commands, and leaves verl's files.

The probe answers as verl 0.9 does for the settings that are looked at; the trainer moves the weights a little and
writes checkpoints; the merger copies them to a Hugging Face folder. Every call is a line in $STUB_LOG. $STUB_DIE is
``AT[:STEP]:HOW``: at ``merge``, or ``train`` before the checkpoint of STEP, ``exit`` with status 7 or ``kill`` the
parent with signal 9 and go on.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

DEFAULTS = {
    "algorithm.adv_estimator": "gae", "algorithm.norm_adv_by_std_in_grpo": True,
    "actor_rollout_ref.actor.policy_loss.loss_mode": "vanilla", "actor_rollout_ref.actor.loss_agg_mode": "token-mean",
    "actor_rollout_ref.rollout.temperature": 1.0, "data.max_response_length": 512,
    "actor_rollout_ref.rollout.top_p": 1, "actor_rollout_ref.rollout.top_k": -1,
    "actor_rollout_ref.model.custom_chat_template": None, "data.apply_chat_template_kwargs": {},
    "data.train_batch_size": 1024, "trainer.save_freq": -1, "trainer.v1.trainer_mode": "sync",
    "actor_rollout_ref.actor.strategy": "fsdp", "actor_rollout_ref.model.lora_rank": 0,
    "actor_rollout_ref.model.lora.rank": 0, "reward.custom_reward_function.path": None,
    "reward.custom_reward_function.name": "compute_score",
}  # fmt: skip


def settings(overrides: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = dict(DEFAULTS)
    for override in overrides:
        name, _, text = override.lstrip("+").partition("=")
        text = text[1:-1].replace("\\'", "'") if text.startswith("'") else text
        try:
            found[name] = json.loads(text.lower() if text in ("True", "False") else text)
        except ValueError:
            found[name] = text
    return found


def main(module: str, arguments: list[str]) -> None:
    with open(os.environ["STUB_LOG"], "a") as log:
        log.write(json.dumps({"module": module, "arguments": arguments}) + "\n")
    if module == "gradalign.trainers.verl.probe":
        probe(arguments)
    elif module == "verl.model_merger":
        merge(arguments)
    elif module == "verl.trainer.main_ppo":
        train(settings(arguments))
    else:
        sys.exit(f"No module named {module}")


def probe(overrides: list[str]) -> None:
    unknown = [o for o in overrides if o.startswith("trainer.nonsense")]
    if os.environ.get("STUB_DIE") == "probe":
        sys.exit("/usr/bin/python: Error while finding module specification (No module named 'gradalign')")
    if unknown:
        print(json.dumps({"error": "Could not override 'trainer.nonsense'. Key 'nonsense' is not in struct"}))
        sys.exit(1)
    found = {name: value for name, value in settings(overrides).items() if name in DEFAULTS}
    print("some library talks\n" + json.dumps({"verl": "0.9.1", "settings": found}))


def die(at: str) -> None:
    where, _, how = os.environ.get("STUB_DIE", "").rpartition(":")
    if where == at and how == "exit":
        sys.exit("the cause")
    if where == at and how == "kill":
        parent = os.getppid()
        os.kill(parent, signal.SIGKILL)
        while os.getppid() == parent:
            time.sleep(0.01)


def merge(arguments: list[str]) -> None:
    given = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    assert (arguments[0], given["--backend"]) == ("merge", "fsdp")
    out = Path(given["--target_dir"])
    out.mkdir(parents=True, exist_ok=True)
    (out / "half.bin").write_bytes(b"half")
    die("merge")
    (out / "half.bin").unlink()
    shutil.copytree(Path(given["--local_dir"]) / "huggingface", out, dirs_exist_ok=True)


def train(values: dict[str, Any]) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    folder = Path(values["trainer.default_local_dir"])
    assert Path(values["data.gradalign.selection"]).is_file()
    tracker = folder / "latest_checkpointed_iteration.txt"
    start = int(tracker.read_text()) if tracker.exists() else 0
    resumed = folder / f"global_step_{start}"
    with open(os.environ["STUB_LOG"], "a") as log:
        log.write(json.dumps({"start": start, "data.pt": (resumed / "data.pt").exists()}) + "\n")
    per_epoch = values["data.gradalign.places"] // values["data.train_batch_size"]
    end = min(values["trainer.total_epochs"] * per_epoch, values["trainer.total_training_steps"])
    before = resumed / "actor" / "huggingface" if start else Path(values["actor_rollout_ref.model.path"])
    weights = load_file(before / "model.safetensors")
    for step in range(start + 1, end + 1):
        rng = np.random.default_rng(step)
        weights = {n: w + 1e-3 * rng.standard_normal(w.shape).astype(w.dtype) for n, w in sorted(weights.items())}
        print(f"step {step}", flush=True)
        if step % values["trainer.save_freq"]:
            continue
        die(f"train:{step}")
        place = folder / f"global_step_{step}"
        shutil.copytree(before, place / "actor" / "huggingface", dirs_exist_ok=True)
        save_file(weights, place / "actor" / "huggingface" / "model.safetensors", {"format": "pt"})
        with zipfile.ZipFile(place / "data.pt", "w") as data:
            data.writestr("data", str(step))
        tracker.write_text(str(step))


if __name__ == "__main__":
    assert sys.argv[1] == "-m"
    main(sys.argv[2], sys.argv[3:])
