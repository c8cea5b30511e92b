"""The sums over tokens give what a direct, slow definition gives on all tokens at once."""

import math

import pytest
import torch
from torch import Tensor

from lynx_moe.calibration.statistics import RoutedStatistics, SensitivityStatistics, SimilarityStatistics
from lynx_moe.policies.contract.calibrated import DIMENSIONS

T, E, K, D = 23, 7, 3, 5
UNUSED = 6


class Layer:
    """Random linear experts and a routing that never chooses the last of them."""

    def __init__(self, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.matrices = torch.randn(E, D, D, generator=rng)
        self.hidden = torch.randn(T, D, generator=rng)
        self.ids = torch.rand(T, E - 1, generator=rng).topk(K).indices
        self.weights = torch.rand(T, K, generator=rng)

    def expert(self, e: int, hidden_ND: Tensor) -> Tensor:
        return hidden_ND @ self.matrices[e]

    def out(self, e: int, t: int) -> list[float]:
        return (self.hidden[t].double() @ self.matrices[e].double()).tolist()

    def tokens(self, *experts: int) -> list[int]:
        return [t for t in range(T) if set(experts) <= set(self.ids[t].tolist())]


def norm(x: list[float]) -> float:
    return math.sqrt(sum(a * a for a in x))


def routed(layer: Layer, splits: list[int]) -> dict[str, Tensor]:
    statistics = RoutedStatistics(E)
    parts = zip(*(x.split(splits) for x in (layer.hidden, layer.ids.int(), layer.weights)), strict=True)
    for hidden, ids, weights in parts:
        statistics.update(hidden, ids, weights, layer.expert)
    return statistics.tensors(ridge=0.1)


@pytest.fixture(params=[0, 1, 2])
def layer(request: pytest.FixtureRequest) -> Layer:
    return Layer(request.param)


def test_load_and_norms_are_means_over_the_routed_tokens(layer: Layer) -> None:
    found = routed(layer, [T])
    means = []
    for e in range(E - 1):
        norms = [norm(layer.out(e, t)) for t in layer.tokens(e)]
        gates = [layer.weights[t, layer.ids[t].tolist().index(e)].item() for t in layer.tokens(e)]
        means.append(sum(norms) / len(norms))
        assert found["load"][e].item() == pytest.approx(len(norms) / T)
        assert found["output_norm"][e].item() == pytest.approx(means[-1], rel=1e-5)
        reap = sum(g * n for g, n in zip(gates, norms, strict=True)) / len(norms)
        assert found["gate_norm"][e].item() == pytest.approx(reap, rel=1e-5)
    assert found["load"].sum().item() == pytest.approx(K)
    assert found["load"][UNUSED] == found["gate_norm"][UNUSED] == 0
    assert found["output_norm"][UNUSED].item() == pytest.approx(sorted(means)[(E - 2) // 2], rel=1e-5)


def test_fold_scalars_are_the_weighted_least_squares_fit(layer: Layer) -> None:
    found = routed(layer, [T])
    for a in range(E):
        for b in range(E):
            scale, loss = found["fold_scale"][a, b].item(), found["fold_loss"][a, b].item()
            pairs = [(layer.out(a, t), layer.out(b, t)) for t in layer.tokens(a, b)]
            if a == b:
                assert (scale, loss) == (1, 0)
            elif not pairs:
                assert (scale, loss) == (0, math.inf)
            else:
                top = sum(norm(u) * sum(x * y for x, y in zip(u, v, strict=True)) for u, v in pairs)
                expected = top / (sum(norm(u) * norm(v) ** 2 for u, v in pairs) + 0.1)
                left = [[x - expected * y for x, y in zip(u, v, strict=True)] for u, v in pairs]
                lost = sum(norm(u) * norm(r) ** 2 for (u, _), r in zip(pairs, left, strict=True))
                assert scale == pytest.approx(expected, rel=1e-4)
                assert loss == pytest.approx(lost / sum(norm(u) ** 3 for u, _ in pairs), rel=1e-4)


def test_similarity_is_what_it_says_over_all_tokens(layer: Layer) -> None:
    statistics = SimilarityStatistics(E)
    statistics.update(layer.hidden, layer.expert)
    frobenius, cosine = (statistics.tensors(measure)["similarity"] for measure in ("frobenius", "cosine"))
    out = [[layer.out(e, t) for t in range(T)] for e in range(E)]
    apart = {
        (a, b): norm([x - y for t in range(T) for x, y in zip(out[a][t], out[b][t], strict=True)])
        for a in range(E)
        for b in range(E)
    }
    for (a, b), distance in apart.items():
        assert frobenius[a, b].item() == pytest.approx(1 - distance / max(apart.values()), abs=1e-5)
        cosines = [
            sum(x * y for x, y in zip(u, v, strict=True)) / norm(u) / norm(v)
            for u, v in zip(out[a], out[b], strict=True)
        ]
        assert cosine[a, b].item() == pytest.approx((1 + sum(cosines) / T) / 2, abs=1e-5)
    assert frobenius.min() == 0  # the least alike pair
    assert torch.equal(frobenius.diagonal(), torch.ones(E))


def test_how_the_tokens_are_cut_into_calls_does_not_matter(layer: Layer) -> None:
    whole, cut = routed(layer, [T]), routed(layer, [1, 9, 0, 13])
    one, many = SimilarityStatistics(E), SimilarityStatistics(E)
    one.update(layer.hidden, layer.expert)
    for part in layer.hidden.split([1, 9, 13]):
        many.update(part, layer.expert)
    whole |= one.tensors()
    cut |= many.tensors()
    assert set(whole) == set(DIMENSIONS) - {"sensitivity"}
    for name, tensor in whole.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(cut[name], tensor, rtol=1e-6, atol=1e-6)


def test_a_sensitivity_is_half_the_squared_derivative_over_the_squared_share() -> None:
    sums, derivative, weights = SensitivityStatistics(4), torch.tensor([[2.0, 1.0]]), torch.tensor([[0.6, 0.2]])
    sums.update(derivative, torch.tensor([[3, 1]]), weights)
    sums.update(2 * derivative, torch.tensor([[3, 0]]), weights)
    found = sums.tensors()["sensitivity"]
    of_layer = (2 + 0.5 + 8 + 2) / (2 * (0.75**2 + 0.25**2))
    wanted = [2 / 0.25**2, 0.5 / 0.25**2, of_layer, (2 + 8) / (2 * 0.75**2)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-6)
    with pytest.raises(ValueError, match="no token was added"):
        SensitivityStatistics(4).tensors()


def test_an_expert_runs_only_on_the_rows_that_are_routed_to_it(layer: Layer) -> None:
    asked: dict[int, int] = {}

    def expert(e: int, hidden_ND: Tensor) -> Tensor:
        asked[e] = asked.get(e, 0) + len(hidden_ND)
        return layer.expert(e, hidden_ND)

    RoutedStatistics(E).update(layer.hidden, layer.ids, layer.weights, expert)
    assert asked == {e: len(layer.tokens(e)) for e in range(E - 1)}


def test_equal_and_silent_experts_leave_nothing_undefined(layer: Layer) -> None:
    layer.matrices[1], layer.matrices[2] = layer.matrices[0], 0.0
    statistics = SimilarityStatistics(E)
    statistics.update(layer.hidden, layer.expert)
    for measure in ("frobenius", "cosine"):
        alike = statistics.tensors(measure)["similarity"]
        assert alike.isfinite().all()
        assert alike[0, 1].item() == pytest.approx(1.0, abs=1e-5)
    found = routed(layer, [T])
    assert not any(tensor.isnan().any() for tensor in found.values())
    if layer.tokens(0, 1):
        assert found["fold_loss"][0, 1] < 1e-3


def test_mistakes_are_named(layer: Layer) -> None:
    for statistics in (RoutedStatistics(E), SimilarityStatistics(E)):
        with pytest.raises(ValueError, match="no token was added"):
            statistics.tensors()
    with pytest.raises(ValueError, match="allowed: frobenius, cosine"):
        SimilarityStatistics(E).tensors("cka")
