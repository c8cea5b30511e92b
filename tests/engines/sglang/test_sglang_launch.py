"""What is refused before SGLang loads anything, and how options reach it."""

from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from lynx_moe.cli import app
from lynx_moe.engines.sglang.launch import arguments, serve, versions
from lynx_moe.engines.sglang.launch.options import VARIABLE, Options

GOOD = {
    "device": "cpu",
    "moe_runner_backend": "auto",
    "disaggregation_mode": "null",
    "speculative_algorithm": None,
    "radix_cache_backend": None,
    "dp_size": 1,
    "pp_size": 1,
}


def refused(**given: Any) -> str:
    return arguments.refusal(SimpleNamespace(**{**GOOD, **given})) or ""


def test_ordinary_arguments_pass() -> None:
    assert arguments.refusal(SimpleNamespace(**GOOD)) is None
    assert arguments.refusal(SimpleNamespace(**{**GOOD, "device": "cuda", "tp_size": 4, "ep_size": 4})) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"dp_size": 2}, "--dp-size 2"),
        ({"pp_size": 2}, "--pp-size 2"),
        ({"enable_two_batch_overlap": True}, "--enable-two-batch-overlap"),
        ({"enable_hierarchical_cache": True}, "--enable-hierarchical-cache"),
        ({"device": "npu"}, "device npu"),
        ({"moe_runner_backend": "flashinfer_trtllm"}, "use triton"),
        ({"moe_runner_backend": "triton_kernel"}, "use triton"),
        ({"disaggregation_mode": "decode"}, "--disaggregation-mode decode"),
        ({"speculative_algorithm": "UNO"}, "--speculative-algorithm UNO drafts with the served model itself"),
        ({"speculative_algorithm": "DSPARK"}, "another number of tokens for each request"),
        ({"speculative_algorithm": "DFLASH"}, "drafts a block at once"),
        ({"speculative_algorithm": "FROZEN_KV_MTP"}, "on the KV that the served model has written"),
        (
            {"speculative_algorithm": "MINE"},
            "MINE is not SGLang's own, and was never tried beside a policy; use NGRAM, ",
        ),
        ({"radix_cache_backend": "mine"}, "--radix-cache-backend mine"),
    ],
)
def test_what_cannot_serve_with_a_policy_is_refused_by_name(given: dict[str, Any], said: str) -> None:
    assert refused(**given).startswith("lynx_moe: ")
    assert said in refused(**given)


@pytest.mark.parametrize("verify", ["exact", "remap"])
@pytest.mark.parametrize("algorithm", ["NGRAM", "EAGLE", "EAGLE3", "NEXTN", "STANDALONE", "eagle"])
def test_drafts_pass_where_rows_tell_what_verifies_them(algorithm: str, verify: str) -> None:
    args = SimpleNamespace(**{**GOOD, "speculative_algorithm": algorithm})
    assert arguments.refusal(args, verify) is None


def test_a_way_to_verify_without_drafts_is_refused() -> None:
    reason = arguments.refusal(SimpleNamespace(**GOOD), "remap")
    assert reason == (
        "lynx_moe: verify='remap' is about drafts, and this server makes none; add --speculative-algorithm, or leave "
        "it out"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"policy": "lynx", "verify": "draft"}', "verify='draft' must be one of 'exact', 'remap'"),
        ("{", "no JSON"),
        ("[1]", "expected a dictionary"),
        ("{}", "no policy is named"),
        ('{"policy": "lynxx"}', "unknown policy"),
        ('{"policy": "lynx", "guard": {}}', "unknown key 'guard'"),
        ('{"policy": "lynx", "max_policies": -1}', "max_policies=-1"),
        ('{"policy": "lynx", "presets": {"exact": "lynx"}}', "preset 'exact'"),
    ],
)
def test_bad_options_are_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"lynx_moe|unknown") as error:
        Options.of(text)
    assert said in str(error.value)


def test_what_the_command_asks_reaches_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "refusal", lambda: None)
    monkeypatch.delenv(VARIABLE, raising=False)
    assert Options.asked() is None
    monkeypatch.setenv(VARIABLE, '{"log_every": 1}')
    serve.prepare({"policy": "lynx"})
    asked = Options.asked()
    assert asked is not None
    assert (asked.policy, asked.log_every) == ("lynx", 1)
    with pytest.raises(ValueError, match="leave one of them out"):
        serve.prepare({"policy": "oea:k0=2"})
    monkeypatch.setenv(VARIABLE, "{}")
    serve.prepare({})
    assert Options.asked() == Options(policy="priced")


@pytest.mark.parametrize(
    ("version", "good"), [("0.5.23", True), ("0.5.22.post1", True), ("0.5.18", False), ("0.6.0", False)]
)
def test_other_versions_are_refused_by_name(version: str, good: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions.metadata, "version", lambda name: version)
    reason = versions.refusal()
    assert (reason is None) == good
    assert good or (version in str(reason) and "0.5.22, 0.5.23" in str(reason))


def test_without_sglang_the_command_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise versions.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(versions.metadata, "version", absent)
    with pytest.raises(ValueError, match="SGLang is not installed"):
        serve.prepare({})


def test_the_command_hands_on_sglang_s_own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda _, command: ran.append(command[2:]))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    CliRunner().invoke(app, ["serve", "MODEL", "--engine", "sglang", "--policy", "lynx", "--tp-size", "2"])
    assert ran == [["lynx_moe.engines.sglang.launch.serve", '{"policy": "lynx"}', "MODEL", "--tp-size", "2"]]
    CliRunner().invoke(
        app, ["serve", "MODEL", "--engine", "sglang", "--verify", "remap", "--speculative-algorithm", "NGRAM"]
    )
    asked, *more = ran[1][1:]
    assert (asked, more) == ('{"verify": "remap"}', ["MODEL", "--speculative-algorithm", "NGRAM"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--engine", "sglang", "--max-kl", "0.01"], "--max-kl is known on vLLM only"),
        (["--engine", "sglang", "--tuned", "file"], "--tuned is known on vLLM only"),
        (["--engine", "tgi"], "allowed: vllm, sglang"),
    ],
)
def test_what_the_command_does_not_know_is_refused(line: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    result = CliRunner().invoke(app, ["serve", "MODEL", *line])
    assert said in str(result.exception)


def test_an_engine_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    result = CliRunner().invoke(app, ["serve", "MODEL", "--engine", "sglang"])
    assert "SGLang is not installed here" in str(result.exception)
