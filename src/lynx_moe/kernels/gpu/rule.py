"""What a policy tells the kernels: by which rule experts stay."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Vote:
    """rule: "bins" (`lynx`: alpha, None where it is left open, beta, rank, max_base), "scores" (the `number` largest
    sums of scores), "popular" (the `number` most voted, 0: half of what is voted for), "drawn" (`number` at random, by
    `seed`), "first" (the pinned alone), "given" (the policy says so itself, in torch).

    pinned: how many first experts of every voter stay in any case.
    """

    rule: str
    alpha: float | None = None
    beta: int = 0
    rank: int = 1
    max_base: int = 1
    number: int = 0
    seed: int = 0
    pinned: int = 0
