"""`lynx-moe speculation`: what is counted, what the table says, what is refused; once through vLLM."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from lynx_moe.cli import app
from lynx_moe.engines.vllm.step.shadows.sample import Effect
from lynx_moe.lab.shared import lines
from lynx_moe.lab.speculation import harm, measure, show
from lynx_moe.lab.speculation.loads import Loads, is_past_prompts
from lynx_moe.lab.speculation.serve import depths, loads_line
from lynx_moe.routing import Routing
from lynx_moe.testbed import path

MODEL = str(path("qwen3-moe"))


def line(**given: Any) -> dict[str, Any]:
    loads: dict[str, Any] = {"before": None, "after": None, "a_token": None, "steps": 0}
    found: dict[str, Any] = {"drafter": "draft", "verify": "exact", "policy": "vanilla", "batch": 4, "n": 4}
    found |= {"right": [1, 1, 1, 0], "length": [5, 5, 7, 9], "verifications": [2, 2, 2, 2], "loads": loads}
    found |= {"drafted": [[2, 2]] * 4, "accepted": [[2, 1], [2, 2], [1, 0], [1, 1]], "harm": harm.line([])}
    return {**found, **given}


def test_each_depth_is_counted_where_a_draft_reached_it() -> None:
    assert depths([(3, 3), (3, 1), (1, 0)], 3) == ([3, 2, 2], [2, 1, 1])
    assert depths([], 2) == ([0, 0], [0, 0])


def test_rows_compare_with_no_drafts_and_with_exact_verification_of_the_same_drafter() -> None:
    nothing = {"verifications": [0] * 4, "drafted": [[0, 0]] * 4, "accepted": [[0, 0]] * 4}
    plain = line(drafter="none", **nothing)
    remap = line(verify="remap", policy="priced", right=[1, 1, 1, 1], accepted=[[2, 2]] * 4, length=[5, 5, 7, 8])
    first, exact, other = show.rows([plain, line(), remap])
    assert len(first) == len(show.HEAD)
    assert first[:5] == ("4", "none", "-", "vanilla", "75.0 [30.1, 95.4]")
    assert (first[7], first[8], first[9]) == ("1", "", "")
    assert exact[7].startswith("2.25 [")  # 10 accepted in 8 verifications
    assert exact[8] == ""
    assert exact[9] == "75.0 50.0"
    assert other[5].startswith("+25.0 [+0.0, ")
    assert other[6].startswith("6.25, -0.25 [")
    assert other[8].startswith(f"{3 / 2.25:.3f} [")
    assert exact[-1] == other[-1] == ""  # nothing was measured
    told = harm.line([Effect(2, 0.004, 2, 0.0), Effect(1, 0.005, 0, 0.0)])
    assert show.rows([line(harm=told)])[0][-1].startswith("3.00 [2.00, 5.00")
    assert (
        show.rows([{name: value for name, value in line().items() if name != "harm"}])[0][-1] == ""
    )  # an older record
    assert show.page([plain, remap]).count("\n") == 4


def test_steps_of_whole_groups_without_prompts_are_counted_by_layer() -> None:
    class Plan:
        layers, trial = ("a", "b"), None
        rows = SimpleNamespace(num_rows=3, num_decode_rows=0, num_verify_rows=3, num_verify_remappable=0)

        def reroute(self, logits: Any, weights: Any, ids: torch.Tensor, layer: int, hidden: Any = None) -> Any:
            return None if layer == 0 else Routing(torch.zeros_like(ids), weights)

    plan, ids = Plan(), torch.tensor([[1, 2], [2, 3], [4, 5]])
    with Loads(plan) as loads:
        for whole, tokens in ((False, 1), (True, 2), (True, 4)):
            loads.whole = whole
            for layer in range(2):
                plan.reroute(None, torch.ones(3, 2), ids, layer)
            loads.committed(tokens)
        plan.trial = object()  # type: ignore[assignment]  # a pass that does not stay
        plan.reroute(None, torch.ones(3, 2), ids, 0)
        plan.trial = None
        plan.rows.num_rows = 9  # six of a prompt
        plan.reroute(None, torch.ones(3, 2), ids, 0)
        loads.committed(3)
    assert "reroute" not in vars(plan)
    assert [(step.rows, step.verifies, step.before, step.after, step.tokens) for step in loads.steps] == [
        (3, True, 5, 3, 2),
        (3, True, 5, 3, 4),
    ]
    told = loads_line(loads)
    assert (told["steps"], told["tokens"], told["before"], told["after"]) == (2, 6, 5, 3)
    assert told["a_token"] == pytest.approx(1.0)


def test_rows_count_up_to_the_first_token_that_was_rejected() -> None:
    class Shadows:
        indices = torch.tensor([0, 1, 2, 3, 4])
        compared = 0

        def compare(self, *given: Any) -> None:
            self.compared += 1

    truth = torch.zeros(5, 4)
    truth[:, 0] = torch.tensor([0.0, 0.0, 0.0, 1.0, 9.0])  # the last two rows move
    shadows = Shadows()
    shadows.logits = {"exact": truth}  # type: ignore[attr-defined]
    request, depth = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 0, 1])
    rows = SimpleNamespace(drafted=True, request=request, depth=depth)
    plan = SimpleNamespace(shadows=shadows, rows=rows)
    remap = torch.tensor([True] * 5)
    with harm.Harm(plan, lambda: ["a", "b"]) as harms:
        for accepted in ({"a": 1, "b": 0}, {"a": 2, "b": 1}):
            shadows.compare(torch.zeros(5, 4), remap, None, 0)
            harms.committed(accepted.__getitem__)
        rows.drafted = False  # all of them decode
        shadows.compare(torch.zeros(5, 4), torch.tensor([False, False, False, True, False]), None, 0)
        harms.committed({}.__getitem__)
        harms.committed({}.__getitem__)  # a step that ran once
    assert shadows.compared == 3
    assert "compare" not in vars(shadows)
    assert [one.rows for one in harms.effects] == [3, 5, 1]
    small = harms.effects[2].kl
    assert harms.effects[0].kl == pytest.approx(small)  # the row that moved most was behind a rejected token
    assert harms.effects[1].kl > 3 * small > 0
    found = harm.line(harms.effects)
    assert (found["steps"], found["rows"]) == (3, 9)
    assert found["kl"] == pytest.approx(sum(one.kl for one in harms.effects) / 9)
    assert found["kl_interval"][0] < found["kl"] < found["kl_interval"][1]


@pytest.mark.parametrize(
    ("given", "answer"),
    [((4, 4, 0, 0), True), ((4, 4, 4, 4), True), ((4, 1, 3, 0), True), ((6, 1, 3, 0), False), ((0, 0, 0, 0), False)],
)
def test_a_prompt_is_what_neither_decodes_nor_verifies(given: tuple[int, ...], answer: bool) -> None:
    names = ("num_rows", "num_decode_rows", "num_verify_rows", "num_verify_remappable")
    assert is_past_prompts(SimpleNamespace(**dict(zip(names, given, strict=True)))) == answer


def test_ways_of_verifying_are_those_that_a_drafter_has() -> None:
    own = measure.Settings(model=str(path("deepseek-v3")), drafters=("mtp", "suffix"), batch_sizes=(1,))
    ways = [(engine.drafter, engine.verify) for engine in own.engines()]
    assert ways == [("mtp", "exact"), ("mtp", "remap"), ("mtp", "draft"), ("suffix", "exact"), ("suffix", "remap")]
    assert measure.speculation_of("mtp", 2) == {"method": "mtp", "num_speculative_tokens": 2}
    given = measure.Settings(model=MODEL, drafters=("none", "ngram", "draft", "olmoe"), batch_sizes=(1,))
    found = [(engine.drafter, engine.verify, [policy for policy, _ in engine.cells]) for engine in given.engines()]
    both = ["vanilla", "priced"]
    assert found == [
        ("none", "exact", both),
        ("ngram", "exact", both),
        ("ngram", "remap", both[1:]),
        ("draft", "exact", both),
        ("draft", "remap", both[1:]),
        ("olmoe", "exact", both),
        ("olmoe", "remap", both[1:]),
        ("olmoe", "draft", both[1:]),
    ]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--verify", "exact,remp"), "'remp' is unknown; allowed: exact, remap, draft"),
        (("--drafters", "none drafty"), "no trained model 'drafty'"),
        (("--drafters", "ngram ngram"), "nothing twice"),
        (("--policies", "priced vanilla"), "the first is the baseline and must be vanilla"),
        (("--policies", "vanilla prised"), "did you mean 'priced'"),
        (("--batch-sizes", "0"), "each 1 or more"),
        (("--drafts", "0"), "must be 1 or more"),
        (("--drafters", "none mtp"), "has no MTP layer"),
        (("--shadow", "2"), "a share of the steps from 0 to 1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_loaded(
    args: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "in_own_process", lambda *a, **k: pytest.fail("an engine was opened"))
    result = CliRunner().invoke(app, ["speculation", MODEL, "--out", str(tmp_path), *args])
    assert isinstance(result.exception, ValueError)
    assert says in str(result.exception)
    assert len(str(result.exception).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.vllm
def test_a_trained_model_is_measured_through_vllm_and_a_record_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["speculation", MODEL, "--out", str(tmp_path), "--drafters", "none draft", "--batch-sizes", "4"]
    args += ["--items-per-task", "1", "--policies", "vanilla priced:price=0.3", "--verify", "exact,remap"]
    result = CliRunner().invoke(app, args)
    assert result.exception is None, result.output
    whole = lines.load(tmp_path / "speculation.jsonl", "speculation")
    cells = {(one["drafter"], one["verify"], one["policy"]): one for one in whole["results"]}
    assert len(cells) == 5
    plain, exact = cells["none", "exact", "vanilla"], cells["draft", "exact", "vanilla"]
    remap = cells["draft", "remap", "priced:price=0.3"]
    assert plain["n"] == 14
    assert sum(plain["right"]) >= 12
    assert exact["right"] == cells["draft", "exact", "priced:price=0.3"]["right"]
    assert show.accepted_length(exact) > 2  # one that knows the exercises
    assert show.by_depth(exact) == sorted(show.by_depth(exact), reverse=True)
    assert exact["loads"]["after"] == exact["loads"]["before"] > plain["loads"]["before"]
    assert remap["loads"]["after"] < 0.8 * remap["loads"]["before"]
    assert remap["harm"]["kl"] > 0
    assert remap["harm"]["steps"] > 1
    assert remap["harm"]["rows"] > 4 * remap["harm"]["steps"]  # drafted rows are remapped too
    assert exact["harm"]["kl"] is None
    kept = {**whole, "results": whole["results"][:-1]}
    lines.save(kept, tmp_path / "speculation.jsonl")
    again = CliRunner().invoke(app, args)
    assert again.exception is None, again.output
    assert "drafts by draft, verify remap" in again.output
    assert "drafts by none" not in again.output
    monkeypatch.setattr(measure, "in_own_process", lambda *a, **k: pytest.fail("measured again"))
    assert CliRunner().invoke(app, args).exception is None
    table = CliRunner().invoke(app, ["table", str(tmp_path / "speculation.jsonl")])
    assert table.output.count("| 4 | ") == 5
