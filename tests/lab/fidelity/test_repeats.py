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


def batch() -> Batch:
    """Four documents of different lengths, six steps."""
    torch.manual_seed(2)
    rows = [torch.randint(3, 90, (length,)).tolist() for length in (9, 7, 4, 8)]
    return Batch([Document("-", row, torch.randint(3, 90, (7,)).tolist()) for row in rows], 6)


@pytest.mark.parametrize("name", HYBRID)
def test_policies_side_by_side_do_what_they_do_one_by_one(name):
    model = make(ARCHITECTURES[name])
    repeats.check(model)
    alone = decode(model, batch(), [apply(model, spec) for spec in SPECS], "own")
    beside = decode_together(model, batch(), apply(model, together(SPECS)), 1 + len(SPECS))
    for one, other in zip(alone, beside, strict=True):
        assert one.kl.mean() > 1e-6
        torch.testing.assert_close(other.kl, one.kl, rtol=1e-2, atol=1e-6)
        torch.testing.assert_close(other.gain, one.gain, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("name", ["qwen3_next", "minimax"])
def test_a_cache_that_cannot_be_repeated_is_refused_by_name(name, monkeypatch):
    model = make(ARCHITECTURES[name])
    monkeypatch.setattr(cache, "_reorder", lambda *_: None)
    if name == "qwen3_next":  # states that stay in the order they had, beside keys that do not

        def mixed(held, batch_size, num):
            order = torch.arange(batch_size).repeat(num)
            held.reorder_cache(order)
            states = held.layers[0]
            states.reorder_cache(torch.arange(len(order)).flip(0))

        monkeypatch.setattr(repeats, "repeat", mixed)
    with pytest.raises(ValueError, match=f"{type(model).__name__}: .* cannot decode side by side"):
        repeats.check(model)
