"""What of a model its cost depends on, from its configuration alone: no weights are read, and none are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gradalign.bench.counts import Shape
from gradalign.errors import GradAlignError, missing_extra
from gradalign.policy.load import Policy, cover
from gradalign.policy.where import EMBEDDED


@dataclass(frozen=True)
class Anatomy:
    """A model's sizes.

    Attributes:
        policy: on torch's device ``meta``, without numbers; its tokenizer is the model's own.
        shape: what operations are counted from.
        parameters: of the model, tied ones once.
        covered: parameters that gradients are taken of.
        adapter: parameters of a LoRA adapter; 0 without one. With one, these are all that is covered.
        hidden: width between the layers.
        inner: width within a layer's feed-forward part.
        keys: width of one token's keys in one layer (its values are as wide).
        vocabulary: tokens.
    """

    policy: Policy
    shape: Shape
    parameters: int
    covered: int
    adapter: int
    hidden: int
    inner: int
    keys: int
    vocabulary: int

    @property
    def formed(self) -> float:
        """Work of a backward pass over that of a forward pass: gradients of inputs, and of the weights covered."""
        return 1.0 + min(1.0, self.covered / self.parameters)


def read_config(model: str) -> Any:
    """The configuration that ``model`` names: hub id, folder, ``.gguf`` file, or ``embedded``.

    Raises:
        GradAlignError: it is not there.
    """
    path = EMBEDDED if model == "embedded" else Path(model).expanduser()
    given: dict[str, Any] = {}
    if path.suffix == ".gguf" and path.is_file():
        place, given = str(path.parent), {"gguf_file": path.name}
    else:
        place = str(path) if path.is_dir() else model
    try:
        return AutoConfig.from_pretrained(place, **given)
    except Exception as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise GradAlignError(
            f"model {model}: no configuration can be read ({said}); name a folder with a config.json, a .gguf file, "
            "embedded, or a model of the hub"
        ) from error


def anatomy(model: str, parameters: Sequence[str] = (), rank: int | None = None, adapter: str | None = None) -> Anatomy:
    """The sizes of ``model``.

    Args:
        model: see `read_config`.
        parameters: patterns of the covered parameters, as in `gradalign.policy.load.load_policy`.
        rank: of a new LoRA adapter on all linear layers of the trunk.
        adapter: folder or hub id of one that exists; its configuration alone is read.

    Raises:
        GradAlignError: no configuration; an architecture that is not a causal language model, or has no blocks.
    """
    config = read_config(model)
    text = config.get_text_config()
    try:
        with torch.device("meta"):
            made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except ValueError as error:
        raise GradAlignError(f"model {model}: {str(error).splitlines()[0]}") from error
    policy = cover(made, model, parameters)
    blocks = _blocks(made)
    if blocks is None:
        raise GradAlignError(f"model {model}: has no list of blocks; plan knows transformers alone")
    sides = [tuple(p.shape) for p in blocks.parameters() if p.ndim == 2]
    head = made.get_output_embeddings().weight.shape
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    layer_weights = sum(rows * columns for rows, columns in sides) // len(blocks)
    shape = Shape(
        len(blocks), layer_weights, head[0] * head[1], text.num_attention_heads * size,
        sum(map(sum, sides)) // len(blocks), sum(head),
    )  # fmt: skip
    if adapter is not None:
        rank = _rank(adapter)
    own = 0 if rank is None else rank * sum(map(sum, sides))
    keys = (getattr(text, "num_key_value_heads", None) or text.num_attention_heads) * size
    inner = max(map(max, sides))
    covered = own or sum(p.numel() for p in policy.parameters)
    total = sum(p.numel() for p in made.parameters())
    return Anatomy(policy, shape, total, covered, own, text.hidden_size, inner, keys, head[0])


def _blocks(model: torch.nn.Module) -> torch.nn.ModuleList | None:
    """The model's blocks: the longest list of modules that is in no other list."""
    lists = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)}
    outer = [m for name, m in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
    return max(outer, key=len, default=None)


def _rank(adapter: str) -> int:
    try:
        from peft import PeftConfig
    except ImportError as error:
        raise missing_extra("peft", "lora") from error
    try:
        return int(PeftConfig.from_pretrained(adapter).r)
    except Exception as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise GradAlignError(f"adapter {adapter}: no LoRA configuration can be read ({said})") from error
