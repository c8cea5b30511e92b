"""Caches of every kind, repeated for policies that decode side by side: keys, windows, states, a model's own."""

import pytest
import torch
from tiny_transformers import ARCHITECTURES, make

from lynx_moe.engines.transformers import apply, cache
from lynx_moe.lab.bakeoff.together import together
from lynx_moe.lab.fidelity import repeats
from lynx_moe.lab.fidelity.lockstep import decode, decode_together
from lynx_moe.lab.shared.documents import Batch, Document

HYBRID = {
    "qwen3_next": "states beside keys",
    "qwen3_5_moe_text": "states beside keys",
    "granitemoehybrid": "Mamba",
    "jamba": "Mamba",
    "nemotron_h": "Mamba, and layers without any",
    "lfm2_moe": "convolutions",
    "kimi_linear": "several states a layer",
    "minimax": "states beside the layers",
    "deepseek_v4": "buffers, windows and indexers",
    "gpt_oss": "sliding windows",
}
SPECS = ("topk:k=1", "random:num_keep=3")


def model_of(name):
    """With weights so large that every layer matters."""
    model = make(ARCHITECTURES[name])
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=2 * weight.shape[-1] ** -0.5)
    return model


def batch() -> Batch:
    """Four documents of different lengths, six steps."""
    torch.manual_seed(2)
    rows = [torch.randint(3, 90, (length,)).tolist() for length in (9, 7, 4, 8)]
    return Batch([Document("-", row, torch.randint(3, 90, (7,)).tolist()) for row in rows], 6)


@pytest.mark.parametrize("name", HYBRID)
def test_policies_side_by_side_do_what_they_do_one_by_one(name):
    model = model_of(name)
    repeats.check(model)
    alone = decode(model, batch(), [apply(model, spec) for spec in SPECS], "own")
    beside = decode_together(model, batch(), apply(model, together(SPECS)), 1 + len(SPECS))
    for one, other in zip(alone, beside, strict=True):
        assert one.kl.mean() > 0.01
        torch.testing.assert_close(other.kl, one.kl, rtol=1e-2, atol=1e-4)
        torch.testing.assert_close(other.gain, one.gain, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["qwen3_next", "jamba", "lfm2_moe"])
def test_states_of_other_sequences_are_noticed(name, monkeypatch):
    """Beside keys in the right order, a layer's states in another one: no size tells."""

    def mixed(held, num_sequences, num):
        cache.repeat(held, num_sequences, num)
        held.layers[0].reorder_cache(torch.arange(num_sequences * num).flip(0))

    monkeypatch.setattr(repeats, "repeat", mixed)
    model = model_of(name)
    with pytest.raises(ValueError, match=f"{type(model).__name__}: .* get other answers than alone, so policies"):
        repeats.check(model)


def test_a_cache_that_cannot_be_repeated_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(cache, "_reorder", lambda *_: None)  # MiniMax's states lie beside the layers
    with pytest.raises(ValueError, match=r"MiniMaxForCausalLM: its cache cannot be repeated .* policies cannot decode"):
        repeats.check(make(ARCHITECTURES["minimax"]))
