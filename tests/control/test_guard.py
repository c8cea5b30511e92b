"""The guard's ladder: when it backs off, when it goes up again, and what its figures mean."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lynx_moe.control.guard import Guard, Running
from lynx_moe.control.loss import mass_lost, output_error
from lynx_moe.control.options import GuardOptions
from lynx_moe.policies import POLICIES, make_policy
from lynx_moe.routing import RouterSpec, Routing, Rows, select

ROUTER = RouterSpec(num_experts=32, top_k=4)


def guard(rungs: int = 3, **options: object) -> Guard:
    return Guard(GuardOptions.of({"max_mass_lost": 0.1, "window": 16, **options}), rungs)


def feed(one: Guard, now: float, above: float | None, count: int, figure: str = "mass_lost") -> list[int]:
    """The rungs that `count` equal samples lead through."""
    changes = [one.add(figure, now, above) for _ in range(count)]
    return [change.rung for change in changes if change is not None]


def test_it_backs_off_rung_by_rung_while_the_figure_stays_above_the_bound() -> None:
    one = guard()
    assert feed(one, 0.3, None, 3) == []  # a quarter of the window must be there first
    assert feed(one, 0.3, None, 1) == [1]
    assert feed(one, 0.3, 0.3, 40) == [2]  # vanilla is the end of the ladder
    assert one.changes == {"back_off": 2, "recover": 0}


def test_it_goes_up_only_when_the_rung_above_is_well_below_the_bound_for_a_whole_window() -> None:
    one = guard()
    feed(one, 0.3, None, 4)
    assert feed(one, 0.0, 0.09, 100) == []  # below the bound, but not below 0.8 of it
    assert feed(one, 0.0, 0.02, 100)[:1] == [0]
    fresh = guard()
    feed(fresh, 0.3, None, 4)
    assert feed(fresh, 0.0, 0.02, 15) == []
    assert feed(fresh, 0.0, 0.02, 1) == [0]


@settings(max_examples=30, deadline=None)
@given(st.floats(0.101, 1.0))
def test_a_setting_that_stays_harmful_is_never_used_again(loss: float) -> None:
    one = guard(rungs=2)
    feed(one, loss, None, 4)
    assert feed(one, 0.0, loss, 500) == []


def test_with_two_bounds_either_backs_off_and_both_must_agree_to_recover() -> None:
    one = guard(rungs=2, max_error=0.2)
    feed(one, 0.01, None, 50)
    assert one.rung == 0
    assert feed(one, 0.5, None, 1, "output_error") == [1]  # a window of 4 shadow samples, of which a quarter is 1
    feed(one, 0.0, 0.01, 50)
    assert one.rung == 1, "no shadow step has been seen since"
    assert feed(one, 0.0, 0.01, 4, "output_error") == [0]


def test_a_running_mean_forgets() -> None:
    running = Running(8)
    running.add(1.0)
    assert running.mean == 1.0
    for _ in range(80):
        running.add(0.0)
    assert running.mean < 1e-3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give a bound"),
        ([], "expected a dictionary"),
        ({"max_mass_lost": 0.1, "widow": 3}, "unknown key 'widow'; allowed: max_mass_lost"),
        ({"max_mass_lost": 1.5}, "max_mass_lost=1.5 must be a number above 0"),
        ({"max_mass_lost": True}, "max_mass_lost=True must be a number"),
        ({"max_error": "x"}, "max_error='x' must be a number"),
        ({"max_error": 0.1, "steps": 0}, "steps=0 must be a number above 0"),
        ({"max_error": 0.1, "window": 3}, "window=3 must be a whole number"),
        ({"max_error": 0.1, "ladder": "lynx"}, "must be a list of spec strings"),
        ({"max_error": 0.1, "ladder": ["lnyx"]}, "did you mean 'lynx'"),
    ],
)
def test_bad_options_are_refused(given: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GuardOptions.of(given)


def test_the_ladder_is_the_policy_s_own_or_the_operator_s_and_ends_at_vanilla() -> None:
    own = GuardOptions(max_mass_lost=0.1).rungs(make_policy("lynx:alpha=3,beta=2"), ROUTER)
    assert [rung.spec for rung in own] == ["lynx:alpha=3,beta=2", "lynx:alpha=6,beta=8", "vanilla"]
    given = GuardOptions(max_mass_lost=0.1, ladder=("oea:k0=3",)).rungs(make_policy("lynx"), ROUTER)
    assert [rung.spec for rung in given] == ["lynx", "oea:k0=3", "vanilla"]


HARSH = ["lynx:alpha=0.3,beta=1", "lynx", "priced:price=0.1", "priced:num_keep=6", "oea:k0=1", "topk:k=1", "alloc:k=1"]


@pytest.mark.parametrize("text", [*HARSH, "random:num_keep=6"])
def test_milder_settings_lose_less_on_the_same_logits(text: str) -> None:
    rungs, policy = [make_policy(text)], make_policy(text)
    while (policy := policy.milder(ROUTER)) is not None:  # type: ignore[assignment]
        rungs.append(policy)
        assert len(rungs) < 10
    assert len(rungs) > 1
    torch.manual_seed(3)
    batches = [2 * torch.randn(8, ROUTER.num_experts) for _ in range(40)]
    losses = []
    for rung in rungs:
        rung.check(ROUTER)
        lost = [mass_lost(select(b, ROUTER), rung.route(b, ROUTER)) for b in batches]
        losses.append(float(torch.stack(lost).mean()))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_every_other_policy_gives_way_to_vanilla_at_once() -> None:
    with_ladder = {text.partition(":")[0] for text in HARSH} | {"random"}
    for name in set(POLICIES) - with_ladder:
        assert POLICIES[name].milder.__qualname__ == "Policy.milder"


ROUTERS = [
    {},
    {"renormalize": False},
    {"scoring": "sigmoid", "bias": torch.linspace(-0.1, 0.1, 32), "groups": (4, 2), "scale": 2.5},
    {"scoring": "sqrtsoftplus"},
    {"scoring": "sparsemixer", "jitter": 0.01, "top_k": 2},
    {"expert_scale": torch.linspace(0.5, 2, 32)},
]


@pytest.mark.parametrize("words", ROUTERS, ids=str)
def test_mass_lost_means_the_same_for_every_router(words: dict[str, object]) -> None:
    torch.manual_seed(5)
    spec = RouterSpec(**{"num_experts": 32, "top_k": 4, **words})  # type: ignore[arg-type]
    own = select(torch.randn(6, 32), spec)
    other = Routing((own.ids + 1) % 32, own.weights)
    assert mass_lost(own, own) == 0
    expected = []
    for row in range(6):
        weight = dict(zip(own.ids[row].tolist(), own.weights[row].tolist(), strict=True))
        gone = set(weight) - set(other.ids[row].tolist())
        expected.append(sum(weight[e] for e in gone) / sum(weight.values()))
    assert float(mass_lost(own, other)) == pytest.approx(sum(expected) / 6, abs=1e-6)


def test_rows_that_may_not_change_take_no_part() -> None:
    own = select(torch.randn(4, 32), ROUTER)
    final = Routing(own.ids.clone(), own.weights)
    final.ids[1] = (own.ids[1] + 16) % 32
    remap = torch.tensor([True, True, False, False])
    changed = float(mass_lost(own, final, Rows(remap=torch.tensor([False, True, False, False]))))
    assert changed > 0
    assert float(mass_lost(own, final, Rows(remap=remap))) == pytest.approx(changed / 2)
    assert float(mass_lost(own, final, Rows(remap=~remap))) == 0
    own.weights[3] = torch.nan
    assert float(mass_lost(own, final)) == pytest.approx(changed / 4)


def test_output_error_is_a_share_of_the_output_s_square() -> None:
    own = torch.randn(5, 8)
    assert float(output_error(own, own)) == 0
    assert float(output_error(own, 1.5 * own)) == pytest.approx(0.25)
    half = torch.arange(5) < 2
    broken = own.clone()
    broken[2:] = torch.nan
    assert float(output_error(own, broken, Rows(remap=half))) == 0
