"""Training: the loss, the experts' fast forward pass, and resuming."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lynx_moe.testbed import experts
from lynx_moe.testbed.data import Packer
from lynx_moe.testbed.families import FAMILIES, Family
from lynx_moe.testbed.loss import balance_loss, losses
from lynx_moe.testbed.train import TEXTS, build_model, rate, train

FAMILY = FAMILIES["qwen3-moe"]
Texts = list[list[list[int]]]


def folder(path: Path, texts: Texts) -> Path:
    path.mkdir()
    (path / TEXTS).write_text(json.dumps(texts))
    return path


@pytest.mark.parametrize("num_tokens", [1, 7, 50])
def test_sorted_experts_equal_the_eager_ones(
    tiny_family: Family, tokenizer: PreTrainedTokenizerFast, num_tokens: int
) -> None:
    model = build_model(tiny_family, tokenizer).double()
    module = model.model.layers[0].mlp.experts
    torch.manual_seed(num_tokens)
    hidden, scores = torch.randn(num_tokens, 32).double(), torch.rand(num_tokens, 7).double()
    weights, ids = scores.topk(3)
    model.config._experts_implementation = "eager"
    torch.testing.assert_close(experts.sorted_experts(module, hidden, ids, weights), module(hidden, ids, weights))


def test_balance_loss_is_top_k_when_even_and_more_when_not() -> None:
    even = torch.eye(8).repeat(5, 1) * 1e-4
    assert balance_loss(even, 1).item() == pytest.approx(1, abs=1e-3)
    collapsed = torch.zeros(40, 8).index_fill(1, torch.tensor([2]), 20.0)
    assert balance_loss(collapsed, 1).item() == pytest.approx(8, abs=1e-3)


def test_documents_do_not_see_their_neighbours(
    tiny_family: Family, tokenizer: PreTrainedTokenizerFast, texts: Texts
) -> None:
    model = build_model(tiny_family, tokenizer).eval()
    batch = Packer(tokenizer, texts, replace(FAMILY, batch_rows=1, row_length=64, seed=5)).batch(0)
    starts = (batch.positions_BL[0] == 0).nonzero().flatten().tolist()
    packed = model.model(input_ids=batch.ids_BL, position_ids=batch.positions_BL, use_cache=False).last_hidden_state
    for start, end in zip(starts, [*starts[1:], 64], strict=True):
        alone = model.model(input_ids=batch.ids_BL[:, start:end], use_cache=False).last_hidden_state
        torch.testing.assert_close(packed[:, start:end], alone, atol=1e-5, rtol=1e-4)
    assert len(starts) > 1


def test_rate_warms_up_stays_and_falls_to_its_end() -> None:
    assert rate(0, 1000) == pytest.approx(1 / 40)
    assert rate(40, 1000) == rate(599, 1000) == 1
    assert rate(800, 1000) == pytest.approx(0.51)
    assert rate(1000, 1000) == pytest.approx(0.02)


def test_a_resumed_run_ends_with_the_same_bits(
    tiny_family: Family,
    tokenizer: PreTrainedTokenizerFast,
    texts: Texts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lynx_moe.testbed.train.EVALUATE_ITEMS", 1)
    straight = train(tiny_family, tokenizer, folder(tmp_path / "a", texts)).state_dict()
    work = folder(tmp_path / "b", texts)
    train(tiny_family, tokenizer, work, stop_after=2)
    resumed = train(tiny_family, tokenizer, work).state_dict()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    steps = [json.loads(line)["step"] for line in (work / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 6]


def test_two_workers_do_what_one_does(tiny_family: Family, tokenizer: PreTrainedTokenizerFast, texts: Texts) -> None:
    """The shares' losses add up to the whole batch's, so summed gradients are the whole batch's gradient."""
    model = build_model(tiny_family, tokenizer)
    batch = Packer(tokenizer, texts, replace(FAMILY, batch_rows=4, row_length=64, seed=0)).batch(0)
    whole, _ = losses(model, batch)
    shares = [losses(model, batch.rows(worker, 2))[0] for worker in range(2)]
    assert sum(shares).item() == pytest.approx(whole.item(), rel=1e-5)
