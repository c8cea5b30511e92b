"""Random gates: the table's numbers are what the fit gives, and meet what was published."""

import json
from pathlib import Path

import pytest
import torch

from lynx_moe.lab.speed import fit_gates
from lynx_moe.lab.speed.gates import Gates
from lynx_moe.lab.speed.random_weights import fill_routing
from lynx_moe.lab.speed.shapes import GATES, SHAPES, num_experts, write_config
from lynx_moe.policies import make_policy
from lynx_moe.routing import RouterSpec, loaded, select

PLAIN = [name for name in SHAPES if not name.startswith("qwen3-30b-")]  # quantised ones have the same gates


def size(name: str) -> tuple[int, int]:
    return num_experts(SHAPES[name]), SHAPES[name].config["num_experts_per_tok"]


@pytest.mark.parametrize("name", PLAIN)
def test_gates_meet_the_published_figures(name: str) -> None:
    gates = SHAPES[name].gates
    for found, aim in zip(fit_gates.shares(gates, *size(name)), fit_gates.aims(size(name)[1]), strict=True):
        assert found == pytest.approx(aim, abs=0.01)
    for batch, aim in gates.distinct.items():
        assert fit_gates.distinct(gates, *size(name), batch) == pytest.approx(aim, rel=0.03)


def test_the_table_holds_what_the_fit_gives() -> None:
    gates = SHAPES["deepseek-v2-lite"].gates
    fitted = fit_gates.fitted(gates, 64, 6)
    assert (fitted.std, fitted.common) == (pytest.approx(gates.std, abs=0.02), pytest.approx(gates.common, abs=0.02))


def test_drawn_weights_route_as_the_formula_says() -> None:
    gates, width = Gates(std=1.4, common=0.9, source="test"), 512
    rng = torch.Generator().manual_seed(0)
    tokens, router = torch.zeros(2048, width), torch.zeros(128, width)
    fill_routing("embed_tokens.weight", tokens, {"std": 1.4, "common": 0.9}, rng)
    fill_routing("mlp.gate.weight", router, {"std": 1.4, "common": 0.9}, rng)
    normed = tokens / tokens.square().mean(-1, keepdim=True).sqrt()
    logits = normed @ router.T
    assert float(logits.std(-1).mean()) == pytest.approx(1.4, rel=0.05)
    ids = logits.topk(8, -1).indices.view(-1, 16 * 8)
    distinct = torch.zeros(len(ids), 128).scatter(-1, ids, 1.0).sum(-1).mean()
    assert float(distinct) == pytest.approx(fit_gates.distinct(gates, 128, 8, 16), rel=0.08)


@pytest.mark.parametrize("name", SHAPES)
def test_a_configuration_and_a_record_say_how_gates_are_drawn(name: str, tmp_path: Path) -> None:
    gates = SHAPES[name].gates
    config = json.loads((write_config(SHAPES[name], 1, tmp_path) / "config.json").read_text())
    assert config[GATES] == {"std": gates.std, "common": gates.common}
    about = json.loads(json.dumps(gates.about()))
    assert about["shares_by_rank"]["aim"][0] == pytest.approx(0.331)
    assert about["distinct_experts"]["from"]


@pytest.mark.parametrize(("policy", "kept"), [("priced", (61.9, 73.0, 92.2)), ("oea:k0=4", (69.8, 78.8, 92.7))])
def test_policies_keep_what_they_keep_on_the_real_routes(policy: str, kept: tuple[float, ...]) -> None:
    """Not fitted: docs/routes.md measures it, tasks mixed, in percent of distinct experts."""
    decided, spec = make_policy(policy), RouterSpec(num_experts=64, top_k=6, renormalize=False)
    logits = fit_gates.logits(SHAPES["deepseek-v2-lite"].gates, 64)[::8, :128]
    for batch, real in zip((4, 16, 64), kept, strict=True):
        steps = logits.reshape(-1, batch, 64)
        after = torch.vmap(lambda step: loaded(decided.route(step, spec).ids, 64))(steps).sum()
        before = torch.vmap(lambda step: loaded(select(step, spec).ids, 64))(steps).sum()
        assert float(100 * after / before) == pytest.approx(real, abs=3)
