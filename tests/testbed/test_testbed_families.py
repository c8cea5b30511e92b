"""Every row of the family table: it builds, trains, balances its load as it says, resumes, and loads anywhere."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from lynx_moe.testbed.model import experts
from lynx_moe.testbed.model.families import BALANCED, DRAFTS, FAMILIES, UNBALANCED, Family, family_of
from lynx_moe.testbed.report import router
from lynx_moe.testbed.tasks import test_items as items_of
from lynx_moe.testbed.training.data import TEXTS, Packer
from lynx_moe.testbed.training.loss import move_bias, recorded
from lynx_moe.testbed.training.train import Run, build_model, save_model, train

Texts = list[list[list[int]]]


def folder(path: Path, texts: Texts) -> Path:
    path.mkdir()
    (path / TEXTS).write_text(json.dumps(texts))
    return path


@pytest.mark.parametrize("name", BALANCED)
def test_models_are_small_and_twins_differ_in_balancing_alone(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    row, twin = FAMILIES[name], FAMILIES[name + UNBALANCED]
    assert (row.balance_coef > 0) != (row.bias_rate > 0)
    assert twin == replace(row, balance_coef=0.0, bias_rate=0.0)
    model = build_model(row, tokenizer)
    assert sum(p.numel() for p in model.parameters()) < 4_000_000
    assert len(row.gates(model)) >= 3
    assert family_of(model) is row


@pytest.mark.parametrize("num_tokens", [1, 7, 50])
def test_sorted_experts_equal_the_eager_ones(
    tiny_family: Family, tokenizer: PreTrainedTokenizerFast, num_tokens: int
) -> None:
    model = build_model(tiny_family, tokenizer).double()
    (module,) = [m for name, m in model.named_modules() if name.endswith("1.mlp.experts")]
    torch.manual_seed(num_tokens)
    for weight in module.parameters():
        torch.nn.init.normal_(weight)
    hidden, scores = torch.randn(num_tokens, 32).double(), torch.rand(num_tokens, module.num_experts).double()
    weights, ids = scores.topk(2)
    model.config._experts_implementation = "eager"
    torch.testing.assert_close(experts.sorted_experts(module, hidden, ids, weights), module(hidden, ids, weights))


def test_selection_is_the_routers_own_and_denied_experts_are_gone(
    tiny_family: Family, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build_model(tiny_family, tokenizer)
    ids = torch.randint(3, 900, (2, 50), generator=torch.Generator().manual_seed(1))
    gates = tiny_family.gates(model)
    for gate in gates:
        torch.nn.init.normal_(gate.get_parameter("weight"))
        for name, bias in gate.named_buffers():
            assert name == "e_score_correction_bias"
            torch.nn.init.normal_(bias, std=0.2)
    with recorded(gates) as calls, torch.inference_mode():
        model(ids, use_cache=False)
    for gate, call in zip(gates, calls, strict=True):
        nobody = torch.zeros_like(call.logits_TE, dtype=torch.bool)
        weights, chosen = tiny_family.select(gate, call.logits_TE, nobody)
        assert torch.equal(chosen.sort(-1).values, call.ids_TK.sort(-1).values)
        torch.testing.assert_close(weights, call.weights_TK.sort(-1, descending=True).values)
        assert (weights.diff(dim=-1) <= 0).all()
        first = router.rank(0)(call)
        assert (first.sum(-1) == 1).all()
        assert not first.gather(1, tiny_family.select(gate, call.logits_TE, first)[1]).any()


def test_a_resumed_run_ends_with_the_same_bits_and_loads_in_stock_transformers(
    tiny_family: Family,
    tokenizer: PreTrainedTokenizerFast,
    texts: Texts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lynx_moe.testbed.training.course.TASKS", ["reverse"])
    monkeypatch.setattr("lynx_moe.testbed.training.course.EVALUATE_ITEMS", 1)
    model = train(tiny_family, tokenizer, folder(tmp_path / "a", texts))
    straight = model.state_dict()
    work = folder(tmp_path / "b", texts)
    train(tiny_family, tokenizer, work, stop_after=2)
    resumed = train(tiny_family, tokenizer, work).state_dict()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert [json.loads(line)["step"] for line in (work / "log.jsonl").read_text().splitlines()] == [2, 6]
    biases = [gate.e_score_correction_bias for gate in tiny_family.gates(model) if list(gate.buffers())]
    assert all(bool(bias.any()) == (tiny_family.bias_rate > 0) for bias in biases)

    save_model(model, tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert type(loaded) is tiny_family.model_class
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        expected = model.float()(ids, use_cache=False).logits
        torch.testing.assert_close(loaded(ids, use_cache=False).logits, expected, atol=1e-4, rtol=1e-3)


def test_a_dense_row_trains_without_routers_and_loads_in_stock_transformers(
    tokenizer: PreTrainedTokenizerFast, texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lynx_moe.testbed.training.course.TASKS", ["reverse"])
    monkeypatch.setattr("lynx_moe.testbed.training.course.EVALUATE_ITEMS", 1)
    row = DRAFTS["draft"]
    small = row.config | {"hidden_size": 32, "num_attention_heads": 2, "head_dim": 8, "intermediate_size": 24}
    family = replace(row, config=small, batch_rows=3, row_length=64, num_tokens=6 * 3 * 64)
    model = train(family, tokenizer, folder(tmp_path / "a", texts))
    assert family.gates(model) == []
    (line,) = [json.loads(text) for text in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert (line["step"], line["balance"]) == (6, 0.0)
    before = build_model(family, tokenizer).state_dict()
    assert all(not torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    save_model(model, tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert type(loaded) is family.model_class


def test_balancing_evens_out_the_load(texts: Texts, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """One step of the bias: experts under the mean rise, those over it fall; the twin's bias stays zero."""
    moved = {}
    for name in ("deepseek-v3", "deepseek-v3" + UNBALANCED):
        family = replace(FAMILIES[name], batch_rows=2, row_length=64)
        run = Run(family, tokenizer, folder(tmp_path / name, texts))
        packer = Packer(tokenizer, texts, family)
        gates = family.gates(run.model)
        with recorded(gates) as calls:
            run.advance(packer, 0, 1)
        moved[name] = [
            (call.load_E.float(), gate.e_score_correction_bias) for gate, call in zip(gates, calls, strict=True)
        ]
    for load, bias in moved["deepseek-v3"]:
        torch.testing.assert_close(bias, 0.001 * (load.mean() - load).sign())
        assert (bias[load < load.mean()] > 0).all()
    assert not any(bias.any() for _, bias in moved["deepseek-v3" + UNBALANCED])


def test_a_moving_bias_brings_every_expert_into_use() -> None:
    gate = torch.nn.Module()
    gate.e_score_correction_bias = torch.nn.Buffer(torch.zeros(8))
    torch.manual_seed(0)
    scores = torch.rand(400, 8) + torch.linspace(0, 1, 8)
    for _ in range(3000):
        load = torch.bincount((scores + gate.e_score_correction_bias).topk(2).indices.flatten(), minlength=8)
        move_bias(gate, load, 0.001)
    assert load.min() > 0.9 * load.float().mean()


def test_health_sees_a_collapsed_router(tiny_family: Family, tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_model(tiny_family, tokenizer)
    (gate, *_) = tiny_family.gates(model)
    items = items_of("reverse", 20)
    healthy = router.health(router.decode_routes(model, tokenizer, items)[:1], tiny_family.score)
    weight = gate.get_parameter("weight")
    torch.nn.init.zeros_(weight)
    collapsed = router.health(router.decode_routes(model, tokenizer, items)[:1], tiny_family.score)
    assert collapsed["load_entropy"] < healthy["load_entropy"]
    assert collapsed["unused"] > healthy["unused"]
    assert sum(healthy["weights"]) == pytest.approx(1)


def test_a_model_of_no_family_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear is of no family of the testbed; they are Mixtral"):
        family_of(torch.nn.Linear(1, 1))
