"""What both kernels read: tiles of rows, and the router's rule on them, as `routing.py` defines it.

A tile is [R rows, C columns]. The columns hold the experts group by group, each group padded to a power of two, so a
column is expert `c // MP * M + c % MP` (G groups of M experts; GP and MP are the powers of two). Without groups that is
one group of all experts. Columns grow with expert ids, so the leftmost of equals is the lowest id.
"""

import triton
import triton.language as tl

LOWEST = tl.constexpr(-(2**63))
INF = tl.constexpr(float("inf"))


@triton.jit
def columns(G: tl.constexpr, M: tl.constexpr, GP: tl.constexpr, MP: tl.constexpr):
    """([C] expert ids, [C] whether the column holds one)."""
    column = tl.arange(0, GP * MP)
    return column // MP * M + column % MP, (column // MP < G) & (column % MP < M)


@triton.jit
def flags(pointer, row, here, GIVEN: tl.constexpr):
    """bool [R]: a mask of the caller's at these rows; all true where none was given."""
    on = here
    if GIVEN:
        on = here & (tl.load(pointer + row, mask=here, other=0) != 0)
    return on


@triton.jit
def logits_of(pointer, stride, row, here, expert, real):
    """float32 [R, C]; -inf outside."""
    place = row[:, None].to(tl.int64) * stride + expert[None, :]
    return tl.load(pointer + place, mask=here[:, None] & real[None, :], other=-INF).to(tl.float32)


@triton.jit
def usable(x, real):
    """bool [R]: the row's largest logit is finite, and none is NaN."""
    bad = ((x != x) | (x == INF)) & real[None, :]
    return (tl.sum(bad.to(tl.int32), 1) == 0) & (tl.max(tl.where(bad, -INF, x), 1) > -INF)


@triton.jit
def silenced(x, votes, real):
    """The tile with the rows that do not vote at zero, as `Policy.route` hands it to policies."""
    return tl.where(real[None, :], tl.where(votes[:, None], x, 0.0), -INF)


@triton.jit
def ordered(value):
    """int32 that grows with a float32; +0 equals -0 (`routing.order_key`)."""
    bits = value.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


@triton.jit
def order_key(value, tier, expert, E: tl.constexpr):
    """`routing.order_key`: int64 keys, all different, descending by tier, value, lowest id."""
    return (tier.to(tl.int64) << 50) + (ordered(value).to(tl.int64) << 16) + (E - 1 - expert).to(tl.int64)


@triton.jit
def scores(x, SCORING: tl.constexpr):
    """`routing.scores`: float32 [R, C], rounded from float64."""
    x = x.to(tl.float64)
    if SCORING == "softmax":
        part = tl.exp(x - tl.max(x, 1)[:, None])
        part = part / tl.sum(part, 1)[:, None]
    elif SCORING == "sigmoid":
        part = 1.0 / (1.0 + tl.exp(-x))
    else:  # log1p by Kahan: exact to a few ulp also where e is tiny
        e = tl.exp(tl.minimum(x, 20.0))
        u = 1.0 + e
        log1p = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
        part = tl.sqrt(tl.where(x > 20.0, x, log1p))
    return part.to(tl.float32)


@triton.jit
def preference(
    x,
    bias,
    expert,
    real,
    G: tl.constexpr,
    M: tl.constexpr,
    GP: tl.constexpr,
    MP: tl.constexpr,
    TOPG: tl.constexpr,
    SCORING: tl.constexpr,
    BIASED: tl.constexpr,
):
    """`routing.preference`: what the model ranks by, float32 [R, C], and whether the row's groups allow it."""
    choice = x
    if BIASED:
        shift = tl.load(bias + expert, mask=real, other=0.0).to(tl.float32)
        choice = tl.where(real[None, :], scores(x, SCORING) + shift[None, :], -INF)
    allowed = (choice == choice) & real[None, :]
    if G > 1:
        R: tl.constexpr = x.shape[0]
        member = tl.arange(0, MP)[None, None, :]
        grouped = tl.reshape(choice, (R, GP, MP))
        score = tl.max(grouped, 2)
        if BIASED:
            first = tl.min(tl.where(grouped == score[:, :, None], member, MP), 2)
            score = score + tl.max(tl.where(member == first[:, :, None], -INF, grouped), 2)
        group = tl.arange(0, GP)[None, :]
        key = tl.where(group < G, order_key(score, group * 0, group, G), LOWEST)
        inside = key < LOWEST
        for _ in range(TOPG):
            best = tl.max(key, 1)[:, None]
            inside = inside | (key == best)
            key = tl.where(key == best, LOWEST, key)
        open_ = tl.broadcast_to(inside[:, :, None], (R, GP, MP))
        allowed = allowed & tl.reshape(open_, (R, GP * MP))
    return choice, allowed


@triton.jit
def first_of(key, NUM: tl.constexpr):
    """bool [R, C]: the NUM largest of each row's keys, which are all different."""
    left, last = key, tl.max(key, 1)
    for _ in range(NUM - 1):
        left = tl.where(left == last[:, None], LOWEST, left)
        last = tl.max(left, 1)
    return key >= last[:, None]
