"""Who decides at which price: what CUDA graphs can follow to, and how many rows asked what."""

from lynx_moe.policies import Policy

MOST = 32  # prices that are counted by themselves; requests may bring any number of them
OTHER = float("nan")  # the rest


class Recorded(ValueError):
    """CUDA graphs have recorded the policy."""


def follows(recorded: Policy | None, policy: Policy) -> bool:
    """Whether CUDA graphs that have recorded one policy can follow to another: what they have recorded reads masks and
    prices anew at every step, and nothing else. None: there are no graphs."""
    return recorded is None or policy.is_identity or recorded.without_price() == policy.without_price()


def reach(recorded: Policy | None, policy: Policy, asked: str) -> None:
    """Raises Recorded if CUDA graphs cannot follow."""
    if recorded is None or follows(recorded, policy):
        return
    other = ", another price of it," if recorded.knows_prices else ""
    raise Recorded(
        f"cannot switch to {asked!r}: CUDA graphs have recorded {recorded.spec!r}; allowed: that policy{other} and "
        "vanilla; or start the engine with enforce_eager=True, or build one engine per policy"
    )


class Tiers:
    """Rows by the price that they ask, of the last step and of all steps since `reset`. A price of 0 is vanilla's."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.now: dict[float, int] = {}
        self.rows: dict[float, int] = {}

    def add(self, rows: dict[float, int]) -> None:
        self.now = rows
        for price, count in rows.items():
            label = price if price in self.rows or len(self.rows) < MOST else OTHER
            self.rows[label] = self.rows.get(label, 0) + count

    @property
    def told(self) -> dict[str, int]:
        """All rows so far, by the price as text; the rest as "other"."""
        return {text(price): count for price, count in self.rows.items()}


def text(price: float) -> str:
    return f"{price:.6g}" if price == price else "other"
