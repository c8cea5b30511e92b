"""Settings between two neighbours of a front that lie so far apart that nothing is known of what is between them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from lynx_moe.lab.bakeoff.fronts import FRACTIONS, GAP, grouped, pareto
from lynx_moe.lab.bakeoff.grids import ORACLE, Setting
from lynx_moe.policies import POLICIES, knobs, make_policy
from lynx_moe.routing import RouterSpec

Line = dict[str, Any]
ROUNDS = 5  # of a cell at most; a round halves every gap
NEAR = 0.8 * GAP  # below what is allowed, since other data keep a little more or less


def refinements(tuned: Sequence[Line], router: RouterSpec) -> list[Setting]:
    """At most one new setting for every gap of every method's front, and for every hole between any of its settings,
    between the shares that are reported, of the lines of one cell; none where the knobs have nothing in between."""
    found: list[Setting] = []
    for (method,), mine in grouped(tuned, "method").items():
        kept = np.array([line["after"] / line["before"] for line in mine])
        on = pareto(kept, np.log(np.maximum([line["kl"] for line in mine], 1e-12)))
        known = {line["spec"] for line in mine}
        halved: list[tuple[float, float]] = []
        for chain in (on, np.argsort(kept, kind="stable").tolist()):
            specs = [mine[number]["spec"] for number in chain]
            for place, (low, high) in enumerate(pairwise(kept[chain])):
                again = any(a <= low and high <= b for a, b in halved)
                if high - low > NEAR and low < FRACTIONS[-1] and high > FRACTIONS[0] and not again:
                    new = [spec for spec in _inside(specs, place, router) if spec not in known][:1]
                    known.update(new)
                    halved += [(low, high)] if new else []
                    found += [Setting(method, spec) for spec in new]
    return found


def _inside(specs: Sequence[str], place: int, router: RouterSpec) -> list[str]:
    """What is between the neighbours at a gap; where these cannot be compared, between either and the next but one."""
    pairs = [(place, place + 1), (place - 1, place + 1), (place, place + 2)]
    for low, high in pairs:
        if low >= 0 and high < len(specs) and (found := between(specs[low], specs[high], router)) is not None:
            return found
    return []


def between(first: str, second: str, router: RouterSpec) -> list[str] | None:
    """The specs with every knob in the middle of these two, numbers that are not whole in equal ratios; one or two, as
    whole numbers are rounded, and none where nothing is between or the router does not take it. None: they differ in
    what has no middle, a word or a knob that one of them leaves open."""
    name, one, other = first.partition(":")[0], _knobs(first), _knobs(second)
    if name != second.partition(":")[0] or one.keys() != other.keys():
        return None
    middles = []
    for knob, (a, b) in {knob: (one[knob], other[knob]) for knob in one}.items():
        if a == b:
            middles.append((f"{knob}={a}", f"{knob}={a}"))
        elif isinstance(a, bool | str) or isinstance(b, bool | str) or a is None or b is None:
            return None
        elif isinstance(a, int):
            middles.append((f"{knob}={(a + b) // 2}", f"{knob}={-(-(a + b) // 2)}"))
        else:
            middle = f"{knob}={(a * b) ** 0.5 if min(a, b) > 0 else (a + b) / 2:.4g}"
            middles.append((middle, middle))
    texts = [
        f"{name}:{','.join(one for one in parts if not one.endswith('=None'))}" for parts in zip(*middles, strict=True)
    ]
    specs = [spec for text in dict.fromkeys(texts) if (spec := _fitting(text, router))]
    return [spec for spec in specs if spec not in (first, second)]


def _knobs(spec: str) -> dict[str, Any]:
    """Every knob's value, those at their default too."""
    name, _, rest = spec.partition(":")
    if name == ORACLE:
        return {"price": float(rest.partition("=")[2])}
    policy = make_policy(spec)
    return {knob: getattr(policy, knob) for knob in knobs(POLICIES[name])}


def _fitting(spec: str, router: RouterSpec) -> str | None:
    if spec.startswith(f"{ORACLE}:"):
        return spec
    try:
        policy = make_policy(spec)
        policy.check(router)
    except ValueError:
        return None
    return policy.spec
