"""Bad requests are refused, each by one line that says what to do; importing the plugin costs nothing."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from lynx_moe.engines.vllm.launch.options import Options, check_engine


def config(extra=None, **parallel):
    defaults = {
        "data_parallel_size": 1,
        "tensor_parallel_size": 1,
        "enable_elastic_ep": False,
        "pipeline_parallel_size": 1,
        "prefill_context_parallel_size": 1,
        "use_sequence_parallel_moe": False,
        "use_ubatching": False,
    }
    return SimpleNamespace(
        additional_config=extra,
        speculative_config=None,
        parallel_config=SimpleNamespace(**{**defaults, **parallel}),
        cache_config=SimpleNamespace(kv_sharing_fast_prefill=False),
        kv_transfer_config=None,
    )


@pytest.mark.parametrize("extra", [None, {}, {"other": 1}])
def test_no_options_means_inert(extra):
    assert Options.of(config(extra)) is None


def test_options_have_defaults():
    options = Options.of(config({"lynx_moe": {"policy": "lynx:alpha=3,beta=2"}}))
    assert options == Options(policy="lynx:alpha=3,beta=2", stats=True, log_every=60.0)
    assert options.named["balanced"] is None
    assert Options(policy="lynx", presets={"fast": "topk:k=2"}).named == {"balanced": None, "fast": "topk:k=2"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("lynx", "expected a dictionary"),
        ({}, "no policy is named"),
        ({"policy": "lynx", "polcy": 1}, "unknown key 'polcy'; allowed: policy, stats, log_every"),
        ({"policy": 3}, "policy=3 must be a spec string"),
        ({"policy": "lnyx"}, "did you mean 'lynx'"),
        ({"policy": "lynx:alpha=x"}, "must be a number"),
        ({"policy": "lynx", "stats": "yes"}, "stats='yes' must be true or false"),
        ({"policy": "lynx", "log_every": -1}, "log_every=-1 must be a number of seconds"),
        ({"policy": "lynx", "max_policies": -1}, "max_policies=-1 must be a whole number"),
        ({"policy": "lynx", "verify": "remp"}, "verify='remp' must be one of 'exact', 'remap', 'draft'"),
        ({"policy": "lynx", "verify": ["exact"]}, "must be one of 'exact', 'remap', 'draft'"),
        ({"policy": "lynx", "verify": "draft", "guard": {"max_error": 0.1}}, "leave out either"),
        ({"policy": "lynx", "presets": "fast"}, "presets='fast' must map names to spec strings"),
        ({"policy": "lynx", "presets": {"fast": 3}}, "preset 'fast': 3 must be two strings"),
        ({"policy": "lynx", "presets": {"exact": "lynx"}}, "preset 'exact' must be .* neither 'exact' nor a policy's"),
        ({"policy": "lynx", "presets": {"topk": "topk:k=1"}}, "preset 'topk' must be"),
        ({"policy": "lynx", "presets": {"a:b": "lynx"}}, "preset 'a:b' must be"),
        ({"policy": "lynx", "presets": {"mine": "lnyx"}}, "did you mean 'lynx'"),
        ({"policy": "lynx", "back_off_kl": 0}, "back_off_kl=0 must be a number of nats from 1e-05 to 1, such as 0.01"),
        ({"policy": "lynx", "back_off_kl": float("nan")}, "back_off_kl=nan must be"),
        ({"policy": "lynx", "back_off_kl": 0.01, "max_kl": 0.01}, "back_off_kl begins with the policy's; leave out"),
        ({"policy": "lynx", "back_off_kl": 0.01, "shadow": 0}, "back_off_kl=0.01 .* nothing measures it"),
        ({"policy": "lynx", "back_off_kl": 0.01, "guard": {"max_kl": 0.1}}, "a guard moves the policy too"),
        ({"policy": "vanilla", "back_off_kl": 0.01}, "changes nothing; leave out either"),
        ({"policy": "lynx", "back_off_kl": 0.01, "verify": "draft"}, "leaves the served model exact"),
        ({"policy": "lynx", "act_from": 0}, "act_from=0 must be a whole number of rows, 1 or more"),
        ({"policy": "lynx", "act_from": None}, "act_from=None must be a whole number"),
        ({"policy": "lynx", "act_from": 2.5}, "act_from=2.5 must be a whole number"),
        ({"policy": "lynx", "act_to": -1}, "act_to=-1 must be a whole number of rows, 0 or more"),
        ({"policy": "lynx", "act_to": True}, "act_to=True must be a whole number"),
        ({"policy": "lynx", "act_from": 9, "act_to": 8}, "act_from=9 is above act_to=8; swap them"),
    ],
)
def test_bad_options_are_refused(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        Options.of(config({"lynx_moe": given}))
    assert "\n" not in str(caught.value)


def test_the_batch_sizes_in_which_a_policy_acts():
    def sizes(**given):
        options = Options(policy="lynx", **given)
        return [rows for rows in range(10) if options.acts_at(rows)]

    assert sizes() == list(range(10))  # a step of exact requests alone is left to what it always was
    assert sizes(act_from=4) == list(range(4, 10))
    assert sizes(act_from=2, act_to=4) == [2, 3, 4]
    assert sizes(act_to=0) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prefill_context_parallel_size": 2}, "prefill_context_parallel_size=2"),
        ({"use_sequence_parallel_moe": True}, r"\(sequence-parallel MoE\).*or leave out --enable-expert-parallel"),
        ({"enable_elastic_ep": True}, "enable_elastic_ep"),
        ({"use_ubatching": True}, "enable_dbo"),
    ],
)
def test_settings_that_would_feed_wrong_rows_are_refused(changed, message):
    check_engine(config())
    with pytest.raises(ValueError, match=message):
        check_engine(config(**changed))


def test_data_parallel_engines_are_admitted_where_vllm_tells_who_routes_first(monkeypatch):
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

    check_engine(config(data_parallel_size=2))
    monkeypatch.delattr(MoERunner, "do_naive_dispatch_combine")
    check_engine(config())
    with pytest.raises(ValueError, match=r"data_parallel_size=2: .*use vLLM 0\.30 or newer, or 1"):
        check_engine(config(data_parallel_size=2))


def test_ways_of_drafting_are_admitted_and_refused_by_name():
    vllm_config = config()
    for allowed in ("ngram", "ngram_gpu", "suffix", "draft_model", "mtp", "eagle", "eagle3"):
        vllm_config.speculative_config = SimpleNamespace(method=allowed)
        check_engine(vllm_config)
    vllm_config.speculative_config = SimpleNamespace(method="custom_class")
    with pytest.raises(ValueError, match=r"'custom_class' drafts by a class of yours.* use ngram, ngram_gpu, suffix"):
        check_engine(vllm_config)


def test_how_drafts_are_verified_needs_drafts():
    vllm_config = config({"lynx_moe": {"policy": "lynx", "verify": "remap"}})
    with pytest.raises(ValueError, match="lynx_moe: verify='remap' is about drafts"):
        check_engine(vllm_config)
    vllm_config.speculative_config = SimpleNamespace(method="ngram")
    check_engine(vllm_config)
    staged = config({"lynx_moe": {"policy": "lynx", "verify": "draft"}}, pipeline_parallel_size=2)
    staged.speculative_config = SimpleNamespace(method="mtp")
    with pytest.raises(ValueError, match="pipeline_parallel_size=2 stages the last one alone has the model"):
        check_engine(staged)


def test_whose_policy_is_in_force_follows_from_how_drafts_are_verified():
    found = {verify: Options(policy="lynx", verify=verify) for verify in ("exact", "remap", "draft")}
    assert {name: (one.for_target, one.of_drafter.policy) for name, one in found.items()} == {
        "exact": ("lynx", "vanilla"),
        "remap": ("lynx", "vanilla"),
        "draft": ("vanilla", "lynx"),
    }


def test_fast_prefill_is_refused():
    vllm_config = config()
    vllm_config.cache_config.kv_sharing_fast_prefill = True
    with pytest.raises(ValueError, match="kv_sharing_fast_prefill"):
        check_engine(vllm_config)


def test_batch_invariance_is_refused(monkeypatch):
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    from vllm import envs

    if hasattr(envs.__getattr__, "cache_clear"):
        envs.__getattr__.cache_clear()
    with pytest.raises(ValueError, match="VLLM_BATCH_INVARIANT=1"):
        check_engine(config())


@pytest.mark.parametrize("version", [(0, 25, 0), (0, 29, 2), (0, 34, 0), (1, 0, 0)])
def test_other_versions_are_refused(monkeypatch, version):
    import vllm

    monkeypatch.setattr(vllm, "__version_tuple__", version)
    with pytest.raises(
        ValueError, match=r"supported: 0\.26, 0\.30, 0\.31, 0\.32, 0\.33 \(tested: 0\.30\.0 to 0\.32\.0\)"
    ):
        check_engine(config())


def test_importing_the_plugin_does_not_import_vllm():
    code = "import sys, lynx_moe.engines.vllm.plugin; sys.exit('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_registering_twice_wraps_once():
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import base_loader

    from lynx_moe.engines.vllm.plugin import register

    register()
    first = EngineArgs.create_engine_config, base_loader.initialize_model
    register()
    assert (EngineArgs.create_engine_config, base_loader.initialize_model) == first


def test_an_older_vllm_that_lacks_two_attributes_is_read_all_the_same():
    from lynx_moe.engines.vllm.launch.versions import experts_per_token, image_bias

    assert image_bias(SimpleNamespace()) == (None, 0)
    assert image_bias(SimpleNamespace(bias_vl="bias", image_sentinel_lo=3)) == ("bias", 3)
    assert experts_per_token(SimpleNamespace(hf_text_config=SimpleNamespace(num_experts_per_tok=4))) == 4
    assert experts_per_token(SimpleNamespace(hf_text_config=SimpleNamespace())) == 0
    assert experts_per_token(SimpleNamespace(get_num_experts_per_tok=lambda: 8)) == 8


@pytest.mark.parametrize(
    "moving",
    [
        {"max_kl": 0.01},
        {"slo_tpot_ms": 50},
        {"guard": {"max_kl": 0.01}},
        {"tuned": {"lynx_moe_tuned": 1, "model": {}, "max_kl": 0.01, "batches": {"1": "priced:price=0.01"}}},
    ],
)
def test_what_moves_the_served_model_s_policy_is_not_a_drafter_s(moving):
    given = moving if "tuned" in moving else {"policy": "priced", **moving}
    of_drafter = Options.of(SimpleNamespace(additional_config={"lynx_moe": given})).of_drafter
    assert of_drafter == Options(policy="vanilla")
