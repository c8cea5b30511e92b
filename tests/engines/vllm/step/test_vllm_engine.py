"""Real vLLM engines on a tiny Qwen3-MoE: inert, identical under vanilla, and exactly the asked rows under a policy.

The engine's token budget is small, so prompts are prefilled in chunks beside decode rows, and its cache is small, so
requests are preempted and computed again; prefix caching is on.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tiny_vllm import engine, generate, model_of, prompts, runner_of, save_model, tokens

from lynx_moe.engines import vllm as lynx_vllm
from lynx_moe.engines.shared.metrics import Kind
from lynx_moe.engines.vllm.step.plan import Plan, active

SMALL = {"max_num_batched_tokens": 48, "enable_chunked_prefill": True, "enable_prefix_caching": True, "block_size": 32}
POLICY = "lynx:alpha=0.3,beta=1"
REQUESTS = prompts(64, seed=5)


@dataclass
class Step:
    """What one step of the engine looked like: the rows by the plan, and every layer's ids."""

    kind: Kind
    remap: torch.Tensor
    own: list[torch.Tensor] = field(default_factory=list)
    final: list[torch.Tensor] = field(default_factory=list)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model("qwen3_moe", tmp_path_factory.mktemp("qwen3_moe"))


@pytest.fixture(scope="module")
def plain(model):
    """Router classes, tokens and prompt log-probabilities of vLLM without the plugin's doing anything."""
    with engine(model, **SMALL) as llm:
        routers = {type(m.router) for m in model_of(llm).modules() if type(m).__name__ == "MoERunner"}
        return routers, generate(llm, REQUESTS, prompt_logprobs=2)


@pytest.fixture(scope="module")
def llm(model, plain):
    with engine(model, "vanilla", **SMALL) as llm:
        yield llm


@pytest.fixture
def fresh(llm):
    """The engine with an empty cache and counts at zero."""
    lynx_vllm.set_policy("vanilla")
    llm.reset_prefix_cache()
    lynx_vllm.reset_stats()
    return llm


@pytest.fixture
def steps(fresh, monkeypatch):
    """Records every step: its masks, the ids that vLLM's own routers choose, and the ids that the kernels get."""
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
    from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

    seen: list[Step] = []
    begin, kernel, route = Plan.begin_step, RoutedExperts.forward_modular, CPURouter._compute_routing

    def begin_step(plan: Plan) -> None:
        begin(plan)
        seen.append(Step(plan.rows.kind, plan.rows.remap[: plan.rows.num_rows].clone()))

    def forward_modular(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen[-1].final.append(kwargs["topk_ids"].clone())
        return kernel(self, *args, **kwargs)

    def compute_routing(self: Any, *args: Any, **kwargs: Any) -> Any:
        weights, ids = route(self, *args, **kwargs)
        seen[-1].own.append(ids.clone())
        return weights, ids

    monkeypatch.setattr(Plan, "begin_step", begin_step)
    monkeypatch.setattr(RoutedExperts, "forward_modular", forward_modular)
    monkeypatch.setattr(CPURouter, "_compute_routing", compute_routing)
    return seen


def test_without_options_every_router_is_vllm_s_own(plain):
    from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

    assert plain[0] == {CPURouter}


def test_vanilla_gives_the_tokens_and_logprobs_of_plain_vllm(plain, fresh):
    outputs = generate(fresh, REQUESTS, prompt_logprobs=2)
    assert tokens(outputs) == tokens(plain[1])
    assert [o.prompt_logprobs for o in outputs] == [o.prompt_logprobs for o in plain[1]]
    stats = lynx_vllm.stats()
    assert stats.mean_before == stats.mean_after > 0
    assert stats.steps["mixed"] > 5


def test_prompts_keep_their_logprobs_bit_for_bit_under_a_policy(plain, fresh):
    lynx_vllm.set_policy(POLICY)
    outputs = generate(fresh, REQUESTS, prompt_logprobs=2)
    assert [o.prompt_logprobs for o in outputs] == [o.prompt_logprobs for o in plain[1]]
    assert sum(layer.mixed.changed_rows for layer in lynx_vllm.stats().layers) > 0


def test_first_tokens_survive_prefix_caching(plain, fresh):
    lynx_vllm.set_policy(POLICY)
    generate(fresh, REQUESTS)
    again = generate(fresh, REQUESTS)
    assert any(o.num_cached_tokens for o in again)
    assert [t[0] for t in tokens(again)] == [t[0] for t in tokens(plain[1])]


def test_distinct_experts_fall_and_never_rise_and_counts_are_the_kernels(fresh, steps):
    lynx_vllm.set_policy(POLICY)
    generate(fresh, REQUESTS)
    stats = lynx_vllm.stats()
    for number, layer in enumerate(stats.layers):
        for kind, tally in ((Kind.DECODE, layer.decode), (Kind.MIXED, layer.mixed)):
            mine = [s for s in steps if s.kind is kind]
            before = [len(s.own[number].unique()) for s in mine]
            after = [len(s.final[number].unique()) for s in mine]
            moved = [int((s.own[number] != s.final[number]).any(-1).sum()) for s in mine]
            assert all(a <= b for a, b in zip(after, before, strict=True))
            assert (tally.steps, tally.before, tally.after) == (len(mine), sum(before), sum(after))
            assert (tally.changed_rows, tally.unchanged_steps) == (sum(moved), moved.count(0))
            assert tally.decode_rows == sum(int(s.remap.sum()) for s in mine)
            assert tally.rows == sum(len(s.remap) for s in mine)
    assert stats.mean_after < 0.9 * stats.mean_before


def test_only_decode_rows_change(fresh, steps):
    lynx_vllm.set_policy(POLICY)
    generate(fresh, REQUESTS)
    assert {s.kind for s in steps} >= {Kind.PREFILL, Kind.MIXED, Kind.DECODE}
    for step in steps:
        for own, final in zip(step.own, step.final, strict=True):
            assert torch.equal(own[~step.remap], final[~step.remap])
            assert all(len(set(row)) == len(row) for row in final.tolist())


def test_four_tiers_and_a_number_at_once_leave_exact_requests_as_plain_vllm_has_them(plain, fresh):
    lynx_vllm.set_policy("priced")
    wishes = ("exact", 0.01, None, "0.1", 3)
    got, own = tokens(generate(fresh, REQUESTS, wishes)), tokens(plain[1])
    same = [[a == b for a, b in zip(got, own, strict=True)][tier :: len(wishes)] for tier in range(len(wishes))]
    assert all(same[0])
    assert not all(same[-1])
    told = active().tiers.told
    assert set(told) == {"0.01", "0.03", "0.1", "3"}
    assert active().describe()["policy"] == "priced"


def test_the_expert_kernels_add_nothing_for_dropped_slots(fresh, monkeypatch):
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

    kernel, dropped, alone = RoutedExperts.forward_modular, 0, 0

    def forward_modular(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal dropped, alone
        ids, weights = kwargs["topk_ids"], kwargs["topk_weights"]
        idle = weights == 0
        dropped, alone = dropped + int(idle.sum()), alone + int(len(ids) == 1 and bool(idle.any()))
        elsewhere = {**kwargs, "topk_ids": torch.where(idle, (ids + 1) % 32, ids)}
        copies = [
            {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in d.items()} for d in (kwargs, elsewhere)
        ]
        first, second = (kernel(self, *args, **copy) for copy in copies)
        assert torch.equal(first, second)
        return first

    monkeypatch.setattr(RoutedExperts, "forward_modular", forward_modular)
    lynx_vllm.set_policy("topk:k=2")
    generate(fresh, REQUESTS[:8])
    assert dropped > 0
    assert alone > 0  # the last request decodes by itself, and drops its slots too
    stats = lynx_vllm.stats()
    assert stats.mean_after < stats.mean_before


def test_vllm_s_capture_callback_sees_the_final_ids(fresh, steps):
    from lynx_moe.engines.vllm.model.router import LynxRouter

    routers = [m.router for m in model_of(fresh).modules() if isinstance(getattr(m, "router", None), LynxRouter)]
    captured: list[torch.Tensor] = []
    lynx_vllm.set_policy(POLICY)
    routers[0].set_capture_fn(lambda ids: captured.append(ids.clone()))
    try:
        generate(fresh, REQUESTS[:8])
    finally:
        routers[0].set_capture_fn(None)
    kernels = [s.final[0] for s in steps if s.final]
    assert len(captured) == len(kernels)
    assert all(torch.equal(a, b) for a, b in zip(captured, kernels, strict=True))


def test_masks_follow_the_scheduler_s_view_of_every_request(model, monkeypatch):
    """Recounts each step from the scheduler's output alone, in an engine whose cache is too small for its requests."""
    with engine(model, POLICY, **SMALL, num_gpu_blocks_override=12) as llm:
        runner, prompt_length, expected = runner_of(llm), {}, []
        recomputed = 0
        execute, begin, got = type(runner).execute_model, Plan.begin_step, []

        def execute_model(self: Any, scheduled: Any, *args: Any) -> Any:
            nonlocal recomputed
            cached = scheduled.scheduled_cached_reqs
            computed = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
            for new in scheduled.scheduled_new_reqs:
                prompt_length[new.req_id] = len(new.prompt_token_ids)
                computed[new.req_id] = new.num_computed_tokens
            decodes = {}
            for name, count in scheduled.num_scheduled_tokens.items():
                decodes[name] = computed[name] >= prompt_length[name] and count == 1
                recomputed += count > 1 and computed[name] + count > prompt_length[name]
            result = execute(self, scheduled, *args)
            if scheduled.num_scheduled_tokens:
                order = self.input_batch.req_ids
                expected.append([decodes[n] for n in order for _ in range(scheduled.num_scheduled_tokens[n])])
            return result

        def begin_step(plan: Plan) -> None:
            begin(plan)
            assert plan is active()
            got.append(plan.rows.remap[: plan.rows.num_rows].tolist())

        monkeypatch.setattr(type(runner), "execute_model", execute_model)
        monkeypatch.setattr(Plan, "begin_step", begin_step)
        generate(llm, REQUESTS)
    assert got == expected
    assert recomputed > 0
    assert any(any(step) and not all(step) for step in got)
