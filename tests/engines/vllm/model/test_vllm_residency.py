"""Decisions that know which experts are in memory, on a real engine: what they read, and whom they leave alone."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_vllm import engine, generate, prompts

from lynx_moe.engines import vllm as plugin
from lynx_moe.engines.disk.slots import HELD
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.step.plan import active
from lynx_moe.engines.vllm.step.shadows.passes import Shadows
from lynx_moe.lab.fidelity.served import Served
from lynx_moe.testbed import path

SLOTS, LAYERS, EXPERTS = 24, 4, 64
MODEL = str(path("qwen3-moe"))
REQUESTS = prompts(8, 0)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    given = {"policy": "priced", "shadow": 0, "experts_resident": SLOTS, "experts_residency": "aware"}
    folder = str(tmp_path_factory.mktemp("experts"))
    with engine(MODEL, additional_config={"lynx_moe": {**given, "experts_folder": folder}}) as made:
        yield made


def loads(llm: Any, policy: str) -> tuple[int, int]:
    """Experts that decode steps of REQUESTS need, and those of them that were read."""
    plugin.set_policy(policy)
    plugin.reset_stats()
    generate(llm, REQUESTS)
    told = plugin.stats().disk
    assert told is not None
    decode = told["steps"]["decode"]
    return decode["loads"] + decode["hits"], decode["loads"]


def test_a_decision_is_told_what_is_in_memory_as_it_is_taken(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, seen = active(), []
    store = plan.store
    assert store is not None
    decide = type(plan.by_layer[0]).decide

    def noted(policy: Any, logits: Any, spec: Any, rows: Any, own: Any) -> Any:
        layer = next(n for n, one in enumerate(plan.by_layer) if one is policy)
        there = torch.from_numpy(store.by_name[plan.layers[layer].name].slot_E >= 0)
        seen.append((layer, torch.equal(rows.load_cost_E, torch.where(there, HELD, 1.0)), int(there.sum())))
        return decide(policy, logits, spec, rows, own)

    monkeypatch.setattr(type(plan.by_layer[0]), "decide", noted)
    generate(llm, REQUESTS)
    assert {layer for layer, _, _ in seen} <= set(range(LAYERS))
    assert all(same for _, same, _ in seen)
    assert {count for *_, count in seen} == {SLOTS}


def test_knowing_it_more_is_kept_and_less_is_read(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    aware = {policy: loads(llm, policy) for policy in ("priced:price=0.1", "drop-on-miss:mass=0.3", "cache-prior")}
    exact = loads(llm, "vanilla")
    served = Served.__new__(Served)
    monkeypatch.setattr(served, "_ask", llm.collective_rpc, raising=False)
    stats = plugin.stats()
    assert stats.disk is not None
    read = sum(stats.disk["steps"][kind]["loads"] for kind in ("decode", "single") if kind in stats.disk["steps"])
    steps = stats.steps["decode"] + stats.steps["single"]
    assert served._read(LAYERS)["read"] == pytest.approx(read / steps / LAYERS)
    monkeypatch.setattr(active().store, "load_cost", lambda name: torch.ones(EXPERTS))  # as if nothing were in memory
    blind = loads(llm, "priced:price=0.1")
    assert aware["priced:price=0.1"][0] > blind[0]
    assert aware["priced:price=0.1"][1] < blind[1]
    assert all(read < exact[1] for _, read in aware.values())


def test_a_shadow_step_decides_by_what_was_there_before_its_passes(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact pass leaves the model's own experts in memory: by these the next one would find nothing to do without,
    and measure no harm. What a pass reads that does not stay counts apart."""
    plan, seen = active(), []
    plugin.set_policy("cache-prior:weight=1")
    monkeypatch.setattr(plan, "shadows", Shadows(1))
    settled = type(plan).settled

    def noted(plan: Any, layer: int, logits: Any, own: Any) -> Any:
        final = settled(plan, layer, logits, own)
        seen.append(len(final.ids.unique()))
        return final

    monkeypatch.setattr(type(plan), "settled", noted)
    plugin.reset_stats()
    for first in range(0, len(REQUESTS), 2):
        generate(llm, REQUESTS[first : first + 2])
    stats = plugin.stats()
    assert stats.disk is not None
    assert stats.shadows is not None
    (batch,) = (one for one in stats.shadows["batches"] if one["batch"] == "2-4")
    assert batch["rows"] > 20
    assert batch["kl"] > 1e-3
    sums = stats.disk["steps"]
    assert sums["shadow"]["loads"] > 0
    asked = sum(sums[kind]["loads"] + sums[kind]["hits"] for kind in ("decode", "mixed", "single") if kind in sums)
    assert asked == sum(seen)


@pytest.mark.parametrize("policy", ["priced:price=0.3", "cache-prior:weight=1", "drop-on-miss:mass=0.5"])
def test_an_exact_request_keeps_the_model_s_routing(llm: Any, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin.set_policy(policy)
    plan, seen = active(), []
    settled = type(plan).settled

    def noted(plan: Any, layer: int, logits: Any, own: Any) -> Any:
        final = settled(plan, layer, logits, own)
        own_rows = ~plan.rows.remap[: len(own.ids)]
        same_T = (final.ids == own.ids).all(-1) & (
            final.weights.view(torch.int32) == own.weights.view(torch.int32)
        ).all(-1)
        seen.append((int(own_rows.sum()), bool(same_T[own_rows].all()), int((~same_T).sum())))
        return final

    monkeypatch.setattr(type(plan), "settled", noted)
    generate(llm, REQUESTS, ["exact", None])
    assert sum(kept for kept, *_ in seen) > 0
    assert all(same for _, same, _ in seen)
    assert sum(changed for *_, changed in seen) > 0


def test_requests_may_bring_what_needs_to_know_it(llm: Any) -> None:
    generate(llm, REQUESTS[:2], ["drop-on-miss:mass=0.2"])
    with pytest.raises(ValueError, match="min_k=9 is more than the model's top_k=8"):
        generate(llm, REQUESTS[:2], ["drop-on-miss:min_k=9"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts_residency": "aware"}, "tells which experts are in memory, and here all are; say experts_resident"),
        ({"experts_resident": 8, "experts_residency": "both"}, "'both' must be 'blind' or 'aware'"),
        ({"policy": "cache-prior"}, r"cache-prior decides by which .* experts_residency=aware"),
        ({"policy": "drop-on-miss", "experts_resident": 8}, "drop-on-miss decides by which experts are in memory"),
        ({"presets": {"less": "drop-on-miss"}}, "drop-on-miss decides by which experts are in memory"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**{"policy": "priced", **options})


def test_a_model_that_drafts_is_told_nothing() -> None:
    presets = {"less": "drop-on-miss"}
    options = Options(policy="priced", experts_resident=8, experts_residency="aware", verify="draft", presets=presets)
    assert options.tells_residency
    assert not options.of_drafter.tells_residency
    knowing = Options(policy="drop-on-miss", experts_resident=8, experts_residency="aware", verify="draft")
    with pytest.raises(ValueError, match="drop-on-miss decides by which experts are in memory"):
        knowing.of_drafter  # noqa: B018
