"""Write a checkpoint with verl's own manager and read it back: python check_verl_checkpoint.py MODEL GLOBAL_STEP/actor.

One gloo process, FSDP on the CPU, one optimiser step. Leaves the moved weights in ``moved.pt`` beside global_step.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import AutoModelForCausalLM, AutoTokenizer
from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager


def main(model: str, place: Path) -> None:
    """See the module's text."""
    meeting = f"file://{place.parent.parent.resolve()}.rendezvous"
    dist.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    moved, manager = made(model)
    torch.manual_seed(0)
    moved(input_ids=torch.tensor([[5, 6, 7, 8]]), labels=torch.tensor([[5, 6, 7, 8]])).loss.backward()
    manager.optimizer.step()
    manager.save_checkpoint(str(place), global_step=2)
    weights = full(moved)
    torch.save(weights, place.parent.parent / "moved.pt")
    again, other = made(model)
    before = full(again)
    assert any(not torch.equal(before[name], weights[name]) for name in weights), "training moved nothing"
    other.load_checkpoint(str(place))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in full(again).items()), "weights differ"
    dist.destroy_process_group()


def made(model: str) -> tuple[Any, Any]:
    """(model in FSDP, verl's manager of it)."""
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    wrapped = FullyShardedDataParallel(plain, use_orig_params=True, device_id=torch.device("cpu"))
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2)
    parts = ["model", "optimizer", "extra"]
    contents = OmegaConf.create({"save_contents": parts, "load_contents": parts})
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    manager = FSDPCheckpointManager(
        model=wrapped, optimizer=optimizer, lr_scheduler=schedule,
        processing_class=AutoTokenizer.from_pretrained(model), checkpoint_config=contents,
    )  # fmt: skip
    return wrapped, manager


def full(model: Any) -> dict[str, torch.Tensor]:
    """Copies of all weights, by the plain model's names."""
    return {name: tensor.detach().clone() for name, tensor in model.module.state_dict().items()}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
