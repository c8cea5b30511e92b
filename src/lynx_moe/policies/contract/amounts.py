"""How many experts: of a row, or of all; as a number, or as a share. Raised errors say which are allowed."""

from lynx_moe.routing import RouterSpec


def check_rank(name: str, knob: str, value: int, least: int = 1) -> None:
    """Raises ValueError if fewer than `least` of a row's experts are meant."""
    if value < least:
        raise ValueError(f"{name}: {knob}={value} must be at least {least}")


def check_rank_fits(name: str, knob: str, value: int, spec: RouterSpec) -> None:
    """Raises ValueError if a row of this router has fewer experts."""
    if value > spec.top_k:
        raise ValueError(
            f"{name}: {knob}={value} is more than the model's top_k={spec.top_k}; use {knob} <= {spec.top_k}"
        )


def check_share(name: str, knob: str, share: float | None) -> None:
    """Raises ValueError unless 0 < share <= 1, or it is not given."""
    if share is not None and not 0 < share <= 1:
        raise ValueError(f"{name}: {knob}={share:g} must lie above 0 and be at most 1")


def resolve(count: int | None, share: float | None, spec: RouterSpec) -> int:
    """The number of experts that either of two knobs stands for; a share is rounded down."""
    if count is not None:
        return count
    return int((share or 0.0) * spec.num_experts + 1e-9)  # 0.29 * 100 lies just below 29


def check_kept(name: str, knob: str, num_keep: int, spec: RouterSpec, least: int | None = None) -> None:
    """Raises ValueError unless least <= num_keep <= num_experts; least None: the model's top_k."""
    low = spec.top_k if least is None else least
    if not low <= num_keep <= spec.num_experts:
        what = f"the model's top_k={low}" if least is None else f"{low}"
        raise ValueError(f"{name}: {knob} keeps {num_keep} experts; it must keep from {what} to all {spec.num_experts}")


def more_kept(num_keep: int, spec: RouterSpec) -> int | None:
    """Half as many more, for a milder setting; None where that would be all."""
    more = num_keep + (num_keep + 1) // 2
    return more if more < spec.num_experts else None
