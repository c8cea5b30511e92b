"""Steps that verify drafts: rates, what is accepted, and what the samples say; once through vLLM."""

from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from lynx_moe.cli import app
from lynx_moe.lab.shared import record
from lynx_moe.lab.speed import verification
from lynx_moe.lab.speed.verification import EXACT, NO_DRAFTS, Drafts, accepted, rates, table, whole


@pytest.mark.parametrize("text", ["", "0.5,0.7", "1.2", "0.5,-0.1", "a", "0.7,"])
def test_rates_are_shares_that_never_rise(text: str) -> None:
    assert rates("1,0.5,0.5") == [1, 0.5, 0.5]
    with pytest.raises(ValueError, match=r"from 0 to 1 and never rising, such as 0\.7,") as caught:
        rates(text)
    assert "\n" not in str(caught.value)


def test_bad_rates_are_refused_before_weights_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lynx_moe.lab.demo.measure.apart", lambda *a: pytest.fail("an engine was opened"))
    result = CliRunner().invoke(app, ["bench", "--drafts", "0.2,0.4"])
    assert isinstance(result.exception, ValueError)


def test_a_depth_is_accepted_as_often_as_its_rate_says() -> None:
    draws = [(place + 0.5) / 100 for place in range(100)]
    counts = [accepted(draw, (0.7, 0.5, 0.2)) for draw in draws]
    assert [sum(count >= depth for count in counts) for depth in (1, 2, 3)] == [70, 50, 20]
    assert accepted(0.1, ()) == 0


def test_accepted_tokens_stand_before_one_of_vllms_own() -> None:
    drafts = Drafts.__new__(Drafts)
    drafts._acceptance, drafts._rng = (1.0, 1.0, 0.0), None  # type: ignore[assignment]
    drafts._rng = type("Rng", (), {"random": lambda self: 0.5})()  # type: ignore[assignment]
    sampled = torch.tensor([[90, -1, -1, -1], [91, -1, -1, -1], [92, -1, -1, -1]], dtype=torch.int32)
    drafts._own = lambda *args, **given: sampled.clone()
    bonus = torch.tensor([[70], [71], [72]])
    got = drafts._sample(torch.tensor([1, 2, 3, 4, 5]), [3, 2, 0], 3, None, None, None, bonus, None)
    assert got.tolist() == [[1, 2, 90, -1], [4, 5, 71, -1], [72, -1, -1, -1]]


def test_ratios_are_of_rounds_and_speculation_pays_by_what_is_committed() -> None:
    steps = {EXACT: (40.0, 44.0), "priced": (20.0, 20.0), NO_DRAFTS: (10.0, 10.0)}
    samples: list[dict[str, Any]] = [
        {"batch": 2, "round": n, "policy": one, "tpot_ms": ms, "before": 9.0, "after": 9.0, "decision_us": 1.0}
        for one, times in steps.items()
        for n, ms in enumerate(times)
    ]
    rows = {row["policy"]: row for row in whole(samples, list(steps), [2], (0.75, 0.25))}
    assert [rows[one]["rows"] for one in steps] == [6, 6, 2]
    assert rows["priced"]["speedup"] == pytest.approx(2.1)
    assert rows["priced"]["even"] == 2
    assert rows["priced"]["pays"] == 1
    assert rows[EXACT]["even_range"] == pytest.approx([4, 4.4])
    assert rows[EXACT]["pays"] == pytest.approx(2 / 4.2, rel=0.01)
    cells = table(list(rows.values()))
    assert [row[2] for row in cells] == ["exact", "remap, priced", "no drafts"]
    assert {len(row) for row in cells} == {len(verification.HEAD)}


@pytest.mark.vllm
def test_a_tiny_shape_verifies_in_every_step(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's own process cannot be given a tiny shape, so its half runs here in one made for it."""
    from lynx_moe.lab.shared.engine import in_own_process

    found = in_own_process(tiny_run)
    record.save(found, tmp_path / "verification.json")
    by = {(row["batch"], row["policy"]): row for row in found["summary"]}
    assert by[2, EXACT]["after"] == by[2, EXACT]["before"] > by[2, NO_DRAFTS]["before"]
    assert by[2, "priced:price=1"]["after"] < by[2, "priced:price=1"]["before"]
    assert by[1, "priced:price=1"]["before"] > 8  # a request alone has four rows
    assert all(sample["tpot_ms"] > 0 for sample in found["samples"])


def tiny_run() -> dict[str, Any]:
    from lynx_moe.lab.speed import measure, shapes

    small = shapes.tiny(shapes.SHAPES["qwen3-30b"])
    shapes.SHAPES["tiny"] = small
    given = {"shape": "tiny", "layers": 2, "policies": ["priced:price=1"], "batch_sizes": (1, 2), "rounds": 1}
    assert measure.SHAPES is shapes.SHAPES
    return verification.measure(**given, acceptance=(0.8, 0.6, 0.4))
