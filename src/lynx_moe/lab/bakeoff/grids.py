"""The knob settings that each policy is tried with: one line per policy, from the router's E experts and K = top_k."""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import product
from typing import NamedTuple

from lynx_moe.policies import POLICIES, Policy, knobs, make_policy
from lynx_moe.policies.contract.calibrated import Calibrated
from lynx_moe.routing import RouterSpec

NORMS = ("model", "mass")
DEPTHS = (0.12, 0.25, 0.5, 1.0, 2.0, 4.0)  # of lynx' last bin, in nats below the favourite: alpha = beta / depth
BUDGETS = 6
PRICES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)
ORACLE = "oracle"  # no policy: it sees the experts' outputs (`oracle.py`)


def over(text: str, *values: Iterable[object]) -> list[str]:
    """`text` with every combination of values in its places."""
    return [text.format(*chosen) for chosen in product(*values)]


def budgets(num_experts: int, least: int) -> list[int]:
    """Up to six numbers of experts from `least` to below all, in equal ratios."""
    ratio = num_experts / least
    return sorted({round(least * ratio ** (step / BUDGETS)) for step in range(BUDGETS)} - {num_experts})


# What needs to know which experts are in memory has no line: here all are.
GRIDS: dict[str, Callable[[int, int], Sequence[str]]] = {
    "priced": lambda e, k: over("priced:price={}", PRICES),
    "lynx": lambda e, k: ["lynx", *(f"lynx:alpha={b / d:g},beta={b}" for b in (1, 2, 4) for d in DEPTHS)],
    "lynx-v1": lambda e, k: ["lynx-v1", *over("lynx-v1:num_keep={}", budgets(e, k)),
                             *over("lynx-v1:mode=confidence,threshold={}", (0.2, 0.5, 0.8))],
    "oea": lambda e, k: over("oea:k0={}", range(1, k)),
    "xshare": lambda e, k: over("xshare:budget={},k0={}", budgets(e, k), (0, 1)),
    "topk": lambda e, k: over("topk:k={}", range(1, k)),
    "alloc": lambda e, k: over("alloc:k={:g}", sorted({1 + (k - 1) * step / 8 for step in range(8)})),
    "naee": lambda e, k: over("naee:beta={}", (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)),
    "min-p": lambda e, k: over("min-p:k_min={},threshold={}", sorted({1, max(1, k // 2)}), (0.05, 0.1, 0.2, 0.4)),
    "sere": lambda e, k: over("sere:num_primary={},rho={}", range(1, max(2, k // 2 + 1)), (0.0, 0.5)),
    "exfold": lambda e, k: over("exfold:num_keep={}", sorted({max(1, k // 2), *budgets(e, k)})),
    "reap": lambda e, k: over("reap:num_keep={}", budgets(e, k)),
    "moe-spec": lambda e, k: over("moe-spec:budget={}", budgets(e, k)),
    "acceptmoe": lambda e, k: ["acceptmoe"],
    "random": lambda e, k: over("random:num_keep={}", budgets(e, k)),
}  # fmt: skip


class Setting(NamedTuple):
    """method: the policy's name, with the norm where it is not the policy's own; spec: the whole spec string."""

    method: str
    spec: str


def settings(
    router: RouterSpec, names: Collection[str] = (), norms: Sequence[str] = NORMS, calibration: str | None = None
) -> list[Setting]:
    """Every setting of the named policies (none named: of all in the table) under each norm. A name may have knobs,
    "priced:ends=true": a method of its own, with these in every setting.

    "model" stands for what each policy does by itself. Calibrated policies are left out without a calibration file; one
    that can do without is tried both ways.
    Raises ValueError for a policy without a grid, for knobs that it does not take, and where nothing is left.
    """
    missing = sorted({name.partition(":")[0] for name in names} - {*GRIDS, ORACLE})
    if missing:
        raise ValueError(
            f"no grid of {', '.join(missing)}; there are grids of {', '.join(GRIDS)} (lab/bakeoff/grids.py)"
        )
    found = [] if names and ORACLE not in names else [Setting(ORACLE, f"{ORACLE}:price={price}") for price in PRICES]
    for given in [name for name in names if name != ORACLE] or ([] if names else GRIDS):
        name, _, fixed = given.partition(":")
        if needs_calibration(name) and calibration is None:
            continue
        for norm in norms:
            if norm != "model" and norm == knobs(POLICIES[name]).get("norm", (str, norm))[1]:
                continue
            more = [fixed] if fixed else []
            more += [] if norm == "model" else [f"norm={norm}"]
            method = given if norm == "model" else f"{given} norm={norm}"
            for data in _calibrations(name, calibration):
                specs = (_with(spec, more + data) for spec in GRIDS[name](router.num_experts, router.top_k))
                called = f"{method} calibrated" if data and not needs_calibration(name) else method
                found += [Setting(called, make_policy(spec).spec) for spec in specs]
    if not found:
        raise ValueError("sere, exfold and reap need --calibration FILE (lynx-moe calibrate)")
    return list(dict.fromkeys(found))


def needs_calibration(name: str) -> bool:
    policy = POLICIES.get(name.partition(":")[0], Policy)
    return issubclass(policy, Calibrated) and not policy.optional


def is_published(name: str) -> bool:
    """Of a paper, a release or a pull request: neither a control, nor the baseline, nor our own."""
    policy = POLICIES.get(name.partition(":")[0])
    return policy is not None and policy.source not in ("-", "lynx-moe")


def short(spec: str) -> str:
    """A spec, or a method's name, without the path of its calibration file."""
    return re.sub(r"[:,]data=[^, ]*", "", re.sub(r":data=[^, ]*,", ":", spec))


def _calibrations(name: str, file: str | None) -> list[list[str]]:
    """What is added to a spec, for each way to try the policy."""
    ways: list[list[str]] = [] if needs_calibration(name) else [[]]
    return ways + [[f"data={file}"]] * (file is not None and issubclass(POLICIES[name], Calibrated))


def _with(spec: str, more: Sequence[str]) -> str:
    return spec if not more else f"{spec}{',' if ':' in spec else ':'}{','.join(more)}"
