"""Experts one by one, and what calibration collects of them, against a plain computation from the weights."""

from typing import Any

import pytest
import torch
from tiny_transformers import ARCHITECTURES, make
from torch import Tensor
from torch.nn import functional as F

from lynx_moe.engines.transformers.experts import Collector, alone, experts_of
from lynx_moe.engines.transformers.table import find

UNREACHED = {"jetmoe", "llama4_text", "longcat_flash"}
LENGTHS = (3, 19, 1, 16, 23)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in UNREACHED])
def test_weighted_single_experts_add_up_to_what_the_layer_gets(name: str) -> None:
    model = make(ARCHITECTURES[name])
    torch.manual_seed(5)
    for one in find(model)[0]:
        experts = experts_of(model, one)
        width = model.config.get_text_config().hidden_size if name != "nemotron_h" else experts.up_proj.shape[-1]
        hidden = torch.randn(7, width)
        ids = torch.rand(7, one.layer.spec.num_experts).topk(one.layer.spec.top_k).indices
        weights = torch.rand(ids.shape)
        with torch.no_grad():
            whole = experts(hidden, ids, weights).reshape(hidden.shape)
            each = [alone(experts.forward, hidden, column[:, None], weights) for column in ids.T]
        added = (torch.stack(each, 1) * weights[..., None]).sum(1)
        torch.testing.assert_close(added, whole, rtol=1e-4, atol=1e-5)
        assert whole.norm() > 0


@pytest.mark.parametrize("name", sorted(UNREACHED))
def test_experts_that_cannot_be_called_alone_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be called one by one"):
        Collector(make(ARCHITECTURES[name]))


@pytest.fixture(scope="module")
def model() -> Any:
    """Larger weights than at the start of a training, so that experts differ."""
    made = make(ARCHITECTURES["qwen3_moe"])
    for weight in made.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=2 * weight.shape[-1] ** -0.5)
    return made


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(9)
    ids, mask = torch.randint(3, 90, (len(LENGTHS), max(LENGTHS))), torch.zeros(len(LENGTHS), max(LENGTHS)).long()
    for row, length in enumerate(LENGTHS):
        mask[row, -length:] = 1
    return ids, mask


def plain(model: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per layer: all experts' outputs [T, E, D], ids and weights [T, K]; a sequence at a time, without padding."""
    ids, mask = batch()
    blocks = [layer.mlp for layer in model.model.layers]
    seen: list[list[Tensor]] = [[] for _ in blocks]
    hooks = [
        block.register_forward_pre_hook(lambda _, args, kept=kept: kept.append(args[0].flatten(0, 1)))
        for block, kept in zip(blocks, seen, strict=True)
    ]
    with torch.no_grad():
        for row, keep in zip(ids, mask.bool(), strict=True):
            model(row[keep][None])
        found = []
        for block, kept in zip(blocks, seen, strict=True):
            hidden = torch.cat(kept)
            _, weights, chosen = block.gate(hidden)
            gate, up = torch.einsum("td,efd->tef", hidden, block.experts.gate_up_proj).chunk(2, -1)
            out = torch.einsum("tef,edf->ted", F.silu(gate) * up, block.experts.down_proj)
            found.append((out.double(), chosen, weights.double()))
    for hook in hooks:
        hook.remove()
    return found


def test_what_is_collected_in_one_pass_is_what_the_weights_give(model: Any) -> None:
    ids, mask = batch()
    collector = Collector(model)
    before = model(ids, attention_mask=mask).logits
    for part in (slice(0, 2), slice(2, None)):
        collector.add(ids[part], mask[part], position_ids=(mask[part].cumsum(-1) - 1).clamp(min=0))
    assert collector.num_tokens == sum(LENGTHS)
    assert torch.equal(model(ids, attention_mask=mask).logits, before)  # nothing is left behind
    layers = collector.layers()
    assert sorted(layers) == [0, 1]
    for number, (out, chosen, weights) in enumerate(plain(model)):
        norms, num_experts = out.norm(dim=-1), out.shape[1]
        for e in range(num_experts):
            rows, slots = (chosen == e).nonzero(as_tuple=True)
            assert layers[number]["load"][e].item() == pytest.approx(len(rows) / len(chosen))
            size = (norms[rows, e] * weights[rows, slots]).mean().item()
            assert layers[number]["gate_norm"][e].item() == pytest.approx(size, rel=1e-3)
            assert layers[number]["output_norm"][e].item() == pytest.approx(norms[rows, e].mean().item(), rel=1e-3)
            for other in set(range(num_experts)) - {e}:
                both = (chosen == e).any(1) & (chosen == other).any(1)
                u, v, c = out[both, e], out[both, other], norms[both, e]
                scale = (c * (u * v).sum(1)).sum() / ((c * v.square().sum(1)).sum() + 1e-3)
                lost = (c * (u - scale * v).square().sum(1)).sum() / (c**3).sum()
                assert layers[number]["fold_scale"][e, other].item() == pytest.approx(scale.item(), rel=1e-3, abs=1e-4)
                expected = lost.item() if both.any() else torch.inf
                assert layers[number]["fold_loss"][e, other].item() == pytest.approx(expected, rel=1e-3)
        flat = out.transpose(0, 1).flatten(1)
        apart = torch.cdist(flat, flat)
        alike = (1 - apart / apart.max()).float()
        torch.testing.assert_close(layers[number]["similarity"], alike, atol=1e-4, rtol=1e-3)


def test_the_model_is_as_it_was_after_an_error(model: Any) -> None:
    ids, mask = batch()
    with pytest.raises(RuntimeError):
        Collector(model).add(ids, mask[:, :2])
    assert not any("forward" in vars(module) for module in model.modules())
