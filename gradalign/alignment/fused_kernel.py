"""The kernel of `gradalign.alignment.fused`; apart, because it needs Triton to be imported."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["groups"])
def reduce_tiles(
    a, b, along, starts, ends, out, rows, columns, groups,
    aligned: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """One tile of the matrix, for every ``tl.num_programs(1)``-th group: two sums of each into (groups, tiles, 2)."""
    tile = tl.program_id(0)
    across = tl.cdiv(columns, COLUMNS)
    row = tile // across * ROWS + tl.arange(0, ROWS)
    column = tile % across * COLUMNS + tl.arange(0, COLUMNS)
    in_rows, in_columns = row < rows, column < columns
    place = row[:, None].to(tl.int64) * columns + column[None, :]
    inside = in_rows[:, None] & in_columns[None, :]
    for group in range(tl.program_id(1), groups, tl.num_programs(1)):
        end = tl.load(ends + group)
        gradient = tl.zeros((ROWS, COLUMNS), tl.float32)
        for first in range(tl.load(starts + group), end, SLOTS):
            slot = (first + tl.arange(0, SLOTS))[:, None].to(tl.int64)
            own = slot < end
            left = tl.load(a + slot * rows + row[None, :], own & in_rows[None, :], 0.0)
            right = tl.load(b + slot * columns + column[None, :], own & in_columns[None, :], 0.0)
            gradient = tl.dot(tl.trans(left), right, gradient)
        to = out + (group * tl.num_programs(0) + tile) * 2
        if aligned:
            tl.store(to, tl.sum(gradient * tl.load(along + place, inside, 0.0)))
        else:
            tl.store(to, 0.0)
        tl.store(to + 1, tl.sum(gradient * gradient))
