"""Which rank has which expert is vLLM's own answer; a rank counts what it loads itself."""

from types import SimpleNamespace

import pytest
import torch
from vllm.model_executor.layers.fused_moe.expert_map_manager import determine_expert_map

from lynx_moe.engines.shared.layers import Layer, fitted
from lynx_moe.engines.shared.metrics import Counters, HostCounters
from lynx_moe.engines.vllm.model.placement import placement_of
from lynx_moe.policies import ONE_RANK, make_policy
from lynx_moe.routing import RouterSpec, Routing

CPU = torch.device("cpu")


def moe(ep_size, ep_rank=0, experts=7, strategy="linear", eplb=None):
    manager = SimpleNamespace(ep_size=ep_size, ep_rank=ep_rank, global_num_experts=experts, placement_strategy=strategy)
    return SimpleNamespace(expert_map_manager=manager, router=SimpleNamespace(eplb_state=eplb))


def test_without_expert_parallelism_there_is_one_rank():
    assert placement_of(moe(1), CPU) == (ONE_RANK, None)


@pytest.mark.parametrize(
    ("strategy", "ranks"), [("linear", [0, 0, 0, 1, 1, 2, 2]), ("round_robin", [0, 1, 2, 0, 1, 2, 0])]
)
def test_every_rank_has_the_experts_that_vllm_gives_it(strategy, ranks):
    for rank in range(3):
        placement, here = placement_of(moe(3, rank, strategy=strategy), CPU)
        assert placement.rank_E.tolist() == ranks
        assert torch.equal(here, determine_expert_map(3, rank, 7, strategy)[1] >= 0)


def test_a_load_balancer_keeps_the_placement_unknown_and_refuses_per_rank():
    placement, here = placement_of(moe(2, eplb=object()), CPU)
    assert (placement, here) == (None, None)
    layer = Layer(name="model.layers.3.mlp.experts", spec=RouterSpec(num_experts=8, top_k=2), placement=placement)
    assert fitted(make_policy("lynx"), [layer], "m", CPU)[0].spec == "lynx"
    with pytest.raises(ValueError, match=r"EPLB.*leave per_rank out \(layer model.layers.3.mlp.experts of m\)"):
        fitted(make_policy("lynx:per_rank=true"), [layer], "m", CPU)


@pytest.mark.parametrize("make", [lambda: HostCounters(1), lambda: Counters(1, CPU)])
def test_a_rank_counts_its_own_experts(make):
    own = Routing(torch.tensor([[0, 5], [1, 6], [2, 3]]), torch.ones(3, 2))
    final = Routing(torch.tensor([[0, 5], [0, 6], [2, 3]]), torch.ones(3, 2))
    here = torch.tensor([1, 1, 1, 0, 0, 0, 0]).bool()
    counters = make()
    counters.begin(0)
    counters.add(0, own, final, 7, torch.tensor([True, True, False]), here)
    assert counters.read()[0][0] == [2, 1, 1, 0]  # before, after, changed rows, steps without a change
    counters.add(0, own, own, 7, None, ~here)
    assert counters.read()[0][0] == [2 + 3, 1 + 3, 1, 1]
