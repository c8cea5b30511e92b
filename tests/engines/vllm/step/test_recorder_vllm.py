"""A recording of a live vLLM engine: the same policy on the same steps gives the ids that the expert kernels got."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_vllm import engine, generate, prompts, save_model
from torch import Tensor

from lynx_moe.engines import vllm as lynx_vllm
from lynx_moe.engines.vllm.step.plan import Plan
from lynx_moe.lab.replay import recording
from lynx_moe.lab.replay.measure import replay, routings
from lynx_moe.policies import ModelShape, make_policy


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_live_and_replayed_ids_are_the_same(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live: dict[int, list[Tensor]] = {0: [], 1: []}
    reroute = Plan.reroute

    def spy(plan: Plan, logits: Tensor, weights: Tensor, ids: Tensor, layer: int, *hidden: Tensor) -> Any:
        final = reroute(plan, logits, weights, ids, layer, *hidden)
        if plan.recorder is not None and plan.acts:
            rows = plan.rows.masks(len(ids))
            valid = torch.ones(len(ids), dtype=torch.bool) if rows is None or rows.valid is None else rows.valid
            live[layer].append((ids.long() if final is None else final.ids)[valid].clone())
        return final

    monkeypatch.setattr(Plan, "reroute", spy)
    with engine(save_model(family, tmp_path / "model"), "lynx") as llm:
        recorder = lynx_vllm.record(10**7)
        generate(llm, prompts(20, seed=3))
        lynx_vllm.stop_recording()
        facts = {"shape": vars(lynx_vllm.shape())}
        counted = lynx_vllm.stats()
        generate(llm, prompts(3, seed=4))
    read = recording.load(recording.save(recorder, tmp_path / "r.safetensors", **facts))
    assert len(read.rows) == len(live[0]) == counted.steps["decode"] + counted.steps["mixed"] > 10
    assert not read.remap.all()  # some steps mixed prompts in
    policy = make_policy("lynx").for_model(ModelShape(**facts["shape"]))
    for layer in live:
        assert torch.equal(routings(read, policy, layer), torch.cat(live[layer]))
    (line,) = replay(read, ["lynx"])
    assert line["policy"] == policy.spec
    steps = [tally for layer in counted.layers for tally in (layer.decode, layer.mixed)]
    assert line["after"] == pytest.approx(sum(tally.after for tally in steps) / sum(tally.steps for tally in steps))
    assert line["before"] == pytest.approx(sum(tally.before for tally in steps) / sum(tally.steps for tally in steps))
