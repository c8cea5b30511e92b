"""A Triton kernel that does nothing: what a launch costs by itself."""

import triton


@triton.jit
def _nothing():  # type: ignore[no-untyped-def]
    pass


def launch() -> None:
    """One launch of one program."""
    _nothing[(1,)]()
