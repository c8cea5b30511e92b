"""Models that bring code of their own: nobody is asked on the terminal, and every reason names what helps."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_moe import save_moe

import lynx_moe
from lynx_moe.lab.evaluation.harness_transformers import open_model
from lynx_moe.lab.fidelity import measure as fidelity

CODE = """
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM


class OwnConfig(Qwen3MoeConfig):
    model_type = "own_moe"


class OwnForCausalLM({base}):
    config_class = OwnConfig
"""
WITHOUT_ROUTER = """
import torch
from transformers import PreTrainedModel


class Bare(PreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

"""


@pytest.fixture(params=["Qwen3MoeForCausalLM", "Bare"])
def folder(request: Any, tmp_path: Path) -> Path:
    """A tiny model whose folder holds its classes: one with transformers' own routers, and one without."""
    save_moe(tmp_path)
    (tmp_path / "own.py").write_text(WITHOUT_ROUTER + CODE.format(base=request.param))
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own_moe", "architectures": ["OwnForCausalLM"]}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_code_is_run_only_where_it_is_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    given: dict[str, Any] = {"model": str(folder), "batch_sizes": (2,)}
    says = "does not run the code of .* unasked; read it, then add --trust-remote-code"
    with pytest.raises(ValueError, match=says):
        fidelity.open_model(fidelity.Settings(**given), [])
    assert fidelity.documents(fidelity.Settings(**given))  # its tokenizer is none of its own code
    options = {"concurrency": 2, "mix": "homogeneous", "vision": False, "options": {"trust_remote_code": False}}
    with pytest.raises(ValueError, match=says):
        open_model(str(folder), **options)
    model, _ = fidelity.open_model(fidelity.Settings(**given, trust_remote_code=True), [])
    if "Bare" not in str(type(model).__mro__):
        assert len(lynx_moe.apply(model, "vanilla").layers) == 2
        return
    with pytest.raises(ValueError, match=r"OwnForCausalLM is code that comes with it \(transformers_modules\."):
        lynx_moe.apply(model, "vanilla")


def test_a_misspelt_argument_is_named(tmp_path: Path) -> None:
    save_moe(tmp_path)
    with pytest.raises(ValueError, match="transformers knows no 'dtpe': is a name in --model-args misspelt"):
        open_model(str(tmp_path), concurrency=2, mix="homogeneous", vision=False, options={"dtpe": "float32"})
