"""What the engines of step "modes" show: each answer is "yes", or says why not."""

from collections.abc import Mapping
from typing import Any

Tokens = list[list[list[int]]]  # by batch, by request
Found = Mapping[str, Any]


def judge(plain: Found, vanilla: Found, priced: Found, swapped: Found) -> dict[str, str]:
    """Of one mode: whether plain vLLM runs, `vanilla` says the same, `priced` loads fewer, and graphs may be swapped.

    Each engine gives {"failed": why}, or {"tokens": Tokens} and, with a policy, "experts": (before, after); the one in
    which graphs were swapped, if there was one, what each policy said then.
    """
    return {
        "plain": plain.get("failed", "yes"),
        "identical": _same(plain, vanilla),
        "priced": _fewer(priced),
        "swap": _swapped(vanilla, priced, swapped),
    }


def may_swap(verdict: Mapping[str, str]) -> bool:
    """False if swapping failed, or policies said something else then, where engines with equal graphs say the same."""
    known = verdict["identical"] == "yes"
    parts = verdict["swap"].startswith("NO:")
    return verdict["swap"] in ("yes", "not tried", "nothing to compare with") or (parts and not known)


def difference(expected: Tokens, got: Tokens) -> str:
    """ "yes" if they are the same, else where they part first."""
    for batch, (ours, theirs) in enumerate(zip(expected, got, strict=True)):
        for request, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if a != b:
                token = next(n for n, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
                return f"NO: batch {batch}, request {request} differs from token {token} on"
    return "yes"


def _same(plain: Found, vanilla: Found) -> str:
    if "failed" in vanilla:
        return str(vanilla["failed"])
    return "nothing to compare with" if "failed" in plain else difference(plain["tokens"], vanilla["tokens"])


def _fewer(priced: Found) -> str:
    if "failed" in priced:
        return str(priced["failed"])
    before, after = priced["experts"]
    return f"{'yes' if after < before - 0.5 else 'NO'}: {after:.1f} of {before:.1f} experts"


def _swapped(vanilla: Found, priced: Found, swapped: Found) -> str:
    if not swapped or "failed" in swapped:
        return str(swapped.get("failed", "not tried"))
    if "failed" in vanilla or "failed" in priced:
        return "nothing to compare with"
    again = difference(vanilla["tokens"], swapped["vanilla"])
    return again if again != "yes" else difference(priced["tokens"], swapped["priced"])
