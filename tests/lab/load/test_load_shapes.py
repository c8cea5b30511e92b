"""A shape's checkpoint with random weights: vLLM's loader and ours give the same routing spread."""

import pytest

from lynx_moe.lab.load import shape
from lynx_moe.lab.speed import shapes


def test_quantised_shapes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="quantised experts"):
        shape.folder("qwen3-30b-int4", tmp_path)


def test_a_small_shape_is_written_once(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setitem(shapes.SHAPES, "tiny", _tiny())
    folder = shape.folder("tiny", tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.config.vocab_size == shapes.VOCABULARY
    gate = model.model.layers[0].mlp.gate.weight.float()
    assert gate.std().item() == pytest.approx(shapes.SHAPES["tiny"].gates.std / 64**0.5, rel=0.1)
    (weights,) = (tmp_path / "tiny").glob("*.safetensors")
    before = weights.stat().st_mtime_ns
    assert shape.folder("tiny", tmp_path) == folder
    assert weights.stat().st_mtime_ns == before


def _tiny():
    from dataclasses import replace

    big = shapes.SHAPES["qwen3-30b"]
    small = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32, "num_attention_heads": 2}
    small |= {"num_key_value_heads": 1, "head_dim": 32, "num_experts": 16, "num_experts_per_tok": 4}
    return replace(big, config={**big.config, **small}, layers=1)
