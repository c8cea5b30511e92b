"""Connectors that would hand on KV that was written under remapping are refused, by what vLLM itself reads."""

import shutil

import pytest
from asking import BLOCK, WILD, remapped_blocks, turns
from tiny_vllm import engine
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

from lynx_moe.engines.vllm import plugin
from lynx_moe.engines.vllm.launch import connectors
from lynx_moe.engines.vllm.launch.connectors import BY_REQUEST, BY_VLLM_HASHES, PROMPTS_ONLY, STORE_GENERATED
from lynx_moe.testbed import path


def transfer(name, role="kv_both", extra=None, **more):
    return KVTransferConfig(kv_connector=name, kv_role=role, kv_connector_extra_config=extra or {}, **more)


def inside(*children):
    return transfer("MultiConnector", extra={"connectors": list(children)})


ROLES = ("kv_producer", "kv_consumer", "kv_both")
LMCACHE = {"lmcache.save_decode_cache": False}
REFUSED = [
    *((transfer(name, role), f"'{name}' stores what requests generate") for name in STORE_GENERATED for role in ROLES),
    (transfer("NixlConnector", "kv_consumer", {"bidirectional_kv_xfer": True}), "bidirectional_kv_xfer of NixlConnec"),
    (
        transfer("NixlPullConnector", extra={"bidirectional_kv_xfer": True}),
        "back to the prefill instance.* leave it",
    ),
    (transfer("LMCacheConnectorV1"), r'set "lmcache.save_decode_cache": false in kv_connector_extra_config'),
    (transfer("LMCacheConnectorV1", extra={"lmcache.save_decode_cache": True}), "by a hash of its own"),
    (inside({"kv_connector": "ExampleConnector"}, {"kv_connector": "HF3FSKVConnector"}), "'HF3FSKVConnector' stores"),
    (inside({"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_producer"}), "LMCacheConnectorV1 finds KV"),
]
LET_IN = [
    None,
    KVTransferConfig(),
    *(transfer(name, role) for name in (*BY_VLLM_HASHES, *BY_REQUEST, "ExampleConnector") for role in ROLES),
    transfer("NixlConnector", "kv_consumer", {"bidirectional_kv_xfer": False}),
    transfer("LMCacheConnectorV1", "kv_consumer"),
    transfer("LMCacheConnectorV1", extra=LMCACHE),
    inside({"kv_connector": "LMCacheConnectorV1", "kv_connector_extra_config": LMCACHE}),
    inside({"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_consumer"}),
]


@pytest.mark.parametrize(("given", "message"), REFUSED)
def test_what_would_hand_on_remapped_kv_is_refused_by_name(given, message):
    reason = connectors.refusal(given)
    assert reason is not None
    assert "\n" not in reason
    with pytest.raises(ValueError, match=message):
        raise ValueError(reason)


@pytest.mark.parametrize("given", LET_IN)
def test_the_others_are_let_in_without_a_word(given):
    assert connectors.refusal(given) is None
    assert connectors.unknown(given) == []


def test_one_that_is_not_known_is_named_where_it_may_store():
    mine = {"kv_connector_module_path": "mine.connector"}
    assert connectors.unknown(transfer("MyConnector", **mine)) == ["MyConnector"]
    assert connectors.unknown(transfer("HF3FSKVConnector", **mine)) == ["HF3FSKVConnector"]  # another one of that name
    assert connectors.unknown(transfer("MyConnector", "kv_consumer", **mine)) == []
    assert connectors.unknown(inside({"kv_connector": "MyConnector", **mine})) == ["MyConnector"]


def test_the_names_are_vllm_s():
    registered = set(KVConnectorFactory._registry)
    known = {*BY_VLLM_HASHES, *BY_REQUEST, *PROMPTS_ONLY, *STORE_GENERATED}
    assert known <= registered
    assert registered - known == {"MultiConnector", "HiSparseConnector"}


def test_an_engine_is_refused_before_it_is_built():
    from vllm.engine.arg_utils import EngineArgs

    plugin.register()
    given = {"model": str(path("qwen3-moe")), "additional_config": {"lynx_moe": {"policy": "vanilla"}}}
    message = r"lynx_moe: kv_connector='FlexKVConnectorV1' stores .*; use one of Offl"
    with pytest.raises(ValueError, match=message):
        EngineArgs(**given, kv_transfer_config=transfer("FlexKVConnectorV1")).create_engine_config()


def second_turn(folder, **connector):
    """On an engine that stores what it computes, and has no other cache: how many tokens of an exact request's prompt,
    which repeats a remapped conversation, came from the store, and which of its blocks were written under another
    routing."""
    config = {"kv_role": "kv_both", "kv_connector_extra_config": {"shared_storage_path": str(folder)}, **connector}
    options = {"kv_transfer_config": config, "block_size": BLOCK, "async_scheduling": False, "max_model_len": 512}
    with engine(str(path("qwen3-moe")), "vanilla", dtype="auto", enable_prefix_caching=False, **options) as llm:
        _, prompt = turns(llm, WILD, None)
        return remapped_blocks(llm, prompt, lambda: shutil.rmtree(folder))


def test_a_connector_that_stores_prompts_only_hands_on_nothing_that_was_remapped(tmp_path):
    cached, remapped = second_turn(tmp_path / "store", kv_connector="ExampleConnector")
    assert cached >= BLOCK
    assert remapped == [False] * 3


def test_one_with_a_hash_of_its_own_does_and_is_warned_of(tmp_path, caplog):
    """Why those of vLLM's own are refused: the exact request reads remapped KV."""
    with caplog.at_level("WARNING", "vllm.lynx_moe"):
        found = second_turn(tmp_path / "store", kv_connector="Hoarder", kv_connector_module_path="hoarder")
    assert found == (3 * BLOCK, [False, True, True])
    assert "nothing is known of the KV connector Hoarder" in caplog.text
