"""A RouterSpec that contradicts itself is refused with a message; the weights rule survives scores that underflow."""

import pytest
import torch

from lynx_moe.routing import RouterSpec, select


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "sqrtsoftplus"])
def test_scores_that_underflow_give_no_nan(scoring):
    spec = RouterSpec(num_experts=4, top_k=2, scoring=scoring, bias=torch.tensor([0.0, 9.0, 8.0, 0.0]))
    routing = select(torch.tensor([[0.0, -300.0, -301.0, -1.0], [-300.0, -300.0, -300.0, -300.0]]), spec)
    assert routing.ids.tolist() == [[1, 2], [1, 2]]
    assert routing.weights.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k=0"),
        ({"top_k": 13}, "top_k=13"),
        ({"scoring": "tanh"}, "allowed: softmax, sigmoid, sqrtsoftplus, sparsemixer"),
        ({"bias": torch.zeros(11)}, r"bias has shape \(11,\)"),
        ({"bias": torch.zeros(1, 12)}, r"bias has shape \(1, 12\)"),
        ({"groups": (5, 1)}, "must divide num_experts=12"),
        ({"groups": (0, 1)}, "must divide num_experts=12"),
        ({"groups": (4, 0)}, "topk_group must lie between 1 and n_group"),
        ({"groups": (4, 5)}, "topk_group must lie between 1 and n_group"),
        ({"groups": (6, 1)}, "fewer experts than top_k=3"),
        ({"groups": (12, 6), "bias": torch.zeros(12)}, "a group has one"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RouterSpec(**({"num_experts": 12, "top_k": 3} | options))
