"""Recordings: what goes in comes out, bounded and whole; replaying equals deciding step by step."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import lynx_moe
from lynx_moe.engines.shared.layers import Layer
from lynx_moe.engines.shared.recorder import Recorder
from lynx_moe.lab.replay import recording
from lynx_moe.lab.replay.measure import Setting, replay, routings
from lynx_moe.policies import ModelShape, Placement, make_policy
from lynx_moe.routing import RouterSpec, Rows, distinct, loaded, scores, select

SHAPE = {"model_type": "qwen3_moe", "num_layers": 2, "num_experts": 16, "top_k": 4}
SPECS = {
    "softmax": RouterSpec(num_experts=16, top_k=4),
    "biased groups": RouterSpec(
        num_experts=16, top_k=4, scoring="sigmoid", scale=2.5, groups=(4, 2), bias=torch.linspace(-0.2, 0.2, 16)
    ),
}
POLICIES = [
    "vanilla",
    "priced:price=1",
    "lynx",
    "lynx:alpha=3,beta=2,pin_top1=true",
    "lynx-v1:num_keep=9",
    "oea:k0=2",
    "random:num_keep=6",
]


def steps(spec: RouterSpec, dtype: torch.dtype = torch.float32, num: int = 12):
    """Made-up steps of two layers: logits per layer, and rows; some are padding, some are not to be changed."""
    generator = torch.Generator().manual_seed(5)
    for step in range(num):
        size = (5, 7, 5, 1)[step % 4]
        valid = torch.rand(size, generator=generator) > 0.2
        valid[0] = True
        remap = valid & (torch.rand(size, generator=generator) > 0.2)
        logits = [torch.randn(size, spec.num_experts, generator=generator).to(dtype) for _ in range(2)]
        yield logits, [None, Rows(valid=valid), Rows(valid=valid, remap=remap)][step % 3]


def made(
    spec: RouterSpec, path: Path, dtype: torch.dtype = torch.float32, max_bytes: int = 10**6
) -> recording.Recording:
    recorder = Recorder({0: Layer(name="first", spec=spec), 2: Layer(name="second", spec=spec)}, max_bytes)
    for logits, rows in steps(spec, dtype):
        for layer in (1, 0):
            recorder.add(2 * layer, logits[layer], select(logits[layer], spec), rows)
    return recording.load(recording.save(recorder, path, model="m", shape=SHAPE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", SPECS)
def test_a_recording_holds_the_valid_rows_bit_for_bit(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    spec = SPECS[kind]
    read = made(spec, tmp_path / "r.safetensors", dtype)
    assert [layer.name for layer in read.layers] == ["first", "second"]
    start = 0
    for (logits, rows), size in zip(steps(spec, dtype), read.rows.tolist(), strict=True):
        valid = torch.ones(len(logits[0]), dtype=torch.bool) if rows is None else rows.valid
        remap = valid if rows is None or rows.remap is None else rows.remap
        place = slice(start, start := start + size)
        assert torch.equal(read.remap[place], remap[valid])
        for layer, given in zip(read.layers, logits, strict=True):
            assert layer.logits.dtype == dtype
            assert torch.equal(layer.logits[place], given[valid])
            own = select(given, spec)
            assert torch.equal(layer.own.ids[place], own.ids[valid])
            assert torch.equal(layer.own.weights[place], own.weights[valid])
    for layer in read.layers:
        same = (layer.spec.num_experts, layer.spec.top_k, layer.spec.scoring, layer.spec.scale, layer.spec.groups)
        assert same == (spec.num_experts, spec.top_k, spec.scoring, spec.scale, spec.groups)
        assert (layer.spec.bias is None) == (spec.bias is None)
        assert spec.bias is None or torch.equal(layer.spec.bias, spec.bias)
    assert read.facts["model"] == "m"
    assert read.facts["dropped_steps"] == 0


def test_a_replay_counts_the_fullest_rank(tmp_path: Path) -> None:
    read = made(SPECS["softmax"], tmp_path / "r.safetensors")
    placement, counts = Placement.linear(16, 3), []
    for layer in read.layers:
        for ids in layer.own.ids.split(read.rows.tolist()):
            counts.append(int(placement.count(loaded(ids, 16)).max()))
    plain, spread = replay(read, ["oea:k0=1", "oea:k0=1,per_rank=true"], Setting(ranks=3))
    assert plain["fullest_before"] == spread["fullest_before"] == pytest.approx(sum(counts) / len(counts))
    assert spread["fullest_after"] <= plain["fullest_after"] < plain["fullest_before"]
    assert spread["mass"] > plain["mass"]
    (alone,) = replay(read, ["oea:k0=1"])
    assert (alone["fullest_before"], alone["fullest_after"]) == (alone["before"], alone["after"])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", SPECS)
def test_a_replay_decides_as_each_step_alone(kind: str, policy: str, tmp_path: Path) -> None:
    spec = SPECS[kind]
    read = made(spec, tmp_path / "r.safetensors")
    open_policy = make_policy(policy)
    named = open_policy.for_model(ModelShape(**SHAPE))
    (line,) = replay(read, [policy])
    before, after, mass, overlap = [], [], [], []
    for number, layer in enumerate(read.layers):
        ids = routings(read, named, number)
        start = 0
        for size in read.rows.tolist():
            place = slice(start, start := start + size)
            rows = Rows(remap=read.remap[place])
            expected = named.route(layer.logits[place], spec, rows)
            assert torch.equal(ids[place], expected.ids)
            before.append(int(distinct(layer.own.ids[place], 16, None)))
            after.append(int(distinct(expected.ids, 16, None)))
            triples = zip(
                scores(layer.logits[place], spec), expected.ids.tolist(), layer.own.ids[place].tolist(), strict=True
            )
            for (score, final, own), remap in zip(triples, rows.remap.tolist(), strict=True):
                if remap:
                    mass.append(float(score[list({*final})].sum() / score[own].sum()))
                    overlap.append(len({*final} & {*own}) / len(own))
    assert line["policy"] == named.spec
    assert line["before"] == pytest.approx(sum(before) / len(before))
    assert line["after"] == pytest.approx(sum(after) / len(after))
    assert line["mass"] == pytest.approx(sum(mass) / len(mass))
    assert line["overlap"] == pytest.approx(sum(overlap) / len(overlap))
    assert line["changed"] == pytest.approx(sum(share < 1 for share in overlap) / len(overlap))
    if policy == "vanilla":
        assert (line["overlap"], line["changed"], line["after"]) == (1, 0, line["before"])
    else:
        assert line["after"] < line["before"]
        assert 0 < line["overlap"] < 1


def test_the_size_is_bounded_by_whole_steps(tmp_path: Path) -> None:
    whole = made(SPECS["softmax"], tmp_path / "a.safetensors")
    row = 2 * (16 * 4 + 4 * 2 + 4 * 4)
    part = made(SPECS["softmax"], tmp_path / "b.safetensors", max_bytes=row * 20)
    assert part.rows.sum() <= 20
    assert torch.equal(part.rows, whole.rows[: len(part.rows)])
    assert part.facts["dropped_steps"] == len(whole.rows) - len(part.rows) > 0
    with pytest.raises(ValueError, match="below one step"):
        made(SPECS["softmax"], tmp_path / "c.safetensors", max_bytes=10)
    assert not (tmp_path / "c.safetensors").exists()


def test_a_file_that_is_no_recording_is_named(tmp_path: Path) -> None:
    made(SPECS["softmax"], tmp_path / "a.safetensors")
    cut = (tmp_path / "a.safetensors").read_bytes()[:-50]
    (tmp_path / "cut.safetensors").write_bytes(cut)
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("cut", "other", "text", "missing"):
        with pytest.raises(ValueError, match=f"{name}.safetensors is not a readable recording"):
            recording.load(tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match="num_keep keeps 99 experts"):
        replay(recording.load(tmp_path / "a.safetensors"), ["random:num_keep=99"])


def test_a_live_run_of_transformers_is_replayed_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    experts = {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 16, "head_dim": 16}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=200, intermediate_size=32, **sizes, **experts)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    live: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for number, layer in enumerate(model.model.layers):
        called = layer.mlp.experts.forward
        monkeypatch.setattr(
            layer.mlp.experts,
            "forward",
            lambda x, ids, weights, n=number, f=called: live[n].append(ids) or f(x, ids, weights),
        )
    run = lynx_moe.apply(model, "lynx")
    recorder = run.record(10**7)
    with run, torch.inference_mode():
        ids = torch.randint(3, 200, (6, 5))
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, eos_token_id=None)
    read = recording.load(recording.save(recorder, tmp_path / "r.safetensors", shape=vars(run.shape)))
    assert read.rows.tolist() == [6] * 7
    for layer, ids_by_step in live.items():
        decoded = torch.cat([ids for ids in ids_by_step if len(ids) == 6])
        assert torch.equal(routings(read, run.policy, layer), decoded)
    (line,) = replay(read, ["lynx"])
    assert line["after"] == pytest.approx(run.stats().mean_after)
    assert line["after"] < line["before"]
