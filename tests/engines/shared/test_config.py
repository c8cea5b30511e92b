"""Experts as configuration files name them: as numbers and lists, at the top, nested, and in lists of blocks."""

import json
from pathlib import Path

import pytest

from lynx_moe.engines.shared import config
from lynx_moe.policies import make_policy

ROUTERS = {
    "plain": ({"num_experts": 128, "num_experts_per_tok": 8}, {(128, 8)}),
    "two kinds, alike": ({"moe_num_experts": [64, 64], "moe_k": 6}, {(64, 6)}),
    "a list of one": ({"num_experts": [64], "moe_topk": [8, 8, 8]}, {(64, 8)}),
    "nested": ({"text_config": {"num_experts": 16, "top_k_experts": 2}, "vision_config": {"depth": 4}}, {(16, 2)}),
    "feed-forward": ({"ffn_config": {"moe_num_experts": 16, "moe_top_k": 4}}, {(16, 4)}),
    "top-k above": ({"num_experts_per_token": 3, "parts": {"ffn": {"n_routed_experts": 9}}}, {(9, 3)}),
    "blocks": (
        {"block_configs": [{"block_type": "mamba"}, {"n_routed_experts": 48, "num_experts_per_tok": 4},
                           {"n_routed_experts": 96, "num_experts_per_tok": 6}]},
        {(48, 4), (96, 6)},
    ),
    "other numbers": (
        {"num_experts": 288, "num_experts_per_tok": 8, "moe_intermediate_size": 1280, "share_expert_dim": 1280,
         "expert_ffn_hidden_size": 2048, "expert_layer_period": 2, "top_k": 50, "index_topk": 512, "topk_group": 4},
        {(288, 8)},
    ),
    "identities": ({"n_routed_experts": 512, "zero_expert_num": 256, "moe_topk": 12}, {(512, 12), (768, 12)}),
    "unknown top-k": ({"num_local_experts": 8, "wanted": 2}, {(8, None)}),
}  # fmt: skip


@pytest.mark.parametrize("kind", ROUTERS)
def test_experts_are_found_where_they_are_named(kind: str) -> None:
    given, expected = ROUTERS[kind]
    assert set(config.routers(given)) == expected
    assert not config.is_dense(given)


@pytest.mark.parametrize(
    "dense",
    [
        {"model_type": "llama", "hidden_size": 64},
        {"model_type": "jamba", "num_experts": 1, "num_experts_per_tok": 1, "expert_layer_period": 2},
        {"model_type": "granitemoehybrid", "num_local_experts": 0, "num_experts_per_tok": 0},
        {"model_type": "gemma4", "text_config": {"num_experts": None, "enable_moe_block": False}},
        {"model_type": "nemotron_h", "hybrid_override_pattern": "M-M-M*-", "n_routed_experts": 8},
    ],
)
def test_a_model_certainly_without_experts_is_dense(dense: dict) -> None:
    with pytest.raises(ValueError, match="is a dense model"):
        config.check(dense, make_policy("lynx"), "m")


@pytest.mark.parametrize(
    "unsure",
    [
        {"model_type": "new", "experts_in_a_layer": 64},
        {"model_type": "new", "moe": {"count": 64}},
        {"model_type": "nemotron_h", "hybrid_override_pattern": "MEM*"},
        {"model_type": "mixtral"},  # eight, by its class
    ],
)
def test_what_is_not_certain_is_left_to_the_engine(unsure: dict) -> None:
    config.check(unsure, make_policy("topk:k=10"), "m")


def test_a_policy_is_refused_where_it_fits_no_part_of_the_model() -> None:
    speaker = {"thinker": {"num_experts": 128, "num_experts_per_tok": 8}, "talker": {"num_experts": 128, "moe_k": 6}}
    config.check(speaker, make_policy("topk:k=7"), "m")
    with pytest.raises(ValueError, match="k=9"):
        config.check(speaker, make_policy("topk:k=9"), "m")


def test_overrides_reach_nested_parts_and_leave_the_rest() -> None:
    given = {"a": 1, "text_config": {"num_experts": 16, "num_experts_per_tok": 2}}
    changed = config.overridden(given, {"text_config": {"num_experts_per_tok": 4}, "b": {"c": 2}})
    assert changed == {"a": 1, "text_config": {"num_experts": 16, "num_experts_per_tok": 4}, "b": {"c": 2}}
    assert given["text_config"]["num_experts_per_tok"] == 2


def test_a_file_that_is_no_configuration_is_named(tmp_path: Path) -> None:
    for content in ("{", "[]", b"\xff\xff"):
        (tmp_path / "config.json").write_bytes(content.encode() if isinstance(content, str) else content)
        with pytest.raises(ValueError, match=r"holds no readable config\.json"):
            config.read(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"name": "Café"}), encoding="utf-8")
    assert config.read(tmp_path) == {"name": "Café"}
