"""Which engines run a step twice: vLLM's own configuration of real architectures, before any weight is loaded."""

import logging

import pytest
import transformers

from lynx_moe.control.options import GuardOptions
from lynx_moe.engines.shared.refusals import Refusal
from lynx_moe.engines.vllm.launch import twice
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.plugin import register

SMALL = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 512,
}
MODELS = {
    "hybrid": transformers.Qwen3NextConfig(
        architectures=["Qwen3NextForCausalLM"], linear_num_key_heads=2, linear_num_value_heads=2, **SMALL
    ),
    "plain": transformers.Qwen3MoeConfig(architectures=["Qwen3MoeForCausalLM"], **SMALL),
}
CONNECTOR = {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}


@pytest.fixture
def configured(tmp_path):
    """What vLLM makes of a model's folder and of our options."""
    register()
    from vllm.engine.arg_utils import EngineArgs

    def make(model, ours, **more):
        MODELS[model].save_pretrained(tmp_path / model)
        extra = {"lynx_moe": {"policy": "priced", **ours}}
        given = {
            "model": str(tmp_path / model),
            "skip_tokenizer_init": True,
            "enforce_eager": True,
            "dtype": "bfloat16",
        }
        return EngineArgs(**{**given, **more}, additional_config=extra).create_engine_config()

    return make


def ours(caplog):
    """The lines that are this plug-in's."""
    return [record.getMessage() for record in caplog.records if record.name == "vllm.lynx_moe"]


@pytest.mark.parametrize(
    ("options", "asks"),
    [({"max_kl": 0.01}, "max_kl"), ({"shadow": 0.1}, "shadow=0.1"), ({"guard": {"max_kl": 0.1}}, "max_kl")],
)
def test_a_state_that_would_advance_twice_is_refused_by_name(configured, options, asks):
    with pytest.raises(
        Refusal, match=f"^lynx_moe: {asks} runs the model twice on one step, and Qwen3Next.* keeps a state"
    ):
        configured("hybrid", options)
    configured("plain", options)


def test_where_nobody_asked_the_share_is_none_with_one_warning(configured, caplog):
    with caplog.at_level(logging.WARNING, logger="vllm.lynx_moe"):
        assert twice.share(configured("plain", {}), None, bounded=False) == twice.DEFAULT
        assert ours(caplog) == []
        assert twice.share(configured("hybrid", {}), None, bounded=False) == 0
    (line,) = ours(caplog)
    assert "no shadow steps" in line
    assert "Qwen3NextForCausalLM keeps a state" in line


def test_what_counts_or_sends_each_pass_is_refused_by_name(configured):
    config = configured("plain", {})
    config.parallel_config.enable_eplb = True
    assert "expert load balancing counts each pass" in twice.refusal(config)
    config = configured("plain", {}, kv_transfer_config=CONNECTOR)
    assert "a KV connector may send" in twice.refusal(config)


def test_engines_that_meet_in_every_layer_settle_how_many_passes_they_make(configured, caplog, monkeypatch):
    import vllm.v1.worker.dp_utils as dp_utils

    two = {"data_parallel_size": 2, "distributed_executor_backend": "mp"}
    config = configured("plain", {"max_kl": 0.01}, **two)
    assert twice.share(config, None, bounded=True) == twice.DEFAULT
    assert ours(caplog) == []
    monkeypatch.setattr(dp_utils, "_run_ar", lambda tokens: tokens)  # as a vLLM that tells them in another way
    with caplog.at_level(logging.WARNING, logger="vllm.lynx_moe"):
        assert twice.share(config, None, bounded=False) == 0
    assert "engines meet in every layer, and this vLLM has no `dp_utils._run_ar`" in ours(caplog)[-1]
    with pytest.raises(Refusal, match=r"^lynx_moe: max_kl runs the model twice on one step, and data_parallel_size=2"):
        configured("plain", {"max_kl": 0.01}, **two)


@pytest.mark.parametrize("most", [0, -0.01, float("nan"), float("inf"), 5, 1e-9, "0.01", True])
def test_a_bound_that_is_none_is_refused_in_one_line(most):
    with pytest.raises(ValueError, match=r"^lynx_moe: max_kl=.* must be a number of nats from 1e-05 to 1") as caught:
        Options(policy="priced", max_kl=most)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("others", "why"),
    [
        ({"verify": "draft"}, "verify='draft' leaves the served model exact"),
        ({"guard": GuardOptions(max_error=0.1)}, "a guard moves the policy too"),
        ({"shadow": 0}, "without shadow steps"),
        ({"policy": "vanilla"}, "policy='vanilla' changes nothing"),
    ],
)
def test_what_excludes_a_bound_is_said(others, why):
    with pytest.raises(ValueError, match="max_kl=0.01 bounds what the policy does, and " + why):
        Options(**{"policy": "priced", "max_kl": 0.01, **others})


@pytest.mark.parametrize("share", [-0.1, 1.5, "all", True, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=r"shadow=.* must be a share of the steps from 0 to 1"):
        Options(policy="priced", shadow=share)


def test_a_guard_needs_what_it_is_measured_by():
    with pytest.raises(ValueError, match="guard: max_kl is measured in shadow steps, and shadow=0"):
        Options(policy="priced", shadow=0, guard=GuardOptions(max_kl=0.1))
