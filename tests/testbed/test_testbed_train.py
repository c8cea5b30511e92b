"""Training: the loss, the mask, the rate, and workers; `test_testbed_families` runs whole trainings."""

from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lynx_moe.testbed.model.families import FAMILIES, Family
from lynx_moe.testbed.training.data import Packer
from lynx_moe.testbed.training.loss import balance_loss, losses
from lynx_moe.testbed.training.schedule import Schedule
from lynx_moe.testbed.training.train import build_model

FAMILY = FAMILIES["qwen3-moe"]
Texts = list[list[list[int]]]


def test_balance_loss_is_top_k_when_even_and_more_when_not() -> None:
    even = torch.full((40, 8), 1 / 8)
    assert balance_loss(even, torch.full((8,), 15)).item() == pytest.approx(3)
    collapsed = torch.eye(8)[torch.full((40,), 2)]
    assert balance_loss(collapsed, torch.eye(8)[2] * 40).item() == pytest.approx(8)
    assert balance_loss(7 * collapsed, torch.eye(8)[2] * 40).item() == pytest.approx(8)


def test_documents_do_not_see_their_neighbours(
    tiny_family: Family, tokenizer: PreTrainedTokenizerFast, texts: Texts
) -> None:
    model = build_model(tiny_family, tokenizer).eval()
    batch = Packer(tokenizer, texts, replace(FAMILY, batch_rows=1, row_length=64, seed=5)).batch(0)
    starts = (batch.positions_BL[0] == 0).nonzero().flatten().tolist()
    given = {"position_ids": batch.positions_BL, "attention_mask": tiny_family.mask(model, batch.positions_BL)}
    packed = model.model(input_ids=batch.ids_BL, use_cache=False, **given).last_hidden_state
    for start, end in zip(starts, [*starts[1:], 64], strict=True):
        alone = model.model(input_ids=batch.ids_BL[:, start:end], use_cache=False).last_hidden_state
        torch.testing.assert_close(packed[:, start:end], alone, atol=1e-5, rtol=1e-4)
    assert len(starts) > 1


def test_rate_warms_up_stays_and_falls_to_its_end() -> None:
    schedule = Schedule.of(replace(FAMILY, num_tokens=1000 * 8 * 192))
    steps = (0, 40, 599, 800, 1000)
    assert [schedule.rate(step) for step in steps] == pytest.approx([1 / 40, 1, 1, 0.51, 0.02])


def test_two_workers_do_what_one_does(tiny_family: Family, tokenizer: PreTrainedTokenizerFast, texts: Texts) -> None:
    """The shares' losses add up to the whole batch's, so summed gradients are the whole batch's gradient."""
    model = build_model(tiny_family, tokenizer)
    batch = Packer(tokenizer, texts, replace(FAMILY, batch_rows=4, row_length=64, seed=0)).batch(0)
    whole = losses(model, batch, tiny_family)
    shares = [losses(model, batch.rows(worker, 2), tiny_family) for worker in range(2)]
    assert sum(share.nats for share in shares).item() == pytest.approx(whole.nats.item(), rel=1e-5)
    for total, *parts in zip(whole.loads, *(share.loads for share in shares), strict=True):
        assert torch.equal(total, sum(parts))
