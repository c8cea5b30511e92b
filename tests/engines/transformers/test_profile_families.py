"""The experiments of `lynx-moe profile` on every MoE family: one forward tells what decoding step by step tells."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_transformers import ARCHITECTURES, make

from lynx_moe.lab.fidelity.lockstep import decode
from lynx_moe.lab.profile.measure import PARTS
from lynx_moe.lab.profile.measures.denials import DenyHalf
from lynx_moe.lab.profile.measures.forward import effects
from lynx_moe.lab.profile.measures.sensitivity import Session
from lynx_moe.lab.profile.measures.settings import Settings
from lynx_moe.lab.shared.documents import Batch, Document


def session(model: Any, prefixes: Sequence[int] = (3, 5, 4)) -> Session:
    """One batch of random tokens."""
    draw = lambda n: tuple(torch.randint(3, 90, (n,)).tolist())  # noqa: E731
    batch = Batch(tuple(Document("a", draw(size), draw(4)) for size in prefixes), num_steps=3)
    settings = Settings(model="m", batch_size=3, num_sequences=3, rounds=3, num_experts=1)
    return Session(settings=settings, model=model, batches=[batch])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_forward_is_decoding_in_lockstep(name: str) -> None:
    one = session(make(ARCHITECTURES[name]))
    (forward,) = next(effects(one.model, one.batches, [one.run(DenyHalf())], "decode"))
    (stepwise,) = decode(one.model, one.batches[0], [one.run(DenyHalf())], "own")
    assert forward.gain.abs().max() > 1e-4  # of first order in the change; such small models' KL drowns in rounding
    torch.testing.assert_close(forward.gain, stepwise.gain, atol=5e-6, rtol=1e-2)


@pytest.mark.parametrize("name", ["jamba", "jetmoe", "llama4_text"])
def test_every_part_is_measured_on_routers_of_all_layouts(name: str) -> None:
    one, results = session(make(ARCHITECTURES[name])), []
    for part, maker in PARTS.items():
        found = maker(one, results)
        results += [{"part": part, **line} for line in found]
        assert found, part


def test_one_expert_a_token_leaves_no_rank_to_cut() -> None:
    one = session(make(ARCHITECTURES["mixtral"], num_experts_per_tok=1))
    ranks = PARTS["ranks"](one, [])
    assert [(line["what"], line["rank"]) for line in ranks] == [("deny", 0)]
    checked = PARTS["check"](one, [{"part": "ranks", **line} for line in ranks])
    assert [line["policy"] for line in checked][3:] == ["lynx", "lynx:pin_top1=true", "oea:k0=1"]
