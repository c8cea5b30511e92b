"""What a policy tells the kernels: by which rule experts stay, and what rows do then."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Vote:
    """rule: "bins" (`lynx`: alpha, None where it is left open, beta, rank, max_base), "scores" (the `number` largest
    sums of scores), "popular" (the `number` most voted, 0: half of what is voted for), "drawn" (`number` at random, by
    `seed`), "first" (the pinned alone), "given" (the policy says so itself, in torch), "price" (`priced`: whose loss
    adds more harm than its price), "harm" (the `number` whose loss adds most).

    pinned: how many first experts of every voter stay in any case.
    price: what rows ask who bring no price of their own; part: the share of any price that is asked in this layer;
    alone: what a row alone asks, as a share of its price, None: it keeps its routing.
    given_E: for "given" bool [E], what stays; for "price" and "harm" float64 [E], the gains of experts, None: all 1.
    passes, steep, slope: of "price" and "harm"; each pass goes twice as far as the one before it.
    power: None: rows choose anew among what stays; else they do without what went, and the rest grows by this power.
    """

    rule: str
    alpha: float | None = None
    beta: int = 0
    rank: int = 1
    max_base: int = 1
    number: int = 0
    seed: int = 0
    pinned: int = 0
    price: float = 0.0
    part: float = 1.0
    alone: float | None = None
    passes: int = 0
    steep: float = 0.0
    slope: int = 0
    power: float | None = None
    given_E: Tensor | None = None
