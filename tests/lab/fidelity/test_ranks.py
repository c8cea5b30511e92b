"""Experts on ranks: a policy decides by them, and what the fullest loads is counted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_moe import documents
from typer.testing import CliRunner

import lynx_moe
from lynx_moe.cli import app
from lynx_moe.engines.shared.layers import Layer
from lynx_moe.lab.fidelity.lockstep import decode
from lynx_moe.lab.fidelity.ranks import Fullest
from lynx_moe.lab.shared import lines
from lynx_moe.lab.shared.documents import batches
from lynx_moe.policies import Placement, make_policy
from lynx_moe.routing import RouterSpec, Routing

PLAIN, BY_RANK = "priced:price=0.1", "priced:price=0.1,per_rank=true"


def test_a_policy_decides_by_ranks_and_who_watches_sees_it(model: Any) -> None:
    (batch,) = batches(documents(6), 6, "mixed", seed=0)
    run, seen = lynx_moe.apply(model, BY_RANK, ranks=4), []
    recorder = run.record(2**20)
    run.watch = lambda layer, own, final: seen.append((layer, own, final))
    decode(model, batch, [run], "own")
    num_experts = run.layers[0].spec.num_experts
    policy = make_policy(BY_RANK).for_placement(Placement.linear(num_experts, 4))
    plain, differ = make_policy(PLAIN), 0
    steps = {number: iter(parts) for number, parts in recorder.parts.items()}
    assert len(seen) == batch.num_steps * len(run.layers)
    for layer, own, final in seen:
        logits, ids, weights = next(steps[run.layers.index(layer)])
        assert torch.equal(own.ids, ids.long())
        assert torch.equal(final.ids, policy.decide(logits, layer.spec, None, Routing(ids.long(), weights)).ids)
        differ += not torch.equal(final.ids, plain.decide(logits, layer.spec, None, own).ids)
    assert differ


def test_the_fullest_rank_is_counted_by_layer_and_step(folder: Path, tmp_path: Path) -> None:
    options = [
        "--batch-sizes",
        "6",
        "--mixes",
        "mixed",
        "--sequences",
        "6",
        "--dtype",
        "float32",
        "--out",
        str(tmp_path),
    ]
    options += ["--policies", f"{PLAIN} {BY_RANK}"]
    runner = CliRunner()
    shown = runner.invoke(app, ["fidelity", str(folder), "--ranks", "2,4", *options])
    assert shown.exit_code == 0, shown.output
    two, four = (lines.load(tmp_path / f"{number}-ranks.jsonl", "fidelity")["results"] for number in (2, 4))
    assert two[0]["kl_by_sequence"] == four[0]["kl_by_sequence"]  # ranks are nothing to a policy that does not ask
    assert two[1]["kl_by_sequence"] != four[1]["kl_by_sequence"]
    for found in (two, four):
        assert found[1]["fullest_after"] < found[0]["fullest_after"] < found[0]["fullest_before"]
        assert found[0]["after"] < found[1]["after"]
    assert four[0]["fullest_before"] < two[0]["fullest_before"] < two[0]["before"]
    text = f"fullest {two[1]['fullest_before']:.1f} → {two[1]['fullest_after']:.1f}"
    assert text in runner.invoke(app, ["table", str(tmp_path / "2-ranks.jsonl")]).output
    again = runner.invoke(app, ["fidelity", str(folder), "--ranks", "2", *options])
    assert again.exit_code == 0
    assert "loading the model" not in again.output


def test_counts_are_those_of_each_step() -> None:
    spec = RouterSpec(num_experts=4, top_k=2)
    layer, count = Layer(name="layers.0", spec=spec, placement=Placement.linear(4, 2)), Fullest()
    weights = torch.ones(2, 2)
    count.add(layer, Routing(torch.tensor([[0, 1], [0, 2]]), weights), Routing(torch.tensor([[0, 2], [0, 2]]), weights))
    count.add(layer, Routing(torch.tensor([[0, 2], [0, 2]]), weights), Routing(torch.tensor([[0, 2], [0, 2]]), weights))
    assert count.means() == [1.5, 1.0]
    assert Fullest().means() == [0.0, 0.0]


def test_rows_alone_load_nothing_under_a_policy_that_leaves_them_alone(folder: Path, tmp_path: Path) -> None:
    given = ["--ranks", "2", "--batch-sizes", "1", "--mixes", "mixed", "--sequences", "1", "--policies", "lynx"]
    shown = CliRunner().invoke(app, ["fidelity", str(folder), *given, "--out", str(tmp_path)])
    assert shown.exit_code == 0, shown.exception
    (line,) = lines.load(tmp_path / "2-ranks.jsonl", "fidelity")["results"]
    assert [line[name] for name in ("before", "after", "fullest_before", "fullest_after")] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--ranks", "1"], "one rank has all experts"),
        (["--ranks", "2,a"], "--ranks '2,a' must be whole numbers between commas"),
        (["--ranks", "99"], "16 experts cannot live on 99 ranks"),
        (["--ranks", "2", "--tiers", "0.1 exact"], "give one of them"),
        (["--ranks", "2", "--engine", "vllm"], "deals experts out on transformers"),
    ],
)
def test_ranks_that_cannot_be_are_refused(folder: Path, tmp_path: Path, options: list[str], says: str) -> None:
    given = ["fidelity", str(folder), *options, "--batch-sizes", "6", "--sequences", "12", "--out", str(tmp_path)]
    shown = CliRunner().invoke(app, given)
    assert shown.exit_code != 0
    assert says in " ".join((shown.output + str(shown.exception)).split())
