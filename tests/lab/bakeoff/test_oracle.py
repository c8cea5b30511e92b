"""The oracle: what it keeps, by plain sums; what it does to a model's output."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import lynx_moe
from lynx_moe.lab.bakeoff.oracle import Oracle, kept
from lynx_moe.lab.fidelity.lockstep import decode, decode_together
from lynx_moe.lab.shared.documents import Document, batches
from lynx_moe.policies.priced import STEEP


def plainly(own_BKD: torch.Tensor, ids_BK: torch.Tensor, num_experts: int, price: float) -> set[int]:
    """The experts that stay, by the definition: errors of whole sets, added up from the outputs."""
    typical = own_BKD.sum(1).square().sum(-1).mean()

    def harm(gone: set[int]) -> torch.Tensor:
        lost_BK = torch.tensor([[int(e) in gone for e in row] for row in ids_BK])
        x_B = (own_BKD * lost_BK[..., None]).sum(1).square().sum(-1) / typical
        return (x_B + STEEP * x_B**3).sum()

    stays, gone = set(ids_BK.flatten().tolist()), set()
    while stays:
        more = {e: (harm(gone | {e}) - harm(gone)).item() for e in sorted(stays)}
        cheapest = min(more, key=lambda e: more[e])
        if more[cheapest] > price:
            break
        stays, gone = stays - {cheapest}, gone | {cheapest}
    return stays


@pytest.mark.parametrize("seed", range(4))
def test_the_cheapest_expert_goes_until_one_costs_more_than_the_price(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    num_experts, rows, top_k = 11, 5, 3
    ids = torch.stack([torch.randperm(num_experts, generator=rng)[:top_k] for _ in range(rows)])
    own = torch.randn(rows, top_k, 7, generator=rng, dtype=torch.float64) * torch.rand(rows, top_k, 1, generator=rng)
    prices = torch.tensor([0.0, 0.1, 3.0, 1e9], dtype=torch.float64)
    live = kept(own.expand(4, *own.shape), ids.expand(4, *ids.shape), num_experts, prices)
    for number, price in enumerate(prices.tolist()):
        stays = plainly(own, ids, num_experts, price)
        expected = torch.tensor([[int(e) in stays for e in row] for row in ids])
        some = expected.any(-1)
        assert torch.equal(live[number][some], expected[some])
        alone = live[number][~some]
        assert torch.equal(alone.sum(-1), torch.ones(len(alone), dtype=torch.long))
    assert live[0].all()
    assert torch.equal(live[3].int().argmax(-1), own.norm(dim=-1).argmax(-1))


def test_price_0_changes_nothing_and_higher_ones_load_less(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    documents = [Document("a", tuple(range(5, 9 + n)), tuple(range(20, 26))) for n in range(6)]
    (batch,) = batches(documents, 6, "mixed", seed=0)
    oracle = Oracle(model, (0.0, 0.3, 1e6))
    nothing, some, most = decode_together(model, batch, oracle, 4)
    assert nothing.kl.abs().max() < 1e-6
    assert some.kl.mean() < most.kl.mean()
    exact, *loads = oracle.loads.means()
    vanilla = lynx_moe.apply(model, "vanilla")
    decode(model, batch, [vanilla], "own")
    assert exact == loads[0] == (vanilla.stats().mean_before,) * 2
    assert exact[1] > loads[1][1] > loads[2][1] >= 1
    with oracle:
        pass
    assert "forward" not in vars(model.get_submodule("model.layers.1.mlp.experts"))
