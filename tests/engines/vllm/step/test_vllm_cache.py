"""Which blocks find one another, on vLLM's own requests and hashes, without an engine."""

import hypothesis.strategies as st
import pytest
from core import SIZE, Core, shared
from hypothesis import HealthCheck, given, settings

from lynx_moe.engines.vllm.step import cache


@pytest.fixture(autouse=True)
def _no_policy_was_set_before():
    cache.switched(True)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    prompt=st.integers(1, 20),
    generated=st.integers(0, 20),
    wish=st.sampled_from([None, "exact", "balanced", "fast", "vanilla", "oea:k0=3"]),
    server=st.sampled_from(["vanilla", "lynx"]),
    reader=st.sampled_from([None, "exact", "fast"]),
)
def test_prompts_are_shared_and_so_is_what_exact_requests_generate(prompt, generated, wish, server, reader):
    cache.switched(True)
    core = Core(server)
    written = core.add(prompt, wish, generated)
    read = core.add(prompt + generated, reader)
    exact = wish in ("exact", "vanilla") or (server == "vanilla" and wish in (None, "balanced"))
    assert shared(written, read) == (prompt + generated if exact else prompt) // SIZE
    again = core.add(prompt, wish, generated)  # back from preemption, or the same once more
    assert shared(written, again) == len(written.block_hashes) == (prompt + generated) // SIZE


@pytest.mark.parametrize("by", ["worker in this process", "collective_rpc"])
def test_a_switch_marks_what_is_hashed_and_not_computed_yet(by):
    core = Core("vanilla")
    running, exact = core.add(6, None, 6), core.add(6, "exact", 6)
    hashes = list(exact.block_hashes)
    assert shared(running, core.add(12)) == 3
    if by == "collective_rpc":
        args = ("lynx", {"max_kl": 0.01})
        told = cache.collective_rpc(lambda core, *args: args, core, "lynx_set_policy", None, args, None)
        assert told == ("lynx_set_policy", None, args, None)
    else:
        cache.switched(False)
    assert shared(running, core.add(12)) == 1  # block 1 holds two tokens of the prompt, and two that may be remapped
    assert exact.block_hashes == hashes
    cache.switched(True)
    assert shared(core.add(6, None, 6), core.add(12)) == 1  # once a server has remapped, it counts as one that does


def test_a_core_that_has_seen_no_request_learns_of_the_switch():
    core = Core("vanilla")
    cache.switched(False)
    assert shared(core.add(4, None, 8), core.add(12)) == 1


def test_other_calls_and_engines_without_the_plugin_s_options_are_left_alone():
    core = Core("vanilla")
    cache.collective_rpc(lambda *_: None, core, "lynx_set_policy", None, ("vanilla",))
    cache.collective_rpc(lambda *_: None, core, "lynx_set_policy", None, (None, {"slo_tpot_ms": 50}))  # no other policy
    cache.collective_rpc(lambda *_: None, core, "lynx_stats")
    assert shared(core.add(4, None, 8), core.add(12)) == 3
    core = Core("lynx")
    core.vllm_config.additional_config = {}
    assert shared(core.add(4, "fast", 8), core.add(12)) == 3
