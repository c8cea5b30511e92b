"""One forward tells what lockstep decoding tells; the trace is what routers chose; and what follows from them."""

from typing import Any

import pytest
import torch
from tiny_moe import documents
from tiny_transformers import beside, cache_of

import lynx_moe
from lynx_moe.lab.fidelity.lockstep import decode
from lynx_moe.lab.profile.check import candidates, kept_enough, suggested
from lynx_moe.lab.profile.measures.denials import DenyExpert, DenyHalf, DenyRank
from lynx_moe.lab.profile.measures.forward import effects, lay_out
from lynx_moe.lab.profile.measures.routing import routing
from lynx_moe.lab.profile.measures.step_time import experts_bytes, fit, step_time
from lynx_moe.lab.profile.measures.trace import Trace, trace
from lynx_moe.lab.shared.documents import batches
from lynx_moe.routing import RouterSpec

DENIALS = (DenyRank(rank=0), DenyHalf(), DenyExpert(expert=3))


def test_one_forward_is_decoding_in_lockstep(model: Any) -> None:
    cut = batches(documents(10), 5, "mixed", seed=0)
    runs = [lynx_moe.apply(model, policy) for policy in DENIALS]
    for batch, found in zip(cut, effects(model, cut, runs, "decode"), strict=True):
        expected = decode(model, batch, [lynx_moe.apply(model, policy) for policy in DENIALS], "own")
        for one, other in zip(found, expected, strict=True):
            assert one.kl.max() > 0.01
            for name in ("kl", "gain", "exact"):
                torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=2e-4, rtol=2e-3)


def test_a_reassigned_prefill_is_followed_by_exact_decoding(model: Any) -> None:
    cut = batches(documents(4), 1, "mixed", seed=0)
    run = lynx_moe.apply(model, DenyHalf(), phase="prefill")
    for batch, (effect,) in zip(cut, effects(model, cut, [lynx_moe.apply(model, DenyHalf())], "prefill"), strict=True):
        (member,) = batch.members
        rest = torch.tensor([member.rest[: batch.num_steps]])
        told = []
        for block in (None, run):
            with torch.inference_mode():
                if block:
                    with block:
                        cache = cache_of(model(torch.tensor([member.prefix])))
                else:
                    cache = cache_of(model(torch.tensor([member.prefix])))
                told.append(model(rest, **beside(model, cache)).logits[0].log_softmax(-1))
        expected = (told[0].exp() * (told[0] - told[1])).sum(-1)
        torch.testing.assert_close(effect.kl[:, 0], expected, atol=2e-4, rtol=2e-3)


def test_unknown_phases_are_refused(model: Any) -> None:
    (batch,) = batches(documents(3), 3, "mixed", seed=0)
    with pytest.raises(ValueError, match="allowed: decode, prefill"):
        lay_out(batch, torch.device("cpu")).rows("all")


def test_the_trace_is_what_routers_chose_step_by_step(model: Any) -> None:
    (batch,) = batches(documents(5), 5, "mixed", seed=0)
    run = lynx_moe.apply(model, "vanilla")
    recorder = run.record(1 << 30)
    decode(model, batch, [run], "own")
    found = trace(model, [batch])
    for layer in recorder.parts:
        for step, (logits_TE, _, _) in enumerate(recorder.parts[layer]):
            assert torch.equal(found.ids[0][:, step, layer], logits_TE.topk(4, -1).indices)
    shares = torch.stack(
        [torch.stack([one[0].softmax(-1).amax(-1) for one in part]) for part in recorder.parts.values()]
    )
    torch.testing.assert_close(found.confidence[0], shares.mean(0), atol=1e-5, rtol=1e-4)


def made(ids_SLK: list[torch.Tensor]) -> Trace:
    return Trace([torch.stack(ids_SLK)], [], RouterSpec(num_experts=8, top_k=2))


def test_spread_and_distinct_experts_of_traces_that_are_known() -> None:
    """Four sequences of four steps: each step's tokens agree, and all steps together use every expert alike."""
    steps = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7]])[:, None]
    agreeing = routing(made([steps] * 4), seed=0)
    assert agreeing["over_data"] == 0
    assert agreeing["inside"] == pytest.approx((0.25 * 0.75) ** 0.5)  # as if one token were the batch
    assert agreeing["loads_by_rank"] == [1, 2]
    shifted = routing(made([steps.roll(shift, 0) for shift in range(4)]), seed=0)
    assert shifted["inside"] == 0
    assert shifted["loads_by_rank"] == [4, 8]
    one, two, four = shifted["distinct"]
    assert (one["batch_size"], one["mean"], one["uniform"]) == (1, 2, 2)
    assert two["mean"] > 2
    assert two["uniform"] == pytest.approx(3.5)
    assert four["range"][0] <= four["mean"] <= four["range"][1] <= 8
    assert agreeing["sorted_inside"] == [1, 1, 0, 0, 0, 0, 0, 0]


def test_a_line_through_medians_and_what_is_timed(model: Any) -> None:
    points = [{"experts": x, "ms": [5 + 2 * x - 1, 5 + 2 * x, 99]} for x in (1, 2, 4, 8)]
    assert fit(points) == pytest.approx({"base": 5, "slope": 2, "r2": 1})
    decoded, prefilled = step_time(model, batch_size=3, rounds=3, seed=0)
    assert [point["experts"] for point in decoded["points"]] == [
        4,
        6,
        7,
        9,
        10,
        12,
    ]  # 3 rows of 4 experts load 12 at most
    assert {len(point["ms"]) for point in decoded["points"] + prefilled["points"]} == {3}
    assert (decoded["rows"], prefilled["rows"]) == (3, 192)
    assert experts_bytes(model) == 2 * 16 * 3 * 32 * 16 * 4


def test_candidates_follow_the_ranks_and_the_suggestion_the_check() -> None:
    def line(what: str, rank: int, high: float) -> dict[str, Any]:
        return {"what": what, "rank": rank, "kl_interval": [0.0, high]}

    ranks = [line("deny", rank, 1.0) for rank in range(8)]
    ranks += [line("keep", kept, high) for kept, high in enumerate((0.3, 0.02, 0.011, 0.009, 0.004, 0.002, 0.001), 1)]
    assert kept_enough(ranks, 0.01) == 4
    assert kept_enough(ranks, 1e-6) == 8
    assert candidates(ranks, 0.01)[5:] == ["oea:k0=1", "oea:k0=2", "oea:k0=4"]
    assert candidates(ranks, 1e-6)[-1] == "oea:k0=7"
    checked = [
        {"policy": "a", "kl_interval": [0, 0.02], "before": 40, "after": 10},
        {"policy": "b", "kl_interval": [0, 0.009], "before": 40, "after": 20},
        {"policy": "c", "kl_interval": [0, 0.001], "before": 40, "after": 30},
    ]
    assert (suggested(checked, 0.01) or {})["policy"] == "b"
    assert suggested(checked, 1e-4) is None
    assert suggested([{**checked[2], "after": 40}], 0.01) is None
