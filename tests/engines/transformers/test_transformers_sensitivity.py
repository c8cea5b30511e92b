"""What a lost slot costs: the derivatives' estimate against KL itself, with factors moved by hand."""

from typing import Any

import pytest
import torch
from tiny_transformers import ARCHITECTURES, make
from torch import Tensor

from lynx_moe.engines.transformers.experts import experts_of
from lynx_moe.engines.transformers.sensitivity import Sensitivity
from lynx_moe.engines.transformers.table import find
from lynx_moe.engines.transformers.wrap import Wraps

STEP, TURNS = 0.05, 24


@pytest.fixture(scope="module")
def model() -> Any:
    """Larger weights than at the start of a training, so that experts matter. Every row has all experts: where a later
    layer chooses, its choice may tip over, of which no derivative knows."""
    made = make(ARCHITECTURES["qwen3_moe"], num_experts_per_tok=8)
    for weight in made.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=2 * weight.shape[-1] ** -0.5)
    return made


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(9)
    ids, mask = torch.randint(3, 90, (6, 14)), torch.ones(6, 14).long()
    mask[0, :5] = 0
    return ids, mask


@torch.no_grad()
def measured(model: Any, layer: int, expert: int | None) -> float:
    """KL over all tokens, twice, over what the factors moved of the squared shares: of one layer, all experts or one.
    Every slot moves up or down by chance, so that the slots' effects do not add up."""
    ids, mask = batch()
    valid = mask.bool()
    exact = model(ids, attention_mask=mask).logits[valid].double().log_softmax(-1)
    square, kl = 0.0, 0.0
    torch.manual_seed(1)

    def around(original: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        nonlocal square
        moved = STEP * (2 * torch.randint(2, weights.shape) - 1)
        moved = moved if expert is None else moved.where(chosen == expert, 0)
        share = (weights / weights.sum(-1, keepdim=True)).where(moved != 0, 0)
        square += STEP**2 * float(share[valid.flatten()].square().sum())
        return original(hidden, chosen, weights * (1 + moved.to(weights.dtype)))

    for _ in range(TURNS):
        wraps = Wraps()
        wraps.add(experts_of(model, find(model)[0][layer]), "forward", around)
        try:
            changed = model(ids, attention_mask=mask).logits[valid].double().log_softmax(-1)
        finally:
            wraps.undo()
        kl += float((exact.exp() * (exact - changed)).sum())
    return kl / square


def test_it_is_kl_per_squared_share(model: Any) -> None:
    sums = Sensitivity(model, draws=64)
    sums.add(*batch())
    found = [layer["sensitivity"] for layer in sums.layers().values()]
    for number in range(2):
        assert found[number].shape == (8,)
        busiest = int(found[number].argmax())
        assert found[number][busiest].item() == pytest.approx(measured(model, number, busiest), rel=0.3)
        assert found[number].min() <= measured(model, number, None) <= found[number].max()


def test_padding_counts_nowhere_and_the_model_stays_as_it_was(model: Any) -> None:
    ids, mask = batch()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    sums = Sensitivity(model, draws=1)
    sums.add(ids, mask)
    slots = sum(int((of.sums[1] > 0).sum()) for of in sums._sums.values())
    assert slots
    top_k = find(model)[0][0].layer.spec.top_k
    for of in sums._sums.values():
        assert 0 < of.sums[1].sum() <= int(mask.sum())  # squared shares of a row sum to one at the most
        assert of.sums[1].sum() >= int(mask.sum()) / top_k
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert not any("forward" in vars(experts_of(model, one)) for one in find(model)[0])


def test_two_runs_agree_and_nothing_added_is_an_error(model: Any) -> None:
    one, other = Sensitivity(model), Sensitivity(model)
    with pytest.raises(ValueError, match="no token was added"):
        one.layers()
    for sums in (one, other):
        sums.add(*batch())
    for number, layer in one.layers().items():
        assert torch.equal(layer["sensitivity"], other.layers()[number]["sensitivity"])


@pytest.mark.parametrize("name", ["gpt_oss", "mixtral", "qwen2_moe", "olmoe", "deepseek_v3"])
def test_it_is_known_of_other_architectures(name: str) -> None:
    sums = Sensitivity(make(ARCHITECTURES[name]))
    sums.add(*batch())
    for layer in sums.layers().values():
        assert (layer["sensitivity"] > 0).any()
        assert layer["sensitivity"].isfinite().all()
