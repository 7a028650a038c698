"""A policy that several processes hold between them: FSDP2, each parameter cut along its first dimension.

A block's weights are whole in each process while the block computes, and cut again. What lies outside the blocks (the
output layer, the last norm) is whole while a pass lasts. A cut tensor is a DTensor; it is told by its methods, so that
torch.distributed is imported where a policy is cut.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gradalign.errors import GradAlignError
from gradalign.processes import Processes


def local(tensor: Any) -> torch.Tensor:
    """This process's part of a tensor that is cut, in the same memory; any other tensor as it is."""
    return tensor.detach().to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Any) -> torch.Tensor:
    """A tensor that is cut, put together in every process, all of which must ask; any other tensor as it is."""
    return tensor.detach().full_tensor() if hasattr(tensor, "full_tensor") else tensor


def rows(tensor: Any) -> slice:
    """This process's rows of a tensor; all of them where it is not cut."""
    if not hasattr(tensor, "to_local"):
        return slice(0, len(tensor))
    mesh = tensor.device_mesh
    start = min(len(tensor), mesh.get_local_rank() * -(-len(tensor) // mesh.size()))
    return slice(start, start + len(local(tensor)))


def cut_like(tensor: Any, part: torch.Tensor) -> torch.Tensor:
    """A tensor cut as ``tensor`` is, of which this process holds ``part``; ``part`` itself where it is not cut."""
    if not hasattr(tensor, "to_local"):
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part, tensor.device_mesh, tensor.placements, shape=tensor.shape, stride=tensor.stride(), run_check=False
    )


def add_cut(to: Any, own: torch.Tensor) -> None:
    """Add every process's ``own`` tensor of the whole shape to the cut tensor ``to``."""
    from torch.distributed.tensor import DTensor, Partial

    summed = DTensor.from_local(own, to.device_mesh, [Partial()], run_check=False)
    local(to).add_(summed.redistribute(placements=to.placements).to_local())


def over_parts(value: float, tensor: Any) -> float:
    """The sum over all processes of what each found on its part of ``tensor``; ``value`` itself where it is not cut."""
    if not hasattr(tensor, "to_local"):
        return value
    total = torch.tensor(value, dtype=torch.float64, device=tensor.device)
    torch.distributed.all_reduce(total, group=tensor.device_mesh.get_group())
    return float(total)


class Shards:
    """How a policy is cut.

    Args:
        model: the model; its blocks and itself are FSDP modules.
        mesh: of one dimension: the processes that hold it.

    Attributes:
        rank: this process's number, 0 to count - 1.
        count: how many hold the policy.
    """

    def __init__(self, model: Any, mesh: Any) -> None:
        self.model, self.mesh = model, mesh
        self.rank, self.count = mesh.get_local_rank(), mesh.size()
        self.depth = 0

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Inside, the parameters outside of blocks are whole; afterwards all are cut, also after an exception."""
        self.depth += 1
        try:
            self.model.unshard()
            yield
        except BaseException:
            self.model.reset_iter_state()
            raise
        finally:
            self.depth -= 1
            if not self.depth:
                self.model.reshard()

    def inside(self) -> set[int]:
        """Identities of the modules that blocks (or an embedding cut by itself) make whole while they compute."""
        from torch.distributed.fsdp import FSDPModule

        units: list[Any] = [m for m in self.model.modules() if isinstance(m, FSDPModule) and m is not self.model]
        return {id(module) for unit in units for module in unit.modules()}

    def add_up(self, arrays: list[NDArray[np.float64]]) -> None:
        """Replace arrays by their sums over the processes; one collective for all of them."""
        flat = torch.from_numpy(np.concatenate([array.reshape(-1) for array in arrays] or [np.zeros(0)]))
        flat = flat.to(next(self.model.parameters()).device)
        torch.distributed.all_reduce(flat, group=self.mesh.get_group())
        sums = flat.cpu().numpy()
        for array, part in zip(arrays, np.split(sums, np.cumsum([a.size for a in arrays])[:-1]), strict=True):
            array[...] = part.reshape(array.shape)


def blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The model's blocks, in order: of the longest list of modules that is in no other list."""
    lists = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)}
    outer = [m for name, m in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
    return list(max(outer, key=len, default=[]))


def join(device: str) -> torch.device:
    """Become one of the processes that torchrun has started, and give this one's device.

    Raises:
        GradAlignError: it has not; or the device's number is not left to it.
    """
    import torch.distributed as dist

    if "RANK" not in os.environ or not dist.is_available():
        raise GradAlignError(
            "shard: the policy is cut over the processes of torchrun; start with `torchrun --nproc-per-node N -m "
            "gradalign ...`, or leave --shard out"
        )
    kind, numbered, _ = device.partition(":")
    if numbered:
        raise GradAlignError(f"device {device!r}: with --shard every process takes its own; write {kind!r}")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)


def leads() -> bool:
    """Whether this is the process that writes and speaks, as torchrun has numbered them."""
    return os.environ.get("RANK", "0") == "0"


def leave() -> None:
    """Part from the other processes, when all is done."""
    torch.distributed.destroy_process_group()


def load_cut(read: Callable[[], Any], device: torch.device) -> Shards:
    """Cut a model over all processes.

    The first process reads it into its main memory; the others are sent its modules without weights, then the weights
    of one block after the other. No device holds more than its parts and one block.

    Args:
        read: gives the model, on the CPU; called by the first process alone.
        device: of this process.

    Raises:
        GradAlignError: what ``read`` raises, in every process; a parameter without dimensions, which cannot be cut.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    processes = Processes.current()
    given: list[Any] = []

    def skeleton() -> Any:
        if not processes.first:
            return None
        given.append(read())
        _require_dimensions(given[0])
        return _without_weights(given[0])

    model = processes.together(skeleton)[0]
    mesh = init_device_mesh(device.type, (processes.count,))
    source = dict(_tensors(given.pop())) if processes.first else None
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    alone = [embedding] if head is None or embedding.weight is not head.weight else []
    for unit in [*alone, *blocks(model), model]:
        _fill(model, unit, source, device)
        fully_shard(unit, mesh=mesh)
        if unit in alone:
            unit.set_unshard_in_backward(False)  # looking up has no use for the weights there
    return Shards(model.eval(), mesh)


def _require_dimensions(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.ndim:
            raise GradAlignError(f"shard: parameter {name} is a single number and cannot be cut; leave --shard out")


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers; a tied one under its first name."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def _without_weights(model: Any) -> Any:
    """A copy of a model whose tensors are on no device."""
    memo: dict[int, Any] = {}
    for _, tensor in _tensors(model):
        bare = torch.empty_like(tensor, device="meta")
        parameter = isinstance(tensor, torch.nn.Parameter)
        memo[id(tensor)] = torch.nn.Parameter(bare, tensor.requires_grad) if parameter else bare
    return copy.deepcopy(model, memo)


def _fill(model: Any, unit: Any, source: dict[str, torch.Tensor] | None, device: torch.device) -> None:
    """Give a unit its tensors, on the device; the first process has them in ``source``, and keeps them no longer."""
    names = {id(tensor): name for name, tensor in _tensors(model)}
    own = {id(tensor): tensor for _, tensor in _tensors(unit) if tensor.device.type == "meta"}
    made: dict[int, torch.Tensor] = {}
    for key, bare in own.items():
        filled = torch.empty(bare.shape, dtype=bare.dtype, device=device)
        if source is not None:
            filled.copy_(source.pop(names[key]).detach())
        torch.distributed.broadcast(filled, 0)
        parameter = isinstance(bare, torch.nn.Parameter)
        made[key] = torch.nn.Parameter(filled, bare.requires_grad) if parameter else filled
    for module in unit.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if id(tensor) in made:
                    held[name] = made[id(tensor)]
