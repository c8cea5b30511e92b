"""What SGLang's scheduler does with a policy, without SGLang: experts as on vLLM, requests, columns, the cache."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sglang_seam import SHAPE, SPEC, E, K, Req

from lynx_moe import testbed
from lynx_moe.engines.sglang.front import admission, control
from lynx_moe.engines.sglang.launch.options import Options
from lynx_moe.engines.sglang.model import hooks
from lynx_moe.engines.sglang.step import cache
from lynx_moe.engines.sglang.step import plan as plans
from lynx_moe.engines.sglang.step.plan import Plan
from lynx_moe.engines.shared.layers import Layer
from lynx_moe.engines.vllm.launch.options import Options as VllmOptions
from lynx_moe.engines.vllm.step import plan as vllm_plans
from lynx_moe.policies.contract.fillers import without_repeats
from lynx_moe.routing import RouterSpec, select
from lynx_moe.testbed import tasks


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """The process is left without a plan, as it was found."""
    kept = [*plans._active], [*vllm_plans._active]
    yield
    plans._active[:], vllm_plans._active[:] = kept


def make(policy: str = "lynx:alpha=3,beta=2", spec: RouterSpec = SPEC, *, graphs: bool = False, **options: Any) -> Plan:
    plan = Plan(Options(policy=policy, **options), SHAPE, 64, torch.device("cpu"), graphs=graphs)
    plan.layers.append(Layer(name="model.layers.0.mlp", spec=spec))
    plan.seal()
    plans.activate(plan)
    return plan


def decode(plan: Plan, reqs: list[Req]) -> None:
    for req in reqs:
        plan.arrive(req)
    plan.begin(SimpleNamespace(forward_mode=SimpleNamespace(name="DECODE"), rids=[req.rid for req in reqs]))


@pytest.fixture(scope="module")
def recorded() -> torch.Tensor:
    """[16, E]: router logits of the testbed's model on exercises, in its first layer."""
    transformers = pytest.importorskip("transformers")
    import lynx_moe

    folder = testbed.path("qwen3-moe")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(" ".join(item.prompt for item in tasks.test_items("sort", 8, seed=1)), return_tensors="pt")
    with lynx_moe.apply(model, policy="vanilla", phase="all") as run, torch.no_grad():
        recorder = run.record(1 << 30)
        model(input_ids=ids.input_ids[:, :64])
    logits_TE = recorder.parts[0][0][0]
    return logits_TE[16:32]


@pytest.mark.parametrize("policy", ["lynx", "lynx:alpha=3,beta=2", "priced", "priced:price=0.1", "vanilla"])
def test_the_same_experts_as_on_vllm_for_the_same_logits(policy: str, recorded: torch.Tensor) -> None:
    ours, theirs = (
        make(policy),
        vllm_plans.Plan(options=VllmOptions(policy=policy), shape=SHAPE, max_rows=64, device=torch.device("cpu")),
    )
    theirs.layers += ours.layers
    theirs.seal()
    count = len(recorded)
    decode(ours, [Req(str(number)) for number in range(count)])
    theirs.rows.fill(np.ones(count, bool), np.ones(count, int))
    theirs.begin_step()
    own = select(recorded, SPEC)
    found, expected = ours.reroute(0, recorded, own), theirs.reroute(recorded, own.weights, own.ids, 0)
    assert (found is None) == (expected is None) == (policy == "vanilla")
    if found is not None and expected is not None:
        assert torch.equal(found.ids, expected.ids)
        assert torch.equal(found.weights, expected.weights)
        assert len(found.ids.unique()) < len(own.ids.unique())
        assert all(len(row.unique()) == K for row in found.ids), "an id twice in a row is miscounted"


@pytest.mark.parametrize("count", [2, 3])
def test_no_id_comes_twice_where_a_step_loads_fewer_than_k(count: int) -> None:
    plan = make("topk:k=1")
    decode(plan, [Req(str(number)) for number in range(count)])
    logits = 2 * torch.randn(count, E)
    own = select(logits, SPEC)
    final = plan.reroute(0, logits, own)
    assert final is not None
    assert [len(row.unique()) for row in final.ids] == [K] * count
    assert ((final.weights != 0).sum(-1) == 1).all()
    live = final.ids[final.weights != 0]
    assert torch.equal(live, own.ids[:, 0])
    (stats,) = plan.stats().layers
    assert stats.alike.after == len(final.ids.unique()) <= stats.alike.before


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("policy", ["priced", "priced:price=1", "topk:k=1", "lynx"])
def test_a_row_alone_keeps_its_own_since_it_would_load_as_many(policy: str, graphs: bool) -> None:
    """Also in a graph, where only the mask tells."""
    plan = make(policy, graphs=graphs)
    decode(plan, [Req("0")])
    logits = 2 * torch.randn(1, E)
    own = select(logits, SPEC)
    assert (plan.reroute(0, logits, own) or own).ids.tolist() == own.ids.tolist()
    masks = plan.rows.masks(1)
    assert masks is not None
    decided = plan.by_layer[0].decide(logits, SPEC, masks, own)
    assert torch.equal(decided.ids, own.ids)
    assert torch.equal(decided.weights, own.weights)
    assert plan.steps["single"] == 1
    decode(plan, [Req("0"), Req("1")])
    assert plan.acts
    assert plan.rows.remap[:2].all()


def test_where_nothing_repeats_nobody_looks_for_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search costs more than the decision, and a step that loads K or more has none."""
    searched: list[int] = []

    def counted(*given: Any) -> torch.Tensor:
        searched.append(len(given[0]))
        return without_repeats(*given)

    monkeypatch.setattr(plans, "without_repeats", counted)
    for count, policy in ((16, "priced"), (2, "priced:price=1e9")):
        plan, logits = make(policy), 2 * torch.randn(count, E, generator=torch.Generator().manual_seed(1))
        decode(plan, [Req(str(number)) for number in range(count)])
        final = plan.reroute(0, logits, select(logits, SPEC))
        assert final is not None
        assert [len(row.unique()) for row in final.ids] == [K] * count
    assert searched == [2]


def test_each_request_has_what_it_asks_for() -> None:
    plan = make("vanilla")
    logits, wishes = 2 * torch.randn(6, E), ["exact", "fast", None, 0.05, "lynx:alpha=3,beta=2", "balanced"]
    decode(plan, [Req(str(number), wish) for number, wish in enumerate(wishes)])
    own = select(logits, SPEC)
    final = plan.reroute(0, logits, own) or own
    for row in (0, 2, 5):  # exact, and what follows a server that is vanilla
        assert torch.equal(final.ids[row], own.ids[row])
        assert torch.equal(final.weights[row], own.weights[row])
    assert any(not torch.equal(final.ids[row], own.ids[row]) for row in (1, 3, 4))


def test_shared_experts_columns_stay_and_ids_keep_their_type() -> None:
    plan = make()
    config = SimpleNamespace()
    plan.numbers[id(config)] = 0
    decode(plan, [Req(str(number)) for number in range(8)])
    logits = 2 * torch.randn(8, E)
    own = select(logits, SPEC)
    shared = torch.full((8, 1), E, dtype=torch.int32)
    given = {
        "topk_ids": torch.cat((own.ids.int(), shared), -1),
        "topk_weights": torch.cat((own.weights, torch.full((8, 1), 0.5)), -1),
        "topk_config": config,
        "router_logits": logits,
        "layer_id": 0,
    }
    changed = hooks.change(**given)
    assert changed is not None
    args, new = changed
    assert args == ()
    assert new["topk_ids"].dtype == torch.int32
    assert torch.equal(new["topk_ids"][:, K:], shared)
    assert (new["topk_weights"][:, K:] == 0.5).all()
    assert not torch.equal(new["topk_ids"][:, :K].long(), own.ids)
    other = {**given, "topk_config": SimpleNamespace()}  # another model's layer, such as a drafter's
    assert hooks.change(**other) is None


def test_padding_adds_no_expert() -> None:
    """A graph of 8 rows runs 5 requests: the others repeat a row's experts at weight 0, and SGLang masks them later."""
    plan = make("priced")
    plan.rows.always = True  # as on a GPU
    decode(plan, [Req(str(number)) for number in range(5)])
    logits = 2 * torch.randn(8, E)
    own = select(logits, SPEC)
    final = plan.reroute(0, logits, own)
    assert final is not None
    assert (final.weights[5:] == 0).all()
    assert set(final.ids[5:].flatten().tolist()) <= set(final.ids[:5].flatten().tolist())


def test_a_layer_that_is_never_asked_is_told_of() -> None:
    plan = make()
    plan.layers.append(Layer(name="model.layers.1.mlp", spec=SPEC))
    plan.fit()
    logits = torch.randn(4, E)
    for _ in range(2):
        decode(plan, [Req(str(number)) for number in range(4)])
        plan.reroute(0, logits, select(logits, SPEC))
    assert list(plan.bypassed) == ["model.layers.1.mlp"]


@pytest.mark.parametrize(
    ("server", "wish", "kept"),
    [
        ("lynx", None, 4), ("lynx", "exact", 9), ("lynx", "vanilla", 9), ("lynx", "fast", 4), ("lynx", "nonsense", 9),
        ("vanilla", None, 9), ("vanilla", "exact", 9), ("vanilla", "fast", 4), ("vanilla", "balanced", 9),
    ],
)  # fmt: skip
def test_the_radix_cache_gets_nothing_that_was_remapped(server: str, wish: str | None, kept: int) -> None:
    plan, req = make(server), Req("a", wish)
    plan.arrive(req)
    (tree, same), given = cache.checkpoint("tree", req, up_to=9)
    assert (tree, same, given) == ("tree", req, {"up_to": kept})
    assert cache.checkpoint("tree", req, up_to=2)[1] == {"up_to": 2}  # a chunk of its prompt


def test_after_a_switch_from_vanilla_running_requests_count_as_remapped() -> None:
    plan, req = make("vanilla"), Req("a")
    plan.arrive(req)
    plan.set_policy("lynx")
    assert cache.checkpoint("tree", req, up_to=9)[1] == {"up_to": 4}
    plan.set_policy("vanilla")
    assert cache.checkpoint("tree", req, up_to=9)[1] == {"up_to": 4}


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ("nonsense", "allowed: exact, balanced, fast"),
        (-1, "is no price"),
        ("oea:k0=9", "k0=9"),
        ({"lynx-moe": "exact"}, "asks for nothing"),
        ({"lynx_moe_verify": "draft"}, "must be 'exact' or 'remap'"),
    ],
)
def test_a_bad_wish_ends_its_request_alone(wish: Any, said: str) -> None:
    make()
    req = Req("a", wish)
    admission.arrive(None, req)
    assert said in str(req.to_finish)


def test_running_requests_bring_no_more_policies_than_allowed() -> None:
    make("lynx", max_policies=1)
    first, same, second = Req("a", "oea:k0=2"), Req("b", "oea:k0=2"), Req("c", "oea:k0=4")
    for req in (first, same, second):
        admission.arrive(None, req)
    assert (first.to_finish, same.to_finish) == (None, None)
    assert "max_policies=1" in str(second.to_finish)
    first.ended = same.ended = True
    third = Req("d", "oea:k0=4")
    second.ended = True
    admission.arrive(None, third)
    assert third.to_finish is None


def test_the_policy_is_told_with_sglang_s_own_state() -> None:
    plan = make()
    answer = control.get_internal_state(lambda *_: SimpleNamespace(internal_state={"a": 1}), None, None)
    assert answer.internal_state["a"] == 1
    assert answer.internal_state["lynx_moe"]["policy"] == plan.policy.spec
    assert control.set_internal_state(lambda *_: "theirs", None, SimpleNamespace(server_args={"a": 1})) == "theirs"


def test_routing_of_rows_that_are_not_known_stays() -> None:
    plan = make()
    plan.begin(SimpleNamespace(forward_mode=SimpleNamespace(name="DECODE"), rids=["nobody"] * 4))
    logits = torch.randn(4, E)
    assert plan.reroute(0, logits, select(logits, SPEC)) is None
    assert sum(plan.steps.values()) == 0


def test_goals_are_refused_by_name_before_any_scheduler_is_asked() -> None:
    """What moves prices is known on vLLM only."""
    import asyncio

    from lynx_moe.engines.sglang.front import asking
    from lynx_moe.engines.shared.switching import Switch

    with pytest.raises(asking.Refused, match=r"^max_kl, slo_tpot_ms: prices that move are known on vLLM only"):
        asyncio.run(asking.switch(None, Switch.of(b'{"policy": "lynx", "max_kl": null, "slo_tpot_ms": 25}')))
