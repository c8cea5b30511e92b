"""Copies of experts are laid out as vLLM lays them out, and each choice of a copy loads what its plain rule says."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_routes import EXPERTS, SPEC, written

from lynx_moe.lab.replay import routes
from lynx_moe.lab.replay.copies import Copies, halves
from lynx_moe.lab.replay.measure import Setting, replay
from lynx_moe.lab.shared import tables
from lynx_moe.policies import make_policy
from lynx_moe.routing import Routing, loaded

LAYOUTS = [(2, 0), (2, 4), (4, 0), (4, 8), (3, 6), (12, 0), (6, 12), (12, 12)]


@pytest.mark.vllm
@pytest.mark.parametrize(("ranks", "redundant"), LAYOUTS)
def test_the_layout_is_vllms(ranks: int, redundant: int) -> None:
    from vllm.distributed.eplb.policy import DefaultEplbPolicy

    load_LE = torch.rand(5, EXPERTS, generator=torch.Generator().manual_seed(7)) ** 4
    theirs = DefaultEplbPolicy.rebalance_experts(load_LE, EXPERTS + redundant, 1, 1, ranks)
    for load_E, expert_P in zip(load_LE, theirs, strict=True):
        ours = Copies.balanced(load_E, redundant, ranks).expert_P.view(ranks, -1)
        assert torch.equal(ours.sort(-1).values, expert_P.view(ranks, -1).sort(-1).values)


def by_token(experts: list[int], rows: list[list[int]]) -> set[int]:
    """The places that rows load, each by its number in the step, as in vLLM's kernel."""
    found = set()
    for number, row in enumerate(rows):
        for expert in row:
            mine = [place for place, held in enumerate(experts) if held == expert]
            found.add(mine[(number * 2654435769) % 2**32 % len(mine)])
    return found


def fewest(experts: list[int], used: set[int], size: int) -> set[int]:
    found: set[int] = set()
    for expert in sorted(used, key=lambda e: (experts.count(e), e)):
        mine = [place for place, held in enumerate(experts) if held == expert]
        found.add(min(mine, key=lambda place: (sum(other // size == place // size for other in found), place)))
    return found


def fullest(places: set[int], size: int) -> int:
    ranks = [place // size for place in places]
    return max(map(ranks.count, ranks))


@settings(max_examples=60, deadline=None)
@given(layout=st.sampled_from(LAYOUTS), seed=st.integers(0, 99), num_rows=st.integers(1, 40))
def test_each_choice_loads_what_its_rule_says(layout: tuple[int, int], seed: int, num_rows: int) -> None:
    rng, (ranks, redundant) = torch.Generator().manual_seed(seed), layout
    copies = Copies.balanced(torch.rand(EXPERTS, generator=rng) ** 3, redundant, ranks)
    experts, size = copies.expert_P.tolist(), (EXPERTS + redundant) // ranks
    ids = torch.rand(3, num_rows, EXPERTS, generator=rng).argsort(-1)[..., :2]
    used = torch.stack([loaded(one, EXPERTS) for one in ids])
    assert [set(flags.nonzero()[:, 0].tolist()) for flags in copies.by_token(ids)] == [
        by_token(experts, one.tolist()) for one in ids
    ]
    chosen = [fewest(experts, set(one.flatten().tolist()), size) for one in ids]
    assert [set(flags.nonzero()[:, 0].tolist()) for flags in copies.fewest(used)] == chosen
    parts = [[by_token(experts, part.tolist()) for part in one.tensor_split(2)] for one in ids]
    expected = [[fullest(set().union(*each), size) for each in parts], [fullest(each, size) for each in chosen]]
    assert copies.fullest(ids, used, 2).tolist() == expected
    here = torch.tensor([[e in experts[r * size : r * size + size] for e in range(EXPERTS)] for r in range(ranks)])
    assert torch.equal(copies.placement().here_RE, here)


def test_a_replay_balances_by_its_first_half_and_measures_its_second(tmp_path: Path) -> None:
    """Each layer has copies of its own, and a policy that looks at ranks sees them."""
    drawn = routes.draw(routes.load(written(tmp_path)), 7, "mixed", 5, 5, seed=1)
    text, setting = "priced:price=0.05,per_rank=true", Setting(ranks=3, redundant=3)
    plain, line = replay(drawn, ["vanilla", text], setting)
    window, rest = halves(drawn)
    assert (len(window.rows), len(rest.rows), line["batches"]) == (10, 15, 3)
    loads: dict[str, list[int]] = {"fullest": [], "fewest": [], "own": []}
    for before, layer in zip(window.layers, rest.layers, strict=True):
        copies = Copies.balanced(torch.bincount(before.own.ids.flatten(), minlength=EXPERTS), 3, 3)
        experts, policy = copies.expert_P.tolist(), make_policy(text).for_placement(copies.placement())
        for logits, ids, weights in zip(
            *(part.split(7) for part in (layer.logits, layer.own.ids, layer.own.weights)), strict=True
        ):
            final = policy.route(logits, SPEC, None, Routing(ids, weights)).ids.tolist()
            loads["fullest"].append(fullest(by_token(experts, final), 5))
            loads["fewest"].append(fullest(fewest(experts, {e for row in final for e in row}, 5), 5))
            loads["own"].append(fullest(by_token(experts, ids.tolist()), 5))
    assert line["fullest_after"] == pytest.approx(np.mean(loads["fullest"]))
    assert line["fewest_after"] == pytest.approx(np.mean(loads["fewest"]))
    assert plain["fullest_after"] == line["fullest_before"] == pytest.approx(np.mean(loads["own"]))
    assert plain["fewest_after"] < plain["fullest_after"]
    head, rows = tables.replay_table([line], ranks=3, redundant=3)
    place = head.index("fullest of 3 ranks")
    assert head[place + 1] == "fullest, METRO's choice"
    assert rows[0][place + 1] == f"{line['fewest_before']:.1f} → {line['fewest_after']:.1f}"


def test_what_cannot_be_laid_out_is_refused(tmp_path: Path) -> None:
    drawn = routes.draw(routes.load(written(tmp_path)), 4, "mixed", 5, 2, seed=0)
    with pytest.raises(ValueError, match="12 experts and 2 copies do not fill 5 ranks evenly; use 3 copies"):
        replay(drawn, ["vanilla"], Setting(ranks=5, redundant=2))
    with pytest.raises(ValueError, match="one half of the steps or batches"):
        replay(routes.draw(routes.load(written(tmp_path)), 4, "mixed", 5, 1, 0), ["vanilla"], Setting(redundant=0))
    for more in ({"redundant": -1}, {"redundant": 2, "slots": 3}, {"redundant": 2, "replicas": 2, "votes": True}):
        with pytest.raises(ValueError, match="use 0 or more, without --votes and --slots"):
            Setting(**more)
