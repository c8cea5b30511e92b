"""Which steps are sampled, and by which sizes of a batch samples are kept apart."""


def due(step: int, share: float) -> int:
    """The number of the sample that falls on this step, 0 where none does: every 1 / share steps."""
    number = int(step * share)
    return number if number > int((step - 1) * share) else 0


class Turns:
    """Steps that are due by a share of them, which may change under way. credit: of a step; a whole one is due."""

    def __init__(self, credit: float = 0.0) -> None:
        self.credit = credit

    def due(self, share: float) -> bool:
        """Whether the step that begins is due."""
        self.credit += share
        if self.credit < 1:
            return False
        self.credit -= 1
        return True

    def taken(self) -> None:
        """A step that was not due is sampled all the same, since others asked for it: waiting begins anew."""
        self.credit = 0.0


def bucket(rows: int) -> str:
    """The sizes of a batch that are told together: 1, 2-4, 5-8, 9-16, 17-32 and so on by powers of two."""
    if rows <= 1:
        return "1"
    last = max(1 << (rows - 1).bit_length(), 4)
    return f"{last // 2 + 1 if last > 4 else 2}-{last}"


def in_order(buckets: list[str]) -> list[str]:
    """Small batches first."""
    return sorted(buckets, key=lambda name: int(name.partition("-")[0]))
