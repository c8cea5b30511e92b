"""What `--model-args` takes: pairs, values in JSON, or a JSON object."""

import pytest

from lynx_moe.lab.evaluation.arguments import read
from lynx_moe.lab.evaluation.measure import Settings
from lynx_moe.lab.shared.models import unloadable


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("max_model_len=512,dtype=float32", {"max_model_len": 512, "dtype": "float32"}),
        ("a=true, b=None, c=1e-3,d=x=y", {"a": True, "b": None, "c": 1e-3, "d": "x=y"}),
        ('hf_overrides={"a": [1, 2], "b": "x, y"},seed=3', {"hf_overrides": {"a": [1, 2], "b": "x, y"}, "seed": 3}),
        ('{"max_model_len": 512, "hf_overrides": {"a": 1}}', {"max_model_len": 512, "hf_overrides": {"a": 1}}),
    ],
)
def test_pairs_and_json(text, found):
    assert read(text) == found


@pytest.mark.parametrize(
    ("text", "says"),
    [("{'a': 1}", "is not JSON"), ("a", "is no name=value"), ("=3", "is no name=value"), ("a b=3", "is no name=value")],
)
def test_others_are_refused(text, says):
    with pytest.raises(ValueError, match=says):
        read(text)


def test_what_is_set_here_cannot_be_set_there():
    for text in ("pretrained=x", '{"pretrained": "x"}'):
        with pytest.raises(ValueError, match="--model-args cannot set pretrained"):
            Settings(model="m", tasks=("t",), model_args=text)


def test_engines_reasons_name_our_options():
    error = ValueError("Please pass the argument `trust_remote_code=True`\n to allow custom code to be run.")
    assert unloadable("transformers", "m", error).endswith("read it, then add --trust-remote-code")
    error = TypeError("EngineArgs.__init__() got an unexpected keyword argument 'max_modl_len'")
    assert unloadable("vLLM", "m", error).startswith(
        "vLLM knows no 'max_modl_len': is a name in --model-args misspelt?"
    )
    assert unloadable("vLLM", "m", OSError("no\n such file")) == "vLLM cannot load 'm': no such file"
