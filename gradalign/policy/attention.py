"""Attention over packed rows: each prompt once, its responses beside one another behind it.

A packed batch (`gradalign.policy.packing`) is one sequence without padding. Prompts attend causally to themselves;
responses of like lengths are gathered into blocks whose keys are the prompt's and their own. Nothing is computed
between rollouts, so the work is that of the visible pairs, up to the padding inside a block: lengths in a block differ
by less than a factor of two.

transformers' models call whatever function is registered under their configuration's attention implementation with
queries, keys and values, positions already applied; `led` puts ours there for the duration of a pass.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from transformers import AttentionInterface

from gradalign.policy.packing import Batch

NAME = "gradalign_packed"


@dataclass
class Block:
    """Sequences that are attended side by side.

    Attributes:
        query: (sequences, longest) slots of the queries; padding repeats the last.
        prompt: (sequences, longest prompt) slots of the keys that all queries of a sequence see; None for prompts.
        valid: (queries that are not padding,) their places in the flattened ``query``; None where all are.
        query_length, prompt_length: (sequences,) without padding.
        masks: additive masks by window and type, made when asked for.
    """

    query: torch.Tensor
    prompt: torch.Tensor | None
    valid: torch.Tensor | None
    query_length: torch.Tensor
    prompt_length: torch.Tensor
    masks: dict[tuple[int | None, torch.dtype], torch.Tensor | None] = field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """(sequences or 1, 1, queries, keys) additive mask; None where plain causal attention is meant."""
        if (window, dtype) not in self.masks:
            self.masks[window, dtype] = self._mask(window, dtype)
        return self.masks[window, dtype]

    def _mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        device, longest = self.query.device, self.query.shape[1]
        own = torch.arange(longest, device=device)
        prompt = 0 if self.prompt is None else self.prompt.shape[1]
        if self.prompt is None and (window is None or window >= longest):
            return None
        uniform = bool((self.prompt_length == prompt).all())
        lengths = self.prompt_length[:1] if uniform else self.prompt_length
        key = torch.arange(prompt, device=device)
        query_at = lengths[:, None] + own  # positions
        key_at = torch.cat([key.expand(len(lengths), prompt), query_at], 1)
        there = torch.cat([key < lengths[:, None], torch.ones_like(query_at, dtype=torch.bool)], 1)
        distance = query_at[:, :, None] - key_at[:, None, :]
        seen = there[:, None, :] & (distance >= 0)
        if window is not None:
            seen &= distance < window
        return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


@dataclass
class Plan:
    """How one packed batch is attended.

    Attributes:
        blocks: of prompts, then of responses.
        order: (tokens,) where each slot's output stands among the blocks' valid outputs, one after the other.
    """

    blocks: list[Block]
    order: torch.Tensor


def plan(batch: Batch) -> Plan:
    """The blocks of a packed batch."""
    device = batch.input_ids.device
    prompts: dict[int, list[tuple[int, int]]] = {}
    for start, end in batch.prompts:
        prompts.setdefault((end - start).bit_length(), []).append((start, end))
    responses: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for start, end, row in batch.responses:
        if end > start:
            prompt = batch.prompts[row][1] - batch.prompts[row][0]
            responses.setdefault((prompt.bit_length(), (end - start).bit_length()), []).append((start, end, row))
    blocks = [_block(spans, None, device) for spans in prompts.values()]
    for members in responses.values():
        blocks.append(_block([(s, e) for s, e, _ in members], [batch.prompts[row] for *_, row in members], device))
    flat = [b.query.reshape(-1) if b.valid is None else b.query.reshape(-1)[b.valid] for b in blocks]
    return Plan(blocks, torch.argsort(torch.cat(flat)))


def _block(spans: list[tuple[int, int]], prompts: list[tuple[int, int]] | None, device: torch.device) -> Block:
    query, length = _slots(spans, device)
    own = torch.arange(query.shape[1], device=device) < length[:, None]
    valid = None if bool(own.all()) else own.reshape(-1).nonzero()[:, 0]
    if prompts is None:
        return Block(query, None, valid, length, torch.zeros_like(length))
    prompt, prompt_length = _slots(prompts, device)
    return Block(query, prompt, valid, length, prompt_length)


def _slots(spans: list[tuple[int, int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(sequences, longest) slots of some spans, the last repeated as padding, and (sequences,) their lengths."""
    start, end = torch.tensor(spans, device=device).T
    longest = int((end - start).max())
    slots = start[:, None] + torch.arange(longest, device=device)
    return torch.minimum(slots, end[:, None] - 1), end - start


_current: list[Plan] = []
"""The plan of the pass under way; empty outside of `led`."""


@contextlib.contextmanager
def led(model: Any, batch: Batch) -> Iterator[None]:
    """Inside, the model's attention layers attend as the packed batch asks."""
    configs = {id(c): c for c in (model.config, model.config.get_text_config())}.values()
    before = [config._attn_implementation for config in configs]
    _current.append(plan(batch))
    try:
        for config in configs:
            config._attn_implementation = NAME
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name
        _current.pop()


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function for the pass under way.

    Args:
        module: the attention layer; not looked at.
        query: (1, heads, tokens, head size).
        key, value: (1, key-value heads, tokens, head size).
        attention_mask: None; the plan says who sees whom.
        dropout: 0.
        scaling: of the products of queries and keys.
        sliding_window: keys further back than this are not seen.
        softcap: scores are capped smoothly at this.
        more: must not ask for anything else.

    Returns:
        ((1, tokens, heads, head size) outputs, None).

    Raises:
        NotImplementedError: the layer asks for something that is not known here.
    """
    asked = {name for name in ("s_aux", "position_bias", "head_mask") if more.get(name) is not None}
    if asked or dropout or attention_mask is not None or not _current:
        raise NotImplementedError(f"packed attention with {asked or 'a mask or dropout'}")
    if scaling is None:
        scaling = 1 / math.sqrt(query.shape[-1])
    flat = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    outputs = []
    for block in _current[-1].blocks:
        q, k, v = (_gather(tensor, block.query) for tensor in flat)
        if block.prompt is not None:
            k, v = (
                torch.cat([_gather(tensor, block.prompt), own], 2) for tensor, own in zip(flat[1:], (k, v), strict=True)
            )
        out = _attention(q, k, v, block.mask(sliding_window, q.dtype), scaling, softcap).transpose(1, 2)
        out = out.reshape(-1, *out.shape[2:])
        outputs.append(out if block.valid is None else out[block.valid])
    return torch.cat(outputs).index_select(0, _current[-1].order)[None], None


def _gather(tensor: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """(sequences, heads, longest, head size) from (tokens, heads, head size)."""
    return tensor.index_select(0, slots.reshape(-1)).unflatten(0, slots.shape).transpose(1, 2)


def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scaling: float, cap: float | None
) -> torch.Tensor:
    """(sequences, heads, queries, head size); causal where there is no mask."""
    carried = any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in (q, k, v))
    fused = cap is None and not carried  # kernels know neither caps nor tangents
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1 and (not fused or (q.device.type == "cuda" and mask is not None)):  # no fast kernel takes both
        k, v = (tensor.repeat_interleave(repeats, 1) for tensor in (k, v))
        repeats = 1
    if fused:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=repeats > 1
        )
    scores = q @ k.transpose(-1, -2) * scaling
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    if mask is None:
        longest = q.shape[2]
        seen = torch.ones(longest, longest, dtype=torch.bool, device=q.device).tril()
        mask = torch.zeros(longest, longest, dtype=q.dtype, device=q.device).masked_fill_(~seen, float("-inf"))
    return torch.softmax(scores + mask, -1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype) @ v


AttentionInterface.register(NAME, attend)
