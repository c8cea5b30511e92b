"""One tiny model per router family, in a real engine: the rule that was read is the one the engine computes, the policy
takes effect, and models that cannot be remapped are refused before their weights are loaded."""

from dataclasses import dataclass
from typing import Any

import pytest
import tiny_transformers
import torch
from tiny_vllm import engine, generate, prompts, save_model
from torch import Tensor

from lynx_moe.engines import vllm as lynx_vllm
from lynx_moe.engines.vllm.step.plan import Plan
from lynx_moe.routing import RouterSpec, select

SERVED = ["mixtral", "olmoe", "deepseek_v2", "deepseek_v3", "gpt_oss", "phimoe", "gemma4"]
# What Phi-3.5-MoE's own checkpoint says. By the name that transformers gives it vLLM finds no model of its own, and
# takes its Transformers backend, whose routing is not known.
OVERRIDES = {"phimoe": {"hf_overrides": {"architectures": ["PhiMoEForCausalLM"]}}}


@dataclass
class Call:
    spec: RouterSpec
    logits: Tensor
    own_ids: Tensor
    own_weights: Tensor
    final_ids: Tensor
    final_weights: Tensor


@pytest.mark.parametrize("family", SERVED)
def test_a_family_is_remapped_by_its_own_rule(family, tmp_path, monkeypatch):
    calls: list[Call] = []
    reroute = Plan.reroute

    def spy(plan: Plan, logits: Tensor, weights: Tensor, ids: Tensor, layer: int, *hidden: Tensor) -> Any:
        final = reroute(plan, logits, weights, ids, layer, *hidden)
        if final is not None:
            spec = plan.layers[layer].spec
            tensors = (logits, ids, weights, final.ids, final.weights)
            calls.append(Call(spec, *(t.clone() for t in tensors)))
        return final

    monkeypatch.setattr(Plan, "reroute", spy)
    with engine(save_model(family, tmp_path), "lynx", **OVERRIDES.get(family, {})) as llm:
        generate(llm, prompts(16, seed=3))
    stats = lynx_vllm.stats()
    assert [layer.name for layer in stats.layers] == sorted(layer.name for layer in stats.layers)
    assert len(stats.layers) == 2
    assert not stats.bypassed_layers
    assert stats.mean_after < stats.mean_before
    compared = 0
    for call in calls:
        clear_T = call.logits.float().sort(-1).values.diff(dim=-1).gt(0).all(-1)  # bfloat16 logits are often equal
        compared += int(clear_T.sum())
        ours = select(call.logits, call.spec)
        assert torch.equal(ours.ids.sort(-1).values[clear_T], call.own_ids.long().sort(-1).values[clear_T])
        mine, theirs = ours.weights.sort(-1).values, call.own_weights.sort(-1).values
        torch.testing.assert_close(mine[clear_T], theirs[clear_T], rtol=2e-2, atol=2e-3)
        assert len(call.final_ids.unique()) <= len(call.own_ids.unique())
        assert all(len(set(row)) == call.spec.top_k for row in call.final_ids.tolist())
        assert call.final_weights.isfinite().all()
    assert compared > 20


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("qwen3", "has no MoE layer that vLLM routes"),
        ("phimoe", "no MoE layer of .* can be remapped: the model routes by its own function"),
    ],
)
def test_a_model_that_cannot_be_remapped_is_refused(family, message, tmp_path, monkeypatch):
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    monkeypatch.setattr(DefaultModelLoader, "load_weights", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(ValueError, match=message), engine(save_model(family, tmp_path), "lynx"):
        pass


def test_after_it_transformers_makes_the_same_model_as_before(tmp_path):
    """Of the tests' own engines: vLLM serves Phi-MoE through transformers' class, and changes it."""
    with pytest.raises(ValueError, match="no MoE layer"), engine(save_model("phimoe", tmp_path), "lynx"):
        pass
    assert tiny_transformers.make(tiny_transformers.ARCHITECTURES["phimoe"])


def test_wishes_are_checked_by_the_layers_where_the_configuration_says_nothing(tmp_path):
    """DBRX's experts stand in a nested part of its configuration, which vLLM's helpers do not read. (Its checkpoints
    vLLM 0.32 does not load.)"""
    with engine(save_model("dbrx", tmp_path), "lynx", load_format="dummy") as llm:
        assert llm.llm_engine.model_config.get_num_experts() == 0
        assert len(generate(llm, prompts(4, seed=3), ("exact", "fast", "oea:k0=2", None))) == 4
        with pytest.raises(ValueError, match="k0=5 is more than the model's top_k=4; use k0 <= 4; allowed: exact"):
            generate(llm, prompts(1, seed=3), ("oea:k0=5",))
        assert (lynx_vllm.shape().num_experts, lynx_vllm.shape().top_k) == (16, 4)


def test_kernels_that_route_by_themselves_are_named(tmp_path, monkeypatch):
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

    monkeypatch.setattr(MoERunner, "is_monolithic", property(lambda layer: "layers.1" in layer.layer_name))
    with engine(save_model("mixtral", tmp_path), "lynx"):
        stats = lynx_vllm.stats()
    (name,) = stats.bypassed_layers
    assert name == "model.layers.1.block_sparse_moe.experts"
    assert "routes by itself" in stats.bypassed_layers[name]
    assert [layer.name for layer in stats.layers] == ["model.layers.0.block_sparse_moe.experts"]


def test_a_user_s_worker_extension_with_our_methods_names_is_refused(tmp_path):
    with (
        pytest.raises(ValueError, match=r"user_extension\.Clashing' has methods that this plug-in brings: lynx_policy"),
        engine(save_model("mixtral", tmp_path), "lynx", worker_extension_cls="user_extension.Clashing"),
    ):
        pass


def test_a_knob_that_does_not_fit_the_model_is_refused(tmp_path):
    with (
        pytest.raises(ValueError, match=r"layer model\.layers\.0\.block_sparse_moe\.experts"),
        engine(save_model("mixtral", tmp_path), "oea:k0=3"),
    ):
        pass
