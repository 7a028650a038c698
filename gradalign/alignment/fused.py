"""Groups' inner products and norms without their gradients: one Triton kernel, for cards.

A group's gradient of a matrix is a^T b over the group's slots. On a card the product itself is cheap and its traffic is
not: a gradient of 1.5 billion float32 numbers written, read twice, and met by the direction, is 24 gigabytes a group.
Here a tile of it is formed on the chip, multiplied with its tile of the direction, squared, summed, and forgotten; all
groups of a pass share one launch.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec

import torch

ROWS, COLUMNS, SLOTS = 128, 128, 64
"""Of a tile of the matrix, and the slots that are multiplied at a time."""
PROGRAMS = 1024
"""Tiles are shared out by groups until there are so many programs: several for every multiprocessor of a large card."""


@functools.cache
def available() -> bool:
    """Whether Triton is installed, as it is beside torch for CUDA."""
    return find_spec("triton") is not None


def takes(a: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether `reduce` is for such factors: 16 bits wide, on a card, reduced in float32."""
    return a.is_cuda and a.dtype in (torch.bfloat16, torch.float16) and dtype == torch.float32 and available()


def reduce(
    a: torch.Tensor, b: torch.Tensor, along: torch.Tensor | None, starts: torch.Tensor, ends: torch.Tensor
) -> torch.Tensor:
    """Of every group, <a^T b, along> and |a^T b|^2 over its slots.

    Args:
        a, b: (slots, rows) and (slots, columns) in bfloat16 or float16.
        along: (rows, columns) in float32; None gives inner products of 0.
        starts, ends: (groups,); group g has the slots from ``starts[g]`` to before ``ends[g]``.

    Returns:
        (groups, 2) in float64; sums of tiles in a fixed order, whatever other groups there are.
    """
    import triton

    from gradalign.alignment.fused_kernel import reduce_tiles

    a, b = a.contiguous(), b.contiguous()
    rows, columns, groups = a.shape[1], b.shape[1], len(starts)
    tiles = triton.cdiv(rows, ROWS) * triton.cdiv(columns, COLUMNS)
    shares = min(groups, triton.cdiv(PROGRAMS, tiles))
    out = torch.empty(groups, tiles, 2, dtype=torch.float32, device=a.device)
    reduce_tiles[(tiles, shares)](
        a, b, a if along is None else along.contiguous(), starts, ends, out, rows, columns, groups, along is not None,
        ROWS, COLUMNS, SLOTS, num_warps=4, num_stages=3,
    )  # fmt: skip
    return out.sum(1, dtype=torch.float64)
