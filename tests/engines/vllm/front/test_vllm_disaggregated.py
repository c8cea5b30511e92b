"""Prefill and decode apart: prompts' KV comes from an engine without Lynx, through vLLM's own connector on disk."""

import pytest
from tiny_vllm import engine, generate, model_of, prompts, save_model, tokens

from lynx_moe.engines import vllm as lynx_vllm

BLOCK = 32
MANY = prompts(40, seed=8, longest=100)
# The connector stores the whole blocks of all but a prompt's last token, and looks for those of all but its last two.
REQUESTS = [
    each for each in MANY if len(each["prompt_token_ids"]) > BLOCK + 1 and len(each["prompt_token_ids"]) % BLOCK != 1
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model("qwen3_moe", tmp_path_factory.mktemp("qwen3_moe"))


def transfer(folder, role):
    storage = {"shared_storage_path": str(folder)}
    config = {"kv_connector": "ExampleConnector", "kv_role": role, "kv_connector_extra_config": storage}
    return {"kv_transfer_config": config, "block_size": BLOCK}


def test_the_decode_instance_remaps_and_the_prefill_instance_does_not(model, tmp_path):
    from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

    with engine(model, **transfer(tmp_path, "kv_producer")) as llm:
        assert {type(m.router) for m in model_of(llm).modules() if type(m).__name__ == "MoERunner"} == {CPURouter}
        first = [token[0] for token in tokens(generate(llm, REQUESTS))]
    assert any(tmp_path.iterdir())
    with engine(model, "lynx:alpha=0.3,beta=1", **transfer(tmp_path, "kv_consumer")) as llm:
        outputs = generate(llm, REQUESTS)
        stats = lynx_vllm.stats()
    fetched = [(len(request["prompt_token_ids"]) - 1) // BLOCK * BLOCK for request in REQUESTS]
    assert [output.num_cached_tokens for output in outputs] == fetched
    assert [token[0] for token in tokens(outputs)] == first  # what is left of a prompt is not remapped either
    assert stats.mean_after < 0.5 * stats.mean_before
