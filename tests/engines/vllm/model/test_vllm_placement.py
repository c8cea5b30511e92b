"""Which rank has which expert is vLLM's own answer; a rank counts what it loads itself."""

from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from vllm.distributed.eplb.eplb_state import EplbLayerState, EplbModelState, _commit_eplb_maps, compute_logical_maps
from vllm.model_executor.layers.fused_moe.expert_map_manager import determine_expert_map
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

from lynx_moe.control.options import GuardOptions
from lynx_moe.engines.shared.layers import Layer, fitted
from lynx_moe.engines.shared.metrics import Counters, HostCounters
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.model import reached
from lynx_moe.engines.vllm.model.placement import placement_of
from lynx_moe.engines.vllm.model.router import LynxRouter
from lynx_moe.engines.vllm.step.plan import Plan
from lynx_moe.policies import ONE_RANK, ModelShape, Placement, make_policy
from lynx_moe.routing import RouterSpec, Routing

CPU = torch.device("cpu")


def moe(ep_size, ep_rank=0, experts=7, strategy="linear", eplb=None, dp_size=1):
    manager = SimpleNamespace(ep_size=ep_size, ep_rank=ep_rank, global_num_experts=experts, placement_strategy=strategy)
    router, config = SimpleNamespace(eplb_state=eplb), SimpleNamespace(dp_size=dp_size)
    return SimpleNamespace(expert_map_manager=manager, router=router, moe_config=config)


def ranks_of(placement):
    assert (placement.here_RE.sum(0) == 1).all()
    return placement.here_RE.int().argmax(0).tolist()


def test_without_expert_parallelism_there_is_one_rank():
    assert placement_of(moe(1), CPU) == (ONE_RANK, None)


@pytest.mark.parametrize(
    ("strategy", "ranks"), [("linear", [0, 0, 0, 1, 1, 2, 2]), ("round_robin", [0, 1, 2, 0, 1, 2, 0])]
)
def test_every_rank_has_the_experts_that_vllm_gives_it(strategy, ranks):
    for rank in range(3):
        placement, here = placement_of(moe(3, rank, strategy=strategy), CPU)
        assert ranks_of(placement) == ranks
        assert torch.equal(here, determine_expert_map(3, rank, 7, strategy)[1] >= 0)


def test_a_data_parallel_rank_counts_what_its_rows_ask_for_on_all_ranks():
    """What it loads itself is for the tokens of others, too, which its router does not see."""
    placement, here = placement_of(moe(3, 1, dp_size=3), CPU)
    assert ranks_of(placement) == [0, 0, 0, 1, 1, 2, 2]
    assert here is None


def arranged(num_ranks, *layers):
    """vLLM's state of its load balancer (EPLB), as it keeps it; layers: the expert in every place of a layer."""
    expert_LP, none = torch.tensor(layers), torch.zeros(0)
    map_LEC, count_LE = (part.clone() for part in compute_logical_maps(expert_LP, 4))
    map_LEC = torch.nn.functional.pad(map_LEC, (0, 1024 - map_LEC.shape[2]), value=-1)
    known = {
        "physical_to_logical_map": expert_LP,
        "logical_to_physical_map": map_LEC,
        "logical_replica_count": count_LE,
    }
    return EplbModelState(**({field.name: none for field in fields(EplbModelState)} | known))


def moved(model, *layers):
    """vLLM puts experts elsewhere, in the maps that it has."""
    _commit_eplb_maps(model, torch.tensor(layers))


def test_experts_are_where_the_load_balancer_has_their_copies_and_follow_them():
    """vLLM's own state and its own step of moving; two layers of four experts in six places on three ranks. The layer
    gets the maps after it was built, and they change in place."""
    state = EplbLayerState()
    placement, here = placement_of(moe(3, 1, experts=6, eplb=state), CPU)
    assert here is None
    model = arranged(3, [0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 3, 3])
    state.set_layer_state(1, torch.zeros(2, 6), model.logical_to_physical_map, model.logical_replica_count)
    assert placement.here_RE.tolist() == [[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 1]]
    moved(model, [0, 1, 2, 3, 0, 1], [0, 1, 0, 2, 3, 0])
    assert placement.here_RE.tolist() == [[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]]
    assert placement.count(torch.tensor([1, 0, 0, 1]).bool()).tolist() == [1, 1, 2]


@pytest.mark.parametrize("text", ["priced:price=0.2,per_rank=true", "lynx:alpha=3,beta=2,per_rank=true"])
def test_a_step_decides_by_where_copies_are_at_that_time(text):
    """A server's decisions, with the experts moved in the middle, against those of placements that never move."""
    spec, state = RouterSpec(num_experts=4, top_k=2), EplbLayerState()
    rng = torch.Generator().manual_seed(5)
    steps = [torch.randn(6, 4, generator=rng) for _ in range(40)]
    before, after = [0, 1, 2, 3, 0, 1], [2, 0, 3, 0, 1, 0]
    placement, _ = placement_of(moe(3, experts=6, eplb=state), CPU)
    layer = Layer(name="model.layers.3.mlp.experts", spec=spec, placement=placement)
    model = arranged(3, before)
    state.set_layer_state(0, torch.zeros(1, 6), model.logical_to_physical_map, model.logical_replica_count)
    (policy,) = fitted(make_policy(text), [layer], "m", CPU)
    got = [policy.decide(logits, spec).ids for logits in steps]
    moved(model, after)
    got += [policy.decide(logits, spec).ids for logits in steps]
    expected = {}
    for name, places in (("before", before), ("after", after)):
        here_RE = torch.tensor([[e in places[2 * rank : 2 * rank + 2] for e in range(4)] for rank in range(3)])
        still = make_policy(text).for_placement(Placement.fixed(here_RE))
        expected[name] = [still.decide(logits, spec).ids for logits in steps]
    assert all(map(torch.equal, got, expected["before"] + expected["after"]))
    assert not all(map(torch.equal, expected["before"], expected["after"]))


class Gathers:
    """A layer of vLLM's whose quantisation method has no modular kernel."""

    layer_name, do_naive_dispatch_combine = "layers.0", True
    routed_experts = SimpleNamespace(quant_method=object())

    def __init__(self, router):
        self.router = router

    is_monolithic = False


def test_a_layer_that_gathers_all_ranks_tokens_before_it_routes_is_left_alone_by_name(monkeypatch):
    """Its router would see more rows than the runner has prepared."""
    said: list[str] = []
    monkeypatch.setattr(reached.logger, "warning", lambda text, *given: said.append(text % given))
    spec = RouterSpec(num_experts=8, top_k=2)
    inner = CPURouter(top_k=2, global_num_experts=8, renormalize=True)
    module = Gathers(LynxRouter(inner, 0))
    shape = ModelShape(model_type="tiny", num_layers=1, num_experts=8, top_k=2, name="tiny")
    plan = Plan(options=Options(policy="lynx"), shape=shape, max_rows=8, device=CPU, meets=True)
    plan.layers.append(Layer(name="layers.0", spec=spec))
    plan.runners[0] = lambda: module
    model = torch.nn.Module()
    for _ in range(2):
        reached.note_loaded(plan, model)
    assert module.router is inner
    assert plan.bypassed == {"layers.0": "object gathers the tokens of all data-parallel ranks before it routes"}
    (line,) = said
    assert "layer layers.0 keeps vLLM's own routing: object gathers the tokens" in line


def test_a_guard_that_runs_experts_once_more_is_refused_where_engines_meet():
    shape = ModelShape(model_type="tiny", num_layers=1, num_experts=8, top_k=2, name="tiny")
    plan = Plan(options=Options(policy="lynx"), shape=shape, max_rows=8, device=CPU, meets=True)
    plan.layers.append(Layer(name="layers.0", spec=RouterSpec(num_experts=8, top_k=2)))
    with pytest.raises(
        ValueError, match=r"max_error runs .* data-parallel engines meet .* bound max_mass_lost or max_kl instead"
    ):
        plan.set_guard(GuardOptions(max_error=0.1))
    plan.set_guard(GuardOptions(max_mass_lost=0.1))


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
