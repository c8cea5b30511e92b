"""The scratch memory of a decision: int64, in no particular state when it is handed over.

0 .. 7                scalars, named below
8 + NAME * E + e      one number per expert, for NAME = KEEP, AFTER, SUM
8 + VOTER * E + t     one number per row: whether it votes
8 + GAP * E + T + t   one more per row: its gap, as the bits of a float32
"""

import triton.language as tl

TICKET, CHANGED, BEFORE, FIRST, ACTS = map(tl.constexpr, range(5))
KEEP, AFTER, SUM, VOTER, GAP = map(tl.constexpr, (0, 1, 2, 3, 3))


def size(num_rows: int, num_experts: int) -> int:
    """How many int64 a decision needs."""
    return 8 + 3 * num_experts + 2 * num_rows
