"""Rules that look at a cache: their transcription in plain Python, one row and one step at a time."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from lynx_moe.cli import app
from lynx_moe.engines.shared.layers import Layer
from lynx_moe.engines.shared.recorder import Recorder
from lynx_moe.lab.replay import recording, routes
from lynx_moe.lab.replay.measure import Setting, replay
from lynx_moe.lab.replay.resident import decided
from lynx_moe.policies import make_policy
from lynx_moe.routing import RouterSpec, Rows, select

EXPERTS, TOP_K, SLOTS = 12, 3, 5
SPECS = {
    "softmax": RouterSpec(num_experts=EXPERTS, top_k=TOP_K),
    "softmax, raw": RouterSpec(num_experts=EXPERTS, top_k=TOP_K, renormalize=False),
    "biased groups": RouterSpec(
        num_experts=EXPERTS, top_k=TOP_K, scoring="sigmoid", groups=(3, 2), bias=torch.linspace(-0.2, 0.2, EXPERTS)
    ),
}
SHAPE = {"model_type": "m", "num_layers": 2, "num_experts": EXPERTS, "top_k": TOP_K}


@pytest.fixture(params=SPECS)
def read(request: Any, tmp_path: Path) -> recording.Recording:
    """Two layers, steps of 4 and 3 rows, some of which may not be changed."""
    spec, rng = SPECS[request.param], torch.Generator().manual_seed(7)
    recorder = Recorder({n: Layer(name=f"layer {n}", spec=spec) for n in (0, 1)}, 10**7)
    for step in range(9):
        size = 4 - step % 2
        remap = torch.rand(size, generator=rng) < 0.8
        for layer in (0, 1):
            logits = torch.randn(size, EXPERTS, generator=rng) * 1.5
            recorder.add(layer, logits, select(logits, spec), Rows(valid=torch.ones(size).bool(), remap=remap))
    return recording.load(recording.save(recorder, tmp_path / "r.safetensors", shape=SHAPE))


class Plainly:
    """One layer, step after step."""

    def __init__(self, read: recording.Recording, layer: int) -> None:
        self.layer, self.spec = read.layers[layer], read.layers[layer].spec
        self.remap, self.sizes = read.remap.tolist(), read.rows.tolist()
        self.used: list[int] = []  # the latest last
        self.span = 0.0  # mean of the step's rows that may change

    def choice(self, place: int) -> list[float]:
        logits = self.layer.logits[place].double()
        if self.spec.bias is None:
            return logits.tolist()
        return (logits.sigmoid().float() + self.spec.bias).tolist()

    def allowed(self, choice: list[float]) -> list[int]:
        if self.spec.groups is None:
            return list(range(EXPERTS))
        groups, kept = self.spec.groups
        size = EXPERTS // groups
        best = {g: sum(sorted(choice[g * size : (g + 1) * size])[-2:]) for g in range(groups)}
        return [e for e in range(EXPERTS) if e // size in sorted(best, key=lambda g: -best[g])[:kept]]

    def walk(self, rule: Any) -> list[set[int]]:
        """The experts that weigh something, of every row."""
        found, start = [], 0
        for size in self.sizes:
            held, rows = set(self.used[-SLOTS:]), range(start, start := start + size)
            spans = [max(c) - min(c) for c in (self.choice(n) for n in rows if self.remap[n])]
            self.span = sum(spans) / max(len(spans), 1)
            step = [rule(self, n, held) if self.remap[n] else set(self.layer.own.ids[n].tolist()) for n in rows]
            now = sorted(set().union(*step))
            self.used = [e for e in self.used if e not in now] + now
            found += step
        return found


def cache_prior(here: Plainly, place: int, held: set[int]) -> set[int]:
    choice, span = here.choice(place), here.span
    order = sorted(here.allowed(choice), key=lambda e: -choice[e])
    rest = sorted(order[1:], key=lambda e: -(choice[e] + 0.3 * span * (e in held)))
    return {order[0], *rest[: TOP_K - 1]}


def drop_on_miss(here: Plainly, place: int, held: set[int]) -> set[int]:
    own = dict(zip(here.layer.own.ids[place].tolist(), here.layer.own.weights[place].tolist(), strict=True))
    kept, gone = set(own), 0.0
    if min(own.values()) / max(own.values()) > 0.5:
        return kept
    for e in sorted(own, key=lambda e: own[e]):
        if e in held:
            continue
        if gone + own[e] / math.fsum(own.values()) > 0.3 or len(kept) <= 1:
            break
        kept, gone = kept - {e}, gone + own[e] / math.fsum(own.values())
    return kept


@pytest.mark.parametrize(
    ("text", "rule"), [("cache-prior:weight=0.3", cache_prior), ("drop-on-miss:mass=0.3", drop_on_miss)]
)
def test_a_rule_is_its_transcription(
    request: pytest.FixtureRequest, read: recording.Recording, text: str, rule: Any
) -> None:
    policies = [make_policy(text)] * 2
    changed = 0
    for number, routing in enumerate(decided(read, policies, SLOTS)):
        here = Plainly(read, number)
        for place, experts in enumerate(here.walk(rule)):
            ids, weights = routing.ids[place].tolist(), routing.weights[place].tolist()
            assert {e for e, weight in zip(ids, weights, strict=True) if weight > 0} == experts, place
            own, mine = here.layer.own.ids[place].tolist(), here.layer.own.weights[place]
            changed += experts != set(own)
            if experts == set(own):
                assert sorted(weights) == sorted(mine.tolist())
            elif here.spec.renormalize or text.startswith("drop") or here.spec.scoring == "softmax":
                assert sum(weights) == pytest.approx(float(mine.sum()), rel=1e-5)
    uneven = "biased" not in request.node.name or text.startswith("cache")  # weights of that router are nearly equal
    assert changed > 5 * uneven


def test_a_weight_of_0_changes_nothing_and_a_larger_one_misses_less(read: recording.Recording) -> None:
    specs = [f"cache-prior:weight={weight}" for weight in (0, 0.2, 0.6)] + ["drop-on-miss:mass=0.4", "vanilla"]
    same, some, more, dropped, vanilla = replay(read, specs, Setting(slots=SLOTS))
    for name in ("after", "loads_after", "x", "mass", "changed"):
        assert same[name] == vanilla[name]
    assert vanilla["loads_after"] > some["loads_after"] > more["loads_after"]
    assert 0 == vanilla["x"] < some["x"] < more["x"]
    assert dropped["loads_before"] == vanilla["loads_after"]
    if read.layers[0].spec.bias is None:  # else weights are nearly equal, and nothing goes
        assert dropped["loads_after"] < vanilla["loads_after"]
    assert some["policy"] == "cache-prior:weight=0.2"


def test_where_there_is_no_one_cache_they_are_refused(read: recording.Recording, tmp_path: Path) -> None:
    for name in ("cache-prior", "drop-on-miss"):
        with pytest.raises(ValueError, match=f"{name} looks at which experts a cache holds: say by --slots"):
            replay(read, [name])
        with pytest.raises(ValueError, match=f"{name} is replayed with one cache"):
            replay(read, [name], Setting(slots=4, ranks=2))
        logits = read.layers[0].logits[:2].float()
        with pytest.raises(ValueError, match=f"{name} decides by which experts are in memory, and is not told here"):
            make_policy(name).route(logits, read.layers[0].spec)
    with pytest.raises(ValueError, match="--aware is of one cache: say its --slots"):
        Setting(aware=True)
    for text, says in (
        ("cache-prior:weight=2", "must lie from 0 to 1"),
        ("cache-prior:top_j=4", "top_j=4 is more than the model's top_k=3"),
        ("drop-on-miss:mass=0", "must lie above 0"),
        ("drop-on-miss:min_k=9", "min_k=9 is more than"),
        ("cache-prio", "did you mean 'cache-prior'"),
    ):
        with pytest.raises(ValueError, match=says):
            replay(read, [text], Setting(slots=4))


def test_priced_that_knows_the_cache_keeps_more_and_loads_no_more(read: recording.Recording) -> None:
    blind, aware = (
        replay(read, ["priced:price=0.3", "topk:k=2"], Setting(slots=SLOTS, aware=aware)) for aware in (False, True)
    )
    assert aware[0]["x"] < blind[0]["x"]
    assert aware[0]["after"] > blind[0]["after"]
    assert aware[0]["loads_after"] <= blind[0]["loads_after"]
    assert aware[1] == pytest.approx(blind[1])  # it does not look


def test_routes_are_enough_for_who_looks_at_a_row_s_own_experts(read: recording.Recording, tmp_path: Path) -> None:
    if read.layers[0].spec.bias is not None:
        return
    own = [layer.own for layer in read.layers]
    known = recording.Recording(
        tuple(
            recording.Recorded(layer.name, layer.spec, routes._logits(mine, EXPERTS), mine)
            for layer, mine in zip(read.layers, own, strict=True)
        ),
        read.rows,
        read.remap,
        read.facts | {"own_only": True},
    )
    by_routes, by_logits = (replay(one, ["drop-on-miss:mass=0.3"], Setting(slots=SLOTS))[0] for one in (known, read))
    assert {name: by_routes[name] for name in ("after", "loads_after", "x")} == pytest.approx(
        {name: by_logits[name] for name in ("after", "loads_after", "x")}
    )
    with pytest.raises(ValueError, match="cache-prior looks at scores of experts that a row did not choose"):
        replay(known, ["cache-prior"], Setting(slots=SLOTS))


def test_the_command_takes_them(read: recording.Recording, tmp_path: Path) -> None:
    file = str(tmp_path / "r.safetensors")
    shown = CliRunner().invoke(app, ["replay", file, "--policies", "vanilla cache-prior drop-on-miss", "--slots", "4"])
    assert shown.exit_code == 0, shown.output
    assert "loads, 4 slots" in shown.output
    assert "drop-on-miss" in shown.output
    assert CliRunner().invoke(app, ["replay", file, "--slots", "4", "--aware"]).exit_code == 0
