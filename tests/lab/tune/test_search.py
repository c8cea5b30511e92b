"""What is tried and chosen, on a model of KL and load that is known."""

import math

import pytest

from lynx_moe.control.bound import STEP
from lynx_moe.lab.tune.search import Levels, search, verified
from lynx_moe.policies import make_policy

BEFORE = 50.0
FIXED = {"lynx": (0.002, 31.0), "oea:k0=4": (0.02, 12.0), "topk:k=8": (0.0, BEFORE)}


def line(spec, factor=1.0):
    """A KL that grows with the price, and a load that falls with it; `lynx` stands at a place of its own."""
    policy = make_policy(spec)
    kl, after = FIXED.get(spec, (0.1 * policy.asks**1.5, BEFORE / (1 + policy.asks)))
    return {"kl": kl * factor, "kl_interval": [0.8 * kl * factor, 1.2 * kl * factor], "before": BEFORE, "after": after}


def figures(asked, factor=1.0):
    def answer(specs):
        asked.append(list(specs))
        return {spec: line(spec, factor) for spec in specs}

    return answer


def test_an_open_price_ends_at_the_highest_that_holds_in_few_rounds():
    asked = []
    found = search(["priced"], 0.01, figures(asked))
    best = next(iter(found))
    highest = (0.01 / 1.2 / 0.1) ** (1 / 1.5)
    assert highest / STEP < make_policy(best).asks <= highest
    assert len(asked) <= math.ceil(math.log2(60))
    assert list(found.values()) == sorted(found.values(), key=lambda one: one["after"])


def test_named_settings_and_prices_are_searched_together_and_compared_by_load():
    asked = []
    found = search(["priced", "lynx", "oea:k0=4", "topk:k=8", "priced:price=0.001"], 0.01, figures(asked))
    assert set(asked[0]) >= {"lynx", "oea:k0=4", "topk:k=8", "priced:price=0.001"}
    assert next(iter(found)) == "lynx"
    assert "oea:k0=4" not in found  # it passes the bound
    assert "topk:k=8" not in found  # it saves nothing


def test_nothing_that_passes_the_bound_is_found():
    asked = []
    assert search(["oea:k0=4"], 0.01, figures(asked)) == {}
    assert search(["priced"], 1e-9, figures(asked)) == {}


@pytest.mark.parametrize(
    ("named", "count"), [("priced", 59), ("priced:price=0.03", 1), ("priced:norm=own", 59), ("lynx", 1)]
)
def test_a_price_that_is_named_is_not_sought(named, count):
    levels = Levels(named)
    assert abs(len(levels.specs) - count) <= 2 * (count > 1)
    assert all(make_policy(spec).without_price() == make_policy(named).without_price() for spec in levels.specs)


def test_what_other_documents_deny_gives_way_to_the_next():
    found = search(["priced", "lynx"], 0.01, figures([]))
    asked = []
    spec, checked = verified(found, 0.01, figures(asked, factor=4.0))
    assert asked[:2] == [["lynx"], [list(found)[1]]][: len(asked)]
    assert checked["kl"] <= 0.01
    assert spec in found
    assert verified(found, 0.01, figures([], factor=1e6)) is None
