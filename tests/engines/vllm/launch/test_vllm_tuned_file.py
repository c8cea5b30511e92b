"""A file of tuned settings at an engine's start: whatever is wrong with it is one line before any weight is loaded."""

import json
import logging

import pytest
import transformers

from lynx_moe.control.tuned import KEY
from lynx_moe.engines.shared.refusals import Refusal
from lynx_moe.engines.vllm.launch import tuned
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.plugin import register

BATCHES = {"1": "vanilla", "2-4": "priced:price=0.005"}
SMALL = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
}


def content(**change):
    return {KEY: 1, "model": {}, "max_kl": 0.01, "batches": BATCHES, **change}


@pytest.fixture
def configured(tmp_path):
    """What vLLM makes of a model's folder and of our options."""
    register()
    from vllm.engine.arg_utils import EngineArgs

    def make(ours, name="model", **config):
        small = transformers.Qwen3MoeConfig(architectures=["Qwen3MoeForCausalLM"], **{**SMALL, **config})
        small.save_pretrained(tmp_path / name)
        given = {"skip_tokenizer_init": True, "enforce_eager": True, "dtype": "bfloat16"}
        extra = {"lynx_moe": ours}
        return EngineArgs(model=str(tmp_path / name), additional_config=extra, **given).create_engine_config()

    return make


def written(tmp_path, given):
    path = tmp_path / "tuned.json"
    raw = given if isinstance(given, bytes) else (given if isinstance(given, str) else json.dumps(given)).encode()
    path.write_bytes(raw)
    return str(path)


def test_a_file_stands_for_the_policy_and_every_process_gets_what_it_holds(configured, tmp_path):
    file = written(tmp_path, content())
    config = configured({"tuned": file, "log_every": 0})
    (tmp_path / "tuned.json").unlink()  # workers start later, and elsewhere
    options = Options.of(config)
    assert options.policy == "priced:price=0.005"
    assert options.tuned.batches == BATCHES
    assert options.log_every == 0
    assert config.additional_config["lynx_moe"]["tuned"]["batches"] == BATCHES


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("{", "is no JSON, so no file of tuned settings"),
        (b"\xff\xfe\x00", "is no JSON"),
        ({"kind": "fidelity"}, "it holds no tuned settings"),
        (content(**{KEY: 7}), "it is of version 7, this lynx-moe reads 1"),
        (content(batches={"2-4": "priced:prize=1"}), "priced has no knob 'prize'"),
    ],
)
def test_a_broken_file_is_refused_by_name(configured, tmp_path, given, says):
    file = written(tmp_path, given)
    with pytest.raises(Refusal, match=f"^lynx_moe: tuned='{file}'.*({says})"):
        configured({"tuned": file})


def test_a_missing_file_is_refused_by_name(configured, tmp_path):
    with pytest.raises(Refusal, match=r"tuned='.*nowhere.json' cannot be read on .* \(No such file"):
        configured({"tuned": str(tmp_path / "nowhere.json")})


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"policy": "priced"}, "policy='priced' another; leave out either"),
        ({"max_kl": 0.01}, "max_kl=0.01 bounds .* tuned says which policy acts; leave out either"),
        ({"back_off_kl": 0.01}, "back_off_kl=0.01 bounds .* tuned says which policy acts; leave out either"),
        ({"guard": {"max_kl": 0.1}}, "guard would move it"),
        ({"verify": "draft"}, "verify='draft' would move it"),
    ],
)
def test_what_says_something_else_is_refused(configured, tmp_path, more, says):
    with pytest.raises(Refusal, match=says):
        configured({"tuned": written(tmp_path, content()), **more})


def test_another_model_is_refused_and_another_name_warned_of(configured, caplog):
    here = tuned.identity(configured({"tuned": content()}).model_config)
    assert (here["name"], here["type"], here["layers"], here["experts"], here["top_k"]) == (
        "model",
        "qwen3_moe",
        4,
        8,
        2,
    )
    own = {"tuned": content(model=here)}
    with caplog.at_level(logging.WARNING, logger="vllm.lynx_moe"):
        caplog.clear()
        configured(own)
        assert [record for record in caplog.records if record.name == "vllm.lynx_moe"] == []
        configured(own, name="twin")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "vllm.lynx_moe"]
    assert "were measured on model; if twin has other weights, tune it" in line
    for change in ({"num_hidden_layers": 2}, {"num_experts": 16}, {"num_experts_per_tok": 4}, {"hidden_size": 128}):
        with pytest.raises(Refusal, match=r"were measured on model, not on other: .* instead of"):
            configured(own, name="other", **change)
    with pytest.raises(Refusal, match="quantization 'fp8' instead of None"):
        configured({"tuned": content(model={**here, "quantization": "fp8"})})
