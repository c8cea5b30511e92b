"""From statistics to a policy: experts that can stand in for one another do, and the layer's output stays."""

import pytest
import torch
from torch import Tensor

from lynx_moe import RouterSpec, Routing, make_policy
from lynx_moe.calibration.statistics import RoutedStatistics, SimilarityStatistics
from lynx_moe.policies import Policy
from lynx_moe.routing import distinct, select

E, K, D, TOKENS = 8, 3, 16, 512
SPEC = RouterSpec(num_experts=E, top_k=K)


class Layer:
    """Experts 4..7 are copies of 0..3, scaled by `factor`."""

    def __init__(self, factor: float) -> None:
        rng = torch.Generator().manual_seed(5)
        half = torch.randn(E // 2, D, D, generator=rng) / D**0.5
        self.matrices = torch.cat([half, half * factor])
        self.gate = torch.randn(D, E, generator=rng)
        self.hidden = torch.randn(TOKENS, D, generator=rng)

    def expert(self, e: int, hidden_ND: Tensor) -> Tensor:
        return hidden_ND @ self.matrices[e]

    def logits(self, hidden_TD: Tensor) -> Tensor:
        return hidden_TD @ self.gate / D**0.5

    def output(self, hidden_TD: Tensor, routing: Routing) -> Tensor:
        each_TKD = torch.einsum("td,tkdf->tkf", hidden_TD, self.matrices[routing.ids])
        return (each_TKD * routing.weights[..., None]).sum(1)

    def calibrated(self, text: str) -> Policy:
        routed, similar = RoutedStatistics(E), SimilarityStatistics(E)
        own = select(self.logits(self.hidden), SPEC)
        routed.update(self.hidden, own.ids, own.weights, self.expert)
        similar.update(self.hidden, self.expert)
        return make_policy(text).for_layer(0, {0: {**routed.tensors(), **similar.tensors("cosine")}})

    def error(self, text: str) -> float:
        """Relative change of the layer's output over decode batches of two, which fewer experts than before serve."""
        policy, change, size, before, after = self.calibrated(text), 0.0, 0.0, 0, 0
        for hidden in torch.randn(200, 2, D, generator=torch.Generator().manual_seed(6)):
            logits = self.logits(hidden)
            own, routing = select(logits, SPEC), policy.route(logits, SPEC)
            exact = self.output(hidden, own)
            change += (self.output(hidden, routing) - exact).square().sum().item()
            size += exact.square().sum().item()
            before, after = before + int(distinct(own.ids, E)), after + int(distinct(routing.ids, E))
        assert after < before * 0.95
        return change / size


def test_sere_moves_choices_to_experts_that_do_the_same() -> None:
    assert Layer(1.0).error("sere:num_primary=1,rho=0.99") < 1e-10
    assert Layer(1.0).error("sere:num_primary=1,rho=0") > 0.01


@pytest.mark.parametrize("factor", [2.0, -0.5])
def test_folding_makes_up_for_the_size_and_sign_of_the_stand_in(factor: float) -> None:
    layer = Layer(factor)
    scale = layer.calibrated("exfold:num_keep=3").tensor("fold_scale")
    assert scale[4, 0].item() == pytest.approx(factor, rel=1e-3)
    assert scale[0, 4].item() == pytest.approx(1 / factor, rel=1e-3)
    folded, carried = layer.error("exfold:num_keep=4"), layer.error("exfold:num_keep=4,norm=own")
    assert folded < 0.6 * carried


def test_reap_keeps_the_experts_with_the_larger_outputs() -> None:
    norms = Layer(0.01).calibrated("reap:share=0.5").tensor("gate_norm")
    assert set(norms.topk(4).indices.tolist()) == {0, 1, 2, 3}
